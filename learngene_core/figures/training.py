"""Figures of the collective's training and of its gradient record: a table goes in, matplotlib Axes come out; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from .style import (
    ACCENT,
    CHOSEN,
    COLLECTIVE,
    FAINT,
    GREY,
    INK,
    MUTED,
    PALE,
    SEQUENTIAL,
    block_text,
    diverging,
    legend_below,
    log_where_wide,
    new_axes,
    short,
    thin,
    tidy,
)
from .words import SCORE_LABELS, criterion_label

SIZES = {  # columns of gradients.csv: label, colour, marker
    "weight_norm": ("weights", MUTED, "s"),
    "norm": ("gradient", COLLECTIVE, "o"),
    "relative_norm": ("gradient / weights", ACCENT, "D"),
}


def learning_curves(history: pd.DataFrame) -> np.ndarray:
    """Training loss and accuracy along the task sequence; returns the two axes (2,), x = epochs counted over all tasks.

    history: rows per task and epoch with phase "train" (loss, accuracy in percent); rows of phase "test" where `on_task`
    equals `task` give the held-out accuracy on the task just learned, drawn at the end of its epochs.
    """
    train = history[history["phase"] == "train"].sort_values(["task", "epoch"])
    x = pd.Series(np.arange(1, len(train) + 1), index=train.index)
    spans = x.groupby(train["task"]).agg(["min", "max"])
    own = history[(history["phase"] == "test") & (history["on_task"] == history["task"])].set_index("task")["accuracy"]
    own = own[own.index.isin(spans.index)]
    figure, axes = plt.subplots(2, 1, figsize=(10, 5), sharex=True, layout="constrained")
    for ax, column in zip(axes, ("loss", "accuracy"), strict=True):
        for i, (low, high) in enumerate(spans.to_numpy()):
            ax.axvspan(low - 0.5, high + 0.5, color=FAINT if i % 2 == 0 else "white", zorder=0, linewidth=0)
            inside = x.between(low, high)
            ax.plot(x[inside], train.loc[inside, column], color=COLLECTIVE, marker=".", ms=5)
        tidy(ax)
    axes[0].set(ylabel="training loss\n(nats)", ylim=(0, None))
    axes[1].set(ylabel="accuracy (%)", xlabel="epoch, counted over all tasks", ylim=(-4, 104))
    axes[1].plot([], [], color=COLLECTIVE, marker=".", label="training images (as augmented)")
    if len(own):
        axes[1].scatter(
            spans.loc[own.index, "max"], own, marker="D", s=44, color=ACCENT, zorder=3, label="held-out, same task"
        )
    axes[0].set_xlim(0.5, len(train) + 0.5)
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    top = axes[0].secondary_xaxis("top")
    top.set_xticks(spans.mean(axis=1), thin(list(spans.index)))
    top.set_xlabel("source task")
    top.tick_params(length=0)
    legend_below(axes[1], 2)
    return axes


def accuracy_matrix(matrix: pd.DataFrame, *, chance: float | None = None, ax: Axes | None = None) -> Axes:
    """Held-out accuracy in percent: after training task t (rows) on the classes of task s (columns), s <= t.

    matrix: index = task, columns = on_task, as `collective.accuracy_matrix` gives it; NaN cells stay empty. chance: of a task
    in percent, marked in the colour bar.
    """
    n = len(matrix)
    ax = new_axes(ax, 8.4, 6) if n > 6 else new_axes(ax, 7, 4.6)
    numbers = {"annot": n <= 15, "fmt": ".0f", "annot_kws": {"fontsize": 14 if n <= 10 else 9}}
    look = {"vmin": 0, "vmax": 100, "cmap": SEQUENTIAL, "linewidths": 1 if n <= 20 else 0, **numbers}
    import seaborn as sns  # seconds to import, needed here alone

    sns.heatmap(matrix, ax=ax, mask=matrix.isna().to_numpy(), cbar_kws={"label": "held-out accuracy (%)"}, **look)
    if chance is not None:
        bar = ax.collections[0].colorbar.ax
        bar.axhline(chance, color=ACCENT, linewidth=3)
        bar.set_yticks(sorted({*range(0, 101, 20)} - {20 * round(chance / 20)} | {chance}))
        words = [f"chance {y:g}" if y == chance else f"{y:g}" for y in bar.get_yticks()]
        bar.set_yticklabels(words)
    ax.set_xticks(np.arange(matrix.shape[1]) + 0.5, thin(list(matrix.columns)))
    ax.set_yticks(np.arange(n) + 0.5, thin(list(matrix.index)), rotation=0)
    ax.set(xlabel="tested on the classes of task", ylabel="after training task")
    ax.tick_params(length=0)
    return ax


def gradient_sizes(gradients: pd.DataFrame, task: int | None = None) -> np.ndarray:
    """Size of weights and gradients per layer in one task (by default the last), and their ratio; returns the axes (2,).

    gradients: gradients.csv (task, layer, norm, weight_norm, relative_norm), means over a task's epochs. Both axes are
    logarithmic where they span more than a factor of ten, and begin at zero elsewhere.
    """
    task = int(gradients["task"].max()) if task is None else task
    means = gradients[gradients["task"] == task].groupby("layer", sort=False)[list(SIZES)].mean()
    axes = plt.subplots(1, 2, figsize=(11.5, 4.8), layout="constrained")[1]
    x = np.arange(1, len(means) + 1)
    for name, (label, colour, marker) in SIZES.items():
        ax = axes[1] if name == "relative_norm" else axes[0]
        ax.plot(x, means[name], color=colour, marker=marker, markersize=7, label=label)
    for ax in axes:
        values = np.concatenate([line.get_ydata() for line in ax.get_lines()])
        if not (wide := log_where_wide(ax.yaxis, values)):
            ax.set_ylim(0, 1.12 * values.max())
        ax.set_ylabel("norm over all entries of a layer" + (" (log)" if wide else "") if ax is axes[0] else
                      "gradient norm / weight norm" + (" (log)" if wide else ""))  # fmt: skip
        _layer_axis(ax, list(means.index))
        tidy(ax, grid="y")
    scale = ", log axis" if axes[0].get_yscale() == "log" else ""
    axes[0].set_title(f"weights and gradients in task {task}{scale}")
    axes[1].set_title("gradient relative to its weights")
    legend_below(axes[0])
    return axes


def grown_cells(gradients: pd.DataFrame) -> list[tuple[int, str]]:
    """(task, layer) of every layer that begins a task with more weights than it ended the task before with.

    gradients: gradients.csv or `Record.table` (task, layer, n_weights).
    """
    sizes = gradients.pivot_table(index="task", columns="layer", values="n_weights", sort=False).sort_index()
    grew = sizes.diff() > 0
    return [(int(task), str(layer)) for task in grew.index for layer in grew.columns if grew.loc[task, layer]]


def layer_task_heatmap(
    values: np.ndarray,
    layers: Sequence[str],
    label: str,
    *,
    ax: Axes | None = None,
    centre: float | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    chosen: Sequence[str] = (),
    grown: Iterable[tuple[int, str]] = (),
) -> Axes:
    """The appendix's picture: a quantity per layer (rows, the input at the top) and source task (columns, from 1).

    values: (t, l), NaN (hatched) where there is none; label: name and unit for the colour bar. With `centre` the colours
    diverge from that value; with vmin and vmax the scale is fixed, and values beyond it take its end colours. The block
    `chosen` is framed, cells in `grown` (task, layer) have a dot: these layers had just been widened.
    """
    values = np.asarray(values, float)
    n_tasks, n_layers = values.shape
    ax = new_axes(ax, 9, 5)
    norm, low, high = heat_norm(values, centre, vmin, vmax)
    mesh = ax.pcolormesh(np.ma.masked_invalid(values.T), cmap=SEQUENTIAL if centre is None else diverging(), norm=norm)
    beyond = np.nanmax(values, initial=-np.inf) > norm.vmax, np.nanmin(values, initial=np.inf) < norm.vmin
    extend = {(True, True): "both", (True, False): "max", (False, True): "min"}.get(beyond, "neither")
    bar = ax.figure.colorbar(mesh, ax=ax, label=label, pad=0.02, extend=extend)
    if high > low and extend == "neither":
        bar.ax.set_ylim(low, high)  # only what occurs, also where colours are symmetric about the centre
    bar.outline.set_visible(False)
    ax.patch.set(facecolor=FAINT, hatch="///", edgecolor=PALE)  # seen where there is no value
    ax.spines[:].set_visible(False)
    ax.invert_yaxis()
    ax.set_xticks(np.arange(n_tasks) + 0.5, thin(range(1, n_tasks + 1), 12), rotation=0)
    ax.set_yticks(np.arange(n_layers) + 0.5, list(layers), rotation=0)
    ax.set(xlabel="source task", ylabel="layer (input at the top)")
    ax.tick_params(length=0)
    if marked := [(task - 0.5, list(layers).index(layer) + 0.5) for task, layer in grown if layer in layers]:
        look = {"s": 26, "color": "white", "edgecolor": INK, "linewidth": 0.8, "label": "just widened"}
        ax.scatter(*zip(*marked, strict=True), **look)
    if chosen:
        first = list(layers).index(chosen[0]) + 1
        frame_layers(ax, (first, first + len(chosen) - 1), n_tasks)
    return ax


def frame_layers(ax: Axes, block: tuple[int, int], n_tasks: int) -> Rectangle:
    """A frame around the rows of a block (first, last: numbers from 1) of `layer_task_heatmap`; returns it."""
    look = {"fill": False, "edgecolor": ACCENT, "linewidth": 4, "clip_on": False}
    return ax.add_patch(Rectangle((0, block[0] - 1), n_tasks, block[1] - block[0] + 1, **look))


def heat_norm(
    values: np.ndarray, centre: float | None = None, vmin: float | None = None, vmax: float | None = None
) -> tuple[Normalize, float, float]:
    """The colour scale of `layer_task_heatmap`, symmetric about `centre` where there is one, and the ends of what occurs."""
    seen = values[np.isfinite(values)]
    low = vmin if vmin is not None else min(seen, default=0.0)
    high = vmax if vmax is not None else max(seen, default=1.0)
    half = 0.0 if centre is None else max(high - centre, centre - low)
    return Normalize(low, high) if centre is None else Normalize(centre - half, centre + half), low, high


def profile_with_null(
    table: pd.DataFrame,
    *,
    chosen: Sequence[str] = (),
    label: str | None = None,
    ax: Axes | None = None,
    legend: bool = True,
) -> Axes:
    """Score per layer beside its null, the mean of untrained networks +- 2 standard deviations; `chosen` is shaded.

    table: of one criterion, as `criteria.score` gives it (layer, score, null, null_sd). Where all values are positive and
    span more than a factor of ten, the axis is logarithmic and says so. More than one criterion: ValueError.
    """
    if table["layer"].duplicated().any():
        raise ValueError("the table holds more than one criterion; choose one, or use criteria_panel")
    layers, x = list(table["layer"]), np.arange(1, len(table) + 1)
    score, null = table["score"].to_numpy(float), table["null"].to_numpy(float)
    spread = 2 * table["null_sd"].to_numpy(float)
    ax = new_axes(ax, 9, 4.6)
    if chosen:
        first = layers.index(chosen[0]) + 1
        text = f"chosen: {block_text(chosen)}"
        ax.axvspan(first - 0.5, first + len(chosen) - 0.5, color=CHOSEN, alpha=0.55, linewidth=0, label=text, zorder=0)
    ax.fill_between(x, null - spread, null + spread, color=GREY, alpha=0.35, linewidth=0, zorder=1)
    ax.plot(x, null, color=MUTED, linestyle="--", linewidth=1.8, label="untrained networks, mean ± 2 sd")
    ax.plot(x, score, color=COLLECTIVE, marker="o", markersize=6, label="collective", zorder=3)
    name = str(table["criterion"].iloc[0]) if "criterion" in table else ""
    label = label or SCORE_LABELS.get(name, name or "score")
    label += " (log)" if log_where_wide(ax.yaxis, np.concatenate([score, null - spread, null + spread])) else ""
    ax.set_ylabel(label)
    _layer_axis(ax, layers)
    tidy(ax, grid="y")
    if "inherit" in table:
        inherit_arrow(ax, table["inherit"].iloc[0])
    if legend:
        legend_below(ax)
    return ax


def _layer_axis(ax: Axes, layers: Sequence[str]) -> None:
    """Layers along x, from 1 on."""
    names = short(layers)
    ax.set_xticks(range(1, len(layers) + 1), names, rotation=45 if max(map(len, names)) > 2 else 0)
    ax.set(xlabel="layer (conv number)" if names != list(layers) else "layer", xlim=(0.5, len(layers) + 0.5))


def inherit_arrow(ax: Axes, inherit: str, size: float = 13) -> None:
    """An arrow right of the axes, down or up: "inherit where low" (or high), in letters of `size` points."""
    ends = ((1.03, 0.08), (1.03, 0.92)) if inherit == "low" else ((1.03, 0.92), (1.03, 0.08))
    look = {"arrowstyle": "-|>", "color": ACCENT, "linewidth": 2.2, "mutation_scale": 16}
    ax.annotate("", *ends, xycoords="axes fraction", textcoords="axes fraction", arrowprops=look)
    words = {"rotation": 90, "va": "center", "fontsize": size, "color": INK, "transform": ax.transAxes}
    ax.text(1.06, 0.5, f"inherit where {inherit}", **words)


def profiles_with_null(tables: Mapping[str, pd.DataFrame], chosen: Mapping[str, Sequence[str]]) -> np.ndarray:
    """`profile_with_null` for several thresholds or criteria of one unit beside each other on one axis; returns the axes (n,).

    tables: title of the panel -> the table of one criterion; chosen: the same titles -> the block it chooses (may lack some).
    """
    figure, axes = plt.subplots(
        1, len(tables), figsize=(5.8 * len(tables), 5), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        block = tuple(chosen.get(title, ()))
        profile_with_null(table.drop(columns="inherit", errors="ignore"), chosen=block, ax=ax, legend=False)
        ax.set_title(f"{title}\nchosen: {block_text(block)}")
    for ax in axes[0, 1:]:
        ax.set_ylabel("")
    if "inherit" in (last := list(tables.values())[-1]):
        inherit_arrow(axes[0, -1], last["inherit"].iloc[0])
    _profile_legend(figure, axes[0, 0])
    return axes[0]


def _profile_legend(figure: Figure, ax: Axes) -> None:
    """One legend below panels of `profile_with_null`, with the lines of `ax`."""
    lines = [h for h in ax.get_lines() if not h.get_label().startswith("_")]
    patch = Rectangle((0, 0), 1, 1, color=CHOSEN, alpha=0.55)
    labels = [line.get_label() for line in lines] + ["the block it chooses"]
    figure.legend([*lines, patch], labels, loc="outside lower center", ncols=3)


def criteria_panel(scores: pd.DataFrame, chosen_by: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Every criterion beside its null, one small panel each, with the block it would choose; returns the axes (n,).

    scores: `criteria.score_all` (scores.csv); chosen_by: criterion -> layers it chooses (may lack some). An arrow beside each
    panel says whether the criterion inherits where it is low or high.
    """
    names = list(dict.fromkeys(scores["criterion"]))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    size = (3.9 * columns + 0.1, 4 * rows + 0.6)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax, name in zip(grid.flat, names, strict=False):
        chosen = tuple(chosen_by.get(name, ()))
        table = scores[scores["criterion"] == name]
        profile_with_null(table.drop(columns="inherit"), chosen=chosen, ax=ax, legend=False)
        inherit_arrow(ax, table["inherit"].iloc[0])
        ax.set_title(f"{criterion_label(name)}\nchooses {block_text(chosen)}", fontsize=14)
        ax.set_xticks(ax.get_xticks(), thin(short(table["layer"]), 7), rotation=0)
    for ax in grid.flat[len(names) :]:
        ax.set_visible(False)
    _profile_legend(figure, grid.flat[0])
    return grid.flat[: len(names)]
