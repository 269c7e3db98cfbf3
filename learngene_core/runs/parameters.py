"""A parameter as text, both ways: what a person writes (behind `--set NAME=`, in a grid) and what a command to paste says."""

from __future__ import annotations

import functools
import json
import re
import typing
from typing import Any

from ..config import FIELDS, Config


def number(value: Any, depth: int = 2) -> Any:
    """YAML 1.1 reads 5e-4 as a string; a person means a number. Other values as they are, lists item by item (lists of lists are
    as deep as parameters go; YAML can say a list that holds itself)."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return [number(v, depth - 1) for v in value] if isinstance(value, list) and depth else value


@functools.cache
def yaml_loader() -> type:
    """PyYAML's safe loader with the numbers of YAML 1.2, which are those that people mean.

    In YAML 1.1, which PyYAML reads, 010 is eight, 1:30 is ninety and 5e-4 is text. Here they are ten, text (which no number's
    field takes) and 0.0005; a date is text too.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Numbers as people mean them."""

    kinds = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp")}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in known if tag not in kinds]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    whole, real = r"[-+]?(0x[0-9a-fA-F]+|[0-9][0-9_]*)$", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(whole), [*"-+0123456789"])
    named = r"[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"{real}|{named}"), [*"-+0123456789."])

    def as_int(loader: Loader, node: yaml.ScalarNode) -> int:
        text = node.value.replace("_", "")
        return int(text, 16 if "x" in text else 10)

    Loader.add_constructor("tag:yaml.org,2002:int", as_int)
    return Loader


def read_yaml(text: str) -> Any:
    """The value of a YAML text, numbers as people mean them. Raises ValueError for text that is no YAML (its error names the
    line), and RecursionError for one that is nested too deeply."""
    import yaml

    try:
        return yaml.load(text, yaml_loader())  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def spoken(name: str, text: str) -> Any:
    """The value that a person means by `text` for parameter `name`: YAML, but a parameter that holds text takes it as it
    stands where YAML would see something else in it. Raises ValueError for text that is no value."""
    if not text:
        return ""
    of = _holds(name)
    try:
        value = read_yaml(text)
    except (RecursionError, ValueError):
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
