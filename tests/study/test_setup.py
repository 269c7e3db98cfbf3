"""What a person's own set-up brings to headless notebooks: other Pythons, start-up files, names of modules, terminals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from learngene_core.errors import write_json
from learngene_core.study import notebooks

NOTEBOOK = [
    {"cell_type": "code", "source": 'preset: str = "smoke"', "metadata": {"tags": ["parameters"]}, "outputs": []},
    {
        "cell_type": "code",
        "source": "import random, sys\nrandom.random(), sys.executable",
        "metadata": {},
        "outputs": [],
    },
]


def another_python(home):
    """A kernel `python3` of a Python that is gone, as left behind by an environment that was deleted."""
    spec = home / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [str(home / "gone" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "mine", "language": "python"}))
    return {"JUPYTER_PATH": str(home)}


def start_up_files(home):
    folder = home / "profile_default" / "startup"
    folder.mkdir(parents=True)
    (folder / "00-mine.py").write_text("raise ValueError('mine')")
    return {"IPYTHONDIR": str(home)}


def shadows(home):
    """Files beside the notebook that are called as modules are."""
    for name in ("random", "queue", "signal", "torch", "numpy"):
        (home / f"{name}.py").write_text("raise ValueError('mine')")
    return {}


def odd_terminal(home):
    odd = {
        "TERM": "dumb",
        "COLUMNS": "0",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "TZ": "Mars/Phobos",
        "TMPDIR": str(home / "gone"),
    }
    return {**odd, "MPLBACKEND": "TkAgg", "PYTHONOPTIMIZE": "1", "HOME": str(home / "none")}


@pytest.mark.parametrize(
    "made", [(another_python,), (start_up_files, shadows, odd_terminal)], ids=["kernel", "the rest"]
)
def test_a_notebook_runs_whatever_a_person_has_set_up(made, tmp_path):
    """In a process of its own: what it has imported before would hide most of it."""
    (tmp_path / "home").mkdir()
    env = {
        **os.environ,
        "LEARNGENE_NO_FORK": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **{name: value for make in made for name, value in make(tmp_path / "home").items()},
    }
    write_json(tmp_path / "a.ipynb", {"cells": NOTEBOOK, "metadata": {}, "nbformat": 4, "nbformat_minor": 4})
    code = (
        "import sys; from pathlib import Path; from learngene_core.study import notebooks\n"
        "notebooks.execute(Path(sys.argv[1]), Path(sys.argv[2]), {'preset': 'smoke'})"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "a.ipynb"), str(tmp_path / "out.ipynb")]
    done = subprocess.run(command, cwd=tmp_path / "home", env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    (output,) = [o for o in notebooks.read(tmp_path / "out.ipynb").cells[-1].outputs if "data" in o]
    assert sys.executable in output["data"]["text/plain"].replace("\\\\", "\\")
