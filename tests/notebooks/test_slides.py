"""The decks: short texts beside what they speak of, questions apart, notes from the prose, and what the browser must fetch."""

from __future__ import annotations

import html
import re
import shutil

import nbformat
import pytest
import slides

from learngene_core.errors import StudyError
from learngene_core.study import notebooks

TEXTS = slides.decks()
PATHS = [path for path in notebooks.numbered() if path.stem in TEXTS]
every = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def small(*cells):
    """A notebook; a string is markdown, a tuple (id, source, output) code, whose output is a picture where it is PIXEL."""
    made = []
    for cell in cells:
        if isinstance(cell, str):
            made.append(nbformat.v4.new_markdown_cell(cell))
            continue
        name, source, out = cell
        data = {"image/png": PIXEL}
        shown = (
            nbformat.v4.new_output("display_data", data) if out == PIXEL else nbformat.v4.new_output("stream", text=out)
        )
        made.append(nbformat.v4.new_code_cell(source, id=name, outputs=[shown] if out else []))
    return nbformat.v4.new_notebook(cells=made)


def entry(title, text="some words", **more):
    return {"title": title, "text": text, **more}


# the texts ----------------------------------------------------------------------------------------------------------
def test_the_notebooks_of_the_lecture_have_decks():
    assert [path.name[:2] for path in PATHS] == ["00", "01", "02", "03", "04", "05", "06"]
    assert set(TEXTS) == {path.stem for path in PATHS}


@every
def test_texts_are_short_no_slide_is_empty_and_questions_stand_alone(path):
    made = slides.deck(notebooks.read(path), TEXTS[path.stem])
    for slide in made:
        assert 4 <= len(slide.text.split()) <= 40
        assert slide.shown or len(slide.text.split()) >= 12, slide.title  # a slide of words alone has some
        assert not (slide.predict and slide.shown), "the answer stands beside the question"
    assert sum(bool(slide.shown) for slide in made) >= len(made) / 3
    assert sum(slide.predict for slide in made) >= 1
    assert all(not a.predict or not b.predict and b is not None for a, b in zip(made, [*made[1:], None], strict=True))


@every
def test_texts_hold_no_number_that_a_run_decides(path):
    for slide in TEXTS[path.stem]:
        assert not re.search(r"\d+\.\d|\d %", slide["text"].replace("95 % interval", "")), slide["title"]


@every
def test_every_slide_has_notes_from_the_notebook(path):
    nb = notebooks.read(path)
    prose = " ".join(c.source for c in nb.cells if c.cell_type == "markdown")
    made = slides.deck(nb, TEXTS[path.stem])
    assert not [s.title for s in made if not "".join(s.notes).strip()]
    for note in (note for slide in made for note in slide.notes if note.strip()):
        assert note.strip().splitlines()[0] in prose


def test_notes_before_a_figure_are_its_own_and_what_looks_back_stays_with_it():
    back = "*What we saw.* it\n\n## Three\n\nmore"
    nb = small(
        "# One\n\nstart", "## Two\n\nlook", ("a", "draw()", PIXEL), back, ("b", "p", "1\n"), "## Exercises\n\nno"
    )
    texts = [entry("One", under="One"), entry("Two", cell="a"), entry("Three", cell="b", show="output")]
    one, two, three = slides.deck(nb, texts)
    assert [s.notes for s in (one, two, three)] == [["start"], ["look", "*What we saw.* it"], ["more"]]
    assert PIXEL in two.shown and "<pre" in three.shown


def test_an_answer_right_after_its_question_repeats_the_notes_and_prose_may_be_a_slide():
    nb = small("# One\n\nask", ("a", "draw()", PIXEL), "*What not to conclude.*\n\nmuch", ("b", "p", "1\n"))
    texts = [entry("Vote", under="One"), entry("Answer", cell="a"), entry("Not", under="*What not to conclude.*")]
    assert [s.notes for s in slides.deck(nb, texts)] == [["ask"], ["ask"], ["*What not to conclude.*\n\nmuch"]]


def test_an_appendix_gives_no_notes_and_long_code_is_shown_as_large_as_it_can_be():
    long = '"""' + "word " * 22 + '"""'
    code = f"def f(x):\n    {long}\n\n    y = g(x)  # a remark\n\n    return y"
    nb = small("# One\n\nstart", ("a", code, "1\n"), "## Appendix: more\n\nnot said in the hall")
    (slide,) = slides.deck(nb, [entry("One", cell="a", show="code")])
    assert slide.notes == ["start"]
    assert slide.shown.endswith(">def f(x):\n    y = g(x)\n    return y</pre>")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (entry("X", cell="no"), "has no 'no'"),
        (entry("X", under="Nothing"), "has no 'Nothing'"),
        (entry("X", cell="b"), "no picture"),
    ],
)
def test_a_slide_that_asks_for_what_is_not_there_is_named(wrong, message):
    with pytest.raises(StudyError, match=message):
        slides.deck(small("# One", ("a", "draw()", PIXEL), ("b", "print(1)", "1\n")), [wrong])


def test_slides_follow_the_notebook():
    nb = small(("a", "draw()", PIXEL), ("b", "draw()", PIXEL))
    with pytest.raises(StudyError, match="'A' stands before"):
        slides.deck(nb, [entry("B", cell="b"), entry("A", cell="a")])


@pytest.mark.parametrize(
    ("line", "message"),
    [("text: " + "word " * 41 + "\n    cell: a", "more than 40"), ("text: w", "either cell or under"),
     ("text: w\n    cell: a\n    sho: code", "unknown key 'sho'"), ("text: w\n    cell: a\n    show: film", "show is one of")],
)  # fmt: skip
def test_a_text_that_breaks_a_rule_is_named(line, message, tmp_path):
    (tmp_path / "own.yaml").write_text(f"03_own:\n  - title: Mine\n    {line}\n", encoding="utf-8")
    with pytest.raises(StudyError, match=rf"slide 'Mine'.*{message}"):
        slides.decks(tmp_path / "own.yaml")


def test_the_notebook_itself_is_left_as_it_is():
    notebook = notebooks.read(PATHS[0])
    before = nbformat.writes(notebook)
    slides.deck(notebook, TEXTS[PATHS[0].stem])
    assert nbformat.writes(notebook) == before


def test_the_teaching_page_counts_the_slides_of_every_deck():
    page = (notebooks.folder() / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (0\d) [^|]+\| (\d+) \| \d+ \| (\d+) \|$", page, re.MULTILINE)
    made = {path.name[:2]: TEXTS[path.stem] for path in PATHS}
    assert {name: (int(n), int(k)) for name, n, k in rows} == {
        name: (len(texts), sum(bool(slide.get("predict")) for slide in texts)) for name, texts in made.items()
    }
    titles = {slide["title"] for texts in TEXTS.values() for slide in texts}
    named = re.findall(r"slides 0\d[^|]*", page[: page.index("## Three lectures")])
    assert {title for words in named for title in re.findall(r"\*([^*]+)\*", words)} <= titles


# the pages ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("slides")
    slides.main(["--out", str(target), "--reveal-prefix", "reveal.js/"])
    return target


@pytest.fixture(scope="module")
def pages(folder):
    return {path: (folder / f"{path.stem}.slides.html").read_text(encoding="utf-8") for path in PATHS}


@every
def test_a_page_has_its_slides_with_their_pictures_inside(path, pages):
    page, texts = pages[path], TEXTS[path.stem]
    assert page.count("<section>") == page.count("</section>") == page.count('<aside class="notes">') == len(texts)
    found = re.findall(r"<section><h2>(.*?)</h2>", page)
    assert [html.unescape(title) for title in found] == [slide["title"] for slide in texts]
    shown = [s for s in texts if "cell" in s and s.get("show", "picture") == "picture"]
    assert len(re.findall(r'<img alt="[^"]{10,}" src="data:image/', page)) == page.count("<img") == len(shown)
    assert "<a " not in page and "$" not in re.sub(
        r"<pre.*?</pre>|base64,[^\"]*|<script.*?</script>", "", page, flags=re.DOTALL
    )


def test_the_browser_fetches_reveal_alone_from_where_it_was_told(pages):
    for page in pages.values():
        fetched = re.findall(r'<(?:script|link)[^>]* (?:src|href)="([^"]+)"', page)
        assert fetched == [
            "reveal.js/dist/reveal.css",
            "reveal.js/dist/theme/simple.css",
            "reveal.js/dist/reveal.js",
            "reveal.js/plugin/notes/notes.js",
        ]
        assert "if (window.Reveal)" in page, "without it the page stays readable"


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium (apt-get install chromium)")
def test_nothing_is_cut_at_an_edge(folder, tmp_path):
    """In a browser, without reveal.js: every slide has its fixed size, and what is on it stays inside."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    inside = """section => { const b = section.getBoundingClientRect();
        return [...section.querySelectorAll("h2, pre, table, img, .text")].filter(e => { const r = e.getBoundingClientRect();
            return r.right > b.right + 1 || r.bottom > b.bottom + 1 || e.scrollWidth > e.clientWidth + 1
                || (e.tagName === "PRE" && e.scrollHeight > e.clientHeight + 2); }).map(e => e.tagName); }"""
    with sync_playwright() as play:
        chrome = play.chromium.launch_persistent_context(
            tmp_path, executable_path=shutil.which("chromium"), headless=True, offline=True, args=flags
        )
        page = chrome.new_page()
        for path in PATHS:
            page.goto((folder / f"{path.stem}.slides.html").as_uri())
            for section in page.query_selector_all("section"):
                assert section.evaluate(inside) == [], (path.stem, section.inner_text()[:60])
                assert section.bounding_box()["width"] == slides.WIDTH
        chrome.close()
