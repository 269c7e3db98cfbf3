"""The collective model: trained over the task sequence, summarised, and cut into a learngene."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from .checkpoints import Collective, load_collective
from .config import Config
from .criteria import choose, score_all
from .division import Division, SourceTask
from .files import say
from .images import ImageSet
from .learngene import Learngene
from .procedure import procedure_of
from .runs import Run
from .walk import Walk


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


def train_collective(
    imgs: ImageSet, div: Division, src: list[SourceTask], cfg: Config, run: Run | None = None
) -> Collective:
    """Train the collective model over the source tasks. With a run, finished tasks are loaded and the rest computed.

    Raises StudyError when the loss stops being finite, or the run was opened for another configuration.
    """
    if run is not None:
        run.check("collective", cfg)
    if run is not None and run.done("collective"):
        say("collective: found in the run folder, loaded")
        return load_collective(run)
    walk = Walk(imgs, src, cfg, run)
    if run is None:
        return walk.finish(walk.through())
    states = [
        f"collective/task_{t.number:02d}/{n}" for t in src for n in ("model.safetensors", "record.npz", "about.json")
    ]
    files = ["history.csv", "gradients.csv", "histograms.npz", *states]
    with run.computing("collective", files):
        col = walk.finish(walk.through())
        run.write_table("history.csv", col.history)
        col.record.save(run.path)
    say(f"collective: trained on {len(src)} source tasks and saved")
    return col


def cut_learngene(
    col: Collective, cfg: Config, run: Run | None = None, *, layers: tuple[str, ...] | None = None
) -> Learngene:
    """Score the layers, choose the block (`layers`, `cfg.layers`, or `cfg.criterion` and `cfg.n_blocks`) and cut it out.

    With a run, `scores.csv` and `learngene.safetensors` are written, or loaded when they are there.
    Raises StudyError for layers that are unknown or no block, and for a criterion that cannot choose.
    """
    if run is not None:
        run.check("criteria", cfg)
    if run is not None and run.done("criteria"):
        say("criteria: found in the run folder, loaded")
        return Learngene.load(run.path / "learngene.safetensors")
    layers = choose(col.record, procedure_of(cfg).choice(cfg)) if layers is None else layers
    gene = Learngene.from_model(
        col.model,
        layers,
        mean=col.mean.tolist(),
        std=col.std.tolist(),
        fisher=col.fisher,
        **gene_notes(cfg),
    )
    if run is not None:
        with run.computing("criteria", ["scores.csv", "learngene.safetensors"]):
            run.write_table("scores.csv", score_all(col.record, cfg))
            gene.save(run.path / "learngene.safetensors")
        say(f"criteria: learngene {layers[0]} to {layers[-1]} cut and saved")
    return gene


def gene_notes(cfg: Config) -> dict[str, Any]:
    """What a learngene's file says of where it comes from: data, hashes of division and choice, and what chose it."""
    choice = procedure_of(cfg).choice(cfg)
    by = (
        {"chosen_by": "hand"}
        if cfg.layers
        else {"chosen_by": choice.criterion, "threshold": choice.threshold, "sign": choice.sign}
    )
    about = {"data": cfg.data, "division_hash": cfg.stage_hash("division"), "stage_hash": cfg.stage_hash("criteria")}
    return {**about, **by}
