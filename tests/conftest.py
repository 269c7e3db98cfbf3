"""Shared by all tests: one thread, one image cache, the glyphs, and one finished run of the `smoke` preset."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported anywhere

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from PIL import Image

from learngene_core.config import Config
from learngene_core.data.images import load_images
from learngene_core.runs.run import Run
from learngene_core.study.chain import Chain
from learngene_core.study.cli import main
from learngene_core.tasks import ImageSet

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """shared(name, make): the folder that `make(folder)` fills, made once for all processes of a test run. Read only."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # that of this test run, whichever process asks

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path = base / "shared" / name
        path.parent.mkdir(exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if not path.exists():
                new = path.with_name(f"{name}.new")
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
                make(new)
                new.rename(path)
        return path

    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(shared):
    """Decoded images go to a folder of this test run, unless the caller has named one."""
    mine = "LEARNGENE_CACHE" not in os.environ
    if mine:
        os.environ["LEARNGENE_CACHE"] = str(shared("cache", lambda folder: None))
    yield
    if mine:
        os.environ.pop("LEARNGENE_CACHE")


@pytest.fixture(scope="session")
def glyph_images() -> ImageSet:
    """The embedded data."""
    return load_images("glyphs")


@pytest.fixture(scope="session")
def smoke_run(shared) -> Path:
    """A finished run folder of preset `smoke`. Read only: a test that changes anything takes `smoke_copy`."""
    return shared("smoke", lambda folder: Chain(Run.open(Config.preset("smoke"), folder)).results)


@pytest.fixture(scope="session")
def judged_run(smoke_run, shared) -> Path:
    """The finished run carried on to its claims by the verb: atlas, open world, controls, measures. Read only."""

    def make(folder: Path) -> None:
        shutil.copytree(smoke_run, folder, dirs_exist_ok=True)
        assert main(["atlas", "--preset", "smoke", "--out", str(folder)]) == 0

    return shared("judged", make)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with another beside it that nobody may touch."""
    for name in ("inside", "outside", "cache", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "precious.txt").write_text("mine")
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "inside"
    assert snapshot(tmp_path / "outside").keys() == {"precious.txt"}
    assert (tmp_path / "outside" / "precious.txt").read_text() == "mine"
    assert not list((tmp_path / "here").iterdir())
    assert {p.name for p in tmp_path.iterdir()} == {"inside", "outside", "cache", "here"}


@pytest.fixture
def style():
    """The project's figure style for one test; no figure stays open behind it."""
    import matplotlib.pyplot as plt  # tests without figures do not wait for it

    from learngene_core.figures.style import use_style

    with plt.rc_context():
        use_style()
        yield
        plt.close("all")


@pytest.fixture
def smoke_copy(smoke_run, tmp_path) -> Path:
    """A copy of the finished run that a test may break."""
    return Path(shutil.copytree(smoke_run, tmp_path / "copy"))


def tiny_tree(
    folder: Path, classes, n: int, size: int | tuple[int, int], suffix: str = ".png", test: int = 0
) -> dict[Path, np.ndarray]:
    """Write an image tree: `folder/<class>/*`, or with `test` > 0 `folder/train/<class>/*` and `folder/test/<class>/*`.

    size: side of the images in pixels, or (height, width). Returns file -> its pixels (height, width, 3) uint8.
    """
    rng = np.random.default_rng(0)
    shape = (size, size) if isinstance(size, int) else size
    written = {}
    for part, count in (("train", n), ("test", test)) if test else (("", n),):
        for name in classes:
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                path = folder / part / name / f"{i:03d}{suffix}"
                written[path] = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
                Image.fromarray(written[path]).save(path)
    return written


def blank_images(names, n: int, *, held_out: int = 0, data: str = "folder") -> ImageSet:
    """An image set of one-pixel images: n training images per class, and `held_out` of an official test split."""
    each = n + held_out
    labels = torch.arange(len(names)).repeat_interleave(each)
    held = (torch.arange(each) >= n).repeat(len(names)) if held_out else None
    return ImageSet(data, torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8), labels, tuple(names), {}, held)


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below `folder` that holds results -> its hash; two equal snapshots mean that nothing was lost."""
    passing = {".lock", ".owner", "progress.json"}
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in passing
    }
