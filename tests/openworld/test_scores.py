"""Scores of known against unknown: each beside an independent computation, ties, degenerate input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist, mahalanobis

from learngene_core.errors import StudyError
from learngene_core.openworld import scores
from learngene_core.openworld import scores as heads

K, D, N = 6, 9, 40


@pytest.fixture
def sample():
    """Features (N, D) and labels of exemplars, features of other images, logits of both."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(K), 12)
    centres = rng.normal(size=(K, D)) * 3
    exemplars = centres[labels] + rng.normal(size=(len(labels), D))
    images = rng.normal(size=(N, D)) * 3
    head = heads.Head(rng.normal(size=(K, D)), rng.normal(size=K))
    return labels, exemplars, images, head


def test_logit_scores_equal_loops(sample):
    logits = sample[3].logits(sample[2])
    for i, row in enumerate(logits):
        e = np.exp(row)
        assert scores.msp(logits)[i] == pytest.approx(e.max() / e.sum(), abs=1e-5)
        assert scores.maxlogit(logits)[i] == max(row)
        assert scores.energy(logits, 2.0)[i] == pytest.approx(2 * np.log(np.exp(row / 2).sum()), abs=1e-5)


def test_huge_logits_do_not_overflow():
    logits = np.array([[5e3, -5e3], [-5e3, -5e3]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores.msp(logits) == pytest.approx([1, 0.5])
        assert scores.energy(logits) == pytest.approx([5e3, -5e3 + np.log(2)])


def test_class_means_and_distances_equal_scipy(sample):
    labels, exemplars, images, _ = sample
    means = scores.class_means(exemplars, labels)
    assert means == pytest.approx(np.stack([exemplars[labels == c].mean(0) for c in range(K)]), abs=1e-10)
    assert scores.ncm(images, means) == pytest.approx(-cdist(images, means).min(1), abs=1e-5)


def test_mahalanobis_equals_scipy_with_the_shrunk_covariance_of_scikit_learn(sample):
    from sklearn.covariance import LedoitWolf

    labels, exemplars, images, _ = sample
    means = scores.class_means(exemplars, labels)
    covariance = scores.tied_covariance(exemplars, labels)
    fitted = LedoitWolf(assume_centered=True).fit(exemplars - means[labels])
    assert covariance == pytest.approx(fitted.covariance_, abs=1e-10)
    inverse = np.linalg.inv(covariance)
    expected = [-min(mahalanobis(x, m, inverse) ** 2 for m in means) for x in images]
    assert scores.mahalanobis(images, means, covariance) == pytest.approx(expected, abs=1e-5)


def test_relative_mahalanobis_equals_loops(sample):
    from sklearn.covariance import LedoitWolf

    labels, exemplars, images, _ = sample
    known = scores.ClassStatistics.of(exemplars, labels)
    background = LedoitWolf().fit(exemplars)
    within = LedoitWolf(assume_centered=True).fit(exemplars - known.means[labels])
    for x, value in zip(images, scores.relative_mahalanobis(images, known), strict=True):
        near = min((x - m) @ np.linalg.inv(within.covariance_) @ (x - m) for m in known.means)
        away = x - exemplars.mean(0)
        assert value == pytest.approx(away @ np.linalg.inv(background.covariance_) @ away - near, abs=1e-5)


def test_weibull_has_the_likelihood_of_scipy_or_more():
    rng = np.random.default_rng(1)
    tails = np.stack([stats.weibull_min.rvs(c, scale=s, size=20, random_state=rng)
                      for c, s in ((0.5, 1), (1, 10), (4, 0.01), (30, 300))])  # fmt: skip
    shape, scale = scores.weibull_fit(tails)
    for row, c, s in zip(tails, shape, scale, strict=True):
        theirs = stats.weibull_min.fit(row, floc=0)
        ours = stats.weibull_min.logpdf(row, c, scale=s).sum()
        assert ours >= stats.weibull_min.logpdf(row, *theirs).sum() - 1e-6
        assert (c, s) == pytest.approx((theirs[0], theirs[2]), rel=2e-3)


def test_openmax_equals_loops(sample):
    labels, exemplars, images, head = sample
    z, logits = head.logits(exemplars), head.logits(images)
    means, shape, scale = scores.openmax_fit(z, labels, 7)
    for c in range(K):
        away = np.sort(np.linalg.norm(z[labels == c] - z[labels == c].mean(0), axis=1))[-7:]
        theirs = stats.weibull_min.fit(away, floc=0)
        assert (shape[c], scale[c]) == pytest.approx((theirs[0], theirs[2]), rel=2e-3)
    alpha = 4
    found = scores.openmax(logits, means, shape, scale, alpha)
    for i, row in enumerate(logits):
        revised, unknown = row.copy(), 0.0
        for rank, c in enumerate(sorted(range(K), key=lambda c: -row[c])[:alpha]):  # noqa: B023
            cdf = stats.weibull_min.cdf(np.linalg.norm(row - means[c]), shape[c], scale=scale[c])
            lost = row[c] * cdf * (alpha - rank) / alpha
            revised[c] -= lost
            unknown += lost
        e = np.exp(np.append(revised, unknown))
        assert found[i] == pytest.approx(e / e.sum(), abs=1e-5)


def test_openmax_recalibrates_as_pytorch_ood_does(sample):
    library = pytest.importorskip("pytorch_ood.detector.openmax.numpy")
    labels, exemplars, images, head = sample
    z, logits = head.logits(exemplars), head.logits(images)
    means, shape, scale = scores.openmax_fit(z, labels, 7)

    class Tail:
        def __init__(self, c):
            self.c = c

        def w_score(self, x):
            return stats.weibull_min.cdf(x, shape[self.c], scale=scale[self.c])

    theirs = library.OpenMax(tailsize=7, alpha=4)
    theirs.n_dims, theirs.centers = K, dict(enumerate(means))
    theirs.distributions = {c: Tail(c) for c in range(K)}
    found = scores.openmax(logits, means, shape, scale, 4)
    assert found[:, [K, *range(K)]] == pytest.approx(theirs.predict(logits), abs=1e-5)


@pytest.mark.parametrize("name", ["MaxSoftmax", "MaxLogit", "EnergyBased"])
def test_logit_scores_equal_pytorch_ood(sample, name):
    detector = pytest.importorskip("pytorch_ood.detector")
    import torch

    logits = sample[3].logits(sample[2])
    ours = {"MaxSoftmax": scores.msp, "MaxLogit": scores.maxlogit, "EnergyBased": scores.energy}[name](logits)
    theirs = getattr(detector, name)(None).predict_logits(torch.from_numpy(logits))  # higher = more outlying
    assert ours == pytest.approx(-theirs.numpy(), abs=1e-5)


@pytest.mark.parametrize("n_classes", [2, K])
def test_the_refit_head_is_the_logistic_regression_of_scikit_learn(sample, n_classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    labels, exemplars, images, _ = sample
    labels, exemplars = labels[labels < n_classes], exemplars[labels < n_classes]
    head = heads.refit_head(exemplars, labels, 0.1)
    scaler = StandardScaler().fit(exemplars)
    model = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(exemplars), labels)
    e = np.exp(head.logits(images))
    expected = model.predict_proba(scaler.transform(images))
    assert e / e.sum(1, keepdims=True) == pytest.approx(expected, abs=1e-5)


def test_the_scorer_gives_every_score_and_its_classifier(sample):
    labels, exemplars, images, head = sample
    found = scores.Scorer.fit(head, exemplars, scores.unit(exemplars), labels, tail=5, alpha=3)(
        images, scores.unit(images)
    )
    assert tuple(found) == scores.SCORES
    logits, short = head.logits(images), scores.unit(images)
    means = scores.class_means(scores.unit(exemplars), labels)
    covariance = scores.tied_covariance(scores.unit(exemplars), labels)
    expected = {"msp": scores.msp(logits), "maxlogit": scores.maxlogit(logits), "energy": scores.energy(logits),
                "ncm": scores.ncm(short, means), "mahalanobis": scores.mahalanobis(short, means, covariance)}  # fmt: skip
    for name, values in expected.items():
        assert found[name][0] == pytest.approx(values, abs=1e-6)
    assert (found["msp"][1] == logits.argmax(1)).all()
    assert (found["ncm"][1] == cdist(short, means).argmin(1)).all()


def test_an_imprinted_class_gets_what_old_classes_give(sample):
    labels, exemplars, _, head = sample
    fitted = heads.refit_head(exemplars, labels, 1.0)
    means = np.random.default_rng(0).normal(size=(2, D)) * 4
    grown = heads.imprinted(fitted, means, exemplars, labels)
    assert (grown.weight[:K] == fitted.weight).all() and grown.weight.shape == (K + 2, D)
    z = fitted.logits(exemplars)
    own = z[np.arange(len(labels)), labels]
    others = (z.sum(1) - own) / (K - 1)
    assert np.diag(grown.logits(means)[:, K:]) == pytest.approx([own.mean()] * 2)
    assert grown.logits(exemplars.mean(0, keepdims=True))[0, K:] == pytest.approx([others.mean()] * 2)


# bad and degenerate input -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("score", [scores.msp, scores.maxlogit, scores.energy])
def test_logits_that_are_not_finite_are_refused(score, bad):
    logits = np.zeros((3, 4))
    logits[1, 2] = bad
    with pytest.raises(StudyError, match="logits of 1 of 3 images are not finite; the network has diverged"):
        score(logits)


@pytest.mark.parametrize("shape", [(0, 4), (4,), (3, 0)])
def test_nothing_to_score_is_refused(shape):
    with pytest.raises(StudyError, match="no logits"):
        scores.msp(np.zeros(shape))


def test_a_class_without_an_image_is_refused():
    with pytest.raises(StudyError, match="class 1 has no image"):
        scores.class_means(np.ones((2, 3)), np.array([0, 2]))


def test_one_image_per_class_has_a_defined_answer():
    features, labels = np.eye(4)[:3] + 0.1, np.arange(3)
    assert (scores.tied_covariance(features, labels) == np.eye(4)).all()
    head = heads.refit_head(features, labels, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores.Scorer.fit(head, features, features, labels)(*[np.random.default_rng(0).random((5, 4))] * 2)
    assert all(np.isfinite(values).all() for values, _ in found.values())


def test_constant_features_have_a_defined_answer():
    features, labels = np.ones((6, 4)), np.repeat([0, 1], 3)
    scorer = scores.Scorer.fit(heads.refit_head(features, labels, 0.1), features, features, labels)
    for values, _ in scorer(np.ones((5, 4)), np.ones((5, 4))).values():
        assert np.isfinite(values).all() and np.ptp(values) == 0
    assert np.isfinite(scorer(np.zeros((2, 4)), np.zeros((2, 4)))["mahalanobis"][0]).all()
