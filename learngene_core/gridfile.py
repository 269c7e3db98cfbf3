"""Grid files: plain YAML, read safely and strictly; and the ready grids that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .checking import nearest
from .files import StudyError

GRIDS = Path(__file__).with_name("grids")
LARGEST = 1_000_000  # bytes of a grid file


def ready() -> dict[str, Path]:
    """The grids that come with the package, by name."""
    return {path.stem: path for path in sorted(GRIDS.glob("*.yaml"))}


def read_grid(path: Path) -> Any:
    """The value in a grid file. Raises StudyError for a file that is missing, too large, no YAML or has aliases, and
    ValueError for a key that stands twice."""
    import yaml

    if not path.is_file():
        known = ready()
        raise StudyError(f"there is no grid {path}{nearest(path.name, known)}; ready ones are {', '.join(known)}")
    if path.stat().st_size > LARGEST:
        raise StudyError(f"{path} is too large for a grid ({path.stat().st_size:,} bytes)")
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_twice(yaml.compose(text, yaml.SafeLoader), path.name, set())
        return yaml.safe_load(text)
    except UnicodeDecodeError:
        raise StudyError(f"{path} is no text in UTF-8") from None
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is no grid: {' '.join(str(error).split())[:200]}") from None
    except RecursionError:
        raise StudyError(f"{path} is no grid: it is nested too deeply") from None


def _refuse_twice(node: Any, name: str, seen: set[int]) -> None:
    """A key that stands twice would win silently, and an alias can make a short file immense."""
    import yaml

    if isinstance(node, yaml.CollectionNode):
        if id(node) in seen:
            raise StudyError(f"{name}: anchors and aliases have no place in a grid")
        seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{name}: {key!r} stands twice")
        for pair in node.value:
            for part in pair:
                _refuse_twice(part, name, seen)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _refuse_twice(part, name, seen)
