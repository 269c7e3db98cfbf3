"""Formulas in pages: MathML of the same symbols for each, and nothing else is taken for one."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from learngene_core.study import notebooks
from learngene_core.study.report import Formulas, write_report

INLINE = r"(?<!\$)\$[^\s$](?:[^$\n]*[^\s$])?\$"


def with_mathml(text):
    import nbformat

    cell = nbformat.v4.new_markdown_cell(text)
    formulas = Formulas([cell])
    return formulas.drawn(cell.source)


def letters(mathml):
    return "".join(ElementTree.fromstring(mathml).itertext())


@pytest.mark.parametrize(
    ("tex", "tag", "text"),
    [(r"$\sqrt{m}$", "msqrt", "m"), ("$w_i$", "msub", "wi"), (r"$$\frac{a}{b}$$", "mfrac", "ab"),
     ("$1/\\sqrt{t}$", "msqrt", "1/t"), ("$x * y$", "mo", "x*y"), (r"$\hat e \le e$", "mover", "e^≤e")],
)  # fmt: skip
def test_a_formula_becomes_mathml_of_the_same_symbols(tex, tag, text):
    said = with_mathml(f"before {tex} after")
    assert said.startswith("before <math") and said.endswith("</math> after")
    mathml = said[len("before ") : -len(" after")]
    assert f"{tag}>" in mathml.replace(" ", ">") and letters(mathml) == text
    assert ('display="block"' in mathml) == tex.startswith("$$")


@pytest.mark.parametrize(
    "text",
    [
        "it costs $5 and $6 more",
        "one $ alone",
        "`$HOME` and `$PATH`",
        "```\n$a$ and $b$\n```",
        r"\$a\$",
        "$ a $",
        r"$\frac{a}{$",
    ],
)
def test_what_is_no_formula_stays(text):
    assert with_mathml(text) == text


def test_every_formula_of_the_notebooks_is_drawn_in_the_report(tmp_path):
    write_report(notebooks.numbered(), "A study", "Its summary.", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    words = [c.source for p in notebooks.numbered() for c in notebooks.read(p).cells if c.cell_type == "markdown"]
    plain = [re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL) for text in words]
    blocks = sum(text.count("$$") // 2 for text in plain)
    inline = sum(len(re.findall(INLINE, re.sub(r"\$\$.+?\$\$", "", text, flags=re.DOTALL))) for text in plain)
    whole = re.findall(r"<math.*?</math>", page, re.DOTALL)
    assert all(letters(mathml) for mathml in whole), "nbconvert took them apart"
    assert page.count("<math") == page.count("</math>") == blocks + inline and blocks >= 3 and inline >= 20
    assert not re.search(r"\\(frac|sqrt|sum|hat|le)\b", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL))
