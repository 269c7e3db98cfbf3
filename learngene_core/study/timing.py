"""Times that can be compared: several ways of doing the same, in turn, on one machine."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping

import torch
from torch.utils.benchmark import timer

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
    """Seconds of every way on so many threads, one number per round, the order changing from round to round.

    A machine that is slower for a while slows all ways, so ratios within a round hold where seconds do not. The clock is that
    of torch's benchmark utilities, which waits for a GPU. (Their `Timer` runs everything three times at least.)
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    try:
        for turn in range(rounds):
            for name in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
                start = timer()
                ways[name]()
                seconds[name].append(timer() - start)
    finally:
        torch.set_num_threads(before)
    return {name: tuple(found) for name, found in seconds.items()}
