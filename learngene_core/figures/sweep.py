"""Figures of many runs: accuracy, and the paired gain over the same family's reference, along an axis of a sweep. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .comparison import DASHES, NO_TRAINING, empty_panels, short_block
from .style import INK, METHOD_COLOURS, MUTED, in_order, legend_below, right_of, stripe, tidy
from .tables import estimate_text
from .words import FAMILY_LABELS, METHOD_LABELS

AXIS_LABELS = {
    "shots": "support images per class (shots)",
    "n_source_tasks": "source tasks of the ancestor",
    "inherited": "inherited blocks",
}
PLACE_UNITS = {"shots": " shots", "n_source_tasks": " source tasks", "inherited": ""}  # after a single place
MARKERS = "osD^vP*X"  # one per line of a method: its settings
NOTHING = "nothing"  # inherited by methods that start from nothing


def over_axis(accuracy: pd.DataFrame, gains: pd.DataFrame, axis: str, *, reference: str = "scratch") -> np.ndarray:
    """Accuracy (left) and paired gain over `reference` (right) along `axis`, a row per family; returns the axes (rows, 2).

    accuracy, gains: `sweeptable.across_seeds` of percent and of percentage points along `axis`, with 95 % intervals. One colour
    per method; where settings differ, one marker per setting. On the axis `inherited` the blocks are in the order of the
    layers, and methods that inherit nothing are left out. Methods that train nothing (ncm) stand beside each family on the
    left, for reference. A family with a single place on the axis has a row per method instead, with its numbers. No trained
    method at all: one empty panel that says so.
    """
    rows = accuracy[accuracy[axis] != NOTHING] if axis == "inherited" else accuracy
    trained = rows[rows["family"] != NO_TRAINING]
    still = rows[:0] if axis == "inherited" else rows[rows["family"] == NO_TRAINING]
    families = in_order(list(trained["family"]), FAMILY_LABELS)
    if not families:
        return empty_panels("nothing along this axis in these sources", 2)
    parts = {family: trained[trained["family"] == family] for family in families}
    places, lines = {f: _places(part[axis]) for f, part in parts.items()}, in_order(list(rows["line"]), {})
    single = {family: len(places[family]) == 1 for family in families}
    heights = [0.42 * len(_series(pd.concat([parts[f], still]), lines)) + 0.9 if single[f] else 3.6 for f in families]
    axes = plt.subplots(len(families), 2, figsize=(12.5, sum(heights) + 1.1), height_ratios=heights, squeeze=False,
                        layout="constrained")[1]  # fmt: skip
    for family, (left, right) in zip(families, axes, strict=True):
        part, pairs = parts[family], gains[gains["family"] == family]
        pairs = pairs[pairs[axis].isin(list(places[family]))]
        shown = pd.concat([part, still[still[axis].isin(list(places[family]))]])
        if single[family]:
            _rows(left, shown, lines, _series(shown, lines), signs=False)
            _rows(right, pairs, lines, _series(shown, lines), signs=True)
            where = _place_name(next(iter(places[family]))) + PLACE_UNITS[axis]
            left.set_title(f"{FAMILY_LABELS.get(family, family)}, {where} ({_units(part)})")
        else:
            _draw(left, shown, axis, places[family], lines)
            low, high = left.get_ylim()
            left.set_ylim(max(low, -2), min(high, 102))  # limits of few seeds reach beyond what accuracy can be
            _draw(right, pairs, axis, places[family], lines)
            left.set_title(f"{FAMILY_LABELS.get(family, family)} ({_units(part)})")
        right.set_title(f"gain over {METHOD_LABELS.get(reference, reference)}, same tasks")
        _axis_names(left, right, AXIS_LABELS[axis], single[family])
        if pairs.empty:
            right.text(0.5, 0.6, "no pairs in these sources", transform=right.transAxes, ha="center", color=MUTED)
    if scope := _scope(trained):
        axes[0, 0].figure.suptitle(f"95 % intervals {scope}", fontsize="medium")
    if not all(single.values()):
        _legend(axes, pd.concat([trained, still]), lines)
    return axes


def _axis_names(left: Axes, right: Axes, name: str, single: bool) -> None:
    """What the two panels of a family measure, along the axis or, with a single place on it, along the rows."""
    if single:
        left.set_xlabel("query accuracy (%), 95 % interval")
        right.set_xlabel("gain (percentage points), 95 % interval")
        right.axvline(0, color=INK, linewidth=1.2, zorder=1)
        return
    left.set(ylabel="query accuracy (%)", xlabel=name)
    right.set(ylabel="gain\n(percentage points)", xlabel=name)
    right.axhline(0, color=INK, linewidth=1.2, zorder=1)


def _series(part: pd.DataFrame, lines: Sequence[str]) -> list[tuple[str, str]]:
    """The (method, line) pairs of a table, methods in the usual order."""
    known = set(zip(part["method"], part["line"], strict=True))
    methods = in_order(list(part["method"]), METHOD_LABELS)
    return [(method, line) for method in methods for line in lines if (method, line) in known]


def _rows(ax: Axes, part: pd.DataFrame, lines: Sequence[str], series: list[tuple[str, str]], *, signs: bool) -> None:
    """A dot with its interval and numbers per method and setting, from the top down."""
    own = part.set_index(["method", "line"])
    for y, (method, line) in enumerate(series):
        if (method, line) not in own.index:
            right_of(ax, y, "reference" if method == "scratch" else "no training", MUTED)
            continue
        row = own.loc[[(method, line)]].iloc[0]
        style = {"color": METHOD_COLOURS.get(method, INK)}
        ax.plot([row["low"], row["high"]], [y, y], linewidth=2.6, solid_capstyle="butt", **style)
        ax.scatter([row["estimate"]], [y], s=52, marker=MARKERS[lines.index(line) % len(MARKERS)], zorder=3, **style)
        words = estimate_text(row["estimate"], row["low"], row["high"], 1)
        right_of(ax, y, words if signs else words.replace("+", ""))
    several = len({line for _, line in series if line}) > 1
    names = [METHOD_LABELS.get(m, m) + (f", {line}" if several and line else "") for m, line in series]
    ax.set_yticks(range(len(series)), [""] * len(series) if signs else names)
    stripe(ax, len(series))


def _place_name(value: object) -> str:
    """A place on the axis in words: a number, or a block as "conv1–3"."""
    return short_block(value) if isinstance(value, str) else f"{value:g}"


def _line_name(line: str) -> str:
    """A line of `across_seeds` for readers: "layers conv1+conv2+conv3, shots 5" as "conv1–3, 5 shots"."""
    line = re.sub(r"layers (conv\d+(?:\+conv\d+)*)", lambda found: _layer_range(found[1].split("+")), line)
    return re.sub(r"\b(shots|n_source_tasks) (\d+)", lambda found: found[2] + PLACE_UNITS[found[1]], line)


def _layer_range(layers: Sequence[str]) -> str:
    """Named layers as a block where they are neighbours, else as they are."""
    numbers = [int(name.removeprefix("conv")) for name in layers]
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return short_block(f"{layers[0]}-{layers[-1]}")
    return "+".join(layers)


def _places(values: pd.Series) -> dict[object, int]:
    """Value -> place on the axis: numbers in order, blocks by their layers."""
    unique = list(dict.fromkeys(values))
    ordered = sorted(unique, key=lambda v: [int(n) for n in re.findall(r"\d+", v)] if isinstance(v, str) else v)
    return {value: place for place, value in enumerate(ordered)}


def _draw(ax: Axes, part: pd.DataFrame, axis: str, places: dict[object, int], lines: Sequence[str]) -> None:
    """Every method of every line: dots with their intervals, joined where the axis is a number; side by side, so that none
    hides another."""
    series = _series(part, lines)
    own = {pair: part[(part["method"] == pair[0]) & (part["line"] == pair[1])].set_index(axis) for pair in series}
    beside = {value: [pair for pair in series if value in own[pair].index] for value in places}
    step = min(0.1, 0.6 / max(1, len(series)))
    for method, line in series:
        rows = own[method, line].loc[[value for value in places if value in own[method, line].index]]
        x = [places[v] + (beside[v].index((method, line)) - (len(beside[v]) - 1) / 2) * step for v in rows.index]
        style = {"color": METHOD_COLOURS.get(method, INK), "marker": MARKERS[lines.index(line) % len(MARKERS)]}
        joined = DASHES.get(method, "-") if axis != "inherited" else "none"
        ax.plot(x, rows["estimate"], linestyle=joined, linewidth=1.6, markersize=8, **style)
        ax.vlines(x, rows["low"], rows["high"], color=style["color"], linewidth=2.0)
    names = [_place_name(value) for value in places]
    ax.set_xticks(range(len(places)), names, rotation=25 if axis == "inherited" and len(places) > 4 else 0)
    ax.set_xlim(-0.5, len(places) - 0.5)
    tidy(ax, grid="y")


def _units(part: pd.DataFrame) -> str:
    """How many units the intervals of a panel are taken over: "n = 3 to 5"; `_scope` says of what."""
    fewest, most = int(part["n"].min()), int(part["n"].max())
    return f"n = {fewest}" if fewest == most else f"n = {fewest} to {most}"


def _scope(shown: pd.DataFrame) -> str:
    """What the intervals speak for: "over seeds: ancestor, division and tasks are drawn anew", "for these novel classes"."""
    scopes = dict.fromkeys(shown["scope"].dropna())
    return "; ".join(scope if scope.startswith("over ") else f"for {scope}" for scope in scopes)


def _legend(axes: np.ndarray, shown: pd.DataFrame, lines: Sequence[str]) -> None:
    """Methods under the left panel, settings (where there are several) under the right one."""
    left, right = axes[-1]
    for method in in_order(list(shown["method"]), METHOD_LABELS):
        style = {"color": METHOD_COLOURS.get(method, INK), "linestyle": DASHES.get(method, "-")}
        left.plot([], [], label=METHOD_LABELS.get(method, method), **style)
    legend_below(left, 2, points=64)
    if len(lines) > 1:
        for i, line in enumerate(lines):
            right.plot([], [], color=MUTED, linestyle="none", marker=MARKERS[i % len(MARKERS)], label=_line_name(line))
        legend_below(right, 1, points=64)
