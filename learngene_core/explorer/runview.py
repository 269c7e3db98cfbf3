"""A run folder as the layer explorer sees it: its tables, also of a run that is still training; no torch, nothing changed.

A table counts when the manifest lists it for the run's own configuration. While the collective trains, record and accuracy
come from the tasks that are finished (`collective/task_NN`); a file that is missing or half-written is not there yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..analysis.verdicts import atlas_of
from ..config import Config
from ..errors import StudyError, read_json
from ..record import N_BINS, Record, load_arrays
from ..runs.bookkeeping import checked_manifest, configuration
from ..runs.info import command
from ..runs.run import Run

VERBS = {"collective": "collective", "measures": "atlas", "atlas": "atlas", "claims": "atlas"}  # stage: what makes it


@dataclasses.dataclass(frozen=True)
class RunView:
    """What one run folder holds.

    record: the gradient record, of the finished tasks (and then without a null) while `final` is False, None before the first;
    shape: `ConvNet.shape` after the last finished task; atlas, scores: atlas.csv and layer_scores.csv, None where they are not
    made; accuracy: held-out accuracy in percent after task t (rows) on task s (columns).
    """

    path: Path
    cfg: Config
    final: bool
    record: Record | None
    shape: Mapping[str, Any] | None
    accuracy: pd.DataFrame
    atlas: pd.DataFrame | None
    scores: pd.DataFrame | None

    @classmethod
    def load(cls, path: str | Path) -> RunView:
        """Read a run folder. Raises StudyError when it is none, of another version, or its finished files are damaged."""
        path = Path(path).expanduser().absolute()
        if not path.is_dir():
            raise StudyError(f"there is no folder {path}")
        run = Run(configuration(path), path)
        manifest = checked_manifest(path / "manifest.json") if (path / "manifest.json").exists() else {}
        last = f"collective/task_{run.cfg.n_source_tasks:02d}/about.json"
        final = _made(run, manifest, "collective", ("histograms.npz", "gradients.csv", "history.csv", last))
        if final:
            record, history, shape = Record.load(path), run.read_table("history.csv"), read_json(path / last)["shape"]
        else:
            tasks = _finished_tasks(run)
            record, shape = (_partial_record(tasks), tasks[-1][0]["shape"]) if tasks else (None, None)
            history = pd.DataFrame([row for about, *_ in tasks for row in about["history"]])
        return cls(path, run.cfg, final, record, shape, _matrix(history), _atlas(run, manifest), _scores(run, manifest))

    @property
    def name(self) -> str:
        """The folder's name, and what was asked for: "lecture: preset lecture, data glyphs, seed 0"."""
        return f"{self.path.name}: preset {self.cfg.preset_name}, data {self.cfg.data}, seed {self.cfg.seed}"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the blocks; those of the configuration before the first task is finished."""
        if self.shape is not None:
            return tuple(self.shape["names"])
        return tuple(f"conv{i}" for i in range(1, len(self.cfg.final_widths) + 1))

    def missing(self, stage: str) -> str:
        """What makes the tables of a stage: the command that goes on in this very folder."""
        return _command(Run(self.cfg, self.path), stage)

    def require_record(self) -> None:
        """Raise StudyError, with the command that makes one, when there is no gradient record yet."""
        if self.record is None:
            raise StudyError(f"{self.path} holds no gradient record yet; make it with: {self.missing('collective')}")


def fingerprint(path: Path) -> tuple[tuple[str, int], ...]:
    """What tells two states of a run folder apart without reading it: the files that say what is finished, and their times."""
    path, found = path.expanduser(), []
    named = [path / "config.json", path / "manifest.json", *sorted(path.glob("collective/task_*/*"))]
    for file in named:
        with contextlib.suppress(OSError):
            found.append((file.relative_to(path).as_posix(), file.stat().st_mtime_ns))
    return tuple(found)


def _command(run: Run, stage: str, redo: bool = False) -> str:
    return command(run.cfg, run.path, VERBS[stage], redo=[stage] if redo else None)


def _made(run: Run, manifest: Mapping[str, Any], stage: str, names: tuple[str, ...]) -> bool:
    """Whether a stage is finished for the run's own configuration and these files of it are there.

    Raises StudyError when one has another size than noted. (Hashes of all files, weights too, are what `learngene info` looks
    at; on a large run that takes minutes.)
    """
    entry = manifest.get(stage)
    if entry is None or entry["hash"] != run.cfg.stage_hash(stage):
        return False
    for name in names:
        file, noted = run.path / name, entry["files"].get(name, {}).get("bytes")
        if not file.is_file() or file.stat().st_size != noted:
            raise StudyError(f"{file} is missing or damaged; rebuild it with {_command(run, stage, redo=True)}")
    return True


def _finished_tasks(run: Run) -> list[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """about.json, counts and zeros of every task that is finished for this configuration, in order; ends before a gap."""
    found: list[tuple[dict[str, Any], np.ndarray, np.ndarray]] = []
    wanted = run.cfg.stage_hash("collective")
    while len(found) < run.cfg.n_source_tasks:
        folder = run.path / "collective" / f"task_{len(found) + 1:02d}"
        try:
            about = read_json(folder / "about.json")
            arrays = load_arrays(folder / "record.npz")
            counts, zeros = arrays["counts"], arrays["zeros"]
            good = about["stage_hash"] == wanted and len(counts) == len(about["record"]) and about["shape"]["names"]
        except (OSError, StudyError, ValueError, KeyError, TypeError):
            break  # not there yet, half-written, or just being made anew
        if not good:
            break
        found.append((about, counts, zeros))
    return found


def _partial_record(tasks: list[tuple[dict[str, Any], np.ndarray, np.ndarray]]) -> Record:
    """The record of the tasks that are finished; its null has no network."""
    layers = tuple(tasks[-1][0]["shape"]["names"])
    entries = [
        {"task": number, **entry, "counts": counts[i], "zeros": zeros[i]}
        for number, (about, counts, zeros) in enumerate(tasks, 1)
        for i, entry in enumerate(about["record"])
    ]
    none = np.zeros((0, len(tasks), len(layers), 2, N_BINS), np.int64)
    record = Record.of_epochs(layers, entries, [], none, none[..., 0, 0])
    return dataclasses.replace(record, null_table=record.table[:0])


def _matrix(history: pd.DataFrame) -> pd.DataFrame:
    if history.empty:
        return pd.DataFrame()
    return history[history["phase"] == "test"].pivot(index="task", columns="on_task", values="accuracy")


def _atlas(run: Run, manifest: Mapping[str, Any]) -> pd.DataFrame | None:
    """atlas.csv, or its table from the cells where the claims are not judged yet; rows measured on target tasks."""
    if _made(run, manifest, "claims", ("atlas.csv",)):
        table = run.read_table("atlas.csv")
    elif _made(run, manifest, "atlas", ("atlas_cells.csv",)):
        table = atlas_of(run.read_table("atlas_cells.csv"), run.cfg, run)
    else:
        return None
    table = table[table["gain"].notna() & table["shots"].eq(run.cfg.atlas_shots)].reset_index(drop=True)
    return None if table.empty else table


def _scores(run: Run, manifest: Mapping[str, Any]) -> pd.DataFrame | None:
    if not _made(run, manifest, "measures", ("layer_scores.csv",)):
        return None
    return run.read_table("layer_scores.csv")
