"""Sweeps without a cluster: grids and their points, what is shared, the table, the comparison across seeds, the command."""

from __future__ import annotations

import itertools
import os
import sys
import types
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from learngene_core.analysis import statistics
from learngene_core.config import Config
from learngene_core.errors import StudyError, write_json
from learngene_core.figures import comparison as sweepfigures
from learngene_core.runs.info import inspect
from learngene_core.runs.machine import Machine
from learngene_core.runs.run import Run
from learngene_core.study import cli, grid, notebooks, sweep, sweeptable
from learngene_core.study import point as sweeppoint
from learngene_core.study import sweep as sharing
from learngene_core.study import sweep as sweepcost
from learngene_core.study.grid import load_grid, ready
from learngene_core.study.sweeptable import ALONG, contrasts

matplotlib.use("Agg")


@pytest.fixture
def written(tmp_path):
    """Write a grid file; returns its path."""

    def write(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


# grid files ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("produkt: {seed: [1]}", ["'produkt'", "did you mean 'product'"]),
        ("product: {sead: [1, 2]}", ["'sead'", "product", "did you mean 'seed'"]),
        ("parameters: {shotz: 5}", ["'shotz'", "parameters", "did you mean 'shots'"]),
        ("cases: [{seed: 1}, {treshold: 5e-4}]", ["'treshold'", "entry 2", "did you mean 'threshold'"]),
        ("product: {criterion: [released, relesed]}", ["'relesed'"]),
        ("product: {layers: [[conv1, conv3]]}", ["conv1, conv3", "contiguous"]),
        ("product: {methods: [[scratch, ful]]}", ["'ful'", "did you mean 'full'"]),
        ("preset: smok", ["'smok'", "did you mean 'smoke'"]),
        ("preset: 3", ["preset", "3"]),
        ("product: {seed: []}", ["seed", "empty"]),
        ("product: {seed: 3}", ["seed", "list"]),
        ("product: [seed]", ["product", "mapping"]),
        ("cases: {seed: 1}", ["cases", "list"]),
        ("cases: [seed]", ["cases", "entry 1", "mapping"]),
        ("product: {seed: [1, two]}", ["seed", "'two'"]),
        ("product: {seed: [-1]}", ["seed", "at least 0"]),
        ("product: {flip: ['false', true]}", ["flip", "bool"]),
        ("product: {shots: [[[5]]]}", ["shots"]),
        ("product: {n_way: [1.5]}", ["n_way", "1.5"]),
        ("parameters: {seed: 1}\nproduct: {seed: [1, 2]}", ["seed", "fixed"]),
        ("product: {seed: [1, 2]}\ncases: [{seed: 3}]", ["seed", "product", "case"]),
        ("product: {seed: [1, 2, 1.0]}", ["points 1 and 3", "same", "seed-1"]),
        ("cases: [{shots: 5}, {shots: [5]}]", ["points 1 and 2", "same"]),
        ("product: {workers: [1, 2]}", ["workers", "no result"]),
        ("product: {atlas_tasks: [4, 8]}", ["atlas_tasks", "reconstruct", "atlas"]),
        ("through: collective\nproduct: {shots: [5, 10]}", ["shots", "collective", "targets"]),
        ("parameters: {minutes: 3}", ["minutes"]),
        ("parameters: {preset_name: smoke}", ["preset_name", "key preset"]),
        ("through: reconstuct", ["'reconstuct'", "did you mean 'reconstruct'"]),
        ("notebook: 42", ["42", "there are 1, 2"]),
        ("notebook: true", ["notebook", "True"]),
        ("notebook: nowhere.ipynb", ["nowhere.ipynb"]),
        ("table: ../results.csv", ["table", "../results.csv"]),
        ("table: results.xls", ["table"]),
        ("", ["no grid"]),
        ("- seed", ["no grid"]),
        ("seed", ["no grid"]),
        ("product: {seed: [1, 2}", ["no grid"]),
        ("product: {seed: [1]}\nproduct: {seed: [2]}", ["'product'", "twice"]),
        ("product: {seed: [1], seed: [2]}", ["'seed'", "twice"]),
        ("parameters: &a {seed: 1}\ncases: [*a]", ["aliases"]),
        ("parameters: &a [*a]", ["aliases"]),
        ("product: {seed: !!python/object/apply:os.system ['touch owned']}", ["no grid", "tag"]),
        ("product: {? [seed] : [1]}", ["no grid"]),
        ("product: {seed: " + "[" * 3000 + "]" * 3000 + "}", ["nested"]),
        (
            "product:\n" + "".join(f"  {n}: {list(range(1, 40))}\n" for n in ("seed", "target_seed", "n_inits")),
            ["59,319", "10,000"],
        ),
        ("#" * 2_000_000, ["too large"]),
    ],
)
def test_bad_grids_are_refused_with_the_name_before_anything_starts(written, tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    path = written(text)
    with pytest.raises((ValueError, StudyError)) as caught:
        load_grid(path)
    assert all(word in str(caught.value) for word in words), caught.value
    assert len(str(caught.value)) < 700
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_grid_that_is_missing_or_binary(tmp_path):
    with pytest.raises(StudyError, match=r"no grid .*shot.*did you mean 'shots'"):
        load_grid("shot")
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(StudyError, match="UTF-8"):
        load_grid(tmp_path / "picture.yaml")


@pytest.mark.parametrize("seed", range(8))
def test_points_are_every_case_with_every_combination(written, seed):
    """Against brute force: nested loops over a random grid."""
    rng = np.random.default_rng(seed)
    values = {"seed": [3, 1, 2], "shots": [5, [5, 10]], "target_seed": [0, 7], "individual_rate": [0.01, 5e-4]}
    names = [str(name) for name in rng.permutation(list(values))[: rng.integers(0, 5)]]
    product = {name: values[name][: rng.integers(1, len(values[name]) + 1)] for name in names}
    cases = [{"criterion": "released", "threshold": 5e-4}, {"layers": ["conv1", "conv2"]}, {"n_blocks": 2}]
    cases = cases[: rng.integers(0, 4)]
    found = load_grid(written(f"preset: smoke\nparameters: {{n_inits: 2}}\nproduct: {product}\ncases: {cases}"))
    expected = []
    for case in cases or [{}]:
        for combination in itertools.product(*product.values()):
            given = {**dict(zip(product, combination, strict=True)), **case}
            expected.append(Config.preset("smoke", n_inits=2, workers=1, threads=1, **given))
    assert [point.cfg for point in found.points] == expected
    assert len({point.name for point in found.points}) == len(expected)
    assert found.varied == tuple(dict.fromkeys([*product, *(n for case in cases for n in case)]))
    for point in found.points:
        assert point.values == {name: getattr(point.cfg, name) for name in found.varied}
        assert Path(point.name).name == point.name and len(point.name) < 100 and not point.name.startswith(".")


def test_a_point_keeps_its_folder_when_the_grid_grows_and_gets_another_for_other_settings(written):
    few = load_grid(written("preset: smoke\nproduct: {seed: [1, 2]}"))
    more = load_grid(written("preset: smoke\nproduct: {seed: [0, 2, 1, 3]}"))
    other = load_grid(written("preset: smoke\nparameters: {epochs: 2}\nproduct: {seed: [1, 2]}"))
    workers = load_grid(written("preset: smoke\nparameters: {workers: 2}\nproduct: {seed: [1, 2]}"))
    names = {point.name for point in few.points}
    assert names < {point.name for point in more.points}
    assert names == {point.name for point in workers.points}  # decides no result
    assert names.isdisjoint(point.name for point in other.points)


def test_options_of_the_command_take_the_place_of_fixed_values_only(written):
    path = written("preset: lecture\nparameters: {n_target_tasks: 9}\nproduct: {seed: [1, 2]}")
    found = load_grid(path, "smoke", {"n_target_tasks": 3, "data_path": "here"})
    assert {(p.cfg.preset_name, p.cfg.n_target_tasks) for p in found.points} == {("smoke", 3)}
    assert found.points[0].cfg.data_path == str(Path("here").absolute())  # workers have folders of their own
    with pytest.raises(ValueError, match="seed is varied"):
        load_grid(path, "", {"seed": 5})
    with pytest.raises(ValueError, match=r"'sead'.*did you mean 'seed'"):
        load_grid(path, "", {"sead": 5})


def test_which_notebook_a_grid_runs(written, tmp_path):
    def target(text):
        found = load_grid(written(text))
        return found.notebook.name[:2], found.stage, found.table

    assert target("{}") == ("04", "reconstruct", "results.csv")
    assert target("through: openworld") == ("05", "openworld", "openworld.csv")
    assert target("notebook: 06") == ("06", "claims", "atlas.csv")
    assert target("notebook: 2\ntable: gradients.csv") == ("02", "collective", "gradients.csv")
    assert target("notebook: 08\ntable: across_seeds.csv") == ("08", "", "across_seeds.csv")  # octal to YAML, not to us
    with pytest.raises(ValueError, match="table"):
        target("notebook: 8")  # nobody knows what it writes
    own_notebook(tmp_path / "mine.ipynb", "seed: int = 0", "1")
    assert target("notebook: mine.ipynb\nthrough: criteria") == ("mi", "criteria", "scores.csv")
    own_notebook(tmp_path / "bare.ipynb", "seed: int = 0", tag="")
    with pytest.raises(StudyError, match="0 parameters cells"):
        target("notebook: bare.ipynb\nthrough: criteria")


def own_notebook(path, *sources, tag="parameters"):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = [tag] if tag else []
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def test_the_ready_grids_ask_what_they_say():
    about = {name: load_grid(name) for name in ready()}
    assert {name: found.varied for name, found in about.items()} == {
        "shots": ("seed", "shots"),
        "criteria": ("seed", "criterion", "threshold"),
        "growth": ("seed", "n_source_tasks", "growth", "ewc_lambda"),
    }
    assert len(about["shots"].points[0].cfg.methods) >= 6
    assert {p.cfg.ewc_lambda > 0 for p in about["growth"].points} == {True, False}
    assert {p.cfg.growth == "none" for p in about["growth"].points} == {True, False}
    # one ancestor per seed, or each its own
    assert [len(sharing.plan(about[name])) for name in ("shots", "criteria", "growth")] == [5, 3, 0]


# what is shared -----------------------------------------------------------------------------------------------------
def test_stages_are_shared_exactly_where_every_field_they_read_agrees(written):
    found = load_grid(
        written("""
preset: smoke
through: atlas
product: {seed: [0, 1], target_seed: [0, 1], inherited_share: [20, 50]}
cases: [{}, {layers: [conv1, conv2]}]
""")
    )
    planned = sharing.plan(found)
    for a, b in itertools.combinations(found.points, 2):
        for stage in sharing.ASKED:
            together = any({a.name, b.name} <= some.points and stage in some.stages for some in planned)
            same = a.cfg.fields_of(stage) == b.cfg.fields_of(stage)
            cheap = stage == "criteria"  # not worth a kernel of its own
            assert together == same or (cheap and same), (a.name, b.name, stage)
    places = {some.name: i for i, some in enumerate(planned)}
    for some in planned:
        assert all(places[parent] < places[some.name] for parent in some.parents)
        for point in found.points:
            if point.name in some.points:  # it asks for what they ask for
                assert all(point.cfg.stage_hash(s) == some.cfg.stage_hash(s) for s in some.stages)


def test_another_grid_in_the_same_folder_takes_over_the_ancestor_and_nothing_that_differs(written, tmp_path, smoke_run):
    """What is shared has a folder of its own for other settings, and begins with the stages that are still the same."""
    text = "preset: smoke\nparameters: {{threshold: {}}}\nproduct: {{shots: [5, 10]}}"
    (first,), (second,) = (sharing.plan(load_grid(written(text.format(value)))) for value in (5e-10, 5e-4))
    assert first.name != second.name and list(first.stages) == list(second.stages) == ["collective", "criteria"]
    run = Run.open(first.cfg, tmp_path / "shared" / first.name)
    sharing.fill(run, [smoke_run])
    assert second.sources(tmp_path / "shared") == [run.path] and first.sources(tmp_path / "shared") == []
    other = Run.open(second.cfg, tmp_path / "shared" / second.name)
    assert sharing.fill(other, second.sources(tmp_path / "shared")) == ["division", "collective"]


def test_points_on_other_images_never_share(written, tmp_path):
    """Paths stand in no hash; two folders of images do not give one ancestor all the same."""
    text = "preset: smoke\nproduct: {target_seed: [0, 1]}\ncases: [{data: folder, data_path: a}, {data: folder, data_path: b}]"
    planned = sharing.plan(load_grid(written(text)))
    assert len(planned) == 2 and all(len(some.points) == 2 for some in planned)


def test_the_atlas_that_chooses_is_shared_before_what_it_chooses(written):
    found = load_grid(
        written("preset: smoke\nparameters: {criterion: recommended}\nproduct: {individual_ewc: [1, 10]}")
    )
    (only,) = sharing.plan(found)
    assert only.points == {p.name for p in found.points} and {"collective", "atlas", "criteria"} <= set(only.stages)


def test_a_filled_folder_is_whole_and_lives_on_without_its_source(smoke_copy, tmp_path):
    cfg = Config.preset("smoke")
    other = cfg.replace(shots=(5,))
    run = Run.open(other, tmp_path / "point")
    assert sharing.fill(run, [smoke_copy]) == ["division", "collective", "criteria"]  # not the individuals: other shots
    assert inspect(run.path)["whole"]
    assert (run.path / "machine.json").read_bytes() == (smoke_copy / "machine.json").read_bytes()
    before = (run.path / "scores.csv").read_bytes()
    if hasattr(os, "link"):
        assert os.path.samefile(run.path / "scores.csv", smoke_copy / "scores.csv")
    # the source is computed again, written over, taken away: nobody else notices
    source = Run.open(cfg, smoke_copy)
    source.write_table("scores.csv", pd.DataFrame({"changed": [1]}))
    source.forget("collective")
    assert (run.path / "scores.csv").read_bytes() == before and inspect(run.path)["whole"]
    assert sharing.fill(run, [smoke_copy]) == []


def test_filling_copies_where_files_cannot_be_linked_and_leaves_no_half_manifest(smoke_run, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(sharing.os, "link", refuse)
    run = Run.open(Config.preset("smoke"), tmp_path / "copied")
    sharing.fill(run, [smoke_run])
    assert inspect(run.path)["whole"] and run.done("reconstruct")
    assert not os.path.samefile(run.path / "results.csv", smoke_run / "results.csv")
    monkeypatch.setattr(sharing.shutil, "copyfile", refuse)
    broken = Run.open(Config.preset("smoke"), tmp_path / "broken")
    with pytest.raises(OSError, match="no links"):
        sharing.fill(broken, [smoke_run])
    assert broken.manifest == {}


# one point ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def job(tmp_path):
    """A job of a notebook that needs no torch and writes its table; it fails for seed 7 and dies for seed 9."""
    text = "import os\nif seed == 7:\n    print('so far')\n    raise ValueError('seven\\nis not possible')\n"
    text += "if seed == 9:\n    os._exit(1)\n"
    text += "open(out + '/rows.csv', 'w').write(f'value\\n{seed}\\n')"
    own_notebook(tmp_path / "own.ipynb", "preset: str = ''\nseed: int = 0\nout: str = ''", text)
    code = notebooks.source_hash(notebooks.read(tmp_path / "own.ipynb"))

    def make(seed=1, **changes):
        cfg = Config.preset("smoke", seed=seed)
        about = {"table": "rows.csv", **changes}
        return sweeppoint.job_of(cfg, tmp_path / f"seed-{seed}", tmp_path / "own.ipynb", code, **about)

    return make


def test_a_job_is_done_once_for_its_parameters_its_code_and_its_table(job, monkeypatch):
    calls = []
    execute = notebooks.execute
    monkeypatch.setattr(notebooks, "execute", lambda *given: (calls.append(given), execute(*given)))
    assert not sweeppoint.finished(job())
    assert sweeppoint.run_job(job()) == {"state": "finished"}
    assert sweeppoint.finished(job()) and sweeppoint.run_job(job()) == {"state": "finished"} and len(calls) == 1
    folder = Path(job()["folder"])
    assert pd.read_csv(folder / "rows.csv")["value"].tolist() == [1]
    other = {**job(), "mark": "another code"}
    assert not sweeppoint.finished(other)
    (folder / "rows.csv").write_text("value\n2\n")
    assert not sweeppoint.finished(job())
    sweeppoint.run_job(job())
    assert sweeppoint.finished(job()) and len(calls) == 2
    for damaged in ("", "[]", "{", '"text"'):
        (folder / sweeppoint.DONE).write_text(damaged)
        assert not sweeppoint.finished(job())
    assert sweeppoint.TASK not in os.environ


def test_a_worker_has_one_processor_and_leaves_the_environment_as_it_was(job, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.delenv("LEARNGENE_WORKERS", raising=False)
    before, seen, execute = dict(os.environ), {}, notebooks.execute

    def watching(*given):
        seen.update(os.environ, at_once=Machine.resolve(Config.preset("smoke", device="cpu")).workers)
        execute(*given)

    monkeypatch.setattr(notebooks, "execute", watching)
    assert sweeppoint.run_job(job()) == {"state": "finished"}
    assert seen["at_once"] == 1 and seen["OMP_NUM_THREADS"] == "4", "what somebody has set stays"
    assert dict(os.environ) == before


def test_a_point_of_other_images_is_not_finished(tmp_path):
    """Where the images lie, whether damaged ones count, and what the split file says: no stage hash knows of them."""
    split, images = tmp_path / "split.json", tmp_path / "images"
    split.write_text('{"a": 1}')
    base = Config.preset("smoke", data="folder", data_path=str(images), split=str(split))

    def job(**changes):
        about = {"stage": "reconstruct"} if changes.pop("staged", True) else {}
        return sweeppoint.job_of(base.replace(**changes), tmp_path / "point", tmp_path / "n.ipynb", "code", **about)

    for staged in (True, False):
        split.write_text('{"a": 1}')
        (tmp_path / "point").mkdir(exist_ok=True)
        write_json(tmp_path / "point" / sweeppoint.DONE, {"mark": job(staged=staged)["mark"], "sha256": ""})
        assert sweeppoint.finished(job(staged=staged))
        assert not sweeppoint.finished(job(staged=staged, data_path=str(tmp_path / "others")))
        assert not sweeppoint.finished(job(staged=staged, skip_corrupt=True))
        assert not sweeppoint.finished(job(staged=staged, split="seed"))
        split.write_text('{"a": 2}')
        assert not sweeppoint.finished(job(staged=staged))
        split.unlink()
        assert not sweeppoint.finished(job(staged=staged))
    # another way to write the same place is the same place; so is a copy of the split file
    split.write_text('{"a": 1}')
    (tmp_path / "copy.json").write_text('{"a": 1}')
    same = base.replace(data_path=str(images / ".." / "images"), split=str(tmp_path / "copy.json"))
    assert sweeppoint.images_of(same) == sweeppoint.images_of(base)


def test_a_notebook_that_fails_is_reported_and_kept_and_one_whose_kernel_died_is_tried_again(job):
    told = sweeppoint.run_job(job(7))
    assert told["state"] == "failed" and "\n" not in told["error"]
    assert "own.ipynb, cell" in told["error"] and "ValueError: seven is not possible" in told["error"]
    kept = notebooks.read(Path(job(7)["output"]))
    assert kept.cells[-1].outputs[-1].ename == "ValueError"
    assert not sweeppoint.finished(job(7))
    with pytest.raises(notebooks.KernelDied):  # raised: the cluster starts it anew
        sweeppoint.run_job(job(9))
    assert sweeppoint.run_job(job(1), {"state": "finished"}, told) == told  # what it builds upon is not there
    assert not Path(job(1)["folder"]).exists()
    missing = sweeppoint.run_job(job(1, table="others.csv"))
    assert missing["state"] == "failed" and "has not written others.csv" in missing["error"]


def test_every_worker_of_an_embedded_cluster_shows_its_kernels_one_gpu(tmp_path, monkeypatch):
    import types

    import distributed
    import torch

    from learngene_core.study import cluster as sweepcluster

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweepcluster.gpus_here("auto") == ("0", "1") and sweepcluster.gpus_here("cpu") == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    gpus = sweepcluster.gpus_here("cuda")
    assert gpus == ("3", "5") and sweepcluster.default_workers(gpus) == 2
    seen = []
    monkeypatch.setattr(sweeppoint, "_execute", lambda job: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    own_notebook(tmp_path / "own.ipynb", "seed: int = 0")
    for worker in range(3):
        monkeypatch.setattr(distributed, "get_worker", lambda n=worker: types.SimpleNamespace(name=n))
        job = sweeppoint.job_of(Config.preset("smoke"), tmp_path / str(worker), tmp_path / "own.ipynb", "", gpus=gpus)
        sweeppoint.run_job(job)
    assert seen == ["3", "5", "3"] and os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


# the table ----------------------------------------------------------------------------------------------------------
def finished_sweep(tmp_path, text, rows):
    """A sweep whose points were not computed but made up: rows(cfg) -> DataFrame."""
    path = tmp_path / "made.yaml"
    path.write_text(text)
    found, folder = load_grid(path), tmp_path / "sweep"
    for point in found.points:
        (folder / point.name).mkdir(parents=True)
        rows(point.cfg).to_csv(folder / point.name / found.table, index=False)
    sweep._note(found, folder, list(found.points), {})
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
    return pd.DataFrame(rows, columns=columns)


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
    assert "n = 2, over seeds" in axes[0, 0].get_title()
    assert sweeptable.OVER_SEEDS[kind] in axes[0, 0].figure.get_suptitle()
    one = sweeptable.interval_over(rows[rows["collective"] == 0], "accuracy")
    assert one.scope == "these novel classes and this ancestor (one seed, one target_seed)"
    axes = sweepfigures.over_axis(
        sweeptable.across_seeds(rows[rows["run"] == 0], "shots", "accuracy"), table[:0], "shots"
    )
    assert axes[0, 0].figure.get_suptitle() == ""
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
    assert [t.get_text() for t in axes[0, 1].texts] == ["no pairs in these sources"]
    matplotlib.pyplot.close("all")


# cost and command ---------------------------------------------------------------------------------------------------
def test_what_is_shared_costs_once_and_nothing_is_forgotten(written):
    found = load_grid(written("preset: smoke\nproduct: {seed: [0, 1], shots: [5, 10, 20]}"))
    costs = {p.name: {"division": 1.0, "collective": 100.0, "reconstruct": 10.0} for p in found.points}
    planned, kernel = sharing.plan(found), sweepcost.KERNEL_SECONDS
    alone, together = (sweepcost.job_seconds(found, some, costs) for some in ([], planned))
    assert sum(alone.values()) == pytest.approx(6 * (kernel + 111))
    assert sum(together.values()) == pytest.approx(2 * (kernel + 100) + 6 * (kernel + 10))
    before = {name: [some.name for some in planned if name in some.points] for name in together}
    assert sweepcost.wall_seconds(together, before, 1) == pytest.approx(sum(together.values()))
    assert sweepcost.wall_seconds(together, before, 100) == pytest.approx(2 * kernel + 110)
    sizes = [sum(sweepcost.job_bytes(found, some).values()) for some in ([], planned)]
    assert sizes[1] < 0.6 * sizes[0]


def test_the_speed_rows_compare_the_same_points_in_turn(tmp_path, monkeypatch):
    """Nothing is computed: a clock that is told how long each sweep and chain takes, by its round."""
    from learngene_core.study import benchrows as sweepbench

    seconds = {"alone": [40, 80, 40], "two": [20, 60, 20], "chain": [25, 50, 25], "shared": [30]}
    now, order, failing = [0.0], [], 0

    def passed(kind, grid):
        order.append((kind, grid))
        now[0] += seconds[kind][sum(k == kind for k, _ in order) - 1]

    def run(grid, out, *, workers, share):
        passed("shared" if share else {1: "alone", 2: "two"}[workers], grid)
        assert workers == 1 or not share
        return sweep.Outcome(out, [p.name for p in grid.points][failing:], dict.fromkeys(range(failing), "error"))

    def chain(run, paths, stage):
        assert ([p.name[:2] for p in paths], stage) == (["01", "02", "03", "04"], "reconstruct")
        assert run.cfg.workers == 0, "on all processors"
        passed("chain", run.cfg)

    monkeypatch.setattr(sweepbench, "run_sweep", run)
    monkeypatch.setattr(sweepbench, "run_notebooks", chain)
    monkeypatch.setattr(sweepbench, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    rows = sweepbench.sweep_rows(tmp_path)
    turns = [["alone", "two", "chain"], ["shared"], ["chain", "two", "alone"], ["alone", "two", "chain"]]
    assert [kind for kind, _ in order] == list(itertools.chain(*turns))
    whole = order.pop(3)[1]
    (only,) = sharing.plan(whole)  # one ancestor for all
    assert len(whole.points) == len(only.points) == 12
    met = []
    for turn in range(sweepbench.ROUNDS):
        this = dict(order[3 * turn : 3 * turn + 3])
        assert this["alone"].points == this["two"].points
        met += this["alone"].points
        asked = this["chain"].stage_hash("reconstruct")
        assert asked in {point.cfg.stage_hash("reconstruct") for point in this["alone"].points}
    assert sorted(p.name for p in met) == sorted(p.name for p in whole.points), "each point once"
    measured = [(pair.ratio, pair.first, pair.second, bar, pair.rounds) for pair, bar, *_ in rows.values()]
    assert measured == [(30 / 400, 30, 400, 0.4, 1), (30 / 160, 30, 160, 0.4, 1), (0.5, 20, 40, 1 / 1.5, 3)]
    failing, order[:] = 1, []
    with pytest.raises(StudyError, match="1 of 4 points failed"):
        sweepbench.sweep_rows(tmp_path)


def test_a_dry_run_says_what_it_would_cost_and_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "shots", "--preset", "smoke", "--set", "device=cpu", "--dry-run", "--workers", "2"]) == 0
    out = capsys.readouterr().out
    assert "15 points (seed, shots), 15 to run" in out
    assert "20 notebook runs" in out and "on 2 workers" in out and " MB in " in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml"], ["nowhere.yaml", "ready ones are"]),
        (["shots", "--set", "sead=1"], ["'sead'", "did you mean 'seed'"]),
        (["shots", "--set", "shots=5"], ["shots is varied"]),
        (["shots", "--seed", "5"], ["seed is varied"]),
        (["shots", "--preset", "smok"], ["'smok'"]),
        (["shots", "--data", "cifar100"], ["--data-path"]),
        (["shots", "--workers", "-1"], ["workers = -1"]),
        (["shots", "--out", "taken"], ["taken", "no sweep"]),
        (["shots", "--out", "file"], ["file"]),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["sweep", *arguments]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and all(word in err for word in words), err
    assert sorted(tmp_path.rglob("*")) == before


def test_help_names_every_option_and_ready_grid(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["sweep", "--help"])
    out = capsys.readouterr().out
    options = ["--workers", "--scheduler", "--dry-run", "--preset", "--data-path", "--out", "--seed", "--set"]
    assert end.value.code == 0 and all(word in out for word in [*options, *ready()])


def test_reading_and_drawing_sweeps_needs_no_torch():
    import subprocess

    code = "import sys\nfrom learngene_core import cli, grid, sharing, sweep, sweepfigures, sweeppoint, sweeptable\n"
    code += "grid.load_grid('shots')\nprint('torch' in sys.modules, 'distributed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_fixed_values_need_only_be_possible_together_with_the_varied_ones(written):
    """The smoke preset has four source tasks; growth from the sixth on is possible in every point all the same."""
    text = "preset: smoke\nparameters: {growth_start: 6}\nproduct: {n_source_tasks: [6, 8]}"
    assert [p.cfg.n_source_tasks for p in load_grid(written(text)).points] == [6, 8]


def test_sources_are_a_list_of_paths(tmp_path):
    path = notebooks.numbered("08_*.ipynb")[0]
    for bad in ("runs/one", [1], {"a": 1}):
        with pytest.raises(ValueError, match="sources takes a list of paths"):
            notebooks.checked_parameters(path, {"sources": bad})
    for good in (None, [], ["runs/one", tmp_path]):
        notebooks.checked_parameters(path, {"sources": good})
    assert Config.from_notebook({"preset": "smoke", "sources": ["a"], "out": ""}) == Config.preset("smoke")
    with pytest.raises(ValueError, match="sources"):
        Config.from_notebook({"preset": "smoke", "sources": "a"})


def test_the_grid_file_in_the_documentation_is_one(written):
    text = grid.__doc__.split("\n\n")[2]
    found = load_grid(written("\n".join(line.removeprefix("    ") for line in text.splitlines())))
    assert len(found.points) == 18 and found.table == "results.csv"
