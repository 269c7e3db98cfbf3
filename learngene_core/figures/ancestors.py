"""Figures over collective models (ancestors): what inheriting gains against how good the ancestor itself is. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .style import BLOCK_COLOURS, INK, MUTED, dot, in_order, legend_below, stripe, tidy
from .tables import checked
from .words import ANCESTOR_LABELS, DATA_LABELS, criterion_label

NEEDED = ("data", "ancestor", "ancestor_seed", "division_seed", "ncm", "block", "gain", "gain_low", "gain_high")
KIND_MARKERS: dict[str, str] = {"sequential": "o", "joint": "s", "replay": "D", "ewc": "^"}
KIND_COLOURS: dict[str, str] = {"sequential": "#3F5873", "joint": "#DE8F05", "replay": "#029E73", "ewc": "#CC78BC"}


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
    size = (5.7 * len(data) + 0.4 if len(data) > 1 else 8.6, 5.2)
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
    heads = {"title_fontproperties": {"weight": "bold", "size": 14}, "alignment": "left"}
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


def light_atlas(table: pd.DataFrame) -> np.ndarray:
    """What a light individual gains from every prefix (left) and every window of three blocks (right); returns the axes (2,).

    table: `ancestor_tables.atlas_gains`, one ancestor per kind: columns ancestor, first, last, gain, gain_low, gain_high (points
    over own scratch, 95 % over target tasks), n. A colour and a marker per kind of ancestor. Raises StudyError without rows.
    """
    table = checked(table, ("ancestor", "first", "last", "gain", "gain_low", "gain_high", "n"), "the light atlas")
    axes = plt.subplots(1, 2, figsize=(11.8, 5), sharey=True, width_ratios=(13, 12), layout="constrained")[1]
    prefix = table["first"] == 1
    titles = ("prefixes: conv1 to ...", "three neighbouring blocks")
    for ax, part, title in zip(axes, (table[prefix], table[~prefix]), titles, strict=True):
        places = sorted(set(zip(part["first"], part["last"], strict=True)))
        names = [str(last) if first == 1 else f"{first}\N{EN DASH}{last}" for first, last in places]
        for k, kind in enumerate(in_order(list(table["ancestor"]), ANCESTOR_LABELS)):
            own = part[part["ancestor"] == kind]
            x = [places.index(b) + 0.16 * (k - 0.5) for b in zip(own["first"], own["last"], strict=True)]
            look = {"color": KIND_COLOURS.get(kind, MUTED), "zorder": 3}
            ax.vlines(x, own["gain_low"], own["gain_high"], linewidth=2.2, **look)
            ax.scatter(x, own["gain"], s=48, marker=_marker(kind), label=ANCESTOR_LABELS.get(kind, kind), **look)
        ax.axhline(0, color=INK, linewidth=1.2, zorder=1)
        ax.set_xticks(range(len(places)), names, rotation=45 if max(map(len, names), default=0) > 2 else 0)
        ax.set(title=f"{title} (n = {int(table['n'].min())} tasks)", xlabel="inherited blocks (conv number)")
        tidy(ax, grid="y")
    axes[0].set(ylabel="gain over own scratch (points)", xlabel="last inherited block (conv number)")
    legend_below(axes[0], 2, title="the ancestor learned", alignment="left")
    return axes


def choice_costs(table: pd.DataFrame) -> Axes:
    """What trusting a criterion costs against the longest prefix, a row per criterion; returns the axes.

    table: columns criterion, ancestor (kind), cost, cost_low, cost_high (gain of its choice minus gain of the longest prefix,
    points, 95 % over n ancestors), n. Below zero the criterion is worse than none. Raises StudyError without rows.
    """
    table = checked(table, ("criterion", "ancestor", "cost", "cost_low", "cost_high", "n"), "the table of choices")
    names, kinds = list(dict.fromkeys(table["criterion"])), in_order(list(table["ancestor"]), ANCESTOR_LABELS)
    ax = plt.subplots(figsize=(10.5, 0.5 * len(names) + 2), layout="constrained")[1]
    for kind, shift in zip(kinds, np.linspace(-0.15, 0.15, len(kinds)) if len(kinds) > 1 else (0.0,), strict=True):
        colour = KIND_COLOURS.get(kind, MUTED)
        for row in table[table["ancestor"] == kind].to_dict("records"):
            dot(ax, names.index(row["criterion"]) + shift, pd.Series(row), "cost", colour, marker=_marker(kind))
        ax.plot([], [], _marker(kind), color=colour, markersize=7, label=ANCESTOR_LABELS.get(kind, kind))
    ax.axvline(0, color=INK, linewidth=1.2, zorder=1)
    ax.set_yticks(range(len(names)), [criterion_label(name) for name in names])
    ax.set_xlabel("its choice minus the longest prefix (points of gain)")
    ax.set_title(f"what trusting a criterion costs, 95 % over {int(table['n'].max())} ancestors")
    stripe(ax, len(names))
    legend_below(ax, 2, title="the ancestor learned", alignment="left", handletextpad=0.3)
    return ax
