"""Per-layer criteria: which layers of the collective does its gradient record say to inherit?

The released scripts (Wang et al. 2022) count, per layer, the entries of the weight gradient above a small threshold, as a share
of all entries, and average that share over the mini-batches of an epoch. They print it, and fix the last three layers by hand.
The appendix argues by stability: layers that hardly change from task to task hold what all tasks have in common. The rule here
is ours, and the appendix's figure suggests it: average over epochs and tasks too, and take the `n_blocks` neighbouring layers
with the lowest mean. Lowest is not most stable; `released_cv` and `released_tv` are our readings of stability. Reading costs
nothing: the record is made during training, for a few percent of a step.

Each criterion has its direction ("low": inherit where it is low) fixed here, before any result, and is compared with its null:
the same statistic on untrained networks with random labels, which is what depth and width alone would give. For the two stability
criteria the null is only an upper bound: it sees few batches per task, so batch noise inflates its variation. No torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .config import Config
from .errors import StudyError
from .record import EDGES, Record, edge_index, share_above

Profile = tuple[np.ndarray, np.ndarray]
"""A quantity of the collective and the same of n untrained networks: per task and layer, (t, l) and (n, t', l), or once tasks are
averaged per layer, (l,) and (n, l)."""

CRITERIA: dict[str, Criterion] = {}
"""Every criterion by its name."""

RECOMMENDED = "recommended"
"""The best block on pseudo-tasks within a budget of parameters; no score per layer, see `analysis.blocks`."""

FREE = "nothing: read from the record, which costs a few percent of a training step"


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


def criterion(name: str, *, inherit: str, source: str, predicts: str, cost: str = FREE) -> Callable:
    """Register a criterion under a name; it becomes available to `score`, the configuration and the notebooks.

    Its options are the keyword-only parameters of the function.
    """

    def register(compute: Callable[..., Profile]) -> Callable[..., Profile]:
        CRITERIA[name] = Criterion(name, compute, inherit, source, predicts, cost)
        return compute

    return register


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Where there is no value (a layer that came late, a single task) the result is not a number, without a warning."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


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
    source="Wang et al. 2022: the count is the released code's, to choose by the lowest mean is ours",
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


def score_all(record: Record, cfg: Config) -> pd.DataFrame:
    """Score tables of every criterion, one below the other (scores.csv)."""
    return pd.concat([score(record, name, **options_of(name, cfg)) for name in CRITERIA], ignore_index=True)


def options_of(name: str, cfg: Config) -> dict[str, Any]:
    """What `cfg` says about the options of criterion `name` (threshold and sign, where it knows them)."""
    return {option: getattr(cfg, option) for option in ("threshold", "sign") if option in CRITERIA[name].options}


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
    means = np.convolve(values, np.ones(n_blocks) / n_blocks, "valid")  # of every n_blocks neighbours
    if table["inherit"].iloc[0] == "high":
        means = -means
    means = (means / np.abs(values).max()).round(12)  # sums in another order must not decide
    start = np.flatnonzero(means == means.min())[-1]  # of equal ones the deepest
    return tuple(table["layer"].iloc[start : start + n_blocks])


def choices(scores: pd.DataFrame, n_blocks: int) -> dict[str, tuple[str, ...]]:
    """Criterion -> the block it chooses, from a table of several; criteria that cannot choose are left out (stability
    over tasks needs two tasks)."""
    chosen = {}
    for name, part in scores.groupby("criterion", sort=False):
        with contextlib.suppress(ValueError):
            chosen[name] = best_block(part, n_blocks)
    return chosen


def null_choices(record: Record, name: str, n_blocks: int, **options: Any) -> list[tuple[str, ...]]:
    """The block that a criterion would choose for each untrained network of the null, by itself."""
    table, (_, null) = score(record, name, **options), CRITERIA[name].compute(record, **options)
    return [best_block(table.assign(score=network), n_blocks) for network in null]


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
        raise StudyError("the recommended block is read from the atlas, not from the record; see `study.chain`")
    try:
        return best_block(score(record, cfg.criterion, **options_of(cfg.criterion, cfg)), cfg.n_blocks)
    except ValueError as error:
        raise StudyError(str(error)) from None
