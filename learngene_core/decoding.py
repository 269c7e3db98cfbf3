"""Image files to uint8 pixels: any size and colour mode to square RGB, many at a time, straight into the cache."""

from __future__ import annotations

import collections
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .cache import RowWriter
from .files import HEADLESS, StudyError
from .layouts import ImageFile
from .trees import Tree, shown

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
