"""Files that are whole or not there: atomic writing, readable JSON, hashes, and the one error a user sees."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST_JSON = 2**28  # bytes; a device or a pipe would be read for ever
UNFINISHED = ".unfinished"  # how the name of a file ends that is being written
HEADLESS = "LEARNGENE_HEADLESS"  # set in kernels that nobody watches: no widgets, no progress bars


class StudyError(Exception):
    """Something a user can mend; its text is one line that says what is wrong and what to do."""


class OutOfTime(StudyError):
    """A stage was told to stop after so many `minutes`; what is finished is saved, and the same command goes on."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not.

    What stands under `path` is on the disk when the block ends: file and folder entry are both flushed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Put a rename on the disk, where the system can (Windows opens no folders, some network drives flush none)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep_unfinished(folder: Path) -> None:
    """Delete what killed writers left behind below `folder`; only for the one process that may write there."""
    for left in folder.rglob(f".*{UNFINISHED}"):
        if not left.name.startswith(".machine.json."):  # the one file that is written without the folder's lock
            left.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises StudyError when it is missing or damaged, or no file that ends."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST_JSON:
            raise StudyError(f"{path} is no JSON file ({facts.st_size:,} bytes); give another, or delete it")
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StudyError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:  # no JSON, no text, or a number of thousands of digits
        raise StudyError(f"{path} is damaged ({error}); delete it or rebuild its stage with --redo") from None


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def say(text: str) -> None:
    """One line for the person at the terminal or notebook."""
    print(text, flush=True)
