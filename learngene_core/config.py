"""One frozen, flat, typed configuration: every number of the study, its unit, its source, and the stage that reads it.

First how one value is checked (type, range, choice), then what the fields must agree on, then `Config`. It holds what decides a
result. What only decides how fast it is had (threads, memory format) is resolved once per run folder and kept in
`machine.json` (see `Machine`).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import reprlib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .presets import (
    ALL_METHODS,
    ANCESTORS,
    CONTROL_NAMES,
    DATA,
    DEFECT_NAMES,
    METHODS,
    PAPER_FINAL_WIDTHS,
    PAPER_WIDTHS,
    PRESETS,
)

CHOICES = {
    "data": ("glyphs", "cifar100", "imagenet100", "cub200", "folder"),
    "source_draw": ("disjoint", "overlap"),
    "growth": ("zero-out", "uneven", "net2net", "none"),
    "loss": ("task-incremental", "class-incremental"),
    "schedule": ("one-cycle", "cosine", "constant"),
    "individual_schedule": ("one-cycle", "cosine", "constant"),
    "ewc_form": ("penalty", "proximal"),
    "new_columns": ("imputed", "zero"),
    "sign": ("positive", "absolute"),
    "atlas_blocks": ("coarse", "full"),
    "defects": DEFECT_NAMES,
    "precision": ("fp32", "tf32", "bf16"),
    "ancestor": ANCESTORS,
    "ancestors": ("single_task", "fixed_width", "joint", "permuted"),
    "open_head": ("refit", "own"),
    "open_score": ("msp", "maxlogit", "energy", "openmax", "ncm", "mahalanobis", "relative_mahalanobis"),
}


# what a parameter cell may hold beside fields: the preset, the run folder, the folders that a report reads, and whether it
# starts a small run to show how
RUN_NAMES: dict[str, type] = {"preset": str, "out": str, "sources": list, "try_run": bool}
ONCE = ("shots", "methods", "layers", "controls", "control_ewc", "control_l2", "ancestors", "defects")


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' where a known name is close, else nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def checked(field: dataclasses.Field, kind: Any, value: Any) -> Any:
    """`value` as a field's type (`kind`: bool, int, float, str or a tuple of one of them).

    Raises ValueError that names the field for a wrong type, an unknown choice or a value out of range.
    """
    name = field.name
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, list | tuple):
            # One number is the common case `shots=20`; a string is what `papermill -p layers '[..]'` passes.
            if item is str or isinstance(value, str):
                raise ValueError(f"{name} takes a list, not {shown(value)} (with papermill: -y '{{{name}: [...]}}')")
            value = (value,)
        values = tuple(_scalar(field, item, v) for v in value)
        if name in ONCE and len(set(values)) != len(values):
            raise ValueError(f"{name} holds {shown(value)}: each value once")
        return values
    return _scalar(field, kind, value)


def _scalar(field: dataclasses.Field, kind: type, value: Any) -> Any:
    name = field.name
    if kind is float and type(value) is int:
        value = float(value)
    if kind is int and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not kind:
        hint = " (with papermill write True or False)" if kind is bool else ""
        raise ValueError(f"{name} takes {kind.__name__}, not {shown(value)} of type {type(value).__name__}{hint}")
    if kind is str and not _is_text(value):
        raise ValueError(f"{name} = {shown(ascii(value))} holds characters that no file or notebook can keep")
    if kind in (int, float):
        low, high = field.metadata["low"], field.metadata["high"]
        if not (low <= value <= high) or math.isinf(value):
            raise ValueError(f"{name} = {shown(value)} is out of range: {_range(value, low, high)}")
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(
            f"unknown {name} {shown(value)}{nearest(value, CHOICES[name])}; there are {', '.join(CHOICES[name])}"
        )
    return value


def shown(value: Any) -> str:
    """A value in an error, in a few hundred characters whatever it is (YAML can say very large things in one line)."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 200
    short.maxlevel, short.maxlist, short.maxtuple = 3, 12, 12
    return short.repr(value)


def _is_text(value: str) -> bool:
    """Whether a string can be stored and named everywhere: no NUL, no half of a pair (an undecodable file name has them)."""
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def check_run_names(values: Mapping[str, Any]) -> None:
    """Raise ValueError for a value of one of RUN_NAMES that has the wrong type; None stands for the default."""
    for name, kind in RUN_NAMES.items():
        value = values.get(name)
        right = isinstance(value, kind) and (kind is bool or all(isinstance(v, str) for v in value))
        if value is not None and not right:
            takes = {list: "a list of paths", bool: "true or false"}.get(kind, "str")
            raise ValueError(f"{name} takes {takes}, not {value!r}")


def _range(value: float, low: float, high: float) -> str:
    open_end = math.isinf(high) or (high >= SEEDS and value < low)
    return f"at least {low:g}" if open_end else f"{low:g} to {high:g}"


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


STAGES: dict[str, tuple[str, ...]] = {
    # stage: the stages whose results it reads; the hash of a stage covers its own fields and those of all of these
    "division": (),
    "collective": ("division",),
    "criteria": ("collective",),
    "targets": ("division",),
    "reconstruct": ("criteria", "targets"),
    "tune": ("criteria", "targets"),
    "reference": ("collective",),
    "openworld": ("collective",),
    "measures": ("criteria",),
    "atlas": ("collective", "targets"),
    "controls": ("criteria", "atlas"),
    "claims": ("controls", "measures", "reconstruct", "openworld"),
    "released": ("reconstruct",),  # the same individuals' settings
}


MANY = 1_000_000  # more of anything that is counted is a slip of the keyboard
SEEDS = 2**63 - 1  # the largest: tables hold whole numbers of 64 bits
PLAIN = bool | int | float | str | list | tuple | dict  # what a parameter may be; other globals are modules, ...
STAGE_VERSION = 1  # part of every hash; raised when a change of the code changes results


def _field(
    default: Any, stage: str, text: str, low: float = -math.inf, high: float = math.inf, *, kind: str = ""
) -> Any:
    """stage: what reads it first (several with a space between); "": it decides no result. kind "extent": how much of a stage
    is wanted, not what each piece of it is, so finished pieces stay valid; "switch": left out of every hash while it is at its
    default, so that it can be added without changing any run."""
    return dataclasses.field(
        default=default, metadata={"stage": stage, "help": text, "low": low, "high": high, "kind": kind}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """All parameters of a run. The defaults are the `lecture` preset; `Config.preset(name)` gives any.

    Raises `ValueError` naming the field for an unknown name, a wrong type or a value out of range.
    """

    # fmt: off
    preset_name: str = _field("lecture", "", "the preset these values started from")
    seed: int = _field(0, "division", "master seed; named streams fan out from it (tasks, weights, batches, ...)", 0, SEEDS)
    ancestor_seed: int = _field(-1, "collective", "another collective, same target tasks; -1: as seed", -1, SEEDS, kind="switch")
    division_seed: int = _field(-1, "division", "base and novel classes drawn anew; -1: as they are", -1, SEEDS, kind="switch")

    # images and division
    data: str = _field("glyphs", "division", "data source: glyphs, cifar100, imagenet100, cub200 or folder")
    data_path: str = _field("", "", "folder or zip archive with the images; 'download' for CIFAR-100; glyphs need none")
    skip_corrupt: bool = _field(False, "", "leave unreadable images out instead of refusing them")
    image_size: int = _field(32, "division", "side of the square images, pixels (84 in the paper's ImageNet runs)", 8, 512)
    split: str = _field("", "division", "class division: a JSON file, 'seed' (64:16:20 drawn by seed), '' the data's own")
    official_split: bool = _field(True, "division", "keep an official test split held out; False pools it (as released)")
    source_images: int = _field(100, "division", "training images per base class; 0: all there are", 0, MANY)
    held_out_images: int = _field(20, "division", "held-out images per base class, half validation, half test; 0: all", 0, MANY)
    support_pool: int = _field(60, "division", "images per novel or open-world class to draw supports from; 0: all", 0, MANY)
    query_images: int = _field(60, "division", "query (test) images per novel or open-world class; 0: all", 0, MANY)

    # collective model
    ancestor: str = _field("sequential", "collective", "how it meets its classes: sequential, joint, replay, ewc", kind="switch")
    replay_images: int = _field(40, "collective", "ancestor=replay: images kept per earlier class", 1, MANY, kind="replay")
    n_source_tasks: int = _field(8, "collective", "source tasks in the sequence (paper's figure: 50)", 1, 10_000)
    source_way: int = _field(8, "collective", "base classes per source task (released: 5)", 2, 10_000)
    source_draw: str = _field("disjoint", "collective", "classes of the source tasks: disjoint, or overlap (redrawn per task)")
    width_divisor: int = _field(8, "collective", "all widths of the paper's network are divided by this", 1, 512)
    min_width: int = _field(4, "collective", "no block is narrower than this many channels", 1, 4096)
    hidden: tuple[int, ...] = _field((), "collective", "hidden layers of its classifier (released: 1024, 1024)", 1, 65_536)
    dropout: float = _field(0.0, "collective", "dropout in the collective's classifier (released: 0.5)", 0, 0.95)
    growth: str = _field("zero-out", "collective", "how blocks widen: zero-out, uneven, net2net, none (final widths at once)")
    growth_start: int = _field(2, "collective", "the first widening happens before this task (released: 1)", 1, MANY)
    deepen_before: tuple[int, ...] = _field((), "collective", "tasks before which an identity block is inserted (off)", 1, MANY)
    loss: str = _field("task-incremental", "collective", "softmax over the task's classes, or over all classes seen so far")
    epochs: int = _field(6, "collective", "epochs per source task (released: 100)", 1, MANY)
    first_task_epochs: int = _field(12, "collective", "epochs of source task 1, which starts from nothing", 1, MANY)
    batch_size: int = _field(64, "collective", "images per training step (released: 64)", 2, 65_536)
    learning_rate: float = _field(0.03, "collective", "peak rate of SGD (released: 0.001)", 1e-8, 10)
    schedule: str = _field("one-cycle", "collective", "learning rate over a task: one-cycle, cosine, constant")
    momentum: float = _field(0.9, "collective", "momentum of SGD (released: 0.9), collective and individuals", 0, 0.999)
    weight_decay: float = _field(5e-4, "collective", "weight decay of SGD (released: 5e-4), collective and individuals", 0, 1)
    carry_momentum: bool = _field(False, "collective", "carry SGD's momentum over to the next task (released: no)")
    shift: int = _field(3, "collective", "augmentation: random shift by up to this many pixels", 0, 64)
    flip: bool = _field(False, "collective", "augmentation: random left-right flip (not for characters)")
    ewc_lambda: float = _field(0.0, "collective", "strength of EWC in the sequence; 0: off (Kirkpatrick 2017)", 0)
    ewc_form: str = _field("penalty", "collective", "EWC as a penalty on the loss, or as a proximal step (cannot diverge)")
    ewc_decay: float = _field(1.0, "collective", "share of the earlier tasks' Fisher that is kept (online EWC)", 0, 1)
    new_columns: str = _field("imputed", "collective", "earlier tasks' Fisher of the input columns born by zero-out widening")
    fisher_images: int = _field(200, "collective", "images for the Fisher: per task in EWC, of all tasks in a learngene", 1, MANY)
    record_every: int = _field(1, "collective", "the gradient record looks at every k-th step", 1, MANY)
    null_networks: int = _field(6, "collective", "untrained networks with random labels that make up a null", 2, MANY)
    null_steps: int = _field(2, "collective", "mini-batches per untrained network and task", 1, MANY)
    null_tasks: int = _field(8, "collective", "source tasks that the null is made on: the first ones", 1, MANY)

    defects: tuple[str, ...] = _field((), "collective", "defects of the released scripts (see `released`)", kind="switch")

    # criteria and the learngene
    criterion: str = _field("released", "criteria", "criterion that chooses the learngene (see `criteria`), or recommended")
    threshold: float = _field(5e-4, "criteria", "threshold on gradient entries (released: 5e-4 at publication, 5e-10 later)", 0)
    sign: str = _field("positive", "criteria", "count entries above the threshold: positive (as released) or absolute")
    n_blocks: int = _field(3, "criteria", "blocks in the learngene (paper: 3)", 1, 100)
    layers: tuple[str, ...] = _field((), "criteria", "blocks chosen by hand, e.g. conv11, conv12, conv13; (): by criterion")

    # target tasks and individual models
    target_seed: int = _field(0, "targets", "redraws target tasks, initial weights and batches for the same ancestor", 0, SEEDS)
    n_target_tasks: int = _field(20, "targets", "target tasks of novel classes (released: 5 or 10)", 1, 100_000)
    n_way: int = _field(5, "targets", "classes per target task", 2, 10_000)
    shots: tuple[int, ...] = _field((10,), "targets", "support images per class; smaller sets begin the larger ones", 1, MANY)
    n_inits: int = _field(2, "targets", "initial weights per target task; every method starts from the same ones", 1, 1000)
    individual_epochs: int = _field(30, "targets", "epochs of an individual (released: 30)", 1, MANY)
    individual_batch: int = _field(25, "targets", "images per step of an individual (released: 32)", 2, 65_536)
    individual_rate: float = _field(0.02, "targets", "peak learning rate of individuals (released: 0.005)", 1e-8, 10)
    individual_rates: tuple[str, ...] = _field((), "targets", "exceptions, each 'family:method=rate', from `learngene tune`")
    individual_schedule: str = _field("cosine", "targets", "learning rate over an individual's training")
    individual_hidden: tuple[int, ...] = _field((), "targets", "hidden layers of a light individual's classifier", 1, 65_536)
    methods: tuple[str, ...] = _field(ALL_METHODS, "reconstruct tune", "methods that are compared")
    individual_ewc: float = _field(100.0, "reconstruct", "strength of EWC towards the inherited weights (learngene_ewc)", 0)

    # pseudo-tasks of the open-world classes, for tuning only
    tune_tasks: int = _field(12, "tune", "pseudo-tasks of open-world classes used by `learngene tune`", 2, MANY)
    tune_rates: tuple[float, ...] = _field((0.005, 0.01, 0.02, 0.05, 0.1), "tune", "learning rates tried", 1e-8, 10)
    tune_ewc: tuple[float, ...] = _field((1.0, 10.0, 100.0), "tune", "EWC strengths tried for learngene_ewc", 0)

    reference_episodes: int = _field(600, "reference", "episodes of the check against published values (the usual 600)", 2, MANY)

    # the open world: defaults chosen on validation and stream images of a `lecture` run, never on test images
    open_head: str = _field("refit", "openworld", "head that gives the logit scores: refit on exemplars, or the network's own")
    open_exemplars: int = _field(20, "openworld", "training images kept per seen class: head, means, tails, rehearsal", 1, MANY)
    open_strength: float = _field(0.1, "openworld", "inverse penalty of the refit head (logistic regression)", 1e-6, 1e6)
    open_tail: int = _field(10, "openworld", "OpenMax: largest distances per class in a Weibull tail (paper: 20)", 1, MANY)
    open_alpha: int = _field(10, "openworld", "OpenMax: largest logits that are revised (paper: 10)", 1, MANY)
    open_resamples: int = _field(500, "openworld", "resamples of classes for the intervals of the open world", 50, MANY)
    open_depths: int = _field(3, "openworld", "pooled blocks, from the last one up, that the feature scores read", 1, MANY)
    open_score: str = _field("relative_mahalanobis", "openworld", "score that flags images of the stream as unknown")
    open_keep: float = _field(95.0, "openworld", "percent of the validation images that the threshold keeps", 1, 99.9)
    open_budget: int = _field(0, "openworld", "flagged images that the oracle labels, in order of arrival; 0: all", 0, MANY)
    open_min_images: int = _field(5, "openworld", "labelled images that a new class needs to join the head", 1, MANY)
    open_epochs: int = _field(3, "openworld", "epochs of training on once new classes have joined", 1, MANY)
    open_rate: float = _field(0.03, "openworld", "peak learning rate of that training", 1e-8, 10)
    open_ewc: float = _field(3000.0, "openworld", "strength of EWC in that training (as a proximal step)", 0)

    # the atlas of all blocks, and the controls beside it
    atlas_blocks: str = _field("coarse", "atlas", "coarse (prefixes, suffixes, one length) or full (every block)", kind="extent")
    atlas_length: int = _field(3, "atlas", "length of the blocks that a coarse atlas has at every depth", 1, MANY, kind="extent")
    atlas_tasks: int = _field(8, "atlas", "target tasks of the atlas (the first ones)", 2, MANY, kind="extent")
    atlas_pseudo_tasks: int = _field(2, "atlas", "pseudo-tasks of open-world classes (they recommend)", 0, MANY, kind="extent")
    atlas_inits: int = _field(1, "atlas", "initial weights per task of the atlas", 1, MANY, kind="extent")
    atlas_epochs: int = _field(20, "atlas", "epochs of an individual of the atlas", 1, MANY)
    atlas_rate: float = _field(0.03, "atlas", "peak learning rate of the atlas", 1e-8, 10)
    atlas_shots: int = _field(10, "atlas", "support images per class in the atlas", 1, MANY)
    controls: tuple[str, ...] = _field(("all",), "controls", "content controls, by name; all; or none")
    control_ewc: tuple[float, ...] = _field((100.0,), "controls", "strengths of EWC to the inherited weights", 0)
    control_l2: tuple[float, ...] = _field((0.1,), "controls", "strengths of the plain pull to them (L2-SP)", 0)
    ancestors: tuple[str, ...] = _field((), "controls", "single_task, fixed_width, joint, permuted: other sources", kind="extent")
    inherited_share: float = _field(50.0, "reconstruct tune claims", "most that a block inherits, percent of parameters", 1, 100)

    # how steps are computed: no preset changes it, since equal results were not shown (see notebooks/RESULTS.md)
    precision: str = _field("fp32", "collective", "of training: fp32, bf16 (avx512_bf16, amx, GPU), tf32 (GPU)", kind="switch")

    # the machine (outside every hash; resolved into machine.json)
    minutes: float = _field(0.0, "", "long stages stop after this many minutes and go on when called again; 0: no limit", 0)
    device: str = _field("auto", "", "auto, cpu, cuda or mps")
    workers: int = _field(0, "", "workers over independent individuals; 0: as many as processors, at most 2 on a CPU", 0, 256)
    deterministic: bool = _field(False, "", "GPUs: only operations that give equal bits on every call (slower, and it is said)")
    threads: int = _field(1, "", "threads of one training; 0: all there are (more than one pays only on large networks)", 0, 256)
    # fmt: on

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, _TYPES[field.name], getattr(self, field.name)))
        check_together(self)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Config:
        """The named preset with `changes`; another data source brings its own image size and augmentation.

        Raises ValueError for an unknown preset, an unknown name or a bad value.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}{nearest(name, PRESETS)}; there are {', '.join(PRESETS)}")
        data = changes.get("data")
        own = DATA.get(data, {}) if isinstance(data, str) and data != PRESETS[name].get("data", "glyphs") else {}
        return cls(preset_name=name).replace(**{**PRESETS[name], **own, **changes})

    def replace(self, **changes: Any) -> Config:
        """A copy with `changes`; unknown names and bad values raise ValueError."""
        for name in changes:
            if name not in FIELDS:
                raise ValueError(f"unknown parameter {name!r}{nearest(name, FIELDS)}")
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Config:
        """The configuration that a notebook's parameter cells describe: `Config.from_notebook(globals())`.

        Plain papermill only warns of a misspelt parameter and turns `-p flip false` into a (true) string; here both raise an
        error, whoever started the notebook. A value of None means: as the preset has it.

        Raises ValueError for a name that is neither a field nor one of RUN_NAMES, and for a value of the wrong type.
        """
        plain = {
            name: value
            for name, value in namespace.items()
            if not name.startswith("_")
            and name not in ("In", "Out")
            and (name in FIELDS or name in RUN_NAMES or isinstance(value, PLAIN | None))
        }
        # A lecturer runs the set-up cell again after others have made variables: only the first call sees the parameters
        # alone, so later calls look at those names and at fields.
        known = namespace.setdefault("_learngene_parameters", set(plain))
        for name in plain:
            if name in known and name not in FIELDS and name not in RUN_NAMES:
                raise ValueError(
                    f"unknown parameter {name!r}{nearest(name, [*FIELDS, *RUN_NAMES])}; "
                    f"in a live kernel, `del {name}` (or restart) after mending it"
                )
        check_run_names(plain)
        changes = {name: value for name, value in plain.items() if name in FIELDS and value is not None}
        return cls.preset(plain.get("preset") or "lecture", **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; `Config.from_dict` reads them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The configuration with exactly these values. Raises ValueError for unknown names and bad values."""
        return cls().replace(**values)

    def fields_of(self, stage: str) -> dict[str, Any]:
        """The values a stage and everything before it read; what its hash covers."""
        stages = {stage}
        while missing := {before for s in stages for before in STAGES[s]} - stages:
            stages |= missing
        also = set()
        if self.criterion == "recommended" and "criteria" in stages:  # then the atlas comes before the choice
            stages, also = stages | {"atlas", "targets"}, {"inherited_share"}
        values = self.to_dict()
        if self.split not in ("", "seed"):
            values["split"] = "file"  # its content is compared with division.json, its path is nobody's business
        asleep = {n for n, f in FIELDS.items() if f.metadata["kind"] == "switch" and getattr(self, n) == f.default}
        asleep |= set() if self.ancestor == "replay" else {"replay_images"}
        return {
            n: values[n]
            for n, f in FIELDS.items()
            if (stages.intersection(f.metadata["stage"].split()) or n in also) and n not in asleep
        }

    def stage_hash(self, stage: str) -> str:
        """16 hexadecimal digits over `fields_of(stage)`; equal configurations give equal hashes on any machine."""
        about = [STAGE_VERSION, self.fields_of(stage)]
        if stage == "claims":  # a changed claim needs a new verdict
            about.append(Path(__file__).parent.joinpath("analysis", "claims.yaml").read_text(encoding="utf-8"))
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def piece_hash(self, stage: str) -> str:
        """As `stage_hash`, over what decides each piece of a stage and not over how many pieces are wanted. (Where the atlas
        chooses the learngene, its extent decides what the pieces of later stages inherit.)"""
        chooses = self.criterion == "recommended" and stage != "atlas"
        values = {n: v for n, v in self.fields_of(stage).items() if chooses or FIELDS[n].metadata["kind"] != "extent"}
        return hashlib.sha256(json.dumps([STAGE_VERSION, values], sort_keys=True).encode()).hexdigest()[:16]

    def rate(self, family: str, method: str) -> float:
        """Learning rate of one method's individuals."""
        for entry in self.individual_rates:
            name, value = entry.split("=")
            if name == f"{family}:{method}":
                return float(value)
        return self.individual_rate

    @property
    def collective_seed(self) -> int:
        """Seed of the collective: its source tasks, weights and batches."""
        return self.seed if self.ancestor_seed < 0 else self.ancestor_seed

    def as_ancestor(self, n_base: int) -> Config:
        """The settings that this kind of `ancestor` trains with, given the number of base classes.

        joint: all base classes at once at the final widths, for as many image passes as the sequence has (rounded to epochs);
        replay, ewc: the sequence; ewc with a proximal pull of strength 300 where `ewc_lambda` is 0 (the best of the pilots).
        """
        if self.ancestor == "joint":
            passes = self.source_way * (self.first_task_epochs + self.epochs * (self.n_source_tasks - 1))
            once = {"n_source_tasks": 1, "source_way": n_base, "source_draw": "disjoint", "growth": "none"}
            epochs = max(1, round(passes / n_base))
            return self.replace(**once, deepen_before=(), first_task_epochs=epochs, ancestor="sequential")
        if self.ancestor == "ewc" and not self.ewc_lambda:
            return self.replace(ewc_lambda=300.0, ewc_form="proximal")
        return self

    @property
    def start_widths(self) -> tuple[int, ...]:
        """Widths of the collective before any growth; with growth 'none' these are the final widths."""
        return self._scaled(PAPER_FINAL_WIDTHS if self.growth == "none" else PAPER_WIDTHS)

    @property
    def final_widths(self) -> tuple[int, ...]:
        """Widths of the collective after all growth."""
        return self._scaled(PAPER_FINAL_WIDTHS)

    def _scaled(self, widths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(self.min_width, width // self.width_divisor) for width in widths)


FIELDS: dict[str, dataclasses.Field] = {field.name: field for field in dataclasses.fields(Config)}
_TYPES = typing.get_type_hints(Config)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What changes speed or rounding, and nothing of what is computed; a run keeps its own in `machine.json`.

    device: "cpu", "cuda", "cuda:1" or "mps"; threads: of one training; workers: individuals trained side by side; stack: most
    networks trained as one (individuals; on a CPU larger ones fall out of the cache); trainings: collectives side by side;
    channels_last: memory format of convolutions; precision: of training, fp32, tf32 or bf16 (see `execution`); capture: steps
    replayed as CUDA graphs, captured anew whenever the network has grown; deterministic: GPU operations that give equal bits.
    """

    device: str = "cpu"
    threads: int = 1
    workers: int = 1
    channels_last: bool = True
    stack: int = 6
    trainings: int = 1
    precision: str = "fp32"
    capture: bool = False
    deterministic: bool = False
