"""The walk over the task sequence, one task after the other: grow, train, measure, save."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .belongings import Belongings
from .checkpoints import Collective, load_rows, load_state, save_state, save_task
from .config import Config
from .division import SourceTask
from .ewc import Penalty, fisher_diagonal
from .files import OutOfTime, say
from .gradients import Recorder, block_weights
from .growth import growth_schedule
from .guards import warn_if_dead
from .images import ImageSet, channel_statistics, normalise
from .machine import Machine
from .midtask import MidTask, give_momentum, momentum_of
from .network import ConvNet
from .nulls import untrained_record
from .presets import PAPER_POOLS
from .procedure import procedure_of
from .record import Record
from .runs import Run
from .savepoints import ensure_sealed, forget_after, seal, unseal, whole_tasks
from .streams import generator
from .training import accuracy_of, fit, predict, recipe_of, task_loss


class Walk:
    """State of the walk; every random choice has its own stream, so a task's start needs nothing but the saved tensors."""

    def __init__(self, imgs: ImageSet, src: list[SourceTask], cfg: Config, run: Run | None):
        self.cfg, self.src, self.run, self.how = cfg, src, run, procedure_of(cfg)
        self.hash = cfg.stage_hash("collective")
        self.machine = run.machine if run is not None else Machine.resolve(cfg)
        self.machine.use()
        self.device = torch.device(self.machine.device)
        self.images, self.labels, self.names = imgs.images, imgs.labels, imgs.class_names
        self.stream = functools.partial(generator, cfg.seed)
        self.mean, self.std = channel_statistics(imgs.images[np.unique(np.concatenate([t.train for t in src]))])
        self.normal = self.mean.to(self.device), self.std.to(self.device)
        self.model: ConvNet
        self.owned = Belongings()
        self.class_names: list[str] = []
        self.history: list[dict] = []
        self.entries: list[dict] = []  # the record, one entry per task and epoch

    def through(self) -> ConvNet:
        """Start or resume, and train every task that is left."""
        done = self._resume()
        for task in self.src[done:]:
            self._grow(task)
            self._train(task)
            self._measure(task)
            self._save(task)
        return self.model

    # images -----------------------------------------------------------------------------------------------------------
    def _batch(self, indices: np.ndarray, task: SourceTask) -> tuple[Tensor, Tensor]:
        """Images of a task on the device and their labels as outputs of the head."""
        outputs = torch.full((len(self.names),), -1)
        outputs[[self.names.index(n) for n in task.classes]] = self._outputs(task).cpu()
        return self.images[indices].to(self.device), outputs[self.labels[indices]].to(self.device)

    def _prepared(self, indices: np.ndarray) -> Tensor:
        return normalise(self.images[indices].to(self.device), *self.normal)

    def _classes(self, task: SourceTask) -> Tensor | None:
        """Outputs that the loss runs over; None: all."""
        return self.how.among(self._outputs(task), self.cfg)

    def _outputs(self, task: SourceTask) -> Tensor:
        return torch.tensor(self.how.outputs(task.classes, self.class_names), device=self.device)

    # one task ---------------------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        cfg, self.class_names = self.cfg, self.how.head(self.src)
        self.model = ConvNet(
            cfg.start_widths,
            PAPER_POOLS,
            len(self.class_names),
            cfg.image_size,
            cfg.hidden,
            dropout=cfg.dropout,
            generator=self.stream("initial weights"),
        )
        self._place()
        self.owned = Belongings.of(self.model)

    def _place(self) -> None:
        layout = torch.channels_last if self.machine.channels_last else torch.contiguous_format
        self.model.to(self.device, memory_format=layout)
        self.owned = self.owned.to(self.device)

    def _grow(self, task: SourceTask) -> None:
        """New outputs for new classes, then the widenings due before this task; whatever belongs to weights follows."""
        if task.number == 1:
            self._begin()
        new = [n for n in task.classes if n not in self.class_names]
        if new:
            self.model.grow_head(len(new), generator=self.stream("head", task.number))
            self.class_names += new
        mixed = torch.randperm(len(task.train), generator=self.stream("calibration", task.number))[
            : self.cfg.batch_size
        ]
        calibration = self._prepared(task.train[mixed.numpy()])
        if task.number in self.cfg.deepen_before:
            open_blocks = [n for n, block in self.model.blocks.items() if not block.pool]
            self.model.deepen(open_blocks[-1], calibration=calibration)
        self.owned.appended(self.model)
        for name, width in growth_schedule(self.cfg).get(task.number, []):
            mapping = self.how.widen(
                self.model,
                name,
                width,
                mode=self.cfg.growth,
                calibration=calibration,
                generator=self.stream("widening", task.number, name, width),
            )
            self.owned.widened(mapping, self.model, self.cfg.new_columns)
        self._place()

    def _penalty(self, task: SourceTask) -> Penalty | None:
        """EWC towards the weights as they are now; the Fisher of the task before is taken on the grown network."""
        cfg = self.cfg
        if not cfg.ewc_lambda or task.number == 1:
            return None
        self.owned.accumulate(self._fisher(self.src[task.number - 2], cfg.fisher_images), cfg.ewc_decay)
        return Penalty(self.model, dict(self.model.named_parameters()), self.owned.fisher, cfg.ewc_lambda, cfg.ewc_form)

    def _fisher(self, task: SourceTask, n: int) -> dict[str, Tensor]:
        g = self.stream("fisher", task.number)
        picked = task.train[torch.randperm(len(task.train), generator=g)[:n].numpy()]
        # the outputs that the task knew; later ones have taken no part in what it learned
        seen = dict.fromkeys(name for t in self.src[: task.number] for name in t.classes)
        classes = (
            self._classes(task) if self.cfg.loss == "task-incremental" else torch.arange(len(seen), device=self.device)
        )
        return fisher_diagonal(self.model, self._batch(picked, task)[0], classes, *self.normal, g)

    def _train(self, task: SourceTask) -> None:
        cfg, number = self.cfg, task.number
        recipe = recipe_of(cfg, cfg.first_task_epochs if number == 1 else cfg.epochs, *self.normal)
        images, labels = self._batch(task.train, task)
        recorder, classes = Recorder(block_weights(self.model), cfg.record_every), self._classes(task)
        penalty, optimiser = self._penalty(task), recipe.optimiser(self.model, self.machine.way)
        if cfg.carry_momentum:
            give_momentum(self.owned.momentum, self.model, optimiser)
        states = None if self.run is None else MidTask(self._folder(number), self.hash)
        before = self._go_on(states, optimiser)

        def on_epoch(row: dict) -> None:
            self.history.append({"task": number, "phase": "train", "on_task": number, **row})
            warn_if_dead(self.history, self.src, cfg)
            rows, counts, zeros = recorder.take()
            self.entries.append({"task": number, "epoch": row["epoch"], "rows": rows, "counts": counts, "zeros": zeros})
            if states is not None:
                self._keep(states, optimiser, row["epoch"] == recipe.epochs)

        fit(
            self.model,
            images,
            labels,
            self.how.loss(task_loss(classes), classes),
            recipe,
            optimiser=optimiser,
            first_epoch=before + 1,
            watch=recorder,
            penalty=penalty,
            stream=lambda epoch: self.stream("batches", number, epoch),
            on_epoch=on_epoch,
            where=f"source task {number}",
            way=self.machine.way,
        )
        if cfg.carry_momentum:
            self.owned.momentum = momentum_of(self.model, optimiser)

    def _go_on(self, states: MidTask | None, optimiser: torch.optim.Optimizer) -> int:
        """Epochs of the task in hand that an earlier call has finished; the network is as they left it."""
        rows, entries = ([], []) if states is None else states.load(self.model, optimiser)
        self.history += rows
        self.entries += entries
        if rows:
            say(f"collective: going on behind epoch {rows[-1]['epoch']} of source task {rows[-1]['task']}")
        return len(rows)

    def _keep(self, states: MidTask, optimiser: torch.optim.Optimizer, last: bool) -> None:
        """At the end of an epoch: say how far we are, and save when it is time. Raises OutOfTime when `minutes` are over."""
        run, row, cfg = self.run, self.history[-1], self.cfg
        before = 0 if row["task"] == 1 else cfg.first_task_epochs + cfg.epochs * (row["task"] - 2)
        total = cfg.first_task_epochs + cfg.epochs * (len(self.src) - 1)
        text = f"task {row['task']} of {len(self.src)}, epoch {row['epoch']}"
        run.progress("collective", before + row["epoch"], total, text)
        if last or (run.in_time and not states.due):
            return
        states.save(self.model, optimiser, *self._of(row["task"]))
        if not run.in_time:
            raise OutOfTime(
                f"collective: {text} is done and saved after minutes={cfg.minutes}; the same command goes on from there"
            )

    def _measure(self, task: SourceTask) -> None:
        """Held-out accuracy on every task so far: among its own classes, and among all classes seen."""
        for seen in self.src[: task.number]:
            images, labels = self._batch(seen.test, seen)
            logits = predict(self.model, images, *self.normal)
            own, among_all = (float(accuracy_of(logits, labels, c)) for c in (self._outputs(seen), None))
            self.history.append(
                {
                    "task": task.number,
                    "epoch": self.history[-1]["epoch"],
                    "phase": "test",
                    "on_task": seen.number,
                    "accuracy": own,
                    "accuracy_all_seen": among_all,
                }
            )

    # saving -----------------------------------------------------------------------------------------------------------
    def _folder(self, number: int) -> Path:
        return self.run.path / "collective" / f"task_{number:02d}"

    def _save(self, task: SourceTask) -> None:
        if self.run is None:
            return
        history, entries = self._of(task.number)
        scale = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        about = {"class_names": self.class_names, **scale, "history": history}
        folder = self._folder(task.number)
        unseal(folder)
        save_task(folder, self.hash, self.model, self.owned.groups(), about, entries)
        MidTask(folder, self.hash).clear()
        seal(folder)

    def _of(self, number: int) -> tuple[list[dict], list[dict]]:
        """History rows and record entries of one task."""
        history, entries = ([row for row in part if row["task"] == number] for part in (self.history, self.entries))
        return history, entries

    def _resume(self) -> int:
        """Number of tasks already finished in the run folder; their state is loaded."""
        done = 0
        if self.run is not None:
            saved = self.run.path / "collective"
            done = min(whole_tasks(saved), len(self.src))
            forget_after(saved, done, self.hash)
        for number in range(1, done + 1):
            history, entries = load_rows(self._folder(number), self.hash, number)
            self.history += history
            self.entries += entries
            MidTask(self._folder(number), self.hash).clear()  # of a process that was killed just before this
            ensure_sealed(self._folder(number))
        if done:
            self.model, groups, about = load_state(self._folder(done))
            self.class_names = list(about["class_names"])
            self.owned = Belongings(**{k: groups[k] for k in self.owned.groups()})
            self._place()
            say(f"collective: {done} of {len(self.src)} source tasks found in the run folder, going on from there")
        return done

    def finish(self, model: ConvNet) -> Collective:
        """Fisher over all tasks' classes, the null, and the whole record."""
        parts = [self._fisher(task, max(1, self.cfg.fisher_images // len(self.src))) for task in self.src]
        fisher = {n: torch.stack([p[n] for p in parts]).mean(0).cpu() for n in parts[0]}
        how = {"outputs": self._classes, "prepare": self._prepared, "loss": self.how.loss}
        null = untrained_record(model.shape, self.src[:8], self.cfg, **how, autocast=self.machine.autocast)
        record = Record.of_epochs(model.block_names, self.entries, *null)
        history = pd.DataFrame(
            self.history,
            columns=["task", "epoch", "phase", "on_task", "loss", "accuracy", "accuracy_all_seen", "penalty"],
        )
        model, owned = model.cpu(), self.owned.to(torch.device("cpu"))
        model.normalisation = tuple(self.mean.tolist()), tuple(self.std.tolist())
        if self.run is not None:  # the last task's file also holds the Fisher that a learngene takes along
            last = self._folder(len(self.src))
            unseal(last)
            save_state(last, model, {**owned.groups(), "gene_fisher": fisher})
            seal(last)
        return Collective(
            model,
            tuple(self.class_names),
            self.mean,
            self.std,
            owned.initial,
            fisher,
            history,
            record,
            self.hash,
        )
