"""Pictures among a notebook's outputs made smaller before they are committed: few colours where few are used, no transparency."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

COLOURS = 256
PATCH, VISIBLE = 4, 8  # the mean colour of 4 x 4 pixels may move by so much of 255; more would show as bands


def smaller(png: bytes) -> bytes:
    """The picture with a palette of 256 colours, where that changes nothing that one sees; else without transparency.

    Bytes come back unchanged where neither makes them fewer, so that a second call changes nothing.
    """
    picture = Image.open(io.BytesIO(png))
    if picture.mode == "P":
        return png
    plain = Image.new("RGB", picture.size, "white")
    whole = picture.convert("RGBA")
    plain.paste(whole, mask=whole.getchannel("A"))
    few = plain.quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE)
    before, after = (np.asarray(p.reduce(PATCH), np.int16) for p in (plain, few.convert("RGB")))
    found = io.BytesIO()
    (few if np.abs(after - before).max() <= VISIBLE else plain).save(found, "PNG", optimize=True)
    return min(found.getvalue(), png, key=len)


def shrink_pictures(cells: Sequence[Any]) -> None:
    """Make every picture among the outputs of a notebook's `cells` smaller, in place."""
    for cell in cells:
        for output in cell.get("outputs", []):
            if data := output.get("data", {}).get("image/png"):
                output["data"]["image/png"] = base64.b64encode(smaller(base64.b64decode(data))).decode("ascii")
