"""What the points of a sweep have in common: stages that are computed once, and run folders filled from others.

Every stage has a hash over the settings that it and all before it read, so points whose hashes agree would compute the same
files. Each such stage is computed once, in a folder of its own below `shared/`; the run folders of the points begin with
links to its files. Sharing files is safe because a run never writes into a file: it replaces it by a new one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nbformat

from ..config import STAGES, Config
from ..errors import UNFINISHED, atomic, write_json
from ..runs.run import Run
from .grid import WHERE, Grid, Point

# what a chain is asked for, per stage
ASKED = {
    "collective": "collective",
    "criteria": "learngene",
    "reconstruct": "results",
    "openworld": "openworld",
    "measures": "layer_scores",
    "atlas": "atlas_cells",
    "controls": "controls",
}
CHEAP = {"criteria"}  # seconds from the record: not worth a kernel that computes nothing else


@dataclasses.dataclass
class Shared:
    """Stages computed once. stages: name -> digest of what decides it; points: the names of those that use them; cfg: asks
    for all of them; parents: names of the shared ones that it begins with."""

    stages: dict[str, str]
    points: frozenset[str]
    cfg: Config
    parents: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its folder: its first stage, and whatever else it holds."""
        (stage, digest), *rest = self.stages.items()
        more = hashlib.sha256(json.dumps(rest).encode()).hexdigest()[:6]
        return f"{stage}-{digest}" + (f"-{more}" if rest else "")

    def sources(self, folder: Path) -> list[Path]:
        """The run folders below `folder` that it may take stages from: its parents, and what earlier grids have left there
        that begins alike (on the same images)."""
        (stage, digest), *_ = self.stages.items()
        alike = (path for path in sorted(folder.glob(f"{stage}-{digest}*")) if path.is_dir() and path.name != self.name)
        return [*(folder / parent for parent in self.parents), *alike]


def plan(grid: Grid) -> list[Shared]:
    """What to compute once, in an order in which parents come first; stages of equal points stand together."""
    by_points: dict[frozenset[str], Shared] = {}
    for stage in ASKED:
        for digest, some in _groups(grid, stage).items():
            if len(some) < 2:
                continue
            names = frozenset(point.name for point in some)
            by_points.setdefault(names, Shared({}, names, some[0].cfg)).stages[stage] = digest
    found = sorted(by_points.values(), key=lambda shared: -len(shared.points))
    found = [shared for shared in found if not CHEAP.issuperset(shared.stages)]
    for shared in found:
        shared.parents = [other.name for other in found if other.points > shared.points]
    return found


def needed(cfg: Config, stage: str) -> list[str]:
    """The stages whose results `stage` reads, without itself, in order; the atlas too where it chooses the learngene."""
    if not stage:
        return []
    stages = set(STAGES[stage])
    while more := {before for s in stages for before in STAGES[s]} - stages:
        stages |= more
    if cfg.criterion == "recommended" and not cfg.layers and (stages | {stage}) & {"criteria"}:
        stages.add("atlas")
    return [s for s in STAGES if s in stages - {stage}]


def _groups(grid: Grid, stage: str) -> dict[str, list[Point]]:
    """The points that read `stage`, by what decides its results, and on what images and machine they are computed."""
    groups: dict[str, list[Point]] = {}
    for point in grid.points:
        if stage in needed(point.cfg, grid.stage):
            beside = [getattr(point.cfg, name) for name in (*WHERE, "device", "threads", "deterministic")]
            about = json.dumps([point.cfg.stage_hash(stage), beside])
            groups.setdefault(hashlib.sha256(about.encode()).hexdigest()[:12], []).append(point)
    return groups


def notebook_of(shared: Shared) -> Any:
    """A notebook that computes the stages of `shared` in the run folder that it is given, and nothing else."""
    new = nbformat.v4
    parameters = new.new_code_cell('preset: str = "lecture"  # the preset\nout: str = ""  # the run folder')
    parameters.metadata["tags"] = ["parameters"]
    text = "from learngene_core import Config, Run\nfrom learngene_core.study.chain import Chain\n\n"
    set_up = new.new_code_cell(text + "cfg = Config.from_notebook(globals())\nchain = Chain(Run.open(cfg, out))")
    cells = [parameters, set_up, *(new.new_code_cell(f"chain.{ASKED[stage]};") for stage in shared.stages)]
    for number, cell in enumerate(cells):
        cell["id"] = f"c{number}"  # equal runs are equal files
    return new.new_notebook(cells=cells)


def fill(run: Run, sources: Iterable[Path]) -> list[str]:
    """Give `run` every finished stage of `sources` (run folders) that it asks for and has not yet; returns their names.

    Files are linked where the file system can, else copied whole; the manifest is written last.
    Raises StudyError when a source's bookkeeping is damaged, and OSError when a file of it is missing.
    """
    taken: list[str] = []
    for source in sources:
        there = Run(run.cfg, source).manifest
        manifest = run.manifest
        new = {s: e for s, e in there.items() if s not in manifest and e["hash"] == run.cfg.stage_hash(s)}
        if not new:
            continue
        with run.lock():
            for name in _files(source, new.values(), machine=not manifest):
                _link(source / name, run.path / name)
            write_json(run.path / "manifest.json", {**manifest, **new})
        taken += new
    return taken


def _files(source: Path, entries: Iterable[dict[str, Any]], machine: bool) -> Sequence[str]:
    """The files of stages, and for a run that has none of its own the machine that they were made on: it is resolved once."""
    names = [name for entry in entries for name in entry["files"]]
    return [*names, "machine.json"] if machine and (source / "machine.json").exists() else names


def _link(source: Path, target: Path) -> None:
    """`target` becomes another name of the file `source`, or a copy of it; it is never half there."""
    if target.exists() and os.path.samefile(source, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}{UNFINISHED}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # no links on this file system, or too many
        with atomic(target) as copy:
            shutil.copyfile(source, copy)
        return
    os.replace(temporary, target)
