"""The whole paradigm in one picture: a collective grows over tasks, a criterion reads its layers, the chosen blocks found a light
individual that learns a few-shot task. Drawn from shapes and scores, so that it tells the truth of any run; no torch.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch, PathPatch, Rectangle
from matplotlib.path import Path

from ..criteria import best_block
from .networks import Shape, columns, draw_blocks, draw_pools, shape_parameters, widths_of
from .style import FAINT, GREY, GROUP_COLOURS, INK, MUTED, PALE, PART_COLOURS, block_text, new_axes
from .words import SCORE_LABELS

BLUE = PART_COLOURS["inherited"]
LEFT, RIGHT = -8.3, 4.0  # room for words at the left and right of the networks, in columns
TALL, GAP = 1.6, 0.56  # height of the widest block, and the space between rows, in the same unit
HEAD = 0.22  # the least height of a head
LINES = 0.36  # half of what the two lines of words beside a small network need, with the space between rows
PANEL = 0.66  # half the height of the criterion's panel
WIDE = 0.47  # inches per column
KEY = (
    ("start", "block: height is its channels"),
    ("grown", "grown since task 1"),
    ("inherited", "inherited"),
    ("fresh", "fresh"),
    ("pool", "pool"),
    ("head", "head"),
)


def paradigm(
    shapes: Sequence[Shape],
    individual: Shape,
    inherited: Sequence[str],
    scores: pd.DataFrame,
    *,
    shots: int,
    ax: Axes | None = None,
) -> Axes:
    """Collective growing over tasks, criterion, learngene and individual, from the top down, blocks above each other.

    shapes: `ConvNet.shape` after every source task; the first, a middle and the last are drawn. individual: the shape of the
    light individual; inherited: names of blocks that both networks have in equal width (else ValueError); scores: one
    criterion (criterion, layer, score, inherit; with a column null, the null is drawn too), with a row per block of the last
    shape. All blocks are drawn to one scale. A block of the individual is below its origin where there is room.
    """
    final = shapes[-1]
    both = widths_of(final), widths_of(individual)
    if wrong := [name for name in inherited if both[0].get(name, -1) != both[1].get(name)]:
        raise ValueError(f"{wrong[0]!r} is not a block of equal width in both networks")
    if list(scores["layer"]) != list(final["names"]):
        raise ValueError("scores needs one row per block of the last network, in order")
    at = dict(zip(final["names"], columns(final), strict=True))
    right = max(at.values())
    scale = TALL / max(*both[0].values(), *both[1].values())
    own, ax = ax is None, new_axes(ax)
    y = _collectives(ax, shapes, at, scale, inherited)
    bottom = y - scale * max(both[0].values()) / 2
    line, under = bottom - GAP - PANEL, _under(individual, inherited, at)
    level = line - PANEL - 2.4 * GAP - TALL / 2
    _ribbon(ax, at, at, inherited, (y - scale * max(both[0][n] for n in inherited) / 2, line - PANEL))
    _ribbon(ax, at, under, inherited, (line - PANEL, level + scale * max(both[1][n] for n in inherited) / 2))
    _criterion(ax, scores, at, line, inherited)
    _individual(ax, individual, under, level, scale, inherited, shots)
    narrow = WIDE * (right + RIGHT - LEFT) < 10
    ax.set(xlim=(LEFT, right + RIGHT), ylim=(level - TALL / 2 - (1.9 if narrow else 1.3), 0.62), aspect="equal")
    ax.set_axis_off()
    _key(ax, shapes, 3 if narrow else len(KEY))
    if own:
        ax.figure.set_size_inches(WIDE * np.ptp(ax.get_xlim()), WIDE * np.ptp(ax.get_ylim()))
    return ax


def _key(ax: Axes, shapes: Sequence[Shape], most: int) -> None:
    """What the colours mean, at most `most` in a line, below the drawing."""
    key = [(part, words) for part, words in KEY if part != "grown" or _grew(shapes)]
    handles = [Patch(facecolor=PART_COLOURS[k], edgecolor=GREY if k == "fresh" else "none", label=v) for k, v in key]
    look = {"fontsize": 13, "handlelength": 1.1, "columnspacing": 1.2, "borderaxespad": 0, "labelcolor": MUTED}
    ax.legend(handles=handles, loc="lower left", ncols=min(most, len(key)), bbox_to_anchor=(0.0, 0.0), **look)


def _grew(shapes: Sequence[Shape]) -> bool:
    """Whether any block was widened or inserted over the tasks."""
    return widths_of(shapes[0]) != widths_of(shapes[-1])


def _collectives(
    ax: Axes, shapes: Sequence[Shape], at: Mapping[str, float], scale: float, inherited: Sequence[str]
) -> float:
    """The network after the first, a middle and the last task; returns the height of the last one's middle."""
    numbers = sorted({0, (len(shapes) - 1) // 2, len(shapes) - 1})
    start, y = widths_of(shapes[0]), 0.35
    for number in numbers:
        shape, last = shapes[number], number == numbers[-1]
        now = widths_of(shape)
        half = max(scale * max(now.values()) / 2, LINES)
        y -= half + (GAP if number else 0.2)
        _network(ax, shape, [at[name] for name in now], y, scale)
        parts = [("grown", now), ("start", start), *([("inherited", now)] if last else [])]
        for part, widths in parts:
            names = [name for name in widths if part != "inherited" or name in inherited]
            draw_blocks(ax, [at[n] for n in names], [scale * widths[n] for n in names], y, part)
        _task(ax, -1.5, y, "base", 3, shapes[0]["n_classes"])
        ax.text(-2.15, y, f"task {number + 1}", ha="right", va="center", fontsize=14, color=INK)
        words = f"{shape_parameters(shape):,}\nparameters"
        ax.text(max(at.values()) + 1.6, y, words, va="center", fontsize=13, color=MUTED, linespacing=1.25)
        if number != numbers[-1] and numbers[numbers.index(number) + 1] > number + 1:
            ax.text(-2.15, y - half - GAP * 0.62, "⋮", ha="right", va="center", fontsize=14, color=MUTED)
        y -= half
    words = f"One collective network learns {len(shapes)} task{'s in turn' if len(shapes) > 1 else ''}."
    words += " On the way its blocks are widened (pale)." if _grew(shapes) else ""
    _step(ax, 1, 0.12, "Grow" if _grew(shapes) else "Learn", words)
    return y + half


def _network(ax: Axes, shape: Shape, x: Sequence[float], y: float, scale: float) -> None:
    """The line along which a picture travels, and the pools on it."""
    thinner = {**shape, "widths": [scale * width for width in shape["widths"]]}
    draw_pools(ax, thinner, x, y)
    ax.add_line(Line2D([-0.95, x[-1] + 1.1], [y, y], color=PALE, linewidth=1.2, zorder=1))
    draw_blocks(ax, [x[-1] + 1.23], [max(HEAD, scale * shape["n_classes"])], y, "head", 0.26)


def _task(ax: Axes, x: float, y: float, group: str, images: int, n_classes: int, side: float = 0.125) -> None:
    """The images of a task as small tiles, centred at (x, y): a row per class, of at most eight."""
    rows, pitch = min(n_classes, 8), 1.26 * side
    for i in range(rows):
        look = {"color": GROUP_COLOURS[group], "alpha": 0.35 + 0.65 * i / rows, "linewidth": 0}
        for j in range(images):
            ax.add_patch(Rectangle((x + (j - images / 2) * pitch, y + (i - rows / 2) * pitch), side, side, **look))


def _criterion(
    ax: Axes, scores: pd.DataFrame, at: Mapping[str, float], y: float, inherited: Sequence[str], half: float = 0.46
) -> None:
    """The score of every block as a curve within y +- half, its null dashed where there is one; the choice in blue."""
    x = np.array([at[name] for name in scores["layer"]])
    score = scores["score"].to_numpy(float)
    null = scores["null"].to_numpy(float) if "null" in scores else np.full_like(score, np.nan)
    seen = [value for value in (*score, *null) if np.isfinite(value)] or [0.0]
    low, high = min(seen), max(seen)

    def place(values: np.ndarray) -> np.ndarray:
        return y - half + 2 * half * (values - low) / ((high - low) or 1)

    ax.add_patch(Rectangle((-0.6, y - PANEL), x[-1] + 1.2, 2 * PANEL, facecolor=FAINT, edgecolor="none", zorder=0))
    ax.plot(x, place(null), color=GREY, linestyle=(0, (4, 2)), linewidth=1.5, zorder=3)
    ax.plot(x, place(score), color=PART_COLOURS["start"], linewidth=2, zorder=4)
    colours = [BLUE if name in inherited else PART_COLOURS["start"] for name in scores["layer"]]
    ax.scatter(x, place(score), s=52, color=colours, edgecolor="white", linewidth=1.2, zorder=5)
    for name, where in at.items():
        colour, weight = (BLUE, "bold") if name in inherited else (MUTED, "normal")
        text = name.removeprefix("conv")
        ax.text(where, y - PANEL - 0.09, text, ha="center", va="top", fontsize=13, color=colour, weight=weight)
    ends = np.nan_to_num([place(null)[-1], place(score)[-1]], nan=y)
    if "null" in scores:
        if abs(ends[0] - ends[1]) < 0.8:  # side by side, in their order
            ends = ends.mean() + np.array([0.42, -0.42]) * (1 if ends[0] >= ends[1] else -1)
        ax.text(x[-1] + 0.85, ends[0], "untrained\nnetworks", va="center", fontsize=13, color=MUTED)
    ax.text(x[-1] + 0.85, ends[1], "collective", va="center", fontsize=13, color=PART_COLOURS["start"])
    name = str(scores["criterion"].iloc[0])
    what = SCORE_LABELS.get(name, name.replace("_", " "))
    unit = {"ha": "right", "va": "center", "fontsize": 13, "color": MUTED, "linespacing": 1.15}
    ax.text(-0.75, y, textwrap.fill(what, 14), **unit)
    words = f"A criterion reads the gradients. {_choice(scores, inherited)} {block_text(inherited)}."
    _step(ax, 2, y + 0.4, "Choose", words)


def _choice(scores: pd.DataFrame, inherited: Sequence[str]) -> str:
    """ "Lowest in" where the criterion itself chooses these blocks; "Inherited here:" where somebody or something else did."""
    with contextlib.suppress(ValueError):
        if best_block(scores, len(inherited)) == tuple(inherited):
            return "Lowest in" if scores["inherit"].iloc[0] == "low" else "Highest in"
    return "Inherited here:"


def _individual(
    ax: Axes, shape: Shape, at: Mapping[str, float], y: float, scale: float, inherited: Sequence[str], shots: int
) -> None:
    """The light individual: fresh blocks, inherited blocks, a fresh head, and the few images that it learns from."""
    widths, x = widths_of(shape), list(at.values())
    draw_pools(ax, {**shape, "widths": [scale * width for width in widths.values()]}, x, y)
    ax.add_line(Line2D([x[0] - 0.9, x[-1] + 1.4], [y, y], color=PALE, linewidth=1.2, zorder=1))
    for name, width in widths.items():
        draw_blocks(ax, [at[name]], [scale * width], y, "inherited" if name in inherited else "fresh")
    ways = shape["n_classes"]
    draw_blocks(ax, [x[-1] + 1.23], [max(HEAD, scale * ways)], y, "fresh", 0.26)
    for part, words in (("fresh", "fresh blocks"), ("inherited", "learngene")):
        place = [at[n] for n in widths if (n in inherited) == (part == "inherited")]
        if place:
            colour = BLUE if part == "inherited" else MUTED
            weight = "bold" if part == "inherited" else "normal"
            bottom = y - scale * max(widths.values()) / 2 - 0.12
            ax.text(np.mean(place), bottom, words, ha="center", va="top", fontsize=13, color=colour, weight=weight)
    ax.text(x[-1] + 1.6, y, f"fresh head,\n{ways} classes", va="center", fontsize=13, color=MUTED, linespacing=1.25)
    _task(ax, x[0] - 1.5, y, "novel", 4, ways)
    ax.text(x[0] - 2.1, y, f"{ways} new classes,\n{shots} images each", ha="right", va="center", fontsize=13, color=INK)
    kept, all_ = shape_parameters(shape, inherited), shape_parameters(shape)
    words = f"{all_:,} parameters, {100 * kept / all_:.0f}\N{NO-BREAK SPACE}% inherited, learn a few-shot task."
    _step(ax, 3, y + TALL / 2 - 0.1, "Inherit", words)


def _under(shape: Shape, inherited: Sequence[str], at: Mapping[str, float]) -> dict[str, float]:
    """Where the blocks of the individual stand: the inherited ones under their origins, moved where there is no room."""
    x = dict(zip(shape["names"], columns(shape), strict=True))
    middle = [np.mean([place[name] for name in inherited]) for place in (at, x)]
    shift = np.clip(middle[0] - middle[1], 1.6, max(1.6, max(at.values()) - max(x.values())))
    return {name: where + shift for name, where in x.items()}


def _ribbon(
    ax: Axes,
    above: Mapping[str, float],
    below: Mapping[str, float],
    inherited: Sequence[str],
    ends: tuple[float, float],
) -> None:
    """A pale band from the chosen blocks above to their copies below."""
    a, b = ([place[n] for n in (inherited[0], inherited[-1])] for place in (above, below))
    (top, low), middle = ends, sum(ends) / 2
    left, right = (a[0] - 0.37, b[0] - 0.37), (a[1] + 0.37, b[1] + 0.37)
    points = [(left[0], top), (left[0], middle), (left[1], middle), (left[1], low),
              (right[1], low), (right[1], middle), (right[0], middle), (right[0], top), (left[0], top)]  # fmt: skip
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    ax.add_patch(PathPatch(Path(points, codes), facecolor=BLUE, alpha=0.16, linewidth=0, zorder=0.5))


def _step(ax: Axes, number: int, y: float, title: str, words: str) -> None:
    """A numbered heading with a sentence, at the left."""
    x = LEFT + 0.45
    ax.add_patch(Circle((x, y), 0.33, color=PART_COLOURS["start"], linewidth=0))
    ax.text(x, y, str(number), ha="center", va="center_baseline", color="white", weight="bold", fontsize=14)
    ax.text(x + 0.55, y, title, va="center_baseline", weight="bold", fontsize=16, color=INK)
    ax.text(
        x - 0.25,
        y - 0.45,
        textwrap.fill(words, 22, break_on_hyphens=False),
        va="top",
        fontsize=13,
        color=MUTED,
        linespacing=1.2,
    )
