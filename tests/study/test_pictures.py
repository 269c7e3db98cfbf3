"""Committed pictures are small, and look as they were drawn."""

from __future__ import annotations

import base64
import io

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from PIL import Image

from learngene_core.study import notebooks
from learngene_core.study.pictures import shrink_pictures, smaller
from learngene_core.study.report import clean

LARGEST = 1_500_000  # bytes of a committed notebook


def png(pixels):
    found = io.BytesIO()
    Image.fromarray(pixels).save(found, "PNG")
    return found.getvalue()


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)


def drawing():
    """A figure as a notebook has it: curves, words, transparency."""
    figure, ax = plt.subplots(figsize=(5, 3))
    for k in range(4):
        ax.plot(np.arange(50), np.sin(np.arange(50) / (4 + k)), label=f"curve {k}")
    ax.legend()
    found = io.BytesIO()
    figure.savefig(found, transparent=True)
    plt.close(figure)
    return found.getvalue()


def on_white(data):
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(page, picture).convert("RGB"), int)


def test_a_drawing_shrinks_to_half_and_keeps_its_look():
    data = drawing()
    small = smaller(data)
    assert len(small) < len(data) / 2 and smaller(small) == small
    lost = np.abs(pixels_of(small) - on_white(data)).max(axis=2)  # what was transparent is white
    assert np.quantile(lost, 0.999) <= 16 and (pixels_of(small)[0, 0] == 255).all()


def test_a_picture_of_many_colours_keeps_them_all():
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    assert (pixels_of(smaller(png(noise))) == noise).all()


def test_a_smooth_scale_gets_no_bands():
    scale = (plt.get_cmap("viridis")(np.linspace(0, 1, 512))[None, :, :3] * 255).astype(np.uint8).repeat(40, axis=0)
    noise = np.random.default_rng(0).integers(0, 256, (200, 512, 3), dtype=np.uint8)
    kept = pixels_of(smaller(png(np.concatenate([scale, noise]))))
    assert np.abs(kept[:40] - scale).max() <= 8


def test_cleaning_shrinks_the_pictures_of_a_notebook():
    data = base64.b64encode(drawing()).decode()
    output = nbformat.v4.new_output("display_data", {"image/png": data, "text/plain": "a figure"})
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    (kept,) = clean(nb).cells[0].outputs
    before = kept.data["image/png"]
    assert len(before) < len(data) / 2 and kept.data["text/plain"] == "a figure"
    shrink_pictures(nb.cells)
    assert kept.data["image/png"] == before


@pytest.mark.parametrize("path", notebooks.numbered(), ids=lambda p: p.stem)
def test_a_committed_notebook_is_not_large(path):
    assert path.stat().st_size <= LARGEST
