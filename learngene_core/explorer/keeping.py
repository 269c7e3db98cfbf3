"""What can be made of a choice in the layer explorer: the command that repeats it, and the learngene cut out as a file."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from ..config import Config
from ..criteria import CRITERIA, choose
from ..errors import StudyError
from ..figures.style import block_text
from ..learngene import Learngene
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
    return command(cfg, home / f"{view.path.name}-{_dashed(choice)}", "criteria", redo=["criteria"])


def save_learngene(view: RunView, options: Options, choice: Choice, folder: Path) -> Path:
    """Cut the chosen block out of the saved network into `folder`; the file that `command_line` would make, under a name of
    its own. Imports torch. Raises StudyError where nothing is chosen or the network is not whole."""
    cfg = configuration_of(view, options, choice)
    from ..learngene import Learngene, notes_of
    from ..runs.states import load_state

    state, notes = view.path / "collective" / f"task_{view.cfg.n_source_tasks:02d}", notes_of(cfg)
    if (state / "model.safetensors").exists():
        model, groups, _ = load_state(state)
        gene = Learngene.from_model(model, choice.layers, fisher=groups["gene_fisher"] or None, **notes)
    else:  # the shipped run has its learngene alone
        gene = _part(Learngene.load(view.path / "learngene.safetensors"), choice.layers, notes)
    path = folder / f"learngene-{_dashed(choice)}.safetensors"
    gene.save(path)
    return path


def _part(gene: Learngene, layers: tuple[str, ...], notes: dict[str, Any]) -> Learngene:
    """A block within a learngene. Raises StudyError for one that is not."""
    if not set(layers) <= set(gene.layers):
        raise StudyError(
            f"this run ships without its network, only with {block_text(gene.layers)}; the line below makes other blocks"
        )
    tensors = {name: tensor for name, tensor in gene.tensors.items() if name.split(".")[0] in layers}
    pools = tuple(name for name in gene.pools if name in layers)
    return dataclasses.replace(gene, layers=layers, tensors=tensors, pools=pools, fisher=None, notes=notes)


def _dashed(choice: Choice) -> str:
    return "-".join(dict.fromkeys((choice.layers[0], choice.layers[-1])))
