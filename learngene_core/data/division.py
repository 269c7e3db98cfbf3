"""The division of the classes into base, open-world and novel; which images are held out; the source and target tasks.

A division is data: a JSON file that lists the names of the three groups. The published ones come with the package (folder
`splits`), with their source and the super-classes. The 64/16/20 division is the paper's (appendix A.1.2). The paper's prose
says 60 base classes and its table lists 65, one of them twice; without the double entry there are 64.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config, nearest
from ..errors import StudyError, expanded, read_json, say
from ..tasks import ImageSet, SourceTask, TargetTask, numpy_generator
from .names import few, plain

FOLDER = Path(__file__).with_name("splits")
GROUPS = ("base", "open_world", "novel")


def packaged(data: str) -> dict[str, Any]:
    """The manifest of a data source; {} for one that has none."""
    path = FOLDER / f"{data}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def named(division: str) -> dict[str, Any]:
    """The manifest whose standard name a division's name begins with; {} for divisions of other origin."""
    known = (packaged(path.stem) for path in sorted(FOLDER.glob("*.json")))
    return next((m for m in known if division.startswith(m["standard_name"])), {})


def read_division(path: str | Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], str]:
    """Base, open-world and novel class names of a division file, and the division's name.

    Names are made `plain`, as those of class folders are. Raises StudyError for a file that is no division.
    """
    values = read_json(expanded(path), "a division is JSON: the lists base, open_world and novel of class names")
    try:
        groups = [tuple(values[k]) for k in GROUPS]
        if any(isinstance(values[k], str | dict) for k in GROUPS):
            raise TypeError
    except (KeyError, TypeError):
        raise StudyError(f"{path} is no division: it needs the lists base, open_world and novel") from None
    if not all(isinstance(name, str) for group in groups for name in group):
        raise StudyError(f"{path} is no division: class names are strings")
    base, open_world, novel = (tuple(map(plain, group)) for group in groups)
    return base, open_world, novel, plain(str(values.get("standard_name") or values.get("name") or Path(path).name))


@dataclasses.dataclass(frozen=True)
class Division:
    """Disjoint tuples of class names. Raises StudyError where a class is listed twice."""

    base: tuple[str, ...]
    open_world: tuple[str, ...]
    novel: tuple[str, ...]
    name: str = ""

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for group in ("base", "open_world", "novel"):
            for name in getattr(self, group):
                if name in seen:
                    raise StudyError(f"class {name!r} is in {seen[name]} and again in {group}; a division is disjoint")
                seen[name] = group


def divide(imgs: ImageSet, cfg: Config) -> Division:
    """The class division: from a JSON of the user's (`cfg.split`), from the data's own manifest, or drawn by seed.

    Raises StudyError for a class that is missing from the images, and where images or classes are too few.
    """
    manifest = FOLDER / f"{imgs.name}.json"
    if cfg.split and cfg.split != "seed":
        div = Division(*read_division(cfg.split))
    elif manifest.exists() and not cfg.split:
        div = _without_absent_open_world(Division(*read_division(manifest)), imgs)
    else:
        div = _by_seed(imgs.class_names, cfg)
    div = div if cfg.division_seed < 0 else redrawn(div, cfg.division_seed)
    _check(div, imgs, cfg)
    return div


def redrawn(div: Division, seed: int) -> Division:
    """As many base and novel classes, drawn anew among both; the open-world classes stay, since rates were tuned on them."""
    rng, names = numpy_generator(seed, "redrawn division"), sorted(div.base + div.novel)
    order = [names[i] for i in rng.permutation(len(names))]
    base, novel = order[: len(div.base)], order[len(div.base) :]
    return Division(tuple(sorted(base)), div.open_world, tuple(sorted(novel)), f"{div.name} Redrawn by seed {seed}.")


def _without_absent_open_world(div: Division, imgs: ImageSet) -> Division:
    """The division, its open-world list empty (and said) where the images hold none: the released layout has none.

    What needs open-world classes then refuses by itself; a list of which only some are there is an error of `_check`.
    """
    if set(div.open_world) & set(imgs.class_names) or not set(div.base) & set(imgs.class_names):
        return div
    say("division: the images hold no open-world class; tuning and open-world recognition cannot run on them")
    return dataclasses.replace(div, open_world=(), name=f"{div.name} The open-world classes are absent.")


def _by_seed(names: tuple[str, ...], cfg: Config) -> Division:
    """64 : 16 : 20 by a seeded permutation, with at least five novel classes (the paper's 5-way tasks)."""
    if len(names) < 11:
        raise StudyError(f"{len(names)} classes are too few to divide by seed: 11 are needed, 5 of them novel")
    order = numpy_generator(cfg.seed, "division").permutation(len(names))
    n_novel = max(5, round(0.20 * len(names)))
    n_open = max(1, round(0.16 * len(names)))
    n_base = len(names) - n_open - n_novel
    parts = np.split(order, [n_base, n_base + n_open])
    return Division(
        *(tuple(names[i] for i in sorted(part)) for part in parts),
        name=f"{n_base}/{n_open}/{n_novel} by seed {cfg.seed}",
    )


def _check(div: Division, imgs: ImageSet, cfg: Config) -> None:
    for group in ("base", "open_world", "novel"):
        missing = [n for n in getattr(div, group) if n not in imgs.class_names]
        if missing:
            raise StudyError(
                f"{len(missing)} {group} classes of the division are not in the images: {few(missing)}"
                f"{nearest(missing[0].strip().casefold(), imgs.class_names)}"
            )
    if len(div.novel) < cfg.n_way:
        raise StudyError(f"n_way = {cfg.n_way}, but the division has {len(div.novel)} novel classes")
    if len(div.base) < cfg.source_way:
        raise StudyError(f"source_way = {cfg.source_way}, but the division has {len(div.base)} base classes")


def parts(imgs: ImageSet, name: str, n_train: int, n_held_out: int, cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """At most `n_train` training and `n_held_out` held-out image indices of one class, in a seeded order; 0: all there are.

    An official test split is the held-out part; a class without one is parted by the seed (the base classes of the
    released layout, most folders), a third at the most going to the held-out part where there are few images.

    Raises StudyError when the class has fewer than two training or two held-out images.
    """
    rng = numpy_generator(cfg.seed, "images", name)
    if imgs.held_out is not None and len(imgs.of_class(name, held_out=True)):
        train, held = (rng.permutation(imgs.of_class(name, held_out=flag)) for flag in (False, True))
    else:
        everything = rng.permutation(imgs.of_class(name))
        k = n_held_out or len(everything) // 6
        if k + n_train > len(everything) or not n_train:
            k = min(k, len(everything) // 3)
        held, train = everything[:k], everything[k:]
    train, held = train[: n_train or len(train)], held[: n_held_out or len(held)]
    if len(train) < 2 or len(held) < 2:
        raise StudyError(
            f"class {name!r} has too few images: {len(train)} for training and {len(held)} held out, "
            "at least 2 of each are needed (leave it out with a division of your own, --set split=FILE)"
        )
    return train, held


def source_tasks(imgs: ImageSet, div: Division, cfg: Config) -> list[SourceTask]:
    """The sequence of source tasks. Held-out images of each base class are split in validation and test.

    `disjoint`: each base class in at most one task; `overlap`: classes redrawn per task, as in the released scripts.
    With `official_split` False held-out images are trained on too, as in the released scripts; accuracies of the
    collective then are not held-out accuracies.

    Raises StudyError when disjoint tasks need more base classes than there are.
    """
    cfg = cfg.as_ancestor(len(div.base))
    rng = numpy_generator(cfg.collective_seed, "source tasks")
    if cfg.source_draw == "disjoint":
        if cfg.n_source_tasks * cfg.source_way > len(div.base):
            raise StudyError(
                f"{cfg.n_source_tasks} disjoint source tasks of {cfg.source_way} classes need more than the "
                f"{len(div.base)} base classes; use source_draw=overlap or fewer tasks"
            )
        order = rng.permutation(len(div.base))[: cfg.n_source_tasks * cfg.source_way]
        draws = order.reshape(cfg.n_source_tasks, cfg.source_way)
    elif cfg.source_way > len(div.base):
        raise StudyError(f"source_way = {cfg.source_way}, but the division has {len(div.base)} base classes")
    else:
        draws = np.stack([rng.choice(len(div.base), cfg.source_way, replace=False) for _ in range(cfg.n_source_tasks)])
    tasks, few = [], set()
    for number, draw in enumerate(draws, 1):
        classes = tuple(div.base[i] for i in draw)
        pairs = [parts(imgs, name, cfg.source_images, cfg.held_out_images, cfg) for name in classes]
        few |= {name for name, (train, _) in zip(classes, pairs, strict=True) if len(train) < cfg.source_images}
        held = [np.array_split(held, 2) for _, held in pairs]
        if not cfg.official_split:
            pairs = [(np.concatenate(pair), pair[1]) for pair in pairs]
        tasks.append(
            SourceTask(
                number,
                classes,
                np.concatenate([train for train, _ in pairs]),
                np.concatenate([v for v, _ in held]),
                np.concatenate([t for _, t in held]),
            )
        )
    if few:
        say(f"{len(few)} base classes have fewer than {cfg.source_images} training images; all of theirs are used")
    return tasks


def target_tasks(
    imgs: ImageSet, div: Division, cfg: Config, *, group: str = "novel", n_tasks: int | None = None
) -> list[TargetTask]:
    """Target tasks of novel classes (or pseudo-tasks: `group="open_world"`). Queries are the same for all shots.

    Raises StudyError when the classes or the images per class do not suffice.
    """
    classes = getattr(div, group)
    if len(classes) < cfg.n_way:
        raise StudyError(f"n_way = {cfg.n_way}, but there are {len(classes)} {group} classes")
    tasks = []
    for number in range(1, (n_tasks or cfg.n_target_tasks) + 1):
        rng = numpy_generator(cfg.seed, "target task", group, number, cfg.target_seed)
        chosen = tuple(classes[i] for i in rng.choice(len(classes), cfg.n_way, replace=False))
        pairs = [parts(imgs, name, cfg.support_pool, cfg.query_images, cfg) for name in chosen]
        smallest, name = min((len(pool), name) for (pool, _), name in zip(pairs, chosen, strict=True))
        if max(cfg.shots) > smallest:
            raise StudyError(
                f"shots = {max(cfg.shots)}, but {group} class {name!r} has a support pool of {smallest} images"
            )
        support = np.stack([rng.permutation(pool)[: max(cfg.shots)] for pool, _ in pairs])
        n_query = min(len(query) for _, query in pairs)
        tasks.append(TargetTask(number, chosen, support, np.stack([query[:n_query] for _, query in pairs]), group))
    return tasks


def describe(div: Division) -> str:
    """The division as a person reads it: its standard name and source, then the classes (WordNet ids with their words)."""
    known = named(div.name)
    words = known.get("class_labels", {})
    lines = [f"division: {div.name}"]
    for group in GROUPS:
        names = [f"{n} ({words[n]})" if n in words else n for n in getattr(div, group)]
        lines.append(f"{group:>10} ({len(names)}): {', '.join(names)}")
    if known:
        lines += [f"    source: {known['source']}", f"      note: {known['notes']}"]
    return "\n".join(lines)
