"""The table of what each defect of the released scripts does."""

import functools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from toys import toy_config, toy_images

from learngene_core.analysis import released, released_table
from learngene_core.analysis.defects import DEFECTS
from learngene_core.analysis.statistics import paired_interval
from learngene_core.errors import Diverged, StudyError
from learngene_core.fewshot import evaluate_few_shot
from learngene_core.learngene import cut_learngene
from learngene_core.runs.run import Run
from learngene_core.study.chain import Chain

SMALL = {"layers": ("conv11", "conv12", "conv13"), "n_source_tasks": 2, "first_task_epochs": 1, "null_networks": 2}


class Toy(Chain):
    """The chain on toy images."""

    @functools.cached_property
    def images(self):
        return toy_images()


def chain_of(folder, **changes):
    cfg = {**SMALL, "n_target_tasks": 2, "individual_epochs": 1, "shots": (4, 2), "n_inits": 2, **changes}
    return Toy(Run.open(toy_config(**cfg), folder))


def counted(trained):
    """`fit` of individuals, noting every call's `where`."""
    fit = released.fit

    def noted(*rest, **options):
        trained.append(options["where"])
        yield from fit(*rest, **options)

    return noted


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A chain whose table is there, and how many individuals were trained for it."""
    chain, trained = chain_of(tmp_path_factory.mktemp("released") / "run"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(released, "fit", counted(trained))
        chain.released  # noqa: B018 (computed when asked for)
    return chain, trained


def test_the_table_has_none_each_and_all(finished):
    chain, trained = finished
    table = chain.released.set_index("defects")
    assert list(table.index) == ["none", *DEFECTS, "all"]
    assert (table["n_tasks"] == 2).all() and not table["note"].any()
    assert table[["scratch", "learngene", "learngene_ewc", "closed"]].stack().between(0, 100).all()
    assert np.allclose(table["gain"], table["learngene"] - table["scratch"])
    assert (table["gain_low"] <= table["gain"]).all() and (table["gain"] <= table["gain_high"]).all()
    # collectives of their own where a defect reaches them, and nowhere else
    own = {p.name for p in (chain.run.path / "released").iterdir()}
    assert own == {n for n, d in DEFECTS.items() if "collective" in d.touches} | {"all"}
    same = [n for n in ["none", *DEFECTS] if n not in own]
    assert table.loc[same, "closed"].nunique() == 1
    assert table.loc["zero_ewc", "learngene_ewc"] == table.loc["none", "learngene"]
    for name in ("leak", "zero_ewc", "epoch_ewc"):
        assert table.loc[name, "scratch"] == table.loc["none", "scratch"]
    for name in ("zero_ewc", "epoch_ewc"):
        assert table.loc[name, "learngene"] == table.loc["none", "learngene"]
    assert table.loc["fixed_layers", "chosen"] == table.loc["all", "chosen"] == "conv11-conv13"
    assert len(trained) < 2 * 3 * len(table)  # what is not touched is not trained again
    assert not (chain.run.path / ".parts" / "released").exists()


def test_the_row_of_no_defect_is_the_correct_study(finished):
    chain, _ = finished
    row = chain.released.set_index("defects").loc["none"]
    cfg = chain.cfg.replace(criterion="released_relative", layers=(), n_inits=1, shots=(4,), ewc_form="proximal")
    gene = cut_learngene(chain.collective, cfg)
    assert row["chosen"] == f"{gene.layers[0]}-{gene.layers[-1]}"
    accuracy = {}
    for method in ("scratch", "learngene", "learngene_ewc"):
        alone = evaluate_few_shot(gene, chain.collective, chain.images, chain.target, cfg, methods=(method,))
        accuracy[method] = alone[alone["family"] == "light"]["accuracy"].to_numpy()
        assert row[method] == pytest.approx(accuracy[method].mean())
    gain = paired_interval(accuracy["learngene"], accuracy["scratch"])
    assert row[["gain", "gain_low", "gain_high"]].tolist() == pytest.approx([gain.estimate, gain.low, gain.high])


def test_all_defects_are_one_run_with_all_of_them(finished, tmp_path):
    """A run whose configuration has every defect (as preset as-released) is that row, and needs a sound collective."""
    chain, _ = finished
    row = chain.released.set_index("defects").loc["all"]
    chosen = {"defects": tuple(DEFECTS), "layers": (), "n_inits": 1, "shots": (4,), "ewc_form": "proximal"}
    run = chain_of(tmp_path / "run", **chosen)
    light = run.results[run.results["family"] == "light"]
    inherits = light[light["method"] == "learngene"]
    assert set(inherits["block"]) == {row["chosen"]} == {f"{run.chosen[0]}-{run.chosen[-1]}"}
    means = light[light["block"] == row["chosen"]].groupby("method")["accuracy"].mean()
    for method in ("scratch", "learngene", "learngene_ewc"):
        assert means[method] == pytest.approx(row[method])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(released_table, "VARIANTS", {"none": (), "all": tuple(DEFECTS)})
        again = run.released
    assert [p.name for p in (run.run.path / "released").iterdir()] == ["none"]
    wanted = chain.released[chain.released["defects"].isin(["none", "all"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, wanted)


def test_a_stopped_comparison_goes_on_and_ends_the_same(tmp_path, monkeypatch, finished):
    names = ("double_softmax", "leak")
    monkeypatch.setattr(released_table, "VARIANTS", {"none": (), **{n: (n,) for n in names}})
    calls, fit = [], released.fit

    def stops(*rest, **options):
        calls.append(options["where"])
        if len(calls) == 5:
            raise KeyboardInterrupt
        yield from fit(*rest, **options)

    monkeypatch.setattr(released, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        chain_of(tmp_path / "run").released  # noqa: B018 (computed when asked for)
    chain = chain_of(tmp_path / "run")
    assert not chain.run.done("released")
    monkeypatch.setattr(released, "train_released", None)  # the collectives are there
    table = chain.released
    assert calls[5].startswith("target task 1") and calls[6].startswith("target task 2")  # learngene_ewc of "none"
    # two tasks each: the rest of "none"; what inherits under double_softmax (scratch, if other layers are chosen) and leak
    assert len(calls[5:]) in (2 + 4 + 4, 2 + 6 + 4)
    wanted = finished[0].released[finished[0].released["defects"].isin(["none", *names])].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, wanted)


def test_a_collective_that_is_not_finite_is_a_row_with_a_note(tmp_path, monkeypatch):
    def spoil(net, *_, **__):
        raise Diverged("the loss of source task 2 is not finite")

    monkeypatch.setattr(released_table, "VARIANTS", {"none": (), "bn_gap": ("bn_gap",)})
    monkeypatch.setattr(released, "widen_with_gap", spoil)
    table = chain_of(tmp_path / "run").released.set_index("defects")
    assert "source task 2 is not finite" in table.loc["bn_gap", "note"] and table.loc["none", "note"] == ""
    assert table.loc["bn_gap", ["scratch", "learngene", "gain", "closed"]].isna().all()
    assert (table.loc["bn_gap", "n_tasks"], table.loc["bn_gap", "chosen"]) == (0, "")
    assert "bn_gap: the loss of source task 2" in released_table.released_text(table.reset_index())


def test_individuals_that_are_not_finite_count_at_chance(tmp_path, monkeypatch):
    def spoil(self, stack, *_):
        with torch.no_grad():
            next(stack.parameters()).fill_(math.nan)

    monkeypatch.setattr(released_table, "VARIANTS", {"none": (), "epoch_ewc": ("epoch_ewc",)})
    monkeypatch.setattr(released.EpochPenalty, "take", spoil)
    table = chain_of(tmp_path / "run", individual_epochs=2).released.set_index("defects")
    assert table.loc["epoch_ewc", "learngene_ewc"] == 50
    note = table.loc["epoch_ewc", "note"]
    assert "learngene_ewc: 2 of 2 at chance" in note and "target task 1" in note and table.loc["none", "note"] == ""


def test_other_errors_are_not_taken_for_a_result(tmp_path, monkeypatch):
    def full(*_, **__):
        raise StudyError("no space left, the loss is not finite")  # a type counts, not words

    chain = chain_of(tmp_path / "run")
    chain.collective  # noqa: B018 (trained when asked for)
    for name, variants in (("train_released", {"none": (), "bn_gap": ("bn_gap",)}), ("fit", {"none": ()})):
        monkeypatch.setattr(released_table, "VARIANTS", variants)
        with monkeypatch.context() as patch:
            patch.setattr(released, name, full)
            with pytest.raises(StudyError, match="no space left"):
                chain.released  # noqa: B018 (computed when asked for)
    assert not chain.run.done("released")
