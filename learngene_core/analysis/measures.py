"""Per-layer criteria that look at a network and its past instead of the gradient record, each beside its null.

Each is a small function from `Evidence` to one score per block; its direction is fixed here, before any result. Its null is
the same statistic on untrained networks with random labels: what depth and width alone would give. Measures of change would
be zero there, so their null networks take a few steps on random labels first (see `gathering.null_evidence`). Weights
of a block are its parameters with more than one axis.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..criteria import Criterion, quiet
from ..training import normalise
from .evidence import Evidence, among_classes, block_features, device_of


@dataclasses.dataclass(frozen=True)
class Measure(Criterion):
    """compute(evidence) -> (l,); null: what is looked at of a null network, "untrained" or after "a few steps"."""

    null: str = "untrained"


MEASURES: dict[str, Measure] = {}


def _measure(name: str, **facts: str) -> Callable:
    def register(compute: Callable[[Evidence], np.ndarray]) -> Callable[[Evidence], np.ndarray]:
        MEASURES[name] = Measure(name, compute, **facts)
        return compute

    return register


@_measure(
    "snr",
    inherit="low",
    source="Lee et al. 2023 (arXiv 2210.11466), SNR; there on target data, here on images of the source tasks",
    predicts="blocks whose weights the images do not agree to move",
    cost="one backward pass per image, one image at a time",
)
def snr(evidence: Evidence) -> np.ndarray:
    """Signal to noise of the gradient: mean over weights of (mean over images)^2 / variance over images.

    Batch norm is in evaluation mode. Of n images without any signal it is 1/n, in the null as well. Weights whose gradient
    does not vary (dead ones) are left out.
    """
    model, device = evidence.model, device_of(evidence.model)
    weights = {n: w for name in evidence.paths for n, w in evidence.weights(name).items()}
    fixed = {n: p.detach() for n, p in model.named_parameters() if n not in weights} | dict(model.named_buffers())
    n, chunk = len(evidence.images), max(1, min(50, 20_000_000 // sum(w.numel() for w in weights.values())))

    def loss(values: dict[str, Tensor], x: Tensor, label: Tensor, classes: Tensor) -> Tensor:
        logits = functional_call(model, fixed | values, (x[None],))
        logits, place = among_classes(logits, label[None], classes if evidence.classes is not None else None)
        return nn.functional.cross_entropy(logits, place)

    rows = torch.zeros(n, 0) if evidence.classes is None else evidence.classes.expand(n, -1)
    per_image, was_training = vmap(grad(loss), in_dims=(None, 0, 0, 0)), model.training
    model.eval()
    sums = {name: torch.zeros(2, *w.shape, dtype=torch.float64, device=device) for name, w in weights.items()}
    for part in torch.arange(n).split(chunk):
        x = normalise(evidence.images[part].to(device), evidence.mean.to(device), evidence.std.to(device))
        for name, g in per_image(weights, x, evidence.labels[part].to(device), rows[part].to(device)).items():
            sums[name][0] += g.sum(0)
            sums[name][1] += g.square().sum(0)
    model.train(was_training)
    scores = []
    for name in evidence.paths:
        total, squares = (torch.cat([sums[w][i].flatten() for w in evidence.weights(name)]) for i in (0, 1))
        variance = (squares - total.square() / n) / (n - 1)
        moved = variance > 1e-12 * squares
        scores.append(float(((total / n).square() / variance)[moved].mean()))
    return np.array(scores)


@_measure(
    "fisher",
    inherit="high",
    source="Kirkpatrick et al. 2017 (arXiv 1612.00796): the diagonal Fisher information, as elastic weight consolidation has it",
    predicts="blocks that what was learned depends on most; not invariant under batch norm",
    cost="one backward pass per image, one image at a time",
)
def fisher(evidence: Evidence) -> np.ndarray:
    """Trace of the diagonal Fisher information of a block's weights, per weight."""
    return _per_weight(evidence, lambda f, w: f.sum())


@_measure(
    "fisher_scaled",
    inherit="high",
    source="this study: unchanged when weights before a batch norm are rescaled",
    predicts="as fisher, without the arbitrary scale of weights before batch norm",
    cost="one backward pass per image, one image at a time; free beside fisher",
)
def fisher_scaled(evidence: Evidence) -> np.ndarray:
    """Trace of the diagonal Fisher times the squared norm of the weights, summed over a block's tensors, per weight."""
    return _per_weight(evidence, lambda f, w: f.sum() * w.square().sum())


def _per_weight(evidence: Evidence, value: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    scores = []
    for name in evidence.paths:
        weights = evidence.weights(name)
        total = sum(float(value(evidence.fisher[n].double(), w.double())) for n, w in weights.items())
        scores.append(total / sum(w.numel() for w in weights.values()))
    return np.array(scores)


@_measure(
    "weight_change",
    inherit="high",
    source="Zhang, Bengio & Singer 2022 (arXiv 1902.01996): layers that stay near their initialisation can be thrown away",
    predicts="blocks that learning moved; the opposite of 'stable, hence valuable'",
    cost="nothing: the weights at birth and now",
    null="a few steps",
)
def weight_change(evidence: Evidence) -> np.ndarray:
    """Mean angle in degrees between the filters of a block at birth and now; batch norm undoes their length."""
    return np.array(
        [
            float(
                torch.cat(
                    [angles(evidence.initial[n].to(w.device), w) for n, w in evidence.weights(name).items()]
                ).nanmean()
            )
            for name in evidence.paths
        ]
    )


def angles(one: Tensor, two: Tensor) -> Tensor:
    """Angle in degrees (k,) between the k filters of two weights (k, ...); NaN for a filter that is zero."""
    u, v = (w.flatten(1).double() / w.flatten(1).double().norm(dim=1, keepdim=True) for w in (one, two))
    return 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1)).rad2deg()  # exact for small angles, unlike acos


@_measure(
    "reinit",
    inherit="high",
    source="Zhang, Bengio & Singer 2022 (arXiv 1902.01996): re-initialisation robustness",
    predicts="critical blocks, without which the network fails; what is robust may as well be fresh",
    cost="forward passes: the held-out images once per block",
    null="a few steps",
)
def reinit(evidence: Evidence) -> np.ndarray:
    """Held-out accuracy lost when a block returns to its birth values, in percentage points (see `Evidence.reset`)."""
    before = evidence.accuracy(evidence.model)
    return np.array([before - evidence.accuracy(evidence.reset(name)) for name in evidence.paths])


@_measure(
    "cka_drift",
    inherit="low",
    source="Kornblith et al. 2019 (arXiv 1905.00414); on forgetting: Ramasesh, Dyer & Raghu 2021 (arXiv 2007.07400)",
    predicts="early blocks: their features survive new tasks, those of deep blocks are overwritten",
    cost="forward passes: the held-out images once per state",
    null="a few steps",
)
def cka_drift(evidence: Evidence) -> np.ndarray:
    """Mean over successive states of 1 - linear CKA of a block's features on the probe images.

    Widths of the two states may differ. NaN without an earlier state; a block counts from the state on that has it.
    """
    drifts, before = [], None
    for model in itertools.chain(evidence.states, (evidence.model,)):
        features = block_features(model, evidence.paths, evidence.probe_images, evidence.mean, evidence.std)
        now = {name: centred_gram(x) for name, x in features.items()}
        if before is not None:
            drifts.append(
                [1 - _alignment(before[n], now[n]) if n in before and n in now else np.nan for n in evidence.paths]
            )
        before = now
    with quiet():
        return np.nanmean(drifts, 0) if drifts else np.full(len(evidence.paths), np.nan)


def centred_gram(features: Tensor) -> Tensor:
    """Inner products (n, n) of centred features (n, d), of length 1 as a whole; NaN where all features are equal."""
    x = features.double() - features.double().mean(0)
    gram = x @ x.T
    return gram / gram.norm()


def _alignment(one: Tensor, two: Tensor) -> float:
    """Linear CKA of two such Gram matrices: ||Y'X||^2 / (||X'X|| ||Y'Y||) for centred X (n, d), Y (n, e)."""
    return float((one * two).sum())


@_measure(
    "separability",
    inherit="high",
    source="Alain & Bengio 2016 (arXiv 1610.01644): probes by depth; here the nearest class mean, which trains nothing",
    predicts="the blocks up to the depth at which features separate held-out images best",
    cost="forward passes: the held-out images once",
)
def separability(evidence: Evidence) -> np.ndarray:
    """Accuracy in percent of the nearest class mean on a block's features of the probe images, among all their classes.

    Features are scaled to length 1; a class mean leaves out the image that is asked about. Classes with one image only are
    left out.
    """
    features = block_features(evidence.model, evidence.paths, evidence.probe_images, evidence.mean, evidence.std)
    return np.array([class_mean_accuracy(features[name], evidence.probe_labels) for name in evidence.paths])


def class_mean_accuracy(features: Tensor, labels: Tensor) -> float:
    """Leave-one-out accuracy in percent of the nearest class mean: features (n, d), labels (n,); NaN without two of a class."""
    classes, place, count = labels.unique(return_inverse=True, return_counts=True)
    keep = count[place] > 1
    classes, place, count = labels[keep].unique(return_inverse=True, return_counts=True)
    if len(classes) < 2:
        return float("nan")
    x = nn.functional.normalize(features[keep].double(), dim=1)
    sums = torch.zeros(len(classes), x.shape[1], dtype=x.dtype).index_add_(0, place, x)
    distance = torch.cdist(x, sums / count[:, None])
    own = torch.arange(len(x)), place
    distance[own] = (x - (sums[place] - x) / (count[place, None] - 1)).norm(dim=1)
    return 100 * float((distance.argmin(1) == place).double().mean())


def measure(evidence: Evidence, nulls: Sequence[Evidence], name: str) -> pd.DataFrame:
    """Score table of one measure, with the columns of `criteria.score`; null columns are NaN without null networks.

    Raises ValueError for an unknown measure.
    """
    if name not in MEASURES:
        raise ValueError(f"unknown measure {name!r}; there are {', '.join(MEASURES)}")
    one = MEASURES[name]
    null = [one.compute(e if one.null == "a few steps" else e.at_birth) for e in nulls]
    return one.table(list(evidence.paths), one.compute(evidence), np.array(null).reshape(-1, len(evidence.paths)))


def measure_all(evidence: Evidence, nulls: Sequence[Evidence], names: Sequence[str] | None = None) -> pd.DataFrame:
    """Score tables of the named measures (None: all), one below the other. Raises ValueError for an unknown one."""
    names = MEASURES if names is None else names
    return pd.concat([measure(evidence, nulls, name) for name in names], ignore_index=True)
