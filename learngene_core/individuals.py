"""Individual models in bulk: every arm of every target task, in stacks, on the machine's workers, piece by piece.

A piece is all arms of one target task and one set of initial weights: they share images, batches and initial weights, so
every difference between them is paired. Finished pieces can be kept (`Parts`); a stage that was stopped goes on from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import pandas as pd
import torch
from torch import Tensor

from .arms import Arm, family_shape, inherited
from .baselines import nearest_class_mean
from .checkpoints import Collective
from .config import Config
from .division import TargetTask
from .files import StudyError
from .images import ImageSet
from .learngene import Learngene
from .machine import Machine
from .network import ConvNet
from .parts import Parts
from .presets import METHODS
from .procedure import Lesson, procedure_of
from .runs import Run
from .stack import Stack
from .streams import generator
from .training import Frozen, Penalty, Recipe, evaluate, fit, stack_loss

LARGEST_STACK = 6  # networks trained as one; on a CPU larger ones fall out of the cache


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
        self.curves = _mean_curves(pd.DataFrame(curves))
        return _sorted(pd.DataFrame(rows))

    def pieces(
        self, tgt: Sequence[TargetTask], parts: Parts | None = None, label: str = "", *, curves: bool = True
    ) -> Iterator[dict]:
        """Every piece, {"rows", "curves"}, as it is finished or found; `label` tells apart pieces of other arms.

        Raises OutOfTime when `parts` may begin no more pieces.
        """
        jobs = [(tasks, init) for tasks in self.how.chains(tgt) for init in range(1, self.cfg.n_inits + 1)]
        named = {f"{label}{tasks[0].group}_{tasks[0].number:03d}_{init}": (tasks, init) for tasks, init in jobs}
        found = {name: piece for name in named if parts is not None and (piece := parts.get(name)) is not None}
        yield from found.values()
        done, left = len(found), [name for name in named if name not in found]
        threads = self.machine.threads if self.machine.workers == 1 else 1
        with ThreadPoolExecutor(self.machine.workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            running: dict = {}
            try:
                while left or running:
                    while left and len(running) < self.machine.workers and (parts is None or parts.in_time):
                        name = left.pop(0)
                        running[pool.submit(self._chain, *named[name])] = name
                    if not running:
                        raise parts.stopped(*self._counted(done, len(named)))
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        piece, name = future.result(), running.pop(future)
                        piece = piece if curves else {"rows": piece["rows"]}
                        if parts is not None:
                            parts.put(name, piece)
                        done += 1
                        self._progress(done, len(named))
                        yield piece
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.machine.use()

    def _counted(self, done: int, total: int) -> tuple[int, int]:
        return (done, total) if self.span is None else (self.span[0] + done, self.span[1])

    def _progress(self, done: int, total: int) -> None:
        if self.run is not None:
            done, total = self._counted(done, total)
            self.run.progress(self.stage, done, total, f"{done} of {total} tasks and initial weights")

    def _chain(self, tasks: Sequence[TargetTask], init: int) -> dict:
        """A piece: `_piece` of each task in turn; usually there is one, and nothing is left for another."""
        left: dict | None = {} if len(tasks) > 1 else None
        pieces = [self._piece(task, init, left) for task in tasks]
        return {key: [row for piece in pieces for row in piece[key]] for key in ("rows", "curves")}

    def _piece(self, task: TargetTask, init: int, left: dict | None = None) -> dict:
        """All arms of one target task and one set of initial weights, for every number of shots.

        left: what every arm has become on the task before, by (shots, arm); updated. None: nobody asks for it.
        """
        rows, curves = [], []
        query = torch.from_numpy(task.query)
        draw = generator(self.cfg.seed, "test images", task.group, task.number, init, self.cfg.target_seed)
        query_images = self.how.test_images(self.imgs.images[query.flatten()].to(self.device), self.cfg, draw)
        query_labels = torch.arange(len(query)).repeat_interleave(query.shape[1]).to(self.device)
        for shots in self.cfg.shots:
            support = torch.from_numpy(task.support[:, :shots])
            images = self.imgs.images[support.flatten()].to(self.device)
            labels = torch.arange(len(support)).repeat_interleave(shots).to(self.device)
            for arms in self._stacks():
                genes = [self._donated(arm, task, init) for arm in arms]
                stack, history = self._train(arms, genes, task, init, shots, images, labels, left or {})
                accuracy = evaluate(stack, query_images, query_labels, self.mean, self.std).tolist()
                for i, arm in enumerate(arms):
                    where = {"shots": shots, "target_task": task.number, "init": init}
                    rows.append(_row(arm, where, accuracy[i], genes[i], history, i))
                    curves += _curve(arm, where, history, i)
                    if left is not None:
                        left[shots, arm] = stack.network(i)
        return {"rows": rows, "curves": curves}

    def _stacks(self) -> list[list[Arm]]:
        """Arms that train together: one family, one rate. Composed by the configuration, never by the machine's mood."""
        groups: dict[tuple, list[Arm]] = {}
        for arm in self.arms:
            # at most one kind of pull in a stack: the penalty's value is then that arm's alone
            rivals = list(dict.fromkeys((a.ewc, a.hold) for a in self.arms if _alike(a, arm) and _holds(a)))
            pull = 1 + rivals.index((arm.ewc, arm.hold)) if _holds(arm) else 0
            groups.setdefault((arm.family, arm.rate, max(0, pull - 1)), []).append(arm)
        cut = [[arms[i : i + LARGEST_STACK] for i in range(0, len(arms), LARGEST_STACK)] for arms in groups.values()]
        return [stack for stacks in cut for stack in stacks]

    def _donated(self, arm: Arm, task: TargetTask, init: int) -> Learngene | None:
        draw = (task.group, task.number, init)
        return arm.donor(draw) if arm.donor else inherited(arm.method, self.gene, self.col, self.cfg, draw)

    def _train(
        self,
        arms: list[Arm],
        genes: list[Learngene | None],
        task: TargetTask,
        init: int,
        shots: int,
        images: Tensor,
        labels: Tensor,
        left: dict,
    ) -> tuple[Stack, list[dict]]:
        cfg, family = self.cfg, arms[0].family
        networks, shape = [], family_shape(family, self.gene, self.col, cfg)
        for arm, gene in zip(arms, genes, strict=True):
            # made anew for every arm from the same stream: equal initial weights, no shared tensor
            draw = (task.group, task.number, init)
            fresh = generator(cfg.seed, "individual weights", family, *draw, cfg.target_seed)
            net = ConvNet.from_shape(shape, generator=fresh)
            networks.append(self.how.start(net, gene, left.get((shots, arm))))
        stack, recipe = Stack(networks).to(self.device), self._recipe(arms[0].rate)
        optimiser, penalty = recipe.optimiser(stack), self._pull(stack, arms, genes)
        lesson = Lesson(stack, images, labels, recipe, optimiser, penalty)
        history = fit(
            stack,
            images,
            labels,
            stack_loss,
            recipe,
            optimiser=optimiser,
            penalty=penalty,
            stream=lambda epoch: generator(
                cfg.seed, "support batches", task.group, task.number, init, cfg.target_seed, epoch
            ),
            on_epoch=lambda row: self.how.between_epochs(lesson),
            where=f"target task {task.number}, {family}, {shots} shots",
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

    def _pull(self, stack: Stack, arms: list[Arm], genes: list[Learngene | None]) -> Penalty | Frozen | None:
        """The pull towards the inherited weights, for the arms that have one; the others' weights are zero."""
        held = next((arm for arm in arms if _holds(arm)), None)
        if held is None:
            return None
        pairs = zip(arms, genes, strict=True)
        joined = stack.join([_weights(arm, gene) if _holds(arm) else {} for arm, gene in pairs])
        if held.hold == "frozen":
            return Frozen(stack, joined)
        return self.how.penalty(stack, joined, held, self.cfg)


def _holds(arm: Arm) -> bool:
    return bool(arm.ewc) or arm.hold == "frozen"


def _alike(a: Arm, b: Arm) -> bool:
    return (a.family, a.rate) == (b.family, b.rate)


def _weights(arm: Arm, gene: Learngene) -> dict[str, Tensor]:
    """What each inherited parameter is pulled with. EWC: its Fisher information; L2-SP and frozen: all alike."""
    if arm.hold == "fisher":
        return {f"blocks.{n}": f * arm.ewc for n, f in gene.fisher.items()}
    strength = arm.ewc if arm.hold == "l2" else 1.0
    return {f"blocks.{n}": torch.full_like(t, strength) for n, t in gene.tensors.items() if "running" not in n}


def _row(arm: Arm, where: dict, accuracy: float, gene: Learngene | None, history: list[dict], i: int) -> dict:
    loss, penalty = float(history[-1]["loss"][i]), float(history[-1]["penalty"]) if arm.ewc else 0.0
    total = sum(float(h["loss"][i]) for h in history)
    pulled = sum(float(h["penalty"]) for h in history) if arm.ewc else 0.0
    return {
        "family": arm.family,
        "method": arm.method,
        **where,
        "accuracy": accuracy,
        "final_loss": loss + penalty,
        "rate": arm.rate,
        "ewc": arm.ewc,
        "ewc_share": 100 * pulled / (total + pulled),
        "inherited": "nothing" if gene is None else f"{gene.layers[0]}-{gene.layers[-1]}",
        "inherited_parameters": 0 if gene is None else gene.n_parameters,
        **dict(arm.columns),
    }


def _curve(arm: Arm, where: dict, history: list[dict], i: int) -> list[dict]:
    return [
        {
            "family": arm.family,
            "method": arm.method,
            "shots": where["shots"],
            "epoch": h["epoch"],
            "target_task": where["target_task"],
            "loss": float(h["loss"][i]),
            "accuracy": float(h["accuracy"][i]),
        }
        for h in history
    ]


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by family, method (in the order of `presets.METHODS`), rate, shots, task and initial weights."""
    names = dict.fromkeys(m for known in METHODS.values() for m in known)
    order = {m: i for i, m in enumerate(names)}
    keys = ["family", "method", "rate", "ewc", "shots", "target_task", "init"]
    return table.sort_values(keys, key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True)


def _mean_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Training loss and accuracy per epoch: tasks are the units (initial weights averaged first)."""
    if curves.empty:
        return pd.DataFrame(columns=["family", "method", "shots", "epoch", "loss", "loss_sd", "accuracy", "n_tasks"])
    keys = ["family", "method", "shots", "epoch"]
    curves = curves.sort_values([*keys, "target_task", "loss"])  # sums of floats depend on their order
    tasks = curves.groupby([*keys, "target_task"], as_index=False)[["loss", "accuracy"]].mean()
    return tasks.groupby(keys, as_index=False).agg(
        loss=("loss", "mean"), loss_sd=("loss", "std"), accuracy=("accuracy", "mean"), n_tasks=("loss", "size")
    )
