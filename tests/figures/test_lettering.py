"""Names in scripts that matplotlib's fonts lack: another font, or a number with its name in print; never a box."""

from __future__ import annotations

import logging
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager

from learngene_core.figures import lettering
from learngene_core.figures.data import division_overview, episode, image_rows, task_table
from learngene_core.figures.openworld import gallery

SCRIPTS = ["가나다", "ไทย", "日本語", "汉字"]  # Hangul, Thai, Japanese, Chinese
PLAIN = ["latin-small-q", "Ωμέγα", "ёлка"]


@pytest.fixture(autouse=True)
def families():
    """Tests begin with the shipped font, and leave matplotlib as it was."""
    with plt.rc_context({"font.family": ["DejaVu Sans"]}):
        yield
    plt.close("all")


@pytest.fixture
def shipped_only(monkeypatch):
    """A machine on which nothing but matplotlib's own fonts is installed."""
    own = [face for face in fontManager.ttflist if "mpl-data" in face.fname]
    assert own
    monkeypatch.setattr(fontManager, "ttflist", own)


def drawn_without_boxes(figure, caplog):
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        figure.canvas.draw()
    said = [str(w.message) for w in caught] + [r.getMessage() for r in caplog.records]
    return not [text for text in said if "lyph" in text or "missing from" in text]


def pixels(rows, k=2):
    return np.zeros((rows, k, 3, 8, 8), np.uint8)


def figures(names):
    """Every figure that draws names of classes: a function that draws it."""
    division = {"base": names, "open_world": [], "novel": []}
    tasks = [{"number": 1, "classes": names}]
    return {
        "image_rows": lambda: image_rows(pixels(len(names)), names).figure,
        "episode": lambda: episode(pixels(len(names)), pixels(len(names)), names).figure,
        "division_overview": lambda: division_overview(division, {name: name for name in names}).figure,
        "task_table": lambda: task_table(tasks).figure,
        "gallery": lambda: gallery({"row": pixels(1, len(names))[0]}, {"row": names})[0].figure,
    }


@pytest.mark.parametrize("name", sorted(figures(SCRIPTS)))
def test_no_figure_draws_a_box_where_no_font_has_the_letters(name, shipped_only, caplog, capsys):
    figure = figures([*SCRIPTS, *PLAIN])[name]()
    assert drawn_without_boxes(figure, caplog)
    said = capsys.readouterr().out
    texts = {text.get_text() for text in figure.findobj(plt.Text)}
    for number, script in enumerate(SCRIPTS if name != "division_overview" else sorted(SCRIPTS), 1):
        assert f"no. {number}: {script}" in said and script not in texts and f"no. {number}" in texts
    assert not any(plain in said for plain in PLAIN) and texts >= set(PLAIN)


def test_the_check_sees_boxes(shipped_only, caplog):
    figure = plt.figure()
    figure.text(0.5, 0.5, SCRIPTS[0])
    assert not drawn_without_boxes(figure, caplog)


def test_an_installed_font_draws_the_name(monkeypatch, caplog, capsys):
    """Stood for by a shipped font that has a letter which the first one lacks."""
    stix = next(face for face in fontManager.ttflist if face.name == "STIXGeneral" and face.style == "normal")
    first = lettering._letters(findfont(FontProperties(family=["DejaVu Sans"])))
    letter = chr(max(c for c in lettering._letters(stix.fname) - first if chr(c).isalpha() or c > 0xE000))
    monkeypatch.setattr(
        fontManager, "ttflist", [f for f in fontManager.ttflist if f.name in ("DejaVu Sans", "STIXGeneral")]
    )
    assert lettering.missing(letter)
    assert lettering.readable([letter, "plain"]) == [letter, "plain"]
    assert not lettering.missing(letter) and capsys.readouterr().out == ""
    assert plt.rcParams["font.family"] == ["DejaVu Sans", "STIXGeneral"]
    assert drawn_without_boxes(image_rows(pixels(2), [letter, "plain"]).figure, caplog)


def test_fonts_made_of_boxes_do_not_count(monkeypatch):
    last = [FontEntry(fname=findfont(FontProperties(family=["DejaVu Sans"])), name="Last Resort High-Efficiency")]
    monkeypatch.setattr(fontManager, "ttflist", last)
    assert lettering.installed({"a"}) is None


def test_names_that_can_be_drawn_stay_and_nothing_is_said(capsys):
    before = list(plt.rcParams["font.family"])
    assert lettering.readable([*PLAIN, "two\nlines", "tab\there"]) == [*PLAIN, "two\nlines", "tab\there"]
    assert plt.rcParams["font.family"] == before and capsys.readouterr().out == ""


def test_one_name_has_one_number(shipped_only):
    assert lettering.readable(["a", SCRIPTS[1], SCRIPTS[0], SCRIPTS[1]]) == ["a", "no. 1", "no. 2", "no. 1"]
