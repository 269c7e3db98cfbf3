"""The cache of decoded images: shared, full, damaged, cold, on file systems without locks; damage is never read as images."""

import errno
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_tree
from PIL import Image

from learngene_core.data import cache as cache_module
from learngene_core.data import decoding, glyphs
from learngene_core.data.images import load_images
from learngene_core.errors import StudyError


@pytest.fixture
def few_glyphs(monkeypatch):
    """Glyphs of two images per class, so that a cold cache is cheap."""
    render = glyphs.render
    monkeypatch.setattr(glyphs, "render", lambda seed=0: render(2, seed))


def entry(cache):
    (folder,) = cache.iterdir()
    return folder


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
        from learngene_core.data import decoding
        from learngene_core.data.images import load_images
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
        from learngene_core.errors import StudyError
        from learngene_core.data.images import load_images
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
    from learngene_core.data.images import load_images
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


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LEARNGENE_CIFAR100"), reason="LEARNGENE_CIFAR100 names no folder")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_grows_by_less_than_twice_the_real_images(tmp_path):
    said = python(MEMORY, "cifar100", os.environ["LEARNGENE_CIFAR100"], 32, LEARNGENE_CACHE=str(tmp_path / "cold"))
    assert float(finished(said).split()[-1]) < 2


def overwritten(path, at, data):
    """Other bytes at a place of a file that keeps its size and its dates."""
    facts = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def rewritten(path, old, new):
    """The file with other bytes in place of `old`."""
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


DAMAGE = {
    "pixels that are zero": lambda e: overwritten(e / "images.npy", 300, bytes(64)),
    "one bit of a pixel": lambda e: overwritten(
        e / "images.npy", 400, bytes([(e / "images.npy").read_bytes()[400] ^ 1])
    ),
    "the last pixel": lambda e: overwritten(e / "images.npy", (e / "images.npy").stat().st_size - 1, b"\x77"),
    "another shape": lambda e: rewritten(e / "images.npy", b"(8, 3", b"(4, 6"),
    "labels that are zero": lambda e: np.save(e / "labels.npy", np.zeros(8, np.int64)),
    "labels in another order": lambda e: np.save(e / "labels.npy", np.load(e / "labels.npy")[::-1]),
    "labels of no class": lambda e: np.save(e / "labels.npy", np.full(8, 99)),
    "another official split": lambda e: np.save(e / "held_out.npy", ~np.load(e / "held_out.npy")),
    "no official split": lambda e: np.save(e / "held_out.npy", np.zeros(0, bool)),
    "another entry's recipe": lambda e: rewritten(e / "recipe.json", b'"image_size": 8', b'"image_size": 9'),
    "other class names": lambda e: rewritten(e / "recipe.json", b'"b"', b'"c"'),
    "an older recipe": lambda e: (e / "recipe.json").write_text('{"recipe": {}, "notes": {}}'),
    "a list": lambda e: (e / "recipe.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_content_is_noticed_and_never_used(tmp_path, cache, damage):
    tiny_tree(tmp_path / "tree", ["a", "b"], 3, 8, test=1)
    wanted = load_images("folder", tmp_path / "tree", image_size=8).fingerprint
    damage(entry(cache))
    with pytest.raises(StudyError, match=r"the image cache .* is damaged .*delete that folder"):
        load_images("folder", tmp_path / "tree", image_size=8)
    for path in entry(cache).iterdir():
        path.unlink()
    assert load_images("folder", tmp_path / "tree", image_size=8).fingerprint == wanted


def test_files_of_equal_names_sizes_and_dates_but_other_pixels_are_other_images(tmp_path, cache):
    seen = []
    for value in (0, 128):
        tiny_tree(tmp_path / str(value), ["a", "b"], 2, 8, ".bmp")
        for path in (tmp_path / str(value)).rglob("*.bmp"):
            Image.new("RGB", (8, 8), (value,) * 3).save(path)
            os.utime(path, (1e9, 1e9))
        seen.append(load_images("folder", tmp_path / str(value), image_size=8).images.unique().tolist())
        time.sleep(0.05)  # longer than the clock of any file system
    assert seen == [[0], [128]]
    path = tmp_path / "0" / "a" / "000.bmp"
    Image.new("RGB", (8, 8), "white").save(path)  # in place, the old date restored
    os.utime(path, (1e9, 1e9))
    assert load_images("folder", tmp_path / "0", image_size=8).images.unique().tolist() == [0, 255]
