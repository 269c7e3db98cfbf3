"""Individual models in bulk: every arm of every target task, in stacks, on the machine's workers, piece by piece.

A piece is all arms of one target task and one set of initial weights: they share images, batches and initial weights, so
every difference between them is paired. On a CPU a worker makes one piece after the other; on a GPU a bundle of pieces is one
stack, as many networks as memory holds. Finished pieces can be kept (`Parts`); a stage that was stopped goes on from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .arms import Arm, family_shape, inherited
from .baselines import nearest_class_mean
from .checkpoints import Collective
from .config import Config
from .division import TargetTask
from .ewc import Frozen, Penalty
from .files import StudyError, say
from .images import ImageSet
from .learngene import Learngene
from .lots import Draw, Lot, curve_of, holds, labels_of, mean_curves, row_of, sorted_rows, weights_of
from .machine import Machine
from .network import ConvNet
from .parts import Parts
from .procedure import Lesson, procedure_of
from .runs import Run
from .stack import Stack
from .steps import PLAIN
from .streams import generator
from .training import Recipe, evaluate, fit, stack_loss

Job = tuple[Sequence[TargetTask], int]
"""Target tasks of a piece (one, but for `procedure.chains`), and the number of its initial weights."""


class Reconstruction:
    """Trains the arms of every target task and set of initial weights, in stacks, on the machine's workers."""

    def __init__(
        self,
        gene: Learngene,
        col: Collective,
        imgs: ImageSet,
        cfg: Config,
        arms: list[Arm],
        run: Run | None,
        stage: str = "reconstruct",
    ):
        self.gene, self.col, self.imgs, self.cfg = gene, col, imgs, cfg
        self.arms, self.run, self.stage, self.how = arms, run, stage, procedure_of(cfg)
        self.span: tuple[int, int] | None = None  # pieces of the stage before these, and in all, where there are more
        self.machine = run.machine if run is not None else Machine.resolve(cfg)
        self.device = torch.device(self.machine.device)
        self.mean, self.std = (torch.tensor(v, device=self.device) for v in (gene.mean, gene.std))
        if any(a.ewc and a.hold == "fisher" for a in arms) and gene.fisher is None:
            raise StudyError(
                "learngene_ewc needs the Fisher information, and this learngene has none; "
                "cut it again with its Fisher or leave the method out"
            )

    def table(self, tgt: Sequence[TargetTask], ncm: bool = False, parts: Parts | None = None) -> pd.DataFrame:
        """Run all pieces; rows are sorted, so they do not depend on who finished first. `curves` holds the training.

        Raises OutOfTime when `parts` may begin no more pieces.
        """
        rows, curves = [], []
        for piece in self.pieces(tgt, parts):
            rows += piece["rows"]
            curves += piece["curves"]
        if ncm:
            rows += nearest_class_mean(self.col, self.imgs, tgt, self.cfg, self.device)
        self.curves = mean_curves(pd.DataFrame(curves))
        return sorted_rows(pd.DataFrame(rows))

    def pieces(
        self, tgt: Sequence[TargetTask], parts: Parts | None = None, label: str = "", *, curves: bool = True
    ) -> Iterator[dict]:
        """Every piece, {"rows", "curves"}, as it is finished or found; `label` tells apart pieces of other arms.

        Raises OutOfTime when `parts` may begin no more pieces.
        """
        jobs: list[Job] = [(t, init) for t in self.how.chains(tgt) for init in range(1, self.cfg.n_inits + 1)]
        named = {f"{label}{tasks[0].group}_{tasks[0].number:03d}_{init}": (tasks, init) for tasks, init in jobs}
        found = {name: piece for name in named if parts is not None and (piece := parts.get(name)) is not None}
        yield from found.values()
        done, left = len(found), [names for names in self._bundles(list(named)) if not found.keys() >= set(names)]
        threads = self.machine.threads if self.machine.workers == 1 else 1
        with ThreadPoolExecutor(self.machine.workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            running: dict = {}
            try:
                while left or running:
                    while left and len(running) < self.machine.workers and (parts is None or parts.in_time):
                        names = left.pop(0)
                        running[pool.submit(self._chains, [named[name] for name in names])] = names
                    if not running:
                        raise parts.stopped(*self._counted(done, len(named)))
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        pieces = dict(zip(running.pop(future), future.result(), strict=True))
                        for name in pieces.keys() - found.keys():
                            piece = pieces[name] if curves else {"rows": pieces[name]["rows"]}
                            if parts is not None:
                                parts.put(name, piece)
                            done += 1
                            self._progress(done, len(named))
                            yield piece
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.machine.use()

    def _bundles(self, names: list[str]) -> list[list[str]]:
        """Names of pieces that are trained together, the same ones at every call: what is left of a bundle is made whole."""
        size = max(1, self.machine.stack // self._most_arms()) if self.machine.bundles and self.arms else 1
        return [names[i : i + size] for i in range(0, len(names), size)]

    def _counted(self, done: int, total: int) -> tuple[int, int]:
        return (done, total) if self.span is None else (self.span[0] + done, self.span[1])

    def _progress(self, done: int, total: int) -> None:
        if self.run is not None:
            done, total = self._counted(done, total)
            self.run.progress(self.stage, done, total, f"{done} of {total} tasks and initial weights")

    def _chains(self, jobs: Sequence[Job]) -> list[dict]:
        """A bundle of pieces, each {"rows", "curves"}. A piece of several tasks in turn is a bundle of its own."""
        if max(len(tasks) for tasks, _ in jobs) == 1:
            return self._fitting([(tasks[0], init) for tasks, init in jobs])
        chains = []
        for tasks, init in jobs:
            left: dict = {}  # what every arm has become on the task before, by (shots, arm)
            pieces = [self._fitting([(task, init)], left)[0] for task in tasks]
            chains.append({key: [row for piece in pieces for row in piece[key]] for key in ("rows", "curves")})
        return chains

    def _fitting(self, draws: Sequence[Draw], left: dict | None = None) -> list[dict]:
        """`_bundle`, in smaller stacks where the device's memory is too small; machine.json keeps the size that fits.

        Raises StudyError when not one network fits.
        """
        most = max(1, self.machine.stack // self._most_arms())  # it may have become smaller since the bundles were made
        if len(draws) > most:
            return [p for i in range(0, len(draws), most) for p in self._fitting(draws[i : i + most], left)]
        try:
            return self._bundle(draws, left)
        except torch.OutOfMemoryError:
            if len(draws) == 1 and self.machine.stack == 1:
                raise StudyError(
                    f"one individual does not fit into the memory of device {self.machine.device!r}; lower individual_batch"
                ) from None
        self.machine = dataclasses.replace(
            self.machine, stack=max(1, min(self.machine.stack, len(draws) * self._most_arms()) // 2)
        )
        say(
            f"{self.stage}: out of memory on {self.machine.device}; going on with stacks of {self.machine.stack} networks"
        )
        if self.run is not None:
            self.run.keep_machine(self.machine)
        return self._fitting(draws, left)

    def _most_arms(self) -> int:
        return max(map(len, self._stacks()), default=1)

    def _bundle(self, draws: Sequence[Draw], left: dict | None = None) -> list[dict]:
        """All arms of each of these target tasks and sets of initial weights, for every number of shots.

        left: what every arm has become on the task before; updated. None: nobody asks for it.
        """
        pieces: list[dict] = [{"rows": [], "curves": []} for _ in draws]
        after: dict = {}
        query_images = torch.cat([self._query(task, init) for task, init in draws])
        query_labels = torch.cat([labels_of(task.query) for task, _ in draws]).to(self.device)
        for shots in self.cfg.shots:
            for arms in self._stacks():
                lot = Lot(draws, arms, [[self._donated(arm, *draw) for arm in arms] for draw in draws])
                stack, history = self._train(lot, shots, left or {})
                accuracy = evaluate(stack, query_images, query_labels, self.mean, self.std).tolist()
                for i, (piece, task, init, arm, gene) in enumerate(lot.networks(pieces)):
                    where = {"shots": shots, "target_task": task.number, "init": init}
                    piece["rows"].append(row_of(arm, where, accuracy[i], gene, history, i))
                    piece["curves"] += curve_of(arm, where, history, i)
                    if left is not None:
                        after[shots, arm] = stack.network(i)
        if left is not None:
            left.update(after)  # only now: whoever trains this bundle again starts from the task before
        return pieces

    def _query(self, task: TargetTask, init: int) -> Tensor:
        draw = generator(self.cfg.seed, "test images", task.group, task.number, init, self.cfg.target_seed)
        return self.how.test_images(self._images(task.query), self.cfg, draw)

    def _images(self, indices: np.ndarray) -> Tensor:
        return self.imgs.images[torch.from_numpy(indices).flatten()].to(self.device)

    def _stacks(self) -> list[list[Arm]]:
        """Arms that train together: one family, one rate. Composed by the configuration and machine.json, never by the mood of
        the moment."""
        groups: dict[tuple, list[Arm]] = {}
        for arm in self.arms:
            # at most one kind of pull in a stack: the penalty's value is then that arm's alone
            rivals = list(dict.fromkeys((a.ewc, a.hold) for a in self.arms if _alike(a, arm) and holds(a)))
            pull = 1 + rivals.index((arm.ewc, arm.hold)) if holds(arm) else 0
            groups.setdefault((arm.family, arm.rate, max(0, pull - 1)), []).append(arm)
        most = self.machine.stack
        return [arms[i : i + most] for arms in groups.values() for i in range(0, len(arms), most)]

    def _donated(self, arm: Arm, task: TargetTask, init: int) -> Learngene | None:
        draw = (task.group, task.number, init)
        return arm.donor(draw) if arm.donor else inherited(arm.method, self.gene, self.col, self.cfg, draw)

    def _train(self, lot: Lot, shots: int, left: dict) -> tuple[Stack, list[dict]]:
        cfg, family = self.cfg, lot.arms[0].family
        networks, shape = [], family_shape(family, self.gene, self.col, cfg)
        for _, task, init, arm, gene in lot.networks():
            # made anew for every arm from the same stream: equal initial weights, no shared tensor
            draw = (task.group, task.number, init)
            fresh = generator(cfg.seed, "individual weights", family, *draw, cfg.target_seed)
            net = ConvNet.from_shape(shape, generator=fresh)
            networks.append(self.how.start(net, gene, left.get((shots, arm))))
        stack, recipe = Stack(networks, len(lot.draws)).to(self.device), self._recipe(lot.arms[0].rate)
        images = torch.cat([self._images(task.support[:, :shots]) for task, _ in lot.draws])
        labels = torch.cat([labels_of(task.support[:, :shots]) for task, _ in lot.draws]).to(self.device)
        way = PLAIN if cfg.defects else self.machine.way  # some defects reach into the optimiser between two epochs
        optimiser, penalty = recipe.optimiser(stack, way), self._pull(stack, lot)
        lesson = Lesson(stack, images, labels, recipe, optimiser, penalty)
        tasks = ", ".join(dict.fromkeys(str(task.number) for task, _ in lot.draws))
        history = fit(
            stack,
            images,
            labels,
            stack_loss,
            recipe,
            optimiser=optimiser,
            penalty=penalty,
            stream=lambda epoch: [
                generator(cfg.seed, "support batches", task.group, task.number, init, cfg.target_seed, epoch)
                for task, init in lot.draws
            ],
            on_epoch=lambda row: self.how.between_epochs(lesson),
            where=f"target task {tasks}, {family}, {shots} shots",
            way=way,
        )
        return stack, history

    def _recipe(self, rate: float) -> Recipe:
        cfg = self.cfg
        return Recipe(
            cfg.individual_epochs,
            cfg.individual_batch,
            rate,
            cfg.individual_schedule,
            cfg.momentum,
            cfg.weight_decay,
            cfg.shift,
            cfg.flip,
            self.mean,
            self.std,
        )

    def _pull(self, stack: Stack, lot: Lot) -> Penalty | Frozen | None:
        """The pull towards the inherited weights, for the arms that have one; the others' weights are zero."""
        held = next((arm for arm in lot.arms if holds(arm)), None)
        if held is None:
            return None
        joined = stack.join([weights_of(arm, gene) if holds(arm) else {} for *_, arm, gene in lot.networks()])
        if held.hold == "frozen":
            return Frozen(stack, joined)
        return self.how.penalty(stack, joined, held, self.cfg)


def _alike(a: Arm, b: Arm) -> bool:
    return (a.family, a.rate) == (b.family, b.rate)
