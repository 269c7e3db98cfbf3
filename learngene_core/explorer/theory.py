"""The computable bound under sliders: support images m, spread s of the heads, number of candidate prefixes R."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np

from ..figures.theory import bound_tasks, budget_bars
from ..theory.prefixes import DELTA, SPREAD, Heads, bound_table
from .sliders import explorer, unwatched

SPREADS = (0.02, 0.03, 0.05, 0.07, 0.1, 0.12, SPREAD, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5)


def draw_bound(
    heads: Sequence[Heads], *, shots: int = 10, spread: float = SPREAD, n_candidates: int = 1, seed: int = 0
) -> np.ndarray:
    """The bound of every target task beside the errors on query images, and what its budget is made of; the two axes (2,).

    heads: `theory.prefixes.fit_heads`. Raises ValueError for a number of shots that no head was fitted on.
    """
    chosen = [own for own in heads if own.shots == shots]
    if not chosen:
        raise ValueError(f"no head was fitted on {shots} shots; there are {sorted({own.shots for own in heads})}")
    table = bound_table(chosen, spread=spread, n_candidates=n_candidates, seed=seed)
    place = {"left": 0.075, "right": 0.985, "bottom": 0.24, "top": 0.91, "wspace": 0.3}
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 5), width_ratios=[3.4, 1], layout="none", gridspec_kw=place)
    bound_tasks(table, ax=axes[0])
    budget_bars(table, DELTA, ax=axes[1])
    m, means = table["m"].iloc[0], table[["bound", "gibbs_error"]].mean()
    axes[0].set_title(
        f"m = {m}, s = {spread:g}, R = {n_candidates}: mean bound {means['bound']:.1f} %, "
        f"drawn heads {means['gibbs_error']:.1f} %",
        fontsize=13,
    )
    look = {"ncols": 4, "fontsize": 12, "columnspacing": 1.2, "handlelength": 1.4, "bbox_to_anchor": (0.03, 0)}
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower left", **look)
    axes[1].legend(loc="upper center", bbox_to_anchor=(0.4, -0.03), fontsize=11)
    return axes


def bound_explorer(heads: Sequence[Heads], *, shots: int = 10, seed: int = 0) -> widgets.VBox | None:
    """Sliders over `draw_bound`; `.controls`: shots (shown as m), spread, n_candidates. None in a kernel that nobody watches."""
    if unwatched():
        return None
    wide = {"continuous_update": False, "style": {"description_width": "initial"}, "layout": {"width": "460px"}}
    sizes = {own.shots: len(own.labels[0]) for own in heads}
    most = len(heads[0].squares)
    controls = {
        "shots": widgets.SelectionSlider(
            options=[(f"{m} ({n} per class)", n) for n, m in sorted(sizes.items())],
            value=shots if shots in sizes else max(sizes),
            description="support images m",
            **wide,
        ),
        "spread": widgets.SelectionSlider(
            options=[(f"{s:g}", s) for s in SPREADS],
            value=SPREAD,
            description="spread s of the heads",
            **wide,
        ),
        "n_candidates": widgets.IntSlider(min=1, max=most, value=most, description="candidate prefixes R", **wide),
    }
    return explorer(controls, lambda **options: draw_bound(heads, seed=seed, **options), tight=False)
