"""Figures of the theory: risk in shared subspaces, the norm term, and the computable bound beside the error that it bounds.

Tables go in, matplotlib Axes come out; no torch. The full space has the colour of scratch, what is learned from source tasks
that of the learngene.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from .style import GREY, INK, METHOD_COLOURS, PALE, diverging, legend_below, new_axes, tidy

SPACE_COLOURS: dict[str, str] = {
    "full": METHOD_COLOURS["scratch"],
    "random": METHOD_COLOURS["random"],
    "learned": METHOD_COLOURS["learngene"],
    "true": METHOD_COLOURS["first"],
}
SPACE_LABELS: dict[str, str] = {
    "full": "all directions (no transfer)",
    "random": "random subspace",
    "learned": "subspace learned from t tasks",
    "true": "true subspace",
}
FEATURE_COLOURS: dict[str, str] = {"ordinary": "#0173B2", "weak": "#DE8F05", "worst": "#D55E00"}
FEATURE_LABELS: dict[str, str] = {
    "ordinary": "ordinary features",
    "weak": "one weak feature",
    "worst": "the worst m examples",
}
BOUND_COLOUR, ERROR_COLOUR, MEAN_COLOUR = "#D55E00", METHOD_COLOURS["learngene"], METHOD_COLOURS["ncm"]
PART_COLOURS: dict[str, str] = {"head": "#0173B2", "choice": "#ECA540", "confidence": "#AEB9C6"}
BOUND_LINES = {
    "bound": ("bound (95 %)", BOUND_COLOUR, "o"),
    "gibbs_error": ("error of drawn heads", ERROR_COLOUR, "s"),
    "head_error": ("error of the mean head", MEAN_COLOUR, "^"),
}


def risk_curves(table: pd.DataFrame) -> np.ndarray:
    """Excess risk on new tasks over the number of source tasks t, a panel per m; returns the axes (one per m).

    table: `theory.risk_table`; bands are 95 % intervals over repetitions.
    """
    ms = sorted(table["m"].unique())
    figure, axes = plt.subplots(1, len(ms), figsize=(12, 4.3), sharey=True, squeeze=False, layout="constrained")
    for ax, m in zip(axes[0], ms, strict=True):
        for space, colour in SPACE_COLOURS.items():
            part = table[(table["m"] == m) & (table["space"] == space)].sort_values("t")
            line = {"color": colour, "label": SPACE_LABELS[space], "linestyle": "-" if space == "learned" else "--"}
            ax.plot(part["t"], part["risk"], marker="o" if space == "learned" else None, markersize=5, **line)
            ax.fill_between(part["t"], part["risk_low"], part["risk_high"], color=colour, alpha=0.15, linewidth=0)
        _log_ticks(ax, "x", sorted(table["t"].unique()))
        ax.set(title=f"m = {m}", xlabel="source tasks t", ylim=(0, None))
        tidy(ax, grid="y")
    axes[0, 0].set_ylabel("excess risk of a new task\n(1 = predicting zero)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return axes[0]


def gain_map(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Risk without transfer less risk in the learned subspace, over m and t; in brackets where its interval covers zero.

    table: `theory.risk_table`.
    """
    learned = table[table["space"] == "learned"]
    gain = learned.pivot(index="t", columns="m", values="gain").sort_index(ascending=False)
    clear = ((learned["gain_low"] > 0) | (learned["gain_high"] < 0)).to_numpy()
    sure = learned.assign(clear=clear).pivot(index="t", columns="m", values="clear").loc[gain.index]
    words = np.where(sure, gain.map("{:+.2f}".format), gain.map("({:+.2f})".format))
    ax = new_axes(ax, 7.2, 4.6)
    most = float(np.abs(gain.to_numpy()).max())
    bar = {"label": "gain in risk (positive: sharing helps)"}
    look = {"cmap": diverging().reversed(), "center": 0, "vmin": -most, "vmax": most, "linewidths": 1, "cbar_kws": bar}
    import seaborn as sns  # seconds to import, needed here alone

    sns.heatmap(gain, ax=ax, annot=words, fmt="", **look)
    ax.set(xlabel="examples per task m", ylabel="source tasks t")
    ax.tick_params(length=0, rotation=0)
    return ax


def norm_figure(table: pd.DataFrame) -> np.ndarray:
    """||w||^2 over m with the m kept inside the inverse and with it dropped, beside the limits; returns the axes (2,).

    table: `theory.norm_terms`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.4), sharey=True, layout="constrained")
    for ax, inside in zip(axes, (True, False), strict=True):
        part = table[table["m_inside"] == inside]
        limit = part.drop_duplicates("m").sort_values("m")
        ax.plot(limit["m"], limit["limit"], color=INK, linestyle=":", label="limit for any m examples", zorder=4)
        for features, colour in FEATURE_COLOURS.items():
            rows = part[part["features"] == features].sort_values("m")
            ax.plot(rows["m"], rows["squared_norm"], color=colour, marker="o", label=FEATURE_LABELS[features])
            limits = rows["squared_norm_low"], rows["squared_norm_high"]
            ax.fill_between(rows["m"], *limits, color=colour, alpha=0.2, linewidth=0)
        ax.set_yscale("log")
        _log_ticks(ax, "x", sorted(table["m"].unique()))
        ax.set(title="m kept (the theorem's head)" if inside else "m dropped (as the proof does)")
        ax.set_xlabel("examples m")
        tidy(ax, grid="y")
    axes[0].set_ylabel("squared norm of the head (log)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return axes


def term_figure(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """The theorem's average over t tasks, with 95 % bands, beside what its last line says of it (dotted).

    table: `theory.term_over_tasks`.
    """
    ax = new_axes(ax, 8.6, 4.6)
    for space in ("true", "full", "random"):
        rows = table[table["space"] == space].sort_values("t")
        colour = SPACE_COLOURS[space]
        ax.plot(rows["t"], rows["term"], color=colour, marker="o", label=SPACE_LABELS[space])
        ax.fill_between(rows["t"], rows["term_low"], rows["term_high"], color=colour, alpha=0.18, linewidth=0)
        ax.plot(rows["t"], rows["advertised"], color=colour, linestyle=":", linewidth=1.8)
    ax.plot([], [], color=INK, linestyle=":", label="falling as 1/t, as the last line has it")
    _log_ticks(ax, "x", sorted(table["t"].unique()))
    ax.set(xlabel="source tasks t", ylabel="average squared norm of the heads", ylim=(0, None))
    tidy(ax, grid="y")
    legend_below(ax, 2)
    return ax


def bound_curves(summary: pd.DataFrame, *, ax: Axes | None = None, title: str = "") -> Axes:
    """The bound and the errors on query images over m: means over target tasks with 95 % intervals.

    summary: `theory.prefixes.bound_summary`.
    """
    ax = new_axes(ax, 8, 4.8)
    for name, (label, colour, marker) in BOUND_LINES.items():
        ax.plot(summary["m"], summary[name], color=colour, marker=marker, markersize=6, label=label)
        limits = summary[f"{name}_low"], summary[f"{name}_high"]
        ax.fill_between(summary["m"], *limits, color=colour, alpha=0.15, linewidth=0)
    ax.axhline(summary["chance"].iloc[0], color=GREY, linestyle=":", label="chance")
    _log_ticks(ax, "x", list(summary["m"]))
    ax.set(xlabel="support images m", ylabel="error (%)", ylim=(0, 102), title=title)
    tidy(ax, grid="y")
    legend_below(ax, 2)
    return ax


def bound_pair(learned: pd.DataFrame, untrained: pd.DataFrame) -> np.ndarray:
    """`bound_curves` of the learned features beside those of an untrained network; returns the axes (2,)."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    for ax, summary, title in zip(
        axes, (learned, untrained), ("features of the collective", "features of an untrained network"), strict=True
    ):
        bound_curves(summary, ax=ax, title=title)
        ax.get_legend().remove()
    axes[1].set_ylabel("")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return axes


def bound_tasks(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Task by task at one m: from the error of drawn heads on query images up to the bound; sorted by that error.

    table: rows of `theory.prefixes.bound_table` of one number of shots; more than one: ValueError.
    """
    if table["m"].nunique() != 1:
        raise ValueError("the table holds several m; choose one")
    rows = table.sort_values(["gibbs_error", "target_task"])
    x = np.arange(1, len(rows) + 1)
    ax = new_axes(ax, 8, 4.6)
    ax.vlines(x, rows["gibbs_error"], rows["bound"], color=PALE, linewidth=2)
    for name, (label, colour, marker) in BOUND_LINES.items():
        ax.scatter(x, rows[name], color=colour, marker=marker, s=38, label=label, zorder=3)
    ax.axhline(rows["chance"].iloc[0], color=GREY, linestyle=":", label="chance")
    ax.set_xticks(x, [str(n) if len(x) <= 30 else "" for n in rows["target_task"]], fontsize=10)
    ax.set(xlabel="target task", ylabel="error (%)", ylim=(0, 102))
    tidy(ax, grid="y")
    return ax


def budget_bars(table: pd.DataFrame, delta: float, *, ax: Axes | None = None) -> Axes:
    """What the bound's right-hand side is made of, per support image: the head, the choice of prefix, the confidence.

    The axis is in nats per image, the legend gives the same parts in nats for all m images.

    table: rows of `theory.prefixes.bound_table` of one number of shots; the mean over target tasks.
    """
    ax = new_axes(ax, 4, 4.6)
    m, choice = table["m"].iloc[0], np.log(table["n_candidates"].iloc[0])
    parts = {
        "head": ("|W|² / 2s²", (table["nats"] - choice).mean()),
        "choice": ("log R", choice),
        "confidence": ("log(4√m / δ)", np.log(4 * np.sqrt(m) / delta)),  # of a half of delta
    }
    bottom = 0.0
    for name, (label, nats) in parts.items():
        ax.bar(0, nats / m, bottom=bottom, color=PART_COLOURS[name], label=f"{label}: {nats:.1f} nats / {m}", width=0.6)
        bottom += nats / m
    ax.set(xlim=(-0.6, 0.6), xticks=[], ylabel="nats per support image")
    tidy(ax, grid="y")
    return ax


def _log_ticks(ax: Axes, axis: str, values: Sequence[float]) -> None:
    """A logarithmic axis with a tick at each of the values and no others."""
    getattr(ax, f"set_{axis}scale")("log")
    where = getattr(ax, f"{axis}axis")
    where.set_minor_locator(NullLocator())
    where.set_ticks(values, [f"{value:g}" for value in values])
