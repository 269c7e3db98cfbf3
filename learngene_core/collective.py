"""The collective model: one network learns a sequence of source tasks; before each task it grows (Wang et al. 2022, Fig. 1).

Per task: new outputs for new classes and the widenings that are due; training with cross-entropy over the task's classes, if
so configured held near its earlier weights by EWC, while the recorder looks at the gradients; then held-out accuracy on every
task so far. Every random choice has its own stream, so a task's start needs nothing but the `State` before it. Costs: in the
`lecture` preset about 54 epochs of 800 images; in the paper's protocol 50 tasks x 100 epochs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .config import Config, Machine
from .errors import say
from .ewc import Penalty, accumulated, fisher_diagonal
from .execution import here, layout, logits_of, use
from .gradients import Recorder, block_weights, null_record
from .growth import Belongings, WideningMap, deepen, growth_schedule, widen
from .network import ConvNet
from .presets import PAPER_POOLS
from .record import Record
from .tasks import ImageSet, SourceTask, derive, generator
from .training import (
    Loss,
    Recipe,
    accuracy_of,
    among,
    channel_statistics,
    fit,
    normalise,
    predict,
    task_loss,
)

HISTORY = ["task", "epoch", "phase", "on_task", "loss", "accuracy", "accuracy_all_seen", "penalty"]
LONG_EPOCHS, LONG_STEPS = 10, 200  # a network that learns at all is off chance by then; the smoke preset ends before
NEAR = 0.98  # of the loss of a guess, ln K


@dataclasses.dataclass
class Collective:
    """A trained collective model.

    class_names: the classes of the head's outputs, in order of appearance; mean, std: (3,) normalisation of its images;
    initial: every parameter's value at birth, carried through widening; fisher: diagonal Fisher information over the classes
    of all tasks; history: rows per epoch (phase "train") and per pair of tasks (phase "test": held-out accuracy in percent on
    `on_task` after `task`); record: its gradient record; stage_hash: of the configuration it was trained with.
    """

    model: ConvNet
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    initial: dict[str, Tensor]
    fisher: dict[str, Tensor]
    history: pd.DataFrame
    record: Record
    stage_hash: str = ""

    @property
    def gradients(self) -> pd.DataFrame:
        """The gradient record as a table, one row per task, epoch and layer."""
        return self.record.table


@dataclasses.dataclass
class State:
    """The collective between two tasks: all that the next task starts from, and what was seen so far (for `runs.states`).

    history: rows of history.csv; entries: of the record, one per task and epoch; shapes: of the network while it learned each
    task; done: number of the last finished task.
    """

    model: ConvNet
    class_names: list[str]
    owned: Belongings
    history: list[dict] = dataclasses.field(default_factory=list)
    entries: list[dict] = dataclasses.field(default_factory=list)
    shapes: list[dict] = dataclasses.field(default_factory=list)
    done: int = 0

    def to(self, machine: Machine) -> State:
        """Move network and belongings to the machine's device and memory format; returns itself."""
        self.model.to(machine.device, memory_format=layout(machine))
        self.owned = self.owned.to(torch.device(machine.device))
        return self

    def outputs(self, task: SourceTask) -> Tensor:
        """Outputs of the head (k,) that stand for a task's classes."""
        return torch.tensor([self.class_names.index(name) for name in task.classes])

    def loss_outputs(self, task: SourceTask, cfg: Config) -> Tensor | None:
        """Outputs (k,) that a task's loss runs over: its own (task-incremental), or None for all there are so far."""
        return None if cfg.loss == "class-incremental" else self.outputs(task).to(self.model.head.weight.device)


class Source:
    """The images of the source tasks as the collective sees them: on its device, with their normalisation."""

    def __init__(self, images: ImageSet, tasks: Sequence[SourceTask], cfg: Config, machine: Machine):
        self.images, self.cfg, self.device = images, cfg, torch.device(machine.device)
        self.mean, self.std = channel_statistics(images.images[np.unique(np.concatenate([t.train for t in tasks]))])
        self.normal = self.mean.to(self.device), self.std.to(self.device)

    def shown(self, indices: np.ndarray, task: SourceTask, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 3, h, w) uint8 of a task on the device, and their labels (n,) as outputs of the head; outputs (k,): those
        that stand for the task's classes."""
        label = torch.full((len(self.images.class_names),), -1)
        label[[self.images.class_names.index(n) for n in task.classes]] = outputs.cpu()
        return self.images.images[indices].to(self.device), label[self.images.labels[indices]].to(self.device)

    def prepared(self, indices: np.ndarray) -> Tensor:
        """Normalised images (n, 3, h, w) on the device."""
        return normalise(self.images.images[indices].to(self.device), *self.normal)

    def kept(self, task: SourceTask) -> np.ndarray:
        """Indices of the images that replay keeps of a task: `replay_images` of every class."""
        labels, g = self.images.labels[task.train], generator(self.cfg.collective_seed, "replay", task.number)
        order = torch.randperm(len(task.train), generator=g)
        first = [order[labels[order] == k][: self.cfg.replay_images] for k in labels.unique()]
        return task.train[torch.cat(first).numpy()]

    def calibration(self, task: SourceTask) -> Tensor:
        """A batch of the task's training images, from which new channels take their batch-norm statistics."""
        g = generator(self.cfg.collective_seed, "calibration", task.number)
        return self.prepared(task.train[torch.randperm(len(task.train), generator=g)[: self.cfg.batch_size].numpy()])


def train_collective(
    images: ImageSet,
    tasks: Sequence[SourceTask],
    cfg: Config,
    *,
    start: State | None = None,
    after_task: Callable[[State], None] = lambda state: None,
    on_epoch: Callable[[State], None] = lambda state: None,
    machine: Machine | None = None,
    widening: Callable[..., WideningMap] = widen,
    loss_over: Callable[[Tensor | None], Loss] = task_loss,
) -> Collective:
    """One network learns the tasks in turn: grow, train, measure.

    start: a saved state to go on from; after_task may save it; on_epoch hears of every epoch (the last row of its history).
    widening, loss_over: other forms of how a block widens, and of the loss over a task's outputs.

    Raises Diverged when the loss stops being finite, StudyError for EWC that holds nothing, and ValueError for a configuration
    with defects of the released scripts: these have a walk of their own, in `analysis.released`.
    """
    if cfg.defects:
        raise ValueError("defects of the released scripts are the business of analysis.released, not of the method")
    stage_hash = cfg.stage_hash("collective")  # of what was asked for; what follows is trained with what that means
    cfg = cfg.as_ancestor(len(tasks[0].classes))
    machine = machine or here()
    use(machine)
    source = Source(images, tasks, cfg, machine)
    state = (newborn(tasks[0].classes, cfg) if start is None else start).to(machine)
    for task in tasks[state.done :]:
        # grow: outputs for new classes, then the widenings due; what belongs to weights follows
        grow(state, task, cfg, source.calibration(task), widening)
        state.to(machine)
        # train: cross-entropy over the task's outputs, held by EWC near the weights as they are now
        penalty = ewc_penalty(state, tasks, cfg, source)
        shown, loss = lesson(state, task, tasks, cfg, source, loss_over)
        for _ in learn(state, task, cfg, source, shown, loss, penalty, machine):
            warn_if_dead(state.history, tasks, cfg)
            on_epoch(state)
        # measure: held-out accuracy on every task so far
        measure(state, tasks[: task.number], source)
        state.done = task.number
        after_task(state)
    return dataclasses.replace(finished(state, tasks, cfg, source, machine, loss_over), stage_hash=stage_hash)


def newborn(classes: Sequence[str], cfg: Config) -> State:
    """The collective before its first task: start widths, outputs for `classes` (the first task's)."""
    names = list(classes)
    born = {"dropout": cfg.dropout, "generator": generator(cfg.collective_seed, "initial weights")}
    model = ConvNet(cfg.start_widths, PAPER_POOLS, len(names), cfg.image_size, cfg.hidden, **born)
    return State(model, names, Belongings.of(model))


def grow(
    state: State, task: SourceTask, cfg: Config, calibration: Tensor, widening: Callable[..., WideningMap] = widen
) -> None:
    """New outputs for new classes, an identity block and the widenings due before this task; whatever belongs to weights
    follows. calibration: a batch (n, 3, h, w) of the task's normalised images; widening: `growth.widen` or another form."""
    stream, model = functools.partial(generator, cfg.collective_seed), state.model
    if new := [n for n in task.classes if n not in state.class_names]:
        model.grow_head(len(new), generator=stream("head", task.number))
        state.class_names += new
    if task.number in cfg.deepen_before:
        deepen(model, [n for n, block in model.blocks.items() if not block.pool][-1], calibration=calibration)
    state.owned.appended(model)
    for name, width in growth_schedule(cfg).get(task.number, []):
        options = {"mode": cfg.growth, "generator": stream("widening", task.number, name, width)}
        mapping = widening(model, name, width, calibration=calibration, **options)
        state.owned.widened(mapping, model, cfg.new_columns)
    state.shapes.append(model.shape)


def ewc_penalty(state: State, tasks: Sequence[SourceTask], cfg: Config, source: Source) -> Penalty | None:
    """EWC towards the weights as they are now; the Fisher of the task before is taken on the grown network."""
    if not cfg.ewc_lambda or not state.done:
        return None
    now = task_fisher(state, tasks, state.done, cfg, source, cfg.fisher_images)
    state.owned.fisher = accumulated(state.owned.fisher, now, cfg.ewc_decay)
    anchor = dict(state.model.named_parameters())
    return Penalty(state.model, anchor, state.owned.fisher, cfg.ewc_lambda, cfg.ewc_form)


def task_fisher(
    state: State, tasks: Sequence[SourceTask], number: int, cfg: Config, source: Source, n: int
) -> dict[str, Tensor]:
    """Diagonal Fisher information on n training images of task `number`, among the outputs that the task knew."""
    task, g = tasks[number - 1], generator(cfg.collective_seed, "fisher", number)
    picked = task.train[torch.randperm(len(task.train), generator=g)[:n].numpy()]
    outputs = state.loss_outputs(task, cfg)
    if cfg.loss == "class-incremental":  # later outputs have taken no part in what it learned
        outputs = torch.arange(len({name for t in tasks[:number] for name in t.classes}), device=source.device)
    images, _ = source.shown(picked, task, state.outputs(task))
    return fisher_diagonal(state.model, images, outputs, *source.normal, g)


def lesson(
    state: State,
    task: SourceTask,
    tasks: Sequence[SourceTask],
    cfg: Config,
    source: Source,
    loss_over: Callable[[Tensor | None], Loss] = task_loss,
) -> tuple[tuple[Tensor, Tensor], Loss]:
    """What a task shows, (images, labels), and its loss: the task's own images, and with ancestor=replay a few kept images of
    every class of every earlier task, each among the outputs of its own task. There the "labels" are the images' own numbers,
    by which the loss finds each label and its task's outputs (cross-entropy, whatever `loss_over` is)."""
    outputs = state.loss_outputs(task, cfg)
    own = source.shown(task.train, task, state.outputs(task))
    if cfg.ancestor != "replay" or not state.done:
        return own, loss_over(outputs)
    kept = [source.shown(source.kept(earlier), earlier, state.outputs(earlier)) for earlier in tasks[: state.done]]
    images, labels = (torch.cat(parts) for parts in zip(own, *kept, strict=True))
    if outputs is None:
        return (images, labels), loss_over(None)
    every = [own[0], *(part for part, _ in kept)]
    rows = [state.outputs(t).expand(len(x), -1) for t, x in zip([task, *tasks[: state.done]], every, strict=True)]
    among_own = torch.cat(rows).to(source.device)  # (n, way): each image's own task's outputs

    def loss(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits, places = among(logits, labels[index], among_own[index])
        return nn.functional.cross_entropy(logits, places), (logits.detach().argmax(1) == places).float().mean()

    return (images, torch.arange(len(images), device=source.device)), loss


def learn(
    state: State,
    task: SourceTask,
    cfg: Config,
    source: Source,
    shown: tuple[Tensor, Tensor],
    loss: Loss,
    penalty: Penalty | None,
    machine: Machine,
) -> Iterator[dict]:
    """Train the network on one task's images and labels (`shown`); history and record grow by one entry per epoch, which is
    yielded."""
    where, model = f"source task {task.number}", state.model
    recipe = Recipe.of_collective(cfg, cfg.first_task_epochs if task.number == 1 else cfg.epochs, *source.normal)
    recorder, optimiser = Recorder(block_weights(model), cfg.record_every), recipe.optimiser(model, machine)
    if cfg.carry_momentum:
        give_momentum(state.owned.momentum, model, optimiser)
    for row in fit(
        model,
        *shown,
        loss,
        recipe,
        stream=lambda epoch: generator(cfg.collective_seed, "batches", task.number, epoch),
        where=where,
        lower="learning_rate (or ewc_lambda)",
        optimiser=optimiser,
        recorder=recorder,
        pull=penalty,
        machine=machine,
    ):
        if penalty is not None:
            penalty.check(row["penalty"], row["epoch"] * -(-len(shown[0]) // cfg.batch_size), where)
        state.history.append({"task": task.number, "phase": "train", "on_task": task.number, **row})
        rows, counts, zeros = recorder.take()
        seen = {"rows": rows, "counts": counts, "zeros": zeros}
        state.entries.append({"task": task.number, "epoch": row["epoch"], **seen})
        yield row
    if cfg.carry_momentum:
        state.owned.momentum = momentum_of(model, optimiser)


def measure(state: State, tasks: Sequence[SourceTask], source: Source) -> None:
    """Held-out accuracy (percent) on each of `tasks`, the last of which was just learned: among the task's own classes, and
    among all classes seen."""
    number, epoch = tasks[-1].number, state.history[-1]["epoch"]
    for seen in tasks:
        own = state.outputs(seen)
        images, labels = source.shown(seen.test, seen, own)
        logits = predict(state.model, images, *source.normal)
        among_own, among_all = (float(accuracy_of(logits, labels, c)) for c in (own.to(source.device), None))
        about = {"task": number, "epoch": epoch, "phase": "test", "on_task": seen.number}
        state.history.append({**about, "accuracy": among_own, "accuracy_all_seen": among_all})


def finished(
    state: State,
    tasks: Sequence[SourceTask],
    cfg: Config,
    source: Source,
    machine: Machine,
    loss_over: Callable[[Tensor | None], Loss] = task_loss,
) -> Collective:
    """The collective after its last task: Fisher information over all tasks' classes, the record and its null."""
    each = max(1, cfg.fisher_images // len(tasks))
    parts = [task_fisher(state, tasks, task.number, cfg, source, each) for task in tasks]
    fisher = {n: torch.stack([p[n] for p in parts]).mean(0).cpu() for n in parts[0]}
    null = collective_null(state, tasks[: cfg.null_tasks], cfg, source, machine, loss_over)
    record = Record.of_epochs(state.model.block_names, state.entries, *null)
    model, owned = state.model.cpu(), state.owned.to(torch.device("cpu"))
    model.normalisation = tuple(source.mean.tolist()), tuple(source.std.tolist())
    history = pd.DataFrame(state.history, columns=HISTORY)
    names, scale = tuple(state.class_names), (source.mean, source.std)
    return Collective(model, names, *scale, owned.initial, fisher, history, record, cfg.stage_hash("collective"))


def collective_null(
    state: State, tasks: Sequence[SourceTask], cfg: Config, source: Source, machine: Machine, loss_over: Callable
) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """The record of `cfg.null_networks` untrained networks on the collective's tasks' images, with labels drawn anew among each
    task's outputs, under its loss (`loss_over(outputs)`); see `gradients.null_record`. At each task they have the shape that the
    collective had: what width alone does to a layer's gradients is in the null too."""

    def network(k: int, t: int, before: nn.Module | None) -> nn.Module:
        # where blocks were inserted, early shapes lack layers: the final shape has them all
        shape = state.model.shape if cfg.deepen_before else state.shapes[t - 1]
        if isinstance(before, ConvNet) and before.shape == shape:
            return before
        model = ConvNet.from_shape(shape, generator=generator(cfg.collective_seed, "null network", k, t))
        return model.to(source.device, memory_format=torch.channels_last).train()

    def losses(model: nn.Module, k: int, t: int) -> Iterator[Tensor]:
        task, g = tasks[t - 1], generator(cfg.collective_seed, "null labels", k, t)
        outputs = state.loss_outputs(task, cfg)
        own = torch.arange(model.n_classes) if outputs is None else outputs.cpu()
        if cfg.dropout:  # the one draw that torch takes from its global state
            torch.manual_seed(derive(cfg.collective_seed, "null dropout", k, t))
        for _ in range(cfg.null_steps):
            picked = task.train[torch.randperm(len(task.train), generator=g)[: cfg.batch_size].numpy()]
            images = source.prepared(picked)
            labels = own[torch.randint(len(own), (len(picked),), generator=g)].to(source.device)
            yield loss_over(outputs)(logits_of(model, images, machine), labels)[0]

    return null_record(cfg.null_networks, len(tasks), network, losses)


def momentum_of(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Momentum buffers by parameter name; empty where there is none yet."""
    buffers = {
        n: optimiser.state[p].get("momentum_buffer") for n, p in model.named_parameters() if p in optimiser.state
    }
    return {n: buffer for n, buffer in buffers.items() if buffer is not None}


def give_momentum(buffers: dict[str, Tensor], model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Let the optimiser begin with copies of these momentum buffers, by parameter name."""
    named = dict(model.named_parameters())
    for name, buffer in buffers.items():
        optimiser.state[named[name]]["momentum_buffer"] = torch.empty_like(named[name]).copy_(buffer).detach()


def accuracy_matrix(history: pd.DataFrame, column: str = "accuracy") -> pd.DataFrame:
    """Held-out accuracy (percent) after task t (rows) on task s (columns)."""
    return history[history["phase"] == "test"].pivot(index="task", columns="on_task", values=column)


def sequence_summary(history: pd.DataFrame) -> dict[str, float]:
    """Average accuracy after the last task, average just after learning, and backward transfer
    BWT = mean over s < T of A[T, s] - A[s, s] (Lopez-Paz and Ranzato 2017); percent and percentage points."""
    matrix = accuracy_matrix(history).to_numpy()
    last, just = matrix[-1], np.diag(matrix)
    transfer = float((last - just)[:-1].mean()) if len(just) > 1 else float("nan")
    return {"average_accuracy": float(last.mean()), "just_learned": float(just.mean()), "backward_transfer": transfer}


def warn_if_dead(history: Sequence[dict], tasks: Sequence[SourceTask], cfg: Config) -> None:
    """Say, once, that the collective has been at chance for long: loss near ln K, accuracy that guessing explains.

    Only a warning: chance may be the honest result (labels that were permuted, classes that nobody can tell apart), and a
    run that is stopped by mistake costs more than one that is watched. history: rows of history.csv up to now.
    """
    by_number = {task.number: task for task in tasks}
    epochs = steps = 0
    for row in reversed([row for row in history if row["phase"] == "train"]):
        task = by_number[row["task"]]
        if not _at_chance(row, _ways(task, tasks, cfg), len(task.train)):
            break
        before = epochs >= LONG_EPOCHS and steps >= LONG_STEPS
        epochs, steps = epochs + 1, steps + -(-len(task.train) // cfg.batch_size)
        if before:
            return  # said when the epoch before ended
    if epochs >= LONG_EPOCHS and steps >= LONG_STEPS:
        last = history[-1]
        ways = _ways(by_number[last["task"]], tasks, cfg)
        say(
            f"collective: the last {epochs} epochs ({steps} steps, up to task {last['task']}, epoch {last['epoch']}) are at "
            f"chance: loss {last['loss']:.3f} where a guess has {math.log(ways):.3f}, accuracy {last['accuracy']:.1f} % where "
            f"it has {100 / ways:.1f} %; the network learns nothing. Raise learning_rate (now {cfg.learning_rate:g}), or look "
            "whether the classes can be told apart"
        )


def _ways(task: SourceTask, tasks: Sequence[SourceTask], cfg: Config) -> int:
    """Classes that the loss of a task chooses among."""
    if cfg.loss == "task-incremental":
        return len(task.classes)
    return len({name for t in tasks if t.number <= task.number for name in t.classes})


def _at_chance(row: dict, ways: int, n_images: int) -> bool:
    chance = 1 / ways
    spread = 3 * math.sqrt(chance * (1 - chance) / n_images)  # what guessing gives by luck
    return ways > 1 and row["loss"] >= NEAR * math.log(ways) and row["accuracy"] <= 100 * (chance + spread)
