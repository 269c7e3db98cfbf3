"""One run in the layer explorer: its controls by the names of `choice.Options`, its pictures, and the numbers of a choice."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd

import learngene_core

from ..figures.atlas import GAINS
from ..figures.style import INK, MUTED, REFUTED, block_text
from ..figures.tables import signed
from .blocks import ANY
from .choice import Choice, Options, Rank, criteria_of, make_choice
from .keeping import command_line
from .pictures import AtlasPicture, HeatPicture, NetworkPicture, accuracy_picture, profile_picture
from .runview import RunView
from .threshold import thresholds

FONT = "font-family:Verdana,sans-serif;line-height:1.45"
COPY = "navigator.clipboard.writeText(this.dataset.line).then(()=>{this.textContent='copied'})"
SIZES = {  # pixels; alone on a page, and one of two beside each other
    False: {"heat": (410, 390), "profile": (360, 390), "network": (770, 190), "side": (570, 455)},
    True: {"heat": (350, 340), "profile": (320, 340), "network": (670, 170), "side": (570, 455)},
}
PICTURES = ("heat", "profile", "network", "side")
FEWEST = 3  # tasks of which limits are shown


def controls_of(views: Sequence[RunView]) -> dict[str, widgets.Widget]:
    """Name -> widget, at the settings of the first run."""
    cfg = views[0].cfg

    def toggle(*options: tuple[str, Any]) -> widgets.ToggleButtons:
        return widgets.ToggleButtons(options=options, style={"button_width": "auto"}, layout={"width": "auto"})

    wide = {"continuous_update": False, "style": {"description_width": "initial"}}
    layers = max(len(view.layers) for view in views)
    controls = {
        "threshold": widgets.SelectionSlider(
            options=[("5.0e-10", 5e-10)], description="threshold t", layout={"width": "470px"}, **wide
        ),
        "sign": toggle(("entry > t", "positive"), ("|entry| > t", "absolute")),
        "normalisation": toggle(("share", "share"), ("relative", "relative"), ("z", "z")),
        "aggregation": toggle(("mean", "mean"), ("last", "last")),
        "criterion": widgets.Dropdown(options=["released"], description="criterion", layout={"width": "290px"}),
        "length": widgets.SelectionSlider(
            options=[("any", ANY), *((str(k), k) for k in range(1, layers + 1))],
            value=min(cfg.n_blocks, layers),
            description="blocks",
            layout={"width": "250px"},
            **wide,
        ),
        "budget": widgets.FloatSlider(
            min=1,
            max=100,
            step=1,
            value=100,
            description="at most % of parameters",
            layout={"width": "380px"},
            readout_format=".0f",
            **wide,
        ),
        "gains": toggle(("target tasks", "novel"), ("pseudo-tasks", "pseudo")),
        "by_hand": toggle(("by criterion", False), ("by hand", True)),
        "picked": widgets.IntRangeSlider(
            value=(1, 1), min=1, max=layers, description="first to last", layout={"width": "470px"}, **wide
        ),
    }
    controls["sign"].value = cfg.sign
    offer(controls, views, cfg.threshold, cfg.criterion)
    return controls


def offer(
    controls: dict[str, widgets.Widget], views: Sequence[RunView], threshold: float | None = None, criterion: str = ""
) -> None:
    """Thresholds and criteria that the runs have by now; what was set stays, a threshold at the nearest edge."""
    slider, menu = controls["threshold"], controls["criterion"]
    wanted, named = slider.value if threshold is None else threshold, criterion or menu.value
    edges = sorted({5e-10, 5e-4}.union(*(thresholds(view.record) for view in views if view.record is not None)))
    nearest = min(edges, key=lambda edge: abs(edge / wanted - 1) if wanted else edge)
    slider.options = [(f"{edge:.1e}", edge) for edge in edges]
    slider.value = nearest
    names = list(dict.fromkeys(name for view in views for name in criteria_of(view)))
    menu.options = names
    menu.value = named if named in names else names[0]
    pseudo = any(v.atlas is not None and v.atlas["pseudo_gain"].notna().any() for v in views)
    controls["gains"].disabled = not pseudo


class Panel:
    """The widgets of one run; `show` draws what given options say about it.

    `pictures`: heat, profile, network and side (the atlas, or the accuracies of a run without one) -> Image; `numbers`, `line`:
    HTML; `choice`: the last one shown.
    """

    def __init__(self, view: RunView, home: Path, *, narrow: bool = False):
        self.home, self.narrow, self.choice = home, narrow, Choice(None)
        self.options, sizes = Options(), SIZES[narrow]
        unstretched = {"align_self": "flex-start", "max_width": "100%", "margin": "0", "display": "none"}
        self.pictures = {name: widgets.Image(format="png", layout=unstretched) for name in PICTURES}
        self.title, self.numbers, self.line, self.note = (widgets.HTML() for _ in range(4))
        self.save = widgets.Button(
            description="save this learngene",
            icon="save",
            tooltip="cut it out of the network, into a file",
            layout={"width": "190px"},
            disabled=True,
        )
        self.saved = widgets.HTML()
        record = widgets.HBox([self.pictures["heat"], self.pictures["profile"]])
        left = widgets.VBox([record, self.pictures["network"]], layout={"width": f"{6 + sizes['network'][0]}px"})
        right = widgets.VBox([self.pictures["side"], self.numbers], layout={"width": f"{6 + sizes['side'][0]}px"})
        below = widgets.VBox([widgets.HBox([self.save, self.saved]), self.line])
        flow = {"flex_flow": "column" if narrow else "row wrap", "align_items": "flex-start"}
        middle = widgets.HBox([left, right], layout=flow)
        self.box = widgets.VBox([self.title, self.note, middle, below], layout={"margin": "0"})
        self.set_view(view)

    def set_view(self, view: RunView) -> None:
        """Another state of the run; its pictures are begun anew."""
        self.view = view
        self._drawn: dict[str, tuple] = {}
        self._heat = HeatPicture(view, *SIZES[self.narrow]["heat"]) if view.record else None
        self._network = NetworkPicture(view, *SIZES[self.narrow]["network"]) if view.record else None
        self._atlases: dict[str, AtlasPicture] = {}
        self.title.value = f"<b style='{FONT};color:{INK}'>{html.escape(view.name)}</b>"
        self.note.value = self._missing()
        self.note.layout.display = None if self.note.value else "none"

    def show(self, options: Options) -> None:
        """Draw everything that these options change. Raises as `make_choice`."""
        self.options = options
        if self.view.record is None:
            self.numbers.value = _line("no task is finished yet; what there is appears here after the first one")
            return
        if options.criterion in criteria_of(self.view):
            choice = make_choice(self.view, options)
        else:  # another run beside it has it
            choice = Choice(None, why=f"this run has no criterion {options.criterion!r}")
        self.choice = choice
        size = SIZES[self.narrow]["profile"]
        read = options.threshold, options.sign, choice.block
        self._picture(
            "heat", (*read, options.normalisation, options.aggregation), lambda: self._heat.draw(options, choice)
        )
        self._picture("profile", (*read, options.criterion), lambda: profile_picture(self.view, options, choice, *size))
        self._picture("network", read[2:], lambda: self._network.draw(choice))
        self._show_side(options, choice)
        self.numbers.value = numbers_table(self.view, options, choice)
        self.line.value = self._command()
        self.save.disabled, self.saved.value = choice.block is None or not self.view.final, ""

    def save_choice(self) -> Path:
        """Save the chosen learngene in the run folder (for a shipped run: where the command was started) and say where."""
        folder = self.view.path if self.home == self.view.path.parent else self.home
        path = learngene_core.save_choice(self.view, self.options, self.choice, folder)  # torch is imported only now
        self.saved.value = _line(f"saved: {path}")
        return path

    def _picture(self, name: str, state: tuple, draw: Callable[[], bytes]) -> None:
        """Draw a picture unless it already shows this state."""
        if self._drawn.get(name) != state:
            self.pictures[name].value = draw()
            self.pictures[name].layout.display = None  # an empty one would be a broken one
            self._drawn[name] = state

    def _show_side(self, options: Options, choice: Choice) -> None:
        """The atlas; the accuracies where there is none."""
        if self.view.atlas is None:
            self._picture(
                "side", ("accuracy",), lambda: accuracy_picture(self.view.accuracy, *SIZES[self.narrow]["side"])
            )
            return
        gains = options.gains if self.view.atlas[GAINS[options.gains][0]].notna().any() else "novel"
        if gains not in self._atlases:
            self._atlases[gains] = AtlasPicture(self.view, gains, *SIZES[self.narrow]["side"])
        how = "picked" if options.by_hand else options.criterion
        state = (gains, how, choice.block, choice.best)
        self._picture("side", state, lambda: self._atlases[gains].draw(options, choice))

    def _missing(self) -> str:
        """What this run lacks, and the command that makes it."""
        if not self.view.final:
            return _line(
                "the collective is not finished; this fills in while it trains. To go on with it:",
                self.view.missing("collective"),
            )
        if self.view.atlas is None:
            return _line(
                "this run has no atlas, so nothing is known of real gains. To make it:", self.view.missing("atlas")
            )
        if self.view.scores is None:
            return _line(
                "layer_scores.csv is missing, so some criteria are too. To make it:", self.view.missing("measures")
            )
        return ""

    def _command(self) -> str:
        if self.choice.block is None:
            return ""
        line = command_line(self.view, self.options, self.choice, self.home)
        text = html.escape(line, quote=True)
        button = f'<button class="lg-copy" data-line="{text}" onclick="{COPY}">copy</button>'
        words = "repeats this choice"
        if "--redo" in line and self.home == self.view.path.parent:
            words += "; copy the run folder to that name first, and nothing is trained again"
        code = f"<code class='lg-line'>{text}</code> <span style='color:{MUTED}'>{words}</span>"
        return f"<div style='{FONT};color:{INK}'>{button} {code}</div>"


def _line(words: str, code: str = "") -> str:
    code = f" <code>{html.escape(code)}</code>" if code else ""
    return f"<div style='{FONT};color:{INK}'>{html.escape(words)}{code}</div>"


def numbers_table(view: RunView, options: Options, choice: Choice) -> str:
    """What is known of a choice, as a small HTML table; every value has a class `lg-...` of its own."""
    if choice.block is None:
        return f"<div class='lg-why' style='{FONT};color:{REFUTED}'>no choice: {html.escape(choice.why)}</div>"
    by = "picked by hand" if options.by_hand else f"chosen by {options.criterion}"
    rows = [(by, "block", f"<b>{block_text(choice.layers)}</b>{_nulls_text(choice.nulls)}")]
    if choice.predicted is not None:
        rows.append(
            (f"predicted by {options.criterion}", "predicted", _ranks_text(choice.predicted, len(choice.layers)))
        )
    row = choice.measured
    if row is not None and pd.notna(row["pseudo_gain"]):
        text = _gain_text(row["pseudo_gain"], row["pseudo_low"], row["pseudo_high"], row["pseudo_n"])
        rows.append(("predicted on pseudo-tasks", "pseudo", f"{text}, n = {row['pseudo_n']:.0f}"))
    if row is not None:
        text = _gain_text(row["gain"], row["gain_low"], row["gain_high"], row["n_tasks"])
        rows.append(("real gain", "gain", f"<b>{text}</b>, n = {row['n_tasks']:.0f} target tasks"))
        rows.append(("real rank", "real", _ranks_text(choice.real, len(choice.layers))))
        rows.append(
            ("", "caution", "who chooses by looking at these gains has to measure on others: --set target_seed=1")
        )
    elif view.atlas is not None:
        rows.append(("real gain", "gain", "not computed for this block (atlas_blocks=full computes all)"))
    inherited = f"{choice.parameters:,} parameters ({choice.parameters_share:.1f} % of all blocks'), "
    inherited += f"{choice.flops / 1e6:,.2f} MFLOP an image ({choice.flops_share:.1f} % of the network's)"
    rows.append(("inherited", "inherited", inherited))
    cells = "".join(
        f"<tr><td style='color:{MUTED};padding-right:14px;white-space:nowrap'>{html.escape(name)}</td>"
        f"<td class='lg-{key}' style='color:{INK}'>{value}</td></tr>"
        for name, key, value in rows
    )
    return f"<table style='{FONT};font-size:13px;border-spacing:0 1px'>{cells}</table>"


def _nulls_text(nulls: Rank | None) -> str:
    return f" <span class='lg-nulls'>(so do {nulls[0]} of {nulls[1]} untrained networks)</span>" if nulls else ""


def _ranks_text(ranks: tuple[Rank, Rank], length: int) -> str:
    (alike, n_alike), (place, n) = ranks
    return f"rank {place} of {n} blocks; among those of length {length}, {alike} of {n_alike}"


def _gain_text(gain: float, low: float, high: float, n: float) -> str:
    """A gain with its limits; of fewer than three tasks they would be wider than all gains, and are left out."""
    limits = f" [{signed(low)}, {signed(high)}]" if np.isfinite([low, high]).all() and n >= FEWEST else ""
    return f"{signed(gain)}{limits} points"
