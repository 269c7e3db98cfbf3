"""Sweeps without a cluster: what is shared, what a worker does, and the command."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import types
from pathlib import Path

import distributed
import nbformat
import pandas as pd
import pytest
import torch

from learngene_core.config import Config
from learngene_core.errors import write_json
from learngene_core.runs.info import inspect
from learngene_core.runs.machine import resolve
from learngene_core.runs.run import Run
from learngene_core.study import cli, cluster, estimate, notebooks, sharing
from learngene_core.study import point as sweeppoint
from learngene_core.study.grid import load_grid, ready


def own_notebook(path, *sources, tag="parameters"):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = [tag] if tag else []
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


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
    monkeypatch.setattr(notebooks, "execute", lambda *given, **more: (calls.append(given), execute(*given, **more)))
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


@pytest.mark.parametrize(("set_to", "seen_as"), [("65536", None), ("1000000", "1000000")])
def test_kernels_do_not_give_memory_back_at_every_step_as_dask_has_its_workers_do(set_to, seen_as, job, monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", set_to)  # the first is what dask sets, the second somebody's own
    seen = []
    monkeypatch.setattr(sweeppoint, "_execute", lambda job: seen.append(os.environ.get("MALLOC_TRIM_THRESHOLD_")))
    sweeppoint.run_job(job())
    assert seen == [seen_as] and os.environ["MALLOC_TRIM_THRESHOLD_"] == set_to


def test_a_worker_has_one_processor_and_leaves_the_environment_as_it_was(job, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.delenv("LEARNGENE_WORKERS", raising=False)
    before, seen, execute = dict(os.environ), {}, notebooks.execute

    def watching(*given, **more):
        seen.update(os.environ, at_once=resolve(Config.preset("smoke", device="cpu")).workers)
        execute(*given, **more)

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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cluster.gpus_here("auto") == ("0", "1") and cluster.gpus_here("cpu") == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    gpus = cluster.gpus_here("cuda")
    assert gpus == ("3", "5") and cluster.default_workers(gpus) == 2
    seen = []
    monkeypatch.setattr(sweeppoint, "_execute", lambda job: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    own_notebook(tmp_path / "own.ipynb", "seed: int = 0")
    for worker in range(3):
        monkeypatch.setattr(distributed, "get_worker", lambda n=worker: types.SimpleNamespace(name=n))
        job = sweeppoint.job_of(Config.preset("smoke"), tmp_path / str(worker), tmp_path / "own.ipynb", "", gpus=gpus)
        sweeppoint.run_job(job)
    assert seen == ["3", "5", "3"] and os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


# cost and command ---------------------------------------------------------------------------------------------------
def test_what_is_shared_costs_once_and_nothing_is_forgotten(written):
    found = load_grid(written("preset: smoke\nproduct: {seed: [0, 1], shots: [5, 10, 20]}"))
    costs = {p.name: {"division": 1.0, "collective": 100.0, "reconstruct": 10.0} for p in found.points}
    planned, kernel = sharing.plan(found), estimate.JOB_SECONDS
    alone, together = (estimate.job_seconds(found, some, costs) for some in ([], planned))
    assert sum(alone.values()) == pytest.approx(6 * (kernel + 111))
    assert sum(together.values()) == pytest.approx(2 * (kernel + 100) + 6 * (kernel + 10))
    before = {name: [some.name for some in planned if name in some.points] for name in together}
    assert estimate.wall_seconds(together, before, 1) == pytest.approx(sum(together.values()))
    assert estimate.wall_seconds(together, before, 100) == pytest.approx(2 * kernel + 110)
    sizes = [sum(estimate.job_bytes(found, some).values()) for some in ([], planned)]
    assert sizes[1] < 0.6 * sizes[0]


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
    code = "import sys\nfrom learngene_core.figures import sweep\nfrom learngene_core.study import grid, sharing, sweeptable\n"
    code += "grid.load_grid('shots')\nprint('torch' in sys.modules, 'distributed' in sys.modules)\n"
    code += "from learngene_core.study import point\nprint('torch' in sys.modules)"  # what a worker imports
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]
