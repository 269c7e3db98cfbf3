"""CIFAR-100 in the format that torchvision downloads and keeps.

Its files are pickles, which can run code when they are read. So they are left to torchvision, which reads them only
when their checksums are the published ones.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..errors import HEADLESS, StudyError, say
from .cache import RESIZED, RowWriter, cache_folder, cached, one_at_a_time, square

FOLDER, ARCHIVE = "cifar-100-python", "cifar-100-python.tar.gz"  # torchvision's names
DOWNLOAD = "download"  # the data path that asks for a download
SECONDS = 30  # without a byte from the network before a download is given up
BATCH = 4096  # images


def root_of(path: Path) -> Path | None:
    """The folder that torchvision takes as its root when `path` holds (or is) CIFAR-100 in its format, else None."""
    if path.name == FOLDER and (path / "train").is_file():
        return path.parent
    return path if (path / FOLDER / "train").is_file() or (path / ARCHIVE).is_file() else None


def load(root: Path | None, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Images (60000, 3, size, size) uint8 sorted by class, labels, official test images, and notes (`class_names`).

    root: torchvision's root, which holds its folder or its archive; None: download it into the cache.

    Raises StudyError when a file is not the published one or the download fails.
    """
    folder = _unpacked(root) if root else _downloaded()
    facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()]
    say(f"cifar100: torchvision's files in {folder}")
    return cached(
        {"data": "cifar100", "layout": "torchvision", "image_size": size, "files": facts},
        lambda writer: _fill(writer, folder.parent, size),
        "reading torchvision's CIFAR-100",
    )


def _unpacked(root: Path) -> Path:
    if not (root / FOLDER / "train").is_file():
        from torchvision.datasets import CIFAR100
        from torchvision.datasets.utils import check_integrity

        if not check_integrity(str(root / ARCHIVE), CIFAR100.tgz_md5):
            raise StudyError(f"{root / ARCHIVE} is not the published archive (its checksum differs); fetch it again")
        with one_at_a_time(cache_folder() / "downloads"):
            _torchvision(root, download=True)  # finds the archive and only unpacks it
    return root / FOLDER


def _downloaded() -> Path:
    root = cache_folder() / "downloads"
    if (root / FOLDER / "train").is_file():
        return root / FOLDER
    from torchvision.datasets import CIFAR100

    try:
        with one_at_a_time(root), _patience(SECONDS):
            CIFAR100(str(root), download=True)
    except Exception as error:  # urllib, ssl, tarfile, torchvision: each has its own
        raise StudyError(
            f"the download of CIFAR-100 failed ({' '.join(str(error).split())}); fetch {CIFAR100.url} by hand, put it "
            f"into a folder as {ARCHIVE}, and give that folder as --data-path"
        ) from None
    return root / FOLDER


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # torchvision sets none, and a silent network would hang it for ever
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _torchvision(root: Path, **options: bool) -> Any:
    from torchvision.datasets import CIFAR100

    try:
        return CIFAR100(str(root), **options)
    except RuntimeError:
        raise StudyError(
            f"the files in {root / FOLDER} are not the published CIFAR-100 (a checksum differs), so they are not "
            f"opened: pickles of unknown origin can run code; delete that folder and fetch them again, or use a tree of images"
        ) from None
    except OSError as error:
        raise StudyError(f"cannot read CIFAR-100 in {root}: {error.strerror or error}") from None


def _fill(writer: RowWriter, root: Path, size: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    train, test = (_torchvision(root, train=flag) for flag in (True, False))
    names = sorted(train.classes)
    place = np.array([names.index(name) for name in train.classes])
    labels = place[np.array([*train.targets, *test.targets], np.int64)]
    held_out = np.arange(len(labels)) >= len(train.targets)
    order = np.argsort(labels, kind="stable")  # by class, training images first
    for start in tqdm(
        range(0, len(order), BATCH), desc="reading", delay=1, leave=False, disable=bool(os.environ.get(HEADLESS))
    ):
        pick = order[start : start + BATCH]
        rows = np.empty((len(pick), *train.data.shape[1:]), np.uint8)  # (k, 32, 32, 3)
        rows[~held_out[pick]] = train.data[pick[~held_out[pick]]]
        rows[held_out[pick]] = test.data[pick[held_out[pick]] - len(train.targets)]
        if rows.shape[1] != size:
            rows = np.stack([np.asarray(square(Image.fromarray(row), size)) for row in rows])
        writer.append(rows.transpose(0, 3, 1, 2))
    converted = {} if train.data.shape[1] == size else {RESIZED: len(order)}
    return labels[order], held_out[order], {"class_names": names, "converted": converted, "skipped": []}
