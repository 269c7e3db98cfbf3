"""What the tables of many ancestors say: gains per ancestor, intervals over ancestors and over classes, verdicts. No torch.

The unit of a statement about the method is the collective model (ancestor), not the target task: an interval over the tasks of
one ancestor says nothing about the next. The claims were written before the ancestors were trained (`ancestors.yaml`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are used; stats takes half a second
import yaml

from .statistics import Interval, mean_interval

FILE = Path(__file__).with_name("ancestors.yaml")

WHO = ("data", "ancestor", "ancestor_seed", "division_seed")
"""Columns that name an ancestor in every table."""

NAMES = {
    "learngene": "last three",
    "first": "first three",
    "prefix_7": "conv1-7",
    "longest_prefix": "longest prefix",
    "recommended": "recommended",
}
"""Method of the light family -> what it inherits, as claims and figures name it."""


def task_gains(individuals: pd.DataFrame) -> pd.DataFrame:
    """Gain of every light method over the scratch of its block, one row per ancestor, shots, method and target task.

    Raises ValueError where an individual has no scratch on its task.
    """
    light = individuals[individuals["family"] == "light"]
    keys = [*WHO, "block", "shots", "target_task"]
    accuracy = light.groupby([*keys, "method"])["accuracy"].mean().unstack("method")
    scratch = accuracy.pop("scratch")
    if scratch.isna().any():
        raise ValueError("an individual has no scratch of its block on its target task")
    return accuracy.sub(scratch, axis=0).stack().dropna().rename("gain").reset_index()


def ancestor_gains(individuals: pd.DataFrame) -> pd.DataFrame:
    """Mean gain of every light method per ancestor, with its 95 % interval over target tasks; inherits: as `NAMES` says it."""
    rows = []
    for where, part in task_gains(individuals).groupby([*WHO, "method", "block", "shots"], sort=False):
        about = dict(zip([*WHO, "method", "block", "shots"], where, strict=True))
        rows.append(
            {**about, "inherits": NAMES.get(about["method"], about["method"]), **_interval(mean_interval(part["gain"]))}
        )
    return pd.DataFrame(rows)


def class_gains(individuals: pd.DataFrame, classes: Mapping[int, Sequence[str]]) -> pd.DataFrame:
    """Gain per novel class: hit rate of a light method minus that of its scratch, in percent points, averaged over the tasks
    that hold the class; one row per ancestor, method and class. classes: of every target task, in its order."""
    light = individuals[individuals["family"] == "light"]
    rows = []
    for row in light.itertuples():
        hits = [int(h) for h in row.hits.split()]
        each = sum(hits) / row.accuracy * 100 / len(hits) if row.accuracy else np.nan  # query images of a class
        where = {k: getattr(row, k) for k in (*WHO, "method", "block", "target_task")}
        rows += [
            {**where, "class": c, "rate": 100 * h / each} for c, h in zip(classes[row.target_task], hits, strict=True)
        ]
    rates = (
        pd.DataFrame(rows).groupby([*WHO, "block", "target_task", "class", "method"])["rate"].mean().unstack("method")
    )
    scratch = rates.pop("scratch")
    gains = rates.sub(scratch, axis=0).stack().dropna().rename("gain")
    return gains.groupby(level=[*WHO, "method", "class"]).mean().reset_index()


def atlas_gains(atlas: pd.DataFrame) -> pd.DataFrame:
    """Gain over its own scratch of every block of a light atlas, with its 95 % interval over tasks: one row per ancestor (where
    the table names them) and block."""
    keys = [c for c in (*WHO, "first", "last") if c in atlas]
    unit = atlas.pivot_table(index=[*keys, "target_task"], columns="method", values="accuracy", aggfunc="mean")
    gain = (unit["inherit"] - unit["scratch"]).groupby(level=keys, sort=False)
    rows = [{**dict(zip(keys, where, strict=True)), **_interval(mean_interval(part))} for where, part in gain]
    return pd.DataFrame(rows)


def choice_costs(regret: pd.DataFrame, *, tasks: str = "pseudo", scope: str = "within budget") -> pd.DataFrame:
    """Gain of what a criterion chooses minus that of the longest prefix, per criterion and kind of ancestor, over ancestors.

    regret: a row per ancestor, criterion, scope and kind of tasks (`*-regret.csv`). Columns: criterion, ancestor; cost, cost_low,
    cost_high (points, 95 % t over ancestors), n. What is not defined for a kind has no row.
    """
    part = regret[(regret["scope"] == scope) & (regret["tasks"] == tasks) & (regret["criterion"] != "longest_prefix")]
    rows = []
    for (name, kind), own in part.dropna(subset="over_prefix").groupby(["criterion", "ancestor"], sort=False):
        found = mean_interval(own["over_prefix"])
        limits = {"cost": found.estimate, "cost_low": found.low, "cost_high": found.high, "n": found.n}
        rows.append({"criterion": name, "ancestor": kind, **limits})
    return pd.DataFrame(rows)


def _interval(found: Interval) -> dict[str, float]:
    return {"gain": found.estimate, "gain_low": found.low, "gain_high": found.high, "n": found.n}


@dataclasses.dataclass(frozen=True)
class AncestorClaim:
    """One entry of ancestors.yaml; see the head of that file."""

    id: str
    data: str
    ancestor: str
    block: str
    against: str
    test: str
    minimum: float
    statement: str
    rival: str = ""
    primary: bool = False


def load_ancestor_claims(path: Path = FILE) -> list[AncestorClaim]:
    """The claims of a file. Raises TypeError for an entry with other fields."""
    return [AncestorClaim(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def judge_ancestors(
    individuals: pd.DataFrame, classes: pd.DataFrame | None = None, claims: Sequence[AncestorClaim] | None = None
) -> pd.DataFrame:
    """The claims on the individuals of many ancestors (the data's own division, 10 shots): claim, verdict, estimate, low, high,
    n (ancestors), class_low, class_high (95 % over classes; no verdict rests on it), scope. classes: from `class_gains`.

    Raises nothing for ancestors that are missing: with fewer than 5 of a kind the verdict is "not run".
    """
    own = individuals[
        (individuals["shots"] == 10) & ((individuals["data"] == "glyphs") | (individuals["division_seed"] < 0))
    ]
    gains, rows = ancestor_gains(own), []
    for claim in claims or load_ancestor_claims():
        mine = _gain_of(gains, claim, claim.ancestor)
        rivals = _gain_of(gains, claim, claim.rival) if claim.rival else None
        found = _two_kinds(mine, rivals) if claim.rival else _one_kind(mine)
        low, high = _over_classes(classes, claim) if classes is not None else (np.nan, np.nan)
        kinds = claim.ancestor + (f" minus {claim.rival}" if claim.rival else "")
        scope = f"{claim.data}, {kinds} ancestors, light, 10 shots, these novel classes"
        interval = {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
        row = {"claim": claim.id, "statement": claim.statement, "verdict": verdict(claim, found), **interval}
        rows.append({**row, "class_low": low, "class_high": high, "scope": scope})
    return pd.DataFrame(rows)


def _gain_of(gains: pd.DataFrame, claim: AncestorClaim, kind: str) -> pd.Series:
    """One number per ancestor of a kind: the gain of the claim's block, over scratch or over another block's gain."""
    part = gains[(gains["data"] == claim.data) & (gains["ancestor"] == kind)]
    by = part.pivot_table(index=["ancestor_seed", "division_seed"], columns="inherits", values="gain")
    if claim.block not in by or claim.against not in ("scratch", *by):
        return pd.Series(dtype=float)
    return (by[claim.block] - (0 if claim.against == "scratch" else by[claim.against])).dropna()


@dataclasses.dataclass(frozen=True)
class _Found(Interval):
    """An interval with what equivalence needs: its standard error and degrees of freedom."""

    error: float = np.nan
    freedom: float = np.nan


def _one_kind(values: pd.Series) -> _Found:
    n = len(values)
    error = values.std() / np.sqrt(n) if n > 1 else np.nan
    return _around(values.mean() if n else np.nan, error, n - 1, n)


def _two_kinds(a: pd.Series, b: pd.Series) -> _Found:
    """Difference of means of two kinds of ancestors (Welch)."""
    if min(len(a), len(b)) < 2:
        return _around(np.nan, np.nan, np.nan, min(len(a), len(b)))
    va, vb = a.var() / len(a), b.var() / len(b)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return _around(a.mean() - b.mean(), np.sqrt(va + vb), freedom, min(len(a), len(b)))


def _around(mean: float, error: float, freedom: float, n: int) -> _Found:
    half = scipy.stats.t.ppf(0.975, freedom) * error if n > 1 else np.nan
    return _Found(mean, mean - half, mean + half, n, error=error, freedom=freedom)


def verdict(claim: AncestorClaim, found: Any) -> str:
    """What an interval says of a claim; see the head of ancestors.yaml."""
    if found.n < 5 or not np.isfinite(found.low):
        return "not run"
    line = claim.minimum
    if claim.test == "equivalence":
        inner = scipy.stats.t.ppf(0.95, found.freedom) * found.error  # two one-sided tests at 5 %
        if abs(found.estimate) + inner < line:
            return "equivalent"
        return "refuted" if found.low > line or found.high < -line else "undecided"
    if found.low > 0 and found.estimate >= line:
        return "supported"
    if found.high < line:
        return f"positive, below the line of {line:g} points" if found.low > 0 else "refuted"
    return "undecided"


def _over_classes(classes: pd.DataFrame, claim: AncestorClaim) -> tuple[float, float]:
    """95 % limits of the claim's difference with classes as units, each averaged over ancestors."""

    def mean(kind: str, inherits: str) -> pd.Series:
        method = next((m for m, name in NAMES.items() if name == inherits), inherits)
        part = classes[(classes["data"] == claim.data) & (classes["ancestor"] == kind) & (classes["method"] == method)]
        return part.groupby("class")["gain"].mean()

    value = mean(claim.ancestor, claim.block)
    for kind, block in ((claim.rival, claim.block), (claim.ancestor, claim.against)):
        if kind and block != "scratch" and (kind, block) != (claim.ancestor, claim.block):
            value = value - mean(kind, block)
    value = value.dropna()
    if len(value) < 2:
        return np.nan, np.nan
    found = mean_interval(value)
    return found.low, found.high
