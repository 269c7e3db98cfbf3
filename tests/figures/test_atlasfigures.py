"""Figures of the atlas show every block where it stands, leave the rest blank, and say what claims came to, in words."""

import itertools

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figuregallery import ATLAS, MARKS
from figuretables import (
    CONTROLS,
    CRITERIA,
    make_atlas,
    make_claims,
    make_controls,
    make_released,
    make_scores,
    make_selection,
)
from matplotlib.collections import PathCollection
from scipy import stats

from learngene_core.errors import StudyError
from learngene_core.explorer import blocks as atlasexplore
from learngene_core.figures import atlas as atlasfigures
from learngene_core.figures import claims as claimfigures
from learngene_core.figures import selection as selectionfigures
from learngene_core.figures.tables import block_name, signed
from learngene_core.figures.words import DEFECT_LABELS, control_label, criterion_label

MINUS = "\N{MINUS SIGN}"


pytestmark = pytest.mark.usefixtures("style")


# --- all figures ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ATLAS)
def test_nothing_is_clipped_and_no_words_overlap(name):
    axes = np.ravel(np.asarray(ATLAS[name](), dtype=object))
    figure = axes[0].figure
    figure.canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) > -0.05 and drawn.x1 < width + 0.05 and drawn.y1 < height + 0.05
    for ax in axes:
        for axis in (ax.xaxis, ax.yaxis):
            boxes = [t.get_window_extent() for t in axis.get_ticklabels() if t.get_text().strip() and t.get_visible()]
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes)), f"{name}: tick labels overlap"
        boxes = [t.get_window_extent() for t in ax.texts if t.get_text()]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)), f"{name}: words overlap"
        if (legend := ax.get_legend()) and "map" not in name and name != "choice":
            assert not legend.get_window_extent().overlaps(ax.bbox), f"{name}: the legend covers data"


@pytest.mark.parametrize("n", [7, 8, 13])
def test_the_key_of_a_map_stands_in_its_empty_half(n):
    marks = {f"a rather long name {k}": (1, k) for k in range(1, 6)}
    ax = atlasfigures.atlas_map(make_atlas(n, coarse=True), marks=marks)
    ax.figure.canvas.draw()
    staircase = [ax.transData.transform([(i, i), (i + 1, i + 1)]) for i in range(n)]  # left upper, right lower corners
    bar = ax.child_axes[0].get_tightbbox()
    for box in (ax.get_legend().get_window_extent(), bar):
        for (left, top), (_, bottom) in staircase:
            assert box.x1 < left or box.y1 < bottom or box.y0 > top, "the key covers a cell"
    assert not bar.overlaps(ax.get_legend().get_window_extent())


@pytest.mark.parametrize(
    "draw",
    [
        lambda: atlasfigures.atlas_map(make_atlas()[:0]),
        lambda: atlasfigures.margins(pd.DataFrame()),
        lambda: atlasfigures.score_against_gain(make_scores()[:0], make_atlas(), "released"),
        lambda: selectionfigures.selection_figure(pd.DataFrame()),
        lambda: selectionfigures.score_panels(make_scores()[:0]),
        lambda: claimfigures.controls_figure(make_controls()[:0]),
        lambda: claimfigures.claims_figure(pd.DataFrame(columns=["claim", "verdict"])),
        lambda: claimfigures.released_figure(pd.DataFrame()),
        lambda: atlasexplore.draw_choice(make_atlas()[:0], make_scores()),
        lambda: atlasfigures.atlas_map(make_atlas(pseudo=False), gains="pseudo"),
        lambda: atlasfigures.atlas_map(make_atlas().drop(columns="band_low")),
    ],
)
def test_a_table_without_rows_or_columns_says_what_to_run(draw):
    with pytest.raises(StudyError, match="`learngene atlas`") as error:
        draw()
    assert "\n" not in str(error.value)
    assert not plt.get_fignums(), "no empty figure is left behind"


# --- the map --------------------------------------------------------------------------------------------------------
def cells_of(ax):
    """(first, last) -> the words drawn in that cell, from the top down."""
    found = {}
    for text in sorted(ax.texts, key=lambda t: t.get_position()[1]):
        x, y = text.get_position()
        found.setdefault((int(y) + 1, int(x) + 1), []).append(text.get_text().replace(MINUS, "-"))
    return found


def centre(patch):
    """The block in whose cell a patch stands."""
    x, y = patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2
    return int(y) + 1, int(x) + 1


@pytest.mark.parametrize("coarse", [False, True])
def test_every_gain_stands_in_the_cell_of_its_block_and_the_rest_is_blank(coarse):
    atlas = make_atlas(coarse=coarse).sample(frac=1, random_state=0)  # rows in any order
    ax = atlasfigures.atlas_map(atlas, marks={"one": (2, 5)})
    wanted = {(r.first, r.last): r.gain for r in atlas.itertuples()}
    cells = cells_of(ax)
    assert set(cells) == set(wanted)
    assert all(float(cells[block][0]) == pytest.approx(gain, abs=0.051) for block, gain in wanted.items())
    drawn = ax.collections[0].get_array().reshape(13, 13)
    every = set(itertools.combinations_with_replacement(range(1, 14), 2))
    for first, last in itertools.product(range(1, 14), repeat=2):
        if (first, last) in wanted:
            assert drawn[first - 1, last - 1] == wanted[first, last]
        else:
            assert drawn.mask[first - 1, last - 1], "blanks have no colour"
    blank = [centre(p) for p in ax.patches if p.get_label() == "_blank"]
    assert sorted(blank) == sorted(every - set(wanted))
    assert ("not computed" in [t.get_text() for t in ax.get_legend().get_texts()]) == coarse
    assert ax.get_ylim() == (13, 0) and "first" in ax.get_ylabel() and "last" in ax.get_xlabel()
    assert [int(t.get_text()) for t in ax.get_yticklabels()] == list(range(1, 14))


def test_cells_whose_band_contains_zero_are_hatched():
    atlas = make_atlas(8)
    atlas.loc[atlas["gain"].idxmax(), ["band_low", "band_high"]] = np.nan  # no band: nothing is known
    ax = atlasfigures.atlas_map(atlas)
    hatched = next(c for c in ax.collections if c.get_hatch())
    drawn = {(int(p.vertices[:, 1].min()) + 1, int(p.vertices[:, 0].min()) + 1) for p in hatched.get_paths()}
    sure = (atlas["band_low"] > 0) | (atlas["band_high"] < 0)
    assert drawn == set(map(tuple, atlas.loc[~sure, ["first", "last"]].to_numpy().tolist()))
    assert 0 < len(drawn) < len(atlas)
    assert any("simultaneous band contains 0" in t.get_text() for t in ax.get_legend().get_texts())


def test_colours_are_symmetric_about_zero_and_may_be_shared_by_maps():
    atlas = make_atlas(8)
    mesh = atlasfigures.atlas_map(atlas).collections[0]
    assert mesh.norm.vmax == -mesh.norm.vmin == atlas["gain"].abs().max()
    assert atlasfigures.atlas_map(atlas, scale=90).collections[0].norm.vmin == -90
    with pytest.raises(ValueError, match="hides gains; the largest is"):
        atlasfigures.atlas_map(atlas, scale=5)


def test_marks_frame_their_block_and_stand_inside_each_other():
    ax = atlasfigures.atlas_map(make_atlas(coarse=True), marks=MARKS | {"fisher": (5, 9)})
    frames = {p.get_label(): p for p in ax.patches if p.get_label() != "_blank"}
    names = [f"{criterion_label('released')}: 11–13", f"{criterion_label('recommended')}: 1–7", "first 3: 1–3", "last 3: 11–13",
             "Fisher information: 5–9 (not computed)"]  # fmt: skip
    assert list(frames) == names
    assert [centre(p) for p in frames.values()] == [*MARKS.values(), (5, 9)]
    assert {t.get_text() for t in ax.get_legend().get_texts()} >= set(names)
    outer, inner = frames[names[0]].get_bbox(), frames[names[3]].get_bbox()
    assert outer.x0 < inner.x0 and inner.x1 < outer.x1 and outer.y0 < inner.y0 and inner.y1 < outer.y1
    looks = {(p.get_edgecolor(), str(p.get_linestyle())) for p in frames.values()}
    assert len(looks) == 5
    with pytest.raises(ValueError, match="'odd' is no block: first 5, last 3"):
        atlasfigures.atlas_map(make_atlas(), marks={"odd": (5, 3)})


def test_pseudo_gains_have_their_own_map():
    atlas = make_atlas(8)
    ax = atlasfigures.atlas_map(atlas, gains="pseudo")
    computed = atlas[atlas["pseudo_gain"].notna()]
    cells = cells_of(ax)
    assert set(cells) == {(r.first, r.last) for r in computed.itertuples()}
    assert all(
        float(cells[r.first, r.last][0]) == pytest.approx(r.pseudo_gain, abs=0.051) for r in computed.itertuples()
    )
    assert (
        "n = 16 pseudo-tasks" in ax.get_title() and "n = 30 target tasks" in atlasfigures.atlas_map(atlas).get_title()
    )
    assert ax.get_ylim() == (8, 0), "the map keeps its size"
    with pytest.raises(ValueError, match="'novel' or 'pseudo', not 'both'"):
        atlasfigures.atlas_map(atlas, gains="both")


def test_half_widths_are_those_of_the_band():
    atlas = make_atlas(6)
    cells = cells_of(atlasfigures.atlas_map(atlas))
    for r in atlas.itertuples():
        gain, half = cells[r.first, r.last]
        assert float(half.removeprefix("±")) == pytest.approx((r.band_high - r.band_low) / 2, abs=0.051)
    assert all(len(words) == 1 for words in cells_of(atlasfigures.atlas_map(make_atlas(13))).values())


def test_a_small_map_rounds_its_numbers_or_leaves_them_out():
    for width, wanted in ((3.4, "0"), (1.4, None)):
        ax = plt.subplots(figsize=(width, width))[1]
        assert atlasfigures.atlas_map(make_atlas(), ax=ax) is ax
        digits = {t.get_text().partition(".")[2] for t in ax.texts}
        assert digits == ({""} if wanted else set()), "whole points, or none"
        plt.close(ax.figure)


def test_several_shots_must_be_told_apart():
    atlas = make_atlas(6, shots=(5, 20))
    with pytest.raises(ValueError, match="name one number of shots, not None; there are 5, 20"):
        atlasfigures.atlas_map(atlas)
    assert "20 shots" in atlasfigures.atlas_map(atlas, shots=20).get_title()
    with pytest.raises(ValueError, match="not 7"):
        atlasfigures.margins(atlas, shots=7)


def test_numbers_have_a_true_minus_and_no_negative_zero():
    assert [signed(v) for v in (1.25, -0.44, -0.04)] == ["+1.2", MINUS + "0.4", "+0.0"]
    assert [block_name(b) for b in ((4, 4), (11.0, 13.0))] == ["4", "11–13"]


def test_choices_and_ends_become_marks():
    selection = make_selection()
    wanted = {"released": "blocks of length 3", "fisher": "within budget"}
    marks = atlasfigures.choices_of(selection, wanted)
    for name, scope in wanted.items():
        row = selection[(selection["criterion"] == name) & (selection["scope"] == scope)].iloc[0]
        assert marks[name] == (row["first"], row["last"])
    unsaid = selection.assign(first=np.nan, last=np.nan)
    assert atlasfigures.choices_of(unsaid, wanted) == {}
    with pytest.raises(ValueError, match=r"no \('fisher', 'blocks of length 5'\)"):
        atlasfigures.choices_of(selection, {"fisher": "blocks of length 5"})
    assert atlasfigures.ends(13, 3) == {"first 3": (1, 3), "last 3": (11, 13)}
    with pytest.raises(ValueError, match="there are 13 layers"):
        atlasfigures.ends(13, 14)


# --- margins --------------------------------------------------------------------------------------------------------
def test_gains_of_equal_length_stand_over_the_middle_of_their_blocks():
    atlas = make_atlas(coarse=True)
    ax = atlasfigures.gain_by_position(atlas, lengths=[3, 5])
    three, five = ax.get_lines()[:2]
    part = atlas[atlas["length"] == 3].sort_values("first")
    np.testing.assert_allclose(three.get_ydata(), part["gain"])
    np.testing.assert_allclose(three.get_xdata(), part["first"] + 1, atol=0.2)  # beside each other
    ends = atlas[atlas["length"] == 5].set_index("first")["gain"]
    drawn = dict(five.get_xydata()[np.isfinite(five.get_ydata())].tolist())
    assert {round(x): y for x, y in drawn.items()} == {3: ends[1], 11: ends[9]}
    assert len(five.get_xdata()) == 9, "what was not computed is a gap, not a line across"
    bars = [path.vertices[:, 1] for path in ax.collections[0].get_paths()]
    np.testing.assert_allclose(bars, part[["gain_low", "gain_high"]])
    assert [line.get_label() for line in atlasfigures.gain_by_position(atlas).get_lines()[:1]] == ["3 blocks"]
    full = atlasfigures.gain_by_position(make_atlas()).get_lines()[:3]
    assert [line.get_label() for line in full] == ["1 block", "3 blocks", "9 blocks"]
    with pytest.raises(ValueError, match="no block of length 14 was computed"):
        atlasfigures.gain_by_position(atlas, lengths=[14])


@pytest.mark.parametrize("n", [8, 13])
def test_the_front_holds_the_blocks_that_no_cheaper_block_beats(n):
    atlas = make_atlas(n, seed=n)
    ax = atlasfigures.gain_by_parameters(atlas, budget=40, marks={"one": (2, 3), "same": (2, 3), "none": (4, 99)})
    front = [
        (r.share, r.gain)
        for r in atlas.itertuples()
        if not any((o.share <= r.share and o.gain > r.gain) for o in atlas.itertuples())
    ]
    line = next(line for line in ax.get_lines() if "no more parameters" in line.get_label())
    np.testing.assert_allclose(line.get_xydata(), sorted(front))
    place = atlas.set_index(["first", "last"]).loc[(2, 3), ["share", "gain"]].to_numpy(float)
    rings = {c.get_label(): c for c in ax.collections if c.get_label() in ("one: 2–3", "same: 2–3")}
    assert len(rings) == 2 and not any("none" in t.get_text() for t in ax.get_legend().get_texts())
    for ring in rings.values():
        np.testing.assert_allclose(ring.get_offsets()[0], place)
    assert rings["one: 2–3"].get_sizes() < rings["same: 2–3"].get_sizes()
    budget = next(line for line in ax.get_lines() if line.get_label() == "budget (40 %)")
    assert set(budget.get_xdata()) == {40}
    assert ("log" in ax.get_xlabel()) == (atlas["share"].max() > 10 * atlas["share"].min())
    limits = [path.vertices[:, 1] for path in ax.collections[0].get_paths()]
    assert sorted(map(min, limits)) == pytest.approx(sorted(atlas["gain_low"]))


@pytest.mark.parametrize("criterion", ["released", "fisher"])
def test_a_criterion_that_is_right_rises_to_the_right(criterion):
    atlas, scores = make_atlas(), make_scores()
    ax = atlasfigures.score_against_gain(scores, atlas, criterion)
    own = scores[scores["criterion"] == criterion]["score"].to_numpy()
    mean = np.array([own[r.first - 1 : r.last].mean() for r in atlas.itertuples()])
    np.testing.assert_allclose(ax.collections[1].get_offsets(), np.column_stack([mean, atlas["gain"]]))
    sign = -1 if CRITERIA[criterion] == "low" else 1
    rho = stats.spearmanr(sign * mean, atlas["gain"]).statistic
    assert f"Spearman {rho:+.2f}".replace("-", MINUS) in ax.get_title() and "91 blocks" in ax.get_title()
    assert ax.xaxis_inverted() == (sign == -1) == ("reversed" in ax.get_xlabel())
    np.testing.assert_array_equal(ax.collections[1].get_array(), atlas["last"] - atlas["first"] + 1)


def test_blocks_without_a_score_are_left_out():
    scores = make_scores()
    scores.loc[(scores["criterion"] == "fisher") & (scores["layer"] == "conv2"), "score"] = np.nan
    ax = atlasfigures.score_against_gain(scores, make_atlas(), "fisher")
    assert len(ax.collections[1].get_offsets()) == 1 + 66, "conv1, and the blocks of conv3 to conv13"
    with pytest.raises(StudyError, match="'fisher' has no score for any block"):
        atlasfigures.score_against_gain(scores.assign(score=np.nan), make_atlas(), "fisher")
    with pytest.raises(ValueError, match="no criterion 'luck'; there are released, "):
        atlasfigures.score_against_gain(scores, make_atlas(), "luck")


# --- criteria -------------------------------------------------------------------------------------------------------
def dots(ax):
    """(x, y, hollow) of every dot with a place, by height."""
    found = []
    for c in (c for c in ax.collections if isinstance(c, PathCollection)):
        for x, y in c.get_offsets():
            hollow = len(c.get_facecolor()) == 0 or bool(np.allclose(c.get_facecolor()[0][:3], 1))
            found.append((float(x), float(y), hollow))
    return sorted(found, key=lambda d: d[1])


def test_selection_is_sorted_beside_nulls_and_baselines():
    table = make_selection()
    table.loc[table["criterion"] == "cka_drift", ["spearman", "regret", "first", "last"]] = np.nan
    left, right = selectionfigures.selection_figure(table.assign(shots=10), every=True)
    code = {criterion_label(name): name for name in table["criterion"].unique()}
    names = [code[t.get_text()] for t in left.get_yticklabels()]
    rho = table[table["scope"] == "all blocks"].set_index("criterion")["spearman"]
    ranked = [n for n in rho.drop("cka_drift").sort_values(ascending=False).index if not n.startswith("null:")]
    baselines = ("depth", "shallow", "size", "small", "random")
    assert names == [n for n in ranked if n not in baselines] + ["cka_drift"] + [n for n in ranked if n in baselines]
    found = {(names[round(y)], hollow): x for x, y, hollow in dots(left)}
    wanted = {(n, False): rho[n] for n in ranked} | {(n, True): rho[f"null:{n}"] for n in CRITERIA}
    assert found == pytest.approx(wanted)
    assert [t.get_text() for t in left.texts] == ["cannot rank"] and left.texts[0].get_position()[1] == names.index(
        "cka_drift"
    )
    scopes = table.set_index(["criterion", "scope"])["regret"]
    found = {(names[round(y)], hollow): x for x, y, hollow in dots(right)}
    wanted = {(n, hollow): scopes[n, s] for n in ranked
              for hollow, s in ((False, "blocks of length 3"), (True, "within budget"))}  # fmt: skip
    assert found == pytest.approx(wanted)
    chosen = table[(table["criterion"] == "fisher") & (table["scope"] == "blocks of length 3")].iloc[0]
    words = [t.get_text() for t in right.texts if t.get_position()[1] == names.index("fisher")]
    assert words[0] == f"{chosen['first']:.0f}–{chosen['last']:.0f}" and len(words) == 2


def test_the_main_figures_hold_four_criteria_and_the_appendix_all():
    names = (*CRITERIA, "snr", "weight_change")
    left, _ = selectionfigures.selection_figure(make_selection(names=names))
    drawn = [t.get_text() for t in left.get_yticklabels()]
    main = [criterion_label(name) for name in selectionfigures.MAIN]
    assert set(main) <= set(drawn) and criterion_label("snr") not in drawn and criterion_label("size") not in drawn
    assert len(selectionfigures.score_panels(make_scores(names=names))) == 4
    assert len(selectionfigures.score_panels(make_scores(names=names), every=True)) == 7
    own = make_scores(names=("mine", "yours"))
    assert len(selectionfigures.score_panels(own)) == 2, "where none of the four is there, all are drawn"


def test_selection_of_several_lengths_or_shots_must_be_told_apart():
    both = pd.concat([make_selection(3), make_selection(5)])
    with pytest.raises(ValueError, match="there are blocks of length 3, blocks of length 5"):
        selectionfigures.selection_figure(both.drop_duplicates(["criterion", "scope"]))
    with pytest.raises(ValueError, match="there are 5, 10"):
        selectionfigures.selection_figure(pd.concat([make_selection().assign(shots=s) for s in (5, 10)]))


def test_score_panels_show_scores_beside_their_null_and_leave_gaps():
    scores = make_scores()
    scores.loc[scores["layer"] == "conv4", "score"] = np.nan
    fisher = scores["criterion"] == "fisher"
    scores.loc[fisher, "score"] = np.geomspace(1e-6, 1, 13)
    axes = selectionfigures.score_panels(scores, chosen={"reinit": (2, 4)}, every=True)
    assert [ax.get_title() for ax in axes] == [criterion_label(name) for name in CRITERIA]
    for ax, (name, inherit) in zip(axes, CRITERIA.items(), strict=True):
        part = scores[scores["criterion"] == name]
        null, own = ax.get_lines()
        np.testing.assert_array_equal(own.get_ydata(), part["score"])
        np.testing.assert_array_equal(null.get_ydata(), part["null"])
        assert f"inherit where {inherit}" in [t.get_text() for t in ax.texts]
        assert ax.get_ylabel() and ("(log)" in ax.get_ylabel().replace("\n", " ")) == (ax.get_yscale() == "log")
    assert axes[0].get_yscale() == "linear"
    shaded = [(p.get_x(), p.get_x() + p.get_width()) for p in axes[3].patches]
    assert shaded == [(1.5, 4.5)] and not axes[0].patches
    hidden = [ax for ax in axes[0].figure.axes if not ax.get_visible()]
    assert len(axes) == 5 and len(hidden) == 1
    lowest = [ax for ax in axes if any(t.label1.get_visible() for t in ax.xaxis.get_major_ticks())]
    assert lowest == [axes[2], axes[3], axes[4]], "the lowest panel of each column has numbers"


# --- controls, claims, defects --------------------------------------------------------------------------------------
def drawn_rows(ax, names):
    return {names[int(y)]: x for x, y, _ in dots(ax)}


def test_controls_are_paired_with_scratch_and_sorted_in_groups():
    controls = make_controls()
    left, right = claimfigures.controls_figure(controls)
    names = [t.get_text() for t in left.get_yticklabels()]
    for ax, block in ((left, "learngene"), (right, "first")):
        part = controls[controls["block"] == block].groupby(["method", "target_task"])["accuracy"].mean().unstack()
        gains = part.sub(part.loc["scratch"])
        wanted = {control_label(m): gains.loc[m].mean() for m in CONTROLS}
        assert drawn_rows(ax, names) == pytest.approx(wanted)
        half = stats.t.ppf(0.975, 11) * stats.sem(gains.loc["frozen"])
        line = next(c for c in ax.get_lines() if list(c.get_ydata()) == [names.index(control_label("frozen"))] * 2)
        np.testing.assert_allclose(line.get_xdata(), gains.loc["frozen"].mean() + np.array([-half, half]))
        reference = next(c for c in ax.get_lines() if "real block" in c.get_label())
        assert reference.get_xdata()[0] == pytest.approx(gains.loc["inherit"].mean())
        if ax is left:
            order = [wanted[n] for n in names]
            assert names[0] == control_label("inherit") and order[1:8] == sorted(order[1:8], reverse=True)
        assert len([t for t in ax.texts if "[" in t.get_text()]) == len(CONTROLS)
    wanted = [control_label(name) for name in ("frozen", "ewc:0", "ewc:10", "l2:0.1")]
    assert names[8:12] == wanted, "strengths keep their order"
    assert all(n.startswith("ancestor") for n in names[12:]) and "(conv 11–13), n = 12 tasks" in left.get_title()


def test_only_blocks_with_a_gain_are_explained():
    controls = make_controls()
    flat = controls["block"].eq("learngene") & controls["method"].ne("scratch")
    scratch = controls[controls["method"] == "scratch"].set_index(["block", "target_task", "init"])["accuracy"]
    keys = pd.MultiIndex.from_frame(controls.loc[flat, ["block", "target_task", "init"]])
    controls.loc[flat, "accuracy"] = scratch.loc[keys].to_numpy() + np.where(
        controls.loc[flat, "target_task"] % 2, 1, -1
    )
    assert [ax.get_title().split(" (")[0] for ax in claimfigures.controls_figure(controls)] == ["first blocks"]
    assert len(claimfigures.controls_figure(controls, every=True)) == 2
    assert len(claimfigures.controls_figure(make_controls(gain=0.0))) == 1, "the largest, where none has a gain"


def test_controls_against_the_block_itself_show_what_decides():
    controls = make_controls()
    left, _ = claimfigures.controls_figure(controls, reference="inherit")
    names = [t.get_text() for t in left.get_yticklabels()]
    part = controls[controls["block"] == "learngene"].groupby("method")["accuracy"].mean()
    found = drawn_rows(left, names)
    assert found[control_label("moment_matched")] == pytest.approx(part["moment_matched"] - part["inherit"])
    assert found[control_label("scratch")] == pytest.approx(part["scratch"] - part["inherit"])
    assert control_label("inherit") not in names
    assert "the real block" in left.get_xlabel()
    with pytest.raises(ValueError, match="no reference 'luck'"):
        claimfigures.controls_figure(controls, reference="luck")


def test_scratch_that_is_kept_once_serves_both_blocks_and_gaps_are_named():
    controls = make_controls()
    scratch = controls["method"] == "scratch"
    once = controls[~scratch | (controls["block"] == "learngene")]
    once = once[(once["block"] != "first") | (once["method"] != "frozen")]
    wanted, found = claimfigures.controls_figure(controls)[0], claimfigures.controls_figure(once)
    assert dots(found[0]) == dots(wanted)
    row = [t.get_text() for t in found[0].get_yticklabels()].index(control_label("frozen"))
    assert "not computed" in [t.get_text() for t in found[1].texts if t.xy[1] == row]


def test_claims_say_their_verdict_and_units_do_not_share_an_axis():
    claims = make_claims()
    axes = claimfigures.claims_figure(claims)
    assert [ax.get_xlabel() for ax in axes] == [claimfigures.UNITS[unit][0] for unit in ("points", "rho", "AUROC")]
    for ax, unit in zip(axes, ("points", "rho", "AUROC"), strict=True):
        part = claims[claims["unit"] == unit].reset_index(drop=True)
        assert [t.get_text().split(":")[0] for t in ax.get_yticklabels()] == list(part["claim"])
        np.testing.assert_allclose(
            [c.get_offsets()[0] for c in ax.collections], list(zip(part["estimate"], part.index, strict=True))
        )
        for y, row in part.iterrows():
            words = [t for t in ax.texts if t.xy[1] == y]
            assert words[0].get_text().startswith(row["verdict"]) and f"n = {row['n']}" in words[1].get_text()
            assert words[0].get_color() == claimfigures.VERDICTS[row["verdict"]][0]
            lines = [line for line in ax.get_lines() if y - 0.5 < np.mean(line.get_ydata()) < y + 0.5]
            spans = [list(line.get_xdata()) for line in lines]
            assert [row["low"], row["high"]] in spans and [row["minimum"]] * 2 in spans
        assert not any(a is not ax and ax.get_shared_x_axes().joined(ax, a) for a in axes)
    assert "(n = 85 would decide)" in axes[0].texts[4].get_text()
    lines = [[line.get_xdata()[0] for line in ax.get_lines() if list(line.get_ydata()) == [0, 1]] for ax in axes]
    assert lines == [[0], [0], [50]] and axes[2].get_xlim()[0] > 40, "an AUROC is seen against chance"
    assert axes[0].figure.get_supxlabel() == "scope: these novel classes and this ancestor"


def test_claims_without_units_have_an_axis_each_and_unknown_verdicts_are_refused():
    claims = make_claims()
    bare = claims.drop(columns=["unit", "minimum", "needed", "text"])
    axes = claimfigures.claims_figure(bare)
    names = [t.get_text() for ax in axes for t in ax.get_yticklabels()]
    assert len(axes) == len(claims) and names == list(claims["claim"])
    two = claimfigures.claims_figure(claims.assign(scope=["new classes", *["new ancestors"] * 4]))
    assert two[0].figure.get_supxlabel() == "scope: new ancestors\n* new classes"
    names = [t.get_text().split(":")[0] for ax in two for t in ax.get_yticklabels()]
    assert names == ["H1*", "H2", "H4", "H3", "H8"], "a sign leads to the scope that is not the common one"
    idle = claims.assign(estimate=claims["estimate"].where(claims["claim"] != "H4"))
    axes = claimfigures.claims_figure(idle)
    assert "without an estimate: H4" in axes[0].figure.get_supxlabel() and len(axes[0].get_yticklabels()) == 2
    with pytest.raises(ValueError, match="unknown verdict 'maybe'; there are supported"):
        claimfigures.claims_figure(claims.assign(verdict="maybe"))


def test_claims_can_be_picked_and_have_units_that_a_person_can_read():
    claims = make_claims()
    per_million = claims.assign(unit="points per million parameters", estimate=-1282.0, low=-1400.0, high=-1100.0)
    (ax,) = claimfigures.claims_figure(per_million, only=["H1"])
    assert (
        ax.get_xlabel() == "points per 1,000 inherited parameters" and ax.collections[0].get_offsets()[0][0] == -1.282
    )
    assert [t.get_text().split(":")[0] for t in ax.get_yticklabels()] == ["H1"]
    with pytest.raises(ValueError, match="no claim 'H77'; there are H1"):
        claimfigures.claims_figure(claims, only=["H77"])


def test_an_undecided_claim_beyond_its_line_says_that_another_condition_fails():
    claims = make_claims().assign(verdict="undecided", needed=np.nan)
    words = claimfigures.claims_figure(claims)[0].texts[0].get_text()
    assert words == "undecided (another condition fails)"


def test_defects_stand_between_none_and_all_with_what_they_choose():
    table = make_released()
    left, right = claimfigures.released_figure(table)
    code = {label: name for name, label in DEFECT_LABELS.items()} | {"norm gap": "norm_gap", "task leak": "task_leak"}
    code["optimiser rebuilt"] = "optimiser_rebuilt"
    names = [code[t.get_text()] for t in left.get_yticklabels()]
    assert names == ["none", *[d for d in table["defects"] if d not in ("none", "all")], "all"]
    rows = table.set_index("defects").loc[names]
    for method, points in zip(("scratch", "learngene"), left.collections, strict=True):
        np.testing.assert_allclose(points.get_offsets(), np.column_stack([rows[method], range(8)]))
    assert [x for x, _, _ in dots(right)] == pytest.approx(list(rows["gain"]))
    words = {t.xy[1]: t for t in right.texts if t.get_text().startswith("conv")}
    assert [words[y].get_text() for y in range(8)] == list(rows["chosen"])
    bold = [words[y].get_fontweight() == "bold" for y in range(8)]
    assert bold == list(rows["chosen"] != rows.loc["none", "chosen"]) and sum(bold) == 2
    assert "n = 20 tasks" in left.get_title()
