"""The process that kernels are forked from: `python -m learngene_core.study.forkserver`, started and asked by `forked`.

It has imported what notebooks use, and waits. It computes nothing, so no pool of threads exists when it forks. A kernel that
is forked differs from one that was started in two ways only: more modules are loaded, and the seed of `hash` of a string is
the server's. The rest is set as asked or as new: environment, output, session, signals, random streams.

Asked by a socket that nobody else can open. A request is one byte with three descriptors: the other end of the kernel's own
socket, its standard output, its standard error. The kernel's own socket brings one line of JSON (arguments, environment) and
takes back one line with the process, and one with its exit status when it has ended. When that socket is closed its kernel is
ended; when the process that asked is gone, so are the server and all its kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

# What most notebooks import. Not what looks for a kernel while it is imported, for here is none yet: the backend of matplotlib
# would draw nothing.
MODULES = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "IPython.display",
    "nbformat",
    "torch",
    "torch._dynamo",  # the first optimiser of a process imports it
    "pandas",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "seaborn",
    "learngene_core.study.chain",
    "learngene_core.study.notebooks",
    "learngene_core.study.summary",
    "learngene_core.figures.comparison",
    "learngene_core.figures.networks",
    "learngene_core.figures.training",
    "learngene_core.figures.data",
)
LAUNCHER = (
    "ipykernel_launcher"  # what kernels are; also an argument of the server, so that a list of processes shows it
)
BACKEND = "module://matplotlib_inline.backend_inline"  # by name: it is loaded by the first figure
NO_FORK = "LEARNGENE_NO_FORK"  # variable: kernels are started, not forked
IDLE = 60.0  # seconds without a kernel, after which the server ends
LOOK = 1.0  # seconds between looks at the process that asked
HARMLESS = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_PR_SET_PDEATHSIG = 1

Request = dict[str, Any]


class Server:
    """Forks on request until nobody asks any more. `control`: the socket; `client`: the process at its other end."""

    def __init__(self, control: socket.socket, client: int):
        self.control, self.client = control, client
        self.kernels: dict[int, socket.socket] = {}  # process -> its own socket
        self.woken, self.alarm = socket.socketpair()  # a child that ends writes into it
        for end in (self.woken, self.alarm):
            end.setblocking(False)
        signal.set_wakeup_fd(self.alarm.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> Request | None:
        """Returns in every forked process what is asked of it, and None in the server, at its end."""
        since = time.monotonic()
        while os.getppid() == self.client and (self.kernels or time.monotonic() - since < IDLE):
            ready, _, _ = select.select([self.control, self.woken, *self.kernels.values()], [], [], LOOK)
            self._bury()
            self._end_unwanted(ready)
            since = time.monotonic() if self.kernels else since
            if self.control in ready:
                message, handles, _, _ = socket.recv_fds(self.control, 1, 3)
                if len(message) != 1 or len(handles) != 3:
                    break  # the other end is closed
                if request := self._fork(*handles):
                    return request
        for pid in self.kernels:
            _end(pid)
        return None

    def _fork(self, *handles: int) -> Request | None:
        """In the child: the request. In the server: None; the child's number is told."""
        reply = socket.socket(fileno=handles[0])
        try:
            with contextlib.ExitStack() as stack:
                for handle in handles[1:]:
                    stack.callback(os.close, handle)
                with reply.makefile("rb") as lines:
                    request = json.loads(lines.readline())
                if (pid := os.fork()) == 0:
                    os.dup2(handles[1], 1)
                    os.dup2(handles[2], 2)
                    for end in (self.control, self.woken, self.alarm, reply, *self.kernels.values()):
                        end.close()
                    return request
        except (OSError, ValueError):  # no memory, or whoever asked has gone
            reply.close()
            return None
        self.kernels[pid] = reply
        self._tell(pid, pid)
        return None

    def _bury(self) -> None:
        """Tell the exit status of kernels that have ended."""
        with contextlib.suppress(BlockingIOError):
            self.woken.recv(4096)
        for pid in list(self.kernels):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._tell(pid, os.waitstatus_to_exitcode(status))
                self.kernels.pop(pid).close()

    def _end_unwanted(self, ready: list[socket.socket]) -> None:
        """End the kernels whose sockets were closed: nothing else makes them readable."""
        for pid, reply in self.kernels.items():
            if reply in ready:
                _end(pid)

    def _tell(self, pid: int, number: int) -> None:
        with contextlib.suppress(OSError):  # nobody listens; `_end_unwanted` ends it
            self.kernels[pid].sendall(b"%d\n" % number)


def _end(pid: int) -> None:
    """End a kernel and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.killpg(pid, signal.SIGKILL)


def become_kernel(request: Request, server: int, more: dict[str, str]) -> None:
    """Run a kernel in this process, which was just forked from the process `server`. `more`: what imports have added to the
    environment. Ends as a kernel does."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody else would end it when the server is killed
    if os.getppid() != server:
        os._exit(1)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update({**more, **request["env"]})
    _reseed()
    sys.argv = [importlib.util.find_spec(LAUNCHER).origin, *request["arguments"]]
    app = sys.modules["ipykernel.kernelapp"].IPKernelApp.instance()
    app.initialize()
    if widgets := sys.modules.get(
        "ipywidgets"
    ):  # seaborn has imported them, when there was no kernel to be registered with
        widgets.load_ipython_extension(app.shell)
    app.start()


def _reseed() -> None:
    """Global random streams as in a new process, which takes their seeds from the system. Python itself does so after a fork."""
    sys.modules["numpy"].random.seed()
    sys.modules["torch"].default_generator.seed()


def _holds_a_device() -> bool:
    """Whether an import has opened a device, such as a GPU."""
    names = []
    for handle in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            names.append(os.readlink(f"/proc/self/fd/{handle}"))
    return any(name.startswith("/dev/") and name not in HARMLESS for name in names)


def main(control: int, client: int) -> None:
    """The server's life; in a forked process, the kernel's."""
    if sys.path[0] in ("", os.getcwd()):
        del sys.path[0]  # as ipykernel's launcher does: a file random.py in the working folder is not Python's
    before = dict(os.environ)
    os.environ.setdefault("MPLBACKEND", BACKEND)  # a kernel sets it before anything is imported
    for name in MODULES:
        importlib.import_module(name)
    # pandas is imported where no kernel is yet, and would cut tables at the width of a terminal; in a kernel it has this default
    sys.modules["pandas"].set_option("display.max_columns", 20)
    sys.modules["nbformat"].validate(sys.modules["nbformat"].v4.new_notebook())  # the first time takes a second
    if _holds_a_device():
        return  # a GPU's driver does not work in forked processes; kernels are started as usual
    more = {name: value for name, value in os.environ.items() if name not in before and name != "MPLBACKEND"}
    gc.collect()
    gc.freeze()  # memory that is not touched stays shared
    server = os.getpid()
    request = Server(socket.socket(fileno=control), client).serve()
    if request is not None:
        become_kernel(request, server, more)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
