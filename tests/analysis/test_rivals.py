"""The table of every criterion for every block, what it looks at and what not, and regret against brute force."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from toys import toy_config, toy_images

from learngene_core.analysis.rivals import COLUMNS, PREFIX, criteria_of, criteria_table, regret_table
from learngene_core.analysis.transfer import TRANSFER
from learngene_core.analysis.transplant import not_yet_seen
from learngene_core.criteria import CRITERIA, score
from learngene_core.data.division import divide, source_tasks, target_tasks
from learngene_core.runs import stages
from learngene_core.runs.run import Run
from learngene_core.runs.states import load_collective, load_state, task_folders


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished collective of three tasks of toy images: run, images, pseudo-tasks, source tasks, division, table."""
    cfg, images = toy_config(individual_epochs=1), toy_images()
    div = divide(images, cfg)
    sources, run = source_tasks(images, div, cfg), Run.open(cfg, tmp_path_factory.mktemp("rivals") / "run")
    stages.trained_collective(run, images, sources)
    pseudo = target_tasks(images, div, cfg, group="open_world", n_tasks=2)
    return run, images, pseudo, sources, div, criteria_of(run, images, pseudo, sources, div)


def again(made, images=None, before=True):
    run, own, pseudo, sources, div, _ = made
    state = load_state(task_folders(run)[-2])[0] if before else None
    return criteria_table(load_collective(run), images or own, pseudo, sources, div, run.cfg, before=state)


def test_every_criterion_has_a_row_for_every_block(made):
    table = made[-1]
    names = {*CRITERIA, *TRANSFER, "target_rgn", "target_snr", "transplant"}
    assert list(table.columns) == COLUMNS and set(table["criterion"]) == names
    assert (table.groupby("criterion").size() == 13 * 14 // 2).all()
    assert not table.duplicated(["criterion", "first", "last"]).any()
    groups = table.groupby("group")["criterion"].unique()
    assert set(groups["record"]) == set(CRITERIA)
    assert set(groups["network"]) == {"covariance_cka", "transplant"}
    seen = table[table["criterion"].isin(("logme", "h_score", "transplant", "target_rgn"))]
    assert np.isfinite(seen["score"]).all()


def test_scores_of_layers_are_means_and_scores_of_depths_add_up(made):
    run, *_, table = made
    layers = score(load_collective(run), "scaled_norm")["score"].to_numpy()
    scores = table.set_index(["criterion", "first", "last"])["score"]
    assert scores["scaled_norm", 4, 6] == pytest.approx(layers[3:6].mean())
    for name in TRANSFER:
        whole = scores[name, 1, 3] + scores[name, 4, 9] + scores[name, 10, 13]
        assert whole == pytest.approx(scores[name, 1, 13], abs=1e-9)


def test_nothing_but_support_images_of_pseudo_tasks_and_base_images_is_looked_at(made):
    """Noise in place of every other image of open-world and novel classes changes no number."""
    _, images, pseudo, _, div, table = made
    looked_at = {int(i) for task in pseudo for i in task.support.ravel()}
    names = np.array(images.class_names)[images.labels.numpy()]
    blind = [i for i in range(len(images)) if names[i] not in div.base and i not in looked_at]
    pixels = images.images.clone()
    pixels[blind] = torch.randint(256, pixels[blind].shape, dtype=torch.uint8)
    assert len(blind) > 100
    pd.testing.assert_frame_equal(again(made, dataclasses.replace(images, images=pixels)), table)


def test_novel_classes_choose_nothing(made):
    run, images, _, sources, div, _ = made
    novel = target_tasks(images, div, run.cfg)
    for tasks in (novel, []):
        with pytest.raises(ValueError, match="novel classes choose nothing"):
            criteria_table(load_collective(run), images, tasks, sources, div, run.cfg)


def test_a_joint_ancestor_has_no_transplant_and_everything_else(made):
    table, joint = made[-1], again(made, before=False)
    lost = joint["criterion"] == "transplant"
    assert joint["score"][lost].isna().all()
    pd.testing.assert_frame_equal(joint[~lost], table[~lost])
    assert len(not_yet_seen(made[4].base, made[3])) >= 3  # and there were classes to ask about


# regret ---------------------------------------------------------------------------------------------------------------
BLOCKS = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 4), (3, 4), (4, 4)]


def atlas_of(means, n_tasks=6, seed=0):
    """Cells and atlas of four layers, 25 % of the parameters each, with these gains in the mean."""
    rng, cells = np.random.default_rng(seed), []
    for task in range(1, n_tasks + 1):
        base = rng.normal(40, 5)
        for block, gain in zip([(0, 0), *BLOCKS], [0, *means], strict=True):
            cells.append(("novel", *block, 10, task, 1, base + gain + (rng.normal(0, 1) if block != (0, 0) else 0)))
    columns = ["group", "first", "last", "shots", "target_task", "init", "accuracy"]
    atlas = pd.DataFrame(BLOCKS, columns=["first", "last"]).assign(shots=10)
    atlas["length"] = atlas["last"] - atlas["first"] + 1
    return pd.DataFrame(cells, columns=columns), atlas.assign(share=25.0 * atlas["length"])


def rows_of(name, of, scores, inherit="high"):
    blocks = [(a, b) for a in range(1, 5) for b in range(a, 5)]
    return pd.DataFrame([(name, "network", of, a, b, scores(a, b), inherit) for a, b in blocks], columns=COLUMNS)


MEANS = [3.0, 9.0, 8.0, 12.0, 2.0, -1.0, 0.0]


def test_choices_gains_and_regret_by_brute_force():
    cells, atlas = atlas_of(MEANS)
    layer = np.array([0.0, 1.0, 2.0, 3.0])
    table = pd.concat(
        [
            rows_of("deep", "layers", lambda a, b: layer[a - 1 : b].mean()),
            rows_of("shallow", "layers", lambda a, b: layer[a - 1 : b].mean(), "low"),
            rows_of("whole", "block", lambda a, b: -abs(b - 2) - 10 * (a - 1)),
            rows_of("unknown", "block", lambda a, b: np.nan if a == 1 else 1.0),
            rows_of("flat", "block", lambda a, b: 1.0),
        ]
    )
    found = regret_table(cells, atlas, table, length=3, budget_percent=75).set_index(["scope", "criterion"])
    wide = cells.pivot(index="target_task", columns=["first", "last"], values="accuracy")
    gain = {block: (wide[block] - wide[0, 0]).to_numpy() for block in BLOCKS}

    def regret(scope, chosen):
        lost = []
        for task in range(6):
            others = [t for t in range(6) if t != task]
            best = max(scope, key=lambda b: gain[b][others].mean())
            lost.append(gain[best][task] - gain[chosen][task])
        return np.mean(lost)

    budget = [b for b in BLOCKS if b != (1, 4)]
    wanted = {
        ("blocks of length 3", "deep"): (2, 4),
        ("blocks of length 3", "shallow"): (1, 3),
        ("blocks of length 3", PREFIX): (1, 3),
        ("within budget", "deep"): (2, 4),  # not (4, 4): the budget is there to be spent
        ("within budget", "shallow"): (1, 3),
        ("within budget", "whole"): (1, 2),  # a score of whole blocks says where to stop
        ("within budget", PREFIX): (1, 3),
    }
    for (scope, name), block in wanted.items():
        row = found.loc[scope, name]
        assert (row["first"], row["last"]) == block
        assert row["chosen_gain"] == pytest.approx(gain[block].mean())
        assert row["regret"] == pytest.approx(regret([(1, 3), (2, 4)] if "length" in scope else budget, block))
        assert row["over_prefix"] == pytest.approx((gain[block] - gain[1, 3]).mean())
    for name in ("unknown", "flat"):
        assert found.loc["within budget", name][["first", "chosen_gain", "regret"]].isna().all()


def test_regret_is_zero_for_the_best_block_of_all_tasks():
    cells, atlas = atlas_of([0.0, 40.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    table = rows_of("good", "block", lambda a, b: float((a, b) == (1, 2)))
    row = regret_table(cells, atlas, table).set_index(["scope", "criterion"]).loc["within budget", "good"]
    assert (row["regret"], row["regret_low"], row["regret_high"]) == (0, 0, 0)
    assert (row["over_prefix"], row["n_tasks"], row["n_blocks"]) == (0, 6, 4)
