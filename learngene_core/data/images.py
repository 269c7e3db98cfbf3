"""Images in memory: data sources to an `ImageSet` of uint8 tensors, a shared cache, and batched augmentation.

Real images: CIFAR-100, ImageNet-100, CUB-200-2011, or any folder of class folders, decoded once into the cache.

The layouts (`layouts`): `<class>/*`; `train/<class>/*` with `test/` or `val/`; `base/<class>/*`, `novel/train/<class>/*`,
`novel/test/<class>/*` as the released scripts have them; CIFAR-100 also in torchvision's format (`cifar`). An image of
another size than `image_size` becomes its middle square, resized (shorter side to 84 px and centre crop in ImageNet-100).

What can be known of a study before its first kernel starts, in a fraction of a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Config
from ..errors import StudyError, say
from ..tasks import ImageSet
from . import cifar, glyphs
from .cache import RowWriter, cached, decode_all
from .division import GROUPS, packaged
from .folders import ImageFile, Layout, Tree, find_layout, list_images, open_tree, other_classes, shown

SOURCES = ("glyphs", "cifar100", "imagenet100", "cub200", "folder")


def load_images(
    data: str, data_path: str | Path = "", *, image_size: int = 32, seed: int = 0, skip_corrupt: bool = False
) -> ImageSet:
    """The images of a source: "glyphs" (embedded), "cifar100", "imagenet100", "cub200", or any "folder" of class folders.

    Decoded once and kept in a cache of memory-mapped uint8. `data_path`: the folder or zip archive with the images (for
    cifar100 also "download"). `image_size`: side in pixels; an image of another size becomes its middle square, resized.
    `seed` redraws the glyphs; `skip_corrupt` leaves unreadable images out instead of refusing them.

    Raises StudyError when the folder is missing, empty or holds an unreadable image, or where glyphs are to come from one;
    ValueError for an unknown source.
    """
    if data not in SOURCES:
        raise ValueError(f"unknown data {data!r}; there are {', '.join(SOURCES)}")
    if data != "glyphs":
        return load(data, data_path, image_size, skip_corrupt=skip_corrupt)
    if str(data_path):
        raise StudyError(
            f"glyphs are drawn and read no files from {data_path}; did you mean --data cifar100 (or folder)?"
        )
    if image_size != glyphs.SIZE:
        raise StudyError(f"glyphs are {glyphs.SIZE} px; image_size = {image_size} needs another data source")
    names, families = glyphs.class_names()

    def make(writer: RowWriter) -> tuple[np.ndarray, np.ndarray, dict]:
        images, labels = glyphs.render(seed=seed)
        writer.append(images)
        return labels, np.zeros(0, bool), {}

    images, labels, _, _ = cached({"data": data, **glyphs.RECIPE, "seed": seed}, make, "drawing the glyphs")
    return ImageSet(data, torch.from_numpy(images), torch.from_numpy(labels), names, families)


# batched preparation, on whatever device the images are --------------------------------------------------------------


HINTS = {  # where below the data path an archive or a well-known tool puts the class folders
    "cifar100": ("cifar100",),
    "imagenet100": ("imagenet100", "ILSVRC/Data/CLS-LOC"),
    # the archive's train_test_split.txt divides images of known species; few-shot work divides the species instead
    "cub200": ("images", "CUB_200_2011/images"),
}
VERSION = 2  # of the pixels: raised when decoding changes


def load(data: str, data_path: str | Path, image_size: int, *, skip_corrupt: bool = False) -> ImageSet:
    """The image set of `data` in the folder (or zip archives) `data_path`; its layout is found and said.

    cifar100, imagenet100 and cub200 keep to the classes of their manifests; other folders beside them are not read.

    Raises StudyError when images are missing or unreadable (the first is named; `skip_corrupt` leaves them out).
    """
    manifest = packaged(data)
    if str(data_path) == cifar.DOWNLOAD and data == "cifar100":
        images, labels, held_out, notes = cifar.load(None, image_size)
        names = tuple(notes["class_names"])
    elif not data_path:
        download = f", or `--data-path {cifar.DOWNLOAD}` to fetch it" if data == "cifar100" else ""
        raise StudyError(f"data {data!r} needs --data-path, the folder that holds its images{download}")
    elif data == "cifar100" and (root := cifar.root_of(Path(data_path).expanduser())):
        images, labels, held_out, notes = cifar.load(root, image_size)
        names = tuple(notes["class_names"])
    else:
        wanted = frozenset(n for group in GROUPS for n in manifest.get(group, ()))
        tree = open_tree(Path(data_path).expanduser())
        files = _files(data, tree, wanted)
        names = tuple(sorted({f.class_name for f in files}))
        images, labels, held_out, notes = _pixels(data, tree, files, names, image_size, skip_corrupt)
    known = manifest.get("superclasses", {})
    return ImageSet(
        data,
        torch.from_numpy(images),
        torch.from_numpy(labels),
        names,
        {n: known[n] for n in names if n in known},
        torch.from_numpy(held_out) if len(held_out) else None,
    )


def _files(data: str, tree: Tree, wanted: frozenset[str]) -> list[ImageFile]:
    """The images of a tree, after saying what was found and what was not. Raises StudyError where there is none."""
    layout = find_layout(tree, HINTS.get(data, ()), wanted)
    if layout is None:
        raise StudyError(_nothing_found(data, tree, wanted))
    files = list_images(tree, layout, wanted)
    names = {f.class_name for f in files}
    held = sum(f.held_out for f in files)
    say(
        f"{data}: {layout.text}; {len(files):,} images of {len(names)} classes"
        + (f", {held:,} of them official test images" if held else ", no official test split")
    )
    for line in _remarks(data, tree, layout, files, wanted):
        say(f"{data}: {line}")
    return files


def _nothing_found(data: str, tree: Tree, wanted: frozenset[str]) -> str:
    other = find_layout(tree, HINTS.get(data, ())) if wanted else None
    if other:
        return (
            f"{tree.where} holds classes ({_few(other_classes(tree, other, ()))}), but none of the {len(wanted)} of "
            f"{data} ({_few(sorted(wanted))}); for other images use --data folder"
        )
    return (
        f"{tree.where} holds no images in class folders; expected <class>/*.png, or train/<class>/*.png with "
        f"test/<class>/*.png, or base/<class>, novel/train/<class> and novel/test/<class>"
    )


def _remarks(data: str, tree: Tree, layout: Layout, files: Sequence[ImageFile], wanted: frozenset[str]) -> list[str]:
    names = {f.class_name for f in files}
    lines = []
    if missing := sorted(wanted - names):
        lines.append(f"{len(missing)} of its {len(wanted)} classes are not in {tree.where}: {_few(missing)}")
    if others := other_classes(tree, layout, wanted or names):
        why = "are none of its classes" if wanted else "directly hold no image"
        lines.append(f"{len(others)} folders that {why} are not read: {_few(others)}")
    if layout.unread:
        lines.append(f"{layout.unread} has no class folders and is not read")
    tested = {f.class_name for f in files if f.held_out}
    if tested and len(tested) < len(names):
        lines.append(f"{len(names - tested)} classes have no official test images; theirs are set apart by the seed")
    return lines


def _pixels(
    data: str, tree: Tree, files: Sequence[ImageFile], names: Sequence[str], size: int, skip_corrupt: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Images, labels, held-out flags and notes, from the cache where the same files were decoded before."""

    def make(writer: RowWriter) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        good, converted, skipped = decode_all(tree, files, size, writer, skip_corrupt=skip_corrupt)
        if not good.any():
            raise StudyError(f"none of the {len(files):,} images in {tree.where} can be read: {_few(skipped, 1)}")
        if converted:
            say(f"{data}: converted " + ", ".join(f"{n:,} {kind}" for kind, n in sorted(converted.items())))
        place = {name: i for i, name in enumerate(names)}
        labels = np.array([place[f.class_name] for f in files], np.int64)[good]
        held_out = np.array([f.held_out for f in files])[good]
        return labels, held_out if held_out.any() else held_out[:0], {"converted": converted, "skipped": skipped}

    recipe = {"data": data, "version": VERSION, "image_size": size, "files": _digest(files)}
    entry = cached(recipe, make, f"reading {len(files):,} images")
    if skipped := entry[3]["skipped"]:
        if not skip_corrupt:  # another run has left them out; this one was not asked to
            raise StudyError(f"cannot read the image {tree.where}/{skipped[0]}")
        say(f"{data}: {len(skipped)} unreadable images are left out: {_few(skipped)}")
    return entry


def _digest(files: Sequence[ImageFile]) -> str:
    digest = hashlib.sha256()
    for f in files:
        digest.update(f"{f.held_out:d} {f.path}\0{f.size} {f.stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _few(names: Sequence[str], n: int = 5) -> str:
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(map(shown, names[:n])) + more


def check_data(cfg: Config) -> None:
    """Look whether the images are where `data_path` says; none is read.

    Raises StudyError when there is no path, no folder or archive, or no class folders in it.
    """
    if cfg.data == "glyphs":
        return
    from . import cifar
    from .division import GROUPS, packaged
    from .folders import find_layout, open_tree

    if not cfg.data_path:
        download = f", or `--data-path {cifar.DOWNLOAD}` to fetch it" if cfg.data == "cifar100" else ""
        raise StudyError(f"data {cfg.data!r} needs --data-path, the folder that holds its images{download}")
    path = Path(cfg.data_path).expanduser()
    if cfg.data == "cifar100" and (cfg.data_path == cifar.DOWNLOAD or cifar.root_of(path)):
        return
    manifest, tree = packaged(cfg.data), open_tree(path)
    wanted = frozenset(name for group in GROUPS for name in manifest.get(group, ()))
    if find_layout(tree, HINTS.get(cfg.data, ()), wanted) is None:
        what = f"none of the classes of {cfg.data}" if wanted else "no images in class folders"
        raise StudyError(f"{tree.where} holds {what}; give the folder that holds its class folders as --data-path")
