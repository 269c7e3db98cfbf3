"""Score tables of criteria: one row per layer beside its null, and the block such a table chooses; pure functions, no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A rule that scores layers; its direction is fixed before any result.

    compute: what is looked at, and options by keyword -> scores; inherit: "low" (inherit where it is low) or "high";
    source: where it comes from; predicts: which layers it would inherit, and why; cost: what it takes beyond training.
    """

    name: str
    compute: Callable[..., Any]
    inherit: str
    source: str
    predicts: str
    cost: str

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that it knows."""
        parameters = inspect.signature(self.compute).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def check(self, options: dict[str, Any]) -> None:
        """Raise ValueError for an option that it does not know."""
        for name in options:
            if name not in self.options:
                known = f"it knows {' and '.join(self.options)}" if self.options else "it has none"
                raise ValueError(f"criterion {self.name!r} knows no option {name!r}; {known}")

    def table(self, layers: Sequence[str], values: np.ndarray, null: np.ndarray) -> pd.DataFrame:
        """Its score table from values (l,) and those of n untrained networks (n, l): criterion, layer, score, null, null_sd,
        z = (score - null) / null_sd, inherit, cost. z is NaN where the null does not vary, or has fewer than two networks."""
        with quiet():
            mean, sd = null.mean(0), null.std(0, ddof=1)
            z = np.where(sd > 0, (values - mean) / sd, np.nan)
        return pd.DataFrame(
            {
                "criterion": self.name,
                "layer": list(layers),
                "score": values,
                "null": mean,
                "null_sd": sd,
                "z": z,
                "inherit": self.inherit,
                "cost": self.cost,
            }
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Where there is no value (a layer that came late, a single task) the result is not a number, without a warning."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def best_block(table: pd.DataFrame, n_blocks: int, column: str = "score") -> tuple[str, ...]:
    """The contiguous block of `n_blocks` layers with the lowest mean score (highest where the criterion says so).

    Of equal blocks the deepest is taken, as the paper would. Raises ValueError when there are fewer layers, or a score is
    not a number or the same everywhere (a criterion that cannot choose).
    """
    values = table[column].to_numpy(float)
    if not 1 <= n_blocks <= len(values):
        raise ValueError(f"n_blocks = {n_blocks}, but there are {len(values)} layers")
    if not np.isfinite(values).all():
        raise ValueError(
            f"criterion {table['criterion'].iloc[0]!r} has no value for {table['layer'][~np.isfinite(values)].iloc[0]}; "
            "set another criterion, or layers"
        )
    if np.ptp(values) == 0 and n_blocks < len(values):
        raise ValueError(
            f"criterion {table['criterion'].iloc[0]!r} is the same for every layer; it cannot choose: "
            "set another criterion, or layers"
        )
    means = np.convolve(values, np.ones(n_blocks) / n_blocks, "valid") * (
        1 if table["inherit"].iloc[0] == "low" else -1
    )
    start = len(means) - 1 - int(np.argmin((means[::-1] / np.abs(values).max()).round(12)))
    return tuple(table["layer"].iloc[start : start + n_blocks])


def choices(scores: pd.DataFrame, n_blocks: int) -> dict[str, tuple[str, ...]]:
    """Criterion -> the block it chooses, from a table of several; criteria that cannot choose are left out (stability
    over tasks needs two tasks)."""
    chosen = {}
    for name, part in scores.groupby("criterion", sort=False):
        with contextlib.suppress(ValueError):
            chosen[name] = best_block(part, n_blocks)
    return chosen
