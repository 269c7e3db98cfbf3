"""Who runs below a process: kernels, however they came to be, and the servers that they are forked from."""

import contextlib
import time

import psutil

from learngene_core.study import forkserver


def is_server(process: psutil.Process) -> bool:
    """Whether it forks kernels (which show its command as theirs)."""
    command = process.cmdline()
    return forkserver.__name__ in command and command != psutil.Process(process.ppid()).cmdline()


def below(kind, pid: int | None = None) -> list[psutil.Process]:
    """Living descendants of a process (by default this one) for whom kind(process) is true."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may end this moment
            if process.status() != psutil.STATUS_ZOMBIE and kind(process):
                found.append(process)
    return found


def servers_below(pid: int | None = None) -> list[psutil.Process]:
    """Fork servers."""
    return below(is_server, pid)


def kernels_below(pid: int | None = None) -> list[psutil.Process]:
    """Kernels, started or forked."""
    return below(lambda process: "ipykernel" in " ".join(process.cmdline()) and not is_server(process), pid)


def gone(processes, seconds: float = 15) -> bool:
    """Whether all of them end within so long. (One whom nobody has buried has ended.)"""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        alive = []
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        if not alive:
            return True
        time.sleep(0.05)
    return False
