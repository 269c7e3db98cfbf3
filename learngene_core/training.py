"""The only optimisation loop (`fit`), its losses, and evaluation.

The same loop trains the collective model and the individuals, one network or a stack of them. All random choices of an
epoch are drawn before it, and nothing is read back from the device until it ends. What a step does stands in `steps`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .config import Config
from .ewc import Frozen, Penalty
from .files import StudyError
from .guards import check_pull
from .images import normalise
from .steps import PLAIN, Captured, Step, Watch, Way, batch_sizes, draw_epoch, set_rate


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

    def optimiser(self, model: nn.Module, way: Way = PLAIN) -> torch.optim.SGD:
        """SGD over all parameters of `model`; its rate is set by `fit` at every step."""
        fused = way.fused or way.capture  # captured steps read the rate from a tensor, which only the fused kernel can
        rate = torch.tensor(self.rate, device=next(model.parameters()).device) if way.capture else self.rate
        form = {"fused": True} if fused else {"foreach": True}
        return torch.optim.SGD(
            model.parameters(), lr=rate, momentum=self.momentum, weight_decay=self.weight_decay, **form
        )


def recipe_of(cfg: Config, epochs: int, mean: Tensor, std: Tensor) -> Recipe:
    """How the collective is trained."""
    return Recipe(
        epochs,
        cfg.batch_size,
        cfg.learning_rate,
        cfg.schedule,
        cfg.momentum,
        cfg.weight_decay,
        cfg.shift,
        cfg.flip,
        mean,
        std,
    )


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
    optimiser: torch.optim.Optimizer | None = None,
    first_epoch: int = 1,
    watch: Watch | None = None,
    penalty: Penalty | Frozen | None = None,
    on_epoch: Callable[[dict], None] | None = None,
    way: Way = PLAIN,
) -> list[dict]:
    """Train `model` in place on uint8 `images` (n, 3, h, w) with `labels` (n,); returns one row per epoch.

    stream(epoch) gives the generator of that epoch's batches and augmentation; several for a stack whose networks learn from
    as many groups of n images, one behind the other (see `Stack`). watch looks between the backward pass and the step (the
    gradient record). way: how steps are executed. Rows hold epoch, loss, accuracy (percent) and penalty, each a float, or a
    tensor (m,) for a stack of m networks.

    Raises StudyError naming `where`, epoch and step when the loss stops being finite.
    """
    optimiser = optimiser or recipe.optimiser(model, way)
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
    take = Step(model, images, labels, loss, recipe, optimiser, watch, penalty, way.autocast)
    take = Captured(take) if way.capture else take
    n = len(images) // getattr(model, "inputs", 1)
    rows, per_epoch = [], len(batch_sizes(n, recipe.batch_size))
    for epoch in range(first_epoch, recipe.epochs + 1):
        model.train()
        if drops:  # dropout is the one draw that torch takes from its global state; + 1: not the numbers of the batches
            torch.manual_seed(stream(epoch).initial_seed() + 1)
        found = []
        for step, batch in enumerate(draw_epoch(n, recipe, stream(epoch), images.device)):
            set_rate(optimiser, recipe.rate_at((epoch - 1) * per_epoch + step, recipe.epochs * per_epoch))
            found.append(take(batch, watch is not None and watch.due()))
        rows.append(_epoch_row(epoch, found, where))  # the only wait for the device
        check_pull(penalty, rows, per_epoch, where)
        if on_epoch is not None:
            on_epoch(rows[-1])
    return rows


def _epoch_row(epoch: int, found: Sequence[Sequence[Tensor]], where: str) -> dict:
    row: dict = {"epoch": epoch, "penalty": 0.0}
    for name, series in zip(("loss", "accuracy", "penalty"), zip(*found, strict=True), strict=False):
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


@torch.no_grad()
def predict(
    model: nn.Module, images: Tensor, mean: Tensor, std: Tensor, *, batch_size: int = 250, features: bool = False
) -> Tensor:
    """Logits (or features) of uint8 images (g n, 3, h, w) in evaluation mode: (n, k), or (m, n, k) for a stack of m networks
    over g groups of images."""
    was_training, _ = model.training, model.eval()
    groups = images.unflatten(0, (getattr(model, "inputs", 1), -1))
    outputs = [
        (model.features if features else model)(normalise(batch.flatten(0, 1), mean, std))
        for batch in groups.split(max(1, batch_size // len(groups)), 1)
    ]
    model.train(was_training)
    return torch.cat(outputs, dim=-2)


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor, *, classes: Tensor | None = None
) -> Tensor:
    """Accuracy in percent, () or (m,), on un-augmented images; among the outputs `classes` only, if given."""
    return accuracy_of(predict(model, images, mean, std), labels, classes)


def accuracy_of(logits: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
    """Accuracy in percent, () or (m,), of logits (n, k) or (m, n, k); among the outputs `classes` only, if given."""
    if classes is not None:
        outside = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device).index_fill_(0, classes, False)
        logits = logits.masked_fill(outside, -math.inf)
    hits = logits.argmax(-1) == _own_labels(logits, labels)
    return hits.sum(-1).cpu().double() * 100 / logits.shape[-2]
