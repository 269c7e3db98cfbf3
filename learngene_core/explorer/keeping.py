"""The command that repeats a choice of the layer explorer; no torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..config import Config
from ..criteria import CRITERIA, choose
from ..errors import StudyError
from ..runs.info import command
from .choice import Choice, Options
from .runview import RunView


def configuration_of(view: RunView, options: Options, choice: Choice) -> Config:
    """The run's configuration with this choice: by its criterion where the record decides, else with the layers named.

    Raises StudyError where nothing is chosen.
    """
    if choice.block is None:
        raise StudyError(f"nothing is chosen: {choice.why}")
    if view.final and not view.cfg.defects and options.criterion in CRITERIA:
        given = {"criterion": options.criterion, "threshold": options.threshold, "sign": options.sign}
        cfg = view.cfg.replace(**given, n_blocks=len(choice.layers), layers=())
        with contextlib.suppress(StudyError):
            if options.by_hand is None and choose(view.record, cfg) == choice.layers:
                return cfg
    return view.cfg.replace(layers=choice.layers)


def command_line(view: RunView, options: Options, choice: Choice, home: Path) -> str:
    """The command that repeats this choice, quoted for a shell: in the run's own folder where its own choice it is, else in a
    folder of its own in `home`, so that it cannot cost a finished run anything. Raises StudyError where nothing is chosen."""
    cfg = configuration_of(view, options, choice)
    if cfg == view.cfg and home == view.path.parent:
        return command(cfg, view.path, "criteria")
    return command(cfg, home / f"{view.path.name}-{dashed(choice)}", "criteria", redo=["criteria"])


def dashed(choice: Choice) -> str:
    """The chosen block in the name of a file or folder: "conv4-conv6"."""
    return "-".join(dict.fromkeys((choice.layers[0], choice.layers[-1])))
