"""Decoded images on disk, memory-mapped: made once per recipe, whole or absent, shared by runs that start together.

An entry is a folder of three arrays and `recipe.json`, which is written last: without it the entry does not count.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from .files import StudyError, atomic, read_json, say, write_json

FORMAT = 2  # of an entry: raised when its files change, so that older entries are not taken for damaged ones
HEADER = 128  # bytes; room for any shape, so that the header can be written again when the number of images is known
Make = Callable[["RowWriter"], tuple[np.ndarray, np.ndarray, dict[str, Any]]]


class RowWriter:
    """Appends images to a .npy file as they are decoded, so that there is never a second copy of them in memory."""

    def __init__(self, file: IO[bytes]):
        self._file, self.shape = file, (0, 3, 0, 0)
        file.write(bytes(HEADER))

    def append(self, rows: np.ndarray) -> None:
        """Write `rows` (k, 3, size, size) uint8 behind those that are there. Raises OSError, e.g. on a full disk."""
        # plain writing reports a full disk; a memory map of the file would die of SIGBUS instead
        self._file.write(np.ascontiguousarray(rows, np.uint8).data)
        self.shape = (self.shape[0] + len(rows), *rows.shape[1:])

    def finish(self) -> None:
        """Write the header (npy format 1.0), now that the number of images is known."""
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {self.shape}, }}".ljust(HEADER - 11) + "\n"
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("ascii"))


def cache_folder() -> Path:
    """Where decoded images are kept: $LEARNGENE_CACHE, or the system's place for caches."""
    import platformdirs

    return Path(os.environ.get("LEARNGENE_CACHE") or platformdirs.user_cache_dir("learngene", appauthor=False))


def cached(recipe: dict[str, Any], make: Make, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Images (n, 3, size, size) uint8, labels (n,) int64, held_out (n,) or (0,) bool, and notes, of `recipe`.

    make(writer) appends the images and returns labels, held_out and notes (plain JSON values); `text` says what it does.

    Raises StudyError when the cache cannot be written or is damaged, and whatever `make` raises.
    """
    key = hashlib.sha256(json.dumps({"format": FORMAT, **recipe}, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{recipe['data']}-{key}"
    if not (folder / "recipe.json").exists():
        try:
            with one_at_a_time(folder) as alone:
                if not (folder / "recipe.json").exists():
                    say(f"{text} (once; kept in the cache)")
                    _make(folder, recipe, make, alone)
        except OSError as error:
            reason = error.strerror or str(error)
            raise StudyError(
                f"cannot write the image cache {folder}: {reason}; set LEARNGENE_CACHE to a folder with space"
            ) from None
    return _read(folder)


def _make(folder: Path, recipe: dict[str, Any], make: Make, alone: bool) -> None:
    if alone:
        for left in folder.glob(".*.npy.*"):  # of a process that was killed
            left.unlink(missing_ok=True)
    try:
        with atomic(folder / "images.npy") as path, open(path, "wb") as file:
            writer = RowWriter(file)
            labels, held_out, notes = make(writer)
            writer.finish()
        for name, array in (("labels", labels), ("held_out", held_out)):
            with atomic(folder / f"{name}.npy") as path, open(path, "wb") as file:
                np.save(file, array)
        write_json(folder / "recipe.json", {"recipe": recipe, "notes": notes})
    except BaseException:
        (folder / "images.npy").unlink(missing_ok=True)  # nobody could use it, and the disk may be full
        raise


def _read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    try:
        # "c": pages are read when needed and shared; writing, which nobody does, would copy
        images, labels, held_out = (
            np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)
            for name in ("images", "labels", "held_out")
        )
        if images.ndim != 4 or len(images) != len(labels) or len(held_out) not in (0, len(labels)):
            raise ValueError("its arrays do not belong together")
        notes = read_json(folder / "recipe.json")["notes"]
    except (OSError, ValueError, EOFError, KeyError, TypeError, StudyError) as error:
        raise StudyError(f"the image cache {folder} is damaged ({error}); delete that folder") from None
    return images, labels, held_out, notes


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[bool]:
    """Let one process after the other into the block; yields False where the file system knows no locks.

    What is guarded is also written atomically: the lock only saves doing the same work twice.
    """
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / "lock")
    try:
        try:
            lock.acquire(timeout=1)
        except filelock.Timeout:
            say(f"another process is filling {folder}; waiting for it")
            lock.acquire()
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        yield False
        return
    try:
        yield True
    finally:
        (folder / "lock").unlink(missing_ok=True)  # while it is held: whoever waits looks for it by name
        lock.release()
