"""What is known before the first kernel: names and numbers without a pixel, equal to those of the images; too few are said."""

import time

import pytest
from conftest import tiny_tree

from learngene_core.config import Config
from learngene_core.data.division import divide, source_tasks, target_tasks
from learngene_core.data.images import load_images
from learngene_core.data.preflight import check_data, outline
from learngene_core.errors import StudyError
from learngene_core.study.whole import check_possible


def folder_of(tmp_path, n_classes, n=24, test=8):
    tiny_tree(tmp_path, [f"k{i:02d}" for i in range(n_classes)], n, 8, test=test)
    return Config(data="folder", data_path=str(tmp_path), image_size=8, source_way=2, n_source_tasks=2, n_target_tasks=2,
                  shots=(4,), atlas_shots=4, source_images=0, held_out_images=4, support_pool=0, query_images=0)  # fmt: skip


def test_the_outline_has_the_names_labels_and_split_of_the_images(tmp_path, glyph_images):
    cfg = folder_of(tmp_path, 12, 3, 2)
    for found, images in (
        (outline(cfg), load_images("folder", tmp_path, image_size=8)),
        (outline(Config()), glyph_images),
    ):
        assert (found.class_names, found.labels.tolist()) == (images.class_names, images.labels.tolist())
        assert (found.held_out is None) == (images.held_out is None)
        assert found.held_out is None or found.held_out.tolist() == images.held_out.tolist()


def test_a_division_and_tasks_drawn_from_the_outline_are_those_of_the_images(tmp_path):
    cfg = folder_of(tmp_path, 20)
    known, images = outline(cfg), load_images("folder", tmp_path, image_size=8)
    div = divide(images, cfg)
    assert divide(known, cfg) == div
    for draw in (source_tasks, target_tasks):
        assert str(draw(known, div, cfg)) == str(draw(images, div, cfg))


@pytest.mark.parametrize(("n", "n_open"), [(11, 2), (12, 2), (20, 3), (28, 4)])
def test_too_few_open_world_classes_for_the_atlas_are_said_at_once_with_the_ways_out(tmp_path, cache, n, n_open):
    cfg, start = folder_of(tmp_path / "tree", n), time.perf_counter()
    with pytest.raises(StudyError, match=rf"{n_open}.*--set atlas_pseudo_tasks=0.*split=FILE") as refusal:
        check_possible(cfg)
    assert time.perf_counter() - start < 5
    assert "open-world classes" in str(refusal.value) and "\n" not in str(refusal.value)
    assert not cache.exists(), "no image was decoded"
    check_possible(cfg.replace(atlas_pseudo_tasks=0))


TOO_FEW = {
    "classes at all": (10, 24, {}, "10 classes are too few"),
    "base classes": (12, 24, {"source_way": 8}, "source_way = 8"),
    "base classes for disjoint tasks": (30, 24, {"n_source_tasks": 12}, "12 disjoint source tasks"),
    "novel classes": (30, 24, {"n_way": 7}, "n_way = 7"),
    "images for the shots": (30, 24, {"shots": (25,)}, "shots = 25"),
    "images for the shots of the atlas": (30, 24, {"atlas_shots": 25}, "shots = 25"),
    "images at all": (30, 1, {}, "too few images"),
}


@pytest.mark.parametrize(("n_classes", "n", "changes", "text"), TOO_FEW.values(), ids=TOO_FEW)
def test_too_few_of_anything_is_said_before_an_image_is_decoded(tmp_path, cache, n_classes, n, changes, text):
    cfg = folder_of(tmp_path / "tree", n_classes, n)
    with pytest.raises(StudyError, match=text):
        check_possible(cfg.replace(**changes))
    assert not cache.exists()


def test_enough_of_everything_passes(tmp_path, cache):
    check_possible(folder_of(tmp_path / "tree", 32))


@pytest.mark.parametrize("data", ["cifar100", "imagenet100", "cub200", "folder"])
def test_images_that_are_not_there_are_said(tmp_path, data):
    with pytest.raises(StudyError, match="needs --data-path"):
        check_data(Config(data=data))
    with pytest.raises(StudyError, match="does not exist"):
        check_data(Config(data=data, data_path=str(tmp_path / "none")))
    with pytest.raises(StudyError, match="holds no images in class folders"):
        check_data(Config(data=data, data_path=str(tmp_path)))


def test_what_needs_no_folder_passes():
    check_data(Config())
    check_data(Config(data="cifar100", data_path="download"))
