"""What sharing and a second worker save, measured: for the speed table. About twenty minutes on two idle processors."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

from .files import StudyError, write_json
from .grid import Grid, load_grid
from .notebooks import numbered
from .runs import Run
from .study import run_notebooks
from .sweep import run_sweep
from .timing import Pair, Rows, of_rounds

PRODUCT = {"target_seed": [0, 1, 2], "shots": [3, 5, 10, 15]}  # twelve points, one ancestor
ROUNDS = 3
# the ancestor is about half of a point (some 15 s of a thread), its kernel most of the rest, the individuals about a second
PARAMETERS = {
    "device": "cpu",
    "epochs": 15,
    "first_task_epochs": 15,
    "n_target_tasks": 2,
    "individual_epochs": 2,
    "methods": ["scratch", "learngene"],
}


def sweep_rows(folder: Path, preset: str = "smoke") -> Rows:
    """Twelve points that share an ancestor, beside twelve chains; beside the same points without sharing; and two workers.

    folder: an empty or a new one for what is computed. Every sweep counts with the start of its cluster and has one thread per
    worker. The machine may change its speed, so what is compared runs in turn, in ROUNDS rounds of as many points: without
    sharing on one worker, the same on two, and one chain, which counts for all points of its round. The points that share
    need one sweep for all; it runs in the middle of the rounds.

    - chains: notebooks 01 to 04 as `learngene study` runs them, on all processors: what a point costs whoever calls the
      study once per point. At most 0.4 is asked.
    - shared ancestor: one worker and, but for what is shared, notebook 04 alone on both sides. The same is asked.
    - two workers: no sharing on either side, since points that share wait for their ancestor, which no second worker makes
      faster. At most 1 / 1.5 is asked.

    Raises StudyError when a point failed: then the times would compare nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grid = _grid(folder, preset)
    ways: dict[str, Callable[[Grid, Path], float]] = {
        "alone": functools.partial(_seconds, workers=1, share=False),
        "two": functools.partial(_seconds, workers=2, share=False),
        "chain": _chain_seconds,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS):
        if turn == ROUNDS // 2:
            shared = _seconds(grid, folder / "shared", workers=1, share=True)
        part = dataclasses.replace(grid, points=grid.points[turn::ROUNDS])
        for name in [*ways][:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(ways[name](part, folder / f"{name}-{turn + 1}"))
    ours, chains = "12 points that share, on one worker", f"12 chains of notebooks 01 to 04, reckoned from {ROUNDS}"
    without = f"the same points without sharing, on one worker, in {ROUNDS} sweeps"
    workers = of_rounds(seconds["two"], seconds["alone"])
    return {
        "sweep, chains": (_once(shared, sum(seconds["chain"])), 0.4, ours, chains),
        "sweep, shared ancestor": (_once(shared, sum(seconds["alone"])), 0.4, ours, without),
        "sweep, two workers": (workers, 1 / 1.5, "4 points without sharing, on two workers", "on one"),
    }


def _once(ours: float, bare: float) -> Pair:
    return Pair(ours, bare, ours / bare, ours / bare, ours / bare, 1)


def _grid(folder: Path, preset: str) -> Grid:
    """JSON is YAML."""
    path = folder / "bench.yaml"
    write_json(path, {"preset": preset, "parameters": PARAMETERS, "product": PRODUCT})
    return load_grid(path)


def _chain_seconds(grid: Grid, folder: Path) -> float:
    """Of as many chains as the grid has points, from that of its first point, on all processors."""
    start = time.perf_counter()
    run = Run.open(grid.points[0].cfg.replace(workers=0), folder)
    with run.lock():
        run_notebooks(run, numbered()[:4], "reconstruct")
    return (time.perf_counter() - start) * len(grid.points)


def _seconds(grid: Grid, out: Path, *, workers: int, share: bool) -> float:
    start = time.perf_counter()
    outcome = run_sweep(grid, out, workers=workers, share=share)
    seconds = time.perf_counter() - start
    if outcome.failed or len(outcome.finished) != len(grid.points):
        raise StudyError(
            f"{len(outcome.failed)} of {len(grid.points)} points failed, so nothing was measured (see {out})"
        )
    return seconds
