"""What the points of a sweep have in common: which stages are computed once, and how a run folder is filled from another.

Every stage has a hash over the settings that it and all before it read, so points whose hashes agree would compute the same
files. Each such stage is computed once, in a folder of its own below `shared/`; the run folders of the points begin with
links to its files. Sharing files is safe because a run never writes into a file: it replaces it by a new one.

What a sweep will cost before it starts: seconds of work, and bytes on the disk. Both are rough.

`learngene sweep`: every point of a grid is a papermill run in a folder of its own, executed by the workers of a cluster.

Stages that several points share are computed once, in `shared/`, before them. A point that was finished with the same
parameters and code is skipped, a failed one is listed and stops nothing, and a worker that dies costs the point in hand a
new start. The folder of a sweep holds `sweep.csv` (the rows of all finished points), `sweep.json` (the grid's points, their
parameters and states), `shared/` and a run folder per point.

From a script, call `run_sweep` below `if __name__ == "__main__":`, for the workers are processes that import it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distributed import Client

from ..config import STAGES, Config
from ..data.images import check_data
from ..errors import UNFINISHED, StudyError, atomic, duration, say, write_json
from ..runs.run import Run
from . import notebooks
from .cluster import client_of, default_workers, gpus_here, offers_gpus
from .cost import KERNEL_SECONDS, stage_seconds
from .grid import WHERE, Grid, Point
from .point import Job, finished, job_of, run_job
from .sweeptable import write_table
from .sweepwatch import watch

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
    import nbformat

    new = nbformat.v4
    parameters = new.new_code_cell('preset: str = "lecture"  # the preset\nout: str = ""  # the run folder')
    parameters.metadata["tags"] = ["parameters"]
    text = "from learngene_core import Config, Run\nfrom learngene_core.study import Chain\n\n"
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


JOB_BYTES = 500_000  # an executed notebook with its pictures, tables, bookkeeping
STATES = 3.5  # sets of weights saved after a source task: the network's own, at birth, momentum, Fisher of the last


def stage_costs(grid: Grid) -> dict[str, dict[str, float]]:
    """Point -> stage -> expected seconds of one worker of this machine, from a second of real training steps per shape."""
    known: dict[Config, dict[str, float]] = {}
    costs = {}
    with tempfile.TemporaryDirectory(prefix="learngene-cost-") as folder:
        for point in grid.points:
            alike = point.cfg.replace(seed=0, target_seed=0, threshold=5e-10)
            if alike not in known:
                wanted = [*needed(point.cfg, grid.stage), grid.stage]
                run = Run(alike, Path(folder, str(len(known))))
                known[alike] = stage_seconds(run, *wanted) if grid.stage else {}
            costs[point.name] = known[alike]
    return costs


def job_seconds(grid: Grid, shared: Sequence[Shared], costs: dict[str, dict[str, float]]) -> dict[str, float]:
    """Expected seconds of every point and of everything shared, by name; what is shared counts once."""
    seconds = {}
    for some in shared:
        first = costs[min(some.points)]
        seconds[some.name] = KERNEL_SECONDS + sum(first.get(stage, 0.0) for stage in some.stages)
    for point in grid.points:
        taken = {stage for some in shared if point.name in some.points for stage in ("division", *some.stages)}
        own = (cost for stage, cost in costs[point.name].items() if stage not in taken)
        seconds[point.name] = KERNEL_SECONDS + sum(own)
    return seconds


def wall_seconds(seconds: dict[str, float], before: dict[str, list[str]], workers: int) -> float:
    """Expected seconds from start to end on so many workers; before: the jobs that a job waits for (its ancestors all)."""
    longest = max((seconds[name] + sum(seconds.get(b, 0.0) for b in before[name]) for name in seconds), default=0.0)
    return max(longest, sum(seconds.values()) / max(1, min(workers, len(seconds))))


def job_bytes(grid: Grid, shared: Sequence[Shared]) -> dict[str, float]:
    """Expected bytes of every point and of everything shared, by name; linked files count once."""
    size = {some.name: JOB_BYTES + _collective(some.cfg) * ("collective" in some.stages) for some in shared}
    for point in grid.points:
        linked = any("collective" in some.stages for some in shared if point.name in some.points)
        trains = grid.stage == "collective" or "collective" in needed(point.cfg, grid.stage)
        size[point.name] = JOB_BYTES + _collective(point.cfg) * (trains and not linked)
    return size


def size_text(size: float) -> str:
    """ "3 MB", "1.2 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def _collective(cfg: Config) -> float:
    """Bytes of a collective's states after every task, at widths halfway through the growth."""
    middle = [(a + b) / 2 for a, b in zip(cfg.start_widths, cfg.final_widths, strict=True)]
    weights = sum(9 * a * b for a, b in itertools.pairwise([3, *middle]))
    return cfg.n_source_tasks * 4 * STATES * weights


RETRIES = 2  # of a job whose worker or kernel died


@dataclasses.dataclass
class Outcome:
    """How a sweep ended. folder: where it lies; finished: names of the points that are whole; failed: name -> last line."""

    folder: Path
    finished: list[str]
    failed: dict[str, str]


@dataclasses.dataclass
class _Work:
    """Everything that is still to be done: what is shared, and by name (shared ones first) jobs, the shared ones that each
    waits for, expected seconds and bytes."""

    shared: list[Shared]
    jobs: dict[str, Job]
    before: dict[str, list[str]]
    seconds: dict[str, float]
    bytes: dict[str, float]


def run_sweep(
    grid: Grid, out: str | Path, *, workers: int = 0, scheduler: str = "", dry_run: bool = False, share: bool = True
) -> Outcome:
    """Compute every unfinished point of `grid` below the folder `out`, and write `sweep.csv`.

    workers: processes of the embedded cluster (0: one per GPU, else one per processor); scheduler: the address of a cluster
    that is there; dry_run: say the number of runs, the expected time and disk space, and stop; share: compute shared stages
    once (False: each point its own chain, to measure what sharing saves).
    Raises StudyError for a folder that is no sweep, is in use, or workers that cannot work; ValueError for workers < 0.
    """
    folder = Path(out).expanduser().absolute()
    if workers < 0:
        raise ValueError(f"workers = {workers}: a number of processes, or 0 for as many as there are processors")
    _check_folder(folder)
    for data in {(p.cfg.data, p.cfg.data_path): p.cfg for p in grid.points}.values():
        check_data(data)
    gpus = () if scheduler else gpus_here(grid.points[0].cfg.device)
    workers = workers or default_workers(gpus)
    work = _work(grid, plan(grid) if share else [], folder, gpus)
    _announce(grid, work, folder, 0 if scheduler else workers)
    if dry_run:
        return Outcome(folder, [p.name for p in grid.points if p.name not in work.jobs], {})
    with _alone(folder):
        failed: dict[str, str] = {}
        _note(grid, folder, [p for p in grid.points if p.name not in work.jobs], failed)
        try:
            if work.jobs:
                _compute(work, folder, min(workers, len(work.jobs)), scheduler, failed)
        finally:  # also after Ctrl+C: what is finished is in the table
            there = _finished(grid, folder)
            failed = {p.name: failed[p.name] for p in grid.points if p.name in failed}
            _note(grid, folder, there, failed)
            write_table(grid, there, folder)
    return Outcome(folder, [p.name for p in there], failed)


def _jobs(grid: Grid, folder: Path, **more: Any) -> dict[str, Job]:
    code = notebooks.source_hash(notebooks.read(grid.notebook))
    about = {"stage": grid.stage, "table": grid.table, **more}
    return {p.name: job_of(p.cfg, folder / p.name, grid.notebook, code, **about) for p in grid.points}


def _finished(grid: Grid, folder: Path) -> list[Point]:
    jobs = _jobs(grid, folder)
    return [point for point in grid.points if finished(jobs[point.name])]


def _work(grid: Grid, shared: list[Shared], folder: Path, gpus: tuple[str, ...]) -> _Work:
    where = {some.name: str(folder / "shared" / some.name) for some in shared}
    jobs = {name: job for name, job in _jobs(grid, folder, gpus=gpus).items() if not finished(job)}
    before = {name: [some.name for some in shared if name in some.points] for name in jobs}
    for name, job in jobs.items():
        job["sources"] = tuple(where[other] for other in before[name])
    before |= {some.name: some.parents for some in shared}
    first: dict[str, Job] = {}
    for some in (some for some in shared if not some.points.isdisjoint(jobs)):
        own, code = Path(where[some.name]), f"{notebooks.source_hash(notebook_of(some))} {some.name}"
        about = {"sources": tuple(str(path) for path in some.sources(own.parent)), "gpus": gpus}
        first[some.name] = job_of(some.cfg, own, own.with_name(f"{own.name}.ipynb"), code, "division", **about)
    first = {name: job for name, job in first.items() if not finished(job)}
    seconds, size = job_seconds(grid, shared, stage_costs(grid)) if jobs else {}, job_bytes(grid, shared)
    jobs = {**first, **jobs}
    todo = [some for some in shared if some.name in first]
    return _Work(todo, jobs, before, {name: seconds[name] for name in jobs}, {name: size[name] for name in jobs})


def _announce(grid: Grid, work: _Work, folder: Path, workers: int) -> None:
    points = len(work.jobs) - len(work.shared)
    say(f"{grid.name}: {len(grid.points)} points ({', '.join(grid.varied) or 'nothing varied'}), {points} to run")
    for some in work.shared:
        say(f"  once for {len(some.points)} points: {', '.join(some.stages)}")
    if not points:
        return
    effort, wall = duration(sum(work.seconds.values())), duration(wall_seconds(work.seconds, work.before, workers))
    time = f"about {wall} on {workers} worker{'s' * (workers > 1)} of this machine ({effort} of work)"
    if not workers:
        time = f"about {effort} of work for a worker like this machine's"
    say(f"{len(work.jobs)} notebook runs, {time}, about {size_text(sum(work.bytes.values()))} in {folder}")


def _compute(work: _Work, folder: Path, workers: int, scheduler: str, failed: dict[str, str]) -> None:
    """Do the work; `failed` is filled with names and last lines."""
    for some in work.shared:
        notebooks.write(notebook_of(some), Path(work.jobs[some.name]["notebook"]))
    with client_of(workers, scheduler, str(folder)) as client:
        for name, result in watch(client, _submit(client, work), work.seconds):
            if result["state"] == "failed":
                failed[name] = result["error"]


def _submit(client: Client, work: _Work) -> dict[str, Any]:
    """Futures by name. Keys are new with every call: an older sweep may still have jobs on these workers."""
    resources = {"GPU": 1} if offers_gpus(client) else None
    token, futures = uuid.uuid4().hex[:8], {}
    for name, job in work.jobs.items():
        waits = [futures[other] for other in work.before[name] if other in futures]
        key = f"{name}-{token}"
        more = {"pure": False, "retries": RETRIES, "resources": resources, "priority": 10 * (not job["table"])}
        futures[name] = client.submit(run_job, job, *waits, key=key, **more)
    return futures


# the folder of a sweep ------------------------------------------------------------------------------------------------
def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{folder} is a file, not the folder of a sweep; choose another --out")
    strangers = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if strangers and not (folder / "sweep.json").exists():
        raise StudyError(f"{folder} is not empty and no sweep; choose another --out")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot make the folder {folder}: {error.strerror}") from None
    try:
        guard = filelock.FileLock(folder / ".lock", timeout=0).acquire()
    except filelock.Timeout:
        raise StudyError(f"another sweep works in {folder}; wait for it, or choose another --out") from None
    with guard:
        yield


def _note(grid: Grid, folder: Path, done: list[Point], failed: dict[str, str]) -> None:
    """`sweep.json`: what each point is, and how it stands."""
    points = {}
    for point in grid.points:
        given = notebooks.parameters_of(point.cfg, folder)
        state = "failed" if point.name in failed else "finished" if point in done else "unfinished"
        points[point.name] = {"state": state, "parameters": {k: v for k, v in given.items() if k != "out"}}
        if point.name in failed:
            points[point.name]["error"] = failed[point.name]
    about = {"grid": grid.name, "notebook": grid.notebook.name, "table": grid.table, "varied": list(grid.varied)}
    write_json(folder / "sweep.json", {**about, "points": points})


# the command ----------------------------------------------------------------------------------------------------------
def report(grid: Grid, out: str, *, workers: int = 0, scheduler: str = "", dry_run: bool = False) -> int:
    """`learngene sweep`: run, list what failed with its last line, say where the table is; returns the exit status."""
    folder = out or Path.cwd() / "runs" / f"sweep-{grid.name}"
    outcome = run_sweep(grid, folder, workers=workers, scheduler=scheduler, dry_run=dry_run)
    if dry_run:
        return 0
    for name, line in outcome.failed.items():
        say(f"failed: {name}: {line}")
    say(f"{len(outcome.finished)} of {len(grid.points)} points are finished; table: {outcome.folder / 'sweep.csv'}")
    return 0 if len(outcome.finished) == len(grid.points) else 1
