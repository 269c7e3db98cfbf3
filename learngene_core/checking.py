"""One value of the configuration, checked: type, range, choice."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from .presets import DEFECT_NAMES

CHOICES = {
    "data": ("glyphs", "cifar100", "imagenet100", "cub200", "folder"),
    "source_draw": ("disjoint", "overlap"),
    "growth": ("zero-out", "uneven", "net2net", "none"),
    "loss": ("task-incremental", "class-incremental"),
    "schedule": ("one-cycle", "cosine", "constant"),
    "individual_schedule": ("one-cycle", "cosine", "constant"),
    "ewc_form": ("penalty", "proximal"),
    "new_columns": ("imputed", "zero"),
    "sign": ("positive", "absolute"),
    "atlas_blocks": ("coarse", "full"),
    "defects": DEFECT_NAMES,
    "ancestors": ("single_task", "fixed_width", "joint", "permuted"),
    "open_head": ("refit", "own"),
    "open_score": ("msp", "maxlogit", "energy", "openmax", "ncm", "mahalanobis", "relative_mahalanobis"),
}


# what a parameter cell may hold beside fields: the preset, the run folder, and the folders that a report reads
RUN_NAMES: dict[str, type] = {"preset": str, "out": str, "sources": list}
ONCE = ("shots", "methods", "layers", "controls", "control_ewc", "control_l2", "ancestors", "defects")


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' where a known name is close, else nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def checked(field: dataclasses.Field, kind: Any, value: Any) -> Any:
    """`value` as a field's type (`kind`: bool, int, float, str or a tuple of one of them).

    Raises ValueError that names the field for a wrong type, an unknown choice or a value out of range.
    """
    name = field.name
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, list | tuple):
            # One number is the common case `shots=20`; a string is what `papermill -p layers '[..]'` passes.
            if item is str or isinstance(value, str):
                raise ValueError(f"{name} takes a list, not {shown(value)} (with papermill: -y '{{{name}: [...]}}')")
            value = (value,)
        values = tuple(_scalar(field, item, v) for v in value)
        if name in ONCE and len(set(values)) != len(values):
            raise ValueError(f"{name} holds {shown(value)}: each value once")
        return values
    return _scalar(field, kind, value)


def _scalar(field: dataclasses.Field, kind: type, value: Any) -> Any:
    name = field.name
    if kind is float and type(value) is int:
        value = float(value)
    if kind is int and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not kind:
        hint = " (with papermill write True or False)" if kind is bool else ""
        raise ValueError(f"{name} takes {kind.__name__}, not {shown(value)} of type {type(value).__name__}{hint}")
    if kind is str and not _is_text(value):
        raise ValueError(f"{name} = {shown(ascii(value))} holds characters that no file or notebook can keep")
    if kind in (int, float):
        low, high = field.metadata["low"], field.metadata["high"]
        if not (low <= value <= high) or math.isinf(value):
            raise ValueError(f"{name} = {shown(value)} is out of range: {_range(low, high)}")
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(
            f"unknown {name} {shown(value)}{nearest(value, CHOICES[name])}; there are {', '.join(CHOICES[name])}"
        )
    return value


def shown(value: Any) -> str:
    """A value in an error, in a few hundred characters whatever it is (YAML can say very large things in one line)."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 200
    short.maxlevel, short.maxlist, short.maxtuple = 3, 12, 12
    return short.repr(value)


def _is_text(value: str) -> bool:
    """Whether a string can be stored and named everywhere: no NUL, no half of a pair (an undecodable file name has them)."""
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def check_run_names(values: Mapping[str, Any]) -> None:
    """Raise ValueError for a value of one of RUN_NAMES that has the wrong type; None stands for the default."""
    for name, kind in RUN_NAMES.items():
        value = values.get(name)
        if value is not None and not (isinstance(value, kind) and all(isinstance(v, str) for v in value)):
            raise ValueError(f"{name} takes {'a list of paths' if kind is list else 'str'}, not {value!r}")


def _range(low: float, high: float) -> str:
    return f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


def number(value: Any, depth: int = 2) -> Any:
    """YAML 1.1 reads 5e-4 as a string; a person means a number. Other values as they are, lists item by item (lists of lists are
    as deep as parameters go; YAML can say a list that holds itself)."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return [number(v, depth - 1) for v in value] if isinstance(value, list) and depth else value
