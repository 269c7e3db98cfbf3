"""The atlas as a table and the criteria against it: brute force, tables with a known best block, and injected faults."""

import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from learngene_core import StudyError
from learngene_core.analysis import blocks, ranks, selection
from learngene_core.analysis import statistics as st
from learngene_core.learngene import Learngene
from learngene_core.network import ConvNet

NAN = float("nan")
WIDTHS, NAMES = (4, 6, 8, 8, 10), tuple(f"conv{k}" for k in range(1, 6))
BLOCKS = [(a, b) for a in range(1, 6) for b in range(a, 6)]
EQUAL = [block for block in BLOCKS if block[1] - block[0] == 2]


def make_cells(truth, n_tasks=6, n_inits=2, group="novel", sd=3.0, shots=10, seed=0):
    """atlas_cells.csv: `truth` block -> gain; scratch varies by task (sd 8), every individual by `sd`."""
    rng, rows = np.random.default_rng(seed), []
    for task, init in itertools.product(range(1, n_tasks + 1), range(1, n_inits + 1)):
        base = 45 + 8 * np.sin(13 * task)
        for (first, last), gain in {(0, 0): 0.0, **truth}.items():
            rows.append((group, first, last, shots, task, init, base + gain + rng.normal(0, sd)))
    return pd.DataFrame(rows, columns=["group", "first", "last", "shots", "target_task", "init", "accuracy"])


def layer_gain(values):
    """Blocks gain the mean of their layers' values: what a perfect criterion would know."""
    return {(a, b): float(np.mean(values[a - 1 : b])) for a, b in BLOCKS}


def make_scores(**columns):
    """layer_scores.csv with one criterion per keyword, inherit: high."""
    tables = [pd.DataFrame({"criterion": n, "layer": NAMES, "score": v, "null": 0.0}) for n, v in columns.items()]
    return pd.concat(tables, ignore_index=True).assign(null_sd=1.0, z=0.0, inherit="high")


def two_groups(truth, pseudo=None, **options):
    apart = {**options, "group": "open_world", "n_tasks": 4, "seed": 1}
    return pd.concat([make_cells(truth, **options), make_cells(pseudo or truth, **apart)], ignore_index=True)


TRUE = (1.0, 4.0, 20.0, 9.0, 2.0)
TRUTH = layer_gain(TRUE)


# --- the atlas ------------------------------------------------------------------------------------------------------


def test_atlas_against_plain_loops():
    cells = two_groups(TRUTH)
    atlas = blocks.atlas_table(cells, WIDTHS, NAMES)
    assert list(zip(atlas["first"], atlas["last"], strict=True)) == BLOCKS and (atlas.shots == 10).all()
    for row in atlas.itertuples():
        for group, start, n in (("novel", "gain", 6), ("open_world", "pseudo_gain", 4)):
            differences, accuracies = np.zeros(n), []
            for r in cells[cells.group == group].itertuples():
                if (r.first, r.last) == (row.first, row.last):
                    differences[r.target_task - 1] += r.accuracy / 2
                    accuracies.append(r.accuracy)
                if (r.first, r.last) == (0, 0):
                    differences[r.target_task - 1] -= r.accuracy / 2
            limits = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
            low, high = ("gain_low", "gain_high") if start == "gain" else ("pseudo_low", "pseudo_high")
            found = (getattr(row, start), getattr(row, low), getattr(row, high))
            assert found == pytest.approx((differences.mean(), *limits))
            if group == "novel":
                assert row.accuracy == pytest.approx(np.mean(accuracies))
        assert (row.n_tasks, row.pseudo_n, row.length) == (6, 4, row.last - row.first + 1)
        assert row.coarse == (row.first == 1 or row.last == 5 or row.length == 3)
        assert row.band_low <= row.gain_low and row.gain_high <= row.band_high


def test_parameters_are_those_of_the_real_blocks():
    net = ConvNet(WIDTHS, (2, 5), 5, 16)
    atlas = blocks.atlas_table(make_cells(TRUTH), WIDTHS, NAMES).set_index(["first", "last"])
    for first, last in BLOCKS:
        gene = Learngene.from_model(net, net.block_names[first - 1 : last], mean=(0.5,) * 3, std=(0.2,) * 3)
        assert atlas.loc[(first, last), "parameters"] == gene.n_parameters
    assert atlas.loc[(1, 5), "share"] == pytest.approx(100) and atlas.loc[(2, 4), "block"] == "conv2-conv4"
    assert atlas.loc[(3, 3), "block"] == "conv3"


def test_bands_are_those_of_the_gains_and_each_number_of_shots_stands_alone():
    few, many = make_cells(TRUTH), make_cells(TRUTH, shots=20, n_tasks=5, seed=4)
    both = blocks.atlas_table(pd.concat([few, many]), WIDTHS, NAMES)
    for shots, cells in ((10, few), (20, many)):
        found = blocks.gains(cells)
        bands = st.simultaneous_bands(found.to_numpy())
        part = both[both.shots == shots]
        np.testing.assert_allclose(part[["gain", "band_low", "band_high"]], bands[["estimate", "low", "high"]])
    with pytest.raises(ValueError, match=r"several shots, \[10, 20\]"):
        blocks.gains(pd.concat([few, many]))


def test_the_order_of_the_rows_does_not_matter():
    cells = two_groups(TRUTH)
    pd.testing.assert_frame_equal(
        blocks.atlas_table(cells.sample(frac=1, random_state=2), WIDTHS, NAMES),
        blocks.atlas_table(cells, WIDTHS, NAMES),
    )


@pytest.mark.parametrize(("n_tasks", "n_cells", "n_resamples"), [(6, 34, 300), (12, 91, 300)])
def test_bands_cover_the_whole_map_at_the_counts_of_the_presets(n_tasks, n_cells, n_resamples):
    rng, hits, truth = np.random.default_rng(0), 0, np.linspace(-5, 40, n_cells)
    for seed in range(200):
        noise = 4 * rng.normal(size=(n_tasks, 1)) + 5 * rng.normal(size=(n_tasks, n_cells))  # scratch is shared
        bands = st.simultaneous_bands(truth + noise, n_resamples=n_resamples, seed=seed)
        hits += ((bands.low <= truth) & (truth <= bands.high)).all()
    assert 0.92 <= hits / 200 <= 0.985


def test_pseudo_columns_are_empty_without_pseudo_tasks_and_alone_before_novel_ones():
    atlas = blocks.atlas_table(make_cells(TRUTH), WIDTHS, NAMES)
    assert atlas[["pseudo_gain", "pseudo_low", "pseudo_high"]].isna().all(axis=None) and (atlas.pseudo_n == 0).all()
    coarse = {block: TRUTH[block] for block in [(1, 5), *EQUAL]}
    some = pd.concat([make_cells(TRUTH), make_cells(coarse, group="open_world")])
    atlas = blocks.atlas_table(some, WIDTHS, NAMES).set_index(["first", "last"])
    assert set(atlas.index[atlas.pseudo_n > 0]) == set(coarse) and atlas.gain.notna().all() and len(atlas) == 15
    alone = blocks.atlas_table(make_cells(TRUTH, group="open_world"), WIDTHS, NAMES)
    assert alone.gain.isna().all() and (alone.n_tasks == 0).all() and alone.pseudo_gain.notna().all()


def test_an_unfinished_map_compares_identical_tasks_whichever_way_it_is_filled():
    cells = make_cells(TRUTH)
    fine = ~(cells["first"].eq(1) | cells["last"].eq(5) | cells["first"].eq(0))
    late_blocks = cells[~fine | (cells.target_task <= 1)]  # coarse blocks on all tasks, the rest has just begun
    found = blocks.gains(late_blocks)
    assert found.shape == (6, 9) and all(a == 1 or b == 5 for a, b in found)
    pd.testing.assert_frame_equal(found, blocks.gains(cells)[list(found)])
    started = cells[(cells.target_task <= 4) | (cells["first"].isin([0, 1]) & (cells.target_task == 5))]  # task by task
    found = blocks.gains(started)
    assert found.shape == (4, 15)
    pd.testing.assert_frame_equal(found, blocks.gains(cells).loc[:4])
    assert (blocks.atlas_table(started, WIDTHS, NAMES).n_tasks == 4).all()
    with pytest.raises(ValueError, match="block 2 to 2 of group 'novel' misses target_task 5, init 1"):
        blocks.gains(started, partial=False)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda c: pd.concat([c, c.iloc[[7]]]), "twice"),
        (lambda c: c[c["first"] > 0], r"no scratch \(first = last = 0\)"),
        (lambda c: c.drop(c.index[(c["first"] == 0) & (c.target_task == 4)]), "no scratch.*target_task 4, init 1"),
        (lambda c: c.assign(accuracy=c.accuracy.where(c.target_task != 2)), "not a number.*'target_task': 2"),
        (lambda c: c.drop(columns="init"), "lacks.*init"),
        (lambda c: c[c["first"] == 0], "no block"),
        (lambda c: c.assign(group="base"), "neither group"),
        (lambda c: c.assign(last=c["last"].replace(5, 6)), r"block \[1, 6\]; the collective has blocks 1 to 5"),
        (lambda c: c.assign(first=c["first"].replace(4, 5)), r"block \[5, 4\]"),
        (lambda c: c.iloc[:0], "empty"),
    ],
)
def test_a_broken_map_is_refused(fault, words):
    with pytest.raises(ValueError, match=words):
        blocks.atlas_table(fault(make_cells(TRUTH)), WIDTHS, NAMES)


def test_names_and_widths_belong_together():
    with pytest.raises(ValueError, match="5 widths, but 4 names"):
        blocks.atlas_table(make_cells(TRUTH), WIDTHS, NAMES[:4])


# --- predictions and the recommended block --------------------------------------------------------------------------


def test_predicted_is_the_mean_of_the_layers_turned_to_higher_is_inherit():
    scores = make_scores(own=[1.0, 2.0, 4.0, 8.0, 16.0]).assign(null=[5.0, 4.0, 3.0, 2.0, NAN])
    np.testing.assert_allclose(blocks.predicted(scores, [(1, 2), (3, 5), (4, 4)]), [1.5, 28 / 3, 8])
    low = scores.assign(inherit="low")
    np.testing.assert_allclose(blocks.predicted(low, [(1, 2), (4, 5)], "null"), [-4.5, NAN])
    with pytest.raises(ValueError, match="ends at 6, but there are scores of 5"):
        blocks.predicted(scores, [(2, 6)])
    with pytest.raises(ValueError, match="one criterion"):
        blocks.predicted(pd.concat([scores, scores]), [(1, 2)])


def test_recommended_is_the_best_on_pseudo_tasks_within_the_budget_and_blind_to_novel_classes():
    atlas = blocks.atlas_table(two_groups(layer_gain(TRUE[::-1]), pseudo=TRUTH), WIDTHS, NAMES)
    for budget in (10, 20, 40, 60, 100):
        fits = atlas[atlas.share <= budget]
        best = fits.loc[fits.pseudo_gain.idxmax()]
        assert blocks.recommended(atlas, budget) == (best["first"], best["last"])
    shuffled = atlas.assign(gain=atlas.gain.to_numpy()[::-1], accuracy=0.0)
    bare = atlas.drop(columns=["gain", "gain_low", "gain_high", "n_tasks", "band_low", "band_high", "accuracy"])
    assert {blocks.recommended(table, 60, 10) for table in (atlas, shuffled, bare)} == {(3, 3)}


def test_of_equally_good_blocks_the_smaller_is_recommended():
    atlas = blocks.atlas_table(two_groups(TRUTH), WIDTHS, NAMES).assign(pseudo_gain=4.0)
    assert blocks.recommended(atlas, 100) == (1, 1)
    nothing = blocks.atlas_table(make_cells(TRUTH), WIDTHS, NAMES)
    with pytest.raises(StudyError, match="pseudo-tasks"):
        blocks.recommended(nothing, 100)
    with pytest.raises(StudyError, match="at most 1 %"):
        blocks.recommended(atlas, 1)
    with pytest.raises(StudyError, match="several shots"):
        blocks.recommended(pd.concat([atlas, atlas.assign(shots=20)]), 50)


# --- criteria against the atlas -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known_best():
    """A clear atlas, and criteria: knowing, opposite, blind, undefined and constant."""
    cells = two_groups(TRUTH, sd=0.5)
    atlas = blocks.atlas_table(cells, WIDTHS, NAMES)
    scores = make_scores(
        knows=np.exp(np.array(TRUE) / 10), wrong=-np.array(TRUE), undefined=[1, 2, NAN, 4, 5], same=[3.0] * 5
    )
    scores.loc[scores.criterion == "knows", "null"] = [5.0, 3.0, 1.0, 2.0, 4.0]
    table = selection.selection_table(cells, atlas, scores, 3, 50, n_resamples=200)
    return cells, atlas, scores, table.set_index(["criterion", "scope"])


def test_the_known_best_block_is_found(known_best):
    _, atlas, _, table = known_best
    assert tuple(atlas.loc[atlas.gain.idxmax(), ["first", "last"]]) == (3, 3)
    assert blocks.recommended(atlas, 100) == (3, 3)
    for scope, best in (("all blocks", (3, 3)), ("blocks of length 3", (2, 4))):
        for name in ("knows", "recommended"):
            row = table.loc[(name, scope)]
            assert (row["first"], row["last"]) == best and row.regret == row.regret_low == row.regret_high == 0
            assert row.spearman > 0.93 and row.spearman_low > 0.9 and row.kendall > 0.85
            assert row.chosen_gain == pytest.approx(TRUTH[best], abs=0.5)
        assert table.loc[("wrong", scope), "spearman"] < -0.9 and table.loc[("wrong", scope), "regret_low"] > 2
    knows = table.loc[("knows", "all blocks")]
    assert knows.partial > 0.9 and (knows.n_tasks, knows.n_blocks, knows.shots) == (6, 15, 10)


def test_baselines_and_nulls_stand_beside_every_criterion(known_best):
    cells, atlas, scores, table = known_best
    gains = blocks.gains(cells)
    baselines = {"depth", "shallow", "size", "small", "random", "recommended"}
    names = baselines | {*scores.criterion, *(f"null:{c}" for c in scores.criterion)}
    for scope in ("all blocks", "blocks of length 3", "within budget"):
        assert set(table.xs(scope, level="scope").index) == names
    depth, null = table.loc[("depth", "all blocks")], table.loc[("null:knows", "all blocks")]
    assert depth.spearman == pytest.approx(ranks.rank_correlation([a + b for a, b in BLOCKS], gains.mean()))
    assert np.isnan(depth.partial) and (depth["first"], depth["last"]) == (5, 5)
    assert table.loc[("size", "all blocks"), "kendall"] == pytest.approx(
        ranks.rank_correlation(atlas.parameters, gains.mean(), "kendall")
    )
    wanted = [np.mean([5, 3, 1, 2, 4][a - 1 : b]) for a, b in BLOCKS]
    found = ranks.rank_correlation_interval(wanted, gains.to_numpy(), n_resamples=200)
    assert tuple(null[["spearman", "spearman_low", "spearman_high"]]) == (found.estimate, found.low, found.high)
    assert (null["first"], null["last"]) == (1, 1)


def test_a_criterion_without_a_value_or_without_a_preference_says_nothing(known_best):
    *_, table = known_best
    for scope in ("all blocks", "blocks of length 3", "within budget"):
        undefined, same = table.loc[("undefined", scope)], table.loc[("same", scope)]
        assert undefined.drop(["shots", "n_tasks", "n_blocks"]).isna().all()
        assert same[["spearman", "kendall", "first", "regret"]].isna().all()


def test_within_the_budget_the_budget_is_spent(known_best):
    cells, atlas, _, table = known_best
    inside = [(a, b) for a, b, share in zip(atlas["first"], atlas["last"], atlas.share, strict=True) if share <= 50]
    whole = [x for x in inside if not any(y != x and y[0] <= x[0] and x[1] <= y[1] for y in inside)]
    means = {block: np.mean(np.exp(np.array(TRUE) / 10)[block[0] - 1 : block[1]]) for block in whole}
    row = table.loc[("knows", "within budget")]
    assert (row["first"], row["last"]) == max(means, key=means.get) and row.n_blocks == len(inside) < 15
    chosen = table.loc[("recommended", "within budget")]
    assert (chosen["first"], chosen["last"]) == blocks.recommended(atlas, 50)


def test_random_is_the_average_over_random_layer_scores(known_best):
    cells, atlas, scores, table = known_best
    gains, rng = blocks.gains(cells), np.random.default_rng(5)
    rhos, chosen = [], []
    for _ in range(1500):
        values = [np.mean(layers[a - 1 : b]) for layers in [rng.normal(size=5)] for a, b in BLOCKS]
        rhos.append(stats.spearmanr(values, gains.mean()).statistic)
        equal = [values[BLOCKS.index(block)] for block in EQUAL]
        chosen.append(gains.mean()[EQUAL[int(np.argmax(equal))]])
    many = selection.selection_table(cells, atlas, scores, 3, 50, n_resamples=1500).set_index(["criterion", "scope"])
    row, equal = many.loc[("random", "all blocks")], many.loc[("random", "blocks of length 3")]
    assert abs(row.spearman) < 0.06 and np.isnan(row["first"])
    assert (row.spearman_low, row.spearman_high) == pytest.approx(tuple(np.quantile(rhos, [0.025, 0.975])), abs=0.05)
    assert equal.chosen_gain == pytest.approx(np.mean(chosen), abs=0.4)
    assert equal.regret == pytest.approx(gains.mean()[EQUAL].max() - equal.chosen_gain)


def test_regret_leaves_the_measured_task_out_when_it_looks_for_the_best():
    cells = make_cells(dict.fromkeys(BLOCKS, 5.0), sd=6, seed=3)
    atlas = blocks.atlas_table(cells, WIDTHS, NAMES)
    table = selection.selection_table(cells, atlas, make_scores(own=[1, 2, 3, 4, 9]), 3, 50, n_resamples=20)

    def left_out(gains):
        best = {task: gains.drop(index=task).mean().idxmax() for task in gains.index}
        return np.mean([gains.loc[task, best[task]] - gains.loc[task, (5, 5)] for task in gains.index])

    gains, row = blocks.gains(cells), table.set_index(["criterion", "scope"]).loc[("own", "all blocks")]
    deleted = np.array([left_out(gains.drop(index=task)) for task in gains.index])
    half = stats.t.ppf(0.975, 5) * np.sqrt(5 / 6 * ((deleted - deleted.mean()) ** 2).sum())
    wanted = left_out(gains)
    assert (row.regret, row.regret_low, row.regret_high) == pytest.approx((wanted, wanted - half, wanted + half))
    assert "recommended" not in set(table.criterion)


def test_a_regret_whose_best_block_is_clear_has_the_plain_t_interval():
    gains = np.random.default_rng(0).normal(0, 3, (12, 9)) + 30 * (np.arange(9) == 4)
    found, wanted = selection.regret(gains, gains[:, 0]), st.paired_interval(gains[:, 4], gains[:, 0])
    assert (found.estimate, found.low, found.high) == pytest.approx((wanted.estimate, wanted.low, wanted.high))
    assert np.isnan(selection.regret(gains[:2], gains[:2, 0]).low) and np.isnan(
        selection.regret(gains[:1], gains[:1, 0]).estimate
    )


@pytest.mark.parametrize(("n_tasks", "n_cells"), [(6, 34), (12, 91), (30, 34)])
def test_without_differences_the_regret_is_zero_at_the_stated_rate(n_tasks, n_cells):
    """Every block gains the same: the limits of the regret hold 0 about 95 % of the time, the naive regret never does."""
    rng, naive, found = np.random.default_rng(0), [], []
    for _ in range(300):
        gains = 5 + rng.normal(0, 4, (n_tasks, 1)) + rng.normal(0, 5, (n_tasks, n_cells))
        found.append(selection.regret(gains, gains[:, 0]))
        naive.append(gains.mean(axis=0).max() - gains[:, 0].mean())
    hits = np.mean([i.low <= 0 <= i.high for i in found])
    assert 0.92 <= hits <= 0.99
    assert abs(np.mean([i.estimate for i in found])) < 0.5 < 1.5 < np.mean(naive)  # the winner's curse


def test_one_task_and_few_blocks_give_no_limits():
    cells = make_cells({(1, 1): 3.0, (1, 2): 5.0}, n_tasks=1)
    atlas = blocks.atlas_table(cells, (4, 6), NAMES[:2])
    assert atlas[["gain_low", "band_low"]].isna().all(axis=None) and atlas.gain.notna().all()
    table = selection.selection_table(cells, atlas, make_scores(own=range(5)), 3, 50, n_resamples=20)
    row = table.set_index(["criterion", "scope"]).loc[("own", "all blocks")]
    assert row[["spearman_low", "regret", "partial"]].isna().all() and row.chosen_gain > 0
    assert "blocks of length 3" not in set(table.scope)


def test_selection_needs_the_atlas_of_the_same_cells(known_best):
    cells, atlas, scores, _ = known_best
    with pytest.raises(ValueError, match=r"lacks the block \(2, 4\)"):
        selection.selection_table(cells, atlas[atlas.block != "conv2-conv4"], scores, 3, 50)
    with pytest.raises(ValueError, match="ends at 5, but there are scores of 4 layers"):
        selection.selection_table(cells, atlas, scores[scores.layer != "conv5"], 3, 50)


def test_tables_alone_do_not_load_torch(tmp_path):
    names = "blocks, claims, defects, findings, ranks, selection, statistics, verdicts"
    code = f"import sys; from learngene_core.analysis import {names}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
