"""The arms of the comparison: what each family's methods inherit, and the shape they have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from .checkpoints import Collective
from .config import Config
from .learngene import Learngene, light_shape
from .network import ConvNet
from .presets import METHODS
from .streams import generator

Donor = Callable[[tuple], Learngene | None]
"""What to inherit, made anew for every (group, target task, initial weights); None: nothing."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to make an individual.

    family, method; rate: learning rate; ewc: strength of the pull towards the inherited weights (0: none); hold: what that
    pull weighs with, "fisher" (EWC) or "l2" (all alike: L2-SP, Li et al. 2018), or "frozen": inherited parameters do not move
    at all (their batch-norm statistics do); donor: where the inherited blocks come from, by default as `inherited` has it for
    the method; columns: further columns of the arm's rows.
    """

    family: str
    method: str
    rate: float
    ewc: float = 0.0
    hold: str = "fisher"
    donor: Donor | None = dataclasses.field(default=None, compare=False)
    columns: tuple[tuple[str, object], ...] = ()


def arms_of(cfg: Config, methods: Sequence[str]) -> list[Arm]:
    """Every family's arms among `methods`, in the order of `presets.METHODS`. Raises ValueError for an unknown method."""
    unknown = set(methods) - {m for known in METHODS.values() for m in known}
    if unknown:
        raise ValueError(
            f"unknown method {sorted(unknown)[0]!r}; there are {', '.join(m for k in METHODS.values() for m in k)}"
        )
    return [
        Arm(family, method, cfg.rate(family, method), cfg.individual_ewc if method == "learngene_ewc" else 0.0)
        for family, known in METHODS.items()
        if family != "none"
        for method in known
        if method in methods
    ]


def inherited(method: str, gene: Learngene, col: Collective, cfg: Config, draw: tuple = ()) -> Learngene | None:
    """What an arm inherits, cut (copied) from its ancestor; None for `scratch`.

    `random`: the learngene's blocks from an untrained collective, another one for each `draw` (task, initial weights); it
    has the law of `scratch` and cannot tell content from scale. `first`: as many blocks from the first on; `full`: all.
    """
    names = col.model.block_names
    if method in ("learngene", "learngene_ewc"):
        return gene
    if method == "random":
        untrained = ConvNet.from_shape(
            col.model.shape, generator=generator(cfg.seed, "untrained collective", cfg.target_seed, *draw)
        )
        return Learngene.from_model(untrained, gene.layers, mean=gene.mean, std=gene.std)
    if method in ("first", "full"):
        layers = names[: len(gene.layers)] if method == "first" else names
        return Learngene.from_model(col.model, layers, mean=gene.mean, std=gene.std)
    return None


def family_shape(family: str, gene: Learngene, col: Collective, cfg: Config) -> dict:
    """Shape of a family's individuals."""
    if family == "light":
        return light_shape(gene, cfg.n_way, cfg)
    return {**col.model.shape, "n_classes": cfg.n_way, "dropout": 0.0}
