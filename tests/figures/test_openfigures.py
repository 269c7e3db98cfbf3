"""Figures of the open world and of the theory draw what their tables hold, cut nothing off and hide no line."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figuregallery import PIXELS
from figuretables import make_images, make_learning, make_openworld

from learngene_core.explorer import openworld as openexplore
from learngene_core.figures import openworld
from learngene_core.figures.words import OPEN_SCORE_LABELS, WAY_GROUPS, WAY_LABELS

pytestmark = pytest.mark.usefixtures("style")


def test_histograms_hold_every_image_and_their_axis_has_a_unit():
    images = make_images()
    images.loc[images.index[images["part"] == "unknown"][0], "msp"] = -60.0  # far out: it stays where it is
    axes = openworld.score_distributions(images)
    assert [ax.get_title() for ax in axes] == ["largest probability", "largest logit", "relative Mahalanobis"]
    for ax, score in zip(axes, ("msp", "maxlogit", "relative_mahalanobis"), strict=True):
        for bars, part in zip(ax.containers, ("test", "unknown"), strict=True):
            own = images.loc[images["part"] == part, score]
            assert sum(bar.get_height() for bar in bars) == pytest.approx(100)
            assert bars[0].get_x() <= own.min() and bars[-1].get_x() + bars[-1].get_width() >= own.max() - 1e-9
        assert ax.get_xlabel() == openworld.UNITS[score]
    assert "%" in axes[0].get_ylabel() and axes[0].get_xlim()[0] < -59


def test_areas_in_legends_are_those_of_the_curves():
    images = make_images()
    known, unknown = openworld.split(images, "msp")
    wanted = openworld.metrics(known["msp"], unknown["msp"], (known["predicted"] == known["class_name"]).to_numpy())
    labels = openworld.roc_with_band(images, "msp", n_resamples=5).get_legend_handles_labels()[1]
    assert f"largest probability: AUROC {wanted['auroc']:.1f}" in labels
    labels = openworld.oscr_curves(images).get_legend_handles_labels()[1]
    assert f"largest probability: OSCR {wanted['oscr']:.1f}" in labels
    with pytest.raises(ValueError, match="no score 'mps'"):
        openworld.split(images, "mps")


def test_scores_of_one_classifier_share_a_line_and_none_is_hidden():
    table = make_openworld()
    left, right = openworld.over_tasks(table)
    lines = {line.get_label(): tuple(line.get_ydata()) for line in right.get_lines()}
    assert set(lines) == {"head (largest probability, largest logit)", "relative Mahalanobis", "chance"}
    assert len(set(lines.values())) == len(lines), "no line lies on another"
    drawn = {line.get_label(): line.get_ydata() for line in left.get_lines()}
    for score in ("msp", "maxlogit", "relative_mahalanobis"):
        np.testing.assert_allclose(drawn[OPEN_SCORE_LABELS[score]], table.loc[table["score"] == score, "auroc"])


def test_ways_of_learning_stand_in_their_groups():
    table = make_learning()
    ax = openworld.learning(table)
    wanted = [way for ways in WAY_GROUPS.values() for way in ways]
    assert [t.get_text() for t in ax.get_yticklabels()] == [WAY_LABELS[way] for way in wanted]
    np.testing.assert_allclose(
        [x for x, _ in ax.collections[1].get_offsets()], table.set_index("method").loc[wanted, "old_accuracy"]
    )
    assert [t.get_text() for t in ax.texts] == list(WAY_GROUPS)
    few = openworld.learning(table[table["method"].isin(["before", "ewc"])])
    assert [t.get_text() for t in few.texts] == ["no protection", "EWC"]


def test_a_gallery_has_a_row_per_entry():
    assert len(openworld.gallery({"some": PIXELS[:3], "none": PIXELS[:0]})) == 2


def test_the_threshold_puts_every_image_in_one_place():
    images = make_images()
    shown = images[images["part"].isin(openexplore.PARTS)]
    for threshold in (-np.inf, float(shown["ncm"].median()), np.inf):
        groups = openworld.threshold_counts(shown, "ncm", threshold)
        assert pd.concat(groups.values()).index.sort_values().equals(shown.index.sort_values())
        for rows, (known, _) in zip(groups.values(), openworld.GROUPS.values(), strict=True):
            assert (rows["known"] == known).all()


def test_the_explorer_redraws():
    box = openexplore.openworld_explorer(make_images(), PIXELS)
    drawn = [bytes(box.picture.value)]
    for name, value in (("keep", 80.0), ("score", "energy")):
        box.controls[name].value = value
        drawn.append(bytes(box.picture.value))
    assert len({*drawn}) == 3 and all(picture.startswith(b"\x89PNG") for picture in drawn)
    assert box.error.value == "" and not plt.get_fignums()
