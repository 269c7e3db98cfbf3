"""Rank correlations against their definitions, their intervals against the noise-free correlation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from learngene_core import ranks

NAN = float("nan")


def test_rank_correlations_against_their_definitions():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 8, (2, 15))  # with ties
    wanted = np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]
    assert ranks.rank_correlation(x, y) == pytest.approx(wanted)
    pairs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in itertools.combinations(range(15), 2)]
    a, b = np.array(pairs).T
    assert ranks.rank_correlation(x, y, "kendall") == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
def test_rank_correlation_sees_order_only(kind):
    x, y = np.random.default_rng(1).normal(size=(2, 13))
    rho = ranks.rank_correlation(x, y, kind)
    assert ranks.rank_correlation(np.exp(x), y**3, kind) == pytest.approx(rho)
    assert ranks.rank_correlation(-x, y, kind) == pytest.approx(-rho)
    assert ranks.rank_correlation(x, np.exp(x), kind) == pytest.approx(1)
    assert np.isnan(ranks.rank_correlation(x, np.ones(13), kind))


@pytest.mark.parametrize(
    ("x", "y", "kind"), [([1, 2], [1, 2], "pearson"), ([1, 2], [1, 2, 3], "kendall"), ([1, NAN], [1, 2], "spearman")]
)
def test_rank_correlation_refuses(x, y, kind):
    with pytest.raises(ValueError):
        ranks.rank_correlation(x, y, kind)


def test_rank_interval_holds_the_noise_free_correlation():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(60):
        scores = rng.normal(size=36)
        truth = 5 * (0.9 * scores + 0.45 * rng.normal(size=36))
        found = ranks.rank_correlation_interval(scores, truth + rng.normal(0, 5, (12, 36)), n_resamples=150, seed=seed)
        assert -1 <= found.low <= found.estimate <= found.high <= 1
        hits += found.low <= ranks.rank_correlation(scores, truth) <= found.high
    assert hits >= 51  # measured .95 here; plain percentiles .23


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
def test_rank_interval_narrows_with_units_and_is_seeded(kind):
    rng = np.random.default_rng(1)
    scores = np.arange(13.0)
    gains = scores + rng.normal(0, 8, (64, 13))
    few, many, again = (
        ranks.rank_correlation_interval(scores, g, kind, n_resamples=200, seed=3) for g in (gains[:8], gains, gains)
    )
    assert many == again and (few.n, many.n) == (8, 64) and many.half_width < few.half_width
    assert many.estimate == pytest.approx(ranks.rank_correlation(scores, gains.mean(axis=0), kind))


def test_rank_interval_without_limits():
    gains = np.random.default_rng(1).normal(size=(5, 13))
    one = ranks.rank_correlation_interval(np.arange(13), gains[:1])
    assert np.isfinite(one.estimate) and np.isnan([one.low, one.high]).all()
    assert np.isnan(ranks.rank_correlation_interval(np.ones(13), gains).estimate)
    with pytest.raises(ValueError):
        ranks.rank_correlation_interval(np.arange(12), gains)


def test_partial_rank_correlation_against_its_formula():
    rng = np.random.default_rng(2)
    depth = rng.permutation(13)
    x, y = depth + rng.normal(0, 4, (2, 13))
    xy, xz, yz = (ranks.rank_correlation(*pair) for pair in ((x, y), (x, depth), (y, depth)))
    wanted = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert ranks.partial_rank_correlation(x, y, depth) == pytest.approx(wanted)
    assert ranks.partial_rank_correlation(x, y, np.column_stack([depth, depth])) == pytest.approx(wanted)


def test_a_criterion_that_is_only_depth_explains_nothing_more():
    rng = np.random.default_rng(3)
    depth = np.arange(200)
    x, y = depth + rng.normal(0, 20, (2, 200))
    assert ranks.rank_correlation(x, y) > 0.8 and abs(ranks.partial_rank_correlation(x, y, depth)) < 0.2
    assert np.isnan(ranks.partial_rank_correlation(np.exp(depth / 50), y, depth))
    with pytest.raises(ValueError):
        ranks.partial_rank_correlation(x, y, depth[:-1])
