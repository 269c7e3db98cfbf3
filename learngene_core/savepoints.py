"""Folders of saved states that can tell for themselves whether they are whole, and the newest one that is.

A folder is sealed once its files are written: `seal.json` beside them holds their sizes and hashes. A folder whose files
are not what its seal says is never loaded; the walk over the tasks goes back to the last one before it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import StudyError, file_hash, read_json, say, write_json
from .headers import checked_arrays, checked_header

SEAL = "seal.json"
LAST = "about.json"  # of a task's files the last that is written
ABOUT = {"stage_hash": str, "shape": dict} | dict.fromkeys(("class_names", "mean", "std", "history", "record"), list)


def facts_of(path: Path) -> dict[str, int | str]:
    """Size and hash of a file, as manifests and seals note them. Raises OSError when it cannot be read."""
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def state_of(path: Path, facts: dict[str, int | str]) -> str:
    """A file held against what was noted of it: "whole", "missing" or "damaged"."""
    if not path.is_file():
        return "missing"
    same = path.stat().st_size == facts["bytes"] and file_hash(path) == facts["sha256"]
    return "whole" if same else "damaged"


def seal(folder: Path) -> None:
    """Note size and hash of every file in `folder`, atomically; the last thing that is written there."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != SEAL and not p.name.startswith("."))
    write_json(folder / SEAL, {p.name: facts_of(p) for p in files})


def ensure_sealed(folder: Path) -> None:
    """Seal a folder that was found whole without a seal: its process was killed between the last file and this one."""
    if not (folder / SEAL).exists():
        seal(folder)


def unseal(folder: Path) -> None:
    """Take the seal away before a file is replaced: until the next `seal` the files have to speak for themselves."""
    (folder / SEAL).unlink(missing_ok=True)


def trouble(folder: Path) -> str | None:
    """What is wrong with a saved state, in a few words; None when it is whole.

    What its seal says must hold, and its files must be what they seem: notes with every entry, a safetensors file as long as
    its header says, an archive of arrays. A folder without a seal (a process was killed just before, or an earlier version
    wrote it) is whole when that holds.
    """
    if not (folder / LAST).is_file():
        return f"{LAST} is missing"
    if (folder / SEAL).exists() and (broken := _broken_seal(folder)):
        return broken
    for name, check in ((LAST, _check_about), ("model.safetensors", checked_header), ("record.npz", checked_arrays)):
        if not (folder / name).is_file():
            return f"{name} is missing"
        try:
            check(folder / name)
        except (OSError, ValueError, StudyError):
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


def check_shape(shape: dict[str, Any], tensors: Mapping[str, Any]) -> None:
    """Before a network of this shape takes memory: none of its layers is wider than the largest of the saved `tensors` (name
    -> anything with a shape), and there are no more of them than tensors. Raises ValueError (or KeyError, TypeError)."""
    largest = max((n for tensor in tensors.values() for n in tensor.shape), default=0)
    sizes = [*shape["widths"], *shape["hidden"], shape["n_classes"]]
    if len(sizes) > len(tensors) or not all(type(n) is int and 0 < n <= largest for n in sizes):
        raise ValueError("its shape is not that of its tensors")
    if type(shape["image_size"]) is not int or not 0 < shape["image_size"] <= 4096:
        raise ValueError("its image size cannot be")


def whole_tasks(folder: Path) -> int:
    """How many tasks, counted from the first without a gap, are whole in `folder` (`collective/` with its `task_NN/`).

    Says what is damaged, and from where the walk goes on instead.
    """
    n, wrong = inspected(folder)
    if wrong:
        say(
            f"{task_folder(folder, n + 1)}: {wrong}; {f'going back to task {n}' if n else 'starting from the first task'}"
        )
    return n


def inspected(folder: Path) -> tuple[int, str | None]:
    """Number of whole tasks as in `whole_tasks`, and what is wrong with the one behind them; None where there is none, or
    where it was still being saved: then nothing was lost that was there."""
    n = 0
    while (task := task_folder(folder, n + 1)).is_dir():
        wrong = trouble(task)
        if wrong is not None:
            return n, wrong if (task / LAST).exists() or (task / SEAL).exists() else None
        n += 1
    return n, None


def task_folder(folder: Path, number: int) -> Path:
    """The folder of a task (from 1) in `collective/`."""
    return folder / f"task_{number:02d}"


def check_origin(task: Path, stage_hash: str) -> None:
    """Raise StudyError when a task was saved by a run of another configuration. A folder that cannot say passes."""
    try:
        about = read_json(task / LAST)
    except (StudyError, OSError):
        return
    if isinstance(about, dict) and about.get("stage_hash") != stage_hash:
        raise StudyError(
            f"{task} was begun with another configuration; choose another --out, "
            "or start it again with --redo collective"
        )


def forget_after(folder: Path, number: int, stage_hash: str) -> None:
    """Delete the saved tasks behind `number`: what is trained now must never stand beside what an earlier walk left there.

    The next task stays where it was never finished: the states within it go on from `number`. Raises StudyError, and deletes
    nothing, when one of them belongs to another configuration.
    """
    named = {p: p.name.removeprefix("task_") for p in folder.glob("task_*")}
    behind = [task for task, digits in named.items() if digits.isdecimal() and int(digits) > number]
    ended = [task for task in behind if (task / LAST).exists() or (task / SEAL).exists()]
    behind = [task for task in behind if task in ended or int(named[task]) > number + 1]
    for task in behind:
        check_origin(task, stage_hash)
    for task in behind:
        (task / LAST).unlink(missing_ok=True)  # first what says that it is whole
        shutil.rmtree(task, ignore_errors=True)
