"""What can be known of a study before its first kernel starts, in a fraction of a second."""

from __future__ import annotations

from pathlib import Path

from .config import Config
from .files import StudyError


def check_data(cfg: Config) -> None:
    """Look whether the images are where `data_path` says; none is read.

    Raises StudyError when there is no path, no folder or archive, or no class folders in it.
    """
    if cfg.data == "glyphs":
        return
    from . import cifar
    from .layouts import find_layout
    from .manifests import GROUPS, packaged
    from .sources import HINTS
    from .trees import open_tree

    if not cfg.data_path:
        download = f", or `--data-path {cifar.DOWNLOAD}` to fetch it" if cfg.data == "cifar100" else ""
        raise StudyError(f"data {cfg.data!r} needs --data-path, the folder that holds its images{download}")
    path = Path(cfg.data_path).expanduser()
    if cfg.data == "cifar100" and (cfg.data_path == cifar.DOWNLOAD or cifar.root_of(path)):
        return
    manifest, tree = packaged(cfg.data), open_tree(path)
    wanted = frozenset(name for group in GROUPS for name in manifest.get(group, ()))
    if find_layout(tree, HINTS.get(cfg.data, ()), wanted) is None:
        what = f"none of the classes of {cfg.data}" if wanted else "no images in class folders"
        raise StudyError(f"{tree.where} holds {what}; give the folder that holds its class folders as --data-path")
