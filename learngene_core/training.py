"""Training: one loop, `fit`, for the collective model and for individuals, for one network or a stack of them.

Everything a step needs is on the device: it picks, shifts, mirrors and normalises its images there, and what it finds (loss,
hits, penalty, gradient record) stays there until the epoch ends. All random choices of an epoch are drawn before it, on the
CPU, so they are the same for every device. The optimiser is SGD with momentum, as in the released code of Wang et al. 2022.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .config import Config, Machine
from .errors import Diverged
from .execution import captured, logits_of, set_rate


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train: what `fit` needs beside network, images and loss. Rates are per step, shift in pixels."""

    epochs: int
    batch_size: int
    rate: float
    schedule: str
    momentum: float
    weight_decay: float
    shift: int
    flip: bool
    mean: Tensor
    std: Tensor

    @classmethod
    def of_collective(cls, cfg: Config, epochs: int, mean: Tensor, std: Tensor) -> Recipe:
        """How the collective learns a source task."""
        sgd = cfg.batch_size, cfg.learning_rate, cfg.schedule, cfg.momentum, cfg.weight_decay
        return cls(epochs, *sgd, cfg.shift, cfg.flip, mean, std)

    @classmethod
    def of_individual(cls, cfg: Config, rate: float, mean: Tensor, std: Tensor) -> Recipe:
        """How an individual learns a target task."""
        sgd = cfg.individual_batch, rate, cfg.individual_schedule, cfg.momentum, cfg.weight_decay
        return cls(cfg.individual_epochs, *sgd, cfg.shift, cfg.flip, mean, std)

    def rate_at(self, step: int, n_steps: int) -> float:
        """Learning rate of a 0-based step: linear warm-up over 30 % then cosine ("one-cycle"), cosine, or constant."""
        if self.schedule == "constant":
            return self.rate
        warm = 0.3 * n_steps if self.schedule == "one-cycle" else 0
        if step < warm:
            return self.rate * (0.04 + 0.96 * step / warm)
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, n_steps - warm)))

    def optimiser(self, model: nn.Module, machine: Machine = Machine()) -> torch.optim.SGD:  # noqa: B008 (frozen)
        """SGD over all parameters of `model`; its rate is set by `fit` at every step."""
        # captured steps read the rate from a tensor, which only the fused kernel can
        rate = torch.tensor(self.rate, device=next(model.parameters()).device) if machine.capture else self.rate
        form = {"fused": True} if machine.capture else {"foreach": True}
        return torch.optim.SGD(
            model.parameters(), lr=rate, momentum=self.momentum, weight_decay=self.weight_decay, **form
        )


class Pull(Protocol):
    """What pulls at weights while a network trains; see `ewc`."""

    def add_gradient(self) -> Tensor:
        """Add its gradient to `.grad`; its value, () or (m,)."""

    def pull(self, rate: float | Tensor) -> None:
        """What it does to the weights after an optimiser step of this learning rate."""


class Watch(Protocol):
    """Looks at gradients between the backward pass and the step; see `gradients.Recorder`."""

    def due(self) -> bool:
        """Count a step; whether to look at it."""

    def look(self) -> None:
        """Look at the gradients that are there."""


Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(logits (n, k), labels (n,)) -> loss and share of hits, both (); for a stack of m networks over g groups of images
(m, n, k), (g n,) -> (m,)."""


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    recipe: Recipe,
    *,
    stream: Callable[[int], torch.Generator | Sequence[torch.Generator]],
    where: str,
    lower: str = "learning_rate",
    optimiser: torch.optim.Optimizer | None = None,
    recorder: Watch | None = None,
    pull: Pull | None = None,
    machine: Machine = Machine(),  # noqa: B008 (frozen)
) -> Iterator[dict]:
    """Train `model` in place on uint8 `images` (n, 3, h, w) with `labels` (n,); yields one row per epoch.

    A caller who stops early has the model as it is then. stream(epoch) gives the generator of that epoch's batches and
    augmentation; several for a stack whose networks learn from as many groups of n images, one after the other (see `Stack`).
    Rows hold epoch, loss, accuracy (percent) and penalty, each a float, or a tensor (m,) for a stack of m networks.

    Raises Diverged, with `where` it was and which parameter to `lower`, when a loss or penalty stops being finite.
    """
    optimiser = optimiser or recipe.optimiser(model, machine)
    n = len(images) // getattr(model, "inputs", 1)
    per_epoch = len(batch_sizes(n, recipe.batch_size))

    def step(batch: Batch, looking: bool) -> tuple[Tensor, Tensor, Tensor]:
        x = normalise(augment(images[batch.pick], batch.shift, batch.flip), recipe.mean, recipe.std)
        value, hits = loss(logits_of(model, x, machine), labels[batch.pick])
        optimiser.zero_grad(set_to_none=True)
        value.sum().backward()
        if looking:
            recorder.look()  # the task's own gradient: whatever pulls at the weights comes after
        penalty = torch.zeros_like(value.detach()) if pull is None else pull.add_gradient()
        optimiser.step()
        if pull is not None:
            pull.pull(optimiser.param_groups[0]["lr"])
        return value.detach(), hits, penalty

    take = captured(step) if machine.capture else step
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        if drops:  # dropout is the one draw that torch takes from its global state; + 1: not the numbers of the batches
            torch.manual_seed(stream(epoch).initial_seed() + 1)
        found = []
        for number, batch in enumerate(draw_epoch(n, recipe, stream(epoch), images.device), (epoch - 1) * per_epoch):
            set_rate(optimiser, recipe.rate_at(number, recipe.epochs * per_epoch))
            found.append(take(batch, recorder is not None and recorder.due()))
        yield _epoch_row(epoch, found, where, lower)  # the only wait for the device


def _epoch_row(epoch: int, found: Sequence[Sequence[Tensor]], where: str, lower: str) -> dict:
    row: dict = {"epoch": epoch}
    for name, series in zip(("loss", "accuracy", "penalty"), zip(*found, strict=True), strict=True):
        steps = torch.stack(series).cpu()  # (steps,) or (steps, m)
        if not torch.isfinite(steps).all():
            step = int((~torch.isfinite(steps.reshape(len(steps), -1))).any(1).nonzero()[0, 0]) + 1
            raise Diverged(
                f"the {name} of {where} is not finite at epoch {epoch}, step {step}; lower {lower} and start again"
            )
        mean = steps.double().mean(0) * (100 if name == "accuracy" else 1)
        row[name] = mean if mean.ndim else float(mean)
    return row


# losses --------------------------------------------------------------------------------------------------------------
def task_loss(classes: Tensor | None = None) -> Loss:
    """Cross-entropy over the outputs in `classes` (k,) (task-incremental), or over all outputs there are so far.

    Labels are global, into the whole head. Restricting the logits equals masking the others with minus infinity.
    """

    def loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if classes is not None:
            labels = (labels[:, None] == classes).to(torch.uint8).argmax(1)
            logits = logits[:, classes]
        return nn.functional.cross_entropy(logits, labels), _hits(logits, labels)

    return loss


def stack_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and hits of each network of a stack: (m, n, k), (g n,) -> (m,), (m,). The losses' sum has every
    network's own gradient."""
    m, n, k = logits.shape
    own = _own_labels(logits, labels)
    losses = nn.functional.cross_entropy(logits.reshape(m * n, k), own.reshape(m * n), reduction="none")
    return losses.view(m, n).mean(1), _hits(logits, own)


def _own_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """(g n,) labels of g groups -> (m, n): those of the group that each network of a stack learns from. A single network's
    (n,) are left as they are."""
    if logits.ndim == 2:
        return labels
    m, n, _ = logits.shape
    return labels.view(-1, n).repeat_interleave(m * n // len(labels), 0)


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(-1) == labels).float().mean(-1)


def among(logits: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, k) of each image's own outputs, `rows` (n, k), out of (n, outputs), and its label's place (n,) among them."""
    return logits.gather(1, rows), (rows == labels[:, None]).to(torch.uint8).argmax(1)


# evaluation ----------------------------------------------------------------------------------------------------------
@torch.no_grad()
def predict(
    model: nn.Module, images: Tensor, mean: Tensor, std: Tensor, *, batch_size: int = 0, features: bool = False
) -> Tensor:
    """Logits (or features) of uint8 images (g n, 3, h, w) in evaluation mode: (n, k), or (m, n, k) for a stack of m networks
    over g groups of images. batch_size: images at a time; 0: few on a CPU, whose cache they fit, many on a GPU.

    Raises Diverged for outputs that are not finite: the largest of them would be that of the first class.
    """
    was_training, _ = model.training, model.eval()
    batch_size = batch_size or (50 if images.device.type == "cpu" else 1000)
    groups = images.unflatten(0, (getattr(model, "inputs", 1), -1))
    outputs = [
        (model.features if features else model)(normalise(batch.flatten(0, 1), mean, std))
        for batch in groups.split(max(1, batch_size // len(groups)), 1)
    ]
    model.train(was_training)
    found = torch.cat(outputs, dim=-2)
    if not found.isfinite().all():
        bad, what = (~found.isfinite()).any(-1).flatten(), "features" if features else "logits"
        raise Diverged(
            f"the {what} of {int(bad.sum())} of {len(bad)} evaluated images are not finite: the network has diverged, or "
            "inherits from one that has; lower its learning rate and train it again"
        )
    return found


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor, *, classes: Tensor | None = None
) -> Tensor:
    """Accuracy in percent, () or (m,), on un-augmented images; among the outputs `classes` only, if given."""
    return accuracy_of(predict(model, images, mean, std), labels, classes)


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts (m, k, k), or (k, k), of true class (rows) and predicted class (columns); logits as in `accuracy_of`."""
    k, own = logits.shape[-1], _own_labels(logits, labels)
    cells = own * k + logits.argmax(-1)  # (m, n) or (n,)
    return nn.functional.one_hot(cells, k * k).sum(-2).unflatten(-1, (k, k)).cpu()


def accuracy_of(logits: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
    """Accuracy in percent, () or (m,), of logits (n, k) or (m, n, k); among the outputs `classes` only, if given."""
    if classes is not None:
        outside = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device).index_fill_(0, classes, False)
        logits = logits.masked_fill(outside, -math.inf)
    hits = logits.argmax(-1) == _own_labels(logits, labels)
    return hits.sum(-1).cpu().double() * 100 / logits.shape[-2]


# images and batches --------------------------------------------------------------------------------------------------
def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 images (n, 3, h, w) to float32 with zero mean and unit variance per channel; mean, std (3,) in 0..1."""
    std = torch.where(std > 0, std, 1.0)  # a constant channel stays at zero
    scale = 1 / (255 * std)
    x = images.to(torch.float32, memory_format=torch.channels_last)
    return x.mul_(scale[:, None, None]).sub_((mean / std)[:, None, None])


def augment(images: Tensor, shift: Tensor | None, flip: Tensor | None) -> Tensor:
    """Shift images (n, 3, h, w) by whole pixels (n, 2: down, right), edge pixels repeated, then mirror where flip (n,).

    Repeating edges instead of padding with black keeps a frame from becoming a cue.
    """
    n, _, height, width = images.shape
    if shift is None and flip is None:
        return images
    rows = torch.arange(height, device=images.device).expand(n, -1)
    columns = torch.arange(width, device=images.device).expand(n, -1)
    if flip is not None:
        columns = torch.where(flip[:, None], width - 1 - columns, columns)
    if shift is not None:
        rows, columns = rows - shift[:, :1], columns - shift[:, 1:]
    pick = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]  # (n, h, w)
    return images.flatten(2).gather(2, pick.flatten(1)[:, None].expand(-1, 3, -1)).view_as(images)


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3,), (3,) of uint8 images (n, 3, h, w) in 0..1, exact integer sums."""
    pixels = images.shape[0] * images.shape[2] * images.shape[3]
    # Python integers: float sums over 150 million pixels would depend on the order
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(3)]).double()  # (3, 256)
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ value / pixels
    return mean.float(), (counts @ value**2 / pixels - mean**2).clamp_min(0).sqrt().float()


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

    Several generators draw for as many groups of n images that follow each other; a batch then holds a part of every group,
    one after the other.
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
