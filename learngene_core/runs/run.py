"""The lock of a run folder: one process computes there, with the kernels that it starts; others may read.

The manifest of a run folder: what it must look like, and in what the settings of two runs differ.

The run folder: the hand-over between stages, notebooks and people.

Every file is written whole or not at all (temporary name, fsync, rename) and listed with its size and hash in
`manifest.json` under the stage that made it. A stage loads what matches its hash, computes what is missing, and refuses
what was made with another configuration. Times and paths stand in `timings.csv` alone, so equal runs are equal files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..config import FIELDS, STAGES, Config, Machine
from ..errors import SEALED, StudyError, atomic, file_hash, read_json, say, sweep_unfinished, write_json

PATIENCE = 0.5  # seconds: who only notes something is waited for, and whoever computes has written who it is
ABOUT_MACHINE = ("torch", "system", "processors")  # of machine.json: for people, not read again
HELD = "LEARNGENE_LOCKED"  # run folders locked by this process and the kernels that it starts


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes out of the folder. The system frees the lock of a process that died, and what that one was
    writing is swept away.

    Kernels that `learngene study` started work under its lock. Raises StudyError that names the owner, or says that the
    folder may only be read, that its file system knows no locks, or that a link in it leads out of it.
    """
    import filelock

    held = json.loads(os.environ.get(HELD, "[]"))
    if str(path) in held:
        yield
        return
    owner = path / ".owner"
    guard = filelock.FileLock(path / ".lock", timeout=PATIENCE)
    try:
        guard.acquire()
    except filelock.Timeout:
        who = "another process"
        with contextlib.suppress(OSError, UnicodeDecodeError):  # it may end this moment
            who = " ".join(owner.read_text(encoding="utf-8").split())[:100] or who
        raise StudyError(f"{path} is in use by {who}; wait for it, or choose another --out") from None
    except (OSError, NotImplementedError) as error:
        raise _no_lock(path, error) from None
    try:
        _check_links(path)
        owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        sweep_unfinished(path)
        os.environ[HELD] = json.dumps([*held, str(path)])
        yield
    finally:
        os.environ.pop(HELD, None)
        if held:
            os.environ[HELD] = json.dumps(held)
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        guard.release()


def _check_links(path: Path) -> None:
    """Refuse a run folder (it may come from elsewhere) through which something outside of it would be written."""
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            entry = Path(folder, name)
            if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(os.path.realpath(path)):
                raise StudyError(
                    f"{entry} is a link that leads out of the run folder; put what it stands for in its place, "
                    "or choose another --out"
                )


def _no_lock(path: Path, error: OSError | NotImplementedError) -> Exception:
    """What to raise when the lock of a run folder cannot be made."""
    reason = getattr(error, "strerror", None) or str(error)
    if getattr(error, "errno", None) in SEALED:
        return StudyError(
            f"the run folder {path} may only be read ({reason}): what is finished can be loaded, nothing computed; copy it to a "
            "folder of your own, or choose another --out"
        )
    if isinstance(error, NotImplementedError) or error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
        return StudyError(f"the file system of {path} knows no locks ({reason}); choose an --out on a local disk")
    return error


def changed(mine: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Names of the settings that differ."""
    return [n for n in sorted({*mine, *there}) if mine.get(n) != there.get(n)]


def only_extent(names: list[str]) -> bool:
    """Whether settings that differ only say how much of a stage is wanted."""
    return bool(names) and all(n in FIELDS and FIELDS[n].metadata["kind"] == "extent" for n in names)


def checked_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """The manifest in `path`. Raises StudyError when it is not what this version writes."""
    try:
        manifest = read_json(path)
        good = all(
            stage in STAGES
            and isinstance(entry["hash"], str)
            and isinstance(entry["fields"], dict)
            and all(
                isinstance(f["bytes"], int)
                and isinstance(f["sha256"], str)
                and not Path(n).is_absolute()
                and ".." not in Path(n).parts
                for n, f in entry["files"].items()
            )
            for stage, entry in manifest.items()
        )
    except (AttributeError, KeyError, TypeError, StudyError):
        good = False
    if not good:
        raise StudyError(
            f"{path} is damaged: it is no manifest of this version; restore the file, or delete it and repeat the "
            "command: saved tasks of the collective are taken up, the rest is computed again"
        )
    return manifest


def facts_of(path: Path) -> dict[str, int | str]:
    """Size and hash of a file, as manifests and seals note them. Raises OSError when it cannot be read."""
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def state_of(path: Path, facts: dict[str, int | str]) -> str:
    """A file compared with what was noted of it: "whole", "missing" or "damaged"."""
    if not path.is_file():
        return "missing"
    same = path.stat().st_size == facts["bytes"] and file_hash(path) == facts["sha256"]
    return "whole" if same else "damaged"


class Run:
    """One run folder, opened for one configuration."""

    def __init__(self, cfg: Config, path: Path):
        self.cfg, self.path = cfg, path
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


def stored_machine(path: Path) -> Machine:
    """The machine noted in a `machine.json`. Raises StudyError, with the way out, when it is damaged."""
    try:
        values = read_json(path)
        machine = Machine(**{k: v for k, v in values.items() if k not in ABOUT_MACHINE})
        if any(type(getattr(machine, f.name)).__name__ != f.type for f in dataclasses.fields(Machine)):
            raise TypeError("a value of a wrong type")
        return machine
    except (StudyError, TypeError, AttributeError):
        raise StudyError(
            f"{path} is damaged; delete the file and repeat the command: it is written anew for this machine, "
            "and finished stages stay"
        ) from None
