"""How sure a network is that it knows what it sees: scores of images, higher = known; arrays with one row per image.

Four scores read the logits of a linear head, three read features. Whatever is fitted (heads, class means, covariances,
Weibull tails) is fitted on exemplars of the known classes, outside the network and on frozen features.

Written out where a library differs: pytorch-ood's Mahalanobis has no shrinkage, and `scipy.stats.weibull_min.fit` searches
by simplex (`weibull_fit` says more). The tests compare with both.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import logsumexp, softmax

from ..errors import StudyError

LOGIT_SCORES = ("msp", "maxlogit", "energy", "openmax")
FEATURE_SCORES = ("ncm", "mahalanobis", "relative_mahalanobis")
SCORES = (*LOGIT_SCORES, *FEATURE_SCORES)


def checked(values: np.ndarray, what: str) -> np.ndarray:
    """`values` (n, k) in double precision. Raises StudyError that names `what` when they are empty or not finite."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size:
        raise StudyError(
            f"no {what}: shape {values.shape}; a row per image and a column per class or feature are needed"
        )
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(1).sum())
        raise StudyError(
            f"the {what} of {bad} of {len(values)} images are not finite; the network has diverged, train it again with "
            "a lower learning_rate"
        )
    return values


# linear heads ---------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Head:
    """A linear head: weight (k, d), bias (k,)."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Logits (n, k) of features (n, d)."""
        return checked(checked(features, "features") @ self.weight.T + self.bias, "logits")


def refit_head(features: np.ndarray, labels: np.ndarray, strength: float) -> Head:
    """Logistic regression on frozen features (n, d) of exemplars with labels (n,) in 0 ... k - 1, so that the logits of all
    classes compare. `strength`: inverse of the penalty on weights of standardised features."""
    from sklearn.linear_model import LogisticRegression

    middle, spread = checked(features, "features").mean(0), features.std(0)
    spread = np.where(spread > 1e-6 * max(spread.max(), 1e-6), spread, 1.0)  # a dead feature stays as it is
    model = LogisticRegression(C=strength, max_iter=1000).fit((features - middle) / spread, labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # two classes: one difference of logits, shared equally
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Head(weight / spread, bias - (weight / spread) @ middle)


def imprinted(head: Head, means: np.ndarray, features: np.ndarray, labels: np.ndarray) -> Head:
    """`head` (k, d) with a row for each new class mean (m, d): the mean's direction, as seen from the old classes' centre.

    As Qi et al. (2018), but the length and bias of a row are such that its logit at the mean, and at the centre, is what the
    old rows give exemplars (features (n, d), labels (n,)) of their own class, and of others, on average.
    """
    logits = head.logits(features)
    own = logits[np.arange(len(labels)), labels]
    others = (logits.sum(1) - own) / max(logits.shape[1] - 1, 1)
    centre = features.mean(0)
    direction = unit(means - centre)
    apart = np.maximum(np.linalg.norm(means - centre, axis=1), 1e-12)
    weight = direction * ((own.mean() - others.mean()) / apart)[:, None]
    bias = others.mean() - weight @ centre
    return Head(np.concatenate([head.weight, weight]), np.concatenate([head.bias, bias]))


# scores of logits -----------------------------------------------------------------------------------------------------
def msp(logits: np.ndarray) -> np.ndarray:
    """Largest softmax probability (n,) of logits (n, k) (Hendrycks and Gimpel 2017)."""
    return softmax(checked(logits, "logits"), axis=1).max(1)


def maxlogit(logits: np.ndarray) -> np.ndarray:
    """Largest logit (n,) of logits (n, k) (Vaze et al. 2022)."""
    return checked(logits, "logits").max(1)


def energy(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Negative free energy T * logsumexp(logits / T), (n,) (Liu et al. 2020)."""
    return temperature * logsumexp(checked(logits, "logits") / temperature, axis=1)


# scores of features ---------------------------------------------------------------------------------------------------
def class_means(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Means (k, d) of features (n, d) with labels (n,) in 0 ... k - 1. Raises StudyError where a class has no image."""
    features, counts = checked(features, "features"), np.bincount(labels)
    if not counts.all():
        raise StudyError(f"class {int(np.argmin(counts))} has no image to take a mean of")
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, labels, features)
    return sums / counts[:, None]


def unit(features: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros stays."""
    features = checked(features, "features")
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def tied_covariance(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Covariance (d, d) of features (n, d) around their class means, one for all classes, shrunk towards a multiple of the
    identity by as much as Ledoit and Wolf (2004) find best; with one image per class it is the identity."""
    from sklearn.covariance import ledoit_wolf

    centred = checked(features, "features") - class_means(features, labels)[labels]
    if np.abs(centred).max() <= 1e-9 * max(np.abs(features).max(), 1e-9):  # nothing but rounding
        return np.eye(features.shape[1])
    return ledoit_wolf(centred, assume_centered=True)[0]


def distances(features: np.ndarray, means: np.ndarray, covariance: np.ndarray | None = None) -> np.ndarray:
    """Squared distances (n, k) of features (n, d) to class means (k, d): Euclidean, or Mahalanobis with a covariance."""
    features, means = checked(features, "features"), checked(means, "class means")
    if covariance is not None:
        whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T  # (d, d): C^-1 = whiten whiten'
        features, means = features @ whiten, means @ whiten
    squares = (features**2).sum(1)[:, None] + (means**2).sum(1) - 2 * features @ means.T
    return np.maximum(squares, 0)


def ncm(features: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Minus the distance (n,) to the nearest class mean (k, d)."""
    return -np.sqrt(distances(features, means).min(1))


def mahalanobis(features: np.ndarray, means: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Minus the squared Mahalanobis distance (n,) to the nearest class mean (Lee et al. 2018)."""
    return -distances(features, means, covariance).min(1)


def relative_mahalanobis(features: np.ndarray, known: ClassStatistics) -> np.ndarray:
    """`mahalanobis` less the same for one class that holds all exemplars (n,): what any image has in common counts neither for
    nor against it (Ren et al. 2021)."""
    background = distances(features, known.middle, known.spread)[:, 0]
    return background - distances(features, known.means, known.covariance).min(1)


@dataclasses.dataclass(frozen=True)
class ClassStatistics:
    """Of exemplars' features: class means (k, d), tied covariance (d, d), overall mean (1, d) and covariance (d, d)."""

    means: np.ndarray
    covariance: np.ndarray
    middle: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> ClassStatistics:
        """Of features (n, d) with labels (n,) in 0 ... k - 1."""
        together = np.zeros_like(labels)
        one = class_means(features, together), tied_covariance(features, together)
        return cls(class_means(features, labels), tied_covariance(features, labels), *one)


# OpenMax (Bendale and Boult 2016) ------------------------------------------------------------------------------------
def weibull_fit(tails: np.ndarray, steps: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Shapes and scales (k,), (k,) of Weibull distributions from 0 on, of greatest likelihood for each row of tails (k, m) > 0.

    Newton's method on the logarithm of the shape, all rows at once. A row of equal values gets the largest shape, 1000.
    `scipy.stats.weibull_min.fit` takes 50 times as long and stops within 3e-5 of where this ends.
    """
    x = np.log(np.maximum(checked(tails, "distances"), 1e-12))
    top = x.max(1, keepdims=True)
    x = x - top  # in units of the row's largest value; <= 0
    log_shape = np.log(np.clip(1.2 / np.maximum(x.std(1), 1e-12), 1e-2, 1e3))
    for _ in range(steps):
        shape = np.exp(log_shape)
        w = np.exp(shape[:, None] * x)
        w /= w.sum(1, keepdims=True)
        mean = (w * x).sum(1)
        value = 1 / shape + x.mean(1) - mean  # zero where the likelihood is greatest, falling with the shape
        slope = 1 / shape + shape * ((w * x**2).sum(1) - mean**2)  # how fast it falls with the logarithm of the shape
        log_shape = np.clip(log_shape + np.clip(value / slope, -1, 1), np.log(1e-2), np.log(1e3))
    shape = np.exp(log_shape)
    scale = np.exp(logsumexp(shape[:, None] * x, axis=1, b=1 / x.shape[1]) / shape + top[:, 0])
    return shape, scale


def openmax_fit(logits: np.ndarray, labels: np.ndarray, tail: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean logits (k, k), Weibull shapes (k,) and scales (k,) of the `tail` largest distances to them, from exemplars."""
    means = class_means(logits, labels)
    own = np.linalg.norm(logits - means[labels], axis=1)
    least = min(tail, int(np.bincount(labels).min()))
    tails = np.stack([np.sort(own[labels == c])[-least:] for c in range(len(means))])
    return means, *weibull_fit(tails)


def openmax(logits: np.ndarray, means: np.ndarray, shape: np.ndarray, scale: np.ndarray, alpha: int = 10) -> np.ndarray:
    """Probabilities (n, k + 1), the unknown class last: the `alpha` largest logits lose the share that the Weibull of their
    class gives to the distance, weighted by rank; what they lose is the logit of the unknown class.

    As in the paper, but the Weibull starts at distance 0 (libMR moves the tail by a constant of its own).
    """
    logits = checked(logits, "logits")
    n, k = logits.shape
    alpha = min(alpha, k)
    weight = np.zeros((n, k))
    ranked = np.argsort(-logits, axis=1, kind="stable")[:, :alpha]
    np.put_along_axis(weight, ranked, np.broadcast_to((alpha - np.arange(alpha)) / alpha, ranked.shape), 1)
    away = np.sqrt(distances(logits, means))
    with np.errstate(over="ignore"):  # far beyond the tail: certain
        lost = weight * -np.expm1(-((away / scale) ** shape))  # (n, k): Weibull's distribution function
    revised = np.concatenate([logits * (1 - lost), (logits * lost).sum(1, keepdims=True)], axis=1)
    return softmax(revised, axis=1)


# all of them together ------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Scorer:
    """Everything the scores know of the known classes: a head, and statistics of exemplars."""

    head: Head
    known: ClassStatistics
    tails: tuple[np.ndarray, np.ndarray, np.ndarray]
    alpha: int

    @classmethod
    def fit(
        cls, head: Head, features: np.ndarray, deep: np.ndarray, labels: np.ndarray, *, tail: int = 10, alpha: int = 10
    ) -> Scorer:
        """From exemplars: features (n, d) below the head, features (n, e) for the feature scores, labels (n,)."""
        return cls(head, ClassStatistics.of(deep, labels), openmax_fit(head.logits(features), labels, tail), alpha)

    def __call__(self, features: np.ndarray, deep: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Score -> values (n,) and the class (n,) that the classifier of that score names."""
        logits, known = self.head.logits(features), self.known
        named, opened = logits.argmax(1), openmax(logits, *self.tails, self.alpha)
        near = distances(deep, known.means).argmin(1)
        whitened = distances(deep, known.means, known.covariance).argmin(1)
        return {
            "msp": (msp(logits), named),
            "maxlogit": (maxlogit(logits), named),
            "energy": (energy(logits), named),
            "openmax": (1 - opened[:, -1], opened[:, :-1].argmax(1)),
            "ncm": (ncm(deep, known.means), near),
            "mahalanobis": (mahalanobis(deep, known.means, known.covariance), whitened),
            "relative_mahalanobis": (relative_mahalanobis(deep, known), whitened),
        }
