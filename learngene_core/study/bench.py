"""Times that can be compared: two ways of doing the same, in turn, on one machine, and the ratio of each pair.

`learngene bench`: the speed table. Every row is a ratio, ours to a bare counterpart, timed in turn in one process.

Seconds depend on the machine and the hour; ratios of pairs hold. `bar` is the most that a ratio may be.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from ..config import Config
from ..errors import StudyError, atomic, say
from ..runs.machine import Machine


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


COLUMNS = ["row", "ours_s", "bare_s", "ratio", "bar", "low", "high", "rounds", "peak_mb", "holds", "ours", "bare"]


def run_bench(cfg: Config, out: Path, rows: Sequence[str] = ()) -> pd.DataFrame:
    """Measure `rows` (names or beginnings of names; all by default), write `bench.csv` and `bench.md` into `out`.

    Returns what was measured; where only some rows are asked for, the files keep the others that stand there.

    Columns: row; ours_s, bare_s: median seconds; ratio: median over rounds of ours / bare, low and high its extremes; bar: what
    the ratio may be at most (empty: none is set); peak_mb: most memory while the row was measured, with what was loaded before
    it; holds: yes, no, or empty without a bar. Raises StudyError for an unknown row.
    """
    import pandas as pd

    with tempfile.TemporaryDirectory(prefix="learngene-bench-") as home:
        known = all_rows(cfg, Path(home))
        unknown = [name for name in rows if not any(k.startswith(name) for k in known)]
        if unknown:
            raise StudyError(f"there is no row {unknown[0]!r} in the bench; there are {', '.join(known)}")
        wanted = [name for name in known if not rows or name.startswith(tuple(rows))]
        found: list[dict] = []
        for name in wanted:
            found += measured(name, known[name])
            table = pd.DataFrame(found)[COLUMNS]
            shown = _beside(table, out, list(known)) if rows else table
            _write(shown, out)  # row by row: a bench that is stopped has a table
    say(f"bench: {out / 'bench.csv'}, {out / 'bench.md'}")
    return table


def all_rows(cfg: Config, home: Path) -> dict[str, Callable[[], Rows]]:
    """Every row's function by the name its rows begin with; `cfg` gives images, device and threads, `home` a place for files."""
    from . import benchrows
    from . import benchrows as gpubench
    from . import benchrows as sweepbench

    rows: dict[str, Callable[[], Rows]] = {
        "epoch": lambda: benchrows.epoch_rows(cfg),
        "individuals": lambda: benchrows.individual_rows(cfg),
        "reading": lambda: benchrows.reading_rows(home),
        "chain": lambda: benchrows.chain_rows(home),
        "sweep": lambda: sweepbench.sweep_rows(home / "sweep"),
    }
    if Machine.resolve(cfg).device.startswith("cuda"):
        rows["gpu"] = lambda: gpubench.gpu_rows(cfg)
    return rows


def measured(name: str, row: Callable[[], Rows]) -> list[dict]:
    """The table's rows that one function of `all_rows` gives."""
    with memory_peak() as peak:
        rows = [
            {
                "row": part,
                "ours_s": pair.first,
                "bare_s": pair.second,
                "ratio": pair.ratio,
                "bar": math.nan if bar is None else bar,
                "low": pair.low,
                "high": pair.high,
                "rounds": pair.rounds,
                "holds": "" if bar is None else "yes" if pair.ratio <= bar else "no",
                "ours": ours,
                "bare": bare,
            }
            for part, (pair, bar, ours, bare) in row().items()
        ]
        most = round(peak())
    for entry in rows:
        entry["peak_mb"] = most
        say(f"bench: {sentence(entry)}")
    return rows


def sentence(entry: Mapping) -> str:
    """One row in words."""
    bar = "" if math.isnan(entry["bar"]) else f", at most {entry['bar']:.2f} allowed: {entry['holds']}"
    return (
        f"{entry['row']}: {entry['ours']} {entry['ours_s']:.2f} s, {entry['bare']} {entry['bare_s']:.2f} s, "
        f"ratio {entry['ratio']:.2f} ({entry['low']:.2f} to {entry['high']:.2f}){bar}"
    )


def markdown(table: pd.DataFrame) -> str:
    """The table for a page: ratios first, seconds as what they are, one machine's."""
    lines = [
        "| row | ours / bare | lowest to highest | at most | ours, s | bare, s | peak, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in table.itertuples():
        bar = "" if math.isnan(r.bar) else f"{r.bar:.2f}{'' if r.holds == 'yes' else ' (missed)'}"
        lines.append(
            f"| {r.row}: {r.ours} / {r.bare} | {r.ratio:.2f} | {r.low:.2f} to {r.high:.2f} ({r.rounds}) | {bar} "
            f"| {r.ours_s:.2f} | {r.bare_s:.2f} | {r.peak_mb:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _beside(table: pd.DataFrame, out: Path, known: list[str]) -> pd.DataFrame:
    """These rows, and those of the table in `out` that were not measured again, in the order of `known`."""
    import pandas as pd

    try:
        there = pd.read_csv(out / "bench.csv").reindex(columns=COLUMNS)
    except (OSError, ValueError):
        return table
    there["holds"] = there["holds"].fillna("")
    both = pd.concat([there[~there["row"].isin(table["row"])], table], ignore_index=True)
    places = [next((i for i, name in enumerate(known) if row.startswith(name)), len(known)) for row in both["row"]]
    return both.assign(place=places).sort_values("place", kind="stable")[COLUMNS].reset_index(drop=True)


def _write(table: pd.DataFrame, out: Path) -> None:
    with atomic(out / "bench.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    with atomic(out / "bench.md") as temporary:
        temporary.write_text(markdown(table), encoding="utf-8")
