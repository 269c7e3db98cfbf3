"""The machine a run is made on: resolved once, written to `machine.json`, reused when the run is resumed."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from . import determinism
from .config import Config
from .files import StudyError, read_json
from .presets import PAPER_POOLS

if TYPE_CHECKING:
    from .steps import Way


WORKERS = "LEARNGENE_WORKERS"  # variable: individuals side by side where the configuration leaves it open (sweeps: 1)
CPU_STACK = 6  # networks; on a CPU larger stacks fall out of the cache
LARGEST_STACK = 128  # networks; larger ones gain nothing more where launching no longer limits
GPU_TRAININGS = 4  # collectives side by side: one alone leaves a GPU mostly idle


@dataclasses.dataclass(frozen=True)
class Machine:
    """What changes rounding or speed and nothing else; resolved once per run folder and reused when it is resumed.

    workers: individuals trained side by side; stack: most networks trained as one (individuals); trainings: collectives side
    by side (other ancestors); autocast, fused, capture: how steps are executed (`steps.Way`), off unless `--tune` measured
    that they are faster.
    """

    device: str
    threads: int
    workers: int
    channels_last: bool
    torch: str
    system: str
    processors: int
    stack: int = CPU_STACK
    trainings: int = 1
    autocast: bool = False
    fused: bool = False
    capture: bool = False
    deterministic: bool = False

    @classmethod
    def resolve(cls, cfg: Config) -> Machine:
        """The machine this process runs on, as `cfg` asks for it. Raises StudyError for a device that is not there."""
        import torch

        device = cfg.device
        if device == "auto":
            device = next(name for name in ("cuda", "mps", "cpu") if cls.available(name))
        if not cls.available(device):
            raise StudyError(f"device {device!r} is not available here; use --set device=auto")
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        told = os.environ.get(WORKERS, "")
        workers = (
            cfg.workers or (int(told) if told.isdecimal() else 0) or (min(2, processors) if device == "cpu" else 1)
        )
        return cls(
            device=device,
            threads=cfg.threads or processors,
            channels_last=True,
            workers=workers,
            stack=CPU_STACK if device == "cpu" else stack_size(cfg, device_memory(device)),
            trainings=workers if device == "cpu" else min(GPU_TRAININGS, processors),
            torch=torch.__version__,
            system=f"{platform.system()} {platform.machine()}",
            processors=processors,
            deterministic=cfg.deterministic,
        )

    @staticmethod
    def available(device: str) -> bool:
        """Whether a device ("cpu", "cuda", "cuda:1", "mps") can be used here."""
        import torch

        kind = device.split(":")[0]
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return there.get(kind, False)

    @classmethod
    def stored(cls, path: Path) -> Machine:
        """The machine noted in `machine.json`. Raises StudyError when it is damaged."""
        try:
            here = cls(**read_json(path))
            if any(type(getattr(here, f.name)).__name__ != f.type for f in dataclasses.fields(cls)):
                raise TypeError("a value of a wrong type")
            return here
        except TypeError:
            raise StudyError(f"{path} is damaged: it is no machine.json of this version") from None

    @property
    def way(self) -> Way:
        """How steps are executed."""
        from .steps import Way

        return Way(self.autocast, self.fused, self.capture)

    @property
    def bundles(self) -> bool:
        """Whether several pieces (target tasks, sets of initial weights) share a stack; one on each worker fills a CPU."""
        return self.device != "cpu"

    def use(self) -> None:
        """Apply the thread count, and deterministic operations where they were asked for, to this process."""
        import torch

        torch.set_num_threads(self.threads)
        if self.deterministic:
            determinism.apply(self.device)


def device_memory(device: str) -> int:
    """Bytes of memory that are free on a GPU; 4 GB where the system does not say (MPS)."""
    import torch

    return torch.cuda.mem_get_info(torch.device(device))[0] if device.startswith("cuda") else 4 << 30


def stack_size(cfg: Config, free: int) -> int:
    """Most individuals of the collective's final shape that train as one in half of `free` bytes: weights, gradients, momentum
    and two spare copies, and three tensors for every activation of a batch (convolution, batch norm, ReLU)."""
    widths, side, activations = cfg.final_widths, cfg.image_size, 0
    for number, width in enumerate(widths, 1):
        activations += width * side**2
        side = side // 2 if number in PAPER_POOLS else side
    parameters = sum(9 * a * b for a, b in zip((3, *widths), widths, strict=False))
    each = 4 * (5 * parameters + 3 * cfg.individual_batch * activations)
    return max(1, min(LARGEST_STACK, int(free / 2 / each)))
