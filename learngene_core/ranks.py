"""Rank correlation of criteria with gains, its interval, and the part that a control does not explain."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .statistics import Interval, expanded_limits, finite


def rank_correlation(x: ArrayLike, y: ArrayLike, kind: str = "spearman") -> float:
    """Spearman's rho or Kendall's tau-b of x and y, both (cells,); NaN when one is constant. Bad input: ValueError."""
    x, y = finite(x, 1), finite(y, 1)
    if kind not in ("spearman", "kendall"):
        raise ValueError(f"kind is 'spearman' or 'kendall', not {kind!r}")
    if x.shape != y.shape:
        raise ValueError(f"ranks need as many x as y: {len(x)} against {len(y)}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float((stats.spearmanr if kind == "spearman" else stats.kendalltau)(x, y).statistic)


def rank_correlation_interval(
    scores: ArrayLike, gains: ArrayLike, kind: str = "spearman", n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Rank correlation of `scores` (cells,) with the mean over units of `gains` (units, cells), 95 % bootstrap limits.

    Units are resampled. A resample carries their noise twice, so its correlation is too near 0 and plain percentiles
    would lie too low: the larger of the two deviations serves on both sides, cut at -1 and 1. The estimate stays
    attenuated by sqrt(reliability). One unit or constant scores: NaN limits. Bad shapes, NaN, unknown kind: ValueError.
    """
    gains = finite(gains, 2)
    n, estimate = len(gains), rank_correlation(scores, gains.mean(axis=0), kind)
    if n == 1 or np.isnan(estimate):
        return Interval(estimate, np.nan, np.nan, n)
    draws = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    resampled = np.array([rank_correlation(scores, gains[units].mean(axis=0), kind) for units in draws])
    low, high = expanded_limits(resampled[~np.isnan(resampled)], n, 0.95)
    half = max(estimate - low, high - estimate)
    return Interval(estimate, max(-1.0, estimate - half), min(1.0, estimate + half), n)


def partial_rank_correlation(x: ArrayLike, y: ArrayLike, control: ArrayLike) -> float:
    """Spearman's rho of x and y (cells,) without what the ranks of `control` (cells,) or (cells, k) explain linearly.

    NaN when the control explains x or y wholly. Lengths that differ, NaN or empty input: ValueError.
    """
    control = np.asarray(control, dtype=float)
    control = stats.rankdata(finite(control[:, None] if control.ndim == 1 else control, 2), axis=0)
    ranks = np.column_stack([stats.rankdata(finite(values, 1)) for values in (x, y)])
    if len(ranks) != len(control):
        raise ValueError(f"needs as many control values as x and y: {len(control)} against {len(ranks)}")
    design = np.column_stack([np.ones(len(control)), control])
    rest = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    norms = np.linalg.norm(rest, axis=0)
    if (norms <= 1e-9 * np.linalg.norm(ranks, axis=0)).any():
        return float("nan")
    return float(rest[:, 0] @ rest[:, 1] / norms.prod())
