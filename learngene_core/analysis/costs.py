"""Break-even: how many individuals until what the collective cost is paid back?

All costs are floating-point operations of training, 2 for each multiply-add, a training step three times a forward pass
(forward, gradient by outputs, gradient by weights). Left out, because small: batch norm, pools, optimiser, EWC, evaluation.

    collective   C = 3 * sum over source tasks of (images * epochs * forward operations of the network at that width)
    individual   I(e) = 3 * support images * e epochs * forward operations of the individual
    break-even   N = C / (I(e of scratch) - I(e of the learngene))

The e are the epochs that each needs to reach one and the same accuracy: the learngene's after its own full training, or, where
scratch never gets there, only a bound is known: scratch needs more than all its epochs, so N is *at most* that with its last
epoch. Where the learngene needs as many epochs as scratch, nothing is saved and N is infinite.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from ..config import Config
from ..growth import growth_schedule
from ..network import ConvNet, flop_count
from ..presets import PAPER_POOLS

STEP = 3  # a training step in forward passes


@dataclasses.dataclass(frozen=True)
class BreakEven:
    """What the collective costs, what an individual with and without the learngene costs until it has reached `accuracy`
    (percent), and after how many individuals the collective is paid.

    collective, individual, scratch: floating-point operations; epochs, scratch_epochs: of one individual; bound: scratch never
    reached that accuracy, so scratch is a lower and individuals an upper bound.
    """

    collective: float
    individual: float
    scratch: float
    accuracy: float
    epochs: int
    scratch_epochs: int
    individuals: float
    bound: bool


def forward_flop(shape: Mapping) -> int:
    """Operations of one image's forward pass through a network of this shape (`ConvNet.shape`)."""
    return sum(flop_count(ConvNet.from_shape(dict(shape))).values())


def collective_flop(shapes: Sequence[Mapping], images: Sequence[int], epochs: Sequence[int]) -> float:
    """C: of training the collective; of each source task the network's shape, the number of training images and the epochs.

    Raises ValueError for lists of different lengths.
    """
    tasks = zip(shapes, images, epochs, strict=True)
    return STEP * math.fsum(forward_flop(shape) * n * e for shape, n, e in tasks)


def planned_flop(cfg: Config, n_base: int, per_class: int) -> float:
    """C of a sequential or joint collective by its plan, without training it: n_base base classes with per_class training images
    each. Every head is counted with all n_base outputs. Raises ValueError for another kind of ancestor."""
    if cfg.ancestor not in ("sequential", "joint"):
        raise ValueError(f"the plan of ancestor={cfg.ancestor} does not say how many images a task has")
    own, shapes = cfg.as_ancestor(n_base), []
    widths = {f"conv{i}": width for i, width in enumerate(own.start_widths, 1)}
    for number in range(1, own.n_source_tasks + 1):
        widths |= dict(growth_schedule(own).get(number, []))
        shapes.append(ConvNet((*widths.values(),), PAPER_POOLS, n_base, own.image_size, own.hidden).shape)
    epochs = [own.first_task_epochs, *[own.epochs] * (len(shapes) - 1)]
    return collective_flop(shapes, [own.source_way * per_class] * len(shapes), epochs)


def individual_flop(shape: Mapping, images: int, epochs: int) -> float:
    """I(epochs): of training one individual of this shape on so many support images."""
    return STEP * float(forward_flop(shape)) * images * epochs


def first_epoch(curve: Mapping[int, float], accuracy: float) -> int | None:
    """First epoch at which a curve (epoch -> accuracy in percent) is at least `accuracy`; None where it never is."""
    return next((epoch for epoch in sorted(curve) if curve[epoch] >= accuracy), None)


def break_even(
    collective: float,
    shape: Mapping,
    images: int,
    curves: pd.DataFrame,
    *,
    method: str = "learngene",
    against: str = "scratch",
    accuracy: float | None = None,
) -> BreakEven:
    """Break-even of individuals of one shape, trained on `images` support images, against training each from scratch.

    collective: C; curves: columns method, epoch, accuracy (percent, on query images, mean over tasks). accuracy: to be reached by
    both, by default what the method has after its last epoch. Both sides need the epochs at which their curve first is there.

    Raises ValueError where a method has no curve, an accuracy is not a number, or the method itself never reaches it.
    """
    own, other = (_curve(curves, name) for name in (method, against))
    wanted = own[max(own)] if accuracy is None else accuracy
    epochs, reached = first_epoch(own, wanted), first_epoch(other, wanted)
    if epochs is None:
        raise ValueError(f"{method!r} never reaches {wanted:g} %; its best is {max(own.values()):g} %")
    needed = max(other) if reached is None else reached
    costs = individual_flop(shape, images, epochs), individual_flop(shape, images, needed)
    saved = costs[1] - costs[0]
    paid = collective / saved if saved > 0 else math.inf
    return BreakEven(collective, *costs, wanted, epochs, needed, paid, reached is None)


def _curve(curves: pd.DataFrame, method: str) -> dict[int, float]:
    part = curves[curves["method"] == method]
    if part.empty or not part["accuracy"].notna().all():
        raise ValueError(f"there is no whole curve of {method!r}: columns method, epoch, accuracy are needed")
    return part.groupby("epoch")["accuracy"].mean().to_dict()
