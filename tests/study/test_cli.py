"""The command line: exit status, one line that says what is wrong, nothing lost, and help without torch."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import snapshot, tiny_tree

import learngene_core
from learngene_core.analysis.statistics import paired_table
from learngene_core.config import STAGES, Config
from learngene_core.data.images import load_images
from learngene_core.errors import StudyError
from learngene_core.figures import comparison as comparisons
from learngene_core.presets import PRESETS
from learngene_core.runs import info
from learngene_core.runs.run import Run, default_folder
from learngene_core.study import cli, progress, summary, verbs, whole
from learngene_core.study import options as options_module

SMOKE = ("--preset", "smoke", "--set", "workers=1")
COMMAND = Path(sys.executable).with_name("learngene")
VERBS = [*options_module.VERBS, "info"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Default run folders are made below the test's own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys):
    """Call the command line, which must refuse: returns the one line that it says."""

    def call(*arguments) -> str:
        capsys.readouterr()
        status = cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert status == 1
        assert "Traceback" not in out + err
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("learngene: ")
        return lines[0]

    return call


# what can be known before anything is computed ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--preset", "smok"], ["'smok'", "did you mean 'smoke'", *PRESETS]),
        (["--data", "cifar10"], ["'cifar10'", "did you mean 'cifar100'"]),
        (["--set", "shotz=5"], ["'shotz'", "did you mean 'shots'"]),
        (["--set", "shots"], ["NAME=VALUE", "'shots'"]),
        (["--set", "shots=[5"], ["shots", "[5"]),
        (["--set", "shots=[[5]]"], ["shots"]),
        (["--set", "flip=maybe"], ["flip", "bool"]),
        (["--set", "n_way=1.5"], ["n_way", "1.5"]),
        (["--set", "learning_rate=-1"], ["learning_rate", "out of range"]),
        (["--set", "learning_rate=nan"], ["learning_rate = nan is out of range"]),
        (["--set", "layers=conv11"], ["layers", "list"]),
        (["--set", "methods=[scratch,ful]"], ["'ful'", "did you mean 'full'"]),
        (["--set", "seed={a: 1}"], ["seed"]),
        (["--set", "=5"], ["unknown parameter"]),
        (["--seed", "-1"], ["seed", "at least 0"]),
        (["--set", "preset_name=lecture"], ["preset_name", "--preset"]),
        (["--set", "preset=lecture"], ["preset", "--preset"]),
        (["--set", "out=here"], ["out", "--out"]),
        (["--seed", "1", "--set", "seed=2"], ["seed is given twice", "1", "2"]),
        (["--data", "cifar100", "--set", "data=folder"], ["data is given twice", "'cifar100'", "'folder'"]),
        (["--set", "epochs=2", "--set", "epochs=3"], ["epochs is given twice"]),
        (["--set", "n_target_tasks=1"], ["n_target_tasks = 1", "2 or more"]),
        (["--set", "individual_ewc=0"], ["individual_ewc = 0", "learngene_ewc", "methods"]),
    ],
)
def test_bad_arguments_are_refused_and_no_folder_is_made(refused, tmp_path, arguments, texts):
    line = refused("collective", *arguments)
    assert all(text in line for text in texts), line
    assert list(tmp_path.iterdir()) == []


def test_values_are_read_as_a_person_means_them():
    options = options_module.parser().parse_args(
        ["divide", "--preset", "smoke", "--seed", "3", "--data", "cifar100", "--data-path", "1e5"]
        + [
            f"--set={v}"
            for v in (
                "threshold=5e-4",
                "shots=[2,4]",
                "flip=true",
                "layers=[conv1, conv2]",
                "split=",
                "epochs=2",
                "tune_rates=[1e-2,0.5]",
                "seed=3",
            )
        ]  # fmt: skip
    )
    cfg = options_module.configuration(options)
    assert (cfg.threshold, cfg.shots, cfg.flip, cfg.layers) == (5e-4, (2, 4), True, ("conv1", "conv2"))
    assert (cfg.split, cfg.epochs, cfg.tune_rates) == ("", 2, (0.01, 0.5))
    assert (cfg.preset_name, cfg.data, cfg.data_path) == ("smoke", "cifar100", "1e5")
    assert cfg.seed == 3  # said twice, and the same


@pytest.mark.parametrize("verb", options_module.VERBS)
def test_every_verb_takes_the_options_of_the_design(verb):
    given = [
        "--preset",
        "smoke",
        "--data",
        "folder",
        "--data-path",
        "p",
        "--out",
        "o",
        "--seed",
        "4",
        "--set",
        "epochs=1",
    ]
    options = options_module.parser().parse_args([verb, *given, "--redo", "criteria", "--debug"])
    cfg = options_module.configuration(options)
    assert (cfg.preset_name, cfg.data, cfg.data_path, cfg.seed, cfg.epochs) == ("smoke", "folder", "p", 4, 1)
    assert (options.out, options.redo, options.debug) == ("o", ["criteria"], True)


# data ---------------------------------------------------------------------------------------------------------------
def test_data_folders_that_cannot_be_read_are_refused(refused, tmp_path, capsys):
    (tmp_path / "empty" / "class").mkdir(parents=True)
    divide = ("divide", *SMOKE, "--data", "folder", "--out", tmp_path / "run")
    assert "--data-path" in refused(*divide)
    assert "does not exist" in refused(*divide, "--data-path", tmp_path / "missing")
    assert "no images" in refused(*divide, "--data-path", tmp_path / "empty")
    assert not (tmp_path / "run").exists(), "a call that found no images leaves no run folder"
    assert "too few" in refused(*divide, "--data-path", tiny_tree_of(tmp_path / "few", 4))
    thin = refused(*divide[:-1], tmp_path / "other", "--data-path", tiny_tree_of(tmp_path / "thin", 30))
    assert "class" in thin
    assert "images" in thin
    # and the same folder is good once the data are
    good = [*divide, "--data-path", tiny_tree_of(tmp_path / "good", 30, 8)]
    for change in ("source_images=4", "held_out_images=4", "support_pool=4", "query_images=4", "shots=3"):
        good += ["--set", change]
    capsys.readouterr()
    assert cli.main([str(a) for a in good]) == 0
    assert "novel" in capsys.readouterr().out


def test_study_looks_for_the_images_before_a_kernel_starts(refused, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(whole, "run_study", lambda *given, **_: started.append(given))
    monkeypatch.setattr(whole, "check_possible", lambda cfg: None)
    (tmp_path / "empty" / "class").mkdir(parents=True)
    tiny_tree(tmp_path / "animals", ["apple", "okapi"], 1, 32)
    for data, path, text in (
        ("cifar100", "", "or `--data-path download`"),
        ("folder", "", "needs --data-path"),
        ("cifar100", tmp_path / "missing", "does not exist"),
        ("folder", tmp_path / "empty", "holds no images in class folders"),
        ("imagenet100", tmp_path / "animals", "none of the 100 of imagenet100"),
    ):
        line = refused(
            "study", *SMOKE, "--data", data, "--out", tmp_path / "run", *(["--data-path", path] if path else [])
        )
        assert text in line, line
    assert not started
    assert not (tmp_path / "run").exists()
    for data, path in (("folder", "animals"), ("cifar100", "animals"), ("cifar100", "download"), ("glyphs", "missing")):
        path = path if path == "download" else tmp_path / path
        assert cli.main(["study", *SMOKE, "--data", data, "--data-path", str(path)]) == 0
    assert len(started) == 4
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("")  # a finished study needs no images
    assert cli.main(["study", *SMOKE, "--data", "cifar100", "--out", str(tmp_path / "run")]) == 0


def test_an_unreadable_image_is_refused_in_one_line(refused, tmp_path):
    """Also in a log file: no progress bar where nobody watches."""
    tiny_tree(tmp_path / "text", ["a", "b"], 2, 32)
    (tmp_path / "text" / "b" / "note.png").write_text("this is text")
    line = refused("divide", *SMOKE, "--data", "folder", "--data-path", tmp_path / "text", "--out", tmp_path / "run")
    assert "note.png" in line


def tiny_tree_of(folder, n_classes, n=2):
    tiny_tree(folder, [f"class{i:02d}" for i in range(n_classes)], n, 32)
    load_images("folder", folder)  # decoded here, so that no call shows the bar of decoding
    return folder


@pytest.mark.parametrize(
    ("verb", "change", "text"),
    [
        ("reconstruct", "shots=[41]", "shots = 41"),
        ("reconstruct", "n_way=51", "n_way = 51"),
        ("tune", "n_way=17", "n_way = 17"),
        ("collective", "source_way=65", "source_way = 65"),
        ("collective", "n_source_tasks=17", "17 disjoint source tasks"),
        ("divide", "image_size=64", "image_size = 64"),
        ("divide", "split=nowhere.json", "nowhere.json"),
        ("criteria", "layers=[convX]", "convX"),
        ("criteria", "criterion=lerngene", "lerngene"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_training(refused, tmp_path, monkeypatch, verb, change, text):
    """Nor is it first said how long it would take."""
    monkeypatch.setattr(progress, "stage_seconds", None)
    assert text in refused(verb, *SMOKE, "--out", tmp_path / "run", "--set", change)
    assert not (tmp_path / "run" / "collective").exists()


# run folders --------------------------------------------------------------------------------------------------------
SAID = {
    "divide": "base (64)",
    "collective": "average accuracy",
    "criteria": "learngene: conv",
    "reconstruct": "gain over scratch",
}


def test_the_verbs_load_a_finished_run_and_end_with_status_0(smoke_copy, capsys):
    before = snapshot(smoke_copy)
    for verb, text in SAID.items():
        assert cli.main([verb, *SMOKE, "--out", str(smoke_copy)]) == 0
        out, err = capsys.readouterr()
        assert text in out
        assert str(smoke_copy) in out
        assert err == ""
    assert {n: h for n, h in snapshot(smoke_copy).items() if n != "config.json"} == {
        n: h for n, h in before.items() if n != "config.json"
    }


def test_another_configuration_is_refused_and_loses_nothing(refused, smoke_copy):
    before = snapshot(smoke_copy)
    for arguments in (["--seed", "1"], ["--seed", "1", "--redo", "collective"]):
        line = refused("collective", *SMOKE, "--out", smoke_copy, *arguments)
        assert "seed: 0 there, 1 asked for" in line
        assert "--out" in line
        assert snapshot(smoke_copy) == before


def test_unknown_or_scattered_layers_are_refused_and_can_be_mended(refused, smoke_copy, capsys):
    criteria = ["criteria", *SMOKE, "--out", str(smoke_copy)]
    assert "layers" in refused(*criteria, "--set", "layers=[convX]")  # the finished stage has others
    line = refused(*criteria, "--redo", "criteria", "--set", "layers=[convX]")
    assert "unknown layer 'convX'" in line
    assert "conv13" in line
    assert "contiguous" in refused(*criteria, "--set", "layers=[conv1, conv3]")
    assert "contiguous" in refused(*criteria, "--set", "layers=[conv2, conv1]")
    assert "lerngene" in refused(*criteria, "--set", "criterion=lerngene")
    assert cli.main([*criteria, "--set", "layers=[conv2, conv3]"]) == 0
    assert "learngene: conv2, conv3" in capsys.readouterr().out


def test_damaged_learngene_is_refused_and_rebuilt_by_what_the_line_says(refused, smoke_copy, capsys):
    path = smoke_copy / "learngene.safetensors"
    whole = path.read_bytes()
    reconstruct = ["reconstruct", *SMOKE, "--out", str(smoke_copy)]
    for data in (whole[: len(whole) // 2], b"", whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:]):
        path.write_bytes(data)
        line = refused(*reconstruct)
        assert "learngene.safetensors" in line
        assert "--redo criteria" in line
    assert cli.main(["criteria", *SMOKE, "--out", str(smoke_copy), "--redo", "criteria"]) == 0
    assert path.read_bytes() == whole


def test_a_folder_that_is_none_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("x")
    assert "is a file" in refused("divide", *SMOKE, "--out", tmp_path / "file")
    assert "no run folder" in refused("divide", *SMOKE, "--out", tmp_path / "thesis")
    assert (tmp_path / "thesis" / "a.tex").read_text() == "x"


# info ---------------------------------------------------------------------------------------------------------------
def test_info_says_whole_or_damaged_to_people_and_machines(smoke_copy, capsys):
    assert cli.main(["info", str(smoke_copy)]) == 0
    assert capsys.readouterr().out.count(": whole\n") == 4
    assert cli.main(["info", str(smoke_copy), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["whole"] is True
    assert (facts["preset"], facts["data"], facts["seed"]) == ("smoke", "glyphs", 0)
    (smoke_copy / "scores.csv").unlink()
    (smoke_copy / "history.csv").write_text("task\n")
    assert cli.main(["info", str(smoke_copy)]) == 1
    out = capsys.readouterr().out
    assert "scores.csv missing (rebuild with --redo criteria)" in out
    assert "history.csv damaged (rebuild with --redo collective)" in out
    assert cli.main(["info", str(smoke_copy), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["whole"] is False
    states = {n: state for s in facts["stages"].values() for n, state in s["files"].items() if state != "whole"}
    assert states == {"scores.csv": "missing", "history.csv": "damaged"}


def test_info_on_a_run_where_nothing_is_done_says_what_to_run(tmp_path, capsys):
    run = Run.open(Config.preset("smoke", seed=3, epochs=2), tmp_path / "run")
    assert cli.main(["info", str(run.path), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["whole"], facts["complete"]) == (False, False)
    assert {stage: entry["state"] for stage, entry in facts["stages"].items()} == dict.fromkeys(info.STUDY, "missing")
    assert cli.main(["info", str(run.path)]) == 1
    out = capsys.readouterr().out
    assert out.count(": missing\n") == len(info.STUDY)
    assert f"not whole; go on with: learngene study --preset smoke --seed 3 --set epochs=2 --out {run.path}\n" in out


def test_info_tells_unfinished_from_complete(smoke_copy, capsys):
    assert cli.main(["info", str(smoke_copy)]) == 0
    out = capsys.readouterr().out
    assert "openworld: missing\n" in out
    assert "not complete; go on with: learngene study --preset smoke" in out
    run = Run.open(Config.preset("smoke"), smoke_copy)
    for stage in ("openworld", "measures", "atlas", "controls", "claims"):
        with run.computing(stage, []):
            pass
    assert cli.main(["info", str(smoke_copy)]) == 0
    assert capsys.readouterr().out.endswith("complete: every stage of the study is whole\n")
    facts = info.inspect(smoke_copy)
    assert (facts["whole"], facts["complete"], facts["next"]) == (True, True, "")
    run.forget("criteria")  # as a killed --redo leaves it
    facts = info.inspect(smoke_copy)
    assert (facts["whole"], facts["complete"]) == (True, False)
    (smoke_copy / "collective" / "task_04" / "about.json").unlink()
    run.forget("criteria")
    manifest = json.loads((smoke_copy / "manifest.json").read_text())
    (smoke_copy / "manifest.json").write_text(json.dumps({"division": manifest["division"]}))
    assert cli.main(["info", str(smoke_copy)]) == 0
    assert "collective: missing (3 of 4 source tasks are saved)" in capsys.readouterr().out


def test_the_command_that_info_names_asks_for_the_same(tmp_path, monkeypatch):
    for cfg, out in (
        (Config.preset("smoke"), tmp_path / "a folder"),
        (Config(), None),
        (Config.preset("cifar-cpu", data_path="/data/two words", seed=4, shots=(5, 10), growth="none"), tmp_path / "b"),
        (
            Config.preset("paper", data="folder", layers=("conv2", "conv3"), flip=False, open_keep=90, split="seed"),
            None,
        ),
        (Config(individual_rates=("light:scratch=0.5", "same_shape:full=1e-3"), threshold=5e-4), None),
    ):
        words = shlex.split(info.command(cfg, out or default_folder(cfg), redo=["criteria"]))
        options = options_module.parser().parse_args(words[1:])
        assert (words[0], options.verb, options.redo) == ("learngene", "study", ["criteria"])
        assert options_module.configuration(options) == cfg
        assert options.out == (str(out) if out else "")


def test_info_sees_a_configuration_that_was_edited_by_hand(smoke_copy, capsys):
    path = smoke_copy / "config.json"
    path.write_text(path.read_text().replace('"n_blocks": 3', '"n_blocks": 2'))
    assert cli.main(["info", str(smoke_copy), "--json"]) == 1
    stages = json.loads(capsys.readouterr().out)["stages"]
    another = {s for s, facts in stages.items() if facts["state"] == "another configuration"}
    assert another == {"criteria", "reconstruct"}
    assert cli.main(["info", str(smoke_copy)]) == 1
    out = capsys.readouterr().out
    assert "criteria: from another configuration (rebuild with --redo criteria)" in out
    assert "--redo criteria --redo reconstruct" in out.splitlines()[-1]


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
@pytest.mark.parametrize("text", ["", "[]", '{"x": 1}'])
def test_info_on_damaged_bookkeeping_is_one_line(refused, smoke_copy, name, text):
    (smoke_copy / name).write_text(text)
    assert name in refused("info", smoke_copy)


def test_info_on_no_run_folder(refused, tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        assert "no run folder" in refused("info", path)


# errors in general --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "error",
    [StudyError("boom\nin two lines"), ValueError("boom"), KeyError("boom"), RuntimeError("CUDA out of memory: boom"),
     EOFError("boom"), TypeError("boom"), MemoryError("boom"), AssertionError("boom")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_any_error_is_one_line_and_a_traceback_only_with_debug(refused, monkeypatch, error):
    def fails(_):
        raise error

    monkeypatch.setattr(cli, "_run", fails)
    assert "boom" in refused("divide")
    with pytest.raises(type(error)):
        cli.main(["divide", "--debug"])


def test_an_individual_that_diverges_names_its_own_parameters(refused, smoke_copy):
    diverges = ("--redo", "reconstruct", "--set", "individual_ewc=1e30", "--set", "methods=[learngene_ewc]")
    line = refused("reconstruct", *SMOKE, "--out", smoke_copy, *diverges)
    assert re.search(r"of target task \d, light, 10 shots is not finite", line)
    assert "lower individual_rate or individual_ewc" in line
    assert "learning_rate" not in line


def test_an_error_of_the_system_names_its_file(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "_run", lambda _: (tmp_path / "nothing.csv").read_text())
    assert "nothing.csv" in refused("divide")


def test_a_stage_that_is_out_of_time_asks_to_be_called_again(smoke_copy, capsys):
    for _ in range(2):
        assert cli.main(["atlas", *SMOKE, "--out", str(smoke_copy), "--set", "minutes=0.00001"]) == cli.LATER == 75
        lines = capsys.readouterr().err.splitlines()
        assert "the same command goes on" in lines[-1] and "Traceback" not in lines[-1]


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def stops(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", stops)
    assert cli.main(["divide"]) == 130
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_ctrl_c_from_the_keyboard_is_one_line_and_gives_the_handler_back(monkeypatch, capsys):
    def pressed(error):
        def stops(_):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise error from None

        return stops

    before = signal.getsignal(signal.SIGINT)
    for error in (KeyboardInterrupt(), StudyError("02.ipynb, cell 3: KeyboardInterrupt"), RuntimeError("dead kernel")):
        monkeypatch.setattr(cli, "_run", pressed(error))
        assert cli.main(["divide", "--debug"]) == 130
        assert capsys.readouterr().err.splitlines() == [
            "learngene: stopped; the same command goes on from the last finished task"
        ]
        assert signal.getsignal(signal.SIGINT) is before


PRESSED = """
import pathlib, sys, time
from concurrent.futures import ThreadPoolExecutor
from learngene_core.study import cli, notebooks

marker, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
cli.PATIENCE = float(sys.argv[3])

def work(options):
    if kind == "kernel":
        notebooks.execute(marker.with_name("sleeps.ipynb"), marker.with_name("out.ipynb"), {"seed": 1})
    with ThreadPoolExecutor(1) as pool:  # as an individual in training on a worker
        pool.submit(lambda: (marker.touch(), time.sleep(60))).result()

cli._run = work
sys.exit(cli.main(["divide"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="sends a signal to a process group")
@pytest.mark.parametrize(("kind", "patience", "times"), [("kernel", 20, 1), ("worker", 0.3, 1), ("worker", 50, 2)])
def test_ctrl_c_ends_kernels_and_workers_with_one_line(tmp_path, kind, patience, times):
    marker = tmp_path / "begun"
    sleeps = f"import pathlib, time\npathlib.Path({str(marker)!r}).touch()\ntime.sleep(60)"
    first = nbformat.v4.new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]})
    nbformat.write(
        nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell(sleeps)]), tmp_path / "sleeps.ipynb"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", PRESSED, str(marker), kind, str(patience)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not marker.exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.05)
        assert marker.exists(), process.communicate()
        for _ in range(times):
            time.sleep(0.3)
            os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines() == ["learngene: stopped; the same command goes on from the last finished task"]


# what a person reads at the end --------------------------------------------------------------------------------------
def results(*methods, n_tasks=3):
    rows = [
        {"family": "none" if m == "ncm" else "light", "method": m, "shots": 10, "target_task": t, "init": 1,
         "accuracy": 50.0 + t + i, "ewc_share": 4.0 * (m == "learngene_ewc")}
        for i, m in enumerate(methods) for t in range(1, n_tasks + 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_table_without_scratch_or_interval_says_so_instead_of_nan():
    rows = summary.summary_rows(paired_table(results("learngene", "full", "ncm")))
    assert [row[5:7] for row in rows[1:]] == [("no scratch in this run", "")] * 2 + [("", "")]
    rows += summary.summary_rows(paired_table(results("scratch", "learngene")))
    rows += summary.summary_rows(paired_table(results("scratch", "learngene", n_tasks=1)))
    assert rows[-1][5:7] == ("+1.0", "one task, no interval")
    assert not any("nan" in cell for row in rows for cell in row)


def test_the_share_of_ewc_is_said_only_where_there_is_one():
    assert summary.ewc_text(results("scratch", "learngene")) == "learngene_ewc is not in this run"
    assert "4.00 % on average over 3 individuals" in summary.ewc_text(results("scratch", "learngene_ewc"))


def test_figures_of_a_run_that_trains_nothing_are_drawn():
    columns = ["family", "method", "shots", "epoch", "loss", "loss_sd", "accuracy", "n_tasks"]
    axes = comparisons.training_curves(pd.DataFrame(columns=columns))
    assert [text.get_text() for text in axes[0, 0].texts] == ["no method of this run is trained"]
    comparisons.comparison(paired_table(results("ncm")))[0, 0].figure.canvas.draw()
    axes[0, 0].figure.canvas.draw()


def test_tune_ends_with_options_that_can_be_pasted():
    table = pd.DataFrame(
        [
            ("light", "scratch", 0.01, 0.0, False),
            ("light", "scratch", 0.05, 0.0, True),
            ("light", "scratch", 0.1, 0.0, True),  # as good: the first stands
            ("light", "learngene_ewc", 0.005, 1.0, True),
            ("light", "learngene_ewc", 0.005, 100.0, False),
            ("same_shape", "full", 1e-3, 0.0, True),
        ],
        columns=["family", "method", "rate", "ewc", "best"],
    )
    options = options_module.parser().parse_args(["reconstruct", *shlex.split(verbs.best_settings(table))])
    cfg = options_module.configuration(options)
    assert cfg.individual_rates == ("light:scratch=0.05", "light:learngene_ewc=0.005", "same_shape:full=0.001")
    assert cfg.individual_ewc == 1
    assert cfg.rate("same_shape", "full") == 0.001
    no_ewc = verbs.best_settings(table[table["method"] != "learngene_ewc"])
    assert "individual_ewc" not in no_ewc


# help and the real command ------------------------------------------------------------------------------------------
def test_help_of_every_verb_names_its_options(capsys):
    for verb in VERBS:
        with pytest.raises(SystemExit) as end:
            cli.main([verb, "--help"])
        assert end.value.code == 0
        out = "".join(capsys.readouterr().out.split())  # lines are broken anywhere
        wanted = (
            ["--json"]
            if verb == "info"
            else ["--preset", "--data", "--data-path", "--out", "--seed", "--set", "--redo"]
        )
        assert all(option in out for option in wanted), verb
        assert verb == "info" or all(name in out for name in [*PRESETS, *STAGES])


@pytest.mark.parametrize(
    ("arguments", "near"),
    [(["colective"], "collective"), (["study", "--redo", "criterion"], "criteria"), (["wxyz"], "")],
)
def test_an_unknown_verb_or_stage_names_the_nearest(capsys, arguments, near):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert (f"did you mean {near!r}?" in said) if near else ("did you mean" not in said)


def test_help_says_how_to_fetch_cifar100_and_the_version_is_told(capsys):
    for arguments, text in (
        (["study", "--help"], "'download'"),
        (["--version"], f"learngene {learngene_core.__version__}\n"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 0
        assert text in capsys.readouterr().out


def command(*arguments, **options):
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(scope="module")
def installed():
    if not COMMAND.exists():
        pytest.skip("the command `learngene` is not installed beside this Python")


@pytest.mark.usefixtures("installed")
def test_the_installed_command_ends_with_its_status(tmp_path, smoke_run):
    done = command("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(verb in done.stdout for verb in VERBS)
    bad = command("reconstruct", "--preset", "smok", cwd=tmp_path)
    assert (bad.returncode, bad.stdout, len(bad.stderr.splitlines())) == (1, "", 1)
    nothing = command("reconstruct", *SMOKE, "--data", "folder", "--data-path", tmp_path / "none", cwd=tmp_path)
    assert (nothing.returncode, len(nothing.stderr.splitlines())) == (1, 1)
    assert "Traceback" not in bad.stderr + nothing.stderr
    whole = command("info", smoke_run, "--json", cwd=tmp_path)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert json.loads(whole.stdout)["whole"] is True
    assert command("divid", cwd=tmp_path).returncode not in (0, 1)


def test_help_and_refusals_do_not_wait_for_torch():
    code = f"""
import sys, contextlib, io
import learngene_core
from learngene_core.study.cli import main
for verb in {VERBS!r}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([verb, "--help"])
main(["study", "--preset", "smok"])
learngene_core.Config.preset("paper").stage_hash("reconstruct")
print(*sorted({{"torch", "torchvision", "matplotlib", "papermill"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"
    assert len(done.stderr.splitlines()) == 1
