"""Trees of class folders, decoded once: `root/<class>/*.png`, or `root/train/<class>/*` with `root/test/<class>/*`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from .files import StudyError
from .images import ImageSet, _cached

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"}
SPLITS = Path(__file__).with_name("splits")


def load(data: str, data_path: str | Path, image_size: int) -> ImageSet:
    """The image set of a tree of class folders. Raises StudyError when it is missing, empty or unreadable."""
    if not data_path:
        raise StudyError(f"data {data!r} needs --data-path, the folder that holds its images")
    root = Path(data_path).expanduser()
    files = list_tree(root)
    names = tuple(sorted({name for name, _, _ in files}))
    facts = [
        (name, held, path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for name, held, path in files
    ]
    labels = np.array([names.index(name) for name, _, _ in files])
    held_out = np.array([held for _, held, _ in files]) if any(held for _, held, _ in files) else np.zeros(0, bool)
    images, labels, held_out = _cached(
        {"data": data, "image_size": image_size, "files": _digest(facts)},
        lambda: (_decode([p for _, _, p in files], image_size), labels, held_out),
        f"reading {len(files):,} images of {len(names)} classes",
    )
    manifest = SPLITS / f"{data}.json"
    known = json.loads(manifest.read_text(encoding="utf-8"))["superclasses"] if manifest.exists() else {}
    return ImageSet(
        data, images, labels, names, {n: known[n] for n in names if n in known}, held_out if len(held_out) else None
    )


def list_tree(root: Path) -> list[tuple[str, bool, Path]]:
    """(class, held out, file) of every image below `root`, sorted. Raises StudyError where there is none."""
    if not root.is_dir():
        raise StudyError(f"the data folder {root} does not exist")
    try:
        if (root / "train").is_dir():
            files = [*_classes(root / "train", False), *_classes(root / "test", True)]
        else:
            files = list(_classes(root, False))
    except OSError as error:
        raise StudyError(f"cannot read the data folder {root}: {error.strerror}") from None
    if not files:
        raise StudyError(
            f"the data folder {root} holds no images in class folders (expected {root}/<class>/*.png "
            f"or {root}/train/<class>/*.png)"
        )
    return sorted(files)


def _classes(root: Path, held_out: bool) -> Iterator[tuple[str, bool, Path]]:
    if not root.is_dir():
        return
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for path in folder.iterdir():
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield folder.name, held_out, path


def _digest(facts: list) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _decode(paths: list[Path], size: int) -> np.ndarray:
    """(n, 3, size, size) uint8: RGB, the shorter side resized to `size` where it differs, centre-cropped."""
    images = np.empty((len(paths), 3, size, size), np.uint8)
    for i, path in enumerate(tqdm(paths, desc="decoding", unit="image", mininterval=1, leave=False)):
        try:
            with Image.open(path) as image:
                images[i] = _square(image.convert("RGB"), size).transpose(2, 0, 1)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise StudyError(f"cannot read the image {path}: {error}") from None
    return images


def _square(image: Image.Image, size: int) -> np.ndarray:
    if image.size != (size, size):
        scale = size / min(image.size)
        image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)
