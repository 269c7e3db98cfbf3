"""The headers of files of tensors and arrays, checked against the files' sizes before any memory is taken.

A file from elsewhere may say anything about itself: a header of exabytes, shapes that no memory holds, tensors that share
bytes, one name twice. All of that is refused here, in time and memory that the header alone decides.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

LARGEST_HEADER = 2**24  # bytes; the collective of the paper preset needs 40 thousand
LARGEST_ARRAYS = 2**32  # bytes; the record of the paper preset needs a tenth
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
         "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8}  # fmt: skip


class Entry(NamedTuple):
    """What a header says of one tensor: its type (as safetensors names it), its shape, and its bytes (start, end)."""

    dtype: str
    shape: tuple[int, ...]
    span: tuple[int, int]


def checked_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Name -> entry of every tensor in `path`, and the metadata (strings by name).

    The tensors' bytes follow each other without gap or overlap to the end of the file, each as many as type and shape
    need. Raises ValueError in one line for a file that says anything else of itself, OSError when it cannot be read.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError(f"{path.name} is too short for a safetensors file ({size} bytes)")
        length = int.from_bytes(start, "little")
        if length > min(LARGEST_HEADER, size - 8):
            raise ValueError(f"{path.name} says that its header has {length:,} bytes; the file has {size:,}")
        text = file.read(length)
    if len(text) < length:
        raise ValueError(f"{path.name} ends within its header")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the header of {path.name} is no JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise ValueError(f"the header of {path.name} is no mapping of names")
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(v, str) for v in about.values()):
        raise ValueError(f"the metadata of {path.name} are not strings by name")
    entries = {name: _entry(name, value) for name, value in header.items()}
    _check_spans(entries, size - 8 - length)
    return entries, about


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the header has {next(n for n in names if names.count(n) > 1)[:80]!r} twice")
    return found


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the header's entry {name[:80]!r} is not dtype, shape and data_offsets")
    dtype, shape, span = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise ValueError(f"tensor {name[:80]!r} is of the unknown type {str(dtype)[:40]!r}")
    if not _counts(shape) or len(shape) > 8 or not _counts(span) or len(span) != 2:
        raise ValueError(f"shape or place of tensor {name[:80]!r} are not whole numbers from 0 on")
    if span[1] - span[0] != math.prod(shape) * BYTES[dtype]:
        raise ValueError(f"tensor {name[:80]!r} has not the bytes that its type and shape need")
    return Entry(dtype, tuple(shape), (span[0], span[1]))


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**48 for v in values)


def _check_spans(entries: dict[str, Entry], size: int) -> None:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].span):
        if entry.span[0] != end:
            raise ValueError(f"tensor {name[:80]!r} overlaps another, or bytes before it belong to none")
        end = entry.span[1]
    if end != size:
        raise ValueError(f"its tensors need {end:,} bytes, the file holds {size:,}")


def checked_arrays(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of every member of an .npz archive; none is an object, none is larger than its header and the archive
    agree on.

    Raises ValueError in one line for anything else, OSError when the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(info.file_size for info in members) > LARGEST_ARRAYS:
                raise ValueError(f"{path.name} says that it unpacks to more than {LARGEST_ARRAYS:,} bytes")
            return {info.filename.removesuffix(".npy"): _array(archive, info) for info in members}
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        KeyError,
        SyntaxError,
    ) as error:
        raise ValueError(f"{path.name} is no whole archive of arrays ({type(error).__name__})") from None


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    import numpy as np

    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{info.filename[:80]!r} is of the unknown version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject or dtype.itemsize == 0:
            raise ValueError(f"{info.filename[:80]!r} holds objects, not numbers")
        needed = math.prod(shape) * dtype.itemsize
        if any(n < 0 for n in shape) or needed != info.file_size - file.tell():
            raise ValueError(f"{info.filename[:80]!r} has not the bytes that its type and shape need")
        data = file.read()  # to the end, where the checksum is held against what came
    return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")
