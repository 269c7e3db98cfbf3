"""`learngene explore`: the layer explorer in a browser, served by Voila on the loopback address; a token of its own guards it."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import HEADLESS, StudyError, say
from .live import LiveRun
from .runview import RunView

NOTEBOOK = Path(__file__).with_name("explorer.ipynb")
DEMO = Path(__file__).with_name("demo_run")
RUNS = "LEARNGENE_EXPLORE"  # what the notebook is to show: JSON with `runs` and `home`
HOST = "127.0.0.1"


def serve(runs: Sequence[str | Path], *, demo: bool = False, port: int = 0, browser: bool = True) -> None:
    """Serve the explorer of one or two run folders (or of the shipped run) until Ctrl+C.

    port: 0 for any that is free. The address with its token is printed, and opened in a browser unless told otherwise. The
    token is never part of a command line, where others on the machine could read it.

    Raises StudyError for what cannot be explored, before anything is started, and where voila is not installed.
    """
    paths = _checked(runs, demo)
    if importlib.util.find_spec("voila") is None:
        raise StudyError("the explorer in a browser needs voila; install it with: pip install voila")
    home = {"home": str(Path.cwd())} if demo else {}
    os.environ[RUNS] = json.dumps({"runs": [str(path) for path in paths], **home})
    os.environ.pop(HEADLESS, None)  # this kernel is watched
    app, token = _app(free_port(port)), secrets.token_urlsafe(24)
    app.token = token
    address = f"http://{HOST}:{app.port}/?token={token}"
    say(f"the layer explorer: {address}\n(Ctrl+C ends it)")
    if browser:
        threading.Thread(target=_open, args=(app.port, address), daemon=True).start()
    app.start()  # until Ctrl+C, which Voila takes to end its kernels
    say("the layer explorer has ended")


def _checked(runs: Sequence[str | Path], demo: bool) -> list[Path]:
    """The folders to show. Raises StudyError for what cannot be shown, and says why."""
    if demo and not (DEMO / "config.json").exists():
        raise StudyError("this installation ships no demonstration run; give the folder of a run")
    paths = [*([DEMO] if demo else []), *(Path(run).expanduser().absolute() for run in runs)]
    if not 1 <= len(paths) <= 2:
        raise StudyError("name one run folder, or two to have them side by side, or --demo for the run that ships")
    for path in paths:
        view = RunView.load(path)
        if not LiveRun(path, view.cfg).look().running:
            view.require_record()  # a run that trains may have none yet
    return paths


def free_port(wanted: int = 0) -> int:
    """A port of the loopback address that nothing listens on; `wanted`, unless 0. Raises StudyError when that is taken."""
    with socket.socket() as probe:
        try:
            probe.bind((HOST, wanted))
        except (OSError, OverflowError) as error:
            raise StudyError(f"port {wanted} cannot be had ({error}); choose another --port") from None
        return probe.getsockname()[1]


def _app(port: int) -> Any:
    """Voila for the one notebook: no other file is served, and nothing is opened or printed by it."""
    from traitlets.config import Config as Traits
    from voila.app import Voila

    settings = Traits()
    settings.Voila.log_level = logging.ERROR
    app = Voila(config=settings)
    app.initialize([str(NOTEBOOK)])
    # afterwards, so that no configuration file of the reader's can open the server to others
    app.ip, app.port, app.port_retries, app.open_browser = HOST, port, 0, False
    app.voila_configuration.file_allowlist = []
    app.tornado_settings = {"ws_ping_timeout": 30_000}  # milliseconds; a longer one is warned of, on every page
    return app


def _open(port: int, address: str) -> None:
    """Open the address once something listens there."""
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                webbrowser.open(address)
                return
        time.sleep(0.1)
