"""Which layers to tune on a target task: criteria from target gradients, and individuals whose layers learn at their own rates.

Lee et al. 2023 (arXiv 2210.11466) tune a pretrained network on shifted data and ask which layers should move. Their two criteria
look at the gradient on *target* data: the relative gradient norm (RGN) and the signal-to-noise ratio (SNR). A layer that the
target pulls on should be tuned; one that it hardly pulls on may be inherited as it is, so of both *low* means inherit. (The
measures `relative_norm` and `snr` of this study look at source images.)

Their arms stand beside `full` here: every block is inherited and the head is fresh. `auto_rgn` gives each block a learning rate
in proportion to its RGN; `surgical:...` trains one part of the network and holds the others where they are.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..arms import Arm, Draw, constant, cut, same_shape
from ..collective import Collective
from ..config import Config, Machine
from ..fewshot import Individuals, Keep
from ..learngene import Learngene
from ..network import ConvNet, linear_of
from ..tasks import ImageSet, TargetTask
from ..training import batch_sizes, normalise
from .evidence import PER_BATCH, Evidence, device_of
from .measures import snr

Part = tuple[int, int]
"""First and last block of a part, counted from 1."""


# criteria -------------------------------------------------------------------------------------------------------------
def with_class_means(
    model: nn.Module, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor, head: str = "classifier"
) -> nn.Module:
    """A copy of the network whose head (dotted name) is the nearest class mean of these images, as a linear layer.

    images (n, 3, h, w) uint8, labels (n,) in 0..k-1. Logits are minus the squared distance of the head's input (n, d) to each
    class mean, divided by 2 v; v is the mean squared distance to the own class mean. So nothing is trained, and scaling the
    features changes nothing. Raises ValueError where no class has two images, or v is 0.
    """
    model, device = copy.deepcopy(model).eval(), device_of(model)
    seen: list[Tensor] = []
    hook = model.get_submodule(head).register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(1)))
    with torch.no_grad():
        for batch in images.split(PER_BATCH):
            model(normalise(batch.to(device), mean.to(device), std.to(device)))
    hook.remove()
    features, onehot = torch.cat(seen), nn.functional.one_hot(labels).to(device, torch.float32)  # (n, d), (n, k)
    means = onehot.T @ features / onehot.sum(0)[:, None]  # (k, d)
    spread = (features - onehot @ means).square().sum() / max(1, len(labels) - onehot.shape[1])
    if len(labels) <= onehot.shape[1] or not spread > 0:
        raise ValueError("class means need several images of a class, and features that differ within it")
    parent, _, last = head.rpartition(".")
    setattr(model.get_submodule(parent), last, linear_of(means / spread, -means.square().sum(1) / (2 * spread)))
    return model


def target_evidence(
    model: nn.Module,
    blocks: Sequence[str],
    images: Tensor,
    labels: Tensor,
    mean: Tensor,
    std: Tensor,
    head: str = "classifier",
) -> Evidence:
    """A target task's support images (n, 3, h, w) and labels (n,), and the network with their class means as its head."""
    own = with_class_means(model, images, labels, mean, std, head)
    initial = {name: p.detach() for name, p in own.named_parameters()}
    return Evidence(own, blocks, initial, (), images, labels, images, labels, mean, std)


def rgn(evidence: Evidence) -> np.ndarray:
    """Relative gradient norm of every block (l,): norm of the loss's gradient over norm of the weights. Low: inherit.

    Lee et al. 2023 (arXiv 2210.11466). The loss is the mean cross-entropy of all images, batch norm in evaluation mode; weights
    are parameters with more than one axis. Cost: one backward pass of the images.
    """
    model, device = evidence.model, device_of(evidence.model)
    weights = {name: tuple(evidence.weights(name)) for name in evidence.paths}
    wanted = {n: p for n, p in model.named_parameters() if any(n in names for names in weights.values())}
    total = {n: torch.zeros_like(p) for n, p in wanted.items()}
    was_training, _ = model.training, model.eval()
    for part in torch.arange(len(evidence.images)).split(PER_BATCH):
        x = normalise(evidence.images[part].to(device), evidence.mean.to(device), evidence.std.to(device))
        loss = nn.functional.cross_entropy(model(x), evidence.labels[part].to(device), reduction="sum")
        for name, g in zip(
            wanted, torch.autograd.grad(loss / len(evidence.images), list(wanted.values())), strict=True
        ):
            total[name] += g
    model.train(was_training)
    return np.array([_norm(total[n] for n in names) / _norm(wanted[n] for n in names) for names in weights.values()])


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.cat([t.detach().flatten() for t in tensors]).double().norm())


def target_scores(
    model: nn.Module,
    blocks: Sequence[str],
    tasks: Sequence[tuple[Tensor, Tensor]],
    mean: Tensor,
    std: Tensor,
    head: str = "classifier",
) -> pd.DataFrame:
    """RGN and SNR (rows target_rgn, target_snr) of every block (columns), means over tasks of support images and labels.

    SNR is that of `measures.snr`, one backward pass per image. Of both low means inherit.
    """
    found = [target_evidence(model, blocks, images, labels, mean, std, head) for images, labels in tasks]
    scores = {"target_rgn": [rgn(e) for e in found], "target_snr": [snr(e) for e in found]}
    return pd.DataFrame.from_dict(
        {name: np.mean(values, axis=0) for name, values in scores.items()}, orient="index", columns=list(found[0].paths)
    )


# arms -----------------------------------------------------------------------------------------------------------------
AUTO = "auto_rgn"
SURGICAL = "surgical:"


class LayerRates:
    """Every block learns at its own share of the learning rate; for one network or a stack. A `training.Pull`.

    After a step the weights go back by the share that they should not have moved. With SGD this equals layer-wise learning
    rates, weight decay and momentum included. All parameters of a block share its rate; the head always has the whole.

    shares (m, l): of the m networks' l blocks, 1 for the whole rate and 0 for a block that is held. auto (m,): the networks whose
    shares follow their gradients: at the first step of every epoch (`per_epoch` steps) each block's RGN, divided by the
    largest. The source averages five batches at that moment, and treats every tensor for itself.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], shares: Tensor, auto: Tensor, per_epoch: int):
        self.size = getattr(model, "size", 1)
        self.parameters, self.weights, self.blocks = [], [None] * len(names), []
        for name, p in model.named_parameters():
            part = name.replace("__", ".").split(".")  # a stack names its parameters with two strokes
            if part[0] == "blocks":
                self.parameters.append(p)
                self.blocks.append(list(names).index(part[1]))
                if part[2:] == ["conv", "weight"]:
                    self.weights[self.blocks[-1]] = p
        device = self.parameters[0].device
        self.shares, self.auto = shares.to(device, torch.float32).clone(), auto.to(device, torch.bool)
        self.per_epoch, self.step = per_epoch, 0
        self.before = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def add_gradient(self) -> Tensor:
        """Remember the weights before the step and, once an epoch, look at the gradients; nothing is added: returns 0, ()."""
        for before, p in zip(self.before, self.parameters, strict=True):
            before.copy_(p)
        if self.step % self.per_epoch == 0 and self.auto.any():
            found = torch.stack([self._norms(w.grad) / self._norms(w) for w in self.weights], dim=1)  # (m, l)
            largest = found.max(dim=1, keepdim=True).values
            found = torch.where(largest > 0, found / largest, 1.0)
            self.shares = torch.where(self.auto[:, None], found, self.shares)
        self.step += 1
        return torch.zeros((), device=self.shares.device)

    def _norms(self, tensor: Tensor) -> Tensor:
        """Norm of each network's part of a stacked tensor, (m,)."""
        return tensor.unflatten(0, (self.size, -1)).flatten(1).norm(dim=1)

    @torch.no_grad()
    def pull(self, rate: float | Tensor) -> None:
        """Put the weights back by what they should not have moved."""
        for p, before, block in zip(self.parameters, self.before, self.blocks, strict=True):
            moved, start = (t.unflatten(0, (self.size, -1)) for t in (p, before))
            share = self.shares[:, block].view(-1, *[1] * (moved.ndim - 1))
            p.copy_(torch.lerp(start, moved, share).flatten(0, 1))


def stages(model: ConvNet) -> dict[str, Part]:
    """The parts between pools, name -> first and last block: what surgical fine-tuning chooses among (for VGG-16 five)."""
    names, ends = model.block_names, sorted({*model.pools, len(model.block_names)})
    parts = [(before + 1, last) for before, last in zip([0, *ends], ends, strict=False)]
    return {f"{names[first - 1]}-{names[last - 1]}": (first, last) for first, last in parts}


def surgical_arms(col: Collective, cfg: Config, parts: Mapping[str, Part], rates: Mapping[str, float]) -> list[Arm]:
    """`full`, `auto_rgn`, `surgical:head` (only the fresh head learns) and one `surgical:...` for each part.

    All inherit every block. rates: learning rates by method; the default is that of `full`.
    """
    names, rate = col.model.block_names, cfg.rate("same_shape", "full")
    whole = Learngene.from_model(col.model, names, mean=col.mean, std=col.std)
    methods = ["full", AUTO, f"{SURGICAL}head", *(f"{SURGICAL}{part}" for part in parts)]
    columns = (("block", f"{names[0]}-{names[-1]}"),)
    shape, gene = same_shape(col, cfg), cut(col, names, whole)
    return [Arm("same_shape", m, rates.get(m, rate), shape, constant(gene), columns=columns) for m in methods]


class Surgery(Individuals):
    """Individuals whose arms learn at rates of their own, by method: see `LayerRates`. parts: what `surgical:<part>` trains;
    the rest as `Individuals` takes it, with one number of shots."""

    def __init__(self, parts: Mapping[str, Part], *given: Any, machine: Machine | None = None):
        super().__init__(*given, machine=machine)
        self.parts = parts
        self.machine = dataclasses.replace(self.machine, capture=False)  # the rates count steps, which a graph cannot

    def pull_of(
        self, stack: nn.Module, draws: Sequence[Draw], arms: Sequence[Arm], genes: Sequence[Learngene | None]
    ) -> LayerRates:
        """The rates of the blocks of each network of a stack."""
        names = list(stack.shape["names"])
        shares = torch.tensor([self._shares(arm.method, len(names)) for arm in [*arms] * len(draws)])
        auto = torch.tensor([arm.method == AUTO for arm in [*arms] * len(draws)])
        n_images = self.cfg.n_way * self.cfg.shots[0]
        return LayerRates(stack, names, shares, auto, len(batch_sizes(n_images, self.cfg.individual_batch)))

    def _shares(self, method: str, n_blocks: int) -> list[float]:
        if not method.startswith(SURGICAL):
            return [1.0] * n_blocks
        first, last = self.parts.get(method.removeprefix(SURGICAL), (1, 0))  # head: no block
        return [float(first <= number <= last) for number in range(1, n_blocks + 1)]


def tuned_individuals(
    col: Collective,
    images: ImageSet,
    tasks: Sequence[TargetTask],
    cfg: Config,
    *,
    parts: Mapping[str, Part] | None = None,
    rates: Mapping[str, float] | None = None,
    machine: Machine | None = None,
    keep: Keep | None = None,
) -> pd.DataFrame:
    """One row per individual, as results.csv has them: `full`, `auto_rgn`, `surgical:head` and `surgical:<part>`.

    Same-shape individuals on the images, initial heads and batches of `full`, so every difference is paired. parts: name -> first
    and last block, by default the stages between pools. rates: learning rates by method. The source tunes the rate of every arm:
    choose them on pseudo-tasks. Cost: as many individuals of the family `same_shape` as there are parts and three more.
    """
    parts = stages(col.model) if parts is None else parts
    arms, rows = surgical_arms(col, cfg, parts, rates or {}), []
    for shots in cfg.shots:
        work = Surgery(parts, arms, images, cfg.replace(shots=(shots,)), col.mean, col.std, machine=machine)
        rows += [row for piece in work.pieces(tasks, keep, f"{shots}_", curves=False) for row in piece["rows"]]
    order = {arm.method: i for i, arm in enumerate(arms)}
    keys = ["method", "shots", "target_task", "init"]
    return pd.DataFrame(rows).sort_values(
        keys, key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True
    )
