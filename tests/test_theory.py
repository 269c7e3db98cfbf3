"""Notebook 07: ridge and subspaces against closed forms, the norm term against brute force, the bound against simulation."""

import dataclasses
import math
import subprocess
import sys

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

from learngene_core.config import Config
from learngene_core.errors import HEADLESS, StudyError
from learngene_core.explorer import theory as theoryexplore
from learngene_core.figures import theory as theoryfigures
from learngene_core.figures.theory import bound_pair, bound_tasks, gain_map, norm_figure, risk_curves, term_figure
from learngene_core.runs.run import Run
from learngene_core.study.chain import Chain
from learngene_core.theory import bounds
from learngene_core.theory import prefixes as prefixbounds
from learngene_core.theory import theorem as theory


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


# ridge and subspaces ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("m", "d"), [(7, 20), (20, 20), (40, 6), (3, 1)])
def test_ridge_is_the_minimiser_that_sklearn_finds(m, d):
    rng = np.random.default_rng(m)
    x, y = rng.normal(size=(m, d)), rng.normal(size=m)
    found = theory.ridge(x, y, 0.7)
    assert np.allclose(found, Ridge(alpha=0.7, fit_intercept=False).fit(x, y).coef_)
    assert np.allclose(x.T @ (x @ found - y) + 0.7 * found, 0)
    assert np.array_equal(theory.ridge(x[None], y[None], 0.7)[0], found)


@pytest.mark.parametrize(("m", "d"), [(8, 15), (15, 15), (20, 4), (5, 1)])
def test_the_strength_is_the_one_that_leaving_out_one_by_one_finds(m, d):
    rng = np.random.default_rng(d)
    x, y = rng.normal(size=(2, m, d)), rng.normal(size=(2, m))
    found, strengths = theory.ridge_by_leaving_out(x, y)
    for i in range(2):
        errors = [
            sum((y[i, j] - x[i, j] @ theory.ridge(np.delete(x[i], j, 0), np.delete(y[i], j), a)) ** 2 for j in range(m))
            for a in theory.STRENGTHS
        ]
        assert strengths[i] == theory.STRENGTHS[np.argmin(errors)]
        assert np.allclose(found[i], theory.ridge(x[i], y[i], strengths[i]))


@pytest.mark.parametrize("strength", [0, -1, float("nan")])
def test_ridge_refuses_a_strength_that_is_not_positive(strength):
    with pytest.raises(ValueError, match="positive"):
        theory.ridge(np.ones((2, 2)), np.ones(2), strength)


def test_the_subspace_of_exact_solutions_is_found():
    rng = np.random.default_rng(0)
    basis = theory.orthonormal(rng, 30, 4)
    assert np.allclose(basis.T @ basis, np.eye(4))
    x, y, w = theory.draw_tasks(rng, basis, 12, 60, noise=0.0)
    assert np.allclose(np.linalg.norm(w, axis=1), 1) and np.allclose(w @ basis @ basis.T, w)
    learned = theory.subspace_of(theory.ridge(x, y, 1e-9), 4)
    assert np.allclose(learned @ learned.T, basis @ basis.T, atol=1e-6)
    assert theory.subspace_of(w[:2], 4).shape == (30, 2)


def test_sharing_helps_with_many_tasks_and_a_small_subspace_only():
    small = {"d": 40, "ms": (30,), "n_repetitions": 5}
    table = theory.risk_table(theory.simulate(k=2, ts=(1, 60), **small)).set_index(["t", "space"])
    assert table.loc[(60, "learned"), "gain_low"] > 0 > table.loc[(1, "learned"), "gain_high"]
    risks = table.loc[60]["risk"]
    assert risks["true"] < risks["learned"] < risks["full"] < risks["random"]
    assert table.loc[(60, "true"), "captured"] == pytest.approx(1) and table.loc[
        (60, "full"), "captured"
    ] == pytest.approx(1)
    assert table.loc[(1, "learned"), "captured"] < table.loc[(60, "learned"), "captured"] <= 1
    whole = theory.risk_table(theory.simulate(k=40, ts=(60,), **small)).set_index("space")["risk"]
    assert np.allclose(whole, whole["full"]), "with k = d every space is the full one"


def test_the_simulation_is_seeded_and_pairs_its_repetitions():
    small = {"d": 12, "k": 2, "ms": (6,), "ts": (1, 3), "n_repetitions": 4}
    one, two, other = (theory.simulate(seed=s, **small) for s in (0, 0, 1))
    assert one.equals(two) and not one.equals(other)
    wide = one[one["t"] == 3].pivot(index="repetition", columns="space", values="risk")
    row = theory.risk_table(one).set_index(["t", "space"]).loc[(3, "learned")]
    gain = wide["full"] - wide["learned"]
    assert row["gain"] == pytest.approx(gain.mean())
    assert row["gain_high"] - row["gain"] == pytest.approx(stats.t.ppf(0.975, 3) * gain.sem())


@pytest.mark.parametrize("change", [{"k": 0}, {"k": 13}, {"ms": (1,)}, {"ts": (0,)}, {"n_repetitions": 1}])
def test_the_simulation_refuses(change):
    with pytest.raises(ValueError):
        theory.simulate(**{"d": 12, "k": 2, "ms": (4,), "ts": (1,), "n_repetitions": 2, **change})


# the norm term ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("inside", [True, False])
def test_the_head_is_the_expression_of_the_appendix(inside):
    rng = np.random.default_rng(1)
    z, y, c = rng.normal(size=(9, 4)), rng.normal(size=9), 3.0
    a = c / 9 if inside else c
    assert np.allclose(theory.head_of(z, y, c, m_inside=inside), a * np.linalg.inv(np.eye(4) + a * z.T @ z) @ z.T @ y)


@pytest.mark.parametrize("inside", [True, False])
def test_no_data_set_exceeds_the_limit_and_one_reaches_it(inside):
    rng = np.random.default_rng(2)
    for m in (1, 3, 20):
        limit = theory.norm_limit(m, 2.0, 1.5, m_inside=inside)
        for scale in np.geomspace(1e-3, 1e3, 30):
            z, y = scale * rng.normal(size=(m, 3)), rng.uniform(-1.5, 1.5, m)
            assert np.linalg.norm(theory.head_of(z, y, 2.0, m_inside=inside)) <= limit
        y = np.where(rng.random(m) < 0.5, 1.0, -1.0)
        worst = theory.worst_features(y, 2.0, m_inside=inside)
        one = theory.norm_limit(m, 2.0, m_inside=inside)
        assert np.linalg.norm(theory.head_of(worst, y, 2.0, m_inside=inside)) == pytest.approx(one)
    grown = theory.norm_limit(400, 2.0, m_inside=inside) / theory.norm_limit(4, 2.0, m_inside=inside)
    assert grown == pytest.approx(1 if inside else 10)


def test_ordinary_features_tend_to_fixed_ridge_or_to_least_squares():
    table = theory.norm_terms((4000,), c=4.0, n_repetitions=5).set_index(["features", "m_inside"])["squared_norm"]
    squares = 2 / math.pi  # E[x sign x]^2
    assert table["ordinary", False] == pytest.approx(squares, rel=0.05)
    assert table["ordinary", True] == pytest.approx(squares / (1 + 1 / 4.0) ** 2, rel=0.05)
    m, c, v = 4000, 4.0, theory.WEAK
    assert table["weak", False] == pytest.approx(v * (c * m) ** 2 / (1 + c * m * v) ** 2)
    assert table["weak", True] == pytest.approx(v * c**2 / (1 + c * v) ** 2)


def test_the_average_over_tasks_is_flat_and_smallest_where_nothing_fits():
    table = theory.term_over_tasks((1, 10, 100), d=50, n_repetitions=6).set_index(["space", "t"])
    for space in ("true", "random", "full"):
        rows = table.loc[space]
        assert rows["term_low"].max() < rows.loc[100, "term"] < rows["term_high"].min(), "flat within its intervals"
        assert np.allclose(rows["advertised"] * rows.index, rows.loc[1, "term"])
    assert table.loc[("random", 100), "term_high"] < table.loc[("true", 100), "term_low"]
    assert table.loc[("random", 100), "training_error"] > 2 * table.loc[("true", 100), "training_error"]


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
        w = theory.ridge(x, np.eye(way)[labels].T - 1 / way, 5.0)  # (way, d)
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


# on a run -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def chain(smoke_run):
    return Chain(Run.open(Config.preset("smoke"), smoke_run))


@pytest.fixture(scope="module")
def parts(chain):
    tgt, shots = prefixbounds.tasks_with_shots(chain.images, chain.division, chain.cfg)
    return tgt, shots, prefixbounds.prefix_features(chain.collective, chain.images, chain.source, tgt)


@pytest.fixture(scope="module")
def heads(parts):
    tgt, shots, prefixes = parts
    return prefixbounds.fit_heads(prefixes, tgt, shots)


def test_the_tasks_are_those_of_the_run(chain, parts):
    tgt, shots, _ = parts
    assert shots == (5, 10, 20) and [t.classes for t in tgt] == [t.classes for t in chain.target]
    for mine, own in zip(tgt, chain.target, strict=True):
        assert np.array_equal(mine.query, own.query)
        assert np.array_equal(mine.support[:, : own.support.shape[1]], own.support)
        assert not set(mine.support.ravel()) & set(mine.query.ravel())
    with pytest.raises(StudyError, match="shots = 41"):
        prefixbounds.tasks_with_shots(chain.images, chain.division, chain.cfg.replace(shots=(41,)))


def test_the_features_of_an_image_depend_on_no_other_target_image(chain, parts):
    tgt, _, prefixes = parts
    images = chain.images.images.clone()
    images[tgt[0].query.ravel()] = 255 - images[tgt[0].query.ravel()]
    changed = prefixbounds.prefix_features(
        chain.collective, dataclasses.replace(chain.images, images=images), chain.source, tgt
    )
    for block, values in prefixes.values.items():
        assert np.allclose(np.linalg.norm(values, axis=1), 1, atol=1e-4)
        assert np.allclose(changed.of(block, tgt[0].support), prefixes.of(block, tgt[0].support), atol=1e-5)
    assert not np.allclose(changed.of("conv1", tgt[0].query), prefixes.of("conv1", tgt[0].query), atol=1e-2)
    assert len(prefixes.values) == len(chain.collective.model.block_names)


def test_query_images_and_labels_change_no_bound(heads):
    rng = np.random.default_rng(9)
    turned = [
        dataclasses.replace(
            own,
            labels=(own.labels[0], rng.permutation(own.labels[1])),
            logits={b: (s, rng.permutation(q)) for b, (s, q) in own.logits.items()},
        )
        for own in heads
    ]
    one, two = (prefixbounds.bound_table(h) for h in (heads, turned))
    decided = ["target_task", "shots", "m", "block", "nats", "train_error", "train_limit", "bound"]
    assert one[decided].equals(two[decided]) and not one["head_error"].equals(two["head_error"])


def test_heads_are_ridge_on_the_first_images_of_each_class(parts, heads):
    tgt, shots, prefixes = parts
    own = next(h for h in heads if h.target_task == tgt[1].number and h.shots == 10)
    x = prefixes.of("conv7", tgt[1].support[:, :10]).astype(float)
    way = len(tgt[1].classes)
    labels = np.repeat(np.arange(way), 10)
    w = Ridge(alpha=prefixbounds.STRENGTH, fit_intercept=False).fit(x, np.eye(way)[labels] - 1 / way).coef_  # (way, d)
    assert own.squares["conv7"] == pytest.approx((w**2).sum(), rel=1e-3)
    assert np.allclose(own.logits["conv7"][0], x @ w.T, atol=1e-4)
    assert np.allclose(own.logits["conv7"][1], prefixes.of("conv7", tgt[1].query) @ w.T, atol=1e-4)
    assert own.labels[0].tolist() == labels.tolist()


def test_the_table_of_bounds(chain, heads):
    table = prefixbounds.bound_table(heads)
    assert len(table) == len(heads) == chain.cfg.n_target_tasks * 3
    assert (
        table["bound"].between(table["train_limit"], 100).all() and (table["train_limit"] > table["train_error"]).all()
    )
    assert (table["chance"] == 80).all() and (table["nats"] > math.log(13)).all()
    r = table.iloc[0]
    assert r["bound"] == pytest.approx(100 * bounds.pac_bayes(r["train_limit"] / 100, r["nats"], r["m"], 0.025))
    assert prefixbounds.bound_table(heads).equals(table), "equal runs are equal tables"
    alone = prefixbounds.bound_table(heads, n_candidates=1)
    assert (alone["block"] == "conv13").all()


def test_the_bound_depends_on_the_head_and_s_only_through_their_ratio(heads):
    """A scaled head decides alike: for every s the prior over classifiers is the same one."""
    doubled = [
        dataclasses.replace(
            own,
            squares={b: 4 * v for b, v in own.squares.items()},
            logits={b: (2 * s, 2 * q) for b, (s, q) in own.logits.items()},
        )
        for own in heads[:3]
    ]
    one, two = prefixbounds.bound_table(heads[:3], spread=0.2), prefixbounds.bound_table(doubled, spread=0.4)
    columns = ["nats", "train_error", "bound", "gibbs_error", "head_error"]
    assert np.allclose(one[columns], two[columns])


def test_candidates_are_spread_over_the_depth_and_hold_the_whole_network():
    blocks = [f"conv{i}" for i in range(1, 14)]
    assert prefixbounds.candidates(blocks, 1) == ("conv13",)
    assert prefixbounds.candidates(blocks, 13) == tuple(blocks)
    assert prefixbounds.candidates(blocks, 3) == ("conv5", "conv9", "conv13")
    assert all(len(set(prefixbounds.candidates(blocks, n))) == n for n in range(1, 14))
    for n in (0, 14):
        with pytest.raises(ValueError, match="candidates"):
            prefixbounds.candidates(blocks, n)


def test_the_untrained_network_is_another_one_and_leaves_the_collective_alone(chain):
    before = {n: t.clone() for n, t in chain.collective.model.state_dict().items()}
    twin = prefixbounds.untrained(chain.collective, chain.images, chain.source)
    again = prefixbounds.untrained(chain.collective, chain.images, chain.source)
    assert twin.model.shape == chain.collective.model.shape
    weight = twin.model.blocks["conv5"].conv.weight
    assert weight.equal(again.model.blocks["conv5"].conv.weight)
    assert not weight.equal(chain.collective.model.blocks["conv5"].conv.weight)
    assert all(before[n].equal(t) for n, t in chain.collective.model.state_dict().items())


def test_the_summary_is_over_tasks(heads):
    table = prefixbounds.bound_table(heads)
    summary = prefixbounds.bound_summary(table).set_index("shots")
    own = table[table["shots"] == 10]
    assert summary.loc[10, "bound"] == pytest.approx(own["bound"].mean()) and summary.loc[10, "n_tasks"] == 4
    half = stats.t.ppf(0.975, 3) * own["head_error"].sem()
    assert summary.loc[10, "head_error_high"] == pytest.approx(own["head_error"].mean() + half)
    assert summary.loc[10, "holds"] == 100 * (own["gibbs_error"] <= own["bound"]).mean()


# figures ------------------------------------------------------------------------------------------------------------
def line(ax, label):
    return next(entry.get_xydata() for entry in ax.get_lines() if entry.get_label() == label)


def test_figures_show_their_tables(heads):
    risks = theory.risk_table(theory.simulate(d=12, k=2, ms=(4, 9), ts=(1, 4), n_repetitions=3))
    axes = risk_curves(risks)
    own = risks[(risks["m"] == 9) & (risks["space"] == "learned")]
    assert np.allclose(line(axes[1], theoryfigures.SPACE_LABELS["learned"]), own[["t", "risk"]])
    ax = gain_map(risks)
    cell = risks[(risks["m"] == 4) & (risks["t"] == 4) & (risks["space"] == "learned")].iloc[0]
    sure = cell["gain_low"] > 0 or cell["gain_high"] < 0
    assert ax.texts[0].get_text() == (f"{cell['gain']:+.2f}" if sure else f"({cell['gain']:+.2f})")
    norms = theory.norm_terms((4, 16))
    axes = norm_figure(norms)
    worst = norms[(norms["features"] == "worst") & ~norms["m_inside"]]
    assert np.allclose(line(axes[1], theoryfigures.FEATURE_LABELS["worst"]), worst[["m", "squared_norm"]])
    terms = theory.term_over_tasks((1, 4), d=12, k=2, n_repetitions=3)
    ax = term_figure(terms)
    random = terms[terms["space"] == "random"]
    assert np.allclose(line(ax, theoryfigures.SPACE_LABELS["random"]), random[["t", "term"]])
    summary = prefixbounds.bound_summary(prefixbounds.bound_table(heads))
    for ax in bound_pair(summary, summary):
        assert np.allclose(line(ax, "bound (95 %)"), summary[["m", "bound"]])


def test_one_state_of_the_explorer(heads):
    axes = theoryexplore.draw_bound(heads, shots=10, spread=0.2, n_candidates=4)
    own = prefixbounds.bound_table([h for h in heads if h.shots == 10], spread=0.2, n_candidates=4)
    assert f"{own['bound'].mean():.1f} %" in axes[0].get_title() and "m = 50" in axes[0].get_title()
    nats = (own["nats"] + math.log(4 * math.sqrt(50) / 0.05)) / 50
    assert sum(bar.get_height() for bar in axes[1].patches) == pytest.approx(nats.mean())
    with pytest.raises(ValueError, match="shots"):
        theoryexplore.draw_bound(heads, shots=7)
    with pytest.raises(ValueError, match="several m"):
        bound_tasks(pd.concat([own, own.assign(m=3)]))


def test_sliders_redraw(heads, monkeypatch):
    monkeypatch.delenv(HEADLESS, raising=False)
    box = theoryexplore.bound_explorer(heads)
    before = box.picture.value
    for name, value in (("n_candidates", 2), ("spread", 0.5), ("shots", 5)):
        box.controls[name].value = value
        assert box.picture.value != before and not box.error.value
        before = box.picture.value
    assert not plt.get_fignums()
    monkeypatch.setenv(HEADLESS, "1")
    assert theoryexplore.bound_explorer(heads) is None


def test_nothing_here_imports_torch():
    code = (
        "import sys\nfrom learngene_core import bounds, prefixbounds, theory, theoryexplore, theoryfigures\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
