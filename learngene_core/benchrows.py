"""The rows of the speed table: what is ours, and the bare counterpart that it is held against."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .arms import arms_of
from .checkpoints import Collective
from .config import Config
from .division import divide, source_tasks, target_tasks
from .ewc import Penalty
from .gradients import Recorder, block_weights
from .images import channel_statistics, load_images, normalise
from .individuals import Reconstruction
from .learngene import Learngene
from .machine import Machine
from .network import ConvNet
from .presets import PAPER_POOLS
from .record import Record
from .streams import generator
from .timing import Pair, Rows, compare, pairs
from .training import Recipe, fit, task_loss

IMAGES, BATCH = 1000, 64  # of a turn: a third of a source task of the released scripts
TURNS = 15  # five epochs of 3,000 images each way, in thirds, since a machine's speed may change within minutes
DECODED = 1500  # image files of the reading rows


# the collective's training ------------------------------------------------------------------------------------------------
def epoch_rows(cfg: Config, *, n: int = IMAGES, rounds: int = TURNS, divisor: int = 1) -> Rows:
    """Epochs of the paper's base network over `n` images in memory: ours, with the record, with EWC; against a bare loop."""
    machine = Machine.resolve(cfg.replace(threads=cfg.threads if divisor > 1 else 0))
    machine.use()
    bench = Epochs(cfg, machine, n, divisor)
    ways = {
        "bare": bench.bare,
        "plain": bench.ours,
        "record": functools.partial(bench.ours, record=True),
        "ewc": functools.partial(bench.ours, ewc=True),
    }
    for way in ways.values():  # first calls choose algorithms and allocate
        way(short=True)
    found = pairs(ways, rounds)
    return {
        "epoch": (found["plain", "bare"], 1.10, "an epoch of `fit`", "a bare PyTorch loop"),
        "epoch, recorded": (found["record", "bare"], 1.15, "with the gradient record", "a bare PyTorch loop"),
        "epoch, record": (found["record", "plain"], None, "with the gradient record", "without"),
        "epoch, EWC": (found["ewc", "plain"], 1.15, "with the EWC penalty", "without"),
    }


class Epochs:
    """One network, trained an epoch at a time in several ways on the same images; `divisor` makes it smaller for tests."""

    def __init__(self, cfg: Config, machine: Machine, n: int, divisor: int):
        self.device = torch.device(machine.device)
        imgs = load_images(cfg.data, cfg.data_path, image_size=cfg.image_size)
        pick = torch.randperm(len(imgs), generator=generator(cfg.seed, "bench"))[:n]
        self.images, self.labels = imgs.images[pick].to(self.device), (torch.arange(n) % 64).to(self.device)
        mean, std = (t.to(self.device) for t in channel_statistics(self.images.cpu()))
        paper = Config.preset("paper", width_divisor=divisor)
        hidden = tuple(width // divisor for width in paper.hidden)
        self.net = ConvNet(
            paper.start_widths, PAPER_POOLS, 64, cfg.image_size, hidden, generator=generator(cfg.seed, "net")
        )
        self.net.to(self.device, memory_format=torch.channels_last).train()
        self.recipe = Recipe(1, BATCH, 1e-3, "constant", 0.9, 5e-4, 4, True, mean, std)
        self.floats = normalise(self.images, mean, std)
        self.optimiser = self.recipe.optimiser(self.net)
        self.recorder = Recorder(block_weights(self.net))
        named = dict(self.net.named_parameters())
        self.penalty = Penalty(
            self.net, named, {name: torch.ones_like(p) for name, p in named.items()}, 1e-3, "penalty"
        )

    def ours(self, *, record: bool = False, ewc: bool = False, short: bool = False) -> None:
        """An epoch of `fit`: images selected, shifted, mirrored and normalised in it."""
        n = 2 * BATCH if short else len(self.images)
        fit(
            self.net,
            self.images[:n],
            self.labels[:n],
            task_loss(),
            self.recipe,
            optimiser=self.optimiser,
            stream=lambda epoch: generator(0, "bench batches"),
            where="the bench",
            watch=self.recorder if record else None,
            penalty=self.penalty if ewc else None,
            on_epoch=lambda row: self.recorder.take() if record else None,
        )

    def bare(self, *, short: bool = False) -> None:
        """What anyone would write: normalised 32-bit images in memory, no augmentation, SGD as PyTorch has it."""
        n = 2 * BATCH if short else len(self.images)
        order, total = torch.randperm(n, device=self.device), torch.zeros((), device=self.device)
        for start in range(0, n, BATCH):
            pick = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(self.net(self.floats[pick]), self.labels[pick])
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            total += loss.detach()
        total.item()


# individuals --------------------------------------------------------------------------------------------------------------
def individual_rows(cfg: Config, *, n_tasks: int = 2, rounds: int = 5, preset: str = "lecture") -> Rows:
    """The individuals of the lecture preset: two one-thread workers against one, stacks against one network after another."""
    own = Config.preset(preset, n_target_tasks=n_tasks, n_inits=1, device=cfg.device)
    work, tasks = untrained_reconstruction(own)
    many = dataclasses.replace(work.machine, workers=2, threads=1)
    ways = {
        name: functools.partial(_evaluate, work, tasks, dataclasses.replace(many, **changes))
        for name, changes in {"two": {}, "one": {"workers": 1}, "in turn": {"stack": 1}}.items()
    }
    _evaluate(work, tasks[:2], many)
    found = pairs(ways, rounds)
    return {
        "individuals, two workers": (found["two", "one"], 1 / 1.7, "two one-thread workers", "one worker"),
        "individuals, stacks": (
            found["two", "in turn"],
            1 / 1.1,
            "in stacks",
            "one network after another, as many workers",
        ),
    }


def untrained_reconstruction(cfg: Config) -> tuple[Reconstruction, list]:
    """A reconstruction and its target tasks with an ancestor that was never trained: what it costs does not depend on that."""
    imgs = load_images(cfg.data, cfg.data_path, image_size=cfg.image_size)
    div = divide(imgs, cfg)
    net = ConvNet(
        cfg.final_widths, PAPER_POOLS, cfg.source_way, cfg.image_size, cfg.hidden, generator=generator(0, "net")
    )
    fisher = {name: torch.ones_like(p) for name, p in net.named_parameters()}
    mean, std = channel_statistics(imgs.images[source_tasks(imgs, div, cfg)[0].train])
    nothing = np.zeros((0, 0))
    record = Record((), *[nothing] * 6, pd.DataFrame(), pd.DataFrame())
    col = Collective(net, (), mean, std, dict(net.named_parameters()), fisher, pd.DataFrame(), record)
    gene = Learngene.from_model(net, net.block_names[-cfg.n_blocks :], mean=mean, std=std, fisher=fisher)
    arms = arms_of(cfg, cfg.methods)
    return Reconstruction(gene, col, imgs, cfg, arms, None), target_tasks(imgs, div, cfg)


def _evaluate(work: Reconstruction, tasks: Sequence, machine: Machine) -> None:
    work.machine = machine
    for _ in work.pieces(tasks):
        pass


# reading ------------------------------------------------------------------------------------------------------------------
def reading_rows(home: Path, *, n: int = DECODED, rounds: int = 3) -> Rows:
    """A tree of PNG files: the first reading (decode and fill the cache) and a second one, against a bare loop of PIL."""
    from PIL import Image

    tree = home / "tree"
    glyphs = load_images("glyphs").images[:n].permute(0, 2, 3, 1).numpy()
    for i, pixels in enumerate(glyphs):
        path = tree / f"class {i % 10}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    files, before = sorted(tree.glob("*/*.png")), os.environ.get("LEARNGENE_CACHE")
    turn = iter(range(1000))

    def bare() -> None:
        np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files])

    def first() -> None:
        os.environ["LEARNGENE_CACHE"] = str(home / f"cache{next(turn)}")
        read()

    def read() -> Tensor:
        return load_images("folder", tree).images.sum()

    try:
        cold = compare(first, bare, rounds)
        warm = compare(read, bare, rounds)
    finally:
        os.environ.pop("LEARNGENE_CACHE", None)
        if before is not None:
            os.environ["LEARNGENE_CACHE"] = before
    return {
        "reading, first": (cold, 1.5, "decode into the cache", "a bare PIL loop"),
        "reading, again": (warm, None, "from the cache", "a bare PIL loop"),
    }


# the chain ----------------------------------------------------------------------------------------------------------------
def chain_rows(home: Path) -> Rows:
    """The whole smoke study, headless notebooks and report, against the sum of its stages in one process; once each."""
    from .runs import Run
    from .study import Chain, run_study

    cfg, seconds = Config.preset("smoke"), []
    for whole in (True, False):
        start = time.perf_counter()
        if whole:
            run_study(cfg, home / "study")
        else:
            Chain(Run.open(cfg, home / "stages")).verdicts  # noqa: B018 (computed when asked for)
        seconds.append(time.perf_counter() - start)
    ratio = seconds[0] / seconds[1]
    pair = Pair(*seconds, ratio, ratio, ratio, 1)
    return {"chain": (pair, None, "`learngene study --preset smoke`", "its stages in one process")}
