"""The learngene: whole blocks cut out of a collective model, as a file anyone can load, and inherited by copying.

An individual model in the paper's form is a few fresh blocks, the learngene, and a fresh classifier (Wang et al. 2022, Fig. 1 and
released code). Inheriting copies: no two models ever share a tensor.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import Config
from .criteria import choose
from .errors import StudyError, atomic
from .network import ConvNet

FORMAT = "learngene/1"
LARGEST = 1e18  # of a stored value: the square of a larger one is beyond 32-bit floats
PARTS = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")


@dataclasses.dataclass(frozen=True)
class Learngene:
    """Blocks of a `ConvNet` with everything needed to use them elsewhere.

    layers: block names in order; tensors: "conv11.conv.weight" -> tensor, also batch-norm affine and running statistics;
    fisher: the same names of parameters -> diagonal Fisher information, or None; pools: names of the blocks that a pool
    follows; image_size: of the images the blocks were trained on; mean, std: (3,) normalisation of those images;
    notes: where it comes from (data, division hash, stage hash, criterion).
    """

    layers: tuple[str, ...]
    tensors: dict[str, Tensor]
    pools: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fisher: dict[str, Tensor] | None = None
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_model(
        cls,
        model: ConvNet,
        layers: tuple[str, ...],
        *,
        mean: Any = None,
        std: Any = None,
        fisher: dict[str, Tensor] | None = None,
        **notes: Any,
    ) -> Learngene:
        """Copy the named, neighbouring blocks out of `model`. mean, std: (3,) normalisation, by default
        the model's own.

        Raises StudyError for unknown or scattered layers, and when the normalisation is not known.
        """
        if mean is None or std is None:
            if model.normalisation is None:
                raise StudyError(
                    "the normalisation is unknown: give mean and std of the images the model was trained on"
                )
            mean, std = model.normalisation
        names = model.block_names
        for name in layers:
            if name not in names:
                raise StudyError(f"unknown layer {name!r}; there are {', '.join(names)}")
        first = names.index(layers[0]) if layers else 0
        if not layers or tuple(layers) != names[first : first + len(layers)]:
            raise StudyError(f"layers {', '.join(layers) or '()'} are not one contiguous block in order")
        state = model.state_dict()
        tensors = {
            f"{n}.{p}": state[f"blocks.{n}.{p}"].detach().cpu().clone().contiguous() for n in layers for p in PARTS
        }
        kept = (
            None
            if fisher is None
            else {
                k: fisher[f"blocks.{k}"].detach().cpu().clone().contiguous() for k in tensors if f"blocks.{k}" in fisher
            }
        )
        return cls(
            tuple(layers),
            tensors,
            tuple(n for n in layers if model.blocks[n].pool),
            model.image_size,
            tuple(float(v) for v in mean),
            tuple(float(v) for v in std),
            kept,
            notes,
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of the blocks."""
        return tuple(len(self.tensors[f"{n}.conv.bias"]) for n in self.layers)

    @property
    def input_width(self) -> int:
        """Channels that the first block expects (3: it reads images)."""
        return self.tensors[f"{self.layers[0]}.conv.weight"].shape[1]

    @property
    def n_parameters(self) -> int:
        """Trainable parameters (running statistics are not)."""
        return sum(t.numel() for n, t in self.tensors.items() if "running" not in n)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: the tensors, "fisher/..." where there is one, and readable metadata. Equal learngenes
        are equal files."""
        about = {
            "format": FORMAT,
            "layers": self.layers,
            "widths": self.widths,
            "input_width": self.input_width,
            "pools": self.pools,
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
            "notes": self.notes,
        }
        tensors = dict(self.tensors)
        tensors.update({f"fisher/{n}": t for n, t in (self.fisher or {}).items()})
        with atomic(Path(path)) as temporary:
            save_file(tensors, temporary, {"learngene": json.dumps(about, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> Learngene:
        """Read a learngene file; it may come from anywhere. Sizes, names, shapes and types are checked against its header
        before memory is taken for a tensor.

        Raises StudyError when it is missing, damaged or not what its own metadata says.
        """
        path = Path(path)
        if not path.is_file():
            raise StudyError(f"there is no learngene file {path}")
        try:
            with safe_open(path, "pt") as file:
                about, expected = checked_header(file)
                tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 (not a dict)
            check_values(tensors)
            return cls(
                tuple(about["layers"]),
                {n: tensors[n] for n in expected},
                tuple(about["pools"]),
                int(about["image_size"]),
                tuple(map(float, about["mean"])),
                tuple(map(float, about["std"])),
                {n[7:]: t for n, t in tensors.items() if n.startswith("fisher/")} or None,
                dict(about["notes"]),
            )
        except (
            SafetensorError,
            OSError,
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            reason = (str(error) or type(error).__name__)[:300]  # a hostile file decides how long its names are
            raise StudyError(f"{path} is no whole learngene file: {reason}") from None

    def inherit_into(self, model: ConvNet) -> ConvNet:
        """Copy the blocks into the blocks of the same names in `model`; returns it. No tensor is shared.

        Raises StudyError when a block is missing or its widths do not fit.
        """
        state = model.state_dict()
        for name, tensor in self.tensors.items():
            target = state.get(f"blocks.{name}")
            if target is None:
                raise StudyError(f"the individual has no block {name.split('.')[0]!r} to inherit into")
            if target.shape != tensor.shape:
                raise StudyError(
                    f"the learngene does not fit: {name} is {tuple(tensor.shape)}, the individual's "
                    f"{tuple(target.shape)}"
                )
        with torch.no_grad():  # only now: a misfit leaves the model as it was
            for name, tensor in self.tensors.items():
                state[f"blocks.{name}"].copy_(tensor)
        return model


def light_shape(gene: Learngene, n_way: int, cfg: Config) -> dict:
    """Shape of the light individual, as the released code builds it: four fresh blocks, their widths doubling up to the
    learngene's input width, with pools while the map stays at least 4 pixels wide; then the learngene; then a fresh head.

    A learngene that reads images itself (it starts at the first block) comes first, and the fresh blocks after it.
    """
    leads = gene.input_width == 3
    target = gene.widths[-1] if leads else gene.input_width
    fresh = [f"fresh{k}" for k in range(1, 5)]
    fresh_widths = [max(cfg.min_width, target >> k) for k in (3, 2, 1, 0)] if not leads else [target] * 4
    names = [*gene.layers, *fresh] if leads else [*fresh, *gene.layers]
    widths = [*gene.widths, *fresh_widths] if leads else [*fresh_widths, *gene.widths]
    pools, side = [], cfg.image_size
    for position, name in enumerate(names, 1):
        smallest = 4 if name in fresh else 1
        if (name in fresh or name in gene.pools) and side // 2 >= smallest:
            pools.append(position)
            side //= 2
    return {
        "names": names,
        "widths": widths,
        "pools": pools,
        "n_classes": n_way,
        "image_size": cfg.image_size,
        "hidden": list(cfg.individual_hidden),
        "dropout": 0.0,
    }


def build_individual(gene: Learngene, n_way: int, cfg: Config, *, generator: torch.Generator | None = None) -> ConvNet:
    """A light individual model: fresh front, inherited blocks, fresh head of `n_way` outputs. Shares no tensor with `gene`."""
    return gene.inherit_into(ConvNet.from_shape(light_shape(gene, n_way, cfg), generator=generator))


def cut_learngene(col: Any, cfg: Config, *, layers: tuple[str, ...] | None = None) -> Learngene:
    """Choose the block (`layers`, `cfg.layers`, or `cfg.criterion` and `cfg.n_blocks` on the record) and cut it out of the
    `Collective` col, with the Fisher information of its weights.

    Raises StudyError for layers that are unknown or no block, and for a criterion that cannot choose.
    """
    layers = choose(col.record, cfg) if layers is None else layers
    normal = {"mean": col.mean.tolist(), "std": col.std.tolist()}
    return Learngene.from_model(col.model, layers, **normal, fisher=col.fisher, **notes_of(cfg))


def notes_of(cfg: Config) -> dict[str, Any]:
    """What a learngene's file says of where it comes from: data, hashes of division and choice, and what chose it."""
    by = {"chosen_by": cfg.criterion, "threshold": cfg.threshold, "sign": cfg.sign}
    return {
        "data": cfg.data,
        "division_hash": cfg.stage_hash("division"),
        "stage_hash": cfg.stage_hash("criteria"),
        **({"chosen_by": "hand"} if cfg.layers else by),
    }


def checked_header(file: Any) -> tuple[dict, dict[str, tuple[int, ...]]]:
    """Metadata of an open safetensors file, and the tensors' shapes that follow from it, compared with the file's own header:
    nothing of a file from elsewhere is believed, and no memory taken for it, before that.

    Raises ValueError (or KeyError, TypeError, AttributeError) for a header that is no learngene's.
    """
    about = json.loads(file.metadata()["learngene"])
    expected, slices = _expected(about), {n: file.get_slice(n) for n in file.keys()}  # noqa: SIM118 (not a dict)
    shapes = {n: tuple(s.get_shape()) for n, s in slices.items()}
    if odd := [n for n, s in slices.items() if s.get_dtype() != "F32"]:
        raise ValueError(f"{odd[0][:80]!r} is of type {slices[odd[0]].get_dtype()}, not of 32-bit floats")
    tensors = {n: s for n, s in shapes.items() if not n.startswith("fisher/")}
    if tensors != expected:
        wrong = min(n for n in {*expected, *tensors} if expected.get(n) != tensors.get(n))
        raise ValueError(f"{wrong[:80]!r} is {tensors.get(wrong)}, its metadata says {expected.get(wrong)}")
    if stray := [n for n, s in shapes.items() if n.startswith("fisher/") and expected.get(n[7:]) != s]:
        raise ValueError(f"{stray[0][:80]!r} fits no tensor")
    return about, expected


def _expected(about: dict) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, as the metadata of a file has it. Raises ValueError for metadata that is no learngene's."""
    if about.get("format") != FORMAT:
        raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
    layers, widths = list(about["layers"]), list(about["widths"])
    sizes = [about["input_width"], *widths]
    if not layers or len(widths) != len(layers) or not all(isinstance(w, int) and 0 < w <= 65536 for w in sizes):
        raise ValueError("its layers and widths do not agree")
    if not all(isinstance(n, str) and re.fullmatch(r"[A-Za-z_][\w-]{0,63}", n, re.ASCII) for n in layers):
        raise ValueError("its layers are not named as blocks are")
    side = about["image_size"]
    if not set(about["pools"]) <= set(layers) or not isinstance(side, int) or not 1 <= side <= 65536:
        raise ValueError("its pools or image size cannot be")
    check_scale(about["mean"], about["std"])
    shapes: dict[str, tuple[int, ...]] = {}
    for name, n_in, n_out in zip(layers, sizes, widths, strict=False):
        shapes[f"{name}.conv.weight"] = (n_out, n_in, 3, 3)
        shapes.update({f"{name}.{p}": (n_out,) for p in PARTS[1:]})
    return shapes


def check_values(tensors: Mapping[str, Tensor], where: str = "") -> None:
    """Raise ValueError that names the first tensor (`where` stands before its name) with a value that no training gives: not
    finite, too large for its square to be, or below zero where only squares go (variances, Fisher information)."""
    for name, tensor in tensors.items():
        shown = f"{where}{name}"[:80]
        low, high = (float(v) for v in torch.aminmax(tensor)) if tensor.numel() else (0.0, 0.0)
        if not (math.isfinite(low) and math.isfinite(high)):  # of a tensor with a NaN both are
            raise ValueError(f"{shown!r} holds a value that is not finite")
        if max(-low, high) > LARGEST:
            raise ValueError(f"{shown!r} holds {max(-low, high):.3g}, larger than any training gives")
        if low < 0 and ("fisher/" in shown or name.endswith("running_var")):
            raise ValueError(f"{shown!r} holds {low:.3g}, and it cannot be below zero")


def check_scale(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ValueError (or TypeError) unless these are three numbers each that images in 0..1 can have as mean and standard
    deviation (0: a constant channel), with room for other scales of a stranger's network."""
    for name, values, low, high in (("mean", mean, -1e3, 1e3), ("std", std, 1e-6, 1e3)):
        if len(values) != 3 or not all(math.isfinite(v) for v in values):
            raise ValueError(f"its {name} is not three finite numbers")
        if odd := [v for v in values if v != 0 and not low <= v <= high]:
            raise ValueError(f"its {name} holds {odd[0]:.3g}, and images have {low:g} to {high:g}")
