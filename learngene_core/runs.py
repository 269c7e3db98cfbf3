"""The run folder: the hand-over between stages, notebooks and people.

Every file is written whole or not at all (temporary name, fsync, rename) and listed with its size and hash in
`manifest.json` under the stage that made it. A stage loads what matches its hash, computes what is missing, and refuses
what was made with another configuration. Times and paths stand in `timings.csv` alone, so equal runs are equal files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import determinism
from .bookkeeping import changed, checked_manifest, only_extent
from .config import STAGES, Config
from .files import StudyError, atomic, read_json, say, write_json
from .locks import alone
from .machine import Machine
from .savepoints import facts_of, state_of


class Run:
    """One run folder, opened for one configuration."""

    def __init__(self, cfg: Config, path: Path):
        self.cfg, self.path = cfg, path
        self._machine: Machine | None = None
        self._last_progress = 0.0
        self._end = time.monotonic() + 60 * cfg.minutes if cfg.minutes else float("inf")

    @classmethod
    def open(cls, cfg: Config, out: str | Path = "", *, redo: Iterable[str] = ()) -> Run:
        """Open or create the run folder `out` (default: `runs/<preset>[-<data>][-s<seed>]`) for `cfg`.

        Stages in `redo`, and all that follow from them, are forgotten and will be computed again.

        Raises StudyError when the folder holds a stage made with another configuration, or is no run folder.
        """
        run = cls(cfg, folder_of(cfg, out))
        if run.path.exists() and not run.path.is_dir():
            raise StudyError(f"{run.path} is a file, not a run folder; choose another --out")
        strangers = [p for p in run.path.iterdir() if not p.name.startswith(".")] if run.path.is_dir() else []
        if strangers and not (run.path / "config.json").exists():  # what a killed start leaves behind has a dot
            raise StudyError(f"{run.path} is not empty and is no run folder; choose another --out")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"cannot make the run folder {run.path}: {error.strerror}") from None
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
        """Stage -> hash, fields and files (name -> bytes, sha256) of every finished stage."""
        path = self.path / "manifest.json"
        return checked_manifest(path) if path.exists() else {}

    def check(self, stage: str, cfg: Config) -> None:
        """Raise StudyError when a function is given this run together with a configuration that asks for other results."""
        if cfg.stage_hash(stage) != self.cfg.stage_hash(stage):
            raise StudyError(f"{self.path} was opened for another configuration than the one given for stage {stage!r}")

    def done(self, stage: str) -> bool:
        """Whether the stage is finished for this configuration; its files are checked against the manifest.

        Raises StudyError when a file of a finished stage is missing or damaged.
        """
        entry = self.manifest.get(stage)
        if entry is None or entry["hash"] != self.cfg.stage_hash(stage):
            return False
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
    def computing(self, stage: str, files: list[str]) -> Iterator[None]:
        """Around the computation of a stage: lock, time, and on success enter its `files` in the manifest."""
        with self.lock():
            start = time.time()
            yield
            entry = {
                "hash": self.cfg.stage_hash(stage),
                "fields": self.cfg.fields_of(stage),
                "files": {name: facts_of(self.path / name) for name in files},
            }
            write_json(self.path / "manifest.json", {**self.manifest, stage: entry})
            self.note_time("stage", stage, time.time() - start)
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
        """The DataFrame in a CSV of this run. Raises StudyError when it is missing, or unreadable: then with the stage that makes
        it anew."""
        import pandas

        try:
            return pandas.read_csv(self.path / name, keep_default_na=True)
        except FileNotFoundError:
            raise StudyError(f"{self.path / name} does not exist; run the stage that makes it first") from None
        except (ValueError, OverflowError) as error:  # of pandas all parsing errors are ValueErrors
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
        now = time.time()
        if done < total and now - self._last_progress < 0.5:
            return
        self._last_progress = now
        temporary = self.path / ".progress.tmp"  # no fsync: nothing depends on it
        with contextlib.suppress(OSError):
            temporary.write_text(
                json.dumps({"stage": stage, "done": done, "total": total, "text": text}), encoding="utf-8"
            )
            os.replace(temporary, self.path / "progress.json")

    @property
    def machine(self) -> Machine:
        """`machine.json` of this run; resolved and written when it is first needed.

        Raises StudyError when the folder was made on a device that `cfg` does not ask for or that is not here.
        """
        if self._machine is None:
            path = self.path / "machine.json"
            if path.exists():
                here = machine_of(path)
                if self.cfg.deterministic and not here.deterministic:
                    raise StudyError(
                        f"{self.path} was made without deterministic, which is asked for; choose another --out"
                    )
                if self.cfg.device not in ("auto", here.device) or not Machine.available(here.device):
                    raise StudyError(
                        f"{self.path} was made on device {here.device!r}; {self.cfg.device!r} is asked "
                        "for; choose another --out"
                    )
            else:
                self.keep_machine(here := Machine.resolve(self.cfg))
            if here.deterministic:
                determinism.apply(here.device)
            self._machine = here
        return self._machine

    def keep_machine(self, machine: Machine) -> None:
        """Go on with another `machine` (a smaller stack, what tuning has measured); machine.json says so."""
        self._machine = machine
        write_json(self.path / "machine.json", dataclasses.asdict(machine))

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes out of the folder; see `locks.alone`, which says what it raises."""
        return alone(self.path)


def _stored(path: Path) -> Any:
    """What config.json holds; nothing when it is damaged: the hashes in the manifest have confirmed what is asked for."""
    try:
        return read_json(path)
    except StudyError:
        say(f"{path} was damaged and is written anew")
        return None


def machine_of(path: Path) -> Machine:
    """The machine noted in a run's machine.json. Raises StudyError, with the way out, when it is damaged."""
    try:
        return Machine.stored(path)
    except StudyError:
        raise StudyError(
            f"{path} is damaged; delete the file and repeat the command: it is written anew for this machine, "
            "and finished stages stay"
        ) from None


def _following(stage: str) -> set[str]:
    """A stage and all that read its results. Raises StudyError for an unknown stage."""
    if stage not in STAGES:
        raise StudyError(f"unknown stage {stage!r}; there are {', '.join(STAGES)}")
    gone = {stage}
    while more := {s for s, before in STAGES.items() if gone & set(before)} - gone:
        gone |= more
    return gone


def folder_of(cfg: Config, out: str | Path = "") -> Path:
    """The run folder that `out` names, or the default one."""
    return Path(out).expanduser().absolute() if out else default_folder(cfg)


def default_folder(cfg: Config) -> Path:
    """`runs/<preset>[-<data>][-s<seed>]` below the working folder (the project's, when a notebook is open in it)."""
    here = Path.cwd()
    for folder, project in ((("notebooks",), here.parent), (("notebooks", "exercises"), here.parent.parent)):
        if here.parts[-len(folder) :] == folder and (project / "learngene_core").is_dir():
            here = project
            break
    name = cfg.preset_name
    if cfg.data != Config.preset(cfg.preset_name).data:
        name += f"-{cfg.data}"
    return here / "runs" / (name + (f"-s{cfg.seed}" if cfg.seed else ""))
