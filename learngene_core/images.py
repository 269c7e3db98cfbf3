"""Images in memory: data sources to an `ImageSet` of uint8 tensors, a shared cache, and batched augmentation."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import glyphs
from .files import StudyError, atomic, write_json


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of named classes, sorted by class.

    images: (n, 3, size, size) uint8; labels: (n,) int64 into `class_names`; held_out: (n,) bool, True for images of an
    official test split, or None where the data has none; superclasses: class name -> super-class ({} where unknown).
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    superclasses: dict[str, str]
    held_out: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over pixels, labels and names: equal images give equal fingerprints anywhere."""
        digest = hashlib.sha256(json.dumps([self.class_names, list(self.images.shape)]).encode())
        for part in (self.images, self.labels, self.held_out):
            if part is not None:
                digest.update(part.numpy().data)
        return digest.hexdigest()[:16]

    def of_class(self, name: str, *, held_out: bool | None = None) -> np.ndarray:
        """Indices (k,) of a class's images, in stored order; only the official test (or training) ones if asked."""
        mask = self.labels.numpy() == self.class_names.index(name)
        if held_out is not None and self.held_out is not None:
            mask &= self.held_out.numpy() == held_out
        return np.flatnonzero(mask)


def load_images(data: str, data_path: str | Path = "", *, image_size: int = 32, seed: int = 0) -> ImageSet:
    """The images of a source: "glyphs" (embedded) or a tree of class folders ("cifar100", "folder", ...).

    Decoded once and kept in a cache of memory-mapped uint8. `seed` redraws the glyphs; `image_size` is the side in pixels.

    Raises StudyError when the folder is missing, empty or holds an unreadable image; ValueError for an unknown source.
    """
    if data == "glyphs":
        if image_size != glyphs.SIZE:
            raise StudyError(f"glyphs are {glyphs.SIZE} px; image_size = {image_size} needs another data source")
        names, families = glyphs.class_names()
        images, labels, _ = _cached(
            {"data": data, **glyphs.RECIPE, "seed": seed},
            lambda: (*glyphs.render(seed=seed), np.zeros(0, bool)),
            "drawing the glyphs",
        )
        return ImageSet(data, images, labels, names, families)
    from . import sources

    return sources.load(data, data_path, image_size)


def cache_folder() -> Path:
    """Where decoded images are kept: $LEARNGENE_CACHE, or the system's place for caches."""
    import platformdirs

    return Path(os.environ.get("LEARNGENE_CACHE") or platformdirs.user_cache_dir("learngene", appauthor=False))


def _cached(recipe: dict, make: Callable[[], tuple[np.ndarray, ...]], text: str) -> tuple[Tensor, ...]:
    """The arrays (images, labels, held_out) of `make`, from the cache when `recipe` was made before.

    The entry appears only when it is whole, so processes that start together each find it absent or complete.
    """
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{recipe['data']}-{key}"
    if not (folder / "recipe.json").exists():
        print(f"{text} (once; kept in the cache)", flush=True)
        try:
            for name, array in zip(("images", "labels", "held_out"), make(), strict=True):
                with atomic(folder / f"{name}.npy") as path, open(path, "wb") as file:
                    np.save(file, array)
            write_json(folder / "recipe.json", recipe)
        except OSError as error:
            raise StudyError(
                f"cannot write the image cache {folder}: {error.strerror}; set LEARNGENE_CACHE to a folder with space"
            ) from None
    try:
        # "c": pages are read when needed and shared; writing, which nobody does, would copy
        arrays = [
            np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)
            for name in ("images", "labels", "held_out")
        ]
    except (OSError, ValueError) as error:
        raise StudyError(f"the image cache {folder} is damaged ({error}); delete that folder") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(torch.from_numpy(a) for a in arrays)


# batched preparation, on whatever device the images are --------------------------------------------------------------
def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 images (n, 3, h, w) to float32 with zero mean and unit variance per channel; mean, std (3,) in 0..1."""
    scale = 1 / (255 * std)
    x = images.to(torch.float32, memory_format=torch.channels_last)
    return x.mul_(scale[:, None, None]).sub_((mean / std)[:, None, None])


def augment(images: Tensor, shift: Tensor | None, flip: Tensor | None) -> Tensor:
    """Shift images (n, 3, h, w) by whole pixels (n, 2: down, right), edge pixels repeated, then mirror where flip (n,).

    Repeating edges instead of padding with black keeps a frame from becoming a cue.
    """
    n, _, height, width = images.shape
    if shift is None and flip is None:
        return images
    rows = torch.arange(height, device=images.device).expand(n, -1)
    columns = torch.arange(width, device=images.device).expand(n, -1)
    if flip is not None:
        columns = torch.where(flip[:, None], width - 1 - columns, columns)
    if shift is not None:
        rows, columns = rows - shift[:, :1], columns - shift[:, 1:]
    pick = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]  # (n, h, w)
    return images.flatten(2).gather(2, pick.flatten(1)[:, None].expand(-1, 3, -1)).view_as(images)


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3,), (3,) of uint8 images (n, 3, h, w) in 0..1, exact integer sums."""
    pixels = images.shape[0] * images.shape[2] * images.shape[3]
    # Python integers: float sums over 150 million pixels would depend on the order
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(3)]).double()  # (3, 256)
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ value / pixels
    return mean.float(), (counts @ value**2 / pixels - mean**2).sqrt().float()
