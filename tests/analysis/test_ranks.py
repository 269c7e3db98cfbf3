"""Rank correlations against their definitions, their intervals against the noise-free correlation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from learngene_core.analysis import ranks

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


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
def test_many_rank_correlations_at_once_are_those_one_by_one(kind):
    rng = np.random.default_rng(4)
    x, rows = rng.integers(0, 6, 30), rng.integers(0, 9, (40, 30))
    rows[3] = 5
    wanted = [ranks.rank_correlation(x, row, kind) for row in rows]
    np.testing.assert_allclose(ranks.rank_correlations(x, rows, kind), wanted)
    assert np.isnan(wanted[3]) and np.isfinite(wanted).sum() == 39
    many = rng.normal(size=(6000, 30))  # more than one piece
    np.testing.assert_allclose(ranks.rank_correlations(x, many, kind)[-1], ranks.rank_correlation(x, many[-1], kind))
    for bad in ((x[1:], rows, kind), (x, rows, "pearson"), (x, rows[0], kind), (x, rows * NAN, kind)):
        with pytest.raises(ValueError):
            ranks.rank_correlations(*bad)


def test_rank_difference_is_paired():
    rng = np.random.default_rng(5)
    gains = np.arange(20.0) + rng.normal(0, 15, (12, 20))
    good, bad = np.arange(20.0), rng.normal(size=20)
    found = ranks.rank_difference_interval(good, bad, gains, n_resamples=300)
    mean = gains.mean(axis=0)
    assert found.estimate == pytest.approx(ranks.rank_correlation(good, mean) - ranks.rank_correlation(bad, mean))
    assert 0 < found.low < found.estimate < found.high <= 2
    back = ranks.rank_difference_interval(bad, good, gains, n_resamples=300)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    same = ranks.rank_difference_interval(good, np.exp(good), gains, n_resamples=300)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)  # the noise of the tasks is common to both
    apart = ranks.rank_correlation_interval(good, gains, n_resamples=300)
    near = ranks.rank_difference_interval(good, good + rng.normal(0, 0.5, 20), gains, n_resamples=300)
    assert near.half_width < apart.half_width


def test_a_rival_may_predict_either_way():
    gains = np.arange(13.0) + np.random.default_rng(6).normal(0, 3, (8, 13))
    depth = -np.arange(13.0)
    one_way = ranks.rank_difference_interval(np.arange(13.0), depth, gains, n_resamples=100)
    either = ranks.rank_difference_interval(np.arange(13.0), depth, gains, n_resamples=100, rival_either_way=True)
    assert one_way.estimate > 1.8 and either.estimate == pytest.approx(0)
    assert np.isnan(ranks.rank_difference_interval(depth, np.ones(13), gains).estimate)
    assert np.isnan(ranks.rank_difference_interval(depth, -depth, gains[:1]).low)


@pytest.mark.parametrize("n_tasks", [2, 4, 6, 12, 20])
def test_rank_intervals_cover_at_the_counts_of_the_presets(n_tasks):
    """The coarse atlas of 13 blocks (34 cells, shared scratch): rho and a difference of two, against those without noise."""
    rng, hits, apart = np.random.default_rng(n_tasks), 0, 0
    blocks = [(a, b) for a in range(1, 14) for b in range(a, 14) if a == 1 or b == 13 or b - a == 2]
    for seed in range(150):
        scores, rival, rest = ([layer[a - 1 : b].mean() for a, b in blocks] for layer in rng.normal(size=(3, 13)))
        truth = 6 * np.array(scores) + 4 * np.array(rest) + [0.8 * (b - a) for a, b in blocks]
        gains = truth + rng.normal(0, 5, (n_tasks, 1)) + rng.normal(0, 5, (n_tasks, 34))
        found = ranks.rank_correlation_interval(scores, gains, n_resamples=150, seed=seed)
        rho, other = ranks.rank_correlation(scores, truth), ranks.rank_correlation(rival, truth)
        hits += found.low <= rho <= found.high
        found = ranks.rank_difference_interval(scores, rival, gains, n_resamples=150, seed=seed)
        apart += found.low <= rho - other <= found.high
    assert 0.9 <= hits / 150 <= 1 and 0.9 <= apart / 150 <= 1
    assert n_tasks == 2 or hits + apart < 300  # no limits that hold everything


@pytest.mark.parametrize(("n", "rho"), [(4, 0.0), (8, 0.0), (8, 0.6), (20, 0.6)])
def test_pair_correlation_covers_at_the_numbers_of_source_tasks(n, rho):
    rng, truth = np.random.default_rng(n), 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of normal pairs
    pairs = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=(800, n))
    found = [ranks.pair_correlation_interval(*pair.T) for pair in pairs]
    assert 0.92 <= np.mean([i.low <= truth <= i.high for i in found]) <= (0.98 if n > 4 else 1)
    assert all(-1 <= i.low <= i.estimate <= i.high <= 1 for i in found)


def test_pair_correlation_against_fisher_and_at_the_edges():
    x, y = np.random.default_rng(3).normal(size=(2, 15))
    found, rho = ranks.pair_correlation_interval(x, y), stats.spearmanr(x, y).statistic
    half = 1.96 * np.sqrt((1 + rho**2 / 2) / 12)
    limits = np.tanh(np.arctanh(rho) + np.array([-half, half]))
    assert (found.estimate, found.low, found.high, found.n) == pytest.approx((rho, *limits, 15), abs=1e-4)
    perfect = ranks.pair_correlation_interval(range(4), range(4))
    assert perfect.estimate == perfect.high == 1 and perfect.low < 0  # four pairs in order prove nothing
    assert ranks.pair_correlation_interval(range(8), range(8)).low > 0.5
    for few in (range(3), [5] * 9):
        assert np.isnan(ranks.pair_correlation_interval(range(len(few)), few).low)
    with pytest.raises(ValueError):
        ranks.pair_correlation_interval([1, 2, NAN, 4], range(4))


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
