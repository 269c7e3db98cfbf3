"""Measures of telling known from unknown images by a score (higher = known), with intervals over classes.

All are computed from counts of accepted images at every different score, so ties are exact, and a bootstrap over classes is
one product of draws and counts per class. Percent throughout.
"""

from __future__ import annotations

import numpy as np

from .files import StudyError
from .statistics import expanded_limits
from .streams import numpy_generator

METRICS = ("auroc", "aupr", "fpr95", "oscr")


def metrics(known: np.ndarray, unknown: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """The four measures of scores known (n,) and unknown (m,); correct (n,): whether the known image's class was right.

    auroc: a known image scores above an unknown one, ties half. aupr: average precision with *unknown* as what is looked for
    (its chance is their share of the images). fpr95: unknown images at or above the highest threshold that keeps 95 % of the
    known. oscr: as auroc, but only known images of the right class count (Dhamija et al. 2018: area under the rate of
    correct classification over the rate of accepted unknown); at most the closed-set accuracy.

    Raises StudyError when there is no known or no unknown image, or a score is NaN.
    """
    values = _measured(*(line[None] for line in _lines(known, unknown, correct)))
    return {name: float(v[0]) for name, v in values.items()}


def intervals(
    known: np.ndarray,
    unknown: np.ndarray,
    correct: np.ndarray,
    known_class: np.ndarray,
    unknown_class: np.ndarray,
    *,
    n_resamples: int = 500,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % limits of the four measures: known and unknown *classes* are drawn anew, each with all of its images.

    A percentile bootstrap, expanded for the smaller number of classes. With one class on a side the limits are NaN.
    """
    groups = [np.unique(c, return_inverse=True)[1] for c in (known_class, unknown_class)]
    counts = [int(g.max()) + 1 for g in groups]
    if min(counts) < 2:
        return dict.fromkeys(METRICS, (np.nan, np.nan))
    rng = numpy_generator(seed, "open-set intervals")
    times = [rng.multinomial(k, np.full(k, 1 / k), n_resamples).astype(float) for k in counts]  # (r, classes)
    lines = _lines(known, unknown, correct, *groups)  # per class (classes, ends)
    values = _measured(times[0] @ lines[0], times[0] @ lines[1], times[1] @ lines[2])
    return {name: expanded_limits(v, min(counts), 0.95) for name, v in values.items()}


def _lines(
    known: np.ndarray,
    unknown: np.ndarray,
    correct: np.ndarray,
    known_class: np.ndarray | None = None,
    unknown_class: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images accepted at each threshold from the highest down, one per different score: known, known and right, unknown;
    counts (ends,), or (classes, ends) with the classes (n,), (m,) of the images.

    Raises StudyError where there is nothing to count or a score is NaN.
    """
    known, unknown = np.asarray(known, np.float64), np.asarray(unknown, np.float64)
    for name, values in (("known", known), ("unknown", unknown)):
        if not len(values):
            raise StudyError(f"there are no {name} images to measure on")
        if np.isnan(values).any():
            raise StudyError(f"{int(np.isnan(values).sum())} scores of {name} images are NaN")
    thresholds, place = np.unique(-np.concatenate([known, unknown]), return_inverse=True)
    accepted = []
    for where, group, weight in (
        (place[: len(known)], known_class, np.ones(len(known))),
        (place[: len(known)], known_class, np.asarray(correct, float)),
        (place[len(known) :], unknown_class, np.ones(len(unknown))),
    ):
        rows = np.zeros(len(where), int) if group is None else group
        counts = np.zeros((rows.max() + 1, len(thresholds)))
        np.add.at(counts, (rows, where), weight)
        accepted.append(counts.cumsum(1)[0] if group is None else counts.cumsum(1))
    return tuple(accepted)


def _measured(known: np.ndarray, right: np.ndarray, unknown: np.ndarray) -> dict[str, np.ndarray]:
    """The measures (r,) from r sets of accepted images (r, ends): known, known and right, unknown."""
    n_known, n_unknown = known[:, -1:], unknown[:, -1:]
    fpr = unknown / n_unknown
    first = np.zeros_like(n_known)
    steps = np.diff(unknown, axis=1, prepend=first)  # unknown images at each threshold
    below = n_unknown - unknown + steps  # unknown images at or below it
    all_below = below + n_known - np.concatenate([first, known[:, :-1]], axis=1)
    precision = np.divide(below, all_below, out=np.zeros_like(below), where=all_below > 0)
    passed = known >= (0.95 - 1e-12) * n_known
    return {
        "auroc": 100 * _area(fpr, known / n_known),
        "aupr": 100 * (precision * steps).sum(1) / n_unknown[:, 0],
        "fpr95": 100 * np.take_along_axis(fpr, passed.argmax(1)[:, None], 1)[:, 0],
        "oscr": 100 * _area(fpr, right / n_known),
    }


def _area(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Area (r,) under y over x (r, k) from (0, 0), straight between the points: a tie counts half."""
    return x[:, 0] * y[:, 0] / 2 + (np.diff(x, axis=1) * (y[:, 1:] + y[:, :-1])).sum(1) / 2


def curves(known: np.ndarray, unknown: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares (k,) in percent at every threshold from the highest score down, starting at 0: unknown accepted (the
    horizontal axis of ROC and OSCR), known accepted (ROC), known accepted and right (OSCR)."""
    rate, right, accepted = _lines(known, unknown, correct)
    totals = len(unknown), len(known), len(known)
    return tuple(np.append(0.0, 100 * v / n) for v, n in zip((accepted, rate, right), totals, strict=True))


def threshold_at(known: np.ndarray, rate: float = 95.0) -> float:
    """The highest threshold t such that at least `rate` percent of the known scores (n,) are >= t.

    Raises StudyError when there are no scores or one is NaN.
    """
    known = np.sort(np.asarray(known, np.float64))
    if not len(known) or np.isnan(known).any():
        raise StudyError("a threshold needs scores of known images, none of them NaN")
    return float(known[len(known) - max(1, int(np.ceil(rate / 100 * len(known) - 1e-9)))])


def accuracies(
    old: np.ndarray,
    old_class: np.ndarray,
    new: np.ndarray,
    new_class: np.ndarray,
    n_resamples: int = 500,
    seed: int = 0,
) -> dict[str, float]:
    """Old, new and harmonic accuracy in percent, with 95 % limits from resampled classes; old, new (n,): right or not.

    With one class on a side the limits are NaN. The harmonic accuracy of nothing and anything is 0.
    """
    sides = []
    rng = numpy_generator(seed, "open-world accuracies")
    for right, group in ((old, old_class), (new, new_class)):
        hits, counts = np.bincount(group, right), np.bincount(group)
        k = len(counts)
        draws = rng.multinomial(k, np.full(k, 1 / k), n_resamples)  # (r, k)
        every = np.concatenate([np.ones((1, k)), draws])  # the first row: as it is
        sides.append((every @ hits / (every @ counts) * 100, k))
    (first, k_old), (second, k_new) = sides
    both = np.divide(2 * first * second, first + second, out=np.zeros_like(first), where=first + second > 0)
    values: dict[str, float] = {}
    for name, series, k in (("old", first, k_old), ("new", second, k_new), ("harmonic", both, min(k_old, k_new))):
        low, high = expanded_limits(series[1:], k, 0.95) if k > 1 else (np.nan, np.nan)
        key = f"{name}_accuracy"
        values |= {key: float(series[0]), f"{key}_low": low, f"{key}_high": high}
    return values
