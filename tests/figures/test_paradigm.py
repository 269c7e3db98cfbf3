"""The picture of the paradigm tells the truth of its run: widths to scale, who chose, whether the network grew."""

import itertools

import matplotlib

matplotlib.use("agg")

import numpy as np
import pytest
from figuretables import COLLECTIVE, INDIVIDUAL, LAYERS, make_record
from matplotlib.colors import to_rgba

from learngene_core.criteria import best_block, score
from learngene_core.figures.paradigm import paradigm
from learngene_core.figures.style import METHOD_COLOURS

pytestmark = pytest.mark.usefixtures("style")


def drawn():
    scores = score(make_record(), "released", threshold=5e-10)
    return paradigm(COLLECTIVE, INDIVIDUAL, LAYERS[-2:], scores, shots=10)


def test_the_paradigm_draws_the_blocks_of_its_run_to_scale():
    ax = drawn()
    bars = {part: [c for c in ax.containers if c.get_label() == f"_{part}"] for part in ("start", "grown", "inherited")}
    assert [len(bars[part]) for part in ("start", "grown")] == [3, 3], "first, middle and last network"
    heights = [np.array([bar.get_height() for bar in row]) for row in bars["grown"]]
    for row, shape in zip(heights, COLLECTIVE, strict=True):
        assert np.allclose(row / row[0] * shape["widths"][0], shape["widths"])
    blue = [bar for c in bars["inherited"] for bar in c]
    assert len(blue) == 4 and {to_rgba(METHOD_COLOURS["learngene"])} == {bar.get_facecolor() for bar in blue}
    collective, individual = blue[:2], blue[2:]
    assert [round(b.get_height(), 6) for b in collective] == [round(b.get_height(), 6) for b in individual]
    words = " ".join(" ".join(t.get_text().split()) for t in ax.texts)
    assert "learns 3 tasks" in words and "5 new classes, 10 images each" in words and "conv5 to conv6" in words


def test_the_paradigm_says_who_chose():
    scores = score(make_record(), "released", threshold=5e-10)
    best = best_block(scores, 2)
    assert best == ("conv5", "conv6")
    assert any("Lowest in" in " ".join(t.get_text().split()) for t in drawn().texts)
    first = {**INDIVIDUAL, "names": ["conv1", "conv2", "a", "b"], "widths": [4, 8, 8, 8]}
    ax = paradigm(COLLECTIVE, first, ("conv1", "conv2"), scores, shots=10)
    assert any("Inherited here: conv1 to conv2" in " ".join(t.get_text().split()) for t in ax.texts)


def test_the_paradigm_of_a_network_that_does_not_grow_says_so():
    scores = score(make_record(n_tasks=1), "released_cv")  # no value: there is but one task
    ax = paradigm(COLLECTIVE[-1:], INDIVIDUAL, LAYERS[-2:], scores, shots=1)
    ax.figure.canvas.draw()
    words = " ".join(" ".join(t.get_text().split()) for t in ax.texts)
    assert "learns 1 task." in words and "widened" not in words and "Grow" not in words
    assert "grown since task 1" not in {t.get_text() for t in ax.get_legend().get_texts()}


def test_the_paradigm_shows_a_null_only_where_it_is_given():
    scores = score(make_record(), "released", threshold=5e-10)
    lines = {}
    for name, table in {"with": scores, "without": scores.drop(columns="null")}.items():
        ax = paradigm(COLLECTIVE, INDIVIDUAL, LAYERS[-2:], table, shots=10)
        lines[name] = sum(np.isfinite(line.get_ydata()).all() for line in ax.get_lines())
        assert any("untrained" in t.get_text() for t in ax.texts) == (name == "with")
    assert lines["with"] == lines["without"] + 1


def test_no_words_of_the_paradigm_overlap():
    ax = drawn()
    ax.figure.canvas.draw()
    boxes = [(t.get_text(), t.get_window_extent()) for t in ax.texts if t.get_text().strip()]
    assert not [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)]


def test_the_paradigm_refuses_what_does_not_fit():
    scores = score(make_record(), "released", threshold=5e-10)
    with pytest.raises(ValueError, match="'conv2' is not a block of equal width"):
        paradigm(COLLECTIVE, INDIVIDUAL, ("conv2",), scores, shots=10)
    with pytest.raises(ValueError, match="one row per block"):
        paradigm(COLLECTIVE, INDIVIDUAL, ("conv5",), scores[1:], shots=10)
