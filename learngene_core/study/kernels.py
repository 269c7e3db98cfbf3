"""Kernels for headless notebooks: quiet ones, a spare that starts while another works, and an end for those that hang.

A kernel and its imports take some seconds. Where possible kernels are forked from a process that has imported what notebooks
use (`forked`). In a chain of notebooks the next one's kernel is ready, and has imported these modules, before it is needed; its
notebook finds nothing in it but them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from ..errors import HEADLESS
from .forkserver import NO_FORK

KERNEL = "python3"
IMPORTS = "LEARNGENE_IMPORTS"  # set for a spare kernel: modules that it imports while nobody waits for it
MODULES = "torch,sklearn.linear_model,matplotlib.pyplot,seaborn,ipywidgets"
_CONFIG = """c.IPKernelApp.log_level = 40
c.HistoryManager.enabled = False
c.InteractiveShellApp.exec_lines = [
    "import importlib as _i, os as _o; [_i.import_module(_m) for _m in _o.environ.get('%s', '').split(',') if _m]"
]
"""


@contextlib.contextmanager
def quiet_kernels() -> Iterator[None]:
    """Kernels that start in this block keep no history, print no warning of their own, and show no live widgets: now and then
    the messages of a widget leave the client waiting for ever (seen with nbclient 0.11)."""
    if HEADLESS in os.environ and "learngene-ipython-" in os.environ.get("IPYTHONDIR", ""):
        yield  # a chain has done it already
        return
    with tempfile.TemporaryDirectory(prefix="learngene-ipython-") as home:
        profile = Path(home, "profile_default")
        profile.mkdir()
        profile.joinpath("ipython_kernel_config.py").write_text(_CONFIG % IMPORTS, encoding="utf-8")
        given = {"IPYTHONDIR": home, HEADLESS: "1"}
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


@contextlib.contextmanager
def forking(wanted: bool) -> Iterator[None]:
    """Whether kernels may be forked in this block. (Outside of such blocks they may, unless the variable NO_FORK is set.)"""
    before = os.environ.get(NO_FORK)
    if not wanted:
        os.environ[NO_FORK] = "1"
    try:
        yield
    finally:
        if not wanted:
            os.environ.pop(NO_FORK)
            if before is not None:
                os.environ[NO_FORK] = before


class Kernels:
    """The kernels of a chain of notebooks, one after the other. Use in a `with`; `take` gives a running kernel's manager."""

    def __init__(self) -> None:
        self._next: Any = None
        self._thread: threading.Thread | None = None
        self._quiet = contextlib.ExitStack()

    def __enter__(self) -> Kernels:
        self._quiet.enter_context(quiet_kernels())
        return self

    def __exit__(self, *_: object) -> None:
        self._join()
        if self._next is not None:
            end(self._next)
        if "learngene_core.study.forked" in sys.modules:
            sys.modules["learngene_core.study.forked"].close()
        self._quiet.close()

    def prepare(self) -> None:
        """Start a spare kernel, in the background; it imports what notebooks use. Whatever goes wrong with it, `take` starts
        another one."""

        def run() -> None:
            with contextlib.suppress(Exception):
                self._next = start(env={**os.environ, IMPORTS: MODULES})

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def take(self) -> Any:
        """The spare kernel if there is one and it lives, else a new one. Whoever takes it ends it."""
        self._join()
        spare, self._next = self._next, None
        if spare is not None and not alive(spare):
            end(spare)
            spare = None
        return spare or start()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()


def start(env: dict[str, str] | None = None) -> Any:
    """A running kernel's manager, in the working folder; forked where that is allowed and possible. Raises what jupyter_client
    raises where there is no such kernel."""
    from jupyter_core.utils import run_sync

    from . import forked

    manager, name = _manager(), str(uuid.uuid4())
    if forked.allowed():
        about = {"kernel_id": name, "kernel_spec": manager.kernel_spec, "parent": manager}
        manager.provisioner = forked.ForkedProvisioner(**about)
    run_sync(manager.start_kernel)(cwd=str(Path.cwd()), env=env or {**os.environ}, kernel_id=name)
    return manager


def _manager() -> Any:
    """The manager of a kernel of this Python: a person may have made another Python's the kernel `python3`."""
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    class Own(KernelSpecManager):
        """Knows one kernel, whatever folders of kernels there are."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())

    return AsyncKernelManager(kernel_name=KERNEL, kernel_spec_manager=Own())


def alive(manager: Any) -> bool:
    """Whether the kernel runs."""
    from jupyter_core.utils import run_sync

    return bool(run_sync(manager.is_alive)())


def end(manager: Any) -> None:
    """End a kernel, if it still runs, and what belongs to it."""
    from jupyter_core.utils import run_sync

    with contextlib.suppress(RuntimeError):  # it is gone already
        run_sync(manager.shutdown_kernel)(now=True)
    run_sync(manager.cleanup_resources)()


@contextlib.contextmanager
def ended_when_idle(manager: Any, minutes: float) -> Iterator[threading.Event]:
    """End a kernel that uses no processor for so long; the event says that it was.

    Such a kernel waits for a message that was lost, and the client waits for the kernel: for ever. How long a cell computes
    does not matter: less than 1 % of one processor over all these minutes is no computation, on no device.
    """
    import psutil

    over, ended, pause = threading.Event(), threading.Event(), min(10.0, 6 * minutes)
    kernel = psutil.Process(manager.provisioner.pid)

    def watch() -> None:
        since, used = 0.0, _used(kernel)
        looks = 0
        while not over.wait(pause):
            looks += 1  # counted, not read from a clock: hours in which a laptop sleeps do not count
            with contextlib.suppress(psutil.Error):  # a process may go while it is looked at
                now, more = pause * looks, _used(kernel)
                if abs(more - used) > 0.01 * (now - since):
                    since, used = now, more
                elif now - since > 60 * minutes:
                    ended.set()
                    for process in [*kernel.children(recursive=True), kernel]:
                        process.kill()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield ended
    finally:
        over.set()
        watcher.join()


def _used(process: psutil.Process) -> float:
    """Processor seconds of a process and its children."""
    return sum(sum(p.cpu_times()[:2]) for p in [process, *process.children(recursive=True)])
