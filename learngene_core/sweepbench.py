"""What sharing and a second worker save, measured: for the speed table. A few minutes on two idle processors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from . import notebooks
from .files import write_json
from .grid import Grid, load_grid
from .sweep import run_sweep

PRODUCT = {"target_seed": [0, 1, 2], "shots": [3, 5, 10, 15]}  # twelve points, one ancestor
CHAIN = ("01", "02", "03", "04")


def bench_rows(folder: Path, preset: str = "smoke") -> list[dict[str, Any]]:
    """Twelve points that share an ancestor, beside twelve full chains and beside the same on two workers.

    folder: an empty one for what is computed. A full chain is what a person without a sweep runs: notebooks 01 to 04 in a
    run folder of its own; one is measured and counted twelve times. Everything on one thread per worker; the start of the
    cluster counts. Rows: row, ours_s, bare_s (seconds), ratio, bar (what the ratio must reach: at most 0.4, at least 1.5).
    """
    grid = _grid(folder, preset)
    chain = len(grid.points) * _seconds(lambda: _chain(grid, folder / "chain"))
    one, two = (_seconds(lambda n=n: run_sweep(grid, folder / f"on-{n}", workers=n)) for n in (1, 2))
    return [
        {
            "row": "sweep: 12 points that share an ancestor / 12 full chains",
            "ours_s": one,
            "bare_s": chain,
            "ratio": one / chain,
            "bar": 0.4,
        },
        {"row": "sweep: one worker / two workers", "ours_s": two, "bare_s": one, "ratio": one / two, "bar": 1.5},
    ]


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


if __name__ == "__main__":
    import json
    import tempfile

    with tempfile.TemporaryDirectory(prefix="learngene-bench-") as temporary:
        print(json.dumps(bench_rows(Path(temporary)), indent=1))
