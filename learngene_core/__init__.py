"""A study of *Learngene: From Open-World to Your Learning Task* (Wang et al., AAAI 2022).

Public names are imported when they are first used, so `import learngene_core` is light and torch comes only when needed.
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
    "config": ("Config",),
    "files": ("StudyError",),
    "runs": ("Run",),
    "images": ("ImageSet", "load_images"),
    "division": ("Division", "SourceTask", "TargetTask", "divide", "source_tasks", "target_tasks"),
    "network": ("ConvNet", "flop_count", "parameter_count"),
    "growth": ("WideningMap", "growth_schedule"),
    "training": ("Recipe", "evaluate", "fit"),
    "ewc": ("Penalty", "fisher_diagonal"),
    "steps": ("Way",),
    "gradients": ("Recorder", "block_weights"),
    "record": ("Record",),
    "learngene": ("Learngene", "build_individual", "light_shape"),
    "collective": (
        "Collective",
        "accuracy_matrix",
        "cut_learngene",
        "load_collective",
        "sequence_summary",
        "train_collective",
    ),
    "fewshot": ("evaluate_few_shot",),
    "openviews": ("OpenSets", "View", "open_sets", "view_of"),
    "openworld": ("OpenWorld", "open_world"),
    "tuning": ("tune",),
    "statistics": ("Interval", "mean_interval", "paired_interval", "paired_table"),
    "networkevidence": ("Evidence",),
    "gathering": ("evidence_of", "null_evidence"),
    "observe": ("Observer",),
    "atlas": ("compute_atlas",),
    "ablations": ("compute_controls",),
    "claims": ("load_claims",),
    "study": ("run_study",),
    "grid": ("load_grid",),
    "sweep": ("run_sweep",),
}
_WHERE = {name: module for module, names in _EXPORTS.items() for name in names}
_MODULES = (
    "animation",
    "atlasexplore",
    "bounds",
    "checkpoints",
    "comparisons",
    "controls",
    "criteria",
    "diagrams",
    "drawings",
    "explore",
    "figures",
    "heads",
    "layerexplorer",
    "measures",
    "notebooks",
    "openafter",
    "openexplore",
    "openfigures",
    "openlearning",
    "opensets",
    "power",
    "prefixbounds",
    "ranks",
    "scores",
    "scoring",
    "selection",
    "style",
    "summary",
    "theory",
    "theoryexplore",
    "theoryfigures",
    "sweepcontrasts",
    "sweepfigures",
    "sweeptable",
    "verdicts",
)
__all__ = [*_WHERE, *_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _WHERE and name not in _EXPORTS:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    if name in _EXPORTS or name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
