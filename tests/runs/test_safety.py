"""Nothing half-written, nothing silent: files, seals of saved tasks, the lock of a run folder, processes side by side."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from conftest import snapshot
from readonly import only_readable
from safetensors.torch import save_file

from learngene_core import errors
from learngene_core.config import Config
from learngene_core.errors import UNFINISHED, StudyError, atomic, read_json, sweep_unfinished, write_json
from learngene_core.runs import seals
from learngene_core.runs.run import Run
from learngene_core.study import cli

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
    monkeypatch.setattr(errors.os, "open", lambda p, *a: refuses() if Path(p).is_dir() else opened(p, *a))
    write_json(tmp_path / "a.json", [1])
    assert read_json(tmp_path / "a.json") == [1]


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
    path = seals.task_folder(folder, number)
    path.mkdir(parents=True)
    save_file({"model/a": torch.full((50,), float(number))}, path / "model.safetensors")
    np.savez_compressed(path / "record.npz", counts=np.arange(40), zeros=np.arange(3))
    lists = {name: [number] for name in ("class_names", "mean", "std", "history", "record")}
    write_json(path / "about.json", {"stage_hash": stage_hash, "shape": {}, **lists})
    seals.seal(path)
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
    assert seals.whole_tasks(tmp_path) == 3
    assert capsys.readouterr().out == ""
    path = tmp_path / "task_03" / name
    data = path.read_bytes()
    path.unlink()
    if DAMAGES[damage]:
        path.write_bytes(DAMAGES[damage](data))
    found, said = seals.whole_tasks(tmp_path), capsys.readouterr().out
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
    seals.unseal(path)
    assert seals.trouble(path) is None
    data = (path / name).read_bytes()
    (path / name).unlink()
    if DAMAGES[damage]:
        (path / name).write_bytes(DAMAGES[damage](data))
    if (name, damage) == ("record.npz", "longer"):  # a zip archive is found from its end, whatever is before or behind
        return
    assert name in seals.trouble(path)
    assert seals.whole_tasks(tmp_path) == 0


def test_a_task_that_was_being_saved_is_no_damage(tmp_path, capsys):
    task(tmp_path, 1)
    path = task(tmp_path, 2)
    seals.unseal(path)
    (path / "about.json").unlink()
    assert seals.whole_tasks(tmp_path) == 1
    assert seals.whole_tasks(tmp_path / "nothing") == 0
    assert capsys.readouterr().out == ""


def test_a_gap_ends_the_count_and_what_is_behind_is_forgotten_unless_it_is_anothers(tmp_path):
    for number in (1, 2, 3, 4):
        task(tmp_path, number, "mine" if number < 4 else "another")
    shutil.rmtree(tmp_path / "task_02")
    assert seals.whole_tasks(tmp_path) == 1
    before = snapshot(tmp_path)
    with pytest.raises(StudyError, match="task_04 was begun with another configuration.*--redo collective"):
        seals.forget_after(tmp_path, 1, "mine")
    assert snapshot(tmp_path) == before
    shutil.rmtree(tmp_path / "task_04")
    (tmp_path / "task_xx").mkdir()
    seals.forget_after(tmp_path, 1, "mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["task_01", "task_xx"]


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"about.json": 3}', '{"about.json": {"sha256": "x"}}'])
def test_a_seal_that_is_none_is_damage(tmp_path, text):
    path = task(tmp_path, 1)
    (path / "seal.json").write_text(text)
    assert "seal.json is damaged" in seals.trouble(path)


@pytest.mark.parametrize("text", ["{}", "[]", '{"stage_hash": "h", "history": {}}'])
def test_notes_that_lack_something_are_damage_also_under_a_seal(tmp_path, text):
    path = task(tmp_path, 1)
    (path / "about.json").write_text(text)
    seals.seal(path)
    assert seals.trouble(path) == "about.json is damaged"


def test_a_seal_reads_nothing_outside_its_folder(tmp_path):
    path = task(tmp_path, 1)
    outside = tmp_path / "secret"
    outside.write_text("x")
    facts = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    seal = json.loads((path / "seal.json").read_text())
    (path / "seal.json").write_text(json.dumps({**seal, "../secret": facts, str(outside): facts}))
    assert "missing" in seals.trouble(path)


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
    run = Run.open(SMOKE, tmp_path / "run")

    def none(*_, **__):
        raise OSError(getattr(errno, number), "no locks")

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    with pytest.raises(StudyError, match="knows no locks.*choose an --out"), run.lock():
        raise AssertionError("no lock was had")


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


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes")
def test_trainings_side_by_side_end_with_the_process_that_started_them(tmp_path):
    """A killed command must not leave one behind that goes on writing into its run."""
    (tmp_path / "job.py").write_text(
        "import os, sys, time\ndef work(path):\n    open(path, 'w').write(str(os.getpid()))\n    time.sleep(60)\n"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nimport job\nfrom learngene_core.runs.machine import side_by_side\n"
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
