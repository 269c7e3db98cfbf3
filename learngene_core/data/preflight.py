"""What can be known of a study before its first kernel starts: whether its images are there, and enough for every stage."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import torch

from ..config import Config
from ..errors import StudyError
from ..tasks import ImageSet
from . import cifar, glyphs
from .division import Division, divide, parts, source_tasks, target_tasks
from .images import find_source


def check_data(cfg: Config) -> None:
    """Look whether the images are where `data_path` says; none is read.

    Raises StudyError when there is no path, no folder or archive, or no images in it.
    """
    if cfg.data != "glyphs" and cfg.data_path != cifar.DOWNLOAD:
        find_source(cfg.data, cfg.data_path)


def check_study(cfg: Config) -> None:
    """Look whether there are classes and images enough for every stage of a study; no image is read.

    Raises StudyError that says what is missing and the ways out.
    """
    images = outline(cfg)
    with contextlib.redirect_stdout(io.StringIO()):  # what is said here will be said again by the stages
        div = divide(images, cfg)
        source_tasks(images, div, cfg)
        target_tasks(images, div, cfg)
        _check_open_world(images, div, cfg)
        _check_atlas(images, div, cfg)


def outline(cfg: Config) -> ImageSet:
    """The image set of a configuration without its pixels: names, labels and official test images, black images of one pixel.

    Raises StudyError as `check_data` does.
    """
    if cfg.data == "glyphs":
        names, labels, held_out = _glyphs()
    elif cfg.data_path == cifar.DOWNLOAD:
        names, labels, held_out = cifar.published()
    else:
        names, labels, held_out = find_source(cfg.data, cfg.data_path).outline()
    return ImageSet(
        cfg.data,
        torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8),
        torch.from_numpy(labels),
        tuple(names),
        {},
        torch.from_numpy(held_out) if held_out.any() else None,
    )


def _glyphs() -> tuple[list[str], np.ndarray, np.ndarray]:
    names, each = list(glyphs.class_names()[0]), glyphs.RECIPE["images_per_class"]
    return names, np.repeat(np.arange(len(names)), each), np.zeros(len(names) * each, bool)


def _check_open_world(images: ImageSet, div: Division, cfg: Config) -> None:
    if not div.open_world:
        raise StudyError(
            "the division has no open-world class, and the open-world stage needs one; give a division of your own (--set "
            "split=FILE), or run the other stages by themselves (learngene reconstruct)"
        )
    for name in div.open_world:
        parts(images, name, cfg.support_pool, cfg.query_images, cfg)


def _check_atlas(images: ImageSet, div: Division, cfg: Config) -> None:
    own = cfg.replace(shots=(cfg.atlas_shots,))
    target_tasks(images, div, own, n_tasks=cfg.atlas_tasks)
    if not cfg.atlas_pseudo_tasks:
        return
    if len(div.open_world) < cfg.n_way:
        ways = [f"--set n_way={len(div.open_world)}"] * (len(div.open_world) > 1)
        ways += ["--set atlas_pseudo_tasks=0 (then it recommends no block)", "--set split=FILE with more of them"]
        raise StudyError(
            f"the atlas needs pseudo-tasks of n_way = {cfg.n_way} open-world classes, and the {len(images.class_names)} classes "
            f"of {cfg.data} leave {len(div.open_world)}: " + ", or ".join(ways)
        )
    target_tasks(images, div, own, group="open_world", n_tasks=cfg.atlas_pseudo_tasks)
