"""Equal bits on every call on a GPU, where `deterministic` is asked for (what that costs: `cost.say_determinism`).

On one CPU machine runs are equal to the bit anyway, and nothing changes. A GPU adds in another order each time unless its
libraries are told not to; they then take slower paths, and an operation that has none stops with an error that names it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # read by cuBLAS when it is first used
FIXED = ":4096:8"  # eight buffers of 4 MiB: one of the two settings that cuBLAS documents as deterministic


def prepare() -> None:
    """Before the first product on a GPU: give cuBLAS a fixed workspace, here and in the kernels that are started."""
    os.environ.setdefault(WORKSPACE, FIXED)


def apply(device: str) -> None:
    """Switch torch to deterministic operations for work on `device`; nothing on a CPU."""
    if device == "cpu":
        return
    import torch

    prepare()
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


@contextlib.contextmanager
def as_usual() -> Iterator[None]:
    """Operations as torch chooses them, for a measurement."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
