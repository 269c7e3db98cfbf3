"""What a terminal, a pipe or a keyboard does to a command, and numbers that nobody means: one line and a status, or nothing."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import tiny_tree

from learngene_core.config import Config
from learngene_core.errors import StudyError
from learngene_core.runs.parameters import read_yaml, spoken
from learngene_core.study import cli
from learngene_core.study.options import changes_of, check_address, parser
from learngene_core.study.whole import check_possible

COMMAND = (sys.executable, "-c", "import sys; from learngene_core.study.cli import main; sys.exit(main())")
ROOT = Path(__file__).parents[2]
STOPPED = "learngene: stopped; the same command goes on from the last finished task"


# numbers as people mean them ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("-010", -10), ("0010", 10), ("08", 8), ("1_000", 1000), ("0x10", 16), ("5e-4", 0.0005), ("1E3", 1000.0),
     (".5", 0.5), ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("190:20:30", "190:20:30"), ("0o17", "0o17"), ("0b11", "0b11"),
     ("2026-01-02", "2026-01-02"), ("true", True), ("[010, 1:30]", [10, "1:30"]), ("{a: 007}", {"a": 7}), ("'010'", "010")],
)  # fmt: skip
def test_yaml_numbers_mean_what_a_person_means(text, value):
    assert read_yaml(text) == value and type(read_yaml(text)) is type(value)


# a slip of the keyboard, and what it is taken for ----------------------------------------------------------------------
SLIPS = {
    "a comma for a point": (["--set", "learning_rate=0,05"], "learning_rate takes float, not '0,05'"),
    "a percent sign": (["--set", "inherited_share=50%"], "inherited_share takes float, not '50%'"),
    "a minus of typography": (["--set", "learning_rate=\u22120.1"], "learning_rate takes float"),
    "a list without brackets": (["--set", "shots=10,20"], "shots takes a list, not '10,20'"),
    "a list without commas": (["--set", "shots=[10 20]"], "shots takes int, not '10 20'"),
    "a list of Python": (["--set", "shots=(5,10)"], "shots takes a list"),
    "two parameters in one": (["--set", "shots=5;seed=3"], "shots takes a list, not '5;seed=3'"),
    "Python's None": (["--set", "seed=None"], "seed takes int, not 'None'"),
    "YAML's null": (["--set", "seed=null"], "seed takes int, not None"),
    "one for true": (["--set", "flip=1"], "flip takes bool, not 1"),
    "a dash for a bar": (["--set", "learning-rate=0.1"], "did you mean 'learning_rate'?"),
    "a capital": (["--set", "Shots=5"], "did you mean 'shots'?"),
    "a seed that no table holds": (["--seed", "99999999999999999999"], "seed = 99999999999999999999 is out of range"),
    "a seed below zero": (["--seed=-1"], "seed = -1 is out of range: at least 0"),
    "another capital": (["--data", "CIFAR100"], "there are glyphs, cifar100"),
    "a folder of the system": (["--out", "/proc/none"], "cannot make the run folder /proc/none"),
}


@pytest.mark.parametrize(("arguments", "text"), SLIPS.values(), ids=SLIPS)
def test_a_slip_is_one_line_that_shows_it(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["divide", "--preset", "smoke", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "text"),
    [(["--shots", "5"], "--set shots=...?"), (["--n-way=3"], "--set n_way=...?"),
     (["--set", "shots=5", "seed=3"], "--set seed=...?"), (["--learning_rate=1"], "--set learning_rate=...?"),
     (["runs/x"], None), (["\u2013-preset", "smoke"], None)],
)  # fmt: skip
def test_a_parameter_that_is_no_option_names_the_option_it_goes_to(word, text, capsys):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(["divide", *word])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "unrecognized arguments" in said
    assert ("did you mean" in said) == (text is not None) and (text or "") in said


@pytest.mark.parametrize("workers", ["-1", "257", "1000000"])
def test_a_number_of_workers_that_nobody_means_is_refused_before_one_starts(workers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "shots", "--preset", "smoke", "--workers", workers]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"workers = {workers}" in line and "256 at most" in line and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("columns", ["0", "1", "-5", "abc", ""])
@pytest.mark.parametrize("words", [["--help"], ["study", "--help"]])
def test_help_fits_any_width_of_a_terminal(columns, words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 0 and "usage: learngene" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="a folder that is in use cannot be deleted there")
@pytest.mark.parametrize(
    "arguments", [["divide", "--preset", "smoke"], ["info", "run"], ["sweep", "shots", "--dry-run"]]
)
def test_a_working_folder_that_is_gone_is_one_line(arguments, tmp_path):
    (tmp_path / "gone").mkdir()
    code = 'rmdir "$PWD"; exec "$0" -c "$@"'
    command = ["sh", "-c", code, COMMAND[0], COMMAND[2], *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path / "gone", capture_output=True, text=True, timeout=120, env=env)
    (line,) = [line for line in done.stderr.splitlines() if "getcwd" not in line]  # the shell's own word
    assert (
        done.returncode == 1
        and line == "learngene: the folder that this command was started in is gone; change to another one"
    )


@pytest.mark.parametrize("text", ["1:30", "0o17", "0b11", "2026-01-02", "1,000", "ten"])
def test_what_is_no_number_is_refused_where_a_number_belongs(text):
    with pytest.raises(ValueError, match="epochs"):
        Config.preset("smoke", epochs=spoken("epochs", text))


@pytest.mark.parametrize("text", ["010", "1:30", "no", "2026-01-02", "~", "a: b"])
def test_a_parameter_that_holds_text_keeps_it(text):
    assert spoken("data_path", text) == text


@pytest.mark.parametrize(
    "change",
    ["learning_rate=nan", "learning_rate=.nan", "threshold=-inf", "ewc_lambda=inf", "individual_ewc=1e400", "control_l2=[nan]",
     "n_target_tasks=1000000000", "n_source_tasks=1000000000", "batch_size=1000000000", "individual_batch=1000000000",
     "min_width=1000000", "width_divisor=1000000", "hidden=[1000000000]", "threads=100000", "workers=100000",
     "epochs=1000000000", "n_inits=1000000000", "image_size=100000", "shots=[1000000000]", "fisher_images=1000000000000"],
)  # fmt: skip
def test_numbers_that_nobody_means_are_out_of_range_in_one_line(change, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["collective", "--preset", "smoke", "--set", change]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and f"{change.partition('=')[0]} " in err and "out of range" in err
    assert list(tmp_path.iterdir()) == []


def test_a_value_given_twice_is_one_if_it_is_the_same():
    options = parser().parse_args(
        ["divide", "--set", "learning_rate=nan", "--set", "learning_rate=nan", "--set", "epochs=2"]
    )
    assert changes_of(options)["epochs"] == 2
    options.set += ["epochs=3"]
    with pytest.raises(ValueError, match="epochs is given twice"):
        changes_of(options)


# what can be known beforehand ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("n_classes", "change", "words"),
    [
        (8, {}, ["8 classes are too few"]),
        (11, {}, ["5 open-world classes", "has 2", "atlas_pseudo_tasks=0", "split=FILE"]),
        (20, {}, ["has 3", "atlas_pseudo_tasks=0"]),
        (28, {}, ["has 4", "atlas_pseudo_tasks=0"]),
        (11, {"atlas_pseudo_tasks": 0, "source_way": 5}, ["source_way = 5", "4 base classes"]),
        (20, {"atlas_pseudo_tasks": 0, "n_source_tasks": 4}, ["source_draw=overlap or fewer tasks"]),
        (20, {"atlas_pseudo_tasks": 0, "n_way": 6}, ["n_way = 6", "5 novel classes"]),
        (20, {"atlas_pseudo_tasks": 0, "atlas_shots": 30}, ["shots = 30", "support pool"]),
    ],
)
def test_a_study_that_cannot_end_says_so_before_it_begins(n_classes, change, words, tmp_path):
    tiny_tree(tmp_path, [f"class{i:02d}" for i in range(n_classes)], 30, 8)
    small = {"n_source_tasks": 1, "source_way": 4, "growth": "none", "data": "folder", "data_path": str(tmp_path)}
    with pytest.raises(StudyError) as caught:
        check_possible(Config.preset("smoke", **{**small, **change}))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("n_classes", [11, 20, 28, 32])
def test_folders_of_few_classes_are_enough_in_the_way_that_was_said(n_classes, tmp_path):
    tiny_tree(tmp_path, [f"class{i:02d}" for i in range(n_classes)], 30, 8)
    small = {"n_source_tasks": 1, "growth": "none", "data": "folder", "data_path": str(tmp_path), "source_way": 4}
    check_possible(Config.preset("smoke", **small, atlas_pseudo_tasks=0 if n_classes < 29 else 2))


# streams ------------------------------------------------------------------------------------------------------------
def started(*arguments, cwd, **options):
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": cwd, **options}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], **given)


@pytest.mark.skipif(os.name == "nt", reason="pipes")
@pytest.mark.parametrize("arguments", [("info", "RUN"), ("info", "RUN", "--json"), ("--help",)])
def test_a_reader_that_goes_is_no_error(arguments, smoke_run, tmp_path):
    read, write = os.pipe()
    os.close(read)  # `| true`: nobody reads a line
    words = [smoke_run if word == "RUN" else word for word in arguments]
    process = started(*words, cwd=tmp_path, stdout=write)
    os.close(write)
    assert process.communicate(timeout=120)[1] == b""
    assert process.returncode == cli.UNREAD or arguments == ("--help",)


@pytest.mark.parametrize("coding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_name_that_the_terminal_cannot_show_is_no_error_after_the_work(coding, tmp_path, monkeypatch):
    names = [f"\N{GREEK SMALL LETTER ALPHA}\N{CJK UNIFIED IDEOGRAPH-4E2D}{i:02d}" for i in range(12)]
    tiny_tree(tmp_path / "images", names, 12, 32)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=coding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    small = ("n_source_tasks=1", "growth=none", "support_pool=4", "query_images=4", "shots=3", "held_out_images=4")
    words = [word for change in small for word in ("--set", change)]
    where = ["--data", "folder", "--data-path", str(tmp_path / "images"), "--out", str(tmp_path / "run")]
    status = cli.main(["divide", "--preset", "smoke", *where, *words])
    said = out.buffer.getvalue().decode(coding)
    assert status == 0, err.buffer.getvalue()
    assert ("\\u03b1" in said) == (coding != "utf-8") and (names[0] in said) == (coding == "utf-8")


@pytest.mark.skipif(os.name == "nt", reason="closed streams")
@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(streams, smoke_run, tmp_path):
    code = f'exec "$0" -c "$1" info "$2" {streams}'
    done = subprocess.run(["sh", "-c", code, COMMAND[0], COMMAND[2], str(smoke_run)], cwd=tmp_path, timeout=120)
    assert done.returncode == 0


# the keyboard -------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(os.name == "nt", reason="sends a signal to a process group")
@pytest.mark.parametrize("moment", ["first import", "options", "work", "cluster"])
def test_ctrl_c_is_heard_from_the_first_moment_on(moment, tmp_path):
    """Where it was once swallowed or ended in a traceback: while the package is imported, and while a cluster starts."""
    code = PRESSED[moment] + "\nsys.exit(cli.main(['divide', '--preset', 'smoke']))"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-c", "import os, signal, sys\n" + code], cwd=tmp_path, **options)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.splitlines()) == (cli.STATUS, "", [STOPPED])


PRESS = "os.kill(os.getpid(), signal.SIGINT)"
PRESSED = {
    "first import": f"""
import importlib.abc
from learngene_core.study import cli
class Pressed(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "learngene_core.study.options":
            {PRESS}
sys.meta_path.insert(0, Pressed())
""",
    "options": f"""
from learngene_core.study import cli, options
options.parser = lambda: {PRESS}
""",
    "work": f"""
from learngene_core.study import cli, verbs
verbs.run = lambda options: {PRESS}
""",
    "cluster": f"""
from learngene_core.study import cli, cluster, verbs
class Slow:
    def __init__(self, **_):
        {PRESS}
    def close(self, timeout):
        pass
cluster.LocalCluster = Slow
def run(options):
    with cluster._embedded(1):
        import time
        time.sleep(60)
verbs.run = run
""",
}


# schedulers ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "address",
    [
        "http://x",
        "x",
        "tcp://x",
        "tcp://",
        "ftp://x:8786",
        "tcp://x:y",
        "tcp://x:99999",
        "//x:1",
        "tcp://x:8786/status",
    ],
)
def test_what_is_no_address_of_a_scheduler_is_refused_at_once(address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    assert cli.main(["sweep", "shots", "--preset", "smoke", "--scheduler", address]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "tcp://HOST:8786" in err and repr(address) in err
    assert time.monotonic() - start < 2 and list(tmp_path.iterdir()) == []


def test_an_address_where_nobody_listens_is_refused_and_one_where_somebody_does_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"tcp://127.0.0.1:{port}", f"127.0.0.1:{port}", f"tls://localhost:{port}"):
            check_address(address)
    for address in (f"tcp://127.0.0.1:{port}", f"tcp://nobody.invalid:{port}"):
        with pytest.raises(StudyError, match="no scheduler answers at"):
            check_address(address)
