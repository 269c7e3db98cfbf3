"""What the system and people's folders bring: full disks, modes, links, homes, tables of other columns; one line each."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from readonly import only_readable

from learngene_core.config import Config
from learngene_core.data import cache, glyphs
from learngene_core.data.images import load_images
from learngene_core.errors import StudyError, atomic, disk_full, expanded, explained, write_json
from learngene_core.runs.bookkeeping import facts_of
from learngene_core.runs.run import Run
from learngene_core.runs.tables import COLUMNS, NUMBERS, WORDS
from learngene_core.study import cli

ROOT = Path(__file__).parents[2]
SMOKE = Config.preset("smoke")
POSIX = pytest.mark.skipif(os.name == "nt", reason="modes, links and mounts")


def one_line(capsys, *arguments):
    """The one line with which a command ends that cannot do what it was asked for."""
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert "Traceback" not in out + err and line.isprintable() and "--debug" not in line
    return line


# troubles of the system -----------------------------------------------------------------------------------------------
class SafetensorError(Exception):
    """As the library's own, which passes on the system's words alone."""


@pytest.mark.parametrize(
    ("error", "texts"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["disk is full", "No space left", "same command goes on"]),
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a.csv"), ["disk is full", "/runs/a.csv"]),
        (OSError(getattr(errno, "EDQUOT", errno.ENOSPC), "Disk quota exceeded"), ["disk is full", "quota"]),
        (OSError(errno.EFBIG, "File too large"), ["disk is full", "too large"]),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            ["disk is full", "No space left on device"],
        ),
        (OSError(errno.EROFS, "Read-only file system", "/runs/b"), ["/runs/b", "Read-only", "another --out"]),
        (PermissionError(errno.EACCES, "Permission denied", "/runs/b"), ["/runs/b", "Permission denied", "--out"]),
    ],
)
def test_a_trouble_of_the_system_says_what_to_do_in_one_line(monkeypatch, capsys, error, texts):
    def fails(_):
        raise error

    monkeypatch.setattr(cli, "_run", fails)
    assert cli.main(["divide"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert all(text in line for text in texts), line
    assert "--debug" not in line


def test_other_errors_are_left_to_speak_for_themselves():
    for error in (ValueError("boom"), OSError(errno.EIO, "Input/output error"), StudyError("no"), OSError()):
        assert explained(error) is None


def test_a_full_disk_that_another_process_tells_of_is_recognised_by_its_words():
    for text in ("[Errno 28] No space left on device: '/x'", "IoError(Os { code: 28, No space left on device })",
                 "OSError: [Errno 122] Disk quota exceeded"):  # fmt: skip
        assert "disk is full" in disk_full(text) and "same command goes on" in disk_full(text)
    for text in ("No space", "the device left", "", "File is large"):
        assert disk_full(text) is None


@pytest.fixture
def few_glyphs(monkeypatch):
    render = glyphs.render
    monkeypatch.setattr(glyphs, "render", lambda seed=0: render(2, seed))


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES"])
def test_a_cache_that_cannot_be_filled_says_so_and_not_that_another_run_folder_would_help(
    tmp_path, monkeypatch, capsys, few_glyphs, name
):
    """It is the cache that is full: a run folder elsewhere would meet the same."""
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "cache"))
    number = getattr(errno, name)

    def fails(self, rows):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cache.RowWriter, "append", fails)
    line = one_line(capsys, "divide", "--preset", "smoke", "--out", tmp_path / "run")
    assert "image cache" in line and os.strerror(number) in line and "LEARNGENE_CACHE" in line
    assert "--out" not in line
    assert not list((tmp_path / "cache").rglob("*.npy"))


# modes ----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def umask():
    """Sets the umask; what it was comes back."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@POSIX
@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0o022, 0o644), (0o002, 0o664)])
def test_who_may_read_a_file_follows_from_the_umask(tmp_path, umask, mask, mode):
    umask(mask)
    write_json(tmp_path / "new" / "a.json", [1])
    with atomic(tmp_path / "b") as path:
        path.write_text("x")
    (tmp_path / "b").chmod(0o666)
    with atomic(tmp_path / "b") as path:  # a file that is written anew is a new file
        path.write_text("y")
    for path in (tmp_path / "new" / "a.json", tmp_path / "b"):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


@POSIX
@pytest.mark.slow
def test_of_a_whole_run_nothing_is_open_to_others_where_the_umask_says_so(tmp_path):
    """Every verb's files, those of libraries and of the cache among them, in a process of its own."""
    code = "import os, sys; os.umask(0o077); from learngene_core.study.cli import main; sys.exit(main())"
    small = {"source_images": 8, "held_out_images": 4, "n_source_tasks": 2, "source_way": 3, "epochs": 1, "first_task_epochs": 1,
             "fisher_images": 8, "null_networks": 2, "null_steps": 1, "n_target_tasks": 2, "individual_epochs": 1}  # fmt: skip
    settings = [f"--set={name}={value}" for name, value in small.items()]
    env = {**os.environ, "LEARNGENE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    env.pop("LEARNGENE_LOCKED", None)
    command = [
        sys.executable,
        "-c",
        code,
        "reconstruct",
        "--preset",
        "smoke",
        "--out",
        str(tmp_path / "run"),
        *settings,
    ]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=120)
    found = [*(tmp_path / "run").rglob("*"), *(tmp_path / "cache").rglob("*")]
    assert len(found) > 20
    assert [p.name for p in found if p.stat().st_mode & 0o077] == []


# names of run folders -------------------------------------------------------------------------------------------------
def dangling(place):
    (place / "run").symlink_to(place / "gone")
    return place / "run"


def loop(place):
    (place / "run").symlink_to(place / "other")
    (place / "other").symlink_to(place / "run")
    return place / "run"


def below_a_dangling_link(place):
    return dangling(place) / "below"


def a_link_to_a_file(place):
    (place / "file").write_text("mine")
    (place / "run").symlink_to(place / "file")
    return place / "run"


def below_a_file(place):
    (place / "file").write_text("mine")
    return place / "file" / "run"


NAMES = {
    "a dangling link": (dangling, "is a link to .*gone, which is not there"),
    "a link in a circle": (loop, "is a link to .*, which is not there"),
    "below a dangling link": (below_a_dangling_link, "cannot make the run folder"),
    "a link to a file": (a_link_to_a_file, "is a file, not a run folder"),
    "below a file": (below_a_file, "cannot make the run folder"),
    "nobody's home": (
        lambda place: "~nosuchuser/run",
        "~nosuchuser/run begins with the name of a user who has no home",
    ),
    "a device": (lambda place: "/dev/null", "is a file, not a run folder"),
    "a long name": (lambda place: place / ("x" * 300), "File name too long"),
    "a zero byte": (lambda place: f"{place}/a\0b", "null byte"),
}


@POSIX
@pytest.mark.parametrize(("make", "text"), NAMES.values(), ids=NAMES)
def test_a_name_that_cannot_be_a_run_folder_is_one_line(tmp_path, make, text):
    before = set(tmp_path.rglob("*"))
    out = make(tmp_path)
    made = set(tmp_path.rglob("*")) - before
    with pytest.raises(StudyError, match=text) as refusal:
        Run.open(SMOKE, out)
    assert "\n" not in str(refusal.value) and (
        "--out" in str(refusal.value) or "write the path out" in str(refusal.value)
    )
    assert set(tmp_path.rglob("*")) == before | made, "nothing was made"


@POSIX
@pytest.mark.parametrize("verb", ["divide", "info", "study"])
def test_nobodys_home_is_one_line_of_every_verb(capsys, verb):
    out = "~nosuchuser/run"
    line = one_line(capsys, *(["info", out] if verb == "info" else [verb, "--preset", "smoke", "--out", out]))
    assert out in line and "no home" in line


def test_a_home_that_is_there_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert expanded("~/run") == tmp_path / "run"
    assert expanded("a/~b") == Path("a/~b")


# a home that may only be read -----------------------------------------------------------------------------------------
@pytest.fixture
def sealed_home(tmp_path, monkeypatch):
    """Home and its place for caches may only be read; temporary files have a place of this test's own."""
    home, spare = tmp_path / "home", tmp_path / "spare"
    home.mkdir()
    spare.mkdir()
    for name in ("LEARNGENE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(cache.tempfile, "tempdir", str(spare))
    cache._temporary.cache_clear()
    with only_readable(home):
        yield spare
    cache._temporary.cache_clear()


@POSIX
def test_glyphs_need_no_home_that_can_be_written(sealed_home, few_glyphs, capsys):
    images = load_images("glyphs")
    said = capsys.readouterr().out
    assert "cannot be written" in said and str(sealed_home) in said and "LEARNGENE_CACHE" in said
    assert load_images("glyphs").fingerprint == images.fingerprint
    assert "(once; kept in the cache)" not in capsys.readouterr().out, "the next process finds it there"
    (folder,) = sealed_home.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@POSIX
@pytest.mark.parametrize("trap", ["open to others", "a file", "a link"])
def test_a_temporary_cache_that_somebody_else_could_have_filled_is_not_used(sealed_home, few_glyphs, tmp_path, trap):
    expected = sealed_home / f"learngene-{os.getuid()}"
    if trap == "open to others":
        expected.mkdir()
        expected.chmod(0o777)
    elif trap == "a file":
        expected.write_text("")
    else:
        (tmp_path / "elsewhere").mkdir()
        expected.symlink_to(tmp_path / "elsewhere")
    load_images("glyphs")
    assert trap == "a file" or not list(expected.iterdir())
    (mine,) = (p for p in sealed_home.iterdir() if p != expected)
    assert list(mine.iterdir())


@POSIX
def test_what_a_sealed_home_already_holds_is_read_from_there(tmp_path, few_glyphs, monkeypatch, capsys):
    monkeypatch.delenv("LEARNGENE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    images = load_images("glyphs")
    capsys.readouterr()
    with only_readable(home):
        assert load_images("glyphs").fingerprint == images.fingerprint
    assert capsys.readouterr().out == ""


# tables with right hashes and wrong columns -----------------------------------------------------------------------------
def good(name, rows=3):
    """A table with the columns that others read of it."""
    kinds = {NUMBERS: [1.5, None, 3.0], WORDS: ["a", "NA", "7"]}
    return pd.DataFrame({c: kinds.get(kind, [True, False, True])[:rows] for c, kind in COLUMNS[name].items()})


@pytest.mark.parametrize("name", COLUMNS)
def test_a_table_with_its_columns_is_read_as_it_is(tmp_path, name):
    run, table = Run.open(SMOKE, tmp_path / "run"), good(name)
    for wanted in (table, table.assign(more=[1, 2, 3]), table[table.columns[::-1]]):
        run.write_table(name, wanted)
        pd.testing.assert_frame_equal(run.read_table(name), wanted, check_dtype=False)


def test_every_table_that_is_read_or_written_has_its_columns_listed():
    """Also those that verbs and notebooks add later: an unlisted one would be read as it is, whatever is in it."""
    pattern = re.compile(r"""(?:read|write)_table\(\\?["'](\w+\.csv)""")
    files = [*(ROOT / "learngene_core").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]
    named = {name for path in files for name in pattern.findall(path.read_text(encoding="utf-8"))}
    assert {"results.csv", "atlas_cells.csv", "theory_simulation.csv"} <= named
    assert named - COLUMNS.keys() == set()


WRONG = {
    "a column is missing": lambda t, c: t.drop(columns=c),
    "a column has another name": lambda t, c: t.rename(columns={c: f"{c}s"}),
    "a number is a word": lambda t, c: t.astype(object).assign(**{c: ["=cmd|' /C calc'!A0", "x", "y"]}),
    "numbers are truths": lambda t, c: t.assign(**{c: [True, False, True]}),
    "a table of something else": lambda t, c: pd.DataFrame({"a": [1], "b": [2]}),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", [n for n, kinds in COLUMNS.items() if NUMBERS in kinds.values()])
def test_a_table_of_other_columns_is_one_line_that_names_them(tmp_path, name, change):
    run = Run.open(SMOKE, tmp_path / "run")
    column = [c for c, kind in COLUMNS[name].items() if kind == NUMBERS][-1]
    run.write_table(name, change(good(name), column))
    entry = {"hash": "h", "fields": {}, "files": {name: facts_of(run.path / name)}}
    write_json(run.path / "manifest.json", {"reconstruct": entry})
    with pytest.raises(StudyError, match="--redo reconstruct") as refusal:
        run.read_table(name)
    text = str(refusal.value)
    assert f"{name} is damaged" in text and "\n" not in text
    assert repr(column) in text or repr(next(iter(COLUMNS[name]))) in text


# what editors, Git and another machine make of a run ------------------------------------------------------------------
SAVED = {  # how a table is written again by another program: what is said; None: it is read as it was
    "with a mark of Excel": ({"encoding": "utf-8-sig"}, None),
    "with lines of Windows": ({"lineterminator": "\r\n"}, None),
    "with the numbers of its rows": ({"index": True}, None),
    "with semicolons": ({"sep": ";"}, "it has no column"),
    "with decimal commas": ({"sep": ";", "decimal": ","}, "it has no column"),
    "with tabs": ({"sep": "\t"}, "it has no column"),
    "in UTF-16": ({"encoding": "utf-16"}, "codec can't decode"),
    "without its head": ({"header": False}, "it has no column"),
}


@pytest.mark.parametrize(("options", "text"), SAVED.values(), ids=SAVED)
def test_a_table_that_another_program_saved_is_the_same_or_refused(tmp_path, options, text):
    run = Run.open(SMOKE, tmp_path / "run")
    good("results.csv").to_csv(run.path / "results.csv", **{"index": False, **options})
    if text is None:
        found = run.read_table("results.csv")
        pd.testing.assert_frame_equal(found[list(good("results.csv"))], good("results.csv"), check_dtype=False)
        return
    with pytest.raises(StudyError, match=text) as refusal:
        run.read_table("results.csv")
    assert "results.csv is damaged" in str(refusal.value) and "\n" not in str(refusal.value)


CONTENTS = {
    "a conflict of Git": "<<<<<<< HEAD\nfamily,method\n",
    "a pointer of Git LFS": "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
    "nothing": "",
    "a head alone": ",".join(COLUMNS["results.csv"]) + "\n",
}


@pytest.mark.parametrize("text", CONTENTS.values(), ids=CONTENTS)
def test_what_is_no_table_of_results_is_one_line_with_the_way_out(tmp_path, text):
    run = Run.open(SMOKE, tmp_path / "run")
    (run.path / "results.csv").write_text(text)
    with pytest.raises(StudyError, match="results.csv is damaged .*--redo") as refusal:
        run.read_table("results.csv")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "machine.json", "division.json"])
def test_a_mark_of_windows_at_the_beginning_of_json_changes_nothing(smoke_copy, capsys, name):
    (smoke_copy / name).write_bytes(b"\xef\xbb\xbf" + (smoke_copy / name).read_bytes())
    entry = json.loads((smoke_copy / "manifest.json").read_text(encoding="utf-8-sig"))
    entry["division"]["files"]["division.json"] = facts_of(smoke_copy / "division.json")
    mark = "\ufeff" if name == "manifest.json" else ""
    (smoke_copy / "manifest.json").write_text(mark + json.dumps(entry), encoding="utf-8")
    assert cli.main(["reconstruct", "--preset", "smoke", "--out", str(smoke_copy)]) == 0
    assert "reconstruct: found in the run folder, loaded" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps"])
def test_a_run_from_a_machine_with_another_device_is_shown_and_not_continued(smoke_copy, capsys, monkeypatch, device):
    monkeypatch.setattr("learngene_core.runs.machine.available", lambda name: name == "cpu")
    machine = json.loads((smoke_copy / "machine.json").read_text())
    write_json(smoke_copy / "machine.json", {**machine, "device": device})
    assert cli.main(["reconstruct", "--preset", "smoke", "--out", str(smoke_copy)]) == 0
    assert cli.main(["info", str(smoke_copy)]) == 0
    line = one_line(capsys, "reconstruct", "--preset", "smoke", "--out", smoke_copy, "--redo", "reconstruct")
    assert repr(device) in line and "not here" in line and "looked at" in line


def left_by_others(run):
    for name in (".DS_Store", "Thumbs.db", "results (conflicted copy).csv", "~$results.csv", ".owner", "progress.json"):
        (run / name).write_text("{")


def unusable_times(run):
    (run / "timings.csv").unlink()
    (run / "timings.csv").mkdir()


TOUCHED = {
    "files of other programs": left_by_others,
    "times of another encoding": lambda run: (run / "timings.csv").write_bytes(b"\xff\xfe"),
    "times that are a folder": unusable_times,
    "dates in the future": lambda run: [os.utime(path, (4e9, 4e9)) for path in run.rglob("*")],
    "a setting of a later version": lambda run: later(run),
}


def later(run):
    for name in ("config.json", "manifest.json"):
        about = json.loads((run / name).read_text())
        (about if name == "config.json" else about["reconstruct"]["fields"])["a_new_one"] = 1
        write_json(run / name, about)


@pytest.mark.parametrize("change", TOUCHED.values(), ids=TOUCHED)
def test_a_finished_run_is_shown_whatever_lies_beside_its_results(smoke_copy, capsys, change):
    change(smoke_copy)
    moved = smoke_copy.rename(smoke_copy.with_name("caf\u00e9 (1)"))
    assert cli.main(["reconstruct", "--preset", "smoke", "--out", f"{moved}/"]) == 0
    assert "reconstruct: found in the run folder, loaded" in capsys.readouterr().out
    assert cli.main(["info", str(moved)]) == 0


def test_a_clock_that_is_set_back_makes_no_time_negative(tmp_path, monkeypatch):
    run, times = Run.open(SMOKE, tmp_path / "run"), iter(range(2 * 10**9, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(times)))
    with run.computing("division", []):
        run.progress("division", 0, 2)
    assert (run.read_table("timings.csv")["seconds"] >= 0).all()


def with_right_hash(run, name, change):
    """Change a table of a finished run, and note it as if the stage had written it so."""
    table = pd.read_csv(run / name)
    change(table).to_csv(run / name, index=False)
    manifest = json.loads((run / "manifest.json").read_text())
    (entry,) = (e for e in manifest.values() if name in e["files"])
    entry["files"][name] = facts_of(run / name)
    write_json(run / "manifest.json", manifest)


CASES = [
    ("collective", "history.csv", "phase", "collective"),
    ("collective", "history.csv", "on_task", "collective"),
    ("criteria", "scores.csv", "criterion", "criteria"),
    ("criteria", "scores.csv", "z", "criteria"),
    ("reconstruct", "results.csv", "method", "reconstruct"),
    ("reconstruct", "results.csv", "accuracy", "reconstruct"),
    ("collective", "gradients.csv", "weight_norm", "collective"),
]


@pytest.mark.parametrize(("verb", "name", "column", "stage"), CASES, ids=[f"{c[1]} {c[2]}" for c in CASES])
def test_a_verb_that_meets_such_a_table_says_which_stage_makes_it_anew(smoke_copy, capsys, verb, name, column, stage):
    with_right_hash(smoke_copy, name, lambda t: t.drop(columns=column))
    line = one_line(capsys, verb, "--preset", "smoke", "--out", smoke_copy)
    assert repr(column) in line and f"--redo {stage}" in line


AUDIT = [
    (("atlas", "--redo", "claims"), "atlas_cells.csv", "group"),
    (("atlas", "--redo", "claims"), "controls.csv", "accuracy"),
    (("atlas",), "claims.csv", "verdict"),
    (("openworld",), "openworld.csv", "auroc"),
    (("openworld",), "openworld_images.csv", "class_name"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "name", "column"), AUDIT, ids=[f"{c[1]} {c[2]}" for c in AUDIT])
def test_so_do_those_of_the_audit(judged_run, tmp_path, capsys, verb, name, column):
    run = Path(shutil.copytree(judged_run, tmp_path / "run"))
    with_right_hash(run, name, lambda t: t.drop(columns=column))
    line = one_line(capsys, *verb, "--preset", "smoke", "--out", run)
    assert name in line and repr(column) in line and "--redo" in line
