"""The manifest of a run folder: what it must look like, and in what the settings of two runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import FIELDS, STAGES
from .files import StudyError, read_json


def changed(mine: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Names of the settings that differ."""
    return [n for n in sorted({*mine, *there}) if mine.get(n) != there.get(n)]


def only_extent(names: list[str]) -> bool:
    """Whether settings that differ only say how much of a stage is wanted."""
    return bool(names) and all(n in FIELDS and FIELDS[n].metadata["kind"] == "extent" for n in names)


def checked_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """The manifest in `path`. Raises StudyError when it is not what this version writes."""
    try:
        manifest = read_json(path)
        good = all(
            stage in STAGES
            and isinstance(entry["hash"], str)
            and isinstance(entry["fields"], dict)
            and all(
                isinstance(f["bytes"], int)
                and isinstance(f["sha256"], str)
                and not Path(n).is_absolute()
                and ".." not in Path(n).parts
                for n, f in entry["files"].items()
            )
            for stage, entry in manifest.items()
        )
    except (AttributeError, KeyError, TypeError, StudyError):
        good = False
    if not good:
        raise StudyError(
            f"{path} is damaged: it is no manifest of this version; restore the file, or delete it and repeat the "
            "command: saved tasks of the collective are taken up, the rest is computed again"
        )
    return manifest
