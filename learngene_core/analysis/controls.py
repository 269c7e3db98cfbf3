"""What in an inherited block matters: its content, what holds it, and where it comes from (controls.csv).

All arms are same-shape individuals on the atlas' target tasks, initial weights and batches, so each difference is paired. Beside
the learngene the block of equal length from the first layer on is put through the same, as a contrast. The content controls are
those of `content`.

Other ancestors show what the collective's history is worth. Each sees as many images as it did, at the final widths.
single_task: the first source task alone; fixed_width: the same sequence without growth; joint: all base classes at once;
permuted: the sequence and growth of the collective, with the labels of the base images permuted (nothing can be learned from
them but by heart). Each is a run folder of its own, `ancestors/<name>`, and goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..arms import Arm, Donor, Draw, constant, same_shape, stream_of
from ..collective import Collective
from ..config import Config
from ..data.division import Division, divide, source_tasks
from ..data.images import load_images
from ..errors import OutOfTime, say
from ..learngene import Learngene
from ..runs import stages
from ..runs.machine import machine_of, side_by_side
from ..runs.pieces import Pieces
from ..runs.run import Run
from ..tasks import ImageSet, SourceTask, TargetTask, generator, numpy_generator
from .atlas import atlas_config, atlas_tasks
from .content import CONTROLS, applicable, untrained_blocks
from .released import walk_of

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
    shape = same_shape(col, cfg)

    def cut(source: Collective) -> Learngene:
        names = source.model.block_names[layers[0] - 1 : layers[1]]
        return Learngene.from_model(source.model, names, mean=col.mean, std=col.std, fisher=source.fisher)

    def arm(method: str, donor: Donor, **options: object) -> Arm:
        return Arm("same_shape", method, cfg.atlas_rate, shape, donor, columns=columns, **options)

    def controlled(name: str) -> Donor:
        def donor(draw: Draw) -> Learngene:
            stream = cfg.seed, "control", cfg.target_seed, *stream_of(draw)
            fresh = untrained_blocks(gene, col.model.shape, generator(*stream, "untrained"))
            return CONTROLS[name].make(gene, fresh, generator(*stream, name))

        return donor

    gene = cut(col)
    inherit = constant(gene)
    arms = [arm("scratch", constant(None)), arm("inherit", inherit)]
    arms += [arm(name, controlled(name)) for name in wanted_controls(cfg, gene)]
    arms.append(arm("frozen", inherit, hold="frozen"))
    for hold, strengths in (("ewc", cfg.control_ewc), ("l2", cfg.control_l2)):
        kind = "fisher" if hold == "ewc" else hold
        arms += [arm(f"{hold}:{strength:g}", inherit, ewc=strength, hold=kind) for strength in strengths]
    return {"": arms, **{f"{n}_": [arm(f"ancestor:{n}", constant(cut(other)))] for n, other in others.items()}}


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
    others = train_others(cfg.ancestors, cfg, run)
    with run.computing("controls", ["controls.csv"]):
        table = _individuals(gene, col, others, imgs, tasks, cfg, run)
        run.write_table("controls.csv", table)
    say(f"controls: {table['method'].nunique()} arms of {table['block'].nunique()} blocks, saved")
    return run.read_table("controls.csv")


def _individuals(
    gene: Learngene,
    col: Collective,
    others: dict[str, Collective],
    imgs: ImageSet,
    tasks: list[TargetTask],
    cfg: Config,
    run: Run,
) -> pd.DataFrame:
    blocks, rows, parts = ablation_blocks(gene, col.model.block_names), [], Pieces(run, "controls")
    sets = [(b, n, arms) for b, k in blocks.items() for n, arms in ablation_arms(b, k, col, others, cfg).items()]
    each = len(tasks) * cfg.atlas_inits
    for number, (block, name, arms) in enumerate(sets):
        span = number * each, len(sets) * each
        work = stages.individuals(run, "controls", arms, imgs, atlas_config(cfg), col.mean, col.std, span=span)
        for piece in work.pieces(tasks, parts, f"{block}_{name}", curves=False):
            rows += piece["rows"]
    order = {m: i for i, m in enumerate(dict.fromkeys(arm.method for _, _, arms in sets for arm in arms))}
    keys = ["block", "method", "shots", "target_task", "init"]
    table = pd.DataFrame(rows)[COLUMNS]
    return table.sort_values(keys, key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True)


# other ancestors -------------------------------------------------------------------------------------------------------
def other_config(name: str, src: Sequence[SourceTask], imgs: ImageSet, div: Division, cfg: Config) -> Config:
    """The configuration an ancestor is trained with: as many image passes as the collective had (rounded to epochs).

    Raises ValueError for an unknown ancestor.
    """
    passes = sum(len(t.train) * (cfg.epochs if t.number > 1 else cfg.first_task_epochs) for t in src)
    fixed = cfg.replace(growth="none", deepen_before=())
    if name == "permuted":
        return cfg
    if name == "fixed_width":
        return fixed
    if name == "single_task":
        return fixed.replace(n_source_tasks=1, first_task_epochs=max(1, round(passes / len(src[0].train))))
    if name == "joint":
        joint = fixed.replace(n_source_tasks=1, source_way=len(div.base), source_draw="disjoint")
        images = len(source_tasks(imgs, div, joint)[0].train)
        return joint.replace(first_task_epochs=max(1, round(passes / images)))
    raise ValueError(f"unknown ancestor {name!r}; there are single_task, fixed_width, joint, permuted")


def permuted_labels(imgs: ImageSet, div: Division, seed: int) -> ImageSet:
    """The same images, the labels of base classes permuted among them (training and official test images apart)."""
    labels, rng = imgs.labels.numpy().copy(), numpy_generator(seed, "permuted labels")
    base = np.isin(labels, [imgs.class_names.index(n) for n in div.base])
    held = np.zeros(len(labels), bool) if imgs.held_out is None else imgs.held_out.numpy()
    for part in (base & ~held, base & held):
        labels[part] = rng.permutation(labels[part])
    return dataclasses.replace(imgs, labels=torch.from_numpy(labels))


def train_others(names: Sequence[str], cfg: Config, run: Run) -> dict[str, Collective]:
    """Name -> the ancestor, trained or loaded; as many at a time as the machine has room for, a process each.

    Raises StudyError as training a collective does, and OutOfTime when none may be begun any more.
    """
    workers = machine_of(run).trainings
    left = [name for name in names if not (run.path / "ancestors" / name / "history.csv").exists()]
    if left and not Pieces(run, "controls").in_time:
        raise OutOfTime(
            f"controls: {len(left)} of {len(names)} ancestors are left after minutes={cfg.minutes}; "
            "the same command goes on from there"
        )
    jobs = [(name, cfg.to_dict(), str(run.path)) for name in left]
    if workers > 1 and len(jobs) > 1:
        side_by_side(_other_apart, jobs, workers)
    return {name: train_other(name, cfg, run.path) for name in names}


def train_other(name: str, cfg: Config, home: Path) -> Collective:
    """One ancestor below the run folder `home`, trained or loaded."""
    imgs = load_images(cfg.data, cfg.data_path, image_size=cfg.image_size, skip_corrupt=cfg.skip_corrupt)
    div = divide(imgs, cfg)
    own = other_config(name, source_tasks(imgs, div, cfg), imgs, div, cfg)
    imgs = permuted_labels(imgs, div, cfg.seed) if name == "permuted" else imgs
    run = Run.open(own, home / "ancestors" / name)
    return stages.trained_collective(run, imgs, source_tasks(imgs, div, own), train=walk_of(own))


def _other_apart(job: tuple[str, dict, str]) -> None:
    train_other(job[0], Config.from_dict(job[1]), Path(job[2]))
