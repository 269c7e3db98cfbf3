"""The rows of the speed table: what is ours, and the bare counterpart that it is held against.

Rows of the speed table that need a GPU: what the card can do, how near training comes, what the paper's protocol takes.

What sharing and a second worker save, measured: for the speed table. About twenty minutes on two idle processors.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..collective import Collective
from ..config import Config
from ..data.division import divide, source_tasks, target_tasks
from ..data.images import load_images
from ..errors import StudyError, say, write_json
from ..ewc import Penalty
from ..fewshot import Reconstruction, arms_of
from ..gradients import Recorder, block_weights
from ..learngene import Learngene
from ..network import ConvNet, flop_count
from ..presets import PAPER_POOLS
from ..record import Record
from ..runs.machine import Machine
from ..runs.run import Run
from ..tasks import generator
from ..training import Recipe, channel_statistics, fit, normalise, task_loss
from .bench import Pair, Rows, compare, of_rounds, pairs
from .chain import run_notebooks
from .grid import Grid, load_grid
from .notebooks import numbered
from .steptuning import Stepper, tuned
from .sweep import run_sweep

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
    from ..runs.run import Run
    from .chain import Chain, run_study

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


STEPS, ROUNDS, TASKS = 60, 5, 64


def gpu_rows(cfg: Config) -> Rows:
    """Captured against eager steps, as tuned against plain ones, individuals in bulk against in turn; and, said in lines, images
    and floating-point operations per second against the measured peak of a matrix product, and the projected protocol."""
    paper = Config.preset("paper", data=cfg.data, data_path=cfg.data_path, device=cfg.device)
    plain = Machine.resolve(paper)
    best, table = tuned(paper, plain)
    for row in table.itertuples():
        say(f"bench: {row.text}")
    steppers = {name: Stepper(paper, machine) for name, machine in _machines(plain, best).items()}
    for stepper in steppers.values():
        stepper.losses(STEPS)
    timed = {name: compare(lambda s=s: s.losses(STEPS), lambda: steppers["eager"].losses(STEPS), ROUNDS) for name, s in
             steppers.items() if name != "eager"}  # fmt: skip
    _say_rates(paper, best, timed["tuned"].first / STEPS)
    return {
        "gpu, captured steps": (timed["captured"], None, "captured", "eager"),
        "gpu, tuned steps": (timed["tuned"], None, "as tuned", "32-bit, eager"),
        "gpu, individuals": (individuals(paper, best), 1 / 3, "in stacks", "one network after another"),
    }


def _machines(plain: Machine, best: Machine) -> dict[str, Machine]:
    return {"eager": plain, "captured": dataclasses.replace(plain, capture=True), "tuned": best}


def individuals(cfg: Config, machine: Machine) -> Pair:
    """Individuals of the paper's widths with 10 shots, all methods of the light family, in stacks against in turn."""
    own = cfg.replace(n_target_tasks=TASKS, n_inits=1, shots=(10,), methods=("scratch", "learngene"))
    work, tasks = untrained_reconstruction(own)
    seconds = {}
    for name, stack, some in (("in turn", 1, tasks[:4]), ("in stacks", machine.stack, tasks)):
        work.machine = dataclasses.replace(machine, stack=stack)
        for timed in (False, True):  # the first call chooses algorithms
            start = time.perf_counter()
            n = sum(len(piece["rows"]) for piece in work.pieces(some))
            torch.cuda.synchronize()
            if timed:
                seconds[name] = (time.perf_counter() - start) / n
    say(f"bench: {1 / seconds['in stacks']:.0f} individuals per second in stacks of up to {work.machine.stack}")
    ratio = seconds["in stacks"] / seconds["in turn"]
    return Pair(seconds["in stacks"], seconds["in turn"], ratio, ratio, ratio, 1)


def matmul_peak(dtype: torch.dtype, size: int = 8192, seconds: float = 1.0) -> float:
    """Floating-point operations per second of a large matrix product: what the card reaches, not what its maker says."""
    a = torch.randn(size, size, device="cuda", dtype=dtype)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(5):
            a @ a
        torch.cuda.synchronize()
        best = max(best, 5 * 2 * size**3 / (time.perf_counter() - start))
    return best


def _say_rates(cfg: Config, machine: Machine, step: float) -> None:
    net = ConvNet(cfg.final_widths, PAPER_POOLS, cfg.source_way, cfg.image_size, cfg.hidden)
    flops = 3 * sum(flop_count(net).values()) * cfg.batch_size  # forward, and twice that backward
    peak = matmul_peak(torch.bfloat16 if machine.autocast else torch.float32)
    steps = -(-cfg.source_way * 500 // cfg.batch_size) * (cfg.first_task_epochs + cfg.epochs * (cfg.n_source_tasks - 1))
    say(
        f"bench: {1 / step:.0f} steps/s, {cfg.batch_size / step:.0f} images/s, {flops / step / 1e12:.1f} TFLOP/s of "
        f"{peak / 1e12:.0f} at the final widths; the paper's collective ({steps} steps) "
        f"would take at most {steps * step / 60:.1f} min"
    )


PRODUCT = {"target_seed": [0, 1, 2], "shots": [3, 5, 10, 15]}  # twelve points, one ancestor
SWEEP_ROUNDS = 3
# the ancestor is about half of a point (some 15 s of a thread), its kernel most of the rest, the individuals about a second
PARAMETERS = {
    "device": "cpu",
    "epochs": 15,
    "first_task_epochs": 15,
    "n_target_tasks": 2,
    "individual_epochs": 2,
    "methods": ["scratch", "learngene"],
}


def sweep_rows(folder: Path, preset: str = "smoke") -> Rows:
    """Twelve points that share an ancestor, beside twelve chains; beside the same points without sharing; and two workers.

    folder: an empty or a new one for what is computed. Every sweep counts with the start of its cluster and has one thread per
    worker. The machine may change its speed, so what is compared runs in turn, in SWEEP_ROUNDS rounds of as many points: without
    sharing on one worker, the same on two, and one chain, which counts for all points of its round. The points that share
    need one sweep for all; it runs in the middle of the rounds.

    - chains: notebooks 01 to 04 as `learngene study` runs them, on all processors: what a point costs whoever calls the
      study once per point. At most 0.4 is asked.
    - shared ancestor: one worker and, but for what is shared, notebook 04 alone on both sides. The same is asked.
    - two workers: no sharing on either side, since points that share wait for their ancestor, which no second worker makes
      faster. At most 1 / 1.5 is asked.

    Raises StudyError when a point failed: then the times would compare nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grid = _grid(folder, preset)
    ways: dict[str, Callable[[Grid, Path], float]] = {
        "alone": functools.partial(_seconds, workers=1, share=False),
        "two": functools.partial(_seconds, workers=2, share=False),
        "chain": _chain_seconds,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(SWEEP_ROUNDS):
        if turn == SWEEP_ROUNDS // 2:
            shared = _seconds(grid, folder / "shared", workers=1, share=True)
        part = dataclasses.replace(grid, points=grid.points[turn::SWEEP_ROUNDS])
        for name in [*ways][:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(ways[name](part, folder / f"{name}-{turn + 1}"))
    ours, chains = (
        "12 points that share, on one worker",
        f"12 chains of notebooks 01 to 04, reckoned from {SWEEP_ROUNDS}",
    )
    without = f"the same points without sharing, on one worker, in {SWEEP_ROUNDS} sweeps"
    workers = of_rounds(seconds["two"], seconds["alone"])
    return {
        "sweep, chains": (_once(shared, sum(seconds["chain"])), 0.4, ours, chains),
        "sweep, shared ancestor": (_once(shared, sum(seconds["alone"])), 0.4, ours, without),
        "sweep, two workers": (workers, 1 / 1.5, "4 points without sharing, on two workers", "on one"),
    }


def _once(ours: float, bare: float) -> Pair:
    return Pair(ours, bare, ours / bare, ours / bare, ours / bare, 1)


def _grid(folder: Path, preset: str) -> Grid:
    """JSON is YAML."""
    path = folder / "bench.yaml"
    write_json(path, {"preset": preset, "parameters": PARAMETERS, "product": PRODUCT})
    return load_grid(path)


def _chain_seconds(grid: Grid, folder: Path) -> float:
    """Of as many chains as the grid has points, from that of its first point, on all processors."""
    start = time.perf_counter()
    run = Run.open(grid.points[0].cfg.replace(workers=0), folder)
    with run.lock():
        run_notebooks(run, numbered()[:4], "reconstruct")
    return (time.perf_counter() - start) * len(grid.points)


def _seconds(grid: Grid, out: Path, *, workers: int, share: bool) -> float:
    start = time.perf_counter()
    outcome = run_sweep(grid, out, workers=workers, share=share)
    seconds = time.perf_counter() - start
    if outcome.failed or len(outcome.finished) != len(grid.points):
        raise StudyError(
            f"{len(outcome.failed)} of {len(grid.points)} points failed, so nothing was measured (see {out})"
        )
    return seconds
