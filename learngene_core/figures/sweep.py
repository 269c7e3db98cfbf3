"""Figures of many runs: accuracy, and the paired gain over the same family's reference, along an axis of a sweep. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .comparison import DASHES, NO_TRAINING
from .style import INK, METHOD_COLOURS, MUTED, in_order, legend_below, tidy
from .words import FAMILY_LABELS, METHOD_LABELS

AXIS_LABELS = {
    "shots": "support images per class (shots)",
    "n_source_tasks": "source tasks of the ancestor",
    "inherited": "inherited blocks",
}
MARKERS = "osD^vP*X"  # one per line of a method: its settings
NOTHING = "nothing"  # inherited by methods that start from nothing


def over_axis(accuracy: pd.DataFrame, gains: pd.DataFrame, axis: str, *, reference: str = "scratch") -> np.ndarray:
    """Accuracy (left) and paired gain over `reference` (right) along `axis`, a row per family; returns the axes (rows, 2).

    accuracy, gains: `sweeptable.across_seeds` of percent and of percentage points along `axis`, with 95 % intervals. One colour
    per method; where settings differ, one marker per setting. On the axis `inherited` the blocks stand in the order of the
    layers, and methods that inherit nothing are left out. Methods that train nothing (ncm) stand beside each family on the
    left, for reference. No trained method at all: one empty panel that says so.
    """
    shown = accuracy[accuracy[axis] != NOTHING] if axis == "inherited" else accuracy
    trained = shown[shown["family"] != NO_TRAINING]
    still = shown[:0] if axis == "inherited" else shown[shown["family"] == NO_TRAINING]
    families = in_order(list(trained["family"]), FAMILY_LABELS)
    if not families:
        return _nothing()
    figure, axes = plt.subplots(
        len(families), 2, figsize=(12.5, 3.6 * len(families) + 0.9), squeeze=False, layout="constrained"
    )
    for family, (left, right) in zip(families, axes, strict=True):
        part, pairs = trained[trained["family"] == family], gains[gains["family"] == family]
        places, lines = _places(part[axis]), in_order(list(shown["line"]), {})
        _draw(left, pd.concat([part, still[still[axis].isin(list(places))]]), axis, places, lines)
        _draw(right, pairs, axis, places, lines)
        right.axhline(0, color=INK, linewidth=1.2, zorder=1)
        left.set_title(f"{FAMILY_LABELS.get(family, family)}: accuracy ({_units(part)})")
        right.set_title(f"gain over {METHOD_LABELS.get(reference, reference)}, same tasks")
        left.set_ylabel("accuracy (%)")
        right.set_ylabel("paired gain\n(percentage points)")
        if pairs.empty:
            right.text(0.5, 0.6, "no pairs in these sources", transform=right.transAxes, ha="center", color=MUTED)
    for ax in axes[-1]:
        ax.set_xlabel(AXIS_LABELS[axis])
    if scope := _scope(trained):
        figure.suptitle(f"95 % intervals {scope}", fontsize="medium")
    _legend(axes, pd.concat([trained, still]), lines=in_order(list(shown["line"]), {}))
    return axes


def _places(values: pd.Series) -> dict[object, int]:
    """Value -> place on the axis: numbers in order, blocks by their layers."""
    unique = list(dict.fromkeys(values))
    ordered = sorted(unique, key=lambda v: [int(n) for n in re.findall(r"\d+", v)] if isinstance(v, str) else v)
    return {value: place for place, value in enumerate(ordered)}


def _draw(ax: Axes, part: pd.DataFrame, axis: str, places: dict[object, int], lines: Sequence[str]) -> None:
    """Every method of every line: dots with their intervals, joined where the axis is a number; side by side, so that none
    hides another."""
    methods = in_order(list(part["method"]), METHOD_LABELS)
    series = [(m, line) for m in methods for line in lines if ((part["method"] == m) & (part["line"] == line)).any()]
    own = {pair: part[(part["method"] == pair[0]) & (part["line"] == pair[1])].set_index(axis) for pair in series}
    beside = {value: [pair for pair in series if value in own[pair].index] for value in places}
    step = min(0.1, 0.6 / max(1, len(series)))
    for method, line in series:
        rows = own[method, line].loc[[value for value in places if value in own[method, line].index]]
        x = [places[v] + (beside[v].index((method, line)) - (len(beside[v]) - 1) / 2) * step for v in rows.index]
        style = {"color": METHOD_COLOURS.get(method, INK), "marker": MARKERS[lines.index(line) % len(MARKERS)]}
        joined = DASHES.get(method, "-") if axis != "inherited" else "none"
        ax.plot(x, rows["estimate"], linestyle=joined, linewidth=1.6, markersize=6, **style)
        ax.vlines(x, rows["low"], rows["high"], color=style["color"], linewidth=1.8)
    ax.set_xticks(range(len(places)), list(places), rotation=25 if axis == "inherited" and len(places) > 4 else 0)
    ax.set_xlim(-0.5, len(places) - 0.5)
    tidy(ax, grid="y")


def _units(part: pd.DataFrame) -> str:
    """What stands behind the intervals of a panel: "n = 3, over seeds"; `_scope` says the rest."""
    fewest, most = int(part["n"].min()), int(part["n"].max())
    count = str(fewest) if fewest == most else f"{fewest} to {most}"
    scopes = {scope.split(" (")[0].split(":")[0] for scope in part["scope"]}
    return f"n = {count}, {scopes.pop()}" if len(scopes) == 1 else f"n = {count}"


def _scope(shown: pd.DataFrame) -> str:
    """What intervals over seeds speak for: "over seeds: ancestor, division and tasks are drawn anew"; else nothing."""
    return "; ".join(dict.fromkeys(scope for scope in shown["scope"] if scope.startswith("over seeds:")))


def _legend(axes: np.ndarray, shown: pd.DataFrame, lines: Sequence[str]) -> None:
    """Methods under the left panel, settings (where there are several) under the right one."""
    left, right = axes[-1]
    for method in in_order(list(shown["method"]), METHOD_LABELS):
        style = {"color": METHOD_COLOURS.get(method, INK), "linestyle": DASHES.get(method, "-")}
        left.plot([], [], label=METHOD_LABELS.get(method, method), **style)
    legend_below(left, 2, points=64)
    if len(lines) > 1:
        for i, line in enumerate(lines):
            right.plot([], [], color=MUTED, linestyle="none", marker=MARKERS[i % len(MARKERS)], label=line)
        legend_below(right, 1, points=64)


def _nothing() -> np.ndarray:
    figure, axes = plt.subplots(1, 2, figsize=(9, 1.6), squeeze=False, layout="constrained")
    for ax, text in zip(axes[0], ("nothing along this axis in these sources", ""), strict=True):
        ax.text(0.5, 0.5, text, ha="center", va="center")
        ax.set_axis_off()
    return axes
