"""A bound on the error of a new task that can be computed: PAC-Bayes-kl for randomised linear heads on fixed features.

Prior: a feature map r, uniformly among R, and head weights W ~ N(0, s^2 I). Posterior: one map and N(W_r, s^2 I) around a head
learned on the support set. With probability 1 - delta over the m support images, for all r and all W_r at once,

    kl(er^ || er) <= [ |W_r|^2 / (2 s^2) + log R + log(2 sqrt(m) / delta) ] / m

(Seeger 2002, JMLR 3; Maurer 2004, arXiv cs/0411099), where er^ and er are the training and the true error of the *Gibbs*
classifier, which draws a head from the posterior for every image. A fixed number of images per class is covered: independent
errors that are not equally likely concentrate no worse than equal ones of the same mean (Hoeffding 1956, theorem 3), and er
then counts every class alike. Errors here are shares, 0 ... 1.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, rel_entr


def kl(q: float, p: float) -> float:
    """kl(q || p) in nats between coins that fail with probability q and p; infinite where only p excludes an outcome.

    Raises ValueError outside 0 ... 1.
    """
    if not (0 <= q <= 1 and 0 <= p <= 1):
        raise ValueError(f"kl needs probabilities, not {q} and {p}")
    return float(rel_entr(q, p) + rel_entr(1 - q, 1 - p))


def kl_upper(q: float, budget: float) -> float:
    """The largest p with kl(q || p) <= budget (nats): the inversion that turns a kl bound into one on the error.

    q = 0 gives 1 - exp(-budget), q = 1 and an infinite budget give 1, budget 0 gives q. Raises ValueError for q outside
    0 ... 1 and for a budget that is negative or NaN.
    """
    if not (0 <= q <= 1 and budget >= 0):
        raise ValueError(f"needs 0 <= q <= 1 and a budget that is not negative, not {q} and {budget}")
    highest = 1 - 1e-15
    if q >= highest or kl(q, highest) <= budget:
        return 1.0
    return float(min(1.0, brentq(lambda p: kl(q, p) - budget, q, highest, xtol=1e-13) + 1e-12))  # never below the root


def divergence(squared_norm: float, spread: float, n_candidates: int) -> float:
    """KL(posterior || prior) in nats: |W|^2 / (2 s^2) + log R.

    Raises ValueError unless s > 0, R >= 1 and |W|^2 is not negative.
    """
    if not (spread > 0 and n_candidates >= 1 and squared_norm >= 0):
        raise ValueError(f"needs s > 0, R >= 1 and |W|^2 >= 0, not {spread}, {n_candidates} and {squared_norm}")
    return squared_norm / (2 * spread**2) + math.log(n_candidates)


def pac_bayes(train_error: float, nats: float, m: int, delta: float) -> float:
    """Upper limit (0 ... 1) of the Gibbs classifier's true error, from its training error on m images and KL in nats.

    Holds with probability 1 - delta, for all posteriors at once. Raises ValueError unless 0 < delta < 1 and m >= 1.
    """
    if not (0 < delta < 1 and m >= 1):
        raise ValueError(f"needs 0 < delta < 1 and m >= 1, not {delta} and {m}")
    return kl_upper(train_error, (nats + math.log(2 * math.sqrt(m) / delta)) / m)


def sampling_limit(share: float, n: int, delta: float) -> float:
    """Upper limit of the mean probability that gives `share` of failures among n independent trials, with probability 1 - delta
    (Chernoff's kl tail, also where the probabilities differ)."""
    return kl_upper(share, math.log(1 / delta) / n)


# the Gibbs classifier --------------------------------------------------------------------------------------------------
def gibbs_errors(logits: np.ndarray, labels: np.ndarray, spread: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Errors of drawn heads: whether each of n draws fails on each of m images, (n, m) bool; a tie fails.

    logits (m, k) of the posterior's mean; spread (m,): s |phi(x)|, the sd of a drawn head's logits around them; noise
    (k, n, m) standard normal. Heads W + s E have logits W phi + s E phi, and the entries of E phi are independent N(0, |phi|^2):
    drawing these anew for every image leaves the probability of failing on each of them as it is.
    """
    drawn = noise * spread.astype(noise.dtype)  # (k, n, m)
    drawn += logits.T[:, None].astype(noise.dtype)
    rows = np.arange(len(labels))
    own = drawn[labels, :, rows].T  # (n, m)
    drawn[labels, :, rows] = -np.inf
    return own <= drawn.max(0)


def gibbs_exact(logits: np.ndarray, labels: np.ndarray, spread: np.ndarray, points: int = 81) -> np.ndarray:
    """Probability (m,) that a drawn head fails on an image, by integrating over the noise of the true class's logit.

    logits (m, k), labels (m,), spread (m,). P(right) = E_z prod_{c != y} Phi(z + (f_y - f_c) / spread); the trapezium rule
    on +-8 is exact to rounding for so smooth a function.
    """
    z = np.linspace(-8, 8, points)
    weight = np.exp(-(z**2) / 2)
    rows = np.arange(len(labels))
    ahead = logits[rows, labels][:, None] - logits  # (m, k)
    ahead = np.where(ahead == 0, 0.0, ahead / np.maximum(spread, 1e-300)[:, None])
    ahead[rows, labels] = np.inf
    right = ndtr(z[:, None, None] + ahead).prod(-1)  # (points, m)
    return np.clip(1 - weight @ right / weight.sum(), 0, 1)
