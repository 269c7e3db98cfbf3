"""Theorem 1 in numbers: ridge and subspaces against closed forms, the norm term against brute force, and their figures."""

import math
import subprocess
import sys

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

from learngene_core.figures import theory as theoryfigures
from learngene_core.figures.theory import gain_map, norm_figure, risk_curves, term_figure
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


# figures ------------------------------------------------------------------------------------------------------------
def line(ax, label):
    return next(entry.get_xydata() for entry in ax.get_lines() if entry.get_label() == label)


def test_figures_show_their_tables():
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


def test_numbers_and_figures_need_no_torch():
    code = (
        "import sys\nfrom learngene_core.theory import bounds, theorem\nfrom learngene_core.figures import theory\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
