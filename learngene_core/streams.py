"""One seed fans out into named random streams, so that changing one use of chance does not move the others.

A stream is named by what it is for, e.g. `generator(0, "batches", "task 3", "epoch 2")`. Nothing has to be saved to resume:
a stream is made anew from its name.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


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
