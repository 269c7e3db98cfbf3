"""The collective on the disk: its state after every task in `collective/task_NN`, so that a stop costs one task at most.

Whether a folder is whole is the business of `seals`. Files from elsewhere are believed in nothing before it is checked: tensors
are read by safetensors' own parser, arrays without pickle, and no network takes memory that its file does not fill.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..collective import Collective, State
from ..errors import Diverged, StudyError, atomic, read_json, say, write_json
from ..growth import Belongings
from ..learngene import check_scale, check_values
from ..network import ConvNet
from ..record import Record, load_arrays
from .run import Run
from .seals import LAST, SEAL, forget_after, seal, task_folder, unseal, whole_tasks

GROUPS = ("model", "initial", "fisher", "momentum", "gene_fisher")


def save_task(
    folder: Path, state: State, stage_hash: str, mean: Tensor, std: Tensor, inputs: Mapping[str, str] | None = None
) -> None:
    """Write a finished task: the network and what belongs to it, its record, `about.json`, and at last the seal.

    mean, std: (3,) normalisation of the images; inputs: fingerprints of what the collective is trained on.

    Raises Diverged for values that could not be read back. Batch norm can keep a loss finite while the weights explode.
    """
    history, entries = ([row for row in part if row["task"] == state.done] for part in (state.history, state.entries))
    try:
        check_values(state.model.state_dict(), "model/")
    except ValueError as error:
        raise Diverged(
            f"the collective's training diverges in source task {state.done}: {error}; "
            "lower learning_rate (or ewc_lambda) and start again"
        ) from None
    unseal(folder)
    save_state(folder, state.model, state.owned.groups())
    with atomic(folder / "record.npz") as path, open(path, "wb") as file:
        np.savez_compressed(file, **{part: np.stack([e[part] for e in entries]) for part in ("counts", "zeros")})
    about = {
        "stage_hash": stage_hash,
        "inputs": dict(inputs or {}),
        "shape": state.model.shape,
        "class_names": state.class_names,
        "mean": mean.tolist(),
        "std": std.tolist(),
        "history": history,
        "record": [{"epoch": e["epoch"], "rows": e["rows"]} for e in entries],
    }
    write_json(folder / LAST, about)
    seal(folder)


def save_state(folder: Path, model: ConvNet, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Weights and what belongs to them in `model.safetensors`, atomically."""
    tensors = {
        f"{group}/{n}": t.detach().cpu().contiguous()
        for group, named in {"model": model.state_dict(), **groups}.items()
        for n, t in named.items()
    }
    with atomic(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary)


def save_gene_fisher(folder: Path, col: Collective) -> None:
    """Add the Fisher information that a learngene takes along to the last task's file."""
    groups = load_state(folder)[1]
    unseal(folder)
    save_state(
        folder, col.model, {**{k: groups[k] for k in ("initial", "fisher", "momentum")}, "gene_fisher": col.fisher}
    )
    seal(folder)


def resume(folder: Path, stage_hash: str, n_tasks: int, inputs: Mapping[str, str] | None = None) -> State | None:
    """The state after the last whole task in `folder` (`collective/`); None to start anew. What stands after it is deleted.

    Says what is damaged, and from where training goes on. Raises StudyError for tasks of another configuration, or trained on
    other `inputs` than these.
    """
    done = min(whole_tasks(folder), n_tasks)
    forget_after(folder, done, stage_hash)
    if not done:
        return None
    history, entries, shapes = [], [], []
    for number in range(1, done + 1):
        rows, record = load_rows(task_folder(folder, number), stage_hash, number, inputs)
        history += rows
        entries += record
        shapes.append(read_json(task_folder(folder, number) / LAST)["shape"])
        if not (task_folder(folder, number) / SEAL).exists():  # killed between the last file and the seal
            seal(task_folder(folder, number))
    model, groups, about = load_state(task_folder(folder, done))
    say(f"collective: {done} of {n_tasks} source tasks found in the run folder, going on from there")
    owned = Belongings(**{k: groups[k] for k in ("initial", "fisher", "momentum")})
    return State(model, list(about["class_names"]), owned, history, entries, shapes, done)


def load_rows(
    folder: Path, stage_hash: str, number: int, inputs: Mapping[str, str] | None = None
) -> tuple[list[dict], list[dict]]:
    """History rows and record entries of a finished task. Raises StudyError when it is damaged, of another configuration, or
    trained on other `inputs`."""
    about = read_json(folder / LAST)
    if about["stage_hash"] != stage_hash:
        raise StudyError(
            f"{folder} was begun with another configuration; choose another --out, or start it again with --redo collective"
        )
    for name, mine in (inputs or {}).items():
        if about.get("inputs", {}).get(name, mine) != mine:
            raise StudyError(
                f"{folder} was trained on another {name} than the one given; choose another --out, "
                "or start it again with --redo collective"
            )
    try:
        arrays = load_arrays(folder / "record.npz")
        counts, zeros = arrays["counts"], arrays["zeros"]
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(
            f"{folder / 'record.npz'} is missing or damaged ({error}); rebuild it with --redo collective"
        ) from None
    entries = [{"task": number, **e, "counts": counts[i], "zeros": zeros[i]} for i, e in enumerate(about["record"])]
    return about["history"], entries


def load_state(folder: Path) -> tuple[ConvNet, dict[str, dict[str, Tensor]], dict]:
    """The network of a `collective/task_NN` folder, its other tensor groups, and `about.json`.

    Raises StudyError when a file is missing or damaged.
    """
    about = read_json(folder / LAST)
    groups: dict[str, dict[str, Tensor]] = {g: {} for g in GROUPS}
    try:
        for name, tensor in load_file(folder / "model.safetensors").items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        for group, tensors in groups.items():
            check_values(tensors, f"{group}/")
        check_scale(about["mean"], about["std"])
        check_shape(about["shape"], groups["model"])
        model = ConvNet.from_shape(about["shape"])
        model.load_state_dict(groups["model"])
        model.normalisation = tuple(about["mean"]), tuple(about["std"])
    except (SafetensorError, OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise StudyError(f"the model in {folder} is damaged ({error}); rebuild it with --redo collective") from None
    return model, groups, about


def load_collective(run: Run) -> Collective:
    """The finished collective of a run folder. (`load_state` gives the network after an earlier task.)

    Raises StudyError when it is missing, unfinished or damaged.
    """
    folders = task_folders(run)
    if not folders or not run.done("collective"):
        raise StudyError(f"{run.path} holds no finished collective; run `learngene collective` first")
    model, groups, about = load_state(folders[-1])
    scale = torch.tensor(about["mean"]), torch.tensor(about["std"])
    return Collective(
        model,
        tuple(about["class_names"]),
        *scale,
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
    return [read_json(folder / LAST) for folder in task_folders(run)]


def check_shape(shape: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Before a network of this shape takes memory: none of its layers is wider than the largest of the saved `tensors` (name
    -> anything with a shape), and there are no more of them than tensors. Raises ValueError (or KeyError, TypeError)."""
    largest = max((n for tensor in tensors.values() for n in tensor.shape), default=0)
    sizes = [*shape["widths"], *shape["hidden"], shape["n_classes"]]
    if len(sizes) > len(tensors) or not all(type(n) is int and 0 < n <= largest for n in sizes):
        raise ValueError("its shape is not that of its tensors")
    if type(shape["image_size"]) is not int or not 0 < shape["image_size"] <= 4096:
        raise ValueError("its image size cannot be")
