"""Figures show the numbers of their tables, name their units and keep families apart."""

import itertools

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figuregallery import CFG, DRAWING
from figuretables import (
    COLLECTIVE,
    INDIVIDUAL,
    LAYERS,
    make_curves,
    make_gains,
    make_history,
    make_record,
    make_results,
    pictures,
    shape,
)

from learngene_core.analysis import statistics
from learngene_core.criteria import CRITERIA, best_block, score, score_all
from learngene_core.figures.comparison import comparison, gain_bars, paired_dots, training_curves, with_shares
from learngene_core.figures.data import division_overview, episode, image_rows, task_pictures, task_table
from learngene_core.figures.networks import growth, networks_side_by_side, shape_parameters
from learngene_core.figures.style import PART_COLOURS, diverging
from learngene_core.figures.training import (
    accuracy_matrix,
    criteria_panel,
    gradient_sizes,
    grown_cells,
    layer_task_heatmap,
    learning_curves,
    profile_with_null,
    profiles_with_null,
)
from learngene_core.figures.words import METHOD_LABELS, criterion_label
from learngene_core.presets import METHODS

pytestmark = pytest.mark.usefixtures("style")


DRAWN = {
    "image_rows",
    "episode",
    "task_table",
    "task_pictures",
    "growth",
    "networks_side_by_side",
}  # rows and columns carry names instead


# --- all figures ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", DRAWING)
def test_nothing_is_clipped_and_every_axis_has_a_name(name):
    axes = np.atleast_1d(np.asarray(DRAWING[name](), dtype=object)).ravel()
    figure = axes[0].figure
    figure.canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()  # inches
    assert min(drawn.x0, drawn.y0) > -0.05 and drawn.x1 < width + 0.05 and drawn.y1 < height + 0.05
    for ax in axes:
        for axis in (ax.xaxis, ax.yaxis):
            boxes = [t.get_window_extent() for t in axis.get_ticklabels() if t.get_text().strip() and t.get_visible()]
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes)), f"{name}: tick labels overlap"
        if legend := ax.get_legend():
            assert not legend.get_window_extent().overlaps(ax.bbox), f"{name}: the legend covers data"
        if name not in DRAWN and ax.get_subplotspec() is not None:
            assert ax.get_xlabel() or not ax.get_subplotspec().is_last_row() or name == "criteria_panel"


def test_figures_draw_into_given_axes_and_stay_white():
    figure, ax = plt.subplots()
    assert layer_task_heatmap(np.ones((2, 6)), LAYERS, "share", ax=ax) is ax
    assert paired_dots(make_results(), "light", "random", ax=plt.figure().gca()).figure is plt.gcf()
    assert figure.get_facecolor() == (1, 1, 1, 1)


# --- pictures -------------------------------------------------------------------------------------------------------
def test_image_rows_put_every_picture_at_its_class():
    pixels = pictures(3, 4)
    ax = image_rows(pixels, ["a", "b", "c"])
    sheet = ax.images[0].get_array()
    for row, column in itertools.product(range(3), range(4)):
        y, x = int(ax.get_yticks()[row]), int(ax.get_xticks()[column])
        assert (sheet[y, x] == pixels[row, column, :, 4, 4]).all()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="a name per row"):
        image_rows(pixels, ["a"])


def test_episode_keeps_support_and_query_apart():
    support, query = pictures(2, 3), pictures(2, 4, seed=1)
    ax = episode(support, query, ["a", "b"])
    sheet, x, y = ax.images[0].get_array(), ax.get_xticks(), ax.get_yticks()
    assert len(x) == 7 and (sheet[int(y[1]), int(x[2])] == support[1, 2, :, 4, 4]).all()
    assert (sheet[int(y[1]), int(x[3])] == query[1, 0, :, 4, 4]).all()
    assert {t.get_text().split("\n")[0] for t in ax.texts} == {"support", "query"}
    assert any("2 × 3" in t.get_text() for t in ax.texts)
    with pytest.raises(ValueError, match="do not fit"):
        episode(support, query[:1], ["a", "b"])


def test_division_counts_classes_per_super_class():
    groups = {"novel": ["i"], "base": ["a", "b", "e"], "open_world": ["c"]}
    ax = division_overview(groups, {"a": "vowel", "e": "vowel", "i": "vowel", "b": "consonant", "c": "consonant"})
    bars = {c.get_label(): [bar.get_width() for bar in c] for c in ax.containers}
    assert bars == {"base (3)": [1, 2], "open-world (1)": [1, 0], "novel (1)": [0, 1]}
    assert [t.get_text() for t in ax.get_yticklabels()] == ["consonant", "vowel"]
    assert len(division_overview(groups, {}).get_yticklabels()) == 1


def test_task_table_marks_exactly_the_classes_of_each_task():
    tasks = [{"number": 1, "classes": ("a", "b")}, {"number": 2, "classes": ("b", "c")}]
    ax = task_table(tasks)
    marked = (ax.images[0].get_array() != 0.95).any(-1)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"]
    assert marked.tolist() == [[True, True, False], [False, True, True]]
    assert "1.3 tasks on average" in ax.get_title()


def test_the_sequence_of_tasks_is_a_row_of_pictures_each():
    pixels = pictures(3, 4)
    ax = task_pictures(pixels, [1, 2, 3])
    sheet = ax.images[0].get_array()
    rows = [int(y) for y in ax.get_yticks()]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["task 1", "task 2", "task 3"]
    for row, y in enumerate(rows):
        assert (sheet[y, :8].transpose(1, 0) == pixels[row, 0, :, 4]).all()
    with pytest.raises(ValueError, match="a number per task"):
        task_pictures(pixels, [1])


# --- networks -------------------------------------------------------------------------------------------------------
def bars_of(ax, part):
    return [c for c in ax.containers if c.get_label() == f"_{part}"]


def test_growth_draws_widths_as_heights_and_says_what_is_new():
    ax = growth(COLLECTIVE)
    heights = [[bar.get_height() for bar in rows] for rows in bars_of(ax, "new")]
    assert heights == [[], *(s["widths"] for s in COLLECTIVE[1:])]
    assert [bar.get_height() for bar in bars_of(ax, "start")[2]] == COLLECTIVE[0]["widths"]
    second = [t for t in ax.texts if t.get_text() == "8" and t.xy[1] < -10 and t.xy[1] > -60]
    assert len(second) == 1, "row 2 numbers only the block that grew"
    assert len(growth([COLLECTIVE[0]] * 30, most_rows=5).get_yticks()) == 5


def test_growth_shows_a_block_that_was_inserted():
    deeper = shape((4, 4, 8, 8, 8, 16, 16), names=("conv1", "conv2", "conv3", "conv3+1", "conv4", "conv5", "conv6"))
    ax = growth([COLLECTIVE[0], deeper])
    assert [t.get_text().split("\n")[0] for t in ax.get_xticklabels()][3] == "3+1"


def test_predicted_parameters_are_those_of_the_network():
    torch = pytest.importorskip("torch")
    from learngene_core.network import ConvNet

    for wanted in (*COLLECTIVE, INDIVIDUAL):
        model = ConvNet.from_shape(wanted, generator=torch.Generator().manual_seed(0))
        assert shape_parameters(wanted) == sum(p.numel() for p in model.parameters())
        block = model.blocks[wanted["names"][1]]
        assert shape_parameters(wanted, wanted["names"][1:2]) == sum(p.numel() for p in block.parameters())


def test_inherited_blocks_have_one_colour_and_are_joined():
    ax = networks_side_by_side(COLLECTIVE[-1], INDIVIDUAL, ("conv5", "conv6"))
    blue = bars_of(ax, "inherited")
    assert [bar.get_height() for rows in blue for bar in rows] == [16, 32, 16, 32]
    lines = [line for line in ax.get_lines() if line.get_color() == PART_COLOURS["inherited"]]
    ends = {(x0, x1) for x0, x1 in (line.get_xdata() for line in lines)}
    centres = [bar.get_x() + bar.get_width() / 2 for rows in blue for bar in rows]
    assert ends == {(centres[0], centres[2]), (centres[1], centres[3])}
    total, kept = shape_parameters(INDIVIDUAL), shape_parameters(INDIVIDUAL, ("conv5", "conv6"))
    assert f"{total:,}" in ax.get_title() and f"{kept:,}" in ax.get_title()
    with pytest.raises(ValueError, match="'conv4' is not a block of equal width"):
        networks_side_by_side(COLLECTIVE[-1], shape((4,) * 6), ("conv4",))


# --- training and criteria ------------------------------------------------------------------------------------------
def test_learning_curves_count_epochs_over_tasks():
    history = make_history().sample(frac=1, random_state=0)  # rows in any order
    loss, accuracy = learning_curves(history)
    train = history[history["phase"] == "train"].sort_values(["task", "epoch"])
    drawn = np.concatenate([line.get_xydata() for line in loss.get_lines()])
    np.testing.assert_allclose(drawn, np.column_stack([np.arange(1, 11), train["loss"]]))
    own = history[(history["phase"] == "test") & (history["task"] == history["on_task"])].sort_values("task")
    points = np.column_stack([[4, 7, 10], own["accuracy"]])
    np.testing.assert_allclose(sorted(accuracy.collections[0].get_offsets().tolist()), points)
    assert "nats" in loss.get_ylabel() and "%" in accuracy.get_ylabel()


def test_accuracy_matrix_shows_percent_and_leaves_the_future_empty():
    matrix = pd.DataFrame([[90.0, np.nan], [40.4, 80.6]], index=[1, 2], columns=[1, 2])
    ax = accuracy_matrix(matrix)
    drawn = ax.collections[0].get_array().reshape(2, 2)
    np.testing.assert_array_equal(drawn.filled(np.nan), matrix)
    assert sorted(t.get_text() for t in ax.texts) == ["40", "81", "90"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2"] and "%" in ax.figure.axes[1].get_ylabel()


def test_chance_is_marked_in_the_colour_bar():
    matrix = pd.DataFrame([[90.0, np.nan], [40.4, 80.6]], index=[1, 2], columns=[1, 2])
    bar = accuracy_matrix(matrix, chance=12.5).figure.axes[1]
    assert "chance 12.5" in [t.get_text() for t in bar.get_yticklabels()]
    assert any(set(line.get_ydata()) == {12.5} for line in bar.get_lines())


def test_sizes_of_gradients_are_the_means_of_one_task():
    table = make_record().table
    left, right = gradient_sizes(table, 2)
    own = table[table["task"] == 2].groupby("layer", sort=False)
    lines = {line.get_label(): line.get_ydata() for ax in (left, right) for line in ax.get_lines()}
    np.testing.assert_allclose(lines["gradient"], own["norm"].mean())
    np.testing.assert_allclose(lines["gradient / weights"], own["relative_norm"].mean())
    np.testing.assert_allclose(gradient_sizes(table)[0].get_lines()[0].get_ydata(), table[table["task"] == 3]
                               .groupby("layer", sort=False)["weight_norm"].mean())  # fmt: skip


def test_widened_cells_are_marked_where_a_layer_has_more_weights_than_before():
    table = make_record().table
    table.loc[(table["layer"] == "conv2") & (table["task"] >= 2), "n_weights"] *= 2
    table.loc[(table["layer"] == "conv5") & (table["task"] >= 3), "n_weights"] *= 2
    assert grown_cells(table) == [(2, "conv2"), (3, "conv5")]
    ax = layer_task_heatmap(np.ones((3, 6)), LAYERS, "share", grown=grown_cells(table))
    dots = next(c for c in ax.collections if c.get_label() == "just widened")
    np.testing.assert_allclose(dots.get_offsets(), [[1.5, 1.5], [2.5, 4.5]])


def test_a_fixed_scale_of_the_heat_map_stays_and_says_where_values_go_beyond():
    ax = layer_task_heatmap(np.full((2, 6), 0.7), LAYERS, "share", vmin=0, vmax=0.5)
    mesh = ax.collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax, mesh.colorbar.extend) == (0, 0.5, "max")


def test_heat_map_has_layers_down_and_tasks_across():
    values = np.arange(12.0).reshape(2, 6)
    values[0, 3] = np.nan
    ax = layer_task_heatmap(values, LAYERS, "share of entries", chosen=("conv5", "conv6"), centre=5)
    drawn = ax.collections[0].get_array().reshape(6, 2)
    np.testing.assert_array_equal(drawn.filled(np.nan), values.T)
    assert [t.get_text() for t in ax.get_yticklabels()] == list(LAYERS)
    assert (ax.get_xlabel(), ax.figure.axes[1].get_ylabel()) == ("source task", "share of entries")
    assert ax.patch.get_hatch(), "a missing value looks like none of the colours"
    frame = ax.patches[-1]
    assert (frame.get_y(), frame.get_height(), frame.get_width()) == (4, 2, 2)
    assert ax.collections[0].get_cmap().name == diverging().name


def test_profile_shows_score_null_and_block():
    table = score(make_record(), "released", threshold=1e-6)
    ax = profile_with_null(table, chosen=("conv4", "conv5"))
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    np.testing.assert_allclose(lines["collective"], table["score"])
    np.testing.assert_allclose(lines["untrained networks, mean ± 2 sd"], table["null"])
    band = ax.collections[0].get_paths()[0].vertices
    for i, row in table.iterrows():
        at = band[band[:, 0] == i + 1][:, 1]
        np.testing.assert_allclose(
            [at.min(), at.max()], [row["null"] - 2 * row["null_sd"], row["null"] + 2 * row["null_sd"]]
        )
    assert (ax.patches[0].get_x(), ax.patches[0].get_width()) == (3.5, 2)
    with pytest.raises(ValueError, match="more than one criterion"):
        profile_with_null(score_all(make_record(), CFG))


def test_profile_says_when_its_axis_is_logarithmic():
    table = pd.DataFrame({"layer": LAYERS, "score": 0.01, "null": 1.0, "null_sd": 0.1})
    ax = profile_with_null(table, label="norm")
    assert ax.get_yscale() == "log" and ax.get_ylabel() == "norm (log)"
    assert profile_with_null(table.assign(score=0.5)).get_yscale() == "linear"


def test_criteria_panel_has_each_criterion_with_its_own_block():
    scores = score_all(make_record(), CFG)
    chosen = {name: best_block(part, 2) for name, part in scores.groupby("criterion", sort=False)}
    axes = criteria_panel(scores, chosen)
    assert [ax.get_title().split("\n")[0] for ax in axes] == [criterion_label(name) for name in CRITERIA]
    assert all("inherit where low" in [t.get_text() for t in ax.texts] for ax in axes)
    for ax, name in zip(axes, CRITERIA, strict=True):
        wanted = scores[scores["criterion"] == name]["score"]
        np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), wanted)
        assert ax.patches[0].get_x() == LAYERS.index(chosen[name][0]) + 0.5


def test_profiles_of_several_thresholds_share_one_axis():
    tables = {f"t = {t:g}": score(make_record(), "released", threshold=t) for t in (1e-6, 1e-3)}
    axes = profiles_with_null(tables, {title: best_block(table, 2) for title, table in tables.items()})
    assert axes[0].get_shared_y_axes().joined(axes[0], axes[1])
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        assert ax.get_title().startswith(title)
        np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), table["score"])


# --- comparisons ----------------------------------------------------------------------------------------------------
def test_training_curves_keep_families_and_shots_apart():
    curves = make_curves()
    axes = training_curves(pd.concat([curves, curves.iloc[:1].assign(family="none", method="ncm")]))
    assert axes.shape == (2, 2)
    for (i, shots), (j, family) in itertools.product(enumerate((10, 20)), enumerate(("light", "same_shape"))):
        lines = {line.get_label(): line.get_ydata() for line in axes[i, j].get_lines()}
        assert set(lines) == {METHOD_LABELS[m] for m in METHODS[family]}
        part = curves[(curves["family"] == family) & (curves["shots"] == shots) & (curves["method"] == "learngene")]
        np.testing.assert_allclose(lines["learngene"], part["loss"])
        assert f"{shots} shots (n = 9 tasks)" in axes[i, j].get_title()


def test_query_accuracy_is_drawn_where_the_table_has_it():
    curves = make_curves(shots=(10,)).assign(query_accuracy=lambda c: 20 + c["epoch"])
    axes = training_curves(curves, n_way=4)
    lines = {line.get_label(): line.get_ydata() for line in axes[0, 0].get_lines()}
    np.testing.assert_allclose(lines["learngene"], 20 + np.arange(1, 6))
    assert set(lines["chance (25 %)"]) == {25} and "query accuracy" in axes[0, 0].get_ylabel()


def test_a_scratch_of_its_own_has_the_colour_of_its_block():
    curves = make_curves(shots=(10,)).query("family == 'light' and method in ['scratch', 'learngene', 'first']")
    blocks = {"learngene": "conv4-conv6", "first": "conv1-conv3"}
    own = [curves[curves["method"].isin(["scratch", m])].assign(block=b) for m, b in blocks.items()]
    lines = {line.get_label(): line for line in training_curves(pd.concat(own))[0, 0].get_lines()}
    for method, block in (("learngene", "conv4–6"), ("first", "conv1–3")):
        thick, thin = lines[METHOD_LABELS[method]], lines[f"scratch (shape of {block})"]
        assert thick.get_color() == thin.get_color() and thick.get_linewidth() > thin.get_linewidth()
        assert thick.get_linestyle() == "-" != thin.get_linestyle()


def dots(ax):
    return np.array([c.get_offsets()[0] for c in ax.collections])


def test_comparison_draws_the_paired_table_and_never_mixes_families():
    paired = statistics.paired_table(make_results(shots=(20, 10)))
    axes = comparison(paired, n_way=4)
    assert axes.shape == (4, 2)
    for (left, right), (family, shots) in zip(axes, itertools.product(("light", "same_shape"), (10, 20)), strict=True):
        part = paired[(paired["family"] == family) & (paired["shots"] == shots)].set_index("method")
        names = [t.get_text() for t in left.get_yticklabels()]
        assert set(names) == {METHOD_LABELS[m] for m in METHODS[family]}
        order = [next(m for m, label in METHOD_LABELS.items() if label == name) for name in names]
        np.testing.assert_allclose(dots(left)[:, 0], part.loc[order, "accuracy"])
        gains = [m for m in order if m != "scratch"]
        np.testing.assert_allclose(dots(right)[:, 0], part.loc[gains, "gain"])
        whiskers = [line.get_xdata() for line in right.get_lines() if len(set(line.get_ydata())) == 1]
        np.testing.assert_allclose(whiskers, part.loc[gains, ["gain_low", "gain_high"]])
        upright = {
            line.get_label(): line.get_xdata()[0] for line in left.get_lines() if not line.get_label().startswith("_")
        }
        ncm = paired[(paired["family"] == "none") & (paired["shots"] == shots)]["accuracy"].item()
        assert upright == {"chance (25 %)": 25, "nearest class mean (no training)": ncm}
        assert f"{shots} shots (n = 12 tasks)" in left.get_title()
    assert "%" in axes[-1, 0].get_xlabel() and "percentage points" in axes[-1, 1].get_xlabel()
    assert all(axes[0, 1].get_shared_x_axes().joined(axes[0, 1], ax) for ax in axes[1:, 1]), "one axis for all gains"


def test_comparison_without_reference_interval_or_rivals():
    results = make_results()
    alone = comparison(statistics.paired_table(results[results["family"] == "none"]))
    assert alone.shape == (1, 2) and len(dots(alone[0, 0])) == 1 and len(dots(alone[0, 1])) == 0
    no_scratch = results[(results["family"] == "light") & (results["method"] != "scratch")]
    right = comparison(statistics.paired_table(no_scratch))[0, 1]
    assert {t.get_text() for t in right.texts} == {"no reference"}
    one = comparison(statistics.paired_table(results[results["target_task"] == 1]))
    assert "(n = 1 task)" in one[0, 0].get_title() and "[" not in one[0, 0].texts[0].get_text()


def test_paired_dots_are_the_differences_on_each_task():
    results = make_results(shots=(10, 20))
    ax = paired_dots(results, "same_shape", "full", shots=20)
    part = results[(results["family"] == "same_shape") & (results["shots"] == 20)]
    means = part.groupby(["method", "target_task"])["accuracy"].mean()
    wanted = means["full"] - means["scratch"]
    band, points = ax.collections
    np.testing.assert_allclose(points.get_offsets(), np.column_stack([range(1, 13), sorted(wanted)]))
    interval = statistics.mean_interval(wanted)
    heights = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [interval.low, interval.high])
    assert "n = 12 tasks" in ax.get_title() and "percentage points" in ax.get_ylabel()


@pytest.mark.parametrize(
    "family, method, shots", [("light", "full", 10), ("none", "ncm", 10), ("light", "learngene", None)]
)
def test_paired_dots_refuse_what_is_not_there(family, method, shots):
    with pytest.raises(ValueError, match="light:scratch"):
        paired_dots(make_results(shots=(10, 20)), family, method, shots=shots)


def in_blocks():
    """results.csv with two light blocks, each with a scratch of its own shape."""
    results = make_results()
    light = results[(results["family"] == "light") & results["method"].isin(["scratch", "learngene"])]
    first = light.assign(block="conv1-conv3", accuracy=light["accuracy"] + 9)
    first["method"] = first["method"].replace("learngene", "first")
    others = results[results["family"] != "light"].assign(block="conv1-conv6")
    return pd.concat([light.assign(block="conv4-conv6"), first, others])


def test_each_block_is_compared_with_the_scratch_of_its_own_shape():
    results = in_blocks()
    paired = statistics.paired_table(results, keys=("family", "block", "shots"))
    left, right = comparison(paired)[0]
    names = [t.get_text() for t in left.get_yticklabels()]
    assert names == ["scratch, conv4–6", "learngene, conv4–6", "scratch, conv1–3", "first blocks, conv1–3"]
    wanted = paired.set_index(["family", "method"])["gain"]
    np.testing.assert_allclose(dots(right)[:, 0], wanted["light"].loc[["learngene", "first"]])
    ax = paired_dots(results, "light", ["learngene", "first"])
    drawn = [c.get_offsets()[:, 1].mean() for c in ax.collections[1::2]]
    np.testing.assert_allclose(drawn, wanted["light"].loc[["learngene", "first"]])


def test_the_inherited_share_stands_beside_the_gain():
    sizes = {"learngene": 48, "learngene_ewc": 48, "random": 48, "first": 9, "full": 1000}
    results = make_results().assign(inherited_parameters=lambda r: r["method"].map(sizes).fillna(0))
    shared = with_shares(statistics.paired_table(results), results, 1000)
    own = shared.set_index(["family", "method"])["share"]
    assert own["light", "learngene"] == pytest.approx(4.8) and own["same_shape", "full"] == 100
    words = " ".join(t.get_text() for t in comparison(shared)[1, 1].texts)
    assert "inherits 4.8 %" in words and "inherits 0.9 %" in words and "inherits 100 %" in words


def test_bars_of_gains_have_one_axis_and_say_what_they_inherit():
    table = make_gains()
    axes = gain_bars(table)
    assert axes[0].get_shared_x_axes().joined(*axes)
    for ax, family in zip(axes, ("light", "same_shape"), strict=True):
        part = table[table["family"] == family]
        widths = sorted(bar.get_width() for bars in ax.containers for bar in bars if bar.get_width())
        np.testing.assert_allclose(widths, sorted(part["gain"]))
        spans = sorted(tuple(line.get_xdata()) for line in ax.get_lines() if len(set(line.get_ydata())) == 1)
        np.testing.assert_allclose(spans, sorted(zip(part["gain_low"], part["gain_high"], strict=True)))
        assert sum("inherits 0.9 %" in t.get_text() for t in ax.texts) == 2
    assert [t.get_text() for t in axes[0].figure.legends[0].get_texts()] == ["glyphs", "CIFAR-100"]
