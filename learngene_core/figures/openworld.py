"""Figures of the open world: score distributions, ROC, OSCR, AUROC over tasks, learning, and the pictures at a threshold.

Tables and arrays go in, matplotlib Axes come out; no torch. Known is drawn in the colour of the base classes, unknown in that
of the open-world classes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..openworld.measures import curves, metrics
from .lettering import readable
from .style import (
    FAINT,
    GREY,
    GROUP_COLOURS,
    INK,
    MUTED,
    SCORE_COLOURS,
    in_order,
    legend_below,
    montage,
    new_axes,
    tidy,
)
from .words import OPEN_SCORE_LABELS, WAY_GROUPS, WAY_LABELS

KNOWN, UNKNOWN = GROUP_COLOURS["base"], GROUP_COLOURS["open_world"]
UNITS: dict[str, str] = {
    "msp": "probability",
    "maxlogit": "logit",
    "energy": "log of the summed exp(logits)",
    "openmax": "probability of a known class",
    "ncm": "minus the distance",
    "mahalanobis": "minus the squared distance",
    "relative_mahalanobis": "difference of squared distances",
}
GROUPS = {  # where an image lands at a threshold: whether it is known, whether it is kept
    "flagged, truly unknown": (False, False),
    "missed (unknown, kept)": (False, True),
    "false alarm (known, flagged)": (True, False),
    "kept, truly known": (True, True),
}


def split(
    images: pd.DataFrame, score: str, parts: Sequence[str] = ("test", "unknown")
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of openworld_images.csv of the known and the unknown part. Raises ValueError for a score it does not hold."""
    if score not in images:
        raise ValueError(f"there is no score {score!r}; there are {', '.join(s for s in SCORE_COLOURS if s in images)}")
    return tuple(images[images["part"] == part] for part in parts)


def score_distributions(
    images: pd.DataFrame, scores: Sequence[str] = ("msp", "maxlogit", "relative_mahalanobis")
) -> np.ndarray:
    """Histogram of every score for known and unknown test images, nothing cut off; returns the axes, one per score.

    images: openworld_images.csv. The line is the threshold below which 5 % of the validation images lie.
    """
    columns = min(3, len(scores))
    rows = -(-len(scores) // columns)
    size = (11.8, 3.7 * rows + 0.9)
    axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")[1].ravel()
    for ax, score in zip(axes, scores, strict=False):
        known, unknown = split(images, score)
        histogram(ax, known[score], unknown[score])
        line = np.quantile(images.loc[images["part"] == "validation", score], 0.05)
        ax.axvline(line, color=INK, linestyle="--", linewidth=1.8, label="5 % of validation images below")
        ax.set(title=OPEN_SCORE_LABELS[score], xlabel=UNITS[score])
        ax.xaxis.set_major_locator(MaxNLocator(5))
        tidy(ax, grid="y")
    for ax in axes[::columns]:
        ax.set_ylabel("share of images (%)")
    for ax in axes[len(scores) :]:
        ax.set_visible(False)
    figure = axes[0].figure
    figure.suptitle("a good score puts known images (right) apart from unknown ones (left)", fontsize=15)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return axes


def histogram(ax: Axes, known: pd.Series, unknown: pd.Series, n_bins: int = 32) -> None:
    """Two histograms over the same bins from the lowest to the highest score, in percent of each side's images."""
    both = np.concatenate([known, unknown])
    low, high = both.min(), both.max()
    bins = np.linspace(low, high if high > low else low + 1, n_bins)
    for values, colour, label in ((known, KNOWN, "known"), (unknown, UNKNOWN, "unknown")):
        share = {"weights": np.full(len(values), 100 / max(len(values), 1))}
        ax.hist(values, bins, color=colour, alpha=0.55, label=f"{label} ({len(values)} images)", **share)


def roc_with_band(
    images: pd.DataFrame, score: str, *, n_resamples: int = 300, seed: int = 0, ax: Axes | None = None
) -> Axes:
    """ROC of one score on test images with a pointwise 95 % band from resampled classes, known and unknown."""
    known, unknown = split(images, score)
    x, y, _ = curves(known[score], unknown[score], np.ones(len(known), bool))
    grid = np.linspace(0, 100, 101)
    rng = np.random.default_rng(seed)
    by_class = [[g.to_numpy() for _, g in part.groupby("class_name")[score]] for part in (known, unknown)]
    lines = []
    for _ in range(n_resamples):
        k, u = (np.concatenate([side[i] for i in rng.integers(0, len(side), len(side))]) for side in by_class)
        fpr, tpr, _ = curves(k, u, np.ones(len(k), bool))
        lines.append(np.interp(grid, fpr, tpr))
    ax = new_axes(ax, 5.6, 5.2)
    colour = SCORE_COLOURS[score]
    low, high = np.quantile(lines, [0.025, 0.975], axis=0)
    if min(len(side) for side in by_class) > 1:
        ax.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0, label="95 % band over classes")
    area = metrics(known[score], unknown[score], np.ones(len(known), bool))["auroc"]
    ax.plot(x, y, color=colour, label=f"{OPEN_SCORE_LABELS[score]}: AUROC {area:.1f}")
    ax.plot([0, 100], [0, 100], color=GREY, linestyle=":", label="chance (50)")
    ax.set(xlabel="unknown taken for known (%)", ylabel="known kept (%)", xlim=(0, 100), ylim=(0, 100))
    tidy(ax, grid="both")
    legend_below(ax, 1)
    return ax


def oscr_curves(
    images: pd.DataFrame, scores: Sequence[str] = ("msp", "maxlogit", "energy"), *, ax: Axes | None = None
) -> Axes:
    """Known images kept *and* rightly classified by the head, over unknown images accepted, as the threshold falls.

    The right end of every curve is the closed-set accuracy of the head.
    """
    ax = new_axes(ax, 5.6, 5.2)
    for score in scores:
        known, unknown = split(images, score)
        right = (known["predicted"] == known["class_name"]).to_numpy()
        x, _, y = curves(known[score], unknown[score], right)
        area = metrics(known[score], unknown[score], right)["oscr"]
        ax.plot(x, y, color=SCORE_COLOURS[score], label=f"{OPEN_SCORE_LABELS[score]}: OSCR {area:.1f}")
    closed = 100 * right.mean()
    ax.axhline(closed, color=GREY, linestyle=":", label=f"closed-set accuracy {closed:.1f}")
    ax.set(xlabel="unknown taken for known (%)", ylabel="known kept and right (%)", xlim=(0, 100), ylim=(0, None))
    tidy(ax, grid="both")
    legend_below(ax, 1)
    return ax


def over_tasks(table: pd.DataFrame, scores: Sequence[str] = ("msp", "maxlogit", "relative_mahalanobis")) -> np.ndarray:
    """AUROC with its 95 % limits, and closed-set accuracy, after every source task; returns the two axes (2,).

    table: openworld.csv. Each accuracy is that of the classifier of the score, among all classes seen so far; scores of one
    classifier, such as the head, share one line.
    """
    axes = plt.subplots(1, 2, figsize=(11.5, 5), layout="constrained")[1]
    classifiers: dict[tuple[float, ...], list[str]] = {}
    for k, score in enumerate(scores):
        part = table[table["score"] == score].sort_values("task")
        style = {"color": SCORE_COLOURS[score], "label": OPEN_SCORE_LABELS[score], "marker": "osD^vP*"[k % 7]}
        axes[0].plot(part["task"], part["auroc"], markersize=6, **style)
        limits = part["auroc_low"], part["auroc_high"]
        axes[0].fill_between(part["task"], *limits, color=SCORE_COLOURS[score], alpha=0.12, linewidth=0)
        classifiers.setdefault(tuple(part["closed_accuracy"]), []).append(score)
    tasks = sorted(table["task"].unique())
    for values, names in classifiers.items():
        alike = ", ".join(OPEN_SCORE_LABELS[name] for name in names)
        style = {"color": SCORE_COLOURS[names[0]], "marker": "o", "markersize": 6}
        axes[1].plot(tasks, values, label=f"head ({alike})" if len(names) > 1 else alike, **style)
    chance = table.drop_duplicates("task").sort_values("task")
    axes[0].axhline(50, color=GREY, linestyle=":", label="chance (50)")
    axes[1].plot(chance["task"], 100 / chance["known_classes"], color=GREY, linestyle=":", label="chance")
    axes[0].set(ylabel="AUROC (%), 95 % over classes", title="known or unknown?")
    axes[1].set(ylabel="accuracy (%)", title="which of the classes seen so far?", ylim=(0, None))
    for ax in axes:
        ax.set_xlabel("after source task")
        ax.xaxis.get_major_locator().set_params(integer=True)
        tidy(ax, grid="y")
        legend_below(ax, 1)
    return axes


def learning(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Old, new and harmonic accuracy of every way of learning the unknown classes, with 95 % limits over classes.

    table: openworld_learning.csv. The ways are grouped by what protects the old classes: nothing, EWC, exemplars; below them
    the ideal, where all labels are given.
    """
    there = set(table["method"])
    groups = {title: [way for way in ways if way in there] for title, ways in WAY_GROUPS.items()}
    if others := in_order([way for way in table["method"] if way not in WAY_LABELS], {}):
        groups["others"] = others
    groups = {title: ways for title, ways in groups.items() if ways}
    ways = [way for own in groups.values() for way in own]
    rows = table.set_index("method").loc[ways]
    ax = new_axes(ax, 11.5, 0.38 * len(ways) + 1.7)
    kinds = {"old": ("old classes", KNOWN), "new": ("new classes", UNKNOWN), "harmonic": ("harmonic mean", INK)}
    for shift, (kind, (label, colour)) in zip((-0.24, 0, 0.24), kinds.items(), strict=True):
        name, y = f"{kind}_accuracy", np.arange(len(ways)) + shift
        ax.hlines(y, rows[f"{name}_low"], rows[f"{name}_high"], color=colour, linewidth=2.4)
        ax.scatter(rows[name], y, s=44, color=colour, label=label, zorder=3)
    first = 0
    for k, (title, own) in enumerate(groups.items()):
        if k % 2 == 0:
            ax.axhspan(first - 0.5, first + len(own) - 0.5, color=FAINT, linewidth=0, zorder=-1)
        middle = first + (len(own) - 1) / 2
        place = {"transform": ax.get_yaxis_transform(), "va": "center", "weight": "bold", "fontsize": 13}
        ax.text(1.02, middle, title, color=MUTED, **place)
        first += len(own)
    ax.set_yticks(range(len(ways)), [WAY_LABELS.get(way, way.replace("_", " ")) for way in ways])
    ax.set(xlabel="accuracy on test images among all classes (%), 95 % over classes")
    ax.set(xlim=(-2, None), ylim=(len(ways) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)
    tidy(ax, grid="x")
    legend_below(ax)
    return ax


def gallery(
    pixels: Mapping[str, np.ndarray], captions: Mapping[str, Sequence[str]] | None = None, *, size: float = 1.05
) -> np.ndarray:
    """Rows of pictures, a titled row per entry; returns the axes (rows,).

    pixels: title -> images (k, 3, h, w) uint8, k may be 0; captions: title -> a short text under each picture, whose lines
    are broken, at hyphens and spaces where there are any, so that they are no wider than the picture. size: of a picture, in
    inches; captions grow with it.
    """
    points = 7.6 * size
    widest = max([len(p) for p in pixels.values()] + [1])
    wrapped = {
        title: [_wrapped(word, size, points) for word in readable(words)] for title, words in (captions or {}).items()
    }
    lines = max([word.count("\n") + 1 for words in wrapped.values() for word in words], default=0)
    height = size + 0.45 + 0.14 * lines * points / 8
    figure, axes = plt.subplots(
        len(pixels), 1, figsize=(max(6.5, size * widest), height * len(pixels)), squeeze=False, layout="constrained"
    )
    for ax, (title, row) in zip(axes[:, 0], pixels.items(), strict=True):
        ax.set_title(title, loc="left", fontsize=14)
        ax.axis("off")
        picture_row(ax, row, widest, wrapped.get(title, ()), points)
    return axes[:, 0]


def _wrapped(words: str, width: float, points: float) -> str:
    """Each line of `words` broken so that it fits, in letters of `points`, below a picture `width` inches wide."""
    letters = max(int(120 * width / points), 1)
    return "\n".join(textwrap.fill(line, letters) for line in words.splitlines())


def picture_row(ax: Axes, row: np.ndarray, widest: int, words: Sequence[str], points: float = 8.0) -> None:
    """Pictures (k, 3, h, w) side by side, at the left of a row for `widest`, with words of `points` below them."""
    if not len(row):
        ax.text(0, 0.5, "none", transform=ax.transAxes, va="center", fontsize=11, color=MUTED)
        return
    side = row.shape[-1]
    ax.imshow(montage(row[None]), interpolation="nearest")
    ax.set_xlim(-0.5, widest * (side + 2) - 2.5)
    for i, word in enumerate(words):
        ax.text(i * (side + 2) + side / 2, side * 1.06, word, ha="center", va="top", fontsize=points)


def threshold_counts(images: pd.DataFrame, score: str, threshold: float) -> dict[str, pd.DataFrame]:
    """Where images land at a threshold: flagged, missed, false alarm, kept -> their rows, from the lowest score up.

    images: rows of openworld_images.csv, e.g. those of the validation images and the stream.
    """
    kept = images[score] >= threshold
    ordered = {n: images[(images["known"] == known) & (kept == keep)] for n, (known, keep) in GROUPS.items()}
    return {name: rows.sort_values(score, kind="stable") for name, rows in ordered.items()}
