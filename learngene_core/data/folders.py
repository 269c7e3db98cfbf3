"""The one reader of folders: in which of the known layouts images lie, which images there are, and what was left out.

The layouts: `<class>/*`; `train/<class>/*` with test images in `test/`, `val/`, `Validation/` and so on, in class folders or
named by a list, as ImageNet's; `base/<class>/*`, `novel/train/<class>/*`, `novel/test/<class>/*` as the released scripts have
them. The images of a class may lie in a folder `images` of their own, as in Tiny ImageNet.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import StudyError
from .names import check_twins, class_name, few, plain, shown, sidecars, visible

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
LISTS = {".txt", ".csv", ".tsv"}  # of test images and their classes
LARGEST_LIST = 2**26  # bytes
TRAIN = ("train", "training")
HELD_OUT = ("test", "testing", "val", "valid", "validation")  # beside `train`, in upper or lower case


class ImageFile(NamedTuple):
    """One image: its class, whether it belongs to an official test split, its path below the folder, its size in bytes (-1:
    unreadable), and when the file was changed and put there (ns): a replaced file may keep its name, size and date."""

    class_name: str
    held_out: bool
    path: str
    size: int
    changed: tuple[int, int]


class Scan(NamedTuple):
    """What lies directly in a folder: names of sub-folders, images (name, bytes, changed), lists, numbers of other files by
    suffix, folders of other programs, and hidden folders."""

    folders: list[str]
    images: list[tuple[str, int, tuple[int, int]]]
    lists: list[str]
    others: collections.Counter[str]
    sidecars: list[str]
    hidden: list[str]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a folder is laid out: `text` for people; (folder of class folders, official test images?) for each part; for each
    folder of test images that a list names: file name without suffix -> name of its class folder; what is not read."""

    text: str
    parts: tuple[tuple[str, bool], ...]
    listed: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    unread: tuple[str, ...] = ()


class Folder:
    """A folder of images. Links are followed, but those that lead back up. `where`: what a person calls it."""

    def __init__(self, root: Path, where: str = ""):
        self.root, self.where = root, shown(where or str(root))
        self._scans: dict[str, Scan] = {}

    def path(self, *names: str) -> str:
        """The path of what lies below the folder."""
        return os.path.join(self.root, *filter(None, names))

    def scan(self, path: str = "") -> Scan:
        """What lies in the sub-folder `path`. Raises StudyError for one that cannot be read."""
        if path not in self._scans:
            try:
                with os.scandir(self.path(path)) as entries:
                    self._scans[path] = _scan(entries)
            except OSError as error:
                raise StudyError(f"cannot read the data folder {shown(self.path(path))}: {error.strerror}") from None
        return self._scans[path]

    def has(self, path: str) -> bool:
        """Whether there is such a sub-folder, in this spelling."""
        above, _, name = path.rpartition("/")
        return not path or (self.has(above) and name in self.scan(above).folders)

    def images_of(self, path: str) -> tuple[str, Scan]:
        """Where the images of a class folder lie, and what lies there."""
        scan = self.scan(path)
        inner = next((n for n in scan.folders if n.casefold() == "images"), "")
        return (_join(path, inner), self.scan(_join(path, inner))) if inner and not scan.images else (path, scan)


def _scan(entries: Iterable[os.DirEntry[str]]) -> Scan:
    folders, images, lists, others, names, hidden = [], [], [], collections.Counter(), [], []
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()
        if not visible(entry.name):
            names.append(entry.name)
            hidden += [entry.name] if entry.name.startswith(".") and _is_folder(entry) else []
        elif _is_folder(entry):
            folders.append(entry.name)
        elif suffix in SUFFIXES:
            images += _file(entry)
        elif suffix in LISTS:
            lists.append(entry.name)
        else:
            others[suffix] += 1
    return Scan(sorted(folders), images, sorted(lists), others, sidecars(names), sorted({*hidden} - {*sidecars(names)}))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() and not (entry.is_symlink() and _leads_up(entry.path))
    except OSError:  # a link that leads to itself
        return False


def _leads_up(link: str) -> bool:
    """Whether a link leads to a folder that it is in: following it would read the folder again, as one class."""
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([target, here]) == target


def _file(entry: os.DirEntry[str]) -> list[tuple[str, int, tuple[int, int]]]:
    try:
        facts = entry.stat()
    except OSError:  # a dangling link: decoding will name it
        return [(entry.name, -1, (0, 0))]
    regular = stat.S_ISREG(facts.st_mode)
    return [(entry.name, facts.st_size, (facts.st_mtime_ns, facts.st_ctime_ns))] if regular else []


# layouts --------------------------------------------------------------------------------------------------------------
def find_layout(folder: Folder, hints: Iterable[str] = (), wanted: Collection[str] = ()) -> Layout | None:
    """The layout of a folder, looked for at its top, in the sub-folders `hints`, and below sub-folders that stand alone.

    wanted: only folders of these names are classes (none given: all). Returns None where there is no class folder.
    """
    starts, start = ["", *hints], ""
    for _ in range(3):
        scan = folder.scan(start)
        if len(scan.folders) != 1 or scan.images:
            break
        start = _join(start, scan.folders[0])
        starts.append(start)
    return next(filter(None, (_layout_at(folder, s, wanted) for s in starts if folder.has(s))), None)


def _layout_at(folder: Folder, start: str, wanted: Collection[str]) -> Layout | None:
    def classes(*names: str) -> bool:
        path = _join(start, *names)
        return folder.has(path) and any(
            folder.images_of(_join(path, n))[1].images for n in _wanted(folder, path, wanted)
        )

    above, there = f"{start}/" if start else "", folder.scan(start).folders
    if classes("base") and (classes("novel", "train") or classes("novel", "test")):
        found = ["base", *(["open_world"] if classes("open_world") else []), "novel/train", "novel/test"]
        parts = [(_join(start, p), p == "novel/test") for p in found if classes(*p.split("/"))]
        return Layout(", ".join(f"{p}/<class>" for p, _ in parts) + " (as the released scripts)", tuple(parts))
    if train := [n for n in there if n.casefold() in TRAIN and classes(n)]:
        beside = sorted((n for n in there if n.casefold() in HELD_OUT), key=lambda n: HELD_OUT.index(n.casefold()))
        loose = [n for n in beside if not classes(n) or _is_one_pile(folder, _join(start, n))]
        parts = [(_join(start, n), n in beside) for n in (*train, *beside) if n not in loose]
        return _with_lists(folder, start, loose, tuple(parts))
    return Layout(f"{above}<class>", ((start, False),)) if classes() else None


def _is_one_pile(folder: Folder, path: str) -> bool:
    """Whether a folder of test images holds nothing but a folder `images`, which then is no class."""
    return [n.casefold() for n in folder.scan(path).folders] == ["images"]


def _with_lists(folder: Folder, start: str, loose: list[str], parts: tuple[tuple[str, bool], ...]) -> Layout:
    """The layout of training and test folders; the test folders `loose` have no class folders, but perhaps a list."""
    texts, listed, unread = [f"{p}/<class>" for p, _ in parts], {}, []
    names = {n for p, held_out in parts if not held_out for n in folder.scan(p).folders}
    for path in (_join(start, n) for n in loose):
        place, scan = folder.images_of(path)
        name, found = _list_of(folder, path, {os.path.splitext(f)[0] for f, _, _ in scan.images}, names)
        if found:
            listed[place] = found
            texts.append(f"{place}/* (classes from {name})")
        else:
            unread.append(f"{path} has no class folders and no list that names the class of each image; it is not read")
    read = {p for p, _ in parts} | {_join(start, n) for n in loose}
    if others := [n for n in folder.scan(start).folders if _join(start, n) not in read]:
        unread.append(f"{len(others)} folders beside them are not read: {few(others)}")
    return Layout(", ".join(texts), parts, listed, tuple(unread))


def _list_of(folder: Folder, path: str, images: set[str], names: set[str]) -> tuple[str, dict[str, str]]:
    """The first list, in `path` or a folder above it, that names the class folder of most of `images`: its name and what it
    says. Numbers are not taken for classes: lists differ in how they count."""
    start = path.rpartition("/")[2].casefold()[:3]  # val, tes
    places = [path]
    while places[-1]:
        places.append(places[-1].rpartition("/")[0])
    for place in places if images and names else ():
        for name in folder.scan(place).lists:
            likely = place == path or start in name.casefold()
            if likely and (found := _read_list(folder.path(place, name), images, names)):
                return name, found
    return "", {}


def _read_list(path: str, images: set[str], names: set[str]) -> dict[str, str]:
    """File name without suffix -> class, of the lines `file class ...` or `file,class ...`; {} where it is no such list."""
    try:
        if os.path.getsize(path) > LARGEST_LIST:
            return {}
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError):
        return {}
    found = {}
    for line in lines:
        mark = next((c for c in "\t,; " if c in line), "\t")
        file, _, rest = (part.strip(' "') for part in line.partition(mark))
        stem = os.path.splitext(file.replace("\\", "/").rpartition("/")[2])[0]
        said = rest if rest in names else re.split(r"[\s,;]", rest, maxsplit=1)[0].strip('"')
        if stem in images and said in names:
            found[stem] = said
    return found if 2 * len(found) > len(images) else {}


# images ---------------------------------------------------------------------------------------------------------------
def list_images(folder: Folder, layout: Layout, wanted: Collection[str] = ()) -> list[ImageFile]:
    """Every image of a layout, sorted by class, then training before test, then path.

    A class that has test images alone has no official test split: its images count as not held out (folders whose train, val
    and test hold different classes, as few-shot benchmarks have them).

    Raises StudyError for a folder that cannot be read, a name that is no text, and two names that become one class.
    """
    files = []
    for part, held_out in layout.parts:
        check_twins(_wanted(folder, part, wanted), f"{folder.where}/{shown(part)}" if part else folder.where)
        for name in _wanted(folder, part, wanted):
            path, scan = folder.images_of(_join(part, name))
            files += [ImageFile(class_name(name), held_out, f"{path}/{f}", *facts) for f, *facts in scan.images]
    for place, said in layout.listed.items():
        for f, *facts in folder.scan(place).images:
            name = class_name(said[stem]) if (stem := os.path.splitext(f)[0]) in said else ""
            if name and (not wanted or name in wanted):
                files.append(ImageFile(name, True, f"{place}/{f}", *facts))
    trained = {f.class_name for f in files if not f.held_out}
    return sorted(f if f.class_name in trained else f._replace(held_out=False) for f in files)


def other_classes(folder: Folder, layout: Layout, wanted: Collection[str]) -> list[str]:
    """Names of the folders beside a layout's classes that are not in `wanted`, sorted."""
    return sorted({plain(n) for part, _ in layout.parts for n in folder.scan(part).folders} - set(wanted))


def left_out(folder: Folder, layout: Layout, wanted: Collection[str] = ()) -> list[str]:
    """What lies in the folders of a layout and is not read, besides folders of other names: a line for each kind."""
    lines, programs, hidden = list(layout.unread), set(), []
    loose, others, below = 0, collections.Counter(), []
    for part, _ in layout.parts:
        scan = folder.scan(part)
        programs |= {*scan.sidecars}
        loose += len(scan.images)
        with contextlib.suppress(StudyError):  # one that cannot be read is no class folder of the reader's
            hidden += [
                f"{n} ({len(found):,} images)" for n in scan.hidden if (found := folder.scan(_join(part, n)).images)
            ]
        for name in _wanted(folder, part, wanted):
            place, inner = folder.images_of(_join(part, name))
            programs |= {*inner.sidecars}
            others += inner.others
            below += [f"{place}/{n}" for n in inner.folders if inner.images]
    for place, said in layout.listed.items():
        images = folder.scan(place).images
        if unnamed := sum(os.path.splitext(f)[0] not in said for f, _, _ in images):
            lines.append(f"{unnamed} of the {len(images):,} images in {place} are not in its list and not read")
    if programs:
        lines.append(f"folders and files of other programs are not read: {few(sorted(programs))}")
    if hidden:
        lines.append(f"folders whose name begins with a point are hidden, and not read: {few(hidden)}")
    if below:
        lines.append(f"{len(below)} folders inside class folders are not read: {few(below)}")
    if loose:
        lines.append(f"{loose} images that are in no class folder are not read")
    if kinds := ", ".join(f"{n:,} {shown(suffix)}" for suffix, n in sorted(others.items()) if suffix):
        lines.append(f"files of other kinds in class folders are not read: {kinds}")
    return lines


def what_is_there(folder: Folder) -> str:
    """Where a folder has no layout: what it holds, for a person who thought it had one."""
    scan, others = folder.scan(), collections.Counter()
    for inner in (scan, *map(folder.scan, scan.folders)):
        others += inner.others
    if deeper := [n for n in scan.folders if find_layout(Folder(Path(folder.path(n))))]:
        return f"; class folders are below {few(deeper, 3)}: give one of these, or put all class folders side by side"
    kinds = ", ".join(f"{n:,} {shown(suffix) or 'files without a suffix'}" for suffix, n in others.most_common(5))
    loose = f"{len(scan.images):,} images that are in no class folder" if scan.images else ""
    found = ", ".join(filter(None, (loose, kinds)))
    return f"; it holds {found}" if found else ""


def _wanted(folder: Folder, path: str, wanted: Collection[str]) -> Iterator[str]:
    return (n for n in folder.scan(path).folders if not wanted or plain(n) in wanted)


def _join(*parts: str) -> str:
    return "/".join(p for p in parts if p)
