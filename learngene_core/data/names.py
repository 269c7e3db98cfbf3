"""Names that come from outside: of class folders, of files in archives, of classes in tables and divisions.

A name may hold characters that move a terminal's cursor, turn the direction of the text around it, or end a line. `shown`
writes them as escapes. `class_name` does so once, where a class gets its name, so that tables, figures, files and terminals
need not care.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from ..errors import StudyError

JOINERS = "\u200c\u200d"  # invisible, but part of the spelling in several scripts, and of many emoji
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's controls, format characters, halves of pairs, separators of lines

# folders and files that other programs leave beside pictures
SIDECARS = {
    "__macosx", "@eadir", "@__thumb", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "__pycache__",
    "system volume information", "thumbs.db", "desktop.ini",
}  # fmt: skip


def shown(name: str) -> str:
    """A name that can be printed anywhere: characters that are not text become escapes such as `\\x1b`."""
    return "".join(c if c in JOINERS or unicodedata.category(c) not in UNSAFE else _escape(c) for c in name)


def few(names: Sequence[str], n: int = 5) -> str:
    """The first names, as text, and how many more there are."""
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(map(shown, names[:n])) + more


def counted(layout: str, names: Sequence[str], labels: np.ndarray, held_out: np.ndarray) -> str:
    """The one line that says what was found: the layout, and numbers of images, classes and official test images."""
    held = int(held_out.sum())
    split = f"{held:,} of them official test images" if held else "no official test split"
    return f"{shown(layout)}; {len(labels):,} images of {len(names)} classes, {split}"


def class_name(name: str) -> str:
    """What a class is called whose folder has this name: the name, made `plain`.

    Raises StudyError for a name that is no text (bytes that are no UTF-8).
    """
    if any("\ud800" <= c <= "\udfff" for c in name):
        raise StudyError(f"the class folder {shown(name)!r} has a name that is no text; rename it")
    return plain(name)


def plain(name: str) -> str:
    """A name in Unicode's NFC (some systems store "é" as two characters), unsafe characters as escapes."""
    return shown(unicodedata.normalize("NFC", name))


def check_twins(names: Iterable[str], where: str) -> None:
    """Raise StudyError where two names of one folder become one class name: two Unicode forms of one word, for example."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(class_name(name), name)
        if other != name:
            raise StudyError(
                f"two class folders in {where} are both called {class_name(name)!r}, written in different characters "
                f"({ascii(other)} and {ascii(name)}); join them or rename one"
            )


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ in capitals or spaces alone: one class, most likely, that was written in two ways."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(name.split()).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def visible(name: str) -> bool:
    """Whether a file or folder is neither hidden nor left there by another program."""
    return not name.startswith(".") and name.casefold() not in SIDECARS


def sidecars(names: Collection[str]) -> list[str]:
    """Those of the names that `visible` leaves out but that a person sees as folders, sorted."""
    return sorted(n for n in names if n.casefold() in SIDECARS or n == ".ipynb_checkpoints")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
