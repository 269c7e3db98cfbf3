"""Execute the committed notebooks again with the lecture preset and keep their outputs: `make notebooks`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from . import notebooks
from .config import Config
from .files import say
from .study import run_study


def refresh() -> None:
    """Run the whole study in a new folder and write the executed, cleaned notebooks over the committed ones.

    One clean run, in order, from nothing: the outputs of one notebook fit those of the next.
    """
    with tempfile.TemporaryDirectory(prefix="learngene-") as folder:
        run = run_study(Config.preset("lecture"), Path(folder, "lecture"))
        for path in notebooks.numbered():
            notebooks.write(notebooks.clean(notebooks.read(run.path / "notebooks" / path.name)), path)
            say(f"{path.name}: executed again")


if __name__ == "__main__":
    refresh()
