"""The frame of every numbered notebook: goals, prerequisites, time and links; key points, terms, references, what comes next."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from learngene_core.study import notebooks

PATHS = notebooks.numbered()
every = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
PAPER = "arxiv.org/abs/2106.06788"


def markdown(path):
    return [cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown"]


def listed(text, heading):
    """The items of the list below a bold heading."""
    block = re.search(rf"\*\*{heading}\*\*\n\n(.+?)(?:\n\n|$)", text, re.DOTALL)
    return re.findall(r"^(?:\d\.|-) (.+)$", block[1], re.MULTILINE) if block else []


@every
def test_a_notebook_opens_with_its_frame(path):
    first, number = markdown(path)[0], int(path.name[:2])
    assert re.match(rf"# {number} · \S", first)
    assert len(listed(first, "You will learn")) == 3
    for name in ("Prerequisites", "Time"):
        assert re.search(rf"\*\*{name}\.\*\* \S.{{10,}}", first), f"no {name}"
    links = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", first)
    names = [p.name for p in PATHS]
    assert set(links) <= set(names), "a link to a notebook that is not there"
    for neighbour in names[max(0, number - 1) : number] + names[number + 1 : number + 2]:
        assert neighbour in links, f"no link to {neighbour}"


@every
def test_a_notebook_ends_with_its_frame(path):
    last = markdown(path)[-1]
    assert last.startswith("## Summary")
    assert len(listed(last, "Key points")) == 3
    assert all(re.match(r"\*\*.+?\*\*: \S", term) for term in listed(last, "New terms")) and listed(last, "New terms")
    assert re.search(r"\*\*What comes next\.\*\* \S", last)
    references = listed(last, "References")
    assert len(references) >= 2 and all("](http" in reference for reference in references), "a source without a link"
    assert any(PAPER in reference for reference in references), "the paper itself is not linked"


def test_the_map_names_every_notebook():
    text = "\n".join(markdown(PATHS[0]))
    assert {p.name for p in PATHS if f"({p.name})" not in text} == {PATHS[0].name}


@every
def test_links_to_files_of_the_course_lead_somewhere(path):
    for target in re.findall(r"\]\(((?!http|#)[^)]+)\)", "\n".join(markdown(path))):
        assert (path.parent / target.split("#")[0]).exists(), target


def test_the_first_notebook_runs_without_torch():
    code = [c.source for c in notebooks.read(PATHS[0]).cells if c.cell_type == "code"]
    script = "\n".join(
        ["import matplotlib", "matplotlib.use('Agg')", *code, "import sys", "assert 'torch' not in sys.modules"]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("path", PATHS[:5], ids=lambda p: p.stem)
def test_the_notebooks_of_the_method_leave_defects_to_the_audit(path):
    text = "\n".join(markdown(path)).lower()
    assert not re.search(r"\bdefects?\b|\bbugs?\b|released scripts?", text)


def test_exercises_say_how_hard_and_how_long():
    for path in PATHS[1:]:
        (text,) = [part for part in markdown(path) if part.startswith("## Exercises")]
        items = re.findall(r"^\d\. (.+)$", text, re.MULTILINE)
        assert len(items) >= 4, path.name
        for item in items:
            assert re.match(r"\*\*\S.+?\*\* \(★{1,3}, \d+ minutes\)\. \S", item), item
        assert any(item.startswith("**Implement") for item in items), f"{path.name} has nothing to implement"
