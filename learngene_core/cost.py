"""What a run will cost on this machine: seconds per stage, from about a second of real training steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from .config import Config
from .runs import Run


def stage_seconds(run: Run) -> dict[str, float]:
    """Expected seconds of the stages that this run has still to compute, in order."""
    cfg = run.cfg
    todo = [s for s in ("collective", "reconstruct") if s not in run.manifest]
    seconds = {"division": 4.0} if "division" not in run.manifest else {}
    if "collective" in todo:
        n_steps = _collective_steps(cfg)
        seconds["collective"] = (
            n_steps * _collective_step(run) * 1.1
            + cfg.null_networks * min(8, cfg.n_source_tasks) * cfg.null_steps * 0.03
        )
    if "reconstruct" in todo:
        seconds["reconstruct"] = _individual_steps(cfg) * _individual_step(run) / run.machine.workers
    if "openworld" not in run.manifest:
        seconds["openworld"] = 3.0 * cfg.n_source_tasks  # mostly forward passes, once per saved task; a rough figure
    return seconds


def _collective_steps(cfg: Config) -> int:
    images = cfg.source_way * (cfg.source_images or 500)
    epochs = cfg.first_task_epochs + cfg.epochs * (cfg.n_source_tasks - 1)
    return epochs * -(-images // cfg.batch_size)


def _individual_steps(cfg: Config) -> int:
    per_epoch = sum(-(-cfg.n_way * shots // cfg.individual_batch) for shots in cfg.shots)
    return cfg.n_target_tasks * cfg.n_inits * cfg.individual_epochs * per_epoch


def _collective_step(run: Run) -> float:
    """Seconds of one collective training step at widths halfway through the growth."""
    import torch

    from .network import ConvNet
    from .presets import PAPER_POOLS
    from .streams import generator

    cfg = run.cfg
    widths = [(a + b) // 2 for a, b in zip(cfg.start_widths, cfg.final_widths, strict=True)]
    net = ConvNet(widths, PAPER_POOLS, cfg.source_way, cfg.image_size, cfg.hidden, generator=generator(0, "cost"))
    net = net.to(run.machine.device, memory_format=torch.channels_last)
    return _step(run, net, cfg.batch_size, lambda out, y: torch.nn.functional.cross_entropy(out, y))


def _individual_step(run: Run) -> float:
    """Seconds of one step of all trained methods of one task: a stack of four per family."""
    import torch

    from .fewshot import arms_of
    from .network import ConvNet
    from .presets import PAPER_POOLS
    from .stack import Stack
    from .streams import generator
    from .training import stack_loss

    cfg, total = run.cfg, 0.0
    arms = arms_of(cfg, cfg.methods)
    w = cfg.final_widths[-1]
    light = {"widths": [w // 8 or 1, w // 4 or 1, w // 2 or 1, w, w, w, w], "pools": (1, 2, 3, 7)}
    for family, shape in (("light", light), ("same_shape", {"widths": cfg.final_widths, "pools": PAPER_POOLS})):
        count = sum(a.family == family for a in arms)
        if count:
            nets = [
                ConvNet(**shape, n_classes=cfg.n_way, image_size=cfg.image_size, generator=generator(0, "cost"))
                for _ in range(count)
            ]
            stack = Stack(nets).to(run.machine.device)
            total += _step(run, stack, cfg.individual_batch, lambda out, y: stack_loss(out, y)[0].sum())
    torch.set_num_threads(run.machine.threads)
    return total


def _step(run: Run, model, batch_size: int, loss: Callable, budget: float = 0.5) -> float:
    """Median seconds of a step over about `budget` seconds."""
    import torch

    torch.set_num_threads(run.machine.threads)
    device = torch.device(run.machine.device)
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
