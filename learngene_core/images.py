"""Images in memory: data sources to an `ImageSet` of uint8 tensors, a shared cache, and batched augmentation."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import glyphs
from .cache import RowWriter, cached
from .files import StudyError

SOURCES = ("glyphs", "cifar100", "imagenet100", "cub200", "folder")


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
        from . import sources

        return sources.load(data, data_path, image_size, skip_corrupt=skip_corrupt)
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
def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 images (n, 3, h, w) to float32 with zero mean and unit variance per channel; mean, std (3,) in 0..1."""
    std = torch.where(std > 0, std, 1.0)  # a constant channel stays at zero
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
    return mean.float(), (counts @ value**2 / pixels - mean**2).clamp_min(0).sqrt().float()
