"""The lock of a run folder: one process computes there, with the kernels that it starts; others may read."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import filelock

from ..errors import SEALED, StudyError, sweep_unfinished

PATIENCE = 0.5  # seconds: who only notes something is waited for, and whoever computes has written who it is
HELD = "LEARNGENE_LOCKED"  # variable: run folders locked by this process and the kernels that it starts


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes out of the run folder `path`. The system frees the lock of a process that died, and what that one
    was writing is swept away.

    Kernels that `learngene study` started work under its lock. Raises StudyError that names the owner, or says that the
    folder may only be read, that its file system knows no locks, or that a link in it leads out of it.
    """
    held = json.loads(os.environ.get(HELD, "[]"))
    if str(path) in held:
        yield
        return
    owner = path / ".owner"
    guard = filelock.FileLock(path / ".lock", timeout=PATIENCE)
    try:
        guard.acquire()
    except filelock.Timeout:
        raise StudyError(f"{path} is in use by {_who(owner)}; wait for it, or choose another --out") from None
    except (OSError, NotImplementedError) as error:
        raise _no_lock(path, error) from None
    try:
        _check_links(path)
        owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        sweep_unfinished(path)
        os.environ[HELD] = json.dumps([*held, str(path)])
        yield
    finally:
        os.environ.pop(HELD, None)
        if held:
            os.environ[HELD] = json.dumps(held)
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        guard.release()


def _who(owner: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):  # it may end this moment
        return " ".join(owner.read_text(encoding="utf-8").split())[:100] or "another process"
    return "another process"


def _check_links(path: Path) -> None:
    """Refuse a run folder (it may come from elsewhere) through which something outside of it would be written."""
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            entry = Path(folder, name)
            if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(os.path.realpath(path)):
                raise StudyError(
                    f"{entry} is a link that leads out of the run folder; put what it stands for in its place, "
                    "or choose another --out"
                )


def _no_lock(path: Path, error: OSError | NotImplementedError) -> Exception:
    """What to raise when the lock of a run folder cannot be made."""
    reason = getattr(error, "strerror", None) or str(error)
    if getattr(error, "errno", None) in SEALED:
        return StudyError(
            f"the run folder {path} may only be read ({reason}): what is finished can be loaded, nothing computed; copy it "
            "to a folder of your own, or choose another --out"
        )
    if isinstance(error, NotImplementedError) or error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
        return StudyError(f"the file system of {path} knows no locks ({reason}); choose an --out on a local disk")
    return error
