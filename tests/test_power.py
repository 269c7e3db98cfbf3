"""Numbers of tasks and differences against published numbers and simulation, coverage of the nested intervals."""

import numpy as np
import pytest
from scipy import stats

from learngene_core.analysis import statistics as power

NAN = float("nan")


@pytest.mark.parametrize(
    ("sd", "wanted"), [(3, (73, 20, 10)), (4, (128, 34, 16)), (5, (199, 52, 24)), (6, (285, 73, 34))]
)
def test_published_numbers_of_tasks(sd, wanted):
    assert tuple(power.tasks_needed(sd, difference) for difference in (1, 2, 3)) == wanted
    assert power.tasks_needed(sd, -2) == wanted[1]


def test_published_detectable_differences():
    assert power.detectable_difference(5, 5) == pytest.approx(8.4, abs=0.05)
    assert power.detectable_difference(5, 10) == pytest.approx(5.0, abs=0.05)


def test_power_functions_are_each_other_s_inverse():
    for n in (2, 3, 7, 30, 250):
        difference = power.detectable_difference(4, n)
        assert power.tasks_needed(4, difference * 1.0001) == n
        assert power.tasks_needed(4, difference * 0.9999) == n + 1


def test_power_against_simulation():
    rng = np.random.default_rng(0)
    p = stats.ttest_1samp(rng.normal(3, 5, (4000, power.tasks_needed(5, 3))), 0, axis=1).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize("call", [(0, 1), (5, 0), (NAN, 1), (5, 1, 1.0), (5, 1, 0.8, 0)])
def test_tasks_needed_refuses(call):
    with pytest.raises(ValueError):
        power.tasks_needed(*call)


@pytest.mark.parametrize("call", [(0, 5), (5, 1), (5, 9, 0.01), (5, 9, 0.8, 1)])
def test_detectable_difference_refuses(call):
    with pytest.raises(ValueError):
        power.detectable_difference(*call)


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
    assert 0.92 <= power.coverage(counts, sds, n_simulations=500, seed=0) <= 0.98


def test_coverage_is_seeded_and_checks_its_levels():
    assert power.coverage((3, 4), (1, 2), 50, seed=5) == power.coverage((3, 4), (1, 2), 50, seed=5)
    with pytest.raises(ValueError):
        power.coverage((3, 4), (1,), 2)
