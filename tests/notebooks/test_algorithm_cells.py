"""The algorithm as a student can retype it: the tagged cells of notebooks 01 to 04, run alone, give what the package gives."""

from __future__ import annotations

import ast
import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from learngene_core import (
    Penalty,
    Recorder,
    block_weights,
    build_individual,
    criteria,
    fewshot,
    fit,
    growth,
    training,
)
from learngene_core.config import Config
from learngene_core.data.division import parts
from learngene_core.learngene import Learngene, light_shape
from learngene_core.network import ConvNet
from learngene_core.presets import PAPER_POOLS
from learngene_core.record import edge_index, share_above
from learngene_core.runs.run import Run
from learngene_core.study import notebooks
from learngene_core.study.chain import Chain
from learngene_core.tasks import generator, numpy_generator

LONGEST = 25  # lines of a cell
CPU = torch.device("cpu")
CELLS = {
    path.name[:2]: [c for c in notebooks.read(path).cells if "algorithm" in c.metadata.get("tags", [])]
    for path in notebooks.numbered("0[1-4]*.ipynb")
}
EVERY = [pytest.param(cell, id=f"{number}-{k}") for number, cells in CELLS.items() for k, cell in enumerate(cells, 1)]


def run(number: str, names: dict) -> list[dict]:
    """Execute a notebook's algorithm cells in order, knowing `names` alone; what is there after each."""
    space, after = dict(names), []
    for cell in CELLS[number]:
        exec(compile(cell.source, f"notebook {number}", "exec"), space)
        after.append(dict(space))
    return after


def same(one: dict, two: dict) -> bool:
    """Whether two state dictionaries hold the same tensors, within 1e-6 (counters of batches apart)."""
    left, right = ({n: t for n, t in d.items() if "num_batches" not in n} for d in (one, two))
    return left.keys() == right.keys() and all(torch.allclose(left[n], right[n], rtol=0, atol=1e-6) for n in left)


@pytest.fixture(scope="module")
def chain(smoke_run):
    return Chain(Run.open(Config.preset("smoke"), smoke_run))


@pytest.fixture(scope="module")
def lesson(chain):
    """A network at its start widths, images and labels of the first task, a recipe and its batches."""
    cfg, images, task = chain.cfg, chain.images, chain.source[0]
    start = ConvNet(cfg.start_widths, PAPER_POOLS, cfg.source_way, cfg.image_size, generator=generator(0, "start"))
    pick = task.train[::3]
    labels = torch.tensor([task.classes.index(images.class_names[i]) for i in images.labels[pick]])
    recipe = training.Recipe.of_collective(cfg, 1, *training.channel_statistics(images.images[pick]))
    recipe = dataclasses.replace(recipe, schedule="constant")
    return start, images.images[pick], labels, recipe


def batches_of(pixels, labels, recipe, streams):
    """Prepared batches of all epochs, (images, labels)."""
    for stream in streams:
        for batch in training.draw_epoch(len(pixels), recipe, stream, CPU):
            moved = training.augment(pixels[batch.pick], batch.shift, batch.flip)
            yield training.normalise(moved, recipe.mean, recipe.std), labels[batch.pick]


# what such a cell is ------------------------------------------------------------------------------------------------
def test_every_notebook_of_the_method_shows_its_algorithm():
    assert {number: len(cells) >= 1 for number, cells in CELLS.items()} == dict.fromkeys(("01", "02", "03", "04"), True)


@pytest.mark.parametrize("cell", EVERY)
def test_a_cell_is_short_and_calls_nothing_that_it_explains(cell):
    tree = ast.parse(cell.source)
    assert len(cell.source.splitlines()) <= LONGEST
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Import | ast.ImportFrom), "the parts are in sight, not imported"
        assert not (isinstance(node, ast.Attribute) and node.attr.startswith("_")), f"private: {node.attr}"
        assert not (isinstance(node, ast.Name) and node.id.startswith("_") and node.id != "_"), f"private: {node.id}"
        assert not (isinstance(node, ast.Name) and node.id in ("lg", "criteria", "growing", "fewshot")), node.id


@pytest.mark.parametrize("path", notebooks.numbered("0[1-4]*.ipynb"), ids=lambda p: p.stem)
def test_a_check_follows_every_cell(path):
    code = [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    for cell, following in zip(code, code[1:], strict=False):
        if "algorithm" in cell.metadata.get("tags", []):
            assert "assert " in following.source, f"no check after: {cell.source.splitlines()[0]}"


# 01: tasks and episodes ---------------------------------------------------------------------------------------------
def test_tasks_and_episodes_are_the_packages(chain):
    cfg, div, images = chain.cfg, chain.division, chain.images
    pools = {name: parts(images, name, cfg.support_pool, cfg.query_images, cfg) for name in div.novel}
    names = {"np": np, "cfg": cfg, "div": div, "pools": pools, "numpy_generator": numpy_generator}
    dealt, episode = run("01", names)
    assert [tuple(classes) for classes in dealt["dealt"]] == [task.classes for task in chain.source]
    for task in chain.target:
        rng = numpy_generator(cfg.seed, "target task", "novel", task.number, cfg.target_seed)
        chosen, support, query = episode["sample_episode"](div.novel, cfg.n_way, max(cfg.shots), pools, rng)
        assert tuple(chosen) == task.classes
        assert np.array_equal(support, task.support) and np.array_equal(query, task.query)


def test_overlapping_tasks_are_the_packages(chain):
    from learngene_core.data.division import source_tasks

    cfg = chain.cfg.replace(source_draw="overlap", n_source_tasks=9)
    names = {"np": np, "cfg": cfg, "div": chain.division, "pools": {}, "numpy_generator": numpy_generator}
    space = dict(names)
    exec(CELLS["01"][0].source, space)
    tasks = source_tasks(chain.images, chain.division, cfg)
    assert [tuple(classes) for classes in space["dealt"]] == [task.classes for task in tasks]


# 02: growing, a step, the recorder ----------------------------------------------------------------------------------
@pytest.fixture
def collective_cells(lesson):
    start, pixels, labels, recipe = lesson
    batches = list(batches_of(pixels, labels, recipe, [generator(0, "epoch")]))
    names = {"torch": torch, "nn": nn, "copy": copy, "start": start, "recipe": recipe, "batches": batches}
    return run("02", names)[-1]


@pytest.mark.parametrize("name", ["conv1", "conv5", "conv12"])
def test_widening_is_the_packages_and_changes_no_output(name, collective_cells, lesson):
    start = lesson[0]
    width, n_new = start.blocks[name].conv.out_channels, 3
    mine, theirs = copy.deepcopy(start), copy.deepcopy(start)
    growth.widen(theirs, name, width + n_new, generator=generator(0, "widen"))
    stream = generator(0, "widen")
    torch.randint(width, (n_new,), generator=stream)  # which channels are copied: zero-out copies none
    collective_cells["widen_zero_out"](mine, name, n_new, stream)
    assert same(mine.state_dict(), theirs.state_dict())
    x = torch.randn(4, 3, start.image_size, start.image_size, generator=generator(0, "images"))
    for mode in (True, False):
        before, after = (copy.deepcopy(net).train(mode)(x) for net in (start, mine))
        assert (after - before).norm() < 1e-5 * before.norm()


def test_an_epoch_gives_the_packages_loss_weights_and_counts(collective_cells, lesson):
    start, pixels, labels, recipe = lesson
    twin = copy.deepcopy(start)
    recorder, stream = Recorder(block_weights(twin)), generator(0, "epoch")
    options = {"stream": lambda epoch: stream, "where": "here", "recorder": recorder}
    (row,) = fit(twin, pixels, labels, training.task_loss(), recipe, **options)
    _, counts, zeros = recorder.take()
    entries = counts.sum((1, 2)) + zeros
    theirs = share_above(counts, zeros, edge_index(5e-4), "positive") * entries
    mine = np.array(list(collective_cells["share"].values())) * entries
    assert np.array_equal(mine.round(), theirs.round()) and theirs.min() > 0
    assert collective_cells["loss"] == pytest.approx(row["loss"], abs=1e-6)
    assert same(collective_cells["plain"].state_dict(), twin.state_dict())
    assert not same(collective_cells["plain"].state_dict(), start.state_dict()), "it has learned"


# 03: the criterion --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n_blocks", [1, 3, 13])
def test_the_criterion_is_the_packages(n_blocks, chain):
    record, cfg = chain.record, chain.cfg.replace(n_blocks=n_blocks)
    from learngene_core.record import EDGES

    found = run("03", {"np": np, "record": record, "cfg": cfg, "EDGES": EDGES})[-1]
    profile, _ = criteria.profile(record, threshold=5e-4, sign="positive")
    table = criteria.score(record, "released", threshold=5e-4, sign="positive")
    assert np.allclose(found["per_task"], profile, rtol=0, atol=1e-6)
    assert np.array_equal(found["large"], record.counts[:, :, 0, edge_index(5e-4) :].sum(-1))
    assert np.allclose(found["score"], table["score"], rtol=0, atol=1e-6)
    assert found["block"] == criteria.best_block(table, n_blocks)


# 04: inheriting, EWC, nearest class mean ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def individual_cells(chain):
    cfg, col, gene, task = chain.cfg, chain.collective, chain.learngene, chain.target[0]
    k = cfg.shots[0]
    support, query = (chain.images.images[torch.from_numpy(i)] for i in (task.support[:, :k], task.query))
    recipe = training.Recipe.of_individual(cfg, cfg.rate("light", "learngene"), col.mean, col.std)
    labels = torch.arange(cfg.n_way).repeat_interleave(k)
    streams = [generator(0, "support", epoch) for epoch in range(1, recipe.epochs + 1)]
    batches = list(batches_of(support.flatten(0, 1), labels, recipe, streams))
    fresh = ConvNet.from_shape(light_shape(gene, cfg.n_way, cfg), generator=generator(0, "fresh"))
    names = {
        "torch": torch, "nn": nn, "copy": copy, "training": training, "cfg": cfg, "col": col, "gene": gene,
        "individual": fresh, "batches": batches, "recipe": recipe, "support": support, "query": query,
        "rates": [recipe.rate_at(step, len(batches)) for step in range(len(batches))],
    }  # fmt: skip
    return {**run("04", names)[-1], "labels": labels}


def test_inheriting_is_the_packages_and_shares_no_tensor(individual_cells, chain):
    gene, cfg = chain.learngene, chain.cfg
    theirs = build_individual(gene, cfg.n_way, cfg, generator=generator(0, "fresh"))
    mine = individual_cells["individual"]
    assert same(mine.state_dict(), theirs.state_dict())
    assert not {t.data_ptr() for t in mine.state_dict().values()} & {
        t.data_ptr() for t in chain.collective.model.state_dict().values()
    }


def test_an_individual_learns_as_in_the_package(individual_cells):
    cells, twin = individual_cells, copy.deepcopy(individual_cells["individual"])
    rows = list(
        fit(
            twin,
            cells["support"].flatten(0, 1),
            cells["labels"],
            training.task_loss(),
            cells["recipe"],
            stream=lambda epoch: generator(0, "support", epoch),
            where="here",
        )
    )
    steps = len(cells["batches"]) // len(rows)
    means = np.array(cells["losses"]).reshape(-1, steps).mean(1)
    assert np.allclose(means, [row["loss"] for row in rows], rtol=0, atol=1e-6)
    assert same(cells["student"].state_dict(), twin.state_dict())


def test_the_penalty_has_the_packages_value_and_gradient(individual_cells, chain):
    cells, strength = individual_cells, chain.cfg.individual_ewc
    net = copy.deepcopy(cells["student"])
    for w in net.parameters():
        w.grad = torch.zeros_like(w)
    value = Penalty(net, cells["anchor"], cells["fisher"], strength, "penalty").add_gradient()
    theirs = {name: w.grad.clone() for name, w in net.named_parameters()}
    net.zero_grad()
    mine = cells["ewc"](net, cells["anchor"], cells["fisher"], strength)
    mine.backward()
    assert value > 0 and mine.item() == pytest.approx(value.item(), rel=1e-6)
    held = [name for name, w in net.named_parameters() if w.grad is not None]
    assert sorted(held) == sorted(cells["fisher"]), "fresh weights are free"
    for name, w in net.named_parameters():
        assert torch.allclose(torch.zeros_like(w) if w.grad is None else w.grad, theirs[name], rtol=1e-5, atol=1e-6)


def test_nearest_class_mean_hits_as_often_as_the_packages(individual_cells, chain):
    theirs = fewshot.nearest_class_mean(chain.collective, chain.images, [chain.target[0]], chain.cfg)
    assert individual_cells["ncm"] == pytest.approx(theirs["accuracy"].iloc[0], abs=1e-6)


# all of it ----------------------------------------------------------------------------------------------------------
def test_the_lines_that_put_the_functions_together_run(chain, lesson):
    (text,) = [
        c.source for c in notebooks.read(notebooks.numbered("04*.ipynb")[0]).cells if "## The whole chain" in c.source
    ]
    lines = text.partition("```python\n")[2].partition("```")[0]
    start, pixels, labels, recipe = lesson
    cfg, tasks = chain.cfg, [list(batches_of(pixels, labels, recipe, [generator(0, "task", t)])) for t in range(3)]
    net, made, n_blocks = copy.deepcopy(start), [], 3

    def fresh(block):
        gene = Learngene.from_model(net, block, mean=recipe.mean, std=recipe.std)
        made.append(
            (list(block), ConvNet.from_shape(light_shape(gene, cfg.source_way, cfg), generator=generator(0, "new")))
        )
        return made[-1][1]

    functions = {"torch": torch, "nn": nn, "np": np, "copy": copy}
    for number, name in (("02", "widen_zero_out"), ("02", "train_epoch"), ("04", "inherit"), ("04", "learn")):
        (cell,) = [c.source for c in CELLS[number] if f"def {name}(" in c.source]
        body = next(node for node in ast.parse(cell).body if isinstance(node, ast.FunctionDef) and node.name == name)
        decorated = "@torch.no_grad()\n" * len(body.decorator_list) + ast.get_source_segment(cell, body)
        exec(decorated, functions)
    inherited = []
    own = functions["inherit"]
    functions["inherit"] = lambda *given: inherited.append(copy.deepcopy(own(*given).state_dict())) or given[0]
    support = tasks[0][:2]
    space = {
        **functions, "net": net, "generator": generator(0, "growth"), "n_blocks": n_blocks, "fresh": fresh,
        "source": [([], tasks[0]), ([("conv3", 2)], tasks[1]), ([("conv3", 1), ("conv5", 2)], tasks[2])],
        "rate": 0.02, "momentum": 0.9, "weight_decay": 5e-4, "threshold": 5e-4, "support": support,
        "rates": [0.02] * len(support),
    }  # fmt: skip
    exec(lines, space)
    width = start.blocks["conv3"].conv.out_channels
    assert space["net"].blocks["conv3"].conv.out_channels == width + 3, "it grew twice"
    shares = np.array(space["record"])
    assert shares.shape == (3, len(start.blocks)) and ((shares > 0) & (shares < 1)).all()
    sums = [shares[:, i : i + n_blocks].sum() for i in range(len(start.blocks) - n_blocks + 1)]
    assert made[0][0] == list(start.blocks)[np.argmin(sums) :][:n_blocks], "the lowest neighbours"
    for name in made[0][0]:
        for key, tensor in net.blocks[name].state_dict().items():
            assert torch.equal(tensor, inherited[0][f"blocks.{name}.{key}"])
    assert len(space["losses"]) == len(support) and np.isfinite(space["losses"]).all()
    assert space["individual"] is made[0][1] and not same(space["individual"].state_dict(), inherited[0]), (
        "it has learned"
    )
