"""A grid of parameters: the YAML file that describes a sweep, checked before anything starts, and its points.

A grid file holds a mapping with these keys, all of them optional:

    preset: lecture                  # where every parameter comes from that is not named below (default: lecture)
    parameters: {n_target_tasks: 20} # the same for every point
    product:                         # name: list of values; every combination
      seed: [0, 1, 2]
      shots: [5, 10, 20]
    cases:                           # list of mappings; each of them with every combination of the product
      - {criterion: released, threshold: 5e-4}
      - {layers: [conv1, conv2, conv3]}
    through: reconstruct             # how far each point goes: a key of THROUGH (default: reconstruct)
    notebook: 04                     # instead: a numbered notebook, or the path of one of your own (from the grid file)
    table: results.csv               # table of the run folder whose rows go to sweep.csv (default: that of `through`)

Names are fields of `Config`; a list-valued one (`shots`, `methods`, `layers`) takes a list as one of its values. The file is read
strictly: no alias, no key twice, and numbers as people mean them. Some grids come with the package (`ready`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config import FIELDS, Config, nearest
from ..criteria import check_choice
from ..errors import StudyError, expanded
from ..runs.parameters import number, read_yaml, yaml_loader
from . import notebooks

GRIDS = Path(__file__).with_name("grids")
LARGEST = 1_000_000  # bytes of a grid file


def ready() -> dict[str, Path]:
    """The grids that come with the package, by name."""
    return {path.stem: path for path in sorted(GRIDS.glob("*.yaml"))}


def read_grid(path: Path) -> Any:
    """The value in a grid file. Raises StudyError for a file that is missing, too large, no YAML or has aliases, and
    ValueError for a key that stands twice."""
    if not path.is_file():
        known = ready()
        raise StudyError(f"there is no grid {path}{nearest(path.name, known)}; ready ones are {', '.join(known)}")
    if path.stat().st_size > LARGEST:
        raise StudyError(f"{path} is too large for a grid ({path.stat().st_size:,} bytes)")
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, yaml_loader())
    except UnicodeDecodeError:
        raise StudyError(f"{path} is no text in UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise _no_grid(path, error) from None
    try:
        _refuse_twice(tree, path.name, set())
    except RecursionError as error:
        raise _no_grid(path, error) from None
    try:
        return read_yaml(text)
    except (ValueError, RecursionError) as error:
        raise _no_grid(path, error) from None


def _no_grid(path: Path, error: Exception) -> StudyError:
    text = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
    return StudyError(f"{path} is no grid: {text}")


def _refuse_twice(node: Any, name: str, seen: set[int]) -> None:
    """A key that stands twice would win silently, and an alias can make a short file immense."""
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


KEYS = ("preset", "parameters", "product", "cases", "through", "notebook", "table")
# how far: the number of the notebook that gets there, the last stage, its table
THROUGH = {
    "collective": ("02", "collective", "history.csv"),
    "criteria": ("03", "criteria", "scores.csv"),
    "reconstruct": ("04", "reconstruct", "results.csv"),
    "openworld": ("05", "openworld", "openworld.csv"),
    "atlas": ("06", "claims", "atlas.csv"),
}
WHERE = ("data_path", "split", "skip_corrupt")  # outside the hashes, but decide which images there are
MOST_POINTS = 10_000


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep: the name of its folder, the values in which it differs from others, its configuration."""

    name: str
    values: dict[str, Any]
    cfg: Config


@dataclasses.dataclass(frozen=True)
class Grid:
    """A checked grid. notebook: what each point executes; stage: the last one ("" for a notebook of one's own without
    `through`); table: the file whose rows are gathered; varied: names of the varied parameters, in order."""

    name: str
    notebook: Path
    stage: str
    table: str
    varied: tuple[str, ...]
    points: tuple[Point, ...]


def load_grid(source: str | Path, preset: str = "", changes: Mapping[str, Any] | None = None) -> Grid:
    """The grid in a file, or a ready one by its name. preset, changes: take the place of the file's fixed values.

    Raises StudyError for a file that is missing, unreadable or no grid, and ValueError that names the key or parameter for
    unknown names, wrong types, values out of range, an empty product, and points that ask for the same.
    """
    path = ready().get(str(source), expanded(source))
    values = _mapping(read_grid(path), path)
    name = path.stem
    fixed = {**_named(values.get("parameters", {}), "parameters"), **_named(changes or {}, "the options")}
    product, cases = _product(values.get("product", {})), _cases(values.get("cases", []))
    varied = tuple(dict.fromkeys([*product, *(n for case in cases for n in case)]))
    for parameter in varied:
        if parameter in fixed:
            raise ValueError(f"{name}: {parameter} is varied by the grid; it cannot be fixed as well")
    notebook, stage, table = _target(values, path)
    preset = preset or values.get("preset", "lecture")
    criteria = [fixed.get("criterion"), *product.get("criterion", []), *(case.get("criterion") for case in cases)]
    first = {**(cases[0] if cases else {}), **{n: given[0] for n, given in product.items()}}
    _check_varied(Config.preset(preset, **{**fixed, **first}), varied, stage, name, "recommended" in criteria)
    points = tuple(_points(preset, fixed, product, cases, varied, (notebook.stem, stage), name))
    return Grid(name, notebook, stage, table, varied, points)


def fields(cfg: Config, stage: str) -> dict[str, Any]:
    """What decides the results of a point: the fields its last stage reads; all fields that decide anything without one."""
    if stage:
        return cfg.fields_of(stage)
    return {n: v for n, v in cfg.to_dict().items() if FIELDS[n].metadata["stage"]}


def plain(value: Any) -> Any:
    """A parameter's value for one cell of a table: lists become text, their items joined by '+'."""
    return "+".join(str(v) for v in value) if isinstance(value, list | tuple) else value


# parts of the file -------------------------------------------------------------------------------------------------
def _mapping(values: Any, path: Path) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise StudyError(f"{path} is no grid: it holds no mapping with keys such as product")
    for key in values:
        if key not in KEYS:
            raise ValueError(f"{path.name}: unknown key {key!r}{nearest(key, KEYS)}; there are {', '.join(KEYS)}")
    if not isinstance(values.get("preset", ""), str):
        raise ValueError(f"{path.name}: preset takes a name, not {values['preset']!r}")
    return values


def _named(values: Any, where: str) -> dict[str, Any]:
    """A mapping of parameters, names checked."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} takes a mapping of parameters, not {type(values).__name__}")
    for name in values:
        if name not in FIELDS or name == "preset_name":
            more = "; use the key preset" if name in ("preset", "preset_name") else nearest(name, FIELDS)
            raise ValueError(f"unknown parameter {name!r} in {where}{more}")
        if name == "minutes":
            raise ValueError("minutes has no place in a grid: a point runs to its end")
    return {name: number(value) for name, value in values.items()}


def _product(values: Any) -> dict[str, list[Any]]:
    for name, given in _named(values, "product").items():
        if not isinstance(given, list):
            raise ValueError(f"product: {name} takes a list of values, not {type(given).__name__}")
        if not given:
            raise ValueError(f"product: the list of {name} is empty, so there is no point")
    return _named(values, "product")


def _cases(values: Any) -> list[dict[str, Any]]:
    if not isinstance(values, list):
        raise ValueError(f"cases takes a list of mappings, not {type(values).__name__}")
    return [_named(case, f"cases, entry {i}") for i, case in enumerate(values, 1)]


def _target(values: dict[str, Any], path: Path) -> tuple[Path, str, str]:
    """The notebook that each point executes, the last stage and the table."""
    through, number_or_path = values.get("through"), values.get("notebook")
    if through is not None and through not in THROUGH:
        raise ValueError(
            f"{path.name}: unknown through {through!r}{nearest(through, THROUGH)}; there are {', '.join(THROUGH)}"
        )
    if number_or_path is None:
        through = through or "reconstruct"
        notebook = notebooks.numbered(f"{THROUGH[through][0]}_*.ipynb")[0]
    else:
        notebook = _notebook(number_or_path, path)
        numbers = {digits: name for name, (digits, _, _) in THROUGH.items()}
        if notebook.parent == notebooks.folder():
            through = through or numbers.get(notebook.name[:2])
    notebooks.checked_parameters(notebook, {})
    table = values.get("table", THROUGH[through][2] if through else "")
    if not isinstance(table, str) or not re.fullmatch(r"\w[\w.-]*\.csv", table):
        raise ValueError(f"{path.name}: table takes the name of a CSV file of the run folder, not {table!r}")
    return notebook, THROUGH[through][1] if through else "", table


def _notebook(value: Any, path: Path) -> Path:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(f"{path.name}: notebook takes a number or a path, not {value!r}")
    if str(value).isdigit():
        found = {int(p.name[:2]): p for p in notebooks.numbered("[0-9][0-9]_*.ipynb")}
        if int(value) not in found:
            raise ValueError(f"{path.name}: there is no notebook {value}; there are {', '.join(map(str, found))}")
        return found[int(value)]
    own = (path.parent / str(value)).absolute()
    if not own.is_file():
        raise StudyError(f"{path.name}: there is no notebook {own}")
    return own


# points -------------------------------------------------------------------------------------------------------------
def _check_varied(base: Config, varied: tuple[str, ...], stage: str, name: str, recommended: bool) -> None:
    """A parameter that no result hangs on would give the same rows under different names. recommended: somewhere the atlas
    chooses the learngene, so that its fields count too."""
    known = {*fields(base, stage), *WHERE, "defects"}
    if recommended:
        known |= set(fields(base.replace(criterion="recommended", layers=()), stage))
    for parameter in varied:
        if parameter not in known:
            where = FIELDS[parameter].metadata["stage"]
            told = f"stage {where.split()[0]} reads it" if where else "it decides no result"
            raise ValueError(f"{name}: varying {parameter} changes nothing through stage {stage or 'any'}: {told}")


def _points(
    preset: str,
    fixed: dict[str, Any],
    product: dict[str, list[Any]],
    cases: list[dict[str, Any]],
    varied: tuple[str, ...],
    target: tuple[str, str],
    name: str,
) -> Iterator[Point]:
    """Every case with every combination, in order. Raises ValueError for a bad value, and for two points that are one."""
    total = max(1, len(cases)) * math.prod(len(given) for given in product.values())
    if total > MOST_POINTS:
        raise ValueError(f"{name} has {total:,} points; a sweep takes {MOST_POINTS:,} at most")
    fixed = {"workers": 1, "threads": 1, **fixed}  # a worker of the sweep is one thread; neither changes a result
    before: dict[str, int] = {}
    for i, (case, *values) in enumerate(itertools.product(cases or [{}], *product.values()), 1):
        given = {**dict(zip(product, values, strict=True)), **case}
        if twice := set(product) & set(case):
            raise ValueError(f"{name}: {sorted(twice)[0]} stands in product and in a case")
        cfg = _absolute(Config.preset(preset, **fixed, **given))
        point = Point(_folder(cfg, varied, given, target), {n: getattr(cfg, n) for n in varied}, cfg)
        _check_choice(cfg, target[1])
        if (same := before.setdefault(point.name.rsplit("_", 1)[-1], i)) != i:
            raise ValueError(f"{name}: points {same} and {i} ask for the same ({_label(given) or 'nothing varied'})")
        yield point


def _check_choice(cfg: Config, stage: str) -> None:
    """Criterion and layers, where the point chooses by them. Raises StudyError for unknown names."""
    if (
        "criterion" in fields(cfg, stage) and not cfg.deepen_before
    ):  # names of inserted blocks are known only afterwards
        check_choice(cfg, [f"conv{i}" for i in range(1, len(cfg.final_widths) + 1)])


def _absolute(cfg: Config) -> Config:
    """Paths from here: workers have working folders of their own."""
    changes = {
        n: str(expanded(v).absolute())
        for n in ("data_path", "split")
        if (v := getattr(cfg, n)) and v not in ("download", "seed")
    }
    return cfg.replace(**changes) if changes else cfg


def _folder(cfg: Config, varied: tuple[str, ...], given: dict[str, Any], target: tuple[str, str]) -> str:
    """Readable, and unique by 8 hexadecimal digits over what decides the point's results."""
    paths = {n: getattr(cfg, n) for n in WHERE if n in varied}
    about = json.dumps([target, fields(cfg, target[1]), paths], sort_keys=True)
    return f"{_label(given) or 'point'}_{hashlib.sha256(about.encode()).hexdigest()[:8]}"


def _label(given: dict[str, Any]) -> str:
    words = (f"{n}-{plain(v):g}" if isinstance(v, float) else f"{n}-{plain(v)}" for n, v in given.items())
    return re.sub(r"[^\w.+-]+", ".", "_".join(words))[:80]
