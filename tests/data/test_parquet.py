"""Parquet tables, as hubs publish data sets: right pixels and labels where pyarrow is there, one line where it is not."""

import importlib.util
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from learngene_core.data.division import GROUPS, packaged
from learngene_core.data.images import load_images
from learngene_core.errors import StudyError

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is optional")


@pytest.mark.parametrize("data", ["cifar100", "folder"])
@pytest.mark.parametrize("place", ["file", "folder", "folder in a folder"])
def test_without_pyarrow_one_line_says_how_to_get_it(tmp_path, monkeypatch, data, place):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "cifar100" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1")
    with pytest.raises(StudyError, match=r"pip install pyarrow") as refusal:
        load_images(data, {"file": path, "folder": path.parent, "folder in a folder": tmp_path}[place])
    assert path.name in str(refusal.value) and "\n" not in str(refusal.value)


def encoded(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def table(path, images, labels, *, image="img", label="fine_label", names=None):
    """A table as the `datasets` library writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = pa.array(
        [{"bytes": data, "path": None} for data in images], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    features = {label: {"names": names, "_type": "ClassLabel"}} if names else {}
    notes = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({image: cells, label: labels}).replace_schema_metadata(notes), path)


def tables(root, names, *, n=3, test=1, **columns):
    """Tables of n training and `test` test images per class, mixed; the pixels of each class and split."""
    rng, wanted = np.random.default_rng(0), {}
    for split, count in (("train", n), ("test", test)):
        labels = rng.permutation(np.repeat(np.arange(len(names)), count)).tolist()
        pixels = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        table(root / f"{split}-00000-of-00001.parquet", map(encoded, pixels), labels, names=names, **columns)
        for label, picture in zip(labels, pixels, strict=True):
            wanted.setdefault((names[label], split == "test"), []).append(picture)
    return wanted


def check(imgs, wanted):
    for (name, held_out), pixels in wanted.items():
        found = imgs.images[imgs.of_class(name, held_out=held_out)].permute(0, 2, 3, 1).numpy()
        assert np.array_equal(found, np.stack(pixels)), name


@needs_pyarrow
@pytest.mark.parametrize("below", ["", "cifar100"])
def test_cifar100_as_hubs_publish_it(tmp_path, below, capsys):
    names = sorted(n for g in GROUPS for n in packaged("cifar100")[g])
    wanted = tables(tmp_path / below, names)
    imgs = load_images("cifar100", tmp_path)
    assert (list(imgs.class_names), len(imgs)) == (names, 400)
    check(imgs, wanted)
    line = "parquet: test-00000-of-00001.parquet, train-00000-of-00001.parquet; 400 images of 100 classes, 100 of them official"
    assert line in capsys.readouterr().out


@needs_pyarrow
def test_any_table_with_names_in_its_notes_is_a_folder(tmp_path):
    wanted = tables(tmp_path, ["zebra", "ant", "caf\u00e9"], image="image", label="label")
    imgs = load_images("folder", tmp_path)
    assert imgs.class_names == ("ant", "caf\u00e9", "zebra")
    check(imgs, wanted)


@needs_pyarrow
def test_labels_may_be_names_and_a_single_table_is_taken_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    table(
        tmp_path / "pets.parquet",
        map(encoded, pixels),
        ["dog", "cat\x1b", "dog", "cat\x1b"],
        image="image",
        label="label",
    )
    imgs = load_images("folder", tmp_path / "pets.parquet")
    assert (imgs.class_names, imgs.held_out) == (("cat\\x1b", "dog"), None)
    check(imgs, {("dog", None): list(pixels[::2])})


@needs_pyarrow
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "cannot read the table"),
        (lambda p: p.write_bytes(b""), "cannot read the table"),
        (
            lambda p: table(p, [b"no image"] * 4, [0, 1, 0, 1], names=["a", "b"]),
            r"image .*row 0: cannot identify it as an image \(PNG",
        ),
        (lambda p: table(p, [None] * 4, [0, 1, 0, 1], names=["a", "b"]), r"row 0: the cell holds no image"),
        (lambda p: table(p, [b""] * 2, [0, 2], names=["a", "b"]), "outside 0 to 1"),
        (lambda p: table(p, [b""] * 2, [-1, 1], names=["a", "b"]), "outside 0 to 1"),
        (lambda p: table(p, [b""] * 2, [None, 1], names=["a", "b"]), "neither whole numbers nor names"),
        (lambda p: table(p, [b""] * 2, [0.0, 1.0]), "neither whole numbers nor names"),
        (lambda p: table(p, [b""] * 2, [True, False]), "neither whole numbers nor names"),
        (lambda p: table(p, [], []), "have no rows"),
        (lambda p: table(p, [b"version https://git-lfs"] * 2, ["a", "b"]), r"row 0: a pointer of Git LFS"),
        (
            lambda p: table(p.with_name("test.parquet"), [b""], [0], image="picture"),
            r"test\.parquet has no .*but picture",
        ),
        (lambda p: table(p, [b""] * 2, [0, 1], image="picture"), "no image and label column, but picture"),
    ],
)
def test_a_table_of_another_content_is_named(tmp_path, change, text):
    path = tmp_path / "train.parquet"
    table(path, [encoded(np.zeros((8, 8, 3), np.uint8))] * 2, [0, 1], names=["a", "b"])
    change(path)
    with pytest.raises(StudyError, match=text):
        load_images("folder", tmp_path)
