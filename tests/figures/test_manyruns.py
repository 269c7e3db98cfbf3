"""Figures of many runs: sweeps look right with one place on the axis and with many, ancestors are points over their quality."""

import matplotlib

matplotlib.use("agg")

import numpy as np
import pandas as pd
import pytest
from figuregallery import COSTS, LIGHT, MANY
from figuretables import make_across, make_ancestors
from matplotlib.collections import LineCollection, PathCollection

from learngene_core.analysis.ancestor_tables import choice_costs as choice_table
from learngene_core.errors import StudyError
from learngene_core.figures.ancestors import choice_costs, gain_against_quality, light_atlas
from learngene_core.figures.style import BLOCK_COLOURS
from learngene_core.figures.sweep import over_axis
from learngene_core.figures.words import METHOD_LABELS
from learngene_core.presets import METHODS

pytestmark = pytest.mark.usefixtures("style")


@pytest.mark.parametrize("name", MANY)
def test_nothing_is_clipped(name):
    figure = MANY[name]()[0]
    figure = np.ravel(figure)[0].figure
    figure.canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()  # inches
    assert min(drawn.x0, drawn.y0) > -0.05 and drawn.x1 < width + 0.05 and drawn.y1 < height + 0.05


def test_a_sweep_joins_the_places_of_a_method():
    accuracy, gains = make_across()
    axes = over_axis(accuracy, gains, "shots")
    assert axes.shape == (2, 2)
    for (left, right), family in zip(axes, ("light", "same_shape"), strict=True):
        for ax, table in ((left, accuracy), (right, gains)):
            drawn = [list(line.get_ydata()) for line in ax.get_lines() if len(line.get_ydata()) == 3]
            own = table[table["family"] == family].sort_values("shots")
            assert all(list(part["estimate"]) in drawn for _, part in own.groupby("method"))
        assert [t.get_text() for t in left.get_xticklabels()] == ["5", "10", "20"] and "n = 5" in left.get_title()
    assert "over seeds" in axes[0, 0].figure.get_suptitle()


def test_a_single_place_has_a_row_per_method_with_its_numbers():
    accuracy, gains = make_across((10,))
    axes = over_axis(accuracy, gains, "shots")
    for (left, right), family in zip(axes, ("light", "same_shape"), strict=True):
        methods = [*METHODS[family], "ncm"]
        code = {label: name for name, label in METHOD_LABELS.items()}
        names = [code[t.get_text()] for t in left.get_yticklabels()]
        assert set(names) == set(methods) and "10 shots" in left.get_title()
        own = pd.concat([accuracy[accuracy["family"].isin([family, "none"])]]).set_index("method")["estimate"]
        np.testing.assert_allclose([c.get_offsets()[0][0] for c in left.collections], own.loc[names])
        paired = gains[gains["family"] == family].set_index("method")["estimate"]
        drawn = [name for name in names if name in paired.index]
        np.testing.assert_allclose([c.get_offsets()[0][0] for c in right.collections], paired.loc[drawn])


def test_a_sweep_without_trained_methods_says_so():
    accuracy, gains = make_across()
    axes = over_axis(accuracy[accuracy["family"] == "none"], gains[:0], "shots")
    assert "nothing" in axes[0, 0].texts[0].get_text()


def test_every_ancestor_is_a_point_with_its_interval():
    table = make_ancestors()
    axes = gain_against_quality(table)
    assert [ax.get_title() for ax in axes] == [
        "glyphs: a point per ancestor (n = 16)",
        "CIFAR-100: a point per ancestor (n = 16)",
    ]
    for ax, data in zip(axes, ("glyphs", "cifar100"), strict=True):
        own = table[table["data"] == data]
        points = np.concatenate([c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)])
        assert sorted(map(tuple, points.tolist())) == sorted(zip(own["ncm"], own["gain"], strict=True))
        spans = [
            tuple(path.vertices[:, 1])
            for c in ax.collections
            if isinstance(c, LineCollection)
            for path in c.get_paths()
        ]
        assert sorted(spans) == sorted(zip(own["gain_low"], own["gain_high"], strict=True))
    words = {t.get_text() for ax in axes for t in ax.get_legend().get_texts()}
    assert {"last three", "longest prefix", "task after task", "all classes at once"} <= words


def test_blocks_can_be_picked_and_what_is_not_there_is_named():
    table = make_ancestors()
    (ax,) = gain_against_quality(table[table["data"] == "glyphs"], block="last three")
    assert {t.get_text() for t in ax.get_legend().get_texts()} >= {"last three"}
    assert "first three" not in {t.get_text() for t in ax.get_legend().get_texts()} and "last three" in BLOCK_COLOURS
    with pytest.raises(ValueError, match="no block 'conv4'"):
        gain_against_quality(table, block="conv4")
    with pytest.raises(StudyError, match="table of ancestors"):
        gain_against_quality(table[:0])


def heights(ax, axis):
    return sorted(float(p[axis]) for c in ax.collections if isinstance(c, PathCollection) for p in c.get_offsets())


def test_the_light_atlas_parts_prefixes_from_windows():
    left, right = light_atlas(LIGHT)
    prefix = LIGHT["first"] == 1
    assert heights(left, 1) == sorted(LIGHT.loc[prefix, "gain"]) and heights(right, 1) == sorted(
        LIGHT.loc[~prefix, "gain"]
    )
    assert [t.get_text() for t in left.get_xticklabels()] == ["1", "2", "9"]
    assert [t.get_text() for t in right.get_xticklabels()] == ["2\N{EN DASH}4", "11\N{EN DASH}13"]
    with pytest.raises(StudyError, match="light atlas"):
        light_atlas(LIGHT[:0])


def test_the_cost_of_a_choice_has_a_row_per_criterion_and_nothing_where_it_is_not_defined():
    ax = choice_costs(COSTS)
    assert heights(ax, 0) == sorted(COSTS["cost"])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["entries above the threshold", "H-score"]


def test_costs_are_means_over_ancestors_of_one_kind():
    regret = pd.DataFrame({
        "criterion": ["a", "a", "a", "b", "longest_prefix"], "ancestor": ["joint", "joint", "ewc", "joint", "joint"],
        "scope": "within budget", "tasks": "pseudo", "over_prefix": [-3.0, -5.0, 1.0, np.nan, 0.0],
    })  # fmt: skip
    other = regret.assign(tasks="novel", over_prefix=99.0)
    table = choice_table(pd.concat([regret, other])).set_index(["criterion", "ancestor"])
    assert table["cost"].to_dict() == {("a", "joint"): -4.0, ("a", "ewc"): 1.0} and table["n"].tolist() == [2, 1]
