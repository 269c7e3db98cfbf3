"""What can be known of a study before its first kernel starts, in a fraction of a second: whether its images are there, and
how many of which classes. A division and its tasks can be drawn from that alone, so that too few are noticed at once.
"""

from __future__ import annotations

import numpy as np
import torch

from ..config import Config
from ..tasks import ImageSet
from . import cifar, glyphs
from .images import find_source


def check_data(cfg: Config) -> None:
    """Look whether the images are where `data_path` says; none is read.

    Raises StudyError when there is no path, no folder or archive, or no images in it.
    """
    if cfg.data != "glyphs" and cfg.data_path != cifar.DOWNLOAD:
        find_source(cfg.data, cfg.data_path)


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
