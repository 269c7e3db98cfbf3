"""Theorem 1 of the paper's appendix in numbers: tasks that share a subspace, and the norm term under both expressions.

The theorem specialises Pentina and Lampert (ICML 2014, "A PAC-Bayesian bound for lifelong learning", representation transfer)
to ridge regression: t tasks with m examples each, a head of norm ||w_i(B)|| in a subspace B that they share. Two questions can
be asked of it without any network: does a shared subspace help (`simulate`), and what does the norm term do as m and t grow
(`norm_terms`, `term_over_tasks`)? NumPy only; inputs are standard normal, so the excess risk of w^ is ||w^ - w||^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from ..analysis.statistics import mean_interval, paired_interval
from ..tasks import numpy_generator

SPACES = ("full", "random", "learned", "true")
STRENGTHS = np.logspace(-1, 3, 13)  # of ridge, tried by leave-one-out
NEW_TASKS = 10  # new tasks over which the risk of one repetition is a mean
FEATURES = ("ordinary", "weak", "worst")
WEAK = 1e-3  # variance of the weak feature


def ridge(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """Minimiser (..., d) of |y - x w|^2 + strength |w|^2 for examples x (..., m, d) and targets y (..., m).

    Raises ValueError for a strength that is not positive.
    """
    if not strength > 0:
        raise ValueError(f"the strength of ridge is positive, not {strength}")
    *_, m, d = x.shape
    xt = np.swapaxes(x, -1, -2)
    if m < d:
        return (xt @ np.linalg.solve(x @ xt + strength * np.eye(m), y[..., None]))[..., 0]
    return np.linalg.solve(xt @ x + strength * np.eye(d), xt @ y[..., None])[..., 0]


def ridge_by_leaving_out(
    x: np.ndarray, y: np.ndarray, strengths: Sequence[float] = STRENGTHS
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge with the strength of the smallest leave-one-out error: solutions (..., d) and strengths (...).

    x (..., m, d), y (..., m). Only these examples are looked at; the residual of an example left out has the closed form
    (y_i - y^_i) / (1 - h_ii) (Golub, Heath and Wahba 1979).
    """
    *_, m, d = x.shape
    xt, strengths = np.swapaxes(x, -1, -2), np.asarray(strengths, float)
    squares, axes = np.linalg.eigh(x @ xt if m < d else xt @ x)  # (..., r), (..., r, r) with r = min(m, d)
    squares = np.maximum(squares, 0)
    # scores (..., m, r): the examples along the right singular vectors
    scores = axes * np.sqrt(squares)[..., None, :] if m < d else x @ axes
    along = (np.swapaxes(scores, -1, -2) @ y[..., None])[..., 0]  # (..., r)
    inverse = 1 / (squares[..., None] + strengths)  # (..., r, s)
    left = y[..., None] - scores @ (along[..., None] * inverse)  # (..., m, s)
    leverage = scores**2 @ inverse
    errors = ((left / np.maximum(1 - leverage, 1e-12)) ** 2).mean(-2)
    best = strengths[errors.argmin(-1)]  # (...)
    if m < d:
        rotated = (np.swapaxes(axes, -1, -2) @ y[..., None])[..., 0]
        dual = axes @ (rotated / (squares + best[..., None]))[..., None]
        return (xt @ dual)[..., 0], best
    return (axes @ (along / (squares + best[..., None]))[..., None])[..., 0], best


def subspace_of(solutions: np.ndarray, k: int) -> np.ndarray:
    """Orthonormal basis (d, min(k, t)) of what t stacked solutions (t, d) have most in common: their leading right singular
    vectors."""
    return np.linalg.svd(solutions, full_matrices=False)[2][:k].T


def orthonormal(rng: np.random.Generator, d: int, k: int) -> np.ndarray:
    """A random k-dimensional subspace of R^d as an orthonormal basis (d, k)."""
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def draw_tasks(
    rng: np.random.Generator, basis: np.ndarray, n: int, m: int, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n tasks y = x w + noise with w in the subspace `basis` (d, k) and |w| = 1: x (n, m, d), y (n, m), w (n, d)."""
    d, k = basis.shape
    u = rng.standard_normal((n, k))
    w = (u / np.linalg.norm(u, axis=1, keepdims=True)) @ basis.T
    x = rng.standard_normal((n, m, d))
    return x, np.einsum("nmd,nd->nm", x, w) + noise * rng.standard_normal((n, m)), w


def simulate(
    *,
    d: int = 100,
    k: int = 5,
    ms: Sequence[int] = (10, 20, 40, 80),
    ts: Sequence[int] = (2, 5, 10, 20, 50, 100),
    noise: float = 0.5,
    n_repetitions: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """Excess risk on new tasks of ridge in four spaces, after t source tasks of m examples each.

    The spaces: all of R^d ("full"), the true k-dimensional subspace, the one learned from the ridge solutions of the source
    tasks, and a random one. A new task has m examples too; always predicting 0 has risk 1. Every strength is chosen by leaving
    out training examples. One row per m, t, space and repetition: risk (mean over NEW_TASKS new tasks) and captured (share of
    the true subspace, 0 to 1). Raises ValueError unless 1 <= k <= d, all m >= 2, all t >= 1, n_repetitions >= 2.
    """
    if not 1 <= k <= d or min(ms) < 2 or min(ts) < 1 or n_repetitions < 2:
        raise ValueError("needs 1 <= k <= d, at least 2 examples, 1 task and 2 repetitions")
    rows = []
    for repetition in range(1, n_repetitions + 1):
        rng = numpy_generator(seed, "theory", repetition)
        true, chance = orthonormal(rng, d, k), orthonormal(rng, d, k)
        x, y, _ = draw_tasks(rng, true, max(ts), max(ms), noise)
        new = draw_tasks(rng, true, NEW_TASKS, max(ms), noise)
        for m in ms:
            solutions, _ = ridge_by_leaving_out(x[:, :m], y[:, :m])
            fixed = {"full": np.eye(d), "random": chance, "true": true}
            risks = {name: _risk(new, m, basis) for name, basis in fixed.items()}
            for t in ts:
                learned = subspace_of(solutions[:t], k)
                for space, basis in {**fixed, "learned": learned}.items():
                    risk = risks[space] if space in risks else _risk(new, m, learned)
                    captured = np.linalg.norm(true.T @ basis) ** 2 / k
                    rows.append({"m": m, "t": t, "space": space, "repetition": repetition, "risk": risk,
                                 "captured": captured})  # fmt: skip
    return pd.DataFrame(rows)


def _risk(new: tuple[np.ndarray, np.ndarray, np.ndarray], m: int, basis: np.ndarray) -> float:
    """Mean excess risk over new tasks (x, y, w) of ridge on the first m examples, inside the subspace `basis` (d, k)."""
    x, y, w = new
    heads, _ = ridge_by_leaving_out(x[:, :m] @ basis, y[:, :m])
    return float(((heads @ basis.T - w) ** 2).sum(1).mean())


def risk_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows of `simulate` with 95 % t intervals over repetitions: one row per m, t and space.

    Columns: risk, captured, and gain (risk in the full space less risk here, paired by repetition), each with _low and _high
    (captured without); n_repetitions.
    """
    rows = []
    for (m, t), block in runs.groupby(["m", "t"], sort=True):
        risks = block.pivot(index="repetition", columns="space", values="risk")
        for space in SPACES:
            risk, gain = mean_interval(risks[space]), paired_interval(risks["full"], risks[space])
            captured = block.loc[block["space"] == space, "captured"].mean()
            rows.append({"m": m, "t": t, "space": space, "risk": risk.estimate, "risk_low": risk.low,
                         "risk_high": risk.high, "gain": gain.estimate, "gain_low": gain.low, "gain_high": gain.high,
                         "captured": captured, "n_repetitions": risk.n})  # fmt: skip
    return pd.DataFrame(rows)


# the norm term ---------------------------------------------------------------------------------------------------------
def head_of(z: np.ndarray, y: np.ndarray, c: float, *, m_inside: bool = True) -> np.ndarray:
    """The appendix's head w = a (I + a Z'Z)^-1 Z'y for features z (..., m, k) and targets y (..., m): (..., k).

    a = C/m as the theorem has it, or C where the m inside the inverse is dropped. It is ridge of strength 1/a.
    """
    return ridge(z, y, z.shape[-2] / c if m_inside else 1 / c)


def norm_limit(m: int, c: float, y_max: float = 1.0, *, m_inside: bool = True) -> float:
    """The largest norm that `head_of` can have on any m examples with |y| <= y_max.

    A singular value s of Z turns into s / (1/a + s^2) <= sqrt(a) / 2, and |y| <= sqrt(m) y_max in length: sqrt(C)/2 y_max with
    a = C/m, whatever m is, but sqrt(C m)/2 y_max with a = C. Both are reached (`worst_features`).
    """
    return math.sqrt(c if m_inside else c * m) / 2 * y_max


def worst_features(y: np.ndarray, c: float, *, m_inside: bool = True) -> np.ndarray:
    """The single feature (m, 1) for which the head's norm reaches `norm_limit`, for targets y (m,) of +-1: along y, with the
    singular value 1/sqrt(a)."""
    m = len(y)
    return (y / math.sqrt(m) * math.sqrt((m if m_inside else 1) / c))[:, None]


def norm_terms(
    ms: Iterable[int] = (4, 16, 64, 256, 1024),
    *,
    c: float = 4.0,
    k: int = 5,
    n_repetitions: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """||w||^2 over m under both expressions, for targets of +-1 and three kinds of features.

    "ordinary": k standard normal features, the target the sign of one of them; "weak": one feature WEAK**0.5 y, the same
    distribution at every m; "worst": the data set of that size with the largest norm. One row per features, m_inside and m:
    squared_norm with _low and _high (95 % t over repetitions; equal where nothing is drawn) and limit (squared).
    """
    rows = []
    for m in ms:
        drawn = numpy_generator(seed, "norm", m).standard_normal((n_repetitions, m, k))
        y = np.where(np.arange(m) % 2, 1.0, -1.0)
        for inside in (True, False):
            limit = norm_limit(m, c, m_inside=inside) ** 2
            ordinary = head_of(drawn, np.where(drawn[..., 0] >= 0, 1.0, -1.0), c, m_inside=inside)
            found = {
                "ordinary": (ordinary**2).sum(-1),
                "weak": (head_of(math.sqrt(WEAK) * y[:, None], y, c, m_inside=inside) ** 2).sum(keepdims=True),
                "worst": (head_of(worst_features(y, c, m_inside=inside), y, c, m_inside=inside) ** 2).sum(
                    keepdims=True
                ),
            }
            for features, squares in found.items():
                mean = mean_interval(squares)
                low, high = (mean.low, mean.high) if mean.n > 1 else (mean.estimate, mean.estimate)
                rows.append({"features": features, "m_inside": inside, "m": m, "squared_norm": mean.estimate,
                             "squared_norm_low": low, "squared_norm_high": high, "limit": limit})  # fmt: skip
    return pd.DataFrame(rows)


def term_over_tasks(
    ts: Sequence[int] = (1, 2, 5, 10, 20, 50, 100),
    *,
    m: int = 40,
    d: int = 100,
    k: int = 5,
    c: float = 10.0,
    noise: float = 0.5,
    n_repetitions: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """The theorem's average (1/t) sum_i ||w_i(B)||^2 over t, in the true, a random and the full space.

    One row per space and t: term with _low and _high (95 % t over repetitions), advertised (the term at the smallest t, falling
    as 1/t: what the theorem's last line says) and training_error (mean squared residual on the same examples).
    """
    found = []
    for repetition in range(1, n_repetitions + 1):
        rng = numpy_generator(seed, "term", repetition)
        true, chance = orthonormal(rng, d, k), orthonormal(rng, d, k)
        x, y, _ = draw_tasks(rng, true, max(ts), m, noise)
        for space, z in (("true", x @ true), ("random", x @ chance), ("full", x)):
            w = head_of(z, y, c)
            squares, misses = (w**2).sum(1), ((np.einsum("nmk,nk->nm", z, w) - y) ** 2).mean(1)
            found += [(space, t, squares[:t].mean(), misses[:t].mean()) for t in ts]
    rows, table = [], pd.DataFrame(found, columns=["space", "t", "term", "training_error"])
    for (space, t), block in table.groupby(["space", "t"], sort=False):
        term, start = mean_interval(block["term"]), table[(table["space"] == space) & (table["t"] == min(ts))]
        rows.append({"space": space, "t": t, "term": term.estimate, "term_low": term.low, "term_high": term.high,
                     "advertised": start["term"].mean() * min(ts) / t,
                     "training_error": block["training_error"].mean(), "n_repetitions": term.n})  # fmt: skip
    return pd.DataFrame(rows)
