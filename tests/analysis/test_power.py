"""Numbers of tasks against published numbers and simulation, and the coverage of the nested intervals."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from learngene_core.analysis.statistics import hierarchical_interval, tasks_needed

NAN = float("nan")


@pytest.mark.parametrize(
    ("sd", "wanted"), [(3, (73, 20, 10)), (4, (128, 34, 16)), (5, (199, 52, 24)), (6, (285, 73, 34))]
)
def test_published_numbers_of_tasks(sd, wanted):
    assert tuple(tasks_needed(sd, difference) for difference in (1, 2, 3)) == wanted
    assert tasks_needed(sd, -2) == wanted[1]


@pytest.mark.parametrize(("n", "difference"), [(5, 8.4), (10, 5.0)])
def test_published_detectable_differences(n, difference):
    """What five and ten tasks find with 80 % power at an sd of 5, to the printed digit."""
    assert tasks_needed(5, difference + 0.06) == n
    assert tasks_needed(5, difference - 0.06) == n + 1


def test_power_against_simulation():
    rng = np.random.default_rng(0)
    p = stats.ttest_1samp(rng.normal(3, 5, (4000, tasks_needed(5, 3))), 0, axis=1).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize("call", [(0, 1), (5, 0), (NAN, 1), (5, 1, 1.0), (5, 1, 0.8, 0)])
def test_tasks_needed_refuses(call):
    with pytest.raises(ValueError):
        tasks_needed(*call)


def coverage(counts, sds, n_simulations, seed):
    """Share of simulated nested tables whose 95 % interval holds the truth; counts and sds from top to bottom.

    What the single unit of a leading level adds belongs to the truth: the interval speaks for that unit only.
    """
    rng, covered = np.random.default_rng(seed), 0
    levels = [f"level_{k}" for k in range(len(counts))]
    table = pd.MultiIndex.from_product([range(n) for n in counts], names=levels).to_frame(index=False)
    single = next((k for k, n in enumerate(counts) if n > 1), len(counts))
    for _ in range(n_simulations):
        total, truth = np.zeros(counts), 0.0
        for k, sd in enumerate(sds):
            effect = rng.normal(0, sd, counts[: k + 1])
            total += effect.reshape(effect.shape + (1,) * (len(counts) - k - 1))
            truth += effect.item() if k < single else 0.0
        table["value"] = total.ravel()
        found = hierarchical_interval(table, levels, "value", n_resamples=1000, seed=int(rng.integers(2**32)))
        covered += found.low <= truth <= found.high
    return covered / n_simulations


@pytest.mark.parametrize(
    ("counts", "sds"),
    [
        ((3, 5, 12), (2, 3, 8)),  # t on three class splits
        ((1, 5, 12), (2, 3, 8)),  # t on five ancestors of one split
        ((1, 1, 10), (2, 3, 8)),  # ten tasks: the smallest bootstrap
        ((10, 20), (1, 8)),  # noise below the top outweighs the top: drawing it again would cover 99 %
        ((15, 4), (3, 8)),
    ],
)
def test_coverage_at_small_counts(counts, sds):
    assert 0.92 <= coverage(counts, sds, n_simulations=500, seed=0) <= 0.98
