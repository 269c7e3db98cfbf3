"""The learngene: whole blocks cut out of a collective model, as a file anyone can load, and inherited by copying."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import Config
from .files import StudyError, atomic
from .genefile import FORMAT, PARTS, checked_gene
from .network import ConvNet


@dataclasses.dataclass(frozen=True)
class Learngene:
    """Blocks of a `ConvNet` with everything needed to use them elsewhere.

    layers: block names in order; tensors: "conv11.conv.weight" -> tensor, also batch-norm affine and running statistics;
    fisher: the same names of parameters -> diagonal Fisher information, or None; pools: names of the blocks with a pool
    behind them; image_size: of the images the blocks were trained on; mean, std: (3,) normalisation of those images;
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
        from safetensors.torch import save_file

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
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise StudyError(f"there is no learngene file {path}")
        try:
            about, expected, names = checked_gene(path)
            with safe_open(path, "pt") as file:
                tensors = {n: file.get_tensor(n) for n in names}
            if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
                raise ValueError("its tensors are not finite")
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

    A learngene that reads images itself (it starts at the first block) comes first, the fresh blocks behind it.
    """
    leads = gene.input_width == 3
    target = gene.widths[-1] if leads else gene.input_width
    fresh = [f"fresh{k}" for k in range(1, 5)]
    fresh_widths = [max(1, target >> k) for k in (3, 2, 1, 0)] if not leads else [target] * 4
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
