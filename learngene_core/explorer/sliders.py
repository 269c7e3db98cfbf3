"""Widgets above one picture: every change of a control draws anew. What the small explorers of the notebooks share."""

from __future__ import annotations

import html
import os
from collections.abc import Callable

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.core.pylabtools import print_figure

from ..errors import HEADLESS, say


def unwatched() -> bool:
    """Whether this kernel runs headlessly; then there is nobody to move a slider."""
    if os.environ.get(HEADLESS):
        say("(in a live kernel the sliders appear here; the picture above is one of their states)")
        return True
    return False


def explorer(controls: dict[str, widgets.Widget], draw: Callable, *, tight: bool = True) -> widgets.VBox:
    """The controls above a picture of what `draw` draws from their values; every change draws anew and keeps no figure.

    draw(**values) returns Axes, one or an array. tight: cut the empty rim, as inline figures do; costs a third of the time.

    Where drawing fails, the error is shown in place of the picture. An `Output` widget would do the same in fewer lines, but a
    notebook run without a browser can wait for its messages for ever.
    """
    unstretched = {"align_self": "flex-start", "max_width": "100%"}  # a box gives a picture its own width otherwise
    picture, error = widgets.Image(format="png", layout=unstretched), widgets.HTML()

    def redraw(_: object = None) -> None:
        open_before = set(plt.get_fignums())
        try:
            axes = draw(**{name: control.value for name, control in controls.items()})
            figure = np.ravel(axes)[0].figure
            picture.value, error.value = print_figure(figure, bbox_inches="tight" if tight else None), ""
        except Exception as failure:  # in a widget's callback nobody would see it
            error.value = f"<pre>{html.escape(f'{type(failure).__name__}: {failure}')}</pre>"
        finally:
            for number in set(plt.get_fignums()) - open_before:
                plt.close(number)
        picture.layout.display, error.layout.display = ("none", None) if error.value else (None, "none")

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    box = widgets.VBox([*controls.values(), picture, error])
    box.controls, box.picture, box.error = controls, picture, error
    return box
