"""The worked examples of the README run as they stand, and do what they say."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from learngene_core import Learngene, Run, criteria
from learngene_core.arms import block_of
from learngene_core.config import Config
from learngene_core.network import ConvNet
from learngene_core.study.chain import Chain

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["use_learngene", "add_data", "add_criterion", "add_method", "own_network"]


@pytest.fixture
def scratch(tmp_path, smoke_run, monkeypatch):
    """A folder in which `runs/lecture` is a finished run (of the smoke preset); the current one."""
    shutil.copytree(smoke_run, tmp_path / "runs" / "lecture")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    criteria.CRITERIA.pop("calming", None)


def run(name):
    """What the example has made: its names and values."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_these_are_all_and_each_is_short():
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(NAMES)
    assert all(len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 40 for name in NAMES)


def test_a_learngene_works_in_plain_pytorch(scratch, capsys):
    source = (EXAMPLES / "use_learngene.py").read_text(encoding="utf-8")
    assert "import learngene_core" not in source and "from learngene_core" not in source
    made = run("use_learngene")
    assert "inherited, loss" in capsys.readouterr().out
    gene = Learngene.load("runs/lecture/learngene.safetensors")
    assert made["about"]["layers"] == list(gene.layers)
    blocks, x = made["blocks"], torch.randn(4, gene.input_width, 8, 8)
    pools = [i for i, name in enumerate(gene.layers, 2) if name in gene.pools]
    net = ConvNet((gene.input_width, *gene.widths), pools, 2, 8)
    for name, own in zip(
        gene.layers, net.block_names[1:], strict=True
    ):  # the same blocks, by this project's own network
        state = {key.removeprefix(f"{name}."): t for key, t in gene.tensors.items() if key.startswith(f"{name}.")}
        net.blocks[own].load_state_dict(state, strict=False)
    # the example has taken a step: back to what it inherited, then equal outputs
    for name, (conv, norm) in zip(gene.layers, convolutions(blocks), strict=True):
        assert not torch.equal(conv.weight.detach(), gene.tensors[f"{name}.conv.weight"]), "the step moved it"
        assert torch.allclose(conv.weight.detach(), gene.tensors[f"{name}.conv.weight"], atol=0.2)
        conv.load_state_dict({k: gene.tensors[f"{name}.conv.{k}"] for k in ("weight", "bias")})
        running = {k: gene.tensors[f"{name}.norm.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
        norm.load_state_dict(running, strict=False)
    with torch.no_grad():
        mine = blocks.eval()(x)
        for own in net.eval().block_names[1:]:
            x = net.blocks[own](x)
    assert torch.allclose(mine, x, atol=1e-5)


def convolutions(blocks):
    """(convolution, batch norm) of each block in a flat sequence."""
    modules = list(blocks)
    found = [i for i, m in enumerate(modules) if isinstance(m, torch.nn.Conv2d)]
    return [(modules[i], modules[i + 1]) for i in found]


def test_a_data_set_of_ones_own_goes_through_the_chain(scratch):
    made = run("add_data")
    images, table, division = made["images"], made["table"], made["division"]
    assert images.images.shape[1:] == (3, 32, 32) and images.images.max() > 200
    assert set(division.base) | set(division.open_world) | set(division.novel) <= set(images.class_names)
    groups = {group: list(getattr(division, group)) for group in ("base", "open_world", "novel")}
    (scratch / "division.json").write_text(json.dumps(groups), encoding="utf-8")
    cfg = made["cfg"].replace(data="folder", split="division.json")
    chain = Chain(Run.open(cfg, "runs/digits"))  # with a run folder, as the README says below it
    chain.images = images
    assert chain.division.novel == division.novel and [t.number for t in chain.target] == [1, 2, 3]
    assert set(table["method"]) == {"scratch", "learngene"} and (table["n_tasks"] == 3).all()
    assert table.loc[table["method"] == "learngene", "gain"].notna().all()


def test_a_criterion_of_ones_own_stands_beside_its_null(scratch, capsys):
    made = run("add_criterion")
    table, record = made["table"], made["record"]
    first, last = (record.table[record.table["task"] == t].groupby("layer", sort=False)["norm"].mean() for t in (1, 4))
    assert np.allclose(table["score"], last / first)
    assert np.isfinite(table[["null", "z"]]).all(axis=None)
    assert "it chooses ('conv" in capsys.readouterr().out
    assert "calming" in set(criteria.score_all(record, Config.preset("smoke"))["criterion"])


def test_a_method_of_ones_own_is_paired_with_scratch(scratch):
    made = run("add_method")
    table, gene = made["table"].set_index("method"), made["gene"]
    assert set(table.index) == {"scratch", "learngene", "mirrored"} and (table["n_tasks"] == 3).all()
    assert np.isfinite(table.loc[["learngene", "mirrored"], ["gain", "gain_low", "gain_high"]]).all(axis=None)
    other = made["mirrored"](())
    name = f"{gene.layers[0]}.conv.weight"
    assert torch.equal(other.tensors[name].flip(-1), gene.tensors[name])
    rows = made["chain"].results.query("family == 'light' and target_task <= 3")
    results = rows[rows["block"] == block_of(gene)].groupby("method")["accuracy"].mean()
    for method in ("scratch", "learngene"):  # the same tasks, initial weights and batches as the run itself
        assert table.loc[method, "accuracy"] == pytest.approx(results[method])


def test_blocks_of_a_resnet_are_inherited_measured_and_scored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = run("own_network")
    atlas, own, ancestor = made["atlas"].set_index(["first", "last"]), made["own"], made["ancestor"]
    assert (tmp_path / "own_network.png").stat().st_size > 10_000
    assert np.isfinite(atlas[["gain", "gain_low", "pseudo_gain"]]).all(axis=None) and set(atlas["n_tasks"]) == {2}
    named = dict(ancestor.named_parameters())
    stem = sum(named[name].numel() for name in ("conv1.weight", "bn1.weight", "bn1.bias"))
    assert atlas.loc[(1, 1), "parameters"].item() == stem == own.sizes[0]
    assert atlas.loc[(1, 5), "parameters"].item() == sum(p.numel() for n, p in named.items() if n.split(".")[0] != "fc")
    assert set(made["scores"]["criterion"]) <= set(made["regret"]["criterion"]) and len(made["scores"]) == 6 * 15
