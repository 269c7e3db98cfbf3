"""Names from outside never reach a terminal or a file as they are: control characters, directions, other spellings."""

import json
import unicodedata

import pytest
from conftest import tiny_tree

from learngene_core.config import Config
from learngene_core.data.division import describe, divide, read_division
from learngene_core.data.images import load_images
from learngene_core.data.names import few, shown
from learngene_core.errors import StudyError

NAMES = {  # of a class folder: what the class is called
    "a colour": ("red\x1b[31m", r"red\x1b[31m"),
    "the other way round": ("right\u202eleft", r"right\u202eleft"),
    "an isolate": ("a\u2066b", r"a\u2066b"),
    "a bell": ("cat\a", r"cat\x07"),
    "a new line": ("cat\ndog", r"cat\ndog"),
    "a line of Unicode": ("cat\u2028dog", r"cat\u2028dog"),
    "a carriage return": ("cat\rdog", r"cat\rdog"),
    "an 8-bit escape": ("cat\x9b31m", r"cat\x9b31m"),
    "no width": ("c\u200bat", r"c\u200bat"),
    "a mark of order": ("\ufeffcat", r"\ufeffcat"),
    "deleted": ("cat\x7f", r"cat\x7f"),
    "an accent apart": ("cafe\u0301", "caf\u00e9"),
    "Persian with its joiner": ("می\u200cخواهم", "می\u200cخواهم"),
    "an emoji of several": ("👩\u200d🔬", "👩\u200d🔬"),
    "Korean": ("사과", "사과"),
    "Thai": ("แอปเปิล", "แอปเปิล"),
    "Arabic": ("تفاحة", "تفاحة"),
    "spaces": ("a  b\u00a0c", "a  b\u00a0c"),
    "a backslash": ("a\\b", "a\\b"),
    "NA": ("NA", "NA"),
    "quotes": ('it\'s "a"', 'it\'s "a"'),
}


@pytest.mark.parametrize(("folder", "name"), NAMES.values(), ids=NAMES)
def test_a_class_is_called_by_a_name_that_can_be_printed(tmp_path, capsys, folder, name):
    tiny_tree(tmp_path / "tree", [folder, *(f"c{i:02d}" for i in range(11))], 4, 8)
    imgs = load_images("folder", tmp_path / "tree", image_size=8)
    assert unicodedata.normalize("NFC", name) in imgs.class_names and len(imgs.class_names) == 12
    div = divide(imgs, Config(data="folder", source_way=2))
    said = capsys.readouterr().out + describe(div)
    assert not any(unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\u200c\u200d" for c in said)
    if folder in ("cat\ndog", "cat\rdog", "cat\u2028dog"):
        assert not any(line.startswith("dog") for line in said.splitlines())
    groups = {
        "base": [f"c{i:02d}" for i in range(5)],
        "open_world": ["c05"],
        "novel": [folder, "c06", "c07", "c08", "c09"],
    }
    (tmp_path / "mine.json").write_text(json.dumps(groups))  # a division names the folder as it is
    assert name in divide(imgs, Config(data="folder", source_way=2, split=str(tmp_path / "mine.json"))).novel


def test_the_name_of_a_division_can_be_printed(tmp_path):
    (tmp_path / "mine.json").write_text(
        json.dumps({"base": ["a"], "open_world": [], "novel": ["b"], "name": "x\x1b[2J"})
    )
    assert read_division(tmp_path / "mine.json")[3] == r"x\x1b[2J"


@pytest.mark.parametrize(
    "twins", [("caf\u00e9", "cafe\u0301"), ("a\x1b", r"a\x1b"), ("\u1e69", "s\u0323\u0307"), ("\u212b", "\u00c5")]
)
def test_two_folders_that_become_one_class_are_said_with_both_spellings(tmp_path, twins):
    tiny_tree(tmp_path, [*twins, "b"], 2, 8)
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system takes them for one")
    with pytest.raises(StudyError, match="two class folders in .* are both called") as refusal:
        load_images("folder", tmp_path, image_size=8)
    assert all(ascii(name) in str(refusal.value) for name in twins) and str(refusal.value).isprintable()


def test_training_and_test_images_may_spell_a_class_in_two_forms(tmp_path):
    """The training folder was packed on one system, the test folder on another; there is one class, and nothing is lost."""
    tiny_tree(tmp_path / "train", ["caf\u00e9", "b"], 2, 8)
    tiny_tree(tmp_path / "test", ["cafe\u0301", "b"], 1, 8)
    imgs = load_images("folder", tmp_path, image_size=8)
    assert (imgs.class_names, imgs.held_out.tolist()) == (("b", "caf\u00e9"), [False, False, True] * 2)


@pytest.mark.parametrize("place", ["a class folder", "the image", "the folder above"])
def test_names_in_errors_can_be_printed(tmp_path, place):
    bad = "x\x1b]0;title\a"
    root = tmp_path / (bad if place == "the folder above" else "tree")
    folder = root / (bad if place == "a class folder" else "a")
    folder.mkdir(parents=True)
    (folder / f"{bad if place == 'the image' else 'y'}.png").write_bytes(b"no image")
    with pytest.raises(StudyError) as refusal:
        load_images("folder", root, image_size=8)
    assert str(refusal.value).isprintable() and r"x\x1b]0;title\x07" in str(refusal.value)


def test_many_names_are_cut_and_counted():
    assert few(["a", "b\t", *"cdefg"], 3) == r"a, b\t, c and 4 more"
    assert shown("\udce9") == r"\udce9"
