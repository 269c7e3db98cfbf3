"""In a real browser: the explorer moves and says what the tables say, and JupyterLab runs a notebook with it to its end.

They need Chromium (Debian's, `chromium` on the path) and playwright; elsewhere they are skipped.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pandas as pd
import psutil
import pytest
from unfinished import progress, training

from learngene_core.criteria import best_block, score
from learngene_core.explorer import threshold as explore
from learngene_core.explorer.server import DEMO, HOST, free_port
from learngene_core.figures.tables import signed
from learngene_core.record import Record
from learngene_core.study import notebooks
from learngene_core.study import options as options_module

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (apt-get install chromium)")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PATIENCE = 90.0  # seconds for a server to speak or a page to be there
COMMAND = [sys.executable, "-c", "import sys; from learngene_core.study.cli import main; sys.exit(main())"]
DATA = "img[src^='blob:'], img[src^='data:image/png']"


@pytest.fixture
def page(tmp_path) -> Iterator:
    """A page of a fresh Chromium whose window is that of a laptop."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as play:
        browser = play.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            headless=True,
            viewport={"width": 1400, "height": 900},
            permissions=["clipboard-read", "clipboard-write"],
            args=FLAGS,
        )
        try:
            new = browser.new_page()
            new.set_default_timeout(1000 * PATIENCE)
            yield new
        finally:
            browser.close()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@contextlib.contextmanager
def serving(arguments: list[str], cwd: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """The explorer's address while it serves; at the end nothing of it is left."""
    process = subprocess.Popen(
        [*COMMAND, "explore", *arguments, "--no-browser"], cwd=cwd, stdout=subprocess.PIPE, text=True
    )
    said: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [said.put(line) for line in process.stdout], daemon=True).start()
    started: list[psutil.Process] = []
    try:
        address = re.search(r"http\S+", said.get(timeout=PATIENCE))[0]
        until(lambda: status(address) is not None)
        yield address, process
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        psutil.wait_procs(started, timeout=15)
        assert not alive(started), "a kernel was left behind"
    finally:
        for one in [process, *alive(started)]:
            with contextlib.suppress(psutil.Error, OSError):
                one.kill()


def status(address: str, target: str = "/") -> tuple[int, str] | None:
    """Status and redirection of a GET, None where nothing listens."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Location") or ""
    except OSError:
        return None
    finally:
        connection.close()


def until(ready, seconds: float = PATIENCE):
    """What `ready` gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.25)
    return found


def test_without_the_token_nothing_is_served(tmp_path):
    with serving(["--demo"], tmp_path) as (address, process):
        parts = urlsplit(address)
        assert parts.hostname == HOST and len(parts.query) > 30
        for target in ("/", "/?token=", "/?token=guessed", "/voila/files/explorer.ipynb"):
            code, place = status(address, target=target)
            assert code == 403 or (code == 302 and place.startswith("/login")), target
        assert parts.query.removeprefix("token=") not in " ".join(psutil.Process(process.pid).cmdline())
        assert not psutil.Process(process.pid).children(), "no kernel for strangers"


# the explorer -------------------------------------------------------------------------------------------------------
def expected(first: int, last: int) -> dict[str, str]:
    """What the tables say about a block, in the explorer's words."""
    atlas = pd.read_csv(DEMO / "atlas.csv").set_index(["first", "last"])
    row = atlas.loc[(first, last)]
    block = f"conv{first} to conv{last}"
    limits = f"[{signed(row['gain_low'])}, {signed(row['gain_high'])}]"
    return {
        "block": block,
        "gain": f"{signed(row['gain'])} {limits} points, n = {row['n_tasks']} target tasks",
        "inherited": f"{row['parameters']:,} parameters ({row['share']:.1f} %",
    }


def numbers(layers: tuple[str, ...]) -> tuple[int, int]:
    return int(layers[0].removeprefix("conv")), int(layers[-1].removeprefix("conv"))


class Seen:
    """The page as its reader sees it."""

    def __init__(self, page):
        self.page = page

    def pictures(self) -> list[str]:
        return self.page.eval_on_selector_all(DATA, "all => all.map(one => one.src)")

    def says(self, first: int, last: int) -> None:
        for name, text in expected(first, last).items():
            find = "([name, text]) => (document.querySelector('.lg-' + name)?.textContent ?? '').startsWith(text)"
            self.page.wait_for_function(find, arg=[name, text], timeout=20_000)

    def changed(self, before: list[str], which: set[int]) -> None:
        """Exactly these of the four pictures become others."""
        until(lambda: {i for i, (a, b) in enumerate(zip(before, self.pictures(), strict=True)) if a != b} == which, 20)

    def slide(self, handle, key: str, times: int) -> None:
        handle.focus()
        for _ in range(times):
            self.page.keyboard.press(key)
            self.page.wait_for_timeout(150)


@needs_browser
def test_the_explorer_says_what_the_tables_say(page, tmp_path):
    record, scores = Record.load(DEMO), pd.read_csv(DEMO / "layer_scores.csv")
    edges, start = explore.thresholds(record), json.loads((DEMO / "config.json").read_text())["threshold"]
    fisher = scores[scores["criterion"] == "fisher"]
    with serving(["--demo"], tmp_path) as (address, _):
        page.goto(address)
        seen = Seen(page)
        until(lambda: len(seen.pictures()) == 4)
        seen.says(*numbers(best_block(score(record, "released", threshold=start), 3)))

        before = seen.pictures()
        seen.slide(page.locator(".noUi-handle").first, "ArrowRight", 3)
        threshold = edges[edges.index(start) + 3]
        until(lambda: page.locator(".widget-readout").first.inner_text() == f"{threshold:.1e}", 20)
        seen.says(*numbers(best_block(score(record, "released", threshold=threshold), 3)))
        assert seen.pictures()[0] != before[0] and seen.pictures()[1] != before[1]

        before = seen.pictures()
        page.locator("select").select_option("fisher")
        first, last = numbers(best_block(fisher.reset_index(drop=True), 3))
        seen.says(first, last)
        seen.changed(before, {0, 1, 2, 3})  # another criterion, another block: in heat map, profile, network and atlas

        before = seen.pictures()
        lower, upper = (page.locator(f".noUi-handle-{end}").last for end in ("lower", "upper"))
        key = "ArrowRight" if last < 13 else "ArrowLeft"
        step = 1 if last < 13 else -1
        for handle in (upper, lower) if step > 0 else (lower, upper):
            seen.slide(handle, key, 1)
        seen.says(first + step, last + step)
        seen.changed(before, {0, 1, 2, 3})

        page.locator(".lg-copy").click()
        page.wait_for_function("document.querySelector('.lg-copy').textContent === 'copied'", timeout=10_000)
        program, *words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
        cfg = options_module.configuration(options_module.parser().parse_args(words))
        assert program == "learngene" and cfg.layers == tuple(f"conv{i}" for i in range(first + step, last + step + 1))
        assert page.locator(".lg-error").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 1400
        if shot := os.environ.get("LEARNGENE_SCREENSHOT"):
            page.screenshot(path=shot)


@needs_browser
def test_the_page_of_a_run_that_trains_fills_in_by_itself(page, smoke_run, smoke_copy, tmp_path):
    training(smoke_copy, 2)
    progress(smoke_copy, 7)
    with serving([str(smoke_copy)], tmp_path) as (address, _):
        page.goto(address)
        seen = Seen(page)
        until(lambda: len(seen.pictures()) == 4)
        page.wait_for_function(
            "document.querySelector('.lg-status').textContent.includes('task 3 of 4, epoch 1: 58 %')"
        )
        before = seen.pictures()
        shutil.copytree(smoke_run / "collective" / "task_03", smoke_copy / "collective" / "task_03")
        progress(smoke_copy, 10, text="task 4 of 4, epoch 1")
        seen.changed(before, {0, 1, 2, 3})
        page.wait_for_function("document.querySelector('.lg-status').textContent.includes('83 %')")
        assert page.locator(".lg-error").count() == 0


# JupyterLab ---------------------------------------------------------------------------------------------------------
def changed_copy(source: Path, target: Path, **parameters: str) -> Path:
    """A copy of a notebook with other values in its parameters cell and without outputs."""
    nb = notebooks.read(source)
    cell = next(c for c in nb.cells if "parameters" in c.metadata.get("tags", []))
    for name, value in parameters.items():
        cell.source, n = re.subn(rf"^{name}: str = .*$", f"{name}: str = {value!r}", cell.source, flags=re.MULTILINE)
        assert n == 1
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(nb, target)
    return target


@contextlib.contextmanager
def jupyterlab(root: Path, home: Path) -> Iterator[tuple[str, str]]:
    """JupyterLab's address (without path) and token while it serves the folder `root`; its settings lie in `home`."""
    port, token = free_port(), "only-for-this-test"
    places = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    places |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    environment = {**os.environ, **places}
    environment.pop("LEARNGENE_HEADLESS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ip={HOST}", f"--port={port}",
         f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}", "--ServerApp.port_retries=0",
         "--LabApp.expose_app_in_browser=True", "--LabApp.news_url="],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: status(f"http://{HOST}:{port}") is not None)
        yield f"http://{HOST}:{port}", token
    finally:
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        for one in [process, *alive(started)]:
            with contextlib.suppress(psutil.Error, OSError):
                one.kill()


def sessions(address: str, token: str) -> list[dict]:
    with urllib.request.urlopen(f"{address}/api/sessions?token={token}", timeout=10) as answer:
        return json.load(answer)


@needs_browser
@pytest.mark.parametrize(("number", "widget"), [("03", "threshold_explorer("), ("06", "layer_explorer(")])
def test_jupyterlab_runs_every_cell_and_shows_the_widget(number, widget, page, judged_run, tmp_path):
    root = tmp_path / "lab"
    root.mkdir()
    run = shutil.copytree(judged_run, tmp_path / "run")
    path = changed_copy(notebooks.numbered(f"{number}*.ipynb")[0], root / "nb.ipynb", preset="smoke", out=str(run))
    run_all = (
        "window.jupyterapp.commands.execute('notebook:run-all-cells')"
        ".then(() => window.jupyterapp.commands.execute('docmanager:save')).then(() => { window.finished = true })"
    )
    with jupyterlab(root, tmp_path) as (address, token):
        page.goto(f"{address}/lab/tree/nb.ipynb?token={token}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell")

        def ready() -> bool:
            kernels = [session["kernel"] for session in sessions(address, token)]
            return any(k["execution_state"] == "idle" and k["connections"] >= 1 for k in kernels)

        until(ready)  # the tool bar says idle before there is a kernel
        page.evaluate(f"() => {{ {run_all}; }}")
        page.wait_for_function("window.finished === true", timeout=180_000)
        cells = [c for c in notebooks.read(path).cells if c.cell_type == "code"]
    assert [o for c in cells for o in c.outputs if o.output_type == "error"] == []
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    views = [
        c for c in cells if any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in c.outputs)
    ]
    assert [c.source for c in cells if widget in c.source] == [c.source for c in views if widget in c.source] != []
