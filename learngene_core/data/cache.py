"""Decoded images on disk, memory-mapped: made once per recipe, whole or absent, shared by runs that start together.

An entry is a folder of three arrays and `recipe.json`, which is written last: without it the entry does not count. It holds
a checksum of each array, which is compared whenever the entry is opened (5 GB a second), so that no damaged pixel or label
is ever used.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import filelock
import numpy as np
import platformdirs

from ..errors import StudyError, atomic, expanded, read_json, say, write_json

FORMAT = 3  # of an entry: raised when its files change, so that older entries are not taken for damaged ones
HEADER = 128  # bytes; room for any shape, so that the header can be written again when the number of images is known
ARRAYS = ("images", "labels", "held_out")
Content = tuple[np.ndarray, np.ndarray, dict[str, Any]]
Make = Callable[["RowWriter"], Content]


class Filled(NamedTuple):
    """What belongs to the images that were appended to a `RowWriter`: labels (n,) int64 into `class_names`, official test
    images (n,) bool, what each is called in messages, numbers of conversions, unreadable images, and lines for a person."""

    labels: np.ndarray
    held_out: np.ndarray
    class_names: Sequence[str]
    items: Sequence[str]
    converted: dict[str, int]
    skipped: Sequence[str] = ()
    remarks: Sequence[str] = ()


class RowWriter:
    """Appends images to a .npy file as they are decoded, so that there is never a second copy of them in memory.

    digests: 16 bytes for each image; equal pixels have equal digests.
    """

    def __init__(self, file: IO[bytes]):
        self._file, self.shape = file, (0, 3, 0, 0)
        self.digests: list[bytes] = []
        file.write(bytes(HEADER))

    def append(self, rows: np.ndarray) -> None:
        """Write `rows` (k, 3, size, size) uint8 after those that are there. Raises OSError, e.g. on a full disk."""
        rows = np.ascontiguousarray(rows, np.uint8)
        # plain writing reports a full disk; a memory map of the file would die of SIGBUS instead
        self._file.write(rows.data)
        self.digests += [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]
        self.shape = (self.shape[0] + len(rows), *rows.shape[1:])

    def finish(self) -> None:
        """Write the header (npy format 1.0), now that the number of images is known."""
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {self.shape}, }}".ljust(HEADER - 11) + "\n"
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("ascii"))


def cache_entry(name: str) -> Path:
    """The folder of an entry: in $LEARNGENE_CACHE, or in the system's place for caches.

    Where that place may only be read and has no such entry, in a temporary folder of this user, which is said once.
    """
    if told := os.environ.get("LEARNGENE_CACHE"):
        return expanded(told) / name
    usual = Path(platformdirs.user_cache_dir("learngene", appauthor=False))
    there = next(folder for folder in (usual, *usual.parents) if folder.exists())
    if (usual / name).exists() or os.access(there, os.W_OK | os.X_OK):
        return usual / name
    return _temporary(usual) / name


@functools.cache
def _temporary(usual: Path) -> Path:
    """A folder for entries that `usual` cannot hold: the same for every process of a user, and nobody else's."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"learngene-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != user or about.st_mode & 0o022:  # somebody else was first
        folder = Path(tempfile.mkdtemp(prefix="learngene-"))
    say(f"{usual} cannot be written: decoded images are kept in {folder}; set LEARNGENE_CACHE to keep them elsewhere")
    return folder


def cached(recipe: dict[str, Any], make: Make, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Images (n, 3, size, size) uint8, labels (n,) int64, held_out (n,) or (0,) bool, and notes, of `recipe`.

    make(writer) appends the images and returns labels, held_out and notes (plain JSON values); `text` says what it does.

    Raises StudyError when the cache cannot be written or is damaged, and whatever `make` raises.
    """
    folder = cache_entry(f"{recipe['data']}-{key_of(recipe)}")
    if not (folder / "recipe.json").exists():
        with writing(folder), one_at_a_time(folder) as alone:
            if not (folder / "recipe.json").exists():
                say(f"{text} (once; kept in the cache)")
                _make(folder, recipe, make, alone)
    return _read(folder, recipe)


def key_of(facts: Any) -> str:
    """16 hexadecimal digits that name the entry of these facts (JSON values)."""
    return hashlib.sha256(json.dumps([FORMAT, facts], sort_keys=True).encode()).hexdigest()[:16]


def facts_of(paths: Iterable[Path]) -> list[tuple[str, int, int, int]]:
    """What changes when a file does: its name, bytes, and when it was changed and put there (ns). A replaced file may keep
    its name, size and date, but not the time at which it was put there."""
    return [(p.name, (s := p.stat()).st_size, s.st_mtime_ns, s.st_ctime_ns) for p in paths]


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Troubles of the file system in this block become a StudyError that names the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StudyError(
            f"cannot write the image cache {folder}: {reason}; set LEARNGENE_CACHE to a folder with space"
        ) from None


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
        entry = {"recipe": recipe, "notes": notes, "checksums": {n: checksum(folder / f"{n}.npy") for n in ARRAYS}}
        write_json(folder / "recipe.json", entry | {"seal": _seal(entry)})
    except BaseException:
        (folder / "images.npy").unlink(missing_ok=True)  # nobody could use it, and the disk may be full
        raise


def _read(folder: Path, recipe: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    try:
        entry = read_json(folder / "recipe.json")
        if entry.pop("seal") != _seal(entry) or entry["recipe"] != json.loads(json.dumps(recipe)):
            raise ValueError("recipe.json is not what was written")
        for name in ARRAYS:
            if checksum(folder / f"{name}.npy") != entry["checksums"][name]:
                raise ValueError(f"{name}.npy is not what was written")
        # "c": pages are read when needed and shared; writing, which nobody does, would copy
        images, labels, held_out = (np.load(folder / f"{n}.npy", mmap_mode="c", allow_pickle=False) for n in ARRAYS)
        if images.ndim != 4 or len(images) != len(labels) or len(held_out) not in (0, len(labels)):
            raise ValueError("its arrays do not belong together")
    except (OSError, ValueError, EOFError, LookupError, TypeError, AttributeError, StudyError) as error:
        raise StudyError(f"the image cache {folder} is damaged ({error}); delete that folder") from None
    return images, labels, held_out, entry["notes"]


def _seal(entry: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(entry, sort_keys=True).encode())


def checksum(path: Path) -> int:
    """CRC-32 of a file's bytes: it notices damage by chance, which is all that a cache of one's own needs."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(2**22):
            value = zlib.crc32(chunk, value)
    return value


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[bool]:
    """Let one process after the other into the block; yields False where the file system knows no locks.

    What is guarded is also written atomically: the lock only saves doing the same work twice.
    """
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
