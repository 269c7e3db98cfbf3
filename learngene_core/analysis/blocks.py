"""The atlas as a table: what inheriting each block of neighbouring layers gains over scratch, and what it takes along.

A block [first..last] is counted from 1. Its gain is paired: same target tasks, initial weights and batches as scratch (first =
last = 0), initial weights averaged within a task, tasks the units. Novel classes measure, pseudo-tasks of the open-world
classes choose (`recommended`). What a criterion's scores of layers predict for blocks is here too (`predicted`). No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..errors import StudyError
from .statistics import mean_interval, simultaneous_bands

Block = tuple[int, int]
"""Numbers of the first and the last layer, from 1."""

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
        raise ValueError(f"an individual of the atlas is there twice: {part.loc[twice, INDIVIDUAL].iloc[0].to_dict()}")
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
    """atlas.csv of a `ConvNet`: `gain_table` with the parameters of convolutions of these widths (channels of all blocks)."""
    return gain_table(cells, block_parameters(widths, in_channels), names, n_blocks=n_blocks, partial=partial)


def gain_table(
    cells: pd.DataFrame, sizes: Sequence[int], names: Sequence[str], *, n_blocks: int = 3, partial: bool = True
) -> pd.DataFrame:
    """atlas.csv: one row per block and shots, from atlas_cells.csv; sizes: trainable parameters of each block.

    gain in points with pointwise 95 % t limits over the n_tasks target tasks, and with limits that hold for all blocks at once
    (band_low, band_high); accuracy in percent; the gain on pseudo-tasks (NaN, and pseudo_n = 0, where there are none);
    parameters inherited, and their share of all blocks' in percent; block: its names; length; coarse: a prefix, a suffix, or
    `n_blocks` long. Unfinished maps: see `gains`. Rows are the blocks measured on novel classes, or, as long as there are
    none, those measured on pseudo-tasks (gain NaN, n_tasks 0).

    Raises ValueError as `gains` does, and for sizes, names or blocks that do not fit each other.
    """
    _check_blocks(cells, sizes, names)
    parts = (_measured(part, int(shots), partial) for shots, part in cells.groupby("shots"))
    table = pd.concat(parts, ignore_index=True)
    first, last = table["first"] - 1, table["last"]
    below = np.append(0, np.cumsum(sizes))
    table["parameters"] = below[last] - below[first]
    table["share"] = 100 * table["parameters"] / below[-1]
    table["block"] = ["-".join(dict.fromkeys((names[a], names[b - 1]))) for a, b in zip(first, last, strict=True)]
    table["length"] = last - first
    table["coarse"] = first.eq(0) | last.eq(len(sizes)) | table["length"].eq(n_blocks)
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
        tables[NOVEL] = _with_limits(found, NOVEL_COLUMNS[:4]).assign(**more)
    if PSEUDO in groups:
        tables[PSEUDO] = _with_limits(gains(part, PSEUDO, shots, partial=partial), PSEUDO_COLUMNS)
    if not tables:
        raise ValueError(f"the atlas has neither group {NOVEL!r} nor {PSEUDO!r}, but {sorted(groups)}")
    rows = tables.get(NOVEL, tables.get(PSEUDO)).index
    table = pd.concat(tables.values(), axis=1).reindex(index=rows, columns=[*NOVEL_COLUMNS, *PSEUDO_COLUMNS])
    counts = {name: table[name].fillna(0).astype(int) for name in ("n_tasks", "pseudo_n")}
    table = table.assign(**counts).reset_index()
    table.insert(2, "shots", shots)
    return table


def _with_limits(found: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A row per block: mean, 95 % limits and number of tasks, under these four names."""
    intervals = [mean_interval(found[block]) for block in found]
    return pd.DataFrame([(i.estimate, i.low, i.high, i.n) for i in intervals], found.columns, names)


def _check_blocks(cells: pd.DataFrame, sizes: Sequence[int], names: Sequence[str]) -> None:
    if len(sizes) != len(names):
        raise ValueError(f"{len(sizes)} widths, but {len(names)} names of blocks")
    if missing := [column for column in INDIVIDUAL if column not in cells]:
        raise ValueError(f"the atlas lacks the column(s) {missing}")
    first, last = cells["first"], cells["last"]
    good = (first.eq(0) & last.eq(0)) | (first.ge(1) & last.ge(first) & last.le(len(sizes)))
    if cells.empty or not good.all():
        which = "is empty" if cells.empty else f"has a block {cells.loc[~good, ['first', 'last']].iloc[0].tolist()}"
        raise ValueError(f"the atlas {which}; the collective has blocks 1 to {len(sizes)}")


# predicted and chosen ---------------------------------------------------------------------------------------------------
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


def depth_and_size(part: pd.DataFrame) -> np.ndarray:
    """(blocks, 2): the middle of each block, and its parameters; rows of atlas.csv."""
    return np.column_stack([(part["first"] + part["last"]) / 2, part["parameters"]]).astype(float)
