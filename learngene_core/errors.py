"""What a person is told: the one error they see, troubles of the system in words; and files that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
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


class Diverged(StudyError):
    """A training whose loss stopped being finite: its learning rate, or what pulls at its weights, is too strong."""


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


FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
SEALED = {errno.EROFS, errno.EACCES, errno.EPERM}
# some libraries pass on the text alone
_FULL_TEXT = re.compile(r"No space left on device|Disk quota exceeded|File too large")
LONGEST = 1000  # characters of the one line: names in hostile files have no end
AGAIN = "make room (or choose another --out); what is finished is saved, and the same command goes on"


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room to write: a full disk, a quota, a limit on the size of files."""
    return (isinstance(error, OSError) and error.errno in FULL) or bool(_FULL_TEXT.search(str(error)))


def explained(error: BaseException) -> str | None:
    """One line that says what is wrong and what to do, for an error of the system that a user can mend; else None."""
    if is_full(error):
        found = _FULL_TEXT.search(str(error))
        reason = error.strerror if isinstance(error, OSError) and error.strerror else found and found.group(0)
        return f"the disk is full ({reason}{_where(error)}): {AGAIN}"
    if isinstance(error, OSError) and error.errno in SEALED and error.filename:
        return (
            f"{error.filename} cannot be written or read ({error.strerror}): a run that may only be read can be looked at, "
            "not continued; copy it to a folder of your own, or choose another --out"
        )
    return None


def one_line(error: BaseException) -> str:
    """What an error says, as one printable line of bounded length."""
    text = explained(error) or str(error)
    if isinstance(error, OSError) and error.filename and not explained(error):
        text = f"{error.strerror}: {error.filename}"
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split())) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _where(error: BaseException) -> str:
    return f", {error.filename}" if isinstance(error, OSError) and error.filename else ""


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 20 min": as exact as an estimate is."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
