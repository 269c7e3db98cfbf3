"""What a run folder says about itself, read with distrust: `config.json`, `manifest.json`, `machine.json`.

A run folder may come from elsewhere, or from a disk that was full. Each reader here returns values of the right types, or
raises one line that names the file and the way out. No torch: figures and `learngene info` read runs without it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..config import CHOICES, FIELDS, STAGES, Config, Machine
from ..errors import StudyError, file_hash, read_json

ABOUT_MACHINE = ("torch", "system", "processors")  # of machine.json: for people, not read again
MOST_THREADS = 1024  # of one process; torch dies of very many, and no machine has more


def configuration(path: Path) -> Config:
    """What config.json of the run folder `path` asks for. Raises StudyError when it is no run folder, or of another version."""
    file = path / "config.json"
    if not file.is_file():
        raise StudyError(f"{path} is no run folder (it has no config.json)")
    try:
        return Config.from_dict(read_json(file))
    except (StudyError, ValueError, TypeError, AttributeError) as error:
        reason = "" if isinstance(error, StudyError) else f" ({error})"
        raise StudyError(
            f"{file} is damaged or of another version{reason}; the command that made this run, called again, writes it anew"
        ) from None


def checked_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """The manifest in `path`: stage -> hash, fields, files (name -> bytes, sha256) and inputs (name -> fingerprint).

    Raises StudyError when it is not what this version writes.
    """
    try:
        manifest = read_json(path)
        good = all(stage in STAGES and _is_entry(entry) for stage, entry in manifest.items())
    except (AttributeError, KeyError, TypeError, StudyError):
        good = False
    if not good:
        raise StudyError(
            f"{path} is damaged: it is no manifest of this version; restore the file, or delete it and repeat the "
            "command: saved tasks of the collective are taken up, the rest is computed again"
        )
    return manifest


def _is_entry(entry: dict[str, Any]) -> bool:
    return (
        isinstance(entry["hash"], str)
        and isinstance(entry["fields"], dict)
        and isinstance(entry.get("inputs", {}), dict)
        and all(
            isinstance(facts["bytes"], int)
            and isinstance(facts["sha256"], str)
            and not Path(name).is_absolute()
            and ".." not in Path(name).parts
            for name, facts in entry["files"].items()
        )
    )


def stored_machine(path: Path) -> Machine:
    """The machine noted in a `machine.json`. Raises StudyError, with the way out, when it is damaged."""
    try:
        values = read_json(path)
        if values.pop("autocast", False):  # what an earlier version wrote instead of a precision
            values["precision"] = "bf16"
        machine = Machine(**{k: v for k, v in values.items() if k not in ABOUT_MACHINE})
        for field in dataclasses.fields(Machine):
            value = getattr(machine, field.name)
            if type(value).__name__ != field.type:
                raise TypeError(f"{field.name} is of a wrong type")
            if field.name == "precision" and value not in CHOICES["precision"]:
                raise ValueError(f"{field.name} = {value} cannot be")
            if type(value) is int and not 1 <= value <= MOST_THREADS:
                raise ValueError(f"{field.name} = {value} cannot be")
        return machine
    except (StudyError, TypeError, ValueError, AttributeError):
        raise StudyError(
            f"{path} is damaged; delete the file and repeat the command: it is written anew for this machine, "
            "and finished stages stay"
        ) from None


def changed(mine: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Names of the settings that differ."""
    return [n for n in sorted({*mine, *there}) if mine.get(n) != there.get(n)]


def only_extent(names: list[str]) -> bool:
    """Whether settings that differ only say how much of a stage is wanted."""
    return bool(names) and all(n in FIELDS and FIELDS[n].metadata["kind"] == "extent" for n in names)


def facts_of(path: Path) -> dict[str, int | str]:
    """Size and hash of a file, as manifests and seals note them. Raises OSError when it cannot be read."""
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def state_of(path: Path, facts: dict[str, int | str]) -> str:
    """A file compared with what was noted of it: "whole", "missing" or "damaged"."""
    if not path.is_file():
        return "missing"
    same = path.stat().st_size == facts["bytes"] and file_hash(path) == facts["sha256"]
    return "whole" if same else "damaged"
