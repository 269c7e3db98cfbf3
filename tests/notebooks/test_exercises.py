"""Exercises as a student, a lecturer and the author of a notebook meet them: tasks, their checks, the generated versions."""

from __future__ import annotations

import contextlib
import io
import shutil

import exercises
import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest
from exercises import student_version

from learngene_core.errors import StudyError
from learngene_core.study import notebooks
from learngene_core.study.exercises import answered

PATHS = notebooks.numbered()
COMMITTED = notebooks.folder() / "exercises"


def tagged(nb, *tags):
    return [c for c in nb.cells if c.cell_type == "code" and set(tags) & set(c.metadata.get("tags", []))]


def tasks_of(path):
    """Solution and check of every task of a notebook."""
    cells = tagged(notebooks.read(path), "solution", "check")
    return [(path, solution, check) for solution, check in zip(cells[::2], cells[1::2], strict=True)]


TASKS = [task for path in PATHS for task in tasks_of(path)]
WITH_TASKS = list(dict.fromkeys(path for path, *_ in TASKS))
ANSWERS = [
    (path, solution, check, match.group(1))
    for path, solution, check in TASKS
    for match in map(exercises._ANSWER.match, solution.source.splitlines())
    if match
]
every_task = pytest.mark.parametrize(("path", "solution", "check"), TASKS, ids=[s.id for _, s, _ in TASKS])
every_answer = pytest.mark.parametrize(
    ("path", "solution", "check", "name"), ANSWERS, ids=[f"{s.id}-{n}" for _, s, _, n in ANSWERS]
)
each = pytest.mark.parametrize("path", WITH_TASKS, ids=lambda p: p.stem)

# what a student may well write; it runs behind the solution, so that its names are there
WRONG = {
    "01-exercise-3-solution": ["times = [50 * 5 / len(div.base)] * len(div.base)", "times = [n - 1 for n in times]",
                               "times = [name in drawn for name in div.base]", "times = Counter(drawn)",
                               "times = times[::-1]"],
    "01-exercise-4-solution": ["related = {name: list(family.values()).count(family[name]) for name in div.novel}",
                               "related = {name: families.count(family[name]) for name in div.base}",
                               "related = list(related.values())", "related = len(div.novel)"],
    "01-exercise-5-solution": ["sampler = window(np.random.default_rng(0))", "sampler = lambda rng: window(rng, 4)",
                               "sampler = lambda rng: div.novel[:3]", "sampler = lambda rng: rng.permutation(div.novel)[:3]",
                               "sampler = lambda rng: div.base[:3]", "sampler = lambda rng: window(np.random.default_rng())"],
    "02-exercise-3-solution": ["incoming = wide.blocks['conv5'].conv.weight[:width]", "added = incoming.numel()",
                               "outgoing = wide.blocks['conv6'].conv.weight[:, :width]",
                               "outgoing = wide.blocks['conv6'].conv.weight[width:]",
                               "outgoing = wide.blocks['conv5'].conv.weight[width:]",
                               "incoming, outgoing = outgoing, incoming", "incoming = incoming[:-1]",
                               "incoming = incoming.clone()", "outgoing = outgoing.numel()",
                               "added = incoming.numel() + outgoing.numel() + width"],
    "02-exercise-4-solution": ["transfer = change.mean()", "transfer = -change[:-1].mean()",
                               "transfer = change[:-1].sum()", "transfer = change[:-1]"],
    "02-exercise-5-solution": ["recorder_of_mine = large_entries(wide, 0.1)", "recorder_of_mine = lambda net, t: {}",
                               "recorder_of_mine = lambda net, t: {n: (b.conv.weight.grad.abs() > t).sum() "
                               "for n, b in net.blocks.items()}",
                               "recorder_of_mine = lambda net, t: {n: (b.conv.weight > t).sum() for n, b in net.blocks.items()}",
                               "recorder_of_mine = lambda net, t: {n: (b.conv.weight.grad.clamp_(min=0) > t).sum() "
                               "for n, b in net.blocks.items()}"],
    "03-exercise-3-solution": ["rule = lowest_block(shares, 3)", "rule = lambda s, n: lowest_block(s, n) + 1",
                               "rule = lambda s, n: lowest_block(-s, n)", "rule = lambda s, n: int(s.mean(0).argmin())",
                               "rule = lambda s, n: min(range(s.shape[1] - n + 1), key=lambda a: s[:, a : a + n].sum())"],
    "03-exercise-4-solution": ["starts = means.argmin(1)", "starts = means.argmax(1) + 1", "starts = starts[0]",
                               "starts = null.argmax(1) + 1"],
    "04-exercise-3-solution": ["gains = -gains", "gains = table['learngene']",
                               "half = 1.96 * gains.std(ddof=1) / np.sqrt(len(gains))",
                               "half = stats.t.ppf(0.95, len(gains) - 1) * gains.std() / np.sqrt(len(gains))",
                               "half = stats.t.ppf(0.975, len(gains) - 1) * gains.std()", "half = 2 * half",
                               "gains = np.full(len(gains), gains.mean())"],
    "04-exercise-5-solution": ["inherit_mine = put(newborn, homework.tensors)", "inherit_mine = lambda net, tensors: net",
                               "inherit_mine = lambda net, tensors: copy.deepcopy(put(net, tensors))",
                               "inherit_mine = lambda net, tensors: "
                               "net.load_state_dict({f'blocks.{n}': t for n, t in tensors.items()}, strict=False, assign=True) "
                               "and net"],
    "04-exercise-4-solution": ["share = 9 * sizes / sizes.sum()", "share = 100 * np.array(widths) / sum(widths)",
                               "share = [100 * (9 * a * a + 3 * a) / sum(9 * b * b + 3 * b for b in widths) for a in widths]",
                               "share = share[3:]"],
    "05-exercise-4-solution": ["auroc = 100 - auroc", "auroc = auroc / 100", "auroc = 100 * (known > unknown.mean()).mean()",
                               "auroc = 100 * ranks[:n].sum() / (n * len(unknown))", "auroc = 'high'"],
    "05-exercise-5-solution": ["threshold = ordered[0]", "threshold = ordered[-may_go - 1]",
                               "threshold = np.quantile(known, 0.5)", "threshold = ordered[may_go] + 1e-6",
                               "threshold = ordered[max(0, may_go - 1)]"],
    "06-exercise-4-solution": ["regret = some['gain'].max() - some['gain'].iloc[np.argmax(means)]", "regret = -regret - 1",
                               "regret = blocks['gain'].max() - some['gain'].iloc[np.argmin(means)] + 0.01",
                               "regret = some['gain'].max()"],
    "06-exercise-5-solution": ["rho = -rho", "rho = np.corrcoef(depth, blocks['gain'])[0, 1]", "rho = 100 * rho",
                               "rho = np.corrcoef(stats.rankdata(blocks['last']), stats.rankdata(blocks['gain']))[0, 1]"],
    "07-exercise-3-solution": ["term = [squared[:t].mean() / (2 * sigma * t * np.sqrt(m)) for t in ts]",
                               "term = [squared[:t].sum() / (2 * sigma * np.sqrt(m)) for t in ts]", "term = term[:2]",
                               "term = [squared[:t].sum() / (2 * sigma * t * m) for t in ts]", "term = 3 * [term[2]]"],
    "07-exercise-4-solution": ["limit = budget + 1", "limit = 100 * limit", "limit = np.exp(-budget)",
                               "limit = 1 - np.exp(-(nats + np.log(2 * np.sqrt(m) / 0.05)) / m)",
                               "limit = 1 - np.exp(-(nats + np.log(13) + np.log(2 * m / 0.05)) / m)"],
    "08-exercise-4-solution": ["honest = honest[::-1]", "honest = honest[0]", "honest = (means.min(), means.max())",
                               "half = 1.96 * means.std() / 2; honest = (means.mean() - half, means.mean() + half)",
                               "half = stats.t.ppf(0.975, 11) * small['gain'].std() / np.sqrt(12); "
                               "honest = (4.225 - half, 4.225 + half)",
                               "honest = (honest[0] + 1, honest[1] + 1)"],
}  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(judged_run, tmp_path_factory):
    """A finished smoke run of our own, for cells that open it."""
    return shutil.copytree(judged_run, tmp_path_factory.mktemp("exercises") / "run")


@pytest.fixture(scope="module")
def prepared(run_folder):
    """Notebook -> the names that exist once its parameters and set-up cells have run (each notebook once)."""
    matplotlib.use("Agg")
    done = {}

    def names(path):
        if path not in done:
            namespace = {"__name__": "__main__"}
            for cell in tagged(notebooks.read(path), "parameters", "setup"):
                run(cell.source, namespace)
                if "parameters" in cell.metadata.tags:
                    namespace.update(preset="smoke", out=str(run_folder))
            plt.close("all")
            done[path] = namespace
        return dict(done[path])

    with matplotlib.rc_context():  # the notebooks set a style; other tests have their own
        yield names


def run(source, namespace):
    """Run one cell; returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, "cell", "exec"), namespace)
    return printed.getvalue()


# the tasks ----------------------------------------------------------------------------------------------------------
def test_every_notebook_of_the_first_six_has_a_code_task_and_an_open_question():
    assert [p.name[:2] for p in WITH_TASKS][:6] == ["01", "02", "03", "04", "05", "06"]
    for path in WITH_TASKS:
        section = "\n".join(text for _, text in exercises._section(notebooks.read(path).cells))
        assert "Predict, then run" in section and "Open" in section
        assert f"exercises/{path.name}" in section, "the numbered notebook says where the student version is"


@every_task
def test_the_solution_passes_its_check_every_time(path, solution, check, prepared):
    namespace = prepared(path)
    run(solution.source, namespace)
    first = run(check.source, namespace)
    assert first and run(check.source, namespace) == first, "a check prints what was learned, and changes nothing"


@every_answer
def test_an_answer_left_out_fails_in_words(path, solution, check, name, prepared):
    namespace = prepared(path)
    run(solution.source, namespace)
    namespace[name] = ...
    with pytest.raises(AssertionError, match=f"`{name}` is still missing: .{{20}}"):
        run(check.source, namespace)


@every_task
def test_an_untouched_task_fails_in_words(path, solution, check, prepared):
    namespace = prepared(path)
    stub = next(c for c in student_version(path).cells if c.id == solution.id)
    run(stub.source, namespace)
    with pytest.raises(AssertionError, match="is still missing: put your answer in place of the three dots"):
        run(check.source, namespace)


@every_task
def test_wrong_answers_fail_in_words_and_the_right_one_passes_afterwards(path, solution, check, prepared):
    assert WRONG.get(solution.id), "no wrong answer is tried here"
    namespace = prepared(path)
    for wrong in WRONG[solution.id]:
        run(solution.source, namespace)
        run(wrong, namespace)
        with pytest.raises(AssertionError) as caught:
            run(check.source, namespace)
            pytest.fail(f"passes: {wrong}")
        assert len(str(caught.value).splitlines()[0].split()) > 5, wrong
    run(solution.source, namespace)
    assert run(check.source, namespace)


@every_task
def test_a_check_does_not_give_the_solution_away(path, solution, check):
    squeezed = "".join(check.source.split())
    for line in solution.source.splitlines():
        right = line.split("  # answer:")[0].split(" = ", 1)[-1]
        assert len(right) < 15 or "".join(right.split()) not in squeezed, line
    assert len(solution.source.splitlines()) <= 8 and len(check.source.splitlines()) <= 15


# the student versions -----------------------------------------------------------------------------------------------
def test_the_committed_student_versions_are_up_to_date(tmp_path):
    written = exercises.write_all(tmp_path)
    assert [p.name for p in written] == [p.name for p in WITH_TASKS]
    assert {p.name for p in COMMITTED.glob("*.ipynb")} == {p.name for p in written}, "run `make exercises`"
    for path in written:
        assert path.read_bytes() == (COMMITTED / path.name).read_bytes(), f"{path.name}: run `make exercises`"


@each
def test_a_student_version_holds_the_tasks_and_nothing_that_answers_them(path):
    student, source = student_version(path), notebooks.read(path)
    nbformat.validate(student)
    assert notebooks.checked_parameters(COMMITTED / path.name, {"preset": "smoke", "out": "x"})
    assert "`make exercises`" in student.cells[0].source and path.name in student.cells[0].source
    assert set(student.metadata) == {"kernelspec", "language_info", "learngene"}
    for cell in student.cells:
        assert set(cell.metadata) <= {"tags"} and not cell.get("outputs") and cell.get("execution_count") is None
    sources = [c.source for c in student.cells]
    for _, solution, check in tasks_of(path):
        assert solution.source not in sources
        assert sources[sources.index(check.source) - 1].startswith(exercises.PROMPT)
        for line in (line for line in solution.source.splitlines() if line.strip() and "# answer" not in line):
            assert line not in "\n".join(sources), f"a line of the solution is left: {line}"
    section = "\n".join(text for _, text in exercises._section(source.cells))
    headings = [line for line in section.splitlines() if line.startswith("### ")]
    assert [line for text in sources for line in text.splitlines() if line.startswith("### ")] == headings
    assert "What is handed on" not in "".join(sources)


def test_answers_of_a_student_are_not_overwritten(tmp_path):
    paths = exercises.write_all(tmp_path)
    before = paths[0].read_bytes()
    text = before.decode().replace(exercises.TEXT_ANSWER, "Four times.")
    paths[0].write_text(text, encoding="utf-8")
    mine = paths[0].read_bytes()
    with pytest.raises(StudyError, match="somebody's answers; save it under another name"):
        exercises.write_all(tmp_path)
    assert paths[0].read_bytes() == mine != before
    executed = notebooks.read(paths[1])
    next(c for c in executed.cells if c.cell_type == "code").execution_count = 7  # looked at, not worked on
    notebooks.write(executed, paths[1])
    paths[0].unlink()
    exercises.write_all(tmp_path)
    assert paths[0].read_bytes() == before


def fill(path, target):
    """The student version with the solutions put in."""
    student = notebooks.read(COMMITTED / path.name)
    solutions = {solution.id: solution.source for _, solution, _ in tasks_of(path)}
    for cell in student.cells:
        cell.source = solutions.get(cell.id, cell.source)
    notebooks.write(student, target)
    return target


@pytest.mark.slow
@each
def test_a_student_version_runs_alone_in_a_fresh_kernel(path, run_folder, tmp_path):
    parameters = {"preset": "smoke", "out": str(run_folder)}
    notebooks.execute(fill(path, tmp_path / "filled.ipynb"), tmp_path / "done.ipynb", parameters)


@pytest.mark.slow
def test_an_untouched_student_version_stops_at_its_first_check(run_folder, tmp_path):
    parameters = {"preset": "smoke", "out": str(run_folder)}
    with pytest.raises(StudyError, match=r"cell \d+: AssertionError: `times` is still missing: put your answer"):
        notebooks.execute(COMMITTED / WITH_TASKS[0].name, tmp_path / "untouched.ipynb", parameters)


@pytest.mark.slow
def test_a_student_version_makes_a_new_run(tmp_path):
    parameters = {"preset": "smoke", "out": str(tmp_path / "new")}
    path = next(p for p in WITH_TASKS if p.name.startswith("03"))
    notebooks.execute(fill(path, tmp_path / "filled.ipynb"), tmp_path / "done.ipynb", parameters)
    assert (tmp_path / "new" / "histograms.npz").exists()


# what an author may get wrong -----------------------------------------------------------------------------------------
SOLUTION, CHECK = "two = 1 + 1  # answer: a number", "assert two == 2, 'another number'"


def notebook(tmp_path, *cells, before=()):
    """A notebook with exercises: (tag, source) for code, a string for words."""

    def made(cell):
        if isinstance(cell, str):
            return nbformat.v4.new_markdown_cell(cell)
        return nbformat.v4.new_code_cell(cell[1], metadata={"tags": [t for t in cell[0].split() if t]})

    start = ["# 9 · Toy", ("parameters", "seed: int = None  # seed"), *before, "## Exercises\n\n### 1. Two"]
    path = tmp_path / "09_toy.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[made(c) for c in [*start, *cells]]), path)
    return path


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([("solution", SOLUTION)], "a solution without a check"),
        ([("solution", SOLUTION), ("solution", SOLUTION), ("check", CHECK)], "a solution without a check"),
        ([("solution", SOLUTION), ("setup", "x = 1"), ("check", CHECK)], "a solution without a check"),
        ([("check", CHECK)], "a check without a solution"),
        ([("solution", SOLUTION), ("check", CHECK), ("check", CHECK)], "a check without a solution"),
        ([("solution", SOLUTION), ("check", CHECK), ("", "print(2)")], "setup, solution or check"),
        ([("solutions", SOLUTION), ("check", CHECK)], "setup, solution or check"),
        ([("solution setup", SOLUTION), ("check", CHECK)], "setup, solution or check"),
        ([("solution", "two = 1 + 1"), ("check", CHECK)], "no line `name = ...  # answer: what it is`"),
        (["## End", ("solution", SOLUTION), ("check", CHECK)], "outside the section"),
    ],
)
def test_tags_that_make_no_task_are_refused(cells, words, tmp_path):
    with pytest.raises(StudyError, match="09_toy.ipynb.*" + words.replace(".", r"\.")):
        student_version(notebook(tmp_path, *cells))


def test_what_a_student_version_takes_from_a_notebook(tmp_path):
    before = ["words", ("", "print('not needed')"), ("setup", "one = 1")]
    source = f"first = 3\n{SOLUTION}\nlast = two"
    behind = ["### 2. Open\n\nWhy?\n\n## End\n\nwords", ("", "print('end')")]
    path = notebook(tmp_path, "how?", ("solution", source), ("check", CHECK), *behind, before=before)
    kept = [c.source for c in student_version(path).cells][1:]
    stub = f"{exercises.PROMPT}\ntwo = ...  # a number"
    given = ["seed: int = None  # seed", "one = 1", "## Exercises", "### 1. Two", "how?"]
    assert kept == [*given, stub, CHECK, "### 2. Open\n\nWhy?", exercises.TEXT_ANSWER]


def test_a_notebook_without_code_tasks_has_no_student_version(tmp_path):
    assert student_version(notebook(tmp_path, "why?")) is None
    with pytest.raises(StudyError, match="no readable notebook|there is no notebook"):
        student_version(tmp_path / "none.ipynb")


@pytest.mark.parametrize(
    ("value", "shape", "words"),
    [(..., None, "`x` is still missing"), ("two", (), "should hold numbers, but it is str"), ([1, 2], (3,), "shape"),
     ([1, 2], (), "a single number"), ({"a": 1}, (1,), "should hold numbers"), (None, (), "`x` is still missing")],
)  # fmt: skip
def test_what_is_no_answer_is_said_in_words(value, shape, words):
    with pytest.raises(AssertionError, match=words):
        answered(value, "x", shape)


def test_answers_come_back_as_they_are_or_as_numbers():
    assert answered("conv1", "x") == "conv1"
    assert answered([1, 2], "x", (2,)).tolist() == [1.0, 2.0] and answered(3, "x", ()) == 3
