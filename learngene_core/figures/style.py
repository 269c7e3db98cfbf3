"""The visual language: one colour per method everywhere, names and units of axes, and small helpers for all figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Colormap
from matplotlib.legend import Legend
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

# Okabe-Ito and seaborn's "colorblind": told apart with any of the common colour vision deficiencies.
METHOD_COLOURS: dict[str, str] = {
    "scratch": "#4F4F4F",
    "random": "#CC78BC",
    "learngene": "#0173B2",
    "learngene_ewc": "#56B4E9",
    "first": "#029E73",
    "longest_prefix": "#C9B400",
    "recommended": "#1B0C84",
    "full": "#D55E00",
    "ncm": "#000000",
}
BLOCK_COLOURS: dict[str, str] = {  # of a block in words; where a method stands for it, the method's
    "last three": METHOD_COLOURS["learngene"],
    "first three": METHOD_COLOURS["first"],
    "conv1-7": METHOD_COLOURS["random"],
    "longest prefix": METHOD_COLOURS["longest_prefix"],
    "recommended": METHOD_COLOURS["recommended"],
    "all blocks": METHOD_COLOURS["full"],
}
GROUP_COLOURS: dict[str, str] = {"base": "#3F5873", "open_world": "#ECA540", "novel": "#B04A5A"}
SCORE_COLOURS: dict[str, str] = {
    "msp": "#4F4F4F",
    "maxlogit": "#0173B2",
    "energy": "#56B4E9",
    "openmax": "#CC78BC",
    "ncm": METHOD_COLOURS["ncm"],
    "mahalanobis": "#ECA540",
    "relative_mahalanobis": "#D55E00",
}
PART_COLOURS: dict[str, str] = {
    "start": "#3F5873",
    "grown": "#9DB4CE",
    "new": "#DE8F05",
    "inherited": METHOD_COLOURS["learngene"],
    "ancestor": "#AEB9C6",
    "fresh": "#E6E3DC",
    "pool": "#8C8C8C",
    "head": "#5F5F5F",
}
# Roles. Whatever is drawn takes its colour from here; `tests/test_style.py` holds the figures to it.
INK, MUTED, GREY = "#222222", "#5F5F5F", "#8C8C8C"  # words and zero lines; lesser words; nulls, chance, edges
PALE, FAINT = "#C4C4C4", "#F2F2F2"  # what joins or surrounds data; what lies below them
COLLECTIVE = PART_COLOURS["start"]  # the collective's own curve
ACCENT, CHOSEN = "#DE8F05", "#F3C87A"  # what is chosen, new or a baseline; the same as a shade below data
SUPPORTED, POSITIVE, REFUTED = "#0173B2", "#029E73", "#C44E00"
MARKS = ((ACCENT, "-"), (INK, "-"), ("#029E73", (0, (2.2, 1.1))), ("#7A3E9D", (0, (1, 0.8))), ("#56B4E9", "-"))
SEQUENTIAL = "viridis"  # for layers, tasks and shares


# Lines, ticks and edges as in seaborn's theme "ticks", without importing it.
TICKS = {"color": ".15", "major.size": 6, "major.width": 1.25, "minor.size": 4, "minor.width": 1}
THEME = {
    "axes.axisbelow": True,
    "axes.edgecolor": ".15",
    "axes.grid": False,
    "axes.labelcolor": ".15",
    "axes.linewidth": 1.25,
    "axes.prop_cycle": plt.cycler(
        color=[
            "#0173B2",
            "#DE8F05",
            "#029E73",
            "#D55E00",
            "#CC78BC",
            "#CA9161",
            "#FBAFE4",
            "#949494",
            "#ECE133",
            "#56B4E9",
        ]
    ),
    "font.sans-serif": ["Arial", "DejaVu Sans", "Liberation Sans", "Bitstream Vera Sans", "sans-serif"],
    "grid.color": ".8",
    "grid.linewidth": 1,
    "legend.title_fontsize": 14,
    "lines.solid_capstyle": "round",
    "patch.edgecolor": "w",
    "patch.force_edgecolor": True,
    "text.color": ".15",
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in TICKS.items()},
}


def use_style() -> None:
    """Set matplotlib's defaults for this session: opaque white (also in dark notebooks), readable at a projector.

    A figure of at most 11.8 x 5.2 inches, on a slide of 1280 x 720 pixels, has titles and legends of 20 pixels, ticks of 18.
    """
    text = {"font.size": 13, "axes.titlesize": 15, "axes.labelsize": 14, "legend.fontsize": 14}
    ticks = {"xtick.labelsize": 13, "ytick.labelsize": 13, "axes.titlepad": 9.0}
    paper = {"figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white"}
    frame = {"figure.dpi": 100, "figure.constrained_layout.use": True, "legend.frameon": False, "lines.linewidth": 2.2}
    plt.rcParams.update(THEME | text | ticks | paper | frame)


def layer_colours(layers: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """A colour per layer, from dark (input) to light (head); also serves for tasks along the sequence."""
    colours = plt.get_cmap("viridis_r")(np.linspace(0, 1, len(layers) + 2)[-2:0:-1])  # without the two ends
    return dict(zip(layers, [tuple(map(float, colour[:3])) for colour in colours], strict=True))


def diverging() -> Colormap:
    """The colours of what has a middle that means something: seaborn's "vlag", blue to red."""
    import seaborn  # takes half a second, and many notebooks draw nothing of this kind

    return seaborn.color_palette("vlag", as_cmap=True)


def short(layers: Sequence[str]) -> list[str]:
    """Layer names for narrow ticks: conv1, conv2+1 -> 1, 2+1; other names stay whole."""
    plain = all(name.startswith("conv") for name in layers)
    return [name.removeprefix("conv") if plain else name for name in layers]


def block_text(layers: Sequence[str]) -> str:
    """A block of neighbouring layers in words: "conv11 to conv13"; "none" when there is none."""
    if not layers:
        return "none"
    return layers[0] if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"


def new_axes(ax: Axes | None, width: float = 9.0, height: float = 4.5) -> Axes:
    """`ax`, or the axes of a new figure of `width` x `height` inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def tidy(ax: Axes, *, grid: str = "") -> None:
    """No frame at the top and right; a pale grid along `grid` ("x", "y", "both" or "") below the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(True, axis=grid, color="#E4E4E4", linewidth=0.9)


def log_where_wide(axis: Axis, values: np.ndarray) -> bool:
    """A logarithmic `axis` where the finite values are positive and span more than a factor of ten; whether it is one."""
    values = values[np.isfinite(values)]
    wide = bool(values.size and values.min() > 0 and values.max() > 10 * values.min())
    if wide:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() < 100 * values.min() else (1,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    return wide


def legend_below(ax: Axes, ncols: int = 3, *, points: float = 52, **options: object) -> Legend:
    """A legend under the axes, `points` below their lower edge, so that it covers neither data nor tick labels."""
    shift = ScaledTranslation(0, -points / 72, ax.figure.dpi_scale_trans)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": ax.transAxes + shift}
    return ax.legend(ncols=ncols, borderaxespad=0, columnspacing=1.4, handlelength=1.6, **(place | options))


def thin(labels: Sequence[object], most: int = 20) -> list[str]:
    """The labels as text, all but every k-th blank where there are more than `most`."""
    step = -(-len(labels) // most)
    return [str(label) if i % step == 0 else "" for i, label in enumerate(labels)]


def in_order(names: Sequence[str], known: Mapping[str, object]) -> list[str]:
    """`names` without repeats, those of `known` first and in its order, then the others as they come."""
    unique = list(dict.fromkeys(names))
    return [name for name in known if name in unique] + [name for name in unique if name not in known]


def montage(pixels: np.ndarray, gap: int = 2) -> np.ndarray:
    """Pictures (rows, k, 3, h, w) uint8 as one (rows * (h + gap) - gap, k * (w + gap) - gap, 3), white between them."""
    rows, k, _, height, width = pixels.shape
    sheet = np.full((rows, height + gap, k, width + gap, 3), 255, dtype=np.uint8)
    sheet[:, :height, :, :width] = pixels.transpose(0, 3, 1, 4, 2)
    return sheet.reshape(rows * (height + gap), k * (width + gap), 3)[: -gap or None, : -gap or None]


def dot(
    ax: Axes, y: float, row: pd.Series, column: str, colour: str, *, hollow: bool = False, marker: str = "o"
) -> bool:
    """An estimate with its limits; whether there is one."""
    middle, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if np.isnan(middle):
        return False
    ax.plot([low, high], [y, y], color=colour, linewidth=1.6 if hollow else 2.6, solid_capstyle="butt")
    ax.scatter([middle], [y], s=44, color="white" if hollow else colour, edgecolor=colour, linewidth=1.6,
               marker=marker, zorder=3)  # fmt: skip
    return True


def stripe(ax: Axes, n: int) -> None:
    """Pale stripes below every other of `n` rows, from the top down, and no tick marks."""
    for y in range(0, n, 2):
        ax.axhspan(y - 0.5, y + 0.5, color=FAINT, linewidth=0, zorder=-1)
    ax.set_ylim(n - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    tidy(ax, grid="x")


def right_of(ax: Axes, y: float, words: str, colour: str = INK, up: float = 0, **options: object) -> None:
    """Words right of the axes, `up` points above height `y` of the data."""
    place = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
    ax.annotate(words, (1.02, y), (0, up), fontsize=13, color=colour, **(place | options))
