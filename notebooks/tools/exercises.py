"""Make the students' notebooks and the lecturer's solutions from one source per notebook: `make exercises`.

The source of notebook 03 is `exercises/03.md` beside this file; `exercisesource` tells its form. From it come

- `notebooks/exercises/03_*.ipynb` for students, with three dots in place of each answer,
- `notebooks/solutions/03_*.ipynb` for lecturers, with all code and the model answers,
- the section "## Exercises" of the numbered notebook: a list of the tasks, without code,
- a row of the table in `notebooks/README.md`.

Title and parameters cell are those of the numbered notebook, so a finished run is found by the same parameters.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

from exercisesource import Source, Task, read_source, stub

from learngene_core.errors import StudyError, atomic, say
from learngene_core.study import notebooks

SOURCES = Path(__file__).with_name("exercises")
HEADING = "## Exercises"
TEXT_ANSWER = "*Your answer:*"
MODEL_ANSWER = "**Model answer.**"
README = "README.md"
_TABLE = re.compile(r"(<!-- exercises -->\n).*?(<!-- end of exercises -->)", re.DOTALL)


def student_version(path: Path, source: Source) -> Any:
    """The student's notebook that belongs to the numbered notebook at `path`."""
    cells = _opening(path, source, _for_students(path, source))
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

    With the default target the section of exercises in each numbered notebook and the table in the README are brought up
    to date, too.
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
        page = home / README
        with atomic(page) as temporary:
            temporary.write_text(with_table(page.read_text(encoding="utf-8"), sources), encoding="utf-8")
    say(f"{len(made)} notebooks written, for students and for lecturers")
    return [*made]


def with_table(page: str, sources: dict[Path, Source]) -> str:
    """A page whose table of exercises is made from the sources. Raises StudyError where it has no place for one."""
    rows = ["| notebook | ★ | ★★ | ★★★ | minutes |", "|---|---|---|---|---|"]
    for path, source in sources.items():
        columns = [
            "; ".join(f"{t.number} {t.name} ({t.minutes})" for t in source.tasks if len(t.level) == n)
            for n in (1, 2, 3)
        ]
        total = sum(task.minutes for task in source.tasks)
        files = f"{path.stem[:2]}: [tasks](exercises/{path.name}), [solutions](solutions/{path.name})"
        rows.append(f"| {files} | {' | '.join(columns)} | {total} |")
    if not _TABLE.search(page):
        raise StudyError(f"{README} has no lines <!-- exercises --> and <!-- end of exercises -->")
    return _TABLE.sub(lambda match: "\n".join([match[1].strip(), *rows, match[2]]), page)


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


def _for_students(path: Path, source: Source) -> str:
    loads = any("Run.open" in code for code in source.setup)
    run = "The next two cells load a finished run (`make study`), or make it where there is none. "
    return (
        f"exercises\n\nRead [{path.name}](../{path.name}) first. This notebook runs alone. {run if loads else ''}"
        "Keep your answers in a copy under another name, because `make exercises` writes this file. "
        "A check says in a sentence what is missing or wrong."
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
