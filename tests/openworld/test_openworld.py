"""The open world on a saved run: what is known, what flags, what is learned, and that test images choose nothing."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from toys import tables_equal, toy_config, toy_images

from learngene_core.analysis import statistics
from learngene_core.config import Config
from learngene_core.data.division import Division, source_tasks, target_tasks
from learngene_core.errors import StudyError, read_json, write_json
from learngene_core.fewshot import evaluate_few_shot
from learngene_core.learngene import Learngene
from learngene_core.openworld import learning, noticing, scores, views
from learngene_core.runs import stages
from learngene_core.runs.run import Run
from learngene_core.training import predict

CFG = toy_config(open_resamples=50, open_keep=60.0, open_min_images=2, open_epochs=1, open_exemplars=6)
NAMES = toy_images().class_names
DIVISION = Division(NAMES[:12], NAMES[12:16], NAMES[16:])


@pytest.fixture(scope="module")
def images():
    return toy_images()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images):
    """A run folder with a finished collective of three tasks, and nothing after it."""
    run = Run.open(CFG, tmp_path_factory.mktemp("open") / "run")
    stages.trained_collective(run, images, source_tasks(images, DIVISION, CFG))
    return run.path


@pytest.fixture
def fresh(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "copy")


def met(path, images, div=DIVISION, cfg=CFG):
    """The open world of a run folder."""
    return noticing.open_world(images, div, source_tasks(images, div, cfg), cfg, Run.open(cfg, path))


@pytest.fixture(scope="module")
def done(trained, images, tmp_path_factory):
    """A run folder with the open world, and its tables."""
    path = shutil.copytree(trained, tmp_path_factory.mktemp("done") / "run")
    return path, met(path, images)


def view_and_sets(path, images, task=3, cfg=CFG):
    sets = views.open_sets(images, DIVISION, source_tasks(images, DIVISION, cfg), cfg)
    return views.view_of(Run(cfg, path), images, sets, task), sets


# who is known ---------------------------------------------------------------------------------------------------------
def test_one_row_per_score_and_source_task(done):
    table = done[1].table
    assert list(table["task"]) == [t for t in (1, 2, 3) for _ in scores.SCORES]
    assert set(table["score"]) == set(scores.SCORES) and not table.duplicated(["task", "score"]).any()
    assert (table["n_known"] == 12 * table["task"]).all()  # three classes more per task, four test images each
    assert (table["known_classes"] == 3 * table["task"]).all() and (table["n_unknown"] == 32).all()
    for name in ("auroc", "aupr", "fpr95", "oscr", "closed_accuracy"):
        assert table[name].between(0, 100).all(), name
    assert (table["oscr"] <= table["closed_accuracy"] + 1e-6).where(table["score"] != "openmax", True).all()
    assert (table["auroc_low"] <= table["auroc_high"]).all()


def test_both_heads_stand_beside_each_other(done):
    heads = done[1].heads
    assert sorted(heads.loc[heads["task"] == 1, "head"]) == ["none"] * 3 + ["own"] * 4 + ["refit"] * 4
    assert heads[heads["head"].isin(["refit", "none"])].reset_index(drop=True).equals(done[1].table)


def test_no_image_has_two_roles_and_classes_to_come_are_in_neither(done, images):
    view, sets = view_and_sets(done[0], images, task=1)
    parts = [set(np.concatenate([*groups.values()]).tolist()) for groups in dataclasses.asdict(sets).values()]
    assert all(not a & b for i, a in enumerate(parts) for b in parts[i + 1 :])
    assert view.class_names == source_tasks(images, DIVISION, CFG)[0].classes
    assert set(sets.unknown) == set(DIVISION.open_world)


def test_the_networks_own_head_gives_the_networks_own_answers(done, images):
    view, sets = view_and_sets(done[0], images)
    indices, _ = views.gathered(sets.test, view.class_names)
    logits = predict(view.model, images.images[torch.from_numpy(indices)], view.mean, view.std)
    ours = view.scorers["own"].head.logits(view.features(images, indices)[0])
    assert ours == pytest.approx(logits.numpy(), abs=1e-4)


# test images choose nothing ---------------------------------------------------------------------------------------------
def test_other_test_images_change_no_choice(done, fresh, images):
    """With all test images replaced by noise, exemplars, threshold, flags and the networks after learning are the same."""
    _, sets = view_and_sets(done[0], images)
    spoiled = torch.from_numpy(np.concatenate([*sets.test.values(), *sets.unknown.values()]))
    pixels = images.images.clone()
    pixels[spoiled] = torch.randint(
        0, 256, pixels[spoiled].shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    other = met(fresh, dataclasses.replace(images, images=pixels))
    assert not other.table["auroc"].equals(done[1].table["auroc"])
    counts = ["method", "threshold", "budget", "flagged_unknown", "false_alarms", "classes_joined", "new_images"]
    assert tables_equal(other.learning[counts], done[1].learning[counts])
    assert tables_equal(other.blocks, done[1].blocks)
    for folder in learning.SAVED.values():
        name = f"{folder}/model.safetensors"
        assert (fresh / name).read_bytes() == (done[0] / name).read_bytes()
    choosing = ["validation", "stream"]
    ours, theirs = (w.images[w.images["part"].isin(choosing)] for w in (done[1], other))
    assert tables_equal(ours, theirs)


def test_the_same_seed_gives_the_same_files(done, fresh, images):
    met(fresh, images)
    for name in noticing.FILES:
        assert (fresh / name).read_bytes() == (done[0] / name).read_bytes(), name


def test_two_workers_give_the_files_of_one(done, fresh, images):
    """Features shared by workers, the order of finishing and the threads change nothing."""
    machine = fresh / "machine.json"
    write_json(machine, {**read_json(machine), "workers": 2})
    met(fresh, images)
    for name in noticing.FILES:
        assert (fresh / name).read_bytes() == (done[0] / name).read_bytes(), name


def test_dropout_which_draws_from_a_global_state_repeats_with_two_workers(tmp_path, images):
    cfg = CFG.replace(n_source_tasks=1, growth="none", hidden=(16,), dropout=0.5, workers=2, open_epochs=2)
    src = source_tasks(images, DIVISION, cfg)
    for name in ("one", "two"):
        run = Run.open(cfg, tmp_path / name)
        stages.trained_collective(run, images, src)
        noticing.open_world(images, DIVISION, src, cfg, run)
    for name in noticing.FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_an_error_in_a_worker_reaches_the_caller(done):
    def fails():
        raise StudyError("the second job")

    with pytest.raises(StudyError, match="the second job"):
        views.on_workers({"first": lambda: 1, "second": fails}, Run(CFG, done[0]), done=lambda k: None)


def test_features_are_computed_once_per_image_and_stay_in_order(done, images, monkeypatch):
    view, sets = view_and_sets(done[0], images)
    some = sets.unknown[DIVISION.open_world[0]]
    whole = views.open_features(view.model, images.images[some], view.mean, view.std, view.depths)
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(view.features(images, some), whole, strict=True))
    monkeypatch.setattr(views, "open_features", None)  # nothing more may be computed
    turned = view.features(images, some[::-1])
    assert all(np.array_equal(a[::-1], b) for a, b in zip(turned, view.features(images, some), strict=True))


def test_a_finished_open_world_is_loaded(done, images, capsys):
    again = met(done[0], images)
    assert "loaded" in capsys.readouterr().out
    assert again.table["auroc"].tolist() == pytest.approx(done[1].table["auroc"].tolist())


# learning ---------------------------------------------------------------------------------------------------------------
def test_the_threshold_flags_below_and_the_budget_counts_false_alarms(done, images):
    view, sets = view_and_sets(done[0], images)
    flags = learning.flag(view, images, sets, CFG)
    values = view.scorers["refit"](*view.features(images, flags.image))[CFG.open_score][0]
    assert (flags.flagged == (values < flags.threshold)).all()
    assert np.mean(flags.flagged[flags.known]) <= 0.4 + 1e-9
    assert len(flags.image) == 36 // 3 * 3 + 4 * 12 or flags.known.sum() == 36
    assert (flags.labelled == flags.flagged).all() and flags.counts["budget"] == flags.flagged.sum()
    few = learning.flag(view, images, sets, CFG.replace(open_budget=3))
    assert few.labelled.sum() == 3 and few.labelled[: np.flatnonzero(few.flagged)[2] + 1].sum() == 3


def test_every_way_of_learning_is_reported(done):
    table = done[1].learning.set_index("method")
    assert list(table.index) == ["before", "rehearsed", "imprinted", "nothing", "ewc", "exemplars", "all_given", "ncm",
                                 "ncm_all_given"]  # fmt: skip
    assert (table.loc[["before", "rehearsed"], ["new_accuracy", "harmonic_accuracy"]] == 0).all(axis=None)
    assert table.loc["all_given", "classes_joined"] == 4 == table.loc["ncm_all_given", "classes_joined"]
    both = 2 * table["old_accuracy"] * table["new_accuracy"] / (table["old_accuracy"] + table["new_accuracy"])
    assert table["harmonic_accuracy"].tolist() == pytest.approx(both.fillna(0).tolist())


def test_learning_leaves_the_collective_and_the_first_view_as_they_were(done, images):
    view, sets = view_and_sets(done[0], images)
    before = {n: t.clone() for n, t in view.model.state_dict().items()}
    lesson = learning._Lesson(view, images, sets, CFG)
    taught = lesson.taught("nothing", sets.stream)
    assert all(torch.equal(t, before[n]) for n, t in view.model.state_dict().items())
    assert taught.n_classes == view.model.n_classes + 4


@pytest.mark.parametrize("way", ["before", "imprinted", "nothing"])
def test_examined_is_what_the_network_answers_to_each_test_image(done, images, way):
    view, sets = view_and_sets(done[0], images)
    lesson, given = learning._Lesson(view, images, sets, CFG), {} if way == "before" else sets.stream
    model = lesson.taught(way, given)
    names = np.array([*view.class_names, *given])
    for right, groups in zip(lesson.predictions(model, given), (sets.test, sets.unknown), strict=True):
        indices, places = views.gathered(groups, tuple(groups))
        answers = predict(model, images.images[indices], view.mean, view.std).argmax(1)
        assert right.tolist() == (names[answers] == np.array(tuple(groups))[places]).tolist()


def test_strong_ewc_holds_the_old_weights(done, images):
    view, sets = view_and_sets(done[0], images)
    away = {}
    for way, strength in (("nothing", 0.0), ("ewc", 1e7)):
        lesson = learning._Lesson(view, images, sets, CFG.replace(open_ewc=strength))
        away[way] = learning.moved(view.model, lesson.taught(way, sets.stream))["relative_change"].mean()
    assert away["ewc"] < 0.8 * away["nothing"]


def test_where_no_class_is_told_often_enough_none_joins(fresh, images, capsys):
    cfg = CFG.replace(open_min_images=1000)
    learned = met(fresh, images, cfg=cfg).learning.set_index("method")
    assert "none joins" in capsys.readouterr().out
    assert learned.loc["exemplars", "classes_joined"] == 0 and learned.loc["exemplars", "new_accuracy"] == 0
    assert learned.loc["all_given", "classes_joined"] == 4


def test_the_learngene_can_be_cut_after(done, trained):
    run = Run(CFG, done[0])
    gene = learning.cut_after(run, ("conv2", "conv3"))
    model = learning.network_after(run)
    assert torch.equal(gene.tensors["conv2.conv.weight"], model.blocks["conv2"].conv.weight)
    assert gene.notes["cut"].startswith("after the open world")
    with pytest.raises(StudyError, match="learngene openworld"):
        learning.cut_after(Run(CFG, trained), ("conv2",))


@pytest.fixture(scope="module")
def cuts(done, images):
    """The learngene cut before and after the open world, the collective, and the target tasks."""
    col = stages.trained_collective(Run(CFG, done[0]), images, source_tasks(images, DIVISION, CFG))
    layers = ("conv2", "conv3")
    before = Learngene.from_model(col.model, layers, mean=col.mean, std=col.std)
    return before, learning.cut_after(Run(CFG, done[0]), layers), col, target_tasks(images, DIVISION, CFG)


def test_equal_cuts_make_equal_individuals(cuts, images):
    """Same target tasks, initial weights and batches: nothing but the learngene tells individuals apart."""
    before, _, col, tgt = cuts
    copied = dataclasses.replace(before, tensors={n: t.clone() for n, t in before.tensors.items()})
    table = learning.compare_cuts({"one": before, "two": copied}, col, images, tgt, CFG)
    one, two = (table[table["method"] == name].drop(columns="method").reset_index(drop=True) for name in ("one", "two"))
    assert len(one) == len(tgt) * CFG.n_inits * len(CFG.shots) and set(one["family"]) == {"light"}
    assert one["final_loss"].nunique() > 1
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    gains = statistics.paired_table(table, reference="one").set_index("method")["gain"]
    assert gains["two"] == 0


def test_every_cut_has_its_own_individuals_under_its_own_name(cuts, images):
    before, after, col, tgt = cuts
    alone = {}
    for name, gene in (("before", before), ("after", after)):
        rows = evaluate_few_shot(gene, col, images, tgt, CFG, methods=("learngene",))
        alone[name] = rows[rows["family"] == "light"]["final_loss"].to_numpy()
    assert (alone["before"] != alone["after"]).all()
    for pair in ({"before": before, "after": after}, {"after": after, "before": before}):
        table = learning.compare_cuts(pair, col, images, tgt, CFG)
        assert list(dict.fromkeys(table["method"])) == list(pair)
        for name in pair:
            assert table.loc[table["method"] == name, "final_loss"].tolist() == alone[name].tolist()


# bad input --------------------------------------------------------------------------------------------------------------
def test_no_open_world_class_is_refused(fresh, images):
    with pytest.raises(StudyError, match="no open-world class"):
        met(fresh, images, Division(DIVISION.base, (), DIVISION.novel))


def test_one_open_world_class_has_estimates_without_limits(fresh, images):
    world = met(fresh, images, Division(DIVISION.base, DIVISION.open_world[:1], DIVISION.novel))
    assert world.table["auroc"].notna().all() and world.table["auroc_low"].isna().all()
    assert world.learning["new_accuracy_low"].isna().all()


@pytest.mark.parametrize(
    "changes", [{"open_exemplars": 1}, {"open_head": "own"}, {"held_out_images": 2}, {"query_images": 2}]
)
def test_a_single_image_per_class_and_the_own_head_work(tmp_path, images, changes):
    cfg = CFG.replace(n_source_tasks=1, growth="none", **changes)
    run = Run.open(cfg, tmp_path / "run")
    src = source_tasks(images, DIVISION, cfg)
    stages.trained_collective(run, images, src)
    world = noticing.open_world(images, DIVISION, src, cfg, run)
    assert np.isfinite(world.table[["auroc", "aupr", "fpr95", "oscr"]]).all(axis=None)
    expected = {"refit", "none"} if "open_head" not in changes else {"own", "none"}
    assert set(world.table["head"]) == expected


def test_a_network_that_has_diverged_is_named(done, images):
    view, sets = view_and_sets(done[0], images)
    with torch.no_grad():
        view.model.blocks["conv1"].conv.weight.fill_(float("nan"))
    with pytest.raises(StudyError, match="diverged"):
        view.features(images, sets.test[view.class_names[0]])


def test_without_a_collective_the_open_world_says_so(tmp_path, images):
    with pytest.raises(StudyError, match="learngene collective"):
        met(tmp_path / "run", images)


@pytest.mark.parametrize(("name", "value"), [("open_score", "msq"), ("open_head", "mine"), ("open_keep", 100.0)])
def test_bad_values_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Config.preset("smoke", **{name: value})
