"""Decoded images on disk, memory-mapped: made once per recipe, whole or absent, shared by runs that start together.

An entry is a folder of three arrays and `recipe.json`, which is written last: without it the entry does not count.

Image files to uint8 pixels: any size and colour mode to square RGB, many at a time, straight into the cache.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..errors import HEADLESS, StudyError, atomic, read_json, say, write_json
from .folders import ImageFile, Tree, shown

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


FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # others may start programs (EPS starts Ghostscript)
BATCH_BYTES = 2**22
THREAD_BYTES = 2**14  # below this mean file size threads only wait for each other: Python's own part dominates
RESIZED = "of another size (middle square, resized)"


def decode(file: str | IO[bytes], size: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """One image as (3, size, size) uint8 RGB, and what was converted.

    The middle square is resized bilinearly with antialiasing, which is: shorter side to `size`, then centre crop.
    Transparency is laid on white, 16 bits become 8 by their upper half; of an animation the first picture counts.

    Raises whatever PIL raises for a damaged file; ValueError for 32-bit pixels, whose range nobody knows.
    """
    with Image.open(file, formats=FORMATS) as image:
        rgb, done = to_rgb(image)
        if rgb.size != (size, size):
            rgb, done = square(rgb, size), (*done, RESIZED)
        return np.asarray(rgb).transpose(2, 0, 1), done  # (size, size, 3) -> (3, size, size)


def to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The image in mode RGB, and what was converted."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, ()
    if image.mode[0] in "IF":
        return _from_deep(image).convert("RGB"), ("of 16 bits (upper 8 kept)",)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB"), ("transparent (laid on white)",)
    names = {"1": "black-and-white", "L": "grey-scale", "P": "of a palette"}
    return image.convert("RGB"), (names.get(image.mode, image.mode),)


def _from_deep(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("its 32-bit pixels have no known range; save it with 8 bits")
    return Image.fromarray((pixels >> 8).astype(np.uint8))


def square(image: Image.Image, size: int) -> Image.Image:
    """The middle square of an RGB image, resized to `size` pixels a side."""
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short))


def decode_all(
    tree: Tree, files: Sequence[ImageFile], size: int, writer: RowWriter, *, skip_corrupt: bool
) -> tuple[np.ndarray, dict[str, int], list[str]]:
    """Append the images of `files` to `writer`, with a progress bar.

    Returns which files were readable (n,) bool, the number of images of each conversion, and the unreadable files.
    Raises StudyError that names the first unreadable image, unless `skip_corrupt`; OSError where the cache is full.
    """
    good = np.ones(len(files), bool)
    converted: collections.Counter[str] = collections.Counter()
    bad: list[str] = []
    batch = max(16, BATCH_BYTES // (3 * size * size))
    rows = np.empty((min(batch, len(files)), 3, size, size), np.uint8)
    with (
        warnings.catch_warnings(),
        _mapping(files) as mapped,
        tqdm(
            total=len(files), desc="decoding", unit="image", delay=1, leave=False, disable=HEADLESS in os.environ
        ) as bar,
    ):
        # as unreadable as PIL has it from twice that size on; the filter holds for the threads too
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, len(files), batch):
            part = files[start : start + batch]
            n = 0
            for i, result in enumerate(mapped(lambda f: _try(tree, f, size), part), start):
                if isinstance(result, str):
                    good[i], problem = False, f"{shown(files[i].path)}: {result}"
                    if not skip_corrupt:
                        raise StudyError(f"cannot read the image {tree.where}/{problem}")
                    bad.append(problem)
                else:
                    rows[n] = result[0]
                    converted.update(result[1])
                    n += 1
            writer.append(rows[:n])
            bar.update(len(part))
    return good, dict(converted), bad


def _try(tree: Tree, file: ImageFile, size: int) -> tuple[np.ndarray, tuple[str, ...]] | str:
    """The decoded image, or what is wrong with it."""
    try:
        return decode(tree.open(file.path), size)
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise whatever the codec stumbles over: struct.error, IndexError, ...
        return str(error).replace(f"{tree.where}/", "") or type(error).__name__


@contextmanager
def _mapping(files: Sequence[ImageFile]) -> Iterator[Callable[..., Iterable]]:
    """`map`, over threads where that is faster. No processes: forking after torch was imported can hang."""
    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if workers < 2 or sum(f.size for f in files) < THREAD_BYTES * len(files):
        yield map
        return
    with ThreadPoolExecutor(workers) as pool:
        yield pool.map
