"""The source of the exercises of one notebook: Markdown with fenced code, `exercises/NN.md` beside this file.

Its parts, in this order:

    ```python setup                          what all tasks need: the run, its tables
    ## 3. Implement: the rule (★★★, 20 minutes)
    The question in one paragraph.           this paragraph also stands in the numbered notebook
    More text, and a folded hint.            <details><summary>Hint</summary>...</details>
    ```python given                          code that the student finds as it is, before or after the check
    ```python solution                       the student finds three dots in place of what `# answer:` marks
    ```python check                          assertions that say in a sentence what is wrong
    ### Answer                               the model answer, for the solutions only; code below it too

Each fence is closed by a line of three backticks. A line `name = ...  # answer: what it is` of a solution becomes, with three
dots, `name = ...  # what it is`. An indented line `# answer: what it is` stands for the rest of its function: the student keeps
the function as far as this mark. All other lines of a solution are left out. A task without code has a model answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from learngene_core.errors import StudyError

PROMPT = "# Put your answer in place of the three dots."
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
        if line.startswith("@"):
            skipping, function = False, [line]
        elif line.startswith("def "):
            skipping, function = False, [*(function if function[-1:] and function[-1].startswith("@") else []), line]
        elif line.strip() and not line.startswith((" ", ")")):
            skipping, function = False, []
        elif function and not skipping:
            if match := _REST.match(line):
                kept += [*([""] * bool(kept)), *function, f"{match[1]}return ...  # {match[2]}"]
                skipping, answers = True, answers + 1
            else:
                function.append(line)
        if match := _ANSWER.match(line):
            kept.append(f"{match[1]} = ...  # {match[2]}")
            answers += 1
    if not answers:
        raise StudyError(f"{where}, task {task.number}: the solution has no mark `# answer: what it is`")
    return "\n".join([PROMPT, *kept])
