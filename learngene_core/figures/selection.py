"""Figures of criteria against the atlas: do they pick the right layers, and what do they say of each? No torch.

The tables are selection.csv and layer_scores.csv.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .style import ACCENT, CHOSEN, COLLECTIVE, GREY, INK, MUTED, dot, legend_below, log_where_wide, stripe, thin, tidy
from .tables import Block, block_name, checked, with_shots
from .training import inherit_arrow
from .words import SCORE_LABELS, criterion_label

BASELINES = ("depth", "shallow", "size", "small", "random")
MAIN = ("released", "relative_norm", "fisher", "reinit")  # one of each kind, for figures in the text
MAIN_BASELINES = ("recommended", "depth", "shallow", "random")
NULL = "null:"
CRITERION, BASELINE, NULL_GREY = COLLECTIVE, ACCENT, GREY


def selection_figure(
    selection: pd.DataFrame, *, length: int | None = None, shots: int | None = None, every: bool = False
) -> np.ndarray:
    """Does a criterion pick the right layers? Its rank correlation with the gains, and its regret; returns the axes (2,).

    selection: selection.csv. Left: Spearman over all blocks with 95 % limits, beside the same criterion's null (hollow) and
    the baselines: depth and size, each both ways, and random. Right: gain lost against the best block, at fixed length and
    within the budget, and the blocks chosen. Highest correlation on top, baselines below. Drawn are the criteria of `MAIN` and
    `MAIN_BASELINES`; with `every`, as for an appendix, all of the table. Several lengths or shots: name one, or ValueError.
    """
    columns = ("criterion", "scope", "spearman", "spearman_low", "spearman_high", "regret", "regret_low", "regret_high")
    table = with_shots(checked(selection, (*columns, "first", "last"), "selection.csv"), shots)
    fixed = _length_scope(table, length)
    ranks = checked(table[table["scope"] == "all blocks"], (), "selection.csv, all blocks,").set_index("criterion")
    names = [name for name in ranks.index if not name.startswith(NULL)]
    names = _main(names, (*MAIN, *MAIN_BASELINES), every)
    ordered = ranks.loc[names].sort_values("spearman", ascending=False, kind="stable", na_position="last").index
    names = [n for n in ordered if n not in BASELINES] + [n for n in ordered if n in BASELINES]
    figure, axes = plt.subplots(1, 2, figsize=(11.8, 0.4 * len(names) + 2), sharey=True, layout="constrained")
    for y, name in enumerate(names):
        colour = BASELINE if name in BASELINES else CRITERION
        if NULL + name in ranks.index:
            dot(axes[0], y + 0.2, ranks.loc[NULL + name], "spearman", NULL_GREY, hollow=True)
        if not dot(axes[0], y - (0.12 if NULL + name in ranks.index else 0), ranks.loc[name], "spearman", colour):
            axes[0].text(0.02, y, "cannot rank", va="center", fontsize=13, color=MUTED)
        for scope, shift, hollow in ((fixed, -0.13, False), ("within budget", 0.16, True)):
            row = table[(table["criterion"] == name) & (table["scope"] == scope)]
            if len(row) and dot(axes[1], y + shift, row.iloc[0], "regret", colour, hollow=hollow, marker="s"):
                _choice(axes[1], y, row.iloc[0], 1.1 if not hollow else 1.34)
    _selection_axes(axes, names, fixed)
    return axes


def _main(names: list[str], wanted: Sequence[str], every: bool) -> list[str]:
    """Those of `wanted` among `names`, unless every name is asked for or none of them is there."""
    return names if every else [name for name in names if name in wanted] or names


def _length_scope(table: pd.DataFrame, length: int | None) -> str:
    """The scope of blocks of equal length. Raises ValueError where it must be named, or is not there."""
    there = [scope for scope in dict.fromkeys(table["scope"]) if scope.startswith("blocks of length")]
    wanted = there[0] if length is None and len(there) == 1 else f"blocks of length {length}"
    if wanted not in there:
        raise ValueError(f"name one length, not {length}; there are {', '.join(there) or 'none'}")
    return wanted


def _choice(ax: Axes, y: float, row: pd.Series, x: float) -> None:
    """The chosen block in numbers, at `x` of the axes' width."""
    if not np.isnan(row["first"]):
        words = block_name((row["first"], row["last"]))
        ax.text(x, y, words, transform=ax.get_yaxis_transform(), ha="center", va="center", fontsize=13)


def _selection_axes(axes: np.ndarray, names: list[str], fixed: str) -> None:
    """Names, titles and legends of `selection_figure`."""
    criteria = sum(name not in BASELINES for name in names)
    for ax in axes:
        ax.axvline(0, color=INK, linewidth=1.2, zorder=1)
        ax.axhline(criteria - 0.5, color=GREY, linewidth=1)
        stripe(ax, len(names))
    axes[0].set_yticks(range(len(names)), [criterion_label(name) for name in names])
    axes[0].set(
        xlim=(-1.05, 1.05), title="does it rank the blocks?", xlabel="rank correlation with the gain (Spearman)"
    )
    axes[1].set_title("what does its choice lose?", loc="left")
    axes[1].set_xlabel("gain lost against the best block (points)")
    place = {"transform": axes[1].transAxes, "ha": "center", "va": "bottom", "fontsize": 13, "color": MUTED}
    axes[1].text(1.1, 1, fixed.removeprefix("blocks of "), **place)
    axes[1].text(1.34, 1, "budget", **place)
    look = {"linestyle": "none", "markersize": 7}
    for colour, label in ((CRITERION, "criterion"), (BASELINE, "baseline")):
        axes[0].plot([], [], "o", color=colour, label=label, **look)
    axes[0].plot(
        [], [], "o", markerfacecolor="white", color=NULL_GREY, label="the same from untrained networks", **look
    )
    axes[1].plot([], [], "s", color=MUTED, label=fixed, **look)
    axes[1].plot([], [], "s", markerfacecolor="white", color=MUTED, label="within budget", **look)
    for ax in axes:
        legend_below(ax, 2, handletextpad=0.3)


def score_panels(
    scores: pd.DataFrame,
    *,
    chosen: Mapping[str, Block] | None = None,
    every: bool = False,
    columns: int | None = None,
) -> np.ndarray:
    """Criteria: score per layer beside the null (mean ± 2 sd), a panel each, with unit and direction; returns the axes.

    scores: layer_scores.csv; layers without a score leave a gap. chosen: criterion -> (first, last), shaded. Drawn are the
    criteria of `MAIN`; with `every`, as for an appendix, all of the table. Where all values are positive and span more than a
    factor of ten the axis is logarithmic, and its name says so.
    """
    needed = ("criterion", "layer", "score", "null", "null_sd", "inherit")
    names = list(dict.fromkeys(checked(scores, needed, "layer_scores.csv")["criterion"]))
    names = _main(names, MAIN, every)
    columns = min(columns or (3 if every else 4), len(names))
    rows = -(-len(names) // columns)
    size = (11.8, (2.9 if every else 3.9) * rows + 1.1)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, layout="constrained")
    for ax, name in zip(grid.flat, names, strict=False):
        _score_panel(ax, scores[scores["criterion"] == name], (chosen or {}).get(name), 11 if every else 14)
    for k, ax in enumerate(grid.flat):
        ax.set_visible(k < len(names))
        ax.tick_params(labelbottom=k + columns >= len(names))
    figure.supxlabel("layer (conv number)", fontsize=14)
    found = {label: line for ax in grid.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=4)
    return grid.flat[: len(names)]


def _score_panel(ax: Axes, part: pd.DataFrame, chosen: Block | None, size: float) -> None:
    """One criterion: `part` of layer_scores.csv, in letters of `size` points."""
    x, null, spread = np.arange(1, len(part) + 1), part["null"].to_numpy(float), 2 * part["null_sd"].to_numpy(float)
    if chosen:
        edges = chosen[0] - 0.5, chosen[1] + 0.5
        ax.axvspan(*edges, color=CHOSEN, alpha=0.55, linewidth=0, zorder=0, label="the block it chooses")
    ax.fill_between(x, null - spread, null + spread, color=NULL_GREY, alpha=0.35, linewidth=0, zorder=1)
    ax.plot(x, null, color=MUTED, linestyle="--", linewidth=1.6, label="untrained networks, mean ± 2 sd")
    ax.plot(x, part["score"], color=CRITERION, marker="o", markersize=5, linewidth=1.8, label="collective", zorder=3)
    wide = log_where_wide(ax.yaxis, np.concatenate([part["score"], null - spread, null + spread]))
    name = part["criterion"].iloc[0]
    ax.set_title(criterion_label(name) if size < 13 else textwrap.fill(criterion_label(name), 18), fontsize=size)
    ax.set_ylabel(
        textwrap.fill(SCORE_LABELS.get(name, "score") + (" (log)" if wide else ""), 30 if size > 13 else 24),
        fontsize=size,
    )
    ax.tick_params(labelsize=size - 1)
    ax.set_xticks(x, thin(x, 7))
    ax.set_xlim(0.5, len(x) + 0.5)
    if not wide:
        ax.yaxis.set_major_locator(MaxNLocator(4))
    inherit_arrow(ax, part["inherit"].iloc[0], size - 1)
    tidy(ax, grid="y")
