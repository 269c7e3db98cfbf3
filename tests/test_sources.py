"""Every source and layout on a small tree made here; bad input named in one line; the cache shared, full, damaged, cold."""

import errno
import io
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import tiny_tree
from PIL import Image
from test_division import GROUPS, manifest

from learngene_core.config import Config
from learngene_core.data import cache as cache_module
from learngene_core.data import cache as decoding
from learngene_core.data import cifar
from learngene_core.data import images as sources
from learngene_core.data.division import describe, divide, parts, source_tasks, target_tasks
from learngene_core.data.folders import ZipTree, list_images, open_tree
from learngene_core.data.images import load_images
from learngene_core.errors import StudyError

REAL = os.environ.get("LEARNGENE_CIFAR100", "")
real_cifar = pytest.mark.skipif(not REAL, reason="LEARNGENE_CIFAR100 names no folder with the real CIFAR-100")


def classes_of(data):
    return sorted(n for g in GROUPS for n in manifest(data)[g])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of this test alone."""
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
    values = manifest("cifar100")
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
    values = manifest("cifar100")
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


# torchvision's format -------------------------------------------------------------------------------------------------
@pytest.fixture
def tiny_torchvision(tmp_path, monkeypatch):
    """CIFAR-100 in torchvision's format with 2 training and 1 test image per class, its checksums made known."""
    import hashlib

    from torchvision.datasets import CIFAR100

    names, rng = classes_of("cifar100"), np.random.default_rng(0)
    folder = tmp_path / "tv" / cifar.FOLDER
    folder.mkdir(parents=True)
    contents = {"meta": {"fine_label_names": names}}
    for part, n in (("train", 200), ("test", 100)):
        labels = [i % 100 for i in range(n)]
        random.Random(0).shuffle(labels)
        contents[part] = {"data": rng.integers(0, 256, (n, 3072), np.uint8), "fine_labels": labels}
    md5 = {}
    for name, value in contents.items():
        (folder / name).write_bytes(pickle.dumps(value))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    with tarfile.open(tmp_path / cifar.ARCHIVE, "w:gz") as tar:
        tar.add(folder, cifar.FOLDER)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5["meta"]})
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5((tmp_path / cifar.ARCHIVE).read_bytes()).hexdigest())
    return folder, contents


def equals_torchvision(imgs, contents):
    assert list(imgs.class_names) == contents["meta"]["fine_label_names"]
    assert (imgs.images.shape, imgs.held_out.sum()) == ((300, 3, 32, 32), 100)
    assert torch.equal(imgs.labels, imgs.labels.sort().values)
    for k, name in enumerate(imgs.class_names):
        for part, held_out in (("train", False), ("test", True)):
            wanted = contents[part]["data"][np.array(contents[part]["fine_labels"]) == k]
            found = imgs.images[imgs.of_class(name, held_out=held_out)].flatten(1).numpy()
            assert np.array_equal(found, wanted), name


@pytest.mark.parametrize("place", ["root", "folder", "archive"])
def test_torchvisions_files_are_read_wherever_they_lie(tiny_torchvision, cache, tmp_path, place, capsys):
    folder, contents = tiny_torchvision
    if place == "archive":
        (tmp_path / "only").mkdir()
        os.rename(tmp_path / cifar.ARCHIVE, tmp_path / "only" / cifar.ARCHIVE)
    path = {"root": folder.parent, "folder": folder, "archive": tmp_path / "only"}[place]
    imgs = load_images("cifar100", path)
    equals_torchvision(imgs, contents)
    assert "torchvision" in capsys.readouterr().out
    assert set(imgs.superclasses) == set(imgs.class_names)
    divide(imgs, Config(data="cifar100"))
    again = load_images("cifar100", path)
    assert again.fingerprint == imgs.fingerprint
    assert "once" not in capsys.readouterr().out, "the second time it comes from the cache"


def test_torchvisions_images_in_another_size(tiny_torchvision, cache):
    folder, contents = tiny_torchvision
    imgs = load_images("cifar100", folder, image_size=16)
    first = contents["train"]["data"][contents["train"]["fine_labels"].index(0)].reshape(3, 32, 32).transpose(1, 2, 0)
    wanted = np.asarray(Image.fromarray(first).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(imgs.images[0].permute(1, 2, 0).numpy(), wanted)


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_pickle_of_unknown_origin_is_never_opened(tiny_torchvision, cache, tmp_path, monkeypatch, name):
    folder, _ = tiny_torchvision
    monkeypatch.chdir(tmp_path)
    (folder / name).write_bytes(pickle.dumps(Harm()))
    with pytest.raises(StudyError, match="not the published CIFAR-100"):
        load_images("cifar100", folder.parent)
    assert not (tmp_path / "harm").exists()


def test_an_archive_of_unknown_origin_is_never_unpacked(tiny_torchvision, cache, tmp_path):
    root = tmp_path / "only"
    root.mkdir()
    with tarfile.open(root / cifar.ARCHIVE, "w:gz") as tar:
        info = tarfile.TarInfo("../climbed")
        tar.addfile(info, io.BytesIO())
    with pytest.raises(StudyError, match=r"not the published archive"):
        load_images("cifar100", root)
    assert not (tmp_path / "climbed").exists()


def test_download_happens_once_and_only_when_asked(tiny_torchvision, cache, tmp_path, monkeypatch):
    _, contents = tiny_torchvision
    asked = []

    def fetch(url, root, filename, md5):
        asked.append(url)
        os.link(tmp_path / cifar.ARCHIVE, Path(root) / filename)
        with tarfile.open(Path(root) / filename) as tar:
            tar.extractall(root, filter="data")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fetch)
    with pytest.raises(StudyError, match="--data-path download"):
        load_images("cifar100")
    assert not asked
    for _ in range(2):
        equals_torchvision(load_images("cifar100", "download"), contents)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "error", [URLError("no route"), RuntimeError("File not found or corrupted."), TimeoutError("slow")]
)
def test_a_failed_download_says_which_file_to_put_where(tiny_torchvision, cache, monkeypatch, error):
    from torchvision.datasets import CIFAR100

    def fails(*_, **__):
        raise error

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fails)
    with pytest.raises(StudyError) as refusal:
        load_images("cifar100", "download")
    text = str(refusal.value)
    assert CIFAR100.url in text and cifar.ARCHIVE in text and "--data-path" in text and "\n" not in text


# zip archives ---------------------------------------------------------------------------------------------------------
def zipped(path, root, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, f"pictures/{file.relative_to(root).as_posix()}")


def test_zip_archives_that_belong_together_are_one_tree(tmp_path):
    written = tiny_tree(tmp_path / "tree", ["a", "b", "c"], 3, 8, test=1)
    files = sorted(written)
    zipped(tmp_path / "zips" / "one.zip", tmp_path / "tree", files[::2])
    zipped(tmp_path / "zips" / "two.zip", tmp_path / "tree", files[1::2])
    zipped(tmp_path / "all.zip", tmp_path / "tree", files)
    prints = {load_images("folder", tmp_path / p, image_size=8).fingerprint for p in ("tree", "zips", "all.zip")}
    assert len(prints) == 1
    assert sorted(p.name for p in (tmp_path / "zips").iterdir()) == ["one.zip", "two.zip"], "nothing was unpacked"


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "C:/x.png", "a\\..\\x.png"])
def test_an_archive_that_climbs_out_of_its_folder_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("a/fine.png", b"")
        archive.writestr(name, b"")
    with pytest.raises(StudyError, match=r"bad\.zip holds .* leaves its folder"):
        load_images("folder", tmp_path / "bad.zip")


def test_a_damaged_double_or_oversized_archive_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(StudyError, match=r"broken\.zip"):
        load_images("folder", tmp_path / "broken.zip")
    written = sorted(tiny_tree(tmp_path / "tree", ["a"], 1, 8))
    for name in ("one", "two"):
        zipped(tmp_path / "double" / f"{name}.zip", tmp_path / "tree", written)
    with pytest.raises(StudyError, match="stands twice"):
        load_images("folder", tmp_path / "double")
    monkeypatch.setattr("learngene_core.trees.LARGEST", 10)
    with pytest.raises(StudyError, match=r"000\.png: .* more than an image has"):
        load_images("folder", tmp_path / "double" / "one.zip", image_size=8)


def test_another_kind_of_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(StudyError, match="unpack"):
        load_images("folder", tmp_path / "x.tar")


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


def save_odd_images(folder):
    """One image of each odd kind, 8 px unless said: grey, palette, transparent, deep, CMYK, another size, plain."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (8, 8, 3), np.uint8)
    folder.mkdir(parents=True)
    images = {
        "plain.png": Image.fromarray(colour),
        "grey.png": Image.fromarray(colour[..., 0]),
        "bits.png": Image.fromarray(colour[..., 0] > 127),
        "palette.gif": Image.fromarray(colour).quantize(8),
        "rgba.png": Image.fromarray(np.dstack([colour, np.full((8, 8), 0, np.uint8)])),
        "la.png": Image.fromarray(np.dstack([colour[..., 0], np.full((8, 8), 255, np.uint8)]), "LA"),
        "deep.png": Image.fromarray(np.full((8, 8), 40_000, np.uint16)),
        "deep.tif": Image.fromarray(np.full((8, 8), 40_000, np.int32)),
        "cmyk.jpg": Image.fromarray(np.full((8, 8, 4), 128, np.uint8), "CMYK"),
        "wide.png": Image.fromarray(rng.integers(0, 256, (8, 20, 3), np.uint8)),
    }
    for name, image in images.items():
        image.save(folder / name)
    return sorted(images)


def test_odd_images_are_converted_and_said_once_in_one_line(tmp_path, capsys):
    names = save_odd_images(tmp_path / "a")
    imgs = load_images("folder", tmp_path, image_size=8)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "converted" in line]
    for text in ("1 grey-scale", "1 black-and-white", "1 of a palette", "2 transparent (laid on white)",
                 "2 of 16 bits (upper 8 kept)", "1 CMYK", "1 of another size (middle square, resized)"):  # fmt: skip
        assert text in line
    seen = dict(zip(names, imgs.images, strict=True))
    assert (seen["rgba.png"] == 255).all(), "wholly transparent is white"
    assert (seen["deep.png"] == 40_000 >> 8).all() and (seen["deep.tif"] == 40_000 >> 8).all()
    with Image.open(tmp_path / "a" / "cmyk.jpg") as image:
        assert np.array_equal(seen["cmyk.jpg"].permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
    load_images("folder", tmp_path, image_size=8)
    assert "converted" not in capsys.readouterr().out


def test_pixels_of_32_bits_have_no_known_range_and_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "a" / "float.tif")
    with pytest.raises(StudyError, match=r"float\.tif.*8 bits"):
        load_images("folder", tmp_path, image_size=8)


def test_middle_square_resized_is_shorter_side_resized_and_cropped(tmp_path):
    ramp = np.add.outer(np.arange(150), 2 * np.arange(200)).astype(np.uint8) // 4
    image = Image.fromarray(np.dstack([ramp] * 3))
    wanted = np.asarray(image.resize((112, 84), Image.Resampling.BILINEAR).crop((14, 0, 98, 84))).astype(int)
    assert np.abs(np.asarray(decoding.square(image, 84)).astype(int) - wanted).max() <= 1
    thin = Image.new("RGB", (1, 30_000))  # resizing before cropping would take gigabytes
    assert decoding.square(thin, 84).size == (84, 84)


def test_other_formats_are_not_opened_whatever_their_name(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "x.eps")
    os.rename(tmp_path / "a" / "x.eps", tmp_path / "a" / "x.png")  # Pillow would start Ghostscript
    with pytest.raises(StudyError, match=r"x\.png.*cannot identify"):
        load_images("folder", tmp_path, image_size=8)


def test_corrupt_images_are_named_or_left_out_as_asked(tmp_path, cache, capsys):
    written = tiny_tree(tmp_path / "tree", ["a", "b"], 3, 8, test=1)
    good = load_images("folder", tmp_path / "tree", image_size=8)
    for name in ("train/a/zz.png", "train/b/0.png", "test/b/x.png"):
        (tmp_path / "tree" / name).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(StudyError, match=r"cannot read the image .*train/a/zz\.png"):
        load_images("folder", tmp_path / "tree", image_size=8)
    for _ in range(2):  # decoded, then from the cache
        capsys.readouterr()
        imgs = load_images("folder", tmp_path / "tree", image_size=8, skip_corrupt=True)
        assert imgs.fingerprint == good.fingerprint
        said = capsys.readouterr().out
        assert "3 unreadable images are left out" in said and "train/b/0.png" in said
    with pytest.raises(StudyError, match=r"train/a/zz\.png"):
        load_images("folder", tmp_path / "tree", image_size=8)
    for path in written:
        path.write_bytes(b"")
    with pytest.raises(StudyError, match="none of the 11 images"):
        load_images("folder", tmp_path / "tree", image_size=8, skip_corrupt=True)


def test_threads_and_one_loop_give_equal_images(tmp_path, cache, monkeypatch):
    tiny_tree(tmp_path / "tree", ["a", "b"], 40, (20, 30))
    one = load_images("folder", tmp_path / "tree", image_size=16)
    monkeypatch.setattr(decoding, "THREAD_BYTES", 0)
    monkeypatch.setattr(decoding, "BATCH_BYTES", 1)  # batches of 16, so that there are several
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(sources, "VERSION", -1)  # another key
    assert load_images("folder", tmp_path / "tree", image_size=16).fingerprint == one.fingerprint


# the cache ------------------------------------------------------------------------------------------------------------
def test_a_full_disk_says_the_way_out_and_leaves_nothing_behind(tmp_path, cache, monkeypatch):
    tiny_tree(tmp_path / "tree", ["a"], 40, 8)
    append, calls = cache_module.RowWriter.append, []

    def full(self, rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, rows)

    monkeypatch.setattr(cache_module.RowWriter, "append", full)
    monkeypatch.setattr(decoding, "BATCH_BYTES", 1)
    with pytest.raises(StudyError, match=r"No space left.*LEARNGENE_CACHE"):
        load_images("folder", tmp_path / "tree", image_size=8)
    assert not list(cache.rglob("*.npy*"))
    monkeypatch.setattr(cache_module.RowWriter, "append", append)
    assert len(load_images("folder", tmp_path / "tree", image_size=8)) == 40


def test_a_cache_that_cannot_be_made_is_said(tmp_path, monkeypatch):
    tiny_tree(tmp_path / "tree", ["a"], 1, 8)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StudyError, match="LEARNGENE_CACHE"):
        load_images("folder", tmp_path / "tree", image_size=8)


def test_a_half_written_entry_of_a_killed_process_is_made_again(tmp_path, cache):
    tiny_tree(tmp_path / "tree", ["a"], 3, 8)
    wanted = load_images("folder", tmp_path / "tree", image_size=8).fingerprint
    (entry,) = cache.iterdir()
    (entry / "recipe.json").unlink()  # it is written last
    (entry / "images.npy").write_bytes(b"half")
    (entry / ".images.npy.abc").write_bytes(bytes(100))
    (entry / "lock").write_text("")
    assert load_images("folder", tmp_path / "tree", image_size=8).fingerprint == wanted
    assert sorted(p.name for p in entry.iterdir()) == ["held_out.npy", "images.npy", "labels.npy", "recipe.json"]


@pytest.mark.parametrize("damage", ["recipe", "fewer labels"])
def test_a_damaged_entry_is_named(tmp_path, cache, damage):
    tiny_tree(tmp_path / "tree", ["a"], 3, 8)
    load_images("folder", tmp_path / "tree", image_size=8)
    (entry,) = cache.iterdir()
    if damage == "recipe":
        (entry / "recipe.json").write_text("{")
    else:
        np.save(entry / "labels.npy", np.zeros(2, np.int64))
    with pytest.raises(StudyError, match="damaged.*delete that folder") as refusal:
        load_images("folder", tmp_path / "tree", image_size=8)
    assert str(entry) in str(refusal.value)


def test_a_file_system_without_locks_still_gets_its_cache(tmp_path, cache, monkeypatch):
    import filelock

    def none(*_, **__):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    tiny_tree(tmp_path / "tree", ["a"], 3, 8)
    assert len(load_images("folder", tmp_path / "tree", image_size=8)) == 3


def test_the_cache_follows_the_tree_wherever_it_is_moved(tmp_path, cache):
    tiny_tree(tmp_path / "tree", ["a"], 3, 8)
    load_images("folder", tmp_path / "tree", image_size=8)
    os.rename(tmp_path / "tree", tmp_path / "moved")
    load_images("folder", tmp_path / "moved", image_size=8)
    assert len(list(cache.iterdir())) == 1
    load_images("folder", tmp_path / "moved", image_size=16)
    assert len(list(cache.iterdir())) == 2


def python(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def finished(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_two_processes_on_one_cold_cache_decode_once_and_both_end_well(tmp_path):
    tiny_tree(tmp_path / "tree", ["a", "b"], 60, 40)
    code = """
        import pathlib, sys, time
        from learngene_core import decoding
        from learngene_core.images import load_images
        decode = decoding.decode
        decoding.decode = lambda *a: time.sleep(0.02) or decode(*a)  # so that they meet
        pathlib.Path(sys.argv[2], sys.argv[3]).touch()
        while len(list(pathlib.Path(sys.argv[2]).iterdir())) < 2:
            time.sleep(0.01)
        print(load_images("folder", sys.argv[1], image_size=8).fingerprint)
    """
    (tmp_path / "ready").mkdir()
    started = [
        python(code, tmp_path / "tree", tmp_path / "ready", i, LEARNGENE_CACHE=str(tmp_path / "shared")) for i in "ab"
    ]
    said = [finished(p) for p in started]
    assert len({text.split()[-1] for text in said}) == 1
    assert sum("once; kept" in text for text in said) == 1
    (entry,) = (tmp_path / "shared").iterdir()
    assert sorted(p.name for p in entry.iterdir()) == ["held_out.npy", "images.npy", "labels.npy", "recipe.json"]


def test_a_limit_on_file_sizes_is_said_like_a_full_disk(tmp_path):
    """The operating system's own refusal, in the middle of writing."""
    tiny_tree(tmp_path / "tree", ["a"], 40, 8)
    code = """
        import resource, sys
        from learngene_core.files import StudyError
        from learngene_core.images import load_images
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            load_images("folder", sys.argv[1], image_size=64)
        except StudyError as error:
            print("StudyError:", error)
    """
    said = finished(python(code, tmp_path / "tree", LEARNGENE_CACHE=str(tmp_path / "small")))
    assert "LEARNGENE_CACHE" in said.splitlines()[-1]
    assert not list((tmp_path / "small").rglob("*.npy*"))


MEMORY = """
    import sys
    from learngene_core import sources
    from learngene_core.images import load_images
    def high():
        return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts here, imports apart
    before = high()
    imgs = load_images(sys.argv[1], sys.argv[2], image_size=int(sys.argv[3]))
    imgs.fingerprint  # every pixel is touched
    print((high() - before) / imgs.images.numel())
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_grows_by_less_than_twice_the_images(tmp_path):
    tiny_tree(tmp_path / "tree", ["a", "b"], 500, 16)
    for _ in ("decoded", "from the cache"):
        said = finished(python(MEMORY, "folder", tmp_path / "tree", 160, LEARNGENE_CACHE=str(tmp_path / "cache")))
        assert float(said.split()[-1]) < 2


# the real CIFAR-100 ---------------------------------------------------------------------------------------------------
@real_cifar
def test_real_cifar100_has_its_published_statistics(cache):
    from learngene_core.training import channel_statistics

    imgs = load_images("cifar100", REAL)
    assert (imgs.images.shape, len(imgs.class_names)) == ((60_000, 3, 32, 32), 100)
    assert torch.bincount(imgs.labels[~imgs.held_out]).tolist() == [500] * 100
    assert torch.bincount(imgs.labels[imgs.held_out]).tolist() == [100] * 100
    mean, std = channel_statistics(imgs.images[~imgs.held_out])
    assert mean.tolist() == pytest.approx([0.50707516, 0.48654887, 0.44091784], abs=1e-6)
    assert std.tolist() == pytest.approx([0.26733429, 0.25643846, 0.27615047], abs=1e-6)
    for name in ("paper", "cifar-cpu", "as-released"):
        cfg = Config.preset(name)
        div = divide(imgs, cfg)
        assert len(source_tasks(imgs, div, cfg)) == cfg.n_source_tasks
        assert len(target_tasks(imgs, div, cfg)) == cfg.n_target_tasks


@real_cifar
@pytest.mark.slow
def test_real_cifar100_is_decoded_nearly_as_fast_as_by_a_bare_loop(tmp_path, monkeypatch):
    tree = open_tree(Path(REAL))
    files = list_images(tree, sources.find_layout(tree, ("cifar100",)))
    assert not isinstance(tree, ZipTree)
    ratios, reads = [], []
    for i in range(3):
        monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / f"cache{i}"))
        start = time.perf_counter()
        for file in files:
            with Image.open(tree.open(file.path)) as image:
                np.asarray(image.convert("RGB"))
        bare = time.perf_counter() - start
        start = time.perf_counter()
        load_images("cifar100", REAL)
        ratios.append((time.perf_counter() - start) / bare)
        start = time.perf_counter()
        load_images("cifar100", REAL)
        reads.append(time.perf_counter() - start)
    assert min(ratios) < 1.5, ratios
    assert min(reads) < 2, reads
    if Path("/proc/self/clear_refs").exists():
        assert (
            float(finished(python(MEMORY, "cifar100", REAL, 32, LEARNGENE_CACHE=str(tmp_path / "cold"))).split()[-1])
            < 2
        )
