"""Spare kernels: ready, empty but for modules, replaced when they died, and none left behind."""

import os
import time

import nbformat
import papermill
import psutil
import pytest
from processes import kernels_below

from learngene_core.errors import HEADLESS
from learngene_core.study import kernels


def run_in(manager, code, tmp_path):
    """What a cell prints in a kernel."""
    source, out = tmp_path / "a.ipynb", tmp_path / "b.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), source)
    options = {"kernel_name": kernels.KERNEL, "language": "python", "progress_bar": False, "km": manager}
    nb = papermill.execute_notebook(source, out, **options)
    return nb.cells[-1].outputs[0].text


def waited_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def test_a_spare_has_imported_and_holds_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "MODULES", "wave,mailbox")
    code = (
        "import sys, os\n"
        "own = [n for n in globals() if not n.startswith('_') and n not in ('In', 'Out', 'get_ipython', 'exit', 'quit')]\n"
        "print(sorted({'wave', 'mailbox'} & set(sys.modules)), sorted(own), os.environ['" + HEADLESS + "'])"
    )
    with kernels.Kernels() as ready:
        first = ready.take()
        ready.prepare()
        alone = run_in(first, code, tmp_path).strip()
        kernels.end(first)
        spare = ready.take()
        printed = run_in(spare, code, tmp_path).strip()
        kernels.end(spare)
    assert alone.startswith("[] ") and printed.startswith("['mailbox', 'wave'] ")
    assert printed.split("] ", 1)[1] == alone.split("] ", 1)[1], "the same names, and no widgets"
    assert alone.endswith(" 1")


def test_a_spare_that_died_is_replaced_and_none_is_left_behind(monkeypatch):
    monkeypatch.setattr(kernels, "MODULES", "")
    with pytest.raises(KeyError), kernels.Kernels() as ready:
        ready.prepare()
        assert waited_for(lambda: len(kernels_below()) == 1)
        [spare] = kernels_below()
        spare.kill()
        assert waited_for(lambda: not spare.is_running() or spare.status() == psutil.STATUS_ZOMBIE)
        taken = ready.take()
        assert kernels.alive(taken) and taken.provisioner.pid != spare.pid
        kernels.end(taken)
        ready.prepare()  # nobody takes it
        raise KeyError
    assert waited_for(lambda: not kernels_below())


def test_a_spare_that_cannot_start_costs_nothing(monkeypatch):
    start, calls = kernels.start, []

    def failing(env=None):
        calls.append(env)
        if env is not None:
            raise OSError("no more processes")
        return start()

    monkeypatch.setattr(kernels, "start", failing)
    with kernels.Kernels() as ready:
        ready.prepare()
        taken = ready.take()
        assert kernels.alive(taken) and len(calls) == 2
        kernels.end(taken)


def test_the_environment_is_as_before():
    before = dict(os.environ)
    with kernels.Kernels():
        inside = os.environ["IPYTHONDIR"]
        with kernels.quiet_kernels():
            assert os.environ["IPYTHONDIR"] == inside, "one folder for the whole chain"
        assert os.environ[HEADLESS] == "1" and os.path.isdir(inside)
    assert dict(os.environ) == before and not os.path.exists(inside)
