"""The walk over the task sequence, one task after the other: grow, train, measure, save."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .belongings import Belongings
from .checkpoints import Collective, load_state, save_state
from .config import Config
from .division import SourceTask
from .files import StudyError, atomic, read_json, say, write_json
from .gradients import Recorder, block_weights
from .growth import growth_schedule
from .images import ImageSet, channel_statistics, normalise
from .machine import Machine
from .network import ConvNet
from .nulls import untrained_record
from .presets import PAPER_POOLS
from .procedure import procedure_of
from .record import Record, load_counts
from .runs import Run
from .streams import generator
from .training import Penalty, Recipe, evaluate, fisher_diagonal, fit, task_loss


class Walk:
    """State of the walk; every random choice has its own stream, so a task's start needs nothing but the saved tensors."""

    def __init__(self, imgs: ImageSet, src: list[SourceTask], cfg: Config, run: Run | None):
        self.cfg, self.src, self.run, self.how = cfg, src, run, procedure_of(cfg)
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
        recorder = Recorder(block_weights(self.model), cfg.record_every)
        before = 0 if number == 1 else cfg.first_task_epochs + cfg.epochs * (number - 2)
        total = cfg.first_task_epochs + cfg.epochs * (len(self.src) - 1)

        def on_epoch(row: dict) -> None:
            self.history.append({"task": number, "phase": "train", "on_task": number, **row})
            rows, counts, zeros = recorder.take()
            self.entries.append({"task": number, "epoch": row["epoch"], "rows": rows, "counts": counts, "zeros": zeros})
            if self.run is not None:
                text = f"task {number} of {len(self.src)}, epoch {row['epoch']}"
                self.run.progress("collective", before + row["epoch"], total, text)

        penalty, optimiser, classes = self._penalty(task), recipe.optimiser(self.model), self._classes(task)
        named = dict(self.model.named_parameters())
        if cfg.carry_momentum:
            for name, buffer in self.owned.momentum.items():
                optimiser.state[named[name]]["momentum_buffer"] = buffer.clone()
        fit(
            self.model,
            images,
            labels,
            self.how.loss(task_loss(classes), classes),
            recipe,
            optimiser=optimiser,
            watch=recorder,
            penalty=penalty,
            stream=lambda epoch: self.stream("batches", number, epoch),
            on_epoch=on_epoch,
            where=f"source task {number}",
        )
        if cfg.carry_momentum:
            self.owned.momentum = {n: optimiser.state[p]["momentum_buffer"] for n, p in named.items()}

    def _measure(self, task: SourceTask) -> None:
        """Held-out accuracy on every task so far: among its own classes, and among all classes seen."""
        for seen in self.src[: task.number]:
            images, labels = self._batch(seen.test, seen)
            own, among_all = (
                float(evaluate(self.model, images, labels, *self.normal, classes=c))
                for c in (self._outputs(seen), None)
            )
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
        folder = self._folder(task.number)
        mine = [e for e in self.entries if e["task"] == task.number]
        save_state(folder, self.model, self.owned.groups())
        with atomic(folder / "record.npz") as path, open(path, "wb") as file:
            np.savez_compressed(
                file, counts=np.stack([e["counts"] for e in mine]), zeros=np.stack([e["zeros"] for e in mine])
            )
        write_json(
            folder / "about.json",
            {  # written last: a folder with it is whole
                "stage_hash": self.cfg.stage_hash("collective"),
                "shape": self.model.shape,
                "class_names": self.class_names,
                "mean": self.mean.tolist(),
                "std": self.std.tolist(),
                "history": [h for h in self.history if h["task"] == task.number],
                "record": [{"epoch": e["epoch"], "rows": e["rows"]} for e in mine],
            },
        )

    def _resume(self) -> int:
        """Number of tasks already finished in the run folder; their state is loaded."""
        done = 0
        while self.run is not None and done < len(self.src) and (self._folder(done + 1) / "about.json").exists():
            done += 1
            about = read_json(self._folder(done) / "about.json")
            if about["stage_hash"] != self.cfg.stage_hash("collective"):
                raise StudyError(
                    f"{self._folder(done)} was begun with another configuration; choose another --out, "
                    "or start it again with --redo collective"
                )
            self.history += about["history"]
            counts, zeros = load_counts(self._folder(done))
            self.entries += [
                {"task": done, **e, "counts": counts[i], "zeros": zeros[i]} for i, e in enumerate(about["record"])
            ]
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
        null = untrained_record(
            model.shape, self.src[:8], self.cfg, outputs=self._classes, prepare=self._prepared, loss=self.how.loss
        )
        record = Record.of_epochs(model.block_names, self.entries, *null)
        history = pd.DataFrame(
            self.history,
            columns=["task", "epoch", "phase", "on_task", "loss", "accuracy", "accuracy_all_seen", "penalty"],
        )
        model, owned = model.cpu(), self.owned.to(torch.device("cpu"))
        model.normalisation = tuple(self.mean.tolist()), tuple(self.std.tolist())
        if self.run is not None:  # the last task's file also holds the Fisher that a learngene takes along
            save_state(self._folder(len(self.src)), model, {**owned.groups(), "gene_fisher": fisher})
        return Collective(
            model,
            tuple(self.class_names),
            self.mean,
            self.std,
            owned.initial,
            fisher,
            history,
            record,
            self.cfg.stage_hash("collective"),
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
