"""Images: the embedded glyphs, trees of class folders, the cache, and preparation against per-image references."""

import dataclasses
import io
import os

import numpy as np
import pytest
import torch
from conftest import tiny_tree
from PIL import Image

from learngene_core.data import glyphs
from learngene_core.data.images import load_images
from learngene_core.errors import StudyError
from learngene_core.training import augment, channel_statistics, normalise


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of this test alone."""
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(cache):
    (folder,) = cache.iterdir()
    return folder


@pytest.fixture
def few_glyphs(monkeypatch):
    """Glyphs of two images per class, so that a cold cache is cheap."""
    render = glyphs.render
    monkeypatch.setattr(glyphs, "render", lambda seed=0: render(2, seed))


# glyphs -------------------------------------------------------------------------------------------------------------
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


# cache --------------------------------------------------------------------------------------------------------------
def test_second_loading_draws_nothing(cache, few_glyphs, monkeypatch):
    first = load_images("glyphs")

    def never(**_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(glyphs, "render", never)
    second = load_images("glyphs")
    assert torch.equal(first.images, second.images)
    assert first.fingerprint == second.fingerprint


def test_writing_into_the_images_leaves_the_cache_alone(cache, few_glyphs):
    before = load_images("glyphs").fingerprint
    load_images("glyphs").images.zero_()
    assert load_images("glyphs").fingerprint == before


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "zeros", "missing"])
def test_damaged_cache_is_said_with_its_folder(cache, few_glyphs, name, damage):
    load_images("glyphs")
    path = entry(cache) / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}[damage])
    with pytest.raises(StudyError) as refusal:
        load_images("glyphs")
    assert str(entry(cache)) in str(refusal.value)
    assert "delete" in str(refusal.value)


def test_interrupted_making_leaves_no_entry_that_counts(cache, few_glyphs, monkeypatch):
    save = np.save

    def stops(file, array):
        if array.ndim == 1:  # the labels, after the images
            raise KeyboardInterrupt
        save(file, array)

    monkeypatch.setattr(np, "save", stops)
    with pytest.raises(KeyboardInterrupt):
        load_images("glyphs")
    monkeypatch.setattr(np, "save", save)
    assert len(load_images("glyphs")) == 200
    assert not [p for p in entry(cache).iterdir() if p.name.startswith(".")], "temporary files were left"


def test_full_disk_names_the_cache_and_the_way_out(cache, few_glyphs, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(StudyError, match=r"No space left.*LEARNGENE_CACHE"):
        load_images("glyphs")


# trees --------------------------------------------------------------------------------------------------------------
def test_flat_tree_classes_sorted_and_pixels_exact(tmp_path):
    written = tiny_tree(tmp_path, ["pear", "Zebra", "apple"], 3, 16)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.png").write_bytes(b"no image")
    (tmp_path / "pear" / "notes.txt").write_text("no image either")
    imgs = load_images("folder", tmp_path, image_size=16)
    assert imgs.class_names == ("Zebra", "apple", "pear")
    assert imgs.held_out is None
    assert imgs.images.shape == (9, 3, 16, 16)
    for path, pixels in written.items():
        at = imgs.of_class(path.parent.name)[int(path.stem)]
        assert np.array_equal(imgs.images[at].permute(1, 2, 0).numpy(), pixels)


def test_official_split_is_read_from_train_and_test(tmp_path):
    written = tiny_tree(tmp_path, ["b", "a"], 3, 16, test=2)
    imgs = load_images("folder", tmp_path, image_size=16)
    assert (imgs.class_names, len(imgs)) == (("a", "b"), 10)
    for name in "ab":
        train, test = (imgs.of_class(name, held_out=held) for held in (False, True))
        assert sorted([*train, *test]) == imgs.of_class(name).tolist()
        for part, found in (("train", train), ("test", test)):
            wanted = [pixels for path, pixels in written.items() if path.parent == tmp_path / part / name]
            assert np.array_equal(imgs.images[found].permute(0, 2, 3, 1).numpy(), np.stack(wanted))


def test_a_class_may_be_called_train(tmp_path):
    """CIFAR-100 has one; its class folders side by side are a flat tree."""
    tiny_tree(tmp_path, ["apple", "train", "test"], 2, 8)
    imgs = load_images("folder", tmp_path, image_size=8)
    assert imgs.class_names == ("apple", "test", "train")
    assert (len(imgs), imgs.held_out) == (6, None)


def one_image(folder, image, name="x.png"):
    (folder / "class").mkdir(parents=True, exist_ok=True)
    image.save(folder / "class" / name)
    return load_images("folder", folder, image_size=8).images[0].permute(1, 2, 0).numpy()


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (8, 8), np.uint8), rng.integers(0, 256, (8, 8, 3), np.uint8)
    opaque = np.dstack([colour, np.full((8, 8), 255, np.uint8)])
    palette = Image.fromarray(rng.integers(0, 4, (8, 8), np.uint8), "P")
    palette.putpalette([1, 2, 3, 50, 60, 70, 200, 0, 0, 9, 255, 4])
    table = np.array([[1, 2, 3], [50, 60, 70], [200, 0, 0], [9, 255, 4]])
    assert np.array_equal(one_image(tmp_path / "l", Image.fromarray(grey)), np.dstack([grey] * 3))
    assert np.array_equal(one_image(tmp_path / "a", Image.fromarray(opaque)), colour)
    assert np.array_equal(one_image(tmp_path / "p", palette), table[np.asarray(palette)])
    assert np.array_equal(one_image(tmp_path / "b", Image.fromarray(grey > 99)), np.dstack([(grey > 99) * 255] * 3))


def test_16_bit_grey_is_scaled_not_clipped_to_white(tmp_path):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    seen = one_image(tmp_path, Image.fromarray(deep)).astype(int)
    assert np.abs(seen - (deep // 257)[..., None]).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(30, 20), (20, 33), (5, 5), (4, 9), (64, 64), (1, 40)])
def test_other_sizes_fill_the_square_from_the_middle(tmp_path, height, width):
    """Red rises to the right, green downwards, so a pixel's colour says where in the original it comes from."""
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)[None]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    seen = one_image(tmp_path, Image.fromarray(ramp)).astype(float)
    assert seen.shape == (8, 8, 3)
    short = min(height, width)
    # the centre of output pixel i, as a share of the side it was cut from
    places = [((side - short) / 2 + (np.arange(8) + 0.5) * short / 8) / side for side in (width, height)]
    inner = slice(1, 7)  # the outermost pixels mix with the repeated edge
    for channel, (place, axis) in enumerate(zip(places, (0, 1), strict=True)):
        side = (width, height)[channel]
        if side > 1:
            wanted = (place * side - 0.5).clip(0, side - 1) / (side - 1) * 255
            assert np.abs(seen[inner, inner, channel].mean(axis) - wanted[inner]).max() < 255 / 8


def test_upper_case_suffix_counts(tmp_path):
    tiny_tree(tmp_path, ["a"], 2, 8, ".PNG")
    assert len(load_images("folder", tmp_path, image_size=8)) == 2


def test_one_pixel_changes_the_fingerprint(tmp_path):
    written = tiny_tree(tmp_path, ["a", "b"], 2, 8)
    before = load_images("folder", tmp_path, image_size=8)
    assert load_images("folder", tmp_path, image_size=8).fingerprint == before.fingerprint
    path, pixels = next(iter(written.items()))
    pixels[3, 4, 1] ^= 1
    Image.fromarray(pixels).save(path)
    after = load_images("folder", tmp_path, image_size=8)
    assert after.fingerprint != before.fingerprint
    assert int((after.images != before.images).sum()) == 1


def test_fingerprint_sees_names_labels_and_the_split(tmp_path):
    def fingerprint(name, classes):
        tiny_tree(tmp_path / name, classes, 4, 8)
        return load_images("folder", tmp_path / name, image_size=8).fingerprint

    one = fingerprint("one", ["a", "b"])
    assert fingerprint("same", ["a", "b"]) == one, "the same images elsewhere are the same images"
    (tmp_path / "moved" / "a").mkdir(parents=True)
    moved = tmp_path / "moved"
    tiny_tree(moved, ["a", "b"], 4, 8)
    os.rename(moved / "b" / "000.png", moved / "a" / "zzz.png")  # same pixels in the same order, another label
    others = [fingerprint("named", ["a", "c"]), load_images("folder", moved, image_size=8).fingerprint]
    imgs = load_images("folder", tmp_path / "one", image_size=8)
    for held in ([True, False] * 4, [False, True] * 4):
        others.append(dataclasses.replace(imgs, held_out=torch.tensor(held)).fingerprint)
    assert len({one, *others}) == 5


def png(size):
    data = io.BytesIO()
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"this is text", png(8)[:40], png(64)[:-30], b"\x89PNG\r\n\x1a\n" + bytes(50), b"BM" + bytes(60)],
    ids=["empty", "text", "header only", "truncated", "broken chunk", "broken bitmap"],
)
def test_unreadable_image_is_named(tmp_path, data):
    tiny_tree(tmp_path, ["a"], 2, 8)
    (tmp_path / "a" / "broken.png").write_bytes(data)
    with pytest.raises(StudyError, match=r"broken\.png"):
        load_images("folder", tmp_path, image_size=8)


def test_image_that_pillow_takes_for_a_bomb_is_named(tmp_path, monkeypatch):
    """A damaged header often claims an enormous size."""
    tiny_tree(tmp_path, ["a"], 1, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(StudyError, match=r"000\.png"):
        load_images("folder", tmp_path, image_size=8)


def test_missing_and_empty_folders_are_named(tmp_path):
    (tmp_path / "empty" / "class").mkdir(parents=True)
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "x.png").write_bytes(png(8))  # no class folder
    for name in ("missing", "empty", "loose"):
        with pytest.raises(StudyError, match=name):
            load_images("folder", tmp_path / name)
    with pytest.raises(StudyError, match="data-path"):
        load_images("folder")


def test_unknown_source_is_refused_even_when_the_folder_is_there(tmp_path):
    tiny_tree(tmp_path, ["a"], 1, 8)
    with pytest.raises(ValueError, match="cifar10"):
        load_images("cifar10", tmp_path, image_size=8)


def test_super_classes_come_with_a_known_data_set(tmp_path):
    tiny_tree(tmp_path, ["apple", "baby", "unheard_of"], 1, 8)
    assert load_images("cifar100", tmp_path, image_size=8).superclasses == {
        "apple": "fruit_and_vegetables",
        "baby": "people",
    }
    assert load_images("folder", tmp_path, image_size=8).superclasses == {}


# preparation --------------------------------------------------------------------------------------------------------
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


def test_labels_and_split_follow_the_files_not_the_cache_of_another_tree(tmp_path):
    """The same files under other class names are another entry of the cache."""
    tiny_tree(tmp_path / "x", ["a", "b"], 2, 8)
    first = load_images("folder", tmp_path / "x", image_size=8)
    os.rename(tmp_path / "x" / "a", tmp_path / "x" / "c")
    second = load_images("folder", tmp_path / "x", image_size=8)
    assert second.class_names == ("b", "c")
    assert torch.equal(second.images[second.of_class("c")], first.images[first.of_class("a")])
