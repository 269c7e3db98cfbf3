"""Open-set measures beside scikit-learn and brute force, ties included; intervals over classes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from learngene_core.errors import StudyError
from learngene_core.openworld import measures as opensets


def draw(seed, ties):
    """Scores of 70 known and 50 unknown images, and whether the known ones are right."""
    rng = np.random.default_rng(seed)
    known, unknown = rng.normal(0.8, 1, 70), rng.normal(0, 1, 50)
    if ties:
        known, unknown = np.round(known), np.round(unknown)
    return known, unknown, rng.random(70) < 0.6


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_measures_equal_scikit_learn_and_counting(seed, ties):
    known, unknown, right = draw(seed, ties)
    found = opensets.metrics(known, unknown, right)
    truth, values = np.r_[np.ones(70), np.zeros(50)], np.r_[known, unknown]
    assert found["auroc"] == pytest.approx(100 * roc_auc_score(truth, values), abs=1e-9)
    assert found["aupr"] == pytest.approx(100 * average_precision_score(1 - truth, -values), abs=1e-9)
    fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(100 * fpr[tpr >= 0.95].min(), abs=1e-9)
    won = sum((k > u) + 0.5 * (k == u) for k, r in zip(known, right, strict=True) if r for u in unknown)
    assert found["oscr"] == pytest.approx(100 * won / 3500, abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_fpr95_is_that_of_the_threshold(ties):
    known, unknown, right = draw(1, ties)
    threshold = opensets.threshold_at(known, 95)
    assert np.mean(known >= threshold) >= 0.95
    assert not any(np.mean(known >= other) >= 0.95 for other in known if other > threshold)
    assert opensets.metrics(known, unknown, right)["fpr95"] == pytest.approx(100 * np.mean(unknown >= threshold))


def test_curves_hold_the_areas():
    known, unknown, right = draw(2, True)
    x, roc, ccr = opensets.curves(known, unknown, right)
    found = opensets.metrics(known, unknown, right)
    assert np.trapezoid(roc, x) / 100 == pytest.approx(found["auroc"])
    assert np.trapezoid(ccr, x) / 100 == pytest.approx(found["oscr"])
    assert (x[0], roc[0], x[-1], roc[-1]) == (0, 0, 100, 100) and ccr[-1] == pytest.approx(100 * right.mean())


def test_constant_scores_are_chance():
    found = opensets.metrics(np.ones(8), np.ones(12), np.arange(8) < 6)
    assert found == pytest.approx({"auroc": 50, "aupr": 60, "fpr95": 100, "oscr": 37.5})
    limits = opensets.intervals(np.ones(8), np.ones(12), np.ones(8, bool), np.arange(8) % 4, np.arange(12) % 3)
    assert limits["auroc"] == (50, 50) and limits["fpr95"] == (100, 100)


def test_perfect_scores_are_perfect():
    found = opensets.metrics(np.arange(5) + 10.0, np.arange(4.0), np.ones(5, bool))
    assert found == pytest.approx({"auroc": 100, "aupr": 100, "fpr95": 0, "oscr": 100})


def test_infinite_scores_are_ordered():
    assert opensets.metrics(np.array([np.inf]), np.array([-np.inf]), np.array([True]))["auroc"] == 100


def test_limits_are_those_of_resampled_classes():
    """The weighted counts give what gathering the images of the drawn classes gives."""
    rng = np.random.default_rng(4)
    known, unknown, right = draw(4, True)
    a, b = rng.integers(0, 6, 70), rng.integers(0, 5, 50)
    found = opensets.intervals(known, unknown, right, a, b, n_resamples=60, seed=9)
    generator = opensets.numpy_generator(9, "open-set intervals")
    times = [generator.multinomial(k, np.full(k, 1 / k), 60) for k in (6, 5)]
    draws = []
    for t, s in zip(*times, strict=True):
        i, j = np.repeat(np.arange(70), t[a]), np.repeat(np.arange(50), s[b])
        draws.append(opensets.metrics(known[i], unknown[j], right[i]))
    for name in opensets.METRICS:
        expected = opensets.expanded_limits(np.array([d[name] for d in draws]), 5, 0.95)
        assert found[name] == pytest.approx(expected, abs=1e-6)


def test_the_interval_covers_new_classes():
    """Over many draws of classes, the 95 % interval of AUROC holds the true one about as often as it says."""
    truth = 100 * norm.cdf(1 / np.sqrt(4 * 0.49))
    covered = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(16), 10)
        known = rng.normal(0.5, 0.7, 16)[group] + rng.normal(0, 0.7, 160)
        unknown = rng.normal(-0.5, 0.7, 16)[group] + rng.normal(0, 0.7, 160)
        low, high = opensets.intervals(known, unknown, np.ones(160, bool), group, group, n_resamples=200)["auroc"]
        covered += low <= truth <= high
    assert covered >= 0.88 * 120


@pytest.mark.parametrize(("classes", "others"), [(1, 3), (3, 1)])
def test_one_class_has_an_estimate_and_no_limits(classes, others):
    known, unknown, right = draw(0, False)
    limits = opensets.intervals(known, unknown, right, np.arange(70) % classes, np.arange(50) % others)
    assert all(np.isnan(pair).all() for pair in limits.values())
    assert 0 <= opensets.metrics(known, unknown, right)["auroc"] <= 100


@pytest.mark.parametrize(("known", "unknown", "text"), [([], [1.0], "no known"), ([1.0], [], "no unknown"),
                                                        ([np.nan], [1.0], "1 scores of known images are NaN")])  # fmt: skip
def test_nothing_and_nan_are_refused(known, unknown, text):
    with pytest.raises(StudyError, match=text):
        opensets.metrics(np.array(known), np.array(unknown), np.ones(len(known), bool))


@pytest.mark.parametrize("known", [[], [np.nan, 1.0]])
def test_a_threshold_needs_scores(known):
    with pytest.raises(StudyError, match="threshold needs scores"):
        opensets.threshold_at(np.array(known))


def test_harmonic_accuracy_and_its_degenerate_cases():
    old, new = np.array([1, 1, 0, 1], bool), np.array([1, 0, 0, 0], bool)
    found = opensets.accuracies(old, np.array([0, 0, 1, 1]), new, np.array([0, 0, 1, 1]), 200, 0)
    assert found["old_accuracy"] == 75 and found["new_accuracy"] == 25
    assert found["harmonic_accuracy"] == pytest.approx(2 * 75 * 25 / 100)
    assert found["old_accuracy_low"] <= 75 <= found["old_accuracy_high"]
    none = opensets.accuracies(old, np.zeros(4, int), np.zeros(4, bool), np.zeros(4, int), 200, 0)
    assert none["harmonic_accuracy"] == 0 and np.isnan(none["new_accuracy_low"])
