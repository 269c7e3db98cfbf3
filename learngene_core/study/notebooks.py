"""What the pictures of a notebook show, in words, for readers who do not see them.

The words are not written twice: a picture's are the first sentence of the docstring of each drawing function that its cell
calls, under the heading of its section. `describe_pictures` keeps them with a notebook's outputs, `with_alts` puts them into
a page that nbconvert has made of it (its template for reports knows no words of pictures).

Formulas of notebooks as MathML, which browsers draw themselves: a page then needs neither a script nor a network.

nbconvert takes the tags of MathML apart where it embeds pictures. So a mark stands for each formula while it works.

Notebooks run headlessly: a strict wrapper around papermill, the cleaning of committed notebooks, and the report.

Papermill itself warns of a misspelt parameter and goes on, passes `-p flip false` as a (true) string, turns tuples into
strings and injects into a notebook without a parameters cell in vain. Here each of these is refused before a kernel starts.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import html
import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import FIELDS, RUN_NAMES, Config, check_run_names
from ..errors import StudyError, atomic
from . import kernels
from .kernels import KERNEL

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


class KernelDied(StudyError):
    """A kernel that ended, or was ended, before its notebook was through: nothing is known against the notebook itself."""


START_SECONDS = 300  # for a kernel to answer: it imports much, perhaps from a cold disk
IDLE_MINUTES = 30.0  # a kernel that uses no processor for so long has lost a message and is ended


def folder() -> Path:
    """Where the numbered notebooks are: in the package when it was installed as a wheel, else beside it."""
    inside = Path(__file__).parent.with_name("notebooks")
    return inside if inside.is_dir() else Path(__file__).parents[2] / "notebooks"


def numbered(pattern: str = "[0-9]*.ipynb") -> list[Path]:
    """The study's notebooks in order. Raises StudyError when there are none."""
    found = sorted(folder().glob(pattern))
    if not found:
        raise StudyError(f"there is no notebook {pattern} in {folder()}")
    return found


def read(path: Path) -> Any:
    """A notebook. Raises StudyError when it is missing or no notebook."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise StudyError(f"there is no notebook {path}") from None
    except Exception as error:  # nbformat raises whatever its JSON reader and its schema do
        raise StudyError(f"{path} is no readable notebook: {str(error).splitlines()[0][:200]}") from None


def checked_parameters(path: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values that a notebook may be given.

    Raises StudyError when the notebook has not exactly one `parameters` cell, and ValueError for a name that is no field
    of `Config` (nor one of `RUN_NAMES`) and for a value of the wrong type.
    """
    tagged = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1 or tagged[0].cell_type != "code":
        raise StudyError(f"{path.name} has {len(tagged)} parameters cells; papermill needs exactly one")
    plain = {name: _plain(value) for name, value in parameters.items()}
    for name in plain:
        if name not in FIELDS and name not in RUN_NAMES:
            Config().replace(**{name: None})  # raises, with the nearest name
    check_run_names(plain)
    changes = {k: v for k, v in plain.items() if k in FIELDS and v is not None}
    Config.preset(plain.get("preset") or "lecture", **changes)
    return plain


def _plain(value: Any) -> Any:
    """Tuples to lists, NumPy to Python, paths to strings: what papermill would stringify or refuse."""
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def parameters_of(cfg: Config, out: Path) -> dict[str, Any]:
    """The notebook parameters that give exactly `cfg` and the run folder `out`: the preset and what differs from it."""
    preset = Config.preset(cfg.preset_name, data=cfg.data).to_dict()  # the data brings defaults of its own
    changed = {k: v for k, v in cfg.to_dict().items() if preset[k] != v}
    return {"preset": cfg.preset_name, **changed, "data": cfg.data, "out": str(out)}


def execute(path: Path, output: Path, parameters: Mapping[str, Any], kernel: Any = None) -> None:
    """Run one notebook with checked parameters; the executed copy is kept in `output`, also when a cell fails.

    kernel: the manager of one that runs already (`kernels.Kernels.take`); by default one is started. It is ended.

    Raises StudyError that names the notebook, the cell and the error; KernelDied when the kernel died, or did nothing for
    IDLE_MINUTES and was ended.
    """
    # papermill warns of every parameter that the cell does not name; they are checked fields
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        if kernel is not None:
            stack.callback(kernels.end, kernel)
        parameters = checked_parameters(path, parameters)
        output.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(kernels.quiet_kernels())
        if kernel is None:
            stack.callback(kernels.end, kernel := kernels.start())
        _run(path, output, parameters, kernel)


def _run(path: Path, output: Path, parameters: dict[str, Any], kernel: Any) -> None:
    import papermill
    import psutil
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    options = {"kernel_name": KERNEL, "language": "python", "progress_bar": False, "log_output": False}
    options |= {"cwd": str(Path.cwd()), "km": kernel, "start_timeout": START_SECONDS}
    ended = threading.Event()
    try:
        with kernels.ended_when_idle(kernel, IDLE_MINUTES) as ended:
            papermill.execute_notebook(path, output, parameters, **options)
    except papermill.PapermillExecutionError as error:
        kind = "" if error.ename == "StudyError" else f"{error.ename}: "
        raise StudyError(f"{path.name}, cell {error.cell_index + 1}: {kind}{error.evalue} (see {output})") from None
    except (CellTimeoutError, DeadKernelError, RuntimeError, psutil.NoSuchProcess) as error:  # RuntimeError: no answer
        text = str(error).splitlines()[0]
        if ended.is_set():
            text = f"its kernel did nothing for {IDLE_MINUTES:g} minutes and was ended; run it again"
        raise KernelDied(f"{path.name}: {text} (see {output})") from None


def parts(text: str) -> list[str]:
    """Markdown parted before its headings of the first three levels; code between fences stays whole."""
    found: list[list[str]] = [[]]
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        if not fenced and line.startswith(("# ", "## ", "### ")):
            found.append([])
        found[-1].append(line)
    return [part for lines in found if (part := "\n".join(lines).strip())]


def source_hash(notebook: Any) -> str:
    """16 hexadecimal digits over the code cells, without the injected parameters."""
    sources = [
        c.source
        for c in notebook.cells
        if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])
    ]
    return hashlib.sha256("\x00".join(sources).encode()).hexdigest()[:16]


def clean(executed: Any) -> Any:
    """An executed notebook as it is committed: outputs stay; injected cell, papermill's and editors' metadata go; pictures
    get their words (`alttexts`).

    The hash of the code that made the outputs is noted, so that a test can tell when code changed afterwards.
    """
    executed.cells = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in executed.cells:
        cell.metadata = type(cell.metadata)({k: v for k, v in cell.metadata.items() if k == "tags" and v})
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
            # widget views need the kernel that made them; the static figure before each stands for them
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
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


def write(notebook: Any, path: Path) -> None:
    """Write a notebook atomically."""
    import nbformat

    with atomic(path) as temporary:
        temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def write_report(paths: Sequence[Path], title: str, summary: str, target: Path) -> None:
    """One self-contained HTML page of executed notebooks, one after the other, without code, pictures embedded.

    summary: markdown that stands first.
    """
    import nbformat
    from nbconvert import HTMLExporter
    from traitlets.config import Config as Traits

    joined = nbformat.v4.new_notebook(
        metadata={"title": title, "kernelspec": {"name": KERNEL, "display_name": "Python 3"}}
    )
    joined.cells.append(nbformat.v4.new_markdown_cell(f"# {title}\n\n{summary}"))
    for path in paths:
        for cell in clean(read(path)).cells:
            cell.pop("id", None)
            joined.cells.append(nbformat.from_dict({**cell, "id": f"c{len(joined.cells)}"}))
    formulas = Formulas(joined.cells)
    page = {"exclude_input": True, "exclude_output_prompt": True, "exclude_input_prompt": True, "embed_images": True}
    options = Traits({"HTMLExporter": {**page, "mathjax_url": "", "require_js_url": ""}})
    body, _ = HTMLExporter(template_name="lab", config=options).from_notebook_node(joined)
    with atomic(target) as temporary:
        temporary.write_text(formulas.drawn(with_alts(body, joined.cells)), encoding="utf-8")
