"""Precision is asked for once, kept with the run, refused where it would be slow; and it stays out of what must be exact."""

import dataclasses
import itertools
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toys import toy_config, toy_images

from learngene_core.arms import arms_of
from learngene_core.collective import train_collective
from learngene_core.config import Config, Machine
from learngene_core.data.division import divide, source_tasks, target_tasks
from learngene_core.errors import StudyError, read_json, write_json
from learngene_core.execution import check_precision, use
from learngene_core.fewshot import Individuals
from learngene_core.learngene import cut_learngene
from learngene_core.runs import machine as machines
from learngene_core.runs.machine import machine_of, resolve
from learngene_core.runs.run import Run
from learngene_core.runs.states import save_state

SMOKE = Config.preset("smoke", device="cpu")
HALF = Machine(precision="bf16")
EXACT = torch.float32, torch.int64  # batch norm counts its batches in integers


@pytest.fixture
def has_bf16(monkeypatch):
    """A processor that has it, whatever this one has: torch emulates what is missing."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)


@pytest.fixture
def has_none(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)


# asked for, kept, refused -----------------------------------------------------------------------------------------------
def test_a_processor_without_it_refuses_in_one_line_that_says_the_way_out(has_none, tmp_path):
    check_precision("fp32", "cpu")
    with pytest.raises(StudyError, match="neither avx512_bf16 nor amx.*precision=fp32") as error:
        machine_of(Run.open(SMOKE.replace(precision="bf16"), tmp_path / "run"))
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "machine.json").exists()
    with pytest.raises(StudyError, match="CUDA"):
        resolve(SMOKE.replace(precision="tf32"))
    with pytest.raises(StudyError, match="'mps'"):
        check_precision("bf16", "mps")
    with pytest.raises(ValueError, match="fp16.*fp32, tf32, bf16"):
        SMOKE.replace(precision="fp16")


def test_a_run_keeps_its_precision_and_never_mixes_two(has_bf16, tmp_path):
    half = SMOKE.replace(precision="bf16")
    for stage in ("collective", "reconstruct", "atlas", "claims"):
        assert half.stage_hash(stage) != SMOKE.stage_hash(stage), stage
        assert "precision" not in SMOKE.fields_of(stage), "runs made before it was there stay valid"
    assert half.stage_hash("division") == SMOKE.stage_hash("division")
    run = Run.open(half, tmp_path / "run")
    assert machine_of(run).precision == "bf16" and read_json(run.path / "machine.json")["precision"] == "bf16"
    for first, then in itertools.permutations(("bf16", "fp32")):
        path = tmp_path / first
        machine_of(Run.open(SMOKE.replace(precision=first), path))
        with pytest.raises(StudyError, match=f"made with precision {first}; {then} is asked for.*--out"):
            machine_of(Run.open(SMOKE.replace(precision=then), path))


def test_a_bf16_run_is_refused_where_the_processor_lacks_it(has_none, tmp_path):
    run = Run.open(SMOKE.replace(precision="bf16"), tmp_path / "run")
    write_json(run.path / "machine.json", dataclasses.asdict(HALF))
    with pytest.raises(StudyError, match="neither avx512_bf16"):
        machine_of(run)


@pytest.mark.parametrize("value", ["fp16", 16, None])
def test_a_machine_with_a_precision_that_cannot_be_is_damaged(tmp_path, value):
    run = Run.open(SMOKE, tmp_path / "run")
    write_json(run.path / "machine.json", {**dataclasses.asdict(machine_of(run)), "precision": value})
    with pytest.raises(StudyError, match="damaged"):
        machine_of(run)


@pytest.mark.parametrize(("autocast", "precision"), [(False, "fp32"), (True, "bf16")])
def test_a_machine_that_an_earlier_version_wrote_is_read(has_bf16, tmp_path, autocast, precision):
    values = dataclasses.asdict(Machine())
    del values["precision"]
    write_json(tmp_path / "machine.json", {**values, "autocast": autocast})
    assert machines.stored_machine(tmp_path / "machine.json").precision == precision


def test_products_of_a_gpu_round_only_where_that_is_asked_for():
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    try:
        for precision, rounds in (("fp32", False), ("tf32", True), ("bf16", False)):
            use(Machine("cuda", precision=precision))
            assert [flag.allow_tf32 for flag in flags] == [rounds, rounds], precision
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


# what is rounded, and what is not ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def world():
    """Images, division and the same small collective in both precisions, EWC on."""
    images = toy_images()
    cfg = toy_config(ewc_lambda=1.0, epochs=3, first_task_epochs=6)
    division = divide(images, cfg)
    cols = [train_collective(images, source_tasks(images, division, cfg), cfg, machine=m) for m in (Machine(), HALF)]
    return images, cfg, division, cols


def test_a_collective_learns_alike_in_bf16_and_holds_32_bits(world, tmp_path):
    _, cfg, _, (exact, half) = world
    losses = [c.history.query("phase == 'train'")["loss"].to_numpy() for c in (exact, half)]
    assert not np.array_equal(*losses), "something was rounded"
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.1), "later epochs of so few steps go their own ways"
    first = half.history.query("phase == 'train' and task == 1")["loss"].to_numpy()
    assert first[-1] < first[0], "it learns"
    tensors = {**half.model.state_dict(), **half.fisher, **half.initial}
    assert all(t.dtype in EXACT for t in tensors.values())
    save_state(tmp_path, half.model, {"fisher": half.fisher})
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[f"model/{n}"], t) for n, t in half.model.state_dict().items())
    cut_learngene(half, cfg).save(tmp_path / "gene.safetensors")
    assert {t.dtype for t in load_file(tmp_path / "gene.safetensors").values()} == {torch.float32}


def test_fisher_information_record_and_evaluation_see_32_bits(world, monkeypatch):
    """Only the forward pass of training is rounded: what measures is handed 32-bit outputs, what is recorded 32-bit gradients."""
    images, cfg, division, _ = world
    from learngene_core import collective, gradients, training
    from learngene_core.network import Block

    seen, forward, look = {True: set(), False: set()}, Block.forward, gradients.Recorder.look

    def watched(self, x):
        out = forward(self, x)
        seen[self.training].add(out.dtype)
        return out

    def looking(self):
        assert all(p.grad.dtype is torch.float32 for p in self._parameters)
        return look(self)

    monkeypatch.setattr(Block, "forward", watched)
    monkeypatch.setattr(gradients.Recorder, "look", looking)
    source = source_tasks(images, division, cfg)
    collective.train_collective(images, source, cfg, machine=HALF)
    assert seen[True] == {torch.bfloat16} and seen[False] == {torch.float32}, "Fisher and held-out accuracy: 32 bits"
    assert training.logits_of(lambda x: x.to(torch.bfloat16), torch.ones(1), HALF).dtype is torch.float32


def test_individuals_in_bf16_agree_loosely_and_inherit_32_bits(world):
    images, cfg, division, (col, _) = world
    cfg = cfg.replace(individual_epochs=8)
    gene, tasks = cut_learngene(col, cfg), target_tasks(images, division, cfg)
    arms = [a for a in arms_of(gene, col, cfg, ("scratch", "learngene")) if a.family == "light"]
    tables, weights = [], []
    for machine in (Machine(), HALF):
        work = Individuals(arms, images, cfg, gene.mean, gene.std, machine=machine)
        rows, curves = work.table(tasks)
        tables.append(rows)
        loss = curves.groupby("epoch")["loss"].mean()
        assert loss.iloc[-1] < loss.iloc[0]
        stack, _ = work.fit([(tasks[0], 1)], arms, [a.donor((tasks[0], 1)) for a in arms], 4)
        assert all(t.dtype in EXACT for t in stack.state_dict().values())
        weights.append(torch.cat([p.detach().flatten() for p in stack.parameters()]))
    assert not torch.equal(*weights)
    assert torch.nn.functional.cosine_similarity(*weights, dim=0) > 0.99
    away = (tables[0]["accuracy"] - tables[1]["accuracy"]).abs()
    assert away.mean() < 15, "points: a few of 16 query images"


# memory -----------------------------------------------------------------------------------------------------------------
FAULTS = """
import resource, torch
from learngene_core.config import Machine
from learngene_core.execution import keep_memory, use
use(Machine())
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(60):
    if turn == 10:
        before = faults()
    kept = [torch.ones(1_000_000) for _ in range(8)]  # 4 MB each, all freed at the next turn
    del kept
print(keep_memory(), faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's thresholds")
def test_what_a_step_frees_is_kept_for_the_next_unless_the_user_has_said_otherwise():
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    found = {}
    for name, told in (("kept", {}), ("told", {"MALLOC_TRIM_THRESHOLD_": "131072"})):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS], env=plain | told, capture_output=True, text=True, check=True
        )
        found[name] = done.stdout.split()
    assert [done for done, _ in found.values()] == ["True", "False"]
    assert int(found["kept"][1]) < 0.05 * int(found["told"][1])
