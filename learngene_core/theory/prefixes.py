"""The PAC-Bayes bound for this study: heads on prefixes of the frozen collective, beside the error on query images.

Everything that the bound takes for fixed is fixed without a target image: the prefixes come from the collective, the scaling of
their features from base classes, s and R from these lines. Errors in tables are in percent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..analysis.evidence import block_features, estimate_norms
from ..analysis.statistics import mean_interval
from ..collective import Collective
from ..config import Config
from ..data.division import Division, parts, target_tasks
from ..errors import StudyError
from ..network import ConvNet
from ..tasks import ImageSet, SourceTask, TargetTask, generator, numpy_generator
from .bounds import divergence, gibbs_errors, gibbs_exact, pac_bayes, sampling_limit

DELTA = 0.05  # of every bound: half for the support set, half for the Monte-Carlo estimate
# both looked for on 12 pseudo-tasks of the open-world classes (lecture preset, seed 0), never on novel classes
SPREAD = 0.15  # s; features have length 1, so it is the sd of a drawn head's logits around those of the mean
STRENGTH = 10.0  # of the ridge regression that a head comes from
DRAWS = 10_000  # drawn heads times support images that an estimated training error rests on, at least
SHOTS = (5, 10, 20, 50)  # support images per class that are tried, as far as there are so many
PER_CLASS = 8  # training images of each base class for the scaling


@dataclasses.dataclass(frozen=True)
class Prefixes:
    """Features of images after every prefix of a frozen network (conv1, conv1 to conv2, ...), by its last block.

    values: block -> (n, d) float32 of length 1 (or 0); place: image index -> row.
    """

    values: dict[str, np.ndarray]
    place: dict[int, int]

    def of(self, block: str, indices: np.ndarray) -> np.ndarray:
        """Features (k, d) of the images with these indices, flattened to (k,)."""
        return self.values[block][[self.place[int(i)] for i in indices.ravel()]]


@dataclasses.dataclass(frozen=True)
class Heads:
    """Ridge heads of one target task and number of shots, one per prefix.

    squares: block -> |W|^2; logits, sizes: block -> (support (m, k), query (q, k)) and the features' lengths (m,), (q,);
    labels: support (m,), query (q,).
    """

    target_task: int
    shots: int
    squares: dict[str, float]
    logits: dict[str, tuple[np.ndarray, np.ndarray]]
    sizes: dict[str, tuple[np.ndarray, np.ndarray]]
    labels: tuple[np.ndarray, np.ndarray]


def candidates(blocks: Sequence[str], n: int) -> tuple[str, ...]:
    """n of the prefixes (by last block), spread evenly over the depth, the whole network among them.

    Raises ValueError for fewer than 1 or more than there are.
    """
    if not 1 <= n <= len(blocks):
        raise ValueError(f"there are 1 to {len(blocks)} candidates, not {n}")
    return tuple(blocks[math.ceil(len(blocks) * i / n) - 1] for i in range(1, n + 1))


def tasks_with_shots(
    imgs: ImageSet, div: Division, cfg: Config, shots: Sequence[int] = SHOTS
) -> tuple[list[TargetTask], tuple[int, ...]]:
    """The run's target tasks with as many support images as their classes have, and those of `shots` that this allows.

    Classes, queries and the first support images are those of the run; its own `cfg.shots` are always among the numbers.
    Raises StudyError when classes have fewer images than these.
    """
    fewest = min(len(parts(imgs, name, cfg.support_pool, cfg.query_images, cfg)[0]) for name in div.novel)
    possible = tuple(sorted({*cfg.shots, *(n for n in shots if n <= fewest)}))
    return target_tasks(imgs, div, cfg.replace(shots=possible)), possible


def untrained(col: Collective, imgs: ImageSet, src: Sequence[SourceTask], seed: int = 0) -> Collective:
    """The collective with fresh random weights, its batch norms measured on base images: what nothing was learned in."""
    model = ConvNet.from_shape(col.model.shape, generator=generator(seed, "untrained"))
    estimate_norms(model, imgs.images[_base_images(imgs, src)], col.mean, col.std)
    return dataclasses.replace(col, model=model)


def _base_images(imgs: ImageSet, src: Sequence[SourceTask]) -> np.ndarray:
    """PER_CLASS training images of each base class of the source tasks: indices (n,)."""
    found: dict[str, np.ndarray] = {}
    for task in src:
        labels = imgs.labels[task.train].numpy()
        for name in task.classes:
            found.setdefault(name, task.train[labels == imgs.class_names.index(name)][:PER_CLASS])
    return np.concatenate([*found.values()])


def prefix_features(col: Collective, imgs: ImageSet, src: Sequence[SourceTask], tgt: Sequence[TargetTask]) -> Prefixes:
    """Features of all images of the target tasks after every prefix; maps averaged to at most 4 x 4 positions.

    Scaled by base classes alone: every entry less its mean over training images of the source tasks, divided by its standard
    deviation there, then the whole to length 1. So the map of an image depends on no other image of a target task.
    Raises StudyError where features are not finite.
    """
    needed = np.unique(np.concatenate([part.ravel() for task in tgt for part in (task.support, task.query)]))
    base, values = _base_images(imgs, src), {}
    paths = {name: f"blocks.{name}" for name in col.model.block_names}
    found = block_features(col.model, paths, imgs.images[np.concatenate([base, needed])], col.mean, col.std)
    for name, features in found.items():
        known, seen = features[: len(base)], features[len(base) :]
        scale = known.std(0).clamp_min(1e-3 * float(known.std()) + 1e-12)  # a dead entry stays small
        scaled = (seen - known.mean(0)) / scale
        if not scaled.isfinite().all():
            raise StudyError(f"the features after {name} are not finite; the collective has diverged")
        values[name] = (scaled / scaled.norm(dim=1, keepdim=True).clamp_min(1e-12)).numpy()
    return Prefixes(values, {int(image): row for row, image in enumerate(needed)})


def fit_heads(
    prefixes: Prefixes, tgt: Sequence[TargetTask], shots: Sequence[int], strength: float = STRENGTH
) -> list[Heads]:
    """A ridge head on the first `shots` support images per class, for every target task, number of shots and prefix.

    Targets are 1 - 1/k for the image's class and -1/k for the others; solved in the dual, without a constant (features are
    centred on base classes).
    """
    heads = []
    for task in tgt:
        way, pool = task.support.shape
        of = {b: (prefixes.of(b, task.support), prefixes.of(b, task.query)) for b in prefixes.values}
        grams = {b: ((x @ x.T).astype(float), (q @ x.T).astype(float)) for b, (x, q) in of.items()}  # (n, n), (q, n)
        lengths = {b: (np.linalg.norm(x, axis=1), np.linalg.norm(q, axis=1)) for b, (x, q) in of.items()}
        queries = np.repeat(np.arange(way), task.query.shape[1])
        for n in shots:
            rows = (pool * np.arange(way)[:, None] + np.arange(n)).ravel()  # the first n of each class
            labels = np.repeat(np.arange(way), n)
            squares, logits, sizes = {}, {}, {}
            for block, (support, query) in grams.items():
                own = support[np.ix_(rows, rows)]
                dual = np.linalg.solve(own + strength * np.eye(len(rows)), np.eye(way)[labels] - 1 / way)  # (m, k)
                logits[block] = own @ dual, query[:, rows] @ dual
                squares[block] = float((dual * logits[block][0]).sum())
                sizes[block] = lengths[block][0][rows], lengths[block][1]
            heads.append(Heads(task.number, n, squares, logits, sizes, (labels, queries)))
    return heads


def bound_table(
    heads: Sequence[Heads],
    *,
    spread: float = SPREAD,
    n_candidates: int | None = None,
    delta: float = DELTA,
    seed: int = 0,
) -> pd.DataFrame:
    """The bound beside what it bounds: one row per target task and number of shots; errors in percent.

    Of the candidates (`candidates`; None: all prefixes) the one with the smallest bound is taken, which the support set alone
    decides. Columns: target_task, shots, m, block (last of the prefix), nats (KL), train_error (Gibbs, estimated), train_limit,
    bound, gibbs_error (on the query images), head_error (of the posterior's mean, which is the plurality vote of drawn heads and
    fails at most twice as often), chance, n_query, spread, n_candidates. Each bound holds with probability 1 - delta.
    """
    rows = []
    for own in heads:
        labels, queries = own.labels
        m, way = len(labels), own.logits[next(iter(own.logits))][0].shape[1]
        n = math.ceil(DRAWS / m)
        noise = numpy_generator(seed, "gibbs", m, way).standard_normal((way, n, m), np.float32)
        blocks = candidates(list(own.squares), n_candidates or len(own.squares))
        found = []
        for block in blocks:
            share = float(gibbs_errors(own.logits[block][0], labels, spread * own.sizes[block][0], noise).mean())
            # the prefix is chosen among these estimates, so each of them has its part of the other half of delta
            limit = sampling_limit(share, n * m, delta / 2 / len(blocks))
            nats = divergence(own.squares[block], spread, len(blocks))
            found.append((pac_bayes(limit, nats, m, delta / 2), block, nats, share, limit))
        bound, block, nats, share, limit = min(found, key=lambda f: f[0])
        query = own.logits[block][1]
        gibbs = gibbs_exact(query, queries, spread * own.sizes[block][1]).mean()
        rows.append({"target_task": own.target_task, "shots": own.shots, "m": m, "block": block, "nats": nats,
                     "train_error": 100 * share, "train_limit": 100 * limit, "bound": 100 * bound,
                     "gibbs_error": 100 * gibbs, "head_error": 100 * (query.argmax(1) != queries).mean(),
                     "chance": 100 - 100 / way, "n_query": len(queries), "spread": spread,
                     "n_candidates": len(blocks)})  # fmt: skip
    return pd.DataFrame(rows)


def bound_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over target tasks with 95 % t intervals, one row per number of shots: bound, gibbs_error, head_error, each with _low
    and _high; m, chance, holds (share of tasks in percent whose query error lies under the bound), n_tasks."""
    rows = []
    for shots, block in table.groupby("shots", sort=True):
        row = {"shots": shots, "m": block["m"].iloc[0], "chance": block["chance"].iloc[0]}
        for name in ("bound", "gibbs_error", "head_error", "train_error", "nats"):
            mean = mean_interval(block[name])
            row |= {name: mean.estimate, f"{name}_low": mean.low, f"{name}_high": mean.high}
        holds = 100 * (block["gibbs_error"] <= block["bound"]).mean()
        rows.append(row | {"holds": holds, "n_tasks": len(block)})
    return pd.DataFrame(rows)
