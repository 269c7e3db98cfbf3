"""Faults that are really injected: kills at random moments, a full disk, truncated files, two commands on one folder.

The runs are small but whole commands in processes of their own. What they leave must end, after the same command was called
again, equal to a run that nothing happened to: to the bit in weights, to the byte in tables.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import snapshot

from learngene_core.files import UNFINISHED, StudyError, read_json

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="SIGKILL and mounts")]

ROOT = Path(__file__).parent.parent
MAIN = "import sys; from learngene_core.cli import main; sys.exit(main())"
# the learngene is chosen by the atlas, so that one command goes through collective, record, atlas, criteria and reconstruct
SMALL = {
    "source_images": 12, "held_out_images": 8, "n_source_tasks": 6, "source_way": 3, "growth_start": 1, "support_pool": 12,
    "query_images": 8, "epochs": 2, "first_task_epochs": 2, "batch_size": 12, "fisher_images": 12, "null_networks": 2,
    "null_steps": 1, "n_target_tasks": 4, "n_way": 2, "shots": "[4]", "individual_epochs": 10, "individual_batch": 4,
    "criterion": "recommended", "atlas_shots": 4, "atlas_length": 6, "atlas_epochs": 2, "atlas_tasks": 2,
    "atlas_pseudo_tasks": 2, "workers": 1, "device": "cpu",
}  # fmt: skip
STAGES = ("collective", "atlas", "reconstruct")
BEFORE = {"collective": "division", "atlas": "collective", "reconstruct": "criteria"}
TIMED = {"timings.csv", "progress.json", ".progress.tmp", ".lock", ".owner"}  # times, and what only the living read


def start(out, *more, verb="reconstruct", changes=None, limit=None, cache=None):
    """The command, begun in a process of its own."""
    settings = [f"--set={n}={v}" for n, v in {**SMALL, **(changes or {})}.items()]
    env = {k: v for k, v in os.environ.items() if k != "LEARNGENE_LOCKED"}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | ({"LEARNGENE_CACHE": str(cache)} if cache else {})

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-c", MAIN, verb, "--preset", "smoke", "--out", str(out), *settings, *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=Path(out).parent,
        preexec_fn=small_files if limit else None,
    )  # fmt: skip


def ended(process, timeout=120):
    """Status, standard output and standard error of a command that has to end."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def finished(out, **options):
    """The command, called again until its end, which must be a good one. Returns what it said."""
    status, said, err = ended(start(out, **options))
    assert status == 0, err
    return said


def results(out):
    """Every file of a run that is not about time."""
    files = {n: h for n, h in snapshot(Path(out)).items() if n.rsplit("/")[-1] not in TIMED}
    assert not [n for n in files if n.endswith(UNFINISHED)], "half-written files were left"
    return files


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing happens to, and the seconds of its stages."""
    out = tmp_path_factory.mktemp("reference") / "run"
    finished(out)
    files = results(out)
    assert {"history.csv", "gradients.csv", "histograms.npz", "atlas_cells.csv", "learngene.safetensors", "results.csv",
            "curves.csv", "machine.json", "collective/task_06/model.safetensors"} <= set(files)  # fmt: skip
    rows = [line.split(",") for line in (out / "timings.csv").read_text().splitlines()]
    return files, {name: float(seconds) for kind, name, seconds in rows if kind == "stage"}


def at_work(out, process, stage):
    """Whether the process holds the folder's lock and everything before `stage` is finished."""
    try:
        mine = (out / ".owner").read_text().startswith(f"process {process.pid} ")
        return mine and BEFORE[stage] in read_json(out / "manifest.json")
    except (OSError, StudyError):
        return False


def killed(out, stage, seconds):
    """Start the command, wait until it works on `stage`, let it go on for some seconds, and kill it.

    Returns the stage that was hit, or None when the command had ended (the kill then hit nobody).
    """
    process = start(out)
    try:
        end = time.monotonic() + 60
        while not at_work(out, process, stage):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.01)
        time.sleep(seconds)
        hit = process.poll() is None and at_work(out, process, stage)
        done = read_json(out / "manifest.json")
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    if not hit or process.returncode != -signal.SIGKILL:
        return None
    assert str(process.pid) in (out / ".owner").read_text(), "it died with the lock in its hand"
    return next(s for s in STAGES if s not in done)


def test_twenty_kills_at_random_moments_change_nothing(reference, tmp_path):
    files, seconds = reference
    moments, hits, begun = random.Random(7), [], time.monotonic()
    plans = [("collective",) * 3 + ("atlas",) * 2 + ("reconstruct",) * 2] * 2
    plans.append(("collective",) * 2 + ("atlas",) * 2 + ("reconstruct",) * 2)
    for number, plan in enumerate(plans):
        out, share = tmp_path / f"run{number}", 1.0
        for k, stage in enumerate(plan):
            share = share * 0.8 if k and plan[k - 1] == stage else 1.0  # less is left of a stage that was hit before
            for _ in range(5):
                if done := out.joinpath("manifest.json").exists() and stage in read_json(out / "manifest.json"):
                    break
                if hit := killed(out, stage, moments.uniform(0.02, 0.7) * share * seconds[stage]):
                    hits.append(hit)
                    break
            assert not done, f"{stage} ended before it could be hit {plan.count(stage)} times"
        finished(out)
        assert results(out) == files
    assert len(hits) == 20
    assert {stage: hits.count(stage) for stage in STAGES} == {"collective": 8, "atlas": 6, "reconstruct": 6}
    assert time.monotonic() - begun < 600


def test_a_truncated_newest_file_changes_nothing(reference, tmp_path):
    """Whatever was written last is cut in half after the kill; the run goes on from what is whole, and says so."""
    files, seconds = reference
    out = tmp_path / "run"
    assert killed(out, "collective", 0.8 * seconds["collective"]) == "collective"
    saved = [p for p in out.glob("collective/task_*/*") if not p.name.endswith(UNFINISHED)]
    newest = max(saved, key=lambda p: p.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    said = finished(out)
    assert newest.name in said and f"{newest.parent.name}: " in said, said
    assert results(out) == files
    out = tmp_path / "pieces"
    shutil.copytree(tmp_path / "run", out)
    redone = start(out, "--redo", "atlas")
    while not list(out.glob(".parts/atlas/*.json")) and redone.poll() is None:
        time.sleep(0.01)
    redone.kill()
    ended(redone)
    newest = max(out.glob(".parts/atlas/*.json"), key=lambda p: p.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    finished(out)
    assert results(out) == files


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own of 6 MB, or None where nothing may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True)
    if made.returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


# without mounts: the verb that computes what is before a stage, and a size that some file of the stage is above, in bytes
LIMITED = {"collective": (None, 300_000), "atlas": ("collective", 5000), "reconstruct": ("criteria", 2500)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_and_loses_nothing(reference, tmp_path, small_disk, stage):
    files, _ = reference
    if small_disk is None:
        print("no file system can be mounted here: a limit on the size of files stands for a full disk")
        out, verb, limit = tmp_path / "run", *LIMITED[stage]
        if verb:
            finished(out, verb=verb)
        status, _, err = ended(start(out, limit=limit))
    else:
        out, ballast = small_disk / "run", small_disk / "ballast"
        process = start(out)
        while not at_work(out, process, stage):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(0.2)
        with open(ballast, "wb", buffering=0) as file:  # from here on there is no room
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        status, _, err = ended(process)
        ballast.unlink()
    assert status == 1, err
    (line,) = [text for text in err.splitlines() if text.startswith("learngene: ")]
    assert "the disk is full" in line and "the same command goes on" in line, err
    assert "Traceback" not in err
    assert not list(out.rglob(f".*{UNFINISHED}")), "what could not be written is in the way"
    finished(out)
    assert results(out) == files
