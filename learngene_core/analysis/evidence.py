"""What criteria that look at networks (see `measures`) work on: a network with named blocks, its past, and images.

Everything here works on any network whose blocks are submodules; their outputs are read by forward hooks. Where evidence comes
from is in `gathering`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..ewc import fisher_diagonal
from ..gradients import block_weights, named_blocks
from ..training import among, normalise, predict

POSITIONS = 4  # maps are averaged to at most 4 x 4 positions: a coarse layout stays, and deep and shallow cost alike
PER_BATCH = 64  # images per forward pass; larger batches fall out of the cache of a CPU


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What the measures look at.

    model: the network now; blocks: name -> submodule of it (or dotted names); initial: parameter name -> its value at birth
    (carried through widening); states: the network after earlier tasks, in order (widths may differ, names may not).
    images (n, 3, h, w) uint8 with labels (n,): for gradients; probe_images (m, 3, h, w) with probe_labels (m,): held out, for
    accuracy and features. classes, probe_classes: the outputs that the loss, or the accuracy, of an image runs over: (k,)
    for all alike, (n, k) or (m, k) for each its own (those of its task), None for the whole head. mean, std (3,).
    seed: of what is drawn (labels for the Fisher information). All tensors but the networks' and `initial` are on the CPU.

    Raises ValueError for blocks that are not in the network or have no weights, missing or misshapen birth values, images
    that are not uint8, numbers of images and labels that differ, and labels that are not among the classes.
    """

    model: nn.Module
    blocks: Mapping[str, nn.Module | str] | Sequence[str]
    initial: Mapping[str, Tensor]
    states: Sequence[nn.Module]
    images: Tensor
    labels: Tensor
    probe_images: Tensor
    probe_labels: Tensor
    mean: Tensor
    std: Tensor
    classes: Tensor | None = None
    probe_classes: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        block_weights(self.model, dict(named_blocks(self.model, self.blocks)))
        for name in self.paths:
            for n, parameter in self._parameters(name).items():
                if n not in self.initial or self.initial[n].shape != parameter.shape:
                    raise ValueError(f"initial holds no value of the shape of {n}")
        _check_images(self.images, self.labels, self.classes)
        _check_images(self.probe_images, self.probe_labels, self.probe_classes)

    @functools.cached_property
    def paths(self) -> dict[str, str]:
        """Block name -> dotted name of the submodule, the same in every state and null network."""
        names = {id(module): path for path, module in self.model.named_modules()}
        return {name: names[id(block)] for name, block in named_blocks(self.model, self.blocks).items()}

    @functools.cached_property
    def at_birth(self) -> Evidence:
        """The same with the first state, untrained, as the network: what most measures of a null network look at."""
        return dataclasses.replace(self, model=self.states[0], blocks=self.paths, states=())

    @functools.cached_property
    def fisher(self) -> dict[str, Tensor]:
        """Diagonal Fisher information over `images`, parameter name -> tensor of its shape."""
        g, n, device = torch.Generator().manual_seed(self.seed), len(self.images), device_of(self.model)
        rows = torch.zeros(n, 1) if self.classes is None else self.classes.expand(n, -1)
        groups, which = rows.unique(dim=0, return_inverse=True)
        total: dict[str, Tensor] = {}
        for number, row in enumerate(groups):
            images, classes = self.images[which == number], None if self.classes is None else row.to(device)
            part = fisher_diagonal(self.model, images.to(device), classes, self.mean.to(device), self.std.to(device), g)
            total = {name: total.get(name, 0) + f * (len(images) / n) for name, f in part.items()}
        return total

    def weights(self, name: str) -> dict[str, Tensor]:
        """Parameters of a block with more than one axis, by their name in the network."""
        return {n: p.detach() for n, p in self._parameters(name).items() if p.ndim > 1}

    def _parameters(self, name: str) -> dict[str, nn.Parameter]:
        path = self.paths[name]
        return {f"{path}.{n}" if path else n: p for n, p in self.model.get_submodule(path).named_parameters()}

    @torch.no_grad()
    def reset(self, name: str) -> nn.Module:
        """A copy of the network with one block as it was at birth.

        All parameters of the block return to their birth values, those of its batch norm too. Its running statistics are
        taken anew from `images`: those of the trained weights, or of no image at all (0 and 1), would scale the block's
        output wrongly, and the drop would measure that instead of what the weights have learned.
        """
        model = copy.deepcopy(self.model)
        named = dict(model.named_parameters())
        for n in self._parameters(name):
            named[n].copy_(self.initial[n])
        block = model.get_submodule(self.paths[name])
        with _averaging_norms(block) as found:
            if found:
                args, kwargs = self._inputs[name]
                block(*args, **kwargs)
        return model

    @functools.cached_property
    def _inputs(self) -> dict[str, tuple[tuple, dict]]:
        """What every block is called with for `images`; nothing before a block changes when it is reset."""
        seen: dict[str, tuple[tuple, dict]] = {}
        hooks = [
            self.model.get_submodule(path).register_forward_pre_hook(
                lambda module, args, kwargs, name=name: seen.__setitem__(name, (args, kwargs)), with_kwargs=True
            )
            for name, path in self.paths.items()
        ]
        device, (was_training, _) = device_of(self.model), (self.model.training, self.model.eval())
        try:
            with torch.no_grad():
                self.model(normalise(self.images.to(device), self.mean.to(device), self.std.to(device)))
        finally:
            for hook in hooks:
                hook.remove()
            self.model.train(was_training)
        return seen

    def accuracy(self, model: nn.Module) -> float:
        """Accuracy in percent of a network on the probe images, each among its own classes."""
        device = device_of(model)
        normal = self.mean.to(device), self.std.to(device)
        logits = predict(model, self.probe_images.to(device), *normal, batch_size=PER_BATCH).cpu()
        logits, places = among_classes(logits, self.probe_labels, self.probe_classes)
        return 100 * float((logits.argmax(1) == places).double().mean())


def _check_images(images: Tensor, labels: Tensor, classes: Tensor | None) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images are uint8 (n, 3, h, w), not {images.dtype} {tuple(images.shape)}")
    if len(images) != len(labels) or (classes is not None and classes.ndim == 2 and len(classes) != len(images)):
        raise ValueError(f"{len(images)} images, but {len(labels)} labels, or another number of rows of classes")
    if classes is not None and not (classes == labels[:, None]).any(-1).all():
        raise ValueError("a label is not among the classes of its image")


def among_classes(logits: Tensor, labels: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits (n, k) of the outputs `classes` ((k,) or (n, k)) out of (n, outputs), and the labels' places (n,) among them."""
    if classes is None:
        return logits, labels
    rows = classes.to(logits.device).expand(len(logits), -1)
    return among(logits, labels.to(rows.device), rows)


def device_of(model: nn.Module) -> torch.device:
    """Where a network's parameters are."""
    return next(model.parameters()).device


@torch.no_grad()
def block_features(
    model: nn.Module,
    paths: Mapping[str, str],
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    positions: int | None = POSITIONS,
) -> dict[str, Tensor]:
    """Outputs of blocks (name -> dotted name) in evaluation mode, for uint8 images (n, 3, h, w): name -> (n, d), on the CPU.

    Maps are averaged to at most `positions` x `positions` (None: as they are), then flattened, as is anything else. A block
    that the network does not have is left out (it was inserted later). Raises ValueError where a block gives no tensor, or is
    not called.
    """
    device, (was_training, _) = device_of(model), (model.training, model.eval())
    inside, seen = dict(model.named_modules()), {}
    paths = {name: path for name, path in paths.items() if path in inside}
    hooks = [
        inside[path].register_forward_hook(lambda module, args, output, name=name: seen.__setitem__(name, output))
        for name, path in paths.items()
    ]
    parts: dict[str, list[Tensor]] = {name: [] for name in paths}
    try:
        for batch in images.split(PER_BATCH):
            seen.clear()
            model(normalise(batch.to(device), mean.to(device), std.to(device)))
            for name in paths:
                parts[name].append(_flat(name, seen.get(name), positions))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return {name: torch.cat(part) for name, part in parts.items()}


def _flat(name: str, output: object, positions: int | None) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(f"block {name!r} gave no tensor")
    if output.ndim == 4 and positions is not None:
        output = nn.functional.adaptive_avg_pool2d(output, [min(positions, side) for side in output.shape[2:]])
    return output.flatten(1).float().cpu()


@torch.no_grad()
def estimate_norms(model: nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> None:
    """Running statistics of all batch norms, taken anew from uint8 images (n, 3, h, w); nothing else moves."""
    device = device_of(model)
    with _averaging_norms(model) as found:
        for batch in images.chunk(-(-len(images) // (4 * PER_BATCH))) if found else ():  # parts of nearly one size
            model(normalise(batch.to(device), mean.to(device), std.to(device)))


@contextlib.contextmanager
def _averaging_norms(block: nn.Module) -> Iterator[bool]:
    """Inside, batch norms forget their running statistics and take the plain average over what passes; all else is in
    evaluation mode. Says whether there is any."""
    modes = {m: m.training for m in block.modules()}
    norms = [m for m in modes if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    block.eval()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
        m.train()
    try:
        yield bool(norms)
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        for m, mode in modes.items():
            m.training = mode
