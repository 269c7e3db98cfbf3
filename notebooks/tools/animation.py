"""The gradient record as a film: the heat map of layers and tasks fills epoch by epoch, and at its end the choice is marked.

`python notebooks/tools/animation.py RUN FILE.gif` makes it from a run folder; matplotlib and Pillow, no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from learngene_core.config import Config
from learngene_core.criteria import best_block, options_of, quiet, score
from learngene_core.errors import StudyError, atomic, read_json, say
from learngene_core.figures.style import (
    ACCENT,
    FAINT,
    INK,
    METHOD_COLOURS,
    MUTED,
    PART_COLOURS,
    SEQUENTIAL,
    block_text,
    tidy,
    use_style,
)
from learngene_core.figures.training import layer_task_heatmap
from learngene_core.record import Record

STEP, HOLD = 110, 4000  # milliseconds of a frame, and of the last one


def record_gif(
    record: Record,
    path: Path,
    *,
    threshold: float = 5e-10,
    sign: str = "positive",
    n_blocks: int = 3,
    most_frames: int = 60,
    dpi: float = 88,
) -> tuple[str, ...]:
    """Write the film of one count of gradient entries to `path` (GIF); returns the block that the released rule then chooses.

    A frame shows, per layer and task, the share of entries above `threshold` as a mean over the epochs so far, beside its mean
    over the tasks so far; of more than `most_frames` epochs evenly spread ones are shown. Equal records are equal files.
    Raises ValueError for a threshold or sign that the record cannot give, and where nothing can be chosen.
    """
    chosen = best_block(score(record, "released", threshold=threshold, sign=sign), n_blocks)
    with plt.rc_context():
        use_style()
        frames = [_picture(figure, dpi) for figure in film(record, threshold, sign, chosen, most_frames)]
    palette = _palette()
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [STEP] * (len(small) - 1) + [HOLD]
    with atomic(path) as temporary:
        small[0].save(temporary, "GIF", save_all=True, append_images=small[1:], duration=times, loop=0, optimize=True)
    return chosen


def film(record: Record, threshold: float, sign: str, chosen: Sequence[str], most_frames: int = 60) -> Iterator[Figure]:
    """The frames one after the other, as one figure that changes; the last one marks the block `chosen`."""
    shares, tasks = record.fraction(threshold, sign), np.unique(record.task)  # (r, l)
    rows = np.unique(np.linspace(1, len(shares), min(len(shares), most_frames)).round().astype(int))
    stages = np.stack([so_far(shares, record.task, shown) for shown in rows])  # (frames, t, l)
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 5.0), width_ratios=[1.8, 1], layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    label = f"share of gradient {'|entries|' if sign == 'absolute' else 'entries'} > {threshold:g}"
    ends = {"vmin": 0, "vmax": 1 if sign == "absolute" else 0.5}  # as in notebook 03 and the threshold explorer
    heat = layer_task_heatmap(stages[-1], record.layers, label, ax=axes[0], **ends)
    heat.patch.set(hatch=None, facecolor=FAINT)
    line = _profile(axes[1], stages, record.layers)
    number = dict(zip(tasks, range(1, len(tasks) + 1), strict=True))
    for shown, now in zip(rows, stages, strict=True):
        heat.collections[0].set_array(np.ma.masked_invalid(now.T))
        line.set_xdata(_means(now))
        task, epoch = number[record.task[shown - 1]], record.epoch[shown - 1]
        heat.set_title(f"gradient record: task {task} of {len(tasks)}, epoch {epoch}", loc="left")
        if shown < rows[-1]:
            yield figure
    _mark(heat, axes[1], line.get_xdata(), record.layers, len(tasks), chosen)
    yield figure
    plt.close(figure)


def so_far(shares: np.ndarray, task: np.ndarray, shown: int) -> np.ndarray:
    """Shares (r, l) of the first `shown` epochs as means per task (t, l); NaN for tasks that have not begun."""
    seen = np.arange(len(task)) < shown
    nothing = np.full(shares.shape[1], np.nan)
    return np.stack([shares[rows].mean(0) if (rows := seen & (task == t)).any() else nothing for t in np.unique(task)])


def _means(values: np.ndarray) -> np.ndarray:
    """Means over the tasks that have begun (..., t, l) -> (..., l); NaN for a layer that was in none of them."""
    with quiet():
        return np.nanmean(values, -2)


def _profile(ax: Axes, stages: np.ndarray, layers: Sequence[str]) -> plt.Line2D:
    """The mean over tasks per layer beside the heat map, its rows at the same heights; returns its line.

    stages: (frames, t, l), so that the axis holds what any frame shows.
    """
    y, means = np.arange(len(layers)) + 0.5, _means(stages)
    low, high = np.nanmin(means), np.nanmax(means)
    (line,) = ax.plot(means[-1], y, color=PART_COLOURS["start"], marker="o", markersize=6.5)
    room = 0.06 * (high - low or 1)
    ax.set(xlim=(low - room, high + room), ylim=(len(layers), 0), yticks=[], xlabel="mean over tasks so far")
    tidy(ax, grid="x")
    ax.spines["left"].set_visible(False)
    return line


def _mark(
    heat: Axes, profile: Axes, means: np.ndarray, layers: Sequence[str], n_tasks: int, chosen: Sequence[str]
) -> None:
    """The chosen block: framed in the heat map, blue in the profile, named in the title."""
    first = list(layers).index(chosen[0])
    look = {"fill": False, "edgecolor": ACCENT, "linewidth": 4, "clip_on": False}
    heat.add_patch(Rectangle((0, first), n_tasks, len(chosen), **look))
    at = np.arange(first, first + len(chosen))
    profile.scatter(means[at], at + 0.5, s=95, color=METHOD_COLOURS["learngene"], zorder=4)
    profile.axhspan(first, first + len(chosen), color=ACCENT, alpha=0.16, linewidth=0)
    heat.set_title(f"gradient record of {n_tasks} tasks", loc="left")
    profile.set_title(f"chosen: {block_text(chosen)}", color=MUTED, fontsize=13)


def _palette() -> Image.Image:
    """The colours that all frames share: those of the heat map, greys, and those that mean something with paler steps."""
    means = np.array([to_rgb(name) for name in (ACCENT, METHOD_COLOURS["learngene"], PART_COLOURS["start"], INK)])
    paler = [1 - share * (1 - means) for share in (1, 0.8, 0.6, 0.4, 0.16)]
    shades = np.concatenate([colormaps[SEQUENTIAL](np.linspace(0, 1, 84))[:, :3], *paler])
    greys = np.linspace(0.3, 1, 24)[:, None].repeat(3, 1)
    picture = Image.new("P", (1, 1))
    picture.putpalette(np.round(255 * np.concatenate([shades, greys])).astype(np.uint8).tobytes())
    return picture


def _picture(figure: Figure, dpi: float) -> Image.Image:
    """The figure as it is now, in RGB."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())


def main(arguments: Sequence[str] | None = None) -> int:
    """`python notebooks/tools/animation.py RUN FILE.gif [THRESHOLD]`: the film of a run's record; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) not in (2, 3):
        print("usage: python notebooks/tools/animation.py RUN FILE.gif [THRESHOLD]", file=sys.stderr)
        return 2
    try:
        run, target = Path(given[0]), Path(given[1])
        cfg = Config.from_dict(read_json(run / "config.json"))
        options = options_of("released", cfg) | ({"threshold": float(given[2])} if given[2:] else {})
        chosen = record_gif(Record.load(run), target, n_blocks=cfg.n_blocks, **options)
    except (StudyError, ValueError, OSError) as error:
        print(f"animation: {error}", file=sys.stderr)
        return 1
    say(f"{target}: {target.stat().st_size / 1000:.0f} kB, chosen {block_text(chosen)}")
    return 0


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("Agg")
    sys.exit(main())
