"""What the fields of a configuration must agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .checking import nearest
from .presets import CONTROL_NAMES, METHODS, PAPER_WIDTHS, PRESETS

if TYPE_CHECKING:
    from .config import Config


def check_together(cfg: Config) -> None:
    """Rules between fields. Raises ValueError that names the field."""
    if cfg.preset_name not in PRESETS:
        raise ValueError(
            f"unknown preset {cfg.preset_name!r}{nearest(cfg.preset_name, PRESETS)}; there are {', '.join(PRESETS)}"
        )
    for name in ("shots", "methods", "tune_rates", "tune_ewc"):
        if not getattr(cfg, name):
            raise ValueError(f"{name} is empty")
    _check_names(cfg)
    if cfg.held_out_images == 1:
        raise ValueError("held_out_images = 1 cannot be halved into validation and test; use 2 or more, or 0 for all")
    if cfg.n_target_tasks == 1:
        raise ValueError("n_target_tasks = 1 gives no interval and no paired test; use 2 or more")
    if "learngene_ewc" in cfg.methods and not cfg.individual_ewc:
        raise ValueError(
            "individual_ewc = 0 makes learngene_ewc the same as learngene; leave learngene_ewc out of methods, "
            "or give a strength above 0"
        )
    if cfg.criterion == "recommended" and not cfg.layers and not cfg.atlas_pseudo_tasks:
        raise ValueError("criterion = recommended needs pseudo-tasks; set atlas_pseudo_tasks above 0")
    if cfg.carry_momentum and not cfg.momentum:
        raise ValueError("carry_momentum needs a momentum above 0")
    if cfg.growth != "none" and cfg.growth_start > cfg.n_source_tasks:
        raise ValueError(
            f"growth_start = {cfg.growth_start}, but n_source_tasks = {cfg.n_source_tasks}; "
            "use growth=none for the final widths at once"
        )
    if any(t > cfg.n_source_tasks for t in cfg.deepen_before):
        raise ValueError(f"deepen_before = {cfg.deepen_before}, but n_source_tasks = {cfg.n_source_tasks}")
    if cfg.n_blocks > len(PAPER_WIDTHS):
        raise ValueError(f"n_blocks = {cfg.n_blocks}: the collective has {len(PAPER_WIDTHS)} blocks")


def _check_names(cfg: Config) -> None:
    """Methods, controls and the rates of methods name what there is. Raises ValueError."""
    known = {method for methods in METHODS.values() for method in methods}
    for method in cfg.methods:
        if method not in known:
            raise ValueError(
                f"unknown method {method!r} in methods{nearest(method, known)}; there are {', '.join(sorted(known))}"
            )
    for entry in cfg.individual_rates:
        family, _, rest = entry.partition(":")
        method, _, value = rest.partition("=")
        try:
            good = method in METHODS.get(family, ()) and 1e-8 <= float(value) <= 10
        except ValueError:
            good = False
        if not good:
            raise ValueError(
                f"individual_rates holds {entry!r}: each entry reads 'family:method=rate', e.g. 'light:scratch=0.02'"
            )
    for name in cfg.controls:
        if name not in (*CONTROL_NAMES, "all", "none"):
            known = (*CONTROL_NAMES, "all", "none")
            raise ValueError(
                f"unknown control {name!r} in controls{nearest(name, known)}; there are {', '.join(known)}"
            )
