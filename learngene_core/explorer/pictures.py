"""The pictures of the layer explorer: a run's tables and a choice go in, the bytes of a PNG come out; no torch.

They are drawn at fixed places on figures without pyplot, which no other code can see or has to close, in a few hundredths of
a second each.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from PIL import Image

from ..criteria import quiet, score
from ..figures.atlas import GAINS, atlas_map, frame_blocks, square
from ..figures.networks import mark_blocks, marked_network
from ..figures.style import SEQUENTIAL, diverging
from ..figures.training import (
    accuracy_matrix,
    frame_layers,
    grown_cells,
    heat_norm,
    layer_task_heatmap,
    profile_with_null,
)
from ..figures.words import criterion_label
from .choice import Choice, Options
from .runview import RunView
from .threshold import LABELS, layer_task_values

DPI = 72  # points are pixels: the sizes of the visual language, for a screen


def png(pixels: np.ndarray) -> bytes:
    """Pixels (h, w, 4) uint8 as PNG, packed quickly rather than tightly."""
    packed = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(packed, "png", compress_level=1)
    return packed.getvalue()


class Layered:
    """A figure whose lower part is drawn once; `over` draws a few more artists on a copy of it."""

    def __init__(self, figure: Figure):
        self.canvas = FigureCanvasAgg(figure)
        self.canvas.draw()
        self._below = self.canvas.copy_from_bbox(figure.bbox)

    def over(self, artists: Sequence[Artist] = ()) -> bytes:
        """The PNG with these artists of the figure on top."""
        self.canvas.restore_region(self._below)
        for artist in sorted(artists, key=lambda artist: artist.get_zorder()):
            self.canvas.figure.draw_artist(artist)
        return png(np.asarray(self.canvas.buffer_rgba()))


def _figure(width: int, height: int) -> Figure:
    """An empty figure of so many pixels; places are given, not solved for."""
    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI, layout="none", facecolor="white")


def _axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Axes between these margins, in pixels from each side."""
    width, height = figure.get_size_inches() * DPI
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )


class HeatPicture:
    """The gradient record of a run, layers x tasks, under one set of options or another."""

    def __init__(self, view: RunView, width: int = 410, height: int = 390):
        figure = _figure(width, height)
        self.record = view.record
        self.ax = _axes(figure, 76, 48, 28, 30)
        nothing = np.zeros((len(np.unique(view.record.task)), len(view.layers)))
        layer_task_heatmap(nothing, view.layers, "", ax=self.ax, grown=grown_cells(view.record.table))
        self.mesh, *self.dots = self.ax.collections
        self.bar = self.mesh.colorbar
        self.title = self.ax.set_title("", loc="left", fontsize=13)
        for artist in (self.mesh, self.bar.ax):
            artist.set_visible(False)
        self.picture = Layered(figure)
        for artist in (self.mesh, self.bar.ax):
            artist.set_visible(True)

    def draw(self, options: Options, choice: Choice) -> bytes:
        """Under these options, with the chosen block framed."""
        looks = {name: getattr(options, name) for name in ("threshold", "sign", "normalisation", "aggregation")}
        with quiet():
            values, _ = layer_task_values(self.record, **looks)
        middle = {"share": None, "relative": 1.0, "z": 0.0}[options.normalisation]
        ends = (0.0, 0.5 if options.sign == "positive" else 1.0) if middle is None else (None, None)
        norm, low, high = heat_norm(values, middle, *ends)
        colours = SEQUENTIAL if middle is None else diverging()
        if self.mesh.get_cmap() != plt.get_cmap(colours):  # each change redraws the bar
            self.mesh.set_cmap(colours)
        self.mesh.set_array(np.ma.masked_invalid(values.T))
        self.mesh.set_norm(norm)
        self.bar.set_label(LABELS[options.normalisation])
        if high > low:
            self.bar.ax.set_ylim(low, high)
        self.bar.outline.set_visible(False)
        entry = "|entry|" if options.sign == "absolute" else "entry"
        epochs = "all epochs" if options.aggregation == "mean" else "last epochs"
        self.title.set_text(f"record: {entry} > {options.threshold:.2g}, {epochs}")
        frame = [frame_layers(self.ax, choice.block, values.shape[0])] if choice.block else []
        picture = self.picture.over([self.mesh, *self.dots, self.bar.ax, self.title, *frame])
        for artist in frame:
            artist.remove()
        return picture


def profile_picture(view: RunView, options: Options, choice: Choice, width: int = 360, height: int = 390) -> bytes:
    """The criterion's score per layer beside its null, with the chosen block shaded."""
    figure = _figure(width, height)
    ax = _axes(figure, 74, 48, 8, 30)
    table, name = choice.table, options.criterion
    if table is None:  # no score per layer; the record as it is released says something of the layers all the same
        name = "released"
        table = score(view.record, name, threshold=options.threshold, sign=options.sign)
    profile_with_null(table.drop(columns="inherit"), chosen=choice.layers, ax=ax, legend=False)
    null = "; grey: untrained" if np.isfinite(table["null"]).any() else ""
    figure.text(6 / width, 1 - 9 / height, f"{criterion_label(name)}{null}", va="top", fontsize=11.5)
    return Layered(figure).over()


class NetworkPicture:
    """The network of a run, with one block or another marked."""

    def __init__(self, view: RunView, width: int = 770, height: int = 190):
        figure = _figure(width, height)
        self.shape = view.shape
        self.ax = marked_network(self.shape, ax=_axes(figure, 4, 2, 4, 4))
        self.picture = Layered(figure)

    def draw(self, choice: Choice) -> bytes:
        """With the chosen block."""
        marks = mark_blocks(self.ax, self.shape, choice.layers)
        picture = self.picture.over(marks)
        for artist in marks:
            artist.remove()
        return picture


class AtlasPicture:
    """The map of a run's gains (those of `gains`, as in `atlas_map`), with one choice or another marked."""

    def __init__(self, view: RunView, gains: str, width: int = 570, height: int = 455):
        figure = _figure(width, height)
        self.ax = atlas_map(view.atlas, gains=gains, ax=_axes(figure, 10, 8, 54, 74))
        self.value = square(view.atlas, GAINS[gains][0], int(view.atlas["last"].max()))
        title = self.ax.get_title()
        self.ax.set_title("")
        self.ax.set_title(f"atlas: gain of inheriting a block; {title}", fontsize=13, loc="left", pad=10)
        self.picture = Layered(figure)

    def draw(self, options: Options, choice: Choice) -> bytes:
        """With the chosen block and the best that could have been chosen."""
        names = ("picked", "best of its length") if options.by_hand else (options.criterion, "best it could choose")
        marks = {name: block for name, block in zip(names, (choice.block, choice.best), strict=True) if block}
        frames = frame_blocks(self.ax, self.value, marks)
        place = {
            "loc": "lower left",
            "bbox_to_anchor": (0, 0.13),
            "borderaxespad": 0,
            "handlelength": 1.5,
            "fontsize": 11.5,
        }
        legend = Legend(self.ax, frames, [frame.get_label() for frame in frames], labelspacing=0.45, **place)
        self.ax.add_artist(legend)
        picture = self.picture.over([*frames, legend])
        for artist in (*frames, legend):
            artist.remove()
        return picture


def accuracy_picture(accuracy: pd.DataFrame, width: int = 570, height: int = 455) -> bytes:
    """Held-out accuracy after each task on each earlier one."""
    figure = _figure(width, height)
    ax = _axes(figure, 66, 58, 20, 40)
    accuracy_matrix(accuracy, ax=ax)
    ax.set_title("accuracy along the sequence of tasks", fontsize=13, loc="left")
    return Layered(figure).over()
