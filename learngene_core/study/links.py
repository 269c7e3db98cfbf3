"""Relative links of notebooks, which lead nowhere in a copy that lies elsewhere: in it they are turned, or become their words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

# code comes first, for a bracket in it is no link; a picture's address (after an exclamation mark) is left alone
_PIECES = re.compile(
    r"(?P<code>```.*?```|`[^`\n]*`)|(?<!!)\[(?P<words>[^\[\]]+)\]\((?P<file>(?![a-z]+:|#|/)[^)\s#]+)(?P<place>#[^)\s]*)?\)",
    re.DOTALL,
)


def relinked(text: str, before: Path, after: Path, beside: Collection[str] = ()) -> str:
    """Markdown from the folder `before` as it reads in the folder `after`: its relative links lead to the same files.

    A link to a file that is not there becomes plain words. beside: names of files that lie, or will lie, in `after` too.
    """

    def link(found: re.Match[str]) -> str:
        if found["code"] or found["file"] in beside:
            return found[0]
        target = before / unquote(found["file"])
        if not target.exists():
            return found["words"]
        way = Path(os.path.relpath(target.resolve(), after.resolve())).as_posix()
        return f"[{found['words']}]({quote(way)}{found['place'] or ''})"

    return _PIECES.sub(link, text)


def keep_words(original: Any, copy: Any, change: Callable[[str], str] = lambda text: text) -> None:
    """Give the markdown cells of a notebook's `copy` (in place) the words of the `original`, changed by `change`."""
    words = {cell.id: cell.source for cell in original.cells if cell.cell_type == "markdown" and "id" in cell}
    for cell in copy.cells:
        if cell.cell_type == "markdown" and cell.get("id") in words:
            cell.source = change(words[cell.id])
