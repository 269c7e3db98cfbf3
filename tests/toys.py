"""A tiny image set and configuration, shared by the tests of the chain: seconds instead of minutes."""

import dataclasses

import numpy as np
import torch

from learngene_core.collective import Collective, train_collective
from learngene_core.config import Config, Machine
from learngene_core.data.division import Division, divide, source_tasks
from learngene_core.learngene import Learngene, cut_learngene
from learngene_core.tasks import ImageSet

N_CLASSES, PER_CLASS, SIZE = 20, 24, 32


def toy_images(seed=0):
    """20 classes of 24 images: a coarse colour pattern per class, shifted in brightness, with noise; easy to learn."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(30, 226, (N_CLASSES, 1, 3, 4, 4)).repeat(PER_CLASS, 1).repeat(8, 3).repeat(8, 4)
    pixels = patterns + rng.integers(-25, 26, (N_CLASSES, PER_CLASS, 1, 1, 1)) + rng.normal(0, 12, patterns.shape)
    return ImageSet(
        "toy",
        torch.from_numpy(pixels.clip(0, 255).astype(np.uint8).reshape(-1, 3, SIZE, SIZE)),
        torch.arange(N_CLASSES).repeat_interleave(PER_CLASS),
        tuple(f"class {i:02d}" for i in range(N_CLASSES)),
        {},
    )


def toy_config(**changes):
    """The smoke preset, smaller still: 3 source tasks of 3 classes, 2 target tasks of 2 classes, on one CPU thread."""
    small = {
        "n_source_tasks": 3,
        "source_way": 3,
        "source_images": 12,
        "held_out_images": 8,
        "support_pool": 12,
        "query_images": 8,
        "epochs": 1,
        "first_task_epochs": 2,
        "batch_size": 12,
        "shift": 1,
        "fisher_images": 12,
        "null_networks": 2,
        "null_steps": 1,
        "n_target_tasks": 2,
        "n_way": 2,
        "shots": (4,),
        "individual_rates": (),
        "individual_epochs": 2,
        "individual_batch": 4,
        "device": "cpu",
        "workers": 1,
    }
    return Config.preset("smoke", **{**small, **changes})


@dataclasses.dataclass
class World:
    """A collective on toy images, and what it came from."""

    cfg: Config
    images: ImageSet
    div: Division
    col: Collective
    gene: Learngene


def toy_world(**changes):
    """A `World`, trained and cut on one thread; changes to `toy_config`."""
    cfg, images = toy_config(**changes), toy_images()
    div = divide(images, cfg)
    col = train_collective(images, source_tasks(images, div, cfg), cfg, machine=Machine())
    return World(cfg, images, div, col, cut_learngene(col, cfg))


def states_equal(one, two):
    """Whether two state dictionaries hold the same names and bit-equal tensors."""
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def tables_equal(one, two):
    """Whether two tables are equal files."""
    return one.to_csv(index=False) == two.to_csv(index=False)
