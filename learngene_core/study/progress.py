"""How far a command is and how long it will still take: a bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from ..errors import duration, say
from ..runs.run import Run
from .cost import share_done, stage_seconds

LOG_SECONDS = 30.0  # between two lines in a log file
FEWEST_SECONDS = 3.0  # what takes less needs no bar


@contextlib.contextmanager
def shown(run: Run, stage: str) -> Iterator[None]:
    """Say what `stage` and the stages before it will cost as far as they are missing, and show the bar of their work."""
    expected = stage_seconds(run, stage)
    if sum(expected.values()) <= FEWEST_SECONDS:
        yield
        return
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in expected.items() if seconds >= 1)
    say(f"{stage}: about {duration(sum(expected.values()))} on this machine ({parts})")
    with bar(run, expected):
        yield


@contextlib.contextmanager
def bar(
    run: Run, expected: Mapping[str, float], *, kernel_seconds: float = 0, n_kernels: int = 0
) -> Iterator[Callable]:
    """A bar over the expected seconds of all stages and notebook kernels; a thread moves it by the stages' own progress.

    Yields what is to be called when a notebook is done. Standard output is printed above the bar.
    """
    total = sum(expected.values()) + kernel_seconds * n_kernels
    counted, stop = {"kernels": 0}, threading.Event()
    before = {stage: share_done(run, stage) for stage in expected}
    (run.path / "progress.json").unlink(missing_ok=True)
    with _terminal(total) if sys.stderr.isatty() else _log() as show:

        def watch() -> None:
            clock, text = _Clock(total), ""
            while not stop.wait(0.5):
                with contextlib.suppress(Exception):  # a file that is being written is no reason to end the bar
                    at, end, text = _position(run, expected, before, counted["kernels"] * kernel_seconds)
                    clock.seen(at, end + (0 if text else kernel_seconds))
                show(*clock.now(), text)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield lambda: counted.update(kernels=counted["kernels"] + 1)
            show(1.0, 0.0, "")
        finally:
            stop.set()
            thread.join()


def _position(
    run: Run, expected: Mapping[str, float], before: Mapping[str, float], at: float
) -> tuple[float, float, str]:
    """Expected seconds that are behind us (`at`: those of kernels), those behind us when the stage in hand has ended, and
    what is being done. before: share of each stage that was done when we began, which `expected` leaves out."""
    path = run.path / "progress.json"
    now = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    finished = run.manifest
    at += sum(seconds for stage, seconds in expected.items() if stage in finished)
    missing = [stage for stage in expected if stage not in finished]
    if not missing:
        return at, at, ""
    stage = now.get("stage")
    if stage not in missing:
        return at, at + expected[missing[0]], missing[0]
    seconds, old, share = expected[stage], before.get(stage, 0.0), now["done"] / max(now["total"], 1e-9)
    share = min(1.0, max(0.0, share - old) / max(1 - old, 1e-9))
    return at + seconds * share, at + seconds, f"{stage} {now['text']}".strip()


class _Clock:
    """From the expected seconds that are behind us to shares and seconds left; it also moves between two reports."""

    def __init__(self, total: float):
        self.total, self.start = max(total, 1.0), time.monotonic()
        self.at, self.end, self.since = 0.0, 0.0, self.start

    def seen(self, at: float, end: float) -> None:
        """`at` is reached, and `end` is not."""
        if (at, end) != (self.at, self.end):
            self.at, self.end, self.since = at, end, time.monotonic()

    def now(self) -> tuple[float, float]:
        """Share of the whole (0 to 1) and seconds left: the estimate at first, then more and more this run's own pace."""
        trust, room = 0.1 * self.total, self.end - self.at
        pace = (self.since - self.start + trust) / (self.at + trust)  # seconds that an expected second has taken
        waited = time.monotonic() - self.since
        on = room * -math.expm1(-waited / pace / room) if room > 0 else 0.0  # slower and slower, never to the end
        at = min(self.at + on, 0.99 * self.total)
        return at / self.total, (self.total - at) * pace


@contextlib.contextmanager
def _terminal(total: float) -> Iterator[Callable]:
    from tqdm import tqdm

    form = "{l_bar}{bar}| {elapsed} gone{postfix}"
    with tqdm(total=round(total) or 1, bar_format=form, file=sys.stderr, dynamic_ncols=True) as line:

        def show(share: float, left: float, text: str) -> None:
            line.n = max(line.n, int(share * line.total))
            line.set_postfix_str(f"{tqdm.format_interval(left)} left" + (f", {text}" if text else ""))

        with contextlib.redirect_stdout(_Above(sys.stdout, line)):
            yield show


class _Above(io.TextIOBase):
    """Standard output while a bar is shown: the bar makes way for every line."""

    def __init__(self, out: TextIO, line: Any):
        self.out, self.line = out, line

    def write(self, text: str) -> int:
        """Print `text` where the bar is, and the bar below it."""
        with self.line.get_lock():
            self.line.clear(nolock=True)
            self.out.write(text)
            self.out.flush()
            if text.endswith("\n"):
                self.line.refresh(nolock=True)
        return len(text)

    def isatty(self) -> bool:
        """As standard output."""
        return self.out.isatty()


@contextlib.contextmanager
def _log() -> Iterator[Callable]:
    said = time.monotonic()

    def show(share: float, left: float, text: str) -> None:
        nonlocal said
        if share < 1 and time.monotonic() - said >= LOG_SECONDS:
            said = time.monotonic()
            what = f" ({text})" if text else ""
            print(f"{100 * share:3.0f} %, about {duration(left)} left{what}", file=sys.stderr, flush=True)

    yield show
