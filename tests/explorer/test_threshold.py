"""Sliders over the gradient record redraw from it, let go of old figures, and say why where a drawing fails."""

import io

import ipywidgets as widgets
import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figuretables import LAYERS, make_record

from learngene_core.criteria import best_block, score
from learngene_core.explorer import sliders
from learngene_core.explorer import threshold as explore
from learngene_core.record import EDGES, edge_index

pytestmark = pytest.mark.usefixtures("style")


def drawn_values(axes):
    return axes[0].collections[0].get_array().reshape(len(LAYERS), -1).filled(np.nan).T


def on_each_picture(monkeypatch, look):
    """Call look(axes) on every figure that an explorer turns into a picture."""
    monkeypatch.setattr(sliders, "print_figure", lambda figure, **_: look(figure.axes) or b"")


def test_draw_record_shows_what_the_criterion_scores():
    record, options = make_record(), {"threshold": 1e-6, "sign": "absolute"}
    table = score(record, "released", **options)
    axes = explore.draw_record(record, n_blocks=2, **options)
    np.testing.assert_allclose(axes[1].get_lines()[1].get_ydata(), table["score"])
    np.testing.assert_allclose(axes[1].get_lines()[0].get_ydata(), table["null"])
    assert " to ".join(best_block(table, 2)) in axes[1].get_title() and "|entry| > 1e-06" in axes[0].get_title()
    z = explore.layer_task_values(record, normalisation="z", **options)[1]
    np.testing.assert_allclose(z["score"], table["z"])


def test_normalisation_and_aggregation():
    record = make_record()
    last, _ = explore.layer_task_values(record, threshold=1e-6, aggregation="last")
    np.testing.assert_allclose(last, record.fraction(1e-6)[record.epoch == 2])
    relative, table = explore.layer_task_values(record, threshold=1e-6, normalisation="relative")
    np.testing.assert_allclose(relative.mean(1), 1)
    np.testing.assert_allclose(table["null"].mean(), 1)
    with pytest.raises(ValueError, match="unknown choice 'ratio'"):
        explore.draw_record(record, normalisation="ratio")


@pytest.mark.parametrize("normalisation", explore.NORMALISATIONS)
@pytest.mark.parametrize("threshold", [0, 900.0])
@pytest.mark.filterwarnings("error")
def test_a_threshold_that_cannot_choose_says_so(threshold, normalisation):
    axes = explore.draw_record(make_record(), threshold=threshold, normalisation=normalisation)
    axes[0].figure.canvas.draw()
    assert axes[1].get_title().startswith("no choice" if threshold else "chosen")


def test_thresholds_are_edges_within_the_record_and_hold_the_released_ones():
    record = make_record()
    values = explore.thresholds(record)
    assert 5e-10 in values and 5e-4 in values and values == sorted(set(values))
    np.testing.assert_allclose([EDGES[edge_index(v)] for v in values], values, rtol=1e-5)
    inside = record.fraction(values[0], "absolute")
    assert (inside > 0).any() and len({edge_index(v) for v in values}) == len(values)


def test_moving_a_control_redraws_from_the_record(monkeypatch):
    record, shown = make_record(), []
    on_each_picture(monkeypatch, lambda axes: shown.append((drawn_values(axes), axes[1].get_title())))
    box = explore.threshold_explorer(record, threshold=5e-10)
    assert box.controls["threshold"].value == 5e-10 and len(shown) == 1
    threshold = explore.thresholds(record)[len(explore.thresholds(record)) // 2]
    box.controls["threshold"].value = threshold
    box.controls["sign"].value = "absolute"
    box.controls["aggregation"].value = "last"
    box.controls["n_blocks"].value = 1
    options = [(5e-10, "positive"), (threshold, "positive"), (threshold, "absolute")]
    for (values, title), (at, sign) in zip(shown[:3], options, strict=True):
        wanted = record.fraction(at, sign).reshape(3, 2, -1).mean(1)
        np.testing.assert_allclose(values, wanted)
        assert title == "chosen: conv4 to conv6" or at == 5e-10
    np.testing.assert_allclose(shown[3][0], record.fraction(threshold, "absolute")[record.epoch == 2])
    assert len(shown) == 5 and shown[4][1].count("conv") == 1
    assert not plt.get_fignums(), "figures of earlier positions are let go"


def test_an_explorers_picture_is_the_png_of_its_figure():
    record = make_record()
    box = explore.threshold_explorer(record, threshold=5e-10)
    first = box.picture.value
    box.controls["normalisation"].value = "relative"
    second = plt.imread(io.BytesIO(box.picture.value))
    assert box.picture.value != first
    figure = explore.draw_record(record, threshold=5e-10, normalisation="relative")[0].figure
    figure.canvas.draw()
    assert second.shape[1] == pytest.approx(figure.canvas.get_width_height()[0], rel=0.05)  # the size of inline figures
    box.controls["normalisation"].value = "share"
    assert box.picture.value == first


def test_a_redraw_that_fails_says_why_in_place_of_the_picture():
    def draw(n):
        axes = plt.subplots(1, 2)[1]
        if n == 2:
            raise ValueError("two <of> them")
        return axes

    box = sliders.explorer({"n": widgets.IntSlider(1, 1, 3)}, draw)
    assert box.error.value == "" and box.picture.layout.display != "none" == box.error.layout.display
    box.controls["n"].value = 2
    assert "ValueError: two &lt;of&gt; them" in box.error.value
    assert box.picture.layout.display == "none" != box.error.layout.display
    assert not plt.get_fignums(), "the half-drawn figure is let go"
    box.controls["n"].value = 3
    assert box.error.value == "" and box.picture.layout.display != "none" == box.error.layout.display


def test_no_explorer_uses_an_output_widget():
    """A notebook run by plain papermill can wait for the messages of one for ever."""
    box = explore.threshold_explorer(make_record(), threshold=5e-10)
    assert not [child for child in box.children if isinstance(child, widgets.Output)]
