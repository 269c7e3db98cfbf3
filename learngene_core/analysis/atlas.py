"""The atlas: every contiguous block of the collective inherited by a same-shape individual, compared with scratch.

Each cell is a paired gain: identical target tasks, initial weights and batches, at least two initialisations a task. Target
tasks of novel classes measure; pseudo-tasks of open-world classes, which the collective never saw, choose. Computed piece by
piece, coarse blocks first; a stopped atlas goes on where it was.
"""

from __future__ import annotations

import pandas as pd

from ..arms import Arm, constant, same_shape
from ..collective import Collective
from ..config import Config
from ..data.division import Division, target_tasks
from ..errors import StudyError, say
from ..learngene import Learngene
from ..runs.pieces import Pieces
from ..runs.run import Run
from ..runs.stages import individuals
from ..tasks import ImageSet, TargetTask
from .blocks import Block

COLUMNS = ["group", "first", "last", "shots", "target_task", "init", "accuracy"]


def coarse_blocks(n_layers: int, length: int) -> list[Block]:
    """All prefixes, all suffixes, and every block of `length` layers: 3 L - length - 1 of the L (L + 1) / 2 blocks or fewer."""
    prefixes = [(1, last) for last in range(1, n_layers + 1)]
    suffixes = [(first, n_layers) for first in range(2, n_layers + 1)]
    equal = [(first, first + length - 1) for first in range(1, n_layers - length + 2)]
    return sorted({*prefixes, *suffixes, *equal})


def every_block(n_layers: int) -> list[Block]:
    """Every contiguous block."""
    return [(first, last) for first in range(1, n_layers + 1) for last in range(first, n_layers + 1)]


def block_arm(col: Collective, block: Block, cfg: Config) -> Arm:
    """The arm that inherits a block; (0, 0) is scratch."""
    columns = (("first", block[0]), ("last", block[1]))
    if block == (0, 0):
        return Arm("same_shape", "scratch", cfg.atlas_rate, same_shape(col, cfg), columns=columns)
    gene = Learngene.from_model(col.model, col.model.block_names[block[0] - 1 : block[1]], mean=col.mean, std=col.std)
    return Arm("same_shape", "inherit", cfg.atlas_rate, same_shape(col, cfg), constant(gene), columns=columns)


def atlas_config(cfg: Config) -> Config:
    """The configuration of the atlas' individuals: its own number of tasks, initial weights, epochs and shots, and the correct
    procedure whatever `defects` the collective had."""
    return cfg.replace(
        n_target_tasks=cfg.atlas_tasks,
        n_inits=cfg.atlas_inits,
        individual_epochs=cfg.atlas_epochs,
        shots=(cfg.atlas_shots,),
        defects=(),
    )


def atlas_tasks(imgs: ImageSet, div: Division, cfg: Config) -> dict[str, list[TargetTask]]:
    """The target tasks that measure ("novel") and the pseudo-tasks that choose ("open_world"; none if so configured).

    Raises StudyError when the classes or the images per class do not suffice.
    """
    own = atlas_config(cfg)
    tasks = {"novel": target_tasks(imgs, div, own)}
    if cfg.atlas_pseudo_tasks:
        tasks["open_world"] = target_tasks(imgs, div, own, group="open_world", n_tasks=cfg.atlas_pseudo_tasks)
    return tasks


def compute_atlas(col: Collective, imgs: ImageSet, div: Division, cfg: Config, run: Run | None = None) -> pd.DataFrame:
    """One row per individual (atlas_cells.csv): group, first, last (0, 0: scratch), shots, target_task, init, accuracy.

    Raises StudyError when the classes do not suffice, and OutOfTime (pieces are kept) after `cfg.minutes`.
    """
    if run is not None:
        run.check("atlas", cfg)
        if run.done("atlas"):
            say("atlas: found in the run folder, loaded")
            return run.read_table("atlas_cells.csv")
    tasks = atlas_tasks(imgs, div, cfg)
    if run is None:
        return _cells(col, imgs, tasks, cfg, None)
    with run.computing("atlas", ["atlas_cells.csv"]):
        cells = _cells(col, imgs, tasks, cfg, run)
        run.write_table("atlas_cells.csv", cells)
    say(f"atlas: {cells.groupby(['first', 'last']).ngroups - 1} blocks on {len(tasks['novel'])} target tasks, saved")
    return run.read_table("atlas_cells.csv")


def _cells(
    col: Collective, imgs: ImageSet, tasks: dict[str, list[TargetTask]], cfg: Config, run: Run | None
) -> pd.DataFrame:
    names = col.model.block_names
    coarse = coarse_blocks(len(names), min(cfg.atlas_length, len(names)))
    rounds = {f"coarse{cfg.atlas_length}_": [(0, 0), *coarse]}
    if cfg.atlas_blocks == "full":
        rounds[f"full{cfg.atlas_length}_"] = [block for block in every_block(len(names)) if block not in coarse]
    rows, parts = [], Pieces(run, "atlas") if run is not None else None
    total = len(rounds) * sum(len(t) for t in tasks.values()) * cfg.atlas_inits
    for label, blocks in rounds.items():
        arms = [block_arm(col, block, cfg) for block in blocks]
        for group, some in tasks.items():
            work = individuals(run, "atlas", arms, imgs, atlas_config(cfg), col.mean, col.std, span=(len(rows), total))
            for piece in work.pieces(some, parts, label, curves=False):
                rows.append([{"group": group, **row} for row in piece["rows"]])
    table = pd.DataFrame([row for piece in rows for row in piece])[COLUMNS]
    return table.sort_values(COLUMNS[:-1], ignore_index=True)


def finished_cells(run: Run) -> pd.DataFrame:
    """The cells there are so far, also of an unfinished atlas (same columns as atlas_cells.csv).

    Raises StudyError when not one piece is finished.
    """
    if run.done("atlas"):
        return run.read_table("atlas_cells.csv")
    parts, rows, k = Pieces(run, "atlas"), [], run.cfg.atlas_length
    for name, piece in parts.all():
        if not name.startswith((f"coarse{k}_", f"full{k}_")):
            continue  # of another length
        group = name.split("_", 1)[1].rsplit("_", 2)[0]
        rows += [{"group": group, **row} for row in piece["rows"]]
    if not rows:
        raise StudyError(f"{run.path} holds no piece of an atlas; run `learngene atlas` first")
    return pd.DataFrame(rows)[COLUMNS].sort_values(COLUMNS[:-1], ignore_index=True)
