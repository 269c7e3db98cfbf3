"""Prose is read once: sentences are short, and turns that have to be read twice are gone.

Measured are the markdown cells of the numbered notebooks and the READMEs, without their tables, code and formulas; the turns
also in the docstrings of the files that are the method. The turns and the length are those that a reader stumbled over.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import frontpage
import pytest

from learngene_core.study import notebooks

ROOT = Path(__file__).parents[2]
LONG = 30  # words; one sentence in twenty may have more
TURNS = (
    r"\bh[eo]ld(s|ing)?( \w+){0,2} against\b", r"\bst(and|ands|ood|anding) in\b", r"\bkept? back\b", r"\bbehind\b", r"\bby law\b",
    r"\bdearest\b|\bdearly\b", r"\bhand(s|ed)? on\b", r"\bbrothers?\b", r"\brefuse[sd]?\b", r"\bcannot wait an hour\b",
    r"\bmiddle of its life\b", r"\bchose nothing\b|\bchoose nothing\b", r"`(smoke|lecture)`: (a|one)\b",
)  # fmt: skip
PAGES = [*notebooks.numbered(), *(ROOT / name for name in frontpage.PAGES)]
METHOD_FILES = sorted((ROOT / "learngene_core").glob("*.py"))


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def prose(path):
    """The text of a page, or of a notebook's markdown cells."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown")


def sentences(text):
    """The sentences of a text, without code, tables, formulas, pictures, comments and addresses. A heading or an item of a list
    is at least one; a colon ends none."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$|<!--.*?-->|</?[a-z][^>]*>|!\[[^\]]*\]\([^)]*\)", " ", text, flags=re.DOTALL)
    text = "\n".join("" if line.lstrip().startswith("|") else line for line in text.splitlines())
    text = re.sub(r"\]\([^)]*\)", "]", text)
    blocks = re.split(r"\n\s*\n|^#+ .*$|^\s*(?:[-*]|\d+\.)\s", text, flags=re.MULTILINE)
    found = [part for block in blocks for part in re.split(r"(?<=[.!?])[*)\"”’]*\s+(?=[^a-z\s])", block.strip())]
    return [" ".join(part.split()) for part in found if part.strip()]


def words(sentence):
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return "\n\n".join(ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds))


def first_turn(turn, text):
    found = re.search(turn, text, re.IGNORECASE)
    return found and text[max(0, found.start() - 60) : found.end() + 30]


def test_sentences_are_told_apart_and_what_is_not_prose_is_left_out():
    page = (
        "# A heading of more than one word\n\nOne, e.g. this. *Two:* with `a.b` and [a link](http://x.y/z. A). Three!\n\n"
        "| a table. With a dot. | |\n\n```python\nx = 1. Or not\n```\n\n- four\n- five. Six (by 0.5 %).\n\n<!-- a comment. -->\n"
    )
    assert sentences(page) == [
        "One, e.g. this.",
        "*Two:* with `a.b` and [a link].",
        "Three!",
        "four",
        "five.",
        "Six (by 0.5 %).",
    ]
    assert [words(s) for s in sentences(page)] == [3, 6, 1, 1, 1, 3]
    assert [len(sentences(" ".join(["word"] * n) + ".")) for n in (1, 40)] == [1, 1]


def test_pages_have_prose_to_measure():
    assert len(PAGES) >= 14 and all(len(sentences(prose(path))) >= 10 for path in PAGES)
    assert len(METHOD_FILES) >= 15 and all(docstrings(path) for path in METHOD_FILES)


@named(PAGES)
def test_one_sentence_in_twenty_is_long_at_most(path):
    found = sentences(prose(path))
    long = [s for s in found if words(s) > LONG]
    assert len(long) <= len(found) / 20, f"{len(long)} of {len(found)}:\n" + "\n".join(long)


@named(PAGES)
def test_no_page_has_a_turn_that_is_read_twice(path):
    found = [place for turn in TURNS if (place := first_turn(turn, "\n".join(sentences(prose(path)))))]
    assert not found, "\n".join(found)


@named(METHOD_FILES)
def test_no_docstring_of_the_method_has_a_turn_that_is_read_twice(path):
    found = [place for turn in TURNS if (place := first_turn(turn, docstrings(path)))]
    assert not found, "\n".join(found)
