"""The chain of stages of one run: each is made or loaded when it is first asked for, with everything before it.

This is the switchboard between run folders and the rooms that compute. It imports a stage's room when the stage is asked for:
a notebook that only reads tables of a finished run then needs no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..errors import expanded, say
from ..runs.bookkeeping import configuration
from ..runs.run import Run

if TYPE_CHECKING:  # names of annotations only; at run time they would bring torch
    from ..collective import Collective
    from ..data.division import Division
    from ..learngene import Learngene
    from ..openworld.noticing import OpenWorld
    from ..record import Record
    from ..tasks import ImageSet, SourceTask, TargetTask


class Chain:
    """The stages of one run, each made or loaded when it is first asked for, with everything before it."""

    def __init__(self, run: Run, announce: Callable[[], None] = lambda: None):
        """announce: called once, when nothing cheap is left to be refused and the costly work begins."""
        self.run, self.cfg, self.announce = run, run.cfg, announce

    @classmethod
    def of(cls, folder: str | Path) -> Chain:
        """The stages of a run folder that is there, with the settings it was made with. Raises StudyError for another folder."""
        path = expanded(folder)
        return cls(Run.open(configuration(path), path))

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
        from ..analysis.released import walk_of
        from ..runs.stages import trained_collective

        source = self.source  # too few classes are said before anything is announced
        self.announce()  # whatever trains asks for the collective first, when it has checked what it can
        return trained_collective(self.run, self.images, source, train=walk_of(self.cfg))

    @functools.cached_property
    def record(self) -> Record:
        """The gradient record; a finished run's is read from its tables, without torch."""
        from ..record import Record

        return Record.load(self.run.path) if self.run.done("collective") else self.collective.record

    @functools.cached_property
    def learngene(self) -> Learngene:
        """The learngene (scores.csv, learngene.safetensors)."""
        from ..analysis.released import cut_released
        from ..criteria import RECOMMENDED
        from ..runs.stages import chosen_learngene

        self._can_choose()
        layers = None
        if self.cfg.criterion == RECOMMENDED and not self.cfg.layers and not self.run.done("criteria"):
            from ..analysis.verdicts import recommended_layers

            layers = recommended_layers(self.atlas_cells, self.cfg, self.run)
        return chosen_learngene(self.run, self.collective, layers=layers, cut=cut_released)

    @functools.cached_property
    def chosen(self) -> tuple[str, ...]:
        """Names of the learngene's blocks; read from the record, without torch, where the record decides."""
        from ..analysis.defects import choice
        from ..criteria import RECOMMENDED, choose

        if self.cfg.criterion == RECOMMENDED and not self.cfg.layers:
            return self.learngene.layers
        return choose(self.record, choice(self.cfg, self.record.layers))

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
        from ..analysis.released import kind_of
        from ..runs.stages import results

        self.target  # noqa: B018 (too few images are said before hours of training)
        individuals = kind_of(self.cfg)
        return results(self.run, self.learngene, self.collective, self.images, self.target, kind=individuals)

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
        if self.run.done("measures"):
            say("measures: found in the run folder, loaded")
            return self.run.read_table("layer_scores.csv")
        from ..analysis.gathering import layer_scores

        self.learngene  # noqa: B018 (trained, scored and cut when asked for)
        return layer_scores(self.images, self.source, self.cfg, self.run)

    @functools.cached_property
    def verdicts(self) -> dict[str, pd.DataFrame]:
        """atlas, selection and claims (atlas.csv, selection.csv, claims.csv); read without torch when they are there."""
        from ..analysis.verdicts import judge

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
        from ..analysis.released_table import released_table

        self.target  # noqa: B018 (too few images are said before hours of training)
        return released_table(self.run, self.images, self.source, self.target, lambda: self.collective)

    @functools.cached_property
    def tuning(self) -> pd.DataFrame:
        """Learning rates on pseudo-tasks (tuning.csv)."""
        from ..analysis.tuning import pseudo_tasks, tune

        pseudo_tasks(self.images, self.division, self.cfg)  # too few classes are said before hours of training
        return tune(self.learngene, self.collective, self.images, self.division, self.cfg, self.run)
