"""A parameter as text, both ways: what a person writes behind `--set NAME=`, and what a command that can be pasted says."""

from __future__ import annotations

import json
import re
import typing
from typing import Any

from .checking import number
from .config import FIELDS, Config


def spoken(name: str, text: str) -> Any:
    """The value that a person means by `text` for parameter `name`: YAML, but a parameter that holds text takes it as it
    stands where YAML would see something else in it. Raises ValueError for text that is no value."""
    import yaml

    if not text:
        return ""
    of = _holds(name)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):  # ValueError: a date that is none
        if of is not str or text[:1] in "\"'":
            raise ValueError(f"--set {name}: {text[:200]!r} is no value") from None
        return text
    if of is str:
        return value if isinstance(value, str) and text[:1] in "\"'" else text
    return value if of == tuple[str, ...] else number(value, 1)


def quoted(name: str, value: Any) -> str:
    """Text that `spoken` reads back as `value`."""
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w./~:-]+", value, re.ASCII) else _quoted(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_quoted(v) if isinstance(v, str) else json.dumps(v) for v in value) + "]"
    return json.dumps(value)


def _quoted(text: str) -> str:
    """A YAML scalar between double quotes, in ASCII and on one line: JSON would do, but for characters above U+FFFF."""
    import yaml

    return yaml.safe_dump(text, default_style='"', allow_unicode=False, width=10**9).strip()


def _holds(name: str) -> Any:
    return typing.get_type_hints(Config)[name] if name in FIELDS else None
