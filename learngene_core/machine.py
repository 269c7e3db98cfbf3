"""The machine a run is made on: resolved once, written to `machine.json`, reused when the run is resumed."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path

from . import determinism
from .config import Config
from .files import StudyError, read_json


@dataclasses.dataclass(frozen=True)
class Machine:
    """What changes rounding or speed and nothing else; resolved once per run folder and reused when it is resumed."""

    device: str
    threads: int
    workers: int
    channels_last: bool
    torch: str
    system: str
    processors: int
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
        return cls(
            device=device,
            threads=cfg.threads or processors,
            channels_last=True,
            workers=cfg.workers or (min(2, processors) if device == "cpu" else 1),
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

    def use(self) -> None:
        """Apply the thread count, and deterministic operations where they were asked for, to this process."""
        import torch

        torch.set_num_threads(self.threads)
        if self.deterministic:
            determinism.apply(self.device)
