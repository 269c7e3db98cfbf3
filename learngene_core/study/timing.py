"""Times that can be compared: several ways of doing the same, in turn, on one machine."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.utils.benchmark import timer

Way = Callable[[], object]
ROW_SECONDS = 100.0  # for the rounds of rows that are timed together: a row takes at most two minutes


class Skipped(Exception):  # noqa: N818 (no error: something that is not here)
    """A row that cannot be measured here; its text says why, and what would be needed."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: what is ours and what is bare, in words; seconds of both, one number per round; the most that the
    ratio may be (NaN: no bar)."""

    row: str
    ours: str
    bare: str
    ours_seconds: tuple[float, ...]
    bare_seconds: tuple[float, ...]
    bar: float = math.nan

    def entry(self) -> dict[str, object]:
        """The row as it stands in bench.csv: medians over rounds, of the seconds and of the ratio within a round."""
        ratios = [a / b for a, b in zip(self.ours_seconds, self.bare_seconds, strict=True)]
        middle = statistics.median
        return {
            "row": self.row,
            "ours_s": middle(self.ours_seconds),
            "bare_s": middle(self.bare_seconds),
            "ratio": middle(ratios),
            "bar": self.bar,
            "low": min(ratios),
            "high": max(ratios),
            "rounds": len(ratios),
            "ours": self.ours,
            "bare": self.bare,
        }


def in_turn(
    ways: Mapping[str, Way], rounds: int, threads: int = 1, limit: float = ROW_SECONDS
) -> dict[str, tuple[float, ...]]:
    """Seconds of every way on so many threads, one number per round, the order changing from round to round.

    A machine that is slower for a while slows all ways, so ratios within a round hold where seconds do not. The clock is that
    of torch's benchmark utilities, which waits for a GPU. (Their `Timer` runs everything three times at least.) No round is
    begun when another one would end after `limit` seconds.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    try:
        begun = time.perf_counter()
        for turn in range(rounds):
            if turn and (time.perf_counter() - begun) * (turn + 1) / turn > limit:
                break
            for name in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
                start = timer()
                ways[name]()
                seconds[name].append(timer() - start)
    finally:
        torch.set_num_threads(before)
    return {name: tuple(found) for name, found in seconds.items()}
