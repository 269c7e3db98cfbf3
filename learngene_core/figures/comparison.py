"""Figures that compare methods: always within one family, with intervals, paired gains and the number of tasks. No torch."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..analysis import statistics
from .style import (
    FAMILY_LABELS,
    GREY,
    INK,
    METHOD_COLOURS,
    METHOD_LABELS,
    MUTED,
    in_order,
    legend_below,
    new_axes,
    tidy,
)

NO_TRAINING = "none"  # the family of methods that train nothing: shown as a reference line, never as a rival
DASHES = {"learngene_ewc": (0, (4, 1.5)), "random": (0, (1, 1)), "first": (0, (4, 1.5)), "full": (0, (6, 1, 1, 1))}


def training_curves(curves: pd.DataFrame, *, band: bool = True) -> np.ndarray:
    """Training loss per epoch and method: a row of panels per `shots`, a panel per family; returns the axes (shots, families).

    curves: curves.csv (family, method, shots, epoch, loss in nats, loss_sd over tasks, n_tasks); the band is +- 1 sd.
    Where no method was trained, one panel says so.
    """
    families = in_order([f for f in curves["family"] if f != NO_TRAINING], FAMILY_LABELS)
    if not families:
        return _nothing_trained()
    shots = sorted(curves["shots"].unique())
    size = (5.6 * len(families), 3.3 * len(shots) + 0.9)
    figure, axes = plt.subplots(
        len(shots), len(families), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for row, n_shots in zip(axes, shots, strict=True):
        for ax, family in zip(row, families, strict=True):
            part = curves[(curves["family"] == family) & (curves["shots"] == n_shots)]
            for method in in_order(list(part["method"]), METHOD_LABELS):
                line = part[part["method"] == method].sort_values("epoch")
                style = {"color": METHOD_COLOURS.get(method), "linestyle": DASHES.get(method, "-")}
                ax.plot(line["epoch"], line["loss"], label=METHOD_LABELS.get(method, method), **style)
                if band:
                    edges = line["loss"] - line["loss_sd"], line["loss"] + line["loss_sd"]
                    ax.fill_between(line["epoch"], *edges, color=style["color"], alpha=0.12, linewidth=0)
            ax.set_title(_panel_title(family, n_shots, part["n_tasks"]))
            tidy(ax, grid="y")
        row[0].set_ylabel("training loss\n(cross-entropy, nats)")
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].set_xlim(1, max(2, curves["epoch"].max()))
    for ax in axes[-1]:
        ax.set_xlabel("epoch of the individual")
        legend_below(ax, 2)
    return axes


def _nothing_trained() -> np.ndarray:
    figure, axes = plt.subplots(figsize=(5.6, 1.6), squeeze=False, layout="constrained")
    axes[0, 0].text(0.5, 0.5, "no method of this run is trained", ha="center", va="center")
    axes[0, 0].set_axis_off()
    return axes


def comparison(paired: pd.DataFrame, *, n_way: int = 5, reference: str = "scratch") -> np.ndarray:
    """Accuracy and paired gain of every method, a row of two panels per family and `shots`; returns the axes (rows, 2).

    paired: `statistics.paired_table(results, reference=reference)`, accuracies in percent, gains in percentage points,
    both with 95 % intervals over target tasks. Dotted: chance, 100 / n_way. Dashed: methods without training (ncm).
    """
    trained = paired[paired["family"] != NO_TRAINING]
    shown = trained if len(trained) else paired
    families = in_order(list(shown["family"]), FAMILY_LABELS)
    groups = [(f, s) for f in families for s in sorted(shown.loc[shown["family"] == f, "shots"].unique())]
    counts = [len(shown[(shown["family"] == f) & (shown["shots"] == s)]) for f, s in groups]
    figure, axes = plt.subplots(
        len(groups),
        2,
        figsize=(11, sum(0.42 * n + 0.75 for n in counts) + 1.1),
        height_ratios=[n + 0.4 for n in counts],
        squeeze=False,
        layout="constrained",
    )
    first: dict[str, Axes] = {}
    for (family, _), (left, right) in zip(groups, axes, strict=True):
        if left is not axes[0, 0]:
            left.sharex(axes[0, 0])
        if first.setdefault(family, right) is not right:  # gains of two families are not to be compared
            right.sharex(first[family])
    for (family, n_shots), (left, right) in zip(groups, axes, strict=True):
        part = shown[(shown["family"] == family) & (shown["shots"] == n_shots)]
        part = part.set_index("method").loc[in_order(list(part["method"]), METHOD_LABELS)]
        still = paired[(paired["family"] == NO_TRAINING) & (paired["shots"] == n_shots)]
        _reference_lines(left, still if len(trained) else still[:0], n_way)
        _dots(left, part, "accuracy", ".1f")
        _dots(right, part, "gain", "+.1f", reference)
        left.set_title(_panel_title(family, n_shots, part["n_tasks"]))
        right.set_title(f"gain over {METHOD_LABELS.get(reference, reference)}, same tasks")
    axes[-1, 0].set_xlabel("accuracy on query images (%), 95 % interval")
    axes[-1, 1].set_xlabel("paired gain (percentage points), 95 % interval")
    legend_below(axes[-1, 0], 2)
    return axes


def _reference_lines(ax: Axes, still: pd.DataFrame, n_way: int) -> None:
    """Chance, and the methods without training (rows of `still`), as upright lines; a band is the 95 % interval."""
    ax.axvline(100 / n_way, color=GREY, linestyle=":", label=f"chance ({100 / n_way:.0f} %)")
    for _, row in still.iterrows():
        style = {"color": METHOD_COLOURS.get(row["method"], INK), "zorder": 1}
        label = METHOD_LABELS.get(row["method"], row["method"])
        ax.axvline(row["accuracy"], linestyle="--", linewidth=1.6, label=label, **style)
        ax.axvspan(row["accuracy_low"], row["accuracy_high"], alpha=0.1, linewidth=0, **style)


def _dots(ax: Axes, part: pd.DataFrame, column: str, form: str, reference: str = "") -> None:
    """A dot with its interval per method (rows of `part`), and the numbers at the right edge."""
    place = ax.get_yaxis_transform()
    for y, (method, row) in enumerate(part.iterrows()):
        middle, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
        if method == reference or np.isnan(middle):
            text = "reference" if method == reference else "no reference"
            ax.text(1.02, y, text, transform=place, va="center", fontsize=11, color=MUTED)
            continue
        colour = METHOD_COLOURS.get(method, INK)
        ax.plot([low, high], [y, y], color=colour, linewidth=2.6, solid_capstyle="butt")
        ax.scatter([middle], [y], s=48, color=colour, zorder=3)
        text = f"{middle:{form}}" if np.isnan(low) else f"{middle:{form}}  [{low:{form}}, {high:{form}}]"
        ax.text(1.02, y, text.replace("-", "\N{MINUS SIGN}"), transform=place, va="center", fontsize=11)
    names = [METHOD_LABELS.get(method, method) for method in part.index]
    ax.set_yticks(range(len(part)), names if column == "accuracy" else [""] * len(part))
    ax.set_ylim(len(part) - 0.5, -0.5)
    if column == "gain":
        ax.axvline(0, color=INK, linewidth=1.2, zorder=1)
    ax.tick_params(axis="y", length=0)
    tidy(ax, grid="x")


def paired_dots(
    results: pd.DataFrame,
    family: str,
    method: str,
    reference: str = "scratch",
    *,
    shots: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The paired difference of every target task as a dot, their mean and its 95 % interval.

    results: results.csv; initial weights are averaged within a task. Method and reference are of the same `family`; with
    several `shots` one must be named. Raises ValueError for what the table does not hold, or pairs that miss a half.
    """
    part = _one_pair(results, family, method, reference, shots)
    row = statistics.paired_table(part, reference=reference).set_index("method").loc[method]
    means = part.groupby(["method", "target_task"])["accuracy"].mean()
    gains = means[method] - means[reference]
    ax = new_axes(ax, 9, 4.4)
    colour = METHOD_COLOURS.get(method, INK)
    ax.axhline(0, color=INK, linewidth=1.2)
    ax.axhspan(row["gain_low"], row["gain_high"], color=colour, alpha=0.18, linewidth=0, label="95 % interval")
    ax.axhline(row["gain"], color=colour, label=f"mean {row['gain']:+.1f}".replace("-", "\N{MINUS SIGN}"))
    ax.scatter(gains.index, gains, s=56, color=colour, edgecolor="white", zorder=3, label="a target task")
    ax.set(xlabel="target task", ylabel="paired gain\n(percentage points)")
    ax.set_title(
        f"{METHOD_LABELS.get(method, method)} over {METHOD_LABELS.get(reference, reference)}: "
        + _panel_title(family, part["shots"].iloc[0], pd.Series([row["n_tasks"]]))
    )
    ax.set_xlim(gains.index.min() - 0.7, gains.index.max() + 0.7)
    ax.xaxis.get_major_locator().set_params(integer=True)
    tidy(ax, grid="y")
    legend_below(ax)
    return ax


def _one_pair(results: pd.DataFrame, family: str, method: str, reference: str, shots: int | None) -> pd.DataFrame:
    """The rows of two methods of one family and one number of shots. Raises ValueError that lists what there is."""
    part = results[results["family"] == family]
    if shots is None and part["shots"].nunique() == 1:
        shots = int(part["shots"].iloc[0])
    part = part[(part["shots"] == shots) & part["method"].isin([method, reference])]
    if missing := {method, reference} - set(part["method"]):
        there = results[["family", "shots", "method"]].drop_duplicates().itertuples(index=False)
        raise ValueError(
            f"no {sorted(missing)[0]!r} of family {family!r} with shots {shots}; there are "
            + ", ".join(f"{f}:{m} ({s} shots)" for f, s, m in there)
        )
    return part


def _panel_title(family: str, shots: int, n_tasks: pd.Series) -> str:
    """ "light, 10 shots (n = 20 tasks)": what a panel shows, and how many tasks stand behind it."""
    fewest, most = int(min(n_tasks)), int(max(n_tasks))
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    unit = "task" if count == "1" else "tasks"
    return f"{FAMILY_LABELS.get(family, family)}, {shots} shots (n = {count} {unit})"
