"""The atlas as a table: what inheriting each contiguous block gains over scratch, and what it takes along.

A block [first..last] is counted from 1; its gain is paired: same target tasks, initial weights and batches as scratch (first =
last = 0), initial weights averaged within a task, tasks the units. Novel classes measure, pseudo-tasks of the open-world
classes choose. Tables only, no torch.

Every criterion held against the atlas: do its scores rank the blocks as inheriting them does, and what does it choose?

Blocks [first..last] are contiguous and counted from 1. Tables only, no torch; randomness has explicit seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from ..errors import StudyError
from .ranks import partial_rank_correlation, rank_correlation_interval, rank_correlations
from .statistics import Interval, mean_interval, simultaneous_bands, t_quantile

Block = tuple[int, int]
INDIVIDUAL = ["group", "first", "last", "shots", "target_task", "init"]
SCRATCH: Block = (0, 0)
NOVEL, PSEUDO = "novel", "open_world"
NOVEL_COLUMNS = ["gain", "gain_low", "gain_high", "n_tasks", "band_low", "band_high", "accuracy"]
PSEUDO_COLUMNS = ["pseudo_gain", "pseudo_low", "pseudo_high", "pseudo_n"]


def gains(cells: pd.DataFrame, group: str = NOVEL, shots: int | None = None, *, partial: bool = True) -> pd.DataFrame:
    """Paired gains over scratch in points: tasks (rows) x blocks (columns first, last), initial weights averaged.

    cells: atlas_cells.csv. An unfinished map is cut to a full rectangle of blocks and (task, init): blocks that miss tasks, or
    tasks that miss blocks, are left out, whichever loses fewer individuals, so that all blocks are compared on identical
    tasks. With partial=False a gap is an error. shots may be left out where there is one.

    Raises ValueError for a missing column or accuracy, an individual twice, no such group or shots, and tasks without
    scratch.
    """
    blocks, scratch = _rectangle(cells, group, shots, partial)
    return blocks.sub(scratch, axis=0).groupby(level=0).mean()


def _rectangle(cells: pd.DataFrame, group: str, shots: int | None, partial: bool) -> tuple[pd.DataFrame, pd.Series]:
    """Accuracies, percent: (task, init) x blocks without a gap, and scratch's by (task, init)."""
    part = _checked(cells, group, shots)
    wide = part.pivot(index=["target_task", "init"], columns=["first", "last"], values="accuracy")
    wide = wide.sort_index().sort_index(axis=1)
    if SCRATCH not in wide or wide[SCRATCH].isna().any():
        task, init = wide.index[wide[SCRATCH].isna() if SCRATCH in wide else slice(None)][0]
        raise ValueError(
            f"the atlas has no scratch (first = last = 0) of group {group!r}, target_task {task}, init {init}"
        )
    blocks = wide.drop(columns=[SCRATCH])
    if blocks.empty:
        raise ValueError(f"the atlas has scratch and no block of group {group!r}")
    there = blocks.notna().to_numpy()
    if not partial and not there.all():
        row, column = np.argwhere(~there)[0]
        (first, last), (task, init) = blocks.columns[column], blocks.index[row]
        raise ValueError(f"the block {first} to {last} of group {group!r} misses target_task {task}, init {init}")
    pairs, kept = _largest_rectangle(there)
    return blocks.loc[pairs, kept], wide.loc[pairs, SCRATCH]


def _checked(cells: pd.DataFrame, group: str, shots: int | None) -> pd.DataFrame:
    """The rows of one group and number of shots, whole and each once."""
    if missing := [column for column in [*INDIVIDUAL, "accuracy"] if column not in cells]:
        raise ValueError(f"the atlas lacks the column(s) {missing}")
    part = cells[(cells["group"] == group) & (cells["shots"].eq(shots) if shots is not None else True)]
    if part.empty:
        raise ValueError(f"the atlas has no individual of group {group!r}" + (f" at {shots} shots" if shots else ""))
    if part["shots"].nunique() > 1:
        raise ValueError(f"the atlas has several shots, {sorted(part['shots'].unique().tolist())}; name one")
    if (bad := ~np.isfinite(part["accuracy"].to_numpy(float))).any():
        raise ValueError(f"an accuracy of the atlas is not a number: {part.loc[bad, INDIVIDUAL].iloc[0].to_dict()}")
    if (twice := part.duplicated(INDIVIDUAL)).any():
        raise ValueError(f"an individual of the atlas stands twice: {part.loc[twice, INDIVIDUAL].iloc[0].to_dict()}")
    return part


def _largest_rectangle(there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks (pairs,) and (blocks,) of the full part of `there` (pairs, blocks) with most cells; of equal ones the one with
    more pairs."""
    best, chosen = (0, 0), (there.all(axis=1), np.ones(there.shape[1], bool))
    for pairs in np.unique(there, axis=1).T:  # the pairs that some block has
        kept = there[pairs].all(axis=0)
        if (size := (int(pairs.sum()) * int(kept.sum()), int(pairs.sum()))) > best:
            best, chosen = size, (pairs, kept)
    return chosen


def block_parameters(widths: Sequence[int], in_channels: int = 3) -> np.ndarray:
    """Trainable parameters (blocks,) of each convolution (3 x 3 and bias) with its batch norm (scale and shift)."""
    inputs, outputs = np.array([in_channels, *widths[:-1]]), np.array(widths)
    return 9 * inputs * outputs + outputs + 2 * outputs


def atlas_table(
    cells: pd.DataFrame,
    widths: Sequence[int],
    names: Sequence[str],
    *,
    n_blocks: int = 3,
    in_channels: int = 3,
    partial: bool = True,
) -> pd.DataFrame:
    """atlas.csv: one row per block and shots, from atlas_cells.csv; widths and names of all blocks in order.

    gain in points with pointwise 95 % t limits over the n_tasks target tasks, and with limits that hold for all blocks at once
    (band_low, band_high); accuracy in percent; the gain on pseudo-tasks (NaN, and pseudo_n = 0, where there are none);
    parameters inherited, and their share of all blocks' in percent; block: its names; length; coarse: a prefix, a suffix, or
    `n_blocks` long. Unfinished maps: see `gains`. Rows are the blocks measured on novel classes, or, as long as there are
    none, those measured on pseudo-tasks (gain NaN, n_tasks 0).

    Raises ValueError as `gains` does, and for widths, names or blocks that do not fit each other.
    """
    _check_blocks(cells, widths, names)
    parts = (_measured(part, int(shots), partial) for shots, part in cells.groupby("shots"))
    table = pd.concat(parts, ignore_index=True)
    first, last = table["first"] - 1, table["last"]
    sizes = np.append(0, np.cumsum(block_parameters(widths, in_channels)))
    table["parameters"] = sizes[last] - sizes[first]
    table["share"] = 100 * table["parameters"] / sizes[-1]
    table["block"] = ["-".join(dict.fromkeys((names[a], names[b - 1]))) for a, b in zip(first, last, strict=True)]
    table["length"] = last - first
    table["coarse"] = first.eq(0) | last.eq(len(widths)) | table["length"].eq(n_blocks)
    return table


def _measured(part: pd.DataFrame, shots: int, partial: bool) -> pd.DataFrame:
    """first, last, shots, and the columns of novel and of pseudo-tasks, from the cells of one number of shots."""
    groups, tables = set(part["group"]), {}
    if NOVEL in groups:
        blocks, scratch = _rectangle(part, NOVEL, shots, partial)
        found = blocks.sub(scratch, axis=0).groupby(level=0).mean()
        bands = simultaneous_bands(found.to_numpy()).set_axis(found.columns)
        accuracy = blocks.groupby(level=0).mean().mean()
        more = dict(zip(NOVEL_COLUMNS[4:], (bands["low"], bands["high"], accuracy), strict=True))
        tables[NOVEL] = _limits(found, NOVEL_COLUMNS[:4]).assign(**more)
    if PSEUDO in groups:
        tables[PSEUDO] = _limits(gains(part, PSEUDO, shots, partial=partial), PSEUDO_COLUMNS)
    if not tables:
        raise ValueError(f"the atlas has neither group {NOVEL!r} nor {PSEUDO!r}, but {sorted(groups)}")
    rows = tables.get(NOVEL, tables.get(PSEUDO)).index
    table = pd.concat(tables.values(), axis=1).reindex(index=rows, columns=[*NOVEL_COLUMNS, *PSEUDO_COLUMNS])
    counts = {name: table[name].fillna(0).astype(int) for name in ("n_tasks", "pseudo_n")}
    table = table.assign(**counts).reset_index()
    table.insert(2, "shots", shots)
    return table


def _limits(found: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A row per block: mean, 95 % limits and number of tasks, under these four names."""
    intervals = [mean_interval(found[block]) for block in found]
    return pd.DataFrame([(i.estimate, i.low, i.high, i.n) for i in intervals], found.columns, names)


def _check_blocks(cells: pd.DataFrame, widths: Sequence[int], names: Sequence[str]) -> None:
    if len(widths) != len(names):
        raise ValueError(f"{len(widths)} widths, but {len(names)} names of blocks")
    if missing := [column for column in INDIVIDUAL if column not in cells]:
        raise ValueError(f"the atlas lacks the column(s) {missing}")
    first, last = cells["first"], cells["last"]
    good = (first.eq(0) & last.eq(0)) | (first.ge(1) & last.ge(first) & last.le(len(widths)))
    if cells.empty or not good.all():
        which = "is empty" if cells.empty else f"has a block {cells.loc[~good, ['first', 'last']].iloc[0].tolist()}"
        raise ValueError(f"the atlas {which}; the collective has blocks 1 to {len(widths)}")


__all__ = ["atlas_table", "block_parameters", "gains", "predicted", "recommended", "regret", "selection_table"]

FEWEST_BLOCKS = 5  # fewer leave nothing to correlate once depth and size are taken out
BUDGET_SCOPE = "within budget"


def predicted(scores: pd.DataFrame, blocks: Sequence[Block], column: str = "score") -> np.ndarray:
    """What one criterion predicts for `blocks`: the mean of their layers' scores, higher = inherit; (blocks,).

    scores: the rows of one criterion of layer_scores.csv, a row per layer in order. `column` may be "null". A NaN among
    a block's layers gives NaN. Raises ValueError for a table of several criteria or a block beyond its layers.
    """
    if scores["layer"].duplicated().any() or scores["inherit"].nunique() != 1:
        raise ValueError("scores of one criterion are needed: every layer once, one direction")
    values = scores[column].to_numpy(float) * (1 if scores["inherit"].iloc[0] == "high" else -1)
    if (deepest := max((last for _, last in blocks), default=0)) > len(values):
        raise ValueError(f"a block ends at {deepest}, but there are scores of {len(values)} layers")
    return np.array([values[first - 1 : last].mean() for first, last in blocks])


def recommended(atlas: pd.DataFrame, budget_percent: float, shots: int | None = None) -> Block:
    """The block with the best gain on pseudo-tasks among those of at most `budget_percent` of all blocks' parameters.

    It never looks at novel classes. Of equal blocks the one with fewer parameters. shots may be left out where there is one.
    Raises StudyError without pseudo-tasks or without a block within the budget.
    """
    part = atlas if shots is None else atlas[atlas["shots"] == shots]
    if part["shots"].nunique() > 1:
        raise StudyError("the atlas has several shots; name one for the recommended block")
    part = part[part["pseudo_n"] > 0].reset_index(drop=True)
    if part.empty:
        raise StudyError(
            "nothing is recommended without pseudo-tasks; run `learngene atlas` with atlas_pseudo_tasks > 0"
        )
    part = part[part["share"] <= budget_percent + 1e-9]
    if part.empty:
        raise StudyError(
            f"no block of the atlas has at most {budget_percent:g} % of the parameters; raise inherited_share"
        )
    part = part.assign(worst_first=-part["pseudo_gain"].round(9)).sort_values(["worst_first", "parameters", "first"])
    return int(part["first"].iloc[0]), int(part["last"].iloc[0])


def selection_table(
    cells: pd.DataFrame,
    atlas: pd.DataFrame,
    scores: pd.DataFrame,
    n_blocks: int,
    budget_percent: float,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """selection.csv: how well each criterion ranks the blocks of the atlas, and what its choice costs; a row per scope.

    cells: atlas_cells.csv; atlas: atlas.csv; scores: layer_scores.csv (several criteria below each other). Beside every
    criterion stands `null:<criterion>` (the same from untrained networks), and below them `depth` (deeper = inherit),
    `shallow` (the other way), `size` (more parameters = inherit), `small`, `recommended` (gain on pseudo-tasks, where there
    are any), and `random` (scores of the layers drawn at random: the range of 95 % of them in place of limits, the average
    over their choices).

    Scopes: "all blocks"; "blocks of length k" (k = n_blocks); "within budget": at most `budget_percent` of the parameters.
    spearman, kendall: with the mean gain over tasks, 95 % limits over tasks. partial: Spearman given depth and size.
    first, last: its choice (of equal ones the deepest). A mean over layers is largest for some single layer, so within the
    budget it chooses among blocks that no other block of the budget contains: the budget is there to be spent. Among all
    blocks its choice is a single layer; the scopes of fixed length and budget are the fair ones.

    chosen_gain in points; regret: gain of the best block of the scope minus chosen_gain, 95 % limits over tasks. The best block
    is found on the other tasks and valued on the one left out (see `regret`): the best of many noisy means, valued on the same
    tasks, would flatter itself (the winner's curse) and every regret would be too large. So a regret may be negative.

    A criterion with a score that is not a number has a row of NaN; one that is the same everywhere chooses nothing.
    Raises ValueError as `gains` does, and for an atlas.csv that lacks a block of the cells.
    """
    rows = []
    for shots, part in atlas.groupby("shots"):
        found = gains(cells, NOVEL, int(shots))
        part = part.set_index(pd.MultiIndex.from_frame(part[["first", "last"]], names=[None, None]))
        if len(strange := found.columns.difference(part.index)):
            raise ValueError(
                f"atlas.csv lacks the block {tuple(map(int, strange[0]))} of atlas_cells.csv; make it anew from these cells"
            )
        part = part.loc[found.columns]
        predictions = _predictions(scores, part)
        for scope, inside in _scopes(part, n_blocks, budget_percent):
            view = Scope(found.loc[:, inside], part[inside], scope == BUDGET_SCOPE, n_resamples, seed)
            own = [view.row(name, values[inside]) for name, values in predictions.items()] + [view.random()]
            rows += [{"criterion": row.pop("criterion"), "scope": scope, "shots": shots, **row} for row in own]
    return pd.DataFrame(rows)


def _predictions(scores: pd.DataFrame, part: pd.DataFrame) -> dict[str, np.ndarray]:
    """Name -> prediction (blocks,), higher = inherit: criteria, their nulls, depth, size, recommended."""
    blocks = list(part.index)
    found: dict[str, np.ndarray] = {}
    for name, own in scores.groupby("criterion", sort=False):
        found |= {name: predicted(own, blocks), f"null:{name}": predicted(own, blocks, "null")}
    depth, size = depth_and_size(part).T
    found |= {"depth": depth, "shallow": -depth, "size": size, "small": -size}
    if part["pseudo_n"].gt(0).any():
        found["recommended"] = part["pseudo_gain"].to_numpy(float)
    return found


def depth_and_size(part: pd.DataFrame) -> np.ndarray:
    """(blocks, 2): the middle of each block, and its parameters; rows of atlas.csv."""
    return np.column_stack([(part["first"] + part["last"]) / 2, part["parameters"]]).astype(float)


def random_predictions(blocks: Sequence[Block], n_draws: int, seed: int) -> np.ndarray:
    """What `n_draws` criteria would predict whose scores of the layers are drawn at random: (draws, blocks).

    Blocks share layers, so a handful of random numbers can rank many blocks well by chance: the range of these is wide.
    """
    n_layers, rng = max(last for _, last in blocks), np.random.default_rng(seed)
    sums = np.cumsum(rng.normal(size=(n_draws, n_layers + 1)), axis=1)  # (draws, layers + 1)
    return np.stack([(sums[:, last] - sums[:, first - 1]) / (last - first + 1) for first, last in blocks], axis=1)


def _scopes(part: pd.DataFrame, n_blocks: int, budget_percent: float) -> Iterator[tuple[str, np.ndarray]]:
    """Name and mask of each scope that has blocks."""
    masks = {
        "all blocks": np.ones(len(part), bool),
        f"blocks of length {n_blocks}": part["length"].eq(n_blocks).to_numpy(),
        BUDGET_SCOPE: part["share"].le(budget_percent + 1e-9).to_numpy(),
    }
    return ((name, mask) for name, mask in masks.items() if mask.any())


class Scope:
    """The blocks among which criteria are compared: gains (tasks, blocks), their rows of the atlas, and who may be chosen."""

    def __init__(self, found: pd.DataFrame, part: pd.DataFrame, spend: bool, n_resamples: int, seed: int):
        self.gains, self.part, self.n_resamples, self.seed = found.to_numpy(), part, n_resamples, seed
        self.blocks = [(int(first), int(last)) for first, last in part.index]
        inside = [any(f <= a and b <= e and (f, e) != (a, b) for f, e in self.blocks) for a, b in self.blocks]
        self.choosable = np.flatnonzero(~np.array(inside) if spend else np.ones(len(self.blocks), bool))

    def row(self, name: str, values: np.ndarray) -> dict:
        """The row of one criterion that predicts `values` (blocks,)."""
        usable = np.isfinite(values)
        if name != "recommended":
            usable &= usable.all()
        row = self._blank(name)
        if not usable.any():
            return row
        row |= self._ranks(values[usable], usable)
        place = self._choice(name, values)
        if place is None:
            return row
        row["first"], row["last"] = self.blocks[place]
        return row | self._regret(np.arange(len(values)) == place)

    def random(self) -> dict:
        """The row of layer scores drawn at random."""
        values = random_predictions(self.blocks, self.n_resamples, self.seed)
        row = self._blank("random")
        for kind in ("spearman", "kendall"):
            found = rank_correlations(self.gains.mean(axis=0), values, kind)
            if np.isfinite(found).all():
                low, high = np.quantile(found, [0.025, 0.975])
                row |= {kind: float(found.mean()), f"{kind}_low": float(low), f"{kind}_high": float(high)}
        chosen = self._deepest_best(values)
        return row | self._regret(np.bincount(chosen, minlength=len(self.blocks)) / len(chosen))

    def _blank(self, name: str) -> dict:
        """The row of a criterion that says nothing."""
        numbers = [f"{kind}{end}" for kind in ("spearman", "kendall") for end in ("", "_low", "_high")]
        numbers += ["partial", "first", "last", "chosen_gain", "regret", "regret_low", "regret_high"]
        counts = {"n_tasks": self.gains.shape[0], "n_blocks": self.gains.shape[1]}
        return {"criterion": name} | dict.fromkeys(numbers, np.nan) | counts

    def _ranks(self, values: np.ndarray, usable: np.ndarray) -> dict:
        """Rank correlations of `values` with the gains of the usable blocks."""
        row: dict[str, float] = {"n_blocks": int(usable.sum())}
        for kind in ("spearman", "kendall"):
            i = rank_correlation_interval(values, self.gains[:, usable], kind, self.n_resamples, self.seed)
            row |= {kind: i.estimate, f"{kind}_low": i.low, f"{kind}_high": i.high}
        if len(values) >= FEWEST_BLOCKS:
            mean = self.gains[:, usable].mean(axis=0)
            row["partial"] = partial_rank_correlation(values, mean, depth_and_size(self.part[usable]))
        return row

    def _choice(self, name: str, values: np.ndarray) -> int | None:
        """Place of the block that is chosen; None for a prediction that is the same everywhere."""
        if name == "recommended":
            return self.blocks.index(recommended(self.part, 100.0))
        if len(self.choosable) > 1 and np.ptp(values[self.choosable]) == 0:
            return None
        return int(self._deepest_best(values[None])[0])

    def _deepest_best(self, values: np.ndarray) -> np.ndarray:
        """Places (r,) of the best choosable block by each row of `values` (r, blocks); of equal ones the deepest, shortest."""
        order = sorted(self.choosable, key=lambda k: self.blocks[k][::-1], reverse=True)
        scale = np.abs(values).max(axis=1, keepdims=True)
        rounded = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0).round(12)
        return np.array(order)[rounded[:, order].argmax(axis=1)]

    def _regret(self, weights: np.ndarray) -> dict:
        """Gain and regret of choosing blocks with these probabilities (blocks,)."""
        own = self.gains @ weights
        interval = regret(self.gains, own)
        limits = {"regret": interval.estimate, "regret_low": interval.low, "regret_high": interval.high}
        return {"chosen_gain": float(own.mean())} | limits


def regret(gains: np.ndarray, own: np.ndarray) -> Interval:
    """Gain of the best block minus `own` (tasks,), points, from `gains` (tasks, blocks): leave-one-task-out, 95 % limits.

    The best block is found on the other tasks and valued on the one left out. Where several blocks are about equally good the
    choice changes with the task that is left out, the values depend on each other, and a plain t interval covers 70-90 %
    (simulated); the standard error is therefore the jackknife's over tasks, with the search inside, which is the plain one when
    the choice never changes (covers 92-99 %). Fewer than three tasks: NaN limits; one: NaN.
    """
    n, tasks = len(gains), np.arange(len(gains))
    if n < 2:
        return Interval(np.nan, np.nan, np.nan, n)
    total = gains.sum(axis=0)
    estimate = float((gains[tasks, (total - gains).argmax(axis=1)] - own).mean())
    if n < 3:
        return Interval(estimate, np.nan, np.nan, n)
    best = (total - gains[:, None] - gains[None]).argmax(axis=2)  # (left out, deleted): found on the n - 2 others
    values = gains[tasks[:, None], best] - own[:, None]
    np.fill_diagonal(values, 0)
    deleted = values.sum(axis=0) / (n - 1)
    half = t_quantile(n, 0.95) * np.sqrt((n - 1) * deleted.var())
    return Interval(estimate, estimate - half, estimate + half, n)
