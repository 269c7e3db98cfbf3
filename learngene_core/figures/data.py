"""Pictures of the data: images, episodes, the division of the classes and the sequence of source tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .lettering import readable
from .style import GROUP_COLOURS, INK, in_order, layer_colours, legend_below, montage, new_axes, thin, tidy
from .words import GROUP_LABELS

GAP = 2  # pixels between pictures


def image_rows(
    pixels: ArrayLike, names: Sequence[str], *, ax: Axes | None = None, xlabel: str = "image of the class (number)"
) -> Axes:
    """Pictures in rows, one row per class with its name. pixels: (rows, k, 3, h, w) uint8; names: (rows,)."""
    pixels = np.asarray(pixels)
    if pixels.ndim != 5 or len(names) != len(pixels):
        raise ValueError(f"needs pixels (rows, k, 3, h, w) and a name per row, not {pixels.shape}, {len(names)} names")
    rows, k, _, height, width = pixels.shape
    names = readable(names)
    ax = new_axes(ax, 10, min(12, 0.8 + 7.2 / k * rows * height / width))
    ax.imshow(montage(pixels, GAP), interpolation="nearest")
    ax.set_yticks(np.arange(rows) * (height + GAP) + height / 2, names)
    ax.set_xticks(np.arange(k) * (width + GAP) + width / 2, thin(range(1, k + 1)))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(xlabel)
    return ax


def episode(support: ArrayLike, query: ArrayLike, classes: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """A few-shot episode as two blocks of pictures side by side, a row per class.

    support: (way, shots, 3, h, w) uint8; query: (way, k, 3, h, w), as many as are to be shown; classes: (way,) names.
    """
    blocks = [np.asarray(support), np.asarray(query)]
    if len({(b.shape[0], *b.shape[2:]) for b in blocks}) > 1 or len(classes) != len(blocks[0]):
        raise ValueError(f"support {blocks[0].shape}, query {blocks[1].shape} and {len(classes)} classes do not fit")
    rows, _, _, height, width = blocks[0].shape
    counts = [block.shape[1] for block in blocks]
    apart = max(width, 24)  # pixels between the blocks
    classes = readable(classes)
    room = 10.2 - 0.11 * max(map(len, classes))  # inches that the names leave
    ax = new_axes(ax, 10.5, 1.5 + min(0.75, room / (sum(counts) + 1)) * rows * height / width)
    sheets = [montage(block, GAP) for block in blocks]
    ax.imshow(
        np.hstack([sheets[0], np.full((len(sheets[0]), apart, 3), 255, np.uint8), sheets[1]]), interpolation="nearest"
    )
    starts = [0, sheets[0].shape[1] + apart]
    ticks = [start + np.arange(k) * (width + GAP) + width / 2 for start, k in zip(starts, counts, strict=True)]
    ax.set_xticks(np.concatenate(ticks), [label for k in counts for label in thin(range(1, k + 1))])
    ax.set_yticks(np.arange(rows) * (height + GAP) + height / 2, classes)
    for at, k, text in zip(ticks, counts, ("support\nlabelled", "query\nto classify"), strict=True):
        ax.annotate(
            f"{text}, {rows} × {k}", (at.mean(), 0), (0, 7), textcoords="offset points", ha="center", fontsize=14
        )
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("image of the class (number)")
    return ax


def division_overview(
    groups: Mapping[str, Sequence[str]], superclasses: Mapping[str, str], *, ax: Axes | None = None
) -> Axes:
    """How many classes of every super-class are base, open-world and novel: stacked bars.

    groups: group ("base", "open_world", "novel") -> class names; superclasses: class -> super-class ({}: one bar).
    """
    known = {c: superclasses.get(c, "other" if superclasses else "all") for names in groups.values() for c in names}
    families = list(dict.fromkeys(sorted(known.values())))
    shown = readable(families)
    ax = new_axes(ax, 9, 1.9 + 0.36 * len(families))
    left = np.zeros(len(families))
    for group in in_order(list(groups), GROUP_LABELS):
        counts = np.array([sum(known[c] == family for c in groups[group]) for family in families])
        label = f"{GROUP_LABELS.get(group, group)} ({len(groups[group])})"
        bars = ax.barh(shown, counts, left=left, height=0.72, color=GROUP_COLOURS.get(group), label=label)
        ink = INK if group == "open_world" else "white"
        ax.bar_label(bars, [str(n) if n else "" for n in counts], label_type="center", color=ink, weight="bold")
        left += counts
    ax.set(xlabel="classes (number)", ylabel="super-class", ylim=(len(families) - 0.4, -0.6))
    ax.set_title(f"{len(known)} classes" + (f" in {len(families)} super-classes" if superclasses else ""))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    tidy(ax, grid="x")
    legend_below(ax)
    return ax


def task_pictures(pixels: ArrayLike, numbers: Sequence[int], *, ax: Axes | None = None) -> Axes:
    """The source tasks as pictures: a row per task, one image of each of its classes.

    pixels: (tasks, way, 3, h, w) uint8; numbers: (tasks,) of the tasks. Raises ValueError where they do not fit.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim != 5 or len(numbers) != len(pixels):
        raise ValueError(
            f"needs pixels (tasks, way, 3, h, w) and a number per task, not {pixels.shape}, {len(numbers)} numbers"
        )
    rows, way, _, height, width = pixels.shape
    side = min(0.72, 9.0 / way, 9.0 / rows)  # inches
    ax = new_axes(ax, 1.6 + side * way, 0.8 + side * rows * height / width)
    ax.imshow(montage(pixels, 2 * GAP), interpolation="nearest")
    ax.set_yticks(np.arange(rows) * (height + 2 * GAP) + height / 2, thin([f"task {number}" for number in numbers]))
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(f"{rows} source tasks of {way} classes,\nlearned in this order")
    return ax


def task_table(tasks: Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Which base classes are in which source task: a matrix task x class, classes in order of first appearance.

    tasks: mappings with `number` and `classes`. A class that comes back (`source_draw = overlap`) fills several cells.
    """
    classes = list(dict.fromkeys(name for task in tasks for name in task["classes"]))
    held = np.array([[name in task["classes"] for name in classes] for task in tasks])
    named = len(classes) <= 72  # more names than that cannot be read
    names = [name if len(name) <= 22 else f"{name[:21]}…" for name in (readable(classes) if named else ())]
    ax = new_axes(ax, 11, min(9, 0.9 + 0.3 * len(tasks)) + (1.6 if named else 0.3))
    colours = np.array(list(layer_colours([str(task["number"]) for task in tasks]).values()))
    ax.imshow(np.where(held[..., None], colours[:, None, :], 0.95), aspect="auto", interpolation="nearest")
    ax.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(tasks) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.2)
    ax.set_yticks(range(len(tasks)), thin([task["number"] for task in tasks]))
    size = 9 if len(classes) <= 48 else 8
    ax.set_xticks(range(len(classes)) if named else [], names, rotation=90, fontsize=size)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ways = sorted({len(task["classes"]) for task in tasks})
    way = f"{ways[0]}" if len(ways) == 1 else f"{ways[0]} to {ways[-1]}"
    repeats = f", a class is in {held.sum(0).mean():.1f} tasks on average" if held.sum(0).max() > 1 else ""
    ax.set(xlabel=f"base class ({len(classes)} in all)", ylabel="source task")
    ax.set_title(f"{len(tasks)} source tasks of {way} classes{repeats}")
    return ax
