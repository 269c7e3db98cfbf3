"""The collective on the disk: its state after every task in `collective/task_NN`, so that a stop costs one task at most.

A folder is sealed once its files are written: `seal.json` beside them holds their sizes and hashes. A folder whose files are not
what its seal says is never loaded; training goes back to the last one before it. Files from elsewhere are believed in nothing
before it is checked: tensors are read by safetensors' own parser, arrays without pickle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..collective import Collective, State
from ..errors import StudyError, atomic, read_json, say, write_json
from ..growth import Belongings
from ..network import ConvNet
from ..record import Record, load_arrays
from .run import Run, facts_of, state_of

SEAL = "seal.json"
LAST = "about.json"  # of a task's files the last that is written
FILES = ("model.safetensors", "record.npz", LAST)
ABOUT = {"stage_hash": str, "shape": dict} | dict.fromkeys(("class_names", "mean", "std", "history", "record"), list)
GROUPS = ("model", "initial", "fisher", "momentum", "gene_fisher")


# saving and resuming --------------------------------------------------------------------------------------------------
def save_task(folder: Path, state: State, stage_hash: str, mean: Tensor, std: Tensor) -> None:
    """Write a finished task: the network and what belongs to it, its record, `about.json`, and at last the seal."""
    history, entries = ([row for row in part if row["task"] == state.done] for part in (state.history, state.entries))
    unseal(folder)
    save_state(folder, state.model, state.owned.groups())
    with atomic(folder / "record.npz") as path, open(path, "wb") as file:
        np.savez_compressed(file, **{part: np.stack([e[part] for e in entries]) for part in ("counts", "zeros")})
    about = {
        "stage_hash": stage_hash,
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


def resume(folder: Path, stage_hash: str, n_tasks: int) -> State | None:
    """The state after the last whole task in `folder` (`collective/`); None to start anew. What stands after it is deleted.

    Says what is damaged, and from where training goes on. Raises StudyError for tasks of another configuration.
    """
    done = min(whole_tasks(folder), n_tasks)
    forget_after(folder, done, stage_hash)
    if not done:
        return None
    history, entries = [], []
    for number in range(1, done + 1):
        rows, record = load_rows(task_folder(folder, number), stage_hash, number)
        history += rows
        entries += record
        if not (task_folder(folder, number) / SEAL).exists():  # killed between the last file and the seal
            seal(task_folder(folder, number))
    model, groups, about = load_state(task_folder(folder, done))
    say(f"collective: {done} of {n_tasks} source tasks found in the run folder, going on from there")
    owned = Belongings(**{k: groups[k] for k in ("initial", "fisher", "momentum")})
    return State(model, list(about["class_names"]), owned, history, entries, done)


def load_rows(folder: Path, stage_hash: str, number: int) -> tuple[list[dict], list[dict]]:
    """History rows and record entries of a finished task. Raises StudyError when it is damaged or of another configuration."""
    about = read_json(folder / LAST)
    if about["stage_hash"] != stage_hash:
        raise StudyError(
            f"{folder} was begun with another configuration; choose another --out, or start it again with --redo collective"
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


def task_folder(folder: Path, number: int) -> Path:
    """The folder of a task (from 1) in `collective/`."""
    return folder / f"task_{number:02d}"


def task_folders(run: Run) -> list[Path]:
    """Folders of the finished tasks, in order."""
    found = (run.path / "collective").glob("task_*/about.json")
    return sorted((p.parent for p in found), key=lambda p: int(p.name.removeprefix("task_")))


def task_states(run: Run) -> list[dict]:
    """`about.json` of every finished task in order: shapes, classes, history."""
    return [read_json(folder / LAST) for folder in task_folders(run)]


# whole or not ---------------------------------------------------------------------------------------------------------
def seal(folder: Path) -> None:
    """Note size and hash of every file in `folder`, atomically; the last thing that is written there."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != SEAL and not p.name.startswith("."))
    write_json(folder / SEAL, {p.name: facts_of(p) for p in files})


def unseal(folder: Path) -> None:
    """Take the seal away before a file is replaced: until the next `seal` the files have to speak for themselves."""
    (folder / SEAL).unlink(missing_ok=True)


def whole_tasks(folder: Path) -> int:
    """How many tasks, counted from the first without a gap, are whole in `folder` (`collective/` with its `task_NN/`).

    Says what is damaged, and from where training goes on instead.
    """
    n, wrong = inspected(folder)
    if wrong:
        say(
            f"{task_folder(folder, n + 1)}: {wrong}; {f'going back to task {n}' if n else 'starting from the first task'}"
        )
    return n


def inspected(folder: Path) -> tuple[int, str | None]:
    """Number of whole tasks as in `whole_tasks`, and what is wrong with the one after them; None where there is none, or
    where it was still being saved: then nothing was lost that was there."""
    n = 0
    while (task := task_folder(folder, n + 1)).is_dir():
        wrong = trouble(task)
        if wrong is not None:
            return n, wrong if (task / LAST).exists() or (task / SEAL).exists() else None
        n += 1
    return n, None


def trouble(folder: Path) -> str | None:
    """What is wrong with a saved state, in a few words; None when it is whole.

    What its seal says must hold, and its files must be what they seem: notes with every entry, whole tensors, whole arrays. A
    folder without a seal (a process was killed just before) is whole when that holds.
    """
    if not (folder / LAST).is_file():
        return f"{LAST} is missing"
    if (folder / SEAL).exists() and (broken := _broken_seal(folder)):
        return broken
    for name, check in zip(FILES, (_check_tensors, load_arrays, _check_about), strict=True):
        if not (folder / name).is_file():
            return f"{name} is missing"
        try:
            check(folder / name)
        except (OSError, ValueError, StudyError, SafetensorError):
            return f"{name} is damaged"
    return None


def _broken_seal(folder: Path) -> str | None:
    try:
        noted = read_json(folder / SEAL)
        states = {name: state_of(folder / Path(name).name, facts) for name, facts in noted.items()}
        if LAST not in states:
            raise KeyError(LAST)
    except (StudyError, AttributeError, KeyError, TypeError):
        return f"{SEAL} is damaged"
    return next((f"{name} is {state}" for name, state in states.items() if state != "whole"), None)


def _check_about(path: Path) -> None:
    about = read_json(path)
    if not isinstance(about, dict) or any(not isinstance(about.get(name), kind) for name, kind in ABOUT.items()):
        raise ValueError("not what a task notes about itself")


def _check_tensors(path: Path) -> None:
    with safe_open(path, "pt") as file:  # its parser holds every offset against the length of the file
        file.keys()


def check_shape(shape: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Before a network of this shape takes memory: none of its layers is wider than the largest of the saved `tensors` (name
    -> anything with a shape), and there are no more of them than tensors. Raises ValueError (or KeyError, TypeError)."""
    largest = max((n for tensor in tensors.values() for n in tensor.shape), default=0)
    sizes = [*shape["widths"], *shape["hidden"], shape["n_classes"]]
    if len(sizes) > len(tensors) or not all(type(n) is int and 0 < n <= largest for n in sizes):
        raise ValueError("its shape is not that of its tensors")
    if type(shape["image_size"]) is not int or not 0 < shape["image_size"] <= 4096:
        raise ValueError("its image size cannot be")


def check_origin(task: Path, stage_hash: str) -> None:
    """Raise StudyError when a task was saved by a run of another configuration. A folder that cannot say passes."""
    try:
        about = json.loads((task / LAST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(about, dict) and about.get("stage_hash") != stage_hash:
        raise StudyError(
            f"{task} was begun with another configuration; choose another --out, "
            "or start it again with --redo collective"
        )


def forget_after(folder: Path, number: int, stage_hash: str) -> None:
    """Delete the saved tasks after `number`: what is trained now must never stand beside what an earlier call left there.

    Raises StudyError, and deletes nothing, when one of them belongs to another configuration.
    """
    named = {p: p.name.removeprefix("task_") for p in folder.glob("task_*")}
    later: Sequence[Path] = [task for task, digits in named.items() if digits.isdecimal() and int(digits) > number]
    for task in later:
        check_origin(task, stage_hash)
    for task in later:
        (task / LAST).unlink(missing_ok=True)  # first what says that it is whole
        shutil.rmtree(task, ignore_errors=True)
