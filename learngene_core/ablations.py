"""What in an inherited block matters: its content, what holds it, and where it comes from.

All arms are same-shape individuals on the atlas' target tasks, initial weights and batches: each difference is paired. Beside
the learngene the block of equal length from the first layer on is put through the same, as a contrast.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from .ancestors import train_ancestors
from .arms import Arm, Donor
from .atlas import atlas_config, atlas_tasks
from .checkpoints import Collective
from .config import Config
from .controls import CONTROLS, applicable, untrained
from .division import Division, TargetTask
from .files import say
from .images import ImageSet
from .individuals import Reconstruction
from .learngene import Learngene
from .parts import Parts
from .runs import Run
from .streams import generator

COLUMNS = ["family", "block", "method", "shots", "target_task", "init", "accuracy", "first", "last"]


def ablation_blocks(gene: Learngene, names: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """The blocks that are examined: the learngene, and as many layers from the first on (if that is another block)."""
    first = names.index(gene.layers[0]) + 1
    blocks = {"learngene": (first, first + len(gene.layers) - 1), "first": (1, len(gene.layers))}
    return blocks if first > 1 else {"learngene": blocks["learngene"]}


def wanted_controls(cfg: Config, gene: Learngene) -> list[str]:
    """Names of the content controls of the configuration that this block can have."""
    everything = "all" in cfg.controls
    return [name for name in applicable(gene) if everything or name in cfg.controls]


def ablation_arms(
    block: str, layers: tuple[int, int], col: Collective, others: dict[str, Collective], cfg: Config
) -> dict[str, list[Arm]]:
    """The arms of one block, by the name of their pieces: "" for scratch, inherited as it is, each control, frozen and pulled
    to its start; and one for each other ancestor, so that an ancestor can be added later."""
    columns = (("block", block), ("first", layers[0]), ("last", layers[1]))

    def cut(source: Collective) -> Learngene:
        names = source.model.block_names[layers[0] - 1 : layers[1]]
        return Learngene.from_model(source.model, names, mean=col.mean, std=col.std, fisher=source.fisher)

    def arm(method: str, donor: Donor, **options: object) -> Arm:
        return Arm("same_shape", method, cfg.atlas_rate, donor=donor, columns=columns, **options)

    def controlled(name: str) -> Donor:
        def donor(draw: tuple) -> Learngene:
            stream = cfg.seed, "control", cfg.target_seed, *draw
            fresh = untrained(gene, col.model.shape, generator(*stream, "untrained"))
            return CONTROLS[name].make(gene, fresh, generator(*stream, name))

        return donor

    gene = cut(col)
    inherit = _constant(gene)
    arms = [arm("scratch", _constant(None)), arm("inherit", inherit)]
    arms += [arm(name, controlled(name)) for name in wanted_controls(cfg, gene)]
    arms.append(arm("frozen", inherit, hold="frozen"))
    for hold, strengths in (("ewc", cfg.control_ewc), ("l2", cfg.control_l2)):
        kind = "fisher" if hold == "ewc" else hold
        arms += [arm(f"{hold}:{strength:g}", inherit, ewc=strength, hold=kind) for strength in strengths]
    return {"": arms, **{f"{n}_": [arm(f"ancestor:{n}", _constant(cut(other)))] for n, other in others.items()}}


def _constant(gene: Learngene | None) -> Callable[[tuple], Learngene | None]:
    return lambda draw: gene


def compute_controls(
    gene: Learngene, col: Collective, imgs: ImageSet, div: Division, cfg: Config, run: Run
) -> pd.DataFrame:
    """One row per individual (controls.csv): family, block (learngene, first), method, shots, target_task, init, accuracy,
    first, last.

    Raises OutOfTime (pieces are kept) after `cfg.minutes`.
    """
    run.check("controls", cfg)
    if run.done("controls"):
        say("controls: found in the run folder, loaded")
        return run.read_table("controls.csv")
    tasks = atlas_tasks(imgs, div, cfg)["novel"]
    others = train_ancestors(cfg.ancestors, cfg, run)
    with run.computing("controls", ["controls.csv"]):
        table = _rows(gene, col, others, imgs, tasks, cfg, run)
        run.write_table("controls.csv", table)
    say(f"controls: {table['method'].nunique()} arms of {table['block'].nunique()} blocks, saved")
    return run.read_table("controls.csv")


def _rows(
    gene: Learngene,
    col: Collective,
    others: dict[str, Collective],
    imgs: ImageSet,
    tasks: list[TargetTask],
    cfg: Config,
    run: Run,
) -> pd.DataFrame:
    whole = Learngene.from_model(col.model, col.model.block_names, mean=col.mean, std=col.std, fisher=col.fisher)
    blocks, rows, parts = ablation_blocks(gene, col.model.block_names), [], Parts(run, "controls")
    sets = [(b, n, arms) for b, k in blocks.items() for n, arms in ablation_arms(b, k, col, others, cfg).items()]
    each = len(tasks) * cfg.atlas_inits
    for number, (block, name, arms) in enumerate(sets):
        work = Reconstruction(whole, col, imgs, atlas_config(cfg), arms, run, "controls")
        work.span = (number * each, len(sets) * each)
        for piece in work.pieces(tasks, parts, f"{block}_{name}", curves=False):
            rows += piece["rows"]
    order = {m: i for i, m in enumerate(dict.fromkeys(arm.method for _, _, arms in sets for arm in arms))}
    keys = ["block", "method", "shots", "target_task", "init"]
    table = pd.DataFrame(rows)[COLUMNS]
    return table.sort_values(keys, key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True)
