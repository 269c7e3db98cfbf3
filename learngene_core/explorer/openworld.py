"""A threshold on an open-world score, as pictures: what is flagged, kept, missed; static, and under a slider."""

from __future__ import annotations

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..figures.openworld import GROUPS, histogram, picture_row, threshold_counts
from ..figures.style import INK, tidy
from ..figures.words import OPEN_SCORE_LABELS
from ..openworld.measures import threshold_at
from .sliders import explorer, unwatched

PICTURES = 7  # of a group
PARTS = ("validation", "stream")


def draw_threshold(
    images: pd.DataFrame, pixels: np.ndarray, *, score: str = "relative_mahalanobis", keep: float = 95.0
) -> list[Axes]:
    """A threshold that keeps `keep` percent of the validation images: the histogram, and pictures of what lands where.

    images: openworld_images.csv; pixels: all images of the data (n, 3, h, w) uint8, indexed by the column `image`.
    Pictures are spread evenly over each group. Returns five axes: histogram, then flagged, missed, false alarms, kept.
    """
    shown = images[images["part"].isin(PARTS)]
    known = shown.loc[shown["known"], score]
    threshold = threshold_at(known, keep)
    groups = threshold_counts(shown, score, threshold)
    axes = _places()
    histogram(axes[0], known, shown.loc[~shown["known"], score])
    axes[0].axvline(threshold, color=INK, linewidth=2)
    axes[0].set_title(
        f"{OPEN_SCORE_LABELS[score]}: flagged below {threshold:.3g}, which keeps {keep:g} % of validation"
    )
    axes[0].set_yticks([])
    axes[0].legend(loc="upper left")
    tidy(axes[0])
    total = {flag: int((shown["known"] == flag).sum()) for flag in (True, False)}
    for ax, (name, rows) in zip(axes[1:], groups.items(), strict=True):
        of = total[GROUPS[name][0]]
        ax.set_title(f"{name}: {len(rows)} of {of}", loc="left", fontsize=14)
        ax.axis("off")
        picked = (
            rows["image"].to_numpy()[np.unique(np.linspace(0, len(rows) - 1, PICTURES).astype(int))]
            if len(rows)
            else []
        )
        picture_row(ax, pixels[np.asarray(picked, int)], PICTURES, ())
    return axes


def _places() -> list[Axes]:
    """The axes of the histogram, and below it of unknown images (left) and known ones (right), flagged above kept."""
    room = {"left": 0.02, "right": 0.98, "bottom": 0.02, "top": 0.93, "hspace": 0.55, "wspace": 0.05}
    figure = plt.figure(figsize=(11.5, 5.2), layout="none")
    grid = figure.add_gridspec(3, 2, height_ratios=[2.1, 1, 1], **room)
    cells = [grid[0, :], grid[1, 0], grid[2, 0], grid[1, 1], grid[2, 1]]
    return [figure.add_subplot(cell) for cell in cells]


def openworld_explorer(
    images: pd.DataFrame, pixels: np.ndarray, *, score: str = "relative_mahalanobis"
) -> widgets.VBox | None:
    """The score and the share of validation images to keep, over `draw_threshold`; `.controls`: score, keep."""
    if unwatched():
        return None
    controls = {
        "score": widgets.Dropdown(
            options=[(text, name) for name, text in OPEN_SCORE_LABELS.items()], value=score, description="score"
        ),
        "keep": widgets.FloatSlider(
            min=50,
            max=99.5,
            step=0.5,
            value=95,
            description="keep %",
            continuous_update=False,
            layout={"width": "560px"},
        ),
    }
    return explorer(controls, lambda **options: draw_threshold(images, pixels, **options))
