"""The walk over the tasks: what it measures, what it carries along, and that stopping it anywhere changes nothing."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from toys import states_equal, tables_equal, toy_config, toy_images

from learngene_core import collective as walk_module
from learngene_core import gradients as nulls
from learngene_core.collective import Walk, accuracy_matrix, sequence_summary, train_collective
from learngene_core.criteria import CRITERIA, score, score_all
from learngene_core.data.division import divide, source_tasks
from learngene_core.errors import OutOfTime, StudyError
from learngene_core.learngene import Learngene, cut_learngene
from learngene_core.network import ConvNet
from learngene_core.record import Record
from learngene_core.runs import states as midtask
from learngene_core.runs.run import Run
from learngene_core.runs.states import MidTask, load_collective, load_state, task_folders
from learngene_core.training import evaluate

FILES = ("history.csv", "gradients.csv", "histograms.npz")


@pytest.fixture(scope="module")
def images():
    return toy_images()


def tasks_of(images, cfg):
    div = divide(images, cfg)
    return div, source_tasks(images, div, cfg)


def train(images, cfg, run=None):
    return train_collective(images, *tasks_of(images, cfg), cfg, run)


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
    _, src = tasks_of(images, run.cfg)
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
    _, src = tasks_of(images, run.cfg)
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
def head_rows(walk):
    """The head's rows and biases, one vector per class."""
    head = walk.model.head
    return torch.cat([head.weight.detach(), head.bias.detach()[:, None]], 1).clone()


@pytest.mark.parametrize("loss", ["task-incremental", "class-incremental"])
def test_the_loss_decides_whether_old_classes_are_touched(images, loss):
    cfg = toy_config(loss=loss, weight_decay=0.0, growth="none")
    _, src = tasks_of(images, cfg)
    walk = Walk(images, src, cfg, None)
    for task in src[:2]:
        walk._grow(task)
        before = head_rows(walk)
        walk._train(task)
        moved = (head_rows(walk) - before).abs().amax(1) > 0
    new = torch.tensor([n in src[1].classes for n in walk.class_names])
    assert moved[new].all() and len(moved) == 6
    assert moved[~new].all() if loss == "class-incremental" else not moved[~new].any()


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
    _, src = tasks_of(images, cfg)
    walk = Walk(images, src, cfg, None)
    col = walk.finish(walk.through())
    widths = [block.conv.out_channels for name, block in col.model.blocks.items() if "+" not in name]
    assert tuple(widths) == cfg.final_widths
    assert len(col.model.block_names) == 13 + len(cfg.deepen_before)
    shapes = {n: p.shape for n, p in col.model.named_parameters()}
    stores = {"initial": col.initial, "learngene's Fisher": col.fisher}
    if cfg.ewc_lambda:
        stores["EWC's Fisher"] = walk.owned.fisher
    if cfg.carry_momentum:
        stores["momentum"] = walk.owned.momentum
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
    born = ConvNet(
        cfg.start_widths, (2, 4, 7, 10, 13), 3, 32, generator=walk_module.generator(cfg.seed, "initial weights")
    )
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
        _, src = tasks_of(images, cfg)
        walk = Walk(images, src, cfg, None)
        for task in src[:2]:
            walk._grow(task)
            walk._train(task)
        old = walk.model.widths[-1]
        walk._grow(src[2])  # Fisher of task 1 (taken before task 2), widened once more
        fishers[columns] = walk.owned.fisher
    assert old < walk.model.widths[-1]
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
        _, src = tasks_of(images, cfg)
        walk = Walk(images, src, cfg, None)
        for task in src[:2]:
            walk._grow(task)
            start = {n: p.detach().clone() for n, p in walk.model.named_parameters()}
            walk._train(task)
        end = dict(walk.model.named_parameters())
        fisher = walk._fisher(src[0], 12)
        moved[strength] = sum((fisher[n] * (end[n] - start[n]) ** 2).sum().item() for n in fisher)
        penalties = pd.DataFrame(walk.history).groupby("task")["penalty"].mean()
        assert penalties[1] == 0 and (penalties[2] > 0) == (strength > 0)
    assert moved[3.0] < moved[0.0]


def test_fisher_information_adds_up_over_the_tasks(images):
    cfg = toy_config(ewc_lambda=1.0, ewc_decay=0.25, growth="none")
    _, src = tasks_of(images, cfg)
    walk, taken = Walk(images, src, cfg, None), []
    fisher_of = walk._fisher
    walk._fisher = lambda task, n: taken.append((task.number, n, fisher_of(task, n))) or taken[-1][2]
    col = walk.finish(walk.through())
    assert [entry[:2] for entry in taken] == [(1, 12), (2, 12), (1, 4), (2, 4), (3, 4)]
    one, two, *last = (entry[2] for entry in taken)
    for name in one:
        old = torch.zeros_like(two[name])
        old[: len(one[name])] = one[name]  # the head grew in between
        assert torch.allclose(walk.owned.fisher[name], 0.25 * old + two[name]), name
        assert torch.allclose(col.fisher[name], sum(f[name] for f in last) / 3), name


def test_new_channels_get_their_statistics_from_the_next_tasks_images(images):
    cfg = toy_config()
    _, src = tasks_of(images, cfg)
    walk = Walk(images, src, cfg, None)
    walk._grow(src[0])
    walk._train(src[0])
    old = walk.model.widths
    walk._grow(src[1])
    grown = [
        n
        for n, width in zip(walk.model.block_names, old, strict=True)
        if walk.model.blocks[n].conv.out_channels > width
    ]
    assert grown
    mixed = torch.randperm(len(src[1].train), generator=walk.stream("calibration", 2))[: cfg.batch_size].numpy()
    assert len({int(images.labels[i]) for i in src[1].train[mixed]}) == cfg.source_way  # not the first class alone
    batch = walk._prepared(src[1].train[mixed])
    last = grown[-1]  # nothing below it changed afterwards
    reached = walk.model.output_of(last, batch, before_norm=True)[:, old[walk.model.block_names.index(last)] :]
    norm = walk.model.blocks[last].norm
    assert torch.allclose(norm.running_mean[-reached.shape[1] :], reached.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    assert torch.allclose(norm.running_var[-reached.shape[1] :], reached.var((0, 2, 3)), rtol=1e-3)


def test_momentum_goes_on_into_the_next_task_where_it_is_asked_for(images):
    """Under a loss without gradient, what moves in task 2 is what was carried over."""
    moved = {}
    for carry in (False, True):
        cfg = toy_config(carry_momentum=carry, growth="none", weight_decay=0.0)
        _, src = tasks_of(images, cfg)
        walk = Walk(images, src, cfg, None)
        walk._grow(src[0])
        walk._train(src[0])
        walk._grow(src[1])
        start = walk.model.blocks["conv5"].conv.weight.detach().clone()
        buffer = walk.owned.momentum.get("blocks.conv5.conv.weight")
        rates = [walk_module.recipe_of(cfg, 1, *walk.normal).rate_at(k, 3) for k in range(3)]

        def silent(model, pixels, labels, loss, *rest, fit=walk_module.fit, **options):
            return fit(model, pixels, labels, lambda z, y: (loss(z, y)[0] * 0, loss(z, y)[1]), *rest, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(walk_module, "fit", silent)
            walk._train(src[1])
        moved[carry] = start - walk.model.blocks["conv5"].conv.weight.detach()
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
    assert (col.record.null_counts.sum((-1, -2)) + col.record.null_zeros == 9 * _pairs(run.cfg.final_widths)).all()


def _pairs(widths):
    return np.array([a * b for a, b in zip([3, *widths[:-1]], widths, strict=True)])


@pytest.mark.parametrize("loss", ["task-incremental", "class-incremental"])
def test_the_null_is_several_untrained_networks_with_random_labels(images, monkeypatch, loss):
    cfg = toy_config(null_networks=3, null_steps=4, growth="none", loss=loss)
    _, src = tasks_of(images, cfg)
    walk = Walk(images, src, cfg, None)
    model = walk.through()
    shown, loss_of = [], nulls.task_loss

    def watching(classes):
        return lambda logits, labels: shown.append((classes, labels)) or loss_of(classes)(logits, labels)

    monkeypatch.setattr(nulls, "task_loss", watching)
    table = walk.finish(model).record.null_table
    sizes = table.pivot(index="epoch", columns=["layer", "task"], values="weight_norm")
    assert len(sizes) == 3 and all(sizes[n].nunique(axis=1).eq(1).all() for n in model.block_names)  # never trained
    assert all(sizes[n, 1].nunique() == 3 for n in model.block_names)  # and three of them
    among = [labels for classes, labels in shown if (classes is None) == (loss == "class-incremental")]
    assert len(among) == len(shown) == 3 * 3 * 4
    per_task = [torch.cat([labels for _, labels in shown[4 * k : 4 * k + 4]]) for k in range(9)]
    for k, labels in enumerate(per_task):
        outputs = range(9) if loss == "class-incremental" else range(3 * (k % 3), 3 * (k % 3) + 3)
        assert set(labels.tolist()) == set(outputs)
    assert len({tuple(labels.tolist()) for labels in per_task}) == 9


def test_every_kth_step_is_recorded_and_training_is_the_same(images, trained):
    cfg = trained[1].cfg.replace(record_every=2)
    col = train(images, cfg)
    assert states_equal(dict(col.model.state_dict()), dict(trained[0].model.state_dict()))
    assert set(col.gradients["steps"]) == {2}


# stopping and going on --------------------------------------------------------------------------------------------------
class Stopped(Exception):
    pass


def stop_after_saving(number):
    save = Walk._save

    def stopping(self, task):
        save(self, task)
        if task.number == number:
            raise Stopped

    return "_save", stopping


def stop_while_training(number):
    measure = Walk._measure

    def stopping(self, task):
        if task.number == number:
            raise Stopped
        measure(self, task)

    return "_measure", stopping


def stop_while_finishing(number):
    return "finish", lambda self, model: (_ for _ in ()).throw(Stopped)


RICH = {"ewc_lambda": 1.0, "carry_momentum": True, "deepen_before": (2,), "hidden": (8,)}


@pytest.mark.parametrize(
    "changes", [{}, RICH, {"loss": "class-incremental", "growth": "uneven"}], ids=["plain", "rich", "uneven"]
)
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
        patch.setattr(Walk, *how(number))
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
    monkeypatch.setattr(Walk, "_train", None)
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
        patch.setattr(Walk, *stop_after_saving(2))
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
    loss_of = walk_module.task_loss

    def failing(classes):
        def loss(logits, labels):
            value, hit = loss_of(classes)(logits, labels)
            return value * (float("nan") if len(classes_seen) > 1 else 1), hit

        return loss

    classes_seen = []
    monkeypatch.setattr(walk_module, "task_loss", lambda classes: classes_seen.append(1) or failing(classes))
    with pytest.raises(StudyError, match="source task 2.*epoch 1, step 1"):
        train(images, cfg, run)
    assert [p.name for p in sorted((run.path / "collective").iterdir())] == ["task_01"]
    assert not run.done("collective")
    monkeypatch.undo()
    assert_equal(train(images, cfg, Run.open(cfg, run.path)), train(images, cfg))


# within a task ----------------------------------------------------------------------------------------------------------
LONG = {"epochs": 4, "first_task_epochs": 4}


@pytest.fixture
def every_epoch(monkeypatch):
    """A state is saved at the end of every epoch."""
    monkeypatch.setattr(midtask, "SECONDS", 0.0)
    monkeypatch.setattr(midtask, "SHARE", math.inf)


def stopped_behind(images, cfg, path, monkeypatch, number, epoch):
    """A run that was stopped right after the state behind an epoch was saved."""
    with monkeypatch.context() as patch:
        save = MidTask.save

        def stopping(self, model, optimiser, rows, entries):
            save(self, model, optimiser, rows, entries)
            if (rows[-1]["task"], rows[-1]["epoch"]) == (number, epoch):
                raise Stopped

        patch.setattr(MidTask, "save", stopping)
        with pytest.raises(Stopped):
            train(images, cfg, Run.open(cfg, path))
    return Run.open(cfg, path)


def same_files(one, other):
    names = [p.relative_to(one) for p in one.rglob("*") if p.is_file()]
    assert {*names} == {p.relative_to(other) for p in other.rglob("*") if p.is_file()}
    different = [n for n in names if (one / n).read_bytes() != (other / n).read_bytes()]
    return [n for n in different if n.name not in ("timings.csv", "progress.json", ".owner", ".lock")] == []


@pytest.mark.parametrize(
    "changes",
    [{}, RICH, {"ewc_lambda": 3.0, "ewc_form": "proximal", "growth": "uneven"}, {"hidden": (8,), "dropout": 0.4}],
    ids=["plain", "rich", "proximal", "dropout"],
)
@pytest.mark.parametrize(("number", "epoch"), [(1, 1), (2, 3)])
def test_a_run_stopped_within_a_task_goes_on_behind_its_last_epoch(
    images, tmp_path, monkeypatch, every_epoch, changes, number, epoch
):
    cfg = toy_config(**LONG, **changes)
    through = train(images, cfg, Run.open(cfg, tmp_path / "whole"))
    run = stopped_behind(images, cfg, tmp_path / "stopped", monkeypatch, number, epoch)
    begun, fit = [], walk_module.fit
    monkeypatch.setattr(walk_module, "fit", lambda *a, **k: begun.append(k["first_epoch"]) or fit(*a, **k))
    torch.manual_seed(5)
    assert_equal(train(images, cfg, run), through)
    assert begun == [epoch + 1, *[1] * (3 - number)], "finished epochs were trained again"
    assert same_files(tmp_path / "whole", tmp_path / "stopped")


def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(images, tmp_path, monkeypatch, every_epoch, capsys):
    cfg = toy_config(**LONG, ewc_lambda=1.0)
    through = train(images, cfg, Run.open(cfg, tmp_path / "whole"))
    for bad, begin in ((("epoch_003",), 3), (("epoch_003", "epoch_002"), 1), (("epochs.json",), 1)):
        run = stopped_behind(images, cfg, tmp_path / "_".join(bad), monkeypatch, 2, 3)
        folder = run.path / "collective" / "task_02"
        assert sorted(p.name for p in folder.iterdir()) == [
            "epoch_002.safetensors",
            "epoch_003.safetensors",
            "epochs.json",
        ]
        for path in folder.iterdir():
            if path.name.startswith(bad):  # one bit in the middle, or an end that is missing
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 4
                path.write_bytes(content if begin == 3 else content[: len(content) // 2])
        begun, fit = [], walk_module.fit
        with monkeypatch.context() as patch:
            patch.setattr(walk_module, "fit", lambda *a, **k: begun.append(k["first_epoch"]) or fit(*a, **k))  # noqa: B023
            capsys.readouterr()
            assert_equal(train(images, cfg, run), through)
        assert begun[0] == begin and "damaged" in capsys.readouterr().out
        assert same_files(tmp_path / "whole", run.path)


def test_minutes_stop_the_training_at_the_end_of_an_epoch(images, tmp_path):
    cfg = toy_config(**LONG)
    through, calls = train(images, cfg), 0
    while True:
        run = Run.open(cfg.replace(minutes=1e-9), tmp_path / "run")
        calls += 1
        try:
            col = train(images, run.cfg, run)
            break
        except OutOfTime as error:
            assert "goes on" in str(error)
    assert calls == 3 * 3 + 1, "one epoch a call; the last of a task is saved with the task"
    assert_equal(col, through)


def test_states_are_as_rare_as_their_cost_asks_for(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(midtask.time, "monotonic", lambda: now[0])
    states = MidTask(tmp_path, "hash")

    def due_after(seconds):
        start, now[0] = now[0], now[0] + seconds
        due = states.due
        now[0] = start
        return due

    assert not due_after(19.9) and due_after(20.0)
    states._took = 3.0  # a large network on a slow disk
    assert not due_after(99.0) and due_after(100.1)  # 3 %


# the learngene is cut ---------------------------------------------------------------------------------------------------
def test_cutting_writes_the_scores_and_the_file_once(trained, tmp_path):
    col, run = trained
    path = shutil.copytree(run.path, tmp_path / "copy")
    cfg = run.cfg.replace(threshold=5e-4, n_blocks=2)
    gene = cut_learngene(col, cfg, Run.open(cfg, path))
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
    again = cut_learngene(load_collective(run), cfg, Run.open(cfg, path))
    assert again.layers == gene.layers and (path / "learngene.safetensors").read_bytes() == before


def test_a_block_chosen_by_hand_is_cut(trained):
    gene = cut_learngene(trained[0], trained[1].cfg.replace(layers=("conv2", "conv3")))
    assert gene.layers == ("conv2", "conv3") and gene.notes["chosen_by"] == "hand"
    with pytest.raises(StudyError, match="conv99"):
        cut_learngene(trained[0], trained[1].cfg.replace(layers=("conv99",)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_walk_runs_on_a_gpu_and_resumes(images, tmp_path, monkeypatch):
    cfg = toy_config(device="cuda", **{**RICH, "ewc_form": "proximal"})
    with monkeypatch.context() as patch:
        patch.setattr(Walk, *stop_after_saving(2))
        with pytest.raises(Stopped):
            train(images, cfg, Run.open(cfg, tmp_path / "run"))
    col = train(images, cfg, Run.open(cfg, tmp_path / "run"))
    assert col.model.head.weight.device.type == "cpu" and col.model.widths[-1] == cfg.final_widths[-1]
    assert np.isfinite(col.history.query("phase == 'train'")["loss"]).all()
    on_cpu = train(images, cfg.replace(device="cpu"))
    assert np.array_equal(col.record.null_zeros.shape, on_cpu.record.null_zeros.shape)
    first = [c.history.query("phase == 'train'")["loss"].iloc[0] for c in (col, on_cpu)]
    assert first[0] == pytest.approx(first[1], rel=1e-2)
    assert cut_learngene(col, cfg.replace(layers=("conv12", "conv13"))).n_parameters > 0
