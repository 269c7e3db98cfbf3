"""What criteria that look at networks (see `measures`) work on: a network with named blocks, its past, and images.

Everything here works on any network whose blocks are submodules; their outputs are read by forward hooks.

Where evidence comes from: the finished collective of a run, and untrained networks for the null of any evidence.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..config import Config
from ..errors import StudyError
from ..ewc import fisher_diagonal
from ..gradients import block_weights, named_blocks
from ..network import ConvNet
from ..runs.machine import machine_of
from ..runs.run import Run
from ..runs.states import load_state, task_folders
from ..tasks import ImageSet, SourceTask, derive, generator, numpy_generator
from ..training import Recipe, fit, layout, normalise, predict, use

POSITIONS = (
    4  # feature maps are averaged to at most 4 x 4 positions: a coarse layout stays, and deep and shallow cost alike
)
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
        _check(self.images, self.labels, self.classes)
        _check(self.probe_images, self.probe_labels, self.probe_classes)

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
        logits, places = among(logits, self.probe_labels, self.probe_classes)
        return 100 * float((logits.argmax(1) == places).double().mean())


def _check(images: Tensor, labels: Tensor, classes: Tensor | None) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images are uint8 (n, 3, h, w), not {images.dtype} {tuple(images.shape)}")
    if len(images) != len(labels) or (classes is not None and classes.ndim == 2 and len(classes) != len(images)):
        raise ValueError(f"{len(images)} images, but {len(labels)} labels, or another number of rows of classes")
    if classes is not None and not (classes == labels[:, None]).any(-1).all():
        raise ValueError("a label is not among the classes of its image")


def among(logits: Tensor, labels: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits (n, k) of the outputs `classes` ((k,) or (n, k)) out of (n, outputs), and the labels' places (n,) among them."""
    if classes is None:
        return logits, labels
    rows = classes.to(logits.device).expand(len(logits), -1)
    return logits.gather(1, rows), (rows == labels[:, None].to(rows.device)).to(torch.uint8).argmax(1)


def device_of(model: nn.Module) -> torch.device:
    """Where a network's parameters are."""
    return next(model.parameters()).device


@torch.no_grad()
def block_features(
    model: nn.Module, paths: Mapping[str, str], images: Tensor, mean: Tensor, std: Tensor
) -> dict[str, Tensor]:
    """Outputs of blocks (name -> dotted name) in evaluation mode, for uint8 images (n, 3, h, w): name -> (n, d), on the CPU.

    Maps are averaged to at most 4 x 4 positions; anything else is flattened. A block that the network does not have is left
    out (it was inserted later). Raises ValueError where a block gives no tensor, or is not called.
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
                parts[name].append(_flat(name, seen.get(name)))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return {name: torch.cat(part) for name, part in parts.items()}


def _flat(name: str, output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(f"block {name!r} gave no tensor")
    if output.ndim == 4:
        output = nn.functional.adaptive_avg_pool2d(output, [min(POSITIONS, side) for side in output.shape[2:]])
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


N_IMAGES = 80  # training images behind gradients and batch-norm statistics, in equal parts from all tasks
PER_CLASS = 4  # held-out images of each class behind accuracies and features
N_NULLS = 4  # untrained networks at most; each costs as much as the collective


def null_evidence(
    evidence: Evidence,
    factory: Callable[[torch.Generator], nn.Module],
    generators: Sequence[torch.Generator],
    *,
    steps: int = 10,
    rate: float = 0.03,
    batch_size: int = 32,
) -> list[Evidence]:
    """The null of every measure: one untrained network with random labels per generator.

    factory(generator) gives an untrained network of the same form and names. Its labels are drawn anew among each image's
    classes; batch norm takes its running statistics from the images, as evaluation needs them. An untrained network that
    takes no step has not changed, so for the measures of change `model` is the network after `steps` steps of SGD (batches
    of `batch_size`, momentum 0.9) on those labels, and `states` holds the untrained one. Few steps: this null says how
    change spreads over depth, not how much there would be after training. Probe images keep their labels: no gradient has
    seen them, and what untrained features separate is what depth alone gives.
    """
    return [_null(evidence, factory, g, steps, rate, batch_size) for g in generators]


def _null(
    evidence: Evidence,
    factory: Callable[[torch.Generator], nn.Module],
    g: torch.Generator,
    steps: int,
    rate: float,
    batch_size: int,
) -> Evidence:
    device, normal, images = device_of(evidence.model), (evidence.mean, evidence.std), evidence.images
    model = factory(g).to(device, memory_format=torch.channels_last)
    initial = {n: p.detach().clone() for n, p in model.named_parameters()}
    estimate_norms(model, images, *normal)
    untrained, labels = copy.deepcopy(model).eval(), _random_labels(evidence, model, g)

    def loss(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The images' own numbers stand where labels stand, so that each finds its label and its classes."""
        index = index.cpu()
        own = evidence.classes if evidence.classes is None or evidence.classes.ndim == 1 else evidence.classes[index]
        logits, places = among(logits, labels[index].to(device), own)
        return nn.functional.cross_entropy(logits, places), (logits.detach().argmax(1) == places).float().mean()

    if steps:
        pick = torch.randint(len(images), (steps * batch_size,), generator=g)
        recipe = Recipe(1, batch_size, rate, "constant", 0.9, 0.0, 0, False, *(t.to(device) for t in normal))
        batches = images[pick].to(device), pick.to(device)
        list(fit(model, *batches, loss, recipe, stream=lambda epoch: g, where="an untrained network of the null"))
        estimate_norms(model, images, *normal)
    seed = int(torch.randint(2**62, (), generator=g))
    changes = {"initial": initial, "states": (untrained,), "labels": labels, "seed": seed}
    return dataclasses.replace(evidence, model=model, blocks=evidence.paths, **changes)


def _random_labels(evidence: Evidence, model: nn.Module, g: torch.Generator) -> Tensor:
    """One label per image, among its classes, or among all outputs of the network."""
    n, device = len(evidence.images), device_of(model)
    if evidence.classes is None:
        logits = predict(model, evidence.images[:2].to(device), evidence.mean.to(device), evidence.std.to(device))
        return torch.randint(logits.shape[-1], (n,), generator=g)
    rows = evidence.classes.expand(n, -1)
    return rows.gather(1, torch.randint(rows.shape[1], (n, 1), generator=g))[:, 0]


class SavedStates(Sequence):
    """The networks in `collective/task_NN` folders, loaded when they are asked for: many tasks do not fill the memory."""

    def __init__(self, folders: Sequence[Path], run: Run):
        machine = machine_of(run)
        self.folders, self.device, self.layout = folders, machine.device, layout(machine)

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> nn.Module:
        return load_state(self.folders[index])[0].to(self.device, memory_format=self.layout).eval()


def evidence_of(run: Run, imgs: ImageSet, src: Sequence[SourceTask], cfg: Config) -> tuple[Evidence, list[Evidence]]:
    """The collective of a finished run, its states after earlier tasks, and its null.

    About 80 training images for gradients, every task alike; as the probe four validation images (never test images) of
    each class of each task. With the task-incremental loss each image is classified among its own task's classes. The last
    network and its birth values have the final widths; features of earlier states are compared across widths.

    Raises StudyError without a finished collective, or for a run that was opened for another configuration.
    """
    run.check("collective", cfg)
    if not run.done("collective"):
        raise StudyError(f"{run.path} holds no finished collective; run `learngene collective` first")
    machine = machine_of(run)
    use(machine)
    folders = task_folders(run)
    model, (_, groups, about) = SavedStates(folders, run)[-1], load_state(folders[-1])
    place, rng = {n: i for i, n in enumerate(about["class_names"])}, numpy_generator(cfg.seed, "evidence")
    train: list[np.ndarray] = []
    probe: list[np.ndarray] = []
    for task in src:
        train.append(rng.permutation(task.train)[: max(2, N_IMAGES // len(src))])
        probe.append(_per_class(task, imgs, probe, rng))
    (images, labels, classes), (held, held_labels, held_classes) = (
        _shown(imgs, src, parts, place, cfg.loss == "task-incremental") for parts in (train, probe)
    )
    initial = {n: t.to(machine.device) for n, t in groups["initial"].items()}
    normal = torch.tensor(about["mean"]), torch.tensor(about["std"])
    earlier, seed = SavedStates(folders[:-1], run), derive(cfg.seed, "evidence")
    shown = images, labels, held, held_labels, *normal, classes, held_classes
    evidence = Evidence(model, model.blocks, initial, earlier, *shown, seed)
    gens = [generator(cfg.seed, "null evidence", k) for k in range(1, min(cfg.null_networks, N_NULLS) + 1)]
    shape = model.shape
    nulls = null_evidence(evidence, lambda g: ConvNet.from_shape(shape, generator=g), gens, rate=cfg.learning_rate)
    return evidence, nulls


def _per_class(task: SourceTask, imgs: ImageSet, taken: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Validation images of each class of a task that no earlier task has `taken` (tasks may share classes)."""
    free = np.setdiff1d(task.validation, np.concatenate(taken)) if taken else task.validation
    labels = imgs.labels.numpy()[free]
    own = [free[labels == imgs.class_names.index(name)] for name in task.classes]
    return np.concatenate([rng.permutation(indices)[:PER_CLASS] for indices in own])


def _shown(
    imgs: ImageSet, src: Sequence[SourceTask], parts: list[np.ndarray], place: dict[str, int], by_task: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images of every task's part (indices), their labels as outputs of the head, and with `by_task` their task's outputs."""
    picked = torch.from_numpy(np.concatenate(parts))
    outputs = torch.tensor([place.get(name, -1) for name in imgs.class_names])[imgs.labels[picked]]
    own = [torch.tensor([place[n] for n in task.classes]) for task in src]
    rows = [classes.expand(len(part), -1) for classes, part in zip(own, parts, strict=True)]
    return imgs.images[picked], outputs, torch.cat(rows) if by_task else None
