"""Ctrl+C ends a command with one line and status 130, whatever its threads and notebook kernels are doing.

The first one unwinds as Python does: what is being written is finished or undone, kernels are shut down. A second one, or
`PATIENCE` without an end (an individual in training on a worker takes a minute), leaves at once. Nothing is lost by that:
files are written whole or not at all, and the system frees the lock of a process that is gone.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator

STATUS = 130  # what shells give to a command that was stopped by Ctrl+C
PATIENCE = 10.0  # seconds
TEXT = "learngene: stopped; the same command goes on from the last finished task"


class Stop:
    """Whether Ctrl+C was pressed."""

    def __init__(self) -> None:
        self.asked = False
        self._timer = threading.Timer(PATIENCE, leave)
        self._timer.daemon = True

    def __call__(self, *_: object) -> None:
        """The signal's handler."""
        if self.asked:
            leave()
        self.asked = True
        # the notebook client leaves a task behind, whose whole traceback asyncio would print at the end
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        self._timer.start()
        raise KeyboardInterrupt

    def over(self) -> None:
        """The command has ended by itself."""
        self._timer.cancel()


@contextlib.contextmanager
def watched() -> Iterator[Stop]:
    """Ctrl+C in this block raises KeyboardInterrupt once, and ends the process when it comes again."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield stop
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
        stop.over()


def leave() -> None:
    """End this process and its workers now, with the one line."""
    for child in multiprocessing.active_children():
        child.terminate()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(("\n" if sys.stderr.isatty() else "") + TEXT + "\n")  # a bar's line has no end yet
        sys.stderr.flush()
    os._exit(STATUS)
