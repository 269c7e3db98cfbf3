"""The collective model as data: what a trained one holds, and its state after every task in `collective/task_NN`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .files import StudyError, atomic, read_json, write_json
from .network import ConvNet
from .record import Record, load_counts
from .runs import Run
from .savepoints import check_shape


@dataclasses.dataclass
class Collective:
    """A collective model after `n_tasks` tasks.

    class_names: the classes of the head's outputs, in order of appearance; initial: every parameter's value at birth,
    carried through widening; fisher: diagonal Fisher over the classes of all tasks so far; history: rows per epoch (phase
    "train") and per pair of tasks (phase "test": held-out accuracy in percent on `on_task` after `task`).
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


def save_state(folder: Path, model: ConvNet, groups: dict[str, dict[str, Tensor]]) -> None:
    """Weights and what belongs to them in `model.safetensors`, atomically."""
    from safetensors.torch import save_file

    tensors = {
        f"{group}/{n}": t.detach().cpu().contiguous()
        for group, named in {"model": model.state_dict(), **groups}.items()
        for n, t in named.items()
    }
    with atomic(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary)


def save_task(
    folder: Path,
    stage_hash: str,
    model: ConvNet,
    groups: dict[str, dict[str, Tensor]],
    about: dict,
    entries: Sequence[dict],
) -> None:
    """Write a finished task: the network and what belongs to it, its record (entries, one per epoch), and `about.json` with
    `about` in it, which comes last: a folder that has one is whole."""
    save_state(folder, model, groups)
    with atomic(folder / "record.npz") as path, open(path, "wb") as file:
        np.savez_compressed(file, **{part: np.stack([e[part] for e in entries]) for part in ("counts", "zeros")})
    record = [{"epoch": e["epoch"], "rows": e["rows"]} for e in entries]
    write_json(folder / "about.json", {"stage_hash": stage_hash, "shape": model.shape, **about, "record": record})


def load_rows(folder: Path, stage_hash: str, number: int) -> tuple[list[dict], list[dict]]:
    """History rows and record entries of a finished task. Raises StudyError when it is damaged or of another configuration."""
    about = read_json(folder / "about.json")
    if about["stage_hash"] != stage_hash:
        raise StudyError(
            f"{folder} was begun with another configuration; choose another --out, or start it again with --redo collective"
        )
    counts, zeros = load_counts(folder)
    entries = [{"task": number, **e, "counts": counts[i], "zeros": zeros[i]} for i, e in enumerate(about["record"])]
    return about["history"], entries


def load_state(folder: Path) -> tuple[ConvNet, dict[str, dict[str, Tensor]], dict]:
    """The network of a `collective/task_NN` folder, its other tensor groups, and `about.json`.

    Raises StudyError when a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    about = read_json(folder / "about.json")
    groups: dict[str, dict[str, Tensor]] = {g: {} for g in ("model", "initial", "fisher", "momentum", "gene_fisher")}
    try:
        for name, tensor in load_file(folder / "model.safetensors").items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        check_shape(about["shape"], groups["model"])
        model = ConvNet.from_shape(about["shape"])
        model.load_state_dict(groups["model"])
        model.normalisation = tuple(about["mean"]), tuple(about["std"])
    except (SafetensorError, OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise StudyError(f"the model in {folder} is damaged ({error}); rebuild it with --redo collective") from None
    return model, groups, about


def load_collective(run: Run) -> Collective:
    """The finished collective of a run folder. (`load_state` gives the network after an earlier task.)

    Raises StudyError when it is missing, unfinished or damaged.
    """
    states = task_folders(run)
    if not states or not run.done("collective"):
        raise StudyError(f"{run.path} holds no finished collective; run `learngene collective` first")
    model, groups, about = load_state(states[-1])
    return Collective(
        model,
        tuple(about["class_names"]),
        torch.tensor(about["mean"]),
        torch.tensor(about["std"]),
        groups["initial"],
        groups["gene_fisher"],
        run.read_table("history.csv"),
        Record.load(run.path),
        run.cfg.stage_hash("collective"),
    )


def task_folders(run: Run) -> list[Path]:
    """Folders of the finished tasks, in order."""
    found = (run.path / "collective").glob("task_*/about.json")
    return sorted((p.parent for p in found), key=lambda p: int(p.name.removeprefix("task_")))


def task_states(run: Run) -> list[dict]:
    """`about.json` of every finished task in order: shapes, classes, history."""
    return [read_json(folder / "about.json") for folder in task_folders(run)]
