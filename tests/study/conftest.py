"""Shared by the tests of the study room: grid files."""

from pathlib import Path

import pytest


@pytest.fixture
def written(tmp_path):
    """Write a grid file; returns its path."""

    def write(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
