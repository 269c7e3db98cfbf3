"""The only optimisation loop (`fit`), evaluation, the Fisher information and the EWC penalty.

The same loop trains the collective model and the individuals, one network or a stack of them. All random choices of an
epoch are drawn before it, and nothing is read back from the device until it ends.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .files import StudyError
from .guards import check_pull
from .images import augment, normalise


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

    def rate_at(self, step: int, n_steps: int) -> float:
        """Learning rate of a 0-based step: linear warm-up over 30 % then cosine ("one-cycle"), cosine, or constant."""
        if self.schedule == "constant":
            return self.rate
        warm = 0.3 * n_steps if self.schedule == "one-cycle" else 0
        if step < warm:
            return self.rate * (0.04 + 0.96 * step / warm)
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, n_steps - warm)))

    def optimiser(self, model: nn.Module) -> torch.optim.SGD:
        """SGD over all parameters of `model`; its rate is set by `fit` at every step."""
        return torch.optim.SGD(
            model.parameters(), lr=self.rate, momentum=self.momentum, weight_decay=self.weight_decay, foreach=True
        )


Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(logits (n, k), labels (n,)) -> loss and share of hits, both (); for a stack of m networks (m, n, k) -> (m,)."""


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    recipe: Recipe,
    *,
    stream: Callable[[int], torch.Generator],
    where: str,
    optimiser: torch.optim.Optimizer | None = None,
    first_epoch: int = 1,
    watch: Callable[[], None] | None = None,
    penalty: Penalty | Frozen | None = None,
    on_epoch: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train `model` in place on uint8 `images` (n, 3, h, w) with `labels` (n,); returns one row per epoch.

    stream(epoch) gives the generator of that epoch's batches and augmentation. watch() is called between the backward
    pass and the step (the gradient record). Rows hold epoch, loss, accuracy (percent) and penalty, each a float, or a
    tensor (m,) for a stack of m networks.

    Raises StudyError naming `where`, epoch and step when the loss stops being finite.
    """
    optimiser = optimiser or recipe.optimiser(model)
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
    rows, per_epoch = [], len(batch_sizes(len(images), recipe.batch_size))
    for epoch in range(first_epoch, recipe.epochs + 1):
        model.train()
        if drops:  # dropout is the one draw that torch takes from its global state; + 1: not the numbers of the batches
            torch.manual_seed(stream(epoch).initial_seed() + 1)
        values, hits, penalties = [], [], []
        for step, (pick, shift, flip) in enumerate(draw_epoch(len(images), recipe, stream(epoch), images.device)):
            rate = recipe.rate_at((epoch - 1) * per_epoch + step, recipe.epochs * per_epoch)
            for group in optimiser.param_groups:
                group["lr"] = rate
            logits = model(normalise(augment(images[pick], shift, flip), recipe.mean, recipe.std))
            value, hit = loss(logits, labels[pick])
            optimiser.zero_grad(set_to_none=True)
            value.sum().backward()
            if watch is not None:
                watch()
            if penalty is not None:
                penalties.append(penalty.add_gradient())
            optimiser.step()
            if penalty is not None:
                penalty.pull(rate)
            values.append(value.detach())
            hits.append(hit)
        rows.append(_epoch_row(epoch, values, hits, penalties, where))  # the only wait for the device
        check_pull(penalty, rows, per_epoch, where)
        if on_epoch is not None:
            on_epoch(rows[-1])
    return rows


def batch_sizes(n: int, batch_size: int) -> list[int]:
    """Sizes of an epoch's batches; a last batch of one image is left out (batch norm needs two)."""
    sizes = [min(batch_size, n - start) for start in range(0, n, batch_size)]
    return sizes if sizes[-1] > 1 or len(sizes) == 1 else sizes[:-1]


def draw_epoch(
    n: int, recipe: Recipe, generator: torch.Generator, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Batches of an epoch as (indices (b,), shift (b, 2), flip (b,)); drawn on the CPU, moved to the device at once."""
    order = torch.randperm(n, generator=generator)
    shift = torch.randint(-recipe.shift, recipe.shift + 1, (n, 2), generator=generator) if recipe.shift else None
    flip = torch.rand(n, generator=generator) < 0.5 if recipe.flip else None
    order, shift, flip = (t if t is None else t.to(device, non_blocking=True) for t in (order, shift, flip))
    start = 0
    for size in batch_sizes(n, recipe.batch_size):
        part = slice(start, start + size)
        yield order[part], None if shift is None else shift[part], None if flip is None else flip[part]
        start += size


def _epoch_row(epoch: int, values: list[Tensor], hits: list[Tensor], penalties: list[Tensor], where: str) -> dict:
    row: dict = {"epoch": epoch, "penalty": 0.0}
    for name, series in (("loss", values), ("accuracy", hits), ("penalty", penalties)):
        if not series:
            continue
        steps = torch.stack(series)  # (steps,) or (steps, m)
        if steps.is_meta:
            row[name] = steps.mean(0)
            continue
        steps = steps.cpu()
        if not torch.isfinite(steps).all():
            step = int((~torch.isfinite(steps.reshape(len(steps), -1))).any(1).nonzero()[0, 0]) + 1
            raise StudyError(
                f"the {name} of {where} is not finite at epoch {epoch}, step {step}; lower {_rates_of(where)} and start again"
            )
        mean = steps.double().mean(0) * (100 if name == "accuracy" else 1)
        row[name] = mean if mean.ndim else float(mean)
    return row


def _rates_of(where: str) -> str:
    """The parameters that may be too high in what `fit` was told it trains."""
    if where.startswith("target task"):
        return "individual_rate or individual_ewc (tune: tune_rates, tune_ewc; atlas: atlas_rate, control_ewc)"
    return "open_rate or open_ewc" if where.startswith("learning the unknown") else "learning_rate (or ewc_lambda)"


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
    """Cross-entropy and hits of each network of a stack: (m, n, k), (n,) -> (m,), (m,). The losses' sum has every
    network's own gradient."""
    m, n, k = logits.shape
    losses = nn.functional.cross_entropy(logits.reshape(m * n, k), labels.repeat(m), reduction="none")
    return losses.view(m, n).mean(1), _hits(logits, labels)


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(-1) == labels).float().mean(-1)


@torch.no_grad()
def predict(
    model: nn.Module, images: Tensor, mean: Tensor, std: Tensor, *, batch_size: int = 250, features: bool = False
) -> Tensor:
    """Logits (or features) of uint8 images in evaluation mode: (n, k), or (m, n, k) for a stack of m networks."""
    was_training, _ = model.training, model.eval()
    outputs = [
        (model.features if features else model)(normalise(batch, mean, std)) for batch in images.split(batch_size)
    ]
    model.train(was_training)
    return torch.cat(outputs, dim=-2)


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor, *, classes: Tensor | None = None
) -> Tensor:
    """Accuracy in percent, () or (m,), on un-augmented images; among the outputs `classes` only, if given."""
    logits = predict(model, images, mean, std)
    if classes is not None:
        outside = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device).index_fill_(0, classes, False)
        logits = logits.masked_fill(outside, -math.inf)
    return (logits.argmax(-1) == labels).sum(-1).cpu().double() * 100 / len(labels)


class Penalty:
    """Elastic weight consolidation (Kirkpatrick 2017): half the sum of `strength * fisher * (p - anchor)^2`.

    `penalty` adds its gradient to the loss's; `proximal` pulls after each step, p <- (p + r l F p0) / (1 + r l F), and
    cannot diverge (about ten times weaker at equal strength: momentum does not amplify it). Tensors not named in `fisher`
    are free. The gradient is added after the record has looked, so the record shows the task's own gradient.

    Raises StudyError when no parameter is held (a penalty that can only be zero).
    """

    def __init__(
        self, model: nn.Module, anchor: dict[str, Tensor], fisher: dict[str, Tensor], strength: float, form: str
    ):
        named = dict(model.named_parameters())
        names = [n for n in named if n in fisher]
        if not names or not any(bool(fisher[n].any()) for n in names):
            raise StudyError("EWC has nothing to hold: no Fisher information for these parameters")
        self.form = form
        self.parameters = [named[n] for n in names]
        self.anchor = [anchor[n].detach().clone() for n in names]
        self.weight = [strength * fisher[n].detach() for n in names]

    @torch.no_grad()
    def add_gradient(self) -> Tensor:
        """Add the penalty's gradient to `.grad` (form `penalty`); returns its value, ()."""
        away = torch._foreach_sub(self.parameters, self.anchor)
        force = torch._foreach_mul(away, self.weight)
        if self.form == "penalty":
            torch._foreach_add_([p.grad for p in self.parameters], force)
        return 0.5 * torch.stack([(f * a).sum() for f, a in zip(force, away, strict=True)]).sum()

    @torch.no_grad()
    def pull(self, rate: float) -> None:
        """The proximal step behind an optimiser step of this learning rate; nothing in form `penalty`."""
        if self.form == "proximal":
            for p, p0, w in zip(self.parameters, self.anchor, self.weight, strict=True):
                p.add_(rate * w * p0).div_(1 + rate * w)


class Frozen:
    """Holds entries of parameters where they are: put back after every optimiser step, whatever weight decay and momentum did.

    held: parameter name -> tensor of its shape, not zero where the entry is frozen. Stands where a `Penalty` may stand.
    """

    def __init__(self, model: nn.Module, held: dict[str, Tensor]):
        named = dict(model.named_parameters())
        self.parameters = [named[n] for n in held]
        self.mask = [mask != 0 for mask in held.values()]
        self.anchor = [p.detach().clone() for p in self.parameters]

    def add_gradient(self) -> Tensor:
        """Nothing is added; returns 0, ()."""
        return torch.zeros((), device=self.parameters[0].device)

    @torch.no_grad()
    def pull(self, rate: float) -> None:
        """Put the frozen entries back."""
        for p, mask, anchor in zip(self.parameters, self.mask, self.anchor, strict=True):
            p.copy_(torch.where(mask, anchor, p))


def fisher_diagonal(
    model: nn.Module, images: Tensor, classes: Tensor | None, mean: Tensor, std: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information, parameter name -> tensor of its shape, averaged over `images` (n, 3, h, w).

    The true Fisher: labels are drawn from the model's own prediction (among `classes`), one per image, gradients are per
    image, batch norm is in evaluation mode and its statistics do not move.
    """
    was_training, _ = model.training, model.eval()
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def negative_log_likelihood(values: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (values, buffers), (x[None],))
        return nn.functional.cross_entropy(logits if classes is None else logits[:, classes], label[None])

    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    per_image = vmap(grad(negative_log_likelihood), in_dims=(None, 0, 0))
    chunk = max(1, min(50, 20_000_000 // sum(p.numel() for p in parameters.values())))
    for batch in images.split(chunk):
        x = normalise(batch, mean, std)
        with torch.no_grad():
            logits = model(x) if classes is None else model(x)[:, classes]
        label = torch.multinomial(logits.softmax(1).cpu(), 1, generator=generator)[:, 0].to(x.device)
        for name, g in per_image(parameters, x, label).items():
            total[name] += g.square().sum(0)
    model.train(was_training)
    return {n: t / len(images) for n, t in total.items()}
