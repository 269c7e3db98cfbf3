"""Kept tables of checks against the world, and of which part to tune, as the pages show them. Kinds of `frontpage`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd
from keptpages import ENOUGH, Tables, joined, limits, markdown, over_ancestors

from learngene_core.analysis.statistics import mean_interval
from learngene_core.figures.words import ANCESTOR_LABELS, OPEN_SCORE_LABELS


def checks(found: Tables) -> str:
    """`checks`: shots, increment, noise and forgetting beside what was published; means over ancestors with their intervals."""
    table = found["checks"].assign(
        value=lambda t: pd.to_numeric(t["value"]), published=lambda t: pd.to_numeric(t["published"])
    )
    rows = [row for check in CHECKS for row in _check_rows(check, table[table["check"] == check])]
    return markdown(("check", "case", "published", "ours", "ancestors"), rows)


CHECKS = {
    "shots": "ten-way accuracy of frozen features, %, by images per class",
    "forgetting": "one task more: change of features (1 - CKA), accuracy (%)",
    "increment": "loss over all classes, no memory: accuracy on the last task, %",
    "noise": "a network tuned on noisy images (accuracy, %), by what is tuned",
}


def _check_rows(check: str, table: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """One row per case, in the order of the table; values of several noises are averaged within an ancestor."""
    kinds = {"forgetting": ("drift", "rho", "accuracy"), "noise": ("none", *NOISY)}.get(check, ("",))
    own = table[table["case"].isin(kinds)]
    own = own.assign(name=own["item"].where(own["case"] != "none", "clean images, as it is"))
    for (kind, name), part in own.groupby(["ancestor", "name"], sort=False):
        if check == "forgetting" and part["case"].iloc[0] == "drift" and name not in DRIFT:
            continue
        each = part.groupby("ancestor_seed")["value"].mean()
        form = ".2f" if each.abs().max() <= 1 else ".1f"
        bounded = part["case"].iloc[0] == "rho"  # a t interval would leave the range of a correlation
        middle = mean_interval(each) if len(each) >= ENOUGH and not bounded else None
        ours = (
            limits(middle.estimate, middle.low, middle.high, form) if middle else ", ".join(f"{v:{form}}" for v in each)
        )
        published = part["published"].dropna()
        theirs = f"{published.iloc[0]:g}" if len(published) else "-"
        yield (
            CHECKS[check],
            f"{ANCESTOR_LABELS.get(kind, kind)}: {CHECK_ITEMS.get(name, name)}",
            theirs,
            ours,
            str(len(each)),
        )


NOISY = ("gaussian", "impulse")
DRIFT = ("conv2", "conv7", "conv13")
CHECK_ITEMS = {
    **{str(k): f"{k} images" for k in (2, 4, 8, 16, 32)},
    **{f"conv{k}": f"drift of conv{k}" for k in (2, 7, 13)},
    "drift and depth": "Spearman's rho of drift and depth",
    "before": "accuracy on earlier classes, %, before", "after": "after the task",
    "front as before": "conv1-7 put back", "back as before": "conv8-13 put back",
    "mean x tasks": "mean over all tasks, times their number", "ratio": "ratio of the two",
    "as it is": "nothing", "part 1": "conv1-2", "part 2": "conv3-4", "part 3": "conv5-7", "part 4": "conv8-10",
    "part 5": "conv11-13", **{f"rgn part {k}": f"relative gradient norm of part {k}" for k in range(1, 6)},
}  # fmt: skip


def choice_of_score(found: Tables) -> str:
    """`checks`: AUROC of every score on the images that chose H8a's, and on those that judge it."""
    table = found["checks"]
    own = table[table["check"] == "score"].pivot(index="item", columns="case", values="value").astype(float)
    own = own.sort_values("choosing", ascending=False)
    rows = [(OPEN_SCORE_LABELS.get(n, n), f"{r['choosing']:.1f}", f"{r['judging']:.1f}") for n, r in own.iterrows()]
    return markdown(("score", "validation images against the stream", "test images against unknown ones"), rows)


def tuning(found: Tables) -> str:
    """`*-tuning`: every way to tune an inherited network, minus tuning all of it, on the same tasks, heads and batches."""
    table, rows = joined(found, "tuning"), []
    for kind, own in table.groupby("ancestor", sort=False):
        accuracy = own.groupby(["method", "ancestor_seed", "target_task"], sort=False)["accuracy"].mean()
        of_ancestors = accuracy.groupby(["method", "ancestor_seed"], sort=False).mean()
        for method in own["method"].unique():
            gain = (accuracy[method] - accuracy["full"]).groupby("ancestor_seed").mean()
            rates = ", ".join(f"{rate:g}" for rate in sorted(own.loc[own["method"] == method, "rate"].unique()))
            less = "" if method == "full" else over_ancestors(gain)
            name = TUNED.get(method, method.removeprefix("surgical:") + " alone, and the head")
            rows.append((ANCESTOR_LABELS.get(kind, kind), name, rates, f"{of_ancestors[method].mean():.1f}", less))
    return markdown(("ancestor learned", "tuned", "rates chosen", "accuracy %", "minus tuning all, points"), rows)


TUNED = {
    "full": "all blocks alike",
    "auto_rgn": "each block at a rate in proportion to its relative gradient norm (Auto-RGN)",
    "surgical:head": "the fresh head alone",
}

KINDS: dict[str, Callable[[Tables], str]] = {"checks": checks, "choice_of_score": choice_of_score, "tuning": tuning}
