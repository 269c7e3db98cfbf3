"""Tables on their way into a figure: are the columns there, and which rows are meant? Names of blocks and numbers in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from ..errors import StudyError

Block = tuple[int, int]
"""A block of neighbouring layers: the numbers of its first and last, from 1."""


def checked(table: pd.DataFrame, columns: Iterable[str], name: str) -> pd.DataFrame:
    """`table`, if it has rows and these columns. Raises StudyError that says what to run."""
    if table.empty:
        raise StudyError(f"{name} has no rows to draw; run `learngene atlas` first, or choose rows that it holds")
    if missing := [column for column in columns if column not in table]:
        raise StudyError(f"{name} lacks the column(s) {', '.join(missing)}; build it again with `learngene atlas`")
    return table


def with_shots(table: pd.DataFrame, shots: int | None) -> pd.DataFrame:
    """The rows of one number of shots. Raises ValueError where it must be named, or is not there."""
    if "shots" not in table and shots is None:
        return table
    there = sorted(table["shots"].unique()) if "shots" in table else []
    if shots is None and len(there) == 1:
        shots = there[0]
    if shots not in there:
        raise ValueError(f"name one number of shots, not {shots}; there are {', '.join(map(str, there)) or 'none'}")
    return table[table["shots"] == shots].reset_index(drop=True)


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, a true minus and no negative zero: "+1.2", "−0.4", "+0.0"."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def block_name(block: Sequence[int]) -> str:
    """A block in numbers: "11–13", or "4" for a single one."""
    first, last = (int(b) for b in block)
    return str(first) if first == last else f"{first}\N{EN DASH}{last}"


def estimate_text(middle: float, low: float, high: float, digits: int) -> str:
    """ "+1.8  [−0.2, +3.3]"; without limits the estimate alone."""
    if np.isnan(low):
        return signed(middle, digits)
    return f"{signed(middle, digits)}  [{signed(low, digits)}, {signed(high, digits)}]"
