"""The table at the end of a run, for a terminal and for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .runs import Run

if TYPE_CHECKING:
    import pandas as pd


def summary_table(run: Run) -> pd.DataFrame:
    """Accuracy and paired gain with 95 % intervals of every family and method, from `results.csv`."""
    from .statistics import paired_table

    return paired_table(run.read_table("results.csv"))


def summary_rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """The summary as text cells; the first row is the header."""
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
        rows.append(
            (
                r.family,
                r.method,
                str(r.shots),
                f"{r.accuracy:.1f}",
                f"{r.accuracy_low:.1f} to {r.accuracy_high:.1f}",
                "" if none else f"{r.gain:+.1f}",
                "" if none else f"{r.gain_low:+.1f} to {r.gain_high:+.1f}",
                f"{r.n_tasks} x {r.n_inits}",
            )
        )
    return rows


def summary_text(run: Run) -> str:
    """The summary for a terminal."""
    rows = summary_rows(summary_table(run))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def summary_markdown(run: Run) -> str:
    """The summary for the report: settings, chosen layers, table."""
    from .learngene import Learngene

    cfg, gene = run.cfg, Learngene.load(run.path / "learngene.safetensors")
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
