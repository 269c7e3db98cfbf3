"""The atlas: which blocks there are, paired cells, a stop that costs one piece, and growing from what is there."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_fewshot import World
from toys import toy_config, toy_images

from learngene_core import fewshot as individuals
from learngene_core.analysis import controls
from learngene_core.analysis import controls as ablations
from learngene_core.analysis import controls as ancestors
from learngene_core.analysis.atlas import (
    all_blocks,
    atlas_config,
    atlas_tasks,
    block_arm,
    coarse_blocks,
    compute_atlas,
    finished_cells,
)
from learngene_core.collective import train_collective
from learngene_core.data.division import divide, source_tasks
from learngene_core.errors import StudyError
from learngene_core.fewshot import Arm, Reconstruction
from learngene_core.learngene import Learngene, cut_learngene
from learngene_core.presets import CONTROL_NAMES
from learngene_core.runs.pieces import OutOfTime, Parts
from learngene_core.runs.run import Run

LAYERS = ("conv11", "conv12", "conv13")
SMALL = {"atlas_tasks": 2, "atlas_pseudo_tasks": 1, "atlas_inits": 1, "atlas_epochs": 1, "atlas_shots": 4}


@pytest.fixture(scope="module")
def world():
    cfg, images = toy_config(layers=LAYERS, n_inits=1, **SMALL), toy_images()
    div = divide(images, cfg)
    col = train_collective(images, div, source_tasks(images, div, cfg), cfg)
    return World(cfg, images, div, col, cut_learngene(col, cfg))


@pytest.fixture(scope="module")
def whole_run(world, tmp_path_factory):
    """A finished atlas: its run and its cells."""
    run = Run.open(world.cfg, tmp_path_factory.mktemp("atlas") / "run")
    return run, compute_atlas(world.col, world.images, world.div, world.cfg, run)


# blocks -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("n", "k"), [*itertools.product((1, 2, 8, 13), (1, 2, 3))])
def test_coarse_blocks_are_prefixes_suffixes_and_one_length(n, k):
    if k > n:
        return
    everything = {(i, j) for i in range(1, n + 1) for j in range(1, n + 1) if i <= j}
    wanted = {b for b in everything if b[0] == 1 or b[1] == n or b[1] - b[0] == k - 1}
    assert coarse_blocks(n, k) == sorted(wanted)
    assert all_blocks(n) == sorted(everything)


def test_the_paper_network_has_34_coarse_blocks_and_91_in_all():
    assert (len(coarse_blocks(13, 3)), len(all_blocks(13))) == (34, 91)


def test_a_block_arm_inherits_exactly_its_layers(world):
    gene = block_arm(world.col, (3, 5), world.cfg).donor(("novel", 1, 1))
    assert gene.layers == ("conv3", "conv4", "conv5")
    state = world.col.model.state_dict()
    assert all(torch.equal(t, state[f"blocks.{n}"]) for n, t in gene.tensors.items())
    assert block_arm(world.col, (0, 0), world.cfg).donor(("novel", 1, 1)) is None


# cells ------------------------------------------------------------------------------------------------------------------
def test_every_cell_stands_once_per_task_and_initial_weights(world, whole_run):
    _, cells = whole_run
    blocks = [(0, 0), *coarse_blocks(13, 3)]
    jobs = [("novel", 1, 1), ("novel", 2, 1), ("open_world", 1, 1)]
    wanted = {(g, i, j, 4, t, n) for (g, t, n) in jobs for i, j in blocks}
    keys = ["group", "first", "last", "shots", "target_task", "init"]
    found = list(map(tuple, cells[keys].to_numpy().tolist()))
    assert set(found) == wanted and len(found) == len(wanted)
    assert cells["accuracy"].between(0, 100).all()


def test_cells_equal_the_individual_trained_alone(world, whole_run):
    """A cell is what `Reconstruction` gives for that arm by itself: stacking and order of pieces change nothing that matters."""
    _, cells = whole_run
    cfg = world.cfg
    task = atlas_tasks(world.images, world.div, cfg)["novel"][1]
    whole = Learngene.from_model(world.col.model, world.col.model.block_names, mean=world.col.mean, std=world.col.std)
    for block in ((0, 0), (1, 13), (11, 13)):
        arms = [block_arm(world.col, block, cfg)]
        alone = Reconstruction(whole, world.col, world.images, atlas_config(cfg), arms, None).table([task])
        cell = cells[
            (cells["group"] == "novel")
            & (cells["first"] == block[0])
            & (cells["last"] == block[1])
            & (cells["target_task"] == 2)
        ]
        assert cell["accuracy"].tolist() == pytest.approx(alone["accuracy"].tolist(), abs=100 / task.query.size * 2)


def test_pseudo_tasks_show_open_world_classes_and_tasks_novel_ones(world):
    tasks = atlas_tasks(world.images, world.div, world.cfg)
    assert {c for t in tasks["novel"] for c in t.classes} <= set(world.div.novel)
    assert {c for t in tasks["open_world"] for c in t.classes} <= set(world.div.open_world)
    assert "open_world" not in atlas_tasks(world.images, world.div, world.cfg.replace(atlas_pseudo_tasks=0))


# stopping and growing ---------------------------------------------------------------------------------------------------
def test_a_stopped_atlas_goes_on_and_ends_equal(world, whole_run, tmp_path, monkeypatch):
    run, cells = whole_run
    broken = Run.open(world.cfg, tmp_path / "run")
    fit, calls = individuals.fit, []

    def dies(*rest, where, **options):
        calls.append(where)
        if "target task 2" in where:
            raise KeyboardInterrupt
        return fit(*rest, where=where, **options)

    monkeypatch.setattr(individuals, "fit", dies)
    with pytest.raises(KeyboardInterrupt):
        compute_atlas(world.col, world.images, world.div, world.cfg, broken)
    assert not broken.done("atlas") and len(finished_cells(broken)) == 35
    monkeypatch.setattr(individuals, "fit", lambda *r, where, **o: (calls.append(where), fit(*r, where=where, **o))[1])
    calls.clear()
    again = compute_atlas(world.col, world.images, world.div, world.cfg, Run.open(world.cfg, tmp_path / "run"))
    assert not [c for c in calls if "target task 1," in c and calls.count(c) > 6], "a finished piece was trained again"
    pd.testing.assert_frame_equal(again, cells)
    assert (tmp_path / "run" / "atlas_cells.csv").read_bytes() == (run.path / "atlas_cells.csv").read_bytes()


def test_a_full_atlas_grows_from_the_coarse_one(world, whole_run, monkeypatch):
    run, cells = whole_run
    trained, fit = [], individuals.fit
    monkeypatch.setattr(individuals, "fit", lambda m, *r, **o: (trained.append(m.size), fit(m, *r, **o))[1])
    full = world.cfg.replace(atlas_blocks="full", atlas_tasks=3)
    table = compute_atlas(world.col, world.images, world.div, full, Run.open(full, run.path))
    # 57 more blocks for the three old pieces, 92 cells for the new task
    assert sum(trained) == 57 * 3 + 35 + 57
    merged = cells.merge(table, on=[c for c in cells if c != "accuracy"], suffixes=("", "_full"))
    assert len(merged) == len(cells) and (merged["accuracy"] == merged["accuracy_full"]).all()
    assert table.groupby(["group", "target_task"]).size().eq(92).all()


def test_a_changed_rate_never_mixes_with_old_pieces(world, whole_run):
    run, _ = whole_run
    other = world.cfg.replace(atlas_rate=0.011)
    with pytest.raises(StudyError, match="atlas_rate"):
        Run.open(other, run.path)
    assert Parts(run, "atlas").get("coarse3_novel_001_1") is not None
    assert Parts(Run(other, run.path), "atlas").get("coarse3_novel_001_1") is None


def test_a_damaged_piece_counts_as_unfinished(tmp_path):
    run = Run.open(toy_config(), tmp_path / "run")
    parts = Parts(run, "atlas")
    parts.put("one", {"rows": [1.5]})
    assert parts.get("one") == {"rows": [1.5]} and parts.get("two") is None
    file = parts.folder / "one.json"
    for text in ("{", "[]", '{"stage_hash": "' + parts.hash + '"}', json.dumps({"stage_hash": "no", "value": 1})):
        file.write_text(text)
        assert parts.get("one") is None


def test_minutes_stop_a_stage_and_the_same_command_goes_on(world, tmp_path):
    hurried = world.cfg.replace(minutes=1e-9)
    for _ in range(2):
        with pytest.raises(OutOfTime, match="the same command goes on"):
            compute_atlas(world.col, world.images, world.div, hurried, Run.open(hurried, tmp_path / "run"))
    patient = Run.open(world.cfg, tmp_path / "run")  # another limit is no other configuration
    assert len(compute_atlas(world.col, world.images, world.div, world.cfg, patient)) == 105


# controls and ancestors -------------------------------------------------------------------------------------------------
def test_controls_are_paired_with_scratch_and_cover_both_blocks(world, tmp_path):
    cfg = world.cfg.replace(atlas_tasks=2, control_ewc=(0.0,), control_l2=(0.0,))
    run = Run.open(cfg, tmp_path / "run")
    table = ablations.compute_controls(world.gene, world.col, world.images, world.div, cfg, run)
    assert set(table["block"]) == {"learngene", "first"}
    per_arm = table.groupby(["block", "method"]).size()
    assert (per_arm == 2).all()
    wide = table.pivot_table(index=["block", "target_task"], columns="method", values="accuracy")
    # a pull of strength 0 is no pull, to the last image
    assert np.array_equal(wide["ewc:0"], wide["inherit"]) and np.array_equal(wide["l2:0"], wide["inherit"])
    cells = compute_atlas(world.col, world.images, world.div, cfg.replace(atlas_pseudo_tasks=0))
    for block, (first, last) in {"first": (1, 3), "learngene": (11, 13)}.items():
        there = cells[(cells["first"] == first) & (cells["last"] == last)].set_index("target_task")["accuracy"]
        assert np.abs(there - wide.loc[block]["inherit"]).max() <= 2 * 100 / 16  # other stacks: two images at the most


def test_controls_of_a_recommended_block_need_no_other_configuration(world, tmp_path):
    cfg = world.cfg.replace(criterion="recommended", layers=(), controls=("norm_only",), control_ewc=(), control_l2=())
    run = Run.open(cfg, tmp_path / "run")
    table = ablations.compute_controls(world.gene, world.col, world.images, world.div, cfg, run)
    assert set(table["target_task"]) == {1, 2} and "norm_only" in set(table["method"])


def test_frozen_parameters_do_not_move_and_fresh_ones_do(world, monkeypatch):
    kept, fit = {}, individuals.fit

    def watching(stack, *rest, **options):
        before = {n: p.detach().clone() for n, p in stack.network(0).named_parameters()}
        history = fit(stack, *rest, **options)
        kept.update({n: (before[n], p.detach()) for n, p in stack.network(0).named_parameters()})
        return history

    monkeypatch.setattr(individuals, "fit", watching)
    arm = Arm("same_shape", "frozen", 0.05, hold="frozen", donor=lambda draw: world.gene)
    cfg = atlas_config(world.cfg.replace(atlas_tasks=2))
    work = Reconstruction(world.gene, world.col, world.images, cfg, [arm], None)
    list(work.pieces(atlas_tasks(world.images, world.div, world.cfg)["novel"][:1]))
    inherited = {n for n in kept if n.split(".")[1] in LAYERS}
    assert inherited and all(torch.equal(*kept[n]) for n in inherited)
    assert all(not torch.equal(*kept[n]) for n in kept if n.endswith("conv.weight") and n not in inherited)


def test_unknown_controls_are_refused(world):
    with pytest.raises(ValueError, match="shufled_inner.*did you mean"):
        world.cfg.replace(controls=("shufled_inner",))
    assert tuple(controls.CONTROLS) == CONTROL_NAMES
    assert ablations.wanted_controls(world.cfg.replace(controls=("none",)), world.gene) == []


def test_a_learngene_of_the_first_layers_is_its_own_contrast():
    names = tuple(f"conv{i}" for i in range(1, 14))
    gene = type("Gene", (), {"layers": names[:3]})
    assert ablations.ablation_blocks(gene, names) == {"learngene": (1, 3)}


def test_ancestors_see_as_many_images_at_the_final_widths(world):
    cfg = world.cfg
    src = source_tasks(world.images, world.div, cfg)
    passes = sum(len(t.train) * (cfg.first_task_epochs if t.number == 1 else cfg.epochs) for t in src)
    for name in ("single_task", "fixed_width", "joint"):
        own = ancestors.ancestor_config(name, src, world.images, world.div, cfg)
        tasks = source_tasks(world.images, world.div, own)
        seen = sum(len(t.train) * (own.first_task_epochs if t.number == 1 else own.epochs) for t in tasks)
        assert abs(seen - passes) <= len(tasks[-1].train) / 2, name
        assert own.start_widths == cfg.final_widths, name
    one = ancestors.ancestor_config("single_task", src, world.images, world.div, cfg)
    assert source_tasks(world.images, world.div, one)[0].classes == src[0].classes
    with pytest.raises(ValueError, match="unknown ancestor"):
        ancestors.ancestor_config("aunt", src, world.images, world.div, cfg)


def test_permuted_labels_move_base_images_only_and_keep_the_counts(world):
    imgs = world.images
    mixed = ancestors.permuted_labels(imgs, world.div, 0)
    base = torch.tensor([imgs.class_names[i] in world.div.base for i in imgs.labels])
    assert torch.equal(mixed.labels[~base], imgs.labels[~base])
    assert torch.equal(mixed.labels.bincount(), imgs.labels.bincount())
    share = (mixed.labels[base] == imgs.labels[base]).float().mean()
    assert share < 3 / len(world.div.base)
    assert torch.equal(ancestors.permuted_labels(imgs, world.div, 0).labels, mixed.labels)
