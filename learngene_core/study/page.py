"""One HTML page out of several documents: a contents list that stays in sight, code folded, rules for paper. No network.

The page holds everything it needs: styles, pictures, and a few lines of script that mark the place in the contents list.
Without the script it reads the same.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
:root { --ink: #222; --muted: #5f5f5f; --line: #d9dde3; --blue: #0b5c94; }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; color: var(--ink); background: white; font: 16px/1.55 system-ui, "Segoe UI", "Noto Sans", sans-serif;
       display: grid; grid-template-columns: 17rem minmax(0, 1fr); }
nav { position: sticky; top: 0; align-self: start; height: 100vh; overflow-y: auto; padding: 1.2rem 1rem; font-size: .86rem;
      border-right: 1px solid var(--line); background: #f6f8fa; }
nav p { margin: 0 0 .6rem; font-weight: 600; }
nav ol, nav ul { list-style: none; margin: 0; padding: 0; }
nav ul { margin: .1rem 0 .4rem .8rem; }
nav li { margin: .18rem 0; }
nav a { color: inherit; text-decoration: none; }
nav a:hover, nav a.here { color: var(--blue); }
nav a.here { font-weight: 600; }
nav summary { cursor: pointer; }
main { padding: 1.6rem 2.4rem 5rem; max-width: 68rem; }
main > section { margin-bottom: 3.5rem; }
main > section + section { border-top: 1px solid var(--line); padding-top: 1.2rem; }
h1 { font-size: 1.9rem; line-height: 1.2; } h2 { font-size: 1.4rem; margin-top: 2.2rem; } h3 { font-size: 1.1rem; }
p, li { max-width: 46rem; }
a { color: var(--blue); }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td[align=right], th[align=right], .output td, .output th { text-align: right; }
thead th { border-bottom: 2px solid var(--muted); }
.output, .rendered_html { overflow-x: auto; }
pre, code { font: .84rem/1.45 ui-monospace, "DejaVu Sans Mono", Consolas, monospace; }
pre { margin: .4rem 0; padding: .5rem .8rem; background: #f6f8fa; overflow-x: auto; white-space: pre-wrap; }
.output pre { background: none; border-left: 3px solid var(--line); border-radius: 0; }
details.code > summary { cursor: pointer; color: var(--muted); font-size: .8rem; width: max-content; }
.anchor-link { visibility: hidden; text-decoration: none; padding-left: .4rem; }
:is(h1, h2, h3):hover > .anchor-link { visibility: visible; }
math[display=block] { margin: .8rem 0; overflow-x: auto; }
.figures { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem 1.2rem; }
figure { margin: 0; } figure.wide { grid-column: 1 / -1; }
figcaption { color: var(--muted); font-size: .84rem; }
@media screen and (max-width: 60rem) {
  body, .figures { display: block; }
  nav { position: static; height: auto; }
}
@media print {
  @page { size: A4; margin: 13mm; }
  body { display: block; font-size: 9.5pt; line-height: 1.36; }
  nav, .anchor-link, details.code:not([open]) { display: none; }
  main { padding: 0; max-width: none; }
  main > section { break-before: page; margin: 0; border: 0 !important; }
  main > section:first-child { break-before: auto; }
  h1 { font-size: 17pt; margin: 0 0 2mm; } h2 { font-size: 13pt; margin: 4mm 0 1mm; } h1, h2, h3 { break-after: avoid; }
  p, ul, ol { margin: 1.5mm 0; } p, li { max-width: none; orphans: 3; widows: 3; }
  img, figure, tr, math { break-inside: avoid; }
  img { max-height: 150mm; }
  a { color: inherit; text-decoration: none; }
  table { font-size: 8pt; margin: 1.5mm 0; } th, td { padding: .4mm 1.6mm; }
  #summary { font-size: 8.4pt; line-height: 1.26; }
  #summary h2 { font-size: 11pt; margin: 1.5mm 0 .3mm; }
  #summary :is(p, ul) { margin: .8mm 0; }
  #summary .figures { gap: .5mm 4mm; margin: 1mm 0; }
  #summary figure.half img { max-height: 46mm; }
  #summary figure.wide img { max-height: 80mm; }
  #summary figcaption { font-size: 7pt; }
  #summary table { font-size: 7pt; margin: .5mm 0; line-height: 1.15; }
  #summary :is(td, th) { padding: .25mm 1.6mm; }
  #summary td { white-space: nowrap; }
}
"""

# which heading was passed last: its link is marked, and the list of its part unfolded
SCRIPT = """
(() => {
  const links = new Map([...document.querySelectorAll("nav a")].map(a => [decodeURIComponent(a.hash.slice(1)), a]));
  const places = [...links.keys()].map(id => document.getElementById(id)).filter(Boolean);
  let here = null;
  const mark = () => {
    const place = places.filter(p => p.getBoundingClientRect().top < 120).pop() || places[0];
    const link = place && links.get(place.id);
    if (!link || link === here) return;
    if (here) here.classList.remove("here");
    (here = link).classList.add("here");
    const part = link.closest("details");
    document.querySelectorAll("nav details").forEach(d => { d.open = d === part; });
    const nav = document.querySelector("nav"), top = link.offsetTop;
    if (top < nav.scrollTop || top > nav.scrollTop + nav.clientHeight - 60) nav.scrollTop = top - nav.clientHeight / 3;
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; mark(); }); }
  }, { passive: true });
  mark();
})();
"""

_HEADING = re.compile(
    r'<h(?P<level>[1-6])(?P<before>[^>]*?) id="(?P<id>[^"]*)"(?P<rest>[^>]*)>(?P<text>.*?)</h(?P=level)>', re.DOTALL
)
_OWN_LINK = re.compile(r'<a class="anchor-link"[^>]*>.*?</a>', re.DOTALL)


@dataclass(frozen=True)
class Part:
    """A document of the page: the anchor, the words of its contents entry, and its HTML."""

    name: str
    title: str
    body: str


def page(title: str, parts: Sequence[Part], highlight: str = "") -> str:
    """The whole page. Anchors of a part's headings get the part's name in front, for two parts may have the same heading.

    highlight: the style sheet of coloured code.
    """
    sections, entries = [], []
    for part in parts:
        body, headings = _anchored(part)
        sections.append(f'<section id="{part.name}">\n{body}\n</section>')
        below = "".join(f'<li><a href="#{anchor}">{text}</a></li>' for level, anchor, text in headings if level == 2)
        own = f'<a href="#{part.name}">{html.escape(part.title)}</a>'
        entries.append(
            f"<li><details><summary>{own}</summary><ul>{below}</ul></details></li>" if below else f"<li>{own}</li>"
        )
    names = {part.name for part in parts}
    body = _within("\n".join(sections), names)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}\n{highlight}</style>\n</head>\n<body>\n"
        f'<nav aria-label="Contents"><p>Contents</p><ol>{"".join(entries)}</ol></nav>\n<main>\n{body}\n</main>\n'
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _anchored(part: Part) -> tuple[str, list[tuple[int, str, str]]]:
    """The part's HTML with anchors of its own, and level, anchor and words of every heading."""
    found: list[tuple[int, str, str]] = []

    def heading(match: re.Match[str]) -> str:
        words = _OWN_LINK.sub("", match["text"])
        plain = re.sub(r"<math.*?</math>|<[^>]+>", "", words, flags=re.DOTALL).strip()
        anchor = f"{part.name}-{len(found) + 1}"
        found.append((int(match["level"]), anchor, plain))
        link = f'<a class="anchor-link" href="#{anchor}" aria-label="link to this heading">¶</a>'
        return f'<h{match["level"]} id="{anchor}">{words}{link}</h{match["level"]}>'

    return _HEADING.sub(heading, part.body), found


def _within(body: str, names: set[str]) -> str:
    """Links to documents that are on this page lead to them; links to files that are not become plain words."""

    def link(match: re.Match[str]) -> str:
        stem = match["file"].rpartition("/")[2].removesuffix(".ipynb")
        if stem in names and "/" not in match["file"]:
            return f'<a href="#{stem}">{match["words"]}</a>'
        return match["words"]

    return re.sub(
        r'<a href="(?P<file>(?!https?:|#|mailto:|data:)[^"]*)"[^>]*>(?P<words>.*?)</a>', link, body, flags=re.DOTALL
    )
