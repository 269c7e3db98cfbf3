"""Sweeps on real clusters: complete tables, killed workers, killed sweeps, failing points, and equality with single runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import yaml
from processes import kernels_below

from learngene_core.runs.info import inspect
from learngene_core.runs.run import Run
from learngene_core.study import point as sweeppoint
from learngene_core.study.chain import Chain
from learngene_core.study.grid import load_grid

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals")]
COMMAND = Path(sys.executable).with_name("learngene")
SMALL = {"n_source_tasks": 2, "source_way": 2, "source_images": 12, "held_out_images": 8, "support_pool": 12, "query_images": 8,
         "epochs": 1, "first_task_epochs": 1, "batch_size": 12, "fisher_images": 12, "null_networks": 2, "null_steps": 1,
         "n_target_tasks": 2, "n_way": 2, "individual_epochs": 1, "individual_batch": 4, "device": "cpu",
         "methods": ["scratch", "learngene", "ncm"]}  # fmt: skip
PRODUCT = {"seed": [0, 1, 2], "shots": [3, 4], "target_seed": [0, 1]}  # 12 points, 3 ancestors
ROWS = 2 * 5  # per point: two target tasks; light and same_shape scratch and learngene, ncm


def write_grid(folder: Path, **more) -> Path:
    path = folder / "twelve.yaml"
    values = {"preset": "smoke", "parameters": SMALL, "product": PRODUCT, **more}
    path.write_text(yaml.safe_dump(values))
    return path


def own_notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell("preset: str = ''\nseed: int = 0\nout: str = ''")]
    cells[0].metadata["tags"] = ["parameters"]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@contextlib.contextmanager
def started(*arguments, cwd: Path):
    """A process in a session of its own; it and all that it started are ended with the block."""
    process = subprocess.Popen(
        [str(a) for a in arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=cwd,
    )  # fmt: skip
    try:
        yield process
    finally:
        family = descendants(process.pid)
        for one in [process, *family]:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                one.kill()
        process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def still_there(processes: list[psutil.Process], seconds: float = 15) -> list[psutil.Process]:
    """Those that have not ended after so long. (One that has ended, but whom nobody has buried, has ended.)"""
    end = time.monotonic() + seconds
    while processes and time.monotonic() < end:
        alive = []
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        processes = alive
        time.sleep(0.1)
    return processes


def sweep(path: Path, out: Path, *more):
    return started(COMMAND, "sweep", path, "--out", out, *more, cwd=out.parent)


def until(condition, process, seconds=240):
    """Wait for a true value of condition(), which is returned."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def finished(out: Path) -> set[str]:
    return {path.parent.name for path in out.glob(f"*/{sweeppoint.DONE}")}


def busy_worker(pid: int, out: Path, points: set[str]):
    """A worker below process `pid` whose kernel works in one of `points`, and that point."""
    for worker in descendants(pid):
        with contextlib.suppress(psutil.Error):
            for folder in (Path(file.path).parent for file in worker.open_files() if file.path.endswith("/.task")):
                if folder.parent == out and folder.name in points and kernels_below(worker.pid):
                    return worker, folder.name
    return None


def check_whole(path: Path, out: Path) -> pd.DataFrame:
    """Every point is there, whole and complete; each ancestor was trained exactly once. Returns the table."""
    found = load_grid(path)
    table = pd.read_csv(out / "sweep.csv")
    assert table["point"].value_counts().to_dict() == {point.name: ROWS for point in found.points}
    assert len(found.points) == 12 and not table.drop(columns="final_loss").isna().any(axis=None)
    for point in found.points:
        assert inspect(out / point.name)["whole"], point.name
        stages = pd.read_csv(out / point.name / "timings.csv").query("kind == 'stage'")["name"]
        assert "collective" not in set(stages), "a point has trained an ancestor of its own"
    ancestors = [*(out / "shared").glob("*/timings.csv")]
    trained = [n for file in ancestors for n in pd.read_csv(file).query("kind == 'stage'")["name"]]
    assert len(ancestors) == 3 and trained.count("collective") == 3
    states = json.loads((out / "sweep.json").read_text())["points"]
    assert {entry["state"] for entry in states.values()} == {"finished"}
    return table


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory) -> pd.DataFrame:
    """The same points, each with a whole chain of its own, in this process, without any cluster."""
    folder = tmp_path_factory.mktemp("alone")
    parts = []
    for point in load_grid(write_grid(folder)).points:
        run = Run.open(point.cfg, folder / point.name)
        Chain(run).results  # noqa: B018 (computed when asked for)
        parts.append(run.read_table("results.csv").assign(point=point.name))
    return pd.concat(parts, ignore_index=True)


def assert_same_rows(table: pd.DataFrame, alone: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(table[alone.columns], alone, check_exact=True)


def test_a_sweep_that_is_killed_goes_on_and_a_killed_worker_costs_its_point_a_new_start(tmp_path, one_by_one):
    """LocalCluster and the study's own notebook: SIGKILL for the sweep, then for one of two workers."""
    path, out = write_grid(tmp_path), tmp_path / "sweep"
    points = {point.name for point in load_grid(path).points}
    with sweep(path, out, "--workers", 2) as process:
        until(lambda: len(finished(out)) >= 2, process)
        family = descendants(process.pid)
        process.kill()
        process.wait()
        assert not still_there(family), "the workers and kernels of a killed sweep end by themselves"
    before = {name: (out / name / sweeppoint.DONE).stat().st_mtime_ns for name in finished(out)}
    assert 2 <= len(before) < 12
    with sweep(path, out, "--workers", 2) as process:
        worker, point = until(lambda: busy_worker(process.pid, out, points - finished(out)), process)
        worker.kill()
        text = process.communicate(timeout=400)[0]
    assert process.returncode == 0, text
    assert f"{12 - len(before)} to run" in text and "12 of 12 points are finished" in text
    assert {name: (out / name / sweeppoint.DONE).stat().st_mtime_ns for name in before} == before, "a point ran twice"
    assert inspect(out / point)["whole"]
    assert_same_rows(check_whole(path, out), one_by_one)


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers, started as a person would; gives the address and the processes of the workers."""
    file = tmp_path / "scheduler.json"
    quiet = ("--no-dashboard",)
    dask = (sys.executable, "-m", "dask")
    worker = (
        *dask,
        "worker",
        "--scheduler-file",
        file,
        "--nthreads",
        1,
        "--local-directory",
        tmp_path / "scratch",
        *quiet,
    )
    scheduler = (*dask, "scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", file, *quiet)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(started(*scheduler, cwd=tmp_path))
        until(lambda: file.exists() and file.read_text().strip().endswith("}"), first, 60)
        workers = [stack.enter_context(started(*worker, cwd=tmp_path)) for _ in range(2)]
        yield json.loads(file.read_text())["address"], workers


def test_a_cluster_that_is_there_does_the_same_also_when_a_worker_is_killed(tmp_path, cluster, one_by_one):
    """With a notebook of one's own, which takes part in the sharing."""
    address, workers = cluster
    text = "from learngene_core import Config, Run\nfrom learngene_core.study.chain import Chain\n"
    own_notebook(tmp_path / "own.ipynb", text + "Chain(Run.open(Config.from_notebook(globals()), out)).results;")
    path, out = write_grid(tmp_path, notebook="own.ipynb", through="reconstruct"), tmp_path / "sweep"
    points = {point.name for point in load_grid(path).points}
    with sweep(path, out, "--scheduler", address) as process:
        until(lambda: len(finished(out)) >= 3, process)
        nanny = workers[0].pid
        worker, point = until(lambda: busy_worker(nanny, out, points - finished(out)), process)
        worker.kill()
        text = process.communicate(timeout=400)[0]
    assert process.returncode == 0, text
    assert inspect(out / point)["whole"]
    table = check_whole(path, out)
    own = {p.name: q.name for p, q in zip(load_grid(path).points, load_grid(write_grid(tmp_path)).points, strict=True)}
    assert_same_rows(table.assign(point=table["point"].map(own)), one_by_one)
    assert all(one.poll() is None for one in workers), "the cluster is its owner's to end"


def test_a_point_that_must_fail_leaves_the_others_and_is_listed(tmp_path):
    text = (
        "import os\nif seed == 7 and not os.path.exists('mended'):\n    raise RuntimeError('seven is\\nimpossible')\n"
    )
    own_notebook(tmp_path / "own.ipynb", text + "open(out + '/rows.csv', 'w').write(f'value\\n{seed}\\n')")
    product = {"seed": list(range(1, 13))}
    path = write_grid(tmp_path, notebook="own.ipynb", table="rows.csv", product=product)
    out = tmp_path / "sweep"
    with sweep(path, out, "--workers", 2) as process:
        text = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    table = pd.read_csv(out / "sweep.csv")
    assert table["value"].tolist() == table["seed"].tolist() == [seed for seed in range(1, 13) if seed != 7]
    (failed,) = [line for line in text.splitlines() if line.startswith("failed: ")]
    name = next(point.name for point in load_grid(path).points if point.cfg.seed == 7)
    assert name in failed and "impossible" in failed and "11 of 12 points are finished" in text
    kept = nbformat.read(out / name / "notebooks" / "own.ipynb", as_version=4)
    assert kept.cells[-1].outputs[-1].ename == "RuntimeError"
    entry = json.loads((out / "sweep.json").read_text())["points"][name]
    assert entry["state"] == "failed" and "impossible" in entry["error"]
    # once it can be done, it alone runs
    (tmp_path / "mended").touch()
    with sweep(path, out, "--workers", 2) as process:
        text = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and ", 1 to run" in text and "12 of 12 points are finished" in text
    assert sorted(pd.read_csv(out / "sweep.csv")["value"]) == product["seed"]


def test_ctrl_c_ends_everything_with_one_line_and_keeps_what_is_finished(tmp_path):
    own_notebook(
        tmp_path / "own.ipynb",
        "import time\ntime.sleep(0 if seed < 3 else 120)\nopen(out + '/rows.csv', 'w').write(f'value\\n{seed}\\n')",
    )
    path = write_grid(tmp_path, notebook="own.ipynb", table="rows.csv", product={"seed": list(range(1, 7))})
    out = tmp_path / "sweep"
    with sweep(path, out, "--workers", 2) as process:
        until(lambda: len(finished(out)) == 2, process)
        until(lambda: busy_worker(process.pid, out, {p.name for p in load_grid(path).points} - finished(out)), process)
        family = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        text = process.communicate(timeout=30)[0]
        assert not still_there(family), "something was left behind"
    assert process.returncode == 130
    assert text.splitlines()[-1] == "learngene: stopped; the same command goes on from the last finished task"
    assert "Traceback" not in text
    assert sorted(pd.read_csv(out / "sweep.csv")["value"]) == [1, 2]


def test_two_sweeps_in_one_folder_and_a_scheduler_that_is_not_there(tmp_path):
    import filelock

    path, out = write_grid(tmp_path), tmp_path / "sweep"
    with sweep(path, out, "--scheduler", "tcp://127.0.0.1:9") as process:
        text = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "no scheduler answers at 'tcp://127.0.0.1:9'" in text.splitlines()[-1]
    assert not out.exists()
    out.mkdir()
    with filelock.FileLock(out / ".lock"), sweep(path, out, "--workers", 1) as process:
        text = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "another sweep works in" in text.splitlines()[-1]
