"""What the released scripts do differently, each a switch: `Config.defects` names those that are on.

The scripts are those of github.com/BruceQFWang/learngene, which accompany the paper; what they do was read in their code. Each
switch replaces steps of `procedure.Procedure`; everything else stays in its correct form, so that its effect can be seen alone.
Not switches: what stops the scripts from running, and what belongs to the data (presets of that name have it).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from .checking import nearest
from .config import Config
from .ewc import Penalty
from .growth import WideningMap
from .images import augment, normalise
from .network import ConvNet
from .procedure import CORRECT, Lesson, Procedure
from .procedure import penalty as correct_penalty
from .training import Loss, stack_loss, task_loss

if TYPE_CHECKING:
    from .arms import Arm
    from .division import SourceTask, TargetTask
    from .learngene import Learngene
    from .stack import Stack

LEAK_LENGTH = 5  # target tasks that one call of the released script trains, one after the other


# the loss and EWC -------------------------------------------------------------------------------------------------------
def double_softmax(loss: Loss, classes: Tensor | None) -> Loss:
    """Cross-entropy that takes the softmax of the outputs for logits: between ln(e + k - 1) - 1 and ln(e + k - 1), k outputs."""

    def of_probabilities(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if classes is not None:
            labels = (labels[:, None] == classes).to(torch.uint8).argmax(1)
            logits = logits[:, classes]
        return task_loss()(logits.softmax(1), labels)

    return of_probabilities


class EpochPenalty(Penalty):
    """EWC of individuals as it is written in the scripts, were it not lost: nothing is held in the first epoch; at the end of
    each one anchor and Fisher are taken anew, from the target task itself.

    The Fisher is the square of one batch's mean gradient, in training mode, with the true labels; the batch is spread evenly
    over the support images. The strength stays ours (released: 20,000).
    """

    def __init__(self, stack: Stack, weights: dict[str, Tensor], strength: float, form: str):
        super().__init__(stack, dict(stack.named_parameters()), weights, 1.0, form)
        # joined along channels, one part per network of the stack: which of them are held at all
        held = [w.reshape(stack.size, -1).any(1).repeat_interleave(len(w) // stack.size) for w in self.weight]
        self.strength = [strength * h.view(-1, *[1] * (w.ndim - 1)) for h, w in zip(held, self.weight, strict=True)]
        self.weight = [torch.zeros_like(w) for w in self.weight]
        self.names = [name for name, _ in stack.named_parameters() if name in weights]

    def take(self, lesson: Lesson) -> None:
        """Anchor and Fisher of the weights as they are now."""
        n = len(lesson.images)
        pick = torch.arange(0, n, math.ceil(n / lesson.recipe.batch_size), device=lesson.images.device)
        x = normalise(lesson.images[pick], lesson.recipe.mean, lesson.recipe.std)
        named = {name: p.detach().requires_grad_() for name, p in lesson.model.named_parameters()}
        buffers = {name: b.clone() for name, b in lesson.model.named_buffers()}  # training mode would move them
        loss = stack_loss(functional_call(lesson.model, (named, buffers), (x,)), lesson.labels[pick])[0].sum()
        gradients = torch.autograd.grad(loss, [named[name] for name in self.names])
        self.weight = [s * g.square() for s, g in zip(self.strength, gradients, strict=True)]
        self.anchor = [p.detach().clone() for p in self.parameters]


def epoch_penalty(stack: Stack, weights: dict[str, Tensor], held: Arm, cfg: Config) -> Penalty | None:
    """See `EpochPenalty`; other pulls than EWC are left alone."""
    if held.hold != "fisher":
        return correct_penalty(stack, weights, held, cfg)
    return EpochPenalty(stack, weights, held.ewc, cfg.ewc_form)


def take_penalty(lesson: Lesson) -> None:
    """Between two epochs: EWC towards the weights as they have become."""
    if isinstance(lesson.penalty, EpochPenalty):
        lesson.penalty.take(lesson)


def zero_penalty(stack: Stack, weights: dict[str, Tensor], held: Arm, cfg: Config) -> Penalty | None:
    """No EWC at all; other pulls are left alone."""
    return None if held.hold == "fisher" else correct_penalty(stack, weights, held, cfg)


# individuals ------------------------------------------------------------------------------------------------------------
def in_turn(tgt: Sequence[TargetTask]) -> list[tuple[TargetTask, ...]]:
    """Target tasks as one call of the script trains them, `LEAK_LENGTH` one after the other."""
    return [tuple(tgt[i : i + LEAK_LENGTH]) for i in range(0, len(tgt), LEAK_LENGTH)]


def leaking_start(net: ConvNet, gene: Learngene | None, before: ConvNet | None) -> ConvNet:
    """Individuals that inherit go on from what the task before has left, head and batch norm included; others are new."""
    if gene is None:
        return net
    return gene.inherit_into(net) if before is None else before


def forget_momentum(lesson: Lesson) -> None:
    """Between two epochs: as if the optimiser were made anew."""
    lesson.optimiser.state.clear()


def augmented(images: Tensor, cfg: Config, draw: torch.Generator) -> Tensor:
    """Test images with the random shift and flip of the training images, where these have them."""
    n = len(images)
    shift = torch.randint(-cfg.shift, cfg.shift + 1, (n, 2), generator=draw) if cfg.shift else None
    flip = torch.rand(n, generator=draw) < 0.5 if cfg.flip else None
    return augment(images, *(t if t is None else t.to(images.device) for t in (shift, flip)))


# labels and growth ------------------------------------------------------------------------------------------------------
def all_classes(src: Sequence[SourceTask]) -> list[str]:
    """The head has outputs for all classes of the sequence from the start, and does not grow."""
    return list(dict.fromkeys(name for task in src for name in task.classes))


def first_outputs(classes: Sequence[str], head: Sequence[str]) -> list[int]:
    """Every task's classes are labelled from 0."""
    return list(range(len(classes)))


def whole_head(outputs: Tensor, cfg: Config) -> Tensor | None:
    """The loss runs over all outputs, of which most only ever stand for no class."""
    return None


def widen_copies(model: ConvNet, name: str, width: int, *, mode: str = "", **options: object) -> WideningMap:
    """Widening by exact copies with equal shares, batch norm included: they get equal gradients for ever."""
    return model.widen(name, width, mode="net2net", noise=0.0, **options)


@torch.no_grad()
def widen_with_gap(
    model: ConvNet, name: str, width: int, *, generator: torch.Generator, **options: object
) -> WideningMap:
    """Widening by copies of which only the last one gets its batch norm.

    That of the others is memory which nobody has written, and can hold anything; what stands for it here is drawn from
    `generator`: weight, bias and running mean N(0, 1), running variance exp(N(0, 1)). All finite, where the scripts also give
    infinities.
    """
    old = model.blocks[name].conv.out_channels
    mapping = widen_copies(model, name, width, generator=generator, **options)
    norm = model.blocks[name].norm
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        value[old:-1] = torch.randn(width - old - 1, generator=generator).to(value)
    norm.running_var[old:-1] = norm.running_var[old:-1].exp()
    return mapping


def signed_threshold(cfg: Config) -> Config:
    """The choice by the released count: entries above an absolute threshold, with their sign."""
    return cfg.replace(criterion="released", sign="positive")


# the switches -----------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Defect:
    """A defect: its name, what the released scripts do, what that touches, and the steps that it replaces.

    touches: "collective", "choice" (of the layers), and of the individuals "scratch", "learngene", "learngene_ewc".
    """

    name: str
    text: str
    touches: tuple[str, ...]
    apply: Callable[[Procedure], Procedure]

    def __call__(self, procedure: Procedure) -> Procedure:
        """`procedure` with this defect."""
        return self.apply(procedure)


def _steps(**steps: Callable) -> Callable[[Procedure], Procedure]:
    return lambda procedure: dataclasses.replace(procedure, **steps)


def _between(step: Callable[[Lesson], None], **others: Callable) -> Callable[[Procedure], Procedure]:
    """A step between two epochs, behind those that are there already."""

    def applied(procedure: Procedure) -> Procedure:
        def both(lesson: Lesson) -> None:
            procedure.between_epochs(lesson)
            step(lesson)

        return dataclasses.replace(procedure, between_epochs=both, **others)

    return applied


INDIVIDUALS = ("scratch", "learngene", "learngene_ewc")
# fmt: off
DEFECTS: dict[str, Defect] = {defect.name: defect for defect in (  # later ones have the last word
    Defect("double_softmax", "the collective ends in a softmax, and its loss applies another", ("collective",),
           _steps(loss=double_softmax)),
    Defect("labels_reused", "every source task's classes are labelled from 0, over the whole head, which never grows",
           ("collective",), _steps(head=all_classes, outputs=first_outputs, among=whole_head)),
    Defect("exact_copies", "widening copies channels exactly, with equal shares: copies never differ", ("collective",),
           _steps(widen=widen_copies)),
    Defect("bn_gap", "widening copies channels, but only the last new one's batch norm: the others' is unwritten memory",
           ("collective",), _steps(widen=widen_with_gap)),
    Defect("signed_threshold", "the criterion counts gradient entries above an absolute threshold, with their sign",
           ("choice",), _steps(choice=signed_threshold)),
    Defect("epoch_ewc", "EWC of an individual pulls towards its own epoch before, not towards the collective",
           ("learngene_ewc",), _between(take_penalty, penalty=epoch_penalty)),
    Defect("zero_ewc", "the EWC penalty is always zero: an error in reading its anchor is caught and forgotten",
           ("learngene_ewc",), _steps(penalty=zero_penalty)),
    Defect("rebuilt_optimiser", "individuals get a new optimiser in every epoch: momentum never builds", INDIVIDUALS,
           _between(forget_momentum)),
    Defect("leak", f"inheriting individuals go on from the target task before, {LEAK_LENGTH} in a row; scratch starts anew",
           ("learngene", "learngene_ewc"), _steps(chains=in_turn, start=leaking_start)),
    Defect("augmented_test", "test images are augmented at random, as the training images are", INDIVIDUALS,
           _steps(test_images=augmented)),
)}
# fmt: on


def procedure(defects: Sequence[str]) -> Procedure:
    """The steps with these defects, in whatever order they are named. Raises ValueError for an unknown name."""
    for name in defects:
        if name not in DEFECTS:
            raise ValueError(f"unknown defect {name!r}{nearest(name, DEFECTS)}; there are {', '.join(DEFECTS)}")
    steps = CORRECT
    for name, defect in DEFECTS.items():
        steps = defect(steps) if name in defects else steps
    return steps
