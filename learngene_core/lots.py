"""What one stack of individuals trains: arms on target tasks; and the rows that come of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .arms import Arm
from .division import TargetTask
from .learngene import Learngene
from .presets import METHODS

Draw = tuple[TargetTask, int]
"""A target task and the number of a set of initial weights."""


@dataclasses.dataclass(frozen=True)
class Lot:
    """What one stack trains: the arms of every draw, draw after draw. genes: what they inherit, by draw and arm."""

    draws: Sequence[Draw]
    arms: Sequence[Arm]
    genes: Sequence[Sequence[Learngene | None]]

    def networks(self, pieces: Sequence = ()) -> Iterator[tuple[Any, TargetTask, int, Arm, Learngene | None]]:
        """Each network in the order of the stack: its draw's piece (None without pieces), task, initial weights, arm, gene."""
        for i, ((task, init), genes) in enumerate(zip(self.draws, self.genes, strict=True)):
            for arm, gene in zip(self.arms, genes, strict=True):
                yield (pieces[i] if pieces else None), task, init, arm, gene


def labels_of(indices: np.ndarray) -> Tensor:
    """(way, k) image indices -> their labels (way k,)."""
    return torch.arange(len(indices)).repeat_interleave(indices.shape[1])


def holds(arm: Arm) -> bool:
    """Whether something pulls an arm towards its inherited weights, or holds it there."""
    return bool(arm.ewc) or arm.hold == "frozen"


def weights_of(arm: Arm, gene: Learngene) -> dict[str, Tensor]:
    """What each inherited parameter is pulled with. EWC: its Fisher information; L2-SP and frozen: all alike."""
    if arm.hold == "fisher":
        return {f"blocks.{n}": f * arm.ewc for n, f in gene.fisher.items()}
    strength = arm.ewc if arm.hold == "l2" else 1.0
    return {f"blocks.{n}": torch.full_like(t, strength) for n, t in gene.tensors.items() if "running" not in n}


def row_of(arm: Arm, where: dict, accuracy: float, gene: Learngene | None, history: list[dict], i: int) -> dict:
    """The row of results.csv of network i of a stack: `where` it stands, its accuracy (percent) and what `fit` gave (history)."""
    pulls = [torch.as_tensor(h["penalty"]).expand(len(h["loss"]))[i] for h in history]  # 0.0 where nothing pulls
    penalties = [float(pull) if arm.ewc else 0.0 for pull in pulls]
    loss, penalty, pulled = float(history[-1]["loss"][i]), penalties[-1], sum(penalties)
    total = sum(float(h["loss"][i]) for h in history)
    return {
        "family": arm.family,
        "method": arm.method,
        **where,
        "accuracy": accuracy,
        "final_loss": loss + penalty,
        "rate": arm.rate,
        "ewc": arm.ewc,
        "ewc_share": 100 * pulled / (total + pulled),
        "inherited": "nothing" if gene is None else f"{gene.layers[0]}-{gene.layers[-1]}",
        "inherited_parameters": 0 if gene is None else gene.n_parameters,
        **dict(arm.columns),
    }


def curve_of(arm: Arm, where: dict, history: list[dict], i: int) -> list[dict]:
    """Training loss and accuracy (percent) of network i of a stack, a row per epoch."""
    return [
        {
            "family": arm.family,
            "method": arm.method,
            "shots": where["shots"],
            "epoch": h["epoch"],
            "target_task": where["target_task"],
            "loss": float(h["loss"][i]),
            "accuracy": float(h["accuracy"][i]),
        }
        for h in history
    ]


def sorted_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by family, method (in the order of `presets.METHODS`), rate, shots, task and initial weights."""
    names = dict.fromkeys(m for known in METHODS.values() for m in known)
    order = {m: i for i, m in enumerate(names)}
    keys = ["family", "method", "rate", "ewc", "shots", "target_task", "init"]
    return table.sort_values(keys, key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True)


def mean_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Training loss and accuracy per epoch: tasks are the units (initial weights averaged first)."""
    if curves.empty:
        return pd.DataFrame(columns=["family", "method", "shots", "epoch", "loss", "loss_sd", "accuracy", "n_tasks"])
    keys = ["family", "method", "shots", "epoch"]
    curves = curves.sort_values([*keys, "target_task", "loss"])  # sums of floats depend on their order
    tasks = curves.groupby([*keys, "target_task"], as_index=False)[["loss", "accuracy"]].mean()
    return tasks.groupby(keys, as_index=False).agg(
        loss=("loss", "mean"), loss_sd=("loss", "std"), accuracy=("accuracy", "mean"), n_tasks=("loss", "size")
    )
