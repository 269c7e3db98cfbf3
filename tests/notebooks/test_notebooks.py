"""The notebooks as a lecturer, a reader of the repository and a runner meet them."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest

from learngene_core.config import FIELDS, RUN_NAMES, Config
from learngene_core.errors import StudyError
from learngene_core.runs.run import Run, parameters_of
from learngene_core.study import links, notebooks
from learngene_core.study.whole import run_study

PATHS = notebooks.numbered()
every = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)


def code_cells(nb):
    return [c for c in nb.cells if c.cell_type == "code"]


def small(tmp_path, *sources, tags=("parameters",)):
    """A notebook of code cells, the first ones tagged in turn."""
    cells = [nbformat.v4.new_code_cell(s) for s in sources]
    for cell, tag in zip(cells, tags, strict=False):
        cell.metadata["tags"] = [tag] if tag else []
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


# what is committed --------------------------------------------------------------------------------------------------
def test_the_paradigm_and_the_method_are_there():
    assert [p.name[:2] for p in PATHS][:5] == ["00", "01", "02", "03", "04"]


@every
def test_parameters_cell_is_flat_and_holds_only_fields(path):
    cells = [c for c in code_cells(notebooks.read(path)) if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    body = ast.parse(cells[0].source).body
    lines = cells[0].source.splitlines()
    assert len(body) == len(lines)
    for node, line in zip(body, lines, strict=True):
        assert isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Constant), (
            f"not a flat typed value: {line}"
        )
        assert node.target.id in FIELDS or node.target.id in RUN_NAMES, f"{node.target.id} is no field"
        assert "  # " in line, f"no comment: {line}"


@every
def test_committed_outputs_belong_to_the_committed_code(path):
    nb = notebooks.read(path)
    assert nb.metadata["learngene"]["executed"] == notebooks.source_hash(nb), "code changed: run `make notebooks`"
    assert [c.execution_count for c in code_cells(nb)] == list(range(1, len(code_cells(nb)) + 1))
    assert not [o for c in code_cells(nb) for o in c.outputs if o.output_type == "error"]
    assert nb.metadata["kernelspec"]["name"] == notebooks.KERNEL


@every
def test_committed_notebook_carries_no_noise(path):
    nb = notebooks.read(path)
    assert set(nb.metadata) == {"kernelspec", "language_info", "learngene"}
    for cell in nb.cells:
        assert set(cell.metadata) <= {"tags"}
        assert "injected-parameters" not in cell.metadata.get("tags", [])
    text = path.read_text(encoding="utf-8")
    for noise in ('"papermill":', "/home/", "/roo" + "t/", "/tmp/", "\\Users\\"):  # the key of its metadata
        assert noise not in text, noise


@every
def test_half_words_and_short_cells(path):
    nb = notebooks.read(path)
    words = sum(len(c.source.split()) for c in nb.cells if c.cell_type == "markdown")
    longest = max(len(c.source.splitlines()) for c in code_cells(nb))
    share = sum(c.cell_type == "markdown" for c in nb.cells) / len(nb.cells)
    assert words >= 500 and longest <= 25 and 0.35 <= share <= 0.7


@every
def test_a_static_figure_stands_before_every_widget(path):
    cells = code_cells(notebooks.read(path))
    for before, cell in zip(cells, cells[1:], strict=False):
        if "_explorer(" in cell.source:
            assert any("image/png" in o.get("data", {}) or o.get("name") for o in before.outputs)


TRAINED = ("collective", "record", "results", "openworld", "atlas_cells", "controls", "layer_scores", "verdicts")


@every
def test_a_cell_that_trains_when_the_run_is_new_says_so_in_its_first_line(path):
    asked = set()
    for cell in code_cells(notebooks.read(path)):
        new = set(re.findall(r"\bchain\.(\w+)", cell.source)) & set(TRAINED) - asked
        assert not new or cell.source.startswith("# trains"), f"{cell.id} trains {new}"
        asked |= set(TRAINED) if "verdicts" in new else new  # the verdicts ask for everything


class Names(ast.NodeVisitor):
    """Names that a cell gives values to at its top level, and those it uses anywhere."""

    def __init__(self, source):
        self.given, self.used = set(), set()
        self.visit(ast.parse(source))

    def visit_Name(self, node):  # noqa: N802 (ast calls it so)
        (self.given if isinstance(node.ctx, ast.Store) else self.used).add(node.id)

    def visit_FunctionDef(self, node):  # noqa: N802
        self.given.add(node.name)
        inner = Names("\n".join(ast.unparse(part) for part in node.body))
        self.used |= inner.used - inner.given - {a.arg for a in [*node.args.args, *node.args.kwonlyargs]}


@every
def test_nothing_needs_what_only_a_lesson_computes(path):
    """So a sweep may leave lessons out. (A name that a cell gives itself before it uses it comes from no lesson.)"""
    taught, known = set(), set()
    for cell in code_cells(notebooks.read(path)):
        names = Names(cell.source)
        if notebooks.LESSON in cell.metadata.get("tags", []):
            taught |= names.given - known
            continue
        assert not (names.used - names.given) & (taught - known), cell.id
        known |= names.given


# the strict wrapper -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"sead": 1}, "seed"),
        ({"flip": "false"}, "flip"),
        ({"shots": "[1, 2]"}, "shots"),
        ({"out": 3}, "out"),
        ({"n_way": 1}, "n_way"),
    ],
)
def test_bad_parameters_are_refused_before_a_kernel_starts(parameters, names, tmp_path):
    with pytest.raises(ValueError, match=names):
        notebooks.execute(PATHS[0], tmp_path / "out.ipynb", {"preset": "smoke", **parameters})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("tags", [(), ("parameters", "parameters")])
def test_exactly_one_parameters_cell(tags, tmp_path):
    path = small(tmp_path, "seed = 0", "shots = None", tags=tags)
    with pytest.raises(StudyError, match=f"{len(tags)} parameters cells"):
        notebooks.checked_parameters(path, {"seed": 1})


def test_lessons_are_left_out_on_request_and_say_so(tmp_path):
    path = small(tmp_path, "seed = 0", "seed = 5\nprint('taught')", "print(seed)", tags=("parameters", "lesson", ""))
    said = {}
    for lessons in (True, False):
        out = tmp_path / f"{lessons}.ipynb"
        notebooks.execute(path, out, {"seed": 1}, lessons=lessons)
        said[lessons] = [cell.outputs[0].text.strip() for cell in notebooks.read(out).cells[-2:]]
    assert said == {True: ["taught", "5"], False: [notebooks.LEFT_OUT, "1"]}


def test_links_of_an_executed_copy_lead_somewhere(tmp_path):
    path = small(tmp_path, "seed: int = 0", "1 / 0")
    (tmp_path / "exercises").mkdir()
    (tmp_path / "exercises" / "a task.ipynb").touch()
    nb = notebooks.read(path)
    words = "[`tasks`](exercises/a%20task.ipynb#here), [next](next.ipynb), [gone](gone.md), [web](https://x.org/a.b), `[a](b)`"
    nb.cells.append(nbformat.v4.new_markdown_cell(words))
    notebooks.write(nb, path)
    for _ in range(2):  # also over the copy that is there, and when a cell fails
        with pytest.raises(StudyError):
            notebooks.execute(path, tmp_path / "run" / "copies" / path.name, {"seed": 1}, beside=["next.ipynb"])
    copy = notebooks.read(tmp_path / "run" / "copies" / path.name)
    assert copy.cells[-1].source == (
        "[`tasks`](../../exercises/a%20task.ipynb#here), [next](next.ipynb), gone, [web](https://x.org/a.b), `[a](b)`"
    )
    links.keep_words(nb, copy)
    assert copy.cells[-1].source == words


def test_values_reach_the_notebook_as_they_are(tmp_path):
    nasty = 'a "quote" \'n\\ \n%%bash\necho gone'
    path = small(
        tmp_path, "data_path: str = ''\nshots: list = None\nseed: int = 0", "print(repr(data_path), shots, seed)"
    )
    notebooks.execute(
        path, tmp_path / "out.ipynb", {"data_path": nasty, "shots": (1, np.int64(2)), "seed": np.int64(7)}
    )
    printed = notebooks.read(tmp_path / "out.ipynb").cells[-1].outputs[0].text
    assert printed == f"{nasty!r} [1, 2] 7\n"


def test_a_failing_cell_is_named_in_one_line_and_its_copy_is_kept(tmp_path):
    path = small(tmp_path, "seed: int = 0", "1 / 0")
    with pytest.raises(StudyError, match=r"small\.ipynb, cell \d+: ZeroDivisionError: division by zero") as caught:
        notebooks.execute(path, tmp_path / "out.ipynb", {"seed": 1})
    assert "\n" not in str(caught.value)
    assert notebooks.read(tmp_path / "out.ipynb").cells[-1].outputs[-1].ename == "ZeroDivisionError"


def test_a_kernel_that_does_nothing_is_ended_and_one_that_computes_is_not(tmp_path, monkeypatch):
    """A lost message would leave client and kernel waiting for each other for ever."""
    monkeypatch.setattr(notebooks, "IDLE_MINUTES", 5 / 60)
    work = "import time\nend = time.time() + 8\nwhile time.time() < end:\n    pass"
    path = small(tmp_path, "seed: int = 0", work, "print('computed')", "time.sleep(300)")
    with pytest.raises(StudyError, match=r"small\.ipynb: its kernel did nothing for .* minutes and was ended"):
        notebooks.execute(path, tmp_path / "out.ipynb", {"seed": 1})
    *_, printed, asleep = notebooks.read(tmp_path / "out.ipynb").cells
    assert printed.outputs[0].text == "computed\n" and not asleep.outputs


@pytest.mark.parametrize(("arguments", "names"), [(["-p", "sead", "1"], "sead"), (["-p", "n_way", "five"], "n_way")])
def test_plain_papermill_is_refused_by_the_set_up_cell(arguments, names, tmp_path):
    command = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", "-p", "preset", "smoke",
               "-p", "out", str(tmp_path / "run"), *arguments, str(PATHS[0]), str(tmp_path / "out.ipynb")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "ValueError" in done.stderr and names in done.stderr
    assert not (tmp_path / "run").exists()


def test_parameters_of_gives_back_the_configuration(tmp_path):
    cfg = Config.preset("cifar-cpu", seed=3, shots=(1, 5), layers=("conv1", "conv2"))
    given = parameters_of(cfg, tmp_path)
    namespace = {**given, "_hidden": 1}
    assert Config.from_notebook(namespace) == cfg


# the runs -----------------------------------------------------------------------------------------------------------
OWN = {"01": "division", "02": "collective", "03": "criteria", "04": "reconstruct", "05": "openworld", "06": "claims"}


@every
def test_each_notebook_runs_alone_and_computes_what_is_missing(path, judged_run, tmp_path):
    """On a run that lacks the notebook's own stage; the first two on an empty folder, where that is all there is to do."""
    run = Run.open(Config.preset("smoke"), tmp_path / "run")
    stage = OWN.get(path.name[:2])
    if stage not in ("division", "collective"):
        shutil.copytree(judged_run, run.path, dirs_exist_ok=True)
        if stage:
            run.forget(stage)
    notebooks.execute(path, tmp_path / "out.ipynb", {"preset": "smoke", "out": str(run.path)})
    nb = notebooks.read(tmp_path / "out.ipynb")
    assert nb.metadata.papermill.exception is None
    assert all(c.execution_count for c in code_cells(nb))
    assert not stage or run.done(stage)


@pytest.mark.slow
@every
def test_each_notebook_runs_alone_in_an_empty_folder(path, tmp_path):
    parameters = {"preset": "smoke", "n_target_tasks": 2, "out": str(tmp_path / "run")}
    notebooks.execute(path, tmp_path / "out.ipynb", parameters)
    assert notebooks.read(tmp_path / "out.ipynb").metadata.papermill.exception is None


@pytest.fixture(scope="module")
def study(shared):
    """A run folder in which the notebooks have computed everything, in order, from nothing. Read only."""
    path = shared("study", lambda folder: run_study(Config.preset("smoke"), folder))
    return Run.open(Config.preset("smoke"), path)


def test_the_chain_leaves_a_whole_run_folder(study):
    expected = ["config.json", "machine.json", "division.json", "history.csv", "gradients.csv", "histograms.npz", "scores.csv",
                "learngene.safetensors", "results.csv", "timings.csv", "report.html"]  # fmt: skip
    assert [name for name in expected if not (study.path / name).exists()] == []
    assert {p.name for p in (study.path / "notebooks").glob("*.ipynb")} == {p.name for p in PATHS}
    assert all(study.done(stage) for stage in ("division", "collective", "criteria", "reconstruct"))


def test_links_of_the_copies_in_a_run_folder_lead_somewhere(study):
    found = []
    for path in sorted((study.path / "notebooks").glob("*.ipynb")):
        text = "\n".join(cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown")
        targets = re.findall(r"\]\(((?!http|#)[^)]+)\)", text)
        assert not [target for target in targets if not (path.parent / target.split("#")[0]).exists()], path.name
        found += targets
    assert {"05_open_world.ipynb"} < set(found) and any("exercises/" in target for target in found)


def test_the_chain_gives_what_the_verbs_give(study, smoke_run):
    for name in ("history.csv", "scores.csv", "results.csv", "learngene.safetensors", "histograms.npz"):
        assert (study.path / name).read_bytes() == (smoke_run / name).read_bytes(), name


def test_results_have_a_row_per_individual(study):
    cfg, table = study.cfg, pd.read_csv(study.path / "results.csv")
    assert set(table.columns) >= {"family", "method", "shots", "target_task", "init", "accuracy"}
    trained = table[table["family"] != "none"]
    arms = trained.groupby(["family", "block", "method"]).size()
    assert (
        len(arms) == 13
    )  # light: three blocks, each with its scratch, and two more of the learngene's; same shape: five
    assert (arms == cfg.n_target_tasks * cfg.n_inits * len(cfg.shots)).all()
    assert not table.duplicated(["family", "block", "method", "shots", "target_task", "init"]).any()
    assert table["accuracy"].between(0, 100).all()


def test_a_second_study_reuses_the_first(study, capsys):
    before = {p: p.stat().st_mtime_ns for p in study.path.rglob("*") if p.is_file() and not p.name.startswith(".")}
    run_study(study.cfg, study.path)
    assert "reused" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_the_report_is_one_self_contained_page(study):

    page = (study.path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(
        r'src="https?://|<link[^>]*href="https?://', page
    )  # links to sources may be followed, not loaded
    assert page.count("data:image/png;base64") >= 10
    for path in PATHS:
        assert f'<section id="{path.stem}">' in page
    for text in ("Findings", "All methods", "gain over own scratch"):
        assert text in page
    unfolded = re.sub(r'<details class="code">.*?</details>', "", page, flags=re.DOTALL)
    assert "from" in page and 'class="kn"' in page and 'class="kn"' not in unfolded.split("<body>")[1]


def test_sources_are_a_list_of_paths(tmp_path):
    path = notebooks.numbered("08_*.ipynb")[0]
    for bad in ("runs/one", [1], {"a": 1}):
        with pytest.raises(ValueError, match="sources takes a list of paths"):
            notebooks.checked_parameters(path, {"sources": bad})
    for good in (None, [], ["runs/one", tmp_path]):
        notebooks.checked_parameters(path, {"sources": good})
    assert Config.from_notebook({"preset": "smoke", "sources": ["a"], "out": ""}) == Config.preset("smoke")
    with pytest.raises(ValueError, match="sources"):
        Config.from_notebook({"preset": "smoke", "sources": "a"})
