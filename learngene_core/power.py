"""How many tasks a comparison needs, what a number of tasks can find, and whether the nested intervals keep 95 %."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import optimize, stats

from .statistics import hierarchical_interval, t_quantile


def tasks_needed(sd: float, difference: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Fewest tasks whose paired t test finds `difference` with `power`; `sd` of the differences in the same unit."""
    if not (sd > 0 and difference != 0 and 0 < power < 1 and 0 < alpha < 1):
        raise ValueError("needs sd > 0, difference not 0, power and alpha between 0 and 1")
    enough = 2
    while _power(sd, difference, enough, alpha) < power:
        enough *= 2
    return bisect_left(range(enough), power, lo=2, key=lambda n: _power(sd, difference, n, alpha))


def detectable_difference(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest difference that `n` tasks find with `power`, in the unit of `sd` (of the differences)."""
    if not (sd > 0 and n >= 2 and alpha < power < 1 and 0 < alpha < 1):
        raise ValueError("needs sd > 0, n >= 2, 0 < alpha < power < 1")
    high = sd
    while _power(sd, high, n, alpha) < power:
        high *= 2
    return float(optimize.brentq(lambda difference: _power(sd, difference, n, alpha) - power, 0, high))


def coverage(
    n_units_per_level: Sequence[int], sds_per_level: Sequence[float], n_simulations: int = 500, seed: int = 0
) -> float:
    """Share (0 to 1) of simulated tables whose 95 % `hierarchical_interval` holds the truth.

    Counts and sds of the normal effects run from top to bottom. What the single unit of a leading level adds belongs to
    the truth, since the interval speaks for that unit only. Lengths that differ: ValueError.
    """
    counts, rng, covered = tuple(n_units_per_level), np.random.default_rng(seed), 0
    levels = [f"level_{k}" for k in range(len(counts))]
    table = pd.MultiIndex.from_product([range(n) for n in counts], names=levels).to_frame(index=False)
    single = next((k for k, n in enumerate(counts) if n > 1), len(counts))
    for _ in range(n_simulations):
        total, truth = np.zeros(counts), 0.0
        for k, (_, sd) in enumerate(zip(counts, sds_per_level, strict=True)):
            effect = rng.normal(0, sd, counts[: k + 1])
            total += effect.reshape(effect.shape + (1,) * (len(counts) - k - 1))
            truth += effect.item() if k < single else 0.0
        table["value"] = total.ravel()
        found = hierarchical_interval(table, levels, "value", n_resamples=1000, seed=int(rng.integers(2**32)))
        covered += found.low <= truth <= found.high
    return covered / n_simulations


def _power(sd: float, difference: float, n: int, alpha: float) -> float:
    """Power of a two-sided paired t test with n pairs, exact non-central t."""
    critical, shift = t_quantile(n, 1 - alpha), np.sqrt(n) * abs(difference) / sd
    # the lower tail as the upper one of the mirrored t: scipy's nct.cdf is NaN there for two tasks
    return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.sf(critical, n - 1, -shift))
