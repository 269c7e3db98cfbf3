"""The method's stages in a run folder: each loads what is there, computes what is missing, and says which it did.

`train_collective` and `evaluate_few_shot` know nothing of folders; here is what they are handed so that a run can be stopped
and resumed: the state to start from, and callbacks that save.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ..arms import Arm, arms_of
from ..collective import Collective, State, train_collective
from ..config import Config, Machine
from ..criteria import score_all
from ..data.division import GROUPS, Division, divide, read_division
from ..errors import OutOfTime, StudyError, read_json, say, write_json
from ..fewshot import Individuals, nearest_class_mean, sorted_rows
from ..learngene import Learngene, cut_learngene
from ..tasks import ImageSet, SourceTask, TargetTask
from ..training import channel_statistics
from . import inputs
from .machine import keep_machine, machine_of
from .pieces import Pieces
from .run import Run
from .seals import FILES, task_folder
from .states import load_collective, resume, save_gene_fisher, save_task


def divided(run: Run, images: ImageSet) -> Division:
    """The class division (division.json), made, or checked against the one there.

    Raises StudyError for other images or another division than the run was made with, and as `divide` does.
    """
    cfg, path = run.cfg, run.path / "division.json"
    if run.done("division"):
        stored = read_json(path)
        if stored["images"] != images.fingerprint:
            raise StudyError(
                f"{run.path} was made from other images than these; choose another --out or --redo division"
            )
        if cfg.split not in ("", "seed") and [list(names) for names in read_division(cfg.split)[:3]] != [
            stored[group] for group in GROUPS
        ]:
            raise StudyError(
                f"{cfg.split} is not the division {run.path} was made with; choose another --out or --redo division"
            )
        say("division: found in the run folder, loaded")
        return Division(*(tuple(stored[group]) for group in GROUPS), name=stored["name"])
    div = divide(images, cfg)
    about = {"name": div.name, "data": images.name, "images": images.fingerprint, "seed": cfg.seed}
    with run.computing("division", ["division.json"]):
        write_json(path, {**about, **{group: list(getattr(div, group)) for group in GROUPS}})
    say("division: made and saved")
    return div


def trained_collective(
    run: Run, images: ImageSet, tasks: Sequence[SourceTask], *, train: Callable[..., Collective] = train_collective
) -> Collective:
    """The collective (history.csv, gradients.csv, histograms.npz, collective/): loaded, or trained from the last whole task on.

    train: `train_collective`, or another walk with its parameters (`analysis.released`).

    Raises OutOfTime after the task in which `minutes` ended, StudyError where the run's was trained on other tasks or images,
    and as `train_collective` does.
    """
    cfg = run.cfg
    if run.done("collective", {"list of source tasks": inputs.of_tasks(tasks), "set of images": images.fingerprint}):
        say("collective: found in the run folder, loaded")
        return load_collective(run)
    return train_and_save(run, images, tasks, lambda **hooks: train(images, tasks, cfg, **hooks))


def train_and_save(
    run: Run, images: ImageSet, tasks: Sequence[SourceTask], train: Callable[..., Collective]
) -> Collective:
    """Call `train(start=, after_task=, on_epoch=, machine=)` so that every finished task is saved, and enter the stage."""
    cfg, machine, folder = run.cfg, machine_of(run), run.path / "collective"
    stage_hash, own = cfg.stage_hash("collective"), cfg.as_ancestor(len(tasks[0].classes))
    given = {"list of source tasks": inputs.of_tasks(tasks), "set of images": images.fingerprint}
    mean, std = channel_statistics(images.images[np.unique(np.concatenate([t.train for t in tasks]))])

    def after_task(state: State) -> None:
        save_task(task_folder(folder, state.done), state, stage_hash, mean, std, given)
        if not run.in_time and state.done < len(tasks):
            raise OutOfTime(
                f"collective: task {state.done} of {len(tasks)} is done and saved after minutes={cfg.minutes:g}; "
                "the same command goes on from there"
            )

    def on_epoch(state: State) -> None:
        row = state.history[-1]
        before = 0 if row["task"] == 1 else own.first_task_epochs + own.epochs * (row["task"] - 2)
        total = own.first_task_epochs + own.epochs * (len(tasks) - 1)
        text = f"task {row['task']} of {len(tasks)}, epoch {row['epoch']}"
        run.progress("collective", before + row["epoch"], total, text)

    states = [f"collective/task_{t.number:02d}/{n}" for t in tasks for n in FILES]
    with run.computing("collective", ["history.csv", "gradients.csv", "histograms.npz", *states], given):
        start = resume(folder, stage_hash, len(tasks), given)
        col = train(start=start, after_task=after_task, on_epoch=on_epoch, machine=machine)
        save_gene_fisher(task_folder(folder, len(tasks)), col)
        run.write_table("history.csv", col.history)
        col.record.save(run.path)
    say(f"collective: trained on {len(tasks)} source tasks and saved")
    return col


def chosen_learngene(
    run: Run, col: Collective, *, layers: tuple[str, ...] | None = None, cut: Callable[..., Learngene] = cut_learngene
) -> Learngene:
    """The learngene (scores.csv, learngene.safetensors); layers: chosen elsewhere, by default as the configuration says.

    cut: `cut_learngene`, or another choice with its parameters (`analysis.released`).

    Raises StudyError where the run's was cut out of another collective, and as `cut_learngene` does.
    """
    cfg, path = run.cfg, run.path / "learngene.safetensors"
    given = {"collective": inputs.of_collective(col)}
    if run.done("criteria", given):
        say("criteria: found in the run folder, loaded")
        return Learngene.load(path)
    gene = cut(col, cfg, layers=layers)
    with run.computing("criteria", ["scores.csv", path.name], given):
        run.write_table("scores.csv", score_all(col.record, cfg))
        gene.save(path)
    say(f"criteria: learngene {gene.layers[0]} to {gene.layers[-1]} cut and saved")
    return gene


def results(
    run: Run,
    gene: Learngene,
    col: Collective,
    images: ImageSet,
    tasks: Sequence[TargetTask],
    *,
    kind: type[Individuals] = Individuals,
) -> pd.DataFrame:
    """Every method's individuals on every target task (results.csv, curves.csv); kind: who trains them.

    Raises OutOfTime (finished pieces are kept) after `minutes`, StudyError where the run's were made from another learngene,
    collective, tasks or images, and as `evaluate_few_shot` does.
    """
    cfg = run.cfg
    given = {
        "learngene": inputs.of_learngene(gene),
        "collective": inputs.of_collective(col),
        "list of target tasks": inputs.of_tasks(tasks),
        "set of images": images.fingerprint,
    }
    if run.done("reconstruct", given):
        say("reconstruct: found in the run folder, loaded")
        return run.read_table("results.csv")
    arms = arms_of(gene, col, cfg, cfg.methods)
    work = individuals(run, "reconstruct", arms, images, cfg, gene.mean, gene.std, kind=kind)
    with run.computing("reconstruct", ["results.csv", "curves.csv"], given):
        pieces = Pieces(run, "reconstruct", given)
        rows, curves = work.table(tasks, pieces)
        if "ncm" in cfg.methods:
            rows = sorted_rows(pd.concat([rows, nearest_class_mean(col, images, tasks, cfg, work.device)]))
        run.write_table("results.csv", rows)
        run.write_table("curves.csv", curves)
        pieces.clear()
    trained = int((rows["family"] != "none").sum())
    say(f"reconstruct: {trained} individuals trained and tested on {len(tasks)} target tasks, saved")
    return run.read_table("results.csv")  # what a second call will see


def individuals(
    run: Run | None,
    stage: str,
    arms: Sequence[Arm],
    images: ImageSet,
    cfg: Config,
    mean: object,
    std: object,
    *,
    span: tuple[int, int] | None = None,
    kind: type[Individuals] = Individuals,
) -> Individuals:
    """`Individuals` (or another kind of them) on a run's machine, which tell its progress; without a run, on the default one.

    span: pieces of the stage before these, and in all, where there are more than theirs.
    """
    if run is None:
        return kind(arms, images, cfg, mean, std)

    def on_piece(done: int, total: int) -> None:
        done, total = (done, total) if span is None else (span[0] + done, span[1])
        run.progress(stage, done, total, f"{done} of {total} tasks and initial weights")

    def on_smaller(machine: Machine) -> None:
        keep_machine(run, machine)

    return kind(arms, images, cfg, mean, std, machine=machine_of(run), on_smaller=on_smaller, on_piece=on_piece)
