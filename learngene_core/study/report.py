"""What becomes of executed notebooks: cleaned for the commit, or joined to one page for readers.

Every picture gets words for those who do not see it. They are not written twice: a picture's are the first sentence of the
docstring of each drawing function that its cell calls, under the heading of its section.

Formulas become MathML, which browsers draw themselves: a page then needs neither a script nor a network. (nbconvert takes the
tags of MathML apart where it embeds pictures, so a mark stands for each formula while it works.)
"""

from __future__ import annotations

import ast
import functools
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import atomic
from .kernels import KERNEL
from .notebooks import read, source_hash
from .page import Part, page
from .pictures import shrink_pictures

DRAWN = {"Axes", "np.ndarray", "Figure"}  # what a drawing function of the package returns


@functools.cache
def descriptions() -> dict[str, str]:
    """Name of every public drawing function of the package -> the first sentence of its docstring; nothing is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
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


def clean(executed: Any) -> Any:
    """An executed notebook as it is committed: outputs stay; injected cell, papermill's and editors' metadata go; pictures
    become smaller and get their words.

    The hash of the code that made the outputs is noted, so that a test can tell when code changed afterwards.
    """
    executed.cells = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in executed.cells:
        cell.metadata = type(cell.metadata)({k: v for k, v in cell.metadata.items() if k == "tags" and v})
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
            # widget views need the kernel that made them; the static figure before each stands for them
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    shrink_pictures(executed.cells)
    describe_pictures(executed.cells)
    for number, cell in enumerate((c for c in executed.cells if c.cell_type == "code"), 1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
    kernel = {"display_name": "Python 3", "language": "python", "name": KERNEL}
    executed.metadata = type(executed.metadata)(
        {"kernelspec": kernel, "language_info": {"name": "python"}, "learngene": {"executed": source_hash(executed)}}
    )
    return executed


_FOLDED = """
{%- extends 'basic/index.html.j2' -%}
{%- block input -%}
<details class="code"><summary>code</summary>{{ super() }}</details>
{%- endblock input -%}
"""


def write_report(paths: Sequence[Path], title: str, summary: str, target: Path) -> None:
    """One self-contained HTML page: a first page, then executed notebooks one after the other, code folded, pictures embedded.

    summary: markdown of the first page. Notebooks that are not there (yet) are left out.
    """
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter
    from traitlets.config import Config as Traits

    options = Traits(
        {"HTMLExporter": {"exclude_output_prompt": True, "exclude_input_prompt": True, "embed_images": True}}
    )
    exporter = HTMLExporter(template_name="basic", raw_template=_FOLDED, config=options)
    front = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {title}\n\n{summary}")])
    parts = [Part("summary", "Summary", _body(exporter, front))]
    for path in (path for path in paths if path.exists()):
        notebook = clean(read(path))
        parts.append(Part(path.stem, _title(notebook, path.stem), _body(exporter, notebook)))
    highlight = HtmlFormatter(style="friendly", nobackground=True).get_style_defs(".highlight")
    with atomic(target) as temporary:
        temporary.write_text(page(title, parts, highlight), encoding="utf-8")


def _body(exporter: Any, notebook: Any) -> str:
    """A notebook as HTML without a head; formulas are MathML, pictures have their words."""
    formulas = Formulas(notebook.cells)
    body, _ = exporter.from_notebook_node(notebook)
    return formulas.drawn(with_alts(body, notebook.cells))


def _title(notebook: Any, otherwise: str) -> str:
    """The first heading of a notebook, as its entry in the contents."""
    words = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# +(.+)$", words, re.MULTILINE)
    return found[1].strip() if found else otherwise
