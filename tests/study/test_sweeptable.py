"""The table of a sweep, and what several sweeps and runs say together, across seeds."""

from __future__ import annotations

import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from learngene_core.analysis import statistics
from learngene_core.config import Config
from learngene_core.errors import StudyError, write_json
from learngene_core.figures import sweep as sweepfigures
from learngene_core.runs.run import parameters_of
from learngene_core.study import sweeptable
from learngene_core.study.chain import Chain
from learngene_core.study.grid import load_grid
from learngene_core.study.sweeptable import ALONG, contrasts

matplotlib.use("Agg")


def finished_sweep(tmp_path, text, rows):
    """A sweep whose points were not computed but made up: rows(cfg) -> DataFrame."""
    path = tmp_path / "made.yaml"
    path.write_text(text)
    found, folder = load_grid(path), tmp_path / "sweep"
    for point in found.points:
        (folder / point.name).mkdir(parents=True)
        rows(point.cfg).to_csv(folder / point.name / found.table, index=False)
    states = {
        p.name: {
            "state": "finished",
            "parameters": {k: v for k, v in parameters_of(p.cfg, folder).items() if k != "out"},
        }
        for p in found.points
    }
    write_json(folder / "sweep.json", {"grid": found.name, "points": states})
    return found, folder, sweeptable.write_table(found, found.points, folder)


def individuals(cfg):
    """One row per method, task and set of weights; accuracies hang on everything that may be confused."""
    rng = np.random.default_rng([cfg.seed, cfg.target_seed, cfg.n_source_tasks, *cfg.shots])
    rows = []
    for shots in cfg.shots:
        for method, inherited in {"scratch": "nothing", "learngene": "conv11-conv13", "first": "conv1-conv3"}.items():
            for task, init in itertools.product(range(1, 4), (1, 2)):
                accuracy = 50 + 5 * cfg.seed + shots + rng.normal()
                rows.append(("same_shape", method, shots, task, init, accuracy, inherited))
    columns = ["family", "method", "shots", "target_task", "init", "accuracy", "inherited"]
    return pd.DataFrame(rows, columns=columns).assign(final_loss=0.5, rate=0.02, inherited_parameters=100)


def test_the_table_has_every_row_with_its_point_and_parameters(tmp_path):
    text = "preset: smoke\nparameters: {n_inits: 2}\nproduct: {seed: [0, 1], shots: [5, [5, 10]], layers: [[], [conv1, conv2]]}"
    found, folder, table = finished_sweep(tmp_path, text, individuals)
    read = pd.read_csv(folder / "sweep.csv", keep_default_na=False)
    assert list(read.columns[:4]) == ["point", "seed", "set_shots", "layers"]  # shots is the table's own
    assert len(read) == sum(len(individuals(p.cfg)) for p in found.points)
    for point in found.points:
        rows = read[read["point"] == point.name]
        pd.testing.assert_frame_equal(
            rows[individuals(point.cfg).columns].reset_index(drop=True), individuals(point.cfg)
        )
        assert set(rows["seed"]) == {point.cfg.seed}
        assert set(rows["set_shots"].astype(str)) == {"+".join(map(str, point.cfg.shots))}
        assert set(rows["layers"]) == {"+".join(point.cfg.layers)}
    assert list(dict.fromkeys(read["point"])) == [p.name for p in found.points]


def test_intervals_are_over_seeds_and_pairs_within_a_run(tmp_path):
    """By hand: means over tasks and weights within each seed, then t over the seeds."""
    _, folder, _ = finished_sweep(tmp_path, "preset: smoke\nproduct: {seed: [0, 1, 2, 3], shots: [5, 10]}", individuals)
    rows = sweeptable.read_sources([folder])
    gains = sweeptable.paired_gains(rows)
    table = sweeptable.across_seeds(gains, "shots", "gain").set_index(["method", "shots"])
    for method, shots in itertools.product(("learngene", "first"), (5, 10)):
        by_seed = []
        for seed in range(4):
            one = individuals(Config.preset("smoke", seed=seed, shots=(shots,))).set_index(["target_task", "init"])
            pairs = one[one["method"] == method]["accuracy"] - one[one["method"] == "scratch"]["accuracy"]
            by_seed.append(pairs.mean())
        row = table.loc[(method, shots)]
        half = stats.t.ppf(0.975, 3) * stats.sem(by_seed)
        np.testing.assert_allclose(
            row[["estimate", "low", "high"]].astype(float),
            [np.mean(by_seed), np.mean(by_seed) - half, np.mean(by_seed) + half],
        )
        assert row["n"] == 4 and row["scope"] == sweeptable.OVER_SEEDS["drawn"] and row["n_rows"] == 4 * 6
    # accuracies differ between seeds by 5 points each; pairs do not know it
    wide = sweeptable.across_seeds(rows, "shots", "accuracy").set_index(["method", "shots"]).loc[("first", 5)]
    narrow = table.loc[("first", 5)]
    assert wide["high"] - wide["low"] > 4 * (narrow["high"] - narrow["low"])


@pytest.mark.parametrize(
    ("parameters", "kind"),
    [
        ("", "drawn"),
        ("data: cifar100, data_path: x, ", "fixed"),
        ("data: cifar100, data_path: x, split: seed, ", "drawn"),
        ("data: folder, data_path: x, split: mine.json, ", "fixed"),
        ("data: folder, data_path: x, ", ""),
    ],
)
def test_scopes_say_what_a_seed_draws_anew(tmp_path, parameters, kind):
    text = f"preset: smoke\nparameters: {{{parameters}n_inits: 2}}\nproduct: {{seed: [0, 1]}}"
    _, folder, _ = finished_sweep(tmp_path, text, individuals)
    rows = sweeptable.read_sources([folder])
    table = sweeptable.across_seeds(rows, "shots", "accuracy")
    assert set(table["scope"]) == {sweeptable.OVER_SEEDS[kind]}
    axes = sweepfigures.over_axis(table, table[:0], "shots")
    assert "n = 2" in axes[0, 0].get_title()
    assert sweeptable.OVER_SEEDS[kind] in axes[0, 0].figure.get_suptitle()
    one = sweeptable.interval_over(rows[rows["collective"] == 0], "accuracy")
    assert one.scope == "these novel classes and this ancestor (one seed, one target_seed)"
    matplotlib.pyplot.close("all")


def test_contrasts_are_differences_within_a_seed(tmp_path):
    """By hand: gain at ten shots minus gain at five, seed by seed, then t over the seeds."""
    _, folder, _ = finished_sweep(tmp_path, "preset: smoke\nproduct: {seed: [0, 1, 2, 3], shots: [5, 10]}", individuals)
    rows = sweeptable.read_sources([folder])
    gains = sweeptable.paired_gains(rows)
    table = contrasts(rows.sample(frac=1, random_state=0), "shots").set_index("method")
    assert set(table.index) == {"learngene", "first"}
    for method, row in table.iterrows():
        own = gains[gains["method"] == method].groupby(["collective", "shots"])["gain"].mean().unstack()
        wanted = statistics.mean_interval(own[10] - own[5])
        np.testing.assert_allclose([row.difference, row.low, row.high], [wanted.estimate, wanted.low, wanted.high])
        assert (row["first"], row["place"], row["n_seeds"], row["value"], row["note"]) == (5, 10, 4, "gain", "")
    # what all that is of a seed have in common does not widen it
    moved = rows.assign(accuracy=rows["accuracy"] + 100 * rows["collective"])
    np.testing.assert_allclose(contrasts(moved, "shots")["low"], contrasts(rows, "shots")["low"])
    # a source given twice says nothing new
    pd.testing.assert_frame_equal(contrasts(sweeptable.read_sources([folder] * 2), "shots"), contrasts(rows, "shots"))


def test_contrasts_of_methods_and_settings_and_what_they_cannot_say(tmp_path):
    text = "preset: smoke\nproduct: {seed: [0, 1], growth: [zero-out, none]}\ncases: [{threshold: 5e-4}, {threshold: 5e-10}]"
    _, folder, _ = finished_sweep(tmp_path, text, individuals)
    rows = sweeptable.read_sources([folder])
    by_setting, by_choice = contrasts(rows, "setting"), contrasts(rows, "choice")
    assert set(by_setting["first"]) == {"growth zero-out"} and set(by_setting["place"]) == {"growth none"}
    assert set(by_setting["line"]) == {"threshold 0.0005", "threshold 5e-10"} and len(by_setting) == 4
    assert set(by_choice["line"]) == {"growth zero-out", "growth none"} and set(by_choice["n_seeds"]) == {2}
    methods = contrasts(rows, "method")
    assert (
        set(methods["place"]) == {"first"} and set(methods["first"]) == {"learngene"} and set(methods["method"]) == {""}
    )
    one = contrasts(rows[rows["collective"] == 0], "setting")
    assert one[["low", "high"]].isna().all(axis=None) and set(one["note"]) == {"one seed: no interval can be had"}
    # seeds that have one of the places only do not count; places without a common seed have no difference
    some = rows[(rows["collective"] == 0) | (rows["setting"] == "growth none")]
    assert set(contrasts(some, "setting")["n_seeds"]) == {1}
    apart = rows[(rows["collective"] == 0) == (rows["setting"] == "growth none")]
    assert contrasts(apart, "setting").empty
    without = contrasts(rows[rows["method"] != "scratch"], "setting")
    assert set(without["value"]) == {"accuracy"} and len(without) == 4
    for axis in ALONG:
        assert list(contrasts(rows[:0], axis).columns) == list(by_setting.columns)
    with pytest.raises(ValueError, match="unknown axis 'depth'"):
        contrasts(rows, "depth")


def test_settings_are_never_averaged_and_one_individual_counts_once(tmp_path):
    text = "preset: smoke\nproduct: {seed: [0, 1], growth: [zero-out, none]}\ncases: [{threshold: 5e-4}, {threshold: 5e-10}]"
    _, folder, _ = finished_sweep(tmp_path, text, individuals)
    rows = sweeptable.read_sources([folder])
    over_shots = sweeptable.across_seeds(rows, "shots", "accuracy")
    assert set(over_shots["line"]) == {
        f"growth {g}, threshold {t}" for g, t in itertools.product(("zero-out", "none"), (0.0005, 5e-10))
    }
    # on the axis of blocks a block is a block: both thresholds gave the same individuals, which count once
    over_blocks = sweeptable.across_seeds(rows, "inherited", "accuracy")
    assert set(over_blocks["line"]) == {"growth zero-out", "growth none"}
    assert set(over_blocks["n_rows"]) == {2 * 6}
    # and the same sweep given twice says nothing new
    twice = sweeptable.read_sources([folder, folder])
    for axis in sweeptable.AXES:
        pd.testing.assert_frame_equal(
            sweeptable.across_seeds(twice, axis, "accuracy"), sweeptable.across_seeds(rows, axis, "accuracy")
        )
        pd.testing.assert_frame_equal(
            sweeptable.across_seeds(sweeptable.paired_gains(twice), axis, "gain"),
            sweeptable.across_seeds(sweeptable.paired_gains(rows), axis, "gain"),
        )


def test_other_images_are_another_setting_and_are_never_pooled(tmp_path):
    folders = []
    for name, more in {"a": "", "b": "", "c": ", skip_corrupt: true"}.items():
        where = tmp_path / f"sweep-{name}"
        where.mkdir()
        path = tmp_path / ("b" if name == "c" else name)
        text = f"preset: smoke\nparameters: {{data: folder, data_path: {path}{more}}}\nproduct: {{seed: [0, 1]}}"
        folders.append(finished_sweep(where, text, individuals)[1])
    rows = sweeptable.read_sources(folders)
    assert rows.groupby("setting")["run"].nunique().tolist() == [2, 2, 2]
    table = sweeptable.across_seeds(rows, "shots", "accuracy")
    assert table["line"].nunique() == 3 and set(table["n"]) == {2}
    assert {f"data_path {tmp_path / n}" for n in "ab"} == {line.split(", ")[0] for line in table["line"]}


def test_sweeps_and_runs_are_read_together(tmp_path, smoke_run):
    _, folder, _ = finished_sweep(tmp_path, "preset: smoke\nproduct: {n_source_tasks: [2, 3]}", individuals)
    rows = sweeptable.read_sources([folder, smoke_run])
    assert set(rows["n_source_tasks"]) == {2, 3, 4} and rows["run"].nunique() == 3
    assert sweeptable.overview(rows)["individuals"].sum() == len(rows)
    with pytest.raises(StudyError, match="neither"):
        sweeptable.read_sources([tmp_path])
    with pytest.raises(ValueError, match="unknown axis"):
        sweeptable.across_seeds(rows, "depth", "accuracy")
    write_json(tmp_path / "sweep" / "sweep.json", {"points": {}})
    with pytest.raises(StudyError, match="nothing to read"):
        sweeptable.read_sources([folder])


@pytest.mark.parametrize("axis", sweeptable.AXES)
def test_figures_show_every_mean_where_it_is(tmp_path, axis):
    text = "preset: smoke\nparameters: {n_inits: 2}\nproduct: {seed: [0, 1], shots: [5, 10], n_source_tasks: [2, 3, 4]}"
    _, folder, _ = finished_sweep(tmp_path, text, individuals)
    rows = sweeptable.read_sources([folder])
    accuracy = sweeptable.across_seeds(rows, axis, "accuracy")
    gains = sweeptable.across_seeds(sweeptable.paired_gains(rows), axis, "gain")
    axes = sweepfigures.over_axis(accuracy, gains, axis)
    expected = [accuracy if axis != "inherited" else accuracy[accuracy["inherited"] != "nothing"], gains]
    for ax, table in zip(axes[0], expected, strict=True):
        drawn = np.concatenate([line.get_ydata() for line in ax.lines if line.get_marker() not in ("None", None)])
        np.testing.assert_allclose(np.sort(drawn.astype(float)), np.sort(table["estimate"]))
        labels = [label.get_text() for label in ax.get_xticklabels()]
        assert labels == [str(v) for v in dict.fromkeys(table.sort_values(axis)[axis])] or axis == "inherited"
    matplotlib.pyplot.close("all")


def test_figures_without_pairs_or_methods_say_so():
    accuracy = pd.DataFrame(columns=["line", "family", "method", "shots", "estimate", "low", "high", "n", "scope"])
    axes = sweepfigures.over_axis(accuracy, accuracy, "shots")
    assert axes.shape == (1, 2) and "nothing" in axes[0, 0].texts[0].get_text()
    one = {
        "line": "",
        "family": "light",
        "method": "learngene",
        "shots": 5,
        "estimate": 50.0,
        "low": np.nan,
        "high": np.nan,
    }
    axes = sweepfigures.over_axis(pd.DataFrame([{**one, "n": 1, "scope": "nothing beyond itself"}]), accuracy, "shots")
    assert "no pairs in these sources" in [t.get_text() for t in axes[0, 1].texts]
    matplotlib.pyplot.close("all")


# what sweeps and runs of others hold ------------------------------------------------------------------------------------
SPOILT = {
    "a column is missing": lambda t: t.drop(columns="accuracy"),
    "a column has another name": lambda t: t.rename(columns={"inherited": "block"}),
    "numbers are words": lambda t: t.astype(object).assign(accuracy="=cmd|' /C calc'!A0"),
    "decimal commas": lambda t: t.assign(accuracy=[f"{a:.3f}".replace(".", ",") for a in t["accuracy"]]),
    "a table of something else": lambda t: pd.DataFrame({"a": [1, 2]}),
}


@pytest.mark.parametrize("change", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("kind", ["sweep", "run"])
def test_other_columns_in_a_source_are_one_line(tmp_path, smoke_copy, kind, change):
    folder = finished_sweep(tmp_path, "preset: smoke\nproduct: {seed: [0, 1]}", individuals)[1]
    path = folder / "sweep.csv" if kind == "sweep" else smoke_copy / "results.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(StudyError, match="column") as refusal:
        sweeptable.read_sources([path.parent])
    assert str(path.parent) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"points": []}', '{"points": {"p000": 1}}',
                                  '{"points": {"p000": {"parameters": {"preset": "smoke", "shotz": 1}}}}',
                                  '{"points": {"p000": {"parameters": {"preset": "nobodys"}}}}'])  # fmt: skip
def test_a_sweep_whose_notes_are_damaged_is_one_line(tmp_path, text):
    folder = finished_sweep(tmp_path, "preset: smoke\nproduct: {seed: [0, 1]}", individuals)[1]
    name = next(iter(pd.read_csv(folder / "sweep.csv")["point"]))
    (folder / "sweep.json").write_text(text.replace("p000", name))
    with pytest.raises(StudyError, match=r"sweep\.json") as refusal:
        sweeptable.read_sources([folder])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[]", '{"preset_name": "nobodys"}', '{"shotz": 1}'])
def test_a_run_of_another_version_among_the_sources_is_one_line(smoke_copy, text):
    (smoke_copy / "config.json").write_text(text)
    for read in (lambda: sweeptable.read_sources([smoke_copy]), lambda: Chain.of(smoke_copy)):
        with pytest.raises(StudyError, match=r"config\.json is damaged or of another version") as refusal:
            read()
        assert "\n" not in str(refusal.value)
