"""What a command costs is said before it starts, and how far it is while it runs; neither changes a result."""

import io
import json
import re
import sys
import time

import pytest
from conftest import snapshot

from learngene_core.config import Config
from learngene_core.errors import StudyError
from learngene_core.runs.run import Run
from learngene_core.study import cli, estimate, progress
from learngene_core.study.chain import Chain
from learngene_core.study.estimate import check_memory, stage_seconds

TINY = {
    "source_images": 8, "held_out_images": 4, "n_source_tasks": 3, "source_way": 3, "width_divisor": 64, "epochs": 2,
    "first_task_epochs": 4, "batch_size": 8, "fisher_images": 8, "null_networks": 2, "null_steps": 1, "workers": 1,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return Run.open(Config.preset("smoke", **TINY), tmp_path / "run")


# cost ---------------------------------------------------------------------------------------------------------------
@pytest.fixture
def steps(monkeypatch):
    """A step of the collective takes 1 s, one of all individuals of a task 10 s."""
    monkeypatch.setattr(estimate, "collective_step", lambda run: 1.0)
    monkeypatch.setattr(estimate, "stack_step", lambda run, family, n: 5.0)  # of two families


@pytest.mark.usefixtures("steps")
def test_cost_counts_the_steps_that_are_left(run):
    null, cost_of = 2 * 3 * 1 * 0.03, stage_seconds
    whole = 8 * 3 * 1.1 + null  # 3 steps an epoch: 24 images in batches of 8
    assert cost_of(run, "collective") == {"division": 4.0, "collective": pytest.approx(whole)}
    for number, epochs in ((1, 4), (2, 2)):
        folder = run.path / "collective" / f"task_{number:02d}"
        folder.mkdir(parents=True)
        (folder / "about.json").write_text("{}")
        assert cost_of(run, "collective")["collective"] == pytest.approx(whole * epochs / 8)
    cfg = run.cfg  # 4 tasks, 1 set of initial weights, 10 epochs of 50 images in batches of 25
    assert (cfg.n_target_tasks, cfg.n_inits, cfg.individual_epochs, cfg.shots, cfg.individual_batch) == (
        4,
        1,
        10,
        (10,),
        25,
    )
    assert cost_of(run, "reconstruct")["reconstruct"] == 4 * 20 * 10
    (run.path / ".parts" / "reconstruct").mkdir(parents=True)
    (run.path / ".parts" / "reconstruct" / "novel_001_1.json").write_text("{}")
    assert cost_of(run, "reconstruct")["reconstruct"] == 3 * 20 * 10
    # 2 tasks, 2 rates, 1 strength
    assert cost_of(run, "tune")["tune"] == 2 * 2 * 20 * 10


def test_cost_of_an_atlas_is_that_of_its_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "stack_step", lambda run, family, n: float(n))  # one second an arm
    own = {
        "atlas_tasks": 2,
        "atlas_pseudo_tasks": 1,
        "atlas_inits": 2,
        "atlas_epochs": 3,
        "atlas_shots": 6,
        "atlas_length": 3,
    }
    for blocks, n in (("coarse", 13 + 12 + 11 - 2), ("full", 13 * 14 / 2)):
        run = Run.open(Config.preset("smoke", **TINY, **own, atlas_blocks=blocks), tmp_path / blocks)
        # beside the blocks scratch; 3 tasks, 2 sets of initial weights, 3 epochs of 30 images in batches of 25
        assert stage_seconds(run, "atlas")["atlas"] == (n + 1) * 3 * 2 * 6


@pytest.mark.usefixtures("steps")
def test_cost_leaves_out_what_is_done_and_what_is_not_needed(run):
    later = {"reconstruct", "openworld", "measures", "atlas", "controls"}
    assert set(stage_seconds(run)) == {"division", "collective", *later}
    assert set(stage_seconds(run, "openworld")) == {"division", "collective", "openworld"}
    for stage in ("division", "collective"):
        with run.computing(stage, []):
            pass
    assert set(stage_seconds(run)) == later
    assert stage_seconds(run, "criteria") == {}


@pytest.mark.parametrize(
    "change",
    [{"hidden": (65_536, 65_536)}, {"batch_size": 65_536, "source_images": 0, "source_way": 64, "image_size": 512},
     {"min_width": 4096}, {"individual_hidden": (60_000, 60_000)}],
)  # fmt: skip
def test_networks_that_no_machine_holds_are_refused_before_anything_starts(change, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(estimate.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 16e9}))
    with pytest.raises(StudyError, match=r"need about [\d,]+ GB of memory and this machine has 16"):
        check_memory(Config.preset("smoke", data="folder", device="cpu", **change))
    for name in ("smoke", "lecture", "cifar-cpu", "cifar-joint", "paper"):
        check_memory(Config.preset(name, device="cpu"))


# position and time left ---------------------------------------------------------------------------------------------
def reported(run, stage, done, total, text):
    (run.path / "progress.json").write_text(json.dumps({"stage": stage, "done": done, "total": total, "text": text}))


def finish(run, stage):
    with run.computing(stage, []):
        pass


def test_position_by_hand(run):
    expected = {"collective": 60.0, "reconstruct": 30.0}
    assert progress.position(run, expected, {}) == (0.0, "collective")
    reported(run, "collective", 1, 4, "task 1 of 4")
    assert progress.position(run, expected, {}) == (15.0, "collective task 1 of 4")
    reported(run, "collective", 3, 4, "task 3 of 4")  # when half of it was there before, 60 s are for the other half
    assert progress.position(run, expected, {"collective": 0.5})[0] == 30.0
    finish(run, "collective")
    assert progress.position(run, expected, {}) == (60.0, "reconstruct")
    finish(run, "reconstruct")
    assert progress.position(run, expected, {}) == (90.0, "")


def test_a_stage_is_counted_also_where_one_before_it_in_the_list_comes_later(run):
    expected = {"measures": 5.0, "atlas": 50.0, "controls": 20.0}  # the notebook asks for the atlas first
    reported(run, "atlas", 3, 10, "3 of 10")
    assert progress.position(run, expected, {}) == (15.0, "atlas 3 of 10")
    finish(run, "atlas")
    assert progress.position(run, expected, {}) == (50.0, "measures")
    reported(run, "controls", 1, 2, "1 of 2")
    assert progress.position(run, expected, {}) == (60.0, "controls 1 of 2")


# what is shown ------------------------------------------------------------------------------------------------------
def waits_for(there):
    end = time.monotonic() + 20
    while not there() and time.monotonic() < end:
        time.sleep(0.05)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar_and_printed_lines_stay_whole(run, monkeypatch):
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with progress.stage_bar(run, {"collective": 50.0}, more=50.0) as notebook_done:
        run.progress("collective", 1, 2, "task 1 of 2")
        print("a line")
        notebook_done(25.0)
        waits_for(lambda: "task 1 of 2" in err.getvalue())
    assert sys.stdout is out
    assert out.getvalue() == "a line\n"
    lines = re.split(r"[\r\n]+", err.getvalue())
    assert any(line.startswith(" 50%") and "left, collective task 1 of 2" in line for line in lines), lines
    assert [line for line in lines if line.strip()][-1].startswith("100%")


def test_an_error_ends_the_bar_and_the_lines_of_a_log_are_plain(run, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    said = []
    with pytest.raises(KeyboardInterrupt), progress.stage_bar(run, {"collective": 50.0}):
        run.progress("collective", 1, 2, "task 1 of 2")
        waits_for(lambda: said.append(capsys.readouterr().err) or "task 1 of 2" in "".join(said))
        raise KeyboardInterrupt
    text = "".join(said) + capsys.readouterr().err
    assert re.fullmatch(r"(  0 % \(collective\)\n)*( 50 %, about \d+ s left \(collective task 1 of 2\)\n)+", text)
    time.sleep(0.7)
    assert capsys.readouterr().err == "", "the thread still speaks"


def options(path):
    return ["--preset", "smoke", "--out", str(path), *(f"--set={name}={json.dumps(v)}" for name, v in TINY.items())]


def test_a_verb_says_its_cost_shows_its_way_and_computes_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    monkeypatch.setattr(progress, "FEWEST_SECONDS", 0)
    assert cli.main(["collective", *options(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^collective: about \d+ \w+ on this machine", out, re.MULTILINE)
    assert out.index("about") < out.index("trained on 3 source tasks")
    assert all(re.fullmatch(r" *\d+ %(, about .* left)?( \(.*\))?", line) for line in err.splitlines()), err
    alone = Run.open(Config.preset("smoke", **TINY), tmp_path / "alone")
    Chain(alone).collective  # noqa: B018
    there, here = snapshot(tmp_path / "run"), snapshot(alone.path)
    assert {n: there[n] for n in there if n != "timings.csv"} == {n: here[n] for n in here if n != "timings.csv"}
    assert cli.main(["collective", *options(tmp_path / "run")]) == 0
    assert "about" not in capsys.readouterr().out, "nothing is left to compute"


def test_what_is_quick_is_not_announced(run, monkeypatch, capsys):
    for seconds, said in ((1.0, ""), (200.0, "tune: about 3 min on this machine (reconstruct 200 s)\n")):
        monkeypatch.setattr(progress, "stage_seconds", lambda run, stage, seconds=seconds: {"reconstruct": seconds})
        with progress.shown(run, "tune"):
            pass
        assert capsys.readouterr().out == said.replace("200 s", "3 min")
