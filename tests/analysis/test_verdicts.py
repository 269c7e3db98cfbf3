"""From tables to verdicts: what the last stages write, read again without torch, and what reacts to what."""

import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from learngene_core import config
from learngene_core.analysis import claims, verdicts
from learngene_core.analysis.claims import DECIDED
from learngene_core.analysis.measures import MEASURES
from learngene_core.config import Config
from learngene_core.criteria import CRITERIA, score
from learngene_core.errors import StudyError, read_json
from learngene_core.record import Record
from learngene_core.runs.run import Run
from learngene_core.study.chain import Chain


@pytest.fixture(scope="module")
def judged(judged_run):
    return judged_run


@pytest.fixture(scope="module")
def tables(judged):
    return {name: pd.read_csv(judged / f"{name}.csv") for name in
            ("atlas_cells", "atlas", "layer_scores", "selection", "controls", "claims", "results", "openworld")}  # fmt: skip


def test_the_columns_that_others_read_are_there(tables):
    wanted = {
        "atlas": "first last shots gain gain_low gain_high n_tasks",
        "claims": "claim verdict estimate low high n scope",
        "layer_scores": "criterion layer score null null_sd z inherit",
        "controls": "family block method shots target_task init accuracy",
    }
    for name, columns in wanted.items():
        assert set(columns.split()) <= set(tables[name]), name
    assert set(tables["claims"]["verdict"]) <= {*DECIDED, "undecided", "not run"}
    light = tables["claims"].set_index("claim").loc["H1"]
    assert light["n_classes"] >= 5 and np.isfinite(light["class_low"])  # hits per class reach the claims
    assert (tables["atlas"]["n_tasks"] == 2).all() and len(tables["atlas"]) == 34


def test_every_criterion_has_a_score_and_a_null_for_every_layer(tables, judged):
    scores = tables["layer_scores"]
    assert set(scores["criterion"]) == {*CRITERIA, *MEASURES, "released@5e-10"}
    assert scores.groupby("criterion").size().eq(13).all()
    assert scores["null"].notna().all()
    other = score(Record.load(judged), "released", threshold=5e-10)
    mine = scores[scores["criterion"] == "released@5e-10"]
    np.testing.assert_allclose(mine["score"], other["score"])


def test_the_atlas_is_the_mean_of_its_cells(tables):
    cells = tables["atlas_cells"]
    novel = cells[cells["group"] == "novel"]
    mean = novel.groupby(["first", "last"])["accuracy"].mean()
    gain = tables["atlas"].set_index(["first", "last"])["gain"]
    np.testing.assert_allclose(gain, (mean - mean.loc[(0, 0)]).loc[gain.index], atol=1e-9)


def test_a_finished_run_is_read_without_torch(judged):
    code = (
        "import sys; from learngene_core.runs.run import Run; from learngene_core.config import Config; "
        "from learngene_core.study.chain import Chain; "
        f"c = Chain(Run.open(Config.preset('smoke'), {str(judged)!r})); c.verdicts; c.controls; "
        "c.layer_scores; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"


def test_a_share_changes_individuals_and_claims_and_neither_collective_nor_atlas(judged, tmp_path, capsys):
    path = shutil.copytree(judged, tmp_path / "run")
    cfg = Config.preset("smoke", inherited_share=10.0)
    with pytest.raises(StudyError, match=r"--redo reconstruct"):
        Run.open(cfg, path)
    run = Run.open(cfg, path, redo=["reconstruct"])  # the longest prefix within the share is an individual too
    capsys.readouterr()
    found = Chain(run).verdicts
    said = capsys.readouterr().out
    assert all(f"{stage}: found in the run folder" in said for stage in ("collective", "atlas", "controls", "measures"))
    chosen = found["selection"][found["selection"]["scope"] == "within budget"].dropna(subset=["first"])
    shares = found["atlas"].set_index(["first", "last"])["share"]
    assert all(shares.loc[(r.first, r.last)] <= 10 for r in chosen.itertuples() if r.criterion != "random")


def test_an_ancestor_can_be_added_later_and_costs_only_itself(judged, tmp_path, capsys):
    path = shutil.copytree(judged, tmp_path / "run")
    before = pd.read_csv(path / "controls.csv")
    cfg = Config.preset("smoke", ancestors=("single_task",), workers=1)
    table = Chain(Run.open(cfg, path)).controls
    old = table[~table["method"].str.startswith("ancestor")].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, before)
    new = table[table["method"] == "ancestor:single_task"]
    assert len(new) == 2 * 2 and set(new["block"]) == {"learngene", "first"}
    shape = read_json(path / "ancestors" / "single_task" / "collective" / "task_01" / "about.json")["shape"]
    assert tuple(shape["widths"]) == cfg.final_widths


def test_the_summary_names_the_recommended_block_and_every_claim(judged, tables):
    run = Run.open(Config.preset("smoke"), judged)
    text = claims.summary({k: tables[k] for k in ("atlas", "selection", "claims")}, run.cfg)
    assert text.startswith("recommended on pseudo-tasks, at most 50 % of the parameters: conv")
    assert all(claim in text for claim in tables["claims"]["claim"])


def test_widths_of_a_run_without_a_collective(tmp_path):
    with pytest.raises(StudyError, match="learngene collective"):
        verdicts.final_widths(Run.open(Config.preset("smoke"), tmp_path / "run"))


def test_recommended_is_a_criterion_that_can_be_asked_for(judged, tables, tmp_path):
    path = shutil.copytree(judged, tmp_path / "run")
    cfg = Config.preset("smoke", criterion="recommended")
    run = Run.open(cfg, path, redo=["criteria"])
    gene = Chain(run).learngene
    within = tables["atlas"][tables["atlas"]["share"] <= 50]
    best = within.sort_values(["pseudo_gain", "parameters"], ascending=[False, True]).iloc[0]
    assert gene.layers == tuple(f"conv{i}" for i in range(best["first"], best["last"] + 1))
    assert gene.notes["chosen_by"] == "recommended"
    assert run.done("atlas"), "the map does not depend on who chooses"
    narrow = cfg.replace(inherited_share=5.0)
    assert narrow.stage_hash("criteria") != cfg.stage_hash("criteria")
    plain = Config.preset("smoke")
    assert plain.replace(inherited_share=5.0).stage_hash("criteria") == plain.stage_hash("criteria")


def test_a_changed_claim_needs_a_new_verdict_and_nothing_else(judged, tmp_path, monkeypatch):
    text = claims.FILE.read_text(encoding="utf-8")
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "claims.yaml").write_text(text.replace("minimum: 2", "minimum: 3", 1), encoding="utf-8")
    monkeypatch.setattr(config, "__file__", str(tmp_path / "config.py"))
    run = Run.open(Config.preset("smoke"), judged)
    assert not run.done("claims")
    assert all(run.done(stage) for stage in ("collective", "reconstruct", "atlas", "controls", "measures"))
