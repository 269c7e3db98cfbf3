"""One training step, and how it is executed: batches drawn before an epoch, eager or captured as a CUDA graph.

Everything a step needs is on the device: it selects, shifts, mirrors and normalises its images there, and what it finds
(loss, hits, penalty, gradient record) stays there until somebody asks at the end of the epoch.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .images import augment, normalise

if typing.TYPE_CHECKING:
    from .ewc import Frozen, Penalty
    from .training import Loss, Recipe

WARM = (
    3  # steps of a shape that are taken eagerly before it is captured: libraries choose their kernels, momentum is born
)


@dataclasses.dataclass(frozen=True)
class Way:
    """How steps are executed: what changes speed and rounding, and not what is computed. Chosen by measuring (`steptuning`),
    kept in machine.json. autocast: forward pass in bfloat16 (losses, gradients, statistics and penalties stay 32-bit); fused:
    the optimiser as one kernel; capture: steps replayed as CUDA graphs, captured anew wherever the widths change."""

    autocast: bool = False
    fused: bool = False
    capture: bool = False


PLAIN = Way()


class Watch(Protocol):
    """Looks at gradients between the backward pass and the step, at those steps for which `due()` is true."""

    def due(self) -> bool:
        """Whether to look at this step; asked once per step."""

    def look(self) -> None:
        """Look; only operations on the device, so that it can be part of a captured step."""


class Batch(NamedTuple):
    """A step's random choices: images (b,), shift (b, 2: down, right) or None, mirrored (b,) or None."""

    pick: Tensor
    shift: Tensor | None
    flip: Tensor | None


def batch_sizes(n: int, batch_size: int) -> list[int]:
    """Sizes of an epoch's batches; a last batch of one image is left out (batch norm needs two)."""
    sizes = [min(batch_size, n - start) for start in range(0, n, batch_size)]
    return sizes if sizes[-1] > 1 or len(sizes) == 1 else sizes[:-1]


def draw_epoch(
    n: int, recipe: Recipe, generators: torch.Generator | Sequence[torch.Generator], device: torch.device
) -> Iterator[Batch]:
    """Batches of an epoch, drawn on the CPU and moved to the device at once.

    Several generators draw for as many groups of n images that lie behind each other; a batch then holds a part of every
    group, one after the other.
    """
    generators = [generators] if isinstance(generators, torch.Generator) else generators
    drawn = [_draw(n, recipe, generator) for generator in generators]
    order = torch.stack([d.pick + n * group for group, d in enumerate(drawn)])  # (g, n)
    shift = None if drawn[0].shift is None else torch.stack([d.shift for d in drawn])  # (g, n, 2)
    flip = None if drawn[0].flip is None else torch.stack([d.flip for d in drawn])  # (g, n)
    order, shift, flip = (t if t is None else t.to(device, non_blocking=True) for t in (order, shift, flip))
    start = 0
    for size in batch_sizes(n, recipe.batch_size):
        part = (slice(None), slice(start, start + size))
        yield Batch(*(t if t is None else t[part].flatten(0, 1) for t in (order, shift, flip)))
        start += size


def _draw(n: int, recipe: Recipe, generator: torch.Generator) -> Batch:
    order = torch.randperm(n, generator=generator)
    shift = torch.randint(-recipe.shift, recipe.shift + 1, (n, 2), generator=generator) if recipe.shift else None
    flip = torch.rand(n, generator=generator) < 0.5 if recipe.flip else None
    return Batch(order, shift, flip)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give the optimiser a learning rate; where it holds it as a tensor, which captured steps read, that tensor changes."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@dataclasses.dataclass
class Step:
    """One step of training `model` on uint8 `images` (n, 3, h, w) with `labels` (n,); see `training.fit`."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    loss: Loss
    recipe: Recipe
    optimiser: torch.optim.Optimizer
    watch: Watch | None = None
    penalty: Penalty | Frozen | None = None
    autocast: bool = False

    def __call__(self, batch: Batch, looking: bool) -> tuple[Tensor, ...]:
        """Take the step; loss, share of hits and, with a penalty, its value, each () or (m,), on the device."""
        x = normalise(augment(self.images[batch.pick], batch.shift, batch.flip), self.recipe.mean, self.recipe.std)
        logits = logits_of(self.model, x, self.autocast)
        value, hit = self.loss(logits, self.labels[batch.pick])
        self.optimiser.zero_grad(set_to_none=True)
        value.sum().backward()
        if looking:
            self.watch.look()
        found = (value.detach(), hit)
        if self.penalty is not None:
            found = (*found, self.penalty.add_gradient())
        self.optimiser.step()
        if self.penalty is not None:
            self.penalty.pull(self.optimiser.param_groups[0]["lr"])
        return found


def logits_of(model: nn.Module, x: Tensor, autocast: bool) -> Tensor:
    """Logits of normalised images in 32 bits, the forward pass in bfloat16 if so asked."""
    if not autocast:
        return model(x)
    half = torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)  # a cache would outlive a captured step
    with half:
        return model(x).float()


class Graph:
    """A function on the device as a CUDA graph. Capturing it runs nothing; `replay` runs it on the tensors it was captured
    with and leaves its results in `outputs`."""

    def __init__(self, function: Callable[[], tuple[Tensor, ...]]):
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.outputs = function()

    def replay(self) -> None:
        """Run it once."""
        self._graph.replay()


class Captured:
    """A `Step` that is captured, one graph for every size of a batch and for looking or not, and then replayed.

    The first steps of each are taken eagerly, on a stream of their own as capturing asks for; they are real steps.
    """

    def __init__(self, step: Step, graph: Callable[[Callable], Graph] = Graph):
        self.step, self._graph = step, graph
        self._warmed: dict[tuple[int, bool], int] = {}
        self._graphs: dict[tuple[int, bool], tuple[Batch, Graph]] = {}

    def __call__(self, batch: Batch, looking: bool) -> tuple[Tensor, ...]:
        """As `Step`."""
        key = (len(batch.pick), looking)
        if key not in self._graphs:
            if self._warmed.setdefault(key, 0) < WARM:
                self._warmed[key] += 1
                return self._eagerly(batch, looking)
            inputs = Batch(*(t if t is None else t.clone() for t in batch))
            self._graphs[key] = inputs, self._graph(lambda: self.step(inputs, looking))
        inputs, graph = self._graphs[key]
        for there, new in zip(inputs, batch, strict=True):
            if there is not None:
                there.copy_(new)
        graph.replay()
        return tuple(t.clone() for t in graph.outputs)

    def _eagerly(self, batch: Batch, looking: bool) -> tuple[Tensor, ...]:
        if batch.pick.device.type != "cuda":
            return self.step(batch, looking)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            found = self.step(batch, looking)
        torch.cuda.current_stream().wait_stream(aside)
        return found
