"""The walk over the task sequence, one task after the other: grow, train, measure, save."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .checkpoints import Collective, load_state, save_state
from .config import Config
from .division import SourceTask
from .files import atomic, read_json, say, write_json
from .gradients import Recorder, block_weights
from .growth import growth_schedule
from .images import ImageSet, channel_statistics, normalise
from .machine import Machine
from .network import ConvNet
from .nulls import untrained_record
from .presets import PAPER_POOLS
from .record import Record
from .runs import Run
from .streams import generator
from .training import Penalty, Recipe, evaluate, fisher_diagonal, fit, task_loss


class Walk:
    """State of the walk; every random choice has its own stream, so a task's start needs nothing but the saved tensors."""

    def __init__(self, imgs: ImageSet, src: list[SourceTask], cfg: Config, run: Run | None):
        self.cfg, self.src, self.run = cfg, src, run
        self.machine = run.machine if run is not None else Machine.resolve(cfg)
        self.machine.use()
        self.device = torch.device(self.machine.device)
        self.images, self.labels, self.names = imgs.images, imgs.labels, imgs.class_names
        self.stream = functools.partial(generator, cfg.seed)
        trained = np.unique(np.concatenate([t.train for t in src]))
        self.mean, self.std = channel_statistics(imgs.images[trained])
        self.class_names: list[str] = []
        self.history: list[dict] = []
        self.entries: list[dict] = []  # the record, one entry per task and epoch
        self.fisher: dict[str, Tensor] = {}  # of the earlier tasks, for EWC
        self.total_epochs = cfg.first_task_epochs + cfg.epochs * (len(src) - 1)

    def through(self) -> ConvNet:
        """Start or resume, and train every task that is left."""
        done = self._resume()
        for task in self.src[done:]:
            self._grow(task)
            self._train(task)
            self._measure(task)
            self._save(task)
        return self.model

    # one task ---------------------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        cfg = self.cfg
        self.model = ConvNet(
            cfg.start_widths,
            PAPER_POOLS,
            len(self.src[0].classes),
            cfg.image_size,
            cfg.hidden,
            dropout=cfg.dropout,
            generator=self.stream("initial weights"),
        )
        self.class_names = list(self.src[0].classes)
        self._place()
        self.initial = {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def _place(self) -> None:
        layout = torch.channels_last if self.machine.channels_last else torch.contiguous_format
        self.model.to(self.device, memory_format=layout)

    def _batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images on the device and their labels as outputs of the head."""
        outputs = torch.tensor([self.class_names.index(n) if n in self.class_names else -1 for n in self.names])
        return self.images[indices].to(self.device), outputs[self.labels[indices]].to(self.device)

    def _classes(self, task: SourceTask) -> Tensor | None:
        if self.cfg.loss == "class-incremental":
            return None
        return torch.tensor([self.class_names.index(n) for n in task.classes], device=self.device)

    def _grow(self, task: SourceTask) -> None:
        """New outputs for new classes, then the widenings due before this task; whatever belongs to weights follows."""
        if task.number == 1:
            self._begin()
        new = [n for n in task.classes if n not in self.class_names]
        if new:
            self.model.grow_head(len(new), generator=self.stream("head", task.number))
            self.class_names += new
            self._follow_head()
        calibration = self._normal(self._batch(task.train[: self.cfg.batch_size])[0])
        for name, width in growth_schedule(self.cfg).get(task.number, []):
            mapping = self.model.widen(
                name,
                width,
                mode=self.cfg.growth,
                calibration=calibration,
                generator=self.stream("widening", task.number, name, width),
            )
            now = dict(self.model.named_parameters())
            self.initial = {n: mapping.carry(n, v, "value", now=now[n].detach()) for n, v in self.initial.items()}
            self.fisher = {
                n: mapping.carry(n, v, "fisher", new_columns=self.cfg.new_columns) for n, v in self.fisher.items()
            }
        if task.number in self.cfg.deepen_before:
            self.model.deepen(
                max(self.model.blocks, key=lambda n: (self.model.blocks[n].conv.out_channels, n)),
                calibration=calibration,
            )
            self.initial = {n: self.initial.get(n, p.detach().clone()) for n, p in self.model.named_parameters()}
        self._place()
        self.initial = {n: v.to(self.device) for n, v in self.initial.items()}

    def _normal(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean.to(self.device), self.std.to(self.device))

    def _follow_head(self) -> None:
        for store in (self.initial, self.fisher):
            for name, p in self.model.named_parameters():
                if name in store and len(store[name]) < len(p):
                    new = p.detach()[len(store[name]) :]
                    store[name] = torch.cat([store[name], new if store is self.initial else torch.zeros_like(new)])

    def _penalty(self, task: SourceTask) -> Penalty | None:
        """EWC towards the weights as they are now; the Fisher of the task before is taken on the grown network."""
        cfg = self.cfg
        if not cfg.ewc_lambda or task.number == 1:
            return None
        before = self.src[task.number - 2]
        now = self._fisher(before, cfg.fisher_images)
        self.fisher = {n: cfg.ewc_decay * self.fisher.get(n, torch.zeros_like(f)) + f for n, f in now.items()}
        return Penalty(self.model, dict(self.model.named_parameters()), self.fisher, cfg.ewc_lambda, cfg.ewc_form)

    def _fisher(self, task: SourceTask, n: int) -> dict[str, Tensor]:
        g = self.stream("fisher", task.number)
        picked = task.train[torch.randperm(len(task.train), generator=g)[:n].numpy()]
        return fisher_diagonal(
            self.model,
            self._batch(picked)[0],
            self._classes(task),
            self.mean.to(self.device),
            self.std.to(self.device),
            g,
        )

    def _train(self, task: SourceTask) -> None:
        cfg, number = self.cfg, task.number
        recipe = recipe_of(
            cfg,
            cfg.first_task_epochs if number == 1 else cfg.epochs,
            self.mean.to(self.device),
            self.std.to(self.device),
        )
        images, labels = self._batch(task.train)
        recorder = Recorder(block_weights(self.model), cfg.record_every)
        finished = 0 if number == 1 else cfg.first_task_epochs + cfg.epochs * (number - 2)

        def on_epoch(row: dict) -> None:
            self.history.append(
                {
                    "task": number,
                    "epoch": row["epoch"],
                    "phase": "train",
                    "on_task": number,
                    "loss": row["loss"],
                    "accuracy": row["accuracy"],
                    "penalty": row["penalty"],
                }
            )
            rows, counts, zeros = recorder.take()
            self.entries.append({"task": number, "epoch": row["epoch"], "rows": rows, "counts": counts, "zeros": zeros})
            if self.run is not None:
                self.run.progress(
                    "collective",
                    finished + row["epoch"],
                    self.total_epochs,
                    f"task {number} of {len(self.src)}, epoch {row['epoch']}",
                )

        fit(
            self.model,
            images,
            labels,
            task_loss(self._classes(task)),
            recipe,
            watch=recorder,
            penalty=self._penalty(task),
            stream=lambda epoch: self.stream("batches", number, epoch),
            on_epoch=on_epoch,
            where=f"source task {number}",
        )

    def _measure(self, task: SourceTask) -> None:
        """Held-out accuracy on every task so far: among its own classes, and among all classes seen."""
        for seen in self.src[: task.number]:
            images, labels = self._batch(seen.test)
            own = torch.tensor([self.class_names.index(n) for n in seen.classes], device=self.device)
            values = [
                float(
                    evaluate(self.model, images, labels, self.mean.to(self.device), self.std.to(self.device), classes=c)
                )
                for c in (own, None)
            ]
            self.history.append(
                {
                    "task": task.number,
                    "epoch": self.history[-1]["epoch"],
                    "phase": "test",
                    "on_task": seen.number,
                    "accuracy": values[0],
                    "accuracy_all_seen": values[1],
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
        save_state(
            folder / "model.safetensors",
            {"model": dict(self.model.state_dict()), "initial": self.initial, "fisher": self.fisher},
        )
        with atomic(folder / "record.npz") as path, open(path, "wb") as file:
            np.savez_compressed(
                file, counts=np.stack([e["counts"] for e in mine]), zeros=np.stack([e["zeros"] for e in mine])
            )
        write_json(
            folder / "about.json",
            {  # written last: a folder with it is whole
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
        if self.run is None:
            return 0
        done = 0
        while done < len(self.src) and (self._folder(done + 1) / "about.json").exists():
            done += 1
        for number in range(1, done + 1):
            about = read_json(self._folder(number) / "about.json")
            self.history += about["history"]
            with np.load(self._folder(number) / "record.npz", allow_pickle=False) as arrays:
                counts, zeros = arrays["counts"], arrays["zeros"]
            self.entries += [
                {"task": number, **e, "counts": counts[i], "zeros": zeros[i]} for i, e in enumerate(about["record"])
            ]
        if done:
            self.model, state, about = load_state(self._folder(done))
            self.class_names = list(about["class_names"])
            self._place()
            self.initial, self.fisher = (
                {n: v.to(self.device) for n, v in state[k].items()} for k in ("initial", "fisher")
            )
            say(f"collective: {done} of {len(self.src)} source tasks found in the run folder, going on from there")
        return done

    def finish(self, model: ConvNet) -> Collective:
        """Fisher over all tasks' classes, the null, and the whole record."""
        share = max(1, self.cfg.fisher_images // len(self.src))
        parts = [self._fisher(task, share) for task in self.src]
        fisher = {n: torch.stack([p[n] for p in parts]).mean(0).cpu() for n in parts[0]}
        history = pd.DataFrame(
            self.history,
            columns=["task", "epoch", "phase", "on_task", "loss", "accuracy", "accuracy_all_seen", "penalty"],
        )
        col = Collective(
            model.cpu(),
            tuple(self.class_names),
            self.mean,
            self.std,
            {n: v.cpu() for n, v in self.initial.items()},
            fisher,
            history,
            self._record(model),
            self.cfg.stage_hash("collective"),
        )
        if self.run is not None:  # the last task's file also holds the Fisher that a learngene takes along
            save_state(
                self._folder(len(self.src)) / "model.safetensors",
                {
                    "model": dict(model.state_dict()),
                    "initial": col.initial,
                    "fisher": self.fisher,
                    "gene_fisher": fisher,
                },
            )
        return col

    def _record(self, model: ConvNet) -> Record:
        layers = model.block_names
        null_rows, null_counts, null_zeros = untrained_record(
            model.shape,
            self.src[:8],
            self.cfg,
            outputs=self._classes,
            prepare=lambda i: self._normal(self._batch(i)[0]),
        )
        place = {n: i for i, n in enumerate(layers)}
        counts = np.zeros((len(self.entries), len(layers), *null_counts.shape[-2:]), np.int64)
        zeros = np.zeros(counts.shape[:2], np.int64)
        table = []
        for r, entry in enumerate(self.entries):
            rows = {row["layer"]: row for row in entry["rows"]}
            at = [place[n] for n in rows]
            counts[r, at], zeros[r, at] = entry["counts"], entry["zeros"]
            table += [{"task": entry["task"], "epoch": entry["epoch"], "layer": n, **rows.get(n, {})} for n in layers]
        return Record(
            layers,
            np.array([e["task"] for e in self.entries]),
            np.array([e["epoch"] for e in self.entries]),
            counts,
            zeros,
            null_counts,
            null_zeros,
            pd.DataFrame(table),
            pd.DataFrame(null_rows),
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
