"""Troubles of the system in words: a full disk, a folder that may only be read."""

from __future__ import annotations

import errno
import re

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
