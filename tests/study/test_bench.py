"""The speed table says what was measured, and both sides of a row do the same work."""

import os

import pandas as pd
import pytest
import torch

from learngene_core.config import Config
from learngene_core.errors import StudyError
from learngene_core.runs.machine import resolve
from learngene_core.study import bench, benchrows
from learngene_core.study.timing import Row, in_turn


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
    monkeypatch.setattr(bench, "all_rows", lambda cfg, home: rows)
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_has_rows_of_its_own(tmp_path):
    assert "gpu" in bench.all_rows(Config(), tmp_path)
    assert len(list(benchrows.gpu_rows(Config(), rounds=1, n_tasks=2))) == 3
