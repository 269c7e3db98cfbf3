"""The learngene of a choice in the layer explorer, cut out of the saved network as a file; the one module here with torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..errors import StudyError
from ..figures.style import block_text
from ..learngene import Learngene, notes_of
from ..runs.states import load_state
from .choice import Choice, Options
from .keeping import configuration_of, dashed
from .runview import RunView


def save_choice(view: RunView, options: Options, choice: Choice, folder: Path) -> Path:
    """Cut the chosen block out of the saved network into `folder`; the file that `command_line` would make, under a name of
    its own. Raises StudyError where nothing is chosen or the network is not whole."""
    cfg = configuration_of(view, options, choice)
    state, notes = view.path / "collective" / f"task_{view.cfg.n_source_tasks:02d}", notes_of(cfg)
    if (state / "model.safetensors").exists():
        model, groups, _ = load_state(state)
        gene = Learngene.from_model(model, choice.layers, fisher=groups["gene_fisher"] or None, **notes)
    else:  # the shipped run has its learngene alone
        gene = _part(Learngene.load(view.path / "learngene.safetensors"), choice.layers, notes)
    path = folder / f"learngene-{dashed(choice)}.safetensors"
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
