"""Rank correlation of criteria with gains, its interval, and the part that a control does not explain."""

from __future__ import annotations

import numpy as np
import scipy  # its parts are loaded when they are used; stats takes half a second
from numpy.typing import ArrayLike

from .statistics import Interval, expanded_limits, finite, t_quantile


def rank_correlation(x: ArrayLike, y: ArrayLike, kind: str = "spearman") -> float:
    """Spearman's rho or Kendall's tau-b of x and y, both (cells,); NaN when one is constant. Bad input: ValueError."""
    x, y = finite(x, 1), finite(y, 1)
    if kind not in ("spearman", "kendall"):
        raise ValueError(f"kind is 'spearman' or 'kendall', not {kind!r}")
    if x.shape != y.shape:
        raise ValueError(f"ranks need as many x as y: {len(x)} and {len(y)}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float((scipy.stats.spearmanr if kind == "spearman" else scipy.stats.kendalltau)(x, y).statistic)


def rank_correlations(x: ArrayLike, rows: ArrayLike, kind: str = "spearman") -> np.ndarray:
    """`rank_correlation` of x (cells,) with each of `rows` (r, cells), all at once: (r,); NaN where one is constant."""
    x, rows = finite(x, 1), finite(rows, 2)
    if kind not in ("spearman", "kendall"):
        raise ValueError(f"kind is 'spearman' or 'kendall', not {kind!r}")
    if len(x) != rows.shape[1]:
        raise ValueError(f"ranks need as many x as y: {len(x)} and {rows.shape[1]}")
    if kind == "spearman":
        mine, others = scipy.stats.rankdata(x), scipy.stats.rankdata(rows, axis=1)
        return _cosines(mine - mine.mean(), others - others.mean(axis=1, keepdims=True))
    first, second = np.triu_indices(len(x), 1)
    signs = np.sign(x[first] - x[second])  # tau-b is the cosine of the signs of all pairs
    pieces = np.array_split(rows, 1 + rows.shape[0] * len(signs) // 2**21)  # 91 blocks are 4,095 pairs
    return np.concatenate([_cosines(signs, np.sign(part[:, first] - part[:, second])) for part in pieces])


def _cosines(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Cosine of x (k,) with each of `rows` (r, k); NaN where one is 0 everywhere."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return rows @ x / np.sqrt((x @ x) * (rows**2).sum(axis=1))


def pair_correlation_interval(x: ArrayLike, y: ArrayLike) -> Interval:
    """Spearman's rho of n independent pairs x, y, both (n,), with 95 % limits by Fisher's z.

    Standard error of z: Bonett & Wright 2000 (doi 10.1007/BF02294183). A rho of 1 would have limits of width 0; they start from
    halfway to the next value that n pairs can give. Fewer than four pairs or a constant side: NaN limits.
    """
    n, rho = len(np.atleast_1d(x)), rank_correlation(x, y)
    if n < 4 or np.isnan(rho):
        return Interval(rho, np.nan, np.nan, n)
    most = 1 - 6 / (n * (n**2 - 1))
    half = scipy.stats.norm.ppf(0.975) * np.sqrt((1 + rho**2 / 2) / (n - 3))
    low, high = np.tanh(np.arctanh(np.clip(rho, -most, most)) + np.array([-half, half]))
    return Interval(rho, float(min(low, rho)), float(max(high, rho)), n)


def rank_correlation_interval(
    scores: ArrayLike, gains: ArrayLike, kind: str = "spearman", n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Rank correlation of `scores` (cells,) with the mean over units of `gains` (units, cells), 95 % bootstrap limits.

    Units are resampled. A resample carries their noise twice, so its correlation is too near 0 and plain percentiles
    would lie too low: the larger of the two deviations serves on both sides, cut at -1 and 1. A few units give few
    different resamples (with two, percentiles cover 50 %): the deviation is at least that of a t interval with their
    spread, which matters below six units and covers 93-99 % there (simulated). The estimate stays attenuated by
    sqrt(reliability). One unit or constant scores: NaN limits. Bad shapes, NaN, unknown kind: ValueError.
    """
    gains = finite(gains, 2)
    estimate = rank_correlation(scores, gains.mean(axis=0), kind)
    if len(gains) == 1 or np.isnan(estimate):
        return Interval(estimate, np.nan, np.nan, len(gains))
    resampled = rank_correlations(scores, _resampled_means(gains, n_resamples, seed), kind)
    return _wider_side(estimate, resampled, len(gains), 1.0)


def rank_difference_interval(
    scores: ArrayLike,
    rival: ArrayLike,
    gains: ArrayLike,
    kind: str = "spearman",
    n_resamples: int = 2000,
    seed: int = 0,
    *,
    rival_either_way: bool = False,
) -> Interval:
    """By how much `scores` rank the cells better than `rival` does, both (cells,): a paired bootstrap over units.

    The same resamples of `gains` (units, cells) serve both. With `rival_either_way` the rival has the sign that suits it on
    the whole table: depth alone predicts as well when shallow blocks are the good ones. Limits as in
    `rank_correlation_interval`, cut at -2 and 2.
    """
    gains = finite(gains, 2)
    mean = gains.mean(axis=0)
    own, other = rank_correlation(scores, mean, kind), rank_correlation(rival, mean, kind)
    sign = -1.0 if rival_either_way and other < 0 else 1.0
    estimate = own - sign * other
    if len(gains) == 1 or np.isnan(estimate):
        return Interval(estimate, np.nan, np.nan, len(gains))
    means = _resampled_means(gains, n_resamples, seed)
    resampled = rank_correlations(scores, means, kind) - sign * rank_correlations(rival, means, kind)
    return _wider_side(estimate, resampled, len(gains), 2.0)


def _resampled_means(gains: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """Means (r, cells) of resampled units of `gains` (units, cells)."""
    n = len(gains)
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples) / n @ gains


def _wider_side(estimate: float, resampled: np.ndarray, n: int, most: float) -> Interval:
    """Limits of an estimate from its resamples (r,) over n units, the same on both sides, cut at +-`most`."""
    resampled = resampled[~np.isnan(resampled)]
    low, high = expanded_limits(resampled, n, 0.95)
    spread = t_quantile(n, 0.95) * np.sqrt(n / (n - 1)) * resampled.std()
    half = max(estimate - low, high - estimate, spread)
    return Interval(estimate, float(max(-most, estimate - half)), float(min(most, estimate + half)), n)


def partial_rank_correlation(x: ArrayLike, y: ArrayLike, control: ArrayLike) -> float:
    """Spearman's rho of x and y (cells,) without what the ranks of `control` (cells,) or (cells, k) explain linearly.

    NaN when the control explains x or y wholly. Lengths that differ, NaN or empty input: ValueError.
    """
    control = np.asarray(control, dtype=float)
    control = scipy.stats.rankdata(finite(control[:, None] if control.ndim == 1 else control, 2), axis=0)
    ranks = np.column_stack([scipy.stats.rankdata(finite(values, 1)) for values in (x, y)])
    if len(ranks) != len(control):
        raise ValueError(f"needs as many control values as x and y: {len(control)} and {len(ranks)}")
    design = np.column_stack([np.ones(len(control)), control])
    rest = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    norms = np.linalg.norm(rest, axis=0)
    if (norms <= 1e-9 * np.linalg.norm(ranks, axis=0)).any():
        return float("nan")
    return float(rest[:, 0] @ rest[:, 1] / norms.prod())
