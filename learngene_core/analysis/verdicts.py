"""The study's last stage, from tables to verdicts: the atlas table, criteria compared with the atlas, the claims. No torch."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ..config import Config
from ..errors import StudyError, read_json, say
from ..runs.run import Run
from .blocks import atlas_table, recommended
from .claims import evaluate
from .selection import selection_table

TABLES = ("atlas.csv", "selection.csv", "claims.csv")


def final_widths(run: Run) -> dict[str, int]:
    """Block name -> channels of the collective after the last task; read without torch. Raises StudyError when missing."""
    states = sorted((run.path / "collective").glob("task_*/about.json"), key=lambda p: int(p.parent.name[5:]))
    if not states:
        raise StudyError(f"{run.path} holds no collective; run `learngene collective` first")
    shape = read_json(states[-1])["shape"]
    return dict(zip(shape["names"], shape["widths"], strict=True))


def atlas_of(cells: pd.DataFrame, cfg: Config, run: Run) -> pd.DataFrame:
    """atlas.csv's table from the cells there are; also of an unfinished atlas (`atlas.finished_cells`)."""
    widths = final_widths(run)
    return atlas_table(cells, list(widths.values()), list(widths), n_blocks=cfg.n_blocks)


def recommended_layers(cells: pd.DataFrame, cfg: Config, run: Run) -> tuple[str, ...]:
    """Names of the block that pseudo-tasks recommend within `inherited_share`. Raises StudyError without pseudo-tasks."""
    first, last = recommended(atlas_of(cells, cfg, run), cfg.inherited_share, cfg.atlas_shots)
    return tuple(final_widths(run))[first - 1 : last]


def judge(tables: Mapping[str, pd.DataFrame], cfg: Config, run: Run) -> dict[str, pd.DataFrame]:
    """atlas.csv, selection.csv and claims.csv, by name without the ending, made or loaded.

    tables: atlas_cells, layer_scores, results, controls, openworld. Raises StudyError or ValueError for cells that do not fit.
    """
    if run.done("claims"):
        say("claims: found in the run folder, loaded")
        return {name.removesuffix(".csv"): run.read_table(name) for name in TABLES}
    with run.computing("claims", list(TABLES)):
        atlas = atlas_of(tables["atlas_cells"], cfg, run)
        selection = selection_table(
            tables["atlas_cells"], atlas, tables["layer_scores"], cfg.n_blocks, cfg.inherited_share, seed=cfg.seed
        )
        claims = evaluate({**tables, "atlas": atlas}, n_blocks=cfg.n_blocks, budget_percent=cfg.inherited_share)
        for name, table in zip(TABLES, (atlas, selection, claims), strict=True):
            run.write_table(name, table)
    say(f"claims: {len(claims)} judged, saved")
    return {name.removesuffix(".csv"): run.read_table(name) for name in TABLES}
