"""Learning rates and EWC strengths, chosen on pseudo-tasks of the open-world classes and on nothing else."""

from __future__ import annotations

import contextlib
import dataclasses

import pandas as pd

from ..arms import arms_of
from ..collective import Collective
from ..config import Config
from ..data.division import Division, target_tasks
from ..errors import StudyError, say
from ..learngene import Learngene
from ..runs.run import Run
from ..runs.stages import individuals
from ..tasks import ImageSet, TargetTask
from .released import kind_of


def pseudo_tasks(imgs: ImageSet, div: Division, cfg: Config) -> list[TargetTask]:
    """Target tasks of the open-world classes. Raises StudyError when there are too few."""
    return target_tasks(imgs, div, cfg, group="open_world", n_tasks=cfg.tune_tasks)


def tune(
    gene: Learngene, col: Collective, imgs: ImageSet, div: Division, cfg: Config, run: Run | None = None
) -> pd.DataFrame:
    """Accuracy of every arm over a grid of learning rates (and EWC strengths) on pseudo-tasks of the open-world classes,
    which the collective never saw. Novel classes choose nothing. Writes `tuning.csv`; `best` marks the best rate of each.

    Raises StudyError when there are too few open-world classes.
    """
    if run is not None:
        run.check("tune", cfg)
    if run is not None and run.done("tune"):
        say("tune: found in the run folder, loaded")
        return run.read_table("tuning.csv")
    pseudo = pseudo_tasks(imgs, div, cfg)
    if not arms_of(gene, col, cfg, cfg.methods):
        raise StudyError("there is nothing to tune: no method in methods is trained")
    arms = [
        dataclasses.replace(arm, rate=rate, ewc=ewc)
        for arm in arms_of(gene, col, cfg, [m for m in cfg.methods if m != "ncm"])
        for rate in cfg.tune_rates
        for ewc in (cfg.tune_ewc if arm.ewc else (0.0,))
    ]
    with run.computing("tune", ["tuning.csv"]) if run is not None else contextlib.nullcontext():
        work = individuals(run, "tune", arms, imgs, cfg.replace(n_inits=1), gene.mean, gene.std, kind=kind_of(cfg))
        results, _ = work.table(pseudo)
        keys = ["family", "method", "rate", "ewc"]
        table = results.groupby(keys, as_index=False, sort=False).agg(
            accuracy=("accuracy", "mean"), sd=("accuracy", "std"), n=("accuracy", "size")
        )
        table["best"] = table["accuracy"] == table.groupby(["family", "method"])["accuracy"].transform("max")
        if run is not None:
            run.write_table("tuning.csv", table)
    say(f"tune: {len(table)} settings tried on {len(pseudo)} pseudo-tasks of open-world classes")
    return table
