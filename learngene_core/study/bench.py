"""`learngene bench`: the speed table. Every row is a ratio, ours to a bare counterpart, timed in turn in one process.

Seconds depend on the machine and the hour; ratios of what is timed in turn hold. `bar` is the most that a ratio may be.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..config import Config, nearest
from ..errors import StudyError, atomic, say

if TYPE_CHECKING:  # a wrong name is refused before torch is loaded
    from .timing import Row

NAMES = ("epoch", "avalanche", "easyfsl", "evaluation", "individuals", "reading", "point", "sweep")
COLUMNS = ["row", "ours_s", "bare_s", "ratio", "bar", "low", "high", "rounds", "ours", "bare"]


def run_bench(cfg: Config, out: Path, rows: Sequence[str] = (), *, peers: Path = Path(".peers")) -> pd.DataFrame:
    """Measure `rows` (names or beginnings of names; all by default), write `bench.csv` and `bench.md` into `out`.

    peers: the environment that has avalanche and easyfsl; their rows are left out, with a line that says why, where it is not
    there. Returns what was measured; where only some rows are asked for, the files keep the others that are there already.

    Columns: row; ours_s, bare_s: median seconds; ratio: median over rounds of ours / bare, low and high its extremes; bar: what
    the ratio may be at most (empty: none is set); rounds; ours, bare: what was timed. Raises StudyError for an unknown row.
    """
    check_rows(rows)
    from .timing import Skipped

    with tempfile.TemporaryDirectory(prefix="learngene-bench-") as home:
        known = all_rows(cfg, Path(home), peers)
        found: list[dict[str, object]] = []
        table = pd.DataFrame(found, columns=COLUMNS)
        for name in known:
            if rows and not name.startswith(tuple(rows)):
                continue
            try:
                for row in known[name]():
                    found.append(row.entry())
                    say(f"bench: {_sentence(found[-1])}")
            except Skipped as reason:
                say(f"bench: {name} is left out: {reason}")
            table = pd.DataFrame(found, columns=COLUMNS)
            _write(_beside(table, out, list(known)) if rows else table, out)  # a bench that is stopped has a table
    say(f"bench: {out / 'bench.csv'}, {out / 'bench.md'}")
    return table


def check_rows(rows: Sequence[str]) -> None:
    """Raises StudyError for the first of `rows` that begins no row's name."""
    for name in rows:
        if not any(known.startswith(name) for known in NAMES):
            raise StudyError(
                f"there is no row {name!r} in the bench{nearest(name, NAMES)}; there are {', '.join(NAMES)}"
            )


def all_rows(cfg: Config, home: Path, peers: Path) -> dict[str, Callable[[], Iterator[Row]]]:
    """Every row's function by the name its rows begin with; `cfg` gives images, device and threads, `home` a place for files."""
    from . import benchpeers, benchrows

    return {
        "epoch": lambda: benchrows.epoch_rows(cfg),
        "avalanche": lambda: benchpeers.avalanche_rows(cfg, peers, home / "avalanche"),
        "easyfsl": lambda: benchpeers.easyfsl_rows(cfg, peers, home / "easyfsl"),
        "evaluation": lambda: benchrows.evaluation_rows(cfg),
        "individuals": lambda: benchrows.individual_rows(cfg),
        "reading": lambda: benchrows.reading_rows(home),
        "point": lambda: benchrows.point_rows(home / "point"),
        "sweep": lambda: benchrows.sweep_rows(home / "sweep"),
    }


def markdown(table: pd.DataFrame) -> str:
    """The table for a page: ratios first; seconds are those of one machine."""
    lines = [
        "| row | ours / bare | lowest to highest | at most | ours, s | bare, s |",
        "|---|---|---|---|---|---|",
    ]
    for r in table.itertuples():
        bar = "" if math.isnan(r.bar) else f"{r.bar:.2f}{'' if r.ratio <= r.bar else ' (missed)'}"
        lines.append(
            f"| {r.row}: {r.ours} / {r.bare} | {r.ratio:.2f} | {r.low:.2f} to {r.high:.2f} ({r.rounds}) | {bar} "
            f"| {r.ours_s:.2f} | {r.bare_s:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _sentence(entry: Mapping) -> str:
    """One row in words."""
    met = "" if math.isnan(entry["bar"]) else f", at most {entry['bar']:.2f} allowed"
    met += " (missed)" if entry["ratio"] > entry["bar"] else ""
    return (
        f"{entry['row']}: {entry['ours']} {entry['ours_s']:.2f} s, {entry['bare']} {entry['bare_s']:.2f} s, "
        f"ratio {entry['ratio']:.2f} ({entry['low']:.2f} to {entry['high']:.2f}){met}"
    )


def _beside(table: pd.DataFrame, out: Path, known: list[str]) -> pd.DataFrame:
    """These rows, and those of the table in `out` that were not measured again, in the order of `known`."""
    try:
        there = pd.read_csv(out / "bench.csv", dtype={"row": str}).reindex(columns=COLUMNS).dropna(subset="row")
    except (OSError, ValueError):
        return table
    both = pd.concat([there[~there["row"].isin(table["row"])], table], ignore_index=True)
    places = [next((i for i, name in enumerate(known) if row.startswith(name)), len(known)) for row in both["row"]]
    return both.assign(place=places).sort_values("place", kind="stable")[COLUMNS].reset_index(drop=True)


def _write(table: pd.DataFrame, out: Path) -> None:
    with atomic(out / "bench.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    with atomic(out / "bench.md") as temporary:
        temporary.write_text(markdown(table), encoding="utf-8")
