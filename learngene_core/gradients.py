"""The gradient record: what the weight gradients of every block look like while the collective learns.

`Recorder` looks at `parameter.grad` between `loss.backward()` and `optimiser.step()`, and changes nothing. Of every entry it
keeps sign and size in a histogram (see `record`), so that the released count of entries above a threshold (Wang et al. 2022)
can be read afterwards for any threshold. `null_record` makes the same record of untrained networks with random labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .record import N_RAW, OFFSETS, PIVOTS, SHIFT, fold

Blocks = Mapping[str, nn.Module | str] | Sequence[str]
"""Layers of any network: name -> submodule (or its dotted name), or just dotted names."""


def named_blocks(model: nn.Module, blocks: Blocks | None = None) -> dict[str, nn.Module]:
    """Name -> submodule of `model`; without `blocks` those that the network itself names (`model.blocks`, a `ConvNet`'s).

    Raises ValueError for a block that is not in the network, and where there is none.
    """
    if blocks is None:
        blocks = getattr(model, "blocks", None)
        if not isinstance(blocks, Mapping | nn.ModuleDict):
            raise ValueError("this network does not name its blocks; give blocks, for example ('layer1', 'layer2')")
    if isinstance(blocks, str):
        raise ValueError(f"blocks are several names, not the text {blocks!r}")
    pairs = blocks.items() if isinstance(blocks, Mapping | nn.ModuleDict) else ((name, name) for name in blocks)
    inside, found = dict(model.named_modules()), {}
    for name, block in pairs:
        module = inside.get(block) if isinstance(block, str) else block
        if not any(module is m for m in inside.values()):
            raise ValueError(f"block {name!r} is not a submodule of the network")
        found[name] = module
    if not found:
        raise ValueError("no block is named")
    return found


def block_weights(model: nn.Module, blocks: Blocks | None = None) -> dict[str, nn.Parameter | tuple[nn.Parameter, ...]]:
    """What a `Recorder` looks at, by block name.

    Without `blocks`: the convolution weights of a `ConvNet`'s blocks, as the paper's criterion does. With: all parameters
    of a block with more than one axis (convolutions and linear layers, not biases or batch norm).

    Raises ValueError for a block that is not in the network, or has no weights.
    """
    if blocks is None and all(isinstance(getattr(b, "conv", None), nn.Conv2d) for b in named_blocks(model).values()):
        return {name: block.conv.weight for name, block in model.blocks.items()}
    weights = {
        name: tuple(p for p in block.parameters() if p.ndim > 1) for name, block in named_blocks(model, blocks).items()
    }
    for name, parameters in weights.items():
        if not parameters:
            raise ValueError(f"block {name!r} has no weights (parameters with more than one axis)")
    return weights


class Recorder:
    """Accumulates, per layer, norms and signed log-spaced histograms of weight gradients over the steps of an epoch.

    weights: layer name -> parameter, or several of them that count as one layer (any network's; see `block_weights`).
    every: look at each k-th step. Everything stays on the device until `take()`; histogram bins come from the bits of the
    floats (see `record`), which costs a few percent of a step.

    Of a layer with several parameters, norms are over all its entries; norm_times_weight is the root of the summed squares
    of each parameter's own, so that rescaling one of them before its batch norm does not move it.

    Raises ValueError where a layer has no parameter.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter | Sequence[nn.Parameter]], every: int = 1):
        groups = {n: (w,) if isinstance(w, Tensor) else tuple(w) for n, w in weights.items()}
        self.layers, self.every, self._step, self._seen = tuple(groups), every, 0, 0
        self._parameters = [p for group in groups.values() for p in group]
        self._groups = [len(group) for group in groups.values()]
        self._sizes = [sum(p.numel() for p in group) for group in groups.values()]
        if not groups or 0 in self._groups:
            raise ValueError("there is no parameter to record, or a layer without one")
        device = self._parameters[0].device
        offset = torch.arange(len(groups), dtype=torch.int32) * (2 * N_RAW)
        self._layer = offset.repeat_interleave(torch.tensor(self._sizes)).to(
            device
        )  # int32 throughout: mixing with int64 is slow
        n, exact = len(groups), torch.float64 if device.type != "mps" else torch.float32
        self._counts = torch.zeros(n * 2 * N_RAW, dtype=torch.int64, device=device)
        self._sums = torch.zeros(5, n, dtype=exact, device=device)

    def __call__(self) -> None:
        """Look at the gradients of this step, if it is one of the k-th. Raises ValueError where there is no gradient."""
        if self.due():
            self.look()

    def due(self) -> bool:
        """Count a step; whether it is one of the k-th, at which to look."""
        self._step += 1
        due = (self._step - 1) % self.every == 0
        self._seen += due
        return due

    @torch.no_grad()
    def look(self) -> None:
        """Look at the gradients of a step that was due. Raises ValueError where there is no gradient."""
        gradients = [p.grad for p in self._parameters]
        if any(g is None for g in gradients):
            raise ValueError("a recorded parameter has no gradient; look after backward(), and record no frozen layer")
        norms = torch.stack(torch._foreach_norm(gradients)), torch.stack(torch._foreach_norm(self._parameters))
        norm, weight_norm, product = (self._per_layer(x) for x in (*norms, norms[0] * norms[1]))
        self._sums += torch.stack([norm, norm.square(), product, weight_norm, norm / weight_norm])
        index = self._bins(torch.cat([_flat(g) for g in gradients]).float())
        if index.device.type == "cpu":
            self._counts += torch.bincount(index, minlength=len(self._counts))
        else:  # bincount would wait for the device
            self._counts.scatter_add_(0, index.long(), torch.ones_like(index, dtype=torch.int64))

    def _per_layer(self, norms: Tensor) -> Tensor:
        """Norms of parameters (p,) -> of layers (l,); that of a layer's only parameter is left as it is."""
        if len(norms) == len(self.layers):
            return norms
        return torch.stack([part[0] if len(part) == 1 else part.norm() for part in norms.split(self._groups)])

    def _bins(self, values: Tensor) -> Tensor:
        """(p,) float32 -> (p,) int32 index into the counts: layer, sign, raw bin."""
        bits = values.view(torch.int32)
        size = (bits & 0x7FFFFFFF).clamp_(max=0x7F800000)  # not-a-number counts as infinite
        index = size + OFFSETS[0]
        for before, offset, pivot in zip(OFFSETS, OFFSETS[1:], PIVOTS[1:], strict=False):
            # subtracting puts the sign bit where size < pivot: -1 there after the shift, 0 elsewhere
            index += (size - pivot).bitwise_right_shift_(31).add_(1).mul_(offset - before)
        index = index.bitwise_right_shift_(SHIFT)
        index -= (bits >> 31).mul_(N_RAW)  # bits >> 31 is -1 for negative entries
        return index.add_(self._layer)

    def take(self) -> tuple[list[dict], np.ndarray, np.ndarray]:
        """The epoch's table rows, counts (l, 2, N_BINS) and zeros (l,); then start anew.

        Raises ValueError when no step was recorded.
        """
        if not self._seen:
            raise ValueError("no step was recorded")
        raw = self._counts.view(len(self.layers), 2, N_RAW).to("cpu", copy=True).numpy()
        norm, square, product, weight_norm, relative = (self._sums / self._seen).cpu().double().numpy()
        counts, zeros = fold(raw)
        rows = [
            {
                "layer": name,
                "n_weights": self._sizes[i],
                "steps": self._seen,
                "norm": norm[i],
                "rms": float(np.sqrt(square[i] / self._sizes[i])),
                "norm_times_weight": product[i],
                "weight_norm": weight_norm[i],
                "relative_norm": relative[i],
            }
            for i, name in enumerate(self.layers)
        ]
        self._counts.zero_()  # in place: captured steps count into these very tensors
        self._sums.zero_()
        self._step = self._seen = 0
        return rows, counts, zeros


def _flat(gradient: Tensor) -> Tensor:
    """All entries as (p,), without a copy where they are dense, whatever their memory format."""
    if gradient.is_contiguous() or gradient.is_contiguous(memory_format=torch.channels_last):
        return gradient.as_strided((gradient.numel(),), (1,))
    return gradient.flatten()


def null_record(
    n_networks: int,
    n_tasks: int,
    network: Callable[[int, int, nn.Module | None], nn.Module],
    losses: Callable[[nn.Module, int, int], Iterator[Tensor]],
    blocks: Blocks | None = None,
) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """The record of untrained networks: rows, counts (n, t, l, 2, N_BINS), zeros (n, t, l). No step is taken.

    network(k, t, before) gives untrained network number k as task t meets it, from what it was before (None at the first
    task); losses(model, k, t) yields the loss of each batch, with labels that were drawn at random. So whatever these
    gradients show follows from depth, width, loss and images, and from nothing learned. In the rows `epoch` is k.

    Raises ValueError for a task that gives no batch.
    """
    rows, counts, zeros = [], [], []
    for k in range(1, n_networks + 1):
        model = None
        for t in range(1, n_tasks + 1):
            model = network(k, t, model)
            recorder = Recorder(block_weights(model, blocks))
            for loss in losses(model, k, t):
                model.zero_grad(set_to_none=True)
                loss.backward()
                recorder()
            found, c, z = recorder.take()
            rows += [{"task": t, "epoch": k, **row} for row in found]
            counts.append(c)
            zeros.append(z)
    shape = n_networks, n_tasks
    return rows, np.stack(counts).reshape(*shape, *counts[0].shape), np.stack(zeros).reshape(*shape, -1)
