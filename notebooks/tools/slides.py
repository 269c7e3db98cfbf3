"""The numbered notebooks as slides for a lecture: `make slides`, or `python notebooks/tools/slides.py`.

Nothing is written into the notebooks for it. Every heading begins a slide; what follows it in the notebook stands below it,
a figure or a paragraph at a time (key: down). Code is hidden, unless its cell is tagged `show`; solutions and checks of the
exercises are left out. Pictures and styles are in the file. Only reveal.js, which turns the page into slides, is fetched by the
browser: from the address in REVEAL, or from a copy named with `--reveal-prefix`. Where it cannot be had, the same file is one
long page, with everything on it. (Formulas are set by MathJax, which comes from the network too; without it they stay as TeX.)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from learngene_core.errors import atomic, say
from learngene_core.study import notebooks
from learngene_core.study.report import Formulas

REVEAL = "https://unpkg.com/reveal.js@4.6.1"  # has dist/reveal.js and dist/theme/*.css, as a copy must
LEFT_OUT = {"parameters", "solution", "check"}
ROOM = 120  # words that a slide holds
_HEADINGS = {"#": "slide", "##": "slide", "###": "subslide"}

# The exporter's own page with two changes: reveal.js as a plain script, which may be missing; and type that fits figures.
_TEMPLATE = """
{%- extends 'index.html.j2' -%}
{%- block html_head_js_jquery -%}{%- endblock -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_css -%}
<style type="text/css">
.reveal .slides { text-align: left; }
.reveal .slides section { font-size: 20px; line-height: 1.4; }
.reveal .slides section > section { max-height: 700px; overflow-y: auto; }
.reveal .slides img { max-height: 600px; max-width: 100%; margin: 0 auto; display: block; }
.reveal .slides h1 { font-size: 44px; } .reveal .slides h2 { font-size: 34px; } .reveal .slides h3 { font-size: 26px; }
.reveal .slides .jp-RenderedHTML table { font-size: 15px; }
.reveal .slides h1, .reveal .slides h2, .reveal .slides h3 { text-transform: none; letter-spacing: normal; }
</style>
{%- endblock -%}
{%- block footer_js -%}
<script src="{{ resources.reveal.url_prefix }}/dist/reveal.js"></script>
<script>
if (window.Reveal) { Reveal.initialize({ width: 1200, height: 750, center: false, hash: true, slideNumber: "h.v",
                                         transition: "none" }); }
</script>
{%- endblock -%}
"""


def as_slides(notebook: Any) -> Any:
    """A notebook whose cells say where slides begin, with nothing in it that is not shown; the one given is left as it is.

    A heading of the first two levels begins a slide, one of the third a slide below it; whatever else does not fit on the slide
    at hand is moved to another one below. A picture has a slide to itself.
    """
    import nbformat

    shown = nbformat.v4.new_notebook(metadata=notebook.metadata)
    room = 0
    for cell in _pieces(notebook.cells):
        size = _size(cell)
        level = cell.source.split(" ", 1)[0] if cell.cell_type == "markdown" else ""
        kind = _HEADINGS.get(level) or ("-" if size <= room else "subslide")
        room = (room if kind == "-" else ROOM) - size
        cell.metadata = {"slideshow": {"slide_type": kind}, "tags": cell.metadata.get("tags", [])}
        cell.id = f"slide-{len(shown.cells)}"
        shown.cells.append(cell)
    return shown


def write_slides(target: Path, *, reveal_prefix: str = REVEAL) -> list[Path]:
    """Write `<notebook>.slides.html` for every numbered notebook into `target`; returns the files. Needs no network.

    reveal_prefix: where the browser finds reveal.js: an address, or a folder relative to `target`.
    Raises StudyError when there is no notebook, or one cannot be read.
    """
    from nbconvert import SlidesExporter
    from traitlets.config import Config as Traits

    options = Traits()
    options.TagRemovePreprocessor.enabled = True
    options.TagRemovePreprocessor.remove_input_tags = {"hidden"}
    options.SlidesExporter.exclude_input_prompt = True
    options.SlidesExporter.exclude_output_prompt = True
    options.SlidesExporter.embed_images = True
    options.SlidesExporter.reveal_url_prefix = reveal_prefix.rstrip("/")
    exporter = SlidesExporter(config=options, raw_template=_TEMPLATE)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for path in notebooks.numbered():
        shown = as_slides(notebooks.read(path))
        formulas = Formulas(shown.cells)
        page, _ = exporter.from_notebook_node(shown, {"metadata": {"name": path.stem, "path": str(path.parent)}})
        written.append(target / f"{path.stem}.slides.html")
        with atomic(written[-1]) as temporary:
            temporary.write_text(formulas.drawn(page), encoding="utf-8")
    return written


def _pieces(cells: list[Any]) -> Iterator[Any]:
    """Copies of the cells that are shown: words parted before their headings, code that has outputs or is to be seen."""
    import nbformat

    for cell in cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "markdown":
            yield from (nbformat.v4.new_markdown_cell(part) for part in notebooks.parts(cell.source))
        elif cell.cell_type == "code" and not tags & LEFT_OUT and (_is_seen(cell) or "show" in tags):
            kept = {"tags": ["show"] if "show" in tags else ["hidden"]}
            yield nbformat.v4.new_code_cell(cell.source, outputs=cell.outputs, metadata=kept)


def _is_seen(cell: Any) -> bool:
    """Whether there is something to look at: set-up cells mostly print which stage was loaded."""
    return _has_picture(cell) or bool(cell.outputs) and "setup" not in cell.metadata.get("tags", [])


def _has_picture(cell: Any) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def _size(cell: Any) -> int:
    """How much of a slide a cell takes, in words: a line of code, of its text or of its table counts as five."""
    if cell.cell_type == "markdown":
        return len(cell.source.split())
    if _has_picture(cell):
        return ROOM
    texts = [str(o.get("text", "")) for o in cell.outputs] + [cell.source] * ("show" in cell.metadata.tags)
    rows = sum(str(o.get("data", {}).get("text/html", "")).count("<tr") for o in cell.outputs)
    return 5 * (rows + sum(len(text.splitlines()) for text in texts))


def main(argv: list[str] | None = None) -> None:
    """`python notebooks/tools/slides.py [--out slides] [--reveal-prefix ADDRESS-OR-FOLDER]`. Raises as `write_slides`."""
    parser = argparse.ArgumentParser(prog="slides.py", description="the notebooks as slides")
    parser.add_argument("--out", default="slides", help="folder that the slides are written into (default: slides)")
    parser.add_argument(
        "--reveal-prefix", default=REVEAL, help="address of reveal.js, or a copy, relative to the folder"
    )
    given = parser.parse_args(argv)
    for path in write_slides(Path(given.out), reveal_prefix=given.reveal_prefix):
        say(f"slides: {path}")


if __name__ == "__main__":
    main()
