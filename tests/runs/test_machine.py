"""Deterministic operations: asked for once, kept with the run, used by whatever stage goes on. Its cost is said."""

import dataclasses
import os

import pytest
import torch
from toys import states_equal, toy_config

from learngene_core.config import Config, Machine
from learngene_core.data.division import divide, source_tasks
from learngene_core.errors import StudyError, read_json, write_json
from learngene_core.execution import use
from learngene_core.runs import machine as machines
from learngene_core.runs import stages
from learngene_core.runs.machine import WORKSPACE, machine_of, prepare
from learngene_core.runs.run import Run

SMOKE = Config.preset("smoke")


@pytest.fixture(autouse=True)
def torch_as_before():
    before = torch.are_deterministic_algorithms_enabled(), os.environ.pop(WORKSPACE, None)
    yield
    torch.use_deterministic_algorithms(before[0])
    os.environ.pop(WORKSPACE, None)
    if before[1] is not None:
        os.environ[WORKSPACE] = before[1]


def test_deterministic_is_kept_in_machine_json_and_in_no_hash(tmp_path):
    cfg = SMOKE.replace(deterministic=True, device="cpu")
    assert all(cfg.stage_hash(s) == SMOKE.stage_hash(s) for s in ("collective", "reconstruct", "claims"))
    run = Run.open(cfg, tmp_path / "run")
    assert machine_of(run).deterministic
    assert read_json(run.path / "machine.json")["deterministic"] is True
    assert machine_of(Run.open(SMOKE, run.path)).deterministic, "resumed as it was begun"
    machine_of(Run.open(SMOKE, tmp_path / "plain"))
    with pytest.raises(StudyError, match="made without deterministic.*--out"):
        machine_of(Run.open(cfg, tmp_path / "plain"))


def test_gpus_are_asked_for_deterministic_operations_and_a_fixed_workspace():
    use(Machine("cpu", deterministic=True))
    assert not torch.are_deterministic_algorithms_enabled(), "equal on a CPU anyway"
    use(Machine("cuda:0"))
    assert not torch.are_deterministic_algorithms_enabled()
    use(Machine("cuda:0", deterministic=True))
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    prepare()
    assert os.environ[WORKSPACE] == ":4096:8"
    os.environ[WORKSPACE] = ":16:8"  # the other setting that is deterministic
    prepare()
    assert os.environ[WORKSPACE] == ":16:8"


def test_a_run_resumed_at_any_stage_is_deterministic_again(tmp_path, monkeypatch):
    """Not only where the collective is trained: individuals of a loaded one must be too."""
    run = Run.open(SMOKE, tmp_path / "run")
    write_json(run.path / "machine.json", dataclasses.asdict(Machine("cuda", deterministic=True)))
    monkeypatch.setattr(machines, "available", lambda device: True)
    assert not torch.are_deterministic_algorithms_enabled()
    assert machine_of(Run.open(SMOKE, run.path)).deterministic
    assert torch.are_deterministic_algorithms_enabled() and os.environ[WORKSPACE]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_deterministic_gpu_run_is_equal_to_the_bit(tmp_path, glyph_images):
    cfg = toy_config(device="cuda", deterministic=True, hidden=(16,), dropout=0.5)
    src = source_tasks(glyph_images, divide(glyph_images, cfg), cfg)
    one, two = (stages.trained_collective(Run.open(cfg, tmp_path / n), glyph_images, src) for n in "ab")
    assert states_equal(dict(one.model.state_dict()), dict(two.model.state_dict()))
    assert (tmp_path / "a" / "gradients.csv").read_bytes() == (tmp_path / "b" / "gradients.csv").read_bytes()
