"""Kernels that are forked from a server instead of started: their imports are done already (Linux).

Most of what a headless notebook costs on a finished run is a new Python that imports torch, pandas and matplotlib. The server
(`forkserver`) has them; a kernel forked from it is ready in a fraction of the time and is a process of its own like any other.
A server belongs to one process and ends with it, or when it had no kernel for a minute. Where there is no server, kernels are
started as usual.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from . import forkserver
from .forkserver import NO_FORK

START = 120.0  # seconds for a server to import everything, perhaps from a cold disk
TOLD = 5.0  # seconds for a server to tell that a kernel has ended, on a machine that is busy
# Variables that are looked up when they are needed, so a server need not be started with them: those of this package, those
# that a kernel gets for itself, and the device, which torch asks for with its first use
LOOKED_UP = re.compile(r"LEARNGENE_.*|IPYTHONDIR|JPY_.*|CUDA_VISIBLE_DEVICES|PYTEST_.*|PWD|OLDPWD|SHLVL|_")


class NoServerError(Exception):
    """There is no server, or it has not forked."""


def allowed() -> bool:
    """Whether kernels are to be forked: on Linux, where nobody has said no."""
    return sys.platform == "linux" and not os.environ.get(NO_FORK)


class Forked:
    """A forked kernel, with the part of `subprocess.Popen` that provisioners use. Its parent is the server."""

    stdin = stdout = stderr = None

    def __init__(self, reply: socket.socket):
        self._reply, self._lock, self.returncode = reply, threading.Lock(), None
        reply.settimeout(START)
        self.pid = self._number()
        if self.pid is None:
            raise NoServerError

    def _number(self) -> int | None:
        """The next number that the server tells; None when it is gone."""
        line = b""
        while not line.endswith(b"\n"):
            if not (more := self._reply.recv(1)):
                return None
            line += more
        return int(line)

    def poll(self) -> int | None:
        """The exit status, or None while the kernel runs. A kernel whose server is gone was killed with it."""
        with self._lock:
            if self.returncode is None:
                self._reply.settimeout(TOLD if self._ended() else 0)
                try:
                    number = self._number()
                except BlockingIOError:
                    return None
                except OSError:
                    number = None
                self.returncode = -signal.SIGKILL if number is None else number
                self._reply.close()
        return self.returncode

    def _ended(self) -> bool:
        """Whether the process has ended. The server may not have told it yet; then its word is waited for."""
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once there is one. Raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("forked kernel", timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless the kernel has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


class Server:
    """A server that runs, as the process that has started it sees it."""

    def __init__(self, interpreter: list[str], env: Mapping[str, str], facts: tuple):
        self.facts = facts  # it serves kernels that would inherit the same
        self._kernels: list[Forked] = []
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [*interpreter, "-m", forkserver.__name__, str(theirs.fileno()), str(os.getpid())]
            command += [forkserver.LAUNCHER]
            options = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            options |= {"pass_fds": [theirs.fileno()], "start_new_session": True}
            own = {name: value for name, value in env.items() if not LOOKED_UP.fullmatch(name)}
            own["JPY_PARENT_PID"] = str(os.getpid())  # read while ipykernel is imported
            self._process = subprocess.Popen(command, env=own, **options)  # noqa: S603 (the kernel's own interpreter)

    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def busy(self) -> bool:
        """Whether a kernel of it runs."""
        return any(kernel.poll() is None for kernel in self._kernels)

    def fork(self, arguments: list[str], env: Mapping[str, str]) -> Forked:
        """A new kernel. Raises NoServerError."""
        kernel, (reply, theirs) = None, socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._control, [b"k"], [theirs.fileno(), 1, 2])
            reply.sendall(json.dumps({"arguments": arguments, "env": dict(env)}).encode() + b"\n")
            kernel = Forked(reply)
        except (OSError, NoServerError) as error:
            raise NoServerError(str(error)) from None
        finally:
            if kernel is None:
                reply.close()  # also after Ctrl+C: the server ends a kernel that nobody has
        self._kernels = [one for one in self._kernels if one.poll() is None] + [kernel]
        return kernel

    def close(self) -> None:
        """End it, and its kernels."""
        self._control.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_servers: list[Server] = []  # the last one is asked; those before it still have kernels
_refused: list[tuple] = []  # facts of servers that did not even begin
_lock = threading.Lock()


def fork(command: list[str], env: Mapping[str, str]) -> Forked:
    """A kernel for the command that would start it, in this working folder, from a server that is started where none fits.

    Raises NoServerError for a command that starts no IPython kernel, and when a new server does not answer either.
    """
    place = command.index("-m") if "-m" in command else len(command)
    if command[place + 1 : place + 2] != [forkserver.LAUNCHER]:
        raise NoServerError(f"no IPython kernel: {command}")
    interpreter, arguments = command[:place], command[place + 2 :]
    with _lock:
        _clear(idle_only=True)
        facts = (os.getpid(), *interpreter, *_inherited(env))
        if _servers and _servers[-1].facts == facts and _servers[-1].alive():
            with contextlib.suppress(NoServerError):  # it may be about to end
                return _servers[-1].fork(arguments, env)
        if facts in _refused:
            raise NoServerError("such a server has failed before")
        _servers.append(Server(interpreter, env, facts))
        try:
            return _servers[-1].fork(arguments, env)
        except NoServerError:
            _refused.append(facts)
            raise


@atexit.register
def close() -> None:
    """End the servers of this process, and the kernels that they have forked."""
    with _lock:
        _clear()


def _clear(*, idle_only: bool = False) -> None:
    """End servers; with `idle_only` those that nobody needs any more: not the last one, none that has a kernel."""
    for server in _servers[: -1 if idle_only else None]:
        if server.facts[0] != os.getpid():  # this process was forked from theirs
            _servers.remove(server)
        elif not (idle_only and server.busy()):
            server.close()
            _servers.remove(server)


def _inherited(env: Mapping[str, str]) -> tuple:
    """What a process has from the one that starts it, and the state of the package's code. Where any of it differs, another
    server is needed."""
    import resource

    named = {name: value for name, value in env.items() if not LOOKED_UP.fullmatch(name)}
    limits = [
        resource.getrlimit(getattr(resource, name)) for name in sorted(dir(resource)) if name.startswith("RLIMIT_")
    ]
    code = [(path.stat().st_mtime_ns, str(path)) for path in sorted(Path(__file__).parents[1].rglob("*.py"))]
    with open("/proc/self/status", encoding="utf-8") as file:
        mask = next(line for line in file if line.startswith("Umask"))
    rest = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return json.dumps(named, sort_keys=True), os.getcwd(), str(limits), str(rest), mask, str(code)


class ForkedProvisioner(LocalProvisioner):
    """Kernels on this machine that are forked where that is possible, and started otherwise."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Fork, or start, a kernel; returns its connection information."""
        redirected = any(kwargs.get(name) is not None for name in ("stdin", "stdout", "stderr"))
        elsewhere = Path(kwargs.get("cwd") or ".").resolve() != Path.cwd()
        env = {**(kwargs.get("env") or os.environ), "JPY_PARENT_PID": str(os.getpid())}
        if not redirected and not elsewhere:
            with contextlib.suppress(NoServerError, OSError):
                self.process = fork(cmd, env)
                self.pid = self.pgid = self.process.pid
                self.cwd = kwargs.get("cwd")
                return self.connection_info
        return await super().launch_kernel(cmd, **kwargs)


def end_orphans() -> None:
    """End servers and forked kernels whose client was killed. They end by themselves, but perhaps not yet."""
    ended = []
    with contextlib.suppress(OSError):
        here = os.readlink("/proc/self/ns/pid")  # elsewhere numbers mean other processes
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError, ValueError):  # others' processes, and those that are ending
                command = process.cmdline()
                client = int(command[command.index(forkserver.__name__) + 2])
                alive = psutil.pid_exists(client) and psutil.Process(client).create_time() <= process.create_time()
                if not alive and os.readlink(f"/proc/{process.pid}/ns/pid") == here:
                    process.kill()
                    ended.append(process)
    psutil.wait_procs(ended, timeout=10)
