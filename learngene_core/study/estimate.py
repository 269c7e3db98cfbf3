"""What a run or a sweep will cost on this machine: seconds of every stage from real training steps, memory, disk space.

The only estimate of the study: verbs, `learngene study` and sweeps say it before they start, and their bar runs over it.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import torch
from torch import nn

from ..analysis.atlas import coarse_blocks, every_block
from ..config import STAGES, Config
from ..errors import StudyError, say
from ..execution import use
from ..network import ConvNet
from ..presets import METHODS, PAPER_POOLS
from ..runs.machine import as_usual, machine_of, resolve
from ..runs.run import Run
from ..stack import Stack
from ..tasks import generator
from ..training import stack_loss
from .grid import Grid
from .sharing import Shared, needed

KERNEL_SECONDS = 7.0  # of every notebook: a kernel, its imports, lessons and figures; measured on two cores
JOB_SECONDS = 3.0  # of every notebook of a sweep: a forked kernel, no lessons
BUDGET = 0.5  # seconds of real steps, for every shape that is measured
COPIES = 6  # of the weights while they train: gradients, momentum, anchors and Fisher of EWC, a state that is saved
IMAGES = 500  # of a class, where a configuration takes all there are
JOB_BYTES = 500_000  # an executed notebook with its pictures, tables, bookkeeping
STATES = 3.5  # sets of weights saved after a source task: the network's own, at birth, momentum, Fisher of the last


def stage_seconds(run: Run, *stages: str) -> dict[str, float]:
    """Expected seconds of what these stages, and those that they read, have still to compute, in order; by default of
    the stages of the study."""
    wanted = {s for stage in stages or ("claims",) for s in _needed(stage)}
    costs: dict[str, Callable[[Run], float]] = {
        "division": lambda run: 4.0,
        "collective": _collective,
        "reconstruct": _reconstruct,
        "openworld": lambda run: 3.0 * run.cfg.n_source_tasks,  # forward passes, once per saved task; a rough figure
        "tune": _tune,
        "reference": lambda run: 0.05 * run.cfg.reference_episodes,  # thirty ridge solutions an episode; a rough figure
        "measures": lambda run: 2.0 * (run.cfg.null_networks + 1) * (1 if run.cfg.width_divisor >= 8 else 8),  # rough
        "atlas": _atlas,
        "controls": _controls,
        "released": lambda run: 5 * _collective(run) + _reconstruct(run),  # four or five collectives of its own; rough
    }
    done = {s for s, entry in run.manifest.items() if entry["hash"] == run.cfg.stage_hash(s)}
    return {s: cost(run) * (1 - share_done(run, s)) for s, cost in costs.items() if s in wanted - done}


def share_done(run: Run, stage: str) -> float:
    """Share (0 to 1) of an unfinished stage that an earlier call has saved: source tasks, or pieces of individuals."""
    cfg = run.cfg
    if stage == "collective":
        done = len([*run.path.glob("collective/task_*/about.json")])
        return min(1.0, (cfg.first_task_epochs + cfg.epochs * (done - 1)) / _epochs(cfg)) if done else 0.0
    pieces = {
        "reconstruct": cfg.n_target_tasks * cfg.n_inits,
        "atlas": (cfg.atlas_tasks + cfg.atlas_pseudo_tasks) * cfg.atlas_inits * (1 + (cfg.atlas_blocks == "full")),
        "controls": 2 * cfg.atlas_tasks * cfg.atlas_inits,  # of two blocks
    }
    done = len([*run.path.glob(f".parts/{stage}/*.json")])
    return min(1.0, done / pieces[stage]) if stage in pieces else 0.0


def check_memory(cfg: Config) -> None:
    """Look whether the collective and a stack of individuals fit into this machine's memory. Raises StudyError when not."""
    if resolve(cfg).device != "cpu":
        return  # GPUs: stacks become smaller by themselves
    flat = cfg.final_widths[-1] * max(1, cfg.image_size // 2 ** len(PAPER_POOLS)) ** 2
    convolutions = sum(9 * a * b for a, b in itertools.pairwise((3, *cfg.final_widths)))
    ways = max(cfg.source_way * cfg.n_source_tasks, cfg.n_way)
    heads = [sum(a * b for a, b in itertools.pairwise((flat, *h, ways))) for h in (cfg.hidden, cfg.individual_hidden)]
    side, values = cfg.image_size, 0
    for number, width in enumerate(cfg.final_widths, 1):
        values += 3 * width * side**2  # of an image: convolution, batch norm, ReLU
        side = side // 2 if number in PAPER_POOLS else side
    batch = max(min(cfg.batch_size, _task_images(cfg)), min(cfg.individual_batch, cfg.n_way * max(cfg.shots)))
    needed = 4 * (COPIES * (convolutions + max(heads)) + batch * values)
    there = psutil.virtual_memory().total
    if needed > there:
        raise StudyError(
            f"these networks need about {needed / 1e9:,.0f} GB of memory and this machine has {there / 1e9:,.0f}; make them "
            "smaller (width_divisor, min_width, hidden), or the batches (batch_size, individual_batch)"
        )


def say_determinism(run: Run) -> None:
    """Say what the deterministic operations of a run cost here: the time of a training step beside that of the usual one."""
    machine = machine_of(run)
    if not machine.deterministic:
        return
    if machine.device == "cpu":
        say("deterministic: a CPU run is equal to the bit anyway; it costs nothing")
        return
    use(machine)
    with as_usual():
        usual = collective_step.__wrapped__(run)
    here = collective_step.__wrapped__(run)
    say(
        f"deterministic: equal results on every call on {machine.device}; a training step takes {here / usual:.2f} times as "
        f"long ({1000 * here:.1f} ms for {1000 * usual:.1f} ms)"
    )


def _needed(stage: str) -> Iterator[str]:
    for before in STAGES[stage]:
        yield from _needed(before)
    yield stage


# steps of the stages --------------------------------------------------------------------------------------------------
def _epochs(cfg: Config) -> int:
    return cfg.first_task_epochs + cfg.epochs * (cfg.n_source_tasks - 1)


def _task_images(cfg: Config) -> int:
    return cfg.source_way * (cfg.source_images or IMAGES)


def _collective(run: Run) -> float:
    cfg = run.cfg
    null = cfg.null_networks * min(cfg.null_tasks, cfg.n_source_tasks) * cfg.null_steps * 0.03
    return _epochs(cfg) * -(-_task_images(cfg) // cfg.batch_size) * collective_step(run) * 1.1 + null


def _reconstruct(run: Run) -> float:
    return run.cfg.n_target_tasks * run.cfg.n_inits * _all_arms(run)


def _tune(run: Run) -> float:
    cfg = run.cfg
    per_rate = 1 + (len(cfg.tune_ewc) - 1) / 8 if "learngene_ewc" in cfg.methods else 1  # one of the eight arms has EWC
    return cfg.tune_tasks * len(cfg.tune_rates) * per_rate * _all_arms(run)


def _atlas(run: Run) -> float:
    cfg, n = run.cfg, len(run.cfg.final_widths)
    blocks = every_block(n) if cfg.atlas_blocks == "full" else coarse_blocks(n, min(cfg.atlas_length, n))
    return (len(blocks) + 1) * (cfg.atlas_tasks + cfg.atlas_pseudo_tasks) * _atlas_arm(run)


def _controls(run: Run) -> float:
    cfg = run.cfg
    contents = 7 if "all" in cfg.controls else len(cfg.controls)
    arms = 3 + contents + len(cfg.control_ewc) + len(cfg.control_l2) + len(cfg.ancestors)
    return 2 * arms * cfg.atlas_tasks * _atlas_arm(run) + len(cfg.ancestors) * _collective(run)  # two blocks; rough


def _atlas_arm(run: Run) -> float:
    """Seconds that the workers need for one arm of the atlas on one task."""
    cfg = run.cfg
    steps = cfg.atlas_epochs * -(-cfg.n_way * cfg.atlas_shots // cfg.individual_batch)
    return cfg.atlas_inits * steps * stack_step(run, "same_shape", 8) / 8 / machine_of(run).workers


def _all_arms(run: Run) -> float:
    """Seconds that the workers need for all trained methods of one task and one set of initial weights."""
    cfg = run.cfg
    steps = cfg.individual_epochs * sum(-(-cfg.n_way * shots // cfg.individual_batch) for shots in cfg.shots)
    counts = {family: len(set(known) & set(cfg.methods)) for family, known in METHODS.items() if family != "none"}
    step = sum(stack_step(run, family, n) for family, n in counts.items() if n)
    return steps * step / machine_of(run).workers


# seconds of a step ----------------------------------------------------------------------------------------------------
def _remembered(step: Callable[..., float]) -> Callable[..., float]:
    """Seconds of a step, measured once for equal shapes on one machine: a sweep asks for many runs."""
    known: dict[tuple, float] = {}

    @functools.wraps(step)
    def measured(run: Run, *given: object) -> float:
        cfg, here = run.cfg, machine_of(run)
        shapes = (cfg.start_widths, cfg.final_widths, cfg.hidden, cfg.image_size, cfg.source_way, cfg.n_way)
        about = (*shapes, cfg.batch_size, cfg.individual_batch, here.device, here.threads, *given)
        if about not in known:
            known[about] = step(run, *given)
        return known[about]

    return measured


@_remembered
def collective_step(run: Run) -> float:
    """Seconds of one collective training step at widths halfway through the growth."""
    cfg = run.cfg
    widths = [(a + b) // 2 for a, b in zip(cfg.start_widths, cfg.final_widths, strict=True)]
    net = ConvNet(widths, PAPER_POOLS, cfg.source_way, cfg.image_size, cfg.hidden, generator=generator(0, "cost"))
    net = net.to(memory_format=torch.channels_last)
    return _step(run, net, min(cfg.batch_size, _task_images(cfg)), nn.functional.cross_entropy)


@_remembered
def stack_step(run: Run, family: str, n: int) -> float:
    """Seconds of one step of a stack of n individuals."""
    cfg, w = run.cfg, run.cfg.final_widths[-1]
    light = {"widths": [w // 8 or 1, w // 4 or 1, w // 2 or 1, w, w, w, w], "pools": (1, 2, 3, 7)}
    shape = light if family == "light" else {"widths": cfg.final_widths, "pools": PAPER_POOLS}
    made = {**shape, "n_classes": cfg.n_way, "image_size": cfg.image_size}
    stack = Stack([ConvNet(**made, generator=generator(0, "cost")) for _ in range(n)])
    batch = min(cfg.individual_batch, cfg.n_way * max(cfg.shots))
    return _step(run, stack, batch, lambda logits, labels: stack_loss(logits, labels)[0].sum())


def _step(run: Run, model: nn.Module, batch: int, loss: Callable[..., torch.Tensor]) -> float:
    """Median seconds of a step over about BUDGET seconds."""
    machine = machine_of(run)
    torch.set_num_threads(machine.threads)
    model.to(machine.device)
    x = torch.zeros(batch, 3, run.cfg.image_size, run.cfg.image_size, device=machine.device)
    y = torch.zeros(batch, dtype=torch.int64, device=machine.device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    times: list[float] = []
    while len(times) < 3 or sum(times) < BUDGET:
        start = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        value = loss(model(x), y)
        value.backward()
        optimiser.step()
        value.item()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


# sweeps ---------------------------------------------------------------------------------------------------------------
def stage_costs(grid: Grid) -> dict[str, dict[str, float]]:
    """Point -> stage -> expected seconds of one worker of this machine, from a second of real training steps per shape."""
    known: dict[Config, dict[str, float]] = {}
    costs = {}
    with tempfile.TemporaryDirectory(prefix="learngene-cost-") as folder:
        for point in grid.points:
            alike = point.cfg.replace(seed=0, target_seed=0, threshold=5e-4)
            if alike not in known:
                wanted = [*needed(point.cfg, grid.stage), grid.stage]
                run = Run(alike, Path(folder, str(len(known))))
                known[alike] = stage_seconds(run, *wanted) if grid.stage else {}
            costs[point.name] = known[alike]
    return costs


def job_seconds(grid: Grid, shared: Sequence[Shared], costs: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Expected seconds of every point and of everything shared, by name; what is shared counts once."""
    seconds = {}
    for some in shared:
        first = costs[min(some.points)]
        seconds[some.name] = JOB_SECONDS + sum(first.get(stage, 0.0) for stage in some.stages)
    for point in grid.points:
        taken = {stage for some in shared if point.name in some.points for stage in ("division", *some.stages)}
        own = (cost for stage, cost in costs[point.name].items() if stage not in taken)
        seconds[point.name] = JOB_SECONDS + sum(own)
    return seconds


def wall_seconds(seconds: dict[str, float], before: dict[str, list[str]], workers: int) -> float:
    """Expected seconds from start to end on so many workers; before: the jobs that a job waits for (its ancestors all)."""
    longest = max((seconds[name] + sum(seconds.get(b, 0.0) for b in before[name]) for name in seconds), default=0.0)
    return max(longest, sum(seconds.values()) / max(1, min(workers, len(seconds))))


def job_bytes(grid: Grid, shared: Sequence[Shared]) -> dict[str, float]:
    """Expected bytes of every point and of everything shared, by name; linked files count once."""
    size = {some.name: JOB_BYTES + _collective_bytes(some.cfg) * ("collective" in some.stages) for some in shared}
    for point in grid.points:
        linked = any("collective" in some.stages for some in shared if point.name in some.points)
        trains = grid.stage == "collective" or "collective" in needed(point.cfg, grid.stage)
        size[point.name] = JOB_BYTES + _collective_bytes(point.cfg) * (trains and not linked)
    return size


def size_text(size: float) -> str:
    """Bytes in words: 3 MB, 1.2 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def _collective_bytes(cfg: Config) -> float:
    """Bytes of a collective's states after every task, at widths halfway through the growth."""
    middle = [(a + b) / 2 for a, b in zip(cfg.start_widths, cfg.final_widths, strict=True)]
    weights = sum(9 * a * b for a, b in itertools.pairwise([3, *middle]))
    return cfg.n_source_tasks * 4 * STATES * weights
