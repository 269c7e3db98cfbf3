"""The table at the end of a run, for a terminal and for the report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from ..analysis.statistics import paired_table
from ..runs.run import Run

if TYPE_CHECKING:  # the name of an annotation only; at run time it would bring torch
    from ..learngene import Learngene


def summary_table(run: Run) -> pd.DataFrame:
    """Accuracy and paired gain with 95 % intervals of every family and method, from `results.csv`."""
    return paired_table(run.read_table("results.csv"))


def summary_rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """The summary as text cells; the first row is the header. A gain that cannot be had says why."""
    rows = [
        (
            "family",
            "method",
            "shots",
            "accuracy %",
            "95 % interval",
            "gain over scratch",
            "95 % interval",
            "tasks x inits",
        )
    ]
    for r in table.itertuples():
        none = r.family == "none" or r.method == "scratch"
        gain = ("", "") if none else (f"{r.gain:+.1f}", _limits(r.gain_low, r.gain_high, "+.1f"))
        if not none and math.isnan(r.gain):
            gain = ("no scratch in this run", "")
        rows.append(
            (
                r.family,
                r.method,
                str(r.shots),
                f"{r.accuracy:.1f}",
                _limits(r.accuracy_low, r.accuracy_high, ".1f"),
                *gain,
                f"{r.n_tasks} x {r.n_inits}",
            )
        )
    return rows


def _limits(low: float, high: float, form: str) -> str:
    return "one task, no interval" if math.isnan(low) else f"{low:{form}} to {high:{form}}"


def ewc_text(results: pd.DataFrame) -> str:
    """What EWC weighs in the training of `learngene_ewc`: its share of the loss in percent, from `results.csv`."""
    shares = results.loc[results["method"] == "learngene_ewc", "ewc_share"]
    if not len(shares):
        return "learngene_ewc is not in this run"
    return f"penalty's share of the training loss: {shares.mean():.2f} % on average over {len(shares)} individuals"


def summary_text(run: Run) -> str:
    """The summary for a terminal."""
    rows = summary_rows(summary_table(run))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def summary_markdown(run: Run, gene: Learngene) -> str:
    """The summary for the report: settings, chosen layers, table."""
    cfg = run.cfg
    rows = summary_rows(summary_table(run))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    about = (
        f"Preset `{cfg.preset_name}`, data `{cfg.data}`, seed {cfg.seed}, {cfg.n_source_tasks} source tasks, "
        f"{cfg.n_target_tasks} target tasks of {cfg.n_way} novel classes. Learngene: {gene.layers[0]} to {gene.layers[-1]} "
        f"({gene.n_parameters:,} parameters), chosen by {gene.notes.get('chosen_by')}. Gains are paired on identical tasks, "
        "initial weights and batches, within one family; intervals are over target tasks of this one collective."
    )
    return about + "\n\n" + "\n".join(lines)
