"""The bound on a run: what it may look at, its heads and its tables; its figures and sliders."""

import dataclasses
import math

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

from learngene_core.config import Config
from learngene_core.errors import HEADLESS, StudyError
from learngene_core.explorer import theory as theoryexplore
from learngene_core.figures.theory import bound_pair, bound_tasks
from learngene_core.runs.run import Run
from learngene_core.study.chain import Chain
from learngene_core.theory import bounds
from learngene_core.theory import prefixes as prefixbounds


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


# on a run -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def chain(smoke_run):
    return Chain(Run.open(Config.preset("smoke"), smoke_run))


@pytest.fixture(scope="module")
def parts(chain):
    tgt, shots = prefixbounds.tasks_with_shots(chain.images, chain.division, chain.cfg)
    return tgt, shots, prefixbounds.prefix_features(chain.collective, chain.images, chain.source, tgt)


@pytest.fixture(scope="module")
def heads(parts):
    tgt, shots, prefixes = parts
    return prefixbounds.fit_heads(prefixes, tgt, shots)


def test_the_tasks_are_those_of_the_run(chain, parts):
    tgt, shots, _ = parts
    assert shots == (5, 10, 20) and [t.classes for t in tgt] == [t.classes for t in chain.target]
    for mine, own in zip(tgt, chain.target, strict=True):
        assert np.array_equal(mine.query, own.query)
        assert np.array_equal(mine.support[:, : own.support.shape[1]], own.support)
        assert not set(mine.support.ravel()) & set(mine.query.ravel())
    with pytest.raises(StudyError, match="shots = 41"):
        prefixbounds.tasks_with_shots(chain.images, chain.division, chain.cfg.replace(shots=(41,)))


def test_the_features_of_an_image_depend_on_no_other_target_image(chain, parts):
    tgt, _, prefixes = parts
    images = chain.images.images.clone()
    images[tgt[0].query.ravel()] = 255 - images[tgt[0].query.ravel()]
    changed = prefixbounds.prefix_features(
        chain.collective, dataclasses.replace(chain.images, images=images), chain.source, tgt
    )
    for block, values in prefixes.values.items():
        assert np.allclose(np.linalg.norm(values, axis=1), 1, atol=1e-4)
        assert np.allclose(changed.of(block, tgt[0].support), prefixes.of(block, tgt[0].support), atol=1e-5)
    assert not np.allclose(changed.of("conv1", tgt[0].query), prefixes.of("conv1", tgt[0].query), atol=1e-2)
    assert len(prefixes.values) == len(chain.collective.model.block_names)


def test_query_images_and_labels_change_no_bound(heads):
    rng = np.random.default_rng(9)
    turned = [
        dataclasses.replace(
            own,
            labels=(own.labels[0], rng.permutation(own.labels[1])),
            logits={b: (s, rng.permutation(q)) for b, (s, q) in own.logits.items()},
        )
        for own in heads
    ]
    one, two = (prefixbounds.bound_table(h) for h in (heads, turned))
    decided = ["target_task", "shots", "m", "block", "nats", "train_error", "train_limit", "bound"]
    assert one[decided].equals(two[decided]) and not one["head_error"].equals(two["head_error"])


def test_heads_are_ridge_on_the_first_images_of_each_class(parts, heads):
    tgt, shots, prefixes = parts
    own = next(h for h in heads if h.target_task == tgt[1].number and h.shots == 10)
    x = prefixes.of("conv7", tgt[1].support[:, :10]).astype(float)
    way = len(tgt[1].classes)
    labels = np.repeat(np.arange(way), 10)
    w = Ridge(alpha=prefixbounds.STRENGTH, fit_intercept=False).fit(x, np.eye(way)[labels] - 1 / way).coef_  # (way, d)
    assert own.squares["conv7"] == pytest.approx((w**2).sum(), rel=1e-3)
    assert np.allclose(own.logits["conv7"][0], x @ w.T, atol=1e-4)
    assert np.allclose(own.logits["conv7"][1], prefixes.of("conv7", tgt[1].query) @ w.T, atol=1e-4)
    assert own.labels[0].tolist() == labels.tolist()


def test_the_table_of_bounds(chain, heads):
    table = prefixbounds.bound_table(heads)
    assert len(table) == len(heads) == chain.cfg.n_target_tasks * 3
    assert (
        table["bound"].between(table["train_limit"], 100).all() and (table["train_limit"] > table["train_error"]).all()
    )
    assert (table["chance"] == 80).all() and (table["nats"] > math.log(13)).all()
    r = table.iloc[0]
    assert r["bound"] == pytest.approx(100 * bounds.pac_bayes(r["train_limit"] / 100, r["nats"], r["m"], 0.025))
    assert prefixbounds.bound_table(heads).equals(table), "equal runs are equal tables"
    alone = prefixbounds.bound_table(heads, n_candidates=1)
    assert (alone["block"] == "conv13").all()


def test_the_bound_depends_on_the_head_and_s_only_through_their_ratio(heads):
    """A scaled head decides alike: for every s the prior over classifiers is the same one."""
    doubled = [
        dataclasses.replace(
            own,
            squares={b: 4 * v for b, v in own.squares.items()},
            logits={b: (2 * s, 2 * q) for b, (s, q) in own.logits.items()},
        )
        for own in heads[:3]
    ]
    one, two = prefixbounds.bound_table(heads[:3], spread=0.2), prefixbounds.bound_table(doubled, spread=0.4)
    columns = ["nats", "train_error", "bound", "gibbs_error", "head_error"]
    assert np.allclose(one[columns], two[columns])


def test_candidates_are_spread_over_the_depth_and_hold_the_whole_network():
    blocks = [f"conv{i}" for i in range(1, 14)]
    assert prefixbounds.candidates(blocks, 1) == ("conv13",)
    assert prefixbounds.candidates(blocks, 13) == tuple(blocks)
    assert prefixbounds.candidates(blocks, 3) == ("conv5", "conv9", "conv13")
    assert all(len(set(prefixbounds.candidates(blocks, n))) == n for n in range(1, 14))
    for n in (0, 14):
        with pytest.raises(ValueError, match="candidates"):
            prefixbounds.candidates(blocks, n)


def test_the_untrained_network_is_another_one_and_leaves_the_collective_alone(chain):
    before = {n: t.clone() for n, t in chain.collective.model.state_dict().items()}
    twin = prefixbounds.untrained(chain.collective, chain.images, chain.source)
    again = prefixbounds.untrained(chain.collective, chain.images, chain.source)
    assert twin.model.shape == chain.collective.model.shape
    weight = twin.model.blocks["conv5"].conv.weight
    assert weight.equal(again.model.blocks["conv5"].conv.weight)
    assert not weight.equal(chain.collective.model.blocks["conv5"].conv.weight)
    assert all(before[n].equal(t) for n, t in chain.collective.model.state_dict().items())


def test_the_summary_is_over_tasks(heads):
    table = prefixbounds.bound_table(heads)
    summary = prefixbounds.bound_summary(table).set_index("shots")
    own = table[table["shots"] == 10]
    assert summary.loc[10, "bound"] == pytest.approx(own["bound"].mean()) and summary.loc[10, "n_tasks"] == 4
    half = stats.t.ppf(0.975, 3) * own["head_error"].sem()
    assert summary.loc[10, "head_error_high"] == pytest.approx(own["head_error"].mean() + half)
    assert summary.loc[10, "holds"] == 100 * (own["gibbs_error"] <= own["bound"]).mean()


# figures ------------------------------------------------------------------------------------------------------------
def line(ax, label):
    return next(entry.get_xydata() for entry in ax.get_lines() if entry.get_label() == label)


def test_the_figure_of_both_networks_shows_its_table(heads):
    summary = prefixbounds.bound_summary(prefixbounds.bound_table(heads))
    for ax in bound_pair(summary, summary):
        assert np.allclose(line(ax, "bound (95 %)"), summary[["m", "bound"]])


def test_one_state_of_the_explorer(heads):
    axes = theoryexplore.draw_bound(heads, shots=10, spread=0.2, n_candidates=4)
    own = prefixbounds.bound_table([h for h in heads if h.shots == 10], spread=0.2, n_candidates=4)
    assert f"{own['bound'].mean():.1f} %" in axes[0].get_title() and "m = 50" in axes[0].get_title()
    nats = (own["nats"] + math.log(4 * math.sqrt(50) / 0.05)) / 50
    assert sum(bar.get_height() for bar in axes[1].patches) == pytest.approx(nats.mean())
    with pytest.raises(ValueError, match="shots"):
        theoryexplore.draw_bound(heads, shots=7)
    with pytest.raises(ValueError, match="several m"):
        bound_tasks(pd.concat([own, own.assign(m=3)]))


def test_sliders_redraw(heads, monkeypatch):
    monkeypatch.delenv(HEADLESS, raising=False)
    box = theoryexplore.bound_explorer(heads)
    before = box.picture.value
    for name, value in (("n_candidates", 2), ("spread", 0.5), ("shots", 5)):
        box.controls[name].value = value
        assert box.picture.value != before and not box.error.value
        before = box.picture.value
    assert not plt.get_fignums()
    monkeypatch.setenv(HEADLESS, "1")
    assert theoryexplore.bound_explorer(heads) is None
