"""Transferability scores from the literature, read at every depth of a network: how well would its features serve new classes?

Each score is a small function of features and labels. It was made to rank whole networks by their last layer; here it is read
after every block, so that it can say how far to inherit. All need forward passes only. Their directions are fixed here, before
any result: of every score a higher value means "inherit up to here". Images are those of pseudo-tasks (open-world classes),
never the queries of novel classes.

A score at a depth speaks of the whole prefix up to there. A block [first..last] is given what it adds: the score after `last`
minus the score before `first`, where the pixels themselves are depth 0 (see `gain_over_block`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor, nn

from ..criteria import Criterion
from ..training import normalise
from .evidence import POSITIONS, block_features
from .measures import class_mean_accuracy

PIXELS = "pixels"
RATIOS = 200  # of the precisions of weights and noise, at which the evidence of LogME is looked at before it is refined
TEMPERATURES = np.logspace(-4, 1, 51)  # of squared distances between features of length 1, which are 0 to 4


# scores of features ---------------------------------------------------------------------------------------------------
def logme(features: np.ndarray, labels: np.ndarray) -> float:
    """LogME: evidence per image of a Bayesian linear model from features (n, d) to labels (n,), mean over classes. High: inherit.

    You et al. 2021 (arXiv 2102.11005). Each class is a target of zeros and ones. Weights have precision a and noise has
    precision b, and both are chosen so that the evidence is largest. At the best b the evidence depends on a / b alone, and that
    one number is searched on a grid and refined; the source iterates to the same point. Cost: one singular value
    decomposition. Rotating or scaling the features changes nothing; moving their origin does.
    """
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    keep = s > s.max(initial=0.0) * max(features.shape) * np.finfo(float).eps
    targets = (labels[:, None] == np.unique(labels)).astype(float)  # (n, k)
    inside = (u[:, keep].T @ targets) ** 2  # (r, k)
    return float(
        np.mean([_evidence(s[keep] ** 2, z, y.sum(), len(y)) for z, y in zip(inside.T, targets.T, strict=True)])
    )


def _evidence(power: np.ndarray, inside: np.ndarray, length: float, n: int) -> float:
    """Largest log evidence per image. power (r,): squared singular values; inside (r,): squared coordinates of the target
    along them; length: its squared norm."""
    rest = max(0.0, length - inside.sum())
    rest = rest if rest > 1e-12 * length else 0.0

    def minus(log_ratio: float | np.ndarray) -> np.ndarray:
        ratio = np.exp(log_ratio)[..., None]
        energy = (ratio * inside / (ratio + power)).sum(-1) + rest  # squared errors + ratio * squared weights
        return 0.5 * (n * np.log(2 * np.pi * energy / n) + n - np.log(ratio / (ratio + power)).sum(-1))

    if not power.size:  # features that are zero explain nothing
        return -float(minus(0.0)) / n
    grid = np.linspace(np.log(power.min()) - 10, np.log(power.max()) + 10, RATIOS)
    place, step = int(minus(grid).argmin()), grid[1] - grid[0]
    found = minimize_scalar(minus, bounds=(grid[place] - step, grid[place] + step), method="bounded")
    return -float(found.fun) / n


def h_score(features: np.ndarray, labels: np.ndarray, *, shrink: bool = True) -> float:
    """H-score: trace of cov(features)^-1 cov(class means), features (n, d), labels (n,). High: inherit.

    Bao et al. 2019 (An information-theoretic approach to transferability, ICIP). As published (shrink=False) it is the number of
    classes minus one whatever the features are, once there are as many features as images. So the covariance is shrunk as Ledoit
    and Wolf do it, by a share s, and the trace is multiplied by 1 - s (Ibrahim et al. 2021, arXiv 2110.06893). Cost: one
    singular value decomposition. Neither form is changed by rotating, scaling or moving the features; the published one by no
    invertible linear map.
    """
    x = features - features.mean(0)
    n, d = x.shape
    u, s, _ = np.linalg.svd(x, full_matrices=False)  # nothing below changes when the features are rotated
    keep = s > s.max(initial=0.0) * max(n, d) * np.finfo(float).eps
    u, s = u[:, keep], s[keep]
    share = ledoit_wolf_shrinkage(x, assume_centered=True) if shrink and s.size else 0.0
    variance = (1 - share) * s**2 / n + share * (s**2).sum() / (n * d)  # (r,)
    parts = [(labels == c) for c in np.unique(labels)]
    between = sum(part.mean() * (s * u[part].mean(0)) ** 2 for part in parts)  # (r,)
    return float((1 - share) * (between / variance).sum())


def transrate(features: np.ndarray, labels: np.ndarray, *, epsilon: float = 1e-4) -> float:
    """TransRate: coding rate of all features (n, d) minus the mean one of the classes' features, in nats. High: inherit.

    Huang et al. 2022 (arXiv 2106.09362). The coding rate estimates how many nats tell the features apart up to an error of
    `epsilon`. Features are centred and scaled to a scatter of trace 1, so that depths of another scale can be compared. Classes
    count by their images. Cost: singular values of all features and of each class's. Rotating, scaling and moving the features
    change nothing.
    """
    x = features - features.mean(0)
    scale = np.linalg.norm(x)
    if not scale:
        return 0.0
    x = x / scale
    parts = [x[labels == c] for c in np.unique(labels)]
    return coding_rate(x, epsilon) - sum(len(part) / len(x) * coding_rate(part, epsilon) for part in parts)


def coding_rate(x: np.ndarray, epsilon: float) -> float:
    """Half the log-determinant of I + x'x / (n epsilon), for x (n, d), in nats."""
    return 0.5 * float(np.log1p(np.linalg.svd(x, compute_uv=False) ** 2 / (len(x) * epsilon)).sum())


def leep(posteriors: np.ndarray, labels: np.ndarray) -> float:
    """LEEP: mean log-likelihood of the labels (n,) through the source classes' posteriors (n, s), in nats. High: inherit.

    Nguyen et al. 2020 (arXiv 2002.12462). P(label | source class) is counted on the same images, softly. Cost: nothing beyond
    the posteriors. It is at most 0. The order of images and of source classes changes nothing.
    """
    onehot = (labels[:, None] == np.unique(labels)).astype(float)  # (n, k)
    joint = onehot.T @ posteriors / len(labels)  # (k, s)
    conditional = joint / np.maximum(joint.sum(0), np.finfo(float).tiny)
    return float(np.log((posteriors @ conditional.T * onehot).sum(1)).mean())


def class_posteriors(source: np.ndarray, source_labels: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Posteriors (n, s) of the source classes for target features (n, d), from source features (m, d) and labels (m,).

    Softmax of minus the squared distance to each class mean, features scaled to length 1. Its temperature makes the source
    images' own labels most likely, each image left out of its class mean. Classes with one image are left out.
    """
    names, place, counts = np.unique(source_labels, return_inverse=True, return_counts=True)
    keep = counts[place] > 1
    names, place, counts = np.unique(source_labels[keep], return_inverse=True, return_counts=True)
    x, y = _unit(source[keep]), _unit(target)
    means = np.stack([x[place == c].mean(0) for c in range(len(names))])  # (s, d)
    own, rows = _squared_distances(x, means), np.arange(len(x))
    # x - (its class's mean without x) = (x - mean) n / (n - 1)
    own[rows, place] *= (counts[place] / (counts[place] - 1)) ** 2
    likelihood = [log_softmax(-own / t, axis=1)[rows, place].mean() for t in TEMPERATURES]
    return softmax(-_squared_distances(y, means) / TEMPERATURES[int(np.argmax(likelihood))], axis=1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny)


def _squared_distances(x: np.ndarray, means: np.ndarray) -> np.ndarray:
    return np.maximum((x**2).sum(1)[:, None] + (means**2).sum(1) - 2 * x @ means.T, 0)


def covariance_cka(source: np.ndarray, target: np.ndarray) -> float:
    """Linear CKA of the covariances of source (m, d) and target features (n, d): do both vary along the same directions?
    High: inherit.

    Kornblith et al. 2019 (arXiv 1905.00414) compare two networks on the same images. Here one network sees two sets of images, so
    the roles change places: features are paired, images are not. With covariances S and T it is tr(S T) / (|S| |T|), between 0
    and 1. Cost: inner products of all pairs of images. Rotating both sets of features alike, or scaling one, changes nothing.
    """
    x, y = source - source.mean(0), target - target.mean(0)
    lengths = np.linalg.norm(x @ x.T) * np.linalg.norm(y @ y.T)
    return float(np.linalg.norm(x @ y.T) ** 2 / lengths) if lengths else float("nan")


# at every depth -------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, eq=False)
class Depth:
    """At one depth: features of target images (n, d), their labels (n,) and posteriors over s source classes (n, s),
    and features of source images (m, d)."""

    target: np.ndarray
    labels: np.ndarray
    posteriors: np.ndarray
    source: np.ndarray


@dataclasses.dataclass(frozen=True)
class Transfer(Criterion):
    """compute(Depth) -> the score of that depth; group: whom it may be compared with."""

    group: str = "support labels"


TRANSFER: dict[str, Transfer] = {
    one.name: one
    for one in (
        Transfer(
            "logme",
            lambda d: logme(d.target, d.labels),
            "high",
            "You et al. 2021 (arXiv 2102.11005), LogME",
            "the depth whose features a linear model explains the labels with best",
            "forward passes of the pseudo-tasks' support images",
        ),
        Transfer(
            "h_score",
            lambda d: h_score(d.target, d.labels),
            "high",
            "Bao et al. 2019, H-score, with the shrunk covariance of Ibrahim et al. 2021 (arXiv 2110.06893)",
            "the depth at which class means differ most, in units of the features' spread",
            "forward passes of the pseudo-tasks' support images",
        ),
        Transfer(
            "transrate",
            lambda d: transrate(d.target, d.labels),
            "high",
            "Huang et al. 2022 (arXiv 2106.09362), TransRate; there too used to choose a layer",
            "the depth at which features are many and those of one class few",
            "forward passes of the pseudo-tasks' support images",
        ),
        Transfer(
            "leep",
            lambda d: leep(d.posteriors, d.labels),
            "high",
            "Nguyen et al. 2020 (arXiv 2002.12462), LEEP; source posteriors by the nearest class mean at that depth",
            "the depth at which likeness to source classes tells the new classes apart",
            "forward passes of the support images and of some source images",
        ),
        Transfer(
            "pseudo_separability",
            lambda d: class_mean_accuracy(torch.from_numpy(d.target), torch.from_numpy(d.labels)),
            "high",
            "Alain & Bengio 2016 (arXiv 1610.01644): probes by depth; here the nearest class mean on pseudo-tasks",
            "the depth at which features separate the new classes best",
            "forward passes of the pseudo-tasks' support images",
        ),
        Transfer(
            "covariance_cka",
            lambda d: covariance_cka(d.source, d.target),
            "high",
            "after Kornblith et al. 2019 (arXiv 1905.00414), linear CKA, with images and features in each other's place",
            "the depths at which new images vary as source images do; looks at new images, not at their labels",
            "forward passes of the support images and of some source images",
            group="network",
        ),
    )
}


def depth_features(
    model: nn.Module, paths: Mapping[str, str], images: Tensor, mean: Tensor, std: Tensor
) -> dict[str, np.ndarray]:
    """Features (n, d) as 64-bit floats of uint8 images (n, 3, h, w) at depth 0, the pixels, and after every block, in order.

    Maps are averaged to at most 4 x 4 positions, the pixels too; see `evidence.block_features`.
    """
    shown = normalise(images, mean.cpu(), std.cpu())
    pixels = nn.functional.adaptive_avg_pool2d(shown, [min(POSITIONS, side) for side in shown.shape[2:]]).flatten(1)
    found = {PIXELS: pixels, **block_features(model, paths, images, mean, std)}
    return {name: x.double().numpy() for name, x in found.items()}


def depth_scores(
    target: Mapping[str, np.ndarray],
    tasks: Sequence[tuple[np.ndarray, np.ndarray]],
    source: Mapping[str, np.ndarray],
    source_labels: np.ndarray,
) -> pd.DataFrame:
    """Scores (criteria x depths), means over tasks; the columns are the depths in order, pixels first.

    target: depth -> features (n, d) of all tasks' images; tasks: of each the places (m,) of its images among the n, and their
    labels (m,); source: depth -> features (s, d) of source images with labels (s,).
    """
    columns = {}
    for depth, x in target.items():
        posteriors = class_posteriors(source[depth], source_labels, x)
        seen = [Depth(x[place], labels, posteriors[place], source[depth]) for place, labels in tasks]
        columns[depth] = {name: float(np.mean([one.compute(d) for d in seen])) for name, one in TRANSFER.items()}
    return pd.DataFrame(columns)


def gain_over_block(values: np.ndarray, first: int, last: int) -> float:
    """What a block [first..last] (counted from 1) adds to a score of depths, values (l + 1,) from the pixels on."""
    return float(values[last] - values[first - 1])
