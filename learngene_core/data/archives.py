"""Archives as people download them: unpacked into the cache once, never beside the archive, never outside that folder.

What an archive says of itself is not believed: no name leaves the folder, no link is made, no file is longer than announced,
and nothing is written before the whole is known to fit on the disk.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from tqdm.auto import tqdm

from ..errors import FULL, HEADLESS, StudyError, read_json, say, write_json
from .cache import cache_entry, facts_of, key_of, one_at_a_time, writing
from .folders import SUFFIXES
from .names import shown, visible

ZIP, TAR = (".zip",), (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
LARGEST = 2**28  # bytes of one image
SPARE = 2**28  # bytes of the disk that stay free
# what readers of archives raise for content that is damaged, encrypted, or packed in a way they do not know
DAMAGED = (
    OSError, EOFError, RuntimeError, ValueError, ArithmeticError, LookupError, struct.error, zlib.error, lzma.LZMAError,
    zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip


class Member(NamedTuple):
    """One file of an archive: its safe relative name, its bytes when unpacked, and what opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def is_archive(path: Path) -> bool:
    """Whether a file's name is that of an archive which `unpacked` takes."""
    return path.name.lower().endswith((*ZIP, *TAR)) and path.is_file()


def archives_in(folder: Path) -> list[Path]:
    """The archives directly in a folder, sorted."""
    try:
        return sorted(p for p in folder.iterdir() if visible(p.name) and is_archive(p))
    except OSError as error:
        raise StudyError(f"cannot read the data folder {folder}: {error.strerror}") from None


def unpacked(archives: Sequence[Path]) -> Path:
    """The folder in the cache that holds the content of `archives`, which belong together; unpacked when it is not there.

    Raises StudyError for an archive that is damaged or unsafe, and where the disk is too small.
    """
    folder = cache_entry(f"unpacked-{key_of(facts_of(archives))}")
    if not _whole(folder):
        with writing(folder), one_at_a_time(folder):
            if not _whole(folder):
                _unpack(archives, folder)
    return folder / "files"


def _whole(folder: Path) -> bool:
    """Whether a folder holds everything that was unpacked into it: caches are cleaned by other programs too."""
    if not (folder / "archive.json").exists():
        return False
    sizes = [os.path.getsize(os.path.join(top, n)) for top, _, names in os.walk(folder / "files") for n in names]
    return read_json(folder / "archive.json") == {"files": len(sizes), "bytes": sum(sizes)}


def _unpack(archives: Sequence[Path], folder: Path) -> None:
    where, total, seen = ", ".join(map(str, archives)), 0, set[str]()
    free = shutil.disk_usage(folder).free - SPARE
    for path in archives:
        with _members(path) as members:
            for member in members:
                if member.name in seen:
                    raise StudyError(f"{shown(member.name)!r} is twice in the archives {where}; keep one of them")
                seen.add(member.name)
                if member.size > LARGEST and Path(member.name).suffix.lower() in SUFFIXES:
                    raise StudyError(
                        f"{path} holds {shown(member.name)}: {member.size:,} bytes are more than an image has"
                    )
                total += member.size
                if total > free:
                    raise StudyError(
                        f"{where} takes {total / 1e9:.1f} GB or more when unpacked, and {folder.parent} has {free / 1e9:.1f} "
                        "GB to spare; set LEARNGENE_CACHE to a folder with space"
                    )
    say(f"unpacking {shown(where)}: {len(seen):,} files, {total / 1e6:,.0f} MB (once; kept in the cache)")
    part, files = folder / ".part", folder / "files"
    for left in (part, files):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir()
    try:
        with tqdm(total=total, desc="unpacking", unit="B", unit_scale=True, delay=1, leave=False,
                  disable=HEADLESS in os.environ) as bar:  # fmt: skip
            for path in archives:
                with _members(path) as members:
                    for member in members:
                        _write(path, member, part)
                        bar.update(member.size)
        os.replace(part, files)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # nobody could use it, and the disk may be full
        raise
    write_json(folder / "archive.json", {"files": len(seen), "bytes": total})


def _write(path: Path, member: Member, folder: Path) -> None:
    """Unpack one file. Raises OSError where it cannot be written, StudyError where it cannot be read."""
    target = folder / member.name
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.size
    with open(target, "xb") as out:  # "x": never over another file, never through a link
        with _reading(path, member.name), member.open() as file:
            while chunk := file.read(min(left + 1, 2**20)):
                left -= len(chunk)
                if left < 0:
                    break
                out.write(chunk)
        if left:
            raise StudyError(f"the archive {path} is damaged: {shown(member.name)} has another length than it says")


@contextmanager
def _members(path: Path) -> Iterator[Iterator[Member]]:
    """The files in an archive that a person would see. Raises StudyError for one that is damaged or unsafe."""
    with _reading(path):
        if path.name.lower().endswith(ZIP):
            with zipfile.ZipFile(path) as archive:
                yield _zip_members(path, archive)
        else:
            with tarfile.open(path, "r:*") as archive:
                yield _tar_members(path, archive)


def _zip_members(path: Path, archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if not info.is_dir() and not info.orig_filename.endswith("\\"):
            name = _safe(path, _text(info), kind not in (0, stat.S_IFREG))
            if name:
                yield Member(name, info.file_size, lambda info=info: archive.open(info))


def _tar_members(path: Path, archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        if not info.isdir():
            name = _safe(path, info.name, not info.isreg() or info.size < 0)
            if name:
                yield Member(name, info.size, lambda info=info: archive.extractfile(info))


def _text(info: zipfile.ZipInfo) -> str:
    """A name in a zip archive. Many programs write UTF-8 and do not say so; zipfile then reads it as DOS did."""
    if info.flag_bits & 0x800:
        return info.orig_filename
    try:
        return info.orig_filename.encode("cp437").decode("utf-8")
    except ValueError:
        return info.orig_filename


def _safe(path: Path, name: str, special: bool) -> str:
    """The relative name under which a file may be unpacked; "" for one that is hidden or another program's.

    Raises StudyError for a name that leaves the folder, and for a file that is `special`: a link, a device.
    """
    parts = name.replace("\\", "/").split("/")  # archivers on Windows write backslashes
    if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in parts or "\0" in name:
        raise StudyError(f"the archive {path} holds {shown(name)!r}, which leaves its folder; not read")
    if special:
        raise StudyError(f"the archive {path} holds {shown(name)!r}, which is a link or no file; unpack it yourself")
    parts = [p for p in parts if p not in ("", ".")]
    return "/".join(parts) if all(map(visible, parts)) else ""


@contextmanager
def _reading(path: Path, name: str = "") -> Iterator[None]:
    """What goes wrong in this block is the archive's fault, unless the disk is full."""
    try:
        yield
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        what = f"{shown(name)} in the archive {path}" if name else f"the archive {path}"
        why = next(iter(str(error).splitlines()), "").rstrip(": ") or type(error).__name__
        raise StudyError(f"cannot read {what}: {shown(why)}; fetch it again, or unpack it yourself") from None
