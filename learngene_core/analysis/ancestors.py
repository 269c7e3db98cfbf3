"""Ancestors as units: what collective models of several kinds give to individuals on the same target tasks.

One collective model says nothing about the method: another order of tasks, other weights, another training may reverse what it
shows. Here the unit is the ancestor. `examine` trains one and its individuals, for the same target tasks as all others; the
tables of many are put one below the other, and `judge_ancestors` reads the predeclared claims (`ancestors.yaml`) on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..arms import Arm, arms_of, block_of, constant, cut, longest_prefix
from ..collective import Collective, sequence_summary, train_collective
from ..config import Config, Machine
from ..criteria import score_all
from ..data.division import Division, divide, source_tasks, target_tasks
from ..fewshot import Individuals, nearest_class_mean
from ..learngene import Learngene, cut_learngene, light_shape
from ..tasks import ImageSet
from .ancestor_tables import atlas_gains


def who(cfg: Config) -> dict[str, Any]:
    """The ancestor of a configuration, by the columns `WHO`."""
    return {
        "data": cfg.data,
        "ancestor": cfg.ancestor,
        "ancestor_seed": cfg.collective_seed,
        "division_seed": cfg.division_seed,
    }


def train_ancestor(images: ImageSet, cfg: Config, machine: Machine | None = None) -> tuple[Division, Collective]:
    """The division and the collective of a configuration, in memory."""
    div = divide(images, cfg)
    return div, train_collective(images, source_tasks(images, div, cfg), cfg, machine=machine)


def examine(
    images: ImageSet,
    div: Division,
    col: Collective,
    cfg: Config,
    *,
    machine: Machine | None = None,
    search: bool = True,
) -> dict[str, pd.DataFrame]:
    """Tables of one ancestor, each with the columns `WHO`.

    individuals: light individuals of the last three, the first three, conv1-7, the longest prefix and, with `search`, the
    block that pseudo-tasks recommend, each with its own scratch, on all target tasks (columns as results.csv, one set of
    initial weights or more); search: one row per light block of the position atlas on the pseudo-tasks; scores: every
    criterion of the gradient record per layer; ancestors: one row: accuracy (percent) of the nearest class mean on the
    target tasks, of the collective on its own held-out images after the last task, and the chosen blocks.
    """
    names, about = col.model.block_names, who(cfg)
    gene = cut_learngene(col, cfg, layers=names[-cfg.n_blocks :])
    tasks, blocks, tables = target_tasks(images, div, cfg), {"prefix_7": names[:7]}, {}
    methods = ["scratch", "learngene", "first", "prefix_7", "longest_prefix"]
    if search:
        pseudo = target_tasks(images, div, cfg, group="open_world", n_tasks=cfg.atlas_pseudo_tasks)
        tables["search"] = light_atlas(col, images, pseudo, cfg, machine=machine).assign(**about)
        blocks["recommended"] = recommended_light(tables["search"], col, cfg)
        methods.append("recommended")
    arms = arms_of(gene, col, cfg, methods, blocks)
    rows, _ = Individuals(arms, images, cfg, gene.mean, gene.std, machine=machine).table(tasks)
    tables["individuals"] = rows.assign(**about)
    tables["scores"] = score_all(col.record, cfg).assign(**about)
    ncm = nearest_class_mean(col, images, tasks, cfg)
    own = sequence_summary(col.history)
    row = {
        **about,
        "ncm": ncm["accuracy"].mean(),
        "closed": own["average_accuracy"],
        "just_learned": own["just_learned"],
    }
    chosen = {name: "-".join(dict.fromkeys((b[0], b[-1]))) for name, b in blocks.items()}
    prefix = block_of(cut(col, longest_prefix(col, cfg.inherited_share), gene))
    tables["ancestors"] = pd.DataFrame(
        [{**row, "longest_prefix": prefix, "recommended": chosen.get("recommended", "")}]
    )
    return tables


def light_arms(col: Collective, cfg: Config, pairs: Sequence[tuple[int, int]]) -> list[Arm]:
    """A light arm, and its own scratch, for every block (first, last), numbers from 1."""
    names, arms = col.model.block_names, []
    for first, last in pairs:
        gene = Learngene.from_model(col.model, names[first - 1 : last], mean=col.mean, std=col.std)
        shape, columns = (
            light_shape(gene, cfg.n_way, cfg),
            (("block", block_of(gene)), ("first", first), ("last", last)),
        )
        arms.append(Arm("light", "scratch", cfg.individual_rate, shape, columns=columns))
        arms.append(Arm("light", "inherit", cfg.individual_rate, shape, constant(gene), columns=columns))
    return arms


def light_atlas(
    col: Collective, images: ImageSet, tasks: Sequence, cfg: Config, *, machine: Machine | None = None
) -> pd.DataFrame:
    """The position atlas of the light family: every prefix and every window of three blocks; one row per individual
    (columns as results.csv, and first, last)."""
    n = len(col.model.block_names)
    pairs = sorted({(1, last) for last in range(1, n + 1)} | {(f, f + 2) for f in range(1, n - 1)})
    rows, _ = Individuals(light_arms(col, cfg, pairs), images, cfg, col.mean, col.std, machine=machine).table(tasks)
    return rows


def recommended_light(atlas: pd.DataFrame, col: Collective, cfg: Config) -> tuple[str, ...]:
    """The block of the largest mean gain in a light atlas (of pseudo-tasks) within `inherited_share` of the parameters."""
    sizes = [sum(p.numel() for p in block.parameters()) for block in col.model.blocks.values()]
    gains = atlas_gains(atlas)
    share = gains.apply(lambda r: sum(sizes[int(r["first"]) - 1 : int(r["last"])]) / sum(sizes) * 100, axis=1)
    best = gains[share <= cfg.inherited_share].sort_values("gain").iloc[-1]
    return tuple(col.model.block_names[int(best["first"]) - 1 : int(best["last"])])
