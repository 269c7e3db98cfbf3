"""The whole study: the chain of stages, and `learngene study`, which runs the notebooks in order with one progress bar."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import pandas as pd

from ..collective import Collective
from ..config import STAGES, Config
from ..data.division import Division
from ..errors import StudyError, read_json, say, write_json
from ..learngene import Learngene
from ..openworld.noticing import OpenWorld
from ..record import Record
from ..runs.run import Run
from ..tasks import ImageSet, SourceTask, TargetTask
from . import notebooks
from .kernels import Kernels
from .summary import summary_markdown, summary_text


class Chain:
    """The stages of one run, each made or loaded when it is first asked for, with everything before it."""

    def __init__(self, run: Run):
        self.run, self.cfg = run, run.cfg

    @classmethod
    def of(cls, folder: str | Path) -> Chain:
        """The stages of a run folder that is there, with the settings it was made with. Raises StudyError for another folder."""
        return cls(Run.open(Config.from_dict(read_json(Path(folder, "config.json"))), folder))

    @functools.cached_property
    def images(self) -> ImageSet:
        """The images."""
        from ..data.images import load_images

        cfg = self.cfg
        return load_images(cfg.data, cfg.data_path, image_size=cfg.image_size, skip_corrupt=cfg.skip_corrupt)

    @functools.cached_property
    def division(self) -> Division:
        """The class division (division.json)."""
        from ..runs.stages import divided

        return divided(self.run, self.images)

    @functools.cached_property
    def source(self) -> list[SourceTask]:
        """The source tasks."""
        from ..data.division import source_tasks

        return source_tasks(self.images, self.division, self.cfg)

    @functools.cached_property
    def collective(self) -> Collective:
        """The collective model (history.csv, gradients.csv, histograms.npz, collective/)."""
        from ..runs.stages import collective

        return collective(self.run, self.images, self.source)

    @functools.cached_property
    def record(self) -> Record:
        """The gradient record; a finished run's is read from its tables, without torch."""
        from ..record import Record

        return Record.load(self.run.path) if self.run.done("collective") else self.collective.record

    @functools.cached_property
    def learngene(self) -> Learngene:
        """The learngene (scores.csv, learngene.safetensors)."""
        from ..criteria import RECOMMENDED
        from ..runs.stages import learngene

        self._can_choose()
        layers = None
        if self.cfg.criterion == RECOMMENDED and not self.cfg.layers and not self.run.done("criteria"):
            from ..analysis.claims import recommended_layers

            layers = recommended_layers(self.atlas_cells, self.cfg, self.run)
        return learngene(self.run, self.collective, layers=layers)

    @functools.cached_property
    def chosen(self) -> tuple[str, ...]:
        """Names of the learngene's blocks; read from the record, without torch, where the record decides."""
        from ..criteria import RECOMMENDED, choose

        if self.cfg.criterion == RECOMMENDED and not self.cfg.layers:
            return self.learngene.layers
        return choose(self.record, self.cfg)

    def _can_choose(self) -> None:
        """Before hours of training: is the criterion known, and are the layers a block?"""
        from ..criteria import check_choice

        if not self.cfg.deepen_before:  # the names of inserted blocks are known only afterwards
            check_choice(self.cfg, [f"conv{i}" for i in range(1, len(self.cfg.final_widths) + 1)])

    @functools.cached_property
    def target(self) -> list[TargetTask]:
        """The target tasks of novel classes."""
        from ..data.division import target_tasks

        return target_tasks(self.images, self.division, self.cfg)

    @functools.cached_property
    def results(self) -> pd.DataFrame:
        """One row per individual (results.csv)."""
        from ..runs.stages import results

        self.target  # noqa: B018 (too few images are said before hours of training)
        return results(self.run, self.learngene, self.collective, self.images, self.target)

    @functools.cached_property
    def reference(self) -> pd.DataFrame:
        """Frozen features under the protocol of published values (reference.csv)."""
        from ..analysis.reference import reference_check

        return reference_check(self.collective, self.images, self.division, self.cfg, self.run)

    @functools.cached_property
    def openworld(self) -> OpenWorld:
        """Unknown classes noticed and learned (openworld.csv and its sisters, openworld/)."""
        from ..openworld.noticing import open_world
        from ..openworld.views import open_sets

        open_sets(
            self.images, self.division, self.source, self.cfg
        )  # too few classes are said before hours of training
        self.collective  # noqa: B018 (trained or loaded when asked for)
        return open_world(self.images, self.division, self.source, self.cfg, self.run)

    @functools.cached_property
    def atlas_cells(self) -> pd.DataFrame:
        """Every block inherited: one row per individual (atlas_cells.csv)."""
        from ..analysis.atlas import atlas_tasks, compute_atlas

        atlas_tasks(self.images, self.division, self.cfg)  # too few images are said before hours of training
        return compute_atlas(self.collective, self.images, self.division, self.cfg, self.run)

    @functools.cached_property
    def controls(self) -> pd.DataFrame:
        """Content controls, pulls and other ancestors: one row per individual (controls.csv)."""
        if self.run.done("controls"):
            say("controls: found in the run folder, loaded")
            return self.run.read_table("controls.csv")
        from ..analysis.controls import compute_controls

        return compute_controls(self.learngene, self.collective, self.images, self.division, self.cfg, self.run)

    @functools.cached_property
    def layer_scores(self) -> pd.DataFrame:
        """Every criterion per layer (layer_scores.csv)."""
        from ..analysis.claims import layer_scores

        if not self.run.done("measures"):
            self.learngene  # noqa: B018 (trained, scored and cut when asked for)
            return layer_scores(self.images, self.source, self.cfg, self.run)
        return layer_scores([], [], self.cfg, self.run)

    @functools.cached_property
    def verdicts(self) -> dict[str, pd.DataFrame]:
        """atlas, selection and claims (atlas.csv, selection.csv, claims.csv); read without torch when they are there."""
        from ..analysis.claims import judge

        if self.run.done("claims"):
            return judge({}, self.cfg, self.run)
        self._can_choose()
        self.target  # noqa: B018 (what cannot be done is said before hours of training)
        tables = {
            "atlas_cells": self.atlas_cells,
            "results": self.results,
            "openworld": self.openworld.table,
            "controls": self.controls,
            "layer_scores": self.layer_scores,
        }
        return judge(tables, self.cfg, self.run)

    @functools.cached_property
    def released(self) -> pd.DataFrame:
        """What each defect of the released scripts does to accuracy and choice (released.csv)."""
        from ..analysis.released import released_table

        return released_table(self)

    @functools.cached_property
    def tuning(self) -> pd.DataFrame:
        """Learning rates on pseudo-tasks (tuning.csv)."""
        from ..analysis.tuning import pseudo_tasks, tune

        pseudo_tasks(self.images, self.division, self.cfg)  # too few classes are said before hours of training

        return tune(self.learngene, self.collective, self.images, self.division, self.cfg, self.run)


def run_study(cfg: Config, out: str | Path = "", *, redo: tuple[str, ...] = ()) -> Run:
    """All notebooks in order through papermill into `<run>/notebooks/`, then `report.html` and a summary table.

    A notebook whose executed copy belongs to this configuration and code is not run again.
    Raises StudyError for whatever a notebook could not do.
    """
    run = Run.open(cfg, out, redo=redo)
    start = time.time()
    if not _to_run(run):  # nothing is written: the folder may belong to somebody else
        say(f"study: {run.path} is finished; reused as it is (--redo STAGE computes a stage again)")
    else:
        with run.lock():
            run_notebooks(run, _to_run(run))
            paths, summary = notebooks.numbered(), summary_markdown(run)
            notebooks.write_report(
                [_copy(run, p) for p in paths], f"Learngene study: {run.path.name}", summary, run.path / "report.html"
            )
            run.note_time("study", "all", time.time() - start)
    say(summary_text(run))
    say(f"report: {run.path / 'report.html'}")
    return run


def _copy(run: Run, path: Path) -> Path:
    return run.path / "notebooks" / path.name


def _to_run(run: Run) -> list[Path]:
    """The notebooks that have no executed copy of this configuration and code; all where only stages or the report are
    missing, none when the study is finished."""
    paths, index = notebooks.numbered(), _finished(run)
    todo = [p for p in paths if index.get(p.name) != _mark(run.cfg, p) or not _readable(_copy(run, p))]
    return todo if todo or ((run.path / "report.html").exists() and _whole(run)) else paths


def _readable(path: Path) -> bool:
    try:
        return bool(notebooks.read(path).cells)
    except StudyError:
        return False


def _mark(cfg: Config, path: Path) -> str:
    """What an executed copy was made from: its code, and the settings that decide results."""
    return "/".join([notebooks.source_hash(notebooks.read(path)), *(cfg.stage_hash(stage) for stage in STAGES)])


def _finished(run: Run) -> dict[str, str]:
    try:
        index = read_json(run.path / "notebooks" / "index.json")
    except StudyError:
        return {}  # missing, or damaged: the notebooks are run again
    return index if isinstance(index, dict) else {}


def _whole(run: Run) -> bool:
    from ..runs.info import STUDY

    return all(run.done(stage) for stage in STUDY)


def run_notebooks(run: Run, paths: list[Path], *stages: str) -> None:
    """Execute `paths` in order, each in a kernel of its own, into `<run>/notebooks/`; the caller holds the run's lock.

    stages: what they compute, for the estimate and the bar (default: all stages of the study).
    Raises StudyError for whatever a notebook could not do.
    """
    from ..errors import duration
    from .cost import KERNEL_SECONDS, say_determinism, stage_seconds
    from .progress import bar

    say_determinism(run)
    expected = stage_seconds(run, *stages)
    total = sum(expected.values()) + KERNEL_SECONDS * len(paths)
    say(f"study: {len(paths)} notebooks into {run.path}; about {duration(total)} on this machine")
    parameters = notebooks.parameters_of(run.cfg, run.path)
    with Kernels() as ready, bar(run, expected, kernel_seconds=KERNEL_SECONDS, n_kernels=len(paths)) as notebook_done:
        for path in paths:
            start, kernel = time.time(), ready.take()
            if path != paths[-1]:
                ready.prepare()  # the next notebook's, while this one works
            notebooks.execute(path, _copy(run, path), parameters, kernel)
            write_json(run.path / "notebooks" / "index.json", {**_finished(run), path.name: _mark(run.cfg, path)})
            run.note_time("notebook", path.stem, time.time() - start)
            notebook_done()
