"""What a sweep will cost before it starts: seconds of work, and bytes on the disk. Both are rough."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .config import Config
from .cost import KERNEL_SECONDS, stage_seconds
from .grid import Grid
from .runs import Run
from .sharing import Shared, needed

JOB_BYTES = 500_000  # an executed notebook with its pictures, tables, bookkeeping
STATES = 3.5  # sets of weights saved after a source task: the network's own, at birth, momentum, Fisher of the last


def stage_costs(grid: Grid) -> dict[str, dict[str, float]]:
    """Point -> stage -> expected seconds of one worker of this machine, from a second of real training steps per shape."""
    known: dict[Config, dict[str, float]] = {}
    costs = {}
    with tempfile.TemporaryDirectory(prefix="learngene-cost-") as folder:
        for point in grid.points:
            alike = point.cfg.replace(seed=0, target_seed=0, threshold=5e-10)
            if alike not in known:
                wanted = [*needed(point.cfg, grid.stage), grid.stage]
                run = Run(alike, Path(folder, str(len(known))))
                known[alike] = stage_seconds(run, *wanted) if grid.stage else {}
            costs[point.name] = known[alike]
    return costs


def job_seconds(grid: Grid, shared: Sequence[Shared], costs: dict[str, dict[str, float]]) -> dict[str, float]:
    """Expected seconds of every point and of everything shared, by name; what is shared counts once."""
    seconds = {}
    for some in shared:
        first = costs[min(some.points)]
        seconds[some.name] = KERNEL_SECONDS + sum(first.get(stage, 0.0) for stage in some.stages)
    for point in grid.points:
        taken = {stage for some in shared if point.name in some.points for stage in ("division", *some.stages)}
        own = (cost for stage, cost in costs[point.name].items() if stage not in taken)
        seconds[point.name] = KERNEL_SECONDS + sum(own)
    return seconds


def wall_seconds(seconds: dict[str, float], before: dict[str, list[str]], workers: int) -> float:
    """Expected seconds from start to end on so many workers; before: the jobs that a job waits for (its ancestors all)."""
    longest = max((seconds[name] + sum(seconds.get(b, 0.0) for b in before[name]) for name in seconds), default=0.0)
    return max(longest, sum(seconds.values()) / max(1, min(workers, len(seconds))))


def job_bytes(grid: Grid, shared: Sequence[Shared]) -> dict[str, float]:
    """Expected bytes of every point and of everything shared, by name; linked files count once."""
    size = {some.name: JOB_BYTES + _collective(some.cfg) * ("collective" in some.stages) for some in shared}
    for point in grid.points:
        linked = any("collective" in some.stages for some in shared if point.name in some.points)
        trains = grid.stage == "collective" or "collective" in needed(point.cfg, grid.stage)
        size[point.name] = JOB_BYTES + _collective(point.cfg) * (trains and not linked)
    return size


def size_text(size: float) -> str:
    """ "3 MB", "1.2 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def _collective(cfg: Config) -> float:
    """Bytes of a collective's states after every task, at widths halfway through the growth."""
    middle = [(a + b) / 2 for a, b in zip(cfg.start_widths, cfg.final_widths, strict=True)]
    weights = sum(9 * a * b for a, b in itertools.pairwise([3, *middle]))
    return cfg.n_source_tasks * 4 * STATES * weights
