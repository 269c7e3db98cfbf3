"""The embedded glyphs: what they are, that labels say what is drawn, and that a seed draws them again."""

import numpy as np
import pytest
import torch

from learngene_core.data import glyphs
from learngene_core.data.images import load_images
from learngene_core.errors import StudyError

FINGERPRINTS = {0: "0fa43c9e7efe6feb", 1: "89e5c8e703595a7d"}  # of all pixels, labels and names; runs are known by them


@pytest.fixture
def few_glyphs(monkeypatch):
    """Glyphs of two images per class, so that a cold cache is cheap."""
    render = glyphs.render
    monkeypatch.setattr(glyphs, "render", lambda seed=0: render(2, seed))


def test_glyphs_are_100_classes_of_120_colour_images(glyph_images):
    assert glyph_images.images.shape == (12000, 3, 32, 32)
    assert glyph_images.images.dtype == torch.uint8
    assert glyph_images.labels.dtype == torch.int64
    assert torch.bincount(glyph_images.labels).tolist() == [120] * 100
    assert torch.equal(glyph_images.labels, glyph_images.labels.sort().values)
    assert len(set(glyph_images.class_names)) == 100
    assert set(glyph_images.superclasses) == set(glyph_images.class_names)
    assert set(glyph_images.superclasses.values()) == {"Latin", "Greek", "Cyrillic", "digit", "sign"}
    assert glyph_images.held_out is None


def test_every_class_name_can_be_a_file_name(glyph_images):
    assert all(n.replace("-", "").isascii() and n.replace("-", "").isalnum() for n in glyph_images.class_names)


def test_glyphs_from_a_folder_are_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(StudyError, match="glyphs are drawn and read no files from .*; did you mean --data cifar100"):
        load_images("glyphs", tmp_path)


def test_no_two_glyphs_are_equal_and_labels_say_what_is_drawn(glyph_images):
    flat = glyph_images.images.flatten(1)
    assert len({bytes(row.numpy()) for row in flat}) == len(flat)
    classes = torch.stack([flat[glyph_images.labels == k] for k in range(100)]).float()
    halves = [classes[:, part::2].mean(1) for part in (0, 1)]
    nearest = torch.cdist(*(h - h.mean(1, keepdim=True) for h in halves)).argmin(1)
    assert (nearest == torch.arange(100)).float().mean() > 0.5  # chance is 1 %


def test_equal_seeds_draw_equal_glyphs_whatever_the_global_generators():
    torch.manual_seed(1), np.random.seed(1)
    first, labels = glyphs.render(2, seed=3)
    torch.manual_seed(2), np.random.seed(2)
    again, _ = glyphs.render(2, seed=3)
    other, _ = glyphs.render(2, seed=4)
    assert first.dtype == np.uint8
    assert labels.tolist() == [i // 2 for i in range(200)]
    assert np.array_equal(first, again)
    assert not (first == other).all((1, 2, 3)).any()


def test_seed_of_load_images_redraws(cache, few_glyphs):
    zero, one = load_images("glyphs", seed=0), load_images("glyphs", seed=1)
    assert zero.fingerprint != one.fingerprint
    assert zero.fingerprint == load_images("glyphs").fingerprint


def test_glyphs_come_in_one_size():
    with pytest.raises(StudyError, match="image_size = 64"):
        load_images("glyphs", image_size=64)


def test_glyphs_are_equal_to_the_byte_wherever_they_are_drawn(glyph_images):
    assert glyph_images.fingerprint == FINGERPRINTS[0]
