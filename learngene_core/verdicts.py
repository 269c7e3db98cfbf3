"""The study's last stages, from tables to verdicts: layer scores, the atlas table, criteria against the atlas, the claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from .claims import describe, evaluate
from .config import Config
from .criteria import score, score_all
from .files import StudyError, read_json, say
from .record import Record
from .runs import Run
from .selection import atlas_table, recommended, selection_table

if TYPE_CHECKING:
    from .division import SourceTask
    from .images import ImageSet

OTHER_THRESHOLD = {5e-10: 5e-4, 5e-4: 5e-10}  # the released scripts had one after the other
TABLES = ("atlas.csv", "selection.csv", "claims.csv")


def layer_scores(imgs: ImageSet, src: list[SourceTask], cfg: Config, run: Run) -> pd.DataFrame:
    """Every criterion per layer beside its null (layer_scores.csv): those over the gradient record, with the released count at
    both released thresholds, and those that look at networks.

    Raises StudyError without a finished collective.
    """
    if run.done("measures"):
        say("measures: found in the run folder, loaded")
        return run.read_table("layer_scores.csv")
    from .gathering import evidence_of
    from .measures import measure_all

    with run.computing("measures", ["layer_scores.csv"]):
        record = Record.load(run.path)
        tables = [score_all(record, cfg)]
        other = OTHER_THRESHOLD.get(cfg.threshold)
        if other is not None:
            table = score(record, "released", threshold=other, sign=cfg.sign)
            tables.append(table.assign(criterion=f"released@{other:g}"))
        tables.append(measure_all(*evidence_of(run, imgs, src, cfg)))
        run.write_table("layer_scores.csv", pd.concat(tables, ignore_index=True))
    say("measures: every criterion scored on every layer, saved")
    return run.read_table("layer_scores.csv")


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


def summary(found: Mapping[str, pd.DataFrame], cfg: Config) -> str:
    """The recommended block and the verdicts, as a person reads them."""
    atlas, lines = found["atlas"], []
    if (atlas["pseudo_n"] > 0).any():
        first, last = recommended(atlas, cfg.inherited_share, cfg.atlas_shots)
        row = atlas[(atlas["first"] == first) & (atlas["last"] == last)].iloc[0]
        lines.append(
            f"recommended on pseudo-tasks, at most {cfg.inherited_share:g} % of the parameters: {row['block']} "
            f"({row['share']:.0f} %), gain on novel classes {row['gain']:+.1f} "
            f"({row['gain_low']:+.1f} to {row['gain_high']:+.1f}, n={row['n_tasks']})"
        )
    return "\n".join([*lines, describe(found["claims"])])


def reproduction_table(found: Mapping[str, pd.DataFrame]) -> str:
    """A markdown table of claims: a row per claim, a column per run (its name -> claims.csv), the scope last."""
    names = list(found)
    lines = [f"| claim | {' | '.join(names)} | speaks for |", "|---" * (len(names) + 2) + "|"]
    indexed = {name: table.set_index("claim") for name, table in found.items()}
    for row in found[names[0]].itertuples():
        cells = [_cell(indexed[name].loc[row.claim]) for name in names]
        lines.append(f"| **{row.claim}** {row.statement.rstrip('.')} | {' | '.join(cells)} | {row.scope} |")
    return "\n".join(lines)


def _cell(row: pd.Series) -> str:
    """A verdict with its estimate, limits and number of units; what would decide it, where something would."""
    if not row["n"] or pd.isna(row["estimate"]):
        return f"{row['verdict']}: not run"
    digits = 2 if row["unit"] == "rho" else 1
    sign = "" if row["unit"] == "AUROC" else "+"
    numbers = [f"{value:{sign}.{digits}f}" for value in (row["estimate"], row["low"], row["high"])]
    needed = f"; {row['needed']:,.0f} would decide" if pd.notna(row["needed"]) else ""
    return f"**{row['verdict']}** {numbers[0]} ({numbers[1]} to {numbers[2]}), n={row['n']}{needed}"
