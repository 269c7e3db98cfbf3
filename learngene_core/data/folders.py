"""Trees of files, on disk or in zip archives, as the layouts see them: sub-folders, and images.

The layouts in which image data sets are published, found by looking at the folders.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from ..errors import StudyError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
LARGEST = 2**28  # bytes of one image in an archive
Found = tuple[str, int, int]  # name, bytes (-1: unreadable), and a stamp that changes with the content


class Tree(Protocol):
    """What a layout needs to know of a tree; paths are relative, with slashes, "" is the top."""

    where: str

    def scan(self, path: str) -> tuple[list[str], list[Found]]:
        """Sorted names of the sub-folders, and the images, directly in `path`; nothing hidden."""

    def open(self, path: str) -> str | IO[bytes]:
        """What PIL reads an image from."""


class DiskTree:
    """A folder. Links are followed, but those that lead back up."""

    def __init__(self, root: Path):
        self.root, self.where = root, str(root)

    def scan(self, path: str) -> tuple[list[str], list[Found]]:
        """See `Tree`. Raises StudyError for a folder that cannot be read."""
        folders, images = [], []
        try:
            with os.scandir(self.open(path)) as entries:
                for entry in (e for e in entries if _visible(e.name)):
                    if _is_folder(entry):
                        folders.append(entry.name)
                    elif _is_image(entry.name) and (found := _file(entry)):
                        images.append(found)
        except OSError as error:
            raise StudyError(f"cannot read the data folder {self.open(path)}: {error.strerror}") from None
        return sorted(folders), images

    def open(self, path: str) -> str:
        """The file's path."""
        return os.path.join(self.root, path) if path else str(self.root)


class ZipTree:
    """Zip archives read as one tree; nothing is unpacked. Raises StudyError for a name that climbs out of its folder."""

    def __init__(self, archives: Iterable[Path]):
        archives = sorted(archives)
        self.where = ", ".join(map(str, archives))
        self._files: dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
        self._images: dict[str, list[Found]] = {}
        self._folders: dict[str, set[str]] = {}
        for path in archives:
            try:
                archive = zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
                raise StudyError(f"cannot read the archive {path}: {error}") from None
            for info in archive.infolist():
                self._add(path, archive, info)

    def _add(self, path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        parts = info.orig_filename.split("/")
        if re.match(r"/|[A-Za-z]:", info.orig_filename) or "\\" in info.orig_filename or ".." in parts:
            raise StudyError(f"the archive {path} holds {info.orig_filename!r}, which leaves its folder; not read")
        name = "/".join(p for p in parts if p not in ("", "."))
        folder, _, file = name.rpartition("/")
        if info.is_dir() or not _is_image(file) or not all(map(_visible, name.split("/"))):
            return
        if name in self._files:
            raise StudyError(f"{name!r} stands twice in the archives {self.where}; keep one of them")
        self._files[name] = archive, info
        self._images.setdefault(folder, []).append((file, info.file_size, info.CRC))
        while folder:
            above, _, below = folder.rpartition("/")
            self._folders.setdefault(above, set()).add(below)
            folder = above

    def scan(self, path: str) -> tuple[list[str], list[Found]]:
        """See `Tree`."""
        return sorted(self._folders.get(path, ())), self._images.get(path, [])

    def open(self, path: str) -> IO[bytes]:
        """The image's bytes."""
        archive, info = self._files[path]
        if info.file_size > LARGEST:
            raise ValueError(f"{info.file_size:,} bytes are more than an image has")
        return io.BytesIO(archive.read(info))


def open_tree(path: Path) -> Tree:
    """The tree at `path`: a folder, a zip archive, or a folder of zip archives that belong together.

    Raises StudyError when there is none.
    """
    if path.is_file():
        if path.suffix.lower() != ".zip":
            raise StudyError(f"{path} is a file; give the folder that holds its images (an archive: unpack it first)")
        return ZipTree([path])
    if not path.is_dir():
        raise StudyError(f"the data folder {path} does not exist")
    tree = DiskTree(path)
    archives = [p for p in path.glob("*.zip") if p.is_file() and _visible(p.name)]
    return ZipTree(archives) if archives and not tree.scan("")[0] else tree


def shown(name: str) -> str:
    """A file name that can be printed wherever it comes from."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() and not (entry.is_symlink() and _leads_up(entry.path))
    except OSError:  # a link that leads to itself
        return False


def _leads_up(link: str) -> bool:
    """Whether a link leads to a folder that it stands in: following it would read the tree again, as one class."""
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([target, here]) == target


def _file(entry: os.DirEntry[str]) -> Found | None:
    try:
        facts = entry.stat()
    except OSError:  # a dangling link: decoding will name it
        return entry.name, -1, 0
    return (entry.name, facts.st_size, facts.st_mtime_ns) if stat.S_ISREG(facts.st_mode) else None


HELD_OUT = ("test", "val", "valid", "validation")  # folders of official test images beside `train`


class ImageFile(NamedTuple):
    """One image: its class, whether it stands in an official test split, its path in the tree, bytes and stamp."""

    class_name: str
    held_out: bool
    path: str
    size: int
    stamp: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tree is laid out: `text` for people; (folder of class folders, official test images?) for each part."""

    text: str
    parts: tuple[tuple[str, bool], ...]
    unread: str = ""  # a split without class folders


def find_layout(tree: Tree, hints: Iterable[str] = (), wanted: Collection[str] = ()) -> Layout | None:
    """The layout of a tree, looked for at its top, in the folders `hints`, and below folders that stand alone.

    wanted: only folders of these names are classes (none given: all). Returns None where there is no class folder.
    """
    starts, start = ["", *hints], ""
    for _ in range(3):
        folders, images = tree.scan(start)
        if len(folders) != 1 or images:
            break
        start = _join(start, folders[0])
        starts.append(start)
    return next(filter(None, (_layout_at(tree, s, wanted) for s in starts if _there(tree, s))), None)


def _layout_at(tree: Tree, start: str, wanted: Collection[str]) -> Layout | None:
    def classes(*names: str) -> bool:
        path = _join(start, *names)
        return _there(tree, path) and any(tree.scan(_join(path, n))[1] for n in _wanted(tree, path, wanted))

    above = f"{start}/" if start else ""
    if classes("base") and (classes("novel", "train") or classes("novel", "test")):
        found = ["base", *(["open_world"] if classes("open_world") else []), "novel/train", "novel/test"]
        parts = [(_join(start, p), p == "novel/test") for p in found if classes(*p.split("/"))]
        return Layout(", ".join(f"{p}/<class>" for p, _ in parts) + " (as the released scripts)", tuple(parts))
    if classes("train"):
        beside = [n for n in HELD_OUT if n in tree.scan(start)[0]]
        parts = [(_join(start, n), n != "train") for n in ("train", *beside) if classes(n)]
        unread = ", ".join(above + n for n in beside if not classes(n))
        return Layout(", ".join(f"{p}/<class>" for p, _ in parts), tuple(parts), unread)
    return Layout(f"{above}<class>", ((start, False),)) if classes() else None


def list_images(tree: Tree, layout: Layout, wanted: Collection[str] = ()) -> list[ImageFile]:
    """Every image of a layout, sorted by class, then training before test, then path.

    A class that stands in test folders alone has no official test split: its images count as not held out (trees whose
    train, val and test hold different classes, as few-shot benchmarks have them). Class names are in Unicode's NFC.

    Raises StudyError for a folder that cannot be read or a name that is no text.
    """
    files = []
    for part, held_out in layout.parts:
        for folder in _wanted(tree, part, wanted):
            path = _join(part, folder)
            name = _class_name(folder, tree)
            files += [ImageFile(name, held_out, f"{path}/{f}", size, stamp) for f, size, stamp in tree.scan(path)[1]]
    trained = {f.class_name for f in files if not f.held_out}
    return sorted(f if f.class_name in trained else f._replace(held_out=False) for f in files)


def other_classes(tree: Tree, layout: Layout, wanted: Collection[str]) -> list[str]:
    """Names of the folders beside a layout's classes that are not in `wanted`, sorted."""
    return sorted({_nfc(n) for part, _ in layout.parts for n in tree.scan(part)[0]} - set(wanted))


def _wanted(tree: Tree, path: str, wanted: Collection[str]) -> Iterator[str]:
    return (n for n in tree.scan(path)[0] if not wanted or _nfc(n) in wanted)


def _there(tree: Tree, path: str) -> bool:
    above, _, name = path.rpartition("/")
    return not path or (_there(tree, above) and name in tree.scan(above)[0])


def _join(*parts: str) -> str:
    return "/".join(p for p in parts if p)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # some systems store "é" as two characters


def _class_name(folder: str, tree: Tree) -> str:
    try:
        folder.encode("utf-8")
    except UnicodeEncodeError:
        raise StudyError(
            f"the class folder {shown(folder)!r} in {tree.where} has a name that is no text; rename it"
        ) from None
    return _nfc(folder)
