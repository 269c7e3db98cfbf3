"""The recorder: looks at `parameter.grad` of every block between the backward pass and the step, and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from .record import N_RAW, OFFSETS, PIVOTS, SHIFT, fold


def block_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The convolution weights of a `ConvNet`'s blocks, by block name: what the paper's criterion looks at."""
    return {name: block.conv.weight for name, block in model.blocks.items()}


class Recorder:
    """Accumulates, per layer, norms and signed log-spaced histograms of weight gradients over the steps of an epoch.

    weights: layer name -> parameter (any network's). every: look at each k-th step. Everything stays on the device until
    `take()`; histogram bins come from the bits of the floats (see `record`), which costs a few percent of a step.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], every: int = 1):
        self.weights, self.every, self._step = dict(weights), every, 0
        sizes = [w.numel() for w in self.weights.values()]
        device = next(iter(self.weights.values())).device
        offset = torch.arange(len(sizes), dtype=torch.int32) * (2 * N_RAW)
        self._layer = offset.repeat_interleave(torch.tensor(sizes)).to(
            device
        )  # int32 throughout: mixing with int64 is slow
        self._reset(device)

    def _reset(self, device: torch.device) -> None:
        n = len(self.weights)
        self._counts = torch.zeros(n * 2 * N_RAW, dtype=torch.int64, device=device)
        self._sums = torch.zeros(5, n, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        self._seen = 0

    @torch.no_grad()
    def __call__(self) -> None:
        """Look at the gradients of this step, if it is one of the k-th."""
        self._step += 1
        if (self._step - 1) % self.every:
            return
        weights = list(self.weights.values())
        gradients = [w.grad for w in weights]
        norm, weight_norm = torch.stack(torch._foreach_norm(gradients)), torch.stack(torch._foreach_norm(weights))
        self._sums += torch.stack([norm, norm.square(), norm * weight_norm, weight_norm, norm / weight_norm])
        index = self._bins(torch.cat([_flat(g) for g in gradients]))
        if index.device.type == "cpu":
            self._counts += torch.bincount(index, minlength=len(self._counts))
        else:  # bincount would wait for the device
            self._counts.scatter_add_(0, index.long(), torch.ones_like(index, dtype=torch.int64))
        self._seen += 1

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
        raw = self._counts.view(len(self.weights), 2, N_RAW).cpu().numpy()
        norm, square, product, weight_norm, relative = (self._sums / self._seen).cpu().double().numpy()
        counts, zeros = fold(raw)
        rows = [
            {
                "layer": name,
                "n_weights": w.numel(),
                "steps": self._seen,
                "norm": norm[i],
                "rms": float(np.sqrt(square[i] / w.numel())),
                "norm_times_weight": product[i],
                "weight_norm": weight_norm[i],
                "relative_norm": relative[i],
            }
            for i, (name, w) in enumerate(self.weights.items())
        ]
        self._reset(self._counts.device)
        self._step = 0
        return rows, counts, zeros


def _flat(gradient: Tensor) -> Tensor:
    """All entries as (p,), without a copy where they are dense, whatever their memory format."""
    if gradient.is_contiguous() or gradient.is_contiguous(memory_format=torch.channels_last):
        return gradient.as_strided((gradient.numel(),), (1,))
    return gradient.flatten()
