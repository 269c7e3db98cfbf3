"""The speed table says what was measured, and tuning keeps only what is faster and right."""

import dataclasses
import math
import time

import pandas as pd
import pytest
import torch
from toys import toy_config

from learngene_core.config import Config
from learngene_core.errors import StudyError
from learngene_core.runs.machine import LARGEST_STACK, Machine, stack_size
from learngene_core.runs.run import Run
from learngene_core.study import bench, benchrows, steptuning
from learngene_core.study.bench import Pair, compare, memory_peak, pairs
from learngene_core.training import Way


# timing -----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def clock(monkeypatch):
    """A clock that only `sleep` moves."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_ratios_are_of_pairs_so_that_a_slow_minute_counts_twice(clock):
    speed, calls = iter([1, 1, 50, 50, 1, 1]), []

    def way(name, seconds):
        calls.append(name)
        clock(seconds * next(speed))

    pair = compare(lambda: way("a", 3.0), lambda: way("b", 2.0), 3)
    assert (pair.ratio, pair.low, pair.high) == pytest.approx((1.5, 1.5, 1.5)) and pair.rounds == 3
    assert (pair.first, pair.second) == pytest.approx((3.0, 2.0)), "medians"
    assert "".join(calls) == "abbaab", "the order changes from round to round"


def test_all_pairs_of_several_ways(clock):
    found = pairs({"x": lambda: clock(1.0), "y": lambda: clock(2.0), "z": lambda: clock(4.0)}, 2)
    assert {k: p.ratio for k, p in found.items()} == pytest.approx(
        {("x", "y"): 0.5, ("x", "z"): 0.25, ("y", "x"): 2, ("y", "z"): 0.5, ("z", "x"): 4, ("z", "y"): 2}
    )


def test_the_memory_peak_sees_what_is_gone_again():
    with memory_peak() as peak:
        before = peak()
        block = bytearray(200_000_000)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(0.5)
        del block
        assert peak() - before > 150


# the table --------------------------------------------------------------------------------------------------------------
def test_the_table_holds_what_was_measured_row_by_row(tmp_path, monkeypatch, capsys):
    good, bad = Pair(1.0, 2.0, 0.5, 0.4, 0.6, 3), Pair(3.0, 2.0, 1.5, 1.4, 1.6, 3)

    def broken():
        raise RuntimeError("no more")

    rows = {
        "a": lambda: {"a, first": (good, 1.1, "ours", "bare"), "a, second": (bad, 1.1, "ours", "bare")},
        "b": lambda: {"b": (bad, None, "ours", "bare")},
        "c": broken,
    }
    monkeypatch.setattr(bench, "all_rows", lambda cfg, home: rows)
    with pytest.raises(RuntimeError):
        bench.run_bench(Config(), tmp_path)
    table = pd.read_csv(tmp_path / "bench.csv", keep_default_na=False)
    assert table["row"].tolist() == ["a, first", "a, second", "b"] and table["holds"].tolist() == ["yes", "no", ""]
    assert table.loc[0, ["ours_s", "bare_s", "ratio"]].tolist() == [1.0, 2.0, 0.5] and table["bar"].tolist()[2] == ""
    text = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert "1.10 (missed)" in text and text.count("missed") == 1 and text.count("\n") == 5
    assert "at most 1.10 allowed: no" in capsys.readouterr().out
    rows["a"] = lambda: {"a, first": (bad, 1.1, "ours", "bare"), "a, second": (bad, 1.1, "ours", "bare")}
    assert bench.run_bench(Config(), tmp_path, ["a"])["row"].tolist() == ["a, first", "a, second"]
    table = pd.read_csv(tmp_path / "bench.csv", keep_default_na=False)
    assert table["row"].tolist() == ["a, first", "a, second", "b"], "what was not measured again stays, in order"
    assert table["holds"].tolist() == ["no", "no", ""] and table["ratio"].tolist() == [1.5] * 3
    with pytest.raises(StudyError, match="no row 'd'.*a, b, c"):
        bench.run_bench(Config(), tmp_path, ["d"])


def test_both_loops_of_the_epoch_row_train_the_same_network_on_all_images():
    own = benchrows.Epochs(Config(device="cpu"), Machine.resolve(Config(device="cpu")), 200, 16)
    seen, steps = [], []
    own.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    own.optimiser.register_step_post_hook(lambda *_: steps.append(1))
    means = []
    for way in (own.bare, own.ours, lambda: own.ours(record=True, ewc=True)):
        before = own.net.head.weight.detach().clone()
        way()
        assert [len(x) for x in seen] == [64, 64, 64, 8] and len(steps) == 4
        assert not torch.equal(before, own.net.head.weight)
        means.append(torch.cat(seen).mean((0, 2, 3)))
        seen.clear(), steps.clear()
    assert torch.allclose(means[0], means[1], atol=0.1) and own.net.widths[-1] == 16


def test_the_rows_of_individuals_differ_in_nothing_but_how_they_are_made(monkeypatch):
    machines = []
    pieces = benchrows.Reconstruction.pieces

    def noted(self, tasks):
        machines.append(self.machine)
        yield from pieces(self, tasks)

    monkeypatch.setattr(benchrows.Reconstruction, "pieces", noted)
    rows = benchrows.individual_rows(Config(device="cpu"), n_tasks=2, rounds=1, preset="smoke")
    assert {name: bar for name, (_, bar, *_) in rows.items()} == {
        "individuals, two workers": pytest.approx(1 / 1.7),
        "individuals, stacks": pytest.approx(1 / 1.1),
    }
    assert {(m.workers, m.threads, m.stack) for m in machines} == {(2, 1, 6), (1, 1, 6), (2, 1, 1)}


def test_reading_compares_whole_trees_and_leaves_the_cache_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "mine"))
    rows = benchrows.reading_rows(tmp_path, n=30, rounds=2)
    assert set(rows) == {"reading, first", "reading, again"} and rows["reading, first"][1] == 1.5
    assert len(list((tmp_path / "tree").glob("*/*.png"))) == 30
    assert len(list(tmp_path.glob("cache*/folder-*"))) == 2, "every first reading finds an empty cache"
    import os

    assert os.environ["LEARNGENE_CACHE"] == str(tmp_path / "mine")


# tuning -----------------------------------------------------------------------------------------------------------------
CUDA = Machine("cuda", 1, 1, True, "2", "Linux", 8, stack=32)


def tuned_with(found, machine=CUDA):
    asked = []

    def measure(cfg, now, other):
        [changed] = [f.name for f in dataclasses.fields(Machine) if getattr(now, f.name) != getattr(other, f.name)]
        asked.append(now)
        return found[changed]

    return *steptuning.tuned(Config(), machine, measure=measure), asked


def test_tuning_keeps_what_is_faster_and_builds_on_it():
    found = {"channels_last": (0.9, ""), "fused": (1.2, ""), "autocast": (1.01, ""), "capture": (3.0, "")}
    machine, table, asked = tuned_with(found)
    assert machine == dataclasses.replace(CUDA, fused=True, capture=True) and machine.way == Way(False, True, True)
    assert table["kept"].tolist() == [False, True, False, True]
    assert asked[2].fused and not asked[1].fused, "each option is held against what was kept before it"


def test_tuning_keeps_nothing_that_is_wrong_however_fast():
    trouble = dict.fromkeys(steptuning.options(CUDA), (9.0, "its losses differ"))
    machine, table, _ = tuned_with(trouble)
    assert machine == CUDA and not table["kept"].any() and table["text"].str.contains("its losses differ").all()


def test_only_what_a_device_can_do_is_tried():
    cpu = dataclasses.replace(CUDA, device="cpu")
    assert steptuning.options(cpu) == ("channels_last", "fused")
    assert set(steptuning.options(CUDA)) == {"channels_last", "fused", "autocast", "capture"}


def test_a_step_is_measured_and_one_that_trains_otherwise_is_noticed(monkeypatch):
    monkeypatch.setattr(steptuning, "ROUNDS", 1)
    cfg = toy_config()
    now = Machine.resolve(cfg)
    speedup, trouble = steptuning.faster(cfg, now, dataclasses.replace(now, fused=True))
    assert 0.1 < speedup < 10 and trouble in ("", "one round was slower, so it is not kept")

    class Wrong(steptuning.Stepper):
        """The other way forgets its momentum, which the losses of the first steps hardly show."""

        def __init__(self, cfg, machine):
            super().__init__(cfg, machine)
            if machine.fused:
                self.optimiser.param_groups[0]["momentum"] = 0.0

    monkeypatch.setattr(steptuning, "Stepper", Wrong)
    assert "trains otherwise" in steptuning.faster(cfg, now, dataclasses.replace(now, fused=True))[1]
    monkeypatch.setattr(steptuning, "Captured", lambda step: (_ for _ in ()).throw(RuntimeError("no graph\nhere")))
    assert steptuning.faster(cfg, now, dataclasses.replace(now, capture=True)) == (
        0.0,
        "it does not work here (no graph)",
    )


def test_tuning_is_for_new_runs_and_lasts(tmp_path, monkeypatch, capsys):
    cfg = toy_config()
    monkeypatch.setattr(steptuning, "faster", lambda cfg, now, other: (2.0 if other.fused else 0.5, ""))
    run = Run.open(cfg, tmp_path / "run")
    steptuning.tune_run(run)
    assert Run.open(cfg, tmp_path / "run").machine.way == Way(fused=True)
    (tmp_path / "run" / "collective" / "task_01").mkdir(parents=True)
    monkeypatch.setattr(steptuning, "faster", lambda cfg, now, other: (2.0, ""))
    steptuning.tune_run(Run.open(cfg, tmp_path / "run"))
    assert "goes on as its machine.json says" in capsys.readouterr().out
    assert Run.open(cfg, tmp_path / "run").machine.way == Way(fused=True) and not run.machine.autocast


# memory -----------------------------------------------------------------------------------------------------------------
def test_the_stack_follows_from_memory():
    paper = Config.preset("paper")
    sizes = [stack_size(paper, gigabytes << 30) for gigabytes in (0, 4, 16, 70, 130)]
    assert sizes == sorted(sizes) and sizes[0] == 1 and 1 < sizes[2] < sizes[3] <= LARGEST_STACK
    per_network = (
        16.4e6 * 4 * 5
    )  # weights, gradients, momentum and two spares of the paper's 15 million convolution weights
    assert sizes[2] * per_network < 16 << 30
    assert stack_size(Config.preset("smoke"), 16 << 30) == LARGEST_STACK
    assert stack_size(paper.replace(individual_batch=320), 16 << 30) < sizes[2]


def test_a_cpu_keeps_to_what_its_caches_hold():
    machine = Machine.resolve(Config(device="cpu", workers=2))
    assert machine.stack == 6 and machine.trainings == 2 and machine.way == Way() and not machine.bundles
    assert not math.isnan(machine.threads)
