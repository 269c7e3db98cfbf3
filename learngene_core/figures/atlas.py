"""Figures of the atlas: what inheriting each block gains, as a map, by position, by parameters, and against a criterion.

A block is written [first..last] with numbers from 1; gains are accuracy minus that of scratch on the same target task,
initial weights and batches, in percentage points. A table goes in, matplotlib Axes come out; no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ..analysis.blocks import predicted
from ..analysis.ranks import rank_correlation
from ..errors import StudyError
from .style import (
    COLLECTIVE,
    GREY,
    INK,
    MARKS,
    MUTED,
    PALE,
    diverging,
    layer_colours,
    legend_below,
    log_where_wide,
    new_axes,
    thin,
    tidy,
)
from .tables import Block, block_name, checked, signed, with_shots
from .words import SCORE_LABELS, criterion_label

POINTS = "gain over scratch (points)"
UNSURE, BLANK = GREY, PALE
GAINS = {  # whose gains: their columns, the tasks in words, what an interval is
    "novel": ("gain", "band_low", "band_high", "n_tasks", "target tasks", "simultaneous band"),
    "pseudo": ("pseudo_gain", "pseudo_low", "pseudo_high", "pseudo_n", "pseudo-tasks", "interval"),
}


def ends(n_layers: int, length: int) -> dict[str, Block]:
    """The first and the last `length` of `n_layers` blocks, as marks for the figures here."""
    if not 1 <= length <= n_layers:
        raise ValueError(f"length = {length}, but there are {n_layers} layers")
    return {f"first {length}": (1, length), f"last {length}": (n_layers - length + 1, n_layers)}


def choices_of(selection: pd.DataFrame, wanted: Mapping[str, str], *, shots: int | None = None) -> dict[str, Block]:
    """What criteria choose, as marks: `wanted` is criterion -> scope ("blocks of length 3", "within budget").

    selection: selection.csv. Raises ValueError for a pair that it does not hold; one without a choice is left out.
    """
    rows = with_shots(checked(selection, ("criterion", "scope", "first", "last"), "selection.csv"), shots)
    rows = rows.set_index(["criterion", "scope"])
    if missing := [pair for pair in wanted.items() if pair not in rows.index]:
        raise ValueError(
            f"no {missing[0]} in selection.csv; there are {', '.join(f'{c} ({s})' for c, s in rows.index)}"
        )
    found = {name: rows.loc[(name, scope), ["first", "last"]] for name, scope in wanted.items()}
    return {name: (int(block["first"]), int(block["last"])) for name, block in found.items() if block.notna().all()}


def atlas_map(
    atlas: pd.DataFrame,
    *,
    gains: str = "novel",
    shots: int | None = None,
    marks: Mapping[str, Block] | None = None,
    scale: float | None = None,
    half_widths: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The gain of every block as a triangle: first block down, last block across; top row prefixes, right column suffixes.

    atlas: atlas.csv. gains: "novel" (target tasks, simultaneous bands) or "pseudo" (pseudo-tasks, pointwise intervals).
    Cells whose band contains 0 (or that have none) are hatched, blocks that were not computed stay empty.
    marks: name -> (first, last), framed; frames of one block stand inside each other. scale: points at the ends of the
    colours, which are symmetric about 0; by default the largest gain. half_widths: half of the band below each gain, by
    default up to 8 layers. Raises ValueError for other `gains` or shots, a mark that is no block, or a scale smaller than a
    gain; StudyError where nothing was computed.
    """
    table, low, high, title = gains_of(atlas, gains, shots)
    n = int(max([atlas["last"].max(), *(last for _, last in (marks or {}).values())]))
    half_widths = n <= 8 if half_widths is None else half_widths
    ax = new_axes(ax, 9, 6.5)
    value, bottom, top = (square(table, column, n) for column in (GAINS[gains][0], low, high))
    reach = scale or float(np.nanmax(np.abs(value))) or 1.0
    if np.nanmax(np.abs(value)) > reach:
        raise ValueError(f"scale = {scale} hides gains; the largest is {np.nanmax(np.abs(value)):.1f} points")
    mesh = ax.pcolormesh(
        np.ma.masked_invalid(value), cmap=diverging(), norm=Normalize(-reach, reach), edgecolors="white", linewidth=1
    )
    unsure = ~np.isnan(value) & ~((bottom > 0) | (top < 0))
    keys = _hatch(ax, mesh, value, unsure, half_widths, GAINS[gains][5]) + _blanks(ax, value)
    _numbers(ax, mesh, value, (top - bottom) / 2 if half_widths else None)
    frames = frame_blocks(ax, value, marks or {})
    _map_axes(ax, n, title + (f", ± 95 % {GAINS[gains][5]}" if half_widths else ""))
    _key(ax, mesh, frames + keys, n, (np.nanmin(value), np.nanmax(value)))
    return ax


def gains_of(atlas: pd.DataFrame, gains: str, shots: int | None) -> tuple[pd.DataFrame, str, str, str]:
    """The computed rows of one number of shots, the names of the limits' columns, and a title. Errors as `atlas_map`."""
    if gains not in GAINS:
        raise ValueError(f"gains is 'novel' or 'pseudo', not {gains!r}")
    column, low, high, count, tasks, _ = GAINS[gains]
    table = with_shots(checked(atlas, ("first", "last", "shots", column, low, high), "atlas.csv"), shots)
    table = checked(table[table[column].notna()], (), f"atlas.csv, {tasks},")
    number = table[count].to_numpy(int) if count in table else np.zeros(1, int)
    several = f"{number.min()} to {number.max()}" if number.min() < number.max() else str(number.max())
    return table, low, high, f"{table['shots'].iloc[0]} shots" + (f", n = {several} {tasks}" if number.any() else "")


def square(table: pd.DataFrame, column: str, n: int) -> np.ndarray:
    """A column as (n, n): first block - 1, last block - 1; NaN where there is no row."""
    square = np.full((n, n), np.nan)
    square[table["first"].to_numpy(int) - 1, table["last"].to_numpy(int) - 1] = table[column]
    return square


def _blanks(ax: Axes, value: np.ndarray) -> list[Patch]:
    """An empty frame where a block was not computed; returns what the legend says of it, if there is one."""
    missing = np.argwhere(np.isnan(value) & (np.arange(len(value))[:, None] <= np.arange(len(value))))
    look = {"fill": False, "edgecolor": BLANK, "linewidth": 1}
    for i, j in missing:
        ax.add_patch(Rectangle((j + 0.05, i + 0.05), 0.9, 0.9, label="_blank", **look))
    return [Patch(label="not computed", **look)] if len(missing) else []


def _hatch(
    ax: Axes, mesh: object, value: np.ndarray, unsure: np.ndarray, half_widths: bool, limits: str
) -> list[Patch]:
    """Hatch the cells of `unsure` (n, n), all but their middle, where the numbers stand; returns the legend's entry, if any."""
    low, high = (0.22, 0.78) if half_widths else (0.28, 0.72)
    cells = [[(j, i), (j + 1, i), (j + 1, i + 1), (j, i + 1)] for i, j in np.argwhere(unsure)]
    middles = [
        [(j + 0.12, i + low), (j + 0.88, i + low), (j + 0.88, i + high), (j + 0.12, i + high)]
        for i, j in np.argwhere(unsure)
    ]
    look = {"edgecolor": UNSURE, "hatch": "////", "linewidth": 0}
    ax.add_collection(PolyCollection(cells, facecolor="none", alpha=0.5, **look))
    ax.add_collection(PolyCollection(middles, facecolors=mesh.cmap(mesh.norm(value[unsure])), linewidths=0))
    return [Patch(facecolor="white", label=f"95 % {limits} contains 0", **look)] if unsure.any() else []


def _numbers(ax: Axes, mesh: object, value: np.ndarray, half: np.ndarray | None) -> None:
    """The gain, and below it its half-width where `half` is given, in every computed cell that has room for it."""
    n, box = len(value), ax.get_window_extent()
    width, height = (side / n * 72 / ax.figure.dpi for side in (box.width, box.height))  # points
    digits, share = (1, 0.28) if width * 0.27 >= 7.5 else (0, 0.38)  # of the width for a letter's height
    size = min(width * share, height * (0.3 if half is not None else 0.45), 13)
    if size < 5.5:
        return
    for i, j in np.argwhere(~np.isnan(value)):
        cell = mesh.cmap(mesh.norm(value[i, j]))
        colour = INK if np.dot(cell[:3], (0.2126, 0.7152, 0.0722)) > 0.5 else "white"
        both = half is not None and np.isfinite(half[i, j])
        place = {"ha": "center", "color": colour, "clip_on": True, "in_layout": False}
        where, up = ("bottom", 0.53) if both else ("center_baseline", 0.5)
        ax.text(j + 0.5, i + up, signed(value[i, j], digits), va=where, fontsize=size, **place)
        if both:
            ax.text(j + 0.5, i + 0.56, f"±{half[i, j]:.{digits}f}", va="top", fontsize=0.8 * size, **place)


def frame_blocks(ax: Axes, value: np.ndarray, marks: Mapping[str, Block]) -> list[Rectangle]:
    """A frame around each marked block of a map; the k-th of one block stands within the others. Returns them, labelled.

    value: (n, n) gains, as `square` gives them. Raises ValueError for a mark that is no block.
    """
    taken: dict[Block, int] = {}
    frames, box = [], ax.get_window_extent()
    across, down = (len(value) * ax.figure.dpi / 72 / side for side in (box.width, box.height))  # of a cell per point
    for k, (name, (first, last)) in enumerate(marks.items()):
        if not 1 <= first <= last:
            raise ValueError(f"mark {name!r} is no block: first {first}, last {last}")
        inside = 1.7 + 3.6 * taken.setdefault((first, last), 0)  # points
        taken[first, last] += 1
        colour, dashes = MARKS[k % len(MARKS)]
        words = f"{criterion_label(name)}: {block_name((first, last))}"
        words += " (not computed)" if np.isnan(value[first - 1, last - 1]) else ""
        corner, size = (last - 1 + inside * across, first - 1 + inside * down), 2 * inside
        frame = Rectangle(corner, 1 - size * across, 1 - size * down, fill=False, edgecolor=colour, linewidth=2.3,
                          linestyle=dashes, label=words, zorder=4)  # fmt: skip
        frame.set_path_effects([withStroke(linewidth=3.6, foreground="white")])
        frames.append(ax.add_patch(frame))
    return frames


def _map_axes(ax: Axes, n: int, title: str) -> None:
    """Block numbers at the top and right, where the triangle has its long edges; no frame around the empty half."""
    ax.set(xlim=(0, n), ylim=(n, 0))
    ax.xaxis.tick_top()
    ax.yaxis.tick_right()
    ax.xaxis.set_label_position("top")
    ax.yaxis.set_label_position("right")
    ax.set_xticks(np.arange(n) + 0.5, thin(range(1, n + 1), 26))
    ax.set_yticks(np.arange(n) + 0.5, thin(range(1, n + 1), 26))
    ax.set_xlabel("last block inherited (conv number)", labelpad=8)
    ax.set_ylabel("first block inherited (conv number)", labelpad=10)
    ax.set_title(title)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _key(ax: Axes, mesh: object, frames: list[Patch], n: int, seen: tuple[float, float]) -> None:
    """Colour bar and legend, in the half of the square that holds no blocks; with few blocks beside and below it."""
    if n < 7:
        bar = ax.figure.colorbar(mesh, ax=ax, label=POINTS, location="left", pad=0.02)
        bar.ax.set_ylim(min(seen[0], 0), max(seen[1], 0))
    else:
        inset = ax.inset_axes([0.03, 0.48, 0.32, 0.03])
        bar = ax.figure.colorbar(mesh, cax=inset, orientation="horizontal")
        bar.set_label(POINTS, fontsize=13)
        bar.ax.set_xlim(min(seen[0], 0), max(seen[1], 0))  # only what occurs; the colours stay symmetric about 0
        bar.ax.xaxis.set_major_locator(MaxNLocator(5))
    bar.outline.set_visible(False)
    if frames and n < 7:
        legend_below(ax, 2, points=16, handles=frames)
    elif frames:
        ax.legend(handles=frames, loc="lower left", bbox_to_anchor=(0, 0), borderaxespad=0, handlelength=1.5,
                  fontsize=13, labelspacing=0.3)  # fmt: skip


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
    axes = plt.subplots(1, 2, figsize=(12.5, 5.6), layout="constrained")[1]
    gain_by_position(atlas, lengths=lengths, shots=shots, ax=axes[0])
    gain_by_parameters(atlas, budget=budget, shots=shots, marks=marks, ax=axes[1])
    return axes


def gain_by_position(
    atlas: pd.DataFrame, *, lengths: Sequence[int] | None = None, shots: int | None = None, ax: Axes | None = None
) -> Axes:
    """Gain of blocks of equal length over the place of their middle, each with its own 95 % interval.

    lengths: by default 1, 3 and three quarters of the layers, or whatever was computed whole. Only neighbouring places are
    joined. The intervals are pointwise: of many blocks one in twenty misses its gain (the map has the simultaneous band).
    Raises ValueError for a length of which nothing was computed.
    """
    checked(atlas, ("gain_low", "gain_high"), "atlas.csv")
    table, _, _, title = gains_of(atlas, "novel", shots)
    size = table["last"] - table["first"] + 1
    n, counts = int(table["last"].max()), size.value_counts()
    if lengths is None:
        whole = [k for k in sorted(counts.index) if k < n - 1 and counts[k] == n - k + 1]
        lengths = [k for k in whole if k in (1, 3, 3 * n // 4)] or whole[:3] or sorted(counts.index)[:3]
    if missing := set(lengths) - set(counts.index):
        raise ValueError(f"no block of length {min(missing)} was computed; there are {sorted(counts.index)}")
    ax = new_axes(ax, 9, 4.8)
    for k, (length, colour) in enumerate(layer_colours(list(lengths)).items()):
        part = table[size == length].set_index("first").reindex(range(1, n - length + 2))
        x = part.index + (length - 1) / 2 + 0.12 * (k - (len(lengths) - 1) / 2)  # beside each other
        ax.vlines(x, part["gain_low"], part["gain_high"], color=colour, linewidth=1.6, alpha=0.75)
        ax.plot(x, part["gain"], color=colour, marker="o", markersize=6, label=f"{length} block" + "s" * (length > 1))
    ax.axhline(0, color=INK, linewidth=1.2, zorder=1)
    ax.set_xticks(range(1, n + 1))
    ax.set(xlabel="middle of the block (conv number)", ylabel=POINTS, title=title, xlim=(0.5, n + 0.5))
    tidy(ax, grid="y")
    legend_below(ax, 4, title="inherited blocks, with 95 % intervals")
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
    ax = new_axes(ax, 10.5, 5.2)
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
                       linewidths=2.4, zorder=3, label=f"{criterion_label(name)}: {block_name(block)}")  # fmt: skip


def _name_front(ax: Axes, front: pd.DataFrame) -> None:
    """The blocks of the front, from the best down, each where the name above it leaves room."""
    last = (np.inf, np.inf)
    for row in front[::-1].itertuples():
        x, y = ax.transData.transform((row.share, row.gain)) * 72 / ax.figure.dpi
        if last[0] - x > 30 or last[1] - y > 15:
            ax.annotate(block_name((row.first, row.last)), (row.share, row.gain), (-6, 5), textcoords="offset points",
                        ha="right", fontsize=13, color=COLLECTIVE,
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
    name = SCORE_LABELS.get(criterion, criterion_label(criterion))
    if inherit == "low":
        ax.invert_xaxis()
    way = "axis reversed: it inherits low scores" if inherit == "low" else "it inherits high scores"
    ax.set(xlabel=f"{name}, mean over the block\n({way})", ylabel=POINTS)
    found = "cannot rank" if np.isnan(rho) else f"Spearman {signed(rho, 2)}"
    ax.set_title(f"{criterion_label(criterion)}: {found} over {len(table)} blocks\n({title})")
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
