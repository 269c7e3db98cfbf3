"""One network over the tasks: what it measures, what it carries along, and that stopping it anywhere changes nothing."""

import copy
import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from toys import states_equal, tables_equal, toy_config, toy_images

from learngene_core import collective as module
from learngene_core.collective import (
    Source,
    accuracy_matrix,
    collective_null,
    grow,
    learn,
    lesson,
    sequence_summary,
    task_fisher,
    train_collective,
)
from learngene_core.config import Machine
from learngene_core.criteria import CRITERIA, score, score_all
from learngene_core.data.division import divide, source_tasks
from learngene_core.errors import OutOfTime, StudyError
from learngene_core.learngene import Learngene, cut_learngene
from learngene_core.network import ConvNet
from learngene_core.record import Record
from learngene_core.runs import stages
from learngene_core.runs.run import Run
from learngene_core.runs.states import load_collective, load_state, task_folders
from learngene_core.tasks import generator
from learngene_core.training import Recipe, evaluate, task_loss

FILES = ("history.csv", "gradients.csv", "histograms.npz")


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def images():
    return toy_images()


def tasks_of(images, cfg):
    return source_tasks(images, divide(images, cfg), cfg)


def train(images, cfg, run=None):
    if run is not None:
        return stages.trained_collective(run, images, tasks_of(images, cfg))
    return train_collective(images, tasks_of(images, cfg), cfg)


def after(images, cfg, number):
    """The state after task `number`, with the tasks and the source they come from."""
    found = []

    def stop(state):
        if state.done == number:
            found.append(copy.deepcopy(state))
            raise Stopped

    tasks = tasks_of(images, cfg)
    with pytest.raises(Stopped):
        train_collective(images, tasks, cfg, after_task=stop)
    return found[0], tasks, Source(images, tasks, cfg, Machine())


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A finished collective in a run folder (nothing may be changed in it)."""
    run = Run.open(toy_config(ewc_lambda=1.0), tmp_path_factory.mktemp("collective") / "run")
    return train(images, run.cfg, run), run


# what it says -----------------------------------------------------------------------------------------------------------
def test_history_has_every_epoch_and_every_pair_of_tasks(trained):
    history = trained[0].history
    learning = history[history["phase"] == "train"]
    assert learning[["task", "epoch"]].to_numpy().tolist() == [[1, 1], [1, 2], [2, 1], [3, 1]]
    assert (learning["on_task"] == learning["task"]).all()
    assert np.isfinite(learning[["loss", "accuracy"]].to_numpy()).all()
    tests = history[history["phase"] == "test"]
    assert tests[["task", "on_task"]].to_numpy().tolist() == [[1, 1], [2, 1], [2, 2], [3, 1], [3, 2], [3, 3]]
    assert tests["accuracy"].between(0, 100).all() and (tests["accuracy_all_seen"] <= tests["accuracy"]).all()
    matrix = accuracy_matrix(history)
    assert list(matrix.index) == list(matrix.columns) == [1, 2, 3]
    assert (matrix.isna().to_numpy() == np.triu(np.ones((3, 3), bool), 1)).all()


def test_the_accuracies_are_those_of_the_model_on_held_out_images(trained, images):
    col, run = trained
    src = tasks_of(images, run.cfg)
    for task in src:
        labels = torch.tensor([col.class_names.index(images.class_names[k]) for k in images.labels[task.test]])
        assert sorted(set(labels.tolist())) == sorted(col.class_names.index(n) for n in task.classes)
        own = torch.tensor([col.class_names.index(n) for n in task.classes])
        row = col.history.query("phase == 'test' and task == 3 and on_task == @task.number").iloc[0]
        for column, classes in (("accuracy", own), ("accuracy_all_seen", None)):
            accuracy = evaluate(col.model, images.images[task.test], labels, col.mean, col.std, classes=classes)
            assert row[column] == pytest.approx(float(accuracy)), column


def test_it_learns(images):
    cfg = toy_config(growth="none", n_source_tasks=1, first_task_epochs=10, source_images=16, width_divisor=8)
    history = train(images, cfg).history
    assert history["accuracy"].iloc[-1] > 70  # of held-out images, chance 33


def test_normalisation_comes_from_the_training_images_alone(trained, images):
    col, run = trained
    src = tasks_of(images, run.cfg)
    used = np.unique(np.concatenate([t.train for t in src]))
    pixels = images.images[used].double() / 255
    assert torch.allclose(col.mean.double(), pixels.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(col.std.double(), pixels.transpose(0, 1).flatten(1).std(1, correction=0), atol=1e-6)


def test_the_summary_by_hand():
    cells = {(1, 1): 90, (2, 1): 70, (2, 2): 80, (3, 1): 50, (3, 2): 75, (3, 3): 100}
    rows = [{"task": t, "on_task": s, "phase": "test", "accuracy": float(a)} for (t, s), a in cells.items()]
    rows += [{"task": t, "on_task": t, "phase": "train", "accuracy": 1.0} for t in (1, 2, 3)]
    summary = sequence_summary(pd.DataFrame(rows))
    assert summary["average_accuracy"] == pytest.approx(75) and summary["just_learned"] == pytest.approx(90)
    assert summary["backward_transfer"] == pytest.approx((50 - 90 + 75 - 80) / 2)
    one = sequence_summary(pd.DataFrame(rows[:1]))
    assert one["average_accuracy"] == 90 and math.isnan(one["backward_transfer"])


# loss, growth, EWC ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", ["task-incremental", "class-incremental"])
def test_the_loss_decides_whether_old_classes_are_touched(images, loss):
    cfg, rows = toy_config(loss=loss, weight_decay=0.0, growth="none"), []

    def head(state):
        rows.append(torch.cat([state.model.head.weight, state.model.head.bias[:, None]], 1).detach().clone())

    train_collective(images, tasks_of(images, cfg), cfg, after_task=head)
    moved = (rows[1][:3] - rows[0]).abs().amax(1) > 0
    assert len(rows[1]) == 6 and (moved.all() if loss == "class-incremental" else not moved.any())


@pytest.mark.parametrize(
    "changes",
    [
        {"growth": "zero-out"},
        {"growth": "uneven", "ewc_lambda": 1.0, "carry_momentum": True},
        {"growth": "net2net"},
        {"growth": "none"},
        {"growth": "zero-out", "deepen_before": (2, 3), "ewc_lambda": 1.0, "carry_momentum": True, "hidden": (8,)},
        {
            "growth": "zero-out",
            "growth_start": 1,
            "source_draw": "overlap",
            "n_source_tasks": 4,
            "dropout": 0.3,
            "hidden": (8,),
        },
        {"loss": "class-incremental", "ewc_lambda": 1.0, "ewc_form": "proximal"},
    ],
    ids=lambda c: " ".join(map(str, c.values())),
)
def test_what_belongs_to_weights_has_their_shape_to_the_end(images, changes):
    cfg = toy_config(**changes)
    states, src = [], tasks_of(images, cfg)
    col = train_collective(images, src, cfg, after_task=states.append)
    owned = states[-1].owned
    widths = [block.conv.out_channels for name, block in col.model.blocks.items() if "+" not in name]
    assert tuple(widths) == cfg.final_widths
    assert len(col.model.block_names) == 13 + len(cfg.deepen_before)
    shapes = {n: p.shape for n, p in col.model.named_parameters()}
    stores = {"initial": col.initial, "learngene's Fisher": col.fisher}
    if cfg.ewc_lambda:
        stores["EWC's Fisher"] = owned.fisher
    if cfg.carry_momentum:
        stores["momentum"] = owned.momentum
    for text, store in stores.items():
        assert {n: t.shape for n, t in store.items()} == shapes, text
        assert all(torch.isfinite(t).all() for t in store.values()), text
    assert all(torch.isfinite(t).all() for t in col.model.state_dict().values())
    assert col.model.n_classes == len(col.class_names) == len(set(col.class_names))
    assert set(col.class_names) == {n for task in src for n in task.classes}
    assert (
        tables_equal(score_all(col.record, cfg), score_all(col.record, cfg))
        and col.record.layers == col.model.block_names
    )


def test_initial_weights_are_the_weights_at_birth(images):
    cfg = toy_config()
    col = train(images, cfg)
    born = ConvNet(cfg.start_widths, (2, 4, 7, 10, 13), 3, 32, generator=generator(cfg.seed, "initial weights"))
    n_old = 0
    for name, value in born.state_dict().items():
        if name in col.initial and "classifier" not in name:
            old = col.initial[name][tuple(slice(n) for n in value.shape)]
            assert torch.equal(old, value), name
            n_old += old.numel()
    assert torch.equal(col.initial["classifier.0.weight"][:3, : born.head.in_features], born.head.weight.detach())
    assert n_old > 1000
    weight = col.initial["blocks.conv9.conv.weight"]
    assert weight[born.widths[8] :, : born.widths[7]].flatten(1).abs().amax(1).min() > 0  # born fresh, not as zeros
    final = dict(col.model.named_parameters())
    assert all(not torch.equal(col.initial[n], final[n]) for n in final if n.endswith("conv.weight"))


def test_new_outgoing_weights_have_a_past_where_it_is_imputed(images):
    fishers = {}
    for columns in ("imputed", "zero"):
        cfg = toy_config(ewc_lambda=1.0, new_columns=columns)
        state, tasks, source = after(images, cfg, 2)
        old = state.model.widths[-1]
        grow(
            state, tasks[2], cfg, source.calibration(tasks[2])
        )  # Fisher of task 1 (taken before task 2), widened once more
        fishers[columns] = state.owned.fisher
    assert old < state.model.widths[-1]
    imputed, zero = (fishers[columns]["classifier.0.weight"] for columns in ("imputed", "zero"))
    assert torch.equal(imputed[:, :old], zero[:, :old]) and not zero[:, old:].any()
    wanted = zero[:, :old].mean(1, keepdim=True).expand_as(imputed[:, old:])
    assert torch.allclose(imputed[:, old:], wanted) and wanted[:3].all()
    assert not imputed[6:].any()  # classes of task 3: nothing depends on them yet
    rows = fishers["imputed"]["blocks.conv13.conv.weight"]
    assert rows[:old].any() and not rows[old:].any()  # what nobody reads yet, nobody depends on


@pytest.mark.parametrize("form", ["penalty", "proximal"])
def test_ewc_holds_from_the_second_task_on(images, form):
    moved = {}
    for strength in (0.0, 3.0):
        cfg = toy_config(ewc_lambda=strength, ewc_form=form, growth="none", weight_decay=0.0)
        first, tasks, source = after(images, cfg, 1)
        second, *_ = after(images, cfg, 2)
        start, end = (dict(state.model.named_parameters()) for state in (first, second))
        fisher = task_fisher(second, tasks, 1, cfg, source, 12)  # nothing for the new outputs, which the first has not
        moved[strength] = sum(
            (fisher[n][: len(p)] * (end[n][: len(p)] - p) ** 2).sum().item() for n, p in start.items()
        )
        penalties = pd.DataFrame(second.history).groupby("task")["penalty"].mean()
        assert penalties[1] == 0 and (penalties[2] > 0) == (strength > 0)
    assert moved[3.0] < moved[0.0]


def test_fisher_information_adds_up_over_the_tasks(images, monkeypatch):
    cfg = toy_config(ewc_lambda=1.0, ewc_decay=0.25, growth="none")
    taken, states = [], []

    def watching(state, tasks, number, cfg, source, n):
        taken.append((number, n, task_fisher(state, tasks, number, cfg, source, n)))
        return taken[-1][2]

    monkeypatch.setattr(module, "task_fisher", watching)
    col = train_collective(images, tasks_of(images, cfg), cfg, after_task=states.append)
    assert [entry[:2] for entry in taken] == [(1, 12), (2, 12), (1, 4), (2, 4), (3, 4)]
    one, two, *last = (entry[2] for entry in taken)
    for name in one:
        old = torch.zeros_like(two[name])
        old[: len(one[name])] = one[name]  # the head grew in between
        assert torch.allclose(states[-1].owned.fisher[name], 0.25 * old + two[name]), name
        assert torch.allclose(col.fisher[name], sum(f[name] for f in last) / 3), name


def test_new_channels_get_their_statistics_from_the_next_tasks_images(images):
    cfg = toy_config()
    state, tasks, source = after(images, cfg, 1)
    old, batch = state.model.widths, source.calibration(tasks[1])
    of = dict(
        zip(map(bytes, source.prepared(tasks[1].train).numpy()), images.labels[tasks[1].train].tolist(), strict=True)
    )
    assert len({of[bytes(x)] for x in batch.numpy()}) == cfg.source_way  # of this task, and not the first class alone
    grow(state, tasks[1], cfg, batch)
    names = state.model.block_names
    grown = [n for n, width in zip(names, old, strict=True) if state.model.blocks[n].conv.out_channels > width]
    last = grown[-1]  # nothing below it changed afterwards
    reached = state.model.output_of(last, batch, before_norm=True)[:, old[names.index(last)] :]
    norm = state.model.blocks[last].norm
    assert torch.allclose(norm.running_mean[-reached.shape[1] :], reached.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    assert torch.allclose(norm.running_var[-reached.shape[1] :], reached.var((0, 2, 3)), rtol=1e-3)


def test_momentum_goes_on_into_the_next_task_where_it_is_asked_for(images):
    """Under a loss without gradient, what moves in task 2 is what was carried over."""
    moved = {}
    for carry in (False, True):
        cfg = toy_config(carry_momentum=carry, growth="none", weight_decay=0.0)
        state, tasks, source = after(images, cfg, 1)
        grow(state, tasks[1], cfg, source.calibration(tasks[1]))
        start = state.model.blocks["conv5"].conv.weight.detach().clone()
        buffer = state.owned.momentum.get("blocks.conv5.conv.weight")
        rates = [Recipe.of_collective(cfg, 1, *source.normal).rate_at(k, 3) for k in range(3)]
        shown, loss = lesson(state, tasks[1], tasks, cfg, source)

        def silent(logits, labels, loss=loss):
            value, hits = loss(logits, labels)
            return value * 0, hits

        list(learn(state, tasks[1], cfg, source, shown, silent, None, Machine()))
        moved[carry] = start - state.model.blocks["conv5"].conv.weight.detach()
        if carry:
            wanted = buffer * sum(rate * 0.9 ** (k + 1) for k, rate in enumerate(rates))
            assert torch.allclose(moved[carry], wanted, rtol=1e-3, atol=1e-7) and wanted.abs().max() > 1e-4
    assert not moved[False].any()


def test_an_inserted_block_appears_in_the_record_when_it_is_born(images):
    cfg = toy_config(deepen_before=(2,), threshold=5e-4)
    col = train(images, cfg)
    (new,) = [n for n in col.model.block_names if "+" in n]
    at = col.record.layers.index(new)
    seen = col.record.counts[:, at].sum((1, 2)) + col.record.zeros[:, at]
    assert (seen > 0).tolist() == [False, False, True, True] and col.record.task.tolist() == [1, 1, 2, 3]
    others = np.delete(col.record.counts.sum((2, 3)) + col.record.zeros, at, 1)
    assert (others > 0).all()
    for name in CRITERIA:
        options = {"threshold": 5e-4} if "threshold" in CRITERIA[name].options else {}
        assert np.isfinite(score(col, name, **options)["score"]).all(), name
    gene = cut_learngene(col, cfg.replace(layers=(new,)))
    assert torch.equal(gene.tensors[f"{new}.conv.weight"], col.model.blocks[new].conv.weight)
    assert set(gene.fisher) == {f"{new}.{p}" for p in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")}


# the record and its null ------------------------------------------------------------------------------------------------
def test_every_entry_of_every_step_is_in_the_record(trained):
    col, run = trained
    of_epoch = list(col.gradients.groupby(["task", "epoch"]))
    assert [key for key, _ in of_epoch] == list(zip(col.record.task, col.record.epoch, strict=True))
    for r, (_, rows) in enumerate(of_epoch):
        rows = rows.set_index("layer")
        assert tuple(rows.index) == col.record.layers
        total = col.record.counts[r].sum((1, 2)) + col.record.zeros[r]
        assert total.tolist() == (rows["n_weights"] * rows["steps"]).tolist()
        assert set(rows["steps"]) == {3}  # 36 images in batches of 12
    widths = col.gradients.query("layer == 'conv13'")["n_weights"].tolist()
    assert widths == sorted(widths) and len(set(widths)) > 1  # it grew
    null = col.record.null_table
    assert len(null) == run.cfg.null_networks * 3 * 13
    sizes = col.gradients.drop_duplicates(["task", "layer"])["n_weights"].to_numpy().reshape(3, 13)
    in_null = col.record.null_counts.sum((-1, -2)) + col.record.null_zeros  # (networks, tasks, layers), one step each
    assert (in_null == sizes).all(), "the untrained networks have the widths that the collective had at each task"


def test_the_null_looks_at_as_many_first_tasks_as_asked_for(images, trained):
    tasks = trained[0].record.null_table["task"]
    assert set(tasks) == {1, 2, 3}
    fewer = train(images, toy_config(null_tasks=2)).record.null_table
    assert set(fewer["task"]) == {1, 2}
    assert tables_equal(fewer, trained[0].record.null_table[tasks <= 2].reset_index(drop=True))


@pytest.mark.parametrize("loss", ["task-incremental", "class-incremental"])
def test_the_null_is_several_untrained_networks_with_random_labels(images, loss):
    cfg = toy_config(null_networks=3, null_steps=4, growth="none", loss=loss)
    state, tasks, source = after(images, cfg, 3)
    shown = []

    def watching(classes):
        return lambda logits, labels: shown.append((classes, labels)) or task_loss(classes)(logits, labels)

    rows, counts, _ = collective_null(state, tasks, cfg, source, Machine(), watching)
    table = pd.DataFrame(rows)
    sizes = table.pivot(index="epoch", columns=["layer", "task"], values="weight_norm")
    assert len(sizes) == len(counts) == 3
    for k, t in itertools.product((1, 2, 3), (1, 2, 3)):  # never trained, and another one each
        fresh = ConvNet.from_shape(state.shapes[t - 1], generator=generator(cfg.seed, "null network", k, t))
        wanted = [float(block.conv.weight.detach().norm()) for block in fresh.blocks.values()]
        assert sizes.loc[k].xs(t, level="task")[list(fresh.block_names)].tolist() == pytest.approx(wanted, rel=1e-5)
    assert all(sizes[n, 1].nunique() == 3 for n in state.model.block_names)
    among = [labels for classes, labels in shown if (classes is None) == (loss == "class-incremental")]
    assert len(among) == len(shown) == 3 * 3 * 4
    per_task = [torch.cat([labels for _, labels in shown[4 * k : 4 * k + 4]]) for k in range(9)]
    for k, labels in enumerate(per_task):
        outputs = range(3 * (k % 3) + 3) if loss == "class-incremental" else range(3 * (k % 3), 3 * (k % 3) + 3)
        assert set(labels.tolist()) == set(outputs)
    assert len({tuple(labels.tolist()) for labels in per_task}) == 9


def test_every_kth_step_is_recorded_and_training_is_the_same(images, trained):
    cfg = trained[1].cfg.replace(record_every=2)
    col = train(images, cfg)
    assert states_equal(dict(col.model.state_dict()), dict(trained[0].model.state_dict()))
    assert set(col.gradients["steps"]) == {2}


# stopping and going on --------------------------------------------------------------------------------------------------
def stop_after_saving(patch, number):
    save = stages.save_task

    def stopping(folder, state, *rest):
        save(folder, state, *rest)
        if state.done == number:
            raise Stopped

    patch.setattr(stages, "save_task", stopping)


def stop_while_training(patch, number):
    def stopping(self, stage, done, total, text=""):
        if text.startswith(f"task {number} "):
            raise Stopped

    patch.setattr(Run, "progress", stopping)


def stop_while_finishing(patch, number):
    def stopping(folder, col):
        raise Stopped

    patch.setattr(stages, "save_gene_fisher", stopping)


RICH = {"ewc_lambda": 1.0, "carry_momentum": True, "deepen_before": (2,), "hidden": (8,)}
UNEVEN = {"loss": "class-incremental", "growth": "uneven"}
DROPOUT = {"hidden": (8,), "dropout": 0.5}  # its draws come from torch's global state, those of the null too


@pytest.mark.parametrize("changes", [{}, RICH, UNEVEN, DROPOUT], ids=["plain", "rich", "uneven", "dropout"])
@pytest.mark.parametrize(
    "stop",
    [(stop_after_saving, 2), (stop_while_training, 2), (stop_while_finishing, 3)],
    ids=["saved", "training", "finishing"],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(images, tmp_path, monkeypatch, capsys, changes, stop):
    cfg = toy_config(**changes)
    whole = Run.open(cfg, tmp_path / "whole")
    through = train(images, cfg, whole)
    with monkeypatch.context() as patch:
        how, number = stop
        how(patch, number)
        with pytest.raises(Stopped):
            train(images, cfg, Run.open(cfg, tmp_path / "stopped"))
    run = Run.open(cfg, tmp_path / "stopped")
    assert not run.done("collective")
    finished = {p: p.read_bytes() for p in run.path.rglob("task_01/*")}
    capsys.readouterr()
    torch.manual_seed(123)
    resumed = train(images, cfg, run)
    assert "going on" in capsys.readouterr().out
    assert finished == {p: p.read_bytes() for p in run.path.rglob("task_01/*")}
    assert_equal(through, resumed)
    for name in (*FILES, *(p.relative_to(whole.path) for p in whole.path.glob("collective/*/*"))):
        assert (whole.path / name).read_bytes() == (run.path / name).read_bytes(), name
    assert run.done("collective")


def assert_equal(one, two):
    """Two collectives agree bit for bit."""
    assert states_equal(dict(one.model.state_dict()), dict(two.model.state_dict()))
    assert states_equal(one.initial, two.initial) and states_equal(one.fisher, two.fisher)
    assert tables_equal(one.history, two.history) and one.class_names == two.class_names
    assert tables_equal(one.record.table, two.record.table)
    assert np.array_equal(one.record.counts, two.record.counts) and np.array_equal(one.record.zeros, two.record.zeros)


def test_a_finished_collective_is_loaded_as_it_was(images, trained, monkeypatch):
    col, run = trained
    monkeypatch.setattr(module, "learn", None)
    again = train(images, run.cfg, Run.open(run.cfg, run.path))
    assert_equal(col, again)
    assert torch.equal(col.mean, again.mean) and torch.equal(col.std, again.std)
    cfg = run.cfg
    assert tables_equal(score_all(col.record, cfg), score_all(Record.load(run.path), cfg))


def test_the_run_folder_changes_nothing_and_the_seed_everything(images, trained):
    cfg = trained[1].cfg
    assert_equal(trained[0], train(images, cfg))
    other = train(images, cfg.replace(seed=1))
    assert not torch.equal(other.model.blocks["conv1"].conv.weight, trained[0].model.blocks["conv1"].conv.weight)


def test_dropout_draws_from_the_seed_too(images):
    """The `paper` preset has dropout: equal configurations give equal runs, whatever torch's global state is."""
    cfg = toy_config(hidden=(16,), dropout=0.5, n_source_tasks=2)
    cols = []
    for state in (1, 2):
        torch.manual_seed(state)
        cols.append(train(images, cfg))
    assert_equal(*cols)
    plain = train(images, cfg.replace(dropout=0.0))
    assert not states_equal(dict(plain.model.state_dict()), dict(cols[0].model.state_dict()))


def test_an_unfinished_run_of_another_configuration_is_not_continued(images, tmp_path, monkeypatch):
    """Tasks 1 and 2 with another rate, task 3 with this one, would be a run that no configuration describes."""
    run = Run.open(toy_config(), tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after_saving(patch, 2)
        with pytest.raises(Stopped):
            train(images, run.cfg, run)
    cfg = toy_config(learning_rate=0.001)
    try:
        mixed = train(images, cfg, Run.open(cfg, tmp_path / "run"))
    except StudyError:
        return
    assert_equal(mixed, train(images, cfg))


def test_states_after_earlier_tasks_can_be_loaded(trained):
    col, run = trained
    (first, _, about), last = load_state(task_folders(run)[0]), load_collective(run)
    assert first.widths == run.cfg.start_widths and tuple(about["class_names"]) == col.class_names[:3]
    assert last.model.widths == run.cfg.final_widths and last.class_names == col.class_names
    assert_equal(col, last)


@pytest.mark.parametrize("name", ["model.safetensors", "about.json", "record.npz"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_damaged_state_is_said_and_trained_again(images, trained, tmp_path, capsys, name, keep):
    """The state of an unfinished run, which no manifest watches over."""
    path = shutil.copytree(trained[1].path, tmp_path / "copy")
    manifest = json.loads((path / "manifest.json").read_text()) if (path / "manifest.json").exists() else {}
    (path / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "collective"}))
    state = path / "collective" / "task_03" / name
    state.write_bytes(state.read_bytes()[: int(keep * state.stat().st_size)])
    cfg = trained[1].cfg
    capsys.readouterr()
    assert_equal(trained[0], train(images, cfg, Run.open(cfg, path)))
    said = capsys.readouterr().out
    assert f"task_03: {name} is damaged; going back to task 2" in said


def test_a_loss_that_is_not_finite_names_the_task_and_loses_nothing(images, tmp_path, monkeypatch):
    cfg = toy_config()
    run = Run.open(cfg, tmp_path / "run")
    lessons = []

    def failing(*arguments):
        shown, loss = lesson(*arguments)
        lessons.append(1)
        factor = float("nan") if len(lessons) > 1 else 1.0
        return shown, lambda logits, labels: (loss(logits, labels)[0] * factor, loss(logits, labels)[1])

    monkeypatch.setattr(module, "lesson", failing)
    with pytest.raises(StudyError, match="source task 2.*epoch 1, step 1"):
        train(images, cfg, run)
    assert [p.name for p in sorted((run.path / "collective").iterdir())] == ["task_01"]
    assert not run.done("collective")
    monkeypatch.undo()
    assert_equal(train(images, cfg, Run.open(cfg, run.path)), train(images, cfg))


def test_minutes_stop_the_training_at_the_end_of_a_task(images, tmp_path):
    """Every call finishes at least one."""
    cfg = toy_config()
    through, calls = train(images, cfg), 0
    while True:
        run = Run.open(cfg.replace(minutes=1e-9), tmp_path / "run")
        calls += 1
        try:
            col = train(images, run.cfg, run)
            break
        except OutOfTime as error:
            assert "goes on" in str(error) and f"task {calls} of 3 is done" in str(error)
    assert calls == 3
    assert_equal(col, through)


# what a run refuses -----------------------------------------------------------------------------------------------------
def test_a_run_refuses_other_tasks_and_images_than_it_was_trained_on(images, trained):
    run, tasks = trained[1], tasks_of(images, trained[1].cfg)
    moved = dataclasses.replace(tasks[1], train=tasks[1].train[::-1].copy())
    for others in (tasks[::-1], tasks[:2], [tasks[0], moved, tasks[2]]):
        with pytest.raises(StudyError, match="another list of source tasks.*--redo collective"):
            stages.trained_collective(run, images, others)
    with pytest.raises(StudyError, match="another set of images"):
        stages.trained_collective(run, toy_images(seed=1), tasks)
    stages.trained_collective(run, images, tasks_of(images, run.cfg))


def test_a_run_that_was_stopped_refuses_them_too(images, tmp_path, monkeypatch):
    """Two tasks of one list and a third of another would be a run that nobody can make again."""
    run = Run.open(toy_config(), tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after_saving(patch, 2)
        with pytest.raises(Stopped):
            train(images, run.cfg, run)
    tasks = tasks_of(images, run.cfg)
    with pytest.raises(StudyError, match="another list of source tasks"):
        stages.trained_collective(run, images, [*tasks[:2], dataclasses.replace(tasks[2], train=tasks[2].train[:-1])])
    assert_equal(stages.trained_collective(run, images, tasks), train(images, run.cfg))


def test_a_run_refuses_to_cut_another_collective(images, trained, tmp_path):
    col, run = trained
    copied = Run.open(run.cfg, shutil.copytree(run.path, tmp_path / "copy"))
    gene = stages.chosen_learngene(copied, col)
    other = dataclasses.replace(col, model=copy.deepcopy(col.model))
    with torch.no_grad():
        other.model.head.weight[0, 0] += 1
    with pytest.raises(StudyError, match="another collective.*--redo criteria"):
        stages.chosen_learngene(copied, other)
    assert stages.chosen_learngene(copied, load_collective(run)).layers == gene.layers


# the learngene is cut ---------------------------------------------------------------------------------------------------
def test_cutting_writes_the_scores_and_the_file_once(trained, tmp_path):
    col, run = trained
    path = shutil.copytree(run.path, tmp_path / "copy")
    cfg = run.cfg.replace(threshold=5e-4, n_blocks=2)
    gene = stages.chosen_learngene(Run.open(cfg, path), col)
    table = pd.read_csv(path / "scores.csv")
    chosen = table[table["criterion"] == "released"].reset_index(drop=True)
    start = min(range(12), key=lambda i: (round(chosen["score"][i : i + 2].mean(), 12), -i))
    assert gene.layers == tuple(chosen["layer"][start : start + 2]) and set(table["criterion"]) == set(CRITERIA)
    tensors = load_file(path / "learngene.safetensors")
    name = gene.layers[0]
    assert torch.equal(tensors[f"{name}.conv.weight"], col.model.blocks[name].conv.weight)
    assert torch.equal(tensors[f"fisher/{name}.conv.weight"], col.fisher[f"blocks.{name}.conv.weight"])
    assert Learngene.load(path / "learngene.safetensors").mean == pytest.approx(col.mean.tolist())
    before = (path / "learngene.safetensors").read_bytes()
    again = stages.chosen_learngene(Run.open(cfg, path), load_collective(run))
    assert again.layers == gene.layers and (path / "learngene.safetensors").read_bytes() == before


def test_a_block_chosen_by_hand_is_cut(trained):
    gene = cut_learngene(trained[0], trained[1].cfg.replace(layers=("conv2", "conv3")))
    assert gene.layers == ("conv2", "conv3") and gene.notes["chosen_by"] == "hand"
    with pytest.raises(StudyError, match="conv99"):
        cut_learngene(trained[0], trained[1].cfg.replace(layers=("conv99",)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_collective_trains_on_a_gpu_and_resumes(images, tmp_path, monkeypatch):
    cfg = toy_config(device="cuda", **{**RICH, "ewc_form": "proximal"})
    with monkeypatch.context() as patch:
        stop_after_saving(patch, 2)
        with pytest.raises(Stopped):
            train(images, cfg, Run.open(cfg, tmp_path / "run"))
    col = train(images, cfg, Run.open(cfg, tmp_path / "run"))
    assert col.model.head.weight.device.type == "cpu" and col.model.widths[-1] == cfg.final_widths[-1]
    assert np.isfinite(col.history.query("phase == 'train'")["loss"]).all()
    on_cpu = train_collective(images, tasks_of(images, cfg), cfg, machine=Machine())
    assert np.array_equal(col.record.null_zeros.shape, on_cpu.record.null_zeros.shape)
    first = [c.history.query("phase == 'train'")["loss"].iloc[0] for c in (col, on_cpu)]
    assert first[0] == pytest.approx(first[1], rel=1e-2)
    assert cut_learngene(col, cfg.replace(layers=("conv12", "conv13"))).n_parameters > 0
