"""Bytes of a file, damaged: cut off, or with one bit turned."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


def truncated(data: bytes, n: int = 8) -> dict[str, bytes]:
    """The file cut at `n` places, the first of them nothing at all."""
    return {f"cut at {k} of {n}": data[: len(data) * k // n] for k in range(n)}


def turned(data: bytes, n: int = 12, start: int = 0, end: int | None = None) -> dict[str, bytes]:
    """The file with one bit turned at `n` places between start and end."""
    rng = np.random.default_rng(0)
    places = sorted(rng.integers(start, end or len(data), n).tolist())
    return {
        f"bit turned in byte {at}": data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
        for at in places
    }


def filed(save: Callable[[Path], object], name: str) -> bytes:
    """Bytes that save(path) writes, for building cases before any test runs."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder, name))
        return Path(folder, name).read_bytes()
