"""CIFAR-100 as its authors publish it: three pickles, `train`, `test` and `meta`, in a tar archive or unpacked.

A pickle can run code when it is read. So these are read by an unpickler that knows the few names which a dictionary of lists,
bytes and an array needs, and puts harmless stand-ins in their place; not even numpy's own unpickling is called.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..errors import HEADLESS, StudyError
from .archives import unpacked
from .cache import Filled, RowWriter, cache_entry, facts_of, one_at_a_time
from .decoding import RESIZED, square
from .division import GROUPS, packaged
from .names import plain, shown

ARCHIVE = "cifar-100-python.tar.gz"
DOWNLOAD = "download"  # the data path that asks for a download
SECONDS = 30  # without a byte from the network before a download is given up
BATCH = 4096  # images
SIDE = 32  # pixels
LARGEST = 2**30  # bytes of a file; the published ones have 155 MB
# MD5 of the published files
PUBLISHED = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}


def folder_of(path: Path) -> Path | None:
    """The folder, `path` or one directly in it, that holds the files `train` and `test`; None where there is none."""
    with contextlib.suppress(OSError):
        for folder in (path, *sorted(p for p in path.iterdir() if p.is_dir())):
            if (folder / "train").is_file() and (folder / "test").is_file():
                return folder
    return None


# files of other versions that the authors publish
OTHERS = {
    "data_batch_1": "CIFAR-10, not CIFAR-100; fetch cifar-100-python.tar.gz",
    "train.mat": "CIFAR-100 for MATLAB; fetch the version for Python, cifar-100-python.tar.gz",
    "train.bin": "CIFAR-100 in its binary version; fetch the version for Python, cifar-100-python.tar.gz",
}


def other_version(path: Path) -> str:
    """Which other version of CIFAR a folder, or one directly in it, holds, and what to do; "" where none."""
    with contextlib.suppress(OSError):
        for folder in (path, *sorted(p for p in path.iterdir() if p.is_dir())):
            for name, text in OTHERS.items():
                if (folder / name).is_file():
                    return text
    return ""


def class_names() -> list[str]:
    """The 100 names in the order of the published labels, which is that of the alphabet."""
    manifest = packaged("cifar100")
    return sorted(name for group in GROUPS for name in manifest[group])


def published() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Class names, labels (60000,) and official test images of the published files."""
    return class_names(), np.repeat(np.arange(100), 600), np.tile(np.arange(600) >= 500, 100)


class Published:
    """CIFAR-100 in its own format (a source of images, see `images`)."""

    remarks: tuple[str, ...] = ()

    def __init__(self, folder: Path, where: str = ""):
        self.folder, self.where = folder, where or shown(str(folder))
        self.text = f"CIFAR-100 as published (train, test) in {self.where}"
        self._files = [folder / name for name in PUBLISHED if (folder / name).is_file()]
        self.facts = ["cifar", facts_of(self._files)]

    def outline(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Class names, labels and official test images as published; nothing is read."""
        return published()

    def fill(self, writer: RowWriter, size: int, *, skip_corrupt: bool = False) -> Filled:
        """Append the images, sorted by class, training images first.

        Raises StudyError when a file is not what it should be.
        """
        names, remarks = self._names()
        train, test = (self._part(name, len(names)) for name in ("train", "test"))  # pixels (n, 3072), labels (n,)
        order = sorted(names)
        place = np.array([order.index(name) for name in names])
        labels = place[np.concatenate([train[1], test[1]])]
        held_out = np.arange(len(labels)) >= len(train[1])
        pick = np.argsort(labels, kind="stable")
        bar = tqdm(range(0, len(pick), BATCH), desc="reading", delay=1, leave=False, disable=HEADLESS in os.environ)
        for start in bar:
            some = pick[start : start + BATCH]
            rows = np.empty((len(some), 3, SIDE, SIDE), np.uint8)
            rows[~held_out[some]] = train[0][some[~held_out[some]]].reshape(-1, 3, SIDE, SIDE)
            rows[held_out[some]] = test[0][some[held_out[some]] - len(train[1])].reshape(-1, 3, SIDE, SIDE)
            writer.append(rows if size == SIDE else _resized(rows, size))
        items = [f"test image {i - len(train[1])}" if held_out[i] else f"train image {i}" for i in pick]
        converted = {} if size == SIDE else {RESIZED: len(pick)}
        return Filled(labels[pick], held_out[pick], order, items, converted, remarks=remarks + self._strange())

    def _names(self) -> tuple[list[str], list[str]]:
        """The class names in the order of the labels, and what there is to say of them."""
        if not (self.folder / "meta").is_file():
            return class_names(), [f"{self.where} has no file meta; labels are named as published"]
        found = _read_pickle(self.folder / "meta").get("fine_label_names")
        names = [plain(n) for n in map(_text, found if isinstance(found, list) else ()) if n]
        if sorted(names) != class_names():
            raise StudyError(f"{self.folder / 'meta'} does not name the 100 classes of CIFAR-100; fetch it again")
        return names, []

    def _part(self, name: str, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """The pixels (n, 3072) uint8 and labels (n,) of one file. Raises StudyError where it has none."""
        found, path = _read_pickle(self.folder / name), self.folder / name
        pixels, labels = (_array(found.get(key)) for key in ("data", "fine_labels"))
        whole = pixels is not None and labels is not None and pixels.dtype == np.uint8
        if not whole or pixels.shape != (len(labels), 3 * SIDE * SIDE):
            raise StudyError(f"{path} is not CIFAR-100's: it needs `data`, n x 3072 bytes, and n `fine_labels`")
        if labels.ndim != 1 or not len(labels) or labels.min() < 0 or labels.max() >= n_classes:
            raise StudyError(f"{path} has labels outside 0 to {n_classes - 1}; fetch it again")
        return pixels, labels

    def _strange(self) -> list[str]:
        others = [path.name for path in self._files if _md5(path) != PUBLISHED[path.name]]
        text = f"{', '.join(others)} in {shown(self.where)} differ from the published files; they are used as they are"
        return [text] if others else []


def _resized(rows: np.ndarray, size: int) -> np.ndarray:
    images = (square(Image.fromarray(row), size) for row in rows.transpose(0, 2, 3, 1))  # (k, 32, 32, 3)
    return np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)  # (k, 3, size, size)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


# pickles --------------------------------------------------------------------------------------------------------------
class _Kind:
    """The stand-in for a numpy dtype: what it is called."""

    __slots__ = ("name", "order")

    def __init__(self, name: Any = "", *_: Any):
        self.name, self.order = _text(name), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])


class _Array:
    """The stand-in for a numpy array: what is needed to make one, once it is known to be harmless."""

    __slots__ = ("state",)

    def __init__(self, *_: Any):
        self.state = None

    def __setstate__(self, state: Any) -> None:
        self.state = tuple(state)[1:]  # shape, dtype, Fortran order, bytes


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, texts, bytes and arrays of whole numbers, and nothing that is called."""

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for one of the few names that are known. Raises UnpicklingError for any other."""
        stand_in: dict[tuple[str, str], Callable] = {
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Kind,
            ("multiarray", "_reconstruct"): lambda *_: _Array(),
            ("multiarray", "scalar"): lambda kind, data: int(_made((), kind, data)),
            ("numeric", "_frombuffer"): _from_buffer,
            ("_codecs", "encode"): lambda text, encoding="": text.encode("latin-1"),
        }
        home = module.rpartition(".")[2] if module in NUMPY else module
        if (home, name) not in stand_in:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not needed for images")
        return stand_in[home, name]


NUMPY = {f"numpy.{core}.{part}" for core in ("core", "_core") for part in ("multiarray", "numeric")}


def _from_buffer(data: Any, kind: _Kind, shape: Any, order: str) -> _Array:
    array = _Array()
    array.state = (shape, kind, order == "F", data)
    return array


def _made(shape: Any, kind: _Kind, data: Any) -> np.ndarray:
    """An array of whole numbers. Raises ValueError for any other."""
    if not re.fullmatch(r"[iu][1248]", kind.name) or kind.order not in ("<", ">", "|", "="):
        raise ValueError(f"an array of {kind.name!r}")
    return np.frombuffer(data, np.dtype(kind.order.replace("|", "=") + kind.name)).reshape(shape)


def _read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle. Raises StudyError for any other content; nothing in it is run."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        with open(path, "rb") as file:
            found = _Unpickler(file, encoding="bytes").load()
        if not isinstance(found, dict):
            raise ValueError("it holds no dictionary")
        return {_text(key): value for key, value in found.items()}
    except (MemoryError, Exception) as error:  # a pickle can make its reader stumble over anything
        what = " ".join(str(error).split()) or type(error).__name__
        raise StudyError(
            f"{path} is not the published CIFAR-100 and cannot be read: {shown(what)}; fetch it again"
        ) from None


def _array(value: Any) -> np.ndarray | None:
    """An array of whole numbers from what a pickle held, or None."""
    try:
        if isinstance(value, _Array):
            shape, kind, fortran, data = value.state
            return _made(tuple(shape)[::-1], kind, data).T if fortran else _made(tuple(shape), kind, data)
        return np.array([int(v) for v in value], np.int64) if isinstance(value, list) else None
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None


def _text(value: Any) -> str:
    """Text from Python 2 is read as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


# download -------------------------------------------------------------------------------------------------------------
def downloaded() -> Path:
    """The folder with CIFAR-100's files, fetched into the cache where they are not there. Raises StudyError if that fails."""
    root = cache_entry("downloads")
    if folder := folder_of(root):
        return folder
    from torchvision.datasets import CIFAR100  # seconds to import, needed here alone
    from torchvision.datasets.utils import download_url

    try:
        with one_at_a_time(root), _patience(SECONDS):
            download_url(CIFAR100.url, str(root), ARCHIVE, CIFAR100.tgz_md5)  # fetches what is not there in full
    except Exception as error:  # urllib, ssl, torchvision: each has its own
        raise StudyError(
            f"the download of CIFAR-100 failed ({' '.join(str(error).split())}); fetch {CIFAR100.url} by hand, put it "
            f"into a folder as {ARCHIVE}, and give that folder as --data-path"
        ) from None
    if folder := folder_of(unpacked([root / ARCHIVE])):
        return folder
    raise StudyError(f"{root / ARCHIVE} does not hold CIFAR-100; delete it")


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # torchvision sets none, and a silent network would hang it for ever
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
