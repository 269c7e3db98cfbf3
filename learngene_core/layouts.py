"""The layouts in which image data sets are published, found by looking at the folders."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from .files import StudyError
from .trees import Tree, shown

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
