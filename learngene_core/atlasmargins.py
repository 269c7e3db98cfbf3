"""The margins of the atlas: gain along blocks of equal length, against parameters, and against a criterion's score.

Tables go in, matplotlib Axes come out; no torch. The map itself: `atlasfigures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from .atlasfigures import POINTS, Block, block_name, checked, gains_of, signed
from .files import StudyError
from .ranks import rank_correlation
from .selection import predicted
from .style import (
    COLLECTIVE,
    GREY,
    INK,
    MARKS,
    MUTED,
    PALE,
    SCORE_LABELS,
    layer_colours,
    legend_below,
    log_where_wide,
    new_axes,
    tidy,
)


def margins(
    atlas: pd.DataFrame,
    *,
    lengths: Sequence[int] | None = None,
    budget: float | None = None,
    shots: int | None = None,
    marks: Mapping[str, Block] | None = None,
) -> np.ndarray:
    """Gains by the position of blocks, and by the parameters they take, beside each other; returns the axes (2,)."""
    gains_of(atlas, "novel", shots)  # an error leaves no empty figure
    axes = plt.subplots(1, 2, figsize=(12.5, 5.2), layout="constrained")[1]
    gain_by_position(atlas, lengths=lengths, shots=shots, ax=axes[0])
    gain_by_parameters(atlas, budget=budget, shots=shots, marks=marks, ax=axes[1])
    return axes


def gain_by_position(
    atlas: pd.DataFrame, *, lengths: Sequence[int] | None = None, shots: int | None = None, ax: Axes | None = None
) -> Axes:
    """Gain of blocks of equal length over the place of their middle, with simultaneous 95 % bands over all blocks.

    lengths: by default 1, 3, half and three quarters of the layers, or whatever was computed whole. Only neighbouring
    places are joined.
    Raises ValueError for a length of which nothing was computed.
    """
    table, low, high, title = gains_of(atlas, "novel", shots)
    size = table["last"] - table["first"] + 1
    n, counts = int(table["last"].max()), size.value_counts()
    if lengths is None:
        whole = [k for k in sorted(counts.index) if k < n - 1 and counts[k] == n - k + 1]
        lengths = [k for k in whole if k in (1, 3, n // 2, 3 * n // 4)] or whole[:4] or sorted(counts.index)[:4]
    if missing := set(lengths) - set(counts.index):
        raise ValueError(f"no block of length {min(missing)} was computed; there are {sorted(counts.index)}")
    ax = new_axes(ax, 9, 4.8)
    for length, colour in layer_colours(list(lengths)).items():
        part = table[size == length].set_index("first").reindex(range(1, n - length + 2))
        x = part.index + (length - 1) / 2
        ax.fill_between(x, part[low], part[high], color=colour, alpha=0.16, linewidth=0)
        ax.plot(x, part["gain"], color=colour, marker="o", markersize=6, label=f"{length} block" + "s" * (length > 1))
    ax.axhline(0, color=INK, linewidth=1.2, zorder=1)
    ax.set_xticks(range(1, n + 1))
    ax.set(xlabel="middle of the block (conv number)", ylabel=POINTS, title=title, xlim=(0.5, n + 0.5))
    tidy(ax, grid="y")
    legend_below(ax, 4, title="with simultaneous 95 % bands over all blocks", title_fontsize=12)
    return ax


def gain_by_parameters(
    atlas: pd.DataFrame,
    *,
    budget: float | None = None,
    shots: int | None = None,
    marks: Mapping[str, Block] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Gain of every block over the parameters it takes from the collective (percent of all blocks), with its 95 % limits.

    The front joins the blocks that no block with at most as many parameters beats. It is made of estimates, so it flatters
    its members. budget: an upright line; marks: as in `atlas_map`, those that were not computed are left out.
    """
    checked(atlas, ("share", "gain_low", "gain_high"), "atlas.csv")
    table, _, _, title = gains_of(atlas, "novel", shots)
    table = table.sort_values(["share", "gain"], ascending=[True, False])
    x, y = table["share"], table["gain"]
    front = table[y > y.cummax().shift(fill_value=-np.inf)]
    ax = new_axes(ax, 9, 4.8)
    ax.vlines(x, table["gain_low"], table["gain_high"], color=PALE, linewidth=1.3, zorder=1)
    ax.scatter(x, y, s=26, color=GREY, zorder=2, label="a block, with 95 % interval")
    label = "best with no more parameters (estimates)"
    ax.plot(front["share"], front["gain"], color=COLLECTIVE, drawstyle="steps-post", zorder=2.5, label=label)
    wide = log_where_wide(ax.xaxis, x.to_numpy(float))
    _rings(ax, table.set_index(["first", "last"])[["share", "gain"]], marks or {})
    _name_front(ax, front)
    ax.axhline(0, color=INK, linewidth=1.2, zorder=1)
    if budget is not None:
        ax.axvline(budget, color=MUTED, linestyle=":", label=f"budget ({budget:g} %)")
    ax.set(xlabel="parameters inherited (% of all blocks" + (", log)" if wide else ")"), ylabel=POINTS, title=title)
    tidy(ax, grid="y")
    legend_below(ax, 2)
    return ax


def _rings(ax: Axes, places: pd.DataFrame, marks: Mapping[str, Block]) -> None:
    """A ring around each marked block of `places` (share, gain); the k-th of one block is larger."""
    taken: dict[Block, int] = {}
    for k, (name, block) in enumerate(marks.items()):
        if block in places.index:
            taken[block] = taken.get(block, 0) + 1
            x, y = places.loc[block]
            ax.scatter([x], [y], s=60 + 130 * taken[block], facecolors="none", edgecolors=MARKS[k % len(MARKS)][0],
                       linewidths=2.4, zorder=3, label=f"{name}: {block_name(block)}")  # fmt: skip


def _name_front(ax: Axes, front: pd.DataFrame) -> None:
    """The blocks of the front, from the best down, each where the name above it leaves room."""
    last = (np.inf, np.inf)
    for row in front[::-1].itertuples():
        x, y = ax.transData.transform((row.share, row.gain)) * 72 / ax.figure.dpi
        if last[0] - x > 30 or last[1] - y > 15:
            ax.annotate(block_name((row.first, row.last)), (row.share, row.gain), (-6, 5), textcoords="offset points",
                        ha="right", fontsize=10.5, color=COLLECTIVE,
                        path_effects=[withStroke(linewidth=3, foreground="white")])  # fmt: skip
            last = x, y


def score_against_gain(
    scores: pd.DataFrame, atlas: pd.DataFrame, criterion: str, *, shots: int | None = None, ax: Axes | None = None
) -> Axes:
    """Each block's mean score of one criterion against its gain with 95 % limits, coloured by length.

    scores: layer_scores.csv. Where the criterion prefers low scores, the axis runs from high to low, so that a criterion that
    is right rises to the right; Spearman's correlation in the title has the same sign. Raises ValueError for a criterion
    that is not there, StudyError for one without a score for any block; else as `atlas_map`.
    """
    checked(atlas, ("gain_low", "gain_high"), "atlas.csv")
    table, _, _, title = gains_of(atlas, "novel", shots)
    expected, inherit = _expected(scores, criterion, table)
    shown = np.isfinite(expected)
    table, expected = table[shown], expected[shown]
    mean = expected if inherit == "high" else -expected
    rho = rank_correlation(expected, table["gain"])
    size = (table["last"] - table["first"] + 1).to_numpy(int)
    ax = new_axes(ax, 8.4, 4.8)
    ax.vlines(mean, table["gain_low"], table["gain_high"], color=PALE, linewidth=1.3, zorder=1)
    norm = Normalize(1, max(2, int(table["last"].max())))
    dots = ax.scatter(
        mean, table["gain"], c=size, cmap=colormaps["viridis"], norm=norm, s=48, edgecolor="white", zorder=2
    )
    bar = ax.figure.colorbar(dots, ax=ax, label="blocks inherited", pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.axhline(0, color=INK, linewidth=1.2, zorder=1)
    name = SCORE_LABELS.get(criterion, criterion.replace("_", " "))
    if inherit == "low":
        ax.invert_xaxis()
    way = "axis reversed: it inherits low scores" if inherit == "low" else "it inherits high scores"
    ax.set(xlabel=f"{name}, mean over the block\n({way})", ylabel=POINTS)
    found = "cannot rank" if np.isnan(rho) else f"Spearman {signed(rho, 2)}"
    ax.set_title(f"{criterion}: {found} over {len(table)} blocks\n({title})")
    tidy(ax, grid="y")
    return ax


def _expected(scores: pd.DataFrame, criterion: str, table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """`selection.predicted` for the blocks of `table`, and the criterion's direction. Errors as `score_against_gain`."""
    own = checked(scores, ("criterion", "layer", "score", "inherit"), "layer_scores.csv")
    own = own[own["criterion"] == criterion]
    if own.empty:
        raise ValueError(f"no criterion {criterion!r}; there are {', '.join(scores['criterion'].unique())}")
    expected = predicted(own, table[["first", "last"]].to_numpy(int))
    if not np.isfinite(expected).any():
        raise StudyError(f"criterion {criterion!r} has no score for any block; choose another")
    return expected, own["inherit"].iloc[0]
