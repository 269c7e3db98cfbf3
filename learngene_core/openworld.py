"""The open world: does the collective notice what it does not know, and what happens when it learns it?

Known are held-out images of the classes trained so far, unknown those of the open-world classes; base classes to come are in
neither. Test images measure and choose nothing: heads and statistics come from exemplars among the training images, the
threshold from validation images, and what is learned from the stream.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .checkpoints import load_state
from .config import Config
from .division import Division, SourceTask, parts
from .files import StudyError, say
from .images import ImageSet
from .network import ConvNet
from .opensets import intervals, metrics
from .runs import Run
from .scores import FEATURE_SCORES, Head, Scorer, refit_head
from .training import predict

HEADS = ("refit", "own")
FILES = ("openworld.csv", "openworld_heads.csv", "openworld_images.csv", "openworld_learning.csv", "openworld_blocks.csv",
         "openworld/model.safetensors", "openworld/about.json")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OpenSets:
    """Image indices per class, base classes: exemplars, validation, test; open-world classes: stream, unknown (test)."""

    exemplars: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    stream: dict[str, np.ndarray]
    unknown: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class View:
    """The collective after one task: network, class names of its outputs, normalisation, and one scorer per head."""

    task: int
    model: ConvNet
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    scorers: dict[str, Scorer]
    seen: dict[bytes, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)  # features had before

    def features(self, imgs: ImageSet, indices: np.ndarray) -> np.ndarray:
        """What the last linear layer sees (n, d), of images with these indices (n,); evaluation mode."""
        key = indices.tobytes()
        if key not in self.seen:
            self.seen[key] = penultimate(self.model, imgs.images[torch.from_numpy(indices)], self.mean, self.std)
        return self.seen[key]


def open_sets(imgs: ImageSet, div: Division, src: Sequence[SourceTask], cfg: Config) -> OpenSets:
    """The images of the open-world study.

    Raises StudyError without open-world classes, or where a base class has no held-out image left for a part.
    """
    if not div.open_world:
        raise StudyError(
            "the division has no open-world class, so nothing is unknown; the open world needs at least one (--set split=FILE)"
        )
    labels = imgs.labels.numpy()
    base: tuple[dict[str, np.ndarray], ...] = ({}, {}, {})
    for task in src:
        for name in task.classes:
            own = imgs.class_names.index(name)
            for found, indices in zip(base, (task.train, task.validation, task.test), strict=True):
                found[name] = indices[labels[indices] == own]
                if not len(found[name]):
                    raise StudyError(
                        f"base class {name!r} has too few held-out images; set held_out_images to 2 or more"
                    )
    pairs = {name: parts(imgs, name, cfg.support_pool, cfg.query_images, cfg) for name in div.open_world}
    train = {name: indices[: cfg.open_exemplars] for name, indices in base[0].items()}
    stream, unknown = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
    return OpenSets(train, base[1], base[2], stream, unknown)


def gathered(groups: dict[str, np.ndarray], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Image indices (n,) of the classes in `names`, one class after the other, and their places (n,) in `names`."""
    indices = [groups[name] for name in names]
    return np.concatenate(indices), np.repeat(np.arange(len(names)), [len(i) for i in indices])


@torch.no_grad()
def penultimate(model: ConvNet, images: Tensor, mean: Tensor, std: Tensor) -> np.ndarray:
    """What the last linear layer sees, (n, d) in double precision, of uint8 images (n, 3, h, w); without hidden layers these
    are the features of the last block. Raises StudyError where they are not finite."""
    device = next(model.parameters()).device
    blocks = predict(model, images.to(device), mean.to(device), std.to(device), features=True)
    was_training, _ = model.training, model.eval()
    features = model.classifier[:-1](blocks).double().cpu().numpy()
    model.train(was_training)
    if not np.isfinite(features).all():
        raise StudyError(
            "the network's features are not finite: it has diverged; train it again with a lower learning_rate"
        )
    return features


def view_of(run: Run, imgs: ImageSet, sets: OpenSets, task: int) -> View:
    """The saved collective after source task `task` (from 1), with a scorer fitted on exemplars for each head."""
    model, _, about = load_state(run.path / "collective" / f"task_{task:02d}")
    mean, std = torch.tensor(about["mean"]), torch.tensor(about["std"])
    layout = torch.channels_last if run.machine.channels_last else torch.contiguous_format
    model.to(run.machine.device, memory_format=layout)
    names, cfg = tuple(about["class_names"]), run.cfg
    indices, labels = gathered(sets.exemplars, names)
    features = penultimate(model, imgs.images[torch.from_numpy(indices)], mean, std)
    own = Head(*(p.detach().double().cpu().numpy() for p in (model.head.weight, model.head.bias)))
    heads = {"refit": refit_head(features, labels, cfg.open_strength), "own": own}
    made = {n: Scorer.fit(h, features, labels, tail=cfg.open_tail, alpha=cfg.open_alpha) for n, h in heads.items()}
    return View(task, model, names, mean, std, made)


def measure(view: View, imgs: ImageSet, sets: OpenSets, cfg: Config) -> list[dict]:
    """One row per head and score (feature scores have head "none"): the measures with their 95 % limits over classes."""
    known, labels = gathered(sets.test, view.class_names)
    unknown, strange = gathered(sets.unknown, tuple(sets.unknown))
    features = view.features(imgs, known), view.features(imgs, unknown)
    rows = []
    for head, scorer in view.scorers.items():
        for score, (values, named) in scorer(features[0]).items():
            if score in FEATURE_SCORES and head != HEADS[0]:
                continue  # they do not look at the head
            given = values, scorer(features[1])[score][0], named == labels
            limits = intervals(*given, labels, strange, n_resamples=cfg.open_resamples, seed=cfg.seed)
            row = {"task": view.task, "score": score, "head": "none" if score in FEATURE_SCORES else head}
            for name, value in metrics(*given).items():
                row |= {name: value, f"{name}_low": limits[name][0], f"{name}_high": limits[name][1]}
            counts = {"n_known": len(known), "n_unknown": len(unknown)}
            classes = {"known_classes": len(view.class_names), "unknown_classes": len(sets.unknown)}
            rows.append(row | {"closed_accuracy": 100 * float(np.mean(named == labels))} | counts | classes)
    return rows


def image_scores(view: View, imgs: ImageSet, sets: OpenSets, cfg: Config) -> pd.DataFrame:
    """One row per image and its six scores after the last task: part (validation, test: known; stream, unknown), image
    (index), class_name, known, predicted (by the head), and a column per score."""
    tables = []
    for part in ("validation", "test", "stream", "unknown"):
        groups = getattr(sets, part)
        names = view.class_names if part in ("validation", "test") else tuple(groups)
        indices, labels = gathered(groups, names)
        found = view.scorers[cfg.open_head](view.features(imgs, indices))
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
    names = [file for file in FILES if file.endswith(".csv")]
    if run.done("openworld"):
        say("openworld: found in the run folder, loaded")
        return OpenWorld(*(run.read_table(name) for name in names))
    if not run.done("collective"):
        raise StudyError(f"{run.path} holds no finished collective; run `learngene collective` first")
    sets = open_sets(imgs, div, src, cfg)
    with run.computing("openworld", list(FILES)), _one_thread_each(run):
        tables = _computed(imgs, src, sets, cfg, run)
        for name, field in zip(names, dataclasses.fields(tables), strict=True):
            run.write_table(name, getattr(tables, field.name))
    say(f"openworld: {len(src)} states of the collective measured on {len(div.open_world)} open-world classes, saved")
    return tables


def _computed(imgs: ImageSet, src: Sequence[SourceTask], sets: OpenSets, cfg: Config, run: Run) -> OpenWorld:
    from .openlearning import learn

    rows = []
    for task in src:
        run.progress("openworld", task.number - 1, len(src) + 4, f"task {task.number} of {len(src)}")
        view = view_of(run, imgs, sets, task.number)
        rows += measure(view, imgs, sets, cfg)
    heads = pd.DataFrame(rows)
    run.progress("openworld", len(src), len(src) + 4, "learning the unknown")
    learning, blocks = learn(view, imgs, sets, cfg, run)
    chosen = heads[heads["head"].isin([cfg.open_head, "none"])].reset_index(drop=True)
    return OpenWorld(chosen, heads, image_scores(view, imgs, sets, cfg), learning, blocks)


@contextlib.contextmanager
def _one_thread_each(run: Run) -> Iterator[None]:
    """As many threads for NumPy and scikit-learn as for torch, so that equal machines give equal files."""
    from threadpoolctl import threadpool_limits

    run.machine.use()
    with threadpool_limits(run.machine.threads):
        yield


def describe(world: OpenWorld) -> str:
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
