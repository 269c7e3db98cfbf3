"""Slides for a lecture, from the notebooks' figures and the texts in `slides.yaml`: `make slides`.

A deck needs no editing. Each slide has a title, at most 40 words, and a figure, printed lines or a few lines of code of the
notebook. Speaker notes (key: s) are the notebook's prose around that cell. Pictures and styles are in the file. Only reveal.js is
fetched by the browser: from the address in REVEAL, or from a copy named with `--reveal-prefix`. Where it cannot be had, the same
file is one long page with every slide on it.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from learngene_core.errors import StudyError, atomic, say
from learngene_core.study import notebooks
from learngene_core.study.report import Formulas, alt_text

REVEAL = "https://unpkg.com/reveal.js@4.6.1"  # has dist/reveal.js, dist/theme/*.css and plugin/notes, as a copy must
DECKS = Path(__file__).with_suffix(".yaml")
MOST_WORDS = 40
WIDTH, HEIGHT = 1280, 720  # of a slide, in pixels: the form of a hall's screen
NEWLINES = "\n\n"
SHORT = 80  # characters of a line that are seen from the last row
WIDEST = 100  # of a docstring that a slide still shows
WIDE = 1.45  # a picture wider than this times its height stands below the text, others beside it
KEYS = {"title", "text", "cell", "show", "under", "predict"}
SHOWS = ("picture", "output", "code")
LOOKS_BACK = (
    "*What we saw",
    "*What not to conclude",
    "*How to read",
    "**In one sentence",
)  # prose about the figure before it

STYLE = f"""
body {{ margin: 0; }}
.reveal .slides section {{ width: {WIDTH}px; height: {HEIGHT}px; box-sizing: border-box; padding: 20px 30px 12px;
  text-align: left;
  font: 26px/1.35 system-ui, "Segoe UI", "Noto Sans", sans-serif; color: #222; background: white; overflow: hidden;
  display: flex; flex-direction: column; }}
.reveal .slides section > h2 {{ font: 600 40px/1.15 system-ui, "Segoe UI", "Noto Sans", sans-serif; margin: 0 0 12px;
  color: #123a5c; text-transform: none; letter-spacing: normal; }}
.reveal .slides section > div {{ flex: 1; min-height: 0; display: flex; gap: 14px; flex-direction: column; }}
.reveal .slides section > div.beside {{ flex-direction: row; gap: 30px; }}
.reveal .slides .beside .text {{ flex: 0 0 320px; }}
.reveal .slides .words p, .reveal .slides .words li {{ font-size: 36px; }}
.reveal .slides .words {{ justify-content: center; padding: 0 60px 60px; }}
.reveal .slides .predict {{ background: #fdf3df; margin: 0 -30px -12px; }}
.reveal .slides p {{ margin: 0 0 10px; }} .reveal .slides ul {{ margin: 0 0 10px 26px; padding: 0; display: block; }}
.reveal .slides .shown {{ flex: 1; min-height: 0; display: flex; align-items: center; justify-content: center; gap: 16px; }}
.reveal .slides .shown img {{ max-width: 100%; max-height: 100%; width: 100%; height: 100%; object-fit: contain; margin: 0; }}
.reveal .slides pre {{ box-shadow: none; width: 100%; margin: 0; background: #f6f8fa; padding: 14px 18px; box-sizing: border-box;
  font-family: ui-monospace, "DejaVu Sans Mono", Consolas, monospace; line-height: 1.35; overflow: hidden; }}
.reveal .slides table {{ font-size: 22px; }}
aside.notes {{ display: none; }}
html:not(.reveal-full-page) .reveal .slides section {{ border: 1px solid #d9dde3; margin: 16px auto; }}
"""


@dataclass
class Slide:
    """One slide: its words (markdown), what is shown ("" or HTML), the form of its room, and the notes (markdown)."""

    title: str
    text: str
    shown: str = ""
    form: str = "words"
    predict: bool = False
    notes: list[str] = field(default_factory=list)


def decks(path: Path = DECKS) -> dict[str, list[dict[str, Any]]]:
    """The texts of all decks, by the notebook's name. Raises StudyError that names a slide which breaks a rule."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, slides in found.items():
        for slide in slides:
            where = f"{path.name}, {name}, slide {slide.get('title', '?')!r}"
            if unknown := set(slide) - KEYS:
                raise StudyError(f"{where}: unknown key {sorted(unknown)[0]!r}")
            if ("cell" in slide) == ("under" in slide):
                raise StudyError(f"{where}: give either cell or under")
            if slide.get("show", "picture") not in SHOWS:
                raise StudyError(f"{where}: show is one of {', '.join(SHOWS)}")
            if len(slide["text"].split()) > MOST_WORDS:
                raise StudyError(f"{where}: more than {MOST_WORDS} words")
    return found


def deck(notebook: Any, texts: Sequence[Mapping[str, Any]]) -> list[Slide]:
    """The slides of a notebook in the order of `texts`, with notes. Raises StudyError for a cell or heading that is not there."""
    pieces = _pieces(notebook.cells)
    places, slides = [], []
    for entry in texts:
        place = _place(pieces, entry)
        places.append(place)
        slide = Slide(entry["title"], entry["text"], predict=bool(entry.get("predict")))
        if "cell" in entry:
            _show(slide, pieces[place][1], entry.get("show", "picture"), entry)
        slides.append(slide)
    if places != sorted(places):
        late = next(i for i, (a, b) in enumerate(zip(places, places[1:], strict=False), 1) if b < a)
        raise StudyError(f"slide {slides[late].title!r} stands before the slide above it in the notebook")
    _give_notes(slides, places, pieces)
    return slides


def _pieces(cells: Sequence[Any]) -> list[tuple[str, Any]]:
    """Markdown parted before its headings, ("words", text), and code cells, ("code", cell), up to the exercises or appendix."""
    found: list[tuple[str, Any]] = []
    for cell in cells:
        if cell.cell_type == "markdown":
            for part in notebooks.parts(cell.source):
                if part.startswith(("## Exercises", "## Summary", "## Appendix")):
                    return found
                found.append(("words", part))
        else:
            found.append(("code", cell))
    return found


def _place(pieces: Sequence[tuple[str, Any]], entry: Mapping[str, Any]) -> int:
    for number, (kind, piece) in enumerate(pieces):
        if kind == "code" and piece.id == entry.get("cell"):
            return number
        if kind == "words" and "under" in entry and piece.splitlines()[0].lstrip("#").strip() == entry["under"]:
            return number
    raise StudyError(f"slide {entry['title']!r}: the notebook has no {entry.get('cell') or entry.get('under')!r}")


def _show(slide: Slide, cell: Any, show: str, entry: Mapping[str, Any]) -> None:
    """Fill in what a slide shows of its cell, and where it stands."""
    slide.form = "below"
    if show == "code":
        slide.shown = _fitted(_short(cell.source))
    elif show == "output":
        outputs = cell.get("outputs", [])
        tables = [o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})]
        slide.shown = "".join(tables) or _fitted("".join(str(o.get("text", "")) for o in outputs).rstrip())
    else:
        found = [
            (kind, o["data"][kind])
            for o in cell.get("outputs", [])
            for kind in ("image/png", "image/gif")
            if kind in o.get("data", {})
        ]
        if not found:
            raise StudyError(f"slide {slide.title!r}: cell {entry['cell']} has no picture")
        kind, data = found[-1] if found[0][0] == "image/png" else found[0]
        alt = html.escape(alt_text(cell.source, slide.title))
        slide.shown = f'<img alt="{alt}" src="data:{kind};base64,{"".join(data.split())}">'
        width, height = Image.open(io.BytesIO(base64.b64decode(data))).size
        slide.form = "below" if width > WIDE * height else "beside"
    if not slide.shown:
        raise StudyError(f"slide {slide.title!r}: cell {entry['cell']} shows nothing")


def _short(code: str) -> str:
    """Code for a hall. Where lines are long, empty lines, remarks at the end of a line and long docstrings are left out; the
    notebook has them."""
    lines = [line for line in re.sub(r"\n{3,}", "\n \n", code).splitlines() if line]  # two empty lines: one stays
    if max(map(len, lines)) <= SHORT:
        return code
    lines = [line for line in lines if len(line) <= WIDEST or not re.fullmatch(r'\s*""".*"""', line)]
    return "\n".join(re.sub(r"(?<=\S)  # .*$", "", line) for line in lines)


def _fitted(text: str) -> str:
    """Lines of code or print in the largest letters, of 12 to 26 pixels, in which all of them are seen whole."""
    lines = text.splitlines()
    wide, room = max(map(len, lines), default=1), HEIGHT - 220
    size = max(12.0, min(26.0, (WIDTH - 130) / (0.61 * wide), room / (1.35 * len(lines))))
    return f'<pre style="font-size: {size:.1f}px">{html.escape(text)}</pre>'


def _give_notes(slides: Sequence[Slide], places: Sequence[int], pieces: Sequence[tuple[str, Any]]) -> None:
    """The prose before a slide's cell is its notes; what looks back at a figure, those of the slide before it.

    A slide without prose of its own repeats the notes of the one before it."""
    for number, (kind, text) in enumerate(pieces):
        if kind != "words":
            continue
        after = next((i for i, place in enumerate(places) if place >= number), len(slides) - 1)
        before = next((i for i in range(len(slides) - 1, -1, -1) if places[i] < number), after)
        back = text.startswith(LOOKS_BACK) and number not in places
        slides[before if back else after].notes.append(re.sub(r"^#+ .*\n*", "", text))
    for earlier, slide in zip(slides, slides[1:], strict=False):  # an answer right after its question, say
        if not "".join(slide.notes).strip():
            slide.notes = list(earlier.notes)


def write_slides(target: Path, *, reveal_prefix: str = REVEAL) -> list[Path]:
    """Write `<notebook>.slides.html` for every notebook that has a deck into `target`; returns the files. Needs no network.

    reveal_prefix: where the browser finds reveal.js: an address, or a folder relative to `target`.
    Raises StudyError when a notebook cannot be read, or a slide asks for what its notebook does not have.
    """
    target.mkdir(parents=True, exist_ok=True)
    texts, written = decks(), []
    for path in notebooks.numbered():
        if path.stem in texts:
            slides = deck(notebooks.read(path), texts[path.stem])
            written.append(target / f"{path.stem}.slides.html")
            with atomic(written[-1]) as temporary:
                temporary.write_text(_page(slides, reveal_prefix.rstrip("/")), encoding="utf-8")
    return written


def _page(slides: Sequence[Slide], prefix: str) -> str:
    sections = "\n".join(map(_section, slides))
    sheets = "".join(
        f'<link rel="stylesheet" href="{prefix}/dist/{name}.css">\n' for name in ("reveal", "theme/simple")
    )
    options = f"width: {WIDTH}, height: {HEIGHT}, margin: 0, center: false, hash: true, slideNumber: true"
    options += ', transition: "none", display: "flex"'
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(slides[0].title)}</title>\n'
        f"{sheets}<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<div class="reveal"><div class="slides">\n{sections}\n</div></div>\n'
        f'<script src="{prefix}/dist/reveal.js"></script>\n<script src="{prefix}/plugin/notes/notes.js"></script>\n'
        "<script>\nif (window.Reveal) { Reveal.initialize({ "
        f"{options}, plugins: window.RevealNotes ? [RevealNotes] : [] }}); }}\n</script>\n</body>\n</html>\n"
    )


def _section(slide: Slide) -> str:
    shown = f'<div class="shown">{slide.shown}</div>' if slide.shown else ""
    form = slide.form + (" predict" if slide.predict else "")
    notes = f'<aside class="notes">{_html(NEWLINES.join(slide.notes))}</aside>'
    body = f'<div class="{form}"><div class="text">{_html(slide.text)}</div>{shown}</div>'
    return f"<section><h2>{html.escape(slide.title)}</h2>{body}{notes}</section>"


def _html(text: str) -> str:
    """Markdown as HTML, formulas as MathML; links are kept as their words, for nobody clicks on a slide."""
    import nbformat
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    cell = nbformat.v4.new_markdown_cell(text)
    formulas = Formulas([cell])
    return re.sub(r"</?a\b[^>]*>", "", formulas.drawn(markdown2html_mistune(cell.source)))


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
