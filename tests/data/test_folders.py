"""Every layout of class folders on a small tree made here: what is read, what is left out, and that both are said."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_tree
from PIL import Image

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


# layouts people have --------------------------------------------------------------------------------------------------
HELD_OUT = [
    "Validation",
    "VALIDATION",
    "val",
    "Val",
    "valid",
    "Valid",
    "validation",
    "test",
    "Test",
    "TEST",
    "testing",
    "Testing",
]


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("beside", HELD_OUT)
def test_folders_of_test_images_are_known_in_upper_and_lower_case(tmp_path, train, beside, capsys):
    written = tiny_tree(tmp_path, ["a", "b"], 3, 8, test=2)
    (tmp_path / "test").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / beside)
    (tmp_path / "train").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / train)
    imgs = load_images("folder", tmp_path, image_size=8)
    assert imgs.held_out.tolist() == [False] * 3 + [True] * 2 + [False] * 3 + [True] * 2
    for part, held_out in (("train", False), ("test", True)):
        assert pixels_of(written, imgs, tmp_path / part, "b", held_out=held_out)
    text = f"folder: {train}/<class>, {beside}/<class>; 10 images of 2 classes, 4 of them official test images"
    assert text in capsys.readouterr().out.splitlines()


PROGRAMS = ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", "#recycle", "__pycache__", "@__thumb",
            "System Volume Information"]  # fmt: skip


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_folders_of_other_programs_are_no_classes_and_are_said(tmp_path, name, split, capsys):
    written = tiny_tree(tmp_path, ["a", "b", name], 2, 8, test=int(split))
    shutil.copytree(tmp_path / ("train" if split else "") / "a", tmp_path / ("train" if split else "") / "a" / name)
    imgs = load_images("folder", tmp_path, image_size=8)
    assert (imgs.class_names, len(imgs)) == (("a", "b"), 6 if split else 4)
    assert pixels_of(written, imgs, tmp_path / ("train" if split else ""), "a", held_out=False if split else None)
    assert f"folder: folders and files of other programs are not read: {name}" in capsys.readouterr().out.splitlines()


def test_a_class_folder_that_is_hidden_is_said(tmp_path, capsys):
    tiny_tree(tmp_path, ["a", "b", ".net"], 2, 8)
    (tmp_path / ".git").mkdir()
    assert load_images("folder", tmp_path, image_size=8).class_names == ("a", "b")
    said = "folder: folders whose name begins with a point are hidden, and not read: .net (2 images)"
    assert said in capsys.readouterr().out.splitlines()


def test_what_else_is_left_out_is_said_in_a_line_each(tmp_path, capsys):
    tiny_tree(tmp_path, ["a", "b"], 2, 8, test=1)
    tiny_tree(tmp_path / "extra", ["a"], 1, 8)
    for name in (
        "train/a/x.heic",
        "train/a/y.HEIC",
        "train/b/z.npy",
        "train/loose.png",
        "train/a/README",
        "train/Thumbs.db",
    ):
        (tmp_path / name).write_bytes(b"")
    assert len(load_images("folder", tmp_path, image_size=8)) == 6
    said = capsys.readouterr().out.splitlines()
    for line in ("1 folders beside them are not read: extra", "1 images that are in no class folder are not read",
                 "files of other kinds in class folders are not read: 2 .heic, 1 .npy"):  # fmt: skip
        assert f"folder: {line}" in said


def ilsvrc(root, names, n=3, tests=2):
    """ImageNet as it is unpacked: training images in class folders, validation images in one folder; their true classes."""
    written = tiny_tree(root / "ILSVRC" / "Data" / "CLS-LOC" / "train", names, n, 8, ".png")
    truth, rng = {}, np.random.default_rng(1)
    for folder in ("val", "test"):
        (root / "ILSVRC" / "Data" / "CLS-LOC" / folder).mkdir()
    for folder in ("Annotations", "ImageSets"):
        (root / "ILSVRC" / folder).mkdir()
    classes = [name for name in names for _ in range(tests)]
    for i, k in enumerate(rng.permutation(len(classes))):
        path = root / "ILSVRC" / "Data" / "CLS-LOC" / "val" / f"ILSVRC2012_val_{i + 1:08d}.png"
        written[path] = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(written[path]).save(path)
        truth[path] = classes[k]
    return written, truth


LISTS = {  # where, the head of the file, and the line of an image
    "Kaggle's": ("LOC_val_solution.csv", "ImageId,PredictionString", "{stem},{name} 1 2 30 40 {name} 5 6 7 8"),
    "with suffix": ("ILSVRC/val.txt", None, "{stem}.JPEG {name}"),
    "with folder": ("ILSVRC/Data/CLS-LOC/val_labels.txt", None, "val/{stem}.JPEG\t{name}"),
    "in the folder": ("ILSVRC/Data/CLS-LOC/val/labels.csv", "file,label", '"{stem}.JPEG","{name}"'),
    "of Windows": ("ILSVRC/validation.csv", "\ufefffile;label", "{stem}.JPEG;{name}\r"),
}


@pytest.mark.parametrize("below", ["", "ILSVRC"])
@pytest.mark.parametrize("data", ["imagenet100", "folder"])
@pytest.mark.parametrize(("place", "head", "line"), LISTS.values(), ids=LISTS)
def test_ilsvrc_with_a_validation_folder_and_a_list(tmp_path, data, place, head, line, below, capsys):
    names = classes_of("imagenet100")[:14]
    written, truth = ilsvrc(tmp_path, [*names, "n99999999"])
    if below and not place.startswith(below):
        pytest.skip("the list is not below the folder that is given")
    lines = [head] * bool(head) + [line.format(stem=path.stem, name=name) for path, name in truth.items()]
    (tmp_path / place).write_text("\n".join(lines), encoding="utf-8")
    imgs = load_images(data, tmp_path / below, image_size=8)
    said = capsys.readouterr().out
    assert f"val/* (classes from {Path(place).name})" in said
    assert list(imgs.class_names) == (names if data == "imagenet100" else [*names, "n99999999"])
    assert int(imgs.held_out.sum()) == 2 * len(imgs.class_names)
    for name in imgs.class_names:
        wanted = [pixels for path, pixels in sorted(written.items()) if truth.get(path) == name]
        found = imgs.images[imgs.of_class(name, held_out=True)].permute(0, 2, 3, 1).numpy()
        assert np.array_equal(found, np.stack(wanted))
    assert "test has no class folders and no list that names the class of each image; it is not read" in said


@pytest.mark.parametrize(
    "text", ["ILSVRC2012_val_00000001 1\nILSVRC2012_val_00000002 2\n", "", "n01440764\n" * 40, "\x00" * 99]
)
def test_a_list_that_names_no_classes_is_not_guessed_from(tmp_path, text, capsys):
    ilsvrc(tmp_path, ["n01", "n02"])
    (tmp_path / "ILSVRC" / "ImageSets" / "val.txt").write_text(text)
    (tmp_path / "ILSVRC" / "val.txt").write_text(text)
    imgs = load_images("folder", tmp_path, image_size=8)
    assert imgs.held_out is None and len(imgs) == 6
    assert "val has no class folders and no list" in capsys.readouterr().out


def test_images_that_a_list_does_not_name_are_said(tmp_path, capsys):
    _, truth = ilsvrc(tmp_path, ["n01", "n02", "n03"])
    lines = [f"{path.name} {name}" for path, name in truth.items()]
    (tmp_path / "ILSVRC" / "val.txt").write_text("\n".join(lines[:-2]))
    assert load_images("folder", tmp_path, image_size=8).held_out.sum() == 4
    assert "2 of the 6 images in ILSVRC/Data/CLS-LOC/val are not in its list and not read" in capsys.readouterr().out


def test_tiny_imagenet_as_it_is_unpacked(tmp_path):
    root, rng = tmp_path / "tiny-imagenet-200", np.random.default_rng(0)
    lines, wanted = [], {}
    for name in ("n01", "n02"):
        tiny_tree(root / "train" / name, ["images"], 3, 8)
        (root / "train" / name / f"{name}_boxes.txt").write_text("x\t0\t0\t8\t8\n")
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    for i, name in enumerate(["n02", "n01", "n01", "n02"]):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "val" / "images" / f"val_{i}.png")
        wanted.setdefault(name, []).append(pixels)
        lines.append(f"val_{i}.png\t{name}\t0\t0\t8\t8")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    imgs = load_images("folder", tmp_path, image_size=8)
    assert (imgs.class_names, len(imgs)) == (("n01", "n02"), 10)
    for name in imgs.class_names:
        found = imgs.images[imgs.of_class(name, held_out=True)].permute(0, 2, 3, 1).numpy()
        assert np.array_equal(found, np.stack(wanted[name]))


def test_the_same_image_in_several_classes_or_splits_is_said(tmp_path, capsys):
    tiny_tree(tmp_path, ["a", "b"], 3, 8, test=2)
    for source, target in (
        ("train/a/000", "train/b/zzz"),
        ("train/a/001", "test/b/zzz"),
        ("train/a/002", "test/a/zzz"),
    ):
        shutil.copy(tmp_path / f"{source}.png", tmp_path / f"{target}.png")
    Image.open(tmp_path / "train/b/001.png").save(tmp_path / "test/b/other.bmp")  # the same pixels in another file
    for _ in ("decoded", "from the cache"):
        load_images("folder", tmp_path, image_size=8)
        said = capsys.readouterr().out.splitlines()
        # tiny_tree writes other pixels into every file, so these copies are all there is
        assert "folder: 2 images are also in another class, e.g. train/b/zzz.png is train/a/000.png" in said
        assert "folder: 2 official test images are also training images, e.g. test/a/zzz.png is train/a/002.png" in said


# what a person sees and the reader does not ----------------------------------------------------------------------------
@pytest.mark.parametrize("pair", [("Cat", "cat"), ("cat", "cat "), ("ice bear", "icebear"), ("STRASSE", "straße")])
@pytest.mark.parametrize("apart", [False, True])
def test_class_names_that_only_look_different_are_said(tmp_path, pair, apart, capsys):
    """One of them in `train`, the other in `test`: a class would silently have no test images."""
    if apart:
        tiny_tree(tmp_path / "train", [pair[0], "dog"], 2, 8)
        tiny_tree(tmp_path / "test", [pair[1], "dog"], 1, 8)
    else:
        tiny_tree(tmp_path, [*pair, "dog"], 2, 8)
    assert len(load_images("folder", tmp_path, image_size=8).class_names) == 3
    text = "folder: class names that differ in capitals or spaces alone are taken for different classes: "
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(text)]
    assert all(repr(name) in line for name in pair)


def test_folders_inside_class_folders_are_said(tmp_path, capsys):
    tiny_tree(tmp_path, ["a", "b"], 2, 8)
    tiny_tree(tmp_path / "a", ["more", "still more"], 1, 8)
    assert len(load_images("folder", tmp_path, image_size=8)) == 4
    line = "folder: 2 folders inside class folders are not read: a/more, a/still more"
    assert line in capsys.readouterr().out.splitlines()


def loose(folder):
    tiny_tree(folder, ["x"], 3, 8)
    for path in (folder / "x").iterdir():
        path.rename(folder / path.name)
    (folder / "x").rmdir()


def of_other_kinds(suffix):
    def make(folder):
        for name in ("a", "b"):
            (folder / name).mkdir()
            (folder / name / f"0{suffix}").write_bytes(b"x")

    return make


def one_level_deeper(folder):
    tiny_tree(folder / "animals", ["cat", "dog"], 2, 8)
    tiny_tree(folder / "cars", ["bmw"], 2, 8)


NO_LAYOUT = {
    "images in no class folder": (loose, "it holds 3 images that are in no class folder"),
    "HEIC": (of_other_kinds(".heic"), r"it holds 2 \.heic"),
    "no suffix": (of_other_kinds(""), "it holds 2 files without a suffix"),
    "one level deeper": (one_level_deeper, "class folders are below animals, cars: give one of these"),
    "nothing": (lambda folder: None, r"novel/test/<class>$"),
}


@pytest.mark.parametrize(("make", "text"), NO_LAYOUT.values(), ids=NO_LAYOUT)
def test_a_folder_without_a_layout_is_refused_with_what_it_holds(tmp_path, make, text):
    make(tmp_path)
    with pytest.raises(StudyError, match=text) as refusal:
        load_images("folder", tmp_path, image_size=8)
    assert "holds no images in class folders" in str(refusal.value) and "\n" not in str(refusal.value)


PLACES = ["a [b]*? c", "#1 100%20", 'it\'s "a"', "-n", "a;b&c|d", "caf\u00e9", "caf\udce9", "x\ny", "$HOME", " a "]


@pytest.mark.parametrize("name", PLACES)
def test_a_folder_of_any_name_is_read(tmp_path, name, capsys):
    tiny_tree(tmp_path / "tree", ["a", "b"], 2, 8)
    try:
        (tmp_path / "tree").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes text only")
    assert len(load_images("folder", tmp_path / name, image_size=8)) == 4
    capsys.readouterr().out.encode("utf-8")


@pytest.mark.parametrize("path", ["https://example.org/data.zip", "s3://bucket/images", "file:///data"])
def test_an_address_is_no_folder(path):
    with pytest.raises(StudyError, match="is an address; download") as refusal:
        load_images("folder", path)
    assert path in str(refusal.value)


@pytest.mark.parametrize(
    "path", ["C:\\Users\\me\\data", "'/quoted'", "/with a line\n", "%USERPROFILE%/data", "~nosuchuser/data"]
)
def test_a_path_that_leads_nowhere_here_is_shown_as_it_was_taken(path):
    with pytest.raises(StudyError, match="does not exist|no home folder") as refusal:
        load_images("folder", path)
    assert str(refusal.value).isprintable() and path.strip() in str(refusal.value)
