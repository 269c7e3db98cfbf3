"""The kept criteria of CIFAR-100's ancestors and what their choices cost: recomputed from the kept tables, and what they say."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from learngene_core.analysis.ancestor_tables import WHO
from learngene_core.analysis.rivals import PREFIX

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "notebooks" / "results" / "ancestors"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("criteria_tool", ROOT / "notebooks" / "tools" / "criteria.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scores():
    return pd.read_csv(KEPT / "cifar100-criteria.csv.gz")


@pytest.fixture(scope="module")
def kept():
    return pd.read_csv(KEPT / "cifar100-regret.csv")


def test_the_regret_table_is_that_of_the_kept_tables(tool, kept):
    pd.testing.assert_frame_equal(tool.regret_of(KEPT), kept)


def test_every_ancestor_has_every_criterion_for_every_block(scores):
    ancestors = scores.groupby([*WHO])
    assert len(ancestors) == 12 and (ancestors["criterion"].nunique() == 15).all()
    assert (ancestors.size() == 15 * 91).all()
    lost = scores[scores["score"].isna()]
    # a joint ancestor has seen every base class, and has one task, over which nothing varies
    assert set(lost["criterion"]) == {"transplant", "released_cv", "released_tv"} and set(lost["ancestor"]) == {"joint"}


def test_gains_of_choices_by_hand(kept, scores):
    """One score of depths and one of layers, from the individuals' accuracies without the package."""
    atlas = pd.read_csv(KEPT / "cifar100-atlas.csv.gz")
    for kind, name, better in (("joint", "transrate", np.argmax), ("sequential", "relative_norm", np.argmin)):
        cells = atlas[atlas["ancestor"] == kind].groupby(["method", "first", "last"])["accuracy"].mean()
        gain = cells["inherit"] - cells["scratch"]
        inside = [b for b in gain.index if b[1] - b[0] == 2] if name == "relative_norm" else list(gain.index)
        # half of the parameters: conv1-9 and what is shorter, and every window of three
        inside = [b for b in inside if b[0] > 1 or b[1] < 10]
        own = scores[(scores["criterion"] == name) & (scores["ancestor"] == kind) & (scores["ancestor_seed"] == 0)]
        chosen = inside[better(own.set_index(["first", "last"])["score"].loc[inside].to_numpy())]
        where = kept.query("tasks == 'novel' and ancestor == @kind and criterion == @name and scope == 'within budget'")
        row = (where if name == "transrate" else kept.query(
            "tasks == 'novel' and ancestor == @kind and criterion == @name and scope == 'blocks of length 3'"
        )).iloc[0]  # fmt: skip
        assert (row["first"], row["last"]) == chosen
        assert row["chosen_gain"] == pytest.approx(gain[chosen], abs=1e-3)
        assert row["best_gain"] == pytest.approx(gain[inside].max(), abs=1e-3)


def test_nothing_beats_the_longest_prefix_on_novel_classes(kept):
    """The headline of the criteria: none chooses a block that gains more than the trivial rival's, in either scope."""
    novel = kept[kept["tasks"] == "novel"]
    assert (novel["over_prefix"].dropna() <= 0).all()
    rival = novel[novel["criterion"] == PREFIX]
    assert (rival["regret"] == 0).all() and (rival["chosen_gain"] == rival["best_gain"]).all()
    assert set(map(tuple, rival[["first", "last"]].to_numpy(int))) == {(1, 3), (1, 9)}
    within = novel[novel["scope"] == "within budget"].pivot(index="criterion", columns="ancestor", values="over_prefix")
    assert set(within.index[(within == 0).all(axis=1)]) == {PREFIX, "h_score"}  # only H-score finds it for both
    assert (within.loc["released"] < -10).all() and (within.loc["covariance_cka"] < -10).all()


def test_nor_over_ten_ancestors_on_the_pseudo_tasks_whose_support_images_the_criteria_saw(kept):
    pseudo = kept[(kept["tasks"] == "pseudo") & (kept["scope"] == "within budget")]
    over = pseudo.groupby(["ancestor", "criterion"])["over_prefix"].agg(["mean", "sem", "count"]).dropna()
    assert set(over["count"]) == {5} and len(pseudo[[*WHO]].drop_duplicates()) == 10
    assert not (over["mean"] - 2.776 * over["sem"] > 0).any()  # t interval over five ancestors
    assert over["mean"].max() < 0.2
