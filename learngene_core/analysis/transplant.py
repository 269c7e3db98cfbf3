"""Transplant separability: what does a trained block make of features that nobody has trained?

A block is transplanted after a random front of the same form. If it then separates classes better than a random block in its
place, what it has learned does not depend on the layers it grew up with. New in this study. No novel and no open-world image
is needed, and no training: the classes are base classes that the ancestor had not yet seen.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..config import Config
from ..data.division import parts
from ..tasks import ImageSet, SourceTask
from .evidence import block_features, estimate_norms
from .measures import class_mean_accuracy

PER_CLASS = 40  # images of each class that was not yet seen
N_FRONTS = 3  # random networks over which the score is a mean


def transplant_separability(
    model: nn.Module,
    untrained: Sequence[nn.Module],
    paths: Mapping[str, str],
    images: Tensor,
    labels: Tensor,
    mean: Tensor,
    std: Tensor,
) -> pd.DataFrame:
    """Columns first, last, score: a row for every block of neighbouring layers, in percentage points. High: inherit.

    score: accuracy of the nearest class mean (leave one out) on the features after `last`, through [random front | trained
    block first..last], minus that of the random network at the same depth; mean over the `untrained` networks. Batch-norm
    statistics of every such network are re-estimated on the images, also where the whole is trained (first = 1), so no network
    is at an advantage. paths: block name -> dotted name, in order of depth; whatever is not in a block stays random. images
    (n, 3, h, w) uint8 with labels (n,): of classes that the model has not seen.

    Of an untrained model the score is 0 in the mean. Cost: two forward passes of the images for every block and untrained
    network, l (l + 1) / 2 scores from l + 1 networks.
    """
    names = list(paths)

    def accuracies(net: nn.Module, first: int) -> np.ndarray:
        estimate_norms(net, images, mean, std)
        features = block_features(net, {name: paths[name] for name in names[first:]}, images, mean, std)
        return np.array([class_mean_accuracy(features[name], labels) for name in names[first:]])

    scores: dict[tuple[int, int], list[float]] = {}
    for fresh in untrained:
        baseline = accuracies(copy.deepcopy(fresh), 0)
        for first in range(len(names)):
            gained = (
                accuracies(_transplanted(model, fresh, [paths[n] for n in names[first:]]), first) - baseline[first:]
            )
            for last, value in enumerate(gained, first):
                scores.setdefault((first + 1, last + 1), []).append(float(value))
    return pd.DataFrame([(*block, np.mean(v)) for block, v in scores.items()], columns=["first", "last", "score"])


def _transplanted(model: nn.Module, fresh: nn.Module, blocks: Sequence[str]) -> nn.Module:
    """A copy of the random network in which these blocks (dotted names) are the trained ones."""
    net = copy.deepcopy(fresh)
    with torch.no_grad():
        for path in blocks:
            net.get_submodule(path).load_state_dict(model.get_submodule(path).state_dict())
    return net


def not_yet_seen(base: Sequence[str], sources: Sequence[SourceTask]) -> list[str]:
    """Base classes that no source task but the last one has shown: unknown to the state before the last task.

    A joint ancestor has one task and no state before it: [].
    """
    if len(sources) < 2:
        return []
    seen = {name for task in sources[:-1] for name in task.classes}
    return [name for name in base if name not in seen]


def images_of(images: ImageSet, classes: Sequence[str], cfg: Config) -> tuple[Tensor, Tensor]:
    """At most 40 training images of each base class, (n, 3, h, w), and their labels (n,)."""
    picked = [parts(images, name, cfg.source_images, cfg.held_out_images, cfg)[0][:PER_CLASS] for name in classes]
    labels = torch.arange(len(picked)).repeat_interleave(torch.tensor([len(p) for p in picked], dtype=torch.long))
    return images.images[np.concatenate(picked)], labels
