"""The open world: does the collective notice what it does not know, and what happens when it learns it?

Known are held-out images of the classes trained so far, unknown those of the open-world classes; base classes to come are in
neither. Test images measure and choose nothing: heads and statistics come from exemplars among the training images, the
threshold from validation images, and what is learned from the stream.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import sklearn.linear_model  # noqa: F401 (its thread pool can be limited only once it is loaded)
import torch
from sklearn import covariance  # noqa: F401 (the same)
from threadpoolctl import threadpool_limits

from ..config import Config
from ..data.division import Division
from ..errors import StudyError, say
from ..execution import use
from ..runs.machine import machine_of
from ..runs.run import Run
from ..tasks import ImageSet, SourceTask
from .learning import SAVED, learn
from .measures import intervals, metrics
from .scores import FEATURE_SCORES
from .views import OpenSets, View, gathered, on_workers, open_sets, view_of

TABLES = tuple(f"openworld{end}.csv" for end in ("", "_heads", "_images", "_learning", "_blocks"))
FILES = (*TABLES, *(f"{folder}/{file}" for folder in SAVED.values() for file in ("model.safetensors", "about.json")))


def measure(view: View, imgs: ImageSet, sets: OpenSets, cfg: Config) -> list[dict]:
    """One row per head and score (feature scores have head "none"): the measures with their 95 % limits over classes."""
    known, labels = gathered(sets.test, view.class_names)
    unknown, strange = gathered(sets.unknown, tuple(sets.unknown))
    features = view.features(imgs, known), view.features(imgs, unknown)
    rows = []
    for head, scorer in view.scorers.items():
        scores = scorer(*features[1])
        for score, (values, named) in scorer(*features[0]).items():
            if score in FEATURE_SCORES and head != "refit":
                continue  # they do not look at the head
            given = values, scores[score][0], named == labels
            limits = intervals(*given, labels, strange, n_resamples=cfg.open_resamples, seed=cfg.seed)
            row = {"task": view.task, "score": score, "head": "none" if score in FEATURE_SCORES else head}
            for name, value in metrics(*given).items():
                row |= {name: value, f"{name}_low": limits[name][0], f"{name}_high": limits[name][1]}
            counts = {"n_known": len(known), "n_unknown": len(unknown)}
            classes = {"known_classes": len(view.class_names), "unknown_classes": len(sets.unknown)}
            rows.append(row | {"closed_accuracy": 100 * float(np.mean(named == labels))} | counts | classes)
    return rows


def image_scores(view: View, imgs: ImageSet, sets: OpenSets, cfg: Config) -> pd.DataFrame:
    """One row per image and its scores after the last task: part (validation, test: known; stream, unknown), image
    (index), class_name, known, predicted (by the head), and a column per score."""
    tables = []
    for part in ("validation", "test", "stream", "unknown"):
        groups = getattr(sets, part)
        names = view.class_names if part in ("validation", "test") else tuple(groups)
        indices, labels = gathered(groups, names)
        found = view.scorers[cfg.open_head](*view.features(imgs, indices))
        columns = {
            "part": part,
            "image": indices,
            "class_name": np.array(names)[labels],
            "known": part in ("validation", "test"),
        }
        predicted = np.array(view.class_names)[found["msp"][1]]
        tables.append(pd.DataFrame({**columns, "predicted": predicted, **{s: v for s, (v, _) in found.items()}}))
    return pd.concat(tables, ignore_index=True)


@dataclasses.dataclass(frozen=True)
class OpenWorld:
    """The tables of the open world: scores per task (the chosen head; both heads), images, learning, and blocks."""

    table: pd.DataFrame
    heads: pd.DataFrame
    images: pd.DataFrame
    learning: pd.DataFrame
    blocks: pd.DataFrame


def open_world(imgs: ImageSet, div: Division, src: Sequence[SourceTask], cfg: Config, run: Run) -> OpenWorld:
    """Measure every saved state of the collective on unknown classes, then let the last one learn them.

    Writes (or loads) openworld.csv, openworld_heads.csv, openworld_images.csv, openworld_learning.csv, openworld_blocks.csv
    and the network after learning, openworld/. Needs the finished collective of the run folder and nothing else.

    Raises StudyError without open-world classes, without a finished collective, and for a network that has diverged.
    """
    if run.done("openworld"):
        say("openworld: found in the run folder, loaded")
        return OpenWorld(*(run.read_table(name) for name in TABLES))
    if not run.done("collective"):
        raise StudyError(f"{run.path} holds no finished collective; run `learngene collective` first")
    sets = open_sets(imgs, div, src, cfg)
    with run.computing("openworld", list(FILES)), _one_thread_each(run):
        tables = _computed(imgs, src, sets, cfg, run)
        for name, field in zip(TABLES, dataclasses.fields(tables), strict=True):
            run.write_table(name, getattr(tables, field.name))
    say(f"openworld: {len(src)} states of the collective measured on {len(div.open_world)} open-world classes, saved")
    return tables


def _computed(imgs: ImageSet, src: Sequence[SourceTask], sets: OpenSets, cfg: Config, run: Run) -> OpenWorld:
    last = src[-1].number

    def state(task: int) -> tuple[View | None, list[dict]]:
        view = view_of(run, imgs, sets, task)
        return view if task == last else None, measure(view, imgs, sets, cfg)

    def done(k: int) -> None:
        run.progress("openworld", k, len(src) + 4, f"{k} of {len(src)} states measured")

    jobs = {task.number: functools.partial(state, task.number) for task in reversed(src)}  # the longest first
    states = on_workers(jobs, run, done=done)
    heads = pd.DataFrame([row for task in src for row in states[task.number][1]])
    view = states[last][0]
    learning, blocks = learn(view, imgs, sets, cfg, run)
    chosen = heads[heads["head"].isin([cfg.open_head, "none"])].reset_index(drop=True)
    return OpenWorld(chosen, heads, image_scores(view, imgs, sets, cfg), learning, blocks)


@contextlib.contextmanager
def _one_thread_each(run: Run) -> Iterator[None]:
    """As many threads for NumPy and scikit-learn as for torch, so that equal machines give equal files."""
    torch.optim.SGD([torch.zeros(1)])  # the first one loads much that two workers had better not load at once
    machine = machine_of(run)
    use(machine)
    with threadpool_limits(machine.threads):
        yield


def open_world_text(world: OpenWorld) -> str:
    """The scores after the last source task, and what learning the unknown classes gave."""
    last = world.table[world.table["task"] == world.table["task"].max()]
    first = last.iloc[0]
    lines = [f"after task {first['task']}: {first['n_known']} known images of {first['known_classes']} classes, "
             f"{first['n_unknown']} unknown of {first['unknown_classes']}"]  # fmt: skip
    for r in last.itertuples():
        lines.append(f"  {r.score:<12} AUROC {r.auroc:5.1f} ({r.auroc_low:.1f} to {r.auroc_high:.1f}), FPR95 {r.fpr95:5.1f}, "
                     f"OSCR {r.oscr:5.1f}, closed-set accuracy {r.closed_accuracy:5.1f}")  # fmt: skip
    flags = world.learning.iloc[0]
    lines.append(f"flagged of the stream: {flags['flagged_unknown']} unknown images and {flags['false_alarms']} false alarms, "
                 f"{flags['missed_unknown']} missed; accuracy among all classes, old / new / harmonic:")  # fmt: skip
    for r in world.learning.itertuples():
        lines.append(f"  {r.method:<14} {r.old_accuracy:5.1f} / {r.new_accuracy:5.1f} / {r.harmonic_accuracy:5.1f}")
    return "\n".join(lines)
