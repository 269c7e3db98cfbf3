"""The learngene after the open world: cut from the network that has learned the unknown classes, and compared."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from .arms import arms_of
from .checkpoints import Collective, load_state
from .config import Config
from .division import TargetTask
from .files import StudyError, read_json
from .images import ImageSet
from .individuals import Reconstruction
from .learngene import Learngene
from .network import ConvNet
from .runs import Run

# ways of learning on whose networks are kept: with the new classes, and the control that met exemplars of the old ones only
SAVED = {"exemplars": "openworld", "rehearsed": "openworld/rehearsed"}


def moved(before: ConvNet, after: ConvNet) -> pd.DataFrame:
    """How far each block's convolution moved: norm of the change over norm of the weights, and the mean angle of its filters
    in degrees (batch norm undoes a filter's length, not its direction). One row per block."""
    rows = []
    for name in before.block_names:
        a, b = (m.blocks[name].conv.weight.detach().cpu().double().flatten(1) for m in (before, after))  # (out, in * 9)
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)
        angle = float(torch.rad2deg(torch.acos(cosine)).mean())
        rows.append({"layer": name, "relative_change": float((b - a).norm() / a.norm()), "angle": angle})
    return pd.DataFrame(rows)


def network_after(run: Run, way: str = "exemplars") -> ConvNet:
    """The network that has learned the unknown classes (or that was `rehearsed` without them), as `open_world` saved it.

    Raises StudyError when the run has not met the open world yet.
    """
    if not run.done("openworld"):
        raise StudyError(f"{run.path} has not met the open world yet; run `learngene openworld` first")
    return load_state(run.path / SAVED[way])[0]


def cut_after(run: Run, layers: tuple[str, ...], way: str = "exemplars") -> Learngene:
    """The learngene of these layers, cut from `network_after`.

    Raises StudyError when the run has not met the open world yet, and for layers that are no block.
    """
    model, about = network_after(run, way), read_json(run.path / SAVED[way] / "about.json")
    notes = {"chosen_by": "hand", "cut": f"after the open world ({way})", "stage_hash": run.cfg.stage_hash("openworld")}
    return Learngene.from_model(model, layers, mean=about["mean"], std=about["std"], data=run.cfg.data, **notes)


def compare_cuts(
    cuts: dict[str, Learngene], col: Collective, imgs: ImageSet, tgt: Sequence[TargetTask], cfg: Config
) -> pd.DataFrame:
    """Light individuals of every learngene on the same target tasks, initial weights and batches: one row per individual,
    column `method` holds the learngene's name; `statistics.paired_table` compares them."""
    arms = [arm for arm in arms_of(cfg, ("learngene",)) if arm.family == "light"]
    tables = [
        Reconstruction(g, col, imgs, cfg, arms, None).table(tgt, ncm=False).assign(method=n) for n, g in cuts.items()
    ]
    return pd.concat(tables, ignore_index=True)
