"""The atlas: which blocks there are, paired cells, a stop that costs one piece, and growing from what is there."""

import itertools

import pandas as pd
import pytest
import torch
from toys import toy_world

from learngene_core import fewshot
from learngene_core.analysis.atlas import (
    atlas_config,
    atlas_tasks,
    block_arm,
    coarse_blocks,
    compute_atlas,
    every_block,
    finished_cells,
)
from learngene_core.errors import OutOfTime, StudyError
from learngene_core.fewshot import Individuals
from learngene_core.runs.pieces import Pieces
from learngene_core.runs.run import Run

LAYERS = ("conv11", "conv12", "conv13")
SMALL = {"atlas_tasks": 2, "atlas_pseudo_tasks": 1, "atlas_inits": 1, "atlas_epochs": 1, "atlas_shots": 4}


@pytest.fixture(scope="module")
def world():
    return toy_world(layers=LAYERS, n_inits=1, **SMALL)


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
    assert every_block(n) == sorted(everything)


def test_the_paper_network_has_34_coarse_blocks_and_91_in_all():
    assert (len(coarse_blocks(13, 3)), len(every_block(13))) == (34, 91)


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
    """A cell is what `Individuals` gives for that arm by itself: stacking and order of pieces change nothing that matters."""
    _, cells = whole_run
    task = atlas_tasks(world.images, world.div, world.cfg)["novel"][1]
    for block in ((0, 0), (1, 13), (11, 13)):
        arm, col = block_arm(world.col, block, world.cfg), world.col
        alone, _ = Individuals([arm], world.images, atlas_config(world.cfg), col.mean, col.std).table([task])
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
@pytest.fixture
def trained(monkeypatch):
    """What each call of `fit` trains, (number of networks, where), in order."""
    calls, fit = [], fewshot.fit

    def noted(stack, *rest, where, **options):
        calls.append((stack.size, where))
        return fit(stack, *rest, where=where, **options)

    monkeypatch.setattr(fewshot, "fit", noted)
    return calls


def test_a_stopped_atlas_goes_on_and_ends_equal(world, whole_run, tmp_path, monkeypatch):
    run, cells = whole_run
    fit, calls = fewshot.fit, []

    def dies(*rest, where, **options):
        if "target task 2" in where:
            raise KeyboardInterrupt
        return fit(*rest, where=where, **options)

    monkeypatch.setattr(fewshot, "fit", dies)
    broken = Run.open(world.cfg, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        compute_atlas(world.col, world.images, world.div, world.cfg, broken)
    assert not broken.done("atlas") and len(finished_cells(broken)) == 35
    monkeypatch.setattr(
        fewshot, "fit", lambda m, *r, where, **o: (calls.append((m.size, where)), fit(m, *r, where=where, **o))[1]
    )
    again = compute_atlas(world.col, world.images, world.div, world.cfg, Run.open(world.cfg, tmp_path / "run"))
    first = sum(size for size, where in calls if where.startswith("target task 1,"))
    assert first == 35, "of the two first tasks the novel one was finished; only the pseudo-task is trained"
    pd.testing.assert_frame_equal(again, cells)
    assert (tmp_path / "run" / "atlas_cells.csv").read_bytes() == (run.path / "atlas_cells.csv").read_bytes()


def test_a_full_atlas_grows_from_the_coarse_one(world, whole_run, trained):
    run, cells = whole_run
    full = world.cfg.replace(atlas_blocks="full", atlas_tasks=3)
    table = compute_atlas(world.col, world.images, world.div, full, Run.open(full, run.path))
    # 57 more blocks for the three old pieces, 92 cells for the new task
    assert sum(size for size, _ in trained) == 57 * 3 + 35 + 57
    merged = cells.merge(table, on=[c for c in cells if c != "accuracy"], suffixes=("", "_full"))
    assert len(merged) == len(cells) and (merged["accuracy"] == merged["accuracy_full"]).all()
    assert table.groupby(["group", "target_task"]).size().eq(92).all()


def test_a_changed_rate_never_mixes_with_old_pieces(world, whole_run):
    run, _ = whole_run
    other = world.cfg.replace(atlas_rate=0.011)
    with pytest.raises(StudyError, match="atlas_rate"):
        Run.open(other, run.path)
    assert Pieces(run, "atlas").get("coarse3_novel_001_1") is not None
    assert Pieces(Run(other, run.path), "atlas").get("coarse3_novel_001_1") is None


def test_minutes_stop_a_stage_and_the_same_command_goes_on(world, tmp_path):
    hurried = world.cfg.replace(minutes=1e-9)
    for _ in range(2):
        with pytest.raises(OutOfTime, match="the same command goes on"):
            compute_atlas(world.col, world.images, world.div, hurried, Run.open(hurried, tmp_path / "run"))
    patient = Run.open(world.cfg, tmp_path / "run")  # another limit is no other configuration
    assert len(compute_atlas(world.col, world.images, world.div, world.cfg, patient)) == 105
