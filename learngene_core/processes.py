"""Independent trainings side by side, a process each: one thread per training, and no state that they could share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


def side_by_side(function: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> list[Any]:
    """function(job) of every job, in order, on `workers` fresh processes (the function at the top of a module, the jobs plain).

    Raises what the function raises.
    """
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, jobs))
