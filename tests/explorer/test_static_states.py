"""The picture before each widget of a notebook is a real state of that very widget, and a sentence says what to try."""

from __future__ import annotations

import ast
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.pylabtools import print_figure

from learngene_core.config import Config
from learngene_core.errors import HEADLESS
from learngene_core.explorer.openworld import openworld_explorer
from learngene_core.explorer.theory import bound_explorer
from learngene_core.explorer.threshold import draw_record, threshold_explorer
from learngene_core.record import Record
from learngene_core.study import notebooks

CFG = Config.preset("lecture")
N_LAYERS = 13


def around(number, widget):
    """The code cell of a notebook that shows `widget`, the code cell before it, and the markdown beside the two."""
    cells = notebooks.read(notebooks.numbered(f"{number}*.ipynb")[0]).cells
    at = next(i for i, cell in enumerate(cells) if cell.cell_type == "code" and f"{widget}(" in cell.source)
    while at + 1 < len(cells) and "import" in cells[at].source and f"{widget}(" in cells[at + 1].source:
        at += 1
    before = max(i for i in range(at) if cells[i].cell_type == "code")
    words = [cell.source for cell in (cells[before - 1], cells[at + 1]) if cell.cell_type == "markdown"]
    return cells[at], cells[before], "\n".join(words)


def call(source, name):
    return next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == name)


def keywords(source, name, **known):
    """The keyword arguments of a call in a cell, with the notebook's `cfg` and what else is `known`."""
    given = {"cfg": CFG, "len": len, **known}
    return {k.arg: eval(ast.unparse(k.value), given) for k in call(source, name).keywords}


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    """As in a live kernel: without the mark of a headless one."""
    monkeypatch.delenv(HEADLESS, raising=False)
    yield
    plt.close("all")


@pytest.mark.parametrize(
    ("number", "widget"),
    [("03", "threshold_explorer"), ("05", "openworld_explorer"), ("06", "layer_explorer"), ("07", "bound_explorer")],
)
def test_a_picture_stands_before_every_widget_and_a_sentence_says_what_to_try(number, widget):
    cell, before, words = around(number, widget)
    assert [o for o in before.outputs if "image/png" in o.get("data", {})], "no picture before the widget"
    assert "*Try" in words


def test_the_picture_of_notebook_03_is_what_its_sliders_draw(smoke_run):
    """Set to the static call's arguments, the widget shows the same picture, pixel by pixel."""
    record = Record.load(smoke_run)
    state = keywords(around("03", "threshold_explorer")[1].source, "draw_record")
    box = threshold_explorer(record)
    state["n_blocks"] = min(state["n_blocks"], len(record.layers))
    first = box.picture.value
    for name, value in state.items():
        box.controls[name].value = value
        assert box.controls[name].value == value
    assert box.error.value == "" and box.picture.value != first
    rest = {name: control.value for name, control in box.controls.items()}
    figure = np.ravel(draw_record(record, **state))[0].figure
    assert rest == {**rest, **state}
    assert box.picture.value == print_figure(figure, bbox_inches="tight")


def test_the_pictures_of_notebooks_05_and_07_are_states_of_their_sliders():
    """Every argument of the static call is a value that the control of the same name takes; the others stay as they begin."""
    heads = [SimpleNamespace(shots=n, labels=[range(5 * n)], squares=[0.0] * N_LAYERS) for n in CFG.shots]
    shots = keywords(around("07", "bound_explorer")[0].source, "bound_explorer")
    features = SimpleNamespace(values=[None] * N_LAYERS)
    cases = [
        (openworld_explorer(pd.DataFrame(), np.zeros((0, 3, 8, 8), np.uint8)),
         keywords(around("05", "openworld_explorer")[1].source, "draw_threshold")),
        (bound_explorer(heads, **shots), keywords(around("07", "bound_explorer")[1].source, "draw_bound", features=features)),
    ]  # fmt: skip
    for box, state in cases:
        state.pop("seed", None)
        assert state and set(state) <= set(box.controls)
        for name, value in state.items():
            box.controls[name].value = value
            assert box.controls[name].value == value
