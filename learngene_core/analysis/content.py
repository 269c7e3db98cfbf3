"""Content controls: learngenes that keep some property of the real one and lose what it has learned.

Does an individual gain from what the inherited filters compute, or only from their scale, spectrum or batch norm? Each control
answers for one property: inherited in place of the learngene, with everything else equal, it shows what that property alone is
worth. A control is a new `Learngene` of the same blocks and shapes that shares no tensor with the old one.

What `shuffled_inputs` can show depends on the block. Where everything below is freshly and independently initialised, a
permutation of the first inputs is undone by the same permutation of the fresh outputs (`coupled`), which is as likely: the
distribution of results does not change at all, and equal accuracies there say nothing about content. Content is tested by
`shuffled_inner` and `moment_matched`. A block that reads the image has no such symmetry.

Running statistics that were kept belong to the old filters; training estimates them anew, as it does for the learngene.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import StudyError
from ..learngene import PARTS, Learngene
from ..network import ConvNet


def shuffled_inputs(gene: Learngene, generator: torch.Generator) -> Learngene:
    """One permutation of the input channels of the first inherited convolution, the same for all its filters.

    Raises StudyError where there is only one input channel.
    """
    return _shuffled(gene, "shuffled_inputs", gene.layers[:1], generator)


def shuffled_inner(gene: Learngene, generator: torch.Generator) -> Learngene:
    """A permutation of its own of the input channels of every convolution after the first, the same for all its filters.

    Every filter keeps its nine weights per channel, its norm and its batch norm, every convolution its singular values. What
    is lost is which channel of the block before a filter reads.

    Raises StudyError for a single block, where nothing is inner, and where no inner convolution has two input channels.
    """
    return _shuffled(gene, "shuffled_inner", gene.layers[1:], generator)


def spectrum_matched(gene: Learngene, generator: torch.Generator) -> Learngene:
    """Every convolution as a matrix (out, 9 in) with its own singular values between random orthonormal vectors.

    Both sides are uniform (Haar; QR of Gaussian matrices, signs fixed as in Mezzadri 2007). Biases and batch norm are kept.
    """
    changed = {}
    for name in (f"{layer}.conv.weight" for layer in gene.layers):
        matrix = gene.tensors[name].double().flatten(1)  # (out, 9 in)
        values = torch.linalg.svdvals(matrix)  # (min(out, 9 in),)
        left, right = (_orthonormal(side, len(values), generator) for side in matrix.shape)
        changed[name] = ((left * values) @ right.T).view_as(gene.tensors[name])  # (out, in, 3, 3)
    return _variant(gene, "spectrum_matched", changed)


def moment_matched(gene: Learngene, generator: torch.Generator) -> Learngene:
    """Gaussian weights with the mean and standard deviation of each convolution's weight tensor; biases likewise.

    Two numbers per tensor, not per filter: the control is to keep the scale of each convolution and nothing that tells one
    filter from another. Batch norm divides a filter's own scale out again in training. It is itself kept as it is.
    """
    changed = {}
    for name in (f"{layer}.conv.{part}" for layer in gene.layers for part in ("weight", "bias")):
        values = gene.tensors[name].double()
        draw = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        changed[name] = values.mean() + values.std(correction=0) * draw
    return _variant(gene, "moment_matched", changed)


def conv_only(gene: Learngene) -> Learngene:
    """The inherited convolutions with a fresh batch norm: scale 1, shift 0, running mean 0, running variance 1."""
    ones = ("norm.weight", "norm.running_var")
    changed = {
        f"{layer}.{part}": torch.full_like(gene.tensors[f"{layer}.{part}"], part in ones)
        for layer in gene.layers
        for part in PARTS
        if part.startswith("norm.")
    }
    return _variant(gene, "conv_only", changed)


def norm_only(gene: Learngene, fresh: Learngene) -> Learngene:
    """The inherited batch norm (scale, shift, running statistics) with the convolutions of `fresh` (see `untrained_blocks`).

    Raises StudyError when `fresh` has other blocks or shapes.
    """
    _check_alike(gene, fresh)
    return _variant(gene, "norm_only", {n: t for n, t in fresh.tensors.items() if ".conv." in n})


def untrained_blocks(gene: Learngene, shape: dict, generator: torch.Generator) -> Learngene:
    """The same blocks of an untrained network of this shape (`ConvNet.shape` of the ancestor): in distribution, `scratch`.

    Raises StudyError when a network of this shape has other blocks or widths there.
    """
    net = ConvNet.from_shape(shape, generator=generator)
    return _untrained(gene, Learngene.from_model(net, gene.layers, mean=gene.mean, std=gene.std))


def _untrained(gene: Learngene, fresh: Learngene) -> Learngene:
    _check_alike(gene, fresh)
    return _variant(gene, "untrained", fresh.tensors)


Make = Callable[[Learngene, Learngene, torch.Generator], Learngene]
"""(learngene, its untrained counterpart, generator) -> control; what a control does not need it leaves alone."""


@dataclasses.dataclass(frozen=True)
class Control:
    """A content control: how to make it, what it keeps of the learngene and what it destroys (one phrase each)."""

    name: str
    make: Make
    keeps: str
    destroys: str


CONTROLS: dict[str, Control] = {
    control.name: control
    for control in (
        Control(
            "shuffled_inputs",
            lambda gene, fresh, generator: shuffled_inputs(gene, generator),
            "everything inside the block",
            "the order of its input channels, which a fresh front below it can learn anew",
        ),
        Control(
            "shuffled_inner",
            lambda gene, fresh, generator: shuffled_inner(gene, generator),
            "every filter's weights per channel, norms, singular values, batch norm",
            "which channel each filter reads inside the block",
        ),
        Control(
            "spectrum_matched",
            lambda gene, fresh, generator: spectrum_matched(gene, generator),
            "singular values of every convolution, biases, batch norm",
            "the directions that the filters respond to",
        ),
        Control(
            "moment_matched",
            lambda gene, fresh, generator: moment_matched(gene, generator),
            "mean and standard deviation of every convolution, batch norm",
            "every single filter",
        ),
        Control(
            "conv_only",
            lambda gene, fresh, generator: conv_only(gene),
            "the convolutions",
            "scale, shift and running statistics of batch norm",
        ),
        Control(
            "norm_only",
            lambda gene, fresh, generator: norm_only(gene, fresh),
            "scale, shift and running statistics of batch norm",
            "the convolutions",
        ),
        Control(
            "untrained",
            lambda gene, fresh, generator: _untrained(gene, fresh),
            "the shape",
            "everything learned",
        ),
    )
}
"""The controls in the order of tables and figures: from the one that keeps most to the one that keeps nothing."""


def applicable(gene: Learngene) -> tuple[str, ...]:
    """Names of the controls that this learngene can have: a single block has no inner inputs to shuffle."""
    layers = {"shuffled_inputs": gene.layers[:1], "shuffled_inner": gene.layers[1:]}
    return tuple(name for name in CONTROLS if name not in layers or _shufflable(gene, layers[name]))


def coupled(model: ConvNet, first_layer: str, permutation: Tensor) -> ConvNet:
    """A copy of `model` in which the channels between `first_layer` and the block below it are in another order.

    Channel k is the old channel permutation[k], (n,), in the outputs of the block below (filters, bias, batch norm) and the
    inputs of `first_layer`. It computes the same function, and training keeps it so, up to rounding: batch norm, ReLU, pools
    and SGD treat channels alike. Where the block below is fresh, its order was as likely as the old one.

    Raises ValueError for an unknown block, the first block (the image's channels have no block below them), or a
    permutation that is none of its input channels.
    """
    names = model.block_names
    if first_layer not in names[1:]:
        raise ValueError(
            f"{first_layer!r} is no block with another below it; there are {', '.join(names[1:]) or 'none'}"
        )
    n_inputs = model.blocks[first_layer].conv.in_channels
    if sorted(permutation.tolist()) != list(range(n_inputs)):
        raise ValueError(f"not a permutation of the {n_inputs} input channels of {first_layer}")
    twin = copy.deepcopy(model)
    state, below = twin.state_dict(), names[names.index(first_layer) - 1]
    places = [(f"blocks.{below}.{part}", 0) for part in PARTS] + [(f"blocks.{first_layer}.conv.weight", 1)]
    with torch.no_grad():
        for name, axis in places:
            state[name].copy_(state[name].index_select(axis, permutation.to(state[name].device)))
    return twin


def _shufflable(gene: Learngene, layers: Sequence[str]) -> list[str]:
    """Names of the weight tensors among these blocks that have more than one input channel."""
    return [name for name in (f"{layer}.conv.weight" for layer in layers) if gene.tensors[name].shape[1] > 1]


def _shuffled(gene: Learngene, control: str, layers: Sequence[str], generator: torch.Generator) -> Learngene:
    names = _shufflable(gene, layers)
    if not names:
        raise StudyError(
            f"{control}: {', '.join(gene.layers)} has no two channels to exchange there; inherit more blocks or leave it out"
        )
    changed = {}
    for name in names:
        weight = gene.tensors[name]  # (out, in, 3, 3)
        changed[name] = weight.index_select(1, _permutation(weight.shape[1], generator))
    return _variant(gene, control, changed)


def _permutation(n: int, generator: torch.Generator) -> Tensor:
    """A random order (n,) of n >= 2 channels, uniform among those that move a channel. Of three channels (an image) every
    sixth draw would else be no control at all."""
    while True:
        order = torch.randperm(n, generator=generator)
        if not torch.equal(order, torch.arange(n)):
            return order


def _orthonormal(n: int, k: int, generator: torch.Generator) -> Tensor:
    """k <= n orthonormal columns (n, k), uniformly distributed."""
    q, r = torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)  # QR's own signs are not random: they depend on the routine


def _check_alike(gene: Learngene, fresh: Learngene) -> None:
    shapes = [{n: tuple(t.shape) for n, t in g.tensors.items()} for g in (gene, fresh)]
    if gene.layers != fresh.layers or shapes[0] != shapes[1]:
        raise StudyError(
            "the untrained blocks do not fit the learngene; cut the same blocks from a network of equal shape"
        )


def _variant(gene: Learngene, control: str, changed: dict[str, Tensor]) -> Learngene:
    """A copy of the learngene with some tensors changed. Fisher information of other weights would mean nothing: None."""
    tensors = {n: changed.get(n, t).detach().to(t.dtype, copy=True).contiguous() for n, t in gene.tensors.items()}
    return dataclasses.replace(gene, tensors=tensors, fisher=None, notes={**gene.notes, "control": control})
