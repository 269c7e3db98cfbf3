"""Per-layer criteria over the gradient record, each beside its null; pure functions, no torch.

A criterion says which layers to inherit; its direction ("low": inherit where it is low) is fixed here, before any result.
Its null is the same statistic on untrained networks with random labels: what depth and width alone would give. For the two
stability criteria it is only an upper bound: the null sees few batches per task, so batch noise inflates its variation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .config import Config
from .files import StudyError
from .record import EDGES, Record, edge_index, share_above
from .scoring import Criterion, best_block, choices, quiet

__all__ = [
    "CRITERIA",
    "Criterion",
    "Profile",
    "best_block",
    "check_choice",
    "choices",
    "choose",
    "criterion",
    "null_choices",
    "options_of",
    "profile",
    "score",
    "score_all",
]
Profile = tuple[np.ndarray, np.ndarray]
"""A quantity per task and layer (t, l), averaged over the epochs of a task, and for untrained networks (n, t', l)."""


CRITERIA: dict[str, Criterion] = {}
"""compute(record, **options) -> Profile of one score per layer: (l,) and, for untrained networks, (n, l)."""

RECOMMENDED = "recommended"
"""The best block on pseudo-tasks within a budget of parameters; no score per layer, see `selection.recommended`."""

FREE = "nothing: read from the record, which costs a few percent of a training step"


def criterion(name: str, *, inherit: str, source: str, predicts: str, cost: str = FREE) -> Callable:
    """Register a criterion under a name; it becomes available to `score`, the configuration and the notebooks.

    Its options are the keyword-only parameters of the function.
    """

    def register(compute: Callable[..., Profile]) -> Callable[..., Profile]:
        CRITERIA[name] = Criterion(name, compute, inherit, source, predicts, cost)
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
    return _by_task(record, rows, null)


def _by_task(record: Record, rows: np.ndarray, null: np.ndarray) -> Profile:
    """Rows (r, l) averaged over the epochs of each task, (t, l); the null (n, t', l) has no epochs."""
    return np.stack([rows[record.task == t].mean(0) for t in np.unique(record.task)]), null


def _over_tasks(per_task: Profile, reduce: Callable[[np.ndarray], np.ndarray]) -> Profile:
    """Apply a statistic over tasks, (..., t, l) -> (..., l), to a profile and its null alike."""
    values, null = per_task
    return reduce(values), reduce(null)


def _mean(g: np.ndarray) -> np.ndarray:
    with quiet():
        return np.nanmean(g, -2)


def _variation(g: np.ndarray) -> np.ndarray:
    """Coefficient of variation: standard deviation over tasks, relative to the mean."""
    if g.shape[-2] < 2:
        return np.full(g[..., 0, :].shape, np.nan)
    with quiet():
        return np.nanstd(g, -2, ddof=1) / np.nanmean(g, -2)


def _total_variation(g: np.ndarray) -> np.ndarray:
    """Mean absolute change from one task to the next."""
    if g.shape[-2] < 2:
        return np.full(g[..., 0, :].shape, np.nan)
    with quiet():
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
    "released_relative",
    inherit="low",
    source="this study: the released count with a threshold relative to each layer",
    predicts="as released, without the scale that depth, width and batch norm give to single entries",
)
def released_relative(record: Record, *, c: float = 1.0) -> Profile:
    """Share of entries with |entry| > c / (|w| sqrt(n)), |w| the norm of a layer's n weights in that epoch.

    A layer whose entries all are as large as that has gradient norm times weight norm c: weights before a batch norm have a
    direction and no length, and turning them by one radian would change the loss by c nats, to first order. So c = 1 is the
    natural unit; rescaling weights before a batch norm, or spreading the same gradient over more entries, does not move
    the count. Every layer's threshold is moved to the nearest edge of the record.
    """
    shares = []
    for table, counts, zeros in (
        (record.table, record.counts, record.zeros),
        (record.null_table, record.null_counts, record.null_zeros),
    ):
        norm, n = (table[column].to_numpy(float).reshape(zeros.shape) for column in ("weight_norm", "n_weights"))
        with quiet():
            shares.append(share_above(counts, zeros, edge_index(c / (norm * np.sqrt(n))), "absolute"))
    return _over_tasks(_by_task(record, *shares), _mean)


@criterion(
    "relative_norm",
    inherit="low",
    source="Lee et al. 2023 (arXiv 2210.11466), RGN; there on target data, here over the source tasks",
    predicts="blocks that new tasks hardly pull on: gradient norm over weight norm; not invariant under batch norm",
)
def relative_norm(record: Record) -> Profile:
    """Gradient norm divided by weight norm."""
    return _over_tasks(profile(record, "relative_norm"), _mean)


@criterion(
    "scaled_norm",
    inherit="low",
    source="this study: unchanged when weights before a batch norm are rescaled",
    predicts="as relative_norm, without the arbitrary scale of weights before batch norm",
)
def scaled_norm(record: Record) -> Profile:
    """Gradient norm times weight norm."""
    return _over_tasks(profile(record, "norm_times_weight"), _mean)


def score(source: Any, name: str, **options: Any) -> pd.DataFrame:
    """Score table of one criterion: criterion, layer, score, null, null_sd, z = (score - null) / null_sd, inherit, cost.

    source: a `Collective`, or anything with a `.record`, or a `Record`. Options go to the criterion (the released ones know
    threshold and sign, `released_relative` knows c); a threshold is moved to the nearest edge of the record, which the table
    names.

    Raises ValueError for an unknown criterion, an option that it does not know, or a threshold out of range.
    """
    if name not in CRITERIA:
        raise ValueError(f"unknown criterion {name!r}; there are {', '.join(CRITERIA)}")
    CRITERIA[name].check(options)
    record: Record = getattr(source, "record", source)
    table = CRITERIA[name].table(record.layers, *CRITERIA[name].compute(record, **options))
    if "threshold" in options:
        table["threshold"] = float(EDGES[edge_index(options["threshold"])])
    return table


def options_of(name: str, cfg: Config) -> dict[str, Any]:
    """What `cfg` says about the options of criterion `name` (threshold and sign, where it knows them)."""
    return {option: getattr(cfg, option) for option in ("threshold", "sign") if option in CRITERIA[name].options}


def null_choices(record: Record, name: str, n_blocks: int, **options: Any) -> list[tuple[str, ...]]:
    """The block that a criterion would choose for each untrained network of the null, by itself."""
    table, (_, null) = score(record, name, **options), CRITERIA[name].compute(record, **options)
    return [best_block(table.assign(score=network), n_blocks) for network in null]


def score_all(record: Record, cfg: Config) -> pd.DataFrame:
    """Score tables of every criterion, one below the other (scores.csv)."""
    return pd.concat([score(record, name, **options_of(name, cfg)) for name in CRITERIA], ignore_index=True)


def check_choice(cfg: Config, names: Sequence[str]) -> None:
    """Before hours of training: does `cfg` name a known criterion, and neighbouring layers among `names`?

    Raises StudyError for an unknown criterion, an unknown layer, or layers that are not neighbours.
    """
    if cfg.criterion not in (*CRITERIA, RECOMMENDED):
        raise StudyError(f"unknown criterion {cfg.criterion!r}; there are {', '.join(CRITERIA)}, {RECOMMENDED}")
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
    if cfg.criterion == RECOMMENDED:
        raise StudyError(
            "the recommended block is read from the atlas, not from the record; see `study.Chain.learngene`"
        )
    try:
        return best_block(score(record, cfg.criterion, **options_of(cfg.criterion, cfg)), cfg.n_blocks)
    except ValueError as error:
        raise StudyError(str(error)) from None
