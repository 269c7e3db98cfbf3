"""What the layer explorer says in numbers: a reader's options go in, a block with its prediction and its real gain comes out.

Tables only, no torch. A criterion that reads the gradient record is computed for the threshold and
sign asked for; one that looks at networks is read from layer_scores.csv. How the heat map shows the record decides nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pandas as pd

from ..analysis.blocks import block_parameters, depth_and_size, predicted
from ..criteria import CRITERIA, RECOMMENDED, null_choices, score
from ..figures.networks import shape_flops, shape_parameters
from ..figures.tables import Block
from .blocks import ANY, choose
from .runview import RunView

BASELINES = ("depth", "size")
Rank = tuple[int, int]
"""The place of a block, 1 for the best, among how many."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a reader can choose; normalisation, aggregation and gains are ways of looking and decide nothing.

    length: of the block, 0 for any; budget: most parameters inherited, percent of all blocks'; by_hand: a block (first, last),
    counted from 1, in place of the criterion's.
    """

    threshold: float = 5e-4
    sign: str = "positive"
    normalisation: str = "share"
    aggregation: str = "mean"
    criterion: str = "released"
    length: int = 3
    budget: float = 100.0
    by_hand: Block | None = None
    gains: str = "novel"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A block and all that is said of it; `block` is None where nothing is chosen, and `why` says why.

    table: the criterion's score per layer beside its null (None for one that has no score per layer). Ranks are among the
    blocks of its length, and among all: `predicted` by the criterion, `real` by the gain. They count the blocks of the atlas
    when the block is one of them, else all blocks of the network. measured: its row of atlas.csv; best: of the measured blocks
    that could have been chosen. parameters, flops: inherited, and their share of the network's in percent (flops: of one image's
    forward pass with the head; parameters: of all blocks). nulls: how many of how many untrained networks choose it too.
    """

    table: pd.DataFrame | None
    block: Block | None = None
    why: str = ""
    layers: tuple[str, ...] = ()
    predicted: tuple[Rank, Rank] | None = None
    real: tuple[Rank, Rank] | None = None
    measured: pd.Series | None = None
    best: Block | None = None
    parameters: int = 0
    parameters_share: float = 0.0
    flops: int = 0
    flops_share: float = 0.0
    nulls: Rank | None = None


def criteria_of(view: RunView) -> list[str]:
    """What can choose in this run: criteria over the record, those of layer_scores.csv, recommended, depth, size."""
    names = list(CRITERIA) if view.record is not None else []
    if view.scores is not None:
        # the released count at the other threshold is what the threshold is there for
        names += [n for n in view.scores["criterion"].unique() if n not in names and "@" not in n]
    if view.atlas is not None and view.atlas["pseudo_gain"].notna().any():
        names.append(RECOMMENDED)
    return [*names, *BASELINES]


def all_blocks(view: RunView) -> pd.DataFrame:
    """Every contiguous block: first, last, parameters, share (percent of all blocks'). Raises StudyError before a network is."""
    view.require_record()
    sizes = np.append(0, np.cumsum(block_parameters(view.shape["widths"])))
    n = len(sizes) - 1
    rows = [(a, b, sizes[b] - sizes[a - 1]) for a in range(1, n + 1) for b in range(a, n + 1)]
    table = pd.DataFrame(rows, columns=["first", "last", "parameters"])
    return table.assign(share=100 * table["parameters"] / sizes[-1])


def make_choice(view: RunView, options: Options) -> Choice:
    """The block that these options choose in this run, and what is known of it.

    Raises StudyError without a record, ValueError for a criterion that this run does not have or a block that is none.
    """
    blocks = all_blocks(view)
    table = _score_table(view, options)
    values = _values(view, options.criterion, table, blocks)
    block, why = _chosen(view, options, blocks, values)
    if block is None:
        return Choice(table, why=why)
    ends = {(a, b): k for k, (a, b) in enumerate(blocks[["first", "last"]].to_numpy(int).tolist())}
    if block not in ends:
        raise ValueError(f"{block[0]} to {block[1]} is no block; there are layers 1 to {len(view.layers)}")
    measured, gains = _measured(view, block), None
    pool = np.arange(len(blocks))
    if measured is not None:
        pool = np.array([ends[a, b] for a, b in view.atlas[["first", "last"]].to_numpy(int).tolist()])
        gains = view.atlas["gain"].to_numpy(float)
    alike = (blocks["last"] - blocks["first"]).to_numpy()[pool] == block[1] - block[0]
    own = values[ends[block]]
    layers = view.layers[block[0] - 1 : block[1]]
    return Choice(
        table,
        block,
        layers=layers,
        predicted=_ranks(values[pool], own, alike),
        real=None if gains is None else _ranks(gains, float(measured["gain"]), alike),
        measured=measured,
        best=_best(view, options, block),
        nulls=_nulls(view, options, layers),
        **_inherited(view, layers, blocks, ends[block]),
    )


def _score_table(view: RunView, options: Options) -> pd.DataFrame | None:
    """The criterion's scores per layer; None for one that has none. Raises ValueError for a criterion that is not there."""
    name = options.criterion
    if name not in criteria_of(view):
        raise ValueError(f"this run has no criterion {name!r}; there are {', '.join(criteria_of(view))}")
    if name in (RECOMMENDED, *BASELINES):
        return None
    if name in CRITERIA:
        known = {n: getattr(options, n) for n in ("threshold", "sign") if n in CRITERIA[name].options}
        return score(view.record, name, **known)
    return view.scores[view.scores["criterion"] == name].reset_index(drop=True)


def _values(view: RunView, name: str, table: pd.DataFrame | None, blocks: pd.DataFrame) -> np.ndarray:
    """What the criterion predicts for each of `blocks`, higher = inherit; NaN where it says nothing."""
    if table is not None:
        return predicted(table, blocks[["first", "last"]].to_numpy(int))
    if name == RECOMMENDED:
        known = view.atlas.set_index(["first", "last"])["pseudo_gain"]
        return known.reindex(pd.MultiIndex.from_frame(blocks[["first", "last"]])).to_numpy(float)
    return depth_and_size(blocks)[:, BASELINES.index(name)]


def _chosen(view: RunView, options: Options, blocks: pd.DataFrame, values: np.ndarray) -> tuple[Block | None, str]:
    """The chosen block and "", or None and why there is none."""
    if options.by_hand is not None:
        return options.by_hand, ""
    if options.criterion == RECOMMENDED:  # it predicts only what was tried
        blocks, values = view.atlas, view.atlas["pseudo_gain"].to_numpy(float)
    place, places = choose(blocks, values, options.criterion, options.length, options.budget)
    if place is not None:
        return (int(blocks["first"].iloc[place]), int(blocks["last"].iloc[place])), ""
    if not len(places):
        return None, "no block of this length is within the budget"
    same = np.isfinite(values).all()
    return None, f"{options.criterion} {'is the same for every block' if same else 'has no score for some layer'}"


def _measured(view: RunView, block: Block) -> pd.Series | None:
    if view.atlas is None:
        return None
    rows = view.atlas[(view.atlas["first"] == block[0]) & (view.atlas["last"] == block[1])]
    return rows.iloc[0] if len(rows) else None


def _ranks(values: np.ndarray, own: float, alike: np.ndarray) -> tuple[Rank, Rank] | None:
    """Rank of the value `own` among those of blocks of equal length, and among all; None where it has no value."""
    if not np.isfinite(own):
        return None
    return tuple((1 + int((some > own).sum()), int(np.isfinite(some).sum())) for some in (values[alike], values))


def _best(view: RunView, options: Options, block: Block) -> Block | None:
    """The measured block with the largest gain among those that could have been chosen."""
    if view.atlas is None:
        return None
    table, size = view.atlas, view.atlas["last"] - view.atlas["first"]
    inside = table["share"] <= options.budget + 1e-9
    if options.length != ANY or options.by_hand is not None:
        inside &= size == block[1] - block[0]
    if not inside.any():
        return None
    row = table[inside].loc[table.loc[inside, "gain"].idxmax()]
    return int(row["first"]), int(row["last"])


def _inherited(view: RunView, layers: tuple[str, ...], blocks: pd.DataFrame, place: int) -> dict[str, float]:
    flops, whole = shape_flops(view.shape, layers), shape_flops(view.shape)
    return {
        "parameters": shape_parameters(view.shape, layers),
        "parameters_share": float(blocks["share"].iloc[place]),
        "flops": flops,
        "flops_share": 100 * flops / whole,
    }


def _nulls(view: RunView, options: Options, layers: tuple[str, ...]) -> Rank | None:
    """How many untrained networks choose the same block of this length; None where that cannot be asked."""
    name, n = options.criterion, len(view.record.null_counts)
    if options.by_hand is not None or name not in CRITERIA or options.length == ANY or options.budget < 100 or not n:
        return None
    known = {o: getattr(options, o) for o in ("threshold", "sign") if o in CRITERIA[name].options}
    with contextlib.suppress(ValueError):
        return sum(found == layers for found in null_choices(view.record, name, options.length, **known)), n
    return None
