"""The layer explorer: a run's gradient record, its network and its atlas under one set of controls; one run, or two side by side.

In a notebook `layer_explorer(run)`, in a browser `learngene explore RUN`. Every redraw reads tables that are in memory. A run
that still trains fills in: its folder is looked at again every few seconds until it is finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import html
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from ..errors import StudyError
from ..figures.style import INK, MUTED, REFUTED, use_style
from ..runs.run import Run
from .choice import Options
from .live import LiveRun
from .panel import FONT, Panel, controls_of, offer
from .runview import RunView, fingerprint
from .server import RUNS
from .sliders import unwatched

SECONDS = 3.0  # between two looks at a run that still trains
STYLE = """<style>
.lg-controls {background: #F4F5F7; border-radius: 6px; padding: 4px 10px; margin: 2px 0 6px 0}
.lg-controls .widget-label {color: #555555; margin-left: 10px}
.lg-controls .widget-hbox > .widget-label:first-child {font-weight: bold; width: 52px; margin-left: 0}
.lg-controls .widget-toggle-button.mod-active {background: #0173B2; color: white; box-shadow: none}
.lg-line {background: #F4F5F7; padding: 2px 6px; border-radius: 4px}
</style>"""
PATIENCE = 20  # looks without a process at work (or with an error) after which it is left alone


def layer_explorer(*runs: Run | str | Path, home: str | Path | None = None) -> widgets.VBox | None:
    """The explorer of one or two run folders as a widget; its `.explorer` is the `LayerExplorer`.

    home: the folder for what is made of a choice, by default the one that the run folder is in. None in a kernel that nobody
    watches. Raises StudyError for what is no run folder, ValueError for more than two.
    """
    if unwatched():
        return None
    explorer = LayerExplorer([getattr(run, "path", run) for run in runs], home=home)
    explorer.follow()
    return explorer.box


def served() -> widgets.Widget:
    """What the page of `learngene explore` shows: the explorer of the runs that the command names, or why there is none."""
    use_style()
    given = json.loads(os.environ.get(RUNS, '{"runs": []}'))
    try:
        return layer_explorer(*given["runs"], home=given.get("home"))
    except (StudyError, ValueError, OSError) as error:  # the folder has changed since the command looked at it
        return widgets.HTML(f"<p style='{FONT}'>{html.escape(str(error))}</p>")


def guarded(method: Callable) -> Callable:
    """A callback of the explorer, in which nobody would see an error: it is shown as one line above the pictures, until
    something that the reader does works. What runs by itself takes back its own errors alone."""

    @functools.wraps(method)
    def call(self: LayerExplorer, *arguments: Any) -> Any:
        name = method.__name__
        try:
            result = method(self, *arguments)
        except Exception as error:
            known = isinstance(error, StudyError | ValueError | OSError)
            words = " ".join(f"{'' if known else f'{type(error).__name__}: '}{error}".split())
            self.error.value = f"<div class='lg-error' style='{FONT};color:{REFUTED}'>{html.escape(words)}</div>"
            self._failed = name
            return None
        if name != "_tick" or self._failed == name:
            self.error.value, self._failed = "", ""
        return result

    return call


class LayerExplorer:
    """Controls over one or two panels; `.controls` by the names of `Options` and `picked`, `.panels`, `.error`, `.box`.

    Setting `controls["threshold"].value` redraws, as moving the slider does.
    """

    def __init__(self, paths: Sequence[str | Path], *, home: str | Path | None = None):
        if not 1 <= len(paths) <= 2:
            raise ValueError(f"one run or two, not {len(paths)}")
        states = [fingerprint(Path(path)) for path in paths]  # before they are read: what comes later is seen later
        views = [RunView.load(path) for path in paths]
        self._busy, self._failed = False, ""
        self.controls = controls_of(views)
        self.error, self.status = widgets.HTML(), widgets.HTML()
        self.refresh_button = widgets.Button(description="refresh", icon="refresh", layout={"width": "100px"})
        homes = [Path(home).absolute() if home else view.path.parent for view in views]
        self.panels = [Panel(view, at, narrow=len(views) > 1) for view, at in zip(views, homes, strict=True)]
        self.watches = [LiveRun(view.path, view.cfg) for view in views]
        self._states, self._task = states, None
        self.box = widgets.VBox([*self._head(), self.error, widgets.HBox([panel.box for panel in self.panels])])
        self.box.explorer, self.box.controls = self, self.controls
        for name, control in self.controls.items():
            control.observe(functools.partial(self._changed, name), names="value")
        for panel in self.panels:
            panel.save.on_click(functools.partial(self._save, panel))
        self.refresh_button.on_click(self._refresh)
        self._redraw()
        self._say()

    def options(self) -> Options:
        """What the controls say."""
        values = {name: control.value for name, control in self.controls.items()}
        picked, by_hand = values.pop("picked"), values.pop("by_hand")
        return Options(**values, by_hand=tuple(picked) if by_hand else None)

    def _changed(self, name: str, _: object = None) -> None:
        if not self._busy:
            self._moved(name)

    @guarded
    def _moved(self, name: str) -> None:
        if name == "picked":  # whoever moves it wants to see that block
            with self._quietly():
                self.controls["by_hand"].value = True
        self._draw()

    @guarded
    def _redraw(self) -> None:
        self._draw()

    def _draw(self) -> None:
        options = self.options()
        for panel in self.panels:
            panel.show(options)
        block = next((p.choice.block for p in self.panels if p.choice.block), None)
        if options.by_hand is None and block:
            with self._quietly():
                self.controls["picked"].value = block

    @guarded
    def _save(self, panel: Panel, _: object = None) -> None:
        panel.save_choice()

    # a run that still trains ------------------------------------------------------------------------------------------
    @guarded
    def _refresh(self, _: object = None) -> None:
        self.look()

    def look(self) -> bool:
        """Read the folders again, draw what is new, and say how far the runs are; whether a process works on one of them.

        Raises StudyError for a folder that is damaged or gone.
        """
        states = [fingerprint(panel.view.path) for panel in self.panels]
        for panel, state, known in zip(self.panels, states, self._states, strict=True):
            if state != known:
                panel.set_view(RunView.load(panel.view.path))
        if states != self._states:
            self._states = states
            with self._quietly():
                offer(self.controls, [panel.view for panel in self.panels])
            self._draw()
        return self._say()

    def _say(self) -> bool:
        states = [watch.look() for watch in self.watches]
        unfinished = [not panel.view.final or panel.view.atlas is None for panel in self.panels]
        told = [str(s) for s, less in zip(states, unfinished, strict=True) if less or s.running]
        self.status.value = (
            f"<span class='lg-status' style='{FONT};color:{MUTED}'>{html.escape('; '.join(told))}</span>"
        )
        return any(state.running for state in states)

    def follow(self) -> None:
        """Look again every few seconds, in the kernel's own loop, until nothing works on the runs; without a loop, never."""
        everything = all(panel.view.final and panel.view.atlas is not None for panel in self.panels)
        if everything and not any(watch.look().running for watch in self.watches):
            return
        with contextlib.suppress(RuntimeError):  # no loop: the button is there
            self._task = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        idle = 0
        while idle < PATIENCE:
            await asyncio.sleep(SECONDS)
            idle = 0 if self._tick() else idle + 1

    @guarded
    def _tick(self) -> bool:
        return self.look()

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Controls are set without a redraw for each."""
        self._busy, before = True, self._busy
        try:
            yield
        finally:
            self._busy = before

    def _head(self) -> list[widgets.Widget]:
        """Title and state of the runs, then the controls in three rows: the record, the choice, the block."""
        c, flow = self.controls, {"flex_flow": "row wrap", "align_items": "center"}
        title = widgets.HTML(f"{STYLE}<span style='{FONT};font-size:17px;color:{INK}'><b>Layer explorer</b></span>")
        rows = [
            ["record", c["threshold"], c["sign"], "show", c["normalisation"], "epochs", c["aggregation"]],
            ["choice", c["criterion"], c["length"], c["budget"], "map", c["gains"]],
            ["block", c["by_hand"], c["picked"]],
        ]
        boxes = [
            widgets.HBox([widgets.Label(item) if isinstance(item, str) else item for item in row], layout=flow)
            for row in rows
        ]
        controls = widgets.VBox(boxes)
        controls.add_class("lg-controls")
        return [widgets.HBox([title, self.refresh_button, self.status], layout=flow), controls]
