"""The whole study: the chain of stages, and `learngene study`, which runs the notebooks in order with one progress bar."""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import notebooks
from .config import STAGES, Config
from .files import StudyError, read_json, say, write_json
from .runs import Run
from .summary import summary_markdown, summary_text

if TYPE_CHECKING:
    import pandas as pd

    from .collective import Collective
    from .division import Division, SourceTask, TargetTask
    from .images import ImageSet
    from .learngene import Learngene
    from .openworld import OpenWorld
    from .record import Record


class Chain:
    """The stages of one run, each made or loaded when it is first asked for, with everything before it."""

    def __init__(self, run: Run):
        self.run, self.cfg = run, run.cfg

    @functools.cached_property
    def images(self) -> ImageSet:
        """The images."""
        from .images import load_images

        cfg = self.cfg
        return load_images(cfg.data, cfg.data_path, image_size=cfg.image_size, skip_corrupt=cfg.skip_corrupt)

    @functools.cached_property
    def division(self) -> Division:
        """The class division (division.json)."""
        from .division import divide

        return divide(self.images, self.cfg, self.run)

    @functools.cached_property
    def source(self) -> list[SourceTask]:
        """The source tasks."""
        from .division import source_tasks

        return source_tasks(self.images, self.division, self.cfg)

    @functools.cached_property
    def collective(self) -> Collective:
        """The collective model (history.csv, gradients.csv, histograms.npz, collective/)."""
        from .collective import train_collective

        return train_collective(self.images, self.division, self.source, self.cfg, run=self.run)

    @functools.cached_property
    def record(self) -> Record:
        """The gradient record; a finished run's is read from its tables, without torch."""
        from .record import Record

        return Record.load(self.run.path) if self.run.done("collective") else self.collective.record

    @functools.cached_property
    def learngene(self) -> Learngene:
        """The learngene (scores.csv, learngene.safetensors)."""
        from .collective import cut_learngene
        from .criteria import check_choice

        if not self.cfg.deepen_before:  # the names of inserted blocks are known only afterwards
            check_choice(self.cfg, [f"conv{i}" for i in range(1, len(self.cfg.final_widths) + 1)])

        return cut_learngene(self.collective, self.cfg, self.run)

    @functools.cached_property
    def target(self) -> list[TargetTask]:
        """The target tasks of novel classes."""
        from .division import target_tasks

        return target_tasks(self.images, self.division, self.cfg)

    @functools.cached_property
    def results(self) -> pd.DataFrame:
        """One row per individual (results.csv)."""
        from .fewshot import evaluate_few_shot

        self.target  # noqa: B018 (too few images are said before hours of training)
        return evaluate_few_shot(self.learngene, self.collective, self.images, self.target, self.cfg, run=self.run)

    @functools.cached_property
    def reference(self) -> pd.DataFrame:
        """Frozen features under the protocol of published values (reference.csv)."""
        from .reference import reference_check

        return reference_check(self.collective, self.images, self.division, self.cfg, self.run)

    @functools.cached_property
    def openworld(self) -> OpenWorld:
        """Unknown classes noticed and learned (openworld.csv and its sisters, openworld/)."""
        from .openviews import open_sets
        from .openworld import open_world

        open_sets(
            self.images, self.division, self.source, self.cfg
        )  # too few classes are said before hours of training
        self.collective  # noqa: B018 (trained or loaded when asked for)
        return open_world(self.images, self.division, self.source, self.cfg, self.run)

    @functools.cached_property
    def atlas_cells(self) -> pd.DataFrame:
        """Every block inherited: one row per individual (atlas_cells.csv)."""
        from .atlas import atlas_tasks, compute_atlas

        atlas_tasks(self.images, self.division, self.cfg)  # too few images are said before hours of training
        return compute_atlas(self.collective, self.images, self.division, self.cfg, self.run)

    @functools.cached_property
    def tuning(self) -> pd.DataFrame:
        """Learning rates on pseudo-tasks (tuning.csv)."""
        from .tuning import pseudo_tasks, tune

        pseudo_tasks(self.images, self.division, self.cfg)  # too few classes are said before hours of training

        return tune(self.learngene, self.collective, self.images, self.division, self.cfg, self.run)


def run_study(cfg: Config, out: str | Path = "", *, redo: tuple[str, ...] = ()) -> Run:
    """All notebooks in order through papermill into `<run>/notebooks/`, then `report.html` and a summary table.

    A notebook whose executed copy belongs to this configuration and code is not run again.
    Raises StudyError for whatever a notebook could not do.
    """
    run = Run.open(cfg, out, redo=redo)
    start = time.time()
    with run.lock():
        paths = notebooks.numbered()
        index = _finished(run)
        todo = [p for p in paths if index.get(p.name) != _mark(cfg, p) or not _copy(run, p).exists()]
        if not todo and (run.path / "report.html").exists() and _whole(run):
            say(f"study: {run.path} is finished; reused as it is (--redo STAGE computes a stage again)")
        else:
            _run_notebooks(run, todo or paths)
            summary = summary_markdown(run)
            notebooks.write_report(
                [_copy(run, p) for p in paths], f"Learngene study: {run.path.name}", summary, run.path / "report.html"
            )
            run.note_time("study", "all", time.time() - start)
    say(summary_text(run))
    say(f"report: {run.path / 'report.html'}")
    return run


def _copy(run: Run, path: Path) -> Path:
    return run.path / "notebooks" / path.name


def _mark(cfg: Config, path: Path) -> str:
    """What an executed copy was made from: its code, and the settings that decide results."""
    return "/".join([notebooks.source_hash(notebooks.read(path)), *(cfg.stage_hash(stage) for stage in STAGES)])


def _finished(run: Run) -> dict[str, str]:
    path = run.path / "notebooks" / "index.json"
    return read_json(path) if path.exists() else {}


def _whole(run: Run) -> bool:
    return all(run.done(stage) for stage in ("division", "collective", "criteria", "reconstruct", "openworld"))


def _run_notebooks(run: Run, paths: list[Path]) -> None:
    from .cost import stage_seconds

    expected = stage_seconds(run)
    say(f"study: {len(paths)} notebooks into {run.path}; about {sum(expected.values()) / 60:.1f} min on this machine")
    parameters = notebooks.parameters_of(run.cfg, run.path)
    with _bar(run, expected, len(paths)) as notebook_done:
        for path in paths:
            start = time.time()
            notebooks.execute(path, _copy(run, path), parameters)
            write_json(run.path / "notebooks" / "index.json", {**_finished(run), path.name: _mark(run.cfg, path)})
            run.note_time("notebook", path.stem, time.time() - start)
            notebook_done()


KERNEL_SECONDS = 9.0  # a kernel, its imports and its figures; measured on two cores


@contextmanager
def _bar(run: Run, expected: dict[str, float], n_notebooks: int) -> Iterator:
    """One bar over the expected seconds of the whole; a thread moves it by the stages' own progress."""
    from tqdm import tqdm

    total = sum(expected.values()) + KERNEL_SECONDS * n_notebooks
    state, stop = {"notebooks": 0}, threading.Event()

    def position() -> tuple[float, str]:
        path = run.path / "progress.json"
        now = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        share = now.get("done", 0) / max(now.get("total", 1), 1)
        at = state["notebooks"] * KERNEL_SECONDS
        for stage, seconds in expected.items():
            if stage == now.get("stage"):
                return at + seconds * share, f"{stage} {now.get('text', '')}"
            at += seconds if stage in run.manifest else 0
        return at, ""

    (run.path / "progress.json").unlink(missing_ok=True)
    with tqdm(
        total=round(total), unit="s", bar_format="{l_bar}{bar}| {elapsed} gone, {remaining} left {postfix}"
    ) as bar:

        def watch() -> None:
            while not stop.is_set():
                try:
                    at, text = position()
                except (OSError, ValueError, StudyError):
                    at, text = bar.n, ""
                bar.n = max(bar.n, min(round(at), bar.total - 1))
                bar.set_postfix_str(text)
                stop.wait(0.5 if sys.stderr.isatty() else 10)  # a log file gets a line every ten seconds

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield lambda: state.update(notebooks=state["notebooks"] + 1)
            bar.n = bar.total
        finally:
            stop.set()
            thread.join()
            bar.refresh()
