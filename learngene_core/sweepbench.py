"""What sharing and a second worker save, measured: for the speed table. About fifteen minutes on two idle processors."""

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
# the ancestor dominates a point, as it does in any preset but smoke: some 15 s of a thread, the individuals about one
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
    sharing on one worker, the same on two, and one chain, which counts for the points of its round. A chain is notebooks 01
    to 04 as `learngene study` runs them, with all processors: what a point costs whoever has no sweep. The row without
    sharing has one worker and only notebook 04 on both sides, so that it tells of sharing alone. The row of two workers has
    no sharing on both sides, so that it tells of workers alone: points that share wait for their ancestor, which no second
    worker makes faster. At most 0.4 asked of the first, 1 / 1.5 of the last. Raises StudyError when a point failed: then the
    times would compare nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grid = _grid(folder, preset)
    shared = _seconds(grid, folder / "shared", workers=1, share=True)
    ways: dict[str, Callable[[Grid, Path], float]] = {
        "alone": functools.partial(_seconds, workers=1, share=False),
        "two": functools.partial(_seconds, workers=2, share=False),
        "chain": _chain_seconds,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS):
        part = dataclasses.replace(grid, points=grid.points[turn::ROUNDS])
        for name in [*ways][:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(ways[name](part, folder / f"{name}-{turn + 1}"))
    sharing = "12 points that share, on one worker"
    without = f"the same points without sharing, on one worker, in {ROUNDS} sweeps"
    return {
        "sweep, chains": (
            _once(shared, sum(seconds["chain"])),
            0.4,
            sharing,
            f"12 chains of notebooks 01 to 04 ({ROUNDS} run)",
        ),
        "sweep, shared ancestor": (_once(shared, sum(seconds["alone"])), None, sharing, without),
        "sweep, two workers": (
            of_rounds(seconds["two"], seconds["alone"]),
            1 / 1.5,
            "4 points without sharing, on two workers",
            "on one",
        ),
    }


def _once(ours: float, bare: float) -> Pair:
    return Pair(ours, bare, ours / bare, ours / bare, ours / bare, 1)


def _grid(folder: Path, preset: str) -> Grid:
    """JSON is YAML."""
    path = folder / "bench.yaml"
    write_json(path, {"preset": preset, "parameters": PARAMETERS, "product": PRODUCT})
    return load_grid(path)


def _chain_seconds(grid: Grid, folder: Path) -> float:
    """Of as many chains as the grid has points, from the first of them."""
    start = time.perf_counter()
    run = Run.open(grid.points[0].cfg, folder)
    with run.lock():
        run_notebooks(run, numbered()[:4])
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
