"""Nothing half-written, nothing silent: files, seals, headers, locks, troubles of the system, guards, determinism."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import snapshot
from safetensors.torch import save_file

from learngene_core import criteria, training
from learngene_core import errors as files
from learngene_core import training as guards
from learngene_core.config import Config
from learngene_core.errors import UNFINISHED, StudyError, atomic, explained, sweep_unfinished, write_json
from learngene_core.record import N_BINS, Record
from learngene_core.runs import info
from learngene_core.runs import machine as determinism
from learngene_core.runs import states as savepoints
from learngene_core.runs.machine import Machine
from learngene_core.runs.run import Run
from learngene_core.runs.states import checked_header
from learngene_core.study import chain as study
from learngene_core.study import cli, cost, notebooks
from learngene_core.training import Penalty, Recipe, fit, task_loss

SMOKE = Config.preset("smoke")


# files --------------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(os.name == "nt", reason="folders are not opened there")
def test_file_and_folder_are_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    """In this order, or a power cut leaves an empty file under the final name."""
    done, fsync, replace = [], os.fsync, os.replace

    def flushed(handle):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", lambda a, b: done.append("rename") or replace(a, b))
    with atomic(tmp_path / "a") as path:
        path.write_text("x")
    assert done == ["file", "rename", "folder"]


def test_a_system_that_flushes_no_folders_still_writes(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    opened = os.open
    monkeypatch.setattr(files.os, "open", lambda p, *a: refuses() if Path(p).is_dir() else opened(p, *a))
    write_json(tmp_path / "a.json", [1])
    assert files.read_json(tmp_path / "a.json") == [1]


def test_what_a_killed_writer_left_is_swept_when_the_folder_is_locked_again(tmp_path):
    run = Run.open(SMOKE, tmp_path / "run")
    left = [
        run.path / f".results.csv.abc{UNFINISHED}",
        run.path / "collective" / "task_01" / f".about.json.x{UNFINISHED}",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    mine = run.path / f".machine.json.x{UNFINISHED}"  # may be another process's, which needs no lock for it
    mine.write_text("")
    with run.lock():
        assert [p.exists() for p in left] == [False, False]
        left[0].write_text("half")
        with run.lock():  # a kernel under the same lock sweeps nothing: its neighbour may be writing
            assert left[0].exists()
    assert mine.exists()
    sweep_unfinished(run.path)
    assert not left[0].exists()


# saved states -------------------------------------------------------------------------------------------------------
def task(folder, number, stage_hash="h"):
    path = savepoints.task_folder(folder, number)
    path.mkdir(parents=True)
    save_file({"model/a": torch.full((50,), float(number))}, path / "model.safetensors")
    np.savez_compressed(path / "record.npz", counts=np.arange(40), zeros=np.arange(3))
    lists = {name: [number] for name in ("class_names", "mean", "std", "history", "record")}
    write_json(path / "about.json", {"stage_hash": stage_hash, "shape": {}, **lists})
    savepoints.seal(path)
    return path


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :],
    "longer": lambda data: data + b"\0",
    "missing": None,
}


@pytest.mark.parametrize("name", ["model.safetensors", "record.npz", "about.json", "seal.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_task_is_named_and_the_one_before_it_counts(tmp_path, capsys, name, damage):
    for number in (1, 2, 3):
        task(tmp_path, number)
    assert savepoints.whole_tasks(tmp_path) == 3
    assert capsys.readouterr().out == ""
    path = tmp_path / "task_03" / name
    data = path.read_bytes()
    path.unlink()
    if DAMAGES[damage]:
        path.write_bytes(DAMAGES[damage](data))
    found, said = savepoints.whole_tasks(tmp_path), capsys.readouterr().out
    if (name, damage) == ("seal.json", "missing"):  # it is written last: the files can be read, and are whole
        assert (found, said) == (3, "")
        return
    assert found == 2
    blamed = name in said or (name, damage) == (
        "seal.json",
        "one bit",
    )  # then it accuses the file that the bit is about
    assert f"{tmp_path / 'task_03'}: " in said and blamed and "going back to task 2" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "record.npz", "about.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "longer", "missing"])
def test_without_a_seal_the_files_speak_for_themselves(tmp_path, name, damage):
    """A run of an earlier version, or a kill between the last file and its seal."""
    path = task(tmp_path, 1)
    savepoints.unseal(path)
    assert savepoints.trouble(path) is None
    data = (path / name).read_bytes()
    (path / name).unlink()
    if DAMAGES[damage]:
        (path / name).write_bytes(DAMAGES[damage](data))
    if (name, damage) == ("record.npz", "longer"):  # a zip archive is found from its end, whatever is before or behind
        return
    assert name in savepoints.trouble(path)
    assert savepoints.whole_tasks(tmp_path) == 0


def test_a_task_that_was_being_saved_is_no_damage(tmp_path, capsys):
    task(tmp_path, 1)
    path = task(tmp_path, 2)
    savepoints.unseal(path)
    (path / "about.json").unlink()
    assert savepoints.whole_tasks(tmp_path) == 1
    assert savepoints.whole_tasks(tmp_path / "nothing") == 0
    assert capsys.readouterr().out == ""


def test_a_gap_ends_the_count_and_what_is_behind_is_forgotten_unless_it_is_anothers(tmp_path):
    for number in (1, 2, 3, 4):
        task(tmp_path, number, "mine" if number < 4 else "another")
    shutil.rmtree(tmp_path / "task_02")
    assert savepoints.whole_tasks(tmp_path) == 1
    before = snapshot(tmp_path)
    with pytest.raises(StudyError, match="task_04 was begun with another configuration.*--redo collective"):
        savepoints.forget_after(tmp_path, 1, "mine")
    assert snapshot(tmp_path) == before
    shutil.rmtree(tmp_path / "task_04")
    (tmp_path / "task_xx").mkdir()
    savepoints.forget_after(tmp_path, 1, "mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["task_01", "task_xx"]


def test_states_within_the_next_task_stay_and_those_of_later_ones_go(tmp_path):
    """They go on from the last whole task; behind a damaged one they belong to a walk that is trained anew."""
    for number in (1, 2, 3, 4):
        task(tmp_path, number)
    for number in (3, 4):
        savepoints.unseal(tmp_path / f"task_0{number}")
        (tmp_path / f"task_0{number}" / "about.json").unlink()
        (tmp_path / f"task_0{number}" / "epochs.json").write_text("[]")
    assert savepoints.whole_tasks(tmp_path) == 2
    savepoints.forget_after(tmp_path, 2, "h")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["task_01", "task_02", "task_03"]
    (tmp_path / "task_02" / "model.safetensors").write_bytes(b"")
    savepoints.forget_after(tmp_path, savepoints.whole_tasks(tmp_path), "h")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["task_01"]


def test_a_task_whose_process_died_before_its_seal_gets_it(tmp_path):
    path = task(tmp_path, 1)
    sealed = (path / "seal.json").read_bytes()
    savepoints.unseal(path)
    savepoints.ensure_sealed(path)
    assert (path / "seal.json").read_bytes() == sealed
    (path / "more").write_text("")
    savepoints.ensure_sealed(path)
    assert (path / "seal.json").read_bytes() == sealed


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"about.json": 3}', '{"about.json": {"sha256": "x"}}'])
def test_a_seal_that_is_none_is_damage(tmp_path, text):
    path = task(tmp_path, 1)
    (path / "seal.json").write_text(text)
    assert "seal.json is damaged" in savepoints.trouble(path)


@pytest.mark.parametrize("text", ["{}", "[]", '{"stage_hash": "h", "history": {}}'])
def test_notes_that_lack_something_are_damage_also_under_a_seal(tmp_path, text):
    path = task(tmp_path, 1)
    (path / "about.json").write_text(text)
    savepoints.seal(path)
    assert savepoints.trouble(path) == "about.json is damaged"


def test_a_seal_reads_nothing_outside_its_folder(tmp_path):
    path = task(tmp_path, 1)
    outside = tmp_path / "secret"
    outside.write_text("x")
    facts = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    seal = json.loads((path / "seal.json").read_text())
    (path / "seal.json").write_text(json.dumps({**seal, "../secret": facts, str(outside): facts}))
    assert "missing" in savepoints.trouble(path)


# headers ------------------------------------------------------------------------------------------------------------
def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape=(2,), span=(0, 8), dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span), **more}


HOSTILE = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "an endless header": raw({}, length=2**64 - 1),
    "a header of the whole memory": raw({}, length=2**40),
    "a header beyond the file": raw({"a": entry()}, bytes(8), length=500),
    "a header within the limit that is not there": raw(b"{", length=2),
    "not text": raw(b"\xff\xfe{}"),
    "not JSON": raw(b"{'a': 1}"),
    "deep": raw(b'{"a":' * 100_000),
    "a list": raw([1]),
    "a name twice": raw(
        b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", bytes(8)
    ),
    "an entry that is a number": raw({"a": 3}),
    "an entry with more": raw({"a": entry(code="x")}, bytes(8)),
    "unknown type": raw({"a": entry(dtype="O")}, bytes(8)),
    "a type that is a list": raw({"a": entry(dtype=["F32"])}, bytes(8)),
    "negative shape": raw({"a": entry((-2,), (0, -8))}, bytes(8)),
    "a shape of fractions": raw({"a": entry((2.0,))}, bytes(8)),
    "a shape of truths": raw({"a": entry((True, True), (0, 4))}, bytes(4)),
    "a huge shape": raw({"a": entry((2**40, 2**40), (0, 8))}, bytes(8)),
    "a huge shape with its bytes": raw({"a": entry((2**45,), (0, 2**47))}, bytes(8)),
    "a shape that overflows 64 bits": raw({"a": entry((2**32, 2**32), (0, 0))}),
    "many dimensions": raw({"a": entry((1,) * 1000, (0, 4))}, bytes(4)),
    "bytes for another shape": raw({"a": entry((3,))}, bytes(8)),
    "bytes backwards": raw({"a": entry((2,), (8, 0))}, bytes(8)),
    "overlap": raw({"a": entry(), "b": entry((2,), (4, 12))}, bytes(12)),
    "the same bytes": raw({"a": entry(), "b": entry()}, bytes(8)),
    "a gap": raw({"a": entry(), "b": entry((2,), (12, 20))}, bytes(20)),
    "bytes of nobody": raw({"a": entry()}, bytes(9)),
    "too few bytes": raw({"a": entry()}, bytes(7)),
    "metadata that are numbers": raw({"__metadata__": {"x": 1}}),
    "metadata that are a list": raw({"__metadata__": [1]}),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_in_one_line_and_at_once(tmp_path, data):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    begun = time.monotonic()
    with pytest.raises(ValueError) as refusal:
        checked_header(path)
    assert time.monotonic() - begun < 5
    assert len(str(refusal.value)) < 300 and "\n" not in str(refusal.value)


def test_a_good_header_says_what_is_there(tmp_path):
    tensors = {
        "a": torch.ones(2, 3),
        "b": torch.ones(4, dtype=torch.int64),
        "c": torch.zeros(0, 5),
        "d": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "a.safetensors", {"x": "y"})
    entries, about = checked_header(tmp_path / "a.safetensors")
    assert {n: (e.dtype, e.shape) for n, e in entries.items()} == {
        "a": ("F32", (2, 3)), "b": ("I64", (4,)), "c": ("F32", (0, 5)), "d": ("F32", ())
    }  # fmt: skip
    assert about == {"x": "y"}
    (tmp_path / "empty").write_bytes(raw({}))
    assert checked_header(tmp_path / "empty") == ({}, {})


# lock ---------------------------------------------------------------------------------------------------------------
def test_a_lock_that_could_not_write_its_owner_says_why(tmp_path, monkeypatch):
    """On a full disk the first thing that fails is this; it must not end in an error about something else."""
    run = Run.open(SMOKE, tmp_path / "run")
    write = Path.write_text

    def full(self, *args, **kwargs):
        if self.name == ".owner":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"), run.lock():
            raise AssertionError("no lock was had")
    with run.lock():
        assert (run.path / ".owner").exists()
    assert "LEARNGENE_LOCKED" not in os.environ


@pytest.mark.parametrize("number", ["ENOSYS", "ENOLCK"])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, number):
    import filelock

    run = Run.open(SMOKE, tmp_path / "run")

    def none(*_, **__):
        raise OSError(getattr(errno, number), "no locks")

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    with pytest.raises(StudyError, match="knows no locks.*choose an --out"), run.lock():
        raise AssertionError("no lock was had")


@contextlib.contextmanager
def only_readable(folder):
    """The folder can be read and not written meanwhile, also by root; skips where that cannot be arranged."""
    if os.geteuid() == 0:
        for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]):
            if subprocess.run(command, capture_output=True).returncode:
                pytest.skip("nothing may be mounted here, and nothing is read-only to root")
    else:
        folder.chmod(0o500)
    try:
        yield
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", folder], check=True)
        else:
            folder.chmod(0o700)


@pytest.mark.skipif(os.name == "nt", reason="modes and mounts")
def test_a_run_that_may_only_be_read_is_read_and_says_so_when_more_is_asked(smoke_copy, capsys):
    common = ["--preset", "smoke", "--out", str(smoke_copy)]
    before = snapshot(smoke_copy)
    with only_readable(smoke_copy):
        assert cli.main(["info", str(smoke_copy)]) == 0
        assert cli.main(["reconstruct", *common]) == 0, capsys.readouterr().err
        assert "gain over scratch" in capsys.readouterr().out
        for more in (["--redo", "criteria"], ["--set", "tune_tasks=4"]):
            assert cli.main(["criteria", *common, *more]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert str(smoke_copy) in line and "may only be read" in line and "--out" in line
    assert snapshot(smoke_copy) == before


@pytest.mark.skipif(os.name == "nt", reason="modes and mounts")
def test_a_finished_study_that_may_only_be_read_is_shown(smoke_copy, capsys):
    run = Run.open(SMOKE, smoke_copy)
    for stage in info.STUDY:
        if not run.done(stage):
            with run.computing(stage, []):
                pass
    (smoke_copy / "notebooks").mkdir()
    for path in notebooks.numbered():
        shutil.copy(path, smoke_copy / "notebooks")
    (smoke_copy / "report.html").write_text("<html>")
    marks = {p.name: study._mark(SMOKE, p) for p in notebooks.numbered()}
    write_json(smoke_copy / "notebooks" / "index.json", marks)
    before = snapshot(smoke_copy)
    with only_readable(smoke_copy):
        assert cli.main(["study", "--preset", "smoke", "--out", str(smoke_copy)]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "is finished; reused as it is" in said and "gain over scratch" in said
    assert snapshot(smoke_copy) == before
    (copy, *_) = sorted((smoke_copy / "notebooks").glob("*.ipynb"))
    copy.write_text(copy.read_text()[:2000])  # a damaged copy is no finished notebook
    assert [p.name for p in study._to_run(run)] == [copy.name]
    (smoke_copy / "notebooks" / "index.json").write_text("[]")
    assert study._to_run(run) == notebooks.numbered()


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes")
def test_trainings_side_by_side_end_with_the_process_that_started_them(tmp_path):
    """A killed command must not leave one behind that goes on writing into its run."""
    (tmp_path / "job.py").write_text(
        "import os, sys, time\ndef work(path):\n    open(path, 'w').write(str(os.getpid()))\n    time.sleep(60)\n"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nimport job\nfrom learngene_core.processes import side_by_side\n"
        "if __name__ == '__main__':\n    side_by_side(job.work, [sys.argv[1] + '/a', sys.argv[1] + '/b'], 2)\n"
    )
    (tmp_path / "main.py").write_text(code)
    process = subprocess.Popen([sys.executable, tmp_path / "main.py", tmp_path])
    try:
        workers = [wait_for(tmp_path / name) for name in "ab"]
    finally:
        process.kill()
        process.wait()
    end = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def wait_for(path):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


def alive(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


# troubles of the system -----------------------------------------------------------------------------------------------
class SafetensorError(Exception):
    """As the library's own, which passes on the system's words alone."""


@pytest.mark.parametrize(
    ("error", "texts"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["disk is full", "No space left", "same command goes on"]),
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a.csv"), ["disk is full", "/runs/a.csv"]),
        (OSError(getattr(errno, "EDQUOT", errno.ENOSPC), "Disk quota exceeded"), ["disk is full", "quota"]),
        (OSError(errno.EFBIG, "File too large"), ["disk is full", "too large"]),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            ["disk is full", "No space left on device"],
        ),
        (
            StudyError("03.ipynb, cell 4: OSError: [Errno 28] No space left on device"),
            ["disk is full", "No space left"],
        ),
        (OSError(errno.EROFS, "Read-only file system", "/runs/b"), ["/runs/b", "Read-only", "another --out"]),
        (PermissionError(errno.EACCES, "Permission denied", "/runs/b"), ["/runs/b", "Permission denied", "--out"]),
    ],
)
def test_a_trouble_of_the_system_says_what_to_do_in_one_line(monkeypatch, capsys, error, texts):
    def fails(_):
        raise error

    monkeypatch.setattr(cli, "_run", fails)
    assert cli.main(["divide"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert all(text in line for text in texts), line
    assert "--debug" not in line


def test_other_errors_are_left_to_speak_for_themselves():
    for error in (ValueError("boom"), OSError(errno.EIO, "Input/output error"), StudyError("no"), OSError()):
        assert explained(error) is None


# guards -------------------------------------------------------------------------------------------------------------
def walked(n_epochs, loss, accuracy, cfg, n_images, n_tasks=4):
    """History rows of `n_epochs` epochs, and the tasks they were trained on."""
    ways = cfg.source_way
    tasks = [
        types.SimpleNamespace(
            number=t, classes=tuple(f"c{ways * t + i}" for i in range(ways)), train=np.zeros(n_images)
        )
        for t in range(1, n_tasks + 1)
    ]
    each = -(-n_epochs // n_tasks)
    rows = [
        {"phase": "train", "task": 1 + e // each, "epoch": 1 + e % each, "loss": loss(e), "accuracy": accuracy(e)}
        for e in range(n_epochs)
    ]
    return rows, tasks


def said_over(rows, tasks, cfg, capsys):
    capsys.readouterr()
    said = []
    for k in range(1, len(rows) + 1):
        guards.warn_if_dead(rows[:k], tasks, cfg)
        if text := capsys.readouterr().out:
            said.append((k, text))
    return said


def test_a_dead_network_is_said_once_with_what_to_do(capsys):
    cfg = Config.preset("lecture")
    rows, tasks = walked(40, lambda e: math.log(8) + 0.01, lambda e: 12.0, cfg, 800)
    said = said_over(rows, tasks, cfg, capsys)
    (at, text) = said[0]
    assert len(said) == 1 and at == max(10, math.ceil(200 / math.ceil(800 / cfg.batch_size)))
    assert "loss 2.089 where a guess has 2.079" in text and "12.0 %" in text and "12.5 %" in text
    assert "learning_rate (now 0.03)" in text and len(text.splitlines()) == 1
    # resumed: the rows of the tasks before are there again, and it is not said again
    assert said_over(rows[at:], tasks, cfg, capsys) == [] or at < 20


@pytest.mark.parametrize(
    ("loss", "accuracy"),
    [
        (lambda e: math.log(8) * 0.95, lambda e: 12.5),  # the loss moves
        (lambda e: math.log(8), lambda e: 20.0),  # the accuracy is no guess's
        (lambda e: math.log(8) - 0.01 * e, lambda e: 12.5 + e),  # it learns slowly
        (lambda e: math.log(8) if e % 9 else 1.0, lambda e: 12.5),  # it learns now and then
    ],
    ids=["loss", "accuracy", "slow", "now and then"],
)
def test_a_network_that_learns_is_no_alarm(capsys, loss, accuracy):
    cfg = Config.preset("lecture")
    assert said_over(*walked(60, loss, accuracy, cfg, 800), cfg, capsys) == []


def test_the_smoke_preset_is_at_chance_by_design_and_no_alarm(capsys):
    cfg = SMOKE
    n = cfg.first_task_epochs + cfg.epochs * (cfg.n_source_tasks - 1)
    images = cfg.source_way * cfg.source_images
    rows, tasks = walked(n, lambda e: math.log(4) + 0.1, lambda e: 25.0, cfg, images)
    assert said_over(rows, tasks, cfg, capsys) == []


def test_over_all_classes_so_far_chance_is_among_all_of_them(capsys):
    cfg = Config.preset("lecture", loss="class-incremental")
    rows, tasks = walked(40, lambda e: math.log(8 * (1 + e // 10)), lambda e: 100 / 8 / (1 + e // 10), cfg, 800)
    assert len(said_over(rows, tasks, cfg, capsys)) == 1
    rows, tasks = walked(40, lambda e: math.log(8), lambda e: 12.5, cfg, 800)  # better than chance among 32
    assert [k for k, _ in said_over(rows[12:], tasks, cfg, capsys)] == []


def small_fit(penalty, rate, form_rows=3):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 2, 2), generator=generator).to(torch.uint8)
    recipe = Recipe(form_rows, 4, rate, "constant", 0.0, 0.0, 0, False, torch.full((3,), 0.5), torch.full((3,), 0.25))
    labels = torch.arange(8) % 2
    held = penalty(net)
    return fit(
        net, images, labels, task_loss(), recipe, penalty=held, where="source task 2",
        stream=lambda epoch: torch.Generator().manual_seed(epoch),
    )  # fmt: skip


def penalty_of(form, strength=1.0):
    def make(net):
        named = dict(net.named_parameters())
        return Penalty(net, named, {n: torch.ones_like(p) for n, p in named.items()}, strength, form)

    return make


def test_a_penalty_that_never_bites_is_an_error_that_says_so():
    with pytest.raises(
        StudyError, match=r"EWC penalty of source task 2 is exactly zero after 2 steps.*raise"
    ) as refusal:
        small_fit(penalty_of("penalty", 1e-44), 0.1)
    assert "\n" not in str(refusal.value)
    with pytest.raises(StudyError, match="exactly zero"):
        small_fit(penalty_of("penalty"), 1e-30)  # the weights do not move
    assert small_fit(penalty_of("penalty"), 0.1)[-1]["penalty"] > 0
    assert len(small_fit(penalty_of("proximal", 1e30), 0.1)) == 3  # it holds so fast that nothing moves
    assert len(small_fit(lambda net: training.Frozen(net, {"1.bias": torch.ones(2)}), 0.1)) == 3


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_a_criterion_over_a_constant_record_says_that_it_cannot_choose(name):
    """It must not take the first layers, or the last, as if they had been found."""
    layers, columns = ("conv1", "conv2", "conv3"), ("norm", "rms", "norm_times_weight", "weight_norm", "relative_norm")
    rows = [{"layer": n, "n_weights": 9, **dict.fromkeys(columns, 1.0)} for n in layers]
    counts, zeros = np.ones((3, 2, N_BINS), int), np.ones(3, int)
    entries = [{"task": t, "epoch": 1, "rows": rows, "counts": counts, "zeros": zeros} for t in (1, 2, 3)]
    null = [{**row, "task": t, "network": k} for k in (1, 2) for t in (1, 2) for row in rows]
    record = Record.of_epochs(layers, entries, null, np.ones((2, 2, 3, 2, N_BINS), int), np.ones((2, 2, 3), int))
    with pytest.raises(StudyError, match=f"criterion '{name}' .*set another criterion, or layers") as refusal:
        criteria.choose(record, Config(criterion=name, n_blocks=2))
    assert "\n" not in str(refusal.value)


# determinism ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def torch_as_before():
    before = torch.are_deterministic_algorithms_enabled(), os.environ.pop(determinism.WORKSPACE, None)
    yield
    torch.use_deterministic_algorithms(before[0])
    os.environ.pop(determinism.WORKSPACE, None)
    if before[1] is not None:
        os.environ[determinism.WORKSPACE] = before[1]


@pytest.mark.usefixtures("torch_as_before")
def test_deterministic_is_kept_in_machine_json_and_in_no_hash(tmp_path):
    cfg = SMOKE.replace(deterministic=True, device="cpu")
    assert all(cfg.stage_hash(s) == SMOKE.stage_hash(s) for s in ("collective", "reconstruct", "claims"))
    run = Run.open(cfg, tmp_path / "run")
    assert run.machine.deterministic
    assert json.loads((run.path / "machine.json").read_text())["deterministic"] is True
    assert Run.open(SMOKE, run.path).machine.deterministic, "resumed as it was begun"
    Run.open(SMOKE, tmp_path / "plain").machine  # noqa: B018
    with pytest.raises(StudyError, match="made without deterministic.*--out"):
        Run.open(cfg, tmp_path / "plain").machine  # noqa: B018


def test_a_machine_of_an_earlier_version_was_not_deterministic(tmp_path):
    run = Run.open(SMOKE, tmp_path / "run")
    values = json.loads((run.machine and run.path / "machine.json").read_text())
    del values["deterministic"]
    (run.path / "machine.json").write_text(json.dumps(values))
    assert Machine.stored(run.path / "machine.json").deterministic is False


@pytest.mark.usefixtures("torch_as_before")
def test_gpus_are_asked_for_deterministic_operations_and_a_fixed_workspace():
    determinism.apply("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    determinism.apply("cuda:0")
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ[determinism.WORKSPACE] == ":4096:8"
    os.environ[determinism.WORKSPACE] = ":16:8"  # the other setting that is deterministic
    determinism.prepare()
    assert os.environ[determinism.WORKSPACE] == ":16:8"


@pytest.mark.usefixtures("torch_as_before")
def test_a_run_resumed_at_any_stage_is_deterministic_again(tmp_path, monkeypatch):
    """Not only where the collective is trained: individuals of a loaded one must be too."""
    run = Run.open(SMOKE, tmp_path / "run")
    values = {**dataclasses.asdict(run.machine), "device": "cuda", "deterministic": True}
    write_json(run.path / "machine.json", values)
    monkeypatch.setattr(Machine, "available", staticmethod(lambda device: True))
    assert not torch.are_deterministic_algorithms_enabled()
    assert Run.open(SMOKE, run.path).machine.deterministic
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.usefixtures("torch_as_before")
def test_the_cost_of_determinism_is_measured_and_said(monkeypatch, capsys):
    modes, uses = [], []

    def step(run):
        modes.append(torch.are_deterministic_algorithms_enabled())
        return 0.003 if modes[-1] else 0.002

    monkeypatch.setattr("learngene_core.cost.collective_step", step)
    machine = types.SimpleNamespace(
        deterministic=True, device="cuda", use=lambda: uses.append(1) or torch.use_deterministic_algorithms(True)
    )
    cost.say_determinism(types.SimpleNamespace(machine=machine))
    assert capsys.readouterr().out == (
        "deterministic: equal results on every call on cuda; a training step takes 1.50 times as long (3.0 ms for 2.0 ms)\n"
    )
    assert modes == [False, True] and torch.are_deterministic_algorithms_enabled()
    machine.device = "cpu"
    cost.say_determinism(types.SimpleNamespace(machine=machine))
    assert "costs nothing" in capsys.readouterr().out
    machine.deterministic = False
    cost.say_determinism(types.SimpleNamespace(machine=machine))
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.usefixtures("torch_as_before")
def test_a_deterministic_gpu_run_is_equal_to_the_bit(tmp_path, glyph_images):
    from toys import states_equal, toy_config

    from learngene_core.collective import train_collective
    from learngene_core.data.division import divide, source_tasks

    cfg = toy_config(device="cuda", deterministic=True, hidden=(16,), dropout=0.5)
    div = divide(glyph_images, cfg)
    src = source_tasks(glyph_images, div, cfg)
    one, two = (train_collective(glyph_images, div, src, cfg, Run.open(cfg, tmp_path / n)) for n in "ab")
    assert states_equal(dict(one.model.state_dict()), dict(two.model.state_dict()))
    assert (tmp_path / "a" / "gradients.csv").read_bytes() == (tmp_path / "b" / "gradients.csv").read_bytes()
