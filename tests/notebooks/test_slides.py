"""The notebooks as slides: where slides begin, what is on them, and what the browser must fetch."""

from __future__ import annotations

import html
import re

import nbformat
import pytest
import slides

from learngene_core.study import notebooks

PATHS = notebooks.numbered()


def code(source, *tags, picture=False, text=""):
    outputs = [nbformat.v4.new_output("stream", text=text)] if text else []
    if picture:
        outputs.append(nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="}))
    return nbformat.v4.new_code_cell(source, outputs=outputs, metadata={"tags": list(tags)} if tags else {})


def kinds(*cells):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(c) if isinstance(c, str) else c for c in cells]
    )
    shown = slides.as_slides(notebook).cells
    return [(c.metadata["slideshow"]["slide_type"], c.source.splitlines()[0]) for c in shown]


def test_headings_begin_slides_also_in_the_middle_of_a_cell():
    found = kinds(
        "# One\n\nwords", "more", "*what we saw*\n\n## Two\n\nwords\n\n### Three\n\nend", "```\n#comment\n```"
    )
    assert found == [
        ("slide", "# One"),
        ("-", "more"),
        ("-", "*what we saw*"),
        ("slide", "## Two"),
        ("subslide", "### Three"),
        ("-", "```"),
    ]


def test_a_heading_within_a_block_of_code_is_no_slide():
    found = kinds("## One\n\n```python\n# a comment\nx = 1\n```\n\nwords")
    assert found == [("slide", "## One")]


def test_pictures_and_long_paragraphs_stand_below_the_heading():
    long = "word " * 130
    found = kinds(
        "## One\n\nlook", code("draw()", picture=True), "what we saw", "## Two", long, "more", code("p", text="1\n")
    )
    assert [kind for kind, _ in found] == ["slide", "subslide", "subslide", "slide", "subslide", "subslide", "-"]


def test_code_without_output_solutions_and_checks_are_left_out():
    found = kinds(
        "## One",
        code("seed = 1", "parameters", text="1"),
        code("import numpy"),
        code("col = load()", "setup", text="loaded"),
        code("draw()", "setup", picture=True),
        code("x = 1", "show"),
        code("y = 2", "solution", text="2"),
        code("assert y == 2", "check", text="right"),
        code("print(3)", text="3"),
    )
    assert [source for _, source in found] == ["## One", "draw()", "x = 1", "print(3)"]


def test_the_notebook_itself_is_left_as_it_is():
    notebook = notebooks.read(PATHS[0])
    before = nbformat.writes(notebook)
    slides.as_slides(notebook)
    assert nbformat.writes(notebook) == before


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    slides.main(["--out", str(folder), "--reveal-prefix", "reveal.js/"])
    return {path: (folder / f"{path.stem}.slides.html").read_text(encoding="utf-8") for path in PATHS}


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_one_slide_per_heading_pictures_inside_and_no_hidden_code(path, pages):
    nb, page = notebooks.read(path), pages[path]
    body = page[page.index('<div class="slides">') :]
    words = [part for c in nb.cells if c.cell_type == "markdown" for part in notebooks.parts(c.source)]
    headings = [part.splitlines()[0].lstrip("# ") for part in words if part.startswith(("# ", "## "))]
    assert body.count("<section><section>") == len(headings) > 3
    assert body.count("<section") == body.count("</section>")
    for text in headings:
        start = re.escape(re.split(r"[^\w ·,?]", text)[0])
        assert re.search(rf"<section><section>.{{0,600}}<h[12][^>]*>{start}", body, re.DOTALL), text
    pictures = [o for c in nb.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert body.count("data:image/png;base64,") == len(pictures) and (len(pictures) > 0 or path.name >= "07")
    plain = html.unescape(re.sub(r"<[^>]+>", "", body))
    for cell in (c for c in nb.cells if c.cell_type == "code"):
        assert (cell.source in plain) == ("show" in cell.metadata.get("tags", [])), cell.source


def test_the_browser_fetches_reveal_alone_from_where_it_was_told(pages):
    for page in pages.values():
        fetched = re.findall(r'<(?:script|link)[^>]* (?:src|href)="([^"]+)"', page)
        assert fetched == [
            "reveal.js/dist/reveal.css",
            "reveal.js/dist/theme/simple.css",
            "reveal.js/dist/reveal.js",
        ]
        assert "if (window.Reveal)" in page, "without it the page stays readable"
