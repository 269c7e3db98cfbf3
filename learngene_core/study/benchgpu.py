"""`learngene bench --gpu`: what one GPU does for the study, in at most ten minutes, into `gpu.csv` and `gpu-parts.csv`.

Its parts, in this order, so that the one that may be cut short comes last:

- equal: one training step in 64 bits and in 32 bits, on the device and on the CPU, at an eighth of the widths;
- steps: milliseconds of a training step of the collective, eager and captured, fp32, tf32 and bf16 (the table `gpu.csv`);
- individuals: 64 in stacks against one by one; growing: a whole growing collective, captured against eager;
- paper: the paper's widths and 21 tasks of 100 epochs, which every widening precedes: seconds of each task, and the share of the
  device's bf16 rate (that of a large product of matrices, measured in the same minute).

Images are made up: what a step costs does not depend on them. On another device than a GPU the parts run too, uncaptured: tests
do so, at small sizes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..collective import State, train_collective
from ..config import Config, Machine
from ..errors import StudyError, atomic, say
from ..execution import check_precision, layout, use
from ..network import ConvNet, flop_count
from ..presets import PAPER_POOLS
from ..tasks import ImageSet, SourceTask, generator
from ..training import Recipe, fit, normalise, task_loss
from .benchrows import BATCH, untrained_individuals
from .timing import in_turn

MINUTES = 9.5  # of all parts together; what no longer fits is left out, and said
WIDTHS = {"a quarter": 4, "full": 1}
WAYS = {
    "eager": {},
    "captured": {"capture": True},
    "captured TF32": {"capture": True, "precision": "tf32"},
    "captured bf16": {"capture": True, "precision": "bf16"},
}
PARTS = ["part", "quantity", "value", "unit"]
Fact = dict[str, object]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured. The defaults are for a GPU and ten minutes; tests take less.

    divisors: of the paper's widths, by name; classes, images: of made-up data, images of each class; steps: of an epoch that is
    timed; growing: epochs of each task of the growing run; tasks, epochs: of the paper's protocol; individuals: trained.
    """

    divisors: dict[str, int] = dataclasses.field(default_factory=lambda: dict(WIDTHS))
    classes: int = 64
    images: int = 500
    steps: int = 40
    growing: int = 2
    tasks: int = 21
    epochs: int = 100
    individuals: int = 64


class _Over(Exception):  # noqa: N818 (a way out of a training that has run long enough)
    pass


def run_gpu(out: Path, device: str = "cuda", sizes: Sizes = Sizes(), minutes: float = MINUTES) -> pd.DataFrame:  # noqa: B008
    """Measure all parts and write `gpu.csv` (milliseconds of a step) and `gpu-parts.csv` (the rest) into `out`; returns the
    latter. Both are written after every part: a bench that is stopped has them.

    Raises StudyError, in one line, where there is no GPU.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise StudyError(
            "no GPU: torch sees no CUDA device here, and `learngene bench --gpu` measures one; leave --gpu out"
        )
    end, found = time.monotonic() + 60 * minutes, []
    parts: dict[str, Callable[[], Iterator[Fact]]] = {
        "about": lambda: about(device),
        "equal": lambda: equality(device, max(8, *sizes.divisors.values())),
        "steps": lambda: step_times(device, sizes, out),
        "individuals": lambda: individuals(device, sizes),
        "growing": lambda: growing(device, sizes, end),
        "paper": lambda: paper(device, sizes, end),
    }
    for part, measure in parts.items():
        if time.monotonic() > end:
            say(f"bench: {part} is left out: {minutes:g} minutes are over")
            continue
        for fact in measure():
            found.append({"part": part, **fact})
            say(f"bench: {part}: {fact['quantity']}: {fact['value']} {fact['unit']}".rstrip())
        with atomic(out / "gpu-parts.csv") as temporary:
            pd.DataFrame(found, columns=PARTS).to_csv(temporary, index=False, lineterminator="\n")
    say(f"bench: {out / 'gpu.csv'}, {out / 'gpu-parts.csv'}")
    return pd.DataFrame(found, columns=PARTS)


def about(device: str) -> Iterator[Fact]:
    """The card and the version of torch."""
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    yield fact("device", card)
    yield fact("torch", torch.__version__)


def fact(quantity: str, value: object, unit: str = "") -> Fact:
    """A row of gpu-parts.csv."""
    return {"quantity": quantity, "value": f"{value:.4g}" if isinstance(value, float) else value, "unit": unit}


def machines(device: str) -> dict[str, Machine]:
    """The ways to take a step that a device has: only a CUDA device captures, and not every one has every precision."""
    plain, found = Machine(device), {}
    for name, changes in WAYS.items():
        machine = dataclasses.replace(plain, **changes)
        try:
            check_precision(machine.precision, device)
        except StudyError as reason:
            say(f"bench: {name} is left out: {reason}")
            continue
        found[name] = machine if device.startswith("cuda") else dataclasses.replace(machine, capture=False)
    return found


# equal results --------------------------------------------------------------------------------------------------------
def equality(device: str, divisor: int) -> Iterator[Fact]:
    """Largest differences of loss and gradients of one step, relative to the largest gradient, between the device and the CPU."""
    use(Machine(device))  # no rounding that was not asked for
    for kind, name in ((torch.float64, "64 bits"), (torch.float32, "32 bits")):
        (loss, gradients), (there, others) = (one_step(place, divisor, kind) for place in ("cpu", device))
        most = max(float(g.abs().max()) for g in gradients)
        away = max(float((a - b).abs().max()) for a, b in zip(gradients, others, strict=True))
        yield fact(f"loss, {name}, difference from the CPU", abs(loss - there) / abs(loss))
        yield fact(f"gradients, {name}, difference from the CPU", away / most)


def one_step(device: str, divisor: int, kind: torch.dtype) -> tuple[float, list[Tensor]]:
    """Loss and gradients of one batch of the paper's final network, its widths divided, on a device."""
    net = network(divisor, "cpu").to(device, kind, memory_format=torch.channels_last).train()
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator(0, "bench"))
    x = normalise(images, torch.full((3,), 0.5), torch.full((3,), 0.25)).to(device, kind)
    loss = nn.functional.cross_entropy(net(x), torch.arange(BATCH, device=device) % 5)
    loss.backward()
    return float(loss.detach()), [p.grad.cpu().double() for p in net.parameters()]


def network(divisor: int, device: str) -> ConvNet:
    """The paper's network after all growth, its widths divided, in channels-last memory."""
    cfg = Config.preset("paper", width_divisor=divisor)
    hidden = tuple(width // divisor for width in cfg.hidden)
    net = ConvNet(cfg.final_widths, PAPER_POOLS, 5, 32, hidden, generator=generator(0, "net"))
    return net.to(device, memory_format=layout(Machine(device)))


# steps ----------------------------------------------------------------------------------------------------------------
def step_times(device: str, sizes: Sizes, out: Path) -> Iterator[Fact]:
    """Milliseconds of a training step in every way (`gpu.csv`): the middle of several epochs, the first of which, with its
    eager and captured beginnings, does not count."""
    ways, rows = machines(device), []
    for name, divisor in sizes.divisors.items():
        times = {way: round(step_time(machine, divisor, sizes.steps), 2) for way, machine in ways.items()}
        rows.append({"width": name, **times})
        for way, milliseconds in times.items():
            yield fact(f"a step, {name} of the widths, {way}", milliseconds, "ms")
    with atomic(out / "gpu.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")


def step_time(machine: Machine, divisor: int, steps: int, epochs: int = 6) -> float:
    """Milliseconds of a step of `fit`, with batches of 64."""
    use(machine)
    net = network(divisor, machine.device).train()
    images = torch.randint(0, 256, (steps * BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator(0, "bench"))
    labels = torch.arange(len(images)) % 5
    normal = torch.full((3,), 0.5, device=machine.device), torch.full((3,), 0.25, device=machine.device)
    recipe = Recipe(epochs, BATCH, 1e-3, "constant", 0.9, 5e-4, 4, True, *normal)
    run = fit(
        net,
        images.to(machine.device),
        labels.to(machine.device),
        task_loss(),
        recipe,
        stream=lambda epoch: generator(0, "bench batches", epoch),
        where="the bench",
        machine=machine,
    )
    times, before = [], time.perf_counter()
    for _ in run:  # each row waits for the device
        times.append(time.perf_counter() - before)
        before = time.perf_counter()
    return 1000 * float(np.median(times[1:])) / steps


# individuals and a growing run ----------------------------------------------------------------------------------------
def individuals(device: str, sizes: Sizes) -> Iterator[Fact]:
    """Individuals of the paper's shape in stacks, as many as memory holds and 64 at most, against one by one."""
    divisor = min(sizes.divisors.values())
    cfg = Config.preset("paper", data="glyphs", width_divisor=divisor, n_inits=1, shots=(10,), device=device)
    work, tasks = untrained_individuals(
        cfg.replace(n_target_tasks=max(2, sizes.individuals // 8), individual_epochs=10)
    )
    stacked = dataclasses.replace(work.machine, stack=min(work.machine.stack, sizes.individuals))

    def train(machine: Machine) -> None:
        work.machine = machine
        for _ in work.pieces(tasks):
            pass

    ways = {"stacks": stacked, "one by one": dataclasses.replace(work.machine, stack=1)}
    seconds = in_turn({name: (lambda machine=machine: train(machine)) for name, machine in ways.items()}, 1)
    for name, (taken,) in seconds.items():
        yield fact(f"{8 * len(tasks)} individuals, {name}", taken, "s")
    yield fact("in stacks, relative to one by one", seconds["stacks"][0] / seconds["one by one"][0])


def growing(device: str, sizes: Sizes, end: float) -> Iterator[Fact]:
    """A growing collective at a quarter of the widths, eager and captured: a new graph for every shape."""
    ways, divisor = machines(device), max(sizes.divisors.values())
    seconds = {}
    for name in ("eager", "captured"):
        times = list(task_seconds(ways[name], sizes, divisor, sizes.growing, end))
        seconds[name] = sum(times)
        yield fact(f"{len(times)} growing tasks of {sizes.growing} epochs, {name}", seconds[name], "s")
    yield fact("captured, relative to eager", seconds["captured"] / seconds["eager"])


# the paper's protocol -------------------------------------------------------------------------------------------------
def paper(device: str, sizes: Sizes, end: float) -> Iterator[Fact]:
    """Seconds of every task at the paper's widths, in the fastest way, and the share of the device's bf16 rate."""
    ways, divisor = machines(device), min(sizes.divisors.values())
    name, machine = list(ways.items())[-1]
    rate = product_rate(device)
    yield fact("bf16 rate of a product of matrices", rate / 1e12, "TFLOP/s")
    times, shares = [], []
    cfg = protocol(sizes, divisor, sizes.epochs)
    shapes: list[dict] = []
    for number, taken in enumerate(task_seconds(machine, sizes, divisor, sizes.epochs, end, shapes), 1):
        flops = 3 * sum(flop_count(ConvNet.from_shape(shapes[number - 1])).values())  # forward, and twice that backward
        times.append(taken)
        shares.append(flops * cfg.source_way * sizes.images * sizes.epochs / taken / rate)
        yield fact(f"task {number} of {sizes.tasks}, {sizes.epochs} epochs, {name}", taken, "s")
    if not times:
        yield fact("tasks finished in time", 0)
        return
    yield fact("tasks finished in time", len(times))
    yield fact("seconds a task, middle", float(np.median(times)), "s")
    yield fact("share of the bf16 rate, middle", 100 * float(np.median(shares)), "%")


def protocol(sizes: Sizes, divisor: int, epochs: int) -> Config:
    """The paper's preset with as many tasks, all widenings before them, and so many epochs of each."""
    more = {"growth_start": 1, "n_source_tasks": sizes.tasks, "epochs": epochs, "first_task_epochs": epochs}
    # EWC's Fisher and the record's null are other stages' costs
    small = {"null_networks": 2, "null_steps": 1, "null_tasks": 1, "fisher_images": sizes.tasks, "record_every": 4}
    hidden = tuple(max(1, 1024 // divisor) for _ in range(2))
    return Config.preset("paper", data="glyphs", width_divisor=divisor, hidden=hidden, **more, **small)


def task_seconds(
    machine: Machine, sizes: Sizes, divisor: int, epochs: int, end: float, shapes: list[dict] | None = None
) -> Iterator[float]:
    """Seconds of every source task of the paper's protocol, until the clock says `end`; the shapes that the network had while
    it learned them are appended to `shapes`."""
    cfg, images = protocol(sizes, divisor, epochs), made_up(sizes)
    draw, tasks, held = generator(0, "bench tasks"), [], max(1, sizes.images // 10)
    for number in range(1, sizes.tasks + 1):
        chosen = torch.randperm(sizes.classes, generator=draw)[: cfg.source_way].tolist()
        rows = [np.arange(sizes.images) + sizes.images * c for c in chosen]
        names = tuple(images.class_names[c] for c in chosen)
        few = np.concatenate([r[:held] for r in rows])
        tasks.append(SourceTask(number, names, np.concatenate(rows), few, few))
    times: list[float] = []
    before = time.perf_counter()

    def after(state: State) -> None:
        nonlocal before
        times.append(time.perf_counter() - before)
        if shapes is not None:
            shapes.append(state.shapes[-1])
        before = time.perf_counter()

    def watch(state: State) -> None:
        if time.monotonic() > end:
            raise _Over

    try:
        train_collective(images, tasks, cfg, machine=machine, after_task=after, on_epoch=watch)
    except _Over:
        say(f"bench: stopped after {len(times)} of {sizes.tasks} tasks: the minutes are over")
    yield from times


def made_up(sizes: Sizes) -> ImageSet:
    """Classes of images that a network can learn: a coarse pattern of each class, and noise."""
    draw = generator(0, "bench images")
    patterns = torch.randint(40, 216, (sizes.classes, 1, 3, 4, 4), generator=draw).expand(-1, sizes.images, -1, -1, -1)
    noise = torch.randint(-40, 40, (sizes.classes, sizes.images, 3, 32, 32), generator=draw, dtype=torch.int16)
    large = patterns.repeat_interleave(8, 3).repeat_interleave(8, 4).to(torch.int16)
    pixels = (large + noise).to(torch.uint8).flatten(0, 1)
    labels = torch.arange(sizes.classes).repeat_interleave(sizes.images)
    return ImageSet("made up", pixels, labels, tuple(f"class {c}" for c in range(sizes.classes)), {})


def product_rate(device: str, rounds: int = 20) -> float:
    """Floating-point operations a second of a large bf16 product."""
    side = 8192 if device.startswith("cuda") else 256
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    in_turn({"product": lambda: a @ a}, 3)
    # the clock waits for the device before and after; many products between, so that launching does not count
    (seconds,) = in_turn({"products": lambda: [a @ a for _ in range(rounds)]}, 1)["products"]
    return 2 * side**3 * rounds / seconds
