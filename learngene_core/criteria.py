"""Per-layer criteria over the gradient record, each beside its null; pure functions, no torch.

A criterion says which layers to inherit; its direction ("low": inherit where it is low) is fixed here, before any result.
Its null is the same statistic on untrained networks with random labels: what depth and width alone would give. For the two
stability criteria it is only an upper bound: the null sees few batches per task, so batch noise inflates its variation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .config import Config
from .files import StudyError
from .record import EDGES, Record, edge_index

Profile = tuple[np.ndarray, np.ndarray]
"""A quantity per task and layer (t, l), averaged over the epochs of a task, and for untrained networks (n, t', l)."""


@dataclasses.dataclass(frozen=True)
class Criterion:
    """compute(record, **options) -> (score (l,), null (n, l)); inherit: "low" or "high"."""

    name: str
    compute: Callable[..., Profile]
    inherit: str
    source: str
    predicts: str


CRITERIA: dict[str, Criterion] = {}


def criterion(name: str, *, inherit: str, source: str, predicts: str) -> Callable:
    """Register a criterion under a name; it becomes available to `score`, the configuration and the notebooks."""

    def register(compute: Callable[..., Profile]) -> Callable[..., Profile]:
        CRITERIA[name] = Criterion(name, compute, inherit, source, predicts)
        return compute

    return register


def profile(record: Record, quantity: str = "fraction", *, threshold: float = 5e-10, sign: str = "positive") -> Profile:
    """The task profile G (t, l), a mean over the epochs of each task, and its null (n, t', l).

    quantity: "fraction" of entries above the edge nearest to `threshold` (sign: "positive" as released, or "absolute"),
    or a column of gradients.csv (norm, rms, norm_times_weight, weight_norm, relative_norm).
    Raises ValueError for an unknown quantity or a threshold out of range.
    """
    if quantity == "fraction":
        rows, null = record.fraction(threshold, sign), record.null_fraction(threshold, sign)
    elif quantity in record.table.columns:
        rows = record.table[quantity].to_numpy().reshape(len(record.task), len(record.layers))
        null = record.null_table[quantity].to_numpy().reshape(record.null_zeros.shape)
    else:
        raise ValueError(f"unknown quantity {quantity!r}; there are fraction and the columns of gradients.csv")
    return np.stack([rows[record.task == t].mean(0) for t in np.unique(record.task)]), null


def _over_tasks(per_task: Profile, reduce: Callable[[np.ndarray], np.ndarray]) -> Profile:
    """Apply a statistic over tasks, (..., t, l) -> (..., l), to a profile and its null alike."""
    values, null = per_task
    return reduce(values), reduce(null)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A layer that was inserted late has no value in early tasks: not a number, without a warning."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _mean(g: np.ndarray) -> np.ndarray:
    with _quiet():
        return np.nanmean(g, -2)


def _variation(g: np.ndarray) -> np.ndarray:
    """Coefficient of variation: standard deviation over tasks, relative to the mean."""
    if g.shape[-2] < 2:
        return np.full(g[..., 0, :].shape, np.nan)
    with _quiet():
        return np.nanstd(g, -2, ddof=1) / np.nanmean(g, -2)


def _total_variation(g: np.ndarray) -> np.ndarray:
    """Mean absolute change from one task to the next."""
    if g.shape[-2] < 2:
        return np.full(g[..., 0, :].shape, np.nan)
    with _quiet():
        return np.nanmean(np.abs(np.diff(g, axis=-2)), -2)


@criterion(
    "released",
    inherit="low",
    source="Wang et al. 2022, released code",
    predicts="the deepest blocks: few entries of their gradients exceed the threshold",
)
def released(record: Record, *, threshold: float = 5e-10, sign: str = "positive") -> Profile:
    """Share of weight-gradient entries above the threshold, averaged over mini-batches, epochs and tasks."""
    return _over_tasks(profile(record, threshold=threshold, sign=sign), _mean)


@criterion(
    "released_cv",
    inherit="low",
    source="this study: stability over tasks, as the paper's appendix argues it",
    predicts="blocks whose released count changes least from task to task, relative to its size",
)
def released_cv(record: Record, *, threshold: float = 5e-10, sign: str = "positive") -> Profile:
    """Coefficient of variation of the released count over tasks."""
    return _over_tasks(profile(record, threshold=threshold, sign=sign), _variation)


@criterion(
    "released_tv",
    inherit="low",
    source="this study: stability over tasks, as the paper's appendix argues it",
    predicts="blocks whose released count changes least from one task to the next, in absolute terms",
)
def released_tv(record: Record, *, threshold: float = 5e-10, sign: str = "positive") -> Profile:
    """Total variation of the released count over the task sequence."""
    return _over_tasks(profile(record, threshold=threshold, sign=sign), _total_variation)


@criterion(
    "relative_norm",
    inherit="low",
    source="Lee et al. 2023 (arXiv 2210.11466), RGN; there on target data, here over the source tasks",
    predicts="blocks that new tasks hardly pull on: gradient norm over weight norm; not invariant under batch norm",
)
def relative_norm(record: Record, **_: Any) -> Profile:
    """Gradient norm divided by weight norm."""
    return _over_tasks(profile(record, "relative_norm"), _mean)


@criterion(
    "scaled_norm",
    inherit="low",
    source="this study: unchanged when weights before a batch norm are rescaled",
    predicts="as relative_norm, without the arbitrary scale of weights before batch norm",
)
def scaled_norm(record: Record, **_: Any) -> Profile:
    """Gradient norm times weight norm."""
    return _over_tasks(profile(record, "norm_times_weight"), _mean)


def score(source: Any, name: str, **options: Any) -> pd.DataFrame:
    """Score table of one criterion: layer, score, null, null_sd, z = (score - null) / null_sd, inherit.

    source: a `Collective`, or anything with a `.record`, or a `Record`. Options go to the criterion (threshold, sign);
    a threshold is moved to the nearest edge of the record, which the table names.

    Raises ValueError for an unknown criterion or an option it does not know.
    """
    if name not in CRITERIA:
        raise ValueError(f"unknown criterion {name!r}; there are {', '.join(CRITERIA)}")
    strange = set(options) - {"threshold", "sign"}
    if strange:
        raise ValueError(f"unknown option {sorted(strange)[0]!r} of a criterion; there are threshold and sign")
    record: Record = getattr(source, "record", source)
    values, null = CRITERIA[name].compute(record, **options)
    mean, sd = null.mean(0), null.std(0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(sd > 0, (values - mean) / sd, np.nan)
    table = pd.DataFrame(
        {
            "criterion": name,
            "layer": record.layers,
            "score": values,
            "null": mean,
            "null_sd": sd,
            "z": z,
            "inherit": CRITERIA[name].inherit,
        }
    )
    if "threshold" in options:
        table["threshold"] = float(EDGES[edge_index(options["threshold"])])
    return table


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
            f"criterion {table['criterion'].iloc[0]!r} has no value for {table['layer'][~np.isfinite(values)].iloc[0]}"
        )
    if np.ptp(values) == 0 and n_blocks < len(values):
        raise ValueError(f"criterion {table['criterion'].iloc[0]!r} is the same for every layer; it cannot choose")
    means = np.convolve(values, np.ones(n_blocks) / n_blocks, "valid") * (
        1 if table["inherit"].iloc[0] == "low" else -1
    )
    start = len(means) - 1 - int(np.argmin((means[::-1] / np.abs(values).max()).round(12)))
    return tuple(table["layer"].iloc[start : start + n_blocks])


def null_choices(record: Record, name: str, n_blocks: int, **options: Any) -> list[tuple[str, ...]]:
    """The block that a criterion would choose for each untrained network of the null, by itself."""
    table, (_, null) = score(record, name, **options), CRITERIA[name].compute(record, **options)
    return [best_block(table.assign(score=network), n_blocks) for network in null]


def choices(scores: pd.DataFrame, n_blocks: int) -> dict[str, tuple[str, ...]]:
    """Criterion -> the block it chooses, from `score_all`'s table; criteria that cannot choose are left out (stability
    over tasks needs two tasks)."""
    chosen = {}
    for name, part in scores.groupby("criterion", sort=False):
        with contextlib.suppress(ValueError):
            chosen[name] = best_block(part, n_blocks)
    return chosen


def score_all(record: Record, cfg: Config) -> pd.DataFrame:
    """Score tables of every criterion, one below the other (scores.csv)."""
    tables = []
    for name in CRITERIA:
        options = {"threshold": cfg.threshold, "sign": cfg.sign} if name.startswith("released") else {}
        tables.append(score(record, name, **options))
    return pd.concat(tables, ignore_index=True)


def check_choice(cfg: Config, names: Sequence[str]) -> None:
    """Before hours of training: does `cfg` name a known criterion, and neighbouring layers among `names`?

    Raises StudyError for an unknown criterion, an unknown layer, or layers that are not neighbours.
    """
    if cfg.criterion not in CRITERIA:
        raise StudyError(f"unknown criterion {cfg.criterion!r}; there are {', '.join(CRITERIA)}")
    unknown = [n for n in cfg.layers if n not in names]
    if unknown:
        raise StudyError(f"unknown layer {unknown[0]!r}; there are {', '.join(names)}")
    first = names.index(cfg.layers[0]) if cfg.layers else 0
    if cfg.layers != tuple(names[first : first + len(cfg.layers)]):
        raise StudyError(f"layers {', '.join(cfg.layers)} are not one contiguous block in order")


def choose(record: Record, cfg: Config) -> tuple[str, ...]:
    """The blocks to inherit: `cfg.layers` if given, else by `cfg.criterion` and `cfg.n_blocks`.

    Raises StudyError for an unknown layer, for layers that are not neighbours, or a criterion that cannot choose.
    """
    check_choice(cfg, record.layers)
    if cfg.layers:
        return cfg.layers
    options = {"threshold": cfg.threshold, "sign": cfg.sign} if cfg.criterion.startswith("released") else {}
    try:
        return best_block(score(record, cfg.criterion, **options), cfg.n_blocks)
    except ValueError as error:
        raise StudyError(str(error)) from None
