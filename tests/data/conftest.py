"""Shared by the tests of images and divisions."""

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of this test alone."""
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
