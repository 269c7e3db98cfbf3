"""The block that a criterion chooses in the explorer is the selection table's, framed on the map and told in numbers."""

import itertools

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figuretables import make_atlas, make_scores, true_gain

from learngene_core.analysis.blocks import atlas_table
from learngene_core.analysis.selection import selection_table
from learngene_core.explorer import blocks as atlasexplore

MINUS = "\N{MINUS SIGN}"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def centre(patch):
    """The block in whose cell a patch stands."""
    x, y = patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2
    return int(y) + 1, int(x) + 1


N_LAYERS = 6


def make_cells(n_tasks=5, seed=0):
    """atlas_cells.csv of 6 layers: scratch and every block on target tasks and on pseudo-tasks."""
    rng, rows = np.random.default_rng(seed), []
    blocks = [(0, 0), *itertools.combinations_with_replacement(range(1, N_LAYERS + 1), 2)]
    for group, task, (first, last) in itertools.product(("novel", "open_world"), range(1, n_tasks + 1), blocks):
        gain = true_gain(first, last, N_LAYERS) if first else 0
        rows.append({"group": group, "first": first, "last": last, "shots": 10, "target_task": task, "init": 0,
                     "accuracy": 40 + gain + rng.normal(0, 6)})  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("budget", [20.0, 55.0])
def test_the_explorer_chooses_as_the_selection_table_does(budget):
    cells, scores = make_cells(), make_scores(N_LAYERS)
    atlas = atlas_table(cells, [8, 8, 16, 16, 32, 32], [f"conv{i}" for i in range(1, N_LAYERS + 1)])
    table = selection_table(cells, atlas, scores, 2, budget, n_resamples=10).set_index(["criterion", "scope"])
    for name, values in atlasexplore.predictions(atlas, scores).items():
        for length, within, scope in ((2, 100.0, "blocks of length 2"), (atlasexplore.ANY, budget, "within budget")):
            place, places = atlasexplore.choose(atlas, values, name, length, within)
            assert atlas.loc[place, ["first", "last"]].tolist() == table.loc[(name, scope), ["first", "last"]].tolist()
            assert place in places and (atlas.loc[places, "share"] <= within + 1e-9).all()


def test_of_equal_predictions_the_deepest_block_is_taken():
    atlas, scores = make_atlas(), make_scores()
    flat = scores.assign(
        score=(scores["layer"] == "conv1").astype(float)
    )  # low is good: all but the first block of three
    values = atlasexplore.predictions(atlas, flat)["released"]
    place, _ = atlasexplore.choose(atlas, values, "released", 3, 100.0)
    assert atlas.loc[place, ["first", "last"]].tolist() == [11, 13]


def test_the_choice_is_framed_and_told_in_numbers():
    atlas, scores = make_atlas(), make_scores()
    atlas.loc[(atlas["first"] == 5) & (atlas["last"] == 7), "gain"] = 50.0
    ax = atlasexplore.draw_choice(atlas, scores, criterion="released", length=3)
    own = scores[scores["criterion"] == "released"]["score"].to_numpy()
    mean = {(r.first, r.last): own[r.first - 1 : r.last].mean() for r in atlas.itertuples()}
    gain = {(r.first, r.last): r.gain for r in atlas.itertuples()}
    three = [b for b in mean if b[1] - b[0] == 2]
    chosen, best = min(three, key=mean.get), max(three, key=gain.get)
    frames = {p.get_label().split(":")[0]: centre(p) for p in ax.patches}
    assert frames == {"chosen by the criterion": chosen, "best it could choose": best}
    row = atlas.set_index(["first", "last"]).loc[chosen]
    ranks = sum(v <= mean[chosen] for v in mean.values()), sum(v >= gain[chosen] for v in gain.values())
    words = ax.figure.texts[0].get_text().replace(MINUS, "-")
    assert f"predicted rank {ranks[0]} of 91, real rank {ranks[1]} of 91" in words
    assert f"real gain {row['gain']:+.1f} [{row['gain_low']:+.1f}, {row['gain_high']:+.1f}] points" in words
    assert f"{row['parameters']:,.0f} parameters inherited ({row['share']:.1f} %)" in words


def test_where_nothing_can_be_chosen_the_line_says_why():
    atlas, scores = make_atlas(), make_scores()
    holes = scores.assign(score=scores["score"].where(scores["layer"] != "conv2"))
    cases = [
        (scores, {"length": 12, "budget": 1.0}, "within the budget"),
        (holes, {}, "no score for some layer"),
        (scores.assign(score=1.0), {}, "the same for every block"),
    ]
    for table, state, why in cases:
        ax = atlasexplore.draw_choice(atlas, table, **state)
        assert ax.figure.texts[0].get_text().startswith("no choice") and why in ax.figure.texts[0].get_text()
        assert not ax.patches
    with pytest.raises(ValueError, match="unknown criterion 'luck'; there are released"):
        atlasexplore.draw_choice(atlas, scores, criterion="luck")
