"""How far a command is, and how long it will still take: a bar in a terminal, a line now and then in a log file.

One bar for verbs, `learngene study` and sweeps. It runs over the expected seconds of the work (see `estimate`); the time left is
tqdm's own, from the pace so far.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from tqdm import tqdm

from ..errors import duration, say
from ..runs.run import Run
from .estimate import share_done, stage_seconds

LOG_SECONDS = 30.0  # between two lines in a log file
FEWEST_SECONDS = 3.0  # what takes less needs no bar
LOOK = 0.5  # seconds between two looks at progress.json


class Bar:
    """A bar over expected seconds of work. Use in a `with`; standard output is printed above it."""

    def __init__(self, total: float):
        form = "{percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}"
        kind, every = (tqdm, 0.1) if sys.stderr.isatty() else (_Lines, LOG_SECONDS)
        options = {"bar_format": form, "dynamic_ncols": True, "smoothing": 0, "mininterval": every}
        self._bar = kind(total=max(total, 1.0), file=sys.stderr, **options)
        self._above = contextlib.redirect_stdout(_Above(sys.stdout, self._bar))

    def __enter__(self) -> Bar:
        self._above.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._above.__exit__(*error)
        self._bar.close()

    def at(self, seconds: float, text: str = "") -> None:
        """So many expected seconds are done, and `text` is being done; the bar never goes back."""
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(max(0.0, min(seconds, self._bar.total) - self._bar.n))
        if isinstance(self._bar, _Lines):
            self._bar.line()
        else:
            self._bar.refresh()


class _Lines(tqdm):
    """A bar for log files: plain lines, each of them whole, one in `mininterval` seconds."""

    def line(self) -> None:
        """Print where the bar is, if it is time."""
        now = self.format_dict
        if now["elapsed"] - getattr(self, "said", 0.0) < self.mininterval or self.n >= self.total:
            return
        self.said = now["elapsed"]
        left = f", about {duration((self.total - self.n) * now['elapsed'] / self.n)} left" if self.n else ""
        what = f" ({self.postfix})" if self.postfix else ""
        print(f"{100 * self.n / self.total:3.0f} %{left}{what}", file=self.fp, flush=True)

    def display(self, *_: object, **__: object) -> bool:
        """Nothing: lines are printed by `line`."""
        return True

    def clear(self, *_: object, **__: object) -> None:
        """Nothing: a printed line stays."""

    def close(self) -> None:
        """The end, without the line feed of a bar."""
        self.disable = True
        type(self)._decr_instances(self)


class _Above(io.TextIOBase):
    """Standard output while a bar is shown: the bar makes way for every line."""

    def __init__(self, out: TextIO, bar: tqdm):
        self.out, self.bar = out, bar

    def write(self, text: str) -> int:
        """Print `text` where the bar is, and the bar below it."""
        with self.bar.get_lock():
            self.bar.clear(nolock=True)
            self.out.write(text)
            self.out.flush()
            if text.endswith("\n"):
                self.bar.refresh(nolock=True)
        return len(text)

    def isatty(self) -> bool:
        """As standard output."""
        return self.out.isatty()


@contextlib.contextmanager
def shown(run: Run, stage: str) -> Iterator[None]:
    """Say what `stage` and the stages before it will cost as far as they are missing, and show the bar of their work."""
    expected = stage_seconds(run, stage)
    if sum(expected.values()) <= FEWEST_SECONDS:
        yield
        return
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in expected.items() if seconds >= 1)
    say(f"{stage}: about {duration(sum(expected.values()))} on this machine ({parts})")
    with stage_bar(run, expected):
        yield


@contextlib.contextmanager
def stage_bar(run: Run, expected: Mapping[str, float], *, more: float = 0.0) -> Iterator[Callable[[float], None]]:
    """The bar of a run's stages (name -> expected seconds) and of `more` seconds beside them; a thread moves it by what the
    stages write into progress.json. Yields what is to be called with seconds of `more` that are done."""
    before = {stage: share_done(run, stage) for stage in expected}
    beside, stop = [0.0], threading.Event()
    (run.path / "progress.json").unlink(missing_ok=True)
    with Bar(sum(expected.values()) + more) as bar:

        def watch() -> None:
            while not stop.wait(LOOK):
                with contextlib.suppress(Exception):  # a file that is being written is no reason to end the bar
                    seconds, text = position(run, expected, before)
                    bar.at(seconds + beside[0], text)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield lambda seconds: beside.__setitem__(0, beside[0] + seconds)
            stop.set()
            thread.join()
            bar.at(sum(expected.values()) + more)
        finally:
            stop.set()
            thread.join()


def position(run: Run, expected: Mapping[str, float], before: Mapping[str, float]) -> tuple[float, str]:
    """Expected seconds of a run's stages that are done, and what is being done.

    before: share of each stage that was done when the command began, which `expected` leaves out.
    """
    path = run.path / "progress.json"
    now = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    finished = run.manifest
    done = sum(seconds for stage, seconds in expected.items() if stage in finished)
    missing = [stage for stage in expected if stage not in finished]
    stage = now.get("stage")
    if stage not in missing:
        return done, missing[0] if missing else ""
    old, share = before.get(stage, 0.0), now["done"] / max(now["total"], 1e-9)
    share = min(1.0, max(0.0, share - old) / max(1 - old, 1e-9))
    return done + expected[stage] * share, f"{stage} {now['text']}".strip()
