"""Few-shot reconstruction: individual models learn a target task from a few images, with and without what they inherit.

An *arm* is one way to make an individual: its shape, and what it inherits. All arms of a target task start from the same fresh
weights and see the same images in the same batches, so every difference between them is paired. Two families, never compared
across: `light` (four fresh blocks, the learngene, a fresh head: the form of Wang et al. 2022) and `same_shape` (the
collective's own shape, any blocks inherited, the rest fresh). Every individual starts from its own copy; nothing passes from
one target task to the next. Costs: one individual of the `lecture` preset takes about 60 steps of 25 images.

Arms of one shape train as one `Stack`. A *piece* is all arms of one target task and one set of initial weights: what a worker
does at a time, and what is kept when a long run is stopped.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .arms import Arm, Draw, arms_of, block_of, stream_of
from .collective import Collective
from .config import Config, Machine
from .errors import OutOfTime, StudyError, say
from .ewc import Frozen, Penalty
from .execution import here, use
from .learngene import Learngene
from .network import ConvNet
from .presets import METHODS
from .stack import Stack
from .tasks import ImageSet, TargetTask, generator
from .training import Recipe, batch_sizes, confusion, fit, predict, stack_loss

ROW_KEYS = ("family", "method", "block", "rate", "ewc", "shots", "target_task", "init")


class Keep(Protocol):
    """Finished pieces, kept beside a long run; see `runs.pieces`."""

    in_time: bool

    def get(self, name: str) -> Any:
        """The value of a finished piece, or None."""

    def put(self, name: str, value: Any) -> None:
        """Keep a piece."""

    def stopped(self, done: int, total: int) -> OutOfTime:
        """What to raise when no more pieces may be begun."""


def evaluate_few_shot(
    gene: Learngene,
    col: Collective,
    images: ImageSet,
    tasks: Sequence[TargetTask],
    cfg: Config,
    *,
    methods: Sequence[str] | None = None,
    blocks: Mapping[str, tuple[str, ...]] | None = None,
    machine: Machine | None = None,
) -> pd.DataFrame:
    """Train and test every method on every target task; one row per individual (results.csv), accuracy in percent.

    Raises StudyError for EWC with a learngene that has no Fisher information, or a learngene that does not fit, and ValueError
    for a configuration with defects of the released scripts: these have individuals of their own, in `analysis.released`.
    """
    if cfg.defects:
        raise ValueError("defects of the released scripts are the business of analysis.released, not of the method")
    methods = cfg.methods if methods is None else methods
    work = Individuals(arms_of(gene, col, cfg, methods, blocks), images, cfg, gene.mean, gene.std, machine=machine)
    rows, _ = work.table(tasks)
    if "ncm" in methods:
        rows = sorted_rows(pd.concat([rows, nearest_class_mean(col, images, tasks, cfg, work.device)]))
    return rows


class Individuals:
    """Trains the arms of every target task and set of initial weights, in stacks, on the machine's workers.

    mean, std: (3,) normalisation of the images, the learngene's. on_smaller hears of a machine with a smaller stack, where the
    device's memory was too small; on_piece of the number of finished pieces and of all.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        images: ImageSet,
        cfg: Config,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        *,
        machine: Machine | None = None,
        on_smaller: Callable[[Machine], None] = lambda machine: None,
        on_piece: Callable[[int, int], None] = lambda done, total: None,
    ):
        self.arms, self.images, self.cfg, self.machine = list(arms), images, cfg, machine or here()
        self.on_smaller, self.on_piece, self.device = on_smaller, on_piece, torch.device(self.machine.device)
        self.normal = tuple(torch.as_tensor(v, device=self.device) for v in (mean, std))

    def table(self, tasks: Sequence[TargetTask], keep: Keep | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rows of all individuals, sorted so that they do not depend on who finished first, and their mean training curves.

        Raises OutOfTime when `keep` allows no more pieces.
        """
        pieces = list(self.pieces(tasks, keep))
        rows = sorted_rows(pd.DataFrame([row for piece in pieces for row in piece["rows"]]))
        return rows, mean_curves(pd.DataFrame([row for piece in pieces for row in piece["curves"]]))

    def pieces(
        self, tasks: Sequence[TargetTask], keep: Keep | None = None, label: str = "", *, curves: bool = True
    ) -> Iterator[dict]:
        """Every piece, {"rows", "curves"}, as it is finished or found; `label` tells apart pieces of other arms.

        Raises OutOfTime when `keep` allows no more pieces.
        """
        draws = [(task, init) for task in tasks for init in range(1, self.cfg.n_inits + 1)]
        named = {f"{label}{task.group}_{task.number:03d}_{init}": (task, init) for task, init in draws}
        found = {name: piece for name in named if keep is not None and (piece := keep.get(name)) is not None}
        yield from found.values()
        use(self.machine)
        done, left = len(found), [names for names in self._bundles(list(named)) if not found.keys() >= set(names)]
        threads = self.machine.threads if self.machine.workers == 1 else 1
        with ThreadPoolExecutor(self.machine.workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            running: dict = {}
            try:
                while left or running:
                    while left and len(running) < self.machine.workers and (keep is None or keep.in_time):
                        names = left.pop(0)
                        running[pool.submit(self.train, [named[name] for name in names])] = names
                    if not running:
                        raise keep.stopped(done, len(named))
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        pieces = dict(zip(running.pop(future), future.result(), strict=True))
                        for name in pieces.keys() - found.keys():
                            piece = pieces[name] if curves else {"rows": pieces[name]["rows"]}
                            if keep is not None:
                                keep.put(name, piece)
                            done += 1
                            self.on_piece(done, len(named))
                            yield piece
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        use(self.machine)

    def _bundles(self, names: list[str]) -> list[list[str]]:
        """Names of pieces that are trained together, the same ones at every call: one on each worker fills a CPU; on a GPU a
        bundle is one stack, as many networks as memory holds."""
        size = max(1, self.machine.stack // self._most_arms()) if self.machine.device != "cpu" and self.arms else 1
        return [names[i : i + size] for i in range(0, len(names), size)]

    def _most_arms(self) -> int:
        return max(map(len, self._stacks()), default=1)

    def _stacks(self) -> list[list[Arm]]:
        """Arms that train together: one shape, one rate. Composed by the configuration and machine.json, never by the mood of
        the moment; at most one kind of pull in a stack, so that the penalty's value is that arm's alone."""
        groups: dict[tuple, list[Arm]] = {}
        for arm in self.arms:
            alike = arm.family, str(arm.shape), arm.rate
            rivals = [(a.ewc, a.hold) for a in self.arms if (a.family, str(a.shape), a.rate) == alike and a.holds]
            pull = list(dict.fromkeys(rivals)).index((arm.ewc, arm.hold)) if arm.holds else 0
            groups.setdefault((*alike, pull), []).append(arm)
        most = self.machine.stack
        return [arms[i : i + most] for arms in groups.values() for i in range(0, len(arms), most)]

    def train(self, draws: Sequence[Draw]) -> list[dict]:
        """All arms of each of these draws, for every number of shots: a piece per draw. Where the device's memory is too small,
        in smaller stacks.

        Raises StudyError when not one network fits.
        """
        most = max(1, self.machine.stack // self._most_arms())  # it may have become smaller since the bundles were made
        if len(draws) > most:
            return [piece for i in range(0, len(draws), most) for piece in self.train(draws[i : i + most])]
        try:
            return self.in_one_go(draws)
        except torch.OutOfMemoryError:
            if len(draws) == 1 and self.machine.stack == 1:
                raise StudyError(
                    f"one individual does not fit into the memory of device {self.machine.device!r}; lower individual_batch"
                ) from None
        stack = max(1, min(self.machine.stack, len(draws) * self._most_arms()) // 2)
        self.machine = dataclasses.replace(self.machine, stack=stack)
        say(f"out of memory on {self.machine.device}; going on with stacks of {stack} networks")
        self.on_smaller(self.machine)
        return self.train(draws)

    def in_one_go(self, draws: Sequence[Draw]) -> list[dict]:
        """A piece per draw, as `train`, whatever memory there is."""
        pieces: list[dict] = [{"rows": [], "curves": []} for _ in draws]
        query_images = torch.cat([self.pick(task.query) for task, _ in draws])
        query_labels = torch.cat([labels_of(task.query) for task, _ in draws]).to(self.device)
        for shots in self.cfg.shots:
            for arms in self._stacks():
                genes = [arm.donor(draw) for draw in draws for arm in arms]
                stack, history = self.fit(draws, arms, genes, shots)
                cells = confusion(predict(stack, query_images, *self.normal), query_labels)
                for i, gene in enumerate(genes):
                    (task, init), arm = draws[i // len(arms)], arms[i % len(arms)]
                    where = {
                        "shots": shots,
                        "target_task": task.number,
                        "init": init,
                        "classes": "|".join(task.classes),
                    }
                    piece = pieces[i // len(arms)]
                    piece["rows"].append(row_of(arm, where, cells[i], gene, history, i))
                    piece["curves"] += curve_of(arm, where, history, i)
        return pieces

    def fit(
        self, draws: Sequence[Draw], arms: Sequence[Arm], genes: Sequence[Learngene | None], shots: int
    ) -> tuple[Stack, list[dict]]:
        """The individuals of these arms on each draw, trained as one stack (draw after draw); its rows per epoch. genes: what
        each network inherits."""
        cfg, networks = self.cfg, []
        for gene, (draw, arm) in zip(genes, ((d, a) for d in draws for a in arms), strict=True):
            # made anew for every arm from the same stream: equal initial weights, no shared tensor
            fresh = generator(cfg.seed, "individual weights", arm.family, *stream_of(draw), cfg.target_seed)
            net = ConvNet.from_shape(arm.shape, generator=fresh)
            networks.append(net if gene is None else gene.inherit_into(net))
        stack = Stack(networks, len(draws)).to(self.device)
        images = torch.cat([self.pick(task.support[:, :shots]) for task, _ in draws])
        labels = torch.cat([labels_of(task.support[:, :shots]) for task, _ in draws]).to(self.device)
        tasks = ", ".join(dict.fromkeys(str(task.number) for task, _ in draws))
        where, pull = f"target task {tasks}, {arms[0].family}, {shots} shots", self.pull_of(stack, draws, arms, genes)
        history = []
        per_epoch = len(batch_sizes(len(images) // len(draws), cfg.individual_batch))  # draws learn side by side
        for row in fit(
            stack,
            images,
            labels,
            stack_loss,
            Recipe.of_individual(cfg, arms[0].rate, *self.normal),
            stream=lambda epoch: [
                generator(cfg.seed, "support batches", *stream_of(draw), cfg.target_seed, epoch) for draw in draws
            ],
            where=where,
            lower="individual_rate or individual_ewc (tune: tune_rates, tune_ewc; atlas: atlas_rate, control_ewc)",
            pull=pull,
            machine=self.machine,
        ):
            history.append(row)
            if isinstance(pull, Penalty):
                pull.check(row["penalty"], row["epoch"] * per_epoch, where)
        return stack, history

    def pick(self, indices: np.ndarray) -> Tensor:
        """Images (k, 3, h, w) uint8 with these indices, flattened to (k,), on the device."""
        return self.images.images[torch.from_numpy(indices).flatten()].to(self.device)

    def pull_of(
        self, stack: Stack, draws: Sequence[Draw], arms: Sequence[Arm], genes: Sequence[Learngene | None]
    ) -> Penalty | Frozen | None:
        """The pull towards the inherited weights, for the arms that have one; the others' weights are zero."""
        held = next((arm for arm in arms if arm.holds), None)
        if held is None:
            return None
        weights = [
            pull_weights(arm, gene) if arm.holds else {} for arm, gene in zip([*arms] * len(draws), genes, strict=True)
        ]
        if held.hold == "frozen":
            return Frozen(stack, stack.join(weights))
        return Penalty(stack, dict(stack.named_parameters()), stack.join(weights), 1.0, self.cfg.ewc_form)


def labels_of(indices: np.ndarray) -> Tensor:
    """(way, k) image indices -> their labels (way k,)."""
    return torch.arange(len(indices)).repeat_interleave(indices.shape[1])


def pull_weights(arm: Arm, gene: Learngene) -> dict[str, Tensor]:
    """What each inherited parameter is pulled with. EWC: its Fisher information; L2-SP and frozen: all alike."""
    if arm.hold == "fisher":
        return {f"blocks.{n}": f * arm.ewc for n, f in gene.fisher.items()}
    strength = arm.ewc if arm.hold == "l2" else 1.0
    return {f"blocks.{n}": torch.full_like(t, strength) for n, t in gene.tensors.items() if "running" not in n}


def row_of(arm: Arm, where: dict, cells: Tensor, gene: Learngene | None, history: list[dict], i: int) -> dict:
    """The row of results.csv of network i of a stack: `where` it stands, the confusion counts (k, k) of its query images, and
    what `fit` gave (history)."""
    penalties = [float(torch.as_tensor(h["penalty"]).expand(len(h["loss"]))[i]) if arm.ewc else 0.0 for h in history]
    loss, pulled = float(history[-1]["loss"][i]), sum(penalties)
    total = sum(float(h["loss"][i]) for h in history)
    return {
        "family": arm.family,
        "method": arm.method,
        **where,
        **measured(cells),
        "final_loss": loss + penalties[-1],
        "rate": arm.rate,
        "ewc": arm.ewc,
        "ewc_share": 100 * pulled / (total + pulled),
        "inherited": "nothing" if gene is None else block_of(gene),
        "inherited_parameters": 0 if gene is None else gene.n_parameters,
        **dict(arm.columns),
    }


def measured(cells: Tensor) -> dict[str, float | str]:
    """Of confusion counts (k, k), true class by row: accuracy, balanced accuracy and macro-F1 in percent, and the hits of each
    class in the order of the task's classes ("48 51 20 60 33")."""
    hits, true, said = cells.diagonal().double(), cells.sum(1).double(), cells.sum(0).double()
    return {
        "accuracy": float(hits.sum() * 100 / true.sum()),
        "balanced_accuracy": float((hits / true).mean() * 100),
        "macro_f1": float((2 * hits / (true + said)).mean() * 100),  # true is never 0: every class has query images
        "hits": " ".join(str(int(h)) for h in hits),
    }


def curve_of(arm: Arm, where: dict, history: list[dict], i: int) -> list[dict]:
    """Training loss and accuracy (percent) of network i of a stack, a row per epoch."""
    about = {"family": arm.family, "method": arm.method, "shots": where["shots"], "target_task": where["target_task"]}
    return [
        {**about, "epoch": h["epoch"], "loss": float(h["loss"][i]), "accuracy": float(h["accuracy"][i])}
        for h in history
    ]


def sorted_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by family, method (in the order of `presets.METHODS`), rate, shots, task and initial weights."""
    order = {m: i for i, m in enumerate(dict.fromkeys(m for known in METHODS.values() for m in known))}
    keys = [k for k in ROW_KEYS if k in table]
    if table.empty:
        words = ("family", "method", "block")  # numbers stay numbers when other rows are added
        return pd.DataFrame({k: pd.Series(dtype=object if k in words else float) for k in (*ROW_KEYS, "accuracy")})
    return table.sort_values(keys, key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True)


def mean_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Training loss and accuracy per epoch: tasks are the units (initial weights averaged first)."""
    if curves.empty:
        return pd.DataFrame(columns=["family", "method", "shots", "epoch", "loss", "loss_sd", "accuracy", "n_tasks"])
    keys = ["family", "method", "shots", "epoch"]
    curves = curves.sort_values([*keys, "target_task", "loss"])  # sums of floats depend on their order
    tasks = curves.groupby([*keys, "target_task"], as_index=False)[["loss", "accuracy"]].mean()
    return tasks.groupby(keys, as_index=False).agg(
        loss=("loss", "mean"), loss_sd=("loss", "std"), accuracy=("accuracy", "mean"), n_tasks=("loss", "size")
    )


def nearest_class_mean(
    col: Collective,
    images: ImageSet,
    tasks: Sequence[TargetTask],
    cfg: Config,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """The baseline without training: cosine to the mean of the collective's normalised features of each class.

    (Snell et al. 2017 with cosine distance.) One row per task and shots, family `none`.
    """
    needed = np.unique(np.concatenate([np.concatenate([t.support.ravel(), t.query.ravel()]) for t in tasks]))
    model, normal = copy.deepcopy(col.model).to(device), (col.mean.to(device), col.std.to(device))
    features = predict(model, images.images[needed].to(device), *normal, features=True)
    features = torch.nn.functional.normalize(features, dim=1).cpu()
    place = {int(image): i for i, image in enumerate(needed)}
    names = col.model.block_names
    size, whole = sum(p.numel() for p in col.model.blocks.parameters()), f"{names[0]}-{names[-1]}"
    about = {
        "rate": 0.0,
        "ewc": 0.0,
        "ewc_share": 0.0,
        "inherited": whole,
        "inherited_parameters": size,
        "block": whole,
    }

    def of(indices: np.ndarray) -> Tensor:
        return features[[place[int(i)] for i in indices.ravel()]].view(*indices.shape, -1)

    rows = []
    for task in tasks:
        query = of(task.query)  # (way, k, d)
        for shots in cfg.shots:
            means = torch.nn.functional.normalize(of(task.support[:, :shots]).mean(1), dim=1)  # (way, d)
            cells = confusion((query @ means.T).flatten(0, 1), labels_of(task.query))
            where = {"family": "none", "method": "ncm", "shots": shots, "target_task": task.number, "init": 1}
            where["classes"] = "|".join(task.classes)
            rows.append({**where, **measured(cells), **about})
    return pd.DataFrame(rows)
