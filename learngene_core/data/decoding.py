"""Image files to uint8 pixels: any size and colour mode to square RGB, many at a time, straight into the cache."""

from __future__ import annotations

import collections
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from ..errors import HEADLESS, StudyError
from .cache import RowWriter
from .names import shown

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # others may start programs (EPS starts Ghostscript)
BATCH_BYTES = 2**22
THREAD_BYTES = 2**14  # below this mean file size threads only wait for each other: Python's own part dominates
RESIZED = "of another size (middle square, resized)"
TURNED = "turned as its EXIF says"
ORIENTATION, BITS = 274, 258  # tags of EXIF and TIFF
_T = Image.Transpose
TURNS = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE, 6: _T.ROTATE_270,
         7: _T.TRANSVERSE, 8: _T.ROTATE_90}  # fmt: skip
Picture = str | IO[bytes]  # a path, or what holds the file's bytes
# how files begin that stand under the name of an image and are none that is read: what they are
INSTEAD = (
    (rb"\s*$", "the file is empty"),
    (rb"version https://git-lfs", "a pointer of Git LFS stands in its place; fetch the images with `git lfs pull`"),
    (rb"(?i)\s*<(!doctype html|html|head|body)", "it is a web page, perhaps the answer to a download that failed"),
    (rb"(?is)\s*(<\?xml.*?)?<(!doctype )?svg", "it is a drawing (SVG); save it as PNG"),
    (rb"(?s)....ftyp(hei|hev|mif|msf|avi)", "it is HEIC or AVIF; save it as PNG or JPEG"),
    (rb"\0\0\0\x0cjP  ", "it is JPEG 2000; save it as PNG or JPEG"),
    (rb"8BPS", "it is a Photoshop document; save it as PNG or JPEG"),
    (rb"%PDF|%!PS", "it is a document (PDF or PostScript); save its picture as PNG"),
    (rb"PK\x03\x04|Rar!|7z\xbc\xaf|\x1f\x8b", "it is an archive; unpack it"),
)


def decode(file: Picture, size: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """One image as (3, size, size) uint8 RGB, and what was converted.

    It is turned as its EXIF data say. The middle square is resized bilinearly with antialiasing, which is: shorter side to
    `size`, then centre crop. Transparency is laid on white, 12 and 16 bits become 8 by their upper ones; of an animation the
    first picture counts.

    Raises whatever PIL raises for a damaged file; ValueError for 32-bit pixels, whose range nobody knows.
    """
    with Image.open(file, formats=FORMATS) as image:
        turned = image.format == "TIFF" and image.tag_v2.get(ORIENTATION, 1) in TURNS  # which Pillow turns by itself
        image.load()
        upright = image
        if image.format != "TIFF" and (turn := TURNS.get(_orientation(image))) is not None:
            turned, upright = True, image.transpose(turn)
            upright.format = image.format  # which PIL forgets
        rgb, done = to_rgb(upright)
        done = (TURNED, *done) if turned else done
        if rgb.size != (size, size):
            rgb, done = square(rgb, size), (*done, RESIZED)
        return np.asarray(rgb).transpose(2, 0, 1), done  # (size, size, 3) -> (3, size, size)


def _orientation(image: Image.Image) -> int:
    """Which side is up: cameras store a picture as their sensor lay, and this number beside it."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data raise whatever their reader stumbles over; the pixels are whole
        return 1


def to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The image in mode RGB, and what was converted."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, ()
    if image.mode[0] in "IF":
        return _from_deep(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB"), ("transparent (laid on white)",)
    names = {"1": "black-and-white", "L": "grey-scale", "P": "of a palette"}
    return image.convert("RGB"), (names.get(image.mode, image.mode),)


def _from_deep(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Grey values of more than 8 bits. PNG and PPM hold at most 16, also where PIL puts them into 32."""
    pixels = np.asarray(image)
    known = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not known or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("its 32-bit pixels have no known range; save it with 8 bits")
    bits = 12 if getattr(image, "tag_v2", {}).get(BITS) in (12, (12,)) else 16
    grey = Image.fromarray((pixels >> (bits - 8)).astype(np.uint8))
    return grey.convert("RGB"), (f"of {bits} bits (upper 8 kept)",)


def square(image: Image.Image, size: int) -> Image.Image:
    """The middle square of an RGB image, resized to `size` pixels a side."""
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short))


def decode_all(
    where: str,
    names: Sequence[str],
    picture: Callable[[int], Picture],
    size: int,
    writer: RowWriter,
    *,
    threads: bool = False,
    skip_corrupt: bool = False,
) -> tuple[np.ndarray, dict[str, int], list[str]]:
    """Append the images picture(0), picture(1), ... to `writer`, with a progress bar.

    names: what each is called in messages, below `where`; threads: whether several are decoded at a time.

    Returns which were readable (n,) bool, the number of images of each conversion, and the unreadable ones.
    Raises StudyError that names the first unreadable image, unless `skip_corrupt`; OSError where the cache is full.
    """
    good = np.ones(len(names), bool)
    converted: collections.Counter[str] = collections.Counter()
    bad: list[str] = []
    batch = max(16, BATCH_BYTES // (3 * size * size))
    rows = np.empty((min(batch, len(names)), 3, size, size), np.uint8)
    with (
        warnings.catch_warnings(),
        _mapping(threads) as mapped,
        tqdm(
            total=len(names), desc="decoding", unit="image", delay=1, leave=False, disable=HEADLESS in os.environ
        ) as bar,
    ):
        warnings.simplefilter("ignore", UserWarning)  # of damaged EXIF data, line after line
        # as unreadable as PIL has it from twice that size on; the filter holds for the threads too
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, len(names), batch):
            part = range(start, min(start + batch, len(names)))
            n = 0
            for i, result in zip(part, mapped(lambda i: _try(picture, i, size, where), part), strict=True):
                if isinstance(result, str):
                    good[i], problem = False, f"{shown(names[i])}: {shown(result)}"
                    if not skip_corrupt:
                        raise StudyError(f"cannot read the image {where}/{problem}")
                    bad.append(problem)
                else:
                    rows[n] = result[0]
                    converted.update(result[1])
                    n += 1
            writer.append(rows[:n])
            bar.update(len(part))
    return good, dict(converted), bad


def _try(picture: Callable[[int], Picture], i: int, size: int, where: str) -> tuple[np.ndarray, tuple[str, ...]] | str:
    """The decoded image, or what is wrong with it."""
    try:
        return decode(picture(i), size)
    except MemoryError:
        raise
    except UnidentifiedImageError:  # whose text names the file, or the address of a buffer
        return _instead(picture(i)) or f"cannot identify it as an image ({', '.join(FORMATS)})"
    except Exception as error:  # damaged files raise whatever the codec stumbles over: struct.error, IndexError, ...
        return " ".join(str(error).split()).replace(f"{where}/", "") or type(error).__name__


def _instead(file: Picture) -> str:
    """What a file is that PIL does not know, where its beginning tells; "" where it does not."""
    try:
        with open(file, "rb") if isinstance(file, str) else file as opened:
            opened.seek(0)
            start = opened.read(512)
    except OSError:
        return ""
    return next((text for pattern, text in INSTEAD if re.match(pattern, start)), "")


@contextmanager
def _mapping(threads: bool) -> Iterator[Callable[..., Iterable]]:
    """`map`, over threads where that is faster. No processes: forking after torch was imported can hang."""
    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if workers < 2 or not threads:
        yield map
        return
    with ThreadPoolExecutor(workers) as pool:
        yield pool.map
