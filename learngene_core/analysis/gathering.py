"""Where evidence for `measures` comes from: the finished collective of a run, and untrained networks for any null.

`layer_scores` is the stage that scores every criterion on every layer of a run.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..config import Config
from ..criteria import score, score_all
from ..errors import StudyError, say
from ..execution import layout, use
from ..network import ConvNet
from ..record import Record
from ..runs.machine import machine_of
from ..runs.run import Run
from ..runs.states import load_state, task_folders
from ..tasks import ImageSet, SourceTask, derive, generator, numpy_generator
from ..training import Recipe, fit, predict
from .evidence import Evidence, among_classes, device_of, estimate_norms
from .measures import measure_all

N_IMAGES = 80  # training images for gradients and batch-norm statistics, in equal parts from all tasks
PER_CLASS = 4  # held-out images of each class for accuracies and features
N_NULLS = 4  # untrained networks at most; each costs as much as the collective
OTHER_THRESHOLD = {5e-10: 5e-4, 5e-4: 5e-10}  # the released scripts had one after the other


def layer_scores(imgs: ImageSet, src: list[SourceTask], cfg: Config, run: Run) -> pd.DataFrame:
    """Every criterion per layer beside its null (layer_scores.csv): those over the gradient record, with the released count at
    both released thresholds, and those that look at networks.

    Raises StudyError without a finished collective.
    """
    if run.done("measures"):
        say("measures: found in the run folder, loaded")
        return run.read_table("layer_scores.csv")
    with run.computing("measures", ["layer_scores.csv"]):
        record = Record.load(run.path)
        tables = [score_all(record, cfg)]
        other = OTHER_THRESHOLD.get(cfg.threshold)
        if other is not None:
            table = score(record, "released", threshold=other, sign=cfg.sign)
            tables.append(table.assign(criterion=f"released@{other:g}"))
        tables.append(measure_all(*evidence_of(run, imgs, src, cfg)))
        run.write_table("layer_scores.csv", pd.concat(tables, ignore_index=True))
    say("measures: every criterion scored on every layer, saved")
    return run.read_table("layer_scores.csv")


# a run ------------------------------------------------------------------------------------------------------------------
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
        probe.append(validation_images(task, imgs, probe, rng))
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


def validation_images(
    task: SourceTask, imgs: ImageSet, taken: list[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
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


# the null ---------------------------------------------------------------------------------------------------------------
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
        """Labels here are the images' own numbers, so that each image finds its label and its classes."""
        index = index.cpu()
        own = evidence.classes if evidence.classes is None or evidence.classes.ndim == 1 else evidence.classes[index]
        logits, places = among_classes(logits, labels[index].to(device), own)
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
