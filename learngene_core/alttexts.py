"""What the pictures of a notebook show, in words, for readers who do not see them.

The words are not written twice: a picture's are the first sentence of the docstring of each drawing function that its cell
calls, under the heading of its section. `describe_pictures` keeps them with a notebook's outputs, `with_alts` puts them into
a page that nbconvert has made of it (its template for reports knows no words of pictures).
"""

from __future__ import annotations

import ast
import functools
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DRAWN = {"Axes", "np.ndarray", "Figure"}  # what a drawing function of the package returns


@functools.cache
def descriptions() -> dict[str, str]:
    """Name of every public drawing function of the package -> the first sentence of its docstring; nothing is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "import matplotlib" not in source and "from matplotlib" not in source:
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.returns is not None and not node.name.startswith("_"):
                text = ast.get_docstring(node)
                if text and ast.unparse(node.returns) in DRAWN:
                    found[node.name] = _first_sentence(text)
    return found


def _first_sentence(docstring: str) -> str:
    first = " ".join(docstring.partition("\n\n")[0].split()).replace("`", "")
    sentence = re.split(r"(?<=[a-z0-9)])\. |\.$", first, maxsplit=1)[0]
    return re.sub(r"[;,]? returns .*", "", sentence)


def alt_text(source: str, heading: str) -> str:
    """The words for the picture of a code cell under `heading`; of a cell that calls no drawing function, the heading alone."""
    try:
        calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    except SyntaxError:  # a magic command
        calls = []
    names = [call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls]
    texts = [descriptions()[name] for name in dict.fromkeys(names) if name in descriptions()]
    return f"{heading}: {' / '.join(texts)}" if texts else f"{heading}: a figure"


def describe_pictures(cells: Sequence[Any]) -> None:
    """Give every picture among the outputs of a notebook's `cells` its words, in place."""
    heading = "Figure"
    for cell in cells:
        if cell.cell_type == "markdown" and (lines := re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)):
            heading = re.sub(r"[*`_$]", "", lines[-1]).strip()
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.metadata["image/png"] = {"alt": alt_text(cell.source, heading)}


def with_alts(page: str, cells: Sequence[Any]) -> str:
    """An HTML page made of a notebook's described `cells`, every embedded picture with its words as `alt`."""
    outputs = (output for cell in cells for output in cell.get("outputs", []))
    pictures = [
        (o.data["image/png"], o.metadata["image/png"]["alt"]) for o in outputs if "image/png" in o.get("data", {})
    ]
    words = {"".join(data.split()): alt for data, alt in pictures}

    def described(match: re.Match[str]) -> str:
        alt = words.get("".join(match["data"].split()))
        if alt is None:
            return match[0]
        return f'<img alt="{html.escape(alt)}"' + re.sub(r' alt="[^"]*"', "", match[0][len("<img") :])

    return re.sub(r'<img\b[^>]*?src="data:image/png;base64,(?P<data>[^"]*)"[^>]*>', described, page)
