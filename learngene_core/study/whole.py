"""`learngene study`: all notebooks in order, headless, with one progress bar, a report and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ..analysis.atlas import atlas_tasks
from ..config import STAGES, Config
from ..data.division import divide, source_tasks, target_tasks
from ..data.preflight import outline
from ..errors import StudyError, duration, read_json, say, write_json
from ..learngene import Learngene
from ..openworld.views import open_sets
from ..runs.info import STUDY
from ..runs.run import Run, parameters_of
from . import notebooks
from .estimate import KERNEL_SECONDS, check_memory, say_determinism, stage_seconds
from .firstpage import first_page
from .kernels import Kernels
from .progress import stage_bar
from .report import write_report
from .summary import summary_text


def run_study(cfg: Config, out: str | Path = "", *, redo: Sequence[str] = ()) -> Run:
    """All notebooks in order through papermill into `<run>/notebooks/`, then `report.html` and a summary table.

    A notebook whose executed copy belongs to this configuration and code is not run again.
    Raises StudyError for whatever a notebook could not do.
    """
    run = Run.open(cfg, out, redo=redo)
    start = time.monotonic()
    if not _to_run(run):  # nothing is written: the folder may belong to somebody else
        say(f"study: {run.path} is finished; reused as it is (--redo STAGE computes a stage again)")
    else:
        with run.lock():
            run_notebooks(run, _to_run(run))
            copies = [_copy(run, path) for path in notebooks.numbered()]
            title = f"Learngene study: {run.path.name}"
            gene = Learngene.load(run.path / "learngene.safetensors")
            write_report(copies, title, first_page(run, gene), run.path / "report.html")
            run.note_time("study", "all", time.monotonic() - start)
    say(summary_text(run))
    say(f"report: {run.path / 'report.html'}")
    return run


def check_possible(cfg: Config) -> None:
    """Look, before the first kernel starts, whether classes, their images and memory suffice for every stage of the study.

    No image is read. Raises StudyError, with the way out, where they do not suffice.
    """
    check_memory(cfg)
    images = outline(cfg)
    division = divide(images, cfg)
    source = source_tasks(images, division, cfg)
    target_tasks(images, division, cfg)
    open_sets(images, division, source, cfg)
    n_open = len(division.open_world)
    if cfg.atlas_pseudo_tasks and n_open < cfg.n_way:
        raise StudyError(
            f"the atlas needs pseudo-tasks of {cfg.n_way} open-world classes and the division has {n_open}; leave them out with "
            "--set atlas_pseudo_tasks=0 (then no block is recommended), or give a division of your own with --set split=FILE"
        )
    atlas_tasks(images, division, cfg)


def run_notebooks(run: Run, paths: Sequence[Path], *stages: str) -> None:
    """Execute `paths` in order, each in a kernel of its own, into `<run>/notebooks/`; the caller holds the run's lock.

    stages: what they compute, for the estimate and the bar (default: all stages of the study).
    Raises StudyError for whatever a notebook could not do.
    """
    say_determinism(run)
    expected = stage_seconds(run, *stages)
    total = sum(expected.values()) + KERNEL_SECONDS * len(paths)
    say(f"study: {len(paths)} notebooks into {run.path}; about {duration(total)} on this machine")
    parameters, names = parameters_of(run.cfg, run.path), [path.name for path in notebooks.numbered()]
    with Kernels() as ready, stage_bar(run, expected, more=KERNEL_SECONDS * len(paths)) as notebook_done:
        for path in paths:
            start, kernel = time.monotonic(), ready.take()
            if path != paths[-1]:
                ready.prepare()  # the next notebook's, while this one works
            notebooks.execute(path, _copy(run, path), parameters, kernel, beside=names)
            write_json(run.path / "notebooks" / "index.json", {**_finished(run), path.name: _mark(run.cfg, path)})
            run.note_time("notebook", path.stem, time.monotonic() - start)
            notebook_done(KERNEL_SECONDS)


def _copy(run: Run, path: Path) -> Path:
    return run.path / "notebooks" / path.name


def _to_run(run: Run) -> list[Path]:
    """The notebooks that have no executed copy of this configuration and code; all where only stages or the report are
    missing, none when the study is finished."""
    paths, index = notebooks.numbered(), _finished(run)
    todo = [p for p in paths if index.get(p.name) != _mark(run.cfg, p) or not _readable(_copy(run, p))]
    whole = (run.path / "report.html").exists() and all(run.done(stage) for stage in STUDY)
    return todo if todo or whole else paths


def _readable(path: Path) -> bool:
    try:
        return bool(notebooks.read(path).cells)
    except StudyError:
        return False


def _mark(cfg: Config, path: Path) -> str:
    """What an executed copy was made from: its code, and the settings that decide results."""
    return "/".join([notebooks.source_hash(notebooks.read(path)), *(cfg.stage_hash(stage) for stage in STAGES)])


def _finished(run: Run) -> dict[str, str]:
    """Name of each notebook with an executed copy -> its mark (index.json)."""
    try:
        index = read_json(run.path / "notebooks" / "index.json")
    except StudyError:
        return {}  # missing, or damaged: the notebooks are run again
    return index if isinstance(index, dict) else {}
