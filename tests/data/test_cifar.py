"""CIFAR-100 as published: read wherever it lies, without running what its pickles say; its download; the real files."""

import io
import os
import pickle
import random
import struct
import tarfile
import time
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from learngene_core.config import Config
from learngene_core.data import cifar
from learngene_core.data.division import GROUPS, divide, packaged, source_tasks, target_tasks
from learngene_core.data.images import ClassFolders, find_source, load_images
from learngene_core.errors import StudyError

REAL = os.environ.get("LEARNGENE_CIFAR100", "")
real_cifar = pytest.mark.skipif(not REAL, reason="LEARNGENE_CIFAR100 names no folder with the real CIFAR-100")


def classes_of(data):
    return sorted(n for g in GROUPS for n in packaged(data)[g])


@pytest.fixture
def tiny(tmp_path):
    """CIFAR-100 as published, with 2 training and 1 test image per class: its folder, what is in it; its archive beside it."""
    names, rng = classes_of("cifar100"), np.random.default_rng(0)
    folder = tmp_path / "tv" / "cifar-100-python"
    folder.mkdir(parents=True)
    contents = {"meta": {"fine_label_names": names}}
    for part, n in (("train", 200), ("test", 100)):
        labels = [i % 100 for i in range(n)]
        random.Random(0).shuffle(labels)
        contents[part] = {"data": rng.integers(0, 256, (n, 3072), np.uint8), "fine_labels": labels}
    for name, value in contents.items():
        (folder / name).write_bytes(pickle.dumps(value))
    with tarfile.open(tmp_path / cifar.ARCHIVE, "w:gz") as tar:
        tar.add(folder, folder.name)
    return folder, contents


def equals_contents(imgs, contents):
    assert list(imgs.class_names) == contents["meta"]["fine_label_names"]
    assert (imgs.images.shape, imgs.held_out.sum()) == ((300, 3, 32, 32), 100)
    assert torch.equal(imgs.labels, imgs.labels.sort().values)
    for k, name in enumerate(imgs.class_names):
        for part, held_out in (("train", False), ("test", True)):
            wanted = contents[part]["data"][np.array(contents[part]["fine_labels"]) == k]
            found = imgs.images[imgs.of_class(name, held_out=held_out)].flatten(1).numpy()
            assert np.array_equal(found, wanted), name


@pytest.mark.parametrize(
    "place", ["root", "folder", "another name", "archive", "folder of the archive", "with other folders"]
)
def test_the_published_files_are_read_wherever_they_lie(tiny, cache, tmp_path, place, capsys):
    folder, contents = tiny
    only = tmp_path / "only"
    only.mkdir()
    if place == "another name":
        folder.rename(only / "CIFAR")
    elif place != "root":
        (tmp_path / cifar.ARCHIVE).rename(only / cifar.ARCHIVE)
    if place == "with other folders":
        (only / "notes").mkdir()
    path = {"root": folder.parent, "folder": folder, "another name": only, "archive": only / cifar.ARCHIVE}.get(
        place, only
    )
    before = sorted(only.rglob("*"))
    imgs = load_images("cifar100", path)
    equals_contents(imgs, contents)
    said = capsys.readouterr().out
    assert "CIFAR-100 as published (train, test)" in said and "differ from the published files" in said
    assert set(imgs.superclasses) == set(imgs.class_names)
    divide(imgs, Config(data="cifar100"))
    again = load_images("cifar100", path)
    assert again.fingerprint == imgs.fingerprint
    assert "once" not in capsys.readouterr().out, "the second time it comes from the cache"
    assert sorted(only.rglob("*")) == before, "nothing is unpacked beside the archive"


def test_files_that_are_unpacked_go_before_the_archive_beside_them(tiny, cache, tmp_path):
    folder, contents = tiny
    (tmp_path / cifar.ARCHIVE).rename(folder / cifar.ARCHIVE)
    equals_contents(load_images("cifar100", folder), contents)
    assert not list(cache.glob("unpacked-*"))


def test_another_order_of_the_labels_is_read_from_meta(tiny, cache):
    folder, contents = tiny
    names = contents["meta"]["fine_label_names"]
    wanted = load_images("cifar100", folder)
    mixed = names[::-1]
    for part in ("train", "test"):
        labels = [99 - label for label in contents[part]["fine_labels"]]
        (folder / part).write_bytes(pickle.dumps(contents[part] | {"fine_labels": labels}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": mixed}))
    assert load_images("cifar100", folder).fingerprint == wanted.fingerprint


def python_2(value):
    """The bytes that Python 2 and the numpy of 2009 wrote: texts without an encoding, numpy's old places."""
    array = value["data"]
    out = b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
    out += b"(I1\n(I%d\nI%d\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n" % array.shape
    out += b"(I3\nS'|'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\n" + pickle.BINSTRING + struct.pack("<i", array.size)
    out += array.tobytes() + b"tp15\nbsS'fine_labels'\np16\n(lp17\n"
    return out + b"".join(b"I%d\na" % label for label in value["fine_labels"]) + b"s."


@pytest.mark.parametrize("protocol", ["Python 2", *range(2, pickle.HIGHEST_PROTOCOL + 1)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("labels", [list, np.array, lambda x: list(np.array(x, np.int16))])
def test_every_protocol_and_form_of_the_pickles_is_read(tiny, cache, protocol, order, labels):
    folder, contents = tiny
    for part in ("train", "test"):
        value = dict(contents[part])
        if protocol == "Python 2":
            data = python_2(value)
        else:
            value |= {"data": np.asarray(value["data"], order=order), "fine_labels": labels(value["fine_labels"])}
            data = pickle.dumps({k.encode(): v for k, v in value.items()}, protocol)
        (folder / part).write_bytes(data)
    equals_contents(load_images("cifar100", folder), contents)


def test_images_in_another_size(tiny, cache):
    folder, contents = tiny
    imgs = load_images("cifar100", folder, image_size=16)
    first = contents["train"]["data"][contents["train"]["fine_labels"].index(0)].reshape(3, 32, 32).transpose(1, 2, 0)
    wanted = np.asarray(Image.fromarray(first).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(imgs.images[0].permute(1, 2, 0).numpy(), wanted)


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


class Alters:
    """A pickle that would change an object of the reader's own, not call anything foreign."""

    def __reduce__(self):
        return np.ndarray, ((2**40,),), {"state": 1}


def changed(contents, part, **more):
    return pickle.dumps(contents[part] | more)


BAD = {
    "it runs a program": lambda c, p: pickle.dumps(Harm()),
    "a program within": lambda c, p: changed(c, p, data=Harm(), fine_labels=[Harm()]),
    "numpy's own loader": lambda c, p: b"cnumpy\nload\n(S'train'\ntR.",
    "an array of objects": lambda c, p: changed(c, p, data=np.array([None, {}], object)),
    "an array of a terabyte": lambda c, p: changed(c, p, data=Alters()),
    "an array of no size": lambda c, p: pickle.dumps(c[p]).replace(struct.pack("<H", 3072), struct.pack("<H", 3071)),
    "another width": lambda c, p: changed(c, p, data=np.zeros((len(c[p]["fine_labels"]), 3071), np.uint8)),
    "another type": lambda c, p: changed(c, p, data=c[p]["data"].astype(np.float32)),
    "one label more": lambda c, p: changed(c, p, fine_labels=[*c[p]["fine_labels"], 0]),
    "a label of 100": lambda c, p: changed(c, p, fine_labels=[100, *c[p]["fine_labels"][1:]]),
    "a label below 0": lambda c, p: changed(c, p, fine_labels=[-1, *c[p]["fine_labels"][1:]]),
    "no labels": lambda c, p: pickle.dumps({"data": c[p]["data"]}),
    "a list": lambda c, p: pickle.dumps([1]),
    "half": lambda c, p: pickle.dumps(c[p])[:-1000],
    "nothing": lambda c, p: b"",
    "text": lambda c, p: b"<html>not found</html>",
    "a string of exabytes": lambda c, p: b"\x80\x04\x8d" + struct.pack("<Q", 2**62),
}


@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_pickle_of_another_content_is_refused_in_a_line_and_never_run(tiny, cache, tmp_path, monkeypatch, name, bad):
    folder, contents = tiny
    monkeypatch.chdir(tmp_path)
    (folder / name).write_bytes(bad(contents, name))
    with pytest.raises(StudyError, match=rf"/{name} ") as refusal:
        load_images("cifar100", folder.parent)
    assert "\n" not in str(refusal.value) and str(refusal.value).isprintable()
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("names", [Harm(), ["a"] * 100, None, [b"apple"], list(range(100))])
def test_names_that_are_not_those_of_cifar100_are_refused(tiny, cache, tmp_path, monkeypatch, names):
    folder, _ = tiny
    monkeypatch.chdir(tmp_path)
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    with pytest.raises(StudyError, match="/meta "):
        load_images("cifar100", folder.parent)
    assert not (tmp_path / "harm").exists()


def test_an_archive_that_climbs_is_never_unpacked(cache, tmp_path):
    root = tmp_path / "only"
    root.mkdir()
    with tarfile.open(root / cifar.ARCHIVE, "w:gz") as tar:
        info = tarfile.TarInfo("../climbed")
        tar.addfile(info, io.BytesIO())
    with pytest.raises(StudyError, match=r"leaves its folder"):
        load_images("cifar100", root)
    assert not list(tmp_path.rglob("climbed"))


def test_cifar_as_any_folder_says_which_data_it_is(tiny, cache):
    with pytest.raises(StudyError, match="--data cifar100"):
        load_images("folder", tiny[0])


def test_download_happens_once_and_only_when_asked(tiny, cache, tmp_path, monkeypatch):
    _, contents = tiny
    asked = []

    def fetch(url, root, filename, md5):
        asked.append(url)
        if not (Path(root) / filename).exists():
            os.link(tmp_path / cifar.ARCHIVE, Path(root) / filename)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    with pytest.raises(StudyError, match="--data-path download"):
        load_images("cifar100")
    assert not asked
    equals_contents(load_images("cifar100", "download"), contents)
    assert len(asked) == 1
    unpacked = sorted(p.name for p in cache.iterdir())
    equals_contents(load_images("cifar100", "download"), contents)
    assert sorted(p.name for p in cache.iterdir()) == unpacked


@pytest.mark.parametrize(
    "error", [URLError("no route"), RuntimeError("File not found or corrupted."), TimeoutError("slow")]
)
def test_a_failed_download_says_which_file_to_put_where(cache, monkeypatch, error):
    from torchvision.datasets import CIFAR100

    def fails(*_, **__):
        raise error

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fails)
    with pytest.raises(StudyError) as refusal:
        load_images("cifar100", "download")
    text = str(refusal.value)
    assert CIFAR100.url in text and cifar.ARCHIVE in text and "--data-path" in text and "\n" not in text


# the real files -------------------------------------------------------------------------------------------------------
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
    source = find_source("cifar100", REAL)
    if not isinstance(source, ClassFolders):
        pytest.skip("it is not there as a tree of images")
    ratios, reads = [], []
    for i in range(3):
        monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / f"cache{i}"))
        start = time.perf_counter()
        for file in source.files:
            with Image.open(source.folder.path(file.path)) as image:
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


OTHERS = {
    "CIFAR-10": (["data_batch_1", "test_batch", "batches.meta"], "CIFAR-10, not CIFAR-100"),
    "for MATLAB": (["train.mat", "test.mat", "meta.mat"], "for MATLAB"),
    "binary": (["train.bin", "test.bin", "fine_label_names.txt"], "binary version"),
}


@pytest.mark.parametrize(("names", "text"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("below", ["", "cifar"])
@pytest.mark.parametrize("data", ["cifar100", "folder"])
def test_another_version_of_cifar_is_said_with_the_one_to_fetch(tmp_path, names, text, below, data):
    (tmp_path / below).mkdir(exist_ok=True)
    for name in names:
        (tmp_path / below / name).write_bytes(b"x")
    with pytest.raises(StudyError, match=text) as refusal:
        load_images(data, tmp_path)
    assert "cifar-100-python.tar.gz" in str(refusal.value) and "\n" not in str(refusal.value)
