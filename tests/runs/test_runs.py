"""The run folder: whole files or none, reuse by stage hash, refusals that lose nothing, one owner at a time."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import snapshot

from learngene_core.config import FIELDS, Config, Machine
from learngene_core.errors import StudyError, atomic, file_hash, read_json, write_json
from learngene_core.runs import stages
from learngene_core.runs.bookkeeping import stored_machine
from learngene_core.runs.info import inspect
from learngene_core.runs.machine import machine_of, resolve
from learngene_core.runs.run import Run, default_folder
from learngene_core.study.chain import Chain

SMOKE = Config.preset("smoke")
TINY = SMOKE.replace(
    source_images=8, held_out_images=4, n_source_tasks=3, source_way=3, width_divisor=64, epochs=1, first_task_epochs=1,
    fisher_images=8, null_networks=2, null_steps=1, n_target_tasks=2, individual_epochs=1, tune_rates=(0.01,), workers=1,
)  # fmt: skip
STAGES = ("division", "collective", "criteria", "reconstruct")


# files --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_keeps_the_old_file_and_leaves_nothing_behind_on_failure(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise error
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "old"}


def test_atomic_makes_folders_and_replaces_when_it_ends_well(tmp_path):
    path = tmp_path / "new" / "deep" / "a.txt"
    for text in ("one", "two"):
        with atomic(path) as temporary:
            temporary.write_text(text)
        assert {p.name: p.read_text() for p in path.parent.iterdir()} == {"a.txt": text}


def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"ä": [1, 2.5, None]})
    assert "ä" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"ä": [1, 2.5, None]}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("data", [b"", b'{"a": 1', b"\xff\xfe\x00", b"not json"])
def test_damaged_json_is_named(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(StudyError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")
    with pytest.raises(StudyError, match=r"b\.json does not exist"):
        read_json(tmp_path / "b.json")


def test_tables_come_back_exactly_and_equal_tables_are_equal_files(tmp_path):
    run = Run.open(SMOKE, tmp_path / "run")
    rng = np.random.default_rng(0)
    values = rng.normal(size=3000) * 10.0 ** rng.integers(-12, 12, 3000)
    table = pd.DataFrame({"x": values, "n": range(3000), "family": ["none", "light"] * 1500, "gap": [np.nan, 1] * 1500})
    run.write_table("a.csv", table)
    run.write_table("b.csv", table.copy())
    assert (run.path / "a.csv").read_bytes() == (run.path / "b.csv").read_bytes()
    pd.testing.assert_frame_equal(run.read_table("a.csv"), table, check_exact=True, check_dtype=False)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00\x80", b'a,b\n1,2,3,4\n"'])
def test_damaged_or_missing_table_is_named(tmp_path, data):
    run = Run.open(SMOKE, tmp_path / "run")
    (run.path / "a.csv").write_bytes(data)
    for name in ("a.csv", "b.csv"):
        with pytest.raises(StudyError, match=name):
            run.read_table(name)


# opening ------------------------------------------------------------------------------------------------------------
def test_folders_that_cannot_be_run_folders_are_refused_and_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    for name, text in (("file", "is a file"), ("thesis", "no run folder"), ("file/below", "file")):
        before = snapshot(tmp_path)
        with pytest.raises(StudyError, match=text) as refusal:
            Run.open(SMOKE, tmp_path / name)
        assert str(tmp_path / name) in str(refusal.value)
        assert snapshot(tmp_path) == before


def test_an_empty_folder_becomes_a_run_folder(tmp_path):
    run = Run.open(SMOKE, tmp_path)
    assert Config.from_dict(read_json(run.path / "config.json")) == SMOKE
    assert run.manifest == {}
    assert not any(run.done(stage) for stage in STAGES)


@pytest.mark.skipif(
    os.name == "nt" or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="nothing is read-only to root"
)
def test_a_read_only_place_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StudyError, match="cannot make the run folder"):
            Run.open(SMOKE, tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_default_folder_says_preset_data_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for cfg, name in (
        (Config(), "lecture"),
        (Config(seed=3), "lecture-s3"),
        (SMOKE.replace(data="cifar100"), "smoke-cifar100"),
        (Config.preset("paper", seed=1), "paper-s1"),
        (Config.preset("paper", data="folder", seed=1), "paper-folder-s1"),
    ):
        assert default_folder(cfg) == tmp_path / "runs" / name
    (tmp_path / "learngene_core").mkdir()
    for folder in ("notebooks", "notebooks/exercises", "notebooks/solutions"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        assert default_folder(Config()) == tmp_path / "runs" / "lecture", "notebooks find the run of `make study`"


# a finished run -----------------------------------------------------------------------------------------------------
def test_finished_run_holds_what_the_design_lists_and_is_whole(smoke_run):
    names = {p.name for p in smoke_run.iterdir()}
    assert names >= {"config.json", "machine.json", "division.json", "history.csv", "gradients.csv", "histograms.npz",
                     "scores.csv", "learngene.safetensors", "results.csv", "timings.csv", "collective"}  # fmt: skip
    results = pd.read_csv(smoke_run / "results.csv")
    assert set(results) >= {"family", "method", "shots", "target_task", "init", "accuracy"}
    facts = inspect(smoke_run)
    assert facts["whole"]
    assert {s for s, stage in facts["stages"].items() if stage["state"] == "whole"} == set(STAGES)
    missing = {s: stage["state"] for s, stage in facts["stages"].items() if s not in STAGES}
    assert missing == dict.fromkeys(("openworld", "measures", "atlas", "controls", "claims"), "missing")
    assert not facts["complete"]


def test_times_and_paths_stand_in_timings_alone(smoke_run):
    timed = pd.read_csv(smoke_run / "timings.csv")
    assert timed[timed["kind"] == "stage"]["name"].tolist() == list(STAGES)
    assert (timed["seconds"] >= 0).all()
    written = [p for p in smoke_run.rglob("*") if p.is_file() and p.name not in ("timings.csv", ".owner", ".lock")]
    assert not [p.name for p in written if str(smoke_run).encode() in p.read_bytes()]
    assert {p.name for p in smoke_run.rglob(".*")} <= {".lock"}, "temporary files were left"


def test_a_moved_run_is_loaded_and_nothing_is_computed_or_written(smoke_copy, capsys):
    before = snapshot(smoke_copy)
    chain = Chain(Run.open(SMOKE.replace(workers=1), smoke_copy))
    results = chain.results
    assert results.equals(pd.read_csv(smoke_copy / "results.csv"))
    said = capsys.readouterr().out
    assert said.count("loaded") == 4
    assert "saved" not in said
    after = snapshot(smoke_copy)
    assert {n for n in after if after[n] != before.get(n)} <= {"config.json"}
    assert set(after) == set(before)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"seed": 1}, "seed"), ({"epochs": 4}, "epochs"), ({"shots": (5,)}, "shots"), ({"n_blocks": 2}, "n_blocks")],
)
def test_another_configuration_is_refused_by_field_and_loses_nothing(smoke_copy, changes, field):
    before = snapshot(smoke_copy)
    with pytest.raises(StudyError) as refusal:
        Run.open(SMOKE.replace(**changes), smoke_copy)
    text = str(refusal.value)
    assert f"{field}: {SMOKE.to_dict()[field]} there, {SMOKE.replace(**changes).to_dict()[field]} asked for" in text
    assert "\n" not in text
    assert text.index("choose another --out") < text.index("--redo"), "the way that loses nothing stands first"
    (stage,) = [s for s in STAGES if f"--redo {s}" in text]
    lost = text[text.index("give up what is there (") :].split("(")[1].split(")")[0].split(", ")
    assert lost == list(STAGES[STAGES.index(stage) :]), "what --redo would cost is said"
    assert snapshot(smoke_copy) == before


def test_a_refused_redo_loses_nothing(smoke_copy):
    """--redo collective with another seed is refused for the division; hours of training must still be there."""
    before = snapshot(smoke_copy)
    with pytest.raises(StudyError, match="seed"):
        Run.open(SMOKE.replace(seed=1), smoke_copy, redo=["collective"])
    assert snapshot(smoke_copy) == before


def test_unknown_stage_to_redo_is_refused(smoke_copy):
    before = snapshot(smoke_copy)
    with pytest.raises(StudyError, match="colective"):
        Run.open(SMOKE, smoke_copy, redo=["criteria", "colective"])
    assert snapshot(smoke_copy) == before


@pytest.mark.parametrize(
    ("stage", "kept"),
    [
        ("division", ()),
        ("collective", ("division",)),
        ("criteria", ("division", "collective")),
        ("targets", ("division", "collective", "criteria")),
        ("reconstruct", ("division", "collective", "criteria")),
        ("tune", STAGES),
    ],
)
def test_redo_forgets_the_stage_and_all_after_it_and_keeps_what_is_before(smoke_copy, stage, kept):
    states = snapshot(smoke_copy / "collective")
    run = Run.open(SMOKE, smoke_copy, redo=[stage])
    assert set(run.manifest) == set(kept)
    assert [s for s in STAGES if run.done(s)] == list(kept)
    assert snapshot(smoke_copy / "collective") == (states if "collective" in kept else {})


def test_redo_computes_again_and_equal_choices_give_equal_files(smoke_copy, capsys):
    before = snapshot(smoke_copy)
    Chain(Run.open(SMOKE, smoke_copy, redo=["criteria"])).learngene  # noqa: B018
    said = capsys.readouterr().out
    assert "criteria" in said.split("collective: found")[1]
    after = snapshot(smoke_copy)
    for name in ("scores.csv", "learngene.safetensors", "history.csv", "division.json"):
        assert after[name] == before[name], name


def test_a_change_downstream_keeps_what_is_upstream(smoke_copy, capsys):
    run = Run.open(SMOKE.replace(layers=("conv2", "conv3")), smoke_copy, redo=["criteria"])
    assert Chain(run).learngene.layers == ("conv2", "conv3")
    assert "collective: found" in capsys.readouterr().out
    assert run.done("criteria")
    assert not run.done("reconstruct")


@pytest.mark.parametrize(
    "name", ["division.json", "history.csv", "histograms.npz", "learngene.safetensors", "results.csv"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated", "one bit"])
def test_damaged_file_of_a_finished_stage_is_named_with_the_way_out(smoke_copy, name, damage):
    run, path = Run.open(SMOKE, smoke_copy), smoke_copy / name
    (stage,) = [s for s, e in run.manifest.items() if name in e["files"]]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] if damage == "truncated" else data)
    with pytest.raises(StudyError) as refusal:
        Chain(run).results  # noqa: B018
    assert name in str(refusal.value)
    assert f"--redo {stage}" in str(refusal.value)
    states = {s: e["state"] for s, e in inspect(smoke_copy)["stages"].items() if s in STAGES}
    assert states == {**dict.fromkeys(STAGES, "whole"), stage: "damaged"}


WRONG = {"empty": "", "half": "{", "list": "[]", "number": "3", "other": '{"x": 3}'}


@pytest.mark.parametrize("name", ["manifest.json", "machine.json"])
@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_damaged_bookkeeping_is_named(smoke_copy, name, text):
    """Such a file must not end in a traceback, nor be taken for a run without stages."""
    (smoke_copy / name).write_text(text)
    with pytest.raises(StudyError, match=name) as refusal:
        assert machine_of(Run.open(SMOKE, smoke_copy))
    assert "delete" in str(refusal.value)
    (smoke_copy / name).unlink()  # and what the line says helps
    run = Run.open(SMOKE, smoke_copy)
    assert machine_of(run) == resolve(SMOKE)
    assert run.done("reconstruct") == (name == "machine.json")


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_damaged_configuration_is_named_or_mended(smoke_copy, text):
    (smoke_copy / "config.json").write_text(text)
    with pytest.raises(StudyError, match=r"config\.json .*called again, writes it anew"):
        inspect(smoke_copy)
    with pytest.raises(StudyError, match="seed"):  # the hashes in the manifest know what is in the folder
        Run.open(SMOKE.replace(seed=1), smoke_copy)
    run = Run.open(SMOKE, smoke_copy)
    assert Config.from_dict(read_json(run.path / "config.json")) == SMOKE
    assert inspect(smoke_copy)["whole"]
    assert run.done("reconstruct")


# computing ----------------------------------------------------------------------------------------------------------
def test_a_stage_that_fails_is_not_entered_and_frees_the_folder(tmp_path):
    run = Run.open(SMOKE, tmp_path / "run")
    with pytest.raises(RuntimeError), run.computing("division", ["division.json"]):
        write_json(run.path / "division.json", {})
        raise RuntimeError
    assert not run.done("division")
    with Run.open(SMOKE, run.path).lock():
        assert (run.path / ".owner").exists()
    assert not (run.path / ".owner").exists()


def test_a_stage_that_did_not_write_its_file_is_not_entered(tmp_path):
    run = Run.open(SMOKE, tmp_path / "run")
    with pytest.raises(OSError), run.computing("division", ["division.json"]):
        pass
    assert run.manifest == {}


CHAIN = {
    "division": ("images", "division"),
    "collective": ("source", "collective"),
    "criteria": ("learngene",),
    "reconstruct": ("target", "results"),
    "tune": ("tuning",),
}


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Stage -> the fields of the configuration that its computation looks at."""
    seen, quiet = set(), [0]
    get = Config.__getattribute__

    def spy(self, name):
        if name in FIELDS and not quiet[0]:
            seen.add(name)
        return get(self, name)

    def silent(method):
        def call(*args, **kwargs):
            quiet[0] += 1
            try:
                return method(*args, **kwargs)
            finally:
                quiet[0] -= 1

        return call

    chain = Chain(Run.open(TINY, tmp_path_factory.mktemp("read") / "run"))
    assert machine_of(chain.run).workers == 1
    read = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("to_dict", "fields_of", "stage_hash", "replace", "__post_init__"):
            patch.setattr(Config, name, silent(getattr(Config, name)))
        patch.setattr(Config, "__getattribute__", spy)
        for stage, wanted in CHAIN.items():
            seen.clear()
            for name in wanted:
                getattr(chain, name)
            read[stage] = set(seen)
    return read


@pytest.mark.parametrize("stage", CHAIN)
def test_a_stage_reads_only_fields_that_its_hash_covers(read, stage):
    """A field that is read but not hashed would let a stale result be reused."""
    free = {"preset_name", "skip_corrupt", "data_path", "device", "workers", "threads", "minutes", "deterministic"}
    harmless = {"division": {"n_way", "source_way"}, "tune": {"individual_ewc"}}  # only checked; replaced by the grid
    free |= {
        n for n, f in FIELDS.items() if f.metadata["kind"] == "switch"
    }  # hashed when they are on: tests/test_config.py
    assert len(read[stage]) > 2
    assert sorted(read[stage] - free - harmless.get(stage, set()) - set(TINY.fields_of(stage))) == []


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run folder whose collective stopped after two of three source tasks; and its configuration."""
    run = Run.open(TINY, tmp_path_factory.mktemp("interrupted") / "run")
    save = stages.save_task

    def stops(folder, state, *rest):
        if state.done == 3:
            raise KeyboardInterrupt
        save(folder, state, *rest)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(stages, "save_task", stops)
        Chain(run).collective  # noqa: B018
    return run.path


def finish(path, cfg=TINY):
    run = Run.open(cfg, path)
    Chain(run).collective  # noqa: B018
    return snapshot(path)


TABLES = ("history.csv", "gradients.csv", "histograms.npz", "collective/task_03/model.safetensors")


def test_an_interrupted_collective_goes_on_and_ends_as_if_nothing_had_happened(interrupted, tmp_path, capsys):
    path = shutil.copytree(interrupted, tmp_path / "copy")
    assert not Run.open(TINY, path).done("collective")
    capsys.readouterr()
    resumed = finish(path)
    assert "2 of 3 source tasks found" in capsys.readouterr().out
    whole = finish(tmp_path / "whole")
    assert {n: resumed[n] for n in TABLES} == {n: whole[n] for n in TABLES}


@pytest.mark.parametrize(("name", "value"), [("learning_rate", 0.01), ("epochs", 2), ("width_divisor", 32)])
def test_an_interrupted_collective_of_another_configuration_is_never_mixed_in(interrupted, tmp_path, name, value):
    """Refused in words, or begun anew; half a model of other parameters must not be taken along in silence."""
    path, cfg = shutil.copytree(interrupted, tmp_path / "copy"), TINY.replace(**{name: value})
    try:
        mixed = finish(path, cfg)
    except StudyError as refusal:
        assert name in str(refusal) or "configuration" in str(refusal)
    else:
        clean = finish(tmp_path / "clean", cfg)
        assert {n: mixed[n] for n in TABLES} == {n: clean[n] for n in TABLES}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("about.json", "truncated"),
        ("about.json", "missing"),
        ("record.npz", "truncated"),
        ("record.npz", "missing"),
        ("model.safetensors", "truncated"),
        ("model.safetensors", "missing"),
        ("seal.json", "truncated"),
    ],
)
def test_a_damaged_newest_state_is_named_and_the_one_before_goes_on(interrupted, tmp_path, capsys, name, damage):
    path = shutil.copytree(interrupted, tmp_path / "copy")
    file = path / "collective" / "task_02" / name
    data = file.read_bytes()
    file.unlink()
    if damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    facts = inspect(path)
    assert facts["source_tasks"]["saved"] == 1
    assert name in facts["source_tasks"]["damaged"]
    capsys.readouterr()
    resumed = finish(path)
    said = capsys.readouterr().out
    assert "task_02: " in said and name in said and "going back to task 1" in said
    assert "1 of 3 source tasks found" in said
    whole = finish(tmp_path / "whole")
    assert {n: resumed[n] for n in TABLES} == {n: whole[n] for n in TABLES}


def test_a_task_that_was_being_saved_is_trained_again(interrupted, tmp_path):
    path = shutil.copytree(interrupted, tmp_path / "copy")
    (path / "collective" / "task_02" / "about.json").unlink()  # written last
    resumed, whole = finish(path), finish(tmp_path / "whole")
    assert {n: resumed[n] for n in TABLES} == {n: whole[n] for n in TABLES}


# machine ------------------------------------------------------------------------------------------------------------
def test_machine_is_resolved_once_and_reused(tmp_path):
    first = machine_of(Run.open(SMOKE.replace(threads=1, workers=1), tmp_path / "run"))
    assert (first.threads, first.workers) == (1, 1)
    again = machine_of(Run.open(SMOKE.replace(threads=3, workers=5), tmp_path / "run"))
    assert again == first
    stored = dataclasses.replace(first, threads=7, workers=3, channels_last=False)
    write_json(tmp_path / "run" / "machine.json", dataclasses.asdict(stored))
    before = file_hash(tmp_path / "run" / "machine.json")
    assert machine_of(Run.open(SMOKE, tmp_path / "run")) == stored
    assert file_hash(tmp_path / "run" / "machine.json") == before


def test_machine_of_another_device_is_refused(tmp_path):
    run = Run.open(SMOKE.replace(device="cpu"), tmp_path / "run")
    write_json(run.path / "machine.json", dataclasses.asdict(dataclasses.replace(machine_of(run), device="cuda")))
    with pytest.raises(StudyError, match=r"'cuda'.*'cpu'"):
        machine_of(Run.open(SMOKE.replace(device="cpu"), tmp_path / "run"))
    with pytest.raises(StudyError, match="tpu"):
        resolve(SMOKE.replace(device="tpu"))


def test_zero_threads_and_workers_mean_what_there_is(monkeypatch):
    monkeypatch.delenv("LEARNGENE_WORKERS", raising=False)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = resolve(SMOKE.replace(device="cpu", threads=0, workers=0))
    assert machine.threads == processors >= 1
    assert machine.workers == min(2, processors)
    for told, workers in (("1", 1), ("5", 5), ("0", machine.workers), ("many", machine.workers), ("", machine.workers)):
        monkeypatch.setenv("LEARNGENE_WORKERS", told)
        assert resolve(SMOKE.replace(device="cpu")).workers == workers
        assert resolve(SMOKE.replace(device="cpu", workers=3)).workers == 3


def test_a_machine_of_a_version_that_knew_fewer_settings_is_read(tmp_path):
    values = dataclasses.asdict(Machine())
    del values["deterministic"], values["capture"]
    write_json(tmp_path / "machine.json", {**values, "torch": "2.0", "system": "x", "processors": 2})
    assert stored_machine(tmp_path / "machine.json") == Machine()


# lock ---------------------------------------------------------------------------------------------------------------
HOLD = """
import sys
from learngene_core.config import Config
from learngene_core.runs.run import Run
with Run.open(Config.preset("smoke"), sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held(path):
    """Another process keeps the lock of the run folder."""
    env = {k: v for k, v in os.environ.items() if k != "LEARNGENE_LOCKED"}
    command = [sys.executable, "-c", HOLD, str(path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert other.stdout.readline() == "held\n"
        yield other
    finally:
        other.kill()
        other.communicate()


def test_a_second_process_is_told_who_has_the_folder_and_a_dead_owner_frees_it(tmp_path):
    run = Run.open(SMOKE, tmp_path / "run")
    with held(run.path) as other:
        with pytest.raises(StudyError, match=rf"in use by process {other.pid} on"), run.lock():
            raise AssertionError("two processes hold the lock")
        with pytest.raises(StudyError, match="in use"), run.computing("division", []):
            raise AssertionError("two processes compute")
        other.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        other.wait()
        with run.lock():
            assert str(os.getpid()) in (run.path / ".owner").read_text()
    assert run.manifest == {}


@pytest.mark.parametrize(
    ("changes", "redo"),
    [({}, ["collective"]), ({"tune_tasks": 5}, []), ({"seed": 1}, [])],
    ids=["redo", "config", "seed"],
)
def test_nothing_in_a_folder_changes_while_another_process_has_it(smoke_copy, changes, redo):
    """Neither --redo nor another configuration may pull the folder from under a running process."""
    before = snapshot(smoke_copy)
    with held(smoke_copy):
        with contextlib.suppress(StudyError):
            Run.open(SMOKE.replace(**changes), smoke_copy, redo=redo)
        after = snapshot(smoke_copy)
    assert sorted(n for n in before if after.get(n) != before[n]) == []


def test_a_reader_may_open_a_folder_that_another_process_has(smoke_copy):
    with held(smoke_copy):
        run = Run.open(SMOKE, smoke_copy)
        assert run.done("reconstruct")
        assert len(run.read_table("results.csv"))


def test_the_lock_is_held_once_over_nested_stages_and_beside_other_folders(tmp_path):
    one, two = (Run.open(SMOKE, tmp_path / name) for name in ("one", "two"))
    with one.lock():
        with one.computing("division", []):
            assert (one.path / ".owner").exists()
        with two.lock(), two.lock():
            assert (two.path / ".owner").exists()
        assert (one.path / ".owner").exists()
        with one.computing("division", []):  # as a sweep that goes on after one of its points
            pass
    assert json.loads((one.path / "manifest.json").read_text())["division"]["files"] == {}
    assert not os.environ.get("LEARNGENE_LOCKED")
    assert not list(tmp_path.glob("*/.owner"))


def test_looking_at_a_run_needs_no_torch(smoke_run):
    """`learngene info`, and the figures and sliders that read tables."""
    code = (
        "import sys; from pathlib import Path; from learngene_core.runs.info import inspect\n"
        f"assert inspect(Path({str(smoke_run)!r}))['whole']\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
