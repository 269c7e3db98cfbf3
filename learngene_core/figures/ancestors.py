"""Figures over collective models (ancestors): what inheriting gains against how good the ancestor itself is. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .style import BLOCK_COLOURS, INK, MUTED, in_order, legend_below, tidy
from .tables import checked
from .words import ANCESTOR_LABELS, DATA_LABELS

NEEDED = ("data", "ancestor", "ancestor_seed", "division_seed", "ncm", "block", "gain", "gain_low", "gain_high")
KIND_MARKERS: dict[str, str] = {"sequential": "o", "joint": "s", "replay": "D", "ewc": "^"}


def gain_against_quality(
    table: pd.DataFrame, *, block: str | Sequence[str] | None = None, shared: bool = False
) -> np.ndarray:
    """What each inherited block gains against the quality of its ancestor, a point per ancestor; returns the axes.

    table: columns data, ancestor (sequential, joint, replay, ewc), ancestor_seed, division_seed, ncm (accuracy of the nearest
    class mean on the ancestor's features, percent), block ("last three", "first three", "conv1-7", "longest prefix",
    "recommended"), gain, gain_low, gain_high (points over own scratch, 95 % over target tasks). Colour: the block; marker: the
    kind of ancestor. block: those to draw, by default all. A panel per data set, each with an axis of its own unless `shared`:
    gains on glyphs are several times as large. Raises StudyError for a table without rows or columns, ValueError for a block
    that is not there.
    """
    table = checked(table, NEEDED, "the table of ancestors")
    wanted = [block] if isinstance(block, str) else list(block or table["block"].unique())
    if missing := set(wanted) - set(table["block"]):
        raise ValueError(f"no block {sorted(missing)[0]!r}; there are {', '.join(table['block'].unique())}")
    table = table[table["block"].isin(wanted)]
    data, blocks = in_order(list(table["data"]), DATA_LABELS), in_order(wanted, BLOCK_COLOURS)
    size = (6.1 * len(data) + 0.4 if len(data) > 1 else 8.6, 5.6)
    axes = plt.subplots(1, len(data), figsize=size, sharey=shared, squeeze=False, layout="constrained")[1][0]
    for ax, name in zip(axes, data, strict=True):
        part = table[table["data"] == name]
        for own in blocks:
            _points(ax, part[part["block"] == own], own)
        ax.axhline(0, color=INK, linewidth=1.2, zorder=1)
        n = len(part.drop_duplicates(["ancestor", "ancestor_seed", "division_seed"]))
        ax.set(title=f"{DATA_LABELS.get(name, name)}: a point per ancestor (n = {n})")
        ax.set_ylabel("gain over own scratch (points)" if ax is axes[0] or not shared else "")
        ax.set_xlabel("quality of the ancestor: nearest class mean (%)")
        tidy(ax, grid="both")
    _legend(axes, blocks, in_order(list(table["ancestor"]), ANCESTOR_LABELS))
    return axes


def _points(ax: Axes, part: pd.DataFrame, block: str) -> None:
    """A point with its interval per ancestor, for one block."""
    colour = BLOCK_COLOURS.get(block, MUTED)
    ax.vlines(part["ncm"], part["gain_low"], part["gain_high"], color=colour, linewidth=1.6, alpha=0.6, zorder=2)
    for kind, own in part.groupby("ancestor", sort=False):
        look = {"s": 62, "color": colour, "edgecolor": "white", "linewidth": 0.9, "marker": _marker(str(kind))}
        ax.scatter(own["ncm"], own["gain"], zorder=3, **look)


def _marker(kind: str) -> str:
    return KIND_MARKERS.get(kind, "P")


def _legend(axes: Sequence[Axes], blocks: Sequence[str], kinds: Sequence[str]) -> None:
    """Inherited blocks by colour, and kinds of ancestor by marker, below the panels."""
    dots = {"linestyle": "none", "markersize": 8}
    colours = [
        Line2D([], [], marker="o", color=BLOCK_COLOURS.get(b, MUTED), label=b.replace("-", "\N{EN DASH}"), **dots)
        for b in blocks
    ]
    markers = [Line2D([], [], marker=_marker(k), color=MUTED, label=ANCESTOR_LABELS.get(k, k), **dots) for k in kinds]
    heads = {"title_fontproperties": {"weight": "bold", "size": 12}, "alignment": "left"}
    if len(axes) > 1:
        legend_below(axes[0], 2, points=56, handles=colours, title="inherited block", **heads)
        legend_below(
            axes[-1], 2 if len(kinds) > 2 else 1, points=56, handles=markers, title="ancestor learned", **heads
        )
        return
    both = [*colours, *markers]
    legend_below(
        axes[0], 3, points=56, handles=both, title="inherited block (colour), ancestor learned (marker)", **heads
    )
