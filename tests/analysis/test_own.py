"""A network of one's own: the worked example as it stands, and the observer against the recorder and torch alone."""

import doctest

import numpy as np
import pytest
import torch
from torch import nn
from toys import states_equal

from learngene_core import criteria
from learngene_core.analysis import measures, own
from learngene_core.analysis.own import Observer, fresh_network
from learngene_core.gradients import Recorder
from learngene_core.record import Record
from learngene_core.tasks import generator
from learngene_core.training import normalise

MEAN, STD = torch.full((3,), 0.5), torch.full((3,), 0.25)


def build():
    """A network of two convolutions and a linear layer, from torch's own initialisation."""
    one = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    return nn.Sequential(one, nn.MaxPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 6))


BLOCKS = {"convolutions": "0", "head": "4"}


def pictures(n, seed=0, size=8):
    return torch.randint(256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def task(number, n=24, batch=8):
    """Batches of one task; labels are 0 to 2, then 3 to 5."""
    x, y = normalise(pictures(n, number), MEAN, STD), torch.arange(n) % 3 + 3 * (number - 1)
    return list(zip(x.split(batch), y.split(batch), strict=True))


TASKS = [task(1), task(2)]
loss = nn.functional.cross_entropy


def train(watch, tasks=TASKS, epochs=1, rate=0.05):
    """The loop of a person who has never heard of this project, but for `watch`."""
    optimiser = torch.optim.SGD(watch.model.parameters(), lr=rate)
    for batches in tasks:
        for _ in range(epochs):
            for x, y in batches:
                optimiser.zero_grad()
                loss(watch.model(x), y).backward()
                watch()
                optimiser.step()
            if epochs > 1:
                watch.end_epoch()
        watch.end_task()
    return watch


# the worked example -----------------------------------------------------------------------------------------------------
def test_the_worked_example_runs_as_it_stands_in_under_20_lines():
    images, probe = pictures(4, 1, 32), pictures(20, 2, 32)  # few: what is shown is that it runs
    x, y = normalise(images, MEAN, STD), torch.arange(4)
    given = {
        "images": images,
        "labels": y,
        "probe": probe,
        "probe_labels": torch.arange(20) % 5,
        "mean": MEAN,
        "std": STD,
    }
    given["tasks"] = [[(x, y + k)] for k in (0, 5)]
    example = doctest.DocTestParser().get_doctest(own.__doc__, given, "example", None, 0)
    assert sum(part.source.count("\n") for part in example.examples) < 20
    result = doctest.DocTestRunner().run(example, clear_globs=False)
    assert result.attempted >= 10 and result.failed == 0
    table, released = example.globs["table"], example.globs["released"]
    layers = ["layer1", "layer2", "layer3", "layer4"]
    assert released["layer"].tolist() == layers and released["score"].between(0, 1).all()
    assert table.groupby("criterion")["layer"].apply(list).to_dict() == dict.fromkeys(measures.MEASURES, layers)
    assert np.isfinite(table["score"]).all() and (table.set_index("criterion").loc["weight_change", "score"] > 0).all()
    assert sum(isinstance(m, nn.Conv2d) for m in example.globs["watch"].model.layer1.modules()) == 4, (
        "one layer of four"
    )


# the observer -----------------------------------------------------------------------------------------------------------
def test_the_record_is_that_of_the_recorder():
    watch = train(Observer(build, BLOCKS, seed=3), epochs=2)
    record = watch.record(TASKS, loss, n_nulls=2)
    assert record.layers == ("convolutions", "head")
    assert record.task.tolist() == [1, 1, 2, 2] and record.epoch.tolist() == [1, 2, 1, 2]
    model = fresh_network(build, torch.Generator().manual_seed(0))
    recorder = Recorder({"convolutions": (model[0][0].weight, model[0][3].weight), "head": model[4].weight})
    model.load_state_dict({**model.state_dict(), **watch.initial})
    model.eval(), watch.model.eval()  # no dropout, nothing to draw
    other = Observer(build, BLOCKS, model=model)
    x, y = TASKS[0][0]
    loss(model(x), y).backward()
    recorder(), other()
    other.end_task()
    rows, counts, zeros = recorder.take()
    found = other.record(TASKS, loss, n_nulls=2)
    assert np.array_equal(found.counts[0], counts) and np.array_equal(found.zeros[0], zeros)
    assert found.table["norm"].tolist() == [row["norm"] for row in rows]
    entries = record.counts.sum((2, 3)) + record.zeros
    assert entries.tolist() == [[3 * (3 * 4 * 9 + 4 * 4 * 9), 3 * 16 * 6]] * 4, "every entry of every step"


def test_every_criterion_reads_the_record():
    record = train(Observer(build, BLOCKS)).record(TASKS, loss)
    for name in criteria.CRITERIA:
        table = criteria.score(record, name)
        assert table["layer"].tolist() == ["convolutions", "head"] and np.isfinite(table["score"]).all()
        assert np.isfinite(table["null"]).all()
    assert criteria.best_block(criteria.score(record, "released_relative"), 1)[0] in record.layers


def test_a_record_of_ones_own_network_is_saved_and_read_back(tmp_path):
    record = train(Observer(build, BLOCKS)).record(TASKS, loss)
    record.save(tmp_path)
    again = criteria.score(Record.load(tmp_path), "scaled_norm")
    assert again.equals(criteria.score(record, "scaled_norm"))


def test_the_past_is_kept_as_it_was():
    watch = Observer(build, ("0", "4"))
    start = {n: p.clone() for n, p in watch.model.named_parameters()}
    train(watch)
    assert len(watch.states) == 2 and all(torch.equal(watch.initial[n], p) for n, p in start.items())
    assert states_equal(watch.states[1].state_dict(), watch.model.state_dict())
    assert not states_equal(watch.states[0].state_dict(), watch.states[1].state_dict())
    evidence, nulls = watch.evidence(pictures(9), torch.arange(9) % 6, pictures(12, 1), torch.arange(12) % 6, MEAN, STD)
    assert evidence.states == watch.states[:1] and evidence.model is watch.model and len(nulls) == 4
    table = measures.measure_all(evidence, nulls)
    assert set(table["layer"]) == {"0", "4"} and np.isfinite(table[["score", "null"]]).all(axis=None)
    drift = table[(table["criterion"] == "cka_drift")]["score"]
    assert (drift > 1e-6).all()


def test_modules_are_named_by_the_user():
    watch = Observer(build, BLOCKS)
    by_module = Observer(build, {"convolutions": watch.model[0], "head": watch.model[4]}, model=watch.model)
    assert by_module.blocks == watch.blocks == BLOCKS
    with pytest.raises(ValueError, match="not a submodule"):
        Observer(build, {"convolutions": watch.model[0]})  # of another network
    with pytest.raises(ValueError, match="no weights"):
        Observer(build, ("1",))


def test_what_was_not_seen_is_said():
    watch = Observer(build, BLOCKS)
    with pytest.raises(ValueError, match="end_task"):
        watch.record(TASKS, loss)
    with pytest.raises(ValueError, match="no step"):
        watch.end_task()
    with pytest.raises(ValueError, match="no gradient"):
        watch()


def test_an_epoch_that_is_closed_is_not_closed_again():
    watch = Observer(build, BLOCKS)
    for x, y in TASKS[0]:
        loss(watch.model(x), y).backward()
        watch()
    watch.end_epoch()
    watch.end_task()
    assert watch.record(TASKS, loss).epoch.tolist() == [1]
    with pytest.raises(ValueError, match="no step"):
        watch.end_task()


# the null ---------------------------------------------------------------------------------------------------------------
def test_the_null_shows_random_labels_to_untrained_networks(monkeypatch):
    seen, start = [], {}

    def watched_loss(outputs, labels):
        seen.append(labels.clone())
        return loss(outputs, labels)

    watch, kept = train(Observer(build, BLOCKS, seed=4)), own.fresh_network
    monkeypatch.setattr(own, "fresh_network", lambda f, g: start.setdefault(len(start), kept(f, g)))
    record = watch.record(TASKS, watched_loss, n_nulls=30, n_steps=2)
    assert record.null_counts.shape[:3] == (30, 2, 2) and record.null_zeros.shape == (30, 2, 2)
    assert len(seen) == 30 * 2 * 2 and all(
        set(y.tolist()) <= {3 * (i // 2 % 2) + k for k in range(3)} for i, y in enumerate(seen)
    )
    real = [y for batches in TASKS for _, y in batches[:2]]
    hits = torch.stack([(y == real[i % 4]).float().mean() for i, y in enumerate(seen)]).mean()
    assert hits == pytest.approx(1 / 3, abs=0.05)
    for k in range(30):
        again = kept(build, generator(4, "null network", k + 1))
        assert all(torch.equal(p, q) for p, q in zip(start[k].parameters(), again.parameters(), strict=True)), "no step"
    table = record.null_table
    assert set(zip(table["task"], table["epoch"], strict=True)) == {(t, n) for t in (1, 2) for n in range(1, 31)}


def test_the_null_follows_from_the_seed_and_leaves_chance_alone():
    watch, found = train(Observer(build, BLOCKS)), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(watch.record(TASKS, loss, n_nulls=2))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0].null_table.equals(found[1].null_table)
    assert np.array_equal(found[0].null_counts, found[1].null_counts)
    assert not np.array_equal(found[0].null_counts[0], found[0].null_counts[1]), "each network is another one"


def test_a_task_that_can_be_read_only_once_is_named():
    once = iter(TASKS[1])
    list(once)
    with pytest.raises(ValueError, match="task 2 gives no batch"):
        train(Observer(build, BLOCKS)).record([TASKS[0], once], loss, n_nulls=1)
