"""Augmentation, channel statistics and normalisation, against references that take one image at a time."""

import numpy as np
import pytest
import torch

from learngene_core.training import augment, channel_statistics, normalise


def random_images(n, height=9, width=7):
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_augment_equals_one_image_at_a_time():
    x = random_images(40)
    g = torch.Generator().manual_seed(1)
    shift, flip = torch.randint(-12, 13, (40, 2), generator=g), torch.rand(40, generator=g) < 0.5
    for s, f in ((shift, flip), (shift, None), (None, flip)):
        seen = augment(x, s, f)
        assert (seen.shape, seen.dtype) == (x.shape, x.dtype)
        for i in range(40):
            down, right = (0, 0) if s is None else s[i].tolist()
            padded = np.pad(x[i].numpy(), ((0, 0), (12, 12), (12, 12)), mode="edge")
            wanted = padded[:, 12 - down : 21 - down, 12 - right : 19 - right]
            if f is not None and f[i]:
                wanted = wanted[..., ::-1]
            assert np.array_equal(seen[i].numpy(), wanted), i


def test_augment_without_anything_changes_nothing_and_never_its_input():
    x = random_images(6)
    before = x.clone()
    assert torch.equal(augment(x, None, None), before)
    assert torch.equal(augment(x, torch.zeros(6, 2, dtype=torch.int64), torch.zeros(6, dtype=torch.bool)), before)
    assert not torch.equal(augment(x, torch.full((6, 2), 2), torch.ones(6, dtype=torch.bool)), before)
    assert torch.equal(x, before)


def test_channel_statistics_equal_double_precision_numpy(glyph_images):
    for x in (random_images(50), glyph_images.images[:3000]):
        mean, std = channel_statistics(x)
        wanted = x.numpy().astype(np.float64) / 255
        assert np.abs(mean.numpy() - wanted.mean((0, 2, 3))).max() < 1e-7
        assert np.abs(std.numpy() - wanted.std((0, 2, 3))).max() < 1e-7


def test_channel_statistics_do_not_depend_on_the_order():
    x = random_images(50)
    assert all(torch.equal(a, b) for a, b in zip(channel_statistics(x), channel_statistics(x.flip(0)), strict=True))


def test_normalise_equals_its_definition_and_standardises():
    x = random_images(60)
    mean, std = channel_statistics(x)
    seen = normalise(x, mean, std)
    assert seen.dtype == torch.float32
    exact = (x.numpy() / 255 - mean.numpy().astype(float)[:, None, None]) / std.numpy().astype(float)[:, None, None]
    assert np.abs(seen.numpy() - exact).max() < 5e-6
    assert seen.mean((0, 2, 3)).abs().max() < 1e-5
    assert (seen.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    assert x.dtype == torch.uint8


@pytest.mark.parametrize("value", [0, 29, 127, 255])
def test_a_channel_of_one_value_makes_no_nan(value):
    """Images of one colour, as many microscopes and radar sets have them."""
    x = random_images(4)
    x[:, 2] = value
    mean, std = channel_statistics(x)
    assert std[2] >= 0
    assert normalise(x, mean, std).isfinite().all()
