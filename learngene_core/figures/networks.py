"""Drawings of networks: every block a column whose height is its width, in the units of the network itself (channels)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from .style import ACCENT, GREY, INK, PALE, PART_COLOURS, legend_below, new_axes, short

Shape = Mapping[str, Any]
"""`ConvNet.shape`: names, widths, pools (1-based numbers of blocks), n_classes, image_size, hidden."""


def shape_parameters(shape: Shape, blocks: Sequence[str] | None = None) -> int:
    """Trainable parameters predicted from a shape: of the whole network, or of the named blocks only."""
    widths = list(shape["widths"])
    # a block: 9 weights per pair of channels, and per channel a bias and the two values of batch norm
    counts = [9 * n_in * n_out + 3 * n_out for n_in, n_out in zip([3, *widths], widths, strict=False)]
    if blocks is not None:
        return sum(count for name, count in zip(shape["names"], counts, strict=True) if name in blocks)
    side = shape["image_size"] >> len(set(shape["pools"]))
    sizes = [widths[-1] * side**2, *shape.get("hidden", ()), shape["n_classes"]]
    return sum(counts) + sum((a + 1) * b for a, b in zip(sizes, sizes[1:], strict=False))


def shape_flops(shape: Shape, blocks: Sequence[str] | None = None) -> int:
    """Floating-point operations of one image's forward pass (2 per multiply-add), predicted from a shape: of the whole
    network with its head, or of the named blocks only."""
    widths = list(shape["widths"])
    pairs = zip([3, *widths], widths, sides(shape), strict=False)
    counts = dict(zip(shape["names"], (18 * n_in * n_out * side**2 for n_in, n_out, side in pairs), strict=True))
    if blocks is not None:
        return sum(counts[name] for name in blocks)
    side = shape["image_size"] >> len(set(shape["pools"]))
    sizes = [widths[-1] * side**2, *shape.get("hidden", ()), shape["n_classes"]]
    return sum(counts.values()) + sum(2 * a * b for a, b in zip(sizes, sizes[1:], strict=False))


def growth(shapes: Sequence[Shape], *, ax: Axes | None = None, most_rows: int = 6) -> Axes:
    """The growing network: a row per task, a column per block whose height is its width in channels.

    shapes: `ConvNet.shape` of the model of each task, from task 1 on. Of more than `most_rows` tasks, evenly spread ones
    are shown. Dark: the width at task 1; pale: grown in rows above; orange: new since the row above.
    """
    chosen = np.unique(np.linspace(0, len(shapes) - 1, min(len(shapes), most_rows)).round().astype(int))
    final, pitch = shapes[-1], 1.62 * max(shapes[-1]["widths"])
    x = dict(zip(final["names"], columns(final), strict=True))
    ax = new_axes(ax, 11, 1.8 + 0.56 * len(chosen))
    start = before = widths_of(shapes[0])
    for row, number in enumerate(chosen):
        shape, y = shapes[number], -row * pitch
        now = widths_of(shape)
        draw_pools(ax, shape, [x[name] for name in now], y)
        for part, widths in (("new", now if row else {}), ("grown", before), ("start", start)):
            draw_blocks(ax, [x[n] for n in widths], list(widths.values()), y, part)
        for name in now if row in (0, len(chosen) - 1) else [n for n in now if now[n] != before.get(n)]:
            _note(ax, x[name], y + now[name] / 2, str(now[name]), size=11.5)
        ax.text(x[final["names"][-1]] + 1.1, y, f"{shape_parameters(shape):,}", va="center", fontsize=13)
        before = now
    ax.text(x[final["names"][-1]] + 1.1, 0.72 * pitch, "parameters", va="center", fontsize=13)
    ax.set_yticks(-np.arange(len(chosen)) * pitch, [f"task {i + 1}" for i in chosen])
    ax.set_xticks(list(x.values()), [f"{n}\n{side} px" for n, side in zip(short(list(x)), sides(final), strict=True)])
    ax.set(ylim=((0.4 - len(chosen)) * pitch, 0.95 * pitch), xlim=(-0.8, max(x.values()) + 2.6))
    ax.set_xlabel("block (conv number), and the side of the map it works on")
    ax.set_title("Width of every block in channels, task by task")
    _bare(ax)
    parts = {"start": "width at task 1", "grown": "grown earlier", "new": "new since the row above", "pool": "pool"}
    legend_below(ax, 4, points=66, handles=[Patch(color=PART_COLOURS[k], label=text) for k, text in parts.items()])
    return ax


def networks_side_by_side(
    collective_shape: Shape, individual_shape: Shape, inherited: Sequence[str], *, ax: Axes | None = None
) -> Axes:
    """The collective above the individual rebuilt from it; inherited blocks blue in both and joined by lines.

    Shapes as `ConvNet.shape`; inherited: names of blocks that both have in equal width (else ValueError). The numbers are
    widths in channels; both networks are drawn to one scale and end at the same place.
    """
    both = [widths_of(collective_shape), widths_of(individual_shape)]
    if wrong := [name for name in inherited if both[0].get(name, -1) != both[1].get(name)]:
        raise ValueError(f"{wrong[0]!r} is not a block of equal width in both networks")
    tallest = max(*both[0].values(), *both[1].values())
    x = [columns(collective_shape), columns(individual_shape)]
    x[1] = x[1] + max(0, x[0][-1] - x[1][-1]) / 2
    bottom = max(both[1].values()) / 2
    ax, levels = new_axes(ax, 11.8, 5.2), (0.0, -1.5 * tallest - bottom)
    for name in inherited:
        ends = [x[i][list(both[i]).index(name)] for i in (0, 1)]
        heights = [levels[0] - both[0][name] / 2, levels[1] + both[1][name] / 2]
        ax.plot(ends, heights, color=PART_COLOURS["inherited"], linewidth=2, alpha=0.6, zorder=1)
    for shape, at, y, rest in zip((collective_shape, individual_shape), x, levels, ("ancestor", "fresh"), strict=True):
        _draw_network(ax, shape, at, y, inherited, rest, above=rest == "ancestor", size=11)
    right = max(x[0][-1], x[1][-1])
    ax.set(xlim=(-2.8, right + 2.1), ylim=(levels[1] - bottom - 0.55 * tallest, 1.1 * tallest), xticks=[], yticks=[])
    for at, y, name in zip(x, levels, ("collective", "individual"), strict=True):
        ax.text(at[0] - 1.2, y + 0.42 * tallest, name, ha="right", va="center", weight="bold")
    _bare(ax)
    total, light = shape_parameters(collective_shape), shape_parameters(individual_shape)
    kept = shape_parameters(individual_shape, inherited)
    ax.set_title(
        f"{total:,} parameters in the collective, {light:,} in the individual,\n"
        f"of which {kept:,} ({100 * kept / light:.0f} %) are inherited"
    )
    parts = {
        "ancestor": "stays in the collective",
        "inherited": "inherited",
        "fresh": "fresh",
        "pool": "pool",
        "head": "head",
    }
    handles = [Patch(facecolor=PART_COLOURS[k], edgecolor=GREY, label=text) for k, text in parts.items()]
    legend_below(ax, 5, points=12, handles=handles)
    return ax


def marked_network(shape: Shape, chosen: Sequence[str] = (), *, ax: Axes | None = None) -> Axes:
    """One network with the blocks `chosen` marked; below each block its parameters' share of all blocks' in percent.

    Shape as `ConvNet.shape`. Heights are widths in channels, the numbers above them.
    """
    x, tallest = columns(shape), max(shape["widths"])
    ax = new_axes(ax, 11, 2.6)
    _draw_network(ax, shape, x, 0.0, (), "ancestor", above=True)
    whole = sum(shape_parameters(shape, [name]) for name in shape["names"])
    for name, at in zip(shape["names"], x, strict=True):
        share = 100 * shape_parameters(shape, [name]) / whole
        _note(ax, at, -0.5 * tallest, f"{share:.1f} %" if share < 10 else f"{share:.0f} %", side=-1)
    ax.text(x[0] - 1.2, -0.56 * tallest, "parameters", ha="right", va="top", fontsize=9, color=INK)
    ax.set(xlim=(-2.6, x[-1] + 2.1), ylim=(-0.92 * tallest, 1.2 * tallest), xticks=[], yticks=[])
    _bare(ax)
    mark_blocks(ax, shape, chosen)
    return ax


def mark_blocks(ax: Axes, shape: Shape, chosen: Sequence[str]) -> list[Artist]:
    """Draw neighbouring blocks of `marked_network` in blue, with a frame around them; returns what was added."""
    inside = [
        (at, width)
        for at, (name, width) in zip(columns(shape), widths_of(shape).items(), strict=True)
        if name in chosen
    ]
    if not inside:
        return []
    x, widths = np.array(inside, float).T
    bars = ax.bar(x, widths, 0.74, -widths / 2, color=PART_COLOURS["inherited"], zorder=3.5, label="_inherited")
    tallest = max(shape["widths"])
    look = {
        "fill": False,
        "edgecolor": ACCENT,
        "linewidth": 2.5,
        "zorder": 4,
        "joinstyle": "round",
        "label": "_chosen",
    }
    corner = (x[0] - 0.48, -0.86 * tallest)
    return [*bars, ax.add_patch(Rectangle(corner, x[-1] - x[0] + 0.96, 2.0 * tallest, **look))]


def columns(shape: Shape) -> np.ndarray:
    """Where the blocks stand, left to right (l,): one apart, and a little more after a pool."""
    after = np.cumsum([0, *(i in shape["pools"] for i in range(1, len(shape["names"])))])
    return np.arange(len(shape["names"])) + 0.42 * after


def sides(shape: Shape) -> list[int]:
    """Side in pixels of the map that each block works on."""
    return [shape["image_size"] >> sum(p < i for p in shape["pools"]) for i in range(1, len(shape["names"]) + 1)]


def widths_of(shape: Shape) -> dict[str, int]:
    """Block name -> width in channels."""
    return dict(zip(shape["names"], shape["widths"], strict=True))


def draw_blocks(
    ax: Axes, x: Sequence[float], widths: Sequence[float], y: float, part: str, thick: float = 0.74
) -> None:
    """Columns centred at height `y`, as tall as they are wide in channels."""
    edge = {"edgecolor": GREY} if part == "fresh" else {"linewidth": 0}
    bottom = y - np.array(widths, float) / 2
    ax.bar(x, widths, thick, bottom, color=PART_COLOURS[part], zorder=3, label=f"_{part}", **edge)


def draw_pools(ax: Axes, shape: Shape, x: Sequence[float], y: float) -> None:
    """A slim slab after every block with a pool, and the line along which the picture travels."""
    ax.add_line(Line2D([x[0] - 0.6, x[-1] + 0.6], [y, y], color=PALE, linewidth=1.2, zorder=1))
    at = [i - 1 for i in shape["pools"]]
    heights = np.array([shape["widths"][i] for i in at], float)
    ax.bar(
        [x[i] + 0.5 for i in at], heights, 0.13, y - heights / 2, color=PART_COLOURS["pool"], zorder=3, label="_pool"
    )


def _draw_network(
    ax: Axes, shape: Shape, x: np.ndarray, y: float, inherited: Sequence[str], rest: str, above: bool, size: float = 9
) -> None:
    """One network with its picture at the left and its head at the right; names and widths above or below the blocks."""
    draw_pools(ax, shape, x, y)
    ax.add_line(Line2D([x[0] - 1.1, x[-1] + 1.4], [y, y], color=PALE, linewidth=1.2, zorder=1))
    side = 1 if above else -1
    for name, at, width in zip(shape["names"], x, shape["widths"], strict=True):
        part = "inherited" if name in inherited else rest
        draw_blocks(ax, [at], [width], y, part)
        text = f"{name}\n{width}" if above else f"{width}\n{name}"
        colour = PART_COLOURS["inherited"] if name in inherited else INK
        _note(ax, at, y + side * width / 2, text, side, colour, size)
    outputs = shape["n_classes"]
    draw_blocks(ax, [x[-1] + 1.4], [outputs], y, "head")
    _note(ax, x[-1] + 1.4, y + side * outputs / 2, f"{outputs}\nclasses", side, size=size)
    ax.text(x[0] - 1.2, y, f"image\n{shape['image_size']} px", ha="right", va="center", fontsize=size + 1)


def _note(ax: Axes, x: float, y: float, text: str, side: int = 1, colour: str = INK, size: float = 9) -> None:
    """Text a little above (side 1) or below (-1) a column's end."""
    place = {"xytext": (0, 2 * side), "textcoords": "offset points", "va": "bottom" if side > 0 else "top"}
    ax.annotate(text, (x, y), ha="center", fontsize=size, color=colour, **place)


def _bare(ax: Axes) -> None:
    """No frame and no tick marks: the drawing speaks for itself."""
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
