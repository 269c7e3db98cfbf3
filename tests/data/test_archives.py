"""Archives: unpacked into the cache once, inside their folder, after a look at the disk; damage and lies are named."""

import collections
import io
import shutil
import tarfile
import unicodedata
import zipfile

import pytest
from conftest import tiny_tree

from learngene_core.data import archives
from learngene_core.data.images import load_images
from learngene_core.errors import StudyError


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
    with pytest.raises(StudyError, match="is twice"):
        load_images("folder", tmp_path / "double")
    monkeypatch.setattr(archives, "LARGEST", 10)
    with pytest.raises(StudyError, match=r"000\.png: .* more than an image has"):
        load_images("folder", tmp_path / "double" / "one.zip", image_size=8)


def test_another_kind_of_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(StudyError, match="unpack"):
        load_images("folder", tmp_path / "x.tar")


# as people pack them --------------------------------------------------------------------------------------------------
def packed(path, root, name=lambda file: file):
    """The tree below `root` as the archive `path`, every file under name(its relative path)."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                info = zipfile.ZipInfo("x")
                info.filename = name(file.relative_to(root).as_posix())
                archive.writestr(info, file.read_bytes())
    else:
        with tarfile.open(path, {".tar": "w", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w:gz")) as archive:
            for file in files:
                archive.add(file, name(file.relative_to(root).as_posix()))
    return path


PACKED = {
    "of Windows": ("a.zip", lambda f: f.replace("/", "\\")),
    "in capitals": ("A.ZIP", lambda f: f),
    "below folders": ("a.zip", lambda f: f"data/pictures/{f}"),
    "with dots": ("a.zip", lambda f: f"./{f}"),
    "a tar": ("a.tar", lambda f: f),
    "a tar.gz": ("a.tar.gz", lambda f: f"./{f}"),
    "a tar.bz2": ("a.tar.bz2", lambda f: f),
    "a tar.xz": ("a.tar.xz", lambda f: f"data/{f}"),
    "a tgz": ("a.tgz", lambda f: f"data/{f}"),
}


@pytest.mark.parametrize(("file", "name"), PACKED.values(), ids=PACKED)
def test_an_archive_is_read_as_the_tree_that_is_in_it(tmp_path, cache, file, name):
    tiny_tree(tmp_path / "tree", ["a", "café", "c"], 3, 8, test=1)
    wanted = load_images("folder", tmp_path / "tree", image_size=8)
    path = packed(tmp_path / file.lower(), tmp_path / "tree", name).rename(tmp_path / file)
    found = load_images("folder", path, image_size=8)
    assert (found.fingerprint, found.class_names) == (wanted.fingerprint, ("a", "c", "café"))


def test_names_in_utf8_that_the_archive_does_not_announce(tmp_path, cache):
    """As the Finder of macOS writes them, its own folder beside them."""
    tiny_tree(tmp_path / "tree", ["café", "b", "__MACOSX/b"], 2, 8)
    path = packed(tmp_path / "a.zip", tmp_path / "tree", lambda f: unicodedata.normalize("NFD", f))
    flags = path.read_bytes()
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        parts = flags.split(signature)
        flags = signature.join(
            [parts[0], *(p[: at - 4] + bytes([p[at - 4], p[at - 3] & ~8]) + p[at - 2 :] for p in parts[1:])]
        )
    path.write_bytes(flags)
    assert load_images("folder", path, image_size=8).class_names == ("b", "café")


def test_an_archive_is_unpacked_once_and_again_where_files_were_lost(tmp_path, cache, capsys):
    tiny_tree(tmp_path / "tree", ["a", "b"], 3, 8)
    path = packed(tmp_path / "a.zip", tmp_path / "tree")
    for _ in range(2):
        wanted = load_images("folder", path, image_size=8).fingerprint
    assert capsys.readouterr().out.count("unpacking") == 1
    (folder,) = cache.glob("unpacked-*")
    shutil.rmtree(folder / "files" / "a")  # by a program that cleans caches
    assert load_images("folder", path, image_size=8).fingerprint == wanted
    (folder / "archive.json").unlink()  # of a process that was killed
    (folder / ".part").mkdir()
    assert load_images("folder", path, image_size=8).fingerprint == wanted
    assert sorted(p.name for p in folder.iterdir()) == ["archive.json", "files"]


def test_another_archive_of_the_same_name_is_another(tmp_path, cache):
    tiny_tree(tmp_path / "one", ["a", "b"], 2, 8)
    tiny_tree(tmp_path / "two", ["c", "d"], 2, 8)
    assert load_images("folder", packed(tmp_path / "a.zip", tmp_path / "one"), image_size=8).class_names == ("a", "b")
    assert load_images("folder", packed(tmp_path / "a.zip", tmp_path / "two"), image_size=8).class_names == ("c", "d")


def test_the_disk_is_looked_at_first(tmp_path, cache, monkeypatch):
    tiny_tree(tmp_path / "tree", ["a"], 2, 8)
    path = packed(tmp_path / "a.zip", tmp_path / "tree")
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, archives.SPARE + 300))
    with pytest.raises(StudyError, match=r"a\.zip takes .* set LEARNGENE_CACHE"):
        load_images("folder", path, image_size=8)
    assert not [p for p in cache.rglob("*") if p.is_file()]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, cache, kind):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        info = tarfile.TarInfo("a/x.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(StudyError, match=r"a\.tgz holds 'a/x\.png', which is a link or no file"):
        load_images("folder", tmp_path / "a.tgz")
    assert not [p for p in cache.rglob("*") if p.is_file()]


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.95])
def test_a_tar_that_is_cut_short_is_named(tmp_path, cache, share):
    tiny_tree(tmp_path / "tree", ["a", "b"], 5, 30)
    path = packed(tmp_path / "a.tgz", tmp_path / "tree")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(StudyError, match=r"the archive .*a\.tgz") as refusal:
        load_images("folder", path)
    assert "\n" not in str(refusal.value)


def test_a_tar_that_announces_more_than_the_disk_has(tmp_path, cache):
    info = tarfile.TarInfo("a/x.bin")
    info.size = 2**60
    (tmp_path / "a.tar").write_bytes(info.tobuf() + io.BytesIO(bytes(1024)).read())
    with pytest.raises(StudyError, match=r"a\.tar takes 11529215\d\d\.\d GB or more"):
        load_images("folder", tmp_path / "a.tar")


def flagged(path, offsets, change):
    """Change a byte of every header in a zip archive: offsets after the signatures of local and central headers."""
    data = bytearray(path.read_bytes())
    for signature, at in zip((b"PK\x03\x04", b"PK\x01\x02"), offsets, strict=True):
        place = data.find(signature)
        while place >= 0:
            data[place + at] = change(data[place + at])
            place = data.find(signature, place + 4)
    path.write_bytes(data)


BROUGHT = {  # what is made of a good zip archive, and what is said
    "with a password": (lambda p: flagged(p, (6, 8), lambda b: b | 1), "encrypted"),
    "packed as Windows packs large ones": (lambda p: flagged(p, (8, 10), lambda b: 9), "compression method"),
    "the page before the download": (lambda p: p.write_text("<html>Sign in"), "not a zip file"),
    "with nothing in it": (lambda p: zipfile.ZipFile(p, "w").close(), "holds no images in class folders"),
    "of folders alone": (lambda p: zipped_texts(p, {"a/": b"", "b/": b""}), "holds no images in class folders"),
    "a name that is too long": (lambda p: zipped_texts(p, {f"a/{'x' * 300}.png": b""}), "too long"),
    "a file that is a folder too": (lambda p: zipped_texts(p, {"a": b"", "a/x.png": b""}), r"a\.zip"),
    "of archives": (lambda p: zipped_texts(p, {"one.rar": b"", "two.rar": b""}), r"it holds 2 \.rar"),
}


def zipped_texts(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(("change", "text"), BROUGHT.values(), ids=BROUGHT)
def test_an_archive_that_cannot_be_read_is_one_line(tmp_path, cache, change, text):
    tiny_tree(tmp_path / "tree", ["a", "b"], 2, 8)
    path = packed(tmp_path / "a.zip", tmp_path / "tree")
    change(path)
    with pytest.raises(StudyError, match=text) as refusal:
        load_images("folder", path, image_size=8)
    assert "\n" not in str(refusal.value) and "a.zip" in str(refusal.value)
    assert not list(cache.glob("**/.part/*")), "nothing half is left"
