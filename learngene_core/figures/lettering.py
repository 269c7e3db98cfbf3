"""Names in any script: drawn with an installed font that has their letters, else numbered, with the numbers in print below.

matplotlib brings fonts for Latin, Greek and Cyrillic letters. A name in Hangul or Thai needs another one of the machine. Where
there is none, boxes would stand in its place.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from ..errors import say

NO_LETTERS = ("Last Resort", "LastResort", ".LastResort")  # fonts that have a box for every letter


@functools.cache
def _letters(path: str) -> frozenset[int]:
    """The characters that a font file has; none where it cannot be read."""
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def missing(text: str, families: Sequence[str] | None = None) -> set[str]:
    """The visible characters of `text` that no font of `families` has (default: the families that matplotlib draws with now)."""
    families = plt.rcParams["font.family"] if families is None else families
    needed = {c for c in text if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf")}
    for family in families:
        needed -= {c for c in needed if ord(c) in _letters(findfont(FontProperties(family=[family])))}
    return needed


def installed(characters: set[str]) -> str | None:
    """The family of an installed font that has all `characters`, a plain one first; None where there is none."""
    codes = {ord(c) for c in characters}
    faces = [face for face in fontManager.ttflist if not face.name.startswith(NO_LETTERS)]
    for face in sorted(faces, key=lambda face: (face.style != "normal", face.name)):
        if codes <= _letters(face.fname):
            return face.name
    return None


def readable(names: Sequence[str]) -> list[str]:
    """The names as a figure can show them, in their order; call it before texts are made.

    A name with characters that matplotlib's font lacks is drawn with an installed font, which is added to the families that
    matplotlib looks through. Where none is installed, the name becomes its number among such names, and what the numbers mean
    is printed. All other names come back as they are.
    """
    families, numbers = list(plt.rcParams["font.family"]), {}
    for name in dict.fromkeys(names):
        if lacking := missing(name, families):
            found = installed(lacking)
            if found is None:
                numbers[name] = f"no. {len(numbers) + 1}"
            else:
                families.append(found)
    plt.rcParams["font.family"] = families
    if numbers:
        legend = "; ".join(f"{number}: {' '.join(name.split())}" for name, number in numbers.items())
        say(f"names that no installed font can draw are numbered: {legend}")
    return [numbers.get(name, name) for name in names]
