"""One visual language: a colour and a readable name per method and score, told apart by everybody; white, and without torch."""

import itertools
import pkgutil
import subprocess
import sys

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figuregallery import ATLAS, DRAWING, MANY, OPEN
from figuretables import LAYERS, make_images, make_results
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text

import learngene_core.explorer
import learngene_core.figures
from learngene_core import criteria
from learngene_core.figures import atlas, claims, openworld, style, words
from learngene_core.figures.comparison import paired_dots
from learngene_core.presets import CONTROL_NAMES, DEFECT_NAMES, METHODS

EVERY = {**DRAWING, **ATLAS, **OPEN, **MANY}
METHOD_NAMES = [m for known in METHODS.values() for m in known]
WITH_TORCH = {
    "cutting",
    "demo",
    "theory",
}  # of the explorer: what cuts a network, or draws heads that were fitted on features


@pytest.fixture(autouse=True)
def plain():
    """Matplotlib as in a dark theme of a notebook whose author has never called `use_style`, then ours on top."""
    with plt.rc_context(), plt.style.context("dark_background"):
        style.use_style()
        yield
        plt.close("all")


@pytest.mark.parametrize("name", EVERY)
def test_figures_are_opaque_white_and_have_no_code_words(name):
    figure = np.ravel(np.asarray(EVERY[name](), dtype=object))[0].figure
    figure.canvas.draw()
    assert figure.get_facecolor() == (1, 1, 1, 1), "no transparent ground: dark pages would swallow dark words"
    written = {t.get_text() for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()}
    assert not [text for text in written if "_" in text and "$" not in text], "a code word"


def test_every_name_of_the_study_is_written_in_words():
    assert set(style.METHOD_COLOURS) == set(words.METHOD_LABELS) == set(METHOD_NAMES)
    assert set(style.SCORE_COLOURS) == set(words.OPEN_SCORE_LABELS) == set(openworld.UNITS)
    assert set(criteria.CRITERIA) <= set(words.CRITERION_LABELS) and set(criteria.CRITERIA) <= set(words.SCORE_LABELS)
    assert set(CONTROL_NAMES) <= set(words.CONTROL_LABELS) and set(DEFECT_NAMES) <= set(words.DEFECT_LABELS)
    grouped = [way for ways in words.WAY_GROUPS.values() for way in ways]
    assert sorted(grouped) == sorted(words.WAY_LABELS)
    assert words.control_label("ewc:100") == "held by EWC (100)" and words.criterion_label("my_rule") == "my rule"


MACHADO = {  # colour vision deficiencies, Machado et al. 2009
    "none": np.eye(3),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
PALETTES = {
    **{family: [style.METHOD_COLOURS[m] for m in methods] for family, methods in METHODS.items()},
    "verdicts": [colour for word, (colour, _) in claims.VERDICTS.items() if word != "not run"],
    "marks": [colour for colour, _ in atlas.MARKS],
    "blocks": list(style.BLOCK_COLOURS.values()),
}


@pytest.mark.parametrize("sight", MACHADO)
@pytest.mark.parametrize("palette", PALETTES)
def test_colours_of_one_figure_differ_also_for_the_colour_blind(palette, sight):
    seen = [(MACHADO[sight] @ np.array(to_rgb(c)) ** 2.2).clip(0, 1) ** (1 / 2.2) for c in PALETTES[palette]]
    assert all(np.linalg.norm(a - b) > 0.15 for a, b in itertools.combinations(seen, 2))


def test_verdicts_differ_in_shape_too():
    assert len({shape for _, shape in claims.VERDICTS.values()}) == len(claims.VERDICTS)


def drawn_colours(axes):
    """Colours of the points and lines of axes, without the alpha of bands."""
    found = set()
    for ax in np.ravel(np.asarray(axes, dtype=object)):
        found |= {to_hex(line.get_color()) for line in ax.get_lines()}
        found |= {to_hex(c) for collection in ax.collections for c in collection.get_facecolor()}
    return found


def test_methods_and_scores_have_their_colour_in_every_figure_that_compares_them():
    wanted = {m: to_hex(style.METHOD_COLOURS[m]) for m in (*METHODS["light"], *METHODS["same_shape"])}
    for name in ("training_curves", "comparison"):
        colours = drawn_colours(EVERY[name]())
        assert not [m for m, colour in wanted.items() if colour not in colours and m != "scratch"]
    for method in METHODS["light"][1:]:
        assert wanted[method] in drawn_colours(paired_dots(make_results(), "light", method))
    colours = drawn_colours(openworld.oscr_curves(make_images(), tuple(style.SCORE_COLOURS)))
    assert {to_hex(c) for c in style.SCORE_COLOURS.values()} <= colours
    assert style.PART_COLOURS["inherited"] == style.METHOD_COLOURS["learngene"]


def test_layers_go_from_dark_at_the_input_to_light_at_the_head():
    colours = list(style.layer_colours(LAYERS).values())
    light = [float(np.dot(to_rgb(c), (0.2126, 0.7152, 0.0722))) for c in colours]
    assert len(set(colours)) == len(LAYERS) and light == sorted(light)


def test_drawing_and_exploring_need_no_torch():
    rooms = learngene_core.figures, learngene_core.explorer
    found = [(room.__name__, module.name) for room in rooms for module in pkgutil.iter_modules(room.__path__)]
    names = [f"{room}.{name}" for room, name in found if room.endswith("figures") or name not in WITH_TORCH]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def readable(figure):
    """The pixels of an inch, and of the smallest words, on a slide of 1280 x 720: below some text, or beside it."""
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    below, beside = min(1220 / width, 535 / height), min(870 / width, 628 / height)
    inch = below if width > 1.45 * height else beside
    words = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
    return inch, min(words, key=lambda t: t.get_fontsize())


SHOWN = [  # what the decks show, and is drawn here at its usual size
    "gain_bars", "division_overview", "task_pictures", "episode", "growth", "networks_side_by_side", "learning_curves",
    "accuracy_matrix", "gradient_sizes", "profiles_with_null", "draw_record", "paired_dots", "score_distributions",
    "roc_with_band", "draw_threshold", "over_tasks", "learning", "light atlas", "ancestors", "selection", "panels",
    "released", "margins",
]  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_a_figure_is_read_from_the_last_row(name):
    drawn = np.ravel(np.asarray(EVERY[name](), dtype=object))
    inch, smallest = readable(drawn[0].figure)
    assert smallest.get_fontsize() / 72 * inch > 15, smallest.get_text()
    for ax in drawn:
        if ax.get_legend():
            assert ax.get_legend().get_texts()[0].get_fontsize() / 72 * inch > 18.5
