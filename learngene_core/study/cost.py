"""What a run will cost on this machine: seconds per stage, from about a second of real training steps."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

from ..config import STAGES, Config
from ..errors import say
from ..presets import METHODS, PAPER_POOLS
from ..runs import machine as determinism
from ..runs.machine import machine_of
from ..runs.run import Run
from ..training import use

KERNEL_SECONDS = 9.0  # of every notebook: a kernel, its imports and its figures; measured on two cores


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
    """Share (0 to 1) of an unfinished stage that an earlier call has saved: source tasks, or pieces (see `parts`)."""
    cfg = run.cfg
    if stage == "collective":
        done = len([*run.path.glob("collective/task_*/about.json")])
        return (cfg.first_task_epochs + cfg.epochs * (done - 1)) / _epochs(cfg) if done else 0.0
    pieces = {
        "reconstruct": cfg.n_target_tasks * cfg.n_inits,
        "atlas": (cfg.atlas_tasks + cfg.atlas_pseudo_tasks) * cfg.atlas_inits * (1 + (cfg.atlas_blocks == "full")),
        "controls": 2 * cfg.atlas_tasks * cfg.atlas_inits,  # of two blocks
    }
    done = len([*run.path.glob(f".parts/{stage}/*.json")])
    return min(1.0, done / pieces[stage]) if stage in pieces else 0.0


def _needed(stage: str) -> Iterator[str]:
    for before in STAGES[stage]:
        yield from _needed(before)
    yield stage


def _epochs(cfg: Config) -> int:
    return cfg.first_task_epochs + cfg.epochs * (cfg.n_source_tasks - 1)


def _collective(run: Run) -> float:
    cfg = run.cfg
    images = cfg.source_way * (cfg.source_images or 500)
    null = cfg.null_networks * min(8, cfg.n_source_tasks) * cfg.null_steps * 0.03
    return _epochs(cfg) * -(-images // cfg.batch_size) * collective_step(run) * 1.1 + null


def _reconstruct(run: Run) -> float:
    return run.cfg.n_target_tasks * run.cfg.n_inits * _all_arms(run)


def _tune(run: Run) -> float:
    cfg = run.cfg
    per_rate = 1 + (len(cfg.tune_ewc) - 1) / 8 if "learngene_ewc" in cfg.methods else 1  # one of the eight arms has EWC
    return cfg.tune_tasks * len(cfg.tune_rates) * per_rate * _all_arms(run)


def _atlas(run: Run) -> float:
    from ..analysis.atlas import all_blocks, coarse_blocks

    cfg, n = run.cfg, len(run.cfg.final_widths)
    blocks = all_blocks(n) if cfg.atlas_blocks == "full" else coarse_blocks(n, min(cfg.atlas_length, n))
    return (len(blocks) + 1) * (cfg.atlas_tasks + cfg.atlas_pseudo_tasks) * _atlas_arm(run)


def _controls(run: Run) -> float:
    cfg = run.cfg
    arms = (
        3
        + (7 if "all" in cfg.controls else len(cfg.controls))
        + len(cfg.control_ewc)
        + len(cfg.control_l2)
        + len(cfg.ancestors)
    )
    return 2 * arms * cfg.atlas_tasks * _atlas_arm(run) + len(cfg.ancestors) * _collective(run)  # two blocks; rough


def _atlas_arm(run: Run) -> float:
    """Seconds that the workers need for one arm of the atlas on one task."""
    cfg = run.cfg
    steps = cfg.atlas_epochs * -(-cfg.n_way * cfg.atlas_shots // cfg.individual_batch)
    return cfg.atlas_inits * steps * _stack_step(run, "same_shape", 8) / 8 / machine_of(run).workers


def _all_arms(run: Run) -> float:
    """Seconds that the workers need for all trained methods of one task and one set of initial weights."""
    cfg = run.cfg
    steps = cfg.individual_epochs * sum(-(-cfg.n_way * shots // cfg.individual_batch) for shots in cfg.shots)
    return steps * _individual_step(run) / machine_of(run).workers


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
    import torch

    from ..network import ConvNet
    from ..tasks import generator

    cfg = run.cfg
    widths = [(a + b) // 2 for a, b in zip(cfg.start_widths, cfg.final_widths, strict=True)]
    net = ConvNet(widths, PAPER_POOLS, cfg.source_way, cfg.image_size, cfg.hidden, generator=generator(0, "cost"))
    net = net.to(machine_of(run).device, memory_format=torch.channels_last)
    return _step(run, net, cfg.batch_size, lambda out, y: torch.nn.functional.cross_entropy(out, y))


def _individual_step(run: Run) -> float:
    """Seconds of one step of all trained methods of one task, a stack per family."""
    counts = {family: len(set(known) & set(run.cfg.methods)) for family, known in METHODS.items() if family != "none"}
    return sum(_stack_step(run, family, n) for family, n in counts.items() if n)


@_remembered
def _stack_step(run: Run, family: str, n: int) -> float:
    """Seconds of one step of a stack of n individuals."""
    from ..network import ConvNet
    from ..stack import Stack
    from ..tasks import generator
    from ..training import stack_loss

    cfg, w = run.cfg, run.cfg.final_widths[-1]
    light = {"widths": [w // 8 or 1, w // 4 or 1, w // 2 or 1, w, w, w, w], "pools": (1, 2, 3, 7)}
    shape = light if family == "light" else {"widths": cfg.final_widths, "pools": PAPER_POOLS}
    made = {**shape, "n_classes": cfg.n_way, "image_size": cfg.image_size}
    stack = Stack([ConvNet(**made, generator=generator(0, "cost")) for _ in range(n)]).to(machine_of(run).device)
    return _step(run, stack, cfg.individual_batch, lambda out, y: stack_loss(out, y)[0].sum())


def say_determinism(run: Run) -> None:
    """Say what the deterministic operations of a run cost here: the time of a training step beside that of the usual one."""
    machine = machine_of(run)
    if not machine.deterministic:
        return
    if machine.device == "cpu":
        say("deterministic: a CPU run is equal to the bit anyway; it costs nothing")
        return
    use(machine)
    with determinism.as_usual():
        usual = collective_step(run)
    here = collective_step(run)
    say(
        f"deterministic: equal results on every call on {machine.device}; a training step takes {here / usual:.2f} times as "
        f"long ({1000 * here:.1f} ms for {1000 * usual:.1f} ms)"
    )


def _step(run: Run, model, batch_size: int, loss: Callable, budget: float = 0.5) -> float:
    """Median seconds of a step over about `budget` seconds."""
    import torch

    torch.set_num_threads(machine_of(run).threads)
    device = torch.device(machine_of(run).device)
    x = torch.zeros(batch_size, 3, run.cfg.image_size, run.cfg.image_size, device=device)
    y = torch.zeros(batch_size, dtype=torch.int64, device=device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        start = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        value = loss(model(x), y)
        value.backward()
        optimiser.step()
        value.item()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]
