"""Write the students' versions of the numbered notebooks, made from their tagged solutions: `make exercises`.

In a numbered notebook the section "## Exercises" holds texts and code tasks. A task is a code cell tagged `solution`, then one
tagged `check`, whose assertions say in words what is missing. Lines `name = ...  # answer: what it is` of a solution become
`name = ...  # what it is` for the student, with three dots to be replaced; its other lines are left out. Code cells tagged
`setup`, in any section, are what the tasks need; with the parameters cell they make the student version run alone.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

from learngene_core.errors import StudyError, say
from learngene_core.study import notebooks

HEADING = "## Exercises"
PROMPT = "# Put your answer in place of the three dots; lines before it are welcome."
TEXT_ANSWER = "*Your answer:*"
_ANSWER = re.compile(r"^(\w+) = .*\S  # answer: (.+)$")


def student_version(path: Path) -> Any | None:
    """The student version of one notebook; None where it has no code task.

    Raises StudyError when a solution has no check or no line that is an answer, a check no solution, when a code cell among
    the exercises has none of the tags, or a task stands elsewhere.
    """
    import nbformat

    source = notebooks.read(path)
    section = _section(source.cells)
    _check_tags(path, source.cells, section)
    if not any("solution" in _tags(cell) for cell, _ in section):
        return None
    inside = {cell.id for cell, _ in section}
    before = [c for c in source.cells if _tags(c) & {"parameters", "setup"} and c.id not in inside]
    cells = [_title(path, source), *(_code(c.id, c.source, _tags(c) & {"parameters"}) for c in before)]
    student = nbformat.v4.new_notebook(cells=[*cells, *_exercise_cells(path, section)])
    student.nbformat_minor = 5
    kernel = {"display_name": "Python 3", "language": "python", "name": notebooks.KERNEL}
    marks = {"generated": _fingerprint(student)}
    student.metadata.update({"kernelspec": kernel, "language_info": {"name": "python"}, "learngene": marks})
    return student


def write_all(target: Path | None = None) -> list[Path]:
    """Write the student version of every numbered notebook that has code tasks into `target`, by default
    `notebooks/exercises`; returns the files.

    Raises StudyError as `student_version`, and, before anything is written, for a file there that somebody has worked on.
    """
    target = notebooks.folder() / "exercises" if target is None else target
    versions = {target / path.name: student_version(path) for path in notebooks.numbered()}
    versions = {path: student for path, student in versions.items() if student is not None}
    for path in versions:
        if path.exists() and _worked_on(path):
            raise StudyError(f"{path} holds somebody's answers; save it under another name, then delete it here")
    target.mkdir(parents=True, exist_ok=True)
    for path, student in versions.items():
        notebooks.write(student, path)
        say(f"{path.name}: student version written")
    return [*versions]


def _worked_on(path: Path) -> bool:
    """Whether the cells of a student notebook are no longer what was generated."""
    student = notebooks.read(path)
    return student.metadata.get("learngene", {}).get("generated") != _fingerprint(student)


def _fingerprint(student: Any) -> str:
    """16 hexadecimal digits over what the cells say."""
    return hashlib.sha256("\x00".join(cell.source for cell in student.cells).encode()).hexdigest()[:16]


def _tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", [])) if cell.cell_type == "code" else set()


def _section(cells: list[Any]) -> list[tuple[Any, str]]:
    """Cells of the section of exercises with their text; a markdown cell counts once for each heading in it."""
    found, inside = [], False
    for cell in cells:
        if cell.cell_type == "code":
            found += [(cell, cell.source)] if inside else []
            continue
        for part in notebooks.parts(cell.source):
            if part.startswith(("# ", "## ")):
                inside = part.splitlines()[0].strip() == HEADING
            found += [(cell, part)] if inside else []
    return found


def _exercise_cells(path: Path, section: list[tuple[Any, str]]) -> list[Any]:
    """The section as the student finds it: a stub for each solution, a place to write for each question without code."""
    cells = []
    for place, (cell, text) in enumerate(section):
        if cell.cell_type == "code":
            cells.append(_code(cell.id, _stub(path, cell) if "solution" in _tags(cell) else text, set()))
            continue
        cells.append(_words(cell.id if text == cell.source.strip() else f"{cell.id}-{place}", text))
        after = section[place + 1][1] if place + 1 < len(section) else "### "
        if text.startswith("### ") and after.startswith("### "):
            cells.append(_words(f"{cell.id}-answer", TEXT_ANSWER))
    return cells


def _check_tags(path: Path, cells: list[Any], section: list[tuple[Any, str]]) -> None:
    """Raise StudyError where the tags of a notebook do not make tasks."""
    inside, pending = [cell.id for cell, _ in section], ""
    for number, cell in enumerate(cells, 1):
        tags = _tags(cell) & {"setup", "solution", "check"}
        where = f"{path.name}, cell {number}"
        if pending and cell.cell_type == "code" and tags != {"check"}:
            raise StudyError(f"{pending}: a solution without a check; the next code cell must be tagged `check`")
        if "check" in tags and not pending:
            raise StudyError(f"{where}: a check without a solution before it")
        if "solution" in tags and cell.id not in inside:
            raise StudyError(f"{where}: a solution outside the section {HEADING!r}")
        if cell.cell_type == "code" and cell.id in inside and len(tags) != 1:
            raise StudyError(f"{where}: a code cell among the exercises has one tag: setup, solution or check")
        pending = where if "solution" in tags else pending if cell.cell_type == "markdown" else ""
    if pending:
        raise StudyError(f"{pending}: a solution without a check; the next code cell must be tagged `check`")


def _stub(path: Path, cell: Any) -> str:
    """What the student finds in place of a solution."""
    answers = [match.groups() for line in cell.source.splitlines() if (match := _ANSWER.match(line))]
    if not answers:
        raise StudyError(f"{path.name}: the solution {cell.id} has no line `name = ...  # answer: what it is`")
    return "\n".join([PROMPT, *(f"{name} = ...  # {what}" for name, what in answers)])


def _title(path: Path, source: Any) -> Any:
    first = next(c.source for c in source.cells if c.cell_type == "markdown").splitlines()[0]
    return _words(
        f"{path.stem[:2]}-title",
        f"{first}: exercises\n\n"
        f"Generated from [{path.name}](../{path.name}) by `make exercises`; changes belong there. Read that notebook first: "
        "the cells up to the exercises are taken from it and load its run, or compute it where there is none. "
        "Keep your answers in a copy under another name.",
    )


def _words(name: str, text: str) -> Any:
    import nbformat

    return nbformat.v4.new_markdown_cell(text, id=name)


def _code(name: str, text: str, tags: set[str]) -> Any:
    import nbformat

    return nbformat.v4.new_code_cell(text, id=name, metadata={"tags": sorted(tags)} if tags else {})


if __name__ == "__main__":
    try:
        write_all()
    except StudyError as error:
        sys.exit(f"error: {error}")
