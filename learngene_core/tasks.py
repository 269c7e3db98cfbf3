"""Tasks, images and chance: what the method is given.

A *source task* is a few base classes that the collective model learns together; source tasks come one after the other. A
*target task* is n novel classes with a few labelled (support) images each, and query images to test with. Both hold indices
into one `ImageSet` in memory.

Chance: one seed fans out into named random streams, so that changing one use of chance does not move the others. A stream is
named by what it is for, e.g. `generator(0, "batches", "task 3", "epoch 2")`. Nothing has to be saved to resume: a stream is
made anew from its name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # tables and figures use streams and need no torch
    import torch
    from torch import Tensor


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


@dataclasses.dataclass(frozen=True)
class SourceTask:
    """One task of the sequence: its number (from 1), classes, and image indices: train, validation, test."""

    number: int
    classes: tuple[str, ...]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True)
class TargetTask:
    """An n-way task: support (n_way, pool) image indices, of which the first `shots` columns are used; query (n_way, k)."""

    number: int
    classes: tuple[str, ...]
    support: np.ndarray
    query: np.ndarray
    group: str = "novel"


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream with these names."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    """NumPy generator of a named stream."""
    return np.random.default_rng(derive(seed, *names))


def generator(seed: int, *names: object) -> torch.Generator:
    """torch CPU generator of a named stream (draws are made on the CPU, so they are the same for every device)."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
