"""Every criterion for every block in one table, and what each one's choice costs on the atlas, beside the trivial rival.

Three groups are compared among themselves only. "record": read from the gradient record. "network": look at the network and at
images, of source tasks or of pseudo-tasks, and at no label of a new class. "support labels": use the labels of support images of
pseudo-tasks (open-world classes), as a person with a target task could. Queries of novel classes are never looked at.

The trivial rival is the longest prefix within the budget: it needs no criterion at all, so every choice is compared with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..collective import Collective
from ..config import Config
from ..criteria import CRITERIA, score_all
from ..data.division import Division, parts
from ..network import ConvNet
from ..runs.run import Run
from ..runs.states import load_collective, load_state, task_folders
from ..tasks import ImageSet, SourceTask, TargetTask, generator
from .ancestor_tables import WHO
from .blocks import NOVEL, Block, block_parameters, gains
from .selection import regret
from .statistics import mean_interval
from .surgery import target_scores
from .transfer import TRANSFER, depth_features, depth_scores, gain_over_block
from .transplant import N_FRONTS, images_of, not_yet_seen, transplant_separability

COLUMNS = ["criterion", "group", "of", "first", "last", "score", "inherit"]
SOURCE_PER_CLASS = 10  # source images of each class for the scores that compare with source classes
PREFIX, RECOMMENDED = "longest_prefix", "recommended"


def criteria_table(
    col: Collective,
    images: ImageSet,
    pseudo: Sequence[TargetTask],
    sources: Sequence[SourceTask],
    div: Division,
    cfg: Config,
    *,
    before: nn.Module | None = None,
    unseen: Sequence[str] | None = None,
    layer_scores: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per criterion and block of neighbouring layers: criterion, group, of, first, last, score, inherit.

    of: what the score is of. "layers": a score per layer, the mean over the block's; it is blind to length. "block": of the block
    as a whole; for scores of depths what the block adds (`transfer.gain_over_block`), for `transplant` the score itself.
    pseudo: pseudo-tasks of open-world classes, of which the support images are looked at. before: the state before the last
    source task; without it (a joint ancestor has none) `transplant` is NaN. unseen: the base classes that `before` has not
    met, by default those that no source task but the last one shows. layer_scores: layer_scores.csv with the measures too; by
    default the criteria of the record.

    Raises ValueError for pseudo-tasks of novel classes, or none. Cost: forward passes of the pseudo-tasks' support images and of
    ten images of each source class; one backward pass for each support image; the transplants.
    """
    if not pseudo or any(task.group == NOVEL for task in pseudo):
        raise ValueError("a criterion looks at pseudo-tasks of open-world classes; novel classes choose nothing")
    layers = score_all(col.record, cfg) if layer_scores is None else layer_scores
    paths = {name: f"blocks.{name}" for name in col.model.block_names}
    classes = list(dict.fromkeys(name for task in sources for name in task.classes))
    rows = [
        *_of_layers(layers),
        *depth_rows(col.model, paths, images, pseudo, classes, cfg, col.mean, col.std),
        *_of_gradients(col, images, pseudo),
        *_of_transplants(col, images, not_yet_seen(div.base, sources) if unseen is None else unseen, cfg, before),
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def criteria_of(
    run: Run, images: ImageSet, pseudo: Sequence[TargetTask], sources: Sequence[SourceTask], div: Division
) -> pd.DataFrame:
    """`criteria_table` of a finished run, its state before the last task and, if there, its layer_scores.csv.

    Raises StudyError without a finished collective.
    """
    folders = task_folders(run)
    col = load_collective(run)
    before = load_state(folders[-2])[0] if len(folders) > 1 else None
    layers = run.read_table("layer_scores.csv") if (run.path / "layer_scores.csv").exists() else None
    return criteria_table(col, images, pseudo, sources, div, run.cfg, before=before, layer_scores=layers)


def _blocks(n_layers: int) -> list[Block]:
    return [(first, last) for first in range(1, n_layers + 1) for last in range(first, n_layers + 1)]


def _mean_rows(name: str, group: str, values: np.ndarray, inherit: str) -> Iterator[tuple]:
    """Rows of a criterion with a score per layer (l,)."""
    for first, last in _blocks(len(values)):
        yield name, group, "layers", first, last, float(values[first - 1 : last].mean()), inherit


def _of_layers(scores: pd.DataFrame) -> Iterator[tuple]:
    for name, own in scores.groupby("criterion", sort=False):
        group = "record" if name.partition("@")[0] in CRITERIA else "network"
        yield from _mean_rows(name, group, own["score"].to_numpy(float), own["inherit"].iloc[0])


def depth_rows(
    model: nn.Module,
    paths: Mapping[str, str],
    images: ImageSet,
    pseudo: Sequence[TargetTask],
    classes: Sequence[str],
    cfg: Config,
    mean: Tensor,
    std: Tensor,
) -> Iterator[tuple]:
    """Rows, as `COLUMNS`, of the scores of `transfer` for every block of neighbouring ones among `paths` (name -> dotted name).

    pseudo: tasks of which the support images are looked at; classes: those that the network was trained on, of which ten
    training images each are looked at.
    """
    shown = np.unique(np.concatenate([task.support.ravel() for task in pseudo]))
    own = [parts(images, n, cfg.source_images, cfg.held_out_images, cfg)[0][:SOURCE_PER_CLASS] for n in classes]
    tasks = [
        (np.searchsorted(shown, t.support.ravel()), np.arange(t.support.size) // t.support.shape[1]) for t in pseudo
    ]
    target, source = (
        depth_features(model, paths, images.images[torch.from_numpy(picked)], mean, std)
        for picked in (shown, np.concatenate(own))
    )
    table = depth_scores(target, tasks, source, np.repeat(np.arange(len(own)), [len(picked) for picked in own]))
    for name, values in zip(table.index, table.to_numpy(), strict=True):
        for first, last in _blocks(len(paths)):
            score = gain_over_block(values, first, last)
            yield name, TRANSFER[name].group, "block", first, last, score, TRANSFER[name].inherit


def _of_gradients(col: Collective, images: ImageSet, pseudo: Sequence[TargetTask]) -> Iterator[tuple]:
    blocks = [f"blocks.{name}" for name in col.model.block_names]
    tasks = [
        (images.images[torch.from_numpy(t.support.ravel())], torch.arange(t.support.size) // t.support.shape[1])
        for t in pseudo
    ]
    for name, values in target_scores(col.model, blocks, tasks, col.mean, col.std).iterrows():
        yield from _mean_rows(name, "support labels", values.to_numpy(float), "low")


def _of_transplants(
    col: Collective, images: ImageSet, unseen: Sequence[str], cfg: Config, before: nn.Module | None
) -> Iterator[tuple]:
    names = col.model.block_names
    found: dict[tuple[str, str], float] = {}
    if isinstance(before, ConvNet) and len(unseen) > 1:
        gens = [generator(cfg.collective_seed, "transplant", k) for k in range(1, N_FRONTS + 1)]
        fronts = [ConvNet.from_shape(before.shape, generator=g) for g in gens]
        own, (shown, labels) = before.block_names, images_of(images, unseen, cfg)
        paths = {name: f"blocks.{name}" for name in own}
        table = transplant_separability(before, fronts, paths, shown, labels, col.mean, col.std)
        found = {(own[int(a) - 1], own[int(b) - 1]): s for a, b, s in table.itertuples(index=False)}
    for first, last in _blocks(len(names)):  # by name: a block that was inserted later has no score
        score = found.get((names[first - 1], names[last - 1]), np.nan)
        yield "transplant", "network", "block", first, last, score, "high"


# against the atlas ----------------------------------------------------------------------------------------------------
def regret_table(
    cells: pd.DataFrame,
    atlas: pd.DataFrame,
    table: pd.DataFrame,
    *,
    length: int = 3,
    budget_percent: float = 50.0,
    shots: int | None = None,
) -> pd.DataFrame:
    """What each criterion's choice costs, in two scopes: blocks of `length` layers, and blocks of at most `budget_percent` of all
    blocks' parameters.

    cells: atlas_cells.csv; atlas: atlas.csv; table: of `criteria_table`. Columns: criterion, group, scope, first, last (its
    choice), chosen_gain (mean paired gain over scratch in points, on novel classes), regret with 95 % limits over tasks (the best
    block is found on the other tasks; see `blocks.regret`), and over_prefix with limits: chosen_gain minus that of the trivial
    rival, paired by task. Rows `longest_prefix` are that rival: the longest prefix within the budget, or the first `length`
    layers.

    Of equal blocks the deepest is chosen. A mean over layers is largest for some single layer, so within the budget such a
    criterion chooses among blocks that no other block of the budget contains; a score of whole blocks may choose any. A
    criterion with a score that is not a number, or the same everywhere, chooses nothing: NaN. Raises ValueError as `gains` does.
    """
    found = gains(cells, NOVEL, shots)
    rows_of = atlas if shots is None else atlas[atlas["shots"] == shots]
    share = rows_of.set_index(["first", "last"])["share"].loc[list(found.columns)]
    return choice_costs(found, share.to_numpy(float), table, length=length, budget_percent=budget_percent)


def choice_costs(
    found: pd.DataFrame, share: np.ndarray, table: pd.DataFrame, *, length: int = 3, budget_percent: float = 50.0
) -> pd.DataFrame:
    """`regret_table` from gains in points, tasks (rows) x blocks (columns first, last), and each block's share of all blocks'
    parameters in percent."""
    rows = []
    for scope, inside in _scopes(found, share, length, budget_percent).items():
        own = found.loc[:, inside]
        blocks = [(int(first), int(last)) for first, last in own.columns]
        prefixes = [k for k, (first, _) in enumerate(blocks) if first == 1]
        prefix = max(prefixes, key=lambda k: blocks[k][1], default=None)
        chosen = {(PREFIX, "none"): prefix}
        for (name, group), part in table.groupby(["criterion", "group"], sort=False):
            chosen[name, group] = _choice(part, blocks, scope == "within budget")
        rows += [
            {"criterion": name, "group": group, "scope": scope, **_cost(own, blocks, place, prefix)}
            for (name, group), place in chosen.items()
        ]
    return pd.DataFrame(rows)


def _scopes(found: pd.DataFrame, share: np.ndarray, length: int, budget_percent: float) -> dict[str, np.ndarray]:
    """Masks of the blocks (columns of `found`) that each scope compares."""
    return {
        f"blocks of length {length}": np.array([last - first + 1 == length for first, last in found.columns]),
        "within budget": share <= budget_percent + 1e-9,
    }


def light_regret(
    scores: pd.DataFrame,
    atlas: pd.DataFrame,
    widths: Sequence[int],
    *,
    search: pd.DataFrame | None = None,
    length: int = 3,
    budget_percent: float = 50.0,
) -> pd.DataFrame:
    """`choice_costs` on the light family's position atlas, each block with its own scratch.

    One row per ancestor that has scores and an atlas, scope and criterion. scores: of `criteria_table`, atlas: of
    `ancestors.light_atlas`, both with the columns `WHO`; widths: of all blocks; search: the same atlas on pseudo-tasks, whose
    best block is then the criterion `recommended`, of a group of its own. best_first, best_last, best_gain: the block of the
    largest mean gain, which flatters itself (regret does not use it); prefix_regret: of the longest prefix.
    """
    sizes, rows = np.append(0, np.cumsum(block_parameters(widths))), []
    ancestors = dict(iter(scores.groupby([*WHO])))
    tried = {where: _light_gains(part).mean() for where, part in search.groupby([*WHO])} if search is not None else {}
    for where, part in atlas.groupby([*WHO], sort=False):
        if where not in ancestors:
            continue
        found, own = _light_gains(part), [ancestors[where][COLUMNS]]
        if where in tried:
            blocks = [(RECOMMENDED, "pseudo-tasks tried", "block", *b, g, "high") for b, g in tried[where].items()]
            own.append(pd.DataFrame(blocks, columns=COLUMNS))
        share = np.array([100 * (sizes[last] - sizes[first - 1]) / sizes[-1] for first, last in found.columns])
        limits = {"length": length, "budget_percent": budget_percent}
        table = choice_costs(found, share, pd.concat(own), **limits).assign(**dict(zip(WHO, where, strict=True)))
        for scope, inside in _scopes(found, share, **limits).items():
            best, own = found.loc[:, inside].mean(), table[table["scope"] == scope]
            facts = dict(zip(("best_first", "best_last"), best.idxmax(), strict=True)) | {"best_gain": best.max()}
            rows.append(own.assign(**facts, prefix_regret=own["regret"][own["criterion"] == PREFIX].iloc[0]))
    return pd.concat(rows, ignore_index=True)[[*WHO, *(c for c in rows[0] if c not in WHO)]]


def _light_gains(cells: pd.DataFrame) -> pd.DataFrame:
    """Gains over each block's own scratch in points, initial weights averaged: tasks x blocks."""
    keys = ["target_task", "first", "last"]
    wide = cells.pivot_table(index=keys, columns="method", values="accuracy", aggfunc="mean")
    return (wide["inherit"] - wide["scratch"]).unstack(["first", "last"]).sort_index(axis=1)


def _choice(part: pd.DataFrame, blocks: Sequence[Block], budget: bool) -> int | None:
    """Place of the block that a criterion chooses among `blocks`; None where it cannot."""
    scores = part.set_index(["first", "last"])["score"].reindex(blocks).to_numpy(float)
    values = scores if part["inherit"].iloc[0] == "high" else -scores
    allowed = range(len(blocks))
    if budget and part["of"].iloc[0] == "layers":
        allowed = [k for k in allowed if not any(_contains(other, blocks[k]) for other in blocks)]
    if not len(allowed) or not np.isfinite(values).all() or (len(allowed) > 1 and np.ptp(values[list(allowed)]) == 0):
        return None
    scale = np.abs(values).max() or 1.0
    return max(allowed, key=lambda k: (round(values[k] / scale, 12), blocks[k][::-1]))


def _contains(one: Block, other: Block) -> bool:
    return one != other and one[0] <= other[0] and other[1] <= one[1]


def _cost(found: pd.DataFrame, blocks: Sequence[Block], place: int | None, prefix: int | None) -> dict:
    """The columns of a choice (its place among `blocks`) on gains (tasks, blocks)."""
    numbers = ["first", "last", "chosen_gain", "regret", "regret_low", "regret_high"]
    row = dict.fromkeys([*numbers, "over_prefix", "over_prefix_low", "over_prefix_high"], np.nan)
    row |= {"n_tasks": len(found), "n_blocks": len(blocks)}
    if place is None:
        return row
    values = found.to_numpy()
    cost = regret(values, values[:, place])
    row |= dict(
        zip(numbers, (*blocks[place], values[:, place].mean(), cost.estimate, cost.low, cost.high), strict=True)
    )
    if prefix is not None:
        over = mean_interval(values[:, place] - values[:, prefix])
        row |= {"over_prefix": over.estimate, "over_prefix_low": over.low, "over_prefix_high": over.high}
    return row
