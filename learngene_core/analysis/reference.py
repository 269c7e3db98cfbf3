"""A comparison with published values: few-shot accuracy of frozen features under their usual protocol.

Episodes of 5 classes with 15 queries per class, drawn from all images of the novel classes (for CIFAR-100 these are the
CIFAR-FS test classes). It shows whether the baselines that everything else is compared with are straw men.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..collective import Collective
from ..config import Config
from ..data.division import Division
from ..errors import StudyError, say
from ..runs.run import Run
from ..tasks import ImageSet, numpy_generator
from .evidence import block_features
from .statistics import mean_interval

QUERIES = 15
# Small convolutional networks on CIFAR-FS, 5-way 5-shot, percent, as their sources report them.
PUBLISHED = {
    "ProtoNet, 4 conv (in the R2D2 paper)": 72.0,
    "supervised pre-training and a new head, 4 conv (learn2learn's examples)": 73.1,
    "MAML, 4 conv (learn2learn's examples)": 73.6,
    "R2D2, 4 conv (Bertinetto et al. 2019, preprint)": 76.1,
    "Wang et al. 2021, 4 conv (few-shot leaderboard)": 78.4,
    "R2D2, wider 4 conv (Bertinetto et al. 2019, preprint; 79.4 in the final paper)": 78.9,
    "ConstellationNet, 4 conv with attention (few-shot leaderboard)": 82.7,
}


def reference_check(
    col: Collective, imgs: ImageSet, div: Division, cfg: Config, run: Run | None = None
) -> pd.DataFrame:
    """Accuracy of nearest class mean and of a linear probe on frozen features after every pool, 5-way.

    One row per group of classes, block, method and shots: accuracy (percent) with its 95 % interval over
    `cfg.reference_episodes` episodes (reference.csv). The block to quote is the one that is best on the open-world classes
    (`chosen`); the novel classes choose nothing.

    Raises StudyError when there are fewer than five open-world or novel classes.
    """
    if run is not None:
        run.check("reference", cfg)
    if run is not None and run.done("reference"):
        say("reference: found in the run folder, loaded")
        return run.read_table("reference.csv")
    for group in ("open_world", "novel"):
        if len(getattr(div, group)) < 5:
            raise StudyError(f"the reference check needs 5 {group} classes, there are {len(getattr(div, group))}")
    if run is None:
        return _measured(col, imgs, div, cfg)
    with run.computing("reference", ["reference.csv"]):
        table = _measured(col, imgs, div, cfg)
        run.write_table("reference.csv", table)
    return table


def _measured(col: Collective, imgs: ImageSet, div: Division, cfg: Config) -> pd.DataFrame:
    rows = []
    for group in ("open_world", "novel"):
        classes = getattr(div, group)
        features = {}
        for name in classes:
            for block, values in pooled_features(col, imgs.images[imgs.of_class(name)]).items():
                features.setdefault(block, []).append(values)
        for block, per_class in features.items():
            for shots in (1, 5, 10):
                hits = episodes(per_class, shots, cfg, group)
                for method, values in hits.items():
                    interval = mean_interval(values)
                    rows.append({"group": group, "block": block, "method": method, "shots": shots,
                                 "accuracy": interval.estimate, "accuracy_low": interval.low,
                                 "accuracy_high": interval.high, "n_episodes": interval.n})  # fmt: skip
    table = pd.DataFrame(rows)
    tuning = table[table["group"] == "open_world"].set_index(["method", "shots", "block"])["accuracy"]
    best = tuning.groupby(level=["method", "shots"]).idxmax()
    table["chosen"] = [r.block == best[r.method, r.shots][2] for r in table.itertuples()]
    return table


def pooled_features(col: Collective, images: Tensor) -> dict[str, np.ndarray]:
    """Block with a pool -> its features (n, d) of uint8 images (n, 3, h, w), whole maps scaled to length 1, evaluation mode."""
    paths = {name: f"blocks.{name}" for name, block in col.model.blocks.items() if block.pool}
    features = block_features(col.model, paths, images, col.mean, col.std, positions=None)
    return {name: torch.nn.functional.normalize(x, dim=1).numpy() for name, x in features.items()}


def episodes(features: list[np.ndarray], shots: int, cfg: Config, group: str) -> dict[str, np.ndarray]:
    """Accuracies (episodes,) in percent of both methods; features: one array (n, d) per class."""
    rng = numpy_generator(cfg.seed, "reference", group, shots)
    labels = np.repeat(np.arange(5), QUERIES)
    accuracies: dict[str, list[float]] = {"ncm": [], "probe": []}
    for _ in range(cfg.reference_episodes):
        support, query = [], []
        for c in rng.choice(len(features), 5, replace=False):
            picked = rng.choice(len(features[c]), shots + QUERIES, replace=False)
            support.append(features[c][picked[:shots]])
            query.append(features[c][picked[shots:]])
        stacked, queries = np.stack(support), np.concatenate(query)
        accuracies["ncm"].append(np.mean(nearest_mean(stacked, queries) == labels) * 100)
        accuracies["probe"].append(np.mean(ridge_probe(stacked, queries) == labels) * 100)
    return {name: np.array(values) for name, values in accuracies.items()}


def nearest_mean(support: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Predicted classes (q,) by the class mean, scaled to length 1, of the largest inner product: support (way, shots, d)."""
    means = support.mean(1)
    return (queries @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(1)


def ridge_probe(support: np.ndarray, queries: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Predicted classes (q,) of a ridge regression onto one-hot labels: support (way, shots, d), queries (q, d).

    Solved in the dual, where it has the size of the support set (Bertinetto et al. 2019 train through the same solution).
    """
    way, shots, _ = support.shape
    x = support.reshape(way * shots, -1).astype(np.float64)
    centre = x.mean(0)
    targets = np.repeat(np.eye(way), shots, axis=0)
    dual = np.linalg.solve((x - centre) @ (x - centre).T + strength * np.eye(len(x)), targets - 1 / way)
    return ((queries - centre) @ (x - centre).T @ dual).argmax(1)


def reference_text(table: pd.DataFrame, data: str = "cifar100") -> str:
    """The quoted rows, for CIFAR-100 beside published values."""
    lines = ["5-way accuracy of frozen features on novel classes, 15 queries, block chosen on open-world classes:"]
    for r in table[(table["group"] == "novel") & table["chosen"]].itertuples():
        lines.append(f"  {r.method:<6} {r.shots:>2} shots, after {r.block}: {r.accuracy:.1f} "
                     f"({r.accuracy_low:.1f} to {r.accuracy_high:.1f}, {r.n_episodes} episodes)")  # fmt: skip
    if data == "cifar100":
        lines.append("published for small convolutional networks on CIFAR-FS, 5 shots:")
        lines += [f"  {value:.1f}  {name}" for name, value in PUBLISHED.items()]
    return "\n".join(lines)
