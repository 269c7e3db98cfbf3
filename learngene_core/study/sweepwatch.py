"""How far a sweep is: a bar in a terminal (done, running, failed, time left), a line now and then in a log file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from distributed import Client, Future

from ..errors import StudyError, duration
from .progress import LOG_SECONDS

LOOK = 0.5  # seconds between two looks


def watch(client: Client, futures: Mapping[str, Future], seconds: Mapping[str, float]) -> Iterator[tuple[str, Any]]:
    """Name and result of every job as it ends; the result of one that could not be done is a failure with its last line.

    seconds: the expected ones of every job. Raises StudyError when the scheduler is lost.
    """
    open_jobs, failed, clock = dict(futures), 0, _Left(seconds)
    with (_terminal if sys.stderr.isatty() else _log)(len(futures)) as show:
        while open_jobs:
            for name in [name for name, future in open_jobs.items() if future.done()]:
                result = _result(open_jobs.pop(name))
                failed += result["state"] == "failed"
                clock.ended(name)
                yield name, result
            if client.status not in ("running", "connecting"):
                raise StudyError("the scheduler is gone; start it and the same command again: it goes on from here")
            running = _running(client, open_jobs, futures)
            show(len(futures) - len(open_jobs) - failed, running, failed, clock.left(max(1, running)))
            if open_jobs:
                time.sleep(LOOK)


def _result(future: Future) -> dict[str, str]:
    """What a job returned, or why it has not."""
    if future.status == "finished":
        return future.result()
    if future.status == "error":
        error = future.exception()
        return {"state": "failed", "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    return {"state": "failed", "error": f"the job was {future.status}: its worker or the scheduler is gone"}


def _running(client: Client, open_jobs: Mapping[str, Future], futures: Mapping[str, Future]) -> int:
    """Jobs in hand: a worker may have more in its queue, but does one at a time."""
    keys = {futures[name].key for name in open_jobs}
    with contextlib.suppress(OSError, TimeoutError):  # a scheduler that is busy, or ends; `watch` finds out
        return sum(1 for there in client.processing().values() if keys & set(there))
    return 0


class _Left:
    """Seconds that are left: the estimate at first, then more and more this sweep's own pace."""

    def __init__(self, seconds: Mapping[str, float]):
        self.open, self.start, self.done = dict(seconds), time.monotonic(), 0.0
        self.trust = 0.1 * sum(seconds.values()) or 1.0
        self.spent = 0.0  # seconds of all workers together
        self.last = self.start

    def ended(self, name: str) -> None:
        """A job is over."""
        self.done += self.open.pop(name)

    def left(self, running: int) -> float:
        """From the work that is left, on as many workers as are working."""
        now = time.monotonic()
        self.spent, self.last = self.spent + (now - self.last) * running, now
        pace = (self.spent + self.trust) / (self.done + self.trust) if self.done else 1.0
        return sum(self.open.values()) * pace / running


@contextlib.contextmanager
def _terminal(total: int) -> Iterator[Callable]:
    from tqdm import tqdm

    form = "{n_fmt}/{total_fmt} {bar}| {elapsed} gone{postfix}"
    with tqdm(total=total, bar_format=form, file=sys.stderr, dynamic_ncols=True) as line:

        def show(done: int, running: int, failed: int, left: float) -> None:
            line.n = done + failed
            more = f", {failed} failed" if failed else ""
            line.set_postfix_str(f"{tqdm.format_interval(left)} left: {done} done, {running} running{more}")

        yield show


@contextlib.contextmanager
def _log(total: int) -> Iterator[Callable]:
    said = time.monotonic()

    def show(done: int, running: int, failed: int, left: float) -> None:
        nonlocal said
        if done + failed < total and time.monotonic() - said >= LOG_SECONDS:
            said = time.monotonic()
            text = f"{done} of {total} done, {running} running, {failed} failed, about {duration(left)} left"
            print(text, file=sys.stderr, flush=True)

    yield show
