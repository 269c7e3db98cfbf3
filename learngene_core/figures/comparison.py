"""Figures that compare methods: always within one family and block, with intervals and paired gains. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..analysis import statistics
from .style import (
    BLOCK_COLOURS,
    GREY,
    INK,
    METHOD_COLOURS,
    MUTED,
    in_order,
    legend_below,
    new_axes,
    right_of,
    stripe,
    tidy,
)
from .tables import checked, estimate_text
from .words import DATA_LABELS, FAMILY_LABELS, METHOD_LABELS

NO_TRAINING = "none"  # the family of methods that train nothing: shown as a reference line, never as a rival
DASHES = {"learngene_ewc": (0, (4, 1.5)), "random": (0, (1, 1)), "first": (0, (4, 1.5)), "full": (0, (6, 1, 1, 1))}
SCRATCH_DASHES = (0, (4, 2))  # of the scratches of several blocks


def training_curves(curves: pd.DataFrame, *, n_way: int = 5) -> np.ndarray:
    """Query accuracy per epoch and method: a row of panels per `shots`, a panel per family; returns the axes (shots, families).

    curves: curves.csv (family, method, shots, epoch, n_tasks). Drawn is `query_accuracy` in percent, with chance, 100 / n_way,
    dotted; a table without it shows the training loss in nats, in which methods hardly differ. A band is +- 1 sd over tasks where
    the table has the column (`query_accuracy_sd`, `loss_sd`). Where no method was trained, one panel says so.
    """
    families = in_order([f for f in curves["family"] if f != NO_TRAINING], FAMILY_LABELS)
    if not families:
        return empty_panels("no method of this run is trained", 1)
    column = "query_accuracy" if "query_accuracy" in curves else "loss"
    shots = sorted(curves["shots"].unique())
    size = (5.8 * len(families) if len(families) > 1 else 8.8, 3.3 * len(shots) + 1.1)
    axes = plt.subplots(
        len(shots), len(families), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )[1]
    for row, n_shots in zip(axes, shots, strict=True):
        for ax, family in zip(row, families, strict=True):
            part = curves[(curves["family"] == family) & (curves["shots"] == n_shots)]
            _curve_panel(ax, part, column)
            if column != "loss":
                ax.axhline(100 / n_way, color=GREY, linestyle=":", label=f"chance ({100 / n_way:.0f} %)")
            ax.set_title(_panel_title(family, n_shots, part["n_tasks"]))
            tidy(ax, grid="y")
        row[0].set_ylabel("training loss\n(cross-entropy, nats)" if column == "loss" else "query accuracy (%)")
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].set_xlim(1, max(2, curves["epoch"].max()))
    for ax in axes[-1]:
        ax.set_xlabel("epoch of the individual")
        legend_below(ax, 2)
    return axes


def _curve_panel(ax: Axes, part: pd.DataFrame, column: str) -> None:
    """A line per method and block; where blocks have a scratch each, it is thin and dashed, in the colour of its block."""
    part = part.assign(block=part.get("block", ""))
    several = part.loc[part["method"] == "scratch", "block"].nunique() > 1
    inherits = part[~part["method"].isin(["scratch", "random"])]
    of_block = {b: in_order(list(m), METHOD_LABELS)[0] for b, m in inherits.groupby("block")["method"]}
    for method in in_order(list(part["method"]), METHOD_LABELS):
        lines = part[part["method"] == method].sort_values("epoch").groupby("block", sort=False)
        for block, line in lines:
            name, colour = METHOD_LABELS.get(method, method), METHOD_COLOURS.get(method)
            look = {"linestyle": DASHES.get(method, "-")}
            if several and method == "scratch":
                name += f" (shape of {short_block(block)})"
                colour = METHOD_COLOURS.get(of_block.get(block, method))
                look = {"linewidth": 1.4, "linestyle": SCRATCH_DASHES}
            elif several and of_block.get(block) == method:
                look = {"linestyle": "-"}  # dashes are those of its scratch
            ax.plot(line["epoch"], line[column], label=name, color=colour, **look)
            if f"{column}_sd" in line:
                edges = line[column] - line[f"{column}_sd"], line[column] + line[f"{column}_sd"]
                ax.fill_between(line["epoch"], *edges, color=colour, alpha=0.12, linewidth=0)


def short_block(block: str) -> str:
    """ "conv1-conv3" as "conv1–3"; other names as they are."""
    first, _, last = str(block).partition("-")
    if not (first.startswith("conv") and last.startswith("conv")):
        return str(block)
    return first if first == last else f"{first}\N{EN DASH}{last.removeprefix('conv')}"


def empty_panels(words: str, n: int) -> np.ndarray:
    """Axes (1, n) of a low figure that only says why it is empty."""
    axes = plt.subplots(1, n, figsize=(5.6 if n == 1 else 9, 1.6), squeeze=False, layout="constrained")[1]
    axes[0, 0].text(0.5, 0.5, words, ha="center", va="center")
    for ax in axes[0]:
        ax.set_axis_off()
    return axes


def with_shares(paired: pd.DataFrame, results: pd.DataFrame, whole: int) -> pd.DataFrame:
    """`paired` with the column `share`: inherited parameters in percent of the `whole` parameters of the collective's blocks.

    results: results.csv (family, method, shots, inherited_parameters, and block where there is one).
    """
    keys = [key for key in ("family", "block", "method", "shots") if key in paired and key in results]
    sizes = results.groupby(keys, as_index=False)["inherited_parameters"].first()
    merged = paired.merge(sizes, on=keys, how="left")
    return merged.assign(share=100 * merged["inherited_parameters"] / whole).drop(columns="inherited_parameters")


def comparison(
    paired: pd.DataFrame,
    *,
    n_way: int = 5,
    reference: str = "scratch",
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Accuracy and paired gain of every method, a row of two panels per family and `shots`; returns the axes (rows, 2).

    paired: `statistics.paired_table(results, reference=reference)`, accuracies in percent, gains in percentage points,
    both with 95 % intervals over target tasks; with a column `block` each block stands beside its own reference, with `share`
    (see `with_shares`) the inherited share of parameters is written beside each gain. All gains have one axis; `limits` are
    its ends, so that several figures can share it. Dotted: chance, 100 / n_way. Dashed: methods without training (ncm).
    """
    trained = paired[paired["family"] != NO_TRAINING]
    rows = trained if len(trained) else paired
    families = in_order(list(rows["family"]), FAMILY_LABELS)
    groups = [(f, s) for f in families for s in sorted(rows.loc[rows["family"] == f, "shots"].unique())]
    counts = [len(rows[(rows["family"] == f) & (rows["shots"] == s)]) for f, s in groups]
    size = (11.8, sum(0.36 * n + 0.8 for n in counts) + 1.2)
    heights = {"height_ratios": [n + 0.4 for n in counts], "sharex": "col"}
    axes = plt.subplots(len(groups), 2, figsize=size, squeeze=False, layout="constrained", **heights)[1]
    for (family, n_shots), (left, right) in zip(groups, axes, strict=True):
        part = _ordered(rows[(rows["family"] == family) & (rows["shots"] == n_shots)])
        still = paired[(paired["family"] == NO_TRAINING) & (paired["shots"] == n_shots)]
        _reference_lines(left, still if len(trained) else still[:0], n_way)
        _dots(left, part, "accuracy", ".1f")
        _dots(right, part, "gain", "+.1f", reference)
        left.set_title(_panel_title(family, n_shots, part["n_tasks"]), x=1, ha="right")  # apart from the one beside it
        of = "paired gain over own" if part["block"].nunique() > 1 else "paired gain over"
        right.set_title(f"{of} {METHOD_LABELS.get(reference, reference)}")
    for left, right in axes:  # sharing hides these
        left.tick_params(labelbottom=True)
        right.tick_params(labelbottom=True)
    if limits is not None and np.isfinite(limits).all():
        axes[0, 1].set_xlim(limits)
    axes[-1, 0].set_xlabel("query accuracy (%), 95 %")
    axes[-1, 1].set_xlabel("gain (percentage points), 95 %")
    handles = axes[-1, 0].get_legend_handles_labels()  # of the figure: one of the axes would take room from both panels
    axes[0, 0].figure.legend(*handles, loc="outside lower center", ncols=2)
    return axes


def _ordered(part: pd.DataFrame) -> pd.DataFrame:
    """Rows of a panel from the top down: block by block, each block's methods in the usual order."""
    part = part.assign(block=part.get("block", ""))
    blocks, methods = list(dict.fromkeys(part["block"])), in_order(list(part["method"]), METHOD_LABELS)
    place = {"block": part["block"].map(blocks.index), "method": part["method"].map(methods.index)}
    return part.loc[pd.DataFrame(place).sort_values(["block", "method"]).index].reset_index(drop=True)


def _reference_lines(ax: Axes, still: pd.DataFrame, n_way: int) -> None:
    """Chance, and the methods without training (rows of `still`), as upright lines; a band is the 95 % interval."""
    ax.axvline(100 / n_way, color=GREY, linestyle=":", label=f"chance ({100 / n_way:.0f} %)")
    for _, row in still.iterrows():
        style = {"color": METHOD_COLOURS.get(row["method"], INK), "zorder": 1}
        label = f"{METHOD_LABELS.get(row['method'], row['method'])} (no training)"
        ax.axvline(row["accuracy"], linestyle="--", linewidth=1.6, label=label, **style)
        ax.axvspan(row["accuracy_low"], row["accuracy_high"], alpha=0.1, linewidth=0, **style)


def _dots(ax: Axes, part: pd.DataFrame, column: str, form: str, reference: str = "") -> None:
    """A dot with its interval per row of `part`, and the numbers at the right edge."""
    for y, row in part.iterrows():
        method, middle, low, high = row["method"], row[column], row[f"{column}_low"], row[f"{column}_high"]
        if method == reference or np.isnan(middle):
            right_of(ax, y, "reference" if method == reference else "no reference", MUTED)
            continue
        colour = METHOD_COLOURS.get(method, INK)
        ax.plot([low, high], [y, y], color=colour, linewidth=2.6, solid_capstyle="butt")
        ax.scatter([middle], [y], s=48, color=colour, zorder=3)
        text = f"{middle:{form}}"
        if column == "gain" and not np.isnan(low):  # the numbers that decide; of accuracies the line says enough
            text += f"  [{low:{form}}, {high:{form}}]"
        if column == "gain" and "share" in part and pd.notna(row["share"]):
            text += f",  inherits {share_text(row['share'])}"
        right_of(ax, y, text.replace("-", "\N{MINUS SIGN}"))
    names = [METHOD_LABELS.get(method, method) for method in part["method"]]
    if part["block"].nunique() > 1:
        names = [f"{name}, {short_block(block)}" for name, block in zip(names, part["block"], strict=True)]
    ax.set_yticks(range(len(part)), names if column == "accuracy" else [""] * len(part))
    ax.set_ylim(len(part) - 0.5, -0.5)
    if column == "gain":
        ax.axvline(0, color=INK, linewidth=1.2, zorder=1)
    for y in np.flatnonzero(part["block"].ne(part["block"].shift()).to_numpy())[1:]:
        ax.axhline(y - 0.5, color=GREY, linewidth=1)
    ax.tick_params(axis="y", length=0)
    tidy(ax, grid="x")


def share_text(share: float) -> str:
    """A share in percent with as many digits as say something: "0.9 %", "48 %"."""
    return f"{share:.1f} %" if share < 9.95 else f"{share:.0f} %"


def paired_dots(
    results: pd.DataFrame,
    family: str,
    method: str | Sequence[str],
    reference: str = "scratch",
    *,
    shots: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The paired difference of every target task as a dot, sorted, with the mean and its 95 % interval, per method.

    results: results.csv; initial weights are averaged within a task. Methods and reference are of the same `family` and block
    (with a column `block` each method has the reference of its own); with several `shots` one must be named. Raises ValueError
    for what the table does not hold, or pairs that miss a half.
    """
    methods = [method] if isinstance(method, str) else list(method)
    ax = new_axes(ax, 10, 4.9)
    start, n_tasks, where = 0, [], None
    for name in methods:
        part = _one_pair(results, family, name, reference, shots)
        row = statistics.paired_table(part, reference=reference).set_index("method").loc[name]
        means = part.groupby(["method", "target_task"])["accuracy"].mean()
        gains = (means[name] - means[reference]).sort_values(kind="stable")
        x, colour = start + np.arange(1, len(gains) + 1), METHOD_COLOURS.get(name, INK)
        ends = (x[0] - 0.5, x[-1] + 0.5)
        ax.fill_between(ends, row["gain_low"], row["gain_high"], color=colour, alpha=0.18, linewidth=0)
        mean = estimate_text(row["gain"], row["gain_low"], row["gain_high"], 1)
        ax.plot(ends, [row["gain"]] * 2, color=colour, label=f"{METHOD_LABELS.get(name, name)}: {mean}")
        ax.scatter(x, gains, s=50, color=colour, edgecolor="white", zorder=3)
        start, where = start + len(gains) + 2, part["shots"].iloc[0]
        n_tasks.append(row["n_tasks"])
    ax.axhline(0, color=INK, linewidth=1.2)
    ax.set(xlabel="target tasks, sorted by their gain", ylabel="paired gain\n(percentage points)", xticks=[])
    ax.set_title(
        f"gain over {METHOD_LABELS.get(reference, reference)}, a dot per task: "
        + _panel_title(family, where, pd.Series(n_tasks))
    )
    ax.set_xlim(0, start - 1)
    tidy(ax, grid="y")
    legend_below(ax, 2, points=34, title="mean, and its 95 % interval as a band")
    return ax


def _one_pair(results: pd.DataFrame, family: str, method: str, reference: str, shots: int | None) -> pd.DataFrame:
    """The rows of two methods of one family, block and number of shots. Raises ValueError that lists what there is."""
    part = results[results["family"] == family]
    if shots is None and part["shots"].nunique() == 1:
        shots = int(part["shots"].iloc[0])
    part = part[(part["shots"] == shots) & part["method"].isin([method, reference])]
    if "block" in part:
        part = part[part["block"].isin(part.loc[part["method"] == method, "block"])]
    if missing := {method, reference} - set(part["method"]):
        there = results[["family", "shots", "method"]].drop_duplicates().itertuples(index=False)
        raise ValueError(
            f"no {sorted(missing)[0]!r} of family {family!r} with shots {shots}; there are "
            + ", ".join(f"{f}:{m} ({s} shots)" for f, s, m in there)
        )
    return part


def _panel_title(family: str, shots: int, n_tasks: pd.Series) -> str:
    """ "light, 10 shots (n = 20 tasks)": what a panel shows, and of how many tasks."""
    fewest, most = int(min(n_tasks)), int(max(n_tasks))
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    unit = "task" if count == "1" else "tasks"
    return f"{FAMILY_LABELS.get(family, family)}, {shots} shots (n = {count} {unit})"


HATCHES = ("", "////", "....", "xxxx")  # one per data set
PANEL_TITLES = {"light": "light individuals", "same_shape": "individuals of the collective's shape"}


def gain_bars(gains: pd.DataFrame) -> np.ndarray:
    """What each inherited block gains over its own scratch, and how much it takes along: a panel per family; returns the axes.

    gains: columns data, family, block ("last three", "first three", "longest prefix", "all blocks", or any other words), gain,
    gain_low, gain_high (points) and share (inherited parameters, percent of the parameters of all blocks). Bars of the data
    sets stand beside each other, the second hatched; all panels have one axis.

    Raises StudyError for a table without rows or columns.
    """
    needed = ("data", "family", "block", "gain", "gain_low", "gain_high", "share")
    table = checked(gains, needed, "the table of gains")
    families, data = in_order(list(table["family"]), FAMILY_LABELS), in_order(list(table["data"]), DATA_LABELS)
    rows = max(table[table["family"] == f]["block"].nunique() for f in families)
    size = (5.6 * len(families) + 0.6, rows * (0.3 * len(data) + 0.24) + 1.6)
    axes = plt.subplots(1, len(families), figsize=size, sharex=True, squeeze=False, layout="constrained")[1][0]
    for ax, family in zip(axes, families, strict=True):
        part = table[table["family"] == family]
        _bar_panel(ax, part, in_order(list(part["block"]), BLOCK_COLOURS), data)
        ax.set(title=PANEL_TITLES.get(family, family), xlabel="gain over own scratch (points), 95 % interval")
    for ax in axes:
        ax.set_ylim(rows - 0.5, -0.5)
    if len(data) > 1:
        looks = [{"color": MUTED} if not h else {"facecolor": "white", "edgecolor": MUTED, "hatch": h} for h in HATCHES]
        handles = [Patch(label=DATA_LABELS.get(n, n), **look) for n, look in zip(data, looks, strict=False)]
        axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=len(data))
    return axes


def _bar_panel(ax: Axes, part: pd.DataFrame, blocks: Sequence[str], data: Sequence[str]) -> None:
    """Bars of one family, grouped by block, with 95 % intervals; gain and inherited share at the right."""
    height = 0.8 / len(data)
    ax.axvline(0, color=INK, linewidth=1.2, zorder=3)
    for row in part.itertuples():
        k, block = data.index(row.data), blocks.index(row.block)
        y, colour = (
            block + (k - (len(data) - 1) / 2) * height,
            BLOCK_COLOURS.get(row.block, MUTED),
        )
        hatch = HATCHES[k % len(HATCHES)]
        look = {"color": colour} if not hatch else {"facecolor": "white", "edgecolor": colour, "hatch": hatch}
        ax.barh(y, row.gain, height * 0.88, linewidth=1.4, zorder=2, **look)
        ax.plot([row.gain_low, row.gain_high], [y, y], color=INK, linewidth=1.8, zorder=4)
        right_of(ax, y, f"{row.gain:+.1f},  inherits {share_text(row.share)}".replace("-", "\N{MINUS SIGN}"))
    ax.set_yticks(range(len(blocks)), blocks)
    stripe(ax, len(blocks))
