"""The machine a run is made on: resolved once, written to `machine.json`, reused when the run is resumed.

Equal bits on a GPU only where `deterministic` is asked for: it adds in another order each time unless its libraries are told not
to; they then take slower paths, and an operation that has none stops with an error that names it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any

import torch

from ..config import Config, Machine
from ..errors import StudyError, write_json
from ..execution import available, check_precision, device_memory, stack_size, use
from .bookkeeping import stored_machine
from .run import WORKERS, Run

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # read by cuBLAS when it is first used
FIXED = ":4096:8"  # eight buffers of 4 MiB: one of the two settings that cuBLAS documents as deterministic
GPU_TRAININGS = 4  # collectives side by side: one alone leaves a GPU mostly idle


def machine_of(run: Run) -> Machine:
    """The machine of a run (`machine.json`); resolved and written when it is first needed.

    Raises StudyError when the folder was made on a device, or with a precision, that its configuration does not ask for or
    that is not here, and when the file is damaged.
    """
    cfg, path = run.cfg, run.path / "machine.json"
    if not path.exists():
        keep_machine(run, resolve(cfg))
    machine = stored_machine(path)
    if cfg.deterministic and not machine.deterministic:
        raise StudyError(f"{run.path} was made without deterministic, which is asked for; choose another --out")
    if cfg.device not in ("auto", machine.device):
        raise StudyError(
            f"{run.path} was made on device {machine.device!r}; {cfg.device!r} is asked for; choose another --out"
        )
    if not available(machine.device):
        raise StudyError(
            f"{run.path} was made on device {machine.device!r}, which is not here: what is finished can be looked at, but not "
            "continued; go on where that device is, or choose another --out"
        )
    if cfg.precision != machine.precision:
        raise StudyError(
            f"{run.path} was made with precision {machine.precision}; {cfg.precision} is asked for; choose another --out"
        )
    check_precision(machine.precision, machine.device)
    if machine.deterministic:
        prepare()
        use(machine)  # whatever stage goes on from here: not every one begins with a training that would do it
    return machine


def keep_machine(run: Run, machine: Machine) -> None:
    """Go on with another `machine` (a smaller stack); machine.json says so."""
    about = {
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processors": _processors(),
    }
    write_json(run.path / "machine.json", {**dataclasses.asdict(machine), **about})


def resolve(cfg: Config) -> Machine:
    """The machine this process runs on, as `cfg` asks for it. Raises StudyError for a device that is not there, and for a
    precision that it does not have."""
    device = cfg.device
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available(name))
    if not available(device):
        raise StudyError(f"device {device!r} is not available here; use --set device=auto")
    check_precision(cfg.precision, device)
    processors, told = _processors(), os.environ.get(WORKERS, "")
    workers = cfg.workers or (int(told) if told.isdecimal() else 0) or (min(2, processors) if device == "cpu" else 1)
    return Machine(
        device=device,
        threads=cfg.threads or processors,
        workers=workers,
        stack=Machine.stack if device == "cpu" else stack_size(cfg, device_memory(device)),
        trainings=workers if device == "cpu" else min(GPU_TRAININGS, processors),
        precision=cfg.precision,
        deterministic=cfg.deterministic,
    )


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare() -> None:
    """Before the first product on a GPU: give cuBLAS a fixed workspace, here and in the kernels that are started."""
    os.environ.setdefault(WORKSPACE, FIXED)


@contextlib.contextmanager
def as_usual() -> Iterator[None]:
    """Operations as torch chooses them, for a measurement of what deterministic ones cost."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def side_by_side(function: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> list[Any]:
    """function(job) of every job, in order, on `workers` fresh processes (the function at the top of a module, the jobs plain).

    They end with this process, however it ends: nobody else would stop them from writing into a run that goes on.
    Raises what the function raises.
    """
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        return list(pool.map(function, jobs))


def end_with_parent() -> None:
    """Let this process end at once when the one that started it is gone."""
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
