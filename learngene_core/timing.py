"""Times that can be compared: two ways of doing the same, in turn, on one machine, and the ratio of each pair."""

from __future__ import annotations

import dataclasses
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager


@dataclasses.dataclass(frozen=True)
class Pair:
    """Seconds of two ways (medians over rounds), and the median, lowest and highest ratio of first to second within a round."""

    first: float
    second: float
    ratio: float
    low: float
    high: float
    rounds: int


Rows = Mapping[str, tuple[Pair, float | None, str, str]]
"""Rows of a speed table: name -> seconds, the most that the ratio may be, what is ours, what is bare."""


def compare(first: Callable[[], object], second: Callable[[], object], rounds: int) -> Pair:
    """Time two ways of doing the same, `rounds` times in turn, the order changing; each must wait for its device itself.

    A machine that is slower for a while slows both, so ratios hold where seconds do not.
    """
    return pairs({"first": first, "second": second}, rounds)["first", "second"]


def pairs(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[tuple[str, str], Pair]:
    """Every way against every other, (name, name) -> Pair, timed in turn as in `compare`."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
    return {(a, b): of_rounds(seconds[a], seconds[b]) for a in ways for b in ways if a != b}


def of_rounds(first: Sequence[float], second: Sequence[float]) -> Pair:
    """The pair of two ways from their seconds, one number per round each."""
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    middle = statistics.median
    return Pair(middle(first), middle(second), middle(ratios), min(ratios), max(ratios), len(ratios))


@contextmanager
def memory_peak() -> Iterator[Callable[[], float]]:
    """Yields a function that gives the most memory (MB) that this process and its children have used since the block began:
    resident memory, looked at fifty times a second."""
    import psutil

    process, peak, stop = psutil.Process(os.getpid()), 0.0, threading.Event()

    def look() -> float:
        total = 0
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except psutil.Error:  # it has ended meanwhile
                continue
        return total / 1e6

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.02):
            peak = max(peak, look())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(peak, look())
    finally:
        stop.set()
        thread.join()
