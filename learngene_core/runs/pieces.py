"""Finished pieces of a long stage, kept beside the run until the stage is whole: a stop costs the piece in hand, no more."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from typing import Any

from ..errors import OutOfTime, StudyError, atomic, read_json
from .run import Run


class Pieces:
    """The pieces of one stage: JSON values by name, below `.parts/<stage>` in the run folder.

    Pieces of another configuration are left out, so that a changed parameter never mixes with what was there; so are those of
    other `inputs`, the fingerprints of what the stage is handed (see `inputs`).
    """

    def __init__(self, run: Run, stage: str, inputs: Mapping[str, str] | None = None):
        self.run, self.stage = run, stage
        self.folder = run.path / ".parts" / stage
        self.hash = "-".join([run.cfg.piece_hash(stage), *(inputs or {}).values()])

    def get(self, name: str) -> Any:
        """The value of a finished piece, or None. A damaged piece counts as unfinished."""
        try:
            piece = read_json(self.folder / f"{name}.json")
        except (OSError, StudyError):
            return None
        good = isinstance(piece, dict) and piece.get("stage_hash") == self.hash and "value" in piece
        return piece["value"] if good else None

    def put(self, name: str, value: Any) -> None:
        """Keep a piece (atomically)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic(self.folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps({"stage_hash": self.hash, "value": value}), encoding="utf-8")

    def all(self) -> list[tuple[str, Any]]:
        """Name and value of every finished piece, by name."""
        named = [(path.stem, self.get(path.stem)) for path in sorted(self.folder.glob("*.json"))]
        return [(name, value) for name, value in named if value is not None]

    @property
    def in_time(self) -> bool:
        """Whether another piece may be begun (`minutes` in the configuration)."""
        return self.run.in_time

    def stopped(self, done: int, total: int) -> OutOfTime:
        """What to raise when time is up before the last piece."""
        return OutOfTime(
            f"{self.stage}: {done} of {total} pieces are done and saved after minutes={self.run.cfg.minutes}; "
            "the same command goes on from there"
        )

    def clear(self) -> None:
        """The stage is whole and cannot grow: its pieces are no longer needed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()  # unless another stage has pieces there
