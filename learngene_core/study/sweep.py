"""`learngene sweep`: every point of a grid is a papermill run in a folder of its own, executed by the workers of a cluster.

Stages that several points share are computed once, in `shared/`, before them. A point that was finished with the same
parameters and code is skipped, a failed one is listed and stops nothing, and a worker that dies costs the point in hand a
new start. The folder of a sweep holds `sweep.csv` (the rows of all finished points), `sweep.json` (the grid's points, their
parameters and states), `shared/` and a run folder per point.

From a script, call `run_sweep` below `if __name__ == "__main__":`, for the workers are processes that import it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
from distributed import Client, Future

from ..config import FIELDS
from ..data.preflight import check_data
from ..errors import StudyError, duration, expanded, say, write_json
from ..runs.run import parameters_of
from . import notebooks
from .cluster import client_of, default_workers, gpus_here, offers_gpus
from .estimate import check_memory, job_bytes, job_seconds, size_text, stage_costs, wall_seconds
from .grid import Grid, Point
from .options import check_address
from .point import Job, finished, job_of, run_job
from .progress import LOOK, Bar
from .sharing import Shared, notebook_of, plan
from .sweeptable import write_table

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
    folder = expanded(out).absolute()
    if scheduler:
        check_address(scheduler)
    most = FIELDS["workers"].metadata["high"]
    if not 0 <= workers <= most:
        raise ValueError(
            f"workers = {workers}: a number of processes, {most} at most, or 0 for as many as there are processors"
        )
    _check_folder(folder)
    for data in {(p.cfg.data, p.cfg.data_path): p.cfg for p in grid.points}.values():
        check_data(data)
    for shape in {(p.cfg.final_widths, p.cfg.hidden, p.cfg.batch_size): p.cfg for p in grid.points}.values():
        check_memory(shape)
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


# watching -------------------------------------------------------------------------------------------------------------
def watch(client: Client, futures: Mapping[str, Future], seconds: Mapping[str, float]) -> Iterator[tuple[str, dict]]:
    """Name and result of every job as it ends; the result of one that could not be done is a failure with its last line.

    seconds: the expected ones of every job, for the bar. Raises StudyError when the scheduler is lost.
    """
    open_jobs, failed, done = dict(futures), 0, 0.0
    with Bar(sum(seconds.values())) as bar:
        while open_jobs:
            for name in [name for name, future in open_jobs.items() if future.done()]:
                result = _result(open_jobs.pop(name))
                failed, done = failed + (result["state"] == "failed"), done + seconds[name]
                yield name, result
            if client.status not in ("running", "connecting"):
                raise StudyError("the scheduler is gone; start it and the same command again: it goes on from here")
            counts = f"{len(futures) - len(open_jobs) - failed} of {len(futures)} done, {failed} failed"
            bar.at(done, f"{counts}, {_running(client, open_jobs, futures)} running")
            if open_jobs:
                time.sleep(LOOK)


def _result(future: Future) -> dict[str, str]:
    """What a job returned, or why it has not."""
    if future.status == "finished":
        return future.result()
    if future.status == "error":
        error = future.exception()
        return {"state": "failed", "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    return {"state": "failed", "error": f"the job was {future.status}: its worker or the scheduler is gone"}


def _running(client: Client, open_jobs: Mapping[str, Future], futures: Mapping[str, Future]) -> int:
    """Jobs in hand: a worker may have more in its queue, but does one at a time."""
    keys = {futures[name].key for name in open_jobs}
    with contextlib.suppress(OSError, TimeoutError):  # a scheduler that is busy, or ends; `watch` finds out
        return sum(1 for there in client.processing().values() if keys & set(there))
    return 0


# the folder of a sweep ------------------------------------------------------------------------------------------------
def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{folder} is a file, not the folder of a sweep; choose another --out")
    strangers = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if strangers and not (folder / "sweep.json").exists():
        raise StudyError(f"{folder} is not empty and no sweep; choose another --out")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
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
        given = parameters_of(point.cfg, folder)
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
