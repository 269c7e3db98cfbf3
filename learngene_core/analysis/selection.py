"""Every criterion compared with the atlas: do its scores rank the blocks as inheriting them does, and what does it choose?

Blocks [first..last] are contiguous and counted from 1. Tables only, no torch; randomness has explicit seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from .blocks import NOVEL, Block, depth_and_size, gains, predicted, recommended
from .ranks import partial_rank_correlation, rank_correlation_interval, rank_correlations
from .statistics import Interval, t_quantile

FEWEST_BLOCKS = 5  # fewer leave nothing to correlate once depth and size are taken out
BUDGET_SCOPE = "within budget"


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
