"""What the check cells of the notebooks ask a student's answers with."""

from __future__ import annotations

from typing import Any

import numpy as np


def answered(value: Any, name: str, shape: tuple[int, ...] | None = None) -> Any:
    """What a student put in place of the three dots; for the check cells of the notebooks.

    shape: where numbers are wanted, as many as this; they come back as an array of floats. Raises AssertionError, in words for
    the student, for three dots left as they are, for what is no number, and for another shape.
    """
    missing = f"`{name}` is still missing: put your answer in place of the three dots in the cell above"
    assert value is not ... and value is not None, missing + ("; a function returns it" if value is None else "")
    if shape is None:
        return value
    try:
        numbers = np.asarray(value, float)
    except (TypeError, ValueError):
        raise AssertionError(f"`{name}` should hold numbers, but it is {type(value).__name__} {value!r:.60}") from None
    wanted = f"an array of shape {shape}" if shape else "a single number"
    assert numbers.shape == shape, f"`{name}` should be {wanted}, but its shape is {numbers.shape}"
    return numbers
