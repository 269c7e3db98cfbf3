"""The check against published values: its protocol, its probe, and that novel classes choose nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import blank_images

from learngene_core.analysis import reference
from learngene_core.config import Config
from learngene_core.data.division import Division, divide
from learngene_core.errors import StudyError
from learngene_core.runs.run import Run
from learngene_core.runs.states import load_collective
from learngene_core.training import normalise

CFG = Config.preset("smoke", reference_episodes=20)


@pytest.fixture(scope="module")
def ancestor(smoke_run):
    return load_collective(Run(Config.preset("smoke"), smoke_run))


@pytest.fixture(scope="module")
def division(glyph_images):
    return divide(glyph_images, CFG)


def test_ridge_probe_equals_the_primal_solution():
    rng = np.random.default_rng(0)
    support, queries = rng.normal(size=(5, 4, 7)), rng.normal(size=(40, 7))
    x, y = support.reshape(20, 7), np.repeat(np.eye(5), 4, axis=0) - 0.2
    centre = x.mean(0)
    weights = np.linalg.solve((x - centre).T @ (x - centre) + np.eye(7), (x - centre).T @ y)
    assert (reference.ridge_probe(support, queries) == ((queries - centre) @ weights).argmax(1)).all()


def test_block_features_are_the_networks_own(ancestor, glyph_images):
    images = glyph_images.images[:7]
    features = reference.pooled_features(ancestor, images)
    names = ancestor.model.block_names
    assert list(features) == [names[p - 1] for p in ancestor.model.pools]
    expected = ancestor.model.eval().features(normalise(images, ancestor.mean, ancestor.std)).detach().numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(features[names[-1]], expected, atol=1e-5)


def test_separable_features_are_perfect_and_noise_is_chance():
    rng = np.random.default_rng(0)
    apart = [np.eye(8)[i] + 0.01 * rng.normal(size=(40, 8)) for i in range(8)]
    noise = [rng.normal(size=(60, 8)) for _ in range(8)]
    cfg = CFG.replace(reference_episodes=200)
    for values in reference.episodes(apart, 1, cfg, "novel").values():
        assert values.mean() == 100
    for values in reference.episodes(noise, 5, cfg, "novel").values():
        assert abs(values.mean() - 20) < 3 * values.std() / np.sqrt(len(values)) + 0.5


def test_the_block_is_chosen_on_open_world_classes_alone(ancestor, glyph_images, division):
    table = reference.reference_check(ancestor, glyph_images, division, CFG)
    assert set(table["group"]) == {"open_world", "novel"} and (table["n_episodes"] == 20).all()
    for (method, shots), part in table.groupby(["method", "shots"]):
        tuning = part[part["group"] == "open_world"]
        best = tuning.loc[tuning["accuracy"].idxmax(), "block"]
        assert set(part.loc[part["chosen"], "block"]) == {best}, (method, shots)
    swapped = dataclasses.replace(division, novel=division.novel[::-1])
    other = reference.reference_check(ancestor, glyph_images, swapped, CFG)
    assert other[other["group"] == "open_world"].equals(table[table["group"] == "open_world"])
    assert "published" in reference.reference_text(table)


def test_too_few_classes_are_refused(ancestor):
    few = Division(("a",), ("b", "c"), ("d",))
    with pytest.raises(StudyError, match="needs 5 open_world classes"):
        reference.reference_check(ancestor, blank_images(["a", "b", "c", "d"], 2), few, CFG)
