"""Arms: the ways to make an individual model, each a shape and what it inherits.

Two families, never compared across: `light` (four fresh blocks, the learngene, a fresh head: the form of Wang et al. 2022) and
`same_shape` (the collective's own shape, any blocks inherited, the rest fresh). A light individual's shape depends on where its
block is in the network, so every light block has its own `scratch`. Only arms of one family and block are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .collective import Collective
from .config import Config
from .errors import StudyError
from .learngene import Learngene, light_shape
from .network import ConvNet
from .presets import METHODS
from .tasks import TargetTask, generator

Draw = tuple[TargetTask, int]
"""A target task and the number of a set of initial weights."""

Donor = Callable[[Draw], Learngene | None]
"""What to inherit, made anew for every draw; None: nothing."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to make an individual.

    family, method; rate: learning rate; shape: of the network (`ConvNet.from_shape`); donor: what it inherits; ewc: strength of
    the pull towards the inherited weights (0: none); hold: what that pull weighs with, "fisher" (EWC) or "l2" (all alike:
    L2-SP, Li et al. 2018), or "frozen": inherited parameters do not move at all (their batch-norm statistics do); columns:
    further columns of the arm's rows.
    """

    family: str
    method: str
    rate: float
    shape: dict = dataclasses.field(compare=False)
    donor: Donor = dataclasses.field(default=lambda draw: None, compare=False)
    ewc: float = 0.0
    hold: str = "fisher"
    columns: tuple[tuple[str, object], ...] = ()

    @property
    def holds(self) -> bool:
        """Whether something pulls it towards its inherited weights, or holds it there."""
        return bool(self.ewc) or self.hold == "frozen"


def same_shape(col: Collective, cfg: Config) -> dict:
    """Shape of the same-shape individuals: the collective's own, with a head of `n_way` outputs."""
    return {**col.model.shape, "n_classes": cfg.n_way, "dropout": 0.0}


def arms_of(
    gene: Learngene,
    col: Collective,
    cfg: Config,
    methods: Sequence[str],
    blocks: Mapping[str, tuple[str, ...]] | None = None,
) -> list[Arm]:
    """Every family's arms among `methods`, in the order of `presets.METHODS`.

    `random` inherits the learngene's blocks from an untrained collective, another one for each draw. It should equal `scratch`
    up to chance, and so checks the comparison. `first`: as many blocks from the first on; `longest_prefix`: the longest prefix
    within `inherited_share` of the parameters of all blocks, which needs no search; `full`: all. blocks: layers by
    method, for `recommended` or any method of the light family that inherits another block. A light individual's shape
    depends on where its block is, so every light block has its own `scratch`; an arm's `block` column says which pair it
    belongs to.

    Raises ValueError for an unknown method, StudyError for EWC with a learngene that has no Fisher information, and for
    `recommended` without a block.
    """
    blocks, names = dict(blocks or {}), col.model.block_names
    _check_methods(gene, methods, blocks)
    layers = {"first": names[: len(gene.layers)], "longest_prefix": longest_prefix(col, cfg.inherited_share), **blocks}
    # what each method inherits; None: nothing, or no prefix fits a tiny share
    parts = {m: cut(col, layers[m], gene) if m in layers else gene for m in methods}
    parts |= {"scratch": None, "full": cut(col, names, gene)}
    light = [m for m in dict.fromkeys((*METHODS["light"], *blocks)) if m in methods]
    same = [m for m in METHODS["same_shape"] if m in methods]
    return [*_light(gene, col, cfg, light, parts), *_same_shape(col, cfg, same, parts)]


def _check_methods(gene: Learngene, methods: Sequence[str], blocks: Mapping[str, tuple[str, ...]]) -> None:
    """Whether every method is known and has what it needs; raises as `arms_of` does."""
    known = list(dict.fromkeys((*METHODS["light"], *METHODS["same_shape"], *METHODS["none"], *blocks)))
    if unknown := set(methods) - set(known):
        raise ValueError(f"unknown method {sorted(unknown)[0]!r}; there are {', '.join(known)}")
    if "learngene_ewc" in methods and gene.fisher is None:
        raise StudyError(
            "learngene_ewc needs the Fisher information, and this learngene has none; "
            "cut it again with its Fisher or leave the method out"
        )
    if "recommended" in methods and "recommended" not in blocks:
        raise StudyError(
            "the method recommended needs a block: find one in the atlas and give blocks={'recommended': ...}"
        )


def _light(
    gene: Learngene, col: Collective, cfg: Config, methods: Sequence[str], parts: Mapping[str, Learngene | None]
) -> list[Arm]:
    """The light family block by block, each block with its own scratch; parts: what every method inherits."""
    by_block: dict[str, list[str]] = {}
    for method in methods:
        if parts[method] is not None:
            by_block.setdefault(block_of(parts[method]), []).append(method)
    arms = []
    for block, inheriting in (by_block or {block_of(gene): []}).items():
        shape = light_shape(parts[inheriting[0]] if inheriting else gene, cfg.n_way, cfg)
        for method in (*(m for m in methods if m == "scratch"), *inheriting):
            donor = untrained(gene, col, cfg) if method == "random" else constant(parts[method])
            arms.append(_arm("light", method, shape, block, donor, cfg))
    return arms


def _same_shape(
    col: Collective, cfg: Config, methods: Sequence[str], parts: Mapping[str, Learngene | None]
) -> list[Arm]:
    """The family of the collective's own shape; parts: what every method inherits, in its old place."""
    shape, whole = same_shape(col, cfg), f"{col.model.block_names[0]}-{col.model.block_names[-1]}"
    return [_arm("same_shape", m, shape, whole, constant(parts[m]), cfg) for m in methods]


def _arm(family: str, method: str, shape: dict, block: str, donor: Donor, cfg: Config) -> Arm:
    strength = cfg.individual_ewc if method == "learngene_ewc" else 0.0
    return Arm(family, method, cfg.rate(family, method), shape, donor, ewc=strength, columns=(("block", block),))


def block_of(gene: Learngene) -> str:
    """The block that a learngene is, as tables name it: "conv11-conv13"."""
    return f"{gene.layers[0]}-{gene.layers[-1]}"


def cut(col: Collective, layers: tuple[str, ...], like: Learngene) -> Learngene | None:
    """Blocks of the collective with the normalisation of a learngene; None where there are none."""
    return Learngene.from_model(col.model, tuple(layers), mean=like.mean, std=like.std) if layers else None


def longest_prefix(col: Collective, share: float) -> tuple[str, ...]:
    """Names of the longest prefix that holds at most `share` percent of the parameters of all blocks; () where none does."""
    sizes = {name: sum(p.numel() for p in block.parameters()) for name, block in col.model.blocks.items()}
    within = np.cumsum([*sizes.values()]) <= share / 100 * sum(sizes.values())
    return tuple(sizes)[: int(within.sum())]


def constant(gene: Learngene | None) -> Donor:
    """A donor that gives every draw the same."""
    return lambda draw: gene


def untrained(gene: Learngene, col: Collective, cfg: Config) -> Donor:
    """A donor of the learngene's blocks out of an untrained collective, another one for each draw."""

    def donor(draw: Draw) -> Learngene:
        g = generator(cfg.seed, "untrained collective", cfg.target_seed, *stream_of(draw))
        fresh = ConvNet.from_shape(col.model.shape, generator=g)
        return Learngene.from_model(fresh, gene.layers, mean=gene.mean, std=gene.std)

    return donor


def stream_of(draw: Draw) -> tuple[str, int, int]:
    """Names of the random streams that belong to a draw: group and number of the task, number of the initial weights."""
    return draw[0].group, draw[0].number, draw[1]
