"""Few-shot reconstruction: individual models, their controls and baselines, on identical tasks, weights and batches.

Two families, never compared across: `light` (four fresh blocks, the learngene, a fresh head: the paper's form) and
`same_shape` (the collective's own shape, any blocks inherited, the rest fresh). Every individual starts from its own copy
of the initial weights that belong to its task and number; nothing passes from one target task to the next.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import pandas as pd
import torch
from torch import Tensor

from .arms import Arm, arms_of, family_shape, inherited
from .baselines import nearest_class_mean
from .checkpoints import Collective
from .config import Config
from .division import TargetTask
from .files import StudyError, say
from .images import ImageSet
from .learngene import Learngene
from .machine import Machine
from .network import ConvNet
from .presets import METHODS
from .runs import Run
from .stack import Stack
from .streams import generator
from .training import Penalty, Recipe, evaluate, fit, stack_loss


def evaluate_few_shot(
    gene: Learngene,
    col: Collective,
    imgs: ImageSet,
    tgt: Sequence[TargetTask],
    cfg: Config,
    *,
    methods: Sequence[str] | None = None,
    run: Run | None = None,
) -> pd.DataFrame:
    """Train and test every method on every target task; one row per individual (results.csv), accuracy in percent.

    With a run, `results.csv` and `curves.csv` (mean training loss per epoch) are written, or loaded when they are there.

    Raises StudyError for EWC with a learngene that has no Fisher, or a learngene that does not fit.
    """
    if run is not None:
        run.check("reconstruct", cfg)
        if methods is not None and set(methods) != set(cfg.methods):
            raise StudyError(
                "a run keeps the methods of its configuration; set methods there, or evaluate without a run"
            )
    if run is not None and run.done("reconstruct"):
        say("reconstruct: found in the run folder, loaded")
        return run.read_table("results.csv")
    methods = cfg.methods if methods is None else methods
    work = Reconstruction(gene, col, imgs, cfg, arms_of(cfg, methods), run)
    if run is None:
        return work.table(tgt, "ncm" in methods)
    with run.computing("reconstruct", ["results.csv", "curves.csv"]):
        results = work.table(tgt, "ncm" in methods)
        run.write_table("results.csv", results)
        run.write_table("curves.csv", work.curves)
    trained = int((results["family"] != "none").sum())
    say(f"reconstruct: {trained} individuals trained and tested on {len(tgt)} target tasks, saved")
    return run.read_table("results.csv")  # what a second call will see


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
        self.gene, self.col, self.imgs, self.cfg, self.arms, self.run, self.stage = (
            gene,
            col,
            imgs,
            cfg,
            arms,
            run,
            stage,
        )
        self.machine = run.machine if run is not None else Machine.resolve(cfg)
        self.device = torch.device(self.machine.device)
        self.mean, self.std = (torch.tensor(v, device=self.device) for v in (gene.mean, gene.std))
        self.genes = {a.method: inherited(a.method, gene, col, cfg) for a in arms}
        if any(a.ewc for a in arms) and gene.fisher is None:
            raise StudyError(
                "learngene_ewc needs the Fisher information, and this learngene has none; "
                "cut it again with its Fisher or leave the method out"
            )

    def table(self, tgt: Sequence[TargetTask], ncm: bool) -> pd.DataFrame:
        """Run all jobs on the workers; rows are sorted, so they do not depend on who finished first."""
        jobs = [(task, init) for task in tgt for init in range(1, self.cfg.n_inits + 1)]
        rows, curves = [], []
        threads = self.machine.threads if self.machine.workers == 1 else 1
        with ThreadPoolExecutor(self.machine.workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            futures = [pool.submit(self._job, task, init) for task, init in jobs]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    job_rows, job_curves = future.result()
                    rows += job_rows
                    curves += job_curves
                    if self.run is not None:
                        self.run.progress(
                            self.stage, done, len(jobs), f"{done} of {len(jobs)} tasks and initial weights"
                        )
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.machine.use()
        if ncm:
            rows += nearest_class_mean(self.col, self.imgs, tgt, self.cfg, self.device)
        table = pd.DataFrame(rows)
        names = dict.fromkeys(m for known in METHODS.values() for m in known)
        order = {m: i for i, m in enumerate(names)}
        keys = ["family", "method", "rate", "ewc", "shots", "target_task", "init"]
        table = table.sort_values(keys, key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True)
        self.curves = _mean_curves(pd.DataFrame(curves))
        return table

    def _job(self, task: TargetTask, init: int) -> tuple[list[dict], list[dict]]:
        """All arms of one target task and one set of initial weights, for every number of shots."""
        rows, curves = [], []
        query = torch.from_numpy(task.query)
        query_images = self.imgs.images[query.flatten()].to(self.device)
        query_labels = torch.arange(len(query)).repeat_interleave(query.shape[1]).to(self.device)
        for shots in self.cfg.shots:
            support = torch.from_numpy(task.support[:, :shots])
            images = self.imgs.images[support.flatten()].to(self.device)
            labels = torch.arange(len(support)).repeat_interleave(shots).to(self.device)
            for arms in self._stacks():
                stack, history = self._train(arms, task, init, shots, images, labels)
                accuracy = evaluate(stack, query_images, query_labels, self.mean, self.std).tolist()
                for i, arm in enumerate(arms):
                    rows.append(self._row(arm, task, init, shots, accuracy[i], history, i))
                    curves += [
                        {
                            "family": arm.family,
                            "method": arm.method,
                            "shots": shots,
                            "epoch": h["epoch"],
                            "target_task": task.number,
                            "loss": float(h["loss"][i]),
                            "accuracy": float(h["accuracy"][i]),
                        }
                        for h in history
                    ]
        return rows, curves

    def _stacks(self) -> list[list[Arm]]:
        """Arms that train together: one family, one rate. Composed by the configuration, never by the machine's mood."""
        groups: dict[tuple, list[Arm]] = {}
        for arm in self.arms:
            # at most one arm with EWC in a stack: the penalty's value is then that arm's alone
            rivals = {a.ewc for a in self.arms if (a.family, a.rate) == (arm.family, arm.rate) and a.ewc}
            groups.setdefault((arm.family, arm.rate, sorted(rivals).index(arm.ewc) if arm.ewc else 0), []).append(arm)
        return list(groups.values())

    def _train(
        self, arms: list[Arm], task: TargetTask, init: int, shots: int, images: Tensor, labels: Tensor
    ) -> tuple[Stack, list[dict]]:
        cfg, family = self.cfg, arms[0].family
        start = functools.partial(ConvNet.from_shape, family_shape(family, self.gene, self.col, cfg))
        networks = []
        for arm in arms:
            # made anew for every arm from the same stream: equal initial weights, no shared tensor
            draw = (task.group, task.number, init)
            net = start(generator=generator(cfg.seed, "individual weights", family, *draw, cfg.target_seed))
            gene = inherited(arm.method, self.gene, self.col, cfg, draw)
            networks.append(gene.inherit_into(net) if gene is not None else net)
        stack = Stack(networks).to(self.device)
        recipe = Recipe(
            cfg.individual_epochs,
            cfg.individual_batch,
            arms[0].rate,
            cfg.individual_schedule,
            cfg.momentum,
            cfg.weight_decay,
            cfg.shift,
            cfg.flip,
            self.mean,
            self.std,
        )
        history = fit(
            stack,
            images,
            labels,
            stack_loss,
            recipe,
            penalty=self._penalty(stack, arms),
            stream=lambda epoch: generator(
                cfg.seed, "support batches", task.group, task.number, init, cfg.target_seed, epoch
            ),
            where=f"target task {task.number}, {family}, {shots} shots",
        )
        return stack, history

    def _penalty(self, stack: Stack, arms: list[Arm]) -> Penalty | None:
        """EWC towards the inherited weights, for the arms that have it; the others' Fisher is zero."""
        if not any(arm.ewc for arm in arms):
            return None
        named = {f"blocks.{n}": f for n, f in self.gene.fisher.items()}
        fisher = stack.join([{n: f * arm.ewc for n, f in named.items()} if arm.ewc else {} for arm in arms])
        return Penalty(stack, dict(stack.named_parameters()), fisher, 1.0, self.cfg.ewc_form)

    def _row(
        self, arm: Arm, task: TargetTask, init: int, shots: int, accuracy: float, history: list[dict], i: int
    ) -> dict:
        gene = self.genes[arm.method]
        loss, penalty = float(history[-1]["loss"][i]), float(history[-1]["penalty"]) if arm.ewc else 0.0
        total = sum(float(h["loss"][i]) for h in history)
        pulled = sum(float(h["penalty"]) for h in history) if arm.ewc else 0.0
        return {
            "family": arm.family,
            "method": arm.method,
            "shots": shots,
            "target_task": task.number,
            "init": init,
            "accuracy": accuracy,
            "final_loss": loss + penalty,
            "rate": arm.rate,
            "ewc": arm.ewc,
            "ewc_share": 100 * pulled / (total + pulled),
            "inherited": "nothing" if gene is None else f"{gene.layers[0]}-{gene.layers[-1]}",
            "inherited_parameters": 0 if gene is None else gene.n_parameters,
        }


def _mean_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Training loss and accuracy per epoch: tasks are the units (initial weights averaged first)."""
    if curves.empty:
        return pd.DataFrame(columns=["family", "method", "shots", "epoch", "loss", "loss_sd", "accuracy", "n_tasks"])
    keys = ["family", "method", "shots", "epoch"]
    tasks = curves.groupby([*keys, "target_task"], as_index=False)[["loss", "accuracy"]].mean()
    return tasks.groupby(keys, as_index=False).agg(
        loss=("loss", "mean"), loss_sd=("loss", "std"), accuracy=("accuracy", "mean"), n_tasks=("loss", "size")
    )
