"""Formulas of notebooks as MathML, which browsers draw themselves: a page then needs neither a script nor a network.

nbconvert takes the tags of MathML apart where it embeds pictures. So a mark stands for each formula while it works.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# code comes first, for a dollar sign in it is no formula; as in Jupyter, no space stands inside an inline formula's ends
_PIECES = re.compile(
    r"(?P<code>```.*?```|`[^`\n]*`)|\$\$(?P<block>.+?)\$\$|(?<![\\$])\$(?P<inline>[^\s$](?:[^$\n]*[^\s$])?)\$",
    re.DOTALL,
)


class Formulas:
    """The formulas of cells, in whose markdown marks take their places (in place) until `drawn` puts them into the page."""

    def __init__(self, cells: Iterable[Any]):
        self._drawn: dict[str, str] = {}
        for cell in cells:
            if cell.cell_type == "markdown":
                cell.source = _PIECES.sub(self._marked, cell.source)

    def drawn(self, page: str) -> str:
        """The page that was made of the cells, with MathML for every mark."""
        return re.sub(r"learngene-formula-\d+-", lambda found: self._drawn.get(found[0], found[0]), page)

    def _marked(self, found: re.Match) -> str:
        if found["code"]:
            return found["code"]
        mathml = _mathml(found["block"] or found["inline"], "block" if found["block"] else "inline")
        if mathml is None:
            return found[0]
        mark = f"learngene-formula-{len(self._drawn)}-"
        self._drawn[mark] = mathml
        return mark


def _mathml(tex: str, display: str) -> str | None:
    from latex2mathml.converter import convert

    try:
        return convert(tex.strip(), display=display)
    except Exception:  # its errors have no class in common; a reader who sees TeX is better off than one without a page
        return None
