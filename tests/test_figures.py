"""Figures show the numbers of their tables, name their units and keep families apart; sliders redraw from the record."""

import io
import itertools
import subprocess
import sys

import ipywidgets as widgets
import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from learngene_core.analysis import statistics
from learngene_core.config import Config
from learngene_core.criteria import CRITERIA, best_block, score, score_all
from learngene_core.explorer import threshold as explore
from learngene_core.figures.comparison import comparison, paired_dots, training_curves
from learngene_core.figures.data import division_overview, episode, image_rows, task_table
from learngene_core.figures.networks import growth, networks_side_by_side, shape_parameters
from learngene_core.figures.style import DIVERGING, METHOD_COLOURS, METHOD_LABELS, PART_COLOURS, use_style
from learngene_core.figures.training import (
    accuracy_matrix,
    criteria_panel,
    layer_task_heatmap,
    learning_curves,
    profile_with_null,
)
from learngene_core.presets import METHODS
from learngene_core.record import EDGES, N_BINS, Record, edge_index

LAYERS = tuple(f"conv{i}" for i in range(1, 7))
COLUMNS = ("norm", "rms", "norm_times_weight", "weight_norm", "relative_norm")


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        use_style()
        yield
        plt.close("all")


def make_record(n_tasks=3, n_epochs=2, n_null=4, seed=0):
    """A record whose deeper layers have smaller gradients; 500 entries per layer and epoch."""
    rng, shift = np.random.default_rng(seed), 12 * np.arange(len(LAYERS))

    def counts(*leading):
        bins = rng.normal(300 - shift, 15, (*leading, 500, len(LAYERS))).round().astype(int)
        below = rng.random(bins.shape) < 0.5
        flat = np.zeros((*leading, len(LAYERS), 2, N_BINS), dtype=np.int64)
        index = np.indices(bins.shape)
        np.add.at(flat, (*index[: len(leading)], index[-1], below.astype(int), bins), 1)
        return flat

    def table(*leading):
        rows = pd.MultiIndex.from_product([range(1, n + 1) for n in leading] + [LAYERS])
        frame = rows.to_frame(index=False, name=["task", "epoch", "layer"])
        frame = frame.assign(**{c: rng.uniform(0.5, 2, len(frame)) for c in COLUMNS})
        return frame.assign(
            n_weights=float(EDGES[265]) ** -2.0
        )  # a threshold relative to the layer falls among its entries

    rows = n_tasks * n_epochs
    return Record(
        layers=LAYERS,
        task=np.repeat(np.arange(1, n_tasks + 1), n_epochs),
        epoch=np.tile(np.arange(1, n_epochs + 1), n_tasks),
        counts=counts(rows),
        zeros=np.full((rows, len(LAYERS)), 7),
        null_counts=counts(n_null, n_tasks),
        null_zeros=np.full((n_null, n_tasks, len(LAYERS)), 7),
        table=table(n_tasks, n_epochs),
        null_table=table(n_null, n_tasks),
    )


def make_results(n_tasks=12, shots=(10,), n_inits=2, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        {"family": f, "method": m, "shots": s, "target_task": t, "init": i, "accuracy": rng.normal(40 + 8 * k, 5)}
        for f, methods in METHODS.items()
        for k, m in enumerate(methods)
        for s, t, i in itertools.product(shots, range(1, n_tasks + 1), range(n_inits if f != "none" else 1))
    ]
    return pd.DataFrame(rows)


def make_curves(shots=(10, 20), n_epochs=5):
    rows = [
        {
            "family": f,
            "method": m,
            "shots": s,
            "epoch": e,
            "loss": 2 / e + k,
            "loss_sd": 0.1,
            "accuracy": 50,
            "n_tasks": 9,
        }
        for f in ("light", "same_shape")
        for k, m in enumerate(METHODS[f])
        for s, e in itertools.product(shots, range(1, n_epochs + 1))
    ]
    return pd.DataFrame(rows)


def make_history():
    rng = np.random.default_rng(0)
    rows = []
    for task, epochs in ((1, 4), (2, 3), (3, 3)):
        rows += [(task, e, "train", task, rng.uniform(0, 2), rng.uniform(0, 100)) for e in range(1, epochs + 1)]
        rows += [(task, epochs, "test", on, np.nan, rng.uniform(0, 100)) for on in range(1, task + 1)]
    return pd.DataFrame(rows, columns=["task", "epoch", "phase", "on_task", "loss", "accuracy"])


def shape(widths, pools=(2, 4), n_classes=8, names=LAYERS, image_size=16):
    return {
        "names": list(names),
        "widths": list(widths),
        "pools": list(pools),
        "n_classes": n_classes,
        "image_size": image_size,
        "hidden": [10],
        "dropout": 0.0,
    }


COLLECTIVE = [shape((4, 4, 8, 8, 16, 16)), shape((4, 8, 8, 8, 16, 16)), shape((4, 8, 8, 12, 16, 32))]
INDIVIDUAL = shape((4, 12, 16, 32), (1, 2), 5, ("fresh1", "fresh2", "conv5", "conv6"))


def pictures(rows, k, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 250, (rows, k, 3, size, size), dtype=np.uint8)


def make_all():
    """Every figure of the package once: name -> its axes."""
    scores = score_all(make_record(), Config.preset("lecture"))
    matrix = make_history().query("phase == 'test'").pivot(index="task", columns="on_task", values="accuracy")
    groups = {"base": list("abcdef"), "open_world": list("gh"), "novel": list("ij")}
    tasks = [{"number": 1, "classes": ["latin-small-a", "digit-one"]}, {"number": 2, "classes": ["digit-one", "omega"]}]
    paired = statistics.paired_table(make_results(shots=(10, 20)))
    return {
        "image_rows": lambda: image_rows(pictures(3, 5), ["a", "latin-capital-b", "c"]),
        "episode": lambda: episode(pictures(5, 1), pictures(5, 6), ["a", "cyrillic-capital-hard-sign", *"cde"]),
        "division_overview": lambda: division_overview(groups, dict.fromkeys("aei", "vowel")),
        "task_table": lambda: task_table(tasks),
        "growth": lambda: growth(COLLECTIVE),
        "networks_side_by_side": lambda: networks_side_by_side(COLLECTIVE[-1], INDIVIDUAL, ("conv5", "conv6")),
        "learning_curves": lambda: learning_curves(make_history()),
        "accuracy_matrix": lambda: accuracy_matrix(matrix),
        "layer_task_heatmap": lambda: layer_task_heatmap(np.ones((3, 6)), LAYERS, "share", chosen=LAYERS[-2:]),
        "profile_with_null": lambda: profile_with_null(scores[scores["criterion"] == "released"], chosen=LAYERS[:2]),
        "criteria_panel": lambda: criteria_panel(scores, {"released": LAYERS[-3:]}),
        "training_curves": lambda: training_curves(make_curves()),
        "comparison": lambda: comparison(paired),
        "paired_dots": lambda: paired_dots(make_results(), "light", "learngene"),
        "draw_record": lambda: explore.draw_record(make_record(), threshold=1e-6),
    }


DRAWN = {
    "image_rows",
    "episode",
    "task_table",
    "growth",
    "networks_side_by_side",
}  # rows and columns carry names instead


# --- all figures ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", make_all())
def test_nothing_is_clipped_and_every_axis_has_a_name(name):
    axes = np.atleast_1d(np.asarray(make_all()[name](), dtype=object)).ravel()
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


def test_every_method_has_a_colour_of_its_own_also_for_the_colour_blind():
    methods = [m for known in METHODS.values() for m in known]
    assert set(METHOD_COLOURS) == set(METHOD_LABELS) == set(methods)
    assert len(set(METHOD_COLOURS.values())) == len(set(methods))
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    for matrix in (np.eye(3), np.array(deutan), np.array(protan)):  # Machado et al. 2009
        for family in METHODS.values():
            seen = [(matrix @ np.array(to_rgb(METHOD_COLOURS[m])) ** 2.2).clip(0, 1) ** (1 / 2.2) for m in family]
            assert all(np.linalg.norm(a - b) > 0.15 for a, b in itertools.combinations(seen, 2)), family


def test_drawing_and_exploring_need_no_torch():
    code = "import sys, learngene_core.figures, learngene_core.explore; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
    assert [t.get_text().split("\n")[0] for t in ax.get_xticklabels()][3] == "conv3+1"


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
    assert ax.collections[0].get_cmap().name == plt.get_cmap(DIVERGING).name


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
        profile_with_null(score_all(make_record(), Config.preset("lecture")))


def test_profile_says_when_its_axis_is_logarithmic():
    table = pd.DataFrame({"layer": LAYERS, "score": 0.01, "null": 1.0, "null_sd": 0.1})
    ax = profile_with_null(table, label="norm")
    assert ax.get_yscale() == "log" and ax.get_ylabel() == "norm (log)"
    assert profile_with_null(table.assign(score=0.5)).get_yscale() == "linear"


def test_criteria_panel_has_each_criterion_with_its_own_block():
    scores = score_all(make_record(), Config.preset("lecture"))
    chosen = {name: best_block(part, 2) for name, part in scores.groupby("criterion", sort=False)}
    axes = criteria_panel(scores, chosen)
    assert [ax.get_title().split("\n")[0] for ax in axes] == list(CRITERIA)
    for ax, name in zip(axes, CRITERIA, strict=True):
        wanted = scores[scores["criterion"] == name]["score"]
        np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), wanted)
        assert ax.patches[0].get_x() == LAYERS.index(chosen[name][0]) + 0.5


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
        assert upright == {"chance (25 %)": 25, "ncm (no training)": ncm}
        assert f"{shots} shots (n = 12 tasks)" in left.get_title()
    assert "%" in axes[-1, 0].get_xlabel() and "percentage points" in axes[-1, 1].get_xlabel()
    assert not axes[0, 1].get_shared_x_axes().joined(axes[0, 1], axes[2, 1])
    assert axes[0, 1].get_shared_x_axes().joined(axes[0, 1], axes[1, 1])


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
    np.testing.assert_allclose(ax.collections[0].get_offsets(), np.column_stack([wanted.index, wanted]))
    interval = statistics.mean_interval(wanted)
    band = ax.patches[0]
    np.testing.assert_allclose([band.get_y(), band.get_y() + band.get_height()], [interval.low, interval.high])
    assert "n = 12 tasks" in ax.get_title() and "percentage points" in ax.get_ylabel()


@pytest.mark.parametrize(
    "family, method, shots", [("light", "full", 10), ("none", "ncm", 10), ("light", "learngene", None)]
)
def test_paired_dots_refuse_what_is_not_there(family, method, shots):
    with pytest.raises(ValueError, match="light:scratch"):
        paired_dots(make_results(shots=(10, 20)), family, method, shots=shots)


# --- the explorer ---------------------------------------------------------------------------------------------------
def drawn_values(axes):
    return axes[0].collections[0].get_array().reshape(len(LAYERS), -1).filled(np.nan).T


def on_each_picture(monkeypatch, look):
    """Call look(axes) on every figure that an explorer turns into a picture."""
    monkeypatch.setattr(explore, "print_figure", lambda figure, **_: look(figure.axes) or b"")


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
    box = explore.threshold_explorer(record)
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
    box = explore.threshold_explorer(record)
    first = box.picture.value
    box.controls["normalisation"].value = "relative"
    second = plt.imread(io.BytesIO(box.picture.value))
    assert box.picture.value != first
    figure = explore.draw_record(record, normalisation="relative")[0].figure
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

    box = explore.explorer({"n": widgets.IntSlider(1, 1, 3)}, draw)
    assert box.error.value == "" and box.picture.layout.display != "none" == box.error.layout.display
    box.controls["n"].value = 2
    assert "ValueError: two &lt;of&gt; them" in box.error.value
    assert box.picture.layout.display == "none" != box.error.layout.display
    assert not plt.get_fignums(), "the half-drawn figure is let go"
    box.controls["n"].value = 3
    assert box.error.value == "" and box.picture.layout.display != "none" == box.error.layout.display


def test_no_explorer_uses_an_output_widget():
    """A notebook run by plain papermill can wait for the messages of one for ever."""
    box = explore.threshold_explorer(make_record())
    assert not [child for child in box.children if isinstance(child, widgets.Output)]
