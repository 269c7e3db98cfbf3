"""Baselines that train nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .checkpoints import Collective
from .config import Config
from .division import TargetTask
from .images import ImageSet
from .training import predict


def nearest_class_mean(
    col: Collective, imgs: ImageSet, tgt: Sequence[TargetTask], cfg: Config, device: torch.device | None = None
) -> list[dict]:
    """The baseline without training: cosine to the mean of the collective's normalised features of each class.

    (Snell et al. 2017 with cosine distance.) One row per task and shots, family `none`.
    """
    device = device or torch.device("cpu")
    needed = np.unique(np.concatenate([np.concatenate([t.support.ravel(), t.query.ravel()]) for t in tgt]))
    model = copy.deepcopy(col.model).to(device)
    features = predict(model, imgs.images[needed].to(device), col.mean.to(device), col.std.to(device), features=True)
    features = torch.nn.functional.normalize(features, dim=1).cpu()
    place = {int(image): i for i, image in enumerate(needed)}

    def of(indices: np.ndarray) -> Tensor:
        return features[[place[int(i)] for i in indices.ravel()]].view(*indices.shape, -1)

    rows = []
    for task in tgt:
        query = of(task.query)  # (way, k, d)
        for shots in cfg.shots:
            means = torch.nn.functional.normalize(of(task.support[:, :shots]).mean(1), dim=1)
            hits = (query @ means.T).argmax(-1) == torch.arange(len(query))[:, None]
            rows.append(
                {
                    "family": "none",
                    "method": "ncm",
                    "shots": shots,
                    "target_task": task.number,
                    "init": 1,
                    "accuracy": float(hits.double().mean() * 100),
                    "rate": 0.0,
                    "ewc": 0.0,
                    "ewc_share": 0.0,
                    "inherited": f"{col.model.block_names[0]}-{col.model.block_names[-1]}",
                    "inherited_parameters": sum(p.numel() for p in col.model.blocks.parameters()),
                }
            )
    return rows
