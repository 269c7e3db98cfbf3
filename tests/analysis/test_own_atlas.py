"""Inheriting from a network of one's own: what is copied, pairing to the bit, equal numbers for the study's own networks."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from toys import states_equal, toy_config, toy_images

from learngene_core.analysis.atlas import COLUMNS, atlas_tasks
from learngene_core.analysis.blocks import atlas_table, gains
from learngene_core.analysis.own_atlas import OwnAtlas, inherit
from learngene_core.analysis.rivals import criteria_table, regret_table
from learngene_core.analysis.transfer import TRANSFER
from learngene_core.collective import Collective
from learngene_core.data.division import divide, source_tasks
from learngene_core.figures.atlas import atlas_map
from learngene_core.network import ConvNet
from learngene_core.tasks import generator
from learngene_core.training import channel_statistics, normalise

IMAGES = toy_images()
MEAN, STD = channel_statistics(IMAGES.images)
CFG = toy_config(atlas_tasks=2, atlas_pseudo_tasks=1, atlas_epochs=2, atlas_inits=1, atlas_shots=4)
DIVISION = divide(IMAGES, CFG)


def build(n_classes=CFG.n_way):
    """A stem of two modules, two blocks and a head, from torch's own initialisation."""
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(3, 6, 3, padding=1))
    net.add_module("norm", nn.BatchNorm2d(6))
    net.add_module("one", nn.Sequential(nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)))
    net.add_module("two", nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(0.1), nn.ReLU()))
    net.add_module("rest", nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()))
    net.add_module("fc", nn.Linear(32, n_classes))
    return net


BLOCKS = {"stem": ("conv", "norm"), "one": "one", "two": "two"}
PAIRS = [(1, 1), (1, 2), (1, 3), (3, 3)]


def own_of(model):
    return OwnAtlas(model, build, BLOCKS, MEAN, STD)


@pytest.fixture(scope="module")
def trained():
    """An ancestor that has learned all 20 classes, in a loop of plain torch."""
    torch.manual_seed(0)
    model = build(20)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(150):
        pick = torch.randperm(len(IMAGES.labels), generator=torch.Generator().manual_seed(step))[:64]
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(normalise(IMAGES.images[pick], MEAN, STD)), IMAGES.labels[pick])
        loss.backward()
        optimiser.step()
    return own_of(model)


@pytest.fixture(scope="module")
def cells(trained):
    return trained.cells(IMAGES, atlas_tasks(IMAGES, DIVISION, CFG), CFG, PAIRS)


def test_blocks_are_copied_and_nothing_else_and_nothing_is_shared(trained):
    before = {name: t.clone() for name, t in trained.model.state_dict().items()}
    g = lambda: generator(0, "here")  # noqa: E731
    fresh, some = trained.individual((0, 0), g()), trained.individual((2, 3), g())
    for name, t in some.state_dict().items():
        source = before if name.split(".")[0] in ("one", "two") else fresh.state_dict()
        assert torch.equal(t, source[name]), name
    with torch.no_grad():
        for t in some.state_dict().values():
            t.zero_()
    assert states_equal(trained.model.state_dict(), before)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'three' is not in both"):
        inherit(["three"], build(), build())
    with pytest.raises(ValueError, match="'fc' differs between the networks: bias, weight"):
        inherit(["fc"], build(3), build(4))
    with pytest.raises(ValueError, match="'fc' differs"):
        OwnAtlas(build(20), build, ["conv", "fc"], MEAN, STD)
    for blocks in ("conv", []):
        with pytest.raises(ValueError, match="blocks are several names"):
            OwnAtlas(build(), build, blocks, MEAN, STD)


def test_gains_are_paired_to_the_bit():
    """An ancestor that is the individual's own fresh network gives nothing: equal weights, batches and dropout."""
    tasks = {"novel": atlas_tasks(IMAGES, DIVISION, CFG)["novel"][:1]}
    draw = (tasks["novel"][0].group, 1, 1, CFG.target_seed)
    ancestor = own_of(build()).individual((0, 0), generator(CFG.seed, "own individual", *draw))
    found = own_of(ancestor).cells(IMAGES, tasks, CFG, PAIRS)
    assert len(found) == 5 and (gains(found).to_numpy() == 0).all()


def test_a_trained_ancestor_helps_and_stays_as_it_is(trained, cells):
    assert list(cells.columns) == COLUMNS and len(cells) == 3 * 5 and not cells.duplicated(COLUMNS[:-1]).any()
    again = trained.cells(IMAGES, atlas_tasks(IMAGES, DIVISION, CFG), CFG, PAIRS)
    pd.testing.assert_frame_equal(again, cells)
    assert gains(cells)[1, 3].mean() > 10  # it knows the classes, and two epochs of eight images are few


def test_the_tables_and_figures_of_the_study_read_it(trained, cells):
    atlas = trained.table(cells)
    size = {name: p.numel() for name, p in trained.model.named_parameters()}
    stem = sum(n for name, n in size.items() if name.startswith(("conv.", "norm.")))
    whole = sum(n for name, n in size.items() if not name.startswith("fc"))
    rows = atlas.set_index(["first", "last"])
    assert (rows.loc[(1, 1), "parameters"], rows.loc[(1, 3), "parameters"]) == (stem, whole)
    assert rows.loc[(1, 1), "share"] == pytest.approx(100 * stem / whole)
    assert list(rows["block"]) == ["stem", "stem-one", "stem-two", "two"] and set(atlas["pseudo_n"]) == {1}
    scores = trained.criteria(IMAGES, atlas_tasks(IMAGES, DIVISION, CFG)["open_world"], DIVISION.base, CFG)
    assert set(scores["criterion"]) == set(TRANSFER) and np.isfinite(scores["score"]).all()
    found = regret_table(cells, atlas, scores, length=1).set_index(["scope", "criterion"])
    assert found.loc[("within budget", "logme"), "n_tasks"] == 2
    axes = atlas_map(atlas)
    assert "2 target tasks" in axes.get_title()
    plt.close("all")


def test_a_network_of_the_study_gets_the_scores_and_parameters_that_the_study_gives_it():
    sources, cfg = source_tasks(IMAGES, DIVISION, CFG), CFG
    names = tuple(dict.fromkeys(name for task in sources for name in task.classes))
    model = ConvNet((4, 4, 6), (1, 2), len(names), 32, generator=generator(1, "ancestor"))
    col = Collective(model, names, MEAN, STD, {}, {}, pd.DataFrame(), record=None)
    pseudo = atlas_tasks(IMAGES, DIVISION, cfg)["open_world"]
    layers = pd.DataFrame({"criterion": "c", "layer": model.block_names, "score": [0.0] * 3, "inherit": "low"})
    wanted = criteria_table(col, IMAGES, pseudo, sources, DIVISION, cfg, layer_scores=layers)
    paths = {name: f"blocks.{name}" for name in model.block_names}
    factory = lambda: ConvNet((4, 4, 6), (1, 2), cfg.n_way, 32)  # noqa: E731
    own = OwnAtlas(model, factory, paths, MEAN, STD)
    found = own.criteria(IMAGES, pseudo, names, cfg)
    wanted = wanted[wanted["criterion"].isin(TRANSFER)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, wanted)
    cells = own.cells(IMAGES, {"novel": atlas_tasks(IMAGES, DIVISION, cfg)["novel"]}, cfg)
    pd.testing.assert_frame_equal(own.table(cells), atlas_table(cells, (4, 4, 6), model.block_names))
