"""Pulls towards earlier weights: elastic weight consolidation (EWC; Kirkpatrick et al. 2017, arXiv 1612.00796), and freezing.

EWC keeps those weights near their values that mattered for what was learned before.

While a network learns task t, half the sum of `lambda * F_i * (p_i - p0_i)^2` is added to its loss: p0 are the weights after
task t - 1, and F_i, the diagonal Fisher information, says how much the network's own predictions depend on weight i. Costs:
one more pass over the weights a step, and one backward pass for each of `fisher_images` images a task.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .errors import StudyError
from .training import normalise


class Penalty:
    """Half the sum of `strength * fisher * (p - anchor)^2`, in one of two forms.

    `penalty` adds its gradient to the loss's; `proximal` pulls after each step, p <- (p + r l F p0) / (1 + r l F), and
    cannot diverge (about ten times weaker at equal strength: momentum does not amplify it). Tensors not named in `fisher`
    are free. Of a stack of m networks the penalty is each one's own, (m,).

    Raises StudyError when no parameter is held (a penalty that can only be zero).
    """

    networks: tuple[int, ...] = ()  # (m,) for a stack of m networks: the first axis of every parameter, unfolded

    def __init__(
        self, model: nn.Module, anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor], strength: float, form: str
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
        """The proximal step after an optimiser step of this learning rate; nothing in form `penalty`."""
        if self.form == "proximal":
            for p, p0, w in zip(self.parameters, self.anchor, self.weight, strict=True):
                p.add_(rate * w * p0).div_(1 + rate * w)

    def check(self, value: float | Tensor, steps: int, where: str) -> None:
        """After `steps` steps, with the mean penalty of the last epoch: once the weights have moved it is not zero.

        Raises StudyError that names `where`. (A proximal step may hold so fast that nothing moves.)
        """
        if self.form == "penalty" and steps > 1 and bool((torch.as_tensor(value)[self.held.cpu()] == 0).any()):
            raise StudyError(
                f"the EWC penalty of {where} is exactly zero after {steps} steps: it holds nothing, because the "
                "weights do not move or its strength vanishes; raise the learning rate or the strength, or leave EWC out"
            )


class Frozen:
    """Holds entries of parameters where they are: put back after every optimiser step, whatever weight decay and momentum did.

    held: parameter name -> tensor of its shape, not zero where the entry is frozen.
    """

    def __init__(self, model: nn.Module, held: Mapping[str, Tensor]):
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


def accumulated(earlier: Mapping[str, Tensor], now: Mapping[str, Tensor], decay: float) -> dict[str, Tensor]:
    """Online EWC: decay * the earlier tasks' Fisher + this task's (Schwarz et al. 2018); earlier may be empty."""
    return {n: decay * earlier.get(n, torch.zeros_like(f)) + f for n, f in now.items()}


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
