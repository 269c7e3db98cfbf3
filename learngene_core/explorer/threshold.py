"""The threshold explorer: widgets over `figures`, on a gradient record that is read, never computed again.

`draw_record` draws one static figure and needs no widget; `threshold_explorer` calls it with what its sliders say. A threshold
moves along the edges of the record's histograms, where counts are exact. The explorer of a whole run: `layers`.
"""

from __future__ import annotations

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..criteria import best_block
from ..figures.style import block_text
from ..figures.training import grown_cells, layer_task_heatmap, profile_with_null
from ..record import EDGES, Record
from .sliders import explorer, unwatched

NORMALISATIONS = ("share", "relative", "z")
AGGREGATIONS = ("mean", "last")
SIGNS = ("positive", "absolute")
LABELS = {
    "share": "share of entries",
    "relative": "share / mean over layers",
    "z": "z = (share - null) / null sd",
}
PROFILES = {"share": "share of entries", "relative": "share / mean over layers", "z": "z"}


def layer_task_values(
    record: Record,
    *,
    threshold: float = 5e-4,
    sign: str = "positive",
    normalisation: str = "share",
    aggregation: str = "mean",
) -> tuple[np.ndarray, pd.DataFrame]:
    """What the explorer draws: values (t, l) per task and layer, and their profile over tasks beside its null.

    normalisation: "share" of entries above the threshold; "relative" to the mean over layers of the same task; "z" against
    untrained networks. aggregation: "mean" of a task's epochs, or its "last" epoch. The profile has the columns of
    `criteria.score` (criterion, layer, score, null, null_sd, inherit). Raises ValueError for an unknown choice.
    """
    for choice, known in ((normalisation, NORMALISATIONS), (aggregation, AGGREGATIONS), (sign, SIGNS)):
        if choice not in known:
            raise ValueError(f"unknown choice {choice!r}; there are {', '.join(known)}")
    tasks = [np.flatnonzero(record.task == task) for task in np.unique(record.task)]
    if aggregation == "last":
        tasks = [rows[[record.epoch[rows].argmax()]] for rows in tasks]
    shares, null = record.fraction(threshold, sign), record.null_fraction(threshold, sign)
    values = np.stack([shares[rows].mean(0) for rows in tasks])  # (t, l)
    with np.errstate(invalid="ignore", divide="ignore"):
        if normalisation == "relative":
            values, null = (a / np.nanmean(a, -1, keepdims=True) for a in (values, null))
        networks = null.mean(1)  # (n, t', l) -> (n, l), as criteria.score has it
        mean, sd = networks.mean(0), networks.std(0, ddof=1)
        if normalisation == "z":
            values, mean, sd = np.where(sd > 0, (values - mean) / sd, np.nan), 0 * mean, np.ones_like(sd)
    profile = pd.Series(np.ma.masked_invalid(values).mean(0).filled(np.nan))
    table = pd.DataFrame(
        {"criterion": "released", "layer": record.layers, "score": profile, "null": mean, "null_sd": sd}
    )
    return values, table.assign(inherit="low")


def draw_record(
    record: Record,
    *,
    threshold: float = 5e-4,
    sign: str = "positive",
    normalisation: str = "share",
    aggregation: str = "mean",
    n_blocks: int = 3,
) -> np.ndarray:
    """Layers x tasks beside the profile with its null and the block of `n_blocks` that a lowest-mean rule chooses.

    Options as in `layer_task_values`. Returns the two axes (2,); where nothing can be chosen the title says why.
    """
    options = {"threshold": threshold, "sign": sign, "normalisation": normalisation, "aggregation": aggregation}
    values, table = layer_task_values(record, **options)
    chosen, why = _choice_or_reason(table, n_blocks)
    axes = _two_panels(1.25)
    middle = {"share": None, "relative": 1.0, "z": 0.0}[normalisation]
    scale = {"vmin": 0.0, "vmax": 0.5 if sign == "positive" else 1.0} if normalisation == "share" else {}
    look = {"centre": middle, "chosen": chosen, "grown": grown_cells(record.table), **scale}
    layer_task_heatmap(values, record.layers, LABELS[normalisation], ax=axes[0], **look)
    profile_with_null(table, chosen=chosen, label=f"mean {PROFILES[normalisation]}", ax=axes[1], legend=False)
    entries = "|entry|" if sign == "absolute" else "entry"
    epochs = "all epochs" if aggregation == "mean" else "last epochs"
    axes[0].set_title(f"{entries} > {threshold:.2g}, {epochs}")
    _title(axes[1], "chosen: ", chosen, why)
    handles = [h for ax in axes[::-1] for h in ax.get_legend_handles_labels()[0]]
    axes[0].figure.legend(handles=handles, loc="lower center", ncols=len(handles))
    return axes


def threshold_explorer(record: Record, *, threshold: float = 5e-4, n_blocks: int = 3) -> widgets.VBox | None:
    """Sliders over `draw_record`: threshold, sign, normalisation, aggregation over epochs, and the length of the block.

    threshold: where the slider begins, an edge of `thresholds`.

    The box has `.controls`, option of `draw_record` -> widget, so that setting `controls["threshold"].value` redraws.
    None in a kernel that nobody watches.
    """
    if unwatched():
        return None
    wide = {"continuous_update": False, "style": {"description_width": "initial"}}
    edges = thresholds(record)
    names = [(f"{edge:.1e}", edge) for edge in edges]
    controls = {
        "threshold": widgets.SelectionSlider(
            options=names, value=threshold, description="threshold", layout={"width": "560px"}, **wide
        ),
        "n_blocks": widgets.IntSlider(
            min=1, max=len(record.layers), value=min(n_blocks, len(record.layers)), description="blocks", **wide
        ),
        "sign": widgets.ToggleButtons(
            options=[("entry > t (as released)", "positive"), ("|entry| > t", "absolute")], description="sign"
        ),
        "normalisation": widgets.ToggleButtons(
            options=[("share", "share"), ("relative to layers", "relative"), ("z against null", "z")],
            description="show",
        ),
        "aggregation": widgets.ToggleButtons(
            options=[("mean of epochs", "mean"), ("last epoch", "last")], description="epochs"
        ),
    }
    return explorer(controls, lambda **options: draw_record(record, **options))


def thresholds(record: Record) -> list[float]:
    """The record's edges between its smallest and largest entry, and both released thresholds (5e-10 and 5e-4)."""
    seen = record.counts.sum((0, 1, 2)) + record.null_counts.sum((0, 1, 2, 3))
    filled = np.flatnonzero(seen)
    inside = EDGES[max(1, filled[0]) : filled[-1] + 1] if len(filled) else EDGES[:0]
    # six digits name an edge, which is a 32-bit float, without hiding that 5e-10 is one
    return sorted({float(f"{edge:.6g}") for edge in inside} | {5e-10, 5e-4})


def _two_panels(left: float) -> np.ndarray:
    """Two axes side by side, the first `left` times as wide; at fixed places, which draws twice as fast as a solver."""
    place = {"left": 0.085, "right": 0.945, "bottom": 0.22, "top": 0.91, "wspace": 0.36}
    return plt.subplots(1, 2, figsize=(11.5, 4.9), width_ratios=[left, 1], layout="none", gridspec_kw=place)[1]


def _choice_or_reason(table: pd.DataFrame, n_blocks: int) -> tuple[tuple[str, ...], str]:
    """The chosen block and "", or () and why nothing can be chosen."""
    try:
        return best_block(table, n_blocks), ""
    except ValueError:
        missing = table.loc[~np.isfinite(table["score"].to_numpy(float)), "layer"]
        reason = f"has no value for {missing.iloc[0]}" if len(missing) else "is the same for every layer"
        return (), f"no choice: the score {reason}"


def _title(ax: Axes, prefix: str, chosen: tuple[str, ...], why: str) -> None:
    """The chosen block as a title, or in smaller letters why there is none."""
    ax.set_title(f"{prefix}{block_text(chosen)}" if chosen else why, **({} if chosen else {"fontsize": 13}))
