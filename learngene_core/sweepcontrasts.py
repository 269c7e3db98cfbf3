"""Paired questions across seeds: how much a gain changes along an axis, as differences within each seed. No torch.

Equal seeds have the division, the target tasks, their support and query images and the initial weights in common. So two
places of an axis are compared within a seed, and the interval is that of the differences over seeds: two intervals of the
places themselves may overlap although every seed agrees about the difference.
"""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from .statistics import Interval, mean_interval, unit_means
from .sweeptable import AXES, LEVELS, WHAT, lines, paired_gains

ALONG = (*AXES, "method", "choice", "setting")
COLUMNS = ("place", "difference", "low", "high", "n_seeds")
ONE_SEED = "one seed: no interval can be had"


def contrasts(rows: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Difference of each place on `axis` (one of ALONG) to the first place, within a seed, with a 95 % t interval over seeds.

    rows: individuals as `sweeptable.read_sources` gives them. What differs is the paired gain over scratch, or the accuracy in
    families without scratch. A seed counts where it has both places, by the target tasks that both have; tasks, and draws of
    tasks, are averaged within it. Numbers stand in order, blocks in that of the layers, all else as it appears in the rows.
    Columns: line (what is equal at both places, in words), family, method ("" on the axis `method`); value ("gain" or
    "accuracy"), first (the place compared with), place, difference, low, high (points), n_seeds, note (why limits are missing).
    Raises ValueError for an unknown axis.
    """
    if axis not in ALONG:
        raise ValueError(f"unknown axis {axis!r}; there are {', '.join(ALONG)}")
    keys = ["line", *(name for name in WHAT if name != axis)]
    columns = ["line", *WHAT, "value", "first", *COLUMNS, "note"]
    found = []
    for value, table in _values(rows).items():
        table = table.assign(line=lines(table, axis)) if len(table) else table.assign(line="")
        table = table.drop_duplicates(["line", *WHAT, axis, *LEVELS, "init", value])
        for names, part in table.groupby(keys, sort=False):
            about = {"method": "", **dict(zip(keys, names, strict=True)), "value": value}
            found += [{**about, **row} for row in _to_first(part, axis, value)]
    return pd.DataFrame(found, columns=columns).astype({**dict.fromkeys(COLUMNS[1:4], float), "n_seeds": int})


def _values(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What is compared: paired gains, and accuracies of families that have no scratch."""
    started = set(rows.loc[rows["method"] == "scratch", "family"])
    return {"gain": paired_gains(rows), "accuracy": rows[~rows["family"].isin(started)]}


def _to_first(part: pd.DataFrame, axis: str, value: str) -> list[dict[str, Any]]:
    """A row per place after the first that shares a seed with it."""
    tasks = part.groupby([axis, *LEVELS])[value].mean()
    first, *others = sorted(dict.fromkeys(part[axis]), key=_order) if axis in AXES else dict.fromkeys(part[axis])
    found = []
    for place in others:
        both = pd.concat([tasks[first], tasks[place]], axis=1, join="inner", keys=["first", "place"])
        if both.empty:
            continue
        interval = _over_seeds((both["place"] - both["first"]).rename("difference").reset_index())
        limits = (interval.estimate, interval.low, interval.high, interval.n)
        about = dict(zip(COLUMNS, (place, *limits), strict=True))
        found.append({"first": first, **about, "note": ONE_SEED if interval.n == 1 else ""})
    return found


def _over_seeds(differences: pd.DataFrame) -> Interval:
    """t over seeds, also where there is one only: its tasks or their draws do not stand in for seeds."""
    means = [unit_means(part, LEVELS[1:], "difference")[0].mean() for _, part in differences.groupby(LEVELS[0])]
    return mean_interval(means)


def _order(value: Any) -> Any:
    """Numbers as they are, blocks by their layers."""
    return [int(n) for n in re.findall(r"\d+", value)] if isinstance(value, str) else value
