"""Trees of files, on disk or in zip archives, as the layouts see them: sub-folders, and images."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Protocol

from .files import StudyError

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
