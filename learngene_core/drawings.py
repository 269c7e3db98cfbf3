"""Pictures and drawings: images, episodes, the division, the task sequence, and networks as rows of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from .style import (
    GROUP_COLOURS,
    GROUP_LABELS,
    PART_COLOURS,
    in_order,
    layer_colours,
    legend_below,
    montage,
    new_axes,
    thin,
    tidy,
)

Shape = Mapping[str, Any]
"""`ConvNet.shape`: names, widths, pools (1-based numbers of blocks), n_classes, image_size, hidden."""

GAP = 2  # pixels between pictures


def image_rows(
    pixels: ArrayLike, names: Sequence[str], *, ax: Axes | None = None, xlabel: str = "image of the class (number)"
) -> Axes:
    """Pictures in rows, one row per class with its name. pixels: (rows, k, 3, h, w) uint8; names: (rows,)."""
    pixels = np.asarray(pixels)
    if pixels.ndim != 5 or len(names) != len(pixels):
        raise ValueError(f"needs pixels (rows, k, 3, h, w) and a name per row, not {pixels.shape}, {len(names)} names")
    rows, k, _, height, width = pixels.shape
    ax = new_axes(ax, 10, min(12, 0.8 + 8.0 / k * rows * height / width))
    ax.imshow(montage(pixels, GAP), interpolation="nearest")
    ax.set_yticks(np.arange(rows) * (height + GAP) + height / 2, names)
    ax.set_xticks(np.arange(k) * (width + GAP) + width / 2, thin(range(1, k + 1)))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(xlabel)
    return ax


def episode(support: ArrayLike, query: ArrayLike, classes: Sequence[str]) -> np.ndarray:
    """A few-shot episode as two blocks of pictures, a row per class; returns the two axes (2,).

    support: (way, shots, 3, h, w) uint8, all of it shown; query: (way, k, 3, h, w), the first few of each class.
    """
    support, query = np.asarray(support), np.asarray(query)
    columns = [support.shape[1], query.shape[1]]
    picture = min(0.72, 8.6 / sum(columns))  # inches
    figure, axes = plt.subplots(
        1,
        2,
        figsize=(10.5, max(2.6, 1.5 + picture * len(classes) * support.shape[3] / support.shape[4])),
        width_ratios=columns,
        layout="constrained",
    )
    figure.get_layout_engine().set(wspace=0.04)
    for ax, pixels, text in zip(axes, (support, query), ("support: labelled", "query: to classify"), strict=True):
        image_rows(pixels, classes, ax=ax, xlabel="image (number)")
        ax.set_title(f"{text}\n{len(classes)} classes × {pixels.shape[1]} images", fontsize=13)
    axes[1].set_yticks([])
    return axes


def division_overview(
    groups: Mapping[str, Sequence[str]], superclasses: Mapping[str, str], *, ax: Axes | None = None
) -> Axes:
    """How many classes of every super-class are base, open-world and novel: stacked bars.

    groups: group ("base", "open_world", "novel") -> class names; superclasses: class -> super-class ({}: one bar).
    """
    known = {c: superclasses.get(c, "other" if superclasses else "all") for names in groups.values() for c in names}
    families = list(dict.fromkeys(sorted(known.values())))
    ax = new_axes(ax, 9, 1.9 + 0.42 * len(families))
    left = np.zeros(len(families))
    for group in in_order(list(groups), GROUP_LABELS):
        counts = np.array([sum(known[c] == family for c in groups[group]) for family in families])
        label = f"{GROUP_LABELS.get(group, group)} ({len(groups[group])})"
        bars = ax.barh(families, counts, left=left, height=0.72, color=GROUP_COLOURS.get(group), label=label)
        ax.bar_label(bars, [str(n) if n else "" for n in counts], label_type="center", color="white", weight="bold")
        left += counts
    ax.invert_yaxis()
    ax.set(xlabel="classes (number)", ylabel="super-class", title=f"{len(known)} classes, no class in two groups")
    tidy(ax, grid="x")
    legend_below(ax)
    return ax


def task_table(tasks: Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Which base classes stand in which source task: a matrix task x class, classes in order of first appearance.

    tasks: mappings with `number` and `classes`. A class that comes back (`source_draw = overlap`) fills several cells.
    """
    classes = list(dict.fromkeys(name for task in tasks for name in task["classes"]))
    held = np.array([[name in task["classes"] for name in classes] for task in tasks])
    named = len(classes) <= 72  # more names than that cannot be read
    ax = new_axes(ax, 11, min(9, 0.9 + 0.3 * len(tasks)) + (1.6 if named else 0.3))
    colours = np.array(list(layer_colours([str(task["number"]) for task in tasks]).values()))
    ax.imshow(np.where(held[..., None], colours[:, None, :], 0.95), aspect="auto", interpolation="nearest")
    ax.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(tasks) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.2)
    ax.set_yticks(range(len(tasks)), thin([task["number"] for task in tasks]))
    names = [name if len(name) <= 22 else f"{name[:21]}…" for name in classes]
    size = 9 if len(classes) <= 48 else 8
    ax.set_xticks(range(len(classes)) if named else [], names if named else [], rotation=90, fontsize=size)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ways = sorted({len(task["classes"]) for task in tasks})
    way = f"{ways[0]}" if len(ways) == 1 else f"{ways[0]} to {ways[-1]}"
    repeats = f", a class stands in {held.sum(0).mean():.1f} tasks on average" if held.sum(0).max() > 1 else ""
    ax.set(xlabel=f"base class ({len(classes)} in all)", ylabel="source task")
    ax.set_title(f"{len(tasks)} source tasks of {way} classes{repeats}")
    return ax


def shape_parameters(shape: Shape, blocks: Sequence[str] | None = None) -> int:
    """Trainable parameters predicted from a shape: of the whole network, or of the named blocks only."""
    widths, n_in = list(shape["widths"]), 3
    counts = {}
    for name, width in zip(shape["names"], widths, strict=True):
        counts[name], n_in = 9 * n_in * width + 3 * width, width  # weights; bias and the two of batch norm
    if blocks is not None:
        return sum(counts[name] for name in blocks)
    side = shape["image_size"] >> len(set(shape["pools"]))
    sizes = [widths[-1] * side**2, *shape.get("hidden", ()), shape["n_classes"]]
    return sum(counts.values()) + sum((a + 1) * b for a, b in zip(sizes, sizes[1:], strict=False))


def growth(shapes: Sequence[Shape], *, ax: Axes | None = None, most_rows: int = 8) -> Axes:
    """The growing network: a row per task, a column per block whose height is its width in channels.

    shapes: `ConvNet.shape` of the model of each task, from task 1 on. Of more than `most_rows` tasks, evenly spread ones
    are shown. Dark: the width at the start; pale: grown in rows above; orange: new since the row above.
    """
    chosen = np.unique(np.linspace(0, len(shapes) - 1, min(len(shapes), most_rows)).round().astype(int))
    final, pitch = shapes[-1], 1.45 * max(shapes[-1]["widths"])
    x = dict(zip(final["names"], _columns(final), strict=True))
    ax = new_axes(ax, 11, 1.6 + 0.66 * len(chosen))
    start, before = dict(zip(shapes[0]["names"], shapes[0]["widths"], strict=True)), {}
    for row, number in enumerate(chosen):
        shape, y = shapes[number], -row * pitch
        now = dict(zip(shape["names"], shape["widths"], strict=True))
        _pools(ax, shape, [x[name] for name in now], y)
        for part, widths in (("new", now), ("grown", before or now), ("start", start)):
            shown = [name for name in widths if name in now]
            _bars(ax, [x[n] for n in shown], [widths[n] for n in shown], y, part, label=None)
        fresh = [name for name in now if not row or now[name] != before.get(name)]
        for name in fresh:
            ax.text(x[name], y + now[name] / 2, str(now[name]), ha="center", va="bottom", fontsize=9)
        before = now
    for part, text in (("start", "width at task 1"), ("grown", "grown earlier"), ("new", "new since the row above")):
        ax.bar([0], [0], color=PART_COLOURS[part], label=text)
    ax.bar([0], [0], color=PART_COLOURS["pool"], label="pool, halves the map")
    counts = [f"{shape_parameters(shapes[i]):,}" for i in chosen]
    _frame(ax, final, [f"task {i + 1}" for i in chosen], counts, pitch)
    ax.set_ylabel("block width (channels)")
    ax.set_title("The collective network grows: numbers are channels; parameters at the right")
    legend_below(ax, 4, points=58)
    return ax


def networks_side_by_side(
    collective_shape: Shape, individual_shape: Shape, inherited: Sequence[str], *, ax: Axes | None = None
) -> Axes:
    """The collective above the individual rebuilt from it; inherited blocks blue in both and joined by lines.

    Shapes as `ConvNet.shape`; inherited: names of blocks that both have, with equal widths (else ValueError).
    """
    shapes = (collective_shape, individual_shape)
    widths = [dict(zip(shape["names"], shape["widths"], strict=True)) for shape in shapes]
    if wrong := [name for name in inherited if widths[0].get(name, -1) != widths[1].get(name)]:
        raise ValueError(f"{wrong[0]} is not a block of equal width in both networks")
    pitch = 1.9 * max(*widths[0].values(), *widths[1].values())
    ax = new_axes(ax, 11, 5.4)
    columns = [_columns(shape) for shape in shapes]
    columns[1] = columns[1] + (columns[0][-1] - columns[1][-1])  # both end at the head
    for row, (shape, x) in enumerate(zip(shapes, columns, strict=True)):
        y = -row * pitch
        _pools(ax, shape, x, y)
        for name, at, width in zip(shape["names"], x, shape["widths"], strict=True):
            part = "inherited" if name in inherited else ("ancestor", "fresh")[row]
            _bars(ax, [at], [width], y, part, label=None)
            ax.text(at, y + width / 2, str(width), ha="center", va="bottom", fontsize=10)
            ax.text(at, y - width / 2 - 0.03 * pitch, name, ha="center", va="top", fontsize=9)
        at = x[-1] + 1.5
        ax.bar([at], [shape["n_classes"]], 0.4, y - shape["n_classes"] / 2, color=PART_COLOURS["head"])
        ax.text(at, y + shape["n_classes"] / 2, f"head\n{shape['n_classes']}", ha="center", va="bottom", fontsize=10)
    return ax
