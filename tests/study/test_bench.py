"""The speed table says what was measured, and both sides of a row do the same work."""

import math
import os
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from learngene_core.config import Config
from learngene_core.errors import StudyError
from learngene_core.runs.machine import resolve
from learngene_core.study import bench, benchgpu, benchpeers, benchrows
from learngene_core.study.cli import main
from learngene_core.study.timing import Row, Skipped, in_turn


def test_ways_take_turns_and_the_order_changes():
    calls = []
    seconds = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "abbaab"
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}
    assert all(s > 0 for found in seconds.values() for s in found)


def test_a_ratio_is_that_of_rounds_so_that_a_slow_minute_counts_on_both_sides():
    entry = Row("a", "ours", "bare", (3.0, 150.0, 3.0), (2.0, 100.0, 2.0), 1.1).entry()
    assert (entry["ratio"], entry["low"], entry["high"], entry["rounds"]) == (1.5, 1.5, 1.5, 3)
    assert (entry["ours_s"], entry["bare_s"]) == (3.0, 2.0), "medians"


def test_the_table_holds_what_was_measured_row_by_row(tmp_path, monkeypatch, capsys):
    def row(name, ours, bar=float("nan")):
        return Row(name, "ours", "bare", (ours,), (2.0,), bar)

    def broken():
        raise RuntimeError("no more")

    rows = {
        "a": lambda: [row("a, first", 1.0, 1.1), row("a, second", 3.0, 1.1)],
        "b": lambda: [row("b", 3.0)],
        "c": broken,
    }
    monkeypatch.setattr(bench, "all_rows", lambda cfg, home, peers: rows)
    monkeypatch.setattr(bench, "NAMES", tuple(rows))
    with pytest.raises(RuntimeError):
        bench.run_bench(Config(), tmp_path)
    table = pd.read_csv(tmp_path / "bench.csv")
    assert list(table.columns[:5]) == ["row", "ours_s", "bare_s", "ratio", "bar"]
    assert table["row"].tolist() == ["a, first", "a, second", "b"]
    assert table.loc[0, ["ours_s", "bare_s", "ratio", "bar"]].tolist() == [1.0, 2.0, 0.5, 1.1]
    assert table["bar"].isna().tolist() == [False, False, True]
    text = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert "1.10 (missed)" in text and text.count("missed") == 1 and text.count("\n") == 5
    assert "at most 1.10 allowed (missed)" in capsys.readouterr().out
    rows["a"] = lambda: [row("a, first", 4.0, 1.1), row("a, second", 4.0, 1.1)]
    assert bench.run_bench(Config(), tmp_path, ["a"])["row"].tolist() == ["a, first", "a, second"]
    table = pd.read_csv(tmp_path / "bench.csv")
    assert table["row"].tolist() == ["a, first", "a, second", "b"], "what was not measured again stays, in order"
    assert table["ratio"].tolist() == [2.0, 2.0, 1.5]
    with pytest.raises(StudyError, match="no row 'd'.*a, b, c"):
        bench.run_bench(Config(), tmp_path, ["d"])


def test_both_loops_of_the_epoch_row_train_the_same_network_on_all_images():
    epochs = benchrows.Epochs(Config(device="cpu"), resolve(Config(device="cpu")), 200, 16)
    seen, steps = [], []
    epochs.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    epochs.optimiser.register_step_post_hook(lambda *_: steps.append(1))
    means = []
    for way in (epochs.bare, epochs.ours, lambda: epochs.ours(record=True, ewc=True)):
        before = epochs.net.head.weight.detach().clone()
        way()
        assert [len(x) for x in seen] == [64, 64, 64, 8] and len(steps) == 4
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen), "ours and bare in one layout"
        assert not torch.equal(before, epochs.net.head.weight)
        means.append(torch.cat(seen).mean((0, 2, 3)))
        seen.clear(), steps.clear()
    assert torch.allclose(means[0], means[1], atol=0.1) and epochs.net.widths[-1] == 16


def test_every_way_of_training_individuals_trains_all_of_them():
    work, tasks = benchrows.untrained_individuals(
        Config.preset("smoke", n_target_tasks=2, individual_epochs=1, device="cpu")
    )
    for stack in (1, 6):
        pieces = list(work.pieces(tasks))
        assert sum(len(piece["rows"]) for piece in pieces) == 8 * len(tasks)
        work.machine = type(work.machine)(stack=stack)


def test_reading_compares_whole_trees_and_leaves_the_cache_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "mine"))
    rows = list(benchrows.reading_rows(tmp_path, n=30, rounds=2))
    assert [row.row for row in rows] == ["reading, first", "reading, again"]
    assert len(list((tmp_path / "tree").glob("*/*.png"))) == 30
    assert len(list(tmp_path.glob("cache*/folder-*"))) == 2, "every first reading finds an empty cache"
    assert os.environ["LEARNGENE_CACHE"] == str(tmp_path / "mine")


def test_no_round_is_begun_that_would_end_too_late():
    calls = []
    seconds = in_turn({"a": lambda: (calls.append(1), time.sleep(0.05))}, 1000, limit=0.4)
    assert 3 <= len(seconds["a"]) == len(calls) <= 8
    assert len(in_turn({"a": lambda: time.sleep(0.02)}, 3, limit=0.0)["a"]) == 1, "one is always taken"


def test_a_row_that_needs_what_is_not_here_is_left_out_with_the_reason(tmp_path, monkeypatch, capsys):
    there = [Row("evaluation", "ours", "bare", (1.0,), (2.0,))]
    rows = bench.all_rows(Config(device="cpu"), tmp_path, tmp_path / "no environment")
    assert list(rows) == list(bench.NAMES)
    kept = {"avalanche": rows["avalanche"], "easyfsl": rows["easyfsl"], "evaluation": lambda: there}
    monkeypatch.setattr(bench, "all_rows", lambda cfg, home, peers: kept)
    assert bench.run_bench(Config(), tmp_path)["row"].tolist() == ["evaluation"]
    said = capsys.readouterr().out
    for name in ("avalanche", "easyfsl"):
        assert f"{name} is left out: there is no environment {tmp_path / 'no environment'}; python -m venv" in said


STUB = """
import importlib.metadata as metadata, sys, types

class SimpleShot:  # says what easyfsl says: cosine to the mean of features of length one
    def __init__(self, backbone, feature_normalization):
        from torch.nn.functional import normalize
        self.net, self.unit = backbone, lambda x: normalize(x, dim=1)
    def process_support_set(self, x, labels):
        import torch
        features = self.unit(self.net(x))
        self.means = self.unit(torch.stack([features[labels == c].mean(0) for c in labels.unique()]))
    def __call__(self, x):
        return SIGN * self.unit(self.net(x)) @ self.means.T

few = types.ModuleType("easyfsl.methods")
few.SimpleShot = SimpleShot
sys.modules["easyfsl"], sys.modules["easyfsl.methods"] = types.ModuleType("easyfsl"), few
metadata.version = lambda name: "0"
"""


@pytest.fixture
def peer(tmp_path):
    """peer(sign): an environment with this Python and a library that predicts what easyfsl would, or the opposite."""

    def make(sign):
        place, root = tmp_path / "peers" / "bin", tmp_path / "stub"
        place.mkdir(parents=True, exist_ok=True), root.mkdir(exist_ok=True)
        (root / "sitecustomize.py").write_text(f"SIGN = {sign}\n{STUB}", encoding="utf-8")
        script = f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{root}" exec {sys.executable} "$@"\n'
        (place / "python").write_text(script, encoding="utf-8")
        (place / "python").chmod(0o755)
        return place.parent

    return make


@pytest.mark.skipif(sys.platform == "win32", reason="the environment is a shell script")
def test_another_library_is_timed_only_where_it_predicts_the_same(tmp_path, peer):
    cfg = Config(device="cpu")
    (row,) = benchpeers.easyfsl_rows(cfg, peer(1), tmp_path / "home", n_tasks=2, rounds=1)
    assert row.row == "easyfsl" and "equal predictions" in row.ours and "easyfsl 0 with torch" in row.bare
    with pytest.raises(StudyError, match="predicts otherwise on 2 of 2 tasks"):
        list(benchpeers.easyfsl_rows(cfg, peer(-1), tmp_path / "home", n_tasks=2, rounds=1))
    with pytest.raises(Skipped, match="avalanche is not in .*No module named.*pip install avalanche-lib"):
        list(benchpeers.avalanche_rows(cfg, peer(1), tmp_path / "other", n=70, rounds=1, divisor=16))


# a GPU ------------------------------------------------------------------------------------------------------------------
TINY = benchgpu.Sizes(
    {"a quarter": 32, "full": 32}, classes=6, images=13, steps=1, growing=1, tasks=3, epochs=1, individuals=16
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path, capsys):
    assert main(["bench", "--gpu", "--out", str(tmp_path)]) == 1
    assert "no GPU" in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_every_part_of_the_gpu_bench_runs_and_its_table_has_the_kept_ones_columns(tmp_path):
    """On a CPU, where nothing is captured and differences from the CPU are none."""
    found = benchgpu.run_gpu(tmp_path, "cpu", TINY).set_index("quantity")["value"]
    assert pd.read_csv(tmp_path / "gpu-parts.csv")["quantity"].tolist() == found.index.tolist()
    assert found.filter(like="difference from the CPU").astype(float).tolist() == [0.0] * 4
    assert found["tasks finished in time"] == 3 and 0 < float(found["share of the bf16 rate, middle"]) < 100
    assert float(found["in stacks, relative to one by one"]) > 0 and "16 individuals, stacks" in found
    kept = pd.read_csv(Path(__file__).parents[2] / "notebooks" / "results" / "gpu.csv")
    made = pd.read_csv(tmp_path / "gpu.csv")
    assert set(made) <= set(kept) and made["width"].tolist() == kept["width"].tolist()


def test_a_gpu_bench_whose_minutes_are_over_keeps_what_it_has(tmp_path, capsys):
    benchgpu.run_gpu(tmp_path, "cpu", TINY, minutes=0.0)
    assert capsys.readouterr().out.count("left out: 0 minutes are over") == 6
    facts = benchgpu.paper("cpu", TINY, end=0.0)
    assert [f["value"] for f in facts if f["quantity"] == "tasks finished in time"] == [0]


def test_the_growing_run_of_the_gpu_bench_grows_through_every_widening():
    shapes = []
    sizes = benchgpu.Sizes({"full": 16}, classes=6, images=13, tasks=21, epochs=1)
    list(benchgpu.task_seconds(resolve(Config(device="cpu")), sizes, 16, 1, math.inf, shapes))
    cfg = benchgpu.protocol(sizes, 16, 1)
    assert tuple(shapes[-1]["widths"]) == cfg.final_widths and len(shapes) == 21
    assert tuple(shapes[0]["widths"]) != tuple(shapes[-1]["widths"])


@pytest.mark.parametrize("name", ["mine.txt", "/dev/null"])
def test_an_out_that_is_a_file_is_refused_before_anything_is_measured(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "run_bench", lambda *_, **__: pytest.fail("it was measured"))
    assert main(["bench", "reading", "--out", name]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is a file" in line and "--out" in line and (tmp_path / "mine.txt").read_text() == "mine"
