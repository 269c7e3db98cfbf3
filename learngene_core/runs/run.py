"""The run folder: the hand-over between stages, notebooks and people.

Every file is written whole or not at all (temporary name, fsync, rename) and listed with its size and hash in
`manifest.json` under the stage that made it. A stage loads what matches its hash, computes what is missing, and refuses
what was made with another configuration. Times and paths stand in `timings.csv` alone, so equal runs are equal files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import STAGES, Config
from ..errors import StudyError, atomic, expanded, read_json, say, write_json
from . import tables
from .bookkeeping import changed, checked_manifest, facts_of, only_extent, state_of
from .lock import alone

WORKERS = "LEARNGENE_WORKERS"  # variable: individuals side by side where the configuration leaves it open (sweeps: 1)


class Run:
    """One run folder, opened for one configuration."""

    def __init__(self, cfg: Config, path: Path):
        self.cfg, self.path = cfg, path
        self._last_progress = -1.0
        self._end = time.monotonic() + 60 * cfg.minutes if cfg.minutes else float("inf")

    @classmethod
    def open(cls, cfg: Config, out: str | Path = "", *, redo: Iterable[str] = ()) -> Run:
        """Open or create the run folder `out` (default: `runs/<preset>[-<data>][-s<seed>]`) for `cfg`.

        Stages in `redo`, and all that follow from them, are forgotten and will be computed again.

        Raises StudyError when the folder holds a stage made with another configuration, or is no run folder.
        """
        run = cls(cfg, folder_of(cfg, out))
        _made(run.path)
        redo = [*redo]
        for stage in redo:
            _following(stage)  # an unknown stage is noticed before anything changes
        run._refuse_other(except_for={s for stage in redo for s in _following(stage)})
        path = run.path / "config.json"
        if redo or not path.exists() or _stored(path) != cfg.to_dict():
            with run.lock():
                for stage in redo:
                    run.forget(stage)
                write_json(path, cfg.to_dict())
        return run

    @property
    def in_time(self) -> bool:
        """Whether another piece of work may be begun: `minutes` count from when the run was opened, for all stages together."""
        return time.monotonic() < self._end

    # stages ---------------------------------------------------------------------------------------------------------
    @property
    def manifest(self) -> dict[str, dict[str, Any]]:
        """Stage -> hash, fields and files (name -> bytes, sha256) of every finished stage; see `bookkeeping`."""
        path = self.path / "manifest.json"
        return checked_manifest(path) if path.exists() else {}

    def check(self, stage: str, cfg: Config) -> None:
        """Raise StudyError when a function is given this run together with a configuration that asks for other results."""
        if cfg.stage_hash(stage) != self.cfg.stage_hash(stage):
            raise StudyError(f"{self.path} was opened for another configuration than the one given for stage {stage!r}")

    def done(self, stage: str, inputs: Mapping[str, str] | None = None) -> bool:
        """Whether the stage is finished for this configuration; its files are compared with the manifest.

        inputs: fingerprints of what the stage is handed, by name (see `inputs`). Raises StudyError when the stage was made
        from others, and when a file of it is missing or damaged.
        """
        entry = self.manifest.get(stage)
        if entry is None or entry["hash"] != self.cfg.stage_hash(stage):
            return False
        for name, mine in (inputs or {}).items():
            if entry.get("inputs", {}).get(name, mine) != mine:
                raise StudyError(
                    f"stage {stage!r} of {self.path} was made with another {name} than the one given; "
                    f"choose another --out, or make it again with --redo {stage}"
                )
        for name, facts in entry["files"].items():
            path = self.path / name
            state = state_of(path, facts)
            if state == "missing":
                raise StudyError(
                    f"{path} is missing, though stage {stage!r} was finished; rebuild it with --redo {stage}"
                )
            if state == "damaged":
                raise StudyError(f"{path} is damaged (its hash is not the one noted); rebuild it with --redo {stage}")
        return True

    @contextlib.contextmanager
    def computing(self, stage: str, files: list[str], inputs: Mapping[str, str] | None = None) -> Iterator[None]:
        """Around the computation of a stage: lock, time, and on success enter its `files` (and `inputs`) in the manifest."""
        with self.lock():
            start = time.monotonic()  # a clock may be set while a stage works
            yield
            entry = {
                "hash": self.cfg.stage_hash(stage),
                "fields": self.cfg.fields_of(stage),
                "files": {name: facts_of(self.path / name) for name in files},
                **({"inputs": dict(inputs)} if inputs else {}),
            }
            write_json(self.path / "manifest.json", {**self.manifest, stage: entry})
            self.note_time("stage", stage, time.monotonic() - start)
            self.progress(stage, 1, 1)

    def forget(self, stage: str) -> None:
        """Strike a stage and everything that reads it from the manifest, and delete its unfinished state."""
        gone = _following(stage)
        if self.cfg.criterion == "recommended" and "atlas" in gone:
            gone |= _following("criteria")  # the atlas chose the learngene
        state = ["collective", "ancestors", "released"] if "collective" in gone else []
        state += [f".parts/{s}" for s in gone] + (["released"] if "released" in gone else [])
        for folder in state:
            shutil.rmtree(self.path / folder, ignore_errors=True)
        if self.path.joinpath("manifest.json").exists():
            write_json(self.path / "manifest.json", {s: e for s, e in self.manifest.items() if s not in gone})

    def _refuse_other(self, except_for: set[str]) -> None:
        for stage, entry in self.manifest.items():
            if stage in except_for or entry["hash"] == self.cfg.stage_hash(stage):
                continue
            mine = self.cfg.fields_of(stage)
            names = changed(mine, entry["fields"])
            if not names or only_extent(names):
                continue  # claims that were rewritten; or more of the same: made again from the pieces that are there
            changes = ", ".join(f"{n}: {entry['fields'].get(n)} there, {mine.get(n)} asked for" for n in names[:3])
            lost = [s for s in self.manifest if s in _following(stage)]
            raise StudyError(
                f"{self.path} was made with another configuration ({changes}); choose another --out for this one, "
                f"or give up what is there ({', '.join(lost)}) with --redo {stage}"
            )

    # files ----------------------------------------------------------------------------------------------------------
    def write_table(self, name: str, table: Any) -> None:
        """A DataFrame as CSV, the same bytes for equal tables on every system."""
        with atomic(self.path / name) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")

    def read_table(self, name: str) -> Any:
        """The DataFrame in a CSV of this run, with the columns that others read of it (`tables.COLUMNS`).

        Raises StudyError when it is missing, or damaged: then with the stage that makes it anew.
        """
        try:
            return tables.read_table(self.path / name)
        except FileNotFoundError:
            raise StudyError(f"{self.path / name} does not exist; run the stage that makes it first") from None
        except ValueError as error:  # of pandas all parsing errors are ValueErrors
            stage = next((s for s, entry in self.manifest.items() if name in entry["files"]), "STAGE")
            reason = " ".join(str(error).split())[:200]
            raise StudyError(f"{self.path / name} is damaged ({reason}); rebuild it with --redo {stage}") from None

    def note_time(self, kind: str, name: str, seconds: float) -> None:
        """Append a row to `timings.csv` (kind: stage, notebook or study; name; seconds)."""
        path = self.path / "timings.csv"
        old = path.read_text(encoding="utf-8") if path.exists() else "kind,name,seconds\n"
        with atomic(path) as temporary:
            temporary.write_text(f"{old}{kind},{name},{seconds:.2f}\n", encoding="utf-8")

    def progress(self, stage: str, done: float, total: float, text: str = "") -> None:
        """Tell watchers (the bar of `learngene study`, a live notebook) how far a stage is; at most twice a second."""
        now = time.monotonic()
        if done < total and now - self._last_progress < 0.5:
            return
        self._last_progress = now
        temporary = self.path / ".progress.tmp"  # no fsync: nothing depends on it
        with contextlib.suppress(OSError):
            temporary.write_text(
                json.dumps({"stage": stage, "done": done, "total": total, "text": text}), encoding="utf-8"
            )
            os.replace(temporary, self.path / "progress.json")

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes out of the folder; see `lock.alone`, which says what it raises."""
        return alone(self.path)


def _stored(path: Path) -> Any:
    """What config.json holds; nothing when it is damaged: the hashes in the manifest have confirmed what is asked for."""
    try:
        return read_json(path)
    except StudyError:
        say(f"{path} was damaged and is written anew")
        return None


def _following(stage: str) -> set[str]:
    """A stage and all that read its results. Raises StudyError for an unknown stage."""
    if stage not in STAGES:
        raise StudyError(f"unknown stage {stage!r}; there are {', '.join(STAGES)}")
    gone = {stage}
    while more := {s for s, before in STAGES.items() if gone & set(before)} - gone:
        gone |= more
    return gone


# names of run folders -------------------------------------------------------------------------------------------------
def folder_of(cfg: Config, out: str | Path = "") -> Path:
    """The run folder that `out` names, or the default one. Raises StudyError for a home folder that is not there."""
    return expanded(out).absolute() if out else default_folder(cfg)


def default_folder(cfg: Config) -> Path:
    """`runs/<preset>[-<data>][-s<seed>]` below the working folder (the project's, when a notebook is open in it)."""
    here = Path.cwd()
    below = here.parent.parent
    places = ("notebooks",), ("notebooks", "exercises"), ("notebooks", "solutions")
    for folder, project in zip(places, (here.parent, below, below), strict=True):
        if here.parts[-len(folder) :] == folder and (project / "learngene_core").is_dir():
            here = project
            break
    name = cfg.preset_name
    if cfg.data != Config.preset(cfg.preset_name).data:
        name += f"-{cfg.data}"
    return here / "runs" / (name + (f"-s{cfg.seed}" if cfg.seed else ""))


def parameters_of(cfg: Config, out: Path) -> dict[str, Any]:
    """The notebook parameters that give exactly `cfg` and the run folder `out`: the preset and what differs from it."""
    preset = Config.preset(cfg.preset_name, data=cfg.data).to_dict()  # the data brings defaults of its own
    differs = {k: v for k, v in cfg.to_dict().items() if preset[k] != v}
    return {"preset": cfg.preset_name, **differs, "data": cfg.data, "out": str(out)}


def _made(path: Path) -> None:
    """Make a run folder, or see that the one there can be one. Raises StudyError."""
    try:
        if path.is_symlink() and not path.exists():
            raise StudyError(f"{path} is a link to {os.readlink(path)}, which is not there; choose another --out")
        if path.exists() and not path.is_dir():
            raise StudyError(f"{path} is a file, not a run folder; choose another --out")
        strangers = [p for p in path.iterdir() if not p.name.startswith(".")] if path.is_dir() else []
        if strangers and not (path / "config.json").exists():  # what a killed start leaves behind has a dot
            raise StudyError(f"{path} is not empty and is no run folder; choose another --out")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot make the run folder {path}: {error.strerror}; choose another --out") from None
    except ValueError as error:  # a zero byte in its name
        raise StudyError(f"cannot make the run folder {path}: {error}; choose another --out") from None
