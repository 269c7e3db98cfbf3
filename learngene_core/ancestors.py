"""Other ancestors, for what the collective's history is worth: each sees as many images as it did, at the final widths.

single_task: the first source task alone; fixed_width: the same sequence without growth; joint: all base classes at once;
permuted: the sequence and growth of the collective, with the labels of the base images permuted (nothing can be learned from
them but by heart). Each is a run folder of its own, `ancestors/<name>`, and goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .checkpoints import Collective
from .collective import train_collective
from .config import Config
from .division import Division, SourceTask, divide, source_tasks
from .files import OutOfTime
from .images import ImageSet, load_images
from .parts import Parts
from .processes import side_by_side
from .runs import Run
from .streams import numpy_generator


def ancestor_config(name: str, src: Sequence[SourceTask], imgs: ImageSet, div: Division, cfg: Config) -> Config:
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


def train_ancestors(names: Sequence[str], cfg: Config, run: Run) -> dict[str, Collective]:
    """Name -> the ancestor, trained or loaded; as many at a time as the machine has room for, a process each.

    Raises StudyError as training a collective does, and OutOfTime when none may be begun any more.
    """
    workers = run.machine.trainings
    left = [name for name in names if not (run.path / "ancestors" / name / "history.csv").exists()]
    if left and not Parts(run, "controls").in_time:
        raise OutOfTime(
            f"controls: {len(left)} of {len(names)} ancestors are left after minutes={cfg.minutes}; "
            "the same command goes on from there"
        )
    jobs = [(name, cfg.to_dict(), str(run.path)) for name in left]
    if workers > 1 and len(jobs) > 1:
        side_by_side(_train_apart, jobs, workers)
    return {name: train_ancestor(name, cfg, run.path) for name in names}


def train_ancestor(name: str, cfg: Config, home: Path) -> Collective:
    """One ancestor below the run folder `home`, trained or loaded."""
    imgs = load_images(cfg.data, cfg.data_path, image_size=cfg.image_size, skip_corrupt=cfg.skip_corrupt)
    div = divide(imgs, cfg)
    own = ancestor_config(name, source_tasks(imgs, div, cfg), imgs, div, cfg)
    imgs = permuted_labels(imgs, div, cfg.seed) if name == "permuted" else imgs
    run = Run.open(own, home / "ancestors" / name)
    return train_collective(imgs, div, source_tasks(imgs, div, own), own, run=run)


def _train_apart(job: tuple[str, dict, str]) -> None:
    train_ancestor(job[0], Config.from_dict(job[1]), Path(job[2]))
