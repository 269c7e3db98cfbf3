"""Make the students' notebooks and the lecturer's solutions from one source per notebook: `make exercises`.

The source of notebook 03 is `exercises/03.md` beside this file: Markdown with fenced code. From it come

- `notebooks/exercises/03_*.ipynb` for students,
- `notebooks/solutions/03_*.ipynb` for lecturers, with all code and the model answers,
- the section "## Exercises" of the numbered notebook: a list of the tasks, without code.

The parts of a source, in this order:

    ```python setup                          what all tasks need: the run, its tables
    ## 3. Implement: the rule (★★★, 20 minutes)
    The question in one paragraph.           this paragraph also stands in the numbered notebook
    More text, and a folded hint.            <details><summary>Hint</summary>...</details>
    ```python given                          code that the student finds as it is
    ```python solution                       the student finds three dots in place of what `# answer:` marks
    ```python check                          assertions that say in a sentence what is wrong
    ### Answer                               the model answer, for the solutions only; code below it too

A line `name = ...  # answer: what it is` of a solution becomes `name = ...  # what it is`, with three dots. An indented line
`# answer: what it is` stands for the rest of its function. Of the other lines, the student keeps what belongs to such a
function before the mark; the rest is left out.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learngene_core.errors import StudyError, say
from learngene_core.study import notebooks

SOURCES = Path(__file__).with_name("exercises")
HEADING = "## Exercises"
PROMPT = "# Put your answer in place of the three dots."
TEXT_ANSWER = "*Your answer:*"
MODEL_ANSWER = "**Model answer.**"
KINDS = ("setup", "given", "solution", "check")

_TITLE = re.compile(r"^## (\d)\. (.+) \((★{1,3}), (\d+) minutes\)$")
_FENCE = re.compile(r"^```python ?(.*)$")
_ANSWER = re.compile(r"^(\w+) = .*\S  # answer: (.+)$")
_REST = re.compile(r"^(\s+)# answer: (.+)$")


@dataclass
class Task:
    """One exercise: its heading, what the student gets, and the model answer.

    parts: (kind, text) in order, where kind is `text` or one of KINDS; answer: the same, kind `text` or `code`.
    """

    number: int
    name: str
    level: str
    minutes: int
    parts: list[tuple[str, str]] = field(default_factory=list)
    answer: list[tuple[str, str]] = field(default_factory=list)

    @property
    def heading(self) -> str:
        """The heading without its number signs, as the source has it."""
        return f"{self.number}. {self.name} ({self.level}, {self.minutes} minutes)"

    @property
    def question(self) -> str:
        """The first paragraph."""
        return self.parts[0][1].split("\n\n")[0]

    def code(self, kind: str) -> str | None:
        """The code of one kind; None where the task has none."""
        return next((text for found, text in self.parts if found == kind), None)


@dataclass
class Source:
    """All exercises of one notebook."""

    path: Path
    setup: list[str]
    tasks: list[Task]


def read_source(path: Path) -> Source:
    """Parse one source. Raises StudyError with file, line or task where it does not have the form told above."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise StudyError(f"there is no source of exercises {path}") from None
    source, place = Source(path, [], []), "text"
    for kind, text, number in _pieces(path, lines):
        where = f"{path.name}, line {number}"
        if kind == "heading" and text.startswith("## "):
            if not (match := _TITLE.match(text)):
                raise StudyError(f"{where}: a task begins with `## 1. Name (★, 10 minutes)`, not with {text!r}")
            source.tasks.append(Task(int(match[1]), match[2], match[3], int(match[4])))
            place = "text"
        elif kind == "heading" and text == "### Answer" and source.tasks:
            place = "answer"
        elif kind == "setup" and not source.tasks:
            source.setup.append(text)
        elif kind in ("heading", "setup") or not source.tasks:
            raise StudyError(f"{where}: only code tagged `setup` may stand before the first task, and only there")
        elif place == "answer":
            source.tasks[-1].answer.append(("text" if kind == "text" else "code", text))
        else:
            source.tasks[-1].parts.append((kind, text))
    _check(source)
    return source


def _pieces(path: Path, lines: list[str]) -> list[tuple[str, str, int]]:
    """(kind, text, line) of headings, texts and fenced code; the kind of code is its tag, `code` where it has none."""
    found: list[tuple[str, str, int]] = []
    words: list[str] = []
    fence: tuple[str, int, list[str]] | None = None

    def close(number: int) -> None:
        if text := "\n".join(words).strip():
            found.append(("text", text, number))
        words.clear()

    for number, line in enumerate(lines, 1):
        if fence is not None:
            if line == "```":
                found.append((fence[0], "\n".join(fence[2]), fence[1]))
                fence = None
            else:
                fence[2].append(line)
        elif match := _FENCE.match(line):
            close(number)
            if match[1] not in (*KINDS, ""):
                raise StudyError(f"{path.name}, line {number}: code is tagged {', '.join(KINDS)}, not {match[1]!r}")
            fence = match[1] or "code", number, []
        elif line.startswith(("# ", "## ", "### ")):
            close(number)
            found.append(("heading", line, number))
        else:
            words.append(line)
    if fence is not None:
        raise StudyError(f"{path.name}, line {fence[1]}: this code is not closed by three backticks")
    close(len(lines))
    return found


def _check(source: Source) -> None:
    """Raise StudyError where tasks are incomplete."""
    if [task.number for task in source.tasks] != list(range(1, len(source.tasks) + 1)):
        raise StudyError(f"{source.path.name}: the tasks are not numbered 1, 2, 3, ...")
    for task in source.tasks:
        where, kinds = f"{source.path.name}, task {task.number}", [kind for kind, _ in task.parts]
        if kinds[:1] != ["text"] or "code" in kinds:
            raise StudyError(f"{where}: a task begins with its question, and its code has a tag")
        if kinds.count("solution") > 1 or kinds.count("check") > 1:
            raise StudyError(f"{where}: a task has one solution and one check")
        code = [kind for kind in kinds if kind in ("solution", "check")]
        if code and code != ["solution", "check"]:
            raise StudyError(f"{where}: a solution has a check after it, and a check a solution before it")
        if not code and not task.answer:
            raise StudyError(f"{where}: a question without code needs a model answer, below `### Answer`")
        if sum("<summary>Hint</summary>" in text for _, text in task.parts) != 1:
            raise StudyError(f"{where}: a task has one folded hint, <details><summary>Hint</summary>...</details>")
        if code:
            stub(source.path.name, task)


def stub(where: str, task: Task) -> str:
    """What the student finds in place of the solution. Raises StudyError where nothing in it is marked as an answer."""
    kept: list[str] = []
    function: list[str] = []  # lines of a function so far; kept once it turns out to hold a mark
    skipping = False
    answers = 0
    for line in (task.code("solution") or "").splitlines():
        inside = line.startswith((" ", ")")) or not line.strip()
        if not inside:
            skipping, function = False, [line] if line.startswith("def ") else []
        elif function and not skipping:
            if match := _REST.match(line):
                kept += [*([""] * bool(kept)), *function, f"{match[1]}...  # {match[2]}"]
                skipping, answers = True, answers + 1
            else:
                function.append(line)
        if match := _ANSWER.match(line):
            kept.append(f"{match[1]} = ...  # {match[2]}")
            answers += 1
    if not answers:
        raise StudyError(f"{where}, task {task.number}: the solution has no mark `# answer: what it is`")
    return "\n".join([PROMPT, *kept])


def student_version(path: Path, source: Source) -> Any:
    """The student's notebook that belongs to the numbered notebook at `path`."""
    cells = _opening(path, source, _for_students(path))
    for task in source.tasks:
        for number, (kind, text) in enumerate(_texts(task)):
            name = _name(path, task, kind, number)
            cells.append(_words(name, text) if kind == "text" else _code(name, text))
            if kind == "solution":
                cells[-1] = _code(name, stub(source.path.name, task))
        if task.code("solution") is None:
            cells.append(_words(f"{path.stem[:2]}-exercise-{task.number}-yours", TEXT_ANSWER))
    return _notebook(cells)


def solutions_version(path: Path, source: Source) -> Any:
    """The same with the solutions and the model answers."""
    cells = _opening(path, source, _for_lecturers(path))
    for task in source.tasks:
        for number, (kind, text) in enumerate(_texts(task)):
            name = _name(path, task, kind, number)
            cells.append(_words(name, text) if kind == "text" else _code(name, _bare(text)))
        for number, (kind, text) in enumerate(task.answer):
            name = f"{path.stem[:2]}-exercise-{task.number}-answer{number or ''}"
            text = f"{MODEL_ANSWER} {text}" if not number and kind == "text" else text
            cells.append(_words(name, text) if kind == "text" else _code(name, text))
    return _notebook(cells)


def _bare(text: str) -> str:
    """A solution without the marks."""
    lines = [re.sub(r"# answer: ", "# ", line) for line in text.splitlines()]
    return "\n".join(lines)


def _texts(task: Task) -> list[tuple[str, str]]:
    """The parts of a task; its heading stands above the first."""
    (kind, text), *rest = task.parts
    return [(kind, f"## {task.heading}\n\n{text}"), *rest]


def _name(path: Path, task: Task, kind: str, number: int) -> str:
    """The id of a cell."""
    first = f"{path.stem[:2]}-exercise-{task.number}"
    return f"{first}-{kind}{number}" if kind in ("text", "given") and number else f"{first}-{kind}" if number else first


def section(path: Path, source: Source) -> str:
    """What the numbered notebook says of its exercises: the list of tasks and where they are."""
    items = [f"{t.number}. **{t.name}** ({t.level}, {t.minutes} minutes). {t.question}" for t in source.tasks]
    return (
        f"{HEADING}\n\n"
        f"Work on them in [exercises/{path.name}](exercises/{path.name}). That notebook runs alone on a finished run, has "
        f"hints, and checks what you write. [solutions/{path.name}](solutions/{path.name}) has the code and model answers. "
        "One star: look and think. Two: a few lines of code, or a run of your own. Three: implement or argue.\n\n"
    ) + "\n".join(items)


def write_all(target: Path | None = None) -> list[Path]:
    """Write `exercises/` and `solutions/` below `target`, by default `notebooks/`; returns the files.

    With the default target the section of exercises in each numbered notebook is brought up to date, too.
    Raises StudyError as `read_source`, and, before anything is written, for a file there that somebody has worked on.
    """
    home = notebooks.folder()
    target = home if target is None else target
    sources = {path: read_source(SOURCES / f"{path.stem[:2]}.md") for path in with_exercises()}
    made = {target / "exercises" / path.name: student_version(path, source) for path, source in sources.items()}
    made |= {target / "solutions" / path.name: solutions_version(path, source) for path, source in sources.items()}
    for path in made:
        if path.exists() and _worked_on(path):
            raise StudyError(f"{path} holds somebody's answers; save it under another name, then delete it here")
    for path, notebook in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        notebooks.write(notebook, path)
    if target == home:
        for path, source in sources.items():
            _update_section(path, section(path, source))
    say(f"{len(made)} notebooks written, for students and for lecturers")
    return [*made]


def with_exercises() -> list[Path]:
    """The numbered notebooks that have a source of exercises."""
    return [path for path in notebooks.numbered() if (SOURCES / f"{path.stem[:2]}.md").exists()]


def _update_section(path: Path, text: str) -> None:
    """Put the list of tasks into the cell of a numbered notebook that is kept for it.

    Raises StudyError where there is no such cell.
    """
    notebook = notebooks.read(path)
    cell = next((cell for cell in notebook.cells if cell.id == f"{path.stem[:2]}-exercises"), None)
    if cell is None:
        raise StudyError(f"{path.name} has no cell {path.stem[:2]}-exercises for the list of its exercises")
    if cell.source != text:
        cell.source = text
        notebooks.write(notebook, path)


def _worked_on(path: Path) -> bool:
    """Whether the cells of a written notebook are no longer what was generated."""
    notebook = notebooks.read(path)
    return notebook.metadata.get("learngene", {}).get("generated") != _fingerprint(notebook)


def _fingerprint(notebook: Any) -> str:
    """16 hexadecimal digits over what the cells say."""
    return hashlib.sha256("\x00".join(cell.source for cell in notebook.cells).encode()).hexdigest()[:16]


def _opening(path: Path, source: Source, words: str) -> list[Any]:
    """Title, parameters cell of the numbered notebook, set-up cells."""
    number, numbered = path.stem[:2], notebooks.read(path)
    title = next(c.source for c in numbered.cells if c.cell_type == "markdown").splitlines()[0]
    minutes = sum(task.minutes for task in source.tasks)
    parameters = next(c for c in numbered.cells if "parameters" in c.metadata.get("tags", []))
    first = _words(f"{number}-title", f"{title}: {words} About {minutes} minutes in all.")
    setup = [_code(f"{number}-setup{place or ''}", text, "setup") for place, text in enumerate(source.setup)]
    return [first, _code(parameters.id, parameters.source, "parameters"), *setup]


def _for_students(path: Path) -> str:
    return (
        f"exercises\n\nRead [{path.name}](../{path.name}) first. This notebook runs alone: the next two cells load a finished "
        "run (`make study`), or make it where there is none. Keep your answers in a copy under another name; "
        "`make exercises` writes this file. A check says in a sentence what is missing or wrong."
    )


def _for_lecturers(path: Path) -> str:
    return (
        f"solutions\n\nThe exercises of [{path.name}](../{path.name}) with code and model answers. "
        f"Students have [the same tasks](../exercises/{path.name}) without them. Changes belong into the source, "
        f"`notebooks/tools/exercises/{path.stem[:2]}.md`; `make exercises` writes both."
    )


def _notebook(cells: list[Any]) -> Any:
    import nbformat

    made = nbformat.v4.new_notebook(cells=cells)
    made.nbformat_minor = 5
    kernel = {"display_name": "Python 3", "language": "python", "name": notebooks.KERNEL}
    marks = {"generated": _fingerprint(made)}
    made.metadata.update({"kernelspec": kernel, "language_info": {"name": "python"}, "learngene": marks})
    return made


def _words(name: str, text: str) -> Any:
    import nbformat

    return nbformat.v4.new_markdown_cell(text, id=name)


def _code(name: str, text: str, tag: str = "") -> Any:
    import nbformat

    return nbformat.v4.new_code_cell(text, id=name, metadata={"tags": [tag]} if tag else {})


if __name__ == "__main__":
    try:
        write_all()
    except StudyError as error:
        sys.exit(f"error: {error}")
