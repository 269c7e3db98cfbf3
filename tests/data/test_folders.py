"""Every layout of class folders on a small tree made here: what is read, what is left out, and that both are said."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_tree

from learngene_core.config import Config
from learngene_core.data.division import GROUPS, describe, divide, packaged, parts, source_tasks, target_tasks
from learngene_core.data.images import load_images
from learngene_core.errors import StudyError


def classes_of(data):
    return sorted(n for g in GROUPS for n in packaged(data)[g])


def pixels_of(written, imgs, folder, name, held_out=None):
    """The images of a class equal the files below `folder/name`, in the order of their names."""
    wanted = [pixels for path, pixels in sorted(written.items()) if path.parent == folder / name]
    found = imgs.images[imgs.of_class(name, held_out=held_out)].permute(0, 2, 3, 1).numpy()
    return np.array_equal(found, np.stack(wanted))


# layouts --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("beside", ["test", "val", "valid", "validation"])
def test_images_beside_train_are_the_official_test_split(tmp_path, beside, capsys):
    tiny_tree(tmp_path, ["a", "b"], 3, 8, test=2)
    os.rename(tmp_path / "test", tmp_path / beside)
    imgs = load_images("folder", tmp_path, image_size=8)
    assert imgs.held_out.tolist() == [False] * 3 + [True] * 2 + [False] * 3 + [True] * 2
    said = capsys.readouterr().out
    assert f"train/<class>, {beside}/<class>; 10 images of 2 classes, 4 of them official test images" in said


def test_train_val_and_test_of_different_classes_are_read_as_one(tmp_path, capsys):
    """Few-shot benchmarks divide the classes so; nothing in them is an official test image of a training class."""
    for part, names in (("train", "ab"), ("val", "c"), ("test", "de")):
        tiny_tree(tmp_path / part, names, 2, 8)
    imgs = load_images("folder", tmp_path, image_size=8)
    assert imgs.class_names == tuple("abcde")
    assert imgs.held_out is None
    assert "no official test split" in capsys.readouterr().out


def released_tree(root, base, novel, n=12, test=3):
    """base/<class>, novel/train/<class>, novel/test/<class> of 8 px images."""
    return tiny_tree(root / "base", base, n, 8) | tiny_tree(root / "novel", novel, n, 8, test=test)


def test_released_layout_has_official_test_images_of_novel_classes_only(tmp_path, capsys):
    values = packaged("cifar100")
    written = released_tree(tmp_path, values["base"], values["novel"])
    imgs = load_images("cifar100", tmp_path, image_size=8)
    said = capsys.readouterr().out
    assert "base/<class>, novel/train/<class>, novel/test/<class> (as the released scripts)" in said
    assert "16 of its 100 classes are not in" in said and "beaver" in said
    assert "64 classes have no official test images" in said
    assert len(imgs) == 64 * 12 + 20 * 15
    assert pixels_of(written, imgs, tmp_path / "base", "apple")
    assert pixels_of(written, imgs, tmp_path / "novel" / "test", "baby", held_out=True)
    cfg = Config(data="cifar100", source_way=5, shots=(2,), support_pool=0, query_images=0, source_images=0,
                 held_out_images=4)  # fmt: skip
    div = divide(imgs, cfg)
    assert (len(div.base), div.open_world, len(div.novel)) == (64, (), 20)
    assert "no open-world class" in capsys.readouterr().out
    assert "CIFAR-FS" in describe(div) and "absent" in describe(div)
    train, held = parts(imgs, "apple", 0, 4, cfg)
    assert (len(train), len(held)) == (8, 4) and not set(train) & set(held)
    train, held = parts(imgs, "baby", 0, 0, cfg)
    assert imgs.held_out[held].all() and not imgs.held_out[train].any() and len(held) == 3
    assert len(source_tasks(imgs, div, cfg)) == len(target_tasks(imgs, div, cfg)) - 12 == 8
    with pytest.raises(StudyError, match="0 open_world classes"):
        target_tasks(imgs, div, cfg, group="open_world")


def test_open_world_classes_may_stand_beside_the_released_folders(tmp_path):
    values = packaged("cifar100")
    released_tree(tmp_path, values["base"], values["novel"], 1, 1)
    tiny_tree(tmp_path / "open_world", values["open_world"], 1, 8)
    imgs = load_images("cifar100", tmp_path, image_size=8)
    assert list(divide(imgs, Config(data="cifar100")).open_world) == values["open_world"]
    (tmp_path / "open_world" / "lamp" / "000.png").unlink()
    with pytest.raises(StudyError, match="lamp"):
        divide(load_images("cifar100", tmp_path, image_size=8), Config(data="cifar100"))


def test_class_folders_may_lie_below_folders_that_stand_alone(tmp_path):
    written = tiny_tree(tmp_path / "download" / "birds-2.0", ["a", "b"], 2, 8, test=1)
    imgs = load_images("folder", tmp_path, image_size=8)
    assert imgs.class_names == ("a", "b")
    assert pixels_of(written, imgs, tmp_path / "download" / "birds-2.0" / "train", "a", held_out=False)


@pytest.mark.parametrize("layout", ["train and val", "flat", "released", "raw validation"])
def test_imagenet100_by_wordnet_id_from_its_usual_trees(tmp_path, layout, capsys):
    names = classes_of("imagenet100")
    extra = ["n00000001", "n99999999"]
    if layout == "released":
        tiny_tree(tmp_path / "base", [*names[:80], extra[0]], 1, (10, 14))
        tiny_tree(tmp_path / "novel", names[80:], 1, (10, 14), test=1)
    elif layout == "flat":
        tiny_tree(tmp_path, names + extra, 2, (10, 14), ".JPEG")
    else:
        tiny_tree(tmp_path, names + extra, 1, (10, 14), ".JPEG", test=1)
        os.rename(tmp_path / "test", tmp_path / "val")
        if layout == "raw validation":
            for i, path in enumerate(sorted((tmp_path / "val").rglob("*.JPEG"))):
                os.rename(path, tmp_path / "val" / f"ILSVRC2012_val_{i:08d}.JPEG")
            for folder in list((tmp_path / "val").iterdir()):
                folder.rmdir() if folder.is_dir() else None
    imgs = load_images("imagenet100", tmp_path, image_size=84)
    assert list(imgs.class_names) == names, "extra classes are left alone"
    assert imgs.images.shape[1:] == (3, 84, 84)
    assert (imgs.held_out is not None) == (layout in ("train and val", "released"))
    said = capsys.readouterr().out
    assert "are none of its classes" in said and "n00000001" in said
    assert ("val has no class folders" in said) == (layout == "raw validation")
    assert f"converted {len(imgs):,} of another size (middle square, resized)" in said
    cfg = Config(data="imagenet100", image_size=84)
    text = describe(divide(imgs, cfg))
    assert "Ravi and Larochelle" in text and "n01532829 (house finch)" in text and "continual or contrastive" in text


def test_missing_class_of_imagenet100_is_named_before_decoding_and_refused(tmp_path, capsys):
    names = classes_of("imagenet100")
    tiny_tree(tmp_path, names[1:], 1, 8)
    imgs = load_images("imagenet100", tmp_path, image_size=8)
    said = capsys.readouterr().out
    assert said.index(f"1 of its 100 classes are not in {tmp_path}: {names[0]}") < said.index("reading")
    with pytest.raises(StudyError, match=names[0]):
        divide(imgs, Config(data="imagenet100"))


@pytest.mark.parametrize("below", ["CUB_200_2011/images", "images", "", "archive/CUB_200_2011/images"])
def test_cub200_is_found_in_its_archive(tmp_path, below):
    names = classes_of("cub200")
    written = tiny_tree(tmp_path / below, names, 1, 84)
    if below == "CUB_200_2011/images":
        for name in ("attributes", "parts"):  # as in the archive
            (tmp_path / "CUB_200_2011" / name).mkdir()
            (tmp_path / "CUB_200_2011" / name / "list.txt").write_text("")
    imgs = load_images("cub200", tmp_path, image_size=84)
    assert (list(imgs.class_names), imgs.held_out) == (names, None)
    assert pixels_of(written, imgs, tmp_path / below, names[7])
    text = describe(divide(imgs, Config(data="cub200")))
    assert "base (100)" in text and "(100/50/50)" in text and "Closer Look" in text


def test_a_known_name_on_other_images_is_refused_with_both_lists(tmp_path):
    tiny_tree(tmp_path, ["poodle", "pug"], 1, 8)
    with pytest.raises(StudyError, match=r"poodle, pug.*none of the 100 of cifar100 \(apple.*--data folder"):
        load_images("cifar100", tmp_path, image_size=8)


@pytest.mark.parametrize("split", ["seed", "json"])
def test_any_folder_is_divided_by_seed_or_by_a_file_of_the_users(tmp_path, split):
    names = [f"c {i:02d} é" for i in range(30)]
    tiny_tree(tmp_path / "tree", names, 4, 8, test=split == "json")
    imgs = load_images("folder", tmp_path / "tree", image_size=8)
    cfg = Config(data="folder")
    if split == "json":
        groups = {"base": names[:20], "open_world": names[20:24], "novel": names[24:]}
        (tmp_path / "mine.json").write_text(json.dumps(groups | {"name": "mine"}))
        div = divide(imgs, cfg.replace(split=str(tmp_path / "mine.json")))
        assert [list(getattr(div, g)) for g in GROUPS] == list(groups.values())
        assert describe(div).startswith("division: mine")
    else:
        div = divide(imgs, cfg)
        assert [len(getattr(div, g)) for g in GROUPS] == [19, 5, 6]
        assert describe(div).startswith("division: 19/5/6 by seed 0")


def test_names_of_two_unicode_forms_are_one_class(tmp_path):
    """Some systems store "é" as "e" and an accent; a division written elsewhere must still find the class."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    tiny_tree(tmp_path / "tree", [apart, *(f"c{i}" for i in range(11))], 1, 8)
    imgs = load_images("folder", tmp_path / "tree", image_size=8)
    assert composed in imgs.class_names
    groups = {
        "base": [apart, *(f"c{i}" for i in range(5))],
        "open_world": ["c5"],
        "novel": [f"c{i}" for i in range(6, 11)],
    }
    (tmp_path / "mine.json").write_text(json.dumps(groups))
    assert composed in divide(imgs, Config(data="folder", source_way=2, split=str(tmp_path / "mine.json"))).base


# odd files and folders ------------------------------------------------------------------------------------------------
def test_links_that_loop_hidden_files_and_other_files_are_no_images(tmp_path):
    root = tmp_path / "a tree"
    tiny_tree(root, ["Ünï cøde", "b"], 2, 8)
    (root / "b" / "up").symlink_to(root, target_is_directory=True)
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "self").symlink_to(root / "self")
    (root / "b" / "self").symlink_to(root / "b" / "self")
    (root / "linked").symlink_to(root / "b", target_is_directory=True)
    for name in ("b/.hidden.png", "b/._000.png", "b/notes.txt", "b/Thumbs.db", "README.md", "loose.png"):
        (root / name).write_bytes(b"no image")
    os.mkfifo(root / "b" / "pipe.png")  # opening it would wait for ever
    (root / "b" / "folder.png").mkdir()
    imgs = load_images("folder", root, image_size=8)
    assert imgs.class_names == ("b", "linked", "Ünï cøde")
    assert len(imgs) == 6


def test_a_dangling_link_is_named(tmp_path):
    tiny_tree(tmp_path, ["a"], 2, 8)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(StudyError, match=r"a/gone\.png: .*No such file"):
        load_images("folder", tmp_path, image_size=8)
    assert len(load_images("folder", tmp_path, image_size=8, skip_corrupt=True)) == 2


def test_a_folder_name_that_is_no_text_is_said_in_text(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes text only")
    (Path(os.fsdecode(folder)) / "x.png").write_bytes(b"")
    with pytest.raises(StudyError, match="no text") as refusal:
        load_images("folder", tmp_path)
    str(refusal.value).encode("utf-8")


def test_folders_without_images_are_said(tmp_path, capsys):
    tiny_tree(tmp_path, ["a", "b"], 1, 8)
    tiny_tree(tmp_path / "nested" / "deeper", ["x"], 1, 8)
    (tmp_path / "wolf").mkdir()
    assert load_images("folder", tmp_path, image_size=8).class_names == ("a", "b")
    assert "2 folders that directly hold no image are not read: nested, wolf" in capsys.readouterr().out


def test_a_class_with_too_few_images_is_named(tmp_path, capsys):
    tiny_tree(tmp_path, [f"c{i:02d}" for i in range(12)], 12, 8)
    imgs = load_images("folder", tmp_path, image_size=8)
    cfg = Config(data="folder", source_way=2, n_source_tasks=2)
    div = divide(imgs, cfg)
    assert all(len(t.train) == 2 * 8 for t in source_tasks(imgs, div, cfg))
    assert "4 base classes have fewer than 100 training images" in capsys.readouterr().out
    with pytest.raises(StudyError, match=r"shots = 11, but novel class 'c\d\d' has a support pool of 10"):
        target_tasks(imgs, div, cfg.replace(shots=(11,), support_pool=0, query_images=0))
