"""Intervals, paired and hierarchical comparison, decisions and power, in the unit of the input (accuracies, gains: percent).

Knows only tables (arrays, DataFrames). Limits are two-sided, 95 % unless told otherwise; randomness has explicit seeds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are used; stats takes half a second
from numpy.typing import ArrayLike

Columns = Sequence[str]  # names of columns
POSITIVE = "positive, below the line"  # a verdict: a gain, and less of it than was claimed
FEWEST_BOOTSTRAP_UNITS = 10  # with fewer a percentile bootstrap covers 87-91 % (simulated)
SCOPES = {  # of nested units; "collective": ancestors of one division (over seeds of a sweep: `sweeptable.OVER_SEEDS`)
    "split": "new class splits",
    "collective": "new ancestors",
    "target_seed": "new draws of target tasks",
    "target_task": "these novel classes and this ancestor",
}


@dataclass(frozen=True)
class Interval:
    """An estimate with its limits, the number of independent units `n`, and what the limits speak for (`scope`)."""

    estimate: float
    low: float
    high: float
    n: int
    scope: str = ""

    @property
    def half_width(self) -> float:
        """Half the distance between the limits, in the unit of the estimate."""
        return (self.high - self.low) / 2

    def __format__(self, spec: str = "") -> str:
        """`spec` as for a float, by default "+.1f": "+2.7 ± 2.7 (n=12)"; asymmetric: "+2.7 (+0.4 to +6.1, n=12)"."""
        spec = spec or "+.1f"
        if np.isnan([self.low, self.high]).any():
            return f"{self.estimate:{spec}} (no interval, n={self.n})"
        if abs(self.low + self.high - 2 * self.estimate) <= 1e-6 * (self.high - self.low):
            return f"{self.estimate:{spec}} ± {self.half_width:{spec.replace('+', '')}} (n={self.n})"
        return f"{self.estimate:{spec}} ({self.low:{spec}} to {self.high:{spec}}, n={self.n})"

    __str__ = __format__


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests: `p_value`, the (1 - 2 alpha) `interval` and whether it lies within the margin."""

    p_value: float
    interval: Interval
    equivalent: bool


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """t interval for the mean of `values` (n,). One value: NaN limits. Empty, NaN or infinite: ValueError."""
    values = finite(values, 1)
    n, mean = len(values), float(values.mean())
    half = float(t_quantile(n, confidence) * scipy.stats.sem(values)) if n > 1 else np.nan
    return Interval(mean, mean - half, mean + half, n)


def paired_interval(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """t interval for the mean of a - b, both (n,) on the same units in the same order; other shapes: ValueError."""
    a, b = finite(a, 1), finite(b, 1)
    if a.shape != b.shape:
        raise ValueError(f"paired values need identical units: {len(a)} and {len(b)}")
    return mean_interval(a - b, confidence)


def paired_table(
    results: pd.DataFrame, *, reference: str = "scratch", keys: Columns = (), unit: str = "target_task"
) -> pd.DataFrame:
    """Accuracy and paired gain over `reference` per method: one row per `keys` x method, in order of appearance.

    keys: by default family, block (a light individual's shape depends on where its block is) and shots.

    `results` has one row per individual: `keys`, method, `unit`, init, accuracy (percent). Inits are averaged within a
    task, tasks are the units. The reference has the same `keys`: families are never compared; without one the gain is
    NaN. Missing column, NaN, an individual twice, task or init that only method or reference has: ValueError naming it.
    Columns: family, method, shots (`keys` around method); accuracy and gain, each with _low and _high (95 %);
    sd_difference (sample sd over tasks), n_tasks, n_inits (the fewest in a task).
    """
    keys = keys or ("family", *(("block",) if "block" in results else ()), "shots")
    individual = [*keys, "method", unit, "init"]
    _check_columns(results, [*individual, "accuracy"])
    if (twice := results.duplicated(individual)).any():
        raise ValueError(f"an individual is there twice: {results.loc[twice, individual].iloc[0].to_dict()}")
    rows = []
    for group, block in results.groupby(list(keys), sort=False):
        runs = {m: part.set_index([unit, "init"])["accuracy"] for m, part in block.groupby("method", sort=False)}
        for method, run in runs.items():
            where = {keys[0]: group[0], "method": method, **dict(zip(keys[1:], group[1:], strict=True))}
            rows.append(_compare(run, runs.get(reference), where))
    return pd.DataFrame(rows)


def _compare(run: pd.Series, reference: pd.Series | None, where: dict) -> dict:
    """The row of `paired_table` that starts with `where`; `run` and `reference` are indexed by (unit, init)."""
    tasks = run.groupby(level=0).mean()
    accuracy, gain, sd = mean_interval(tasks), Interval(np.nan, np.nan, np.nan, 0), np.nan
    if reference is not None:
        if len(alone := run.index.symmetric_difference(reference.index, sort=False)):
            pair = ", ".join(f"{name} {part}" for name, part in zip(run.index.names, alone[0], strict=True))
            raise ValueError(f"{f'the reference of {where}' if alone[0] in run.index else where} misses {pair}")
        base = reference.groupby(level=0).mean().loc[tasks.index]
        gain, sd = paired_interval(tasks, base), (tasks - base).std()
    for name, interval in (("accuracy", accuracy), ("gain", gain)):
        where = where | {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return where | {"sd_difference": sd, "n_tasks": len(tasks), "n_inits": int(run.groupby(level=0).size().min())}


def hierarchical_interval(
    table: pd.DataFrame, levels: Columns, value: str, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Interval for the mean of nested units, over the topmost of `levels` (top to bottom) with more than one unit.

    Every unit counts the same within its parent, whatever its number of rows. `scope` says what the limits speak for
    and which levels have one unit only. Fewer than 10 units: t on their means; else a percentile bootstrap of them,
    expanded for their number (Hesterberg 2015, doi 10.1080/00031305.2015.1089789). Units are resampled whole: drawing
    again below them counts the lower noise twice and covers up to 99 % (Davison & Hinkley 1997, section 3.8).
    Missing column, NaN or empty table: ValueError. One unit at every level: NaN limits.
    """
    means, scope = unit_means(table, levels, value)
    interval = mean_interval(means, confidence)
    if interval.n >= FEWEST_BOOTSTRAP_UNITS:
        draws = np.random.default_rng(seed).integers(interval.n, size=(n_resamples, interval.n))
        low, high = expanded_limits(means.to_numpy()[draws].mean(axis=1), interval.n, confidence)
        interval = replace(interval, low=low, high=high)
    return replace(interval, scope=scope)


def unit_means(table: pd.DataFrame, levels: Columns, value: str) -> tuple[pd.Series, str]:
    """Means of `value` over the units of the topmost of `levels` that has more than one, and what they speak for.

    Every unit counts the same within its parent, whatever its number of rows. Missing column, NaN or empty table:
    ValueError.
    """
    _check_columns(table, [*levels, value])
    top = next((k for k, level in enumerate(levels) if table[level].nunique() > 1), len(levels) - 1)
    means = table.groupby(list(levels))[value].mean()
    for depth in range(len(levels) - 1, top, -1):
        means = means.groupby(level=list(range(depth))).mean()
    single = ", ".join(f"one {level}" for level in levels[: top if len(means) > 1 else None])
    scope = SCOPES.get(levels[top], f"new {levels[top]}") if len(means) > 1 else "nothing beyond itself"
    return means, f"{scope} ({single})" if single else scope


def simultaneous_bands(
    differences: ArrayLike, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Bands that hold for all cells at once, from a max-|t| bootstrap over units.

    `differences` (n_units, n_cells), NaN or empty: ValueError. Returns estimate, low, high, one row per cell. A cell
    that is constant over the units has limits equal to its estimate; one unit gives NaN limits.
    """
    differences = finite(differences, 2)
    n, estimate, error = len(differences), differences.mean(axis=0), np.full(differences.shape[1], np.nan)
    if n > 1:
        live = np.ptp(differences, axis=0) > 0
        error = np.where(live, scipy.stats.sem(differences), 0.0)
        if live.any():
            centred = differences[:, live] - estimate[live]
            error *= _max_t_quantile(centred / centred.std(axis=0), confidence, n_resamples, seed)
    return pd.DataFrame({"estimate": estimate, "low": estimate - error, "high": estimate + error})


def equivalence(values: ArrayLike, margin: float, alpha: float = 0.05) -> Equivalence:
    """TOST: is the mean of `values` (n,) within +-`margin`? One value never is (p NaN). margin <= 0: ValueError."""
    if not margin > 0:
        raise ValueError(f"margin must be positive, not {margin}")
    interval = mean_interval(values, 1 - 2 * alpha)
    if interval.n == 1:
        return Equivalence(float("nan"), interval, False)
    with np.errstate(divide="ignore", invalid="ignore"):  # equal values: t is infinite, p 0 or 1
        t = (margin - np.abs(interval.estimate)) / scipy.stats.sem(values)
    p_value = float(np.nan_to_num(scipy.stats.t.sf(t, interval.n - 1), nan=1.0))
    return Equivalence(p_value, interval, interval.low > -margin and interval.high < margin)


def verdict(interval: Interval, minimum: float, *, direction: str = "greater", above: float = 0.0) -> str:
    """The decision rule for a claim: "supported", "positive, below the line", "refuted" or "undecided".

    Supported when the lower limit lies over `above` and the estimate is at least `minimum`, refuted when the upper limit is
    below `minimum`, unless the lower one is over `above`: then it is positive, below the line; NaN: undecided. With direction
    "less" the claim is a loss of at least `minimum`. A claim of "no worse than by 2" has above = minimum = -2, one of better
    than chance above = minimum = 50. minimum < above: ValueError.
    """
    if direction not in ("greater", "less") or not minimum >= above:
        raise ValueError(f"direction is 'greater' or 'less' and minimum >= {above}, not {direction!r} and {minimum}")
    estimate, low, high = interval.estimate, interval.low, interval.high
    if direction == "less":
        estimate, low, high = -estimate, -high, -low
    if np.isnan([estimate, low, high]).any():
        return "undecided"
    if low > above and estimate >= minimum:
        return "supported"
    if high < minimum:
        return POSITIVE if low > above else "refuted"
    return "undecided"


def verdict_words(found: str, minimum: float, unit: str = "points") -> str:
    """A verdict as texts say it: one below the line names its line."""
    if found != POSITIVE or np.isnan(minimum):
        return found
    counted = f" {'point' if minimum == 1 else unit}" if unit == "points" else ""
    return f"{found} of {minimum:g}{counted}"


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down adjusted p-values (n,), in the order given. Outside [0, 1], NaN or empty: ValueError."""
    p = finite(p_values, 1)
    if (p < 0).any() or (p > 1).any():
        raise ValueError("p-values lie between 0 and 1")
    order = np.argsort(p)
    adjusted = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted[np.argsort(order)]


def finite(values: ArrayLike, ndim: int) -> np.ndarray:
    """`values` as a float array of `ndim` dimensions; empty, NaN, infinite or another shape: ValueError."""
    values = np.asarray(values, dtype=float)
    if values.ndim != ndim or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"needs finite values in {ndim} dimension(s), none NaN, infinite: shape {values.shape}")
    return values


def _check_columns(table: pd.DataFrame, columns: Columns) -> None:
    """ValueError for an empty table, a missing column or a missing value in one."""
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"the table lacks the column(s) {missing}")
    if table.empty or table[list(columns)].isna().any(axis=None):
        raise ValueError(f"the table is empty or has missing values in {list(columns)}")


def t_quantile(n: int, confidence: float) -> float:
    """Half-width in standard errors of a t interval over `n` units."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, not {confidence}")
    return float(scipy.stats.t.ppf((1 + confidence) / 2, n - 1))


def expanded_limits(draws: np.ndarray, n: int, confidence: float) -> tuple[float, float]:
    """Percentile limits of `draws`, widened as t is wider than normal: n resampled units look too alike."""
    tail = scipy.stats.norm.sf(np.sqrt(n / (n - 1)) * t_quantile(n, confidence))
    return tuple(np.quantile(draws, [tail, 1 - tail]).tolist())


def _max_t_quantile(scores: np.ndarray, confidence: float, n_resamples: int, seed: int) -> float:
    """Quantile of the largest |t| over cells; `scores` (n_units, n_cells) have mean 0 and sd 1 in each cell."""
    (n, cells), rng = scores.shape, np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples) / n  # how often a resample holds each unit
    means = weights @ scores  # (n_resamples, n_cells)
    variances = np.maximum(weights @ scores**2 - means**2, 1e-12)  # a resample of one unit only: t is huge, cut below
    largest = np.abs(means / np.sqrt(variances / (n - 1))).max(axis=1)
    # the truth lies between one cell's t and Bonferroni's; few units make the bootstrap overshoot
    bonferroni = t_quantile(n, 1 - (1 - confidence) / cells)
    return float(np.clip(np.quantile(largest, confidence), t_quantile(n, confidence), bonferroni))


def tasks_needed(sd: float, difference: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Fewest tasks whose paired t test finds `difference` with `power`; `sd` of the differences in the same unit."""
    if not (sd > 0 and difference != 0 and 0 < power < 1 and 0 < alpha < 1):
        raise ValueError("needs sd > 0, difference not 0, power and alpha between 0 and 1")
    enough = 2
    while _power(sd, difference, enough, alpha) < power:
        enough *= 2
    return bisect_left(range(enough), power, lo=2, key=lambda n: _power(sd, difference, n, alpha))


def _power(sd: float, difference: float, n: int, alpha: float) -> float:
    """Power of a two-sided paired t test with n pairs, exact non-central t."""
    critical, shift = t_quantile(n, 1 - alpha), np.sqrt(n) * abs(difference) / sd
    # the lower tail as the upper one of the mirrored t: scipy's nct.cdf is NaN there for two tasks
    return float(scipy.stats.nct.sf(critical, n - 1, shift) + scipy.stats.nct.sf(critical, n - 1, -shift))
