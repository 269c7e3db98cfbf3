"""The run that ships with the package: what the explorer needs of a finished lecture run, small.

`python -m learngene_core.explorer.demo RUN` makes it. Tables as they are; of the network its shape, and the learngene without its
Fisher information. The bookkeeping lists what is there, so the folder is a run of its own kind: it can be explored, not gone
on with.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StudyError, file_hash, read_json, say, write_json
from ..learngene import Learngene
from .runview import RunView
from .server import DEMO

LIMIT = 1_500_000  # bytes
TABLES = {
    "collective": ("history.csv", "gradients.csv"),
    "measures": ("layer_scores.csv",),
    "claims": ("atlas.csv",),
}


def extract(run: str | Path, target: Path = DEMO) -> int:
    """Make the demonstration folder `target` from a finished run, in place of the one that is there; returns its bytes.

    Raises StudyError when the run lacks a table that the explorer shows, or when the folder would exceed LIMIT.
    """
    view = RunView.load(run)
    if not view.final or view.atlas is None or view.scores is None:
        raise StudyError(f"{view.path} is not finished; run `learngene atlas` on it first")
    with tempfile.TemporaryDirectory(prefix="learngene-demo-") as place:
        made = Path(place, "demo")
        made.mkdir()
        _copy(view, made)
        size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
        if size > LIMIT:
            raise StudyError(f"the demonstration would have {size:,} bytes, more than {LIMIT:,}; take a smaller run")
        RunView.load(made).require_record()
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target)
    return size


def _copy(view: RunView, made: Path) -> None:
    """The files of the demonstration into the empty folder `made`."""
    manifest: dict[str, Any] = read_json(view.path / "manifest.json")
    last = f"collective/task_{view.cfg.n_source_tasks:02d}/about.json"
    for name in ("config.json", *(name for names in TABLES.values() for name in names)):
        shutil.copyfile(view.path / name, made / name)
    _smaller_record(view.path / "histograms.npz", made / "histograms.npz")
    about = read_json(view.path / last)
    (made / last).parent.mkdir(parents=True)
    kept = {"stage_hash": about["stage_hash"], "shape": about["shape"], "history": [], "record": []}
    write_json(made / last, kept)
    gene = Learngene.load(view.path / "learngene.safetensors")
    dataclasses.replace(gene, fisher=None).save(made / "learngene.safetensors")
    files = {
        **TABLES,
        "collective": (*TABLES["collective"], "histograms.npz", last),
        "criteria": ("learngene.safetensors",),
    }
    listed = {
        stage: {
            **manifest[stage],
            "files": {n: {"bytes": (made / n).stat().st_size, "sha256": file_hash(made / n)} for n in names},
        }
        for stage, names in files.items()
    }
    (made / "manifest.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def _smaller_record(source: Path, target: Path) -> None:
    """The same histograms; counts that fit are kept in 32 bits, which packs better."""
    with np.load(source, allow_pickle=False) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    limit = np.iinfo(np.int32).max
    for name, array in values.items():
        if array.dtype == np.int64 and array.size and array.max() <= limit:
            values[name] = array.astype(np.int32)
    np.savez_compressed(target, **values)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m learngene_core.explorer.demo RUN")
    try:
        say(f"{DEMO}: {extract(sys.argv[1]):,} bytes")
    except StudyError as error:
        sys.exit(f"demo: {error}")
