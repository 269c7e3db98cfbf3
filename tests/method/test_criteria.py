"""Criteria against hand-computed examples, the block they choose against brute force, their invariances on a real network."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from learngene_core.config import Config
from learngene_core.criteria import (
    CRITERIA,
    best_block,
    choices,
    choose,
    null_choices,
    options_of,
    profile,
    score,
    score_all,
)
from learngene_core.errors import StudyError
from learngene_core.gradients import Recorder, block_weights
from learngene_core.network import ConvNet
from learngene_core.presets import PAPER_FINAL_WIDTHS, PAPER_POOLS, PAPER_WIDTHS
from learngene_core.record import EDGES, N_BINS, Record, edge_index, share_above

LAYERS = ("conv1", "conv2", "conv3")
TAU = 5e-4
N = 1000  # weights per layer


def counted(shares, down=0.1):
    """Counts (..., l, 2, N_BINS) and zeros (..., l) of layers with this share of entries above 5e-4 (and `down` below)."""
    shares = np.asarray(shares, float)
    counts = np.zeros((*shares.shape, 2, N_BINS), np.int64)
    up = np.round(shares * N).astype(np.int64)
    low = np.full(shares.shape, round(down * N))
    counts[..., 0, edge_index(TAU) + 3], counts[..., 1, edge_index(TAU)] = up, low
    counts[..., 0, edge_index(TAU) - 1] = (N - up - low) // 2
    return counts, N - counts.sum((-1, -2))


# task 1 has two epochs, task 2 one, task 3 two: shares above 5e-4 of three layers
SHARES = [[0.5, 0.4, 0.2], [0.3, 0.4, 0.1], [0.2, 0.3, 0.1], [0.1, 0.4, 0.3], [0.3, 0.2, 0.3]]
TASK, EPOCH = [1, 1, 2, 3, 3], [1, 2, 1, 1, 2]
PROFILE = np.array([[0.4, 0.4, 0.15], [0.2, 0.3, 0.1], [0.2, 0.3, 0.3]])  # averaged over the epochs of a task
NULL = [[[0.4, 0.3, 0.2], [0.4, 0.1, 0.2]], [[0.2, 0.3, 0.3], [0.4, 0.3, 0.3]]]  # (networks, tasks, layers)


def table_of(shape, scale):
    """gradients.csv of these (rows, layers): norms that differ in every cell, but weights of norm 2."""
    values = scale * (1 + np.arange(np.prod(shape), dtype=float))
    columns = {"relative_norm": values, "norm_times_weight": values**2, "weight_norm": 2.0, "n_weights": N}
    return pd.DataFrame({"layer": np.tile(LAYERS, len(values) // 3), **columns})


@pytest.fixture
def record():
    counts, zeros = counted(SHARES)
    null_counts, null_zeros = counted(NULL)
    return Record(
        LAYERS,
        np.array(TASK),
        np.array(EPOCH),
        counts,
        zeros,
        null_counts,
        null_zeros,
        table_of((5, 3), 0.1),
        table_of((4, 3), 1.0),
    )


def config(**changes):
    return Config.preset("smoke", threshold=TAU, **changes)


# scores by hand ---------------------------------------------------------------------------------------------------------
def test_the_profile_averages_the_epochs_of_each_task(record):
    values, null = profile(record, threshold=TAU)
    assert values == pytest.approx(PROFILE) and null == pytest.approx(np.array(NULL))


def test_released_is_the_mean_over_tasks_beside_its_null(record):
    table = score(record, "released", threshold=TAU)
    assert table["layer"].tolist() == list(LAYERS) and set(table["criterion"]) == {"released"}
    assert table["score"].tolist() == pytest.approx([0.8 / 3, 1 / 3, 0.55 / 3])
    assert table["null"].tolist() == pytest.approx([0.35, 0.25, 0.25])  # networks: .4 .2 .2 and .3 .3 .3
    assert table["null_sd"].tolist() == pytest.approx(np.std([[0.4, 0.2, 0.2], [0.3, 0.3, 0.3]], axis=0, ddof=1))
    assert table["z"].tolist() == pytest.approx(list((table["score"] - table["null"]) / table["null_sd"]))
    assert set(table["threshold"]) == {float(np.float32(TAU))} and set(table["inherit"]) == {"low"}


def test_the_sign_decides_what_is_counted(record):
    up, both = (score(record, "released", threshold=TAU, sign=s)["score"] for s in ("positive", "absolute"))
    assert (both - up).tolist() == pytest.approx([0.1] * 3)
    with pytest.raises(ValueError, match="sign"):
        score(record, "released", threshold=TAU, sign="negative")


def test_released_cv_is_the_sd_over_tasks_relative_to_the_mean(record):
    table = score(record, "released_cv", threshold=TAU)
    assert table["score"].tolist() == pytest.approx((PROFILE.std(0, ddof=1) / PROFILE.mean(0)).tolist())
    assert table["score"][0] == pytest.approx((0.04 / 3) ** 0.5 / (0.8 / 3))
    null = [[0, 0.02**0.5 / 0.2, 0], [0.02**0.5 / 0.3, 0, 0]]
    assert table["null"].tolist() == pytest.approx(np.mean(null, 0).tolist())


def test_released_tv_is_the_mean_step_from_task_to_task(record):
    table = score(record, "released_tv", threshold=TAU)
    assert table["score"].tolist() == pytest.approx([0.1, 0.05, 0.125])
    assert table["null"].tolist() == pytest.approx([0.1, 0.1, 0.0])


@pytest.mark.parametrize(("name", "power"), [("relative_norm", 1), ("scaled_norm", 2)])
def test_norm_criteria_are_the_mean_of_their_column(record, name, power):
    cells = (0.1 * np.arange(1, 16).reshape(5, 3)) ** power
    by_task = np.stack([cells[:2].mean(0), cells[2], cells[3:].mean(0)])
    null = (np.arange(1.0, 13).reshape(2, 2, 3) ** power).mean(1)
    table = score(record, name)
    assert table["score"].tolist() == pytest.approx(by_task.mean(0).tolist())
    assert table["null"].tolist() == pytest.approx(null.mean(0).tolist())


def test_the_relative_count_has_a_threshold_for_each_layer_and_epoch(record):
    """Four times as many weights in conv2, weights half as large in conv3: thresholds 8 bins lower and 8 bins higher."""
    c = 2 * N**0.5 * TAU  # weights of norm 2: the threshold is TAU
    table = score(record, "released_relative", c=c)
    both = PROFILE.mean(0) + 0.1
    assert table["score"].tolist() == pytest.approx(both.tolist())
    assert table["null"].tolist() == pytest.approx((np.mean(NULL, (0, 1)) + 0.1).tolist())
    assert table["null_sd"].tolist() == pytest.approx(np.std(np.mean(NULL, 1), axis=0, ddof=1).tolist())
    record.table.loc[record.table["layer"] == "conv2", "n_weights"] = 4 * N
    record.table.loc[record.table["layer"] == "conv3", "weight_norm"] = 1.0
    everything = both[1] + (0.9 - PROFILE[:, 1].mean()) / 2  # and the half of the rest that is just below TAU
    assert score(record, "released_relative", c=c)["score"].tolist() == pytest.approx([both[0], everything, 0])
    record.table.loc[0, "weight_norm"] = 1.0  # conv1 in the first epoch of task 1 only: 0 instead of .5 + .1
    assert score(record, "released_relative", c=c)["score"][0] == pytest.approx(both[0] - 0.6 / 2 / 3)


def test_a_threshold_is_moved_to_an_edge_that_the_table_names(record):
    table = score(record, "released", threshold=1e-6)
    edge = float(EDGES[edge_index(1e-6)])
    assert set(table["threshold"]) == {edge} and edge != 1e-6
    assert table["score"].tolist() == score(record, "released", threshold=edge)["score"].tolist()


def test_a_layer_that_came_late_is_scored_on_the_tasks_it_saw(record):
    record.counts[:3, 2], record.zeros[:3, 2] = 0, 0
    record.table.loc[record.table.index[:9][record.table["layer"][:9] == "conv3"], ["relative_norm"]] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score(record, "released", threshold=TAU)["score"].tolist() == pytest.approx([0.8 / 3, 1 / 3, 0.3])
        assert score(record, "relative_norm")["score"][2] == pytest.approx((1.2 + 1.5) / 2)
        for name in ("released_cv", "released_tv"):  # one task has no variation
            assert score(record, name, threshold=TAU)["score"].isna().tolist() == [False, False, True]


def test_one_task_has_no_variation_and_that_is_said(record):
    first = np.array(TASK) == 1
    one = Record(
        LAYERS,
        record.task[first],
        record.epoch[first],
        record.counts[first],
        record.zeros[first],
        record.null_counts[:, :1],
        record.null_zeros[:, :1],
        record.table[:6],
        record.null_table[:6],
    )
    for name in ("released_cv", "released_tv"):
        assert score(one, name, threshold=TAU)["score"].isna().all()
        with pytest.raises(StudyError, match=name):
            choose(one, config(criterion=name, n_blocks=2))
    assert score(one, "released", threshold=TAU)["score"].tolist() == pytest.approx([0.4, 0.4, 0.15])


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("no such criterion", {}, "no such criterion"),
        ("released", {"treshold": TAU}, "treshold.*threshold and sign"),
        ("relative_norm", {"threshold": TAU}, "'threshold'; it has none"),
        ("scaled_norm", {"sign": "absolute"}, "'sign'"),
        ("released_relative", {"threshold": TAU}, "'threshold'; it knows c"),
        ("released_cv", {"c": 1.0}, "'c'"),
        ("released", {"threshold": 1e9}, "range"),
        ("released_relative", {"c": 1e9}, "range"),
    ],
)
def test_what_a_criterion_does_not_know_is_refused(record, name, options, text):
    with pytest.raises(ValueError, match=text):
        score(record, name, **options)


def test_the_configuration_is_asked_only_for_what_a_criterion_knows(record):
    cfg = config(sign="absolute")
    assert options_of("released", cfg) == {"threshold": TAU, "sign": "absolute"}
    assert options_of("released_relative", cfg) == options_of("scaled_norm", cfg) == {}
    for name in CRITERIA:
        score(record, name, **options_of(name, cfg))


def test_every_criterion_says_where_it_comes_from_and_what_it_predicts():
    for name, one in CRITERIA.items():
        assert one.name == name and one.inherit in ("low", "high")
        assert all(len(text) > 20 for text in (one.source, one.predicts, one.cost)), name


def test_every_untrained_network_chooses_by_itself(record):
    record.null_table["norm_times_weight"] = [3.0, 2, 1, 3, 2, 1, 1, 2, 3, 1, 2, 3]
    assert null_choices(record, "scaled_norm", 1) == [("conv3",), ("conv1",)]
    assert null_choices(record, "released", 2, threshold=TAU)[0] == ("conv2", "conv3")  # .4 .2 .2


def test_without_spread_in_the_null_there_is_no_z(record):
    record.null_table["norm_times_weight"] = 1.0
    table = score(record, "scaled_norm")
    assert table["z"].isna().all() and set(table["null"]) == {1.0}


def test_what_cannot_choose_is_left_out_of_the_choices(record):
    table = score_all(record, config())
    table.loc[table["criterion"] == "released_tv", "score"] = np.nan
    chosen = choices(table, 1)
    assert set(chosen) == set(CRITERIA) - {"released_tv", "released_relative"}  # at c = 1 nothing is counted here
    assert chosen["released"] == ("conv3",)


def test_an_unknown_quantity_is_refused(record):
    with pytest.raises(ValueError, match="size"):
        profile(record, "size")


def test_all_scores_stand_one_below_the_other(record):
    table = score_all(record, config(sign="absolute"))
    assert table.groupby("criterion", sort=False)["layer"].apply(tuple).to_dict() == dict.fromkeys(CRITERIA, LAYERS)
    rows = table[table["criterion"] == "released"].reset_index(drop=True)
    alone = score(record, "released", threshold=TAU, sign="absolute")
    pd.testing.assert_frame_equal(rows[alone.columns], alone)


# the block --------------------------------------------------------------------------------------------------------------
def scores(values, inherit="low", column="score"):
    names = [f"conv{i}" for i in range(1, len(values) + 1)]
    return pd.DataFrame({"criterion": "c", "layer": names, column: np.asarray(values, float), "inherit": inherit})


def brute_force(values, k, sign):
    """The best contiguous block, the deepest of equals."""
    starts = range(len(values) - k + 1)
    best = min(starts, key=lambda i: (sign * round(sum(values[i : i + k]) / k, 9), -i))
    return tuple(f"conv{i + 1}" for i in range(best, best + k))


@pytest.mark.parametrize("inherit", ["low", "high"])
def test_the_best_block_is_that_of_a_search_over_all(inherit):
    rng = np.random.default_rng(0)
    for case, k in itertools.product(range(60), (1, 2, 3, 8)):
        values = rng.normal(size=8) if case % 2 else rng.integers(0, 3, 8) / 10  # the second kind has ties
        if np.ptp(values) == 0:
            continue
        assert best_block(scores(values, inherit), k) == brute_force(values, k, 1 if inherit == "low" else -1)


def test_of_equal_blocks_the_deepest_is_taken():
    assert best_block(scores([0.1, 0.3, 0.1, 0.3, 0.1, 0.3]), 2) == ("conv5", "conv6")
    assert best_block(scores([0.1, 0.2, 0.3, 0.6, 0.3, 0.2, 0.1]), 3) == ("conv5", "conv6", "conv7")


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e6])
def test_the_unit_of_a_score_does_not_matter(scale):
    rng = np.random.default_rng(1)
    for _ in range(20):
        values = rng.normal(size=8)
        assert best_block(scores(values * scale), 3) == best_block(scores(values), 3)


def test_another_column_can_choose():
    table = scores([1, 2, 3]).assign(z=[3.0, 2.0, 1.0])
    assert best_block(table, 1) == ("conv1",) and best_block(table, 1, "z") == ("conv3",)


@pytest.mark.parametrize(
    ("values", "k", "text"),
    [
        ([1, 2, 3], 4, "3 layers"),
        ([1, 2, 3], 0, "n_blocks"),
        ([2, 2, 2], 2, "same"),
        ([1, np.nan, 3], 1, "conv2"),
        ([1, 2, np.inf], 1, "conv3"),
    ],
)
def test_what_cannot_choose_is_refused(values, k, text):
    with pytest.raises(ValueError, match=text):
        best_block(scores(values), k)


def test_of_equal_scores_all_layers_are_still_all_layers():
    assert best_block(scores([2, 2, 2]), 3) == ("conv1", "conv2", "conv3")


def test_choosing_by_criterion_and_by_hand(record):
    assert choose(record, config(n_blocks=1)) == ("conv3",)  # .267 .333 .183
    assert choose(record, config(n_blocks=2)) == ("conv2", "conv3")
    assert choose(record, config(n_blocks=1, criterion="released_tv")) == ("conv2",)
    assert choose(record, config(n_blocks=1, criterion="relative_norm")) == ("conv1",)
    assert choose(record, config(layers=("conv1", "conv2"))) == ("conv1", "conv2")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"layers": ("conv9",)}, "conv9"),
        ({"layers": ("conv1", "conv3")}, "contiguous"),
        ({"layers": ("conv2", "conv1")}, "contiguous"),
        ({"layers": ("conv3", "conv4")}, "conv4"),
        ({"n_blocks": 4}, "3 layers"),
        ({"criterion": "intuition"}, "intuition"),
        ({"threshold": 1e9}, "range"),
        ({"threshold": 1e2, "n_blocks": 1}, "same"),  # nothing is above it anywhere
    ],
)
def test_a_choice_that_cannot_be_is_one_clear_line(record, changes, text):
    with pytest.raises(StudyError, match=text) as error:
        choose(record, Config.preset("smoke", **{"threshold": TAU, **changes}))
    assert "\n" not in str(error.value)


# invariance -------------------------------------------------------------------------------------------------------------
def test_only_the_scaled_norm_ignores_the_scale_of_weights_before_batch_norm():
    """Weights x 3 with the identical function: the norm falls 3x, the relative norm 9x, norm x weight not."""
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    rows = []
    for factor in (1.0, 3.0):
        net = ConvNet((8, 8, 8), (1, 2), 4, 16, generator=torch.Generator().manual_seed(0)).train()
        with torch.no_grad():
            net.blocks["conv2"].conv.weight.mul_(factor)
        recorder = Recorder(block_weights(net))
        logits = net(x)
        nn.functional.cross_entropy(logits, torch.arange(16) % 4).backward()
        recorder()
        rows.append((logits.detach(), pd.DataFrame(recorder.take()[0]).set_index("layer")))
    (before, one), (after, three) = rows
    assert torch.allclose(before, after, atol=1e-3)
    ratio = three / one
    assert ratio.loc["conv2", "norm"] == pytest.approx(1 / 3, rel=1e-3)
    assert ratio.loc["conv2", "relative_norm"] == pytest.approx(1 / 9, rel=1e-3)
    assert ratio.loc["conv2", "norm_times_weight"] == pytest.approx(1, rel=1e-3)
    for other in ("conv1", "conv3"):
        assert ratio.loc[other, "relative_norm"] == pytest.approx(1, rel=1e-3)


def test_the_relative_count_ignores_the_scale_of_weights_before_batch_norm():
    """A factor of 4 is two octaves, 16 bins: entries and threshold move alike. The released count does not stay."""
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found, c, threshold = [], 0.0, 0.0
    for factor in (1.0, 4.0):
        net = ConvNet((8, 8, 8), (1, 2), 4, 16, generator=torch.Generator().manual_seed(0)).train()
        net.blocks["conv2"].norm.eps = 1e-12
        with torch.no_grad():
            net.blocks["conv2"].conv.weight.mul_(factor)
        recorder = Recorder(block_weights(net))
        nn.functional.cross_entropy(net(x), torch.arange(16) % 4).backward()
        recorder()
        rows, counts, zeros = recorder.take()
        entry = {"task": 1, "epoch": 1, "rows": rows, "counts": counts, "zeros": zeros}
        null = [{"task": 1, "epoch": 1, **row} for row in rows], counts[None, None], zeros[None, None]
        record = Record.of_epochs(net.block_names, [entry], *null)
        c, threshold = (c, threshold) if found else (rows[1]["norm_times_weight"] / 2, rows[1]["rms"] / 2)
        tables = (
            score(record, "released_relative", c=c),
            score(record, "released", threshold=threshold, sign="absolute"),
        )
        found.append([table["score"].to_numpy() for table in tables])
    (relative, plain), (relative_scaled, plain_scaled) = found
    assert 0.1 < relative[1] < 0.9 and relative_scaled == pytest.approx(relative, abs=5e-3)
    assert plain_scaled[1] < plain[1] - 0.2


# depth alone ------------------------------------------------------------------------------------------------------------
def softmax_twice(logits, labels):
    """Cross-entropy of probabilities, as the released scripts have it."""
    return nn.functional.cross_entropy(logits.softmax(1), labels)


def released_counts_of_untrained(widths, loss, networks=5):
    """Share of entries above 5e-4 per layer, (l,), by sign: untrained networks, random smooth images, random labels."""
    shares = {"positive": [], "absolute": []}
    for seed in range(networks):
        g = torch.Generator().manual_seed(seed)
        net = ConvNet(widths, PAPER_POOLS, 64, 32, generator=g).train()
        recorder = Recorder(block_weights(net))
        images = nn.functional.interpolate(torch.randn(64, 3, 8, 8, generator=g), size=32, mode="bicubic")
        loss(net(images), torch.randint(64, (64,), generator=g)).backward()
        recorder()
        _, counts, zeros = recorder.take()
        for sign, found in shares.items():
            found.append(share_above(counts, zeros, edge_index(5e-4), sign))
    return {sign: np.mean(found, 0) for sign, found in shares.items()}


@pytest.mark.parametrize(
    ("loss", "falls"),
    [
        (softmax_twice, {"positive": -0.95, "absolute": -0.98}),
        (nn.functional.cross_entropy, {"positive": -0.5, "absolute": -0.95}),
    ],
    ids=["softmax twice", "cross-entropy"],
)
@pytest.mark.parametrize("paper", [PAPER_WIDTHS, PAPER_FINAL_WIDTHS], ids=["base", "final"])
def test_the_released_count_falls_with_depth_in_a_network_that_knows_nothing(paper, loss, falls):
    """A quarter of the paper's widths. Nothing was learned, and yet the last three blocks are "the most stable".

    With plain cross-entropy nearly all entries exceed 5e-4 until the last three blocks; the signed count is half of that,
    and in the small first layers the luck of signs (a few percent) hides the first part of the fall.
    """
    for sign, shares in released_counts_of_untrained([width // 4 for width in paper], loss).items():
        assert spearmanr(np.arange(13), shares).statistic < falls[sign], (sign, shares)
        assert best_block(scores(shares), 3) == ("conv11", "conv12", "conv13")
        assert shares[-3:].max() < shares[:10].min() and shares[-1] < 0.92 * shares[0]
