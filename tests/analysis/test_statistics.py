"""Intervals, comparison and decisions against brute force, published numbers and injected faults."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from learngene_core.analysis import statistics as st

NAN = float("nan")


def make_results(n_tasks=6, n_inits=2, seed=0):
    """results.csv: light scratch / learngene at two shots, same_shape scratch / full, and ncm without a reference."""
    rng = np.random.default_rng(seed)
    methods = [("light", "scratch"), ("light", "learngene"), ("same_shape", "scratch"), ("same_shape", "full")]
    cells = itertools.product(methods, (10, 20), range(1, n_tasks + 1), range(n_inits))
    rows = [(*method, shots, task, init, rng.normal(50, 8)) for method, shots, task, init in cells]
    rows += [("none", "ncm", shots, task, 0, rng.normal(75, 3)) for shots in (10, 20) for task in range(1, n_tasks + 1)]
    return pd.DataFrame(rows, columns=["family", "method", "shots", "target_task", "init", "accuracy"])


def nested(counts, sds, seed=0):
    """A table split > collective > target_task with normal effects at each level."""
    rng, levels = np.random.default_rng(seed), ("split", "collective", "target_task")[-len(counts) :]
    table = pd.MultiIndex.from_product([range(n) for n in counts], names=levels).to_frame(index=False)
    effects = [rng.normal(0, sd, counts[: k + 1]) for k, sd in enumerate(sds)]
    total = sum(e.reshape(e.shape + (1,) * (len(counts) - e.ndim)) for e in effects)
    return table.assign(gain=np.ravel(total)), levels


# --- one mean -------------------------------------------------------------------------------------------------------


def test_mean_interval_is_the_textbook_t_interval():
    values = np.array([41.0, 44.0, 39.5, 47.0, 42.5])
    found = st.mean_interval(values, 0.9)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.estimate, found.low, found.high, found.n) == pytest.approx((values.mean(), low, high, 5))
    assert found.half_width == pytest.approx((high - low) / 2)


@pytest.mark.parametrize(("n", "half"), [(5, 9.9), (10, 5.7), (20, 3.7), (50, 2.27), (64, 2.0), (100, 1.6), (249, 1.0)])
def test_published_half_widths_at_sd_8(n, half):
    values = np.random.default_rng(0).normal(size=n)
    values = 8 * (values - values.mean()) / values.std(ddof=1)
    assert st.mean_interval(values).half_width == pytest.approx(half, abs=0.06)


def test_one_value_has_no_limits():
    found = st.mean_interval([43.0])
    assert found.estimate == 43.0 and found.n == 1 and np.isnan([found.low, found.high, found.half_width]).all()


@pytest.mark.parametrize("values", [[], [1.0, NAN], [1.0, np.inf], [[1.0, 2.0]]])
def test_mean_interval_refuses_bad_values(values):
    with pytest.raises(ValueError):
        st.mean_interval(values)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="confidence"):
        st.mean_interval([1.0, 2.0], confidence)


def test_an_interval_reads_well():
    assert str(st.Interval(2.7, 0.0, 5.4, 12)) == "+2.7 ± 2.7 (n=12)"
    assert str(st.Interval(2.7, 0.4, 6.1, 12)) == "+2.7 (+0.4 to +6.1, n=12)"
    assert f"{st.Interval(0.75, 0.5, 1.0, 8):.2f}" == "0.75 ± 0.25 (n=8)"
    assert str(st.mean_interval([3.0])) == "+3.0 (no interval, n=1)"
    assert str(st.mean_interval([3.0, 3.0])) == "+3.0 ± 0.0 (n=2)"


def test_paired_interval_is_the_paired_t_test():
    rng = np.random.default_rng(1)
    a, b = rng.normal(50, 8, (2, 12))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    found, back = st.paired_interval(a, b), st.paired_interval(b, a)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (back.low, back.high) == pytest.approx((-high, -low))
    with pytest.raises(ValueError, match="12 and 11"):
        st.paired_interval(a, b[:11])


# --- the paired table -----------------------------------------------------------------------------------------------


def test_paired_table_against_a_plain_loop():
    results = make_results()
    table = st.paired_table(results)
    assert list(table.columns) == [
        *("family", "method", "shots", "accuracy", "accuracy_low", "accuracy_high"),
        *("gain", "gain_low", "gain_high", "sd_difference", "n_tasks", "n_inits"),
    ]
    assert len(table) == 10
    for row in table[table.family != "none"].itertuples():
        mine, base = np.zeros(6), np.zeros(6)
        for r in results[(results.family == row.family) & (results.shots == row.shots)].itertuples():
            mine[r.target_task - 1] += r.accuracy / 2 * (r.method == row.method)
            base[r.target_task - 1] += r.accuracy / 2 * (r.method == "scratch")
        accuracy, gain = st.mean_interval(mine), st.paired_interval(mine, base)
        assert row[4:7] == pytest.approx((accuracy.estimate, accuracy.low, accuracy.high))
        assert row[7:11] == pytest.approx((gain.estimate, gain.low, gain.high, (mine - base).std(ddof=1)), abs=1e-9)
        assert row[11:] == (6, 2)


def test_paired_table_does_not_depend_on_the_order_of_the_rows():
    results, order = make_results(), ["family", "method", "shots"]
    tables = [
        st.paired_table(r).sort_values(order, ignore_index=True)
        for r in (results, results.sample(frac=1, random_state=3))
    ]
    pd.testing.assert_frame_equal(*tables)


def test_more_inits_are_not_more_tasks():
    results = make_results()
    copies = pd.concat([results.assign(init=results.init + shift) for shift in (0, 10, 20)])
    pd.testing.assert_frame_equal(
        st.paired_table(copies).drop(columns="n_inits"), st.paired_table(results).drop(columns="n_inits")
    )


def test_families_are_never_compared():
    results = make_results()
    shifted = results.assign(accuracy=results.accuracy + 20 * (results.family == "same_shape"))
    np.testing.assert_allclose(st.paired_table(shifted).gain, st.paired_table(results).gain)
    ncm = st.paired_table(results).query("family == 'none'")
    assert ncm[["gain", "gain_low", "gain_high", "sd_difference"]].isna().all(axis=None)
    assert ncm[["accuracy", "accuracy_low", "accuracy_high"]].notna().all(axis=None) and (ncm.n_inits == 1).all()


def test_the_reference_gains_nothing_over_itself():
    scratch = st.paired_table(make_results()).query("method == 'scratch'")
    assert (scratch[["gain", "gain_low", "gain_high", "sd_difference"]] == 0).all(axis=None)


def test_further_keys_keep_collectives_apart():
    results = pd.concat([make_results(seed=s).assign(collective=s) for s in (0, 1)])
    table = st.paired_table(results, keys=("family", "shots", "collective"))
    assert list(table.columns[:4]) == ["family", "method", "shots", "collective"] and len(table) == 20
    with pytest.raises(ValueError, match="twice"):
        st.paired_table(results)


def test_one_task_has_a_gain_without_limits():
    table = st.paired_table(make_results(n_tasks=1)).query("family == 'light'")
    assert table.gain.notna().all() and table[["gain_low", "gain_high", "accuracy_low"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("method == 'learngene' and target_task == 3", ["learngene", "target_task 3"]),
        ("method == 'learngene' and target_task == 3 and init == 1 and shots == 20", ["20", "target_task 3", "init 1"]),
        ("method == 'scratch' and target_task == 4", ["the reference of", "target_task 4"]),
    ],
)
def test_a_missing_task_is_named(lost, words):
    results = make_results()
    with pytest.raises(ValueError) as error:
        st.paired_table(results.drop(results.query(f"family == 'light' and {lost}").index))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("column", ["family", "accuracy", "init"])
def test_paired_table_refuses_what_is_missing(column):
    results = make_results().astype({"init": float})
    with pytest.raises(ValueError, match=column):
        st.paired_table(results.drop(columns=column))
    results.loc[5, column] = None
    with pytest.raises(ValueError, match="missing"):
        st.paired_table(results)
    with pytest.raises(ValueError, match="empty"):
        st.paired_table(results.iloc[:0])


# --- hierarchical intervals -----------------------------------------------------------------------------------------


def test_few_top_units_get_a_t_interval_on_their_means():
    table, levels = nested((3, 5, 20), (2, 3, 8))
    found = st.hierarchical_interval(table, levels, "gain")
    wanted = st.mean_interval(table.groupby("split").gain.mean())
    assert (found.low, found.high, found.n) == (pytest.approx(wanted.low), pytest.approx(wanted.high), 3)
    assert found.scope == "new class splits"


@pytest.mark.parametrize(
    ("counts", "n", "scope"),
    [
        ((1, 5, 20), 5, "new ancestors (one split)"),
        ((1, 1, 20), 20, "these novel classes and this ancestor (one split, one collective)"),
        ((1, 1, 1), 1, "nothing beyond itself (one split, one collective, one target_task)"),
    ],
)
def test_a_single_top_unit_goes_down_and_says_so(counts, n, scope):
    found = st.hierarchical_interval(*nested(counts, (2, 3, 8)), "gain")
    assert (found.n, found.scope) == (n, scope)
    assert np.isnan(found.low) == (n == 1)


def test_units_count_the_same_whatever_their_rows():
    table, levels = nested((4, 5), (3, 8))
    doubled = pd.concat(
        [table, table[table.collective == 0], table[(table.target_task == 1) & (table.collective == 2)]]
    )
    assert st.hierarchical_interval(doubled, levels, "gain").estimate == pytest.approx(table.gain.mean())
    ragged = table.drop(table.query("collective == 3 and target_task > 0").index)
    wanted = st.mean_interval([ragged[ragged.collective == c].gain.mean() for c in range(4)])
    found = st.hierarchical_interval(ragged, levels, "gain")
    assert (found.estimate, found.low, found.high) == pytest.approx((wanted.estimate, wanted.low, wanted.high))


def test_the_bootstrap_is_seeded_and_blind_to_row_order():
    table, levels = nested((12, 5), (3, 8))
    found = st.hierarchical_interval(table, levels, "gain", seed=1)
    shuffled = table.sample(frac=1, random_state=0)
    again = st.hierarchical_interval(shuffled, levels, "gain", seed=1)
    assert (again.low, again.high) == pytest.approx((found.low, found.high))
    assert st.hierarchical_interval(table, levels, "gain", seed=2) != found
    t = st.mean_interval(table.groupby("collective").gain.mean())
    assert found.half_width == pytest.approx(t.half_width, rel=0.12) and found.low < found.estimate < found.high


@pytest.mark.parametrize("fault", ["nan", "column", "empty"])
def test_hierarchical_interval_refuses_faults(fault):
    table, levels = nested((3, 5), (3, 8))
    table = {"nan": table.assign(gain=table.gain.where(table.index != 2)), "empty": table[:0]}.get(fault, table)
    with pytest.raises(ValueError, match="depth" if fault == "column" else "missing"):
        st.hierarchical_interval(table, (*levels, "depth") if fault == "column" else levels, "gain")


# --- many cells -----------------------------------------------------------------------------------------------------


def test_bands_hold_for_all_cells_at_once():
    rng, hits, single = np.random.default_rng(0), 0, 0
    for seed in range(250):
        values = 3 * rng.normal(size=(20, 1)) + 4 * rng.normal(size=(20, 30)) + np.arange(30)
        bands = st.simultaneous_bands(values, n_resamples=400, seed=seed)
        hits += ((bands.low <= np.arange(30)) & (np.arange(30) <= bands.high)).all()
        half = stats.sem(values) * stats.t.ppf(0.975, 19)
        single += (np.abs(values.mean(axis=0) - np.arange(30)) <= half).all()
    assert 0.92 <= hits / 250 <= 0.99
    assert single / 250 < 0.7  # why the map needs bands


def test_bands_lie_between_single_intervals_and_bonferroni():
    values = np.random.default_rng(2).normal(size=(5, 40))
    bands, t = st.simultaneous_bands(values), (values.mean(axis=0), stats.sem(values))
    factor = ((bands.high - bands.estimate) / t[1]).to_numpy()
    np.testing.assert_allclose(bands.estimate, t[0])
    np.testing.assert_allclose(factor, factor[0])
    assert stats.t.ppf(0.975, 4) <= factor[0] <= stats.t.ppf(1 - 0.025 / 40, 4) + 1e-9


def test_one_cell_is_the_t_interval_and_copies_of_a_cell_add_nothing():
    values = np.random.default_rng(3).normal(size=(30, 1))
    alone = st.simultaneous_bands(values, seed=1)
    assert (alone.high - alone.low)[0] / 2 == pytest.approx(st.mean_interval(values[:, 0]).half_width, rel=0.01)
    copies = st.simultaneous_bands(np.repeat(values, 9, axis=1), seed=1)
    np.testing.assert_allclose(copies.high, alone.high[0], rtol=0.05)


def test_bands_with_constant_cells_and_one_unit():
    values = np.random.default_rng(4).normal(size=(8, 3))
    mixed = st.simultaneous_bands(np.column_stack([values, np.full(8, 0.1)]))
    pd.testing.assert_frame_equal(mixed.iloc[:3], st.simultaneous_bands(values))
    assert (mixed.iloc[3] == mixed.estimate[3]).all()
    assert (st.simultaneous_bands(np.ones((8, 2))) == 1).all(axis=None)
    assert st.simultaneous_bands(values[:1])[["low", "high"]].isna().all(axis=None)
    with pytest.raises(ValueError):
        st.simultaneous_bands(np.where(values > 1, NAN, values))


def test_holm_by_hand_and_as_a_step_down_test():
    np.testing.assert_allclose(st.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(st.holm([0.6, 0.7]), 1)
    for p in np.random.default_rng(0).uniform(0, 0.05, (20, 7)):
        adjusted, rejecting = st.holm(p), True
        for rank, i in enumerate(np.argsort(p)):
            rejecting &= p[i] <= 0.05 / (7 - rank)
            assert (adjusted[i] <= 0.05) == rejecting
    for bad in ([0.1, NAN], [1.2], [-0.1], []):
        with pytest.raises(ValueError):
            st.holm(bad)


# --- decisions ------------------------------------------------------------------------------------------------------


def test_equivalence_is_two_one_sided_t_tests():
    for seed, margin in itertools.product(range(5), (0.3, 1.0, 2.0)):
        values = np.random.default_rng(seed).normal(0.3, 1.5, 20)
        lower = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
        upper = stats.ttest_1samp(values, margin, alternative="less").pvalue
        found = st.equivalence(values, margin)
        assert found.p_value == pytest.approx(max(lower, upper))
        assert found.equivalent == (found.p_value < 0.05)
        assert found.interval == st.mean_interval(values, 0.9)


def test_equivalence_at_the_edges():
    assert st.equivalence([0.5, 0.5], 1) == st.Equivalence(0.0, st.Interval(0.5, 0.5, 0.5, 2), True)
    assert not st.equivalence([1.0, 1.0], 1).equivalent and st.equivalence([2.0, 2.0], 1).p_value == 1
    one = st.equivalence([0.0], 1)
    assert np.isnan(one.p_value) and one.equivalent is False
    with pytest.raises(ValueError, match="margin"):
        st.equivalence([0.0, 1.0], 0)


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((3.0, 1.0, 5.0), "supported"),
        ((2.0, 0.1, 3.9), "supported"),
        ((1.9, 0.1, 3.7), "undecided"),  # helps, but perhaps by less than 2
        ((3.0, -0.1, 6.1), "undecided"),
        ((1.0, 0.1, 1.9), "positive, below the line"),  # helps, by less than 2
        ((0.9, 0.0, 1.8), "refuted"),
        ((-3.0, -5.0, -1.0), "refuted"),
        ((0.0, -2.0, 2.0), "undecided"),
        ((3.0, NAN, NAN), "undecided"),
        ((NAN, NAN, NAN), "undecided"),
    ],
)
def test_verdict(limits, wanted):
    estimate, low, high = limits
    assert st.verdict(st.Interval(estimate, low, high, 9), 2) == wanted
    assert st.verdict(st.Interval(-estimate, -high, -low, 9), 2, direction="less") == wanted


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((-1.0, -1.9, -0.1), "supported"),  # worse, but not by 2
        ((-2.5, -2.9, -2.1), "refuted"),
        ((-1.0, -2.5, 0.5), "undecided"),
        ((-2.0, -2.0, -2.0), "undecided"),
    ],
)
def test_verdict_of_no_worse_than(limits, wanted):
    estimate, low, high = limits
    assert st.verdict(st.Interval(estimate, low, high, 9), -2, above=-2) == wanted
    raised = st.Interval(estimate + 52, low + 52, high + 52, 9)
    assert st.verdict(raised, 50, above=50) == wanted
    with pytest.raises(ValueError):
        st.verdict(raised, 49, above=50)


def test_unit_means_are_those_of_the_topmost_level_with_several_units():
    table, levels = nested((1, 4, 5), (2, 3, 8))
    means, scope = st.unit_means(table, levels, "gain")
    np.testing.assert_allclose(means, [table[table.collective == c].gain.mean() for c in range(4)])
    assert scope == "new ancestors (one split)" == st.hierarchical_interval(table, levels, "gain").scope


def test_verdict_refuses_a_rule_that_makes_no_sense():
    for minimum, direction in ((-1, "greater"), (NAN, "greater"), (2, "up")):
        with pytest.raises(ValueError):
            st.verdict(st.Interval(3, 1, 5, 9), minimum, direction=direction)
