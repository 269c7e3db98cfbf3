"""From an image file to its pixels: colour modes, depths, sizes, orientations, damaged files; every pixel is the right one."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import tiny_tree
from PIL import Image

from learngene_core.data import decoding
from learngene_core.data import images as sources
from learngene_core.data.images import load_images
from learngene_core.errors import StudyError


def one_image(folder, image, name="x.png"):
    (folder / "class").mkdir(parents=True, exist_ok=True)
    image.save(folder / "class" / name)
    return load_images("folder", folder, image_size=8).images[0].permute(1, 2, 0).numpy()


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (8, 8), np.uint8), rng.integers(0, 256, (8, 8, 3), np.uint8)
    opaque = np.dstack([colour, np.full((8, 8), 255, np.uint8)])
    palette = Image.fromarray(rng.integers(0, 4, (8, 8), np.uint8), "P")
    palette.putpalette([1, 2, 3, 50, 60, 70, 200, 0, 0, 9, 255, 4])
    table = np.array([[1, 2, 3], [50, 60, 70], [200, 0, 0], [9, 255, 4]])
    assert np.array_equal(one_image(tmp_path / "l", Image.fromarray(grey)), np.dstack([grey] * 3))
    assert np.array_equal(one_image(tmp_path / "a", Image.fromarray(opaque)), colour)
    assert np.array_equal(one_image(tmp_path / "p", palette), table[np.asarray(palette)])
    assert np.array_equal(one_image(tmp_path / "b", Image.fromarray(grey > 99)), np.dstack([(grey > 99) * 255] * 3))


def test_16_bit_grey_is_scaled_not_clipped_to_white(tmp_path):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    seen = one_image(tmp_path, Image.fromarray(deep)).astype(int)
    assert np.abs(seen - (deep // 257)[..., None]).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(30, 20), (20, 33), (5, 5), (4, 9), (64, 64), (1, 40)])
def test_other_sizes_fill_the_square_from_the_middle(tmp_path, height, width):
    """Red rises to the right, green downwards, so a pixel's colour says where in the original it comes from."""
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)[None]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    seen = one_image(tmp_path, Image.fromarray(ramp)).astype(float)
    assert seen.shape == (8, 8, 3)
    short = min(height, width)
    # the centre of output pixel i, as a share of the side it was cut from
    places = [((side - short) / 2 + (np.arange(8) + 0.5) * short / 8) / side for side in (width, height)]
    inner = slice(1, 7)  # the outermost pixels mix with the repeated edge
    for channel, (place, axis) in enumerate(zip(places, (0, 1), strict=True)):
        side = (width, height)[channel]
        if side > 1:
            wanted = (place * side - 0.5).clip(0, side - 1) / (side - 1) * 255
            assert np.abs(seen[inner, inner, channel].mean(axis) - wanted[inner]).max() < 255 / 8


def png(size):
    data = io.BytesIO()
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"this is text", png(8)[:40], png(64)[:-30], b"\x89PNG\r\n\x1a\n" + bytes(50), b"BM" + bytes(60)],
    ids=["empty", "text", "header only", "truncated", "broken chunk", "broken bitmap"],
)
def test_unreadable_image_is_named(tmp_path, data):
    tiny_tree(tmp_path, ["a"], 2, 8)
    (tmp_path / "a" / "broken.png").write_bytes(data)
    with pytest.raises(StudyError, match=r"broken\.png"):
        load_images("folder", tmp_path, image_size=8)


def test_image_that_pillow_takes_for_a_bomb_is_named(tmp_path, monkeypatch):
    """A damaged header often claims an enormous size."""
    tiny_tree(tmp_path, ["a"], 1, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(StudyError, match=r"000\.png"):
        load_images("folder", tmp_path, image_size=8)


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
        "deep.tif": Image.fromarray(np.full((8, 8), 40_000, np.uint16)),
        "cmyk.jpg": Image.fromarray(np.full((8, 8, 4), 128, np.uint8), "CMYK"),
        "wide.png": Image.fromarray(rng.integers(0, 256, (8, 20, 3), np.uint8)),
    }
    for name, image in images.items():
        image.save(folder / name)
    return sorted(images)


def test_odd_images_are_converted_and_said_once_in_one_line(tmp_path, capsys):
    names = save_odd_images(tmp_path / "a")
    imgs = load_images("folder", tmp_path, image_size=8)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if ": converted" in line]
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


INSTEAD = {  # what stands under the name of an image: what is said of it
    "nothing": (b"", "the file is empty"),
    "spaces": (b" \n" * 9, "the file is empty"),
    "a pointer of Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "git lfs pull",
    ),
    "a web page": (b"<!DOCTYPE html><html><body>404 Not Found", "web page"),
    "a web page with a head": (b"\n <HTML lang=en>Sign in to download", "web page"),
    "HEIC of a phone": (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC or AVIF; save it as PNG or JPEG"),
    "AVIF": (b"\0\0\0\x20ftypavif" + bytes(40), "HEIC or AVIF"),
    "a drawing": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "a drawing (SVG)"),
    "a document": (b"%PDF-1.7\n%\xe2\xe3", "a document"),
    "an archive": (b"PK\x03\x04" + bytes(40), "an archive; unpack it"),
    "noise": (b"\x8f" * 99, "cannot identify"),
}


@pytest.mark.parametrize(("data", "text"), INSTEAD.values(), ids=INSTEAD)
def test_what_stands_in_an_images_place_is_said(tmp_path, data, text):
    tiny_tree(tmp_path, ["a"], 1, 8)
    (tmp_path / "a" / "x.jpg").write_bytes(data)
    with pytest.raises(StudyError, match=r"a/x\.jpg: ") as refusal:
        load_images("folder", tmp_path, image_size=8)
    assert text in str(refusal.value) and "\n" not in str(refusal.value)
    assert len(load_images("folder", tmp_path, image_size=8, skip_corrupt=True)) == 1


def saved(picture, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


RED, OTHER = Image.new("RGB", (8, 8), (200, 30, 60)), Image.new("RGB", (9, 9), "blue")
FIRST = {"save_all": True, "append_images": [OTHER.resize((8, 8))]}
FORMS = {  # of one red picture, as programs save it
    "CMYK": lambda p: saved(RED.convert("CMYK"), p.with_suffix(".tif")),
    "YCbCr": lambda p: saved(RED.convert("YCbCr"), p.with_suffix(".tif")),
    "an animated PNG": lambda p: saved(RED, p.with_suffix(".png"), **FIRST),
    "an animated WebP": lambda p: saved(RED, p.with_suffix(".webp"), lossless=True, **FIRST),
    "an animated GIF": lambda p: saved(RED, p.with_suffix(".gif"), **FIRST),
    "several pages": lambda p: saved(RED, p.with_suffix(".tif"), save_all=True, append_images=[OTHER]),
    "a name of Windows": lambda p: saved(RED.resize((8, 8)), p.with_suffix(".BMP"), format="BMP"),
    "jfif": lambda p: saved(RED, p.with_suffix(".jfif"), format="PNG"),
    "JPE": lambda p: saved(RED, p.with_suffix(".JPE"), format="PNG"),
    "a line in its name": lambda p: saved(RED, p.with_name("x\ny.png")),
    "a name that is no text": lambda p: saved(RED, p.with_name("caf\udce9.png")),
    "a name of 250 bytes": lambda p: saved(RED, p.with_name("x" * 246 + ".png")),
}


@pytest.mark.parametrize("save", FORMS.values(), ids=FORMS)
def test_a_picture_has_its_pixels_whatever_it_is_saved_as(tmp_path, save):
    save(tmp_path / "a" / "x")
    (image,) = load_images("folder", tmp_path, image_size=8).images
    assert (image.permute(1, 2, 0) - torch.tensor([200.0, 30.0, 60.0])).abs().max() <= 2  # YCbCr rounds


def deep_png(kind, channels):
    """An 8 x 8 PNG of 16 bits per channel, which PIL reads but does not write; its upper bytes."""
    values = (np.arange(64 * channels) * 300 % 2**16).astype(">u2").reshape(8, -1)
    lines = b"".join(b"\0" + line.tobytes() for line in values)
    parts = {b"IHDR": struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0), b"IDAT": zlib.compress(lines), b"IEND": b""}
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks), (values >> 8).astype(int).reshape(8, 8, channels)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2)], ids=["RGB", "RGBA", "LA"])
def test_colours_of_16_bits_keep_their_upper_ones(tmp_path, kind, channels):
    data, upper = deep_png(kind, channels)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(data)
    seen = load_images("folder", tmp_path, image_size=8).images[0].permute(1, 2, 0).numpy().astype(int)
    colour, alpha = (upper, 255) if channels == 3 else (upper[..., :-1], upper[..., -1:])
    assert np.abs(seen - (colour * alpha + 255 * (255 - alpha)) / 255).max() <= 1


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
    with pytest.raises(StudyError, match=r"x\.png: it is a document"):
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


# what cameras, scanners and microscopes write ------------------------------------------------------------------------
def from_below(turn, picture):
    """The picture as a camera held in another way stores it: `turn` is what makes it upright again."""
    back = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    return picture.transpose(back.get(turn, turn))


UPRIGHT = {  # value of the EXIF tag: what makes the stored picture upright, by the standard's own words
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
    9: None,
    0: None,
}


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".jpg"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_picture_is_turned_as_its_exif_says(tmp_path, orientation, suffix):
    corners = np.zeros((16, 16, 3), np.uint8)  # each quarter has its own colour
    corners[:8, :8], corners[:8, 8:], corners[8:, :8] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    picture, turn, exif = Image.fromarray(corners), UPRIGHT[orientation], Image.Exif()
    exif[274] = orientation
    (tmp_path / "a").mkdir()
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    stored = from_below(turn, picture) if turn is not None else picture
    stored.save(tmp_path / "a" / f"x{suffix}", exif=exif, **options)
    seen = load_images("folder", tmp_path, image_size=16).images[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(seen - corners).max() <= (6 if suffix == ".jpg" else 0)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(30)]
)
def test_damaged_exif_data_leave_the_picture_as_it_is(tmp_path, exif, recwarn):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "x.webp", lossless=True, exif=exif)
    picture.save(tmp_path / "a" / "y.png", exif=exif)
    for seen in load_images("folder", tmp_path, image_size=8).images:
        assert np.array_equal(seen.permute(1, 2, 0).numpy(), np.asarray(picture))
    assert not recwarn.list


def test_a_turned_picture_of_16_bits_is_turned_and_scaled(tmp_path):
    deep, exif = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000, Image.Exif()
    exif[274] = 3
    seen = one_image_with(tmp_path, Image.fromarray(deep[::-1, ::-1].copy()), exif)
    assert np.array_equal(seen[..., 0], deep >> 8)


def one_image_with(folder, image, exif):
    (folder / "class").mkdir(parents=True, exist_ok=True)
    image.save(folder / "class" / "x.png", exif=exif)
    return load_images("folder", folder, image_size=8).images[0].permute(1, 2, 0).numpy()


RAMP = np.linspace(0, 1, 64).reshape(8, 8)
DEEP = {  # pixels that PIL writes as they are: what is seen, or None where nobody knows how bright they are meant to be
    "int32, small": ((RAMP * 255).astype(np.int32), ".tiff", None),
    "int32, up to 16 bits": ((RAMP * 65535).astype(np.int32), ".tif", None),
    "int32, large": ((RAMP * 2**31 - 1).clip(0).astype(np.int32), ".tif", None),
    "int32, negative": ((RAMP * 100 - 50).astype(np.int32), ".tif", None),
    "float, 0 to 1": (RAMP.astype(np.float32), ".tif", None),
    "float, 0 to 255": ((RAMP * 255).astype(np.float32), ".tif", None),
    "uint16 png": ((RAMP * 65535).astype(np.uint16), ".png", (RAMP * 65535).astype(int) >> 8),
    "uint16 tif": ((RAMP * 65535).astype(np.uint16), ".tif", (RAMP * 65535).astype(int) >> 8),
    "uint16 pgm": ((RAMP * 65535).astype(np.uint16), ".pgm", (RAMP * 65535).astype(int) >> 8),
    "uint8": ((RAMP * 255).astype(np.uint8), ".tif", (RAMP * 255).astype(int)),
    "bits": (RAMP > 0.5, ".tif", (RAMP > 0.5) * 255),
}


@pytest.mark.parametrize(("pixels", "suffix", "wanted"), DEEP.values(), ids=DEEP)
def test_deep_pixels_are_scaled_by_their_known_range_or_refused(tmp_path, pixels, suffix, wanted):
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / f"x{suffix}")
    if wanted is None:
        with pytest.raises(StudyError, match=r"a/x\.tiff?: its 32-bit pixels have no known range; save it with 8 bits"):
            load_images("folder", tmp_path, image_size=8)
    else:
        seen = load_images("folder", tmp_path, image_size=8).images[0].permute(1, 2, 0).numpy()
        assert np.array_equal(seen, np.dstack([wanted] * 3))


def tiff(bits, data, size=8, signed=False):
    """A grey TIFF of a depth that PIL reads but does not write."""
    tags = [
        (256, size),
        (257, size),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, size),
        (279, len(data)),
        (339, 2 if signed else 1),
    ]
    data += bytes(len(data) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_12_bits_are_scaled_as_12_bits(tmp_path):
    """In 16 bits they would be nearly black."""
    values = (RAMP * 4095).astype(int)
    pairs = values.reshape(-1, 2)
    data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.tif").write_bytes(tiff(12, data))
    seen = load_images("folder", tmp_path, image_size=8).images[0].numpy()
    assert np.array_equal(seen, np.stack([values >> 4] * 3))


def test_signed_16_bits_have_no_known_range(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.tif").write_bytes(tiff(16, np.arange(-32, 32, dtype="<i2").tobytes(), signed=True))
    with pytest.raises(StudyError, match="no known range"):
        load_images("folder", tmp_path, image_size=8)
