"""One visual language: every figure takes its colours from the style, is opaque white, and its words are readable on it."""

import importlib
import itertools
import re
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import test_atlasfigures as atlas_tables
import test_figures as tables
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.text import Text

from learngene_core.explorer import openworld as openexplore
from learngene_core.figures import networks as diagrams
from learngene_core.figures import openworld as openfigures
from learngene_core.figures import style
from learngene_core.figures import theory as theoryfigures
from learngene_core.figures.comparison import paired_dots
from learngene_core.figures.paradigm import paradigm
from learngene_core.figures.training import layer_task_heatmap
from learngene_core.presets import METHODS
from learngene_core.study.notebooks import descriptions
from learngene_core.theory import theorem as theory

DRAWING = (
    *("drawings", "diagrams", "figures", "comparisons", "openfigures", "atlasfigures", "atlasmargins", "claimfigures"),
    *("selectionfigures", "explore", "openexplore", "atlasexplore", "paradigm", "animation"),
)
PACKAGE = Path(style.__file__).parent
CLAIM_COLOURS = {"supported": style.SUPPORTED, "refuted": style.REFUTED, "undecided": style.MUTED}


@pytest.fixture(autouse=True)
def plain():
    """Matplotlib as in a dark theme of a notebook whose author has never called `use_style`, then ours on top."""
    with plt.rc_context(), plt.style.context("dark_background"):
        style.use_style()
        yield
        plt.close("all")


def paradigm():
    layers = tables.LAYERS
    scores = tables.score(tables.make_record(), "released")
    return paradigm(tables.COLLECTIVE, tables.INDIVIDUAL, layers[-2:], scores, shots=10)


def seen_images(n=40):
    """openworld_images.csv: validation, test, stream and unknown images with every score."""
    rng = np.random.default_rng(0)
    parts = ("validation", "test", "stream", "unknown")
    rows = pd.DataFrame({"part": np.repeat(parts, n), "image": np.arange(4 * n) % 12})
    rows["known"] = rows["part"].isin(["validation", "test"]) | ((rows["part"] == "stream") & (rows.index % 2 == 0))
    rows["class_name"] = [f"{'known' if known else 'new'} {i % 4}" for i, known in enumerate(rows["known"])]
    rows["predicted"] = rows["class_name"].where(rows.index % 3 > 0, "known 0")
    return rows.assign(**{score: rng.normal(rows["known"].astype(float), 1) for score in style.SCORE_COLOURS})


def over_tasks():
    """openworld.csv of three scores after four tasks."""
    pairs = itertools.product(range(1, 5), ("msp", "maxlogit", "relative_mahalanobis"))
    rows = pd.DataFrame(pairs, columns=["task", "score"])
    rows = rows.assign(auroc=50 + 3 * rows["task"], auroc_low=45, auroc_high=70, closed_accuracy=40)
    return openfigures.over_tasks(rows.assign(known_classes=4 * rows["task"]))


def learning():
    """openworld_learning.csv of every way."""
    rows = pd.DataFrame({"method": list(openfigures.WAYS)})
    for kind in ("old", "new", "harmonic"):
        rows = rows.assign(**{f"{kind}_accuracy": 40.0, f"{kind}_accuracy_low": 35.0, f"{kind}_accuracy_high": 45.0})
    return openfigures.learning(rows)


PIXELS = tables.pictures(1, 12)[0]
CAPTIONS = ["a", "cyrillic-capital-zhe\n→ greek-small-zeta", "aquarium_fish_of_great_length"]
OPEN = {
    "score_distributions": lambda: openfigures.score_distributions(seen_images()),
    "roc_with_band": lambda: openfigures.roc_with_band(seen_images(), "msp", n_resamples=9),
    "oscr_curves": lambda: openfigures.oscr_curves(seen_images()),
    "over_tasks": over_tasks,
    "learning": learning,
    "gallery": lambda: openfigures.gallery({"some": PIXELS[:3], "none": PIXELS[:0]}, {"some": CAPTIONS}),
    "draw_threshold": lambda: openexplore.draw_threshold(seen_images(), PIXELS),
}


def bounds_over_m():
    """Means of a bound and the two errors at two m, as `prefixbounds.bound_summary` gives them."""
    rows = pd.DataFrame({"m": [50, 250], "chance": 80.0})
    return rows.assign(**{f"{n}{end}": 50.0 for n in theoryfigures.BOUND_LINES for end in ("", "_low", "_high")})


def bounds_by_task():
    rows = pd.DataFrame({"m": 50, "chance": 80.0, "target_task": [1, 2]})
    return theoryfigures.bound_tasks(rows.assign(**dict.fromkeys(theoryfigures.BOUND_LINES, 40.0)))


RISKS = theory.risk_table(theory.simulate(d=12, k=2, ms=(4, 9), ts=(1, 4), n_repetitions=3))
THEORY = {
    "risk_curves": lambda: theoryfigures.risk_curves(RISKS),
    "gain_map": lambda: theoryfigures.gain_map(RISKS),
    "norm_figure": lambda: theoryfigures.norm_figure(theory.norm_terms(c=4.0, seed=0)),
    "term_figure": lambda: theoryfigures.term_figure(theory.term_over_tasks(seed=0)),
    "bound_curves": lambda: theoryfigures.bound_curves(bounds_over_m()),
    "bound_pair": lambda: theoryfigures.bound_pair(bounds_over_m(), bounds_over_m()),
    "bound_tasks": bounds_by_task,
    "marked_network": lambda: diagrams.marked_network(tables.COLLECTIVE[-1], tables.COLLECTIVE[-1]["names"][-2:]),
}
EVERY = {**tables.make_all(), **atlas_tables.ALL, **OPEN, **THEORY, "paradigm": paradigm}
ATLAS = {  # functions that the tables of the atlas are drawn with, by what they are called there
    "map of 13": "atlas_map", "margins": "margins gain_by_position gain_by_parameters", "score": "score_against_gain",
    "selection": "selection_figure", "panels": "score_panels", "controls": "controls_figure", "claims": "claims_figure",
    "released": "released_figure", "choice": "draw_choice",
}  # fmt: skip
PARTS = {"columns", "montage", "new_axes", "so_far", "square"}  # return arrays or axes, and are no figures


def figure_of(axes):
    return np.ravel(np.asarray(axes, dtype=object))[0].figure


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one, two):
    """WCAG contrast ratio of two colours, 1 to 21."""
    a, b = sorted((luminance(one), luminance(two)))
    return (b + 0.05) / (a + 0.05)


def test_every_figure_of_the_drawing_modules_is_walked():
    known = {name for module in DRAWING for name in vars(importlib.import_module(f"learngene_core.{module}"))}
    walked = {*EVERY, *" ".join(ATLAS.values()).split(), *PARTS}
    assert not (missing := (set(descriptions()) & known) - walked), f"add a small table for {sorted(missing)}"


@pytest.mark.parametrize("name", EVERY)
def test_figures_are_opaque_white_and_their_words_can_be_read(name):
    figure = figure_of(EVERY[name]())
    figure.canvas.draw()
    assert figure.get_facecolor() == (1, 1, 1, 1), "no transparent ground: dark pages would swallow dark words"
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible() and not inside(text):
            assert contrast(text.get_color(), "white") >= 2.9, f"{name}: {text.get_text()!r} is too pale"
            assert text.get_fontsize() >= 8, f"{name}: {text.get_text()!r} is too small"


def inside(text):
    """Whether a text stands on a coloured cell, bar or disc, where it is white on purpose."""
    return to_hex(text.get_color()) == "#ffffff"


@pytest.mark.parametrize("module", DRAWING)
def test_no_figure_has_a_colour_of_its_own(module):
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    assert not re.findall(r"[\"']#[0-9A-Fa-f]{3,8}[\"']", source), "name the colour in style.py and use its name"
    assert not re.findall(r"(?:color|colour|cmap)s?=[\"'](?!white|none)[a-z:]+[\"']", source)


def test_the_palette_has_one_entry_for_each_method_and_score():
    methods = [m for known in METHODS.values() for m in known]
    assert set(style.METHOD_COLOURS) == set(methods)
    assert style.PART_COLOURS["inherited"] == style.METHOD_COLOURS["learngene"]
    assert style.SCORE_COLOURS["ncm"] == style.METHOD_COLOURS["ncm"], "the same classifier in both chapters"


def drawn_colours(axes):
    """Colours of the points and lines of axes, without the alpha of bands."""
    found = set()
    for ax in np.ravel(np.asarray(axes, dtype=object)):
        found |= {to_hex(line.get_color()) for line in ax.get_lines()}
        found |= {to_hex(c) for collection in ax.collections for c in collection.get_facecolor()}
    return found


def test_methods_have_their_colour_in_every_figure_that_compares_them():
    wanted = {m: to_hex(style.METHOD_COLOURS[m]) for m in (*METHODS["light"], *METHODS["same_shape"])}
    for draw in (tables.make_all()["training_curves"], tables.make_all()["comparison"]):
        colours = drawn_colours(draw())
        assert not [m for m, colour in wanted.items() if colour not in colours and m != "scratch"]
    for method in METHODS["light"][1:]:
        ax = paired_dots(tables.make_results(), "light", method)
        assert wanted[method] in drawn_colours(ax)


def test_legend_and_line_of_a_method_agree():
    axes = tables.make_all()["training_curves"]()
    names = {label: method for method, label in style.METHOD_LABELS.items()}
    for line in (line for ax in np.ravel(axes) for line in ax.get_lines()):
        assert to_hex(line.get_color()) == to_hex(style.METHOD_COLOURS[names[line.get_label()]])


def test_scores_have_their_colour_in_every_figure_that_compares_them():
    colours = drawn_colours(openfigures.oscr_curves(seen_images(), tuple(style.SCORE_COLOURS)))
    assert {to_hex(c) for c in style.SCORE_COLOURS.values()} <= colours
    colours = drawn_colours(over_tasks())
    assert {to_hex(style.SCORE_COLOURS[s]) for s in ("msp", "maxlogit", "relative_mahalanobis")} <= colours


def test_layers_go_from_dark_at_the_input_to_light_at_the_head():
    colours = list(style.layer_colours(tables.LAYERS).values())
    assert len(set(colours)) == len(tables.LAYERS)
    light = [luminance(c) for c in colours]
    assert light == sorted(light)
    heat = layer_task_heatmap(np.random.default_rng(0).random((3, 6)), tables.LAYERS, "share")
    assert heat.collections[0].get_cmap().name == style.SEQUENTIAL == "viridis"


def test_verdicts_take_their_colours_from_the_style():
    axes = atlas_tables.ALL["claims"]()
    words = {t.get_text().split(" (")[0]: t.get_color() for ax in np.ravel(axes) for t in ax.texts}
    assert {w: words[w] for w in CLAIM_COLOURS} == CLAIM_COLOURS


# --- the paradigm -------------------------------------------------------------------------------------------------------
def test_the_paradigm_draws_the_blocks_of_its_run_to_scale():
    ax = paradigm()
    bars = {part: [c for c in ax.containers if c.get_label() == f"_{part}"] for part in ("start", "grown", "inherited")}
    assert [len(bars[part]) for part in ("start", "grown")] == [3, 3], "first, middle and last network"
    heights = [np.array([bar.get_height() for bar in row]) for row in bars["grown"]]
    for row, shape in zip(heights, tables.COLLECTIVE, strict=True):
        assert np.allclose(row / row[0] * shape["widths"][0], shape["widths"])
    blue = [bar for c in bars["inherited"] for bar in c]
    assert len(blue) == 4 and {to_rgba(style.METHOD_COLOURS["learngene"])} == {bar.get_facecolor() for bar in blue}
    collective, individual = blue[:2], blue[2:]
    assert [round(b.get_height(), 6) for b in collective] == [round(b.get_height(), 6) for b in individual]
    words = " ".join(" ".join(t.get_text().split()) for t in ax.texts)
    assert "learns 3 tasks" in words and "5 new classes, 10 images each" in words and "conv5 to conv6" in words


def test_the_paradigm_says_who_chose():
    scores = tables.score(tables.make_record(), "released")
    best = tables.best_block(scores, 2)
    assert best == ("conv5", "conv6")
    assert any("Lowest in" in " ".join(t.get_text().split()) for t in paradigm().texts)
    first = {**tables.INDIVIDUAL, "names": ["conv1", "conv2", "a", "b"], "widths": [4, 8, 8, 8]}
    ax = paradigm(tables.COLLECTIVE, first, ("conv1", "conv2"), scores, shots=10)
    assert any("Inherited here: conv1 to conv2" in " ".join(t.get_text().split()) for t in ax.texts)


def test_the_paradigm_of_a_network_that_does_not_grow_says_so():
    scores = tables.score(tables.make_record(n_tasks=1), "released_cv")  # no value: there is but one task
    ax = paradigm(tables.COLLECTIVE[-1:], tables.INDIVIDUAL, tables.LAYERS[-2:], scores, shots=1)
    ax.figure.canvas.draw()
    words = " ".join(" ".join(t.get_text().split()) for t in ax.texts)
    assert "learns 1 task." in words and "widened" not in words and "Grow" not in words
    assert "grown since task 1" not in {t.get_text() for t in ax.get_legend().get_texts()}


def test_no_words_of_the_paradigm_overlap():
    ax = paradigm()
    ax.figure.canvas.draw()
    boxes = [(t.get_text(), t.get_window_extent()) for t in ax.texts if t.get_text().strip()]
    assert not [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)]


def test_the_paradigm_refuses_what_does_not_fit():
    scores = tables.score(tables.make_record(), "released")
    with pytest.raises(ValueError, match="'conv2' is not a block of equal width"):
        paradigm(tables.COLLECTIVE, tables.INDIVIDUAL, ("conv2",), scores, shots=10)
    with pytest.raises(ValueError, match="one row per block"):
        paradigm(tables.COLLECTIVE, tables.INDIVIDUAL, ("conv5",), scores[1:], shots=10)
