"""Images in parquet tables, as data sets on hubs are published: a column of encoded images, a column of labels.

Read with pyarrow, which is an optional part of the installation. The names of the classes are in the notes that the
`datasets` library leaves in a table; of CIFAR-100 they are known anyway.
"""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StudyError
from .cache import Filled, RowWriter, facts_of
from .decoding import decode_all
from .folders import HELD_OUT, TRAIN
from .names import check_twins, counted, few, plain, shown, visible

GET = "pip install pyarrow"
IMAGES = ("img", "image")
LABELS = ("fine_label", "label", "labels")


def tables_in(path: Path) -> list[Path]:
    """Parquet files: `path` itself, or those in it or in a folder directly in it."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    found = [p for pattern in ("*", "*/*") for p in path.glob(pattern) if p.suffix.lower() == ".parquet"]
    return sorted(p for p in found if p.is_file() and all(map(visible, p.relative_to(path).parts)))


class Tables:
    """Images in parquet tables (a source of images, see `images`).

    Raises StudyError without pyarrow, and for tables without images and labels.
    """

    def __init__(self, tables: list[Path], where: Path, names: list[str] | None = None):
        self.where, self._pq = shown(str(where)), _pyarrow(tables)
        self.tables = [(p, held_out) for p in tables if (held_out := _held_out(p, where)) is not None]
        left = [p.name for p in tables if p not in dict(self.tables)]
        self.remarks = [f"{few(left)} is neither train nor test and not read"] if left else []
        if not self.tables:
            raise StudyError(f"{self.where} holds parquet tables, none of them train or test ({few(left)})")
        self.facts = ["parquet", facts_of(p for p, _ in self.tables)]
        self._columns = self._found_columns()
        self._labels = [self._read(p, self._columns[1]).to_pylist() for p, _ in self.tables]
        self._names = names or self._found_names()
        self.text = counted("parquet: " + ", ".join(p.name for p, _ in self.tables), *self.outline())

    def outline(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Class names, labels (n,) and official test images (n,), sorted as the images will be; only labels are read."""
        names, labels, held_out, _ = self._order()
        return names, labels, held_out

    def fill(self, writer: RowWriter, size: int, *, skip_corrupt: bool = False) -> Filled:
        """Append the images, sorted by class, training images first.

        Raises StudyError that names the first unreadable image, unless `skip_corrupt`.
        """
        names, labels, held_out, pick = self._order()
        pictures = [cell for p, _ in self.tables for cell in self._read(p, self._columns[0])]
        columns = zip(self.tables, self._labels, strict=True)
        items = [f"{p.name} row {i}" for (p, _), column in columns for i in range(len(column))]
        called = [items[i] for i in pick]
        good, converted, skipped = decode_all(
            self.where, called, lambda i: _opened(pictures[pick[i]].as_py()), size, writer, skip_corrupt=skip_corrupt
        )
        kept = [name for name, fine in zip(called, good, strict=True) if fine]
        return Filled(labels[good], held_out[good], names, kept, converted, skipped)

    def _order(self) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        values = [value for column in self._labels for value in column]
        if not values:
            raise StudyError(f"the tables in {self.where} have no rows")
        numbers = [v for v in values if type(v) is int]
        if len(numbers) == len(values) and self._names and not 0 <= min(numbers) <= max(numbers) < len(self._names):
            raise StudyError(
                f"the labels in {self.where} are outside 0 to {len(self._names) - 1}, so they name no class"
            )
        if any(type(v) not in (int, str) for v in values):
            raise StudyError(f"the labels in {self.where} are neither whole numbers nor names")
        said = [self._names[v] if self._names and type(v) is int else str(v) for v in values]
        check_twins(sorted(set(said)), self.where)
        said = [plain(name) for name in said]
        names = sorted(set(said))
        labels = np.searchsorted(np.array(names, object), np.array(said, object)).astype(np.int64)
        held_out = np.repeat([flag for _, flag in self.tables], [len(column) for column in self._labels])
        pick = np.lexsort((held_out, labels))
        return names, labels[pick], held_out[pick], pick

    def _found_columns(self) -> tuple[str, str]:
        names = self._schema(self.tables[0][0]).names
        pair = [next((n for n in known if n in names), "") for known in (IMAGES, LABELS)]
        if not all(pair):
            raise StudyError(f"{self.tables[0][0]} has no image and label column, but {few(names)}")
        return pair[0], pair[1]

    def _found_names(self) -> list[str]:
        """The class names in the notes of the first table; [] where there are none."""
        try:
            notes = json.loads((self._schema(self.tables[0][0]).metadata or {})[b"huggingface"])
            found = notes["info"]["features"][self._columns[1]]["names"]
        except (LookupError, ValueError, TypeError):
            return []
        return found if isinstance(found, list) and all(isinstance(n, str) for n in found) else []

    def _schema(self, path: Path) -> Any:
        return _of_table(path, lambda: self._pq.read_schema(path))

    def _read(self, path: Path, column: str) -> Any:
        return _of_table(path, lambda: self._pq.ParquetFile(path).read([column]).column(column))


def _pyarrow(tables: list[Path]) -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise StudyError(f"{tables[0]} is a parquet table; reading it takes pyarrow: {GET}") from None


def _of_table(path: Path, read: Any) -> Any:
    try:
        return read()
    except Exception as error:  # pyarrow's own errors, and those of what it is made of
        raise StudyError(f"cannot read the table {path}: {shown(' '.join(str(error).split()))}") from None


def _held_out(path: Path, where: Path) -> bool | None:
    """Whether a table holds test images, from its name or its folder's; None where neither says.

    A table that is given by itself is taken whole.
    """
    if path == where:
        return False
    for name in (path.name, path.parent.name):
        word = name.casefold().replace("_", "-").partition(".")[0].partition("-")[0]
        if word in (*TRAIN, *HELD_OUT):
            return word in HELD_OUT
    return None


def _opened(cell: Any) -> io.BytesIO:
    """What PIL reads the image of a cell from. Raises ValueError for a cell without one."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise ValueError("the cell holds no image")
    return io.BytesIO(data)
