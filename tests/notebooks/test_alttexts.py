"""Pictures have words: in the READMEs, in the notebooks, and in the page that a run ends with."""

import re
from pathlib import Path

import frontpage
import nbformat
import pytest

from learngene_core.study import notebooks
from learngene_core.study.report import alt_text, clean, descriptions, write_report

ROOT = Path(__file__).parents[2]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TRIVIAL = re.compile(r"^(a )?(picture|figure|image|plot|png|no description.*)?\.?$", re.IGNORECASE)


def told(text):
    """Whether an alternative text says something."""
    return len(text.split()) >= 3 and not TRIVIAL.match(text)


def markdown_pictures():
    for name in frontpage.PAGES:
        yield from ((name, alt) for alt in re.findall(r"!\[([^\]]*)\]", (ROOT / name).read_text("utf-8")))
    for path in notebooks.numbered():
        words = "\n".join(c.source for c in notebooks.read(path).cells if c.cell_type == "markdown")
        yield from ((path.name, alt) for alt in re.findall(r"!\[([^\]]*)\]", words))


def test_every_picture_in_prose_has_words():
    found = list(markdown_pictures())
    assert found and not [(name, alt) for name, alt in found if not told(alt)]


def test_no_picture_of_a_report_is_without_words(tmp_path):
    write_report(notebooks.numbered(), "A study", "Its summary.", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags = re.findall(r"<img\b[^>]*>", page)
    drawn = [tag for tag in tags if "data:image/png" in tag]
    assert len(drawn) >= 20
    alts = [re.findall(r'\balt="([^"]*)"', tag) for tag in tags]
    assert all(len(alt) == 1 and told(alt[0]) for alt in alts), [
        alt for alt in alts if len(alt) != 1 or not told(alt[0])
    ]
    assert any("Accuracy and paired gain of every method" in alt[0] for alt in alts)


def test_words_follow_the_heading_and_the_drawing_function(tmp_path):
    cells = [
        nbformat.v4.new_markdown_cell("# Notebook\n\n## Is it `<any>` good?"),
        nbformat.v4.new_code_cell("figures.comparison(paired)", outputs=[picture()]),
        nbformat.v4.new_code_cell("%matplotlib inline\nplt.plot([1])", outputs=[picture()]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "own.ipynb")
    cleaned = clean(notebooks.read(tmp_path / "own.ipynb"))
    alts = [cell.outputs[0].metadata["image/png"]["alt"] for cell in cleaned.cells[1:]]
    assert alts[0].startswith("Is it <any> good?: Accuracy and paired gain of every method")
    assert alts[1] == "Is it <any> good?: a figure"


def picture():
    return nbformat.v4.new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})


@pytest.mark.parametrize("name", sorted(descriptions()))
def test_a_drawing_function_says_in_one_sentence_what_is_seen(name):
    text = descriptions()[name]
    assert told(text) and len(text) <= 220 and "returns" not in text


def test_several_drawings_of_one_cell_are_all_described():
    text = alt_text("f.roc_with_band(a, ax=x)\nf.oscr_curves(a, ax=y)", "Curves")
    assert "ROC of one score" in text and "Known images kept" in text
