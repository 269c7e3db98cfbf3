"""Checks against the world: what the script measures, by hand on toy networks; what RESULTS.md says of the kept table."""

import copy
import dataclasses
from pathlib import Path

import checks
import numpy as np
import pandas as pd
import pytest
import torch
from toys import states_equal, toy_world

from learngene_core.config import Config

KEPT = pd.read_csv(Path(checks.__file__).parents[1] / "results" / "checks.csv", keep_default_na=False)
PAGE = (Path(checks.__file__).parents[1] / "RESULTS.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def world():
    world = toy_world(ancestor="joint", source_images=16, held_out_images=8)
    return dataclasses.replace(world, images=dataclasses.replace(world.images, name="toy"))


def of(check, **values):
    own = KEPT[KEPT["check"] == check].astype({"value": float})
    for name, value in values.items():
        own = own[own[name] == value]
    return own


def test_ten_ways_are_told_apart_where_classes_differ_and_guessed_where_they_do_not():
    cfg, rng = Config.preset("smoke"), np.random.default_rng(0)
    apart = [np.eye(12)[k] + rng.normal(0, 0.01, (60, 12)) for k in range(12)]
    alike = [rng.normal(0, 1, (60, 12)) for _ in range(12)]
    assert checks.ten_way(apart, 2, cfg, "novel") == 100
    assert checks.ten_way(alike, 2, cfg, "novel") == pytest.approx(10, abs=1)


def test_a_block_that_is_put_back_is_as_before_and_the_others_stay(world):
    before, after = copy.deepcopy(world.col.model), copy.deepcopy(world.col.model)
    for tensor in after.state_dict().values():
        tensor.copy_(tensor * 2)
    back = checks.rewound(after, before, before.block_names[:7])
    for name, block in back.blocks.items():
        own = (before if name in before.block_names[:7] else after).blocks[name]
        assert states_equal(block.state_dict(), own.state_dict()), name
    assert states_equal(back.classifier.state_dict(), after.classifier.state_dict())


def test_nothing_drifts_in_the_same_network_and_what_follows_a_change_does(world):
    model, normal = world.col.model, (world.col.mean, world.col.std)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.blocks["conv5"].conv.weight.copy_(changed.blocks["conv5"].conv.weight.flip(0))
    drift = checks.change(model, changed, world.images.images[:40], normal)
    assert all(drift[f"conv{k}"] == pytest.approx(0, abs=1e-9) for k in range(1, 5)) and drift["conv6"] > 1e-6
    again = checks.change(model, copy.deepcopy(model), world.images.images[:40], normal)
    assert np.allclose([*again.values()], 0, atol=1e-9)


@pytest.mark.parametrize(("part", "name"), [((1, 2), "part 1"), ((1, 0), "head"), ((1, 13), "all")])
def test_tuning_moves_the_part_that_is_named(world, part, name):
    cfg, train = world.cfg.replace(ancestor="joint"), world.images.of_class(world.div.base[0])
    before = {n: p.clone() for n, p in world.col.model.named_parameters()}
    tuned = checks.one_tuned(world.col, world.images, train, part, 0.1, cfg, name)
    moved = {n for n, p in tuned.model.named_parameters() if not torch.equal(p, before[n])}
    inside = {f"blocks.conv{k}." for k in range(part[0], part[1] + 1)} | (
        {"classifier."} if name != "part 1" else set()
    )
    assert moved and all(any(n.startswith(place) for place in inside) for n in moved)
    assert {n.split(".")[1] for n in moved if n.startswith("blocks")} == {
        f"conv{k}" for k in range(part[0], part[1] + 1)
    }
    assert states_equal(before, dict(world.col.model.named_parameters())), "the collective itself stays"


@pytest.mark.parametrize("name", checks.NOISES)
def test_noise_spoils_images_and_nothing_else(world, name):
    images = world.images.images[:20]
    spoiled = checks.NOISES[name](images, torch.Generator().manual_seed(0))
    assert spoiled.dtype == torch.uint8 and spoiled.shape == images.shape
    changed = float((spoiled != images).float().mean())
    assert changed == pytest.approx(0.2, abs=0.02) if name == "impulse" else changed > 0.9


# what the page says of the kept table -------------------------------------------------------------------------------------
def test_the_shot_curve_rises_as_the_page_says():
    means = of("shots").groupby(of("shots")["item"].astype(int))["value"].mean()
    steps = means.diff().dropna().to_numpy()
    assert (np.diff(steps) < 0).all() and len(of("shots")) == 25, "every doubling gives less"
    assert f"ours by {means[32] - means[2]:.1f}" in PAGE
    assert f"rises by {checks.SHOT_CURVE[32] - checks.SHOT_CURVE[2]:.1f} points" in PAGE


def test_deep_blocks_change_most_and_neither_half_alone_forgets():
    rho = of("forgetting", case="rho")["value"]
    assert f"rank correlations from {rho.min():.2f} to {rho.max():.2f}" in PAGE and len(rho) == 10
    back = of("forgetting", case="accuracy").pivot(index=["ancestor", "ancestor_seed"], columns="item", values="value")
    gain = (back["back as before"] - back["front as before"]).groupby("ancestor").mean()
    assert (gain.abs() < 2).all() and (back["after"] < back["before"]).mean() > 0.8


def test_nothing_is_left_without_memory():
    for _, one in of("increment").groupby(["ancestor", "ancestor_seed"]):
        values = one.set_index("item")["value"]
        assert values["mean x tasks"] == values["last task"] * values["ratio"] and values["ratio"] == 1


def test_under_noise_the_first_part_is_the_best_of_the_parts():
    for _, one in of("noise")[lambda t: t["case"] != "none"].groupby(["ancestor_seed", "case"]):
        value = one.set_index("item")["value"]
        parts = value[[f"part {k}" for k in range(1, 6)] + ["head"]]
        assert parts.idxmax() == "part 1" and parts["part 1"] > value["all"] - 2, "or close to tuning everything"
        assert value["head"] - value["as it is"] > 0.5 * (value["all"] - value["as it is"]), (
            "batch norm brings most back"
        )
    norms = of("noise")[lambda t: t["item"].str.startswith("rgn")].groupby(["ancestor_seed", "item"])["value"].mean()
    assert [norms[seed].idxmax() for seed in (0, 1)] == ["rgn part 1", "rgn part 2"]


def test_the_score_that_would_be_chosen_today_is_another_one():
    own = of("score", case="choosing").set_index("item")["value"].sort_values()
    assert own.index[-1] != Config().open_score == own.index[-2] and own.iloc[-1] - own.iloc[-2] < 2
