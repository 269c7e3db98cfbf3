"""The rows of the speed table: what is ours, and the bare counterpart that it is compared with."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..arms import Arm, constant
from ..config import Config, Machine
from ..data.division import divide, target_tasks
from ..data.images import load_images
from ..errors import StudyError, write_json
from ..ewc import Penalty
from ..execution import layout
from ..fewshot import Individuals
from ..gradients import Recorder, block_weights
from ..learngene import Learngene
from ..network import ConvNet
from ..presets import PAPER_POOLS
from ..runs.machine import resolve
from ..runs.run import Run
from ..stack import Stack
from ..tasks import TargetTask, generator
from ..training import Recipe, channel_statistics, fit, normalise, predict, task_loss
from . import notebooks
from .chain import Chain
from .grid import Grid, load_grid
from .point import job_of, run_job
from .sweep import run_sweep
from .timing import Row, in_turn

IMAGES, BATCH = 1000, 64  # of an epoch: a third of a source task of the released scripts
TURNS = 9  # rounds, or as many as there is time for
DECODED = 1500  # image files of the reading rows


# the collective's training --------------------------------------------------------------------------------------------
def epoch_rows(cfg: Config, *, n: int = IMAGES, rounds: int = TURNS, divisor: int = 1) -> Iterator[Row]:
    """Epochs of the paper's base network over `n` images in memory: ours, with the record, with EWC; against a bare loop."""
    machine = resolve(cfg.replace(threads=0)) if divisor == 1 else resolve(cfg)
    epochs = Epochs(cfg, machine, n, divisor)
    ways = {
        "bare": epochs.bare,
        "plain": epochs.ours,
        "record": lambda: epochs.ours(record=True),
        "ewc": lambda: epochs.ours(ewc=True),
    }
    in_turn(ways, 1, machine.threads)  # first calls choose algorithms and allocate
    seconds = in_turn(ways, rounds, machine.threads)
    yield Row("epoch", "an epoch of `fit`", "a bare channels-last loop", seconds["plain"], seconds["bare"], 1.10)
    yield Row("epoch, record", "with the gradient record", "without", seconds["record"], seconds["plain"], 1.15)
    yield Row("epoch, EWC", "with the EWC penalty", "without", seconds["ewc"], seconds["plain"], 1.15)


class Epochs:
    """One network, trained an epoch at a time in several ways on the same images; `divisor` makes it smaller for tests."""

    def __init__(self, cfg: Config, machine: Machine, n: int, divisor: int):
        self.machine, self.device = machine, torch.device(machine.device)
        imgs = load_images(cfg.data, cfg.data_path, image_size=cfg.image_size)
        pick = torch.randperm(len(imgs), generator=generator(cfg.seed, "bench"))[:n]
        self.images, self.labels = imgs.images[pick].to(self.device), (torch.arange(n) % 64).to(self.device)
        mean, std = (t.to(self.device) for t in channel_statistics(self.images.cpu()))
        paper = Config.preset("paper", width_divisor=divisor)
        hidden = tuple(width // divisor for width in paper.hidden)
        draw = generator(cfg.seed, "net")
        self.net = ConvNet(paper.start_widths, PAPER_POOLS, 64, cfg.image_size, hidden, generator=draw)
        self.net.to(self.device, memory_format=layout(machine)).train()
        self.recipe = Recipe(1, BATCH, 1e-3, "constant", 0.9, 5e-4, 4, True, mean, std)
        self.floats = normalise(self.images, mean, std)
        self.optimiser = self.recipe.optimiser(self.net, machine)
        self.recorder = Recorder(block_weights(self.net))
        named = dict(self.net.named_parameters())
        ones = {name: torch.ones_like(p) for name, p in named.items()}
        self.penalty = Penalty(self.net, named, ones, 1e-3, "penalty")

    def ours(self, *, record: bool = False, ewc: bool = False) -> None:
        """An epoch of `fit`: images selected, shifted, mirrored and normalised in it."""
        epochs = fit(
            self.net,
            self.images,
            self.labels,
            task_loss(),
            self.recipe,
            stream=lambda epoch: generator(0, "bench batches"),
            where="the bench",
            optimiser=self.optimiser,
            recorder=self.recorder if record else None,
            pull=self.penalty if ewc else None,
            machine=self.machine,
        )
        for _ in epochs:
            if record:
                self.recorder.take()

    def bare(self) -> None:
        """What anyone would write: normalised 32-bit images in memory, channels last, no augmentation, SGD as PyTorch has it."""
        order, total = torch.randperm(len(self.images), device=self.device), torch.zeros((), device=self.device)
        for start in range(0, len(order), BATCH):
            pick = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(self.net(self.floats[pick]), self.labels[pick])
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            total += loss.detach()
        total.item()


# evaluation -----------------------------------------------------------------------------------------------------------
def evaluation_rows(cfg: Config, *, n: int = IMAGES, rounds: int = 15) -> Iterator[Row]:
    """Evaluating `n` images with a stack of individuals of the lecture preset: in the batches that `predict` takes, against
    250."""
    own = Config.preset("lecture", device=cfg.device)
    machine, images = resolve(own), load_images(own.data).images[:n]
    nets = [
        ConvNet(own.final_widths, PAPER_POOLS, own.n_way, own.image_size, generator=generator(i, "net"))
        for i in range(6)
    ]
    stack = Stack(nets).to(machine.device)
    normal = tuple(t.to(machine.device) for t in channel_statistics(images))
    images = images.to(machine.device)
    ways = {size: (lambda size=size: predict(stack, images, *normal, batch_size=size)) for size in (0, 250)}
    in_turn(ways, 1, machine.threads)
    seconds = in_turn(ways, rounds, machine.threads)
    yield Row("evaluation", "its own batches", "batches of 250", seconds[0], seconds[250])


# individuals ----------------------------------------------------------------------------------------------------------
def individual_rows(cfg: Config, *, n_tasks: int = 2, rounds: int = 5, preset: str = "lecture") -> Iterator[Row]:
    """Individuals of the lecture preset: two one-thread workers against one, stacks against one network after another."""
    work, tasks = untrained_individuals(Config.preset(preset, n_target_tasks=n_tasks, n_inits=1, device=cfg.device))
    many = dataclasses.replace(work.machine, workers=2, threads=1)
    machines = {
        "two": many,
        "one": dataclasses.replace(many, workers=1),
        "in turn": dataclasses.replace(many, stack=1),
    }
    ways = {name: (lambda machine=machine: _train(work, tasks, machine)) for name, machine in machines.items()}
    seconds = in_turn(ways, rounds)
    two = "two one-thread workers"
    yield Row("individuals, two workers", two, "one worker", seconds["two"], seconds["one"], 1 / 1.7)
    yield Row("individuals, stacks", "in stacks", "one after another", seconds["two"], seconds["in turn"], 1 / 1.1)


def untrained_individuals(cfg: Config) -> tuple[Individuals, list[TargetTask]]:
    """Eight same-shape arms, half of them with a learngene, and their target tasks. The collective is untrained: what
    individuals cost does not depend on that."""
    imgs = load_images(cfg.data, cfg.data_path, image_size=cfg.image_size)
    draw = generator(0, "net")
    net = ConvNet(cfg.final_widths, PAPER_POOLS, cfg.n_way, cfg.image_size, generator=draw)
    mean, std = channel_statistics(imgs.images)
    gene = Learngene.from_model(net, net.block_names[-cfg.n_blocks :], mean=mean, std=std)
    arms = [
        Arm("same_shape", f"arm {i}", cfg.individual_rate, net.shape, constant(gene if i % 2 else None))
        for i in range(8)
    ]
    return Individuals(arms, imgs, cfg, mean, std, machine=resolve(cfg)), target_tasks(imgs, divide(imgs, cfg), cfg)


def _train(work: Individuals, tasks: Sequence[TargetTask], machine: Machine) -> int:
    """Train all individuals on a machine; returns their number."""
    work.machine = machine
    return sum(len(piece["rows"]) for piece in work.pieces(tasks))


# reading --------------------------------------------------------------------------------------------------------------
def reading_rows(home: Path, *, n: int = DECODED, rounds: int = 3) -> Iterator[Row]:
    """A tree of PNG files: the first reading (decode and fill the cache) and a second one, against a bare loop of PIL."""
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
        seconds = in_turn({"first": first, "again": read, "bare": bare}, rounds)
    finally:
        os.environ.pop("LEARNGENE_CACHE", None)
        if before is not None:
            os.environ["LEARNGENE_CACHE"] = before
    yield Row("reading, first", "decode into the cache", "a bare PIL loop", seconds["first"], seconds["bare"], 1.5)
    yield Row("reading, again", "from the cache", "a bare PIL loop", seconds["again"], seconds["bare"])


# points and sweeps ----------------------------------------------------------------------------------------------------
def point_rows(home: Path, *, rounds: int = 3, preset: str = "smoke") -> Iterator[Row]:
    """A point of a sweep whose ancestor is finished: notebook 04 by papermill, as a worker does it, against its stage alone."""
    cfg = Config.preset(preset, **PARAMETERS)
    Chain(Run.open(cfg, home / "ancestor")).learngene  # noqa: B018 (computed when asked for)
    (notebook,) = notebooks.numbered("04*.ipynb")
    turn = iter(range(1000))

    def copy() -> Path:
        return Path(shutil.copytree(home / "ancestor", home / f"copy{next(turn)}"))

    def point() -> None:
        done = run_job(job_of(cfg, copy(), notebook, "bench", "reconstruct", table="results.csv"))
        if done["state"] != "finished":
            raise StudyError(f"the point failed, so nothing was measured: {done['error']}")

    def stage() -> None:
        Chain(Run.open(cfg, copy())).results  # noqa: B018

    seconds = in_turn({"point": point, "stage": stage}, rounds)
    yield Row("point", "a point by papermill", "its stage", seconds["point"], seconds["stage"])


PRODUCT = {"target_seed": [0, 1, 2]}  # three points, one ancestor
# the ancestor is about half of a point (some 10 s of a thread), its kernel most of the rest, the individuals about a second
PARAMETERS = {
    "device": "cpu",
    "epochs": 10,
    "first_task_epochs": 10,
    "n_target_tasks": 2,
    "individual_epochs": 2,
    "methods": ["scratch", "learngene"],
}


def sweep_rows(folder: Path, preset: str = "smoke") -> Iterator[Row]:
    """Three points that share an ancestor, on one worker, against the same points without sharing; and a second worker for the
    latter. Once each, with the start of the cluster.

    folder: an empty or a new one for what is computed. Raises StudyError when a point failed: nothing would be compared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.yaml", {"preset": preset, "parameters": PARAMETERS, "product": PRODUCT})  # JSON is YAML
    grid = load_grid(folder / "bench.yaml")
    alone = _sweep(grid, folder / "alone", workers=1, share=False)
    shared = _sweep(grid, folder / "shared", workers=1, share=True)
    two = _sweep(grid, folder / "two", workers=2, share=False)
    yield Row("sweep, shared ancestor", "3 points that share, one worker", "without sharing", (shared,), (alone,), 0.6)
    yield Row("sweep, two workers", "3 points without sharing, two workers", "one worker", (two,), (alone,), 1 / 1.5)


def _sweep(grid: Grid, out: Path, *, workers: int, share: bool) -> float:
    """Seconds of a sweep."""
    start = time.perf_counter()
    outcome = run_sweep(grid, out, workers=workers, share=share)
    seconds = time.perf_counter() - start
    if outcome.failed or len(outcome.finished) != len(grid.points):
        raise StudyError(
            f"{len(outcome.failed)} of {len(grid.points)} points failed, so nothing was measured (see {out})"
        )
    return seconds
