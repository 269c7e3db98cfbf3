"""Notebooks run headlessly: a strict wrapper around papermill.

Papermill itself warns of a misspelt parameter and goes on, passes `-p flip false` as a (true) string, turns tuples into
strings and injects into a notebook without a parameters cell in vain. Here each of these is refused before a kernel starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..config import FIELDS, RUN_NAMES, Config, check_run_names
from ..errors import StudyError, atomic, disk_full
from . import kernels
from .kernels import KERNEL
from .links import keep_words, relinked


class KernelDied(StudyError):
    """A kernel that ended, or was ended, before its notebook was through: nothing is known against the notebook itself."""


START_SECONDS = 300  # for a kernel to answer: it imports much, perhaps from a cold disk
LESSON = "lesson"  # tag of cells that only teach: nothing that comes after them, and no table, needs what they compute
LEFT_OUT = "Left out: a demonstration. Run the notebook by itself to see it."
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


def execute(
    path: Path,
    output: Path,
    parameters: Mapping[str, Any],
    kernel: Any = None,
    *,
    lessons: bool = True,
    beside: Collection[str] = (),
) -> None:
    """Run one notebook with checked parameters; the executed copy is kept in `output`, also when a cell fails.

    kernel: the manager of one that runs already (`kernels.Kernels.take`); by default one is started. It is ended.
    lessons: whether cells run that only teach (tag `lesson`); in the copy the others say that they were left out.
    beside: names of the notebooks that are executed into the same folder. Links of the copy lead to these, and otherwise to
    where the links of `path` lead.

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
        try:
            _run(path, output, parameters, kernel, "" if lessons else LESSON)
        finally:
            with contextlib.suppress(StudyError):  # a kernel that dies may leave no copy, or half of one
                _finish(path, output, lessons, beside)


def _finish(path: Path, output: Path, lessons: bool, beside: Collection[str]) -> None:
    """Make an executed copy readable where it lies: its links lead somewhere, and cells that were left out say so."""
    import nbformat

    copy = read(output)
    keep_words(read(path), copy, lambda text: relinked(text, path.parent, output.parent, beside))
    for cell in copy.cells if not lessons else ():
        if cell.cell_type == "code" and LESSON in cell.metadata.get("tags", []):
            cell.outputs = [nbformat.v4.new_output("stream", text=LEFT_OUT + "\n")]
    write(copy, output)


def _run(path: Path, output: Path, parameters: dict[str, Any], kernel: Any, left_out: str) -> None:
    import papermill
    import psutil
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    options = {"kernel_name": KERNEL, "language": "python", "progress_bar": False, "log_output": False}
    options |= {"cwd": str(Path.cwd()), "km": kernel, "start_timeout": START_SECONDS}
    options |= {"skip_cells_with_tag": left_out} if left_out else {}
    ended = threading.Event()
    try:
        with kernels.ended_when_idle(kernel, IDLE_MINUTES) as ended:
            papermill.execute_notebook(path, output, parameters, **options)
    except papermill.PapermillExecutionError as error:
        text = error.evalue  # of a StudyError it says what to do
        if error.ename != "StudyError":
            text = disk_full(text) or f"{error.ename}: {text}"
        raise StudyError(f"{path.name}, cell {error.cell_index + 1}: {text} (see {output})") from None
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


def write(notebook: Any, path: Path) -> None:
    """Write a notebook atomically."""
    import nbformat

    with atomic(path) as temporary:
        temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
