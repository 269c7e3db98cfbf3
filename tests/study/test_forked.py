"""Forked kernels: processes of their own that give what started ones give, none left behind, and ordinary ones in their stead."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
from processes import gone, kernels_below, servers_below

from learngene_core.config import Config
from learngene_core.runs.run import Run
from learngene_core.study import cli, forked, kernels, notebooks, options, point
from learngene_core.study.chain import Chain

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
WAYS = ("forked", "started")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """Headless kernels, which may be forked whatever the caller's environment says."""
    monkeypatch.delenv(kernels.NO_FORK, raising=False)
    with kernels.quiet_kernels():
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_server_left():
    yield
    forked.close()
    assert not servers_below()


def is_forked(manager) -> bool:
    return isinstance(manager.provisioner.process, forked.Forked)


def printed(code: str, folder: Path, *, fork: bool = True, env: dict | None = None) -> str:
    """What a cell prints in a new kernel of either kind."""
    source, out = folder / "cell.ipynb", folder / "cell-out.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), source)
    with kernels.forking(fork):
        manager = kernels.start(env={**os.environ, **(env or {})})
    try:
        assert is_forked(manager) == fork
        chosen = {"kernel_name": kernels.KERNEL, "language": "python", "progress_bar": False, "km": manager}
        return papermill.execute_notebook(source, out, **chosen).cells[-1].outputs[0].text
    finally:
        kernels.end(manager)


FACTS = """
import json, os, resource, signal, sys, threading
import learngene_core, matplotlib, torch._dynamo
MODULES = {"learngene_core", "matplotlib", "torch", "MODULES"}
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
names = [n for n in globals() if not n.startswith("_") and n not in ("In", "Out", "get_ipython", "exit", "quit")]
import numpy, pandas
options = {name: pandas.get_option(name) for name in pandas._config.config._registered_options}
facts = {
    "names": sorted(set(names) - {"json", "os", "resource", "signal", "sys", "threading", "status"} - MODULES),
    "options of pandas": str(sorted(options.items())).lower(), "options of NumPy": str(sorted(numpy.get_printoptions().items())),
    "environment": dict(os.environ), "folder": os.getcwd(), "path": sys.path, "program": sys.argv[0],
    "leads its session and group": os.getsid(0) == os.getpgid(0) == os.getpid(),
    "signals": {int(s): str(signal.getsignal(s)).split(" at ")[0] for s in sorted(signal.valid_signals())},
    "system": {n: status[n] for n in ("Umask", "SigBlk", "SigIgn", "SigCgt", "Cpus_allowed_list")},
    "limits": [resource.getrlimit(getattr(resource, n)) for n in sorted(dir(resource)) if n.startswith("RLIMIT_")],
    "main": type(sys.modules["__main__"]).__name__, "input": sys.__stdin__.read(),
    "threads": sorted(t.name.rstrip("0123456789") for t in threading.enumerate()),
}
facts |= {"backend": matplotlib.rcParams["backend"], "threads of torch": torch.get_num_threads()}
print(json.dumps(facts))
"""


def test_a_forked_kernel_finds_what_a_started_one_finds(tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise RuntimeError('this file is not the standard library')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OF_THIS_TEST", "a\nb=c")
    own = {"OF_THE_KERNEL": "ü", "LEARNGENE_OWN": "1"}
    found = {way: json.loads(printed(FACTS, tmp_path, fork=way == "forked", env=own)) for way in WAYS}
    assert found["forked"]["environment"]["OF_THE_KERNEL"] == "ü" and found["forked"]["folder"] == str(tmp_path)
    assert found["forked"]["leads its session and group"]
    found["started"]["environment"].pop(kernels.NO_FORK)  # why it was not forked
    for name, value in found["started"].items():
        assert found["forked"][name] == value, name


def test_random_streams_are_those_of_new_processes(tmp_path):
    """Every process has its own, whether it is forked or started."""
    code = "import random, numpy, torch, uuid\n"
    code += "print(random.random(), numpy.random.rand(), uuid.uuid4(), torch.rand(1).item())"
    drawn = [printed(code, tmp_path, fork=fork).split() for fork in (True, True, False)]
    assert [len(set(kind)) for kind in zip(*drawn, strict=True)] == [3, 3, 3, 3]


def test_an_interrupt_is_heard_and_the_exit_status_comes_back(tmp_path):
    code = "import os, signal, time\ntry:\n    os.killpg(0, signal.SIGINT)\n    time.sleep(5)\n"
    code += "except KeyboardInterrupt:\n    print('heard')"
    assert printed(code, tmp_path) == "heard\n"
    for deed, status in (
        (lambda pid: os.kill(pid, signal.SIGKILL), -9),
        (lambda pid: os.kill(pid, signal.SIGTERM), -15),
    ):
        manager = kernels.start()
        process = manager.provisioner.process
        assert is_forked(manager) and process.poll() is None and kernels.alive(manager)
        deed(process.pid)
        assert process.wait(20) == status and not kernels.alive(manager)
        kernels.end(manager)


def test_a_kernel_that_has_ended_is_not_alive_although_its_server_is_too_busy_to_say_so():
    manager = kernels.start()
    (server,) = servers_below()
    server.suspend()
    resumed = threading.Timer(0.5, server.resume)
    try:
        os.kill(manager.provisioner.pid, signal.SIGKILL)
        assert gone([psutil.Process(manager.provisioner.pid)])
        resumed.start()
        assert not kernels.alive(manager) and manager.provisioner.process.returncode == -9
    finally:
        server.resume()
    kernels.end(manager)


def test_a_kernel_whose_server_was_killed_ends_and_the_next_one_has_a_new_server(tmp_path):
    first = kernels.start()
    (server,), ran = servers_below(), kernels_below()
    assert len(ran) == 1 and ran[0].parent() == server
    server.kill()
    assert gone(ran) and first.provisioner.process.wait(20) == -9 and not kernels.alive(first)
    kernels.end(first)
    assert printed("print('again')", tmp_path) == "again\n"
    assert server not in servers_below() and len(servers_below()) == 1 and not kernels_below()


@pytest.mark.slow
def test_other_surroundings_are_another_server_and_kernels_of_the_old_one_live_on(tmp_path, monkeypatch):
    old = kernels.start()
    (server,) = servers_below()
    assert printed("import os; print(os.environ['OMP_NUM_THREADS'])", tmp_path, env={"OMP_NUM_THREADS": "2"}) == "2\n"
    assert kernels.alive(old) and server in servers_below() and len(servers_below()) == 2
    kernels.end(old)
    before = os.umask(0o077)
    try:
        assert "0077" in printed("print(open('/proc/self/status').read())", tmp_path)
    finally:
        os.umask(before)
    assert server not in servers_below()


CLIENT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would their children
from learngene_core.study import kernels
with kernels.quiet_kernels():
    manager = kernels.start()
    print(manager.provisioner.pid, type(manager.provisioner.process).__name__, flush=True)
    {then}
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "interrupted", "forgetful"])
def test_nothing_is_left_of_a_client_that_is_gone(end):
    then = "pass" if end == "forgetful" else "time.sleep(60)"
    client = subprocess.Popen([sys.executable, "-c", CLIENT.format(then=then)], stdout=subprocess.PIPE, text=True)
    try:
        pid, kind = client.stdout.readline().split()
        kernel = psutil.Process(int(pid))
        family = [kernel, kernel.parent()]
        assert kind == "Forked" or end == "forgetful"
        if end != "forgetful":
            client.send_signal(signal.SIGKILL if end == "killed" else signal.SIGINT)
        assert gone(family)
        client.wait(20)
    except psutil.NoSuchProcess:
        assert end == "forgetful", "it was faster than this test"
    finally:
        client.kill()
        client.communicate()


@pytest.mark.slow
def test_orphans_are_ended_before_their_folder_is_used_again():
    """Here the server is stopped, so it cannot end itself."""
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT.format(then="time.sleep(60)")], stdout=subprocess.PIPE, text=True
    )
    kernel = psutil.Process(int(client.stdout.readline().split()[0]))
    server, mine = kernel.parent(), kernels.start()
    server.suspend()
    client.kill()
    client.wait()  # not for the end of its output, which the kernel holds
    assert kernel.is_running() and server.is_running()
    forked.end_orphans()
    assert gone([kernel, server], 1) and kernels.alive(mine)
    client.stdout.close()
    kernels.end(mine)


# instead of forked kernels --------------------------------------------------------------------------------------------
def test_kernels_are_started_where_a_server_cannot_be_or_may_not(tmp_path, monkeypatch):
    (tmp_path / "seaborn.py").write_text("raise RuntimeError('no seaborn')")
    made, server = [], forked.Server
    monkeypatch.setattr(forked, "Server", lambda *given: made.append(given) or server(*given))
    with kernels.quiet_kernels():
        for _ in range(2):
            manager = kernels.start(env={**os.environ, "PYTHONPATH": str(tmp_path)})
            assert not is_forked(manager) and kernels.alive(manager)
            kernels.end(manager)
        assert len(made) == 1, "what has failed is not tried again and again"
        monkeypatch.setattr(forked.sys, "platform", "darwin")
        manager = kernels.start()
        assert not is_forked(manager) and len(made) == 1
        kernels.end(manager)


def test_no_fork_is_an_option_of_study_and_sweep(tmp_path, monkeypatch):
    assert options.parser().parse_args(["study", "--no-fork"]).no_fork
    seen = []
    monkeypatch.setattr("learngene_core.study.whole.run_study", lambda *a, **k: seen.append(forked.allowed()))
    monkeypatch.setattr("learngene_core.study.sweep.report", lambda *a, **k: seen.append(forked.allowed()) or 0)
    for more in ([], ["--no-fork"]):
        assert cli.main(["study", "--preset", "smoke", "--out", str(tmp_path / "run"), *more]) == 0
        assert cli.main(["sweep", "shots", "--out", str(tmp_path / "sweep"), *more]) == 0
    assert seen == [True, True, False, False] and forked.allowed()


def test_workers_of_a_sweep_do_as_its_command_says(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(notebooks, "execute", lambda *given, **more: seen.append(forked.allowed()))
    for fork in (True, False):
        with kernels.forking(fork):
            job = point.job_of(Config.preset("smoke"), tmp_path / str(fork), tmp_path / "own.ipynb", "code")
        assert point.run_job(job) == {"state": "finished"}
    assert seen == [True, False] and forked.allowed()


# equal results --------------------------------------------------------------------------------------------------------
def outputs(path: Path) -> list:
    """What the cells of an executed notebook show, without ids that are drawn at random. What is printed is one text, for it
    arrives in pieces as time passes."""
    told = []
    for cell in notebooks.read(path).cells:
        told.append([])
        for output in map(dict, cell.get("outputs", [])):
            before = told[-1][-1] if told[-1] else {}
            if output["output_type"] == "stream" and before.get("name") == output["name"]:
                before["text"] += output["text"]
            else:
                told[-1].append(output)
    return json.loads(re.sub(r"T_[0-9a-f]{5}|0x[0-9a-f]{6,}|[0-9a-f]{32}", "ID", json.dumps(told)))


@pytest.mark.parametrize("number", ["01", pytest.param("04", marks=pytest.mark.slow)])
def test_notebooks_show_the_same_from_either_kernel(number, smoke_copy, tmp_path):
    path, shown = notebooks.numbered(f"{number}*.ipynb")[0], {}
    for way in WAYS:
        with kernels.forking(way == "forked"):
            notebooks.execute(path, tmp_path / f"{way}.ipynb", {"preset": "smoke", "out": str(smoke_copy)})
        shown[way] = outputs(tmp_path / f"{way}.ipynb")
    assert shown["forked"] == shown["started"]
    figures = [o["data"]["image/png"] for cell in shown["forked"] for o in cell if "image/png" in o.get("data", {})]
    assert len(figures) >= 2 and all(len(figure) > 5000 for figure in figures)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [servers_below, kernels_below], ids=["server", "kernel"])
def test_a_kill_in_the_middle_costs_no_result(victim, tmp_path):
    """Of the server or of the kernel: the call says so in a line, the next one ends with the files of an undisturbed run."""
    cfg = Config.preset("smoke", n_target_tasks=2)
    undisturbed = Run.open(cfg, tmp_path / "undisturbed")
    Chain(undisturbed).results  # noqa: B018 (computed when asked for)
    cells = ["preset: str = ''\nn_target_tasks: int = 0\nout: str = ''", "import threading, os, time, signal"]
    cells += ["from learngene_core import Config, Run\nfrom learngene_core.study.chain import Chain\n"
              "Chain(Run.open(Config.from_notebook(globals()), out)).results;"]  # fmt: skip
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nb.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nb, tmp_path / "own.ipynb")
    given = (
        tmp_path / "own.ipynb",
        tmp_path / "out.ipynb",
        {"preset": "smoke", "n_target_tasks": 2, "out": str(tmp_path / "run")},
    )
    killer = subprocess.Popen([sys.executable, "-c", KILLER, str(os.getpid()), victim.__name__, str(tmp_path / "run")],
                              env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})  # fmt: skip
    with pytest.raises(notebooks.KernelDied, match=r"own\.ipynb: "):
        notebooks.execute(*given)
    assert killer.wait(60) == 0
    assert not Run.open(cfg, tmp_path / "run").done("reconstruct")
    notebooks.execute(*given)
    for name in ("history.csv", "scores.csv", "learngene.safetensors", "results.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (undisturbed.path / name).read_bytes(), name
    time.sleep(0.2)
    assert not kernels_below()


KILLER = """
import sys, time
from pathlib import Path
import processes
client, victim, run = int(sys.argv[1]), getattr(processes, sys.argv[2]), Path(sys.argv[3])
while not list(run.glob("collective/task_*")):  # in the middle: the first source task is saved
    time.sleep(0.02)
for process in victim(client):
    process.kill()
"""
