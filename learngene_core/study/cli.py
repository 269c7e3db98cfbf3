"""The command line: `learngene VERB`; here its exit status, its one line of trouble, and Ctrl+C.

A command ends with status 0, with 75 where `minutes` are over, and else with one line that says what is wrong. Ctrl+C ends it
with one line and status 130, whatever its threads and notebook kernels are doing. The first one unwinds as Python does: what is
being written is finished or undone, kernels are shut down. A second one, or `PATIENCE` without an end (an individual in training
on a worker takes a minute), leaves at once. Nothing is lost by that: files are written whole or not at all, and the system frees
the lock of a process that is gone.

Nothing of the package is imported before Ctrl+C is watched for.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import argparse

STATUS = 130  # what shells give to a command that was stopped by Ctrl+C
LATER = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, call again
UNREAD = 141  # what shells give to a command whose reader (`| head`) has gone
PATIENCE = 10.0  # seconds
TEXT = "learngene: stopped; the same command goes on from the last finished task"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 after one line that says what is wrong, 75 where `minutes` are over and
    the same command goes on, 130 after Ctrl+C, 141 (and no line) where nobody reads what it prints any more."""
    _print_any_character()
    try:
        try:
            return _guarded(arguments)
        finally:
            sys.stdout.flush()  # what fails at the very end of a process can no longer be answered
    except BrokenPipeError:
        if not _unread(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return UNREAD


def _guarded(arguments: Sequence[str] | None) -> int:
    """`main`, but for what happens to its output."""
    with watched() as stop:
        debug = False
        try:
            from .options import parser

            options = parser().parse_args(arguments)
            debug = options.debug
            return _run(options)
        except KeyboardInterrupt:
            text, status = TEXT, STATUS
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _unread(sys.stdout):
                raise
            if stop.asked:  # a kernel or a library made an error of its own of it
                text, status = TEXT, STATUS
            elif debug:
                raise
            else:
                from ..errors import OutOfTime, StudyError, explained, one_line

                known = isinstance(error, StudyError | ValueError | OSError) or explained(error)
                more = "" if known else f"{type(error).__name__}: "
                text = f"learngene: {more}{one_line(error)}{'' if known else ' (--debug shows where)'}"
                status = LATER if isinstance(error, OutOfTime) else 1
        print(text, file=sys.stderr)
        return status


def _run(options: argparse.Namespace) -> int:
    """The verb, whose rooms are imported now and not before."""
    try:
        os.getcwd()
    except FileNotFoundError:  # torch would end the process in words of its own
        from ..errors import StudyError

        raise StudyError("the folder that this command was started in is gone; change to another one") from None
    from .verbs import run

    return run(options)


def _print_any_character() -> None:
    """Class names and paths hold any character; one that the terminal's encoding lacks is printed as its escape, not an error
    after hours of work. A stream that was closed before the start takes everything and keeps nothing."""
    sys.stdout, sys.stderr = (s or open(os.devnull, "w") for s in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _unread(stream: TextIO) -> bool:
    """Whether the reader of a stream has gone; other pipes may break too (a kernel's, a worker's)."""
    try:
        look = select.poll()
        look.register(stream.fileno(), 0)
    except (AttributeError, OSError, ValueError):  # no such call on Windows; no file in tests
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in look.poll(0))


# Ctrl+C ---------------------------------------------------------------------------------------------------------------
class Stop:
    """Whether Ctrl+C was pressed."""

    def __init__(self) -> None:
        self.asked = False
        self._timer = threading.Timer(PATIENCE, leave)
        self._timer.daemon = True

    def __call__(self, *_: object) -> None:
        """The signal's handler."""
        if self.asked:
            leave()
        self.asked = True
        # the notebook client leaves a task unfinished, whose whole traceback asyncio would print at the end
        if "logging" in sys.modules:
            sys.modules["logging"].getLogger("asyncio").setLevel("CRITICAL")
        self._timer.start()
        raise KeyboardInterrupt

    def over(self) -> None:
        """The command has ended by itself."""
        self._timer.cancel()


@contextlib.contextmanager
def watched() -> Iterator[Stop]:
    """Ctrl+C in this block raises KeyboardInterrupt once, and ends the process when it comes again."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield stop
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
        stop.over()


def leave() -> None:
    """End this process and its workers now, with the one line."""
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.terminate()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(("\n" if sys.stderr.isatty() else "") + TEXT + "\n")  # a bar's line has no end yet
        sys.stderr.flush()
    os._exit(STATUS)
