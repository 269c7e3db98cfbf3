"""`--tune`: which way of executing a training step is fastest here. Measured on the real step, never on faith.

Each option is held against what has proved best so far, in turn on the same batches; it is kept where it is clearly faster and
trains alike. What is kept goes to machine.json, and holds for the collective and for the individuals of that run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pandas as pd
import torch

from ..config import Config
from ..errors import say
from ..gradients import Recorder, block_weights
from ..network import ConvNet
from ..presets import PAPER_POOLS
from ..runs.machine import Machine
from ..runs.run import Run
from ..tasks import generator
from ..training import WARM, Captured, Step, Way, draw_epoch, recipe_of, set_rate, task_loss
from .bench import compare

FASTER = 1.03  # what an option must gain, in the median; and no round may speak against it
ROUNDS, STEPS = 7, 12  # pairs that are timed, and steps of each
FIRST = WARM + 5  # steps that are compared: captured ones among them
SLOW = 1e-4  # rate of these steps: a larger one lets rounding alone drive them apart
TOLERANCE = {"autocast": 0.2}  # largest relative difference of weight changes and gradient norms; bfloat16 has 8 bits
CLOSE = 0.01  # of all other options, which change rounding only


def tune_run(run: Run) -> None:
    """Measure for a new run folder and keep the result in its machine.json; one that holds work goes on as its file says."""
    if run.manifest.keys() - {"division"} or any(run.path.glob("collective/task_*")):
        say(f"tune: {run.path} holds work already, and goes on as its machine.json says")
        return
    with run.lock():
        machine, table = tuned(run.cfg, Machine.resolve(run.cfg))
        run.keep_machine(machine)
    for row in table.itertuples():
        say(f"tune: {row.text}")


def tuned(
    cfg: Config, machine: Machine, *, measure: Callable[[Config, Machine, Machine], tuple[float, str]] | None = None
) -> tuple[Machine, pd.DataFrame]:
    """The machine with the options that proved faster, and a table: option, speedup, kept, text.

    measure(cfg, machine, other) -> how many times faster `other` is, and what forbids it ("" if nothing).
    """
    measure = measure or faster
    rows = []
    for option in options(machine):
        other = dataclasses.replace(machine, **{option: not getattr(machine, option)})
        speedup, trouble = measure(cfg, machine, other)
        kept = not trouble and speedup >= FASTER
        what = f"{option}={getattr(other, option)} is {speedup:.2f} times as fast" if speedup else "not measured"
        text = f"{what}; {trouble or ('kept' if kept else 'not kept')}"
        rows.append({"option": option, "speedup": speedup, "kept": kept, "text": text})
        machine = other if kept else machine
    return machine, pd.DataFrame(rows, columns=["option", "speedup", "kept", "text"])


def options(machine: Machine) -> tuple[str, ...]:
    """What may be switched on this device. Half precision and captured steps are for CUDA."""
    return (
        ("channels_last", "fused", "autocast", "capture")
        if machine.device.startswith("cuda")
        else ("channels_last", "fused")
    )


def faster(cfg: Config, machine: Machine, other: Machine) -> tuple[float, str]:
    """How many times faster `other` takes the collective's steps, and what forbids it: an error, or losses that differ."""
    changed = next(
        n for n in ("channels_last", "fused", "autocast", "capture") if getattr(machine, n) != getattr(other, n)
    )
    try:
        now, new = Stepper(cfg, machine), Stepper(cfg, other)
        apart = difference(now.trained(FIRST), new.trained(FIRST))
        pair = compare(lambda: now.losses(STEPS), lambda: new.losses(STEPS), ROUNDS)
    except (RuntimeError, ValueError) as error:
        return 0.0, f"it does not work here ({str(error).splitlines()[0]})"
    if not apart <= TOLERANCE.get(changed, CLOSE):
        return pair.ratio, f"it trains otherwise (by {100 * apart:.2g} %), so it is not kept"
    return pair.ratio, "" if pair.low > 1 or pair.ratio < FASTER else "one round was slower, so it is not kept"


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest relative difference, in norm, of what two ways of training did to any weight, and of their gradient records."""
    return max(float((one[n] - other[n]).norm() / one[n].norm().clamp_min(1e-12)) for n in one)


class Stepper:
    """Training steps of a configuration's collective at its final widths, on noise and with the record, executed as a machine
    has it."""

    def __init__(self, cfg: Config, machine: Machine):
        torch.set_num_threads(machine.threads)
        self.device = torch.device(machine.device)
        draw = generator(cfg.seed, "step tuning")
        n = 16 * cfg.batch_size
        size = (n, 3, cfg.image_size, cfg.image_size)
        images = torch.randint(0, 256, size, generator=draw, dtype=torch.uint8).to(self.device)
        labels = (torch.arange(n) % cfg.source_way).to(self.device)
        net = ConvNet(
            cfg.final_widths,
            PAPER_POOLS,
            cfg.source_way,
            cfg.image_size,
            cfg.hidden,
            generator=generator(cfg.seed, "net"),
        )
        layout = torch.channels_last if machine.channels_last else torch.contiguous_format
        net.to(self.device, memory_format=layout).train()
        middle = torch.full((3,), 0.5, device=self.device)
        self.recipe, self.n = recipe_of(cfg, 1, middle, middle), n
        way = Way(machine.autocast, machine.fused, machine.capture)
        self.optimiser = self.recipe.optimiser(net, way)
        set_rate(self.optimiser, SLOW)
        self.net, self.recorder = net, Recorder(block_weights(net))
        step = Step(net, images, labels, task_loss(), self.recipe, self.optimiser, self.recorder, autocast=way.autocast)
        self.step = Captured(step) if way.capture else step
        self.draw = draw

    def losses(self, n: int) -> list[float]:
        """Take n steps and wait for them; their losses."""
        found: list[torch.Tensor] = []
        while len(found) < n:
            for batch in draw_epoch(self.n, self.recipe, self.draw, self.device):
                found.append(self.step(batch, self.recorder.due())[0])
                if len(found) == n:
                    break
        return torch.stack(found).tolist()

    def trained(self, n: int) -> dict[str, torch.Tensor]:
        """What n steps have done: change of every convolution and linear weight, and the gradient norms of every block."""
        before = {name: p.detach().clone() for name, p in self.net.named_parameters() if p.ndim > 1}
        self.losses(n)
        after = dict(self.net.named_parameters())
        changed = {name: (after[name].detach() - old).cpu() for name, old in before.items()}
        return {**changed, "record": torch.tensor([row["norm"] for row in self.recorder.take()[0]])}
