"""A finished study that may only be read is shown, not computed; what determinism costs is measured and said."""

import os
import shutil
import types

import pytest
import torch
from conftest import snapshot
from readonly import only_readable

from learngene_core.config import Config, Machine
from learngene_core.errors import write_json
from learngene_core.runs import info
from learngene_core.runs.run import Run
from learngene_core.study import cli, estimate, notebooks, whole

SMOKE = Config.preset("smoke")


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
    marks = {p.name: whole._mark(SMOKE, p) for p in notebooks.numbered()}
    write_json(smoke_copy / "notebooks" / "index.json", marks)
    before = snapshot(smoke_copy)
    with only_readable(smoke_copy):
        assert cli.main(["study", "--preset", "smoke", "--out", str(smoke_copy)]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "is finished; reused as it is" in said and "gain over scratch" in said
    assert snapshot(smoke_copy) == before
    (copy, *_) = sorted((smoke_copy / "notebooks").glob("*.ipynb"))
    copy.write_text(copy.read_text()[:2000])  # a damaged copy is no finished notebook
    assert [p.name for p in whole._to_run(run)] == [copy.name]
    (smoke_copy / "notebooks" / "index.json").write_text("[]")
    assert whole._to_run(run) == notebooks.numbered()


def test_the_cost_of_determinism_is_measured_and_said(monkeypatch, capsys):
    modes = []

    def step(run):
        modes.append(torch.are_deterministic_algorithms_enabled())
        return 0.003 if modes[-1] else 0.002

    before = torch.are_deterministic_algorithms_enabled()
    machine = Machine("cuda", deterministic=True)
    monkeypatch.setattr(estimate, "machine_of", lambda run: machine)
    monkeypatch.setattr(estimate, "collective_step", types.SimpleNamespace(__wrapped__=step))
    try:
        estimate.say_determinism(None)
        assert modes == [False, True] and torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)
    assert "takes 1.50 times as long (3.0 ms for 2.0 ms)" in capsys.readouterr().out
    machine = Machine("cpu", deterministic=True)
    estimate.say_determinism(None)
    assert "costs nothing" in capsys.readouterr().out
    machine = Machine("cpu")
    estimate.say_determinism(None)
    assert capsys.readouterr().out == ""
