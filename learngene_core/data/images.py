"""Images in memory: the sources of images, and `load_images`, which reads one into an `ImageSet` of uint8 pixels.

A source is found first, and said in one line; another line says what is left out. Then its images are decoded into the cache,
once. An image of another size than `image_size` becomes its middle square, resized (the shorter side to 84 pixels and a
centre crop, in ImageNet-100).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import StudyError, expanded, say
from ..tasks import ImageSet
from . import cifar, glyphs
from .archives import archives_in, is_archive, unpacked
from .cache import Filled, RowWriter, cached
from .decoding import THREAD_BYTES, decode_all
from .division import GROUPS, packaged
from .folders import Folder, ImageFile, find_layout, left_out, list_images, other_classes, what_is_there
from .names import counted, few, look_alikes, shown
from .parquet import Tables, tables_in

SOURCES = ("glyphs", "cifar100", "imagenet100", "cub200", "folder")
HINTS = {  # where below the data path an archive or a well-known tool puts the class folders
    "cifar100": ("cifar100",),
    "imagenet100": ("imagenet100",),
    # the archive's train_test_split.txt divides images of known species; few-shot work divides the species instead
    "cub200": ("images", "CUB_200_2011/images"),
}
ILSVRC = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")  # ImageNet's own tree
VERSION = 3  # of the pixels: raised when decoding changes


class Source(Protocol):
    """Images that have been found. where: the place; text: its layout, in one line; remarks: what is left out, in others;
    facts: JSON values that change when the images do."""

    where: str
    text: str
    remarks: Sequence[str]
    facts: list[Any]

    def outline(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Class names, labels (n,) into them, and official test images (n,) bool; no image is read."""

    def fill(self, writer: RowWriter, size: int, *, skip_corrupt: bool = False) -> Filled:
        """Decode the images, sorted by class and training images first. Raises StudyError for an unreadable one."""


def load_images(
    data: str, data_path: str | Path = "", *, image_size: int = 32, seed: int = 0, skip_corrupt: bool = False
) -> ImageSet:
    """The images of a source: "glyphs" (embedded), "cifar100", "imagenet100", "cub200", or any "folder" of class folders.

    Decoded once and kept in a cache of memory-mapped uint8. `data_path`: the folder or archive with the images (for
    cifar100 also "download"). `image_size`: side in pixels; an image of another size becomes its middle square, resized.
    `seed` redraws the glyphs; `skip_corrupt` leaves unreadable images out instead of raising.

    Raises StudyError when the folder is missing, empty or holds an unreadable image, or where glyphs are to come from one;
    ValueError for an unknown source.
    """
    if data not in SOURCES:
        raise ValueError(f"unknown data {data!r}; there are {', '.join(SOURCES)}")
    if data == "glyphs":
        return _glyphs(data_path, image_size, seed)
    source = find_source(data, data_path)
    for line in (source.text, *source.remarks):
        say(f"{data}: {line}")
    images, labels, held_out, notes = _pixels(data, source, image_size, skip_corrupt)
    names, known = tuple(notes["class_names"]), packaged(data).get("superclasses", {})
    return ImageSet(
        data,
        torch.from_numpy(images),
        torch.from_numpy(labels),
        names,
        {n: known[n] for n in names if n in known},
        torch.from_numpy(held_out) if len(held_out) else None,
    )


def _glyphs(data_path: str | Path, image_size: int, seed: int) -> ImageSet:
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

    recipe = {"data": "glyphs", **glyphs.RECIPE, "seed": seed}
    images, labels, _, _ = cached(recipe, make, "drawing the glyphs")
    return ImageSet("glyphs", torch.from_numpy(images), torch.from_numpy(labels), names, families)


def find_source(data: str, data_path: str | Path) -> Source:
    """The source of `data` at `data_path`: a folder, an archive or a folder of archives (unpacked once), or tables.

    cifar100, imagenet100 and cub200 keep to the classes of their manifests; other folders beside them are not read.

    Raises StudyError when there is no path, nothing at it, or no images in it.
    """
    if not data_path:
        download = f", or `--data-path {cifar.DOWNLOAD}` to fetch it" if data == "cifar100" else ""
        raise StudyError(f"data {data!r} needs --data-path, the folder that holds its images{download}")
    if data == "cifar100" and str(data_path) == cifar.DOWNLOAD:
        return cifar.Published(cifar.downloaded())
    if re.match(r"[A-Za-z][\w+.-]*://", str(data_path)):
        raise StudyError(f"{data_path} is an address; download what is there, and give the folder or archive")
    path = expanded(data_path)
    given = shown(str(path))
    if path.is_file() and not is_archive(path) and not tables_in(path):
        raise StudyError(f"{given} is a file; give the folder that holds its images (an archive: unpack it first)")
    if not path.exists():
        raise StudyError(f"the data folder {given} does not exist")
    if is_archive(path):
        return _source_in(data, unpacked([path]), given)
    if path.is_file() or (data == "cifar100" and cifar.folder_of(path)):
        return _source_in(data, path, given)
    archives, packed = archives_in(path), path / cifar.ARCHIVE
    if data == "cifar100" and packed in archives:
        archives = [packed]
    elif Folder(path).scan().folders:
        archives = []  # somebody has unpacked them
    if archives:
        return _source_in(data, unpacked(archives), ", ".join(shown(str(p)) for p in archives))
    return _source_in(data, path, given)


def _source_in(data: str, path: Path, where: str) -> Source:
    published = cifar.folder_of(path) if path.is_dir() else None
    if data == "cifar100" and published:
        return cifar.Published(published, where)
    names = [n for group in GROUPS for n in packaged(data).get(group, ())]
    if path.is_dir() and (found := _class_folders(data, Folder(path, where), frozenset(names))):
        return found
    if data in ("cifar100", "folder") and (tables := tables_in(path)):
        return Tables(tables, path, sorted(names) or None)
    if other := cifar.other_version(path):
        raise StudyError(f"{where} holds {other}")
    if published:
        raise StudyError(f"{where} holds CIFAR in its published format; use --data cifar100")
    raise StudyError(_nothing_found(data, Folder(path, where), frozenset(names)))


def _nothing_found(data: str, folder: Folder, wanted: frozenset[str]) -> str:
    other = find_layout(folder, (*HINTS.get(data, ()), *ILSVRC)) if wanted else None
    if other:
        return (
            f"{folder.where} holds classes ({few(other_classes(folder, other, ()))}), but none of the {len(wanted)} of "
            f"{data} ({few(sorted(wanted))}); for other images use --data folder"
        )
    return (
        f"{folder.where} holds no images in class folders; expected <class>/*.png, or train/<class>/*.png with "
        f"test/<class>/*.png, or base/<class>, novel/train/<class> and novel/test/<class>{what_is_there(folder)}"
    )


# class folders --------------------------------------------------------------------------------------------------------
class ClassFolders:
    """Images in class folders (a source)."""

    def __init__(self, folder: Folder, layout: str, files: Sequence[ImageFile], remarks: Sequence[str]):
        self.folder, self.where, self.files, self.remarks = folder, folder.where, files, remarks
        self.text = counted(layout, *self.outline())
        digest = hashlib.sha256()
        for f in files:
            digest.update(f"{f.held_out:d} {f.path}\0{f.size} {f.changed}\n".encode("utf-8", "surrogateescape"))
        self.facts = ["folders", digest.hexdigest()]

    def outline(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """See `Source`."""
        names = sorted({f.class_name for f in self.files})
        place = {name: i for i, name in enumerate(names)}
        labels = np.array([place[f.class_name] for f in self.files], np.int64)
        return names, labels, np.array([f.held_out for f in self.files])

    def fill(self, writer: RowWriter, size: int, *, skip_corrupt: bool = False) -> Filled:
        """See `Source`."""
        names, labels, held_out = self.outline()
        paths = [f.path for f in self.files]
        good, converted, skipped = decode_all(
            self.where,
            paths,
            lambda i: self.folder.path(paths[i]),
            size,
            writer,
            threads=sum(f.size for f in self.files) >= THREAD_BYTES * len(paths),
            skip_corrupt=skip_corrupt,
        )
        kept = [path for path, fine in zip(paths, good, strict=True) if fine]
        return Filled(labels[good], held_out[good], names, kept, converted, skipped)


def _class_folders(data: str, folder: Folder, wanted: frozenset[str]) -> ClassFolders | None:
    layout = find_layout(folder, (*HINTS.get(data, ()), *ILSVRC), wanted)
    if layout is None:
        return None
    files = list_images(folder, layout, wanted)
    names = {f.class_name for f in files}
    lines = []
    if missing := sorted(wanted - names):
        lines.append(f"{len(missing)} of its {len(wanted)} classes are not in {folder.where}: {few(missing)}")
    if others := other_classes(folder, layout, wanted or names):
        why = "are none of its classes" if wanted else "directly hold no image"
        lines.append(f"{len(others)} folders that {why} are not read: {few(others)}")
    if alike := look_alikes(sorted(names)):
        pairs = [" and ".join(map(repr, group)) for group in alike]
        lines.append(
            f"class names that differ in capitals or spaces alone are taken for different classes: {few(pairs)}"
        )
    lines += left_out(folder, layout, wanted)
    tested = {f.class_name for f in files if f.held_out}
    if tested and len(tested) < len(names):
        lines.append(f"{len(names - tested)} classes have no official test images; theirs are set apart by the seed")
    return ClassFolders(folder, layout.text, files, lines)


# pixels ---------------------------------------------------------------------------------------------------------------
def _pixels(
    data: str, source: Source, size: int, skip_corrupt: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Images, labels, official test images and notes, from the cache where the same files were decoded before."""

    def make(writer: RowWriter) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        found = source.fill(writer, size, skip_corrupt=skip_corrupt)
        if not len(found.labels):
            raise StudyError(
                f"none of the {len(found.skipped):,} images in {source.where} can be read: {few(found.skipped, 1)}"
            )
        if found.converted:
            say(f"{data}: converted " + ", ".join(f"{n:,} {kind}" for kind, n in sorted(found.converted.items())))
        remarks = [*found.remarks, *same_pictures(writer.digests, found)]
        notes = {"class_names": list(found.class_names), "skipped": list(found.skipped), "remarks": remarks}
        return found.labels, found.held_out if found.held_out.any() else found.held_out[:0], notes

    recipe = {"data": data, "version": VERSION, "image_size": size, "files": source.facts}
    images, labels, held_out, notes = cached(recipe, make, f"reading {shown(source.where)}")
    for line in notes["remarks"]:
        say(f"{data}: {line}")
    if skipped := notes["skipped"]:
        if not skip_corrupt:  # another run has left them out; this one was not asked to
            raise StudyError(f"cannot read the image {source.where}/{skipped[0]}")
        say(f"{data}: {len(skipped)} unreadable images are left out: {few(skipped)}")
    return images, labels, held_out, notes


def same_pictures(digests: Sequence[bytes], found: Filled) -> list[str]:
    """A line on images that are in several classes, and one on test images that are training images too."""
    first: dict[bytes, int] = {}
    classes, tests = [], []  # pairs of images
    for i, digest in enumerate(digests):  # by class, training images first
        other = first.setdefault(digest, i)
        if found.labels[i] != found.labels[other]:
            classes.append((other, i))
        elif found.held_out[i] and not found.held_out[other]:
            tests.append((other, i))
    lines = [(classes, "images are also in another class"), (tests, "official test images are also training images")]
    return [
        f"{len(pairs):,} {text}, e.g. {shown(found.items[pairs[0][1]])} is {shown(found.items[pairs[0][0]])}"
        for pairs, text in lines
        if pairs
    ]
