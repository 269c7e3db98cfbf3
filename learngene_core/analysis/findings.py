"""What the tables of a run say about one claim: an estimate with its interval, one function for each kind of test. No torch.

`difference` and `atlas` compare accuracies and gains of two arms or blocks; `rank` and `rank_difference` compare a criterion's
scores with the gains of all blocks; `auroc` and `correlation` read openworld.csv. `claims` judges what they find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from .blocks import NOVEL, depth_and_size, gains, predicted, recommended
from .ranks import pair_correlation_interval, rank_correlation_interval, rank_correlations, rank_difference_interval
from .selection import random_predictions
from .statistics import Interval, mean_interval, unit_means

LEVELS = {"split": "class splits", "collective": "ancestors", "target_task": "target tasks"}
N_RESAMPLES = 2000
NEAR = 0.5  # blocks of about equal size differ by at most this share
MEDIANS = ("median of equal length", "median of equal size")
BLOCKS = ("last", "first", "all", "recommended", "best of the last's size", *MEDIANS)


NO_CLASSES = Interval(np.nan, np.nan, np.nan, 0, "new classes")


class Missing(Exception):
    """The data of a claim are not there."""


@dataclass(frozen=True)
class Finding:
    """An interval, what was tested in one phrase, the values of the units where they are known, and a remark.

    counted: what n counts; more_helps: would more of them narrow the interval? no_support, no_verdict: why the numbers must not
    be called supported, or must not be judged at all; "" where they may. classes: the same mean with classes as units, for new
    classes; shown, never judged.
    """

    interval: Interval
    tested: str
    values: np.ndarray | None = None
    note: str = ""
    counted: str = "target tasks"
    more_helps: bool = True
    no_support: str = ""
    no_verdict: str = ""
    classes: Interval = NO_CLASSES

    @classmethod
    def none(cls, scope: str, note: str) -> Finding:
        """No data."""
        return cls(Interval(np.nan, np.nan, np.nan, 0, scope), "", note=note, more_helps=False)


@dataclass(frozen=True)
class Tables:
    """The tables of a run by name (without .csv), and what to read in them."""

    tables: Mapping[str, pd.DataFrame]
    shots: int | None = None
    n_blocks: int = 3
    budget_percent: float = 50.0

    def get(self, name: str) -> pd.DataFrame:
        """A table at the asked number of shots (the smallest, unless told). Raises Missing."""
        table = self.tables.get(name)
        if table is None or table.empty:
            raise Missing(f"there is no {name}.csv")
        if "shots" not in table:
            return table
        shots = self.shots if self.shots is not None else table["shots"].min()
        if not (table["shots"] == shots).any():
            raise Missing(f"{name}.csv has no {shots} shots, but {sorted(table['shots'].unique().tolist())}")
        return table[table["shots"] == shots]

    @cached_property
    def atlas(self) -> pd.DataFrame:
        """Rows of atlas.csv that have a gain on novel classes, indexed by (first, last)."""
        part = self.get("atlas")
        part = part[part["n_tasks"] > 0]
        return part.set_index(pd.MultiIndex.from_frame(part[["first", "last"]], names=[None, None]))

    @cached_property
    def gains(self) -> pd.DataFrame:
        """Gains on novel classes, tasks x blocks, of the blocks that atlas.csv has too."""
        cells = self.get("atlas_cells")
        if NOVEL not in set(cells["group"]):
            raise Missing("atlas_cells.csv has no individual of novel classes")
        found = gains(cells, NOVEL)
        return found.loc[:, found.columns.isin(self.atlas.index)]

    @property
    def where(self) -> str:
        """ "10 shots, 6 tasks" of the atlas."""
        return f"{self.atlas['shots'].iloc[0]} shots, {len(self.gains)} tasks, atlas.csv"


def _rows_of(tables: Tables, name: str, arm: Mapping[str, str]) -> pd.DataFrame:
    """The rows of one arm. Raises Missing, ValueError."""
    table = tables.get(name)
    if missing := [column for column in (*arm, "target_task", "init", "accuracy") if column not in table]:
        raise ValueError(f"{name}.csv lacks the column(s) {missing}")
    part = table[np.logical_and.reduce([table[column] == value for column, value in arm.items()])]
    if part.empty:
        raise Missing(f"{name}.csv has no {' '.join(arm.values())}")
    return part


def _arm(
    tables: Tables, name: str, arm: Mapping[str, str], partner: Mapping[str, str] | None = None
) -> tuple[pd.Series, str]:
    """Accuracies of one arm by level, task and init, and the blocks it inherits. Raises Missing, ValueError.

    Every light block has its own scratch, so of an arm only the rows of its partner's block count.
    """
    part = _rows_of(tables, name, arm)
    if partner is not None and "block" in part and "block" not in arm:
        part = part[part["block"].isin(_rows_of(tables, name, partner)["block"])]
        if part.empty:
            raise Missing(f"{name}.csv has no {' '.join(arm.values())} of the block of {' '.join(partner.values())}")
    keys = [level for level in LEVELS if level in part] + ["init"]
    if not np.isfinite(part["accuracy"]).all():
        bad = part.loc[~np.isfinite(part["accuracy"]), keys].iloc[0].to_dict()
        raise ValueError(f"an accuracy of {arm['method']} in {name}.csv is not a number: {bad}")
    if (twice := part.duplicated(keys)).any():
        raise ValueError(f"{arm['method']} is twice in {name}.csv: {part.loc[twice, keys].iloc[0].to_dict()}")
    return part.set_index(keys)["accuracy"], _inherited(part)


def _inherited(part: pd.DataFrame) -> str:
    """Which blocks an arm inherits, as far as its table says so."""
    if "inherited" in part:
        return ", ".join(part["inherited"].astype(str).unique())
    if {"first", "last"} <= set(part):
        return ", ".join(f"blocks {a} to {b}" for a, b in part[["first", "last"]].drop_duplicates().to_numpy())
    return ""


def _paired(a: pd.Series, b: pd.Series, names: Sequence[str], scope: str) -> tuple[Interval, np.ndarray, str]:
    """The interval of a - b over the units of the topmost level that has several, their values, and what they are."""
    if len(alone := a.index.symmetric_difference(b.index)):
        place = ", ".join(f"{level} {value}" for level, value in zip(a.index.names, alone[0], strict=True))
        raise ValueError(f"{names[1] if alone[0] in a.index else names[0]} misses {place}")
    table = (a - b).rename("difference").reset_index()
    levels = [level for level in LEVELS if level in table]
    means, speaks_for = unit_means(table, levels, "difference")
    top = means.index.names[-1] if means.index.nlevels > 1 else means.index.name
    interval = mean_interval(means)
    return replace(interval, scope=scope if top == "target_task" else speaks_for), means.to_numpy(), LEVELS[top]


def difference(
    tables: Tables,
    scope: str,
    *,
    table: str,
    a: Mapping[str, str],
    b: Mapping[str, str],
    reference: Mapping[str, str] | None = None,
    over: Mapping[str, str] | None = None,
) -> Finding:
    """Accuracy of arm `a` minus arm `b` of a table of individuals, paired; `reference` minus `a` is only reported.

    Unless `a` is clearly above `over`, there is no gain whose cause could be asked for, and no verdict.
    """
    (one, blocks), (other, _) = _arm(tables, table, a), _arm(tables, table, b, a)
    names = [arm["method"] for arm in (a, b)]
    interval, values, unit = _paired(one, other, names, scope)
    note = ""
    if reference is not None:
        try:
            third, _ = _arm(tables, table, reference, a)
            beyond, _, _ = _paired(third, one, [reference["method"], names[0]], scope)
            note = f"for reference, {reference['method']} minus {names[0]}: {beyond:+.1f}"
        except Missing as error:
            note = f"no reference: {error}"
    tasks = one.index.get_level_values("target_task").nunique()
    inits = one.index.get_level_values("init").nunique()
    shots = tables.get(table)["shots"].iloc[0] if "shots" in tables.get(table) else "?"
    tested = f"{a['family']}: {names[0]}{f' ({blocks})' if blocks else ''} minus {names[1]}, {shots} shots, "
    tested += f"{tasks} tasks x {inits} init{'s' if inits > 1 else ''}, {table}.csv"
    nothing = _nothing_to_explain(tables, table, one, a, over, scope) if over is not None else ""
    over_classes = _over_classes(tables, table, a, b)
    return Finding(interval, tested, values, note, unit, no_verdict=nothing, classes=over_classes)


def _over_classes(tables: Tables, name: str, a: Mapping[str, str], b: Mapping[str, str]) -> Interval:
    """Difference of the arms' hit rates in points with classes as units, each averaged over the tasks that hold it; no limits
    where the table does not say what was hit. With an equal number of queries of every class a task's mean is its accuracy."""
    parts = [_rows_of(tables, name, a), _rows_of(tables, name, b)]
    if any(not {"hits", "classes"} <= set(part) or part[["hits", "classes"]].isna().any(axis=None) for part in parts):
        return NO_CLASSES
    if "block" in parts[0]:  # of the light family's scratch only that of the same block
        parts = [p[p["block"].isin(q["block"])] for p, q in (parts, parts[::-1])]
    rates = [hit_rates(part).groupby(["class", "target_task"])["rate"].mean() for part in parts]
    means = (rates[0] - rates[1]).groupby("class").mean()
    return replace(mean_interval(means), scope=NO_CLASSES.scope)


def hit_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """target_task, class, rate (percent): a row per individual and class, from `hits` and `classes` of results.csv."""
    hits = rows["hits"].str.split(" ", expand=False)
    total = hits.map(lambda each: sum(map(int, each)))
    queries = 100 * total / rows["accuracy"] / hits.map(len)  # of a class; NaN where nothing was hit
    queries = queries.groupby(rows["target_task"]).transform("max").round()
    long = rows[["target_task"]].assign(queries=queries, hits=hits, **{"class": rows["classes"].str.split("|")})
    long = long.explode(["hits", "class"])
    rate = (100 * long["hits"].astype(float) / long["queries"]).fillna(0.0)  # no individual of that task hit anything
    return long.assign(rate=rate)[["target_task", "class", "rate"]]


def _nothing_to_explain(
    tables: Tables, table: str, one: pd.Series, a: Mapping[str, str], over: Mapping[str, str], scope: str
) -> str:
    """Why the cause of a gain of arm `a`, accuracies `one`, over arm `over` cannot be asked for; "" where there is a gain."""
    names = a["method"], over["method"]
    gain, _, _ = _paired(one, _arm(tables, table, over, a)[0], names, scope)
    return "" if gain.low > 0 else f"nothing to explain: {names[0]} minus {names[1]} is {gain:+.1f}"


def _block_gain(tables: Tables, name: str) -> tuple[np.ndarray, str, float]:
    """Gain per task (tasks,), the block in words, and its parameters in millions (NaN for a median). Raises Missing."""
    found, atlas = tables.gains, tables.atlas
    n_layers = int(atlas["last"].max())
    last = (max(1, n_layers - tables.n_blocks + 1), n_layers)
    if last not in found:
        raise Missing(f"the atlas has no block {last[0]} to {last[1]} yet")
    share, size = atlas.loc[[last], "share"].iloc[0], atlas.loc[[last], "parameters"].iloc[0]
    others = atlas.loc[[block for block in found if block != last]]
    if name in MEDIANS:
        near = (others["parameters"] / size - 1).abs() <= NEAR
        if name == MEDIANS[1] and len(found.columns) < n_layers * (n_layers + 1) // 2:
            raise Missing("a coarse atlas holds only some of the blocks of that size")
        kept = others[others["length"].eq(tables.n_blocks) if name == MEDIANS[0] else near]
        if kept.empty:
            raise Missing(f"the atlas has no other block of {name.removeprefix('median of ')}")
        return found[list(kept.index)].median(axis=1).to_numpy(), f"the median of {len(kept)} others", np.nan
    if name in ("recommended", "best of the last's size"):
        if not atlas["pseudo_n"].gt(0).any():
            raise Missing("the atlas has no pseudo-tasks, which choose the block")
        block = recommended(atlas, tables.budget_percent if name == "recommended" else share)
    else:
        block = {"last": last, "first": (1, tables.n_blocks), "all": (1, n_layers)}[name]
    if block not in found:
        raise Missing(f"the atlas has no block {block[0]} to {block[1]} yet")
    row = atlas.loc[[block]].iloc[0]
    return found[block].to_numpy(), f"blocks {block[0]} to {block[1]} ({row['share']:.0f} %)", row["parameters"] / 1e6


def atlas(tables: Tables, scope: str, *, a: str, b: str, per_parameter: bool = False) -> Finding:
    """Gain of one block (or median of blocks) of the atlas minus another's, paired; both names are among BLOCKS."""
    (one, first, size), (other, second, rival) = _block_gain(tables, a), _block_gain(tables, b)
    if per_parameter:
        one, other = one / size, other / rival
    tested = f"{a}: {first} minus {b}: {second}, {tables.where}"
    note = "both are the same block" if first == second else ""
    values = one - other
    return Finding(replace(mean_interval(values), scope=scope), tested, values, note, more_helps=not note)


def _scored(tables: Tables, criterion: str, among: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Scores of a criterion, and the gains (tasks, blocks) and atlas rows of the blocks in question."""
    scores = tables.get("layer_scores")
    scores = scores[scores["criterion"] == criterion]
    if scores.empty:
        raise Missing(f"layer_scores.csv has no criterion {criterion!r}")
    part = tables.atlas.loc[list(tables.gains)]
    if among == "equal length":
        part = part[part["length"] == tables.n_blocks]
    if len(part) < 3:
        raise Missing(f"the atlas has {len(part)} blocks to rank")
    return scores, tables.gains[list(part.index)], part


def rank(tables: Tables, scope: str, *, criterion: str, among: str) -> Finding:
    """Spearman's rho of a criterion's scores with the gains of the blocks."""
    scores, found, part = _scored(tables, criterion, among)
    values = predicted(scores, list(part.index))
    _check_scores(criterion, values)
    interval = rank_correlation_interval(values, found.to_numpy(), n_resamples=N_RESAMPLES)
    chance = rank_correlations(found.mean().to_numpy(), random_predictions(list(part.index), N_RESAMPLES, 0))
    low, high = np.quantile(chance, [0.025, 0.975])
    note = f"95 % of random scores of the layers reach {low:+.2f} to {high:+.2f}"
    tested = f"{criterion}, {len(part)} blocks ({among}), {tables.where}"
    chance = "no better than random scores of the layers" if interval.estimate <= high else ""
    return Finding(replace(interval, scope=scope), tested, note=note, no_support=chance)


def rank_difference(tables: Tables, scope: str, *, criterion: str, rival: str, among: str) -> Finding:
    """Spearman's rho of a criterion minus that of depth, size (each in its better direction) or the criterion's null."""
    scores, found, part = _scored(tables, criterion, among)
    values, blocks = predicted(scores, list(part.index)), list(part.index)
    size_or_depth = dict(zip(("depth", "size"), depth_and_size(part).T, strict=True))
    other = predicted(scores, blocks, "null") if rival == "null" else size_or_depth[rival]
    _check_scores(criterion, values)
    _check_scores(rival, other)
    free = rival != "null"
    interval = rank_difference_interval(values, other, found.to_numpy(), n_resamples=N_RESAMPLES, rival_either_way=free)
    tested = f"rho of {criterion} minus rho of {rival}, {len(part)} blocks ({among}), {tables.where}"
    alone = rank_correlation_interval(values, found.to_numpy(), n_resamples=N_RESAMPLES)
    worse = f"rho of {criterion} itself, {alone:+.2f}, is not above 0" if not alone.low > 0 else ""
    return Finding(replace(interval, scope=scope), tested, no_support=worse)


def _check_scores(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has a score that is not a number")
    if np.ptp(values) == 0:
        raise ValueError(f"{name} is the same for every block; it ranks nothing")


def _open(tables: Tables, score: str) -> pd.DataFrame:
    """The rows of one score in openworld.csv, a row per source task."""
    table = tables.get("openworld")
    part = table[table["score"] == score].sort_values("task")
    if part.empty:
        raise Missing(f"openworld.csv has no score {score!r}")
    if part["task"].duplicated().any():
        raise ValueError(f"openworld.csv has {score} twice for one task")
    return part


def auroc(tables: Tables, scope: str, *, score: str) -> Finding:
    """AUROC of one score after the last source task, with its limits over classes."""
    last = _open(tables, score).iloc[-1]
    unit = "unknown classes" if "unknown_classes" in last else "unknown images"
    n = int(last["unknown_classes" if "unknown_classes" in last else "n_unknown"])
    interval = Interval(*(float(last[name]) for name in ("auroc", "auroc_low", "auroc_high")), n, scope)
    tested = (
        f"{score} after task {last['task']}, {last['n_known']} known and {last['n_unknown']} unknown images, "
        f"closed-set accuracy {last['closed_accuracy']:.1f} %, openworld.csv"
    )
    return Finding(interval, tested, counted=unit, more_helps=False)


def correlation(tables: Tables, scope: str, *, score: str) -> Finding:
    """Spearman's rho over source tasks of AUROC and closed-set accuracy, with limits as for independent tasks."""
    part = _open(tables, score)
    tested = f"AUROC of {score} with closed-set accuracy, {len(part)} source tasks, openworld.csv"
    interval = replace(pair_correlation_interval(part["auroc"], part["closed_accuracy"]), scope=scope)
    note = "a correlation needs 4 tasks" if len(part) < 4 else ""
    dependent = "shown, not judged: the tasks of one sequence are not independent of each other"
    return Finding(interval, tested, note=note, counted="source tasks", more_helps=False, no_verdict=dependent)
