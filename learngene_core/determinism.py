"""Equal bits on every call on a GPU, where `deterministic` is asked for, and what that costs.

On one CPU machine runs are equal to the bit anyway, and nothing changes. A GPU adds in another order each time unless its
libraries are told not to; they then take slower paths, and an operation that has none stops with an error that names it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .files import say

if TYPE_CHECKING:
    from .runs import Run

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
def _as_usual() -> Iterator[None]:
    """Operations as torch chooses them, for a measurement."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def announce(run: Run) -> None:
    """Say what the deterministic operations of a run cost here: the time of a training step beside that of the usual one."""
    machine = run.machine
    if not machine.deterministic:
        return
    if machine.device == "cpu":
        say("deterministic: a CPU run is equal to the bit anyway; it costs nothing")
        return
    from .cost import collective_step

    machine.use()
    with _as_usual():
        usual = collective_step(run)
    here = collective_step(run)
    say(
        f"deterministic: equal results on every call on {machine.device}; a training step takes {here / usual:.2f} times as "
        f"long ({1000 * here:.1f} ms for {1000 * usual:.1f} ms)"
    )
