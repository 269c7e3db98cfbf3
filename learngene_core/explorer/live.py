"""How far a run is that another process works on: what it does, and how long it will still take; read from its folder alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import re
import time
from pathlib import Path

import psutil

from ..config import Config
from ..errors import duration

FRESH = 60.0  # seconds for which progress on another machine counts as work


@dataclasses.dataclass(frozen=True)
class State:
    """running: whether a process works on the folder; stage, share (0 to 1) and text of what it does, and seconds left of that
    stage (None: not known yet)."""

    running: bool
    stage: str = ""
    share: float = 0.0
    text: str = ""
    seconds_left: float | None = None

    def __str__(self) -> str:
        if not self.running:
            return "no process works on this folder"
        if not self.stage:
            return "a process works on this folder"
        left = "time left not known yet" if self.seconds_left is None else f"about {duration(self.seconds_left)} left"
        return f"{self.stage}{f', {self.text}' if self.text else ''}: {100 * self.share:.0f} %, {left}"


class LiveRun:
    """Looks at a run folder as often as one likes, and remembers when it saw what."""

    def __init__(self, path: Path, cfg: Config):
        self.path, self.cfg = path, cfg
        self._seen: dict[str, dict[float, float]] = {}  # stage -> done -> when

    def look(self) -> State:
        """What is going on. A file that is missing or half-written says nothing, and is no error."""
        now, when = {}, time.time()
        with contextlib.suppress(OSError, ValueError):
            file = self.path / "progress.json"
            when = file.stat().st_mtime
            now = json.loads(file.read_text(encoding="utf-8"))
        running = self._running(when if now else 0.0)
        try:
            stage, done, total, text = str(now["stage"]), float(now["done"]), float(now["total"]), str(now["text"])
        except (KeyError, TypeError, ValueError):
            return State(running)
        if not running or not total > 0:
            return State(running)
        self._seen.setdefault(stage, {}).setdefault(done, when)
        return State(True, stage, min(1.0, done / total), text, self._left(stage, done, total))

    def _running(self, progressed: float) -> bool:
        """Whether the process that holds the folder's lock lives; on another machine: whether it has written lately."""
        try:
            owner = (self.path / ".owner").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return False
        found = re.fullmatch(r"process (\d+) on (.*)", owner)
        if not found or found[2] != platform.node():
            return time.time() - progressed < FRESH
        return psutil.pid_exists(int(found[1]))

    def _left(self, stage: str, done: float, total: float) -> float | None:
        """Seconds from the pace since the start of the last task (or tenth of the stage), or as far back as was seen."""
        points = dict(self._seen[stage])
        if stage == "collective":
            points |= self._finished_tasks()
        start = done - (self.cfg.epochs if stage == "collective" else total / 10)
        earlier = [d for d in points if d < done]
        if not earlier:
            return None
        since = max((d for d in earlier if d <= start), default=min(earlier))
        return max(0.0, (points[done] - points[since]) / (done - since) * (total - done))

    def _finished_tasks(self) -> dict[float, float]:
        """Epochs done after each finished task -> when it was saved."""
        found = {}
        for number in range(1, self.cfg.n_source_tasks + 1):
            with contextlib.suppress(OSError):
                file = self.path / "collective" / f"task_{number:02d}" / "about.json"
                epochs = self.cfg.first_task_epochs + self.cfg.epochs * (number - 1)
                found[float(epochs)] = file.stat().st_mtime
        return found
