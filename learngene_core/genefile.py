"""What a learngene file must look like, read from its header alone: nothing of it is believed before it is checked."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from .headers import checked_header

FORMAT = "learngene/1"
PARTS = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")


def checked_gene(path: Path) -> tuple[dict, dict[str, tuple[int, ...]], list[str]]:
    """Metadata, the shapes that follow from them, and the names of all tensors, from the header of a file alone.

    Raises ValueError (or KeyError, TypeError, AttributeError) for a header that is no learngene's.
    """
    entries, metadata = checked_header(path)
    about = json.loads(metadata["learngene"])
    expected, shapes = _expected(about), {n: entry.shape for n, entry in entries.items()}
    if odd := [n for n, entry in entries.items() if entry.dtype != "F32"]:
        raise ValueError(f"{odd[0][:80]!r} is of type {entries[odd[0]].dtype}, not of 32-bit floats")
    tensors = {n: s for n, s in shapes.items() if not n.startswith("fisher/")}
    if tensors != expected:
        wrong = min(n for n in {*expected, *tensors} if expected.get(n) != tensors.get(n))
        raise ValueError(f"{wrong[:80]!r} is {tensors.get(wrong)}, its metadata says {expected.get(wrong)}")
    if stray := [n for n, s in shapes.items() if n.startswith("fisher/") and expected.get(n[7:]) != s]:
        raise ValueError(f"{stray[0][:80]!r} fits no tensor")
    return about, expected, list(shapes)


def _expected(about: dict) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, as the metadata of a file has it. Raises ValueError for metadata that is no learngene's."""
    if about.get("format") != FORMAT:
        raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
    layers, widths = list(about["layers"]), list(about["widths"])
    sizes = [about["input_width"], *widths]
    if not layers or len(widths) != len(layers) or not all(isinstance(w, int) and 0 < w <= 65536 for w in sizes):
        raise ValueError("its layers and widths do not agree")
    if not all(isinstance(n, str) and re.fullmatch(r"[A-Za-z_][\w-]{0,63}", n, re.ASCII) for n in layers):
        raise ValueError("its layers are not named as blocks are")
    side = about["image_size"]
    if not set(about["pools"]) <= set(layers) or not isinstance(side, int) or not 1 <= side <= 65536:
        raise ValueError("its pools or image size cannot be")
    numbers = [*about["mean"], *about["std"]]
    if (
        len(about["mean"]) != 3
        or len(about["std"]) != 3
        or not all(math.isfinite(v) for v in numbers)
        or min(about["std"]) <= 0
    ):
        raise ValueError("its mean and std are not three finite numbers each")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, n_in, n_out in zip(layers, sizes, widths, strict=False):
        shapes[f"{name}.conv.weight"] = (n_out, n_in, 3, 3)
        shapes.update({f"{name}.{p}": (n_out,) for p in PARTS[1:]})
    return shapes
