"""The embedded data: 100 characters as 32x32 colour images, drawn from the fonts that matplotlib ships.

The recipe was chosen, by eye and on trial runs of seed 0, so that 5-way 10-shot learning from scratch lies far from chance
and from the ceiling. Polarity and size set that difficulty: ink is always darker than its light background, and a character
fills most of the image.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np

ALPHABETS = {
    "Latin": "ABDEFGHJKLMNQRSTUWXYZabdefghmnqrt",
    "Greek": "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπρσφψω",
    "Cyrillic": "БДЖИЛЦЧШЩЪЫЭЮЯбЂЉЊЋЄ",
    "digit": "23456789",
    "sign": "&@#%$?+€£¥§∞",
}
PIECES = (
    "cijklopsuvwxyzCIOPV01"  # clutter at the rim: characters that are no class, so that no novel class is ever seen
)
FACES = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, styles in {
        "Sans": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "SansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "Serif": ("", "-Bold", "-Italic", "-BoldItalic"),
    }.items()
    for style in styles
)
MASK, SIZE = 64, 32  # pixels: side of the drawn mask, side of the finished image
RECIPE = {
    "version": 5,
    "images_per_class": 120,
    "rotation_degrees": 18,
    "shear": 0.12,
    "font_pixels": (19, 27),
    "shift_pixels": 3,
    "background": (110, 230),
    "contrast": (90, 210),
    "texture": 10,
    "noise": 16,
    "rim": 0.75,
    "pieces": 2,
}


def class_names() -> tuple[tuple[str, ...], dict[str, str]]:
    """The 100 class names and the script family (super-class) of each, both in alphabet order."""
    families = {_name(c): family for family, text in ALPHABETS.items() for c in text}
    return tuple(families), families


def _name(character: str) -> str:
    """A readable, file-safe name: 'greek-capital-gamma', 'digit-two', 'euro-sign'."""
    return unicodedata.name(character).lower().replace(" letter", "").replace(" ", "-")


def _masks(text: str) -> np.ndarray:
    """Ink of every character of `text` in every face, centred: (k, 12, 64, 64) in 0..1, drawn at 48 px per em."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = [ImageFont.truetype(str(folder / face), 48) for face in FACES]
    masks = []
    for character in text:
        for font in fonts:
            left, top, right, bottom = font.getbbox(character)
            image = Image.new("L", (MASK, MASK))
            at = ((MASK - right - left) / 2, (MASK - bottom - top) / 2)
            ImageDraw.Draw(image).text(at, character, fill=255, font=font)
            masks.append(np.asarray(image))
    return np.stack(masks).reshape(-1, len(FACES), MASK, MASK).astype(np.float32) / 255


def render(images_per_class: int = RECIPE["images_per_class"], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw the data set: images (n, 3, 32, 32) uint8 sorted by class, labels (n,) int64. Equal seeds, equal images."""
    import torch

    masks, pieces = (torch.from_numpy(_masks(text)) for text in ("".join(ALPHABETS.values()), PIECES))
    rng = np.random.default_rng(seed)
    chunks = [_render_class(masks[label], pieces, images_per_class, rng) for label in range(len(masks))]
    return np.concatenate(chunks), np.repeat(np.arange(len(masks)), images_per_class)


def _render_class(masks, pieces, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 3, 32, 32) uint8 of one character."""
    import torch

    recipe = RECIPE
    zoom = rng.uniform(*recipe["font_pixels"], n) / 48
    ink = _warp(masks[rng.integers(len(FACES), size=n)], zoom, rng.uniform(-1, 1, (n, 2)) * recipe["shift_pixels"], rng)
    for _ in range(recipe["pieces"]):  # faint pieces of other characters at the rim
        other = rng.integers(len(pieces), size=n)
        angle = rng.uniform(0, 2 * np.pi, n)
        rim = 16 * np.stack([np.cos(angle), np.sin(angle)], 1)
        ink = torch.maximum(ink, recipe["rim"] * _warp(pieces[other, rng.integers(len(FACES), size=n)], zoom, rim, rng))
    background = rng.uniform(*recipe["background"], (n, 3, 1, 1))
    contrast = rng.uniform(*recipe["contrast"], (n, 3, 1, 1))
    # low-frequency texture: an 8x8 field, magnified
    texture = np.kron(rng.normal(0, recipe["texture"], (n, 1, 8, 8)), np.ones((1, 1, 4, 4)))
    noise = rng.normal(0, recipe["noise"], (n, 3, SIZE, SIZE))
    pixels = background + texture - contrast * ink.numpy() + noise
    return pixels.clip(0, 255).astype(np.uint8)


def _warp(masks, zoom: np.ndarray, shift: np.ndarray, rng: np.random.Generator):
    """Rotate, shear, zoom and shift masks (n, 64, 64) into images (n, 1, 32, 32)."""
    import torch

    n = len(masks)
    angle = np.deg2rad(rng.uniform(-1, 1, n) * RECIPE["rotation_degrees"])
    shear = rng.uniform(-1, 1, n) * RECIPE["shear"]
    cos, sin = np.cos(angle), np.sin(angle)
    # Output to input, in the units of affine_grid (-1..1): the 32-pixel image shows 32 of the mask's 64 pixels at zoom 1.
    scale = SIZE / MASK / zoom
    matrix = np.stack([np.stack([cos, sin + shear], 1), np.stack([-sin, cos], 1)], 1) * scale[:, None, None]
    offset = -np.einsum("nij,nj->ni", matrix, shift / (SIZE / 2))
    theta = torch.from_numpy(np.concatenate([matrix, offset[..., None]], 2)).float()
    grid = torch.nn.functional.affine_grid(theta, [n, 1, SIZE, SIZE], align_corners=False)
    return torch.nn.functional.grid_sample(masks[:, None], grid, align_corners=False)
