"""Faults that are really injected: kills at random moments, a full disk, truncated files, two commands on one folder.

The runs are small but whole commands in processes of their own. What they leave must end, after the same command was called
again, equal to a run that nothing happened to: to the bit in weights, to the byte in tables.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import snapshot

from learngene_core.errors import UNFINISHED, StudyError, read_json
from learngene_core.study import cli

resource = pytest.importorskip("resource", reason="SIGKILL, mounts and limits of POSIX systems")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from learngene_core.study.cli import main; sys.exit(main())"
# the learngene is chosen by the atlas, so that one command goes through collective, record, atlas, criteria and reconstruct
SMALL = {
    "source_images": 12, "held_out_images": 8, "n_source_tasks": 6, "source_way": 3, "growth_start": 1, "support_pool": 12,
    "query_images": 8, "epochs": 4, "first_task_epochs": 4, "batch_size": 12, "fisher_images": 12, "null_networks": 2,
    "null_steps": 1, "n_target_tasks": 4, "n_way": 2, "shots": "[4]", "individual_epochs": 16, "individual_batch": 4,
    "methods": "[scratch, learngene]", "criterion": "recommended",
    "atlas_shots": 4, "atlas_length": 6, "atlas_epochs": 2, "atlas_tasks": 2,
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


def ended(process, timeout=300):
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


HITS = {"collective": 9, "atlas": 6, "reconstruct": 5}  # kills that have to hit a stage: twenty


def test_twenty_kills_at_random_moments_change_nothing(reference, tmp_path):
    """Several runs, each killed several times on its way; a kill that came too late for its stage is made up for."""
    files, seconds = reference
    moments, hits, plan = random.Random(7), [], ("collective",) * 3 + ("atlas",) * 2 + ("reconstruct",) * 2
    for number in range(8):
        out, share = tmp_path / f"run{number}", 1.0
        for before, stage in zip(("", *plan), plan, strict=False):
            share = 0.5 * share if before == stage else 0.6  # less is left of a stage that was hit before
            finished_already = (out / "manifest.json").exists() and stage in read_json(out / "manifest.json")
            if hits.count(stage) >= HITS[stage] or finished_already:
                continue
            if hit := killed(out, stage, moments.uniform(0.02, share) * seconds[stage]):
                hits.append(hit)
        finished(out)
        assert results(out) == files, f"run {number} of the kills {hits}"
        if all(hits.count(stage) >= HITS[stage] for stage in STAGES):
            break
    print({stage: hits.count(stage) for stage in STAGES}, "in", number + 1, "runs")
    assert len(hits) >= 20
    assert all(hits.count(stage) >= HITS[stage] for stage in STAGES), hits


def test_kills_right_after_a_task_was_saved_lose_nothing_of_it(reference, tmp_path):
    """Again and again on the way through the same run; the call that goes on says which tasks it found."""
    files, _ = reference
    out, said = tmp_path / "run", ""
    for number in (1, 3, 5):
        process = start(out)
        wait_until(lambda n=number: (out / "collective" / f"task_0{n}" / "seal.json").exists(), process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = {p: p.read_bytes() for p in out.glob(f"collective/task_0{number}/*")}
        assert len(kept) >= 4
    said = finished(out)
    found = int(said.split(" of 6 source tasks found")[0].split()[-1])
    assert found >= 5
    assert {p: p.read_bytes() for p in kept} == kept, "a task that was saved was trained again"
    assert results(out) == files


def test_a_truncated_newest_file_changes_nothing(reference, tmp_path):
    """Whatever was written last is cut in half after the kill; the run goes on from what is whole, and says so."""
    files, _ = reference
    out = tmp_path / "run"
    process = start(out)
    wait_until(lambda: (out / "collective" / "task_02" / "about.json").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    newest = max((out / "collective").glob("task_02/*"), key=lambda p: p.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    said = finished(out)
    assert newest.name in said and newest.parent.name in said, said
    assert results(out) == files
    out = tmp_path / "pieces"
    shutil.copytree(tmp_path / "run", out)
    redone = start(out, "--redo", "atlas")
    begun = "atlas"  # of the pieces, not those of the run before
    wait_until(lambda: at_work(out, redone, begun) and begun not in read_json(out / "manifest.json"), redone)
    wait_until(lambda: list(out.glob(".parts/atlas/*.json")), redone)
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
        wait_until(lambda: at_work(out, process, stage), process)
        time.sleep(0.1)
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


# two at once ----------------------------------------------------------------------------------------------------------
def test_of_two_on_one_run_folder_one_works_and_the_other_says_who_does(reference, tmp_path):
    out = tmp_path / "run"
    both = [start(out, verb="collective", changes={"epochs": 25}) for _ in range(2)]
    ends = [ended(process) for process in both]
    assert sorted(status for status, _, _ in ends) == [0, 1], ends
    (works,) = [p for p, (status, _, _) in zip(both, ends, strict=True) if status == 0]
    ((_, _, err),) = [end for end in ends if end[0] == 1]
    (line,) = err.splitlines()
    assert f"{out} is in use by process {works.pid} on " in line and "another --out" in line
    alone = tmp_path / "alone"
    finished(alone, verb="collective", changes={"epochs": 25})
    assert results(out) == results(alone)


def test_two_on_one_cold_cache_both_end_well(reference, tmp_path):
    cache = tmp_path / "cache"
    both = [start(tmp_path / name, verb="collective", cache=cache) for name in "ab"]
    ends = [ended(process) for process in both]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert sum("(once; kept in the cache)" in said for _, said, _ in ends) == 1, "the glyphs were drawn once"
    assert results(tmp_path / "a") == results(tmp_path / "b")
    assert not [p for p in cache.rglob("*") if p.name == "lock" or p.name.endswith(UNFINISHED)]


def kernels(process):
    import psutil

    with_kernel = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("ipykernel" in part for part in child.cmdline()):
                with_kernel.append(child)
        except psutil.Error:
            pass
    return with_kernel


def wait_until(true, process, seconds=90):
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


def test_of_two_studies_on_one_run_folder_one_works_and_ends_by_ctrl_c(reference, tmp_path):
    """And the kernels of a study that is killed do not go on writing into the folder."""
    out = tmp_path / "run"
    works = start(out, verb="study")
    try:
        wait_until(lambda: (out / ".owner").exists() and kernels(works), works)
        status, _, err = ended(start(out, verb="study"))
        (line,) = [text for text in err.splitlines() if text.startswith("learngene: ")]
        assert status == 1 and f"in use by process {works.pid} on " in line
        wait_until(
            lambda: "division" in read_json(out / "manifest.json") if (out / "manifest.json").exists() else False, works
        )
        left = kernels(works)
        works.send_signal(signal.SIGINT)
        status, _, err = ended(works, 40)
        assert (status, err.splitlines()[-1]) == (130, cli.TEXT)
        assert "Traceback" not in err and not any(kernel.is_running() for kernel in left)
        assert not (out / ".owner").exists()
        works = start(out, verb="study")
        wait_until(lambda: kernels(works), works)
        left = kernels(works)
        works.kill()
        works.communicate()
        end = time.monotonic() + 15
        while any(kernel.is_running() for kernel in left) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(kernel.is_running() for kernel in left), (
            "an orphan would write beside the next owner of the folder"
        )
    finally:
        works.kill()
    finished(out)
    files = results(out)
    assert {n: h for n, h in reference[0].items() if files.get(n) != h} == {}


def test_two_studies_on_one_cold_cache_both_end_well(tmp_path):
    both = [start(tmp_path / name, verb="study", cache=tmp_path / "cache") for name in "ab"]
    ends = [ended(process, 580) for process in both]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert all((tmp_path / name / "report.html").stat().st_size > 10_000 for name in "ab")
    tables = [
        {n: h for n, h in results(tmp_path / name).items() if n.endswith((".csv", ".safetensors"))} for name in "ab"
    ]
    assert tables[0] == tables[1] and len(tables[0]) > 10


# Ctrl+C ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("verb", "stage", "before"),
    [("collective", "collective", "division"), ("reconstruct", "atlas", "collective"), ("reconstruct", "reconstruct", "criteria"),
     ("openworld", "openworld", "collective"), ("tune", "tune", "criteria")],
)  # fmt: skip
def test_ctrl_c_ends_a_long_verb_cleanly_and_the_same_command_goes_on(reference, tmp_path, verb, stage, before):
    out, more = tmp_path / "run", {"tune_tasks": 8, "tune_rates": "[0.01, 0.02, 0.05, 0.1]", "open_resamples": 5000}
    process = start(out, verb=verb, changes=more)

    def works():
        try:
            mine = (out / ".owner").read_text().startswith(f"process {process.pid} ")
            return mine and before in read_json(out / "manifest.json")
        except (OSError, StudyError):
            return False

    wait_until(works, process)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    status, _, err = ended(process, 40)
    assert (status, err.splitlines()[-1:]) == (130, [cli.TEXT]), err
    assert "Traceback" not in err and stage not in read_json(out / "manifest.json")
    assert not (out / ".owner").exists() and not list(out.rglob(f".*{UNFINISHED}"))
    finished(out, verb=verb, changes=more)
    assert {n for n, h in results(out).items() if reference[0].get(n, h) != h} <= {"config.json", "manifest.json"}
