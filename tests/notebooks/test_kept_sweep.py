"""The sweep that ships with notebook 08: what its grid asks for, whole, small, and what the notebook says of it."""

from __future__ import annotations

import re

import pytest
import yaml

from learngene_core.config import Config
from learngene_core.study import notebooks, sweeptable
from learngene_core.study.grid import load_grid, ready

KEPT = notebooks.folder() / "results" / "sweep"
REPORT = notebooks.numbered("08_*.ipynb")[0]


def test_the_kept_sweep_is_that_of_its_grid_and_whole():
    grid, rows = load_grid("blocks"), sweeptable.read_sources([KEPT])
    asked = {(point.cfg.seed, f"{point.cfg.layers[0]}-{point.cfg.layers[-1]}") for point in grid.points}
    cfg = grid.points[0].cfg
    inherit = rows[rows["method"] == "learngene"]
    assert set(zip(inherit["collective"], inherit["inherited"], strict=True)) == asked
    each = inherit.groupby(["collective", "inherited", "family", "shots"]).size()
    assert len(each) == len(asked) * 2 * len(cfg.shots) and (each == cfg.n_target_tasks * cfg.n_inits).all()
    gains = sweeptable.paired_gains(rows)
    assert len(gains) == len(inherit) and rows["accuracy"].between(0, 100).all()


def test_the_kept_sweep_is_small_and_names_no_machine():
    files = [path for path in KEPT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    for path in files:
        assert not re.search(r"/(home|tmp|root|Users)/", path.read_text(encoding="utf-8")), path.name


def test_the_notebook_shows_the_grid_as_it_is():
    text = "\n".join(cell.source for cell in notebooks.read(REPORT).cells if cell.cell_type == "markdown")
    (shown,) = [fence for fence in re.findall(r"```\n(.*?)```", text, re.DOTALL) if fence.startswith("preset:")]
    assert yaml.safe_load(shown) == yaml.safe_load(ready()["blocks"].read_text(encoding="utf-8"))


def test_whether_a_run_is_started_is_true_or_false():
    assert Config.from_notebook({"preset": "smoke", "try_run": False}) == Config.preset("smoke")
    assert notebooks.checked_parameters(REPORT, {"try_run": True}) == {"try_run": True}
    for bad in ("false", 0, [True]):
        with pytest.raises(ValueError, match="try_run takes true or false"):
            notebooks.checked_parameters(REPORT, {"try_run": bad})
