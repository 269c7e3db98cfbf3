"""The sources of the exercises, what is written from them, and what an author may get wrong."""

from __future__ import annotations

import re
import shutil

import exercises
import nbformat
import pytest
from exercises import MODEL_ANSWER, TEXT_ANSWER, section, solutions_version, student_version
from exercisesource import PROMPT, read_source

from learngene_core.errors import StudyError
from learngene_core.study import notebooks

HOME = notebooks.folder()
SOURCES = {path: read_source(exercises.SOURCES / f"{path.stem[:2]}.md") for path in exercises.with_exercises()}
each = pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
README = (HOME / "README.md").read_text(encoding="utf-8")


def sources_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


# what is committed ----------------------------------------------------------------------------------------------------
def test_what_is_committed_is_what_make_exercises_writes(tmp_path):
    written = exercises.write_all(tmp_path)
    assert len(written) == 2 * len(SOURCES)
    for folder in ("exercises", "solutions"):
        assert {p.name for p in (HOME / folder).glob("*.ipynb")} == {p.name for p in SOURCES}, "run `make exercises`"
    for path in written:
        committed = HOME / path.relative_to(tmp_path)
        assert path.read_bytes() == committed.read_bytes(), f"{path.relative_to(tmp_path)}: run `make exercises`"
    assert exercises.with_table(README, SOURCES) == README, "the table of the README: run `make exercises`"


@each
def test_a_numbered_notebook_lists_its_exercises_and_solves_none(path):
    notebook, source = notebooks.read(path), SOURCES[path]
    (listed,) = (cell for cell in notebook.cells if cell.source.startswith(exercises.HEADING))
    assert listed.source == section(path, source), "run `make exercises`"
    for task in source.tasks:
        assert f"**{task.name}** ({task.level}, {task.minutes} minutes)" in listed.source
    for folder in ("exercises", "solutions"):
        assert f"({folder}/{path.name})" in listed.source and (HOME / folder / path.name).exists()
    after = notebook.cells[notebook.cells.index(listed) + 1]
    assert after.cell_type == "markdown" and after.source.startswith("## "), "no code among the exercises"
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for cell in notebook.cells:
        assert not {"solution", "check", "answer"} & set(cell.metadata.get("tags", [])), cell.id
    for task in source.tasks:
        solution = task.code("solution") or ""
        for right in re.findall(r"^\w+ = (.{15,})  # answer:", solution, re.MULTILINE):
            assert right not in code, right
        for body in re.findall(r"^ +# answer:.*\n((?: +.*\n?)+)", solution, re.MULTILINE):
            assert body.rstrip() not in code, body
        for _, text in task.answer:
            assert text not in sources_of(notebook)


@each
def test_a_student_file_has_the_tasks_and_nothing_that_answers_them(path):
    student, source = notebooks.read(HOME / "exercises" / path.name), SOURCES[path]
    nbformat.validate(student)
    assert notebooks.checked_parameters(HOME / "exercises" / path.name, {"preset": "smoke", "out": "x"})
    for cell in student.cells:
        assert set(cell.metadata) <= {"tags"} and not cell.get("outputs") and cell.get("execution_count") is None
    text = sources_of(student)
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [f"## {task.heading}" for task in source.tasks]
    assert text.count(PROMPT) == sum(task.code("solution") is not None for task in source.tasks)
    assert text.count(TEXT_ANSWER) == sum(task.code("solution") is None for task in source.tasks)
    assert MODEL_ANSWER not in text and text.count("<summary>Hint</summary>") == len(source.tasks)
    for task in source.tasks:
        for _, answer in task.answer:
            assert answer not in text
        secret = False
        for line in (task.code("solution") or "").splitlines():
            if match := re.match(r"^(\w+) = (.*)  # answer: ", line):
                assert match[2] not in text, f"an answer is left: {line}"
            if secret and len(line.strip()) > 20:
                assert line not in text, f"a line of the solution is left: {line}"
            secret = (secret or line.strip().startswith("# answer:")) and not line.startswith("def ")


@each
def test_the_solutions_have_all_code_and_a_model_answer_to_each_question(path):
    solutions, source = notebooks.read(HOME / "solutions" / path.name), SOURCES[path]
    nbformat.validate(solutions)
    text = sources_of(solutions)
    assert PROMPT not in text and TEXT_ANSWER not in text and "# answer:" not in text and "= ..." not in text
    cells = {cell.id: cell for cell in solutions.cells}
    for task in source.tasks:
        start = f"{path.stem[:2]}-exercise-{task.number}"
        if task.code("solution") is None:
            answer = cells[f"{start}-answer"].source
            assert answer.startswith(MODEL_ANSWER) and len(answer.split()) > 30, task.heading
        else:
            assert {f"{start}-solution", f"{start}-check"} <= cells.keys()
            compile(cells[f"{start}-solution"].source, start, "exec")


def test_each_notebook_has_something_to_look_at_to_compute_and_to_argue():
    assert [path.stem[:2] for path in SOURCES] == [f"{n:02}" for n in range(1, 9)]
    for path, source in SOURCES.items():
        names = " ".join(task.name for task in source.tasks)
        assert "Predict, then run" in names and "Open" in names and "Implement" in names, path.name
        assert {task.level for task in source.tasks} >= {"★", "★★"}
        assert all(5 <= task.minutes <= 30 for task in source.tasks)
    own = {path.stem[:2]: {t.name for t in s.tasks if t.name.startswith("Implement")} for path, s in SOURCES.items()}
    for number, words in {"02": "widen recorder", "03": "rule cut", "04": "inherit elastic"}.items():
        assert all(any(word in name for name in own[number]) for word in words.split())


def test_the_homework_plan_counts_its_minutes_from_the_sources():
    plan = README.split("### Homework")[1].split("## One lecture")[0]
    minutes = {path.stem[:2]: {task.number: task.minutes for task in source.tasks} for path, source in SOURCES.items()}
    rows = re.findall(r"\| ((?:\d\d: [\d, ]+(?:; )?)+) \| (\d+) \|", plan)
    assert len(rows) == 7
    for tasks, total in rows:
        parts = (part.split(": ") for part in tasks.split("; "))
        assert int(total) == sum(minutes[nb][int(n)] for nb, numbers in parts for n in numbers.split(", ")), tasks
        assert f"{tasks} ({total} minutes)" in README.split("## Exercises")[0], "the course's table says the same"


# writing ------------------------------------------------------------------------------------------------------------
def test_work_of_a_student_or_a_lecturer_is_not_overwritten(tmp_path):
    paths = exercises.write_all(tmp_path)
    for path, old in ((paths[0], TEXT_ANSWER), (paths[-1], MODEL_ANSWER)):
        before = path.read_bytes()
        path.write_text(before.decode().replace(old, "Four times."), encoding="utf-8")
        mine = path.read_bytes()
        with pytest.raises(StudyError, match="somebody's answers; save it under another name"):
            exercises.write_all(tmp_path)
        assert path.read_bytes() == mine != before
        path.unlink()
        exercises.write_all(tmp_path)
        assert path.read_bytes() == before
    executed = notebooks.read(paths[1])
    next(c for c in executed.cells if c.cell_type == "code").execution_count = 7  # looked at, not worked on
    notebooks.write(executed, paths[1])
    exercises.write_all(tmp_path)
    assert notebooks.read(paths[1]).cells[1].get("execution_count") is None


def test_the_list_in_a_numbered_notebook_is_brought_up_to_date_and_nothing_else(tmp_path):
    path = tmp_path / "03_gradient_criteria.ipynb"
    shutil.copy(HOME / path.name, path)
    exercises._update_section(path, "## Exercises\n\nnone")
    before, after = (notebooks.read(p).cells for p in (HOME / path.name, path))
    changed = [a.id for a, b in zip(before, after, strict=True) if a != b]
    assert changed == ["03-exercises"]
    exercises._update_section(path, section(HOME / path.name, SOURCES[HOME / path.name]))
    assert path.read_bytes() == (HOME / path.name).read_bytes()
    with pytest.raises(StudyError, match="no cell 03-exercises for the list"):
        notebook = notebooks.read(path)
        notebook.cells = [cell for cell in notebook.cells if cell.id != "03-exercises"]
        notebooks.write(notebook, path)
        exercises._update_section(path, "text")


# the form of a source -------------------------------------------------------------------------------------------------
SOLUTION, CHECK = "```python solution\ntwo = 1 + 1  # answer: a number\n```", "```python check\nassert two == 2\n```"
TITLE, HINT = "## 1. Two (★, 5 minutes)", "<details><summary>Hint</summary>One and one.</details>"
ANSWER = "### Answer\n\nIt is two."


def source_of(tmp_path, *parts):
    path = tmp_path / "09.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return read_source(path)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((TITLE, f"how?\n\n{HINT}", SOLUTION), "a solution has a check after it"),
        ((TITLE, f"how?\n\n{HINT}", SOLUTION, SOLUTION, CHECK), "one solution and one check"),
        ((TITLE, f"how?\n\n{HINT}", CHECK), "a check a solution before it"),
        ((TITLE, f"how?\n\n{HINT}", CHECK, SOLUTION), "a check a solution before it"),
        ((TITLE, f"how?\n\n{HINT}"), "needs a model answer"),
        ((TITLE, "how?", SOLUTION, CHECK), "one folded hint"),
        ((TITLE, SOLUTION, CHECK), "begins with its question"),
        ((TITLE, f"how?\n\n{HINT}", "```python\nx = 1\n```", ANSWER), "its code has a tag"),
        (
            (TITLE, f"how?\n\n{HINT}", SOLUTION.replace("  # answer: a number", ""), CHECK),
            "no mark `# answer: what it is`",
        ),
        (
            (TITLE, f"how?\n\n{HINT}", "```python solutions\nx = 1\n```"),
            "line 7: code is tagged setup, given, solution, check",
        ),
        ((TITLE, f"how?\n\n{HINT}", "```python check\nx = 1"), "line 7: this code is not closed"),
        (("## 1. Two (5 minutes)", "how?"), "line 1: a task begins with `## 1. Name"),
        ((TITLE.replace("1", "2", 1), f"how?\n\n{HINT}", ANSWER), "not numbered 1, 2, 3"),
        (("words", TITLE), "only code tagged `setup` may stand before the first task"),
        ((TITLE, f"how?\n\n{HINT}", ANSWER, "```python setup\nx = 1\n```"), "only code tagged `setup`"),
    ],
)
def test_a_source_in_another_form_is_refused_in_one_line(parts, words, tmp_path):
    with pytest.raises(StudyError, match=f"^09.md.*{re.escape(words)}[^\n]*$"):
        source_of(tmp_path, *parts)


def test_a_missing_source_is_said(tmp_path):
    with pytest.raises(StudyError, match="there is no source of exercises"):
        read_source(tmp_path / "10.md")


def test_what_becomes_of_a_source(tmp_path):
    numbered = tmp_path / "09_toy.ipynb"
    cells = [
        nbformat.v4.new_markdown_cell("# 9 · Toy"),
        nbformat.v4.new_code_cell("seed: int = None  # seed", id="09-01"),
    ]
    cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), numbered)
    function = (
        'helper = 3\n\n\n@decorated\ndef double(x):\n    """Twice x."""\n    y = x\n    # answer: return a number\n'
        "    y = 2 * y\n\n    return y\n\n\ntwo = double(1)  # answer: a number\nlast = 4"
    )
    source = source_of(
        tmp_path, "```python setup\none = 1\n```", TITLE, "how?", f"more\n\n{HINT}", "```python given\nz = 0\n```",
        f"```python solution\n{function}\n```", CHECK, "```python given\nprint(two)\n```", "### Answer", "Because.",
        "```python\nprint(1)\n```", "## 2. Open (★★★, 10 minutes)", f"Why?\n\n{HINT}", ANSWER,
    )  # fmt: skip
    stub = (
        f'{PROMPT}\n@decorated\ndef double(x):\n    """Twice x."""\n    y = x\n'
        "    return ...  # return a number\ntwo = ...  # a number"
    )
    first, why = f"{TITLE}\n\nhow?\n\nmore\n\n{HINT}", f"## 2. Open (★★★, 10 minutes)\n\nWhy?\n\n{HINT}"
    check = CHECK.splitlines()[1]
    begins = ["seed: int = None  # seed", "one = 1", first, "z = 0"]
    student = [c.source for c in student_version(numbered, source).cells][1:]
    assert student == [*begins, stub, check, "print(two)", why, TEXT_ANSWER]
    solved = [c.source for c in solutions_version(numbered, source).cells][1:]
    bare = function.replace("# answer: ", "# ")
    answers = [f"{MODEL_ANSWER} Because.", "print(1)"]
    assert solved == [*begins, bare, check, "print(two)", *answers, why, f"{MODEL_ANSWER} It is two."]
    assert section(numbered, source).endswith(
        "\n\n1. **Two** (★, 5 minutes). how?\n2. **Open** (★★★, 10 minutes). Why?"
    )
    ids = [c.id for c in solutions_version(numbered, source).cells]
    assert len(ids) == len(set(ids))
