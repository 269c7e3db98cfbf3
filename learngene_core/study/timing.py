"""Times that can be compared: several ways of doing the same, in turn, on one machine."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping

from torch.utils.benchmark import Timer

Way = Callable[[], object]


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


def in_turn(ways: Mapping[str, Way], rounds: int, threads: int = 1) -> dict[str, tuple[float, ...]]:
    """Seconds of every way, one number per round, the order changing from round to round.

    A machine that is slower for a while slows all ways, so ratios within a round hold where seconds do not. torch's `Timer`
    waits for a GPU, and sets the threads.
    """
    timers = {name: Timer("way()", globals={"way": way}, num_threads=threads) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
            seconds[name].append(timers[name].timeit(1).median)
    return {name: tuple(found) for name, found in seconds.items()}
