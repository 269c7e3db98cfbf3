"""What openworld.csv says about a claim. Tables only, no torch."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from .evidence import Evidence, Missing, Tables
from .ranks import pair_correlation_interval
from .statistics import Interval


def _open(tables: Tables, score: str) -> pd.DataFrame:
    """The rows of one score in openworld.csv, a row per source task."""
    table = tables.get("openworld")
    part = table[table["score"] == score].sort_values("task")
    if part.empty:
        raise Missing(f"openworld.csv has no score {score!r}")
    if part["task"].duplicated().any():
        raise ValueError(f"openworld.csv has {score} twice for one task")
    return part


def auroc(tables: Tables, scope: str, *, score: str) -> Evidence:
    """AUROC of one score after the last source task, with its limits over classes."""
    last = _open(tables, score).iloc[-1]
    unit = "unknown classes" if "unknown_classes" in last else "unknown images"
    n = int(last["unknown_classes" if "unknown_classes" in last else "n_unknown"])
    interval = Interval(*(float(last[name]) for name in ("auroc", "auroc_low", "auroc_high")), n, scope)
    tested = (
        f"{score} after task {last['task']}, {last['n_known']} known and {last['n_unknown']} unknown images, "
        f"closed-set accuracy {last['closed_accuracy']:.1f} %, openworld.csv"
    )
    return Evidence(interval, tested, counted=unit, more_helps=False)


def correlation(tables: Tables, scope: str, *, score: str) -> Evidence:
    """Spearman's rho over source tasks of AUROC and closed-set accuracy, with limits as for independent tasks."""
    part = _open(tables, score)
    tested = f"AUROC of {score} with closed-set accuracy, {len(part)} source tasks, openworld.csv"
    interval = replace(pair_correlation_interval(part["auroc"], part["closed_accuracy"]), scope=scope)
    note = "a correlation needs 4 tasks" if len(part) < 4 else ""
    dependent = "shown, not judged: the tasks of one sequence are not independent of each other"
    return Evidence(interval, tested, note=note, counted="source tasks", more_helps=False, no_verdict=dependent)
