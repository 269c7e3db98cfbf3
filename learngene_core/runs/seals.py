"""Whether the saved tasks of a collective are whole, before anything is loaded from them.

A task's folder, `collective/task_NN`, is sealed once its files are written: `seal.json` beside them holds their sizes and
hashes. A folder whose files are not what its seal says is never loaded; training goes back to the last one before it. No torch:
`learngene info` and the explorer look at runs without it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import StudyError, read_json, say, write_json
from ..record import load_arrays
from .bookkeeping import facts_of, state_of

SEAL = "seal.json"
LAST = "about.json"  # of a task's files the last that is written
FILES = ("model.safetensors", "record.npz", LAST)
ABOUT = {"stage_hash": str, "shape": dict} | dict.fromkeys(("class_names", "mean", "std", "history", "record"), list)


def task_folder(folder: Path, number: int) -> Path:
    """The folder of a task (from 1) in `collective/`."""
    return folder / f"task_{number:02d}"


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
    with safe_open(path, "np") as file:  # its parser compares every offset with the length of the file
        file.keys()


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
