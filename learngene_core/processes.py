"""Independent trainings side by side, a process each: one thread per training, and no state that they could share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any


def side_by_side(function: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> list[Any]:
    """function(job) of every job, in order, on `workers` fresh processes (the function at the top of a module, the jobs plain).

    They end with this process, however it ends: nobody else would stop them from writing into a run that goes on.
    Raises what the function raises.
    """
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        return list(pool.map(function, jobs))


def end_with_parent() -> None:
    """Let this process end at once when the one that started it is gone."""
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
