"""The published class divisions that come with the package, as JSON: names, source, groups, super-classes."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

from .files import StudyError, read_json

FOLDER = Path(__file__).with_name("splits")
GROUPS = ("base", "open_world", "novel")


def packaged(data: str) -> dict[str, Any]:
    """The manifest of a data source; {} for one that has none."""
    path = FOLDER / f"{data}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def named(division: str) -> dict[str, Any]:
    """The manifest whose standard name a division's name begins with; {} for divisions of other origin."""
    known = (packaged(path.stem) for path in sorted(FOLDER.glob("*.json")))
    return next((m for m in known if division.startswith(m["standard_name"])), {})


def read_division(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], str]:
    """Base, open-world and novel class names of a division file, and the division's name.

    Names are brought to Unicode's NFC, as those of class folders are. Raises StudyError for a file that is no division.
    """
    values = read_json(path)
    try:
        groups = [tuple(values[k]) for k in GROUPS]
    except (KeyError, TypeError):
        raise StudyError(f"{path} is no division: it needs the lists base, open_world and novel") from None
    if not all(isinstance(name, str) for group in groups for name in group):
        raise StudyError(f"{path} is no division: class names are strings")
    base, open_world, novel = (tuple(unicodedata.normalize("NFC", n) for n in group) for group in groups)
    return base, open_world, novel, str(values.get("standard_name") or values.get("name") or path.name)
