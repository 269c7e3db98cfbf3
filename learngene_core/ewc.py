"""What holds weights while a network trains: elastic weight consolidation, frozen entries; and the Fisher information."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .files import StudyError
from .images import normalise


class Penalty:
    """Elastic weight consolidation (Kirkpatrick 2017): half the sum of `strength * fisher * (p - anchor)^2`.

    `penalty` adds its gradient to the loss's; `proximal` pulls after each step, p <- (p + r l F p0) / (1 + r l F), and
    cannot diverge (about ten times weaker at equal strength: momentum does not amplify it). Tensors not named in `fisher`
    are free. The gradient is added after the record has looked, so the record shows the task's own gradient. Of a stack of
    m networks the penalty is each one's own, (m,).

    Raises StudyError when no parameter is held (a penalty that can only be zero).
    """

    networks: tuple[int, ...] = ()  # (m,) for a stack of m networks: the first axis of every parameter, unfolded

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
        if isinstance(size := getattr(model, "size", None), int):
            self.networks = (size,)
        held = [w.ne(0).reshape(*self.networks, -1).any(-1) for w in self.weight]
        self.held = torch.stack(held).any(0)  # () or (m,): which networks are held at all

    @torch.no_grad()
    def add_gradient(self) -> Tensor:
        """Add the penalty's gradient to `.grad` (form `penalty`); returns its value, () or (m,)."""
        away = torch._foreach_sub(self.parameters, self.anchor)
        force = torch._foreach_mul(away, self.weight)
        if self.form == "penalty":
            torch._foreach_add_([p.grad for p in self.parameters], force)
        values = [(f * a).reshape(*self.networks, -1).sum(-1) for f, a in zip(force, away, strict=True)]
        return 0.5 * torch.stack(values).sum(0)

    @torch.no_grad()
    def pull(self, rate: float | Tensor) -> None:
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
    def pull(self, rate: float | Tensor) -> None:
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
