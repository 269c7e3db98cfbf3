"""`ConvNet`: named blocks of convolution, batch norm and ReLU; its shape, its parameters and its cost.

The network of the paper's appendix (Fig. 1) and released code: 13 blocks `conv1` ... `conv13` of 3x3 convolutions, five pools,
a small classifier; VGG-16 when fully grown. Blocks are addressed by name, never by position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class _Conv(nn.Conv2d):
    def reset_parameters(self) -> None:
        """Nothing: `initialise` draws the weights from one generator, and drawing twice takes longer than a training step."""


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Nothing, as for `_Conv`."""


class Block(nn.Module):
    """3x3 convolution, batch norm, ReLU and, where there is one, a 2x2 max-pool."""

    def __init__(self, n_in: int, n_out: int, pool: bool):
        super().__init__()
        self.conv = _Conv(n_in, n_out, 3, padding=1)
        self.norm = nn.BatchNorm2d(n_out)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in, h, w) -> (n, n_out, h, w), or half of h and w after a pool."""
        x = torch.relu_(self.norm(self.conv(x)))
        return nn.functional.max_pool2d(x, 2) if self.pool else x


class ConvNet(nn.Module):
    """A plain convolutional network (the paper's; VGG-16 when fully grown).

    widths: output channels of the blocks `conv1`, `conv2`, ...; pools: 1-based numbers of the blocks that a pool
    follows; n_classes: outputs of the head; image_size: side of the input; hidden: widths of the classifier's hidden layers.

    Raises ValueError for widths or pools that do not fit.
    """

    def __init__(
        self,
        widths: Sequence[int],
        pools: Sequence[int],
        n_classes: int,
        image_size: int,
        hidden: Sequence[int] = (),
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not widths or min(widths) < 1 or n_classes < 1:
            raise ValueError(f"widths {tuple(widths)} and n_classes {n_classes} must be positive")
        if any(p not in range(1, len(widths) + 1) for p in pools):
            raise ValueError(f"pools {tuple(pools)} are not among the blocks 1 to {len(widths)}")
        if image_size >> len(set(pools)) < 1:
            raise ValueError(f"{len(set(pools))} pools leave nothing of a {image_size} px image")
        self.image_size, self.hidden, self.dropout = image_size, tuple(hidden), dropout
        inputs = [3, *widths[:-1]]
        self.blocks = nn.ModuleDict(
            {
                f"conv{i}": Block(n_in, n_out, i in pools)
                for i, (n_in, n_out) in enumerate(zip(inputs, widths, strict=True), 1)
            }
        )
        sizes = [widths[-1] * (image_size >> len(set(pools))) ** 2, *hidden]
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sizes, sizes[1:], strict=False):
            layers += [_Linear(n_in, n_out), nn.ReLU(), nn.Dropout(dropout)]
        self.classifier = nn.Sequential(*layers, _Linear(sizes[-1], n_classes))
        self.normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = (
            None  # mean, std of its training images
        )
        initialise(self, generator)

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of the blocks from input to output."""
        return tuple(self.blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of the blocks."""
        return tuple(block.conv.out_channels for block in self.blocks.values())

    @property
    def pools(self) -> tuple[int, ...]:
        """1-based positions of the blocks that a pool follows."""
        return tuple(i for i, block in enumerate(self.blocks.values(), 1) if block.pool)

    @property
    def shape(self) -> dict:
        """Everything `ConvNet.from_shape` needs to build an equal, untrained network; plain JSON-ready values."""
        return {
            "names": list(self.block_names),
            "widths": list(self.widths),
            "pools": list(self.pools),
            "n_classes": self.n_classes,
            "image_size": self.image_size,
            "hidden": list(self.hidden),
            "dropout": self.dropout,
        }

    @classmethod
    def from_shape(cls, shape: dict, *, generator: torch.Generator | None = None) -> ConvNet:
        """The network with this `shape`, freshly initialised. Raises ValueError where it does not fit."""
        values = dict(shape)
        names = values.pop("names", None)
        net = cls(**values, generator=generator)
        if names is not None:
            net.blocks = nn.ModuleDict(zip(names, net.blocks.values(), strict=True))
        return net

    @property
    def head(self) -> nn.Linear:
        """The last linear layer; its rows are the classes."""
        return self.classifier[-1]

    @property
    def n_classes(self) -> int:
        """Outputs of the head."""
        return self.head.out_features

    def features(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, d): the flattened output of the last block, what nearest class mean works on."""
        for block in self.blocks.values():
            x = block(x)
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, n_classes) logits. No softmax: cross-entropy applies its own."""
        return self.classifier(self.features(x))

    def grow_head(self, n_new: int, *, generator: torch.Generator | None = None) -> None:
        """Append `n_new` outputs: N(0, sd of the old rows), zero bias. Old outputs do not change."""
        old = self.head
        weight = torch.randn(n_new, old.in_features, generator=generator).to(old.weight) * old.weight.detach().std()
        self.classifier[-1] = linear_of(
            torch.cat([old.weight.detach(), weight]), torch.cat([old.bias.detach(), old.bias.new_zeros(n_new)])
        )

    @torch.no_grad()
    def output_of(self, name: str, x: Tensor, *, before_norm: bool = False) -> Tensor:
        """Output of block `name` in evaluation mode, or what reaches its batch norm."""
        was_training, _ = self.training, self.eval()
        for block_name, block in self.blocks.items():
            if block_name == name and before_norm:
                x = block.conv(x)
                break
            x = block(x)
            if block_name == name:
                break
        self.train(was_training)
        return x


def linear_of(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with copies of these values: weight (k, d), bias (k,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layer


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    """He-normal convolutions and hidden layers (He et al. 2015), zero biases, identity batch norm; from one generator."""
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            fan_in = m.weight[0].numel()
            gain = 1.0 if m in linear[-1:] else 2.0
            draw = torch.randn(m.weight.shape, generator=generator) * math.sqrt(gain / fan_in)
            m.weight.copy_(draw)
            m.bias.zero_()


def parameter_count(widths: Sequence[int], n_classes: int, features: int, hidden: Sequence[int] = ()) -> int:
    """Parameters predicted from the shape alone: per block 9 C_in C_out + 3 C_out, per linear layer (d + 1) k."""
    blocks = sum(9 * a * b + 3 * b for a, b in zip([3, *widths[:-1]], widths, strict=True))
    sizes = [features, *hidden, n_classes]
    return blocks + sum((a + 1) * b for a, b in zip(sizes, sizes[1:], strict=False))


def flop_count(net: ConvNet) -> dict[str, int]:
    """Floating-point operations of one image's forward pass (2 per multiply-add): per block, and `classifier`."""
    counts, side = {}, net.image_size
    for name, block in net.blocks.items():
        counts[name] = 2 * 9 * block.conv.in_channels * block.conv.out_channels * side**2
        side = side // 2 if block.pool else side
    counts["classifier"] = sum(2 * m.in_features * m.out_features for m in net.classifier if isinstance(m, nn.Linear))
    return counts
