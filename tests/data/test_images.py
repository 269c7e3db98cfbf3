"""`load_images` on class folders: classes, pixels, the official split, and the fingerprint that runs are known by."""

import dataclasses
import io
import os

import numpy as np
import pytest
import torch
from conftest import tiny_tree
from PIL import Image

from learngene_core.data.images import load_images
from learngene_core.errors import StudyError


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


def test_labels_and_split_follow_the_files_not_the_cache_of_another_tree(tmp_path):
    """The same files under other class names are another entry of the cache."""
    tiny_tree(tmp_path / "x", ["a", "b"], 2, 8)
    first = load_images("folder", tmp_path / "x", image_size=8)
    os.rename(tmp_path / "x" / "a", tmp_path / "x" / "c")
    second = load_images("folder", tmp_path / "x", image_size=8)
    assert second.class_names == ("b", "c")
    assert torch.equal(second.images[second.of_class("c")], first.images[first.of_class("a")])
