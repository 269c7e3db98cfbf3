"""The bound that can be computed: kl against its definition, validity against simulation, the Gibbs classifier."""

import math

import numpy as np
import pytest
from scipy import stats

from learngene_core.theory import bounds
from learngene_core.theory import prefixes as prefixbounds
from learngene_core.theory.theorem import ridge


# kl and its inversion -----------------------------------------------------------------------------------------------
def test_kl_against_its_definition_and_at_the_ends():
    assert bounds.kl(0.2, 0.5) == pytest.approx(0.2 * math.log(0.4) + 0.8 * math.log(1.6))
    assert bounds.kl(0, 0.3) == pytest.approx(-math.log(0.7)) and bounds.kl(1, 0.3) == pytest.approx(-math.log(0.3))
    assert bounds.kl(0, 0) == bounds.kl(1, 1) == bounds.kl(0.4, 0.4) == 0
    assert bounds.kl(0.5, 1) == bounds.kl(0.5, 0) == math.inf


def test_the_inversion_is_the_largest_p_of_a_fine_grid():
    grid = np.linspace(0, 1, 4001)
    for q in (0.0, 0.01, 0.3, 0.77, 0.999):
        for budget in (1e-6, 0.01, 0.3, 2.0, 20.0):
            largest = max(p for p in grid[grid >= q] if bounds.kl(q, p) <= budget)
            found = bounds.kl_upper(q, budget)
            assert largest <= found <= largest + 3e-4
            assert found == 1 or bounds.kl(q, found) >= budget, "rounding never makes the bound too small"


def test_the_inversion_at_its_limits_and_monotone():
    assert bounds.kl_upper(0, 0.7) == pytest.approx(1 - math.exp(-0.7))
    assert bounds.kl_upper(0.3, 0) == pytest.approx(0.3, abs=1e-6)
    assert bounds.kl_upper(1, 0.2) == bounds.kl_upper(0.3, math.inf) == bounds.kl_upper(0, 1e4) == 1
    values = np.array([[bounds.kl_upper(q, b) for b in np.linspace(0, 3, 25)] for q in np.linspace(0, 1, 21)])
    assert (np.diff(values, axis=0) >= -1e-9).all() and (np.diff(values, axis=1) >= -1e-9).all()
    assert (values <= 1).all() and (values >= np.linspace(0, 1, 21)[:, None]).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: bounds.kl(1.1, 0.5),
        lambda: bounds.kl_upper(-0.1, 1),
        lambda: bounds.kl_upper(0.1, -1),
        lambda: bounds.kl_upper(0.1, math.nan),
        lambda: bounds.divergence(1, 0, 1),
        lambda: bounds.divergence(1, 1, 0),
        lambda: bounds.pac_bayes(0.1, 1, 0, 0.05),
        lambda: bounds.pac_bayes(0.1, 1, 10, 1.0),
    ],
)
def test_bounds_refuse_what_makes_no_sense(call):
    with pytest.raises(ValueError):
        call()


def test_the_divergence_is_that_of_the_two_gaussians():
    rng = np.random.default_rng(3)
    w, s = rng.normal(size=6), 0.4
    draws = w + s * rng.standard_normal((200_000, 6))
    ratio = stats.norm(w, s).logpdf(draws).sum(1) - stats.norm(0, s).logpdf(draws).sum(1)
    assert bounds.divergence(float(w @ w), s, 1) == pytest.approx(ratio.mean(), rel=0.01)
    assert bounds.divergence(0, s, 13) == pytest.approx(math.log(13))


# validity -----------------------------------------------------------------------------------------------------------
def test_the_constant_of_the_bound_holds_for_every_number_of_images():
    """E exp(m kl(e^ || e)) <= 2 sqrt(m), the lemma behind the bound, summed exactly."""
    for m in (1, 2, 3, 5, 8, 20, 100):
        k = np.arange(m + 1)
        for p in (0.01, 0.2, 0.5, 0.9):
            terms = stats.binom.logpmf(k, m, p) + m * np.array([bounds.kl(i / m, p) for i in k])
            assert np.exp(terms).sum() <= 2 * math.sqrt(m) * (1 + 1e-9)


def test_unequal_images_are_covered_too():
    """The same expectation for a fixed number of images per class, whose errors are not equally likely (Hoeffding 1956)."""
    p = np.repeat([0.05, 0.2, 0.9], 6)
    law = np.array([1.0])
    for each in p:
        law = np.convolve(law, [1 - each, each])
    m, k = len(p), np.arange(len(p) + 1)
    assert law @ np.exp(m * np.array([bounds.kl(i / m, p.mean()) for i in k])) <= 2 * math.sqrt(m)


@pytest.mark.parametrize("n", [1, 10, 200])
def test_the_sampling_limit_fails_no_more_often_than_it_says(n):
    k, delta = np.arange(n + 1), 0.1
    limits = np.array([bounds.sampling_limit(i / n, n, delta) for i in k])
    misses = [stats.binom.pmf(k, n, p)[limits < p].sum() for p in np.linspace(0.01, 0.99, 99)]
    assert max(misses) <= delta
    assert n < 10 or max(misses) > delta / 20, "a limit that never fails would be an empty one"


def test_choosing_must_be_paid_for():
    """The best of 200 guesses on pure noise: with log R in the bound it holds, without it fails again and again."""
    rng, m, n, delta = np.random.default_rng(4), 40, 200, 0.1
    lowest = rng.binomial(m, 0.5, (1000, n)).min(1) / m
    paid = np.array([bounds.pac_bayes(e, math.log(n), m, delta) for e in lowest])
    unpaid = np.array([bounds.pac_bayes(e, 0.0, m, delta) for e in lowest])
    assert (paid < 0.5).mean() <= delta < (unpaid < 0.5).mean()


def simulated_heads(rng, shots=30, n_query=500, way=2, d=4):
    """A target task whose features are known by law: Gaussian classes around fixed means; two 'prefixes', one of noise."""
    means = np.eye(way, d)

    def draw(n):
        labels = np.repeat(np.arange(way), n)
        x = means[labels] - means.mean(0) + 0.4 * rng.standard_normal((way * n, d))
        return {"good": x, "noise": rng.standard_normal(x.shape)}, labels

    (support, labels), (query, queries) = draw(shots), draw(n_query)
    squares, logits, sizes = {}, {}, {}
    for block, x in support.items():
        w = ridge(x, np.eye(way)[labels].T - 1 / way, 5.0)  # (way, d)
        squares[block], logits[block] = float((w**2).sum()), (x @ w.T, query[block] @ w.T)
        sizes[block] = np.linalg.norm(x, axis=1), np.linalg.norm(query[block], axis=1)
    return prefixbounds.Heads(1, shots, squares, logits, sizes, (labels, queries))


def test_the_bound_holds_on_fresh_tasks_as_often_as_it_says():
    rng = np.random.default_rng(5)
    table = prefixbounds.bound_table([simulated_heads(rng) for _ in range(100)], spread=0.2, delta=0.2)
    assert (table["gibbs_error"] > table["bound"]).mean() <= 0.2
    assert (table["block"] == "good").mean() > 0.9
    assert (table["bound"] < table["chance"]).mean() > 0.5, "a bound that says nothing would always hold"


# the Gibbs classifier -----------------------------------------------------------------------------------------------
def test_drawn_heads_and_drawn_logits_fail_alike():
    rng = np.random.default_rng(6)
    m, d, way, s = 12, 5, 4, 0.7
    x, w, labels = rng.normal(size=(m, d)), rng.normal(size=(way, d)), rng.integers(0, way, m)
    n = 20_000
    heads = w + s * rng.standard_normal((n, way, d))
    real = (np.einsum("nkd,md->nmk", heads, x).argmax(-1) != labels).mean(0)
    spread = s * np.linalg.norm(x, axis=1)
    exact = bounds.gibbs_exact(x @ w.T, labels, spread)
    drawn = bounds.gibbs_errors(x @ w.T, labels, spread, rng.standard_normal((way, n, m), np.float32)).mean(0)
    assert np.allclose(real, exact, atol=0.015) and np.allclose(drawn, exact, atol=0.015)
    assert np.allclose(exact, bounds.gibbs_exact(x @ w.T, labels, spread, points=801), atol=1e-10)


def test_gibbs_errors_at_the_limits():
    logits, labels = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), np.array([0, 0])
    noise = np.random.default_rng(7).standard_normal((3, 500, 2))
    assert bounds.gibbs_errors(logits, labels, np.zeros(2), noise).mean(0).tolist() == [0, 1]
    assert np.allclose(bounds.gibbs_exact(logits, labels, np.array([1e-9, 1e-9])), [0, 1])
    assert np.allclose(bounds.gibbs_exact(logits, labels, np.array([1e9, 1e9])), 2 / 3)
    one = np.ones((2, 1))
    assert np.allclose(bounds.gibbs_exact(one, labels, np.ones(2)), 0), "one class is never missed"


def test_the_mean_head_errs_at_most_twice_as_often():
    rng = np.random.default_rng(8)
    logits, labels = rng.normal(size=(500, 5)), rng.integers(0, 5, 500)
    for spread in (0.05, 0.5, 3.0):
        gibbs = bounds.gibbs_exact(logits, labels, np.full(500, spread))
        assert ((logits.argmax(1) != labels) <= 2 * gibbs + 1e-12).all(), "image by image"
