"""What sharing and a second worker save, measured: for the speed table. A few minutes on two idle processors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import notebooks
from .files import write_json
from .grid import Grid, load_grid
from .sweep import run_sweep
from .timing import Pair

if TYPE_CHECKING:
    from .benchrows import Rows

PRODUCT = {"target_seed": [0, 1, 2], "shots": [3, 5, 10, 15]}  # twelve points, one ancestor
CHAIN = ("01", "02", "03", "04")


def sweep_rows(folder: Path, preset: str = "smoke") -> Rows:
    """Twelve points that share an ancestor, beside twelve full chains; and on two workers beside one; once each.

    folder: an empty one for what is computed. A full chain is what a person without a sweep runs: notebooks 01 to 04 in a
    run folder of its own; one is measured and counted twelve times. Everything on one thread per worker; the start of the
    cluster counts.
    """
    grid = _grid(folder, preset)
    chain = len(grid.points) * _seconds(lambda: _chain(grid, folder / "chain"))
    one, two = (_seconds(lambda n=n: run_sweep(grid, folder / f"on-{n}", workers=n)) for n in (1, 2))
    return {
        "sweep, shared ancestor": (_once(one, chain), 0.4, "12 points on one worker", "12 full chains"),
        "sweep, two workers": (_once(two, one), 1 / 1.5, "12 points on two workers", "on one"),
    }


def _once(ours: float, bare: float) -> Pair:
    return Pair(ours, bare, ours / bare, ours / bare, ours / bare, 1)


def _grid(folder: Path, preset: str) -> Grid:
    """JSON is YAML."""
    path = folder / "bench.yaml"
    write_json(path, {"preset": preset, "parameters": {"device": "cpu"}, "product": PRODUCT})
    return load_grid(path)


def _chain(grid: Grid, out: Path) -> None:
    parameters = notebooks.parameters_of(grid.points[0].cfg, out)
    for number in CHAIN:
        for path in notebooks.numbered(f"{number}_*.ipynb"):
            notebooks.execute(path, out / "notebooks" / path.name, parameters)


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
