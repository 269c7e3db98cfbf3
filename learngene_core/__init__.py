"""A study of *Learngene: From Open-World to Your Learning Task* (Wang et al., AAAI 2022).

The files beside this one are the paper's method, read from `tasks` to `fewshot`; the folders are the study around it (see
README.md here). Public names are imported when they are first used, so `import learngene_core` is light and torch comes only
when it is needed.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# More than one thread: OpenMP's busy waiting makes small steps collapse when anything else runs. Before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

__version__ = "0.1.0"

_EXPORTS = {
    "errors": ("StudyError",),
    "config": ("Config", "Machine"),
    "tasks": ("ImageSet", "SourceTask", "TargetTask"),
    "network": ("ConvNet", "flop_count", "parameter_count"),
    "growth": ("WideningMap", "growth_schedule", "widen"),
    "training": ("Recipe", "evaluate", "fit"),
    "ewc": ("Penalty", "fisher_diagonal"),
    "gradients": ("Recorder", "block_weights"),
    "record": ("Record",),
    "learngene": ("Learngene", "build_individual", "cut_learngene", "light_shape"),
    "collective": ("Collective", "accuracy_matrix", "sequence_summary", "train_collective"),
    "fewshot": ("evaluate_few_shot",),
    "data.images": ("load_images",),
    "data.division": ("Division", "divide", "source_tasks", "target_tasks"),
    "runs.run": ("Run",),
    "runs.states": ("load_collective",),
    "analysis.statistics": ("Interval", "mean_interval", "paired_interval", "paired_table"),
    "analysis.atlas": ("compute_atlas",),
    "analysis.controls": ("compute_controls",),
    "analysis.claims": ("load_claims",),
    "analysis.own": ("Observer",),
    "analysis.tuning": ("tune",),
    "openworld.noticing": ("OpenWorld", "open_world"),
    "explorer.cutting": ("save_choice",),
    "study.whole": ("run_study",),
    "study.grid": ("load_grid",),
    "study.sweep": ("run_sweep",),
}
_WHERE = {name: module for module, names in _EXPORTS.items() for name in names}
_PARTS = (
    "analysis", "collective", "config", "criteria", "data", "errors", "ewc", "execution", "explorer", "fewshot", "figures",
    "gradients", "growth", "learngene", "network", "openworld", "record", "runs", "stack", "study", "tasks", "theory", "training",
)  # fmt: skip
__all__ = [*_WHERE, *_PARTS]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    if name in _PARTS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
