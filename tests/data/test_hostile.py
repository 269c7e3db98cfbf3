"""Malformed and hostile images, archives and divisions: each ends in one clear line, at once, inside its folders.

Truncated and hostile files raise; a file in which one bit is turned may also be harmless, and is then read to the end.
"""

import io
import os
import pickle
import signal
import stat
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from damage import filed, truncated, turned
from PIL import Image

from learngene_core.data.division import read_division
from learngene_core.data.images import load_images
from learngene_core.errors import StudyError, one_line

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="its watch for hanging is POSIX's")
SECONDS = 20  # a case that takes longer hangs


@pytest.fixture
def call(capsys):
    """Call a function: returns the one line of its StudyError, or None when it ended well; any other error is a failure."""

    def hangs(*_):
        raise AssertionError("it hangs")

    def run(function, *arguments):
        before = signal.signal(signal.SIGALRM, hangs)
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings(record=True) as warned:  # a warning would be lines on standard error
                warnings.simplefilter("always")
                function(*arguments)
            line = None
        except StudyError as error:
            assert "\n" not in str(error) and str(error).isprintable(), error
            line = one_line(error)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        assert not warned, [str(w.message) for w in warned]
        assert all(text.isprintable() for text in capsys.readouterr().out.splitlines())
        assert line is None or len(line) < 1500
        return line

    return run


JSON = {
    "nothing": b"",
    "half": b'{"a": [1, 2',
    "not text": b"\xff\xfe\x00{}",
    "no JSON": b"{'a': __import__('os').system('true')}",
    "deep": b"[" * 200_000,
    "a list": b"[1, 2]",
    "a number": b"1e999",
    "null": b"null",
    "other keys": b'{"preset": "smoke"}',
    "keys of wrong types": b'{"division": 3, "base": 4, "device": [], "seed": "x", "preset_name": 5, "stage_hash": {}}',
    "a name that climbs": b'{"division": {"hash": "h", "fields": {}, "files": {"../../outside/precious.txt": {"bytes": 4, '
    b'"sha256": "x"}}}, "base": ["../../x"], "seed": -1}',
    "an absolute name": b'{"division": {"hash": "h", "fields": {}, "files": {"/etc/passwd": {"bytes": 4, "sha256": "x"}}}}',
    "a huge number": b'{"seed": ' + b"9" * 5000 + b', "device": 1}',
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_class_divisions(place, call, text):
    (place / "split.json").write_bytes(text)
    line = call(read_division, place / "split.json")
    assert line and "split.json" in line


def test_a_device_or_a_pipe_is_no_json(place, call):
    for path in filter(Path.exists, (Path("/dev/zero"), Path("/dev/random"))):
        assert str(path) in call(read_division, path)
    os.mkfifo(place / "pipe")
    assert "pipe" in call(read_division, place / "pipe")
    assert "inside" in call(read_division, place)


class Runs:
    """A pickle that would leave its mark."""

    def __reduce__(self):
        return (os.system, ("touch precious",))


# images -------------------------------------------------------------------------------------------------------------
def picture(suffix, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return filed(lambda p: Image.fromarray(pixels).save(p, **options), f"a{suffix}")


def png(width, height, data=b""):
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


FORMATS = {s: picture(s) for s in (".png", ".jpg", ".bmp", ".gif", ".ppm", ".tif", ".webp")}
IMAGES = {
    **{f"{s}, {n}": (s, d) for s, data in FORMATS.items() for n, d in truncated(data, 4).items()},
    "a page of text": (".png", b"<html><script>alert(1)</script></html>"),
    "a program": (".png", b"\x7fELF" + bytes(200)),
    "PostScript": (".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(precious) (w) file\n"),
    "a picture of exapixels": (".png", png(2**31 - 1, 2**31 - 1)),
    "a picture of 100 megapixels": (".png", png(10_000, 10_000)),
    "a picture of 150 megapixels": (".bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 15000, 10000, 1, 24,
                                                          0, 0, 0, 0, 0, 0)),
    "a picture of no pixels": (".png", png(0, 0)),
    "a picture without data": (".png", png(24, 24)),
    "a grey map of negative size": (".pgm", b"P5 -3 -3 255\n" + bytes(9)),
    "a pickle": (".png", pickle.dumps(Runs())),
}  # fmt: skip


def tree_of(place, suffix, data):
    folder = place / "tree" / "cat"
    folder.mkdir(parents=True)
    (folder / f"bad{suffix}").write_bytes(data)
    return place / "tree"


@pytest.mark.parametrize(("suffix", "data"), IMAGES.values(), ids=IMAGES)
def test_images(place, call, suffix, data):
    line = call(load_images, "folder", tree_of(place, suffix, data))
    whole = suffix in (".gif", ".jpg", ".webp", ".tif") and line is None
    assert whole or ("cannot read the image" in line and f"bad{suffix}" in line)
    assert not whole or len(data) >= len(FORMATS[suffix]) // 2, "half a picture may be one for its codec, less is none"


@pytest.mark.parametrize(
    ("suffix", "data"), [(s, d) for s, data in FORMATS.items() for d in turned(data, 3).values()]
)  # fmt: skip
def test_images_with_a_bit_turned(place, call, suffix, data):
    line = call(load_images, "folder", tree_of(place, suffix, data))
    assert line is None or f"bad{suffix}" in line


# archives and links -------------------------------------------------------------------------------------------------
def zipped(*entries):
    """A zip archive of (name or ZipInfo, data)."""
    data = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # of a name twice
        for name, content in entries:
            archive.writestr(name, content)
    return data.getvalue()


def link(name, target):
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return entry, target


PNG = FORMATS[".png"]
GOOD = zipped(("cat/a.png", PNG), ("dog/a.png", PNG))
LIES = GOOD.replace(struct.pack("<I", len(PNG)), struct.pack("<I", 2**31))  # of how much there is to unpack
ZIPS = {
    **truncated(GOOD),
    **{
        f"the name {name!r}": zipped((name, PNG), ("cat/a.png", PNG))
        for name in ("../x.png", "a/../../x.png", "/etc/x.png", "C:/x.png", "C:x.png", "a\\..\\x.png", "//host/x.png", "..",
                     "cat/../../outside/x.png")
    },
    "a link that climbs": zipped(link("cat/a.png", "../../outside/precious.txt")),
    "a link to a device": zipped(link("cat/a.png", "/dev/zero")),
    "a name twice": zipped(("cat/a.png", PNG), ("cat/a.png", PNG)),
    "a lie about the size": LIES,
    "a bomb": zipped(("cat/a.png", bytes(2**29))),
    "encrypted": GOOD.replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01").replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    ),
    "an unknown method": GOOD.replace(b"\x14\x00\x00\x00\x08\x00", b"\x14\x00\x00\x00\x63\x00"),
    "no archive": b"hello",
    "a tar": b"cat/a.png" + bytes(503),
    "an archive in it": zipped(("cat/a.zip", GOOD)),
    "nothing in it": zipped(),
}  # fmt: skip


@pytest.mark.parametrize("data", ZIPS.values(), ids=ZIPS)
def test_zip_archives(place, call, data):
    (place / "a.zip").write_bytes(data)
    line = call(load_images, "folder", place / "a.zip")
    assert line and "a.zip" in line


@pytest.mark.parametrize("data", turned(GOOD, 16).values())
def test_zip_archives_with_a_bit_turned(place, call, data):
    (place / "a.zip").write_bytes(data)
    line = call(load_images, "folder", place / "a.zip")
    assert line is None or "a.zip" in line


def test_good_archives_are_read(place, call):
    """The cases above start from archives that are good."""
    (place / "a.zip").write_bytes(GOOD)
    assert call(load_images, "folder", place / "a.zip") is None
