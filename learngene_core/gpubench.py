"""Rows of the speed table that need a GPU: what the card can do, how near training comes, what the paper's protocol takes."""

from __future__ import annotations

import dataclasses
import time

import torch

from .benchrows import untrained_reconstruction
from .config import Config
from .files import say
from .machine import Machine
from .network import ConvNet, flop_count
from .presets import PAPER_POOLS
from .steptuning import Stepper, tuned
from .timing import Pair, Rows, compare

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
