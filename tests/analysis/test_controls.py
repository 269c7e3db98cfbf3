"""What in an inherited block matters: arms of the controls, paired; and other ancestors that see as many images."""

import numpy as np
import pytest
import torch
from toys import toy_world

from learngene_core.analysis import controls
from learngene_core.analysis.atlas import atlas_config, atlas_tasks, compute_atlas
from learngene_core.analysis.content import CONTROLS
from learngene_core.arms import Arm, constant, same_shape
from learngene_core.data.division import source_tasks
from learngene_core.fewshot import Individuals
from learngene_core.presets import CONTROL_NAMES
from learngene_core.runs.run import Run

LAYERS = ("conv11", "conv12", "conv13")
SMALL = {"atlas_tasks": 2, "atlas_pseudo_tasks": 1, "atlas_inits": 1, "atlas_epochs": 1, "atlas_shots": 4}


@pytest.fixture(scope="module")
def world():
    return toy_world(layers=LAYERS, n_inits=1, **SMALL)


def test_controls_are_paired_with_scratch_and_cover_both_blocks(world, tmp_path):
    cfg = world.cfg.replace(atlas_tasks=2, control_ewc=(0.0,), control_l2=(0.0,))
    run = Run.open(cfg, tmp_path / "run")
    table = controls.compute_controls(world.gene, world.col, world.images, world.div, cfg, run)
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
    table = controls.compute_controls(world.gene, world.col, world.images, world.div, cfg, run)
    assert set(table["target_task"]) == {1, 2} and "norm_only" in set(table["method"])


def test_frozen_parameters_do_not_move_and_fresh_ones_do(world):
    col, cfg = world.col, atlas_config(world.cfg)
    arm = Arm("same_shape", "frozen", 0.05, same_shape(col, cfg), constant(world.gene), hold="frozen")
    draw = (atlas_tasks(world.images, world.div, world.cfg)["novel"][0], 1)
    moved = {}
    for epochs in (1, 3):  # an individual of one epoch is the start of that of three
        own = cfg.replace(individual_epochs=epochs, individual_schedule="constant")
        stack, _ = Individuals([arm], world.images, own, col.mean, col.std).fit([draw], [arm], [world.gene], 4)
        moved[epochs] = dict(stack.network(0).named_parameters())
    inherited = {n for n in moved[1] if n.split(".")[1] in LAYERS}
    assert inherited and all(torch.equal(moved[3][n], world.gene.tensors[n.removeprefix("blocks.")]) for n in inherited)
    fresh = {n for n in moved[1] if n.endswith("conv.weight")} - inherited
    assert fresh and all(not torch.equal(moved[1][n], moved[3][n]) for n in fresh)


def test_unknown_controls_are_refused(world):
    with pytest.raises(ValueError, match="shufled_inner.*did you mean"):
        world.cfg.replace(controls=("shufled_inner",))
    assert tuple(CONTROLS) == CONTROL_NAMES
    assert controls.wanted_controls(world.cfg.replace(controls=("none",)), world.gene) == []


def test_a_learngene_of_the_first_layers_is_its_own_contrast():
    names = tuple(f"conv{i}" for i in range(1, 14))
    gene = type("Gene", (), {"layers": names[:3]})
    assert controls.ablation_blocks(gene, names) == {"learngene": (1, 3)}


def test_ancestors_see_as_many_images_at_the_final_widths(world):
    cfg = world.cfg
    src = source_tasks(world.images, world.div, cfg)
    passes = sum(len(t.train) * (cfg.first_task_epochs if t.number == 1 else cfg.epochs) for t in src)
    for name in ("single_task", "fixed_width", "joint"):
        own = controls.other_config(name, src, world.images, world.div, cfg)
        tasks = source_tasks(world.images, world.div, own)
        seen = sum(len(t.train) * (own.first_task_epochs if t.number == 1 else own.epochs) for t in tasks)
        assert abs(seen - passes) <= len(tasks[-1].train) / 2, name
        assert own.start_widths == cfg.final_widths, name
    one = controls.other_config("single_task", src, world.images, world.div, cfg)
    assert source_tasks(world.images, world.div, one)[0].classes == src[0].classes
    with pytest.raises(ValueError, match="unknown ancestor"):
        controls.other_config("aunt", src, world.images, world.div, cfg)


def test_permuted_labels_move_base_images_only_and_keep_the_counts(world):
    imgs = world.images
    mixed = controls.permuted_labels(imgs, world.div, 0)
    base = torch.tensor([imgs.class_names[i] in world.div.base for i in imgs.labels])
    assert torch.equal(mixed.labels[~base], imgs.labels[~base])
    assert torch.equal(mixed.labels.bincount(), imgs.labels.bincount())
    share = (mixed.labels[base] == imgs.labels[base]).float().mean()
    assert share < 3 / len(world.div.base)
    assert torch.equal(controls.permuted_labels(imgs, world.div, 0).labels, mixed.labels)
