"""The steps in which the released scripts differ from the method, as callables: here each in its correct form.

The walk over the source tasks and the reconstruction ask a `Procedure` for these steps. Without defects in the configuration
that is this one; `released` holds the others, and no other module knows them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .config import Config
from .ewc import Frozen, Penalty
from .growth import WideningMap
from .network import ConvNet
from .training import Loss, Recipe

if TYPE_CHECKING:
    from .arms import Arm
    from .division import SourceTask, TargetTask
    from .learngene import Learngene
    from .stack import Stack


@dataclasses.dataclass(frozen=True)
class Lesson:
    """The training of a stack of individuals, as a step between its epochs sees it: uint8 images (n, 3, h, w), labels (n,)."""

    model: Stack
    images: Tensor
    labels: Tensor
    recipe: Recipe
    optimiser: torch.optim.Optimizer
    penalty: Penalty | Frozen | None


def first_classes(src: Sequence[SourceTask]) -> list[str]:
    """Classes whose outputs the head is born with: those of the first task; later tasks add theirs."""
    return list(src[0].classes)


def own_outputs(classes: Sequence[str], head: Sequence[str]) -> list[int]:
    """Outputs of the head (its class names in order) that stand for a task's classes: every class has its own."""
    return [head.index(name) for name in classes]


def among(outputs: Tensor, cfg: Config) -> Tensor | None:
    """Outputs that the collective's loss runs over, given the task's own (k,); None: all that there are."""
    return None if cfg.loss == "class-incremental" else outputs


def same_loss(loss: Loss, classes: Tensor | None) -> Loss:
    """The collective's loss, which runs over the outputs `classes` (k,): cross-entropy of the logits, as it comes in."""
    return loss


def same_choice(cfg: Config) -> Config:
    """The configuration by which the learngene is chosen."""
    return cfg


def alone(tgt: Sequence[TargetTask]) -> list[tuple[TargetTask, ...]]:
    """Target tasks that are trained one after the other: each is on its own."""
    return [(task,) for task in tgt]


def fresh_start(net: ConvNet, gene: Learngene | None, before: ConvNet | None) -> ConvNet:
    """The individual that a target task starts from: `net`, freshly initialised, with what it inherits.

    before: what the same arm had become on the task before, where tasks are trained one after the other.
    """
    return net if gene is None else gene.inherit_into(net)


def penalty(stack: Stack, weights: dict[str, Tensor], held: Arm, cfg: Config) -> Penalty | None:
    """The pull of a stack's individuals towards their start, with `weights` over the stack's parameters (see `Stack.join`)."""
    return Penalty(stack, dict(stack.named_parameters()), weights, 1.0, cfg.ewc_form)


def nothing(lesson: Lesson) -> None:
    """What happens between two epochs of an individual."""


def as_they_are(images: Tensor, cfg: Config, draw: torch.Generator) -> Tensor:
    """The query images (n, 3, h, w) as they are shown in the test."""
    return images


@dataclasses.dataclass(frozen=True)
class Procedure:
    """Steps of the collective's training, of the choice and of the individuals; see the functions of this module."""

    head: Callable[[Sequence[SourceTask]], list[str]] = first_classes
    outputs: Callable[[Sequence[str], Sequence[str]], list[int]] = own_outputs
    among: Callable[[Tensor, Config], Tensor | None] = among
    loss: Callable[[Loss, Tensor | None], Loss] = same_loss
    widen: Callable[..., WideningMap] = ConvNet.widen
    choice: Callable[[Config], Config] = same_choice
    chains: Callable[[Sequence[TargetTask]], list[tuple[TargetTask, ...]]] = alone
    start: Callable[[ConvNet, Learngene | None, ConvNet | None], ConvNet] = fresh_start
    penalty: Callable[[Stack, dict[str, Tensor], Arm, Config], Penalty | None] = penalty
    between_epochs: Callable[[Lesson], None] = nothing
    test_images: Callable[[Tensor, Config, torch.Generator], Tensor] = as_they_are


CORRECT = Procedure()


def procedure_of(cfg: Config) -> Procedure:
    """The steps that a configuration asks for: the correct ones, or with the defects that it names (`Config.defects`)."""
    if not cfg.defects:
        return CORRECT
    from .released import procedure

    return procedure(cfg.defects)
