"""What a person is told, and files that are whole or not there.

`StudyError` is the one error that a person sees: a line that says what is wrong and what to do. Troubles of the system (a full
disk, a folder that may only be read) are put into such a line by `one_line`. Every file of the study is written by `atomic`:
under a temporary name first, so that a killed process leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADLESS = "LEARNGENE_HEADLESS"  # variable, set in kernels that nobody watches: no widgets, no progress bars
LONGEST = 1000  # characters of the one line: names in hostile files have no end
LARGEST_JSON = 2**28  # bytes; a device or a pipe would be read for ever
UNFINISHED = ".unfinished"  # how the name of a file ends that is being written


class StudyError(Exception):
    """Something a user can mend; its text is one line that says what is wrong and what to do."""


class Diverged(StudyError):
    """A training whose loss stopped being finite: its learning rate, or what pulls at its weights, is too strong."""


class OutOfTime(StudyError):
    """A stage was told to stop after so many `minutes`; what is finished is saved, and the same command goes on."""


# in words -------------------------------------------------------------------------------------------------------------
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
SEALED = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL_TEXT = re.compile(r"No space left on device|Disk quota exceeded|File too large")
AGAIN = "make room (or choose another --out); what is finished is saved, and the same command goes on"


def say(text: str) -> None:
    """One line for the person at the terminal or notebook."""
    print(text, flush=True)


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 20 min": as exact as an estimate is."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def one_line(error: BaseException) -> str:
    """What an error says, as one printable line of bounded length."""
    text = explained(error) or str(error)
    if isinstance(error, OSError) and error.filename and not explained(error):
        text = f"{error.strerror}: {error.filename}"
    return printable(text) or type(error).__name__


def printable(text: str) -> str:
    """A text as one line of bounded length, without characters that a terminal would obey."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def explained(error: BaseException) -> str | None:
    """One line that says what is wrong and what to do, for an error of the system that a user can mend.

    None for any other error, and for a StudyError: its own text says what to do.
    """
    if isinstance(error, StudyError):
        return None
    if isinstance(error, OSError):
        where = f", {error.filename}" if error.filename else ""
        if error.errno in FULL:
            return f"the disk is full ({error.strerror or os.strerror(error.errno)}{where}): {AGAIN}"
        if error.errno in SEALED and error.filename:
            return (
                f"{error.filename} cannot be written or read ({error.strerror}): a run that may only be read can be "
                "looked at, not continued; copy it to a folder of your own, or choose another --out"
            )
        return None
    return disk_full(str(error))


def disk_full(text: str) -> str | None:
    """The line for a full disk, where a library (or another process) passes on the system's words alone; else None."""
    found = _FULL_TEXT.search(text)
    return f"the disk is full ({found.group(0)}): {AGAIN}" if found else None


# files ----------------------------------------------------------------------------------------------------------------
def expanded(path: str | Path) -> Path:
    """A path as a person writes it, with `~` for a home folder. Raises StudyError for a user who is not there."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise StudyError(
            f"{path} begins with the name of a user who has no home folder here; write the path out"
        ) from None


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not.

    What stands under `path` is on the disk when the block ends: file and folder entry are both flushed. Who may read it
    follows from the umask, as for any new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
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
    """Delete the unfinished files of killed writers below `folder`; only for the one process that may write there."""
    for left in folder.rglob(f".*{UNFINISHED}"):
        if not left.name.startswith(".machine.json."):  # the one file that is written without the folder's lock
            left.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, more: str = "delete it or rebuild its stage with --redo") -> Any:
    """The JSON value in `path`. Raises StudyError when it is missing or damaged (`more`: what to do then), names a value twice,
    or is no file that ends."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST_JSON:
            raise StudyError(f"{path} is no JSON file ({facts.st_size:,} bytes); give another, or delete it")
        return json.loads(
            path.read_text(encoding="utf-8-sig"),  # editors on Windows begin a file with a mark
            object_pairs_hook=_once,
        )
    except (FileNotFoundError, NotADirectoryError):
        raise StudyError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:  # no JSON, no text, or a number of thousands of digits
        raise StudyError(f"{path} is damaged ({error}); {more}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Of two values of one name the last would count, without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice")
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
