"""What a worker of a sweep does: one notebook, in one run folder. No torch here: that is the kernel's business.

Cells that only teach are left out (tag `lesson`): hundreds of points need no demonstration each.

A job is a mapping of plain values, made by `job_of` and sent to the worker:
folder (the run folder), notebook and output (the notebook and its executed copy), parameters (the notebook's), mark (what the
results are made from), table (the file that is gathered; "": none), sources (run folders whose stages are taken over), gpus
(devices that the workers of this machine share out among themselves; (): as the worker was started), fork (whether kernels may
be forked).
Paths are absolute: a worker has a working folder of its own, perhaps on another machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import filelock
import psutil

from .. import __version__
from ..config import STAGE_VERSION, Config
from ..errors import StudyError, file_hash, read_json, say, write_json
from ..runs.run import WORKERS, Run, parameters_of
from . import forked, kernels, notebooks
from .forkserver import NO_FORK
from .grid import fields
from .sharing import fill

DONE = "point.json"  # in the folder of a finished job
TASK = "LEARNGENE_SWEEP_TASK"  # in the environment of a kernel: the folder that it works in
TRIM = "MALLOC_TRIM_THRESHOLD_"  # glibc's variable: free bytes at the end of the heap that a process keeps
LAST_LINE = 500  # characters of an error that are kept
Job = dict[str, Any]


def job_of(
    cfg: Config, folder: Path, notebook: Path, code: str, stage: str = "", *, table: str = "", **more: Any
) -> Job:
    """The job that executes `notebook` for `cfg` in `folder`. code: what stands for the notebook's code, its `source_hash`;
    stage: the last one whose fields decide its results ("": all fields do); more: what is not as in a job that stands alone."""
    about = [code, fields(cfg, stage), images_of(cfg), cfg.deterministic, STAGE_VERSION, __version__]
    return {
        "folder": str(folder),
        "notebook": str(notebook),
        "output": str(folder / "notebooks" / notebook.name),
        "parameters": parameters_of(cfg, folder),
        "mark": hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16],
        "table": table,
        "sources": (),
        "gpus": (),
        "fork": not os.environ.get(NO_FORK),
        **more,
    }


def images_of(cfg: Config) -> dict[str, Any]:
    """Which images a configuration reads, beyond the fields that stage hashes cover (`grid.WHERE`): where they lie, whether
    damaged ones are left out, and what stands in its split file ("missing": nobody can read it)."""
    about: dict[str, Any] = {"skip_corrupt": cfg.skip_corrupt, "data_path": cfg.data_path, "split": cfg.split}
    if cfg.data_path not in ("", "download"):
        about["data_path"] = str(Path(cfg.data_path).expanduser().resolve())
    if cfg.split not in ("", "seed"):
        split = Path(cfg.split).expanduser()
        about["split"] = file_hash(split) if split.is_file() else "missing"
    return about


def finished(job: Job) -> bool:
    """Whether a job was done, with these parameters, images and this code, and its table is still what it was."""
    try:
        note = read_json(Path(job["folder"], DONE))
    except (OSError, StudyError):
        return False
    if not isinstance(note, dict) or note.get("mark") != job["mark"]:
        return False
    table = Path(job["folder"], job["table"])
    return not job["table"] or (table.is_file() and file_hash(table) == note.get("sha256"))


def run_job(job: Job, *before: dict[str, str]) -> dict[str, str]:
    """Do a job; returns its state ("finished" or "failed") and, where it failed, `error`: what its last line says.

    before: what the jobs that it builds upon have returned. A notebook that fails would fail again and is reported; whatever
    else happens (a kernel that died, a full disk) is raised: the cluster tries again.
    """
    for other in before:
        if other["state"] == "failed":
            return other
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder), _device(job["gpus"]), kernels.forking(job["fork"]):
        if finished(job):
            return {"state": "finished"}
        try:
            _execute(job)
        except notebooks.KernelDied:
            raise
        except (StudyError, ValueError) as error:
            return {"state": "failed", "error": " ".join(str(error).split())[-LAST_LINE:]}
    return {"state": "finished"}


def _execute(job: Job) -> None:
    start, folder = time.monotonic(), Path(job["folder"])
    given = {k: v for k, v in job["parameters"].items() if k not in ("preset", "out")}
    run = Run.open(Config.preset(job["parameters"]["preset"], **given), folder)
    fill(run, [Path(source) for source in job["sources"]])
    notebooks.execute(Path(job["notebook"]), Path(job["output"]), job["parameters"], lessons=False)
    table = folder / job["table"]
    if job["table"] and not table.is_file():
        raise StudyError(f"{Path(job['notebook']).name} has not written {job['table']} (see {job['output']})")
    run.note_time("notebook", Path(job["notebook"]).stem, time.monotonic() - start)
    write_json(folder / DONE, {"mark": job["mark"], "sha256": file_hash(table) if job["table"] else ""})


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One worker at a time in a folder: a second one waits. What a worker that was killed has left behind is ended.

    The kernel of a killed worker notices it within a second; where something else than process 1 adopts orphans, it does not.
    A forked one is ended by its server.
    """
    with filelock.FileLock(folder / ".task"):
        _end_orphans(folder)
        # a worker has one processor, its neighbours have the others
        told = {TASK: str(folder)} | {n: "1" for n in ("OMP_NUM_THREADS", WORKERS) if n not in os.environ}
        trimmed = {TRIM: os.environ.pop(TRIM)} if os.environ.get(TRIM) == _trim_of_workers() else {}
        os.environ.update(told)
        try:
            yield
        finally:
            os.environ.update(trimmed)
            for name in told:
                os.environ.pop(name)


def _trim_of_workers() -> str:
    """What dask sets as TRIM for its workers, so that they give memory back at once. A kernel that trains would ask for the same
    memory again in every step: on two cores that took four tenths of a sweep's processor time."""
    return str(dask.config.get("distributed.nanny.pre-spawn-environ", {}).get(TRIM))


def _end_orphans(folder: Path) -> None:
    """End kernels that an earlier worker has started for this folder: nobody holds its lock, so nobody listens to them.

    Of forked kernels, which show the environment of their server, those of every worker that is gone.
    """
    forked.end_orphans()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # others' processes, and those that are ending
            if process.pid != os.getpid() and process.environ().get(TASK) == str(folder):
                say(f"{folder.name}: the kernel {process.pid} of a worker that is gone was ended")
                process.kill()
                process.wait(10)


@contextlib.contextmanager
def _device(gpus: tuple[str, ...]) -> Iterator[None]:
    """Show one of `gpus` to the kernels of this worker, by the worker's number in the embedded cluster."""
    if not gpus:
        yield
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(distributed.get_worker().name) % len(gpus)]
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def facts(out: str) -> dict[str, Any]:
    """What the sweep must know of a worker: its package's version, and whether it sees the folder `out`."""
    return {"version": __version__, "sees": Path(out).is_dir()}
