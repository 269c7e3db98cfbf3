"""Linear heads outside the network: fitted again on frozen features of exemplars, and with classes imprinted."""

from __future__ import annotations

import dataclasses

import numpy as np

from .scores import checked, unit


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
