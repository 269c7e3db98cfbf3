"""Figures of what controls, claims and the defects of the released code came to; a table goes in, Axes come out; no torch.

The tables are controls.csv, claims.csv and released.csv.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..analysis import statistics
from .style import (
    GREY,
    INK,
    METHOD_COLOURS,
    MUTED,
    PALE,
    POSITIVE,
    REFUTED,
    SUPPORTED,
    dot,
    legend_below,
    right_of,
    stripe,
)
from .tables import block_name, checked, estimate_text, with_shots
from .words import DEFECT_LABELS, METHOD_LABELS, control_label

HOLDS, ANCESTOR = ("ewc:", "l2:"), "ancestor:"  # how arms of controls.csv begin
UNITS = {  # of claims.csv: the words on the axis, and what to multiply with
    "points": ("percentage points", 1.0),
    "rho": ("rank correlation (Spearman's rho)", 1.0),
    "AUROC": ("AUROC (%)", 1.0),
    "points per million parameters": ("points per 1,000 inherited parameters", 1e-3),
}
FOOTNOTES = ("", "*", "\N{DAGGER}", "\N{DOUBLE DAGGER}", "\N{SECTION SIGN}")
VERDICTS = {
    "supported": (SUPPORTED, "o"),
    "positive, below the line": (POSITIVE, "P"),
    "equivalent": (INK, "s"),
    "refuted": (REFUTED, "X"),
    "undecided": (MUTED, "D"),
    "not run": (MUTED, "v"),
}


def controls_figure(
    controls: pd.DataFrame, *, shots: int | None = None, reference: str = "scratch", every: bool = False
) -> np.ndarray:
    """What each content control keeps of the gain, a panel per inherited block; returns the axes (blocks,).

    controls: controls.csv, raw (block, method, shots, target_task, init, accuracy, first, last); tasks are the units. The
    dashed line is the real block, `inherit`, with its 95 % limits. With reference="inherit" the panels show what a control
    loses, paired on the same tasks: the numbers that decide. In groups: content, what holds the block (as in the table), other
    ancestors; the first and last sorted by the first panel, largest on top. Only blocks with a gain to explain are drawn (its
    95 % interval lies above 0), all with `every`; where none has one, the block with the largest.
    Raises ValueError for shots or a reference that are not there.
    """
    needed = ("block", "method", "shots", "target_task", "init", "accuracy")
    rows = with_shots(checked(controls, needed, "controls.csv"), shots)
    if reference not in set(rows["method"]):
        raise ValueError(f"no reference {reference!r} in controls.csv; there are {', '.join(rows['method'].unique())}")
    blocks = [b for b in ("learngene", "first") if b in set(rows["block"])] or list(rows["block"].dropna().unique())
    blocks = blocks if every else _with_gain(rows, blocks)
    tables = {block: _paired(rows, block, reference) for block in blocks}
    order, breaks = _in_groups(pd.concat(tables.values()), reference)
    size = (11.8, 0.3 * len(order) + 1.8)
    axes = plt.subplots(1, len(blocks), figsize=size, sharex=True, squeeze=False, layout="constrained")[1][0]
    for ax, block in zip(axes, blocks, strict=True):
        _control_panel(ax, tables[block], order, reference)
        mine = rows[(rows["block"] == block) & rows.get("first", pd.Series(0, rows.index)).gt(0)]
        place = f" (conv {block_name(mine[['first', 'last']].iloc[0])})" if len(mine) else ""
        n_tasks = f"n = {int(tables[block]['n_tasks'].min())} tasks"
        ax.set_title(f"{METHOD_LABELS.get(block, block)}{place}, {n_tasks}")
        ax.set_xlabel(
            f"difference from {'scratch' if reference == 'scratch' else control_label(reference)} (points), 95 %"
        )
        ax.hlines([y - 0.5 for y in breaks], 0, 1, transform=ax.get_yaxis_transform(), color=GREY, linewidth=1)
    words = [control_label(name) for name in order]
    for ax in axes:
        ax.set_yticks(range(len(order)), words if ax is axes[0] else [""] * len(order))
    if reference == "scratch" and "inherit" in order:
        legend_below(axes[0], 2)
    return axes


def _with_gain(rows: pd.DataFrame, blocks: list[str]) -> list[str]:
    """The blocks whose gain over scratch is above 0; else the one with the largest, or all where it cannot be said."""
    if not {"inherit", "scratch"} <= set(rows["method"]):
        return blocks
    real = {block: _paired(rows, block, "scratch").loc["inherit"] for block in blocks}
    return [b for b in blocks if real[b]["gain_low"] > 0] or [max(blocks, key=lambda b: real[b]["gain"])]


def _in_groups(table: pd.DataFrame, reference: str) -> tuple[list[str], list[int]]:
    """Names of the controls from top to bottom, and the rows at which a new group begins."""
    rest = table[~table.index.duplicated() & ~table.index.isin(["inherit", "scratch"])]
    held = [name for name in rest.index if name == "frozen" or name.startswith(HOLDS)]
    rest = list(rest.sort_values("gain", ascending=False, kind="stable").index)
    content = [name for name in rest if name not in held and not name.startswith(ANCESTOR)]
    groups = [content, held, [name for name in rest if name.startswith(ANCESTOR)]]
    other = "scratch" if reference == "inherit" else "inherit"
    groups = [group for group in ([other] if other in table.index else [], *groups) if group]
    return sum(groups, []), np.cumsum([len(group) for group in groups])[:-1].tolist()


def _paired(rows: pd.DataFrame, block: str, reference: str) -> pd.DataFrame:
    """`statistics.paired_table` of one block, indexed by method; a reference kept once serves every block."""
    part = rows[rows["block"] == block]
    if reference not in set(part["method"]):
        shared = rows[rows["method"] == reference].drop_duplicates(["target_task", "init"])
        part = pd.concat([part, shared.assign(block=block)])
    return statistics.paired_table(part, reference=reference, keys=("block", "shots")).set_index("method")


def _control_panel(ax: Axes, table: pd.DataFrame, order: list[str], reference: str) -> None:
    """A dot with limits and numbers per control; the real block as a band."""
    ax.axvline(0, color=INK, linewidth=1.2, zorder=1)
    if reference == "scratch" and "inherit" in table.index:
        real = table.loc["inherit"]
        style = {"color": METHOD_COLOURS["learngene"], "zorder": 0}
        ax.axvline(real["gain"], linestyle="--", linewidth=1.6, label="the real block", **style)
        ax.axvspan(real["gain_low"], real["gain_high"], alpha=0.12, linewidth=0, **style)
    for y, name in enumerate(order):
        if name not in table.index:
            right_of(ax, y, "not computed", MUTED)
            continue
        row = table.loc[name]
        dot(ax, y, row, "gain", METHOD_COLOURS["learngene"] if name == "inherit" else INK)
        right_of(ax, y, estimate_text(row["gain"], row["gain_low"], row["gain_high"], 1))
    stripe(ax, len(order))


def claims_figure(claims: pd.DataFrame, *, only: Sequence[str] | None = None) -> np.ndarray:
    """Each claim's estimate with its 95 % limits, the least that would support it, and the verdict as a word.

    claims: claims.csv (claim, verdict, estimate, low, high, n, scope). Used where there: `unit` (claims of one unit share a
    panel; without it each has its own axis), `above` (what the lower limit must exceed: the thin line is where most of a panel
    have it, else at 0), `minimum` (the tick), `text` (beside the claim's name), `needed` (the n that would decide an undecided
    claim). Signs lead to scopes below the figure. Claims without an estimate are named below it. only: names of the claims to
    draw, by default all. Returns the axes, one per unit in order of appearance.

    Raises ValueError for an unknown verdict or a claim that is not there, StudyError where no claim has an estimate.
    """
    table = checked(claims, ("claim", "verdict", "estimate", "low", "high", "n", "scope"), "claims.csv")
    if strange := set(table["verdict"]) - set(VERDICTS):
        raise ValueError(f"unknown verdict {sorted(strange)[0]!r}; there are {', '.join(VERDICTS)}")
    if only is not None:
        if missing := set(only) - set(table["claim"]):
            raise ValueError(f"no claim {sorted(missing)[0]!r}; there are {', '.join(table['claim'])}")
        table = table[table["claim"].isin(only)]
    idle = list(table.loc[table["estimate"].isna(), "claim"])
    table = checked(_readable(table[table["estimate"].notna()]), (), "claims.csv, claims with an estimate,")
    scopes = list(table["scope"].dropna().value_counts().index)
    signs = {scope: FOOTNOTES[k] if k < len(FOOTNOTES) else f"({k})" for k, scope in enumerate(scopes)}
    table = table.assign(sign=table["scope"].map(signs).fillna(""))
    unit = table["unit"].fillna("estimate") if "unit" in table else pd.Series(range(len(table)), table.index)
    groups = {name: table[unit == name] for name in unit.unique()}
    counts = [len(part) for part in groups.values()]
    size = (11.8, sum(0.6 * n + 0.9 for n in counts) + 0.5 + 0.25 * len(scopes))
    axes = plt.subplots(len(groups), 1, figsize=size, height_ratios=[n + 0.5 for n in counts], squeeze=False,
                        layout="constrained")[1][:, 0]  # fmt: skip
    for ax, (name, part) in zip(axes, groups.items(), strict=True):
        _claim_panel(ax, part, 2 if part[["estimate", "low", "high"]].abs().max(axis=None) < 2.5 else 1)
        ax.set_xlabel(name if isinstance(name, str) else "estimate")
    least = ", and the least that would support the claim (black)" if "minimum" in table else ""
    axes[0].set_title(f"estimate with 95 % interval{least}")
    notes = ["scope: " + "\n".join(f"{signs[scope]} {scope}".strip() for scope in scopes)]
    notes += [f"without an estimate: {', '.join(idle)}"] if idle else []
    axes[0].figure.supxlabel("\n".join(notes), fontsize=13, color=MUTED)
    return axes


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """Units in words, and numbers in them."""
    if "unit" not in table:
        return table
    factor = table["unit"].map({unit: factor for unit, (_, factor) in UNITS.items()}).fillna(1.0)
    columns = [name for name in ("estimate", "low", "high", "minimum", "above") if name in table]
    names = table["unit"].map({unit: words for unit, (words, _) in UNITS.items()}).fillna(table["unit"])
    return table.assign(unit=names, **{name: table[name] * factor for name in columns})


def _claim_panel(ax: Axes, part: pd.DataFrame, digits: int) -> None:
    """Claims of one unit, from the top down."""
    above = part["above"].mode().iloc[0] if "above" in part and part["above"].notna().any() else 0
    ax.axvline(above, color=INK, linewidth=1, zorder=1)
    labels = []
    for y, row in enumerate(part.itertuples()):
        colour, marker = VERDICTS[row.verdict]
        ax.plot([row.low, row.high], [y, y], color=colour, linewidth=2.6, solid_capstyle="butt")
        ax.scatter([row.estimate], [y], s=80, color=colour, marker=marker, zorder=3)
        minimum = getattr(row, "minimum", np.nan)
        if pd.notna(minimum):
            for far, near in ((-0.34, -0.15), (0.15, 0.34)):  # above and below the marker, which it would hide
                ax.plot([minimum, minimum], [y + far, y + near], color=INK, linewidth=2, zorder=2)
        words = statistics.verdict_words(row.verdict, minimum, "")
        if row.verdict == "undecided" and pd.notna(needed := getattr(row, "needed", np.nan)):
            words += f" (n = {needed:,.0f} would decide)"
        elif row.verdict == "undecided" and row.low > getattr(row, "above", 0) and row.estimate >= minimum:
            words += " (another condition fails)"
        known = estimate_text(row.estimate, row.low, row.high, digits).replace(
            "+", ""
        )  # not all of these are differences
        right_of(ax, y, words, colour, up=9, fontweight="bold")
        right_of(ax, y, known if np.isnan(row.n) else f"{known}, n = {row.n:.0f}", up=-9)
        text = getattr(row, "text", None)
        name = f"{row.claim}{row.sign}"
        labels.append(textwrap.fill(f"{name}: {text}" if isinstance(text, str) and text else name, 30))
    ax.set_yticks(range(len(part)), labels)
    stripe(ax, len(part))


def released_figure(released: pd.DataFrame) -> np.ndarray:
    """What each defect of the released code does: accuracies, and the paired gain of the learngene; returns the axes (2,).

    released: released.csv (defects, scratch, learngene, gain, gain_low, gain_high, chosen, n_tasks). "none" stands on top and
    its interval is the band on the right, "all" at the bottom; the chosen layers are in bold where they differ from "none".
    """
    columns = ("defects", "scratch", "learngene", "gain", "gain_low", "gain_high", "chosen", "n_tasks")
    table = checked(released, columns, "released.csv").set_index("defects")
    names = [n for n in ("none",) if n in table.index] + [n for n in table.index if n not in ("none", "all")]
    names += [n for n in ("all",) if n in table.index]
    axes = plt.subplots(1, 2, figsize=(11.8, 0.28 * len(names) + 1.6), sharey=True, layout="constrained")[1]
    for y, row in enumerate(table.loc[names].itertuples()):
        axes[0].plot([row.scratch, row.learngene], [y, y], color=PALE, linewidth=2, zorder=1)
        differs = "none" in names and row.chosen != table.loc["none", "chosen"]
        dot(axes[1], y, pd.Series(row._asdict()), "gain", METHOD_COLOURS["learngene"])
        look = {"colour": REFUTED, "fontweight": "bold"} if differs else {}
        right_of(axes[1], y, str(row.chosen) if pd.notna(row.chosen) else "none", **look)
    for method in ("scratch", "learngene"):
        look = {"s": 52, "color": METHOD_COLOURS[method], "marker": "o" if method == "learngene" else "s"}
        axes[0].scatter(table.loc[names, method], range(len(names)), label=method, zorder=3, **look)
    axes[1].axvline(0, color=INK, linewidth=1.2, zorder=1)
    if "none" in names:
        axes[1].axvspan(
            *table.loc["none", ["gain_low", "gain_high"]], color=METHOD_COLOURS["learngene"], alpha=0.1, linewidth=0
        )
    axes[0].set_yticks(range(len(names)), [DEFECT_LABELS.get(name, name.replace("_", " ")) for name in names])
    low, high = int(table["n_tasks"].min()), int(table["n_tasks"].max())
    count = f"n = {low} tasks" if low == high else f"n = {low} to {high} tasks"
    axes[0].set(xlabel="query accuracy (%)", title=f"one at a time ({count})")
    axes[1].set(xlabel="gain over scratch (points), 95 %", title="learngene against scratch")
    axes[1].text(1.02, 1, "chosen", transform=axes[1].transAxes, va="bottom", fontsize=13, color=MUTED)
    for ax in axes:
        stripe(ax, len(names))
    legend_below(axes[0], 2)
    return axes
