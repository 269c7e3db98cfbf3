"""The controls of the layer explorer: sliders, buttons and menus by the names of `choosing.Options`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from .atlasexplore import ANY
from .choosing import criteria_of
from .explore import thresholds
from .runview import RunView


def controls_of(views: Sequence[RunView]) -> dict[str, widgets.Widget]:
    """Name -> widget, at the settings of the first run."""
    cfg = views[0].cfg

    def toggle(*options: tuple[str, Any]) -> widgets.ToggleButtons:
        return widgets.ToggleButtons(options=options, style={"button_width": "auto"}, layout={"width": "auto"})

    wide = {"continuous_update": False, "style": {"description_width": "initial"}}
    layers = max(len(view.layers) for view in views)
    controls = {
        "threshold": widgets.SelectionSlider(
            options=[("5.0e-10", 5e-10)], description="threshold t", layout={"width": "470px"}, **wide
        ),
        "sign": toggle(("entry > t", "positive"), ("|entry| > t", "absolute")),
        "normalisation": toggle(("share", "share"), ("relative", "relative"), ("z", "z")),
        "aggregation": toggle(("mean", "mean"), ("last", "last")),
        "criterion": widgets.Dropdown(options=["released"], description="criterion", layout={"width": "290px"}),
        "length": widgets.SelectionSlider(
            options=[("any", ANY), *((str(k), k) for k in range(1, layers + 1))],
            value=min(cfg.n_blocks, layers),
            description="blocks",
            layout={"width": "250px"},
            **wide,
        ),
        "budget": widgets.FloatSlider(
            min=1,
            max=100,
            step=1,
            value=100,
            description="at most % of parameters",
            layout={"width": "380px"},
            readout_format=".0f",
            **wide,
        ),
        "gains": toggle(("target tasks", "novel"), ("pseudo-tasks", "pseudo")),
        "by_hand": toggle(("by criterion", False), ("by hand", True)),
        "picked": widgets.IntRangeSlider(
            value=(1, 1), min=1, max=layers, description="first to last", layout={"width": "470px"}, **wide
        ),
    }
    controls["sign"].value = cfg.sign
    offer(controls, views, cfg.threshold, cfg.criterion)
    return controls


def offer(
    controls: dict[str, widgets.Widget], views: Sequence[RunView], threshold: float | None = None, criterion: str = ""
) -> None:
    """Thresholds and criteria that the runs have by now; what was set stays, a threshold at the nearest edge."""
    slider, menu = controls["threshold"], controls["criterion"]
    wanted, named = slider.value if threshold is None else threshold, criterion or menu.value
    edges = sorted({5e-10, 5e-4}.union(*(thresholds(view.record) for view in views if view.record is not None)))
    nearest = min(edges, key=lambda edge: abs(edge / wanted - 1) if wanted else edge)
    slider.options = [(f"{edge:.1e}", edge) for edge in edges]
    slider.value = nearest
    names = list(dict.fromkeys(name for view in views for name in criteria_of(view)))
    menu.options = names
    menu.value = named if named in names else names[0]
    pseudo = any(v.atlas is not None and v.atlas["pseudo_gain"].notna().any() for v in views)
    controls["gains"].disabled = not pseudo
