"""Function-preserving growth: widening and deepening a `ConvNet` in place, and carrying along what belongs to its weights.

Widening follows Net2WiderNet (Chen et al. 2016, arXiv 1511.05641) in three modes. Equal copies, as in the released code,
receive equal gradients for ever and add no capacity; so the default, `zero-out`, starts new channels from fresh weights
whose outgoing weights are zero. Deepening follows Net2DeeperNet. What belongs to weights (birth values, Fisher information,
momentum) has to grow with them: `Belongings`. A widening costs less than a training step.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from .config import Config
from .network import Block, ConvNet, linear_of
from .presets import PAPER_STEPS

WIDEN_MODES = ("zero-out", "uneven", "net2net")


def growth_schedule(cfg: Config) -> dict[int, list[tuple[str, int]]]:
    """Task number -> widenings before it, each (block, new width): the paper's 20 steps, scaled, spread over the tasks."""
    if cfg.growth == "none":
        return {}
    tasks = list(range(cfg.growth_start, cfg.n_source_tasks + 1))[: len(PAPER_STEPS)]
    plan: dict[int, list[tuple[str, int]]] = {}
    taken = dict.fromkeys(PAPER_STEPS, 0)
    for step, block in enumerate(PAPER_STEPS):
        if not tasks:
            break
        start, final = cfg.start_widths[block - 1], cfg.final_widths[block - 1]
        before = start + (final - start) * taken[block] // PAPER_STEPS.count(block)
        taken[block] += 1
        width = start + (final - start) * taken[block] // PAPER_STEPS.count(block)
        if width > before:
            plan.setdefault(tasks[step * len(tasks) // len(PAPER_STEPS)], []).append((f"conv{block}", width))
    return plan


@dataclasses.dataclass(frozen=True)
class WideningMap:
    """How one widening changed the tensors, so that whatever belongs to weights can follow them.

    source: (C',) index of the old channel that each new channel copies (old channels copy themselves); share: (C',) the
    weight a_j that channel j's outgoing weights carry, summing to 1 over the copies of each old channel. In `zero-out` new
    channels copy nothing: their share is 0.
    """

    block: str
    rows: tuple[str, ...]
    columns: str
    repeat: int
    mode: str
    source: Tensor
    share: Tensor
    old_width: int

    def carry(
        self, name: str, tensor: Tensor, kind: str, *, now: Tensor | None = None, new_columns: str = "imputed"
    ) -> Tensor:
        """The widened form of a tensor that belongs to parameter or buffer `name`.

        kind: "momentum" (gradient-like: chain rule), "fisher" (squared gradients), or "value" (initial weights, EWC
        anchors: old entries follow the weights; new ones are `now`, the value the new entries were born with).
        new_columns: earlier tasks' Fisher of zero-out's new outgoing weights, "imputed" (mean of the old ones in their row:
        old tasks do depend on them; measured up to 4 times too much in deep blocks) or "zero".
        """
        if name in self.rows:
            return self._carry_rows(tensor, kind, now)
        return self._carry_columns(tensor, kind, now, new_columns) if name == self.columns else tensor

    def _carry_rows(self, tensor: Tensor, kind: str, now: Tensor | None) -> Tensor:
        source, share = self.source.to(tensor.device), self.share.to(tensor)
        wide = tensor[source]
        if kind == "value":
            wide[self.old_width :] = now[self.old_width :].to(wide)
            return wide
        # with g = source: dL/dW'_j = a_j dL/dW_g(j); in zero-out the share of new channels is 0, and so is their gradient
        power = {"momentum": share, "fisher": share**2}[kind]
        return wide * power.view(-1, *[1] * (wide.ndim - 1))

    def _carry_columns(self, tensor: Tensor, kind: str, now: Tensor | None, new_columns: str) -> Tensor:
        s = self.repeat
        index = (self.source.to(tensor.device)[:, None] * s + torch.arange(s, device=tensor.device)).flatten()
        share = self.share.to(tensor).repeat_interleave(s).view(1, -1, *[1] * (tensor.ndim - 2))
        wide, old = tensor[:, index], self.old_width * s
        if kind == "value":
            wide = wide * share
            wide[:, old:] = now[:, old:].to(wide)
        elif self.mode == "zero-out":
            mean = tensor.flatten(1).mean(1).view(-1, *[1] * (tensor.ndim - 1))
            wide[:, old:] = mean if kind == "fisher" and new_columns == "imputed" else 0
        return wide  # the gradient of V'_{:,j} is that of V_{:,g(j)}: input j equals input g(j)


@torch.no_grad()
def widen(
    net: ConvNet,
    name: str,
    new_width: int,
    *,
    mode: str = "zero-out",
    generator: torch.Generator | None = None,
    calibration: Tensor | None = None,
    noise: float = 0.01,
) -> WideningMap:
    """Widen block `name` of `net` to `new_width` channels in place. The output is preserved in training and evaluation mode
    (up to rounding; `net2net` only up to `noise`, relative to the weights' standard deviation).

    calibration: a batch (n, 3, h, w) from which new channels of `zero-out` take their batch-norm statistics; without it they
    get mean 0 and variance 1.

    Raises ValueError for an unknown block or mode, or a width that is not larger.
    """
    _known(net, name)
    block, old_width = net.blocks[name], net.blocks[name].conv.out_channels
    if mode not in WIDEN_MODES:
        raise ValueError(f"unknown widening mode {mode!r}; there are {', '.join(WIDEN_MODES)}")
    if new_width <= old_width:
        raise ValueError(f"{name} has {old_width} channels; it cannot be widened to {new_width}")
    n_new = new_width - old_width
    source = torch.cat([torch.arange(old_width), torch.randint(old_width, (n_new,), generator=generator)])
    share = _shares(source, old_width, mode, generator)
    old = {k: v.detach() for k, v in net.state_dict().items()}
    names, following = net.block_names, _following(net, name)
    rows = tuple(
        f"blocks.{name}.{k}"
        for k in ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    )
    repeat = old[following].shape[1] // old_width if name == names[-1] else 1
    mapping = WideningMap(name, rows, following, repeat, mode, source, share, old_width)

    state = _widened_rows(old, mapping, generator, noise)
    wide = Block(block.conv.in_channels, new_width, block.pool).to(old[rows[0]])
    mine = wide.state_dict()
    for key in rows:
        mine[key.split(".", 2)[2]].copy_(state[key])
    wide.norm.num_batches_tracked.copy_(block.norm.num_batches_tracked)
    wide.to(memory_format=_format(block.conv.weight))
    net.blocks[name] = wide.train(net.training)
    _replace_following(net, following, mapping, old[following])
    if mode == "zero-out" and calibration is not None:
        x = net.output_of(name, calibration, before_norm=True)[:, old_width:]
        wide.norm.running_mean[old_width:] = x.mean((0, 2, 3))
        wide.norm.running_var[old_width:] = x.var((0, 2, 3), unbiased=True)
    return mapping


def _widened_rows(
    old: dict[str, Tensor], mapping: WideningMap, generator: torch.Generator | None, noise: float
) -> dict[str, Tensor]:
    """What the widened block holds, by the names of `mapping.rows`: copies, and what its mode makes of the new channels."""
    rows, old_width = mapping.rows, mapping.old_width
    state = {key: old[key][mapping.source.to(old[key].device)] for key in rows}
    weight = state[rows[0]]
    draw = (len(weight) - old_width, *weight.shape[1:])
    if mapping.mode == "zero-out":
        fan_in = old[rows[0]][0].numel()
        weight[old_width:] = torch.randn(draw, generator=generator).to(weight) * math.sqrt(2 / fan_in)
        # rows: weight, then bias, scale, shift, running mean and running variance, as in a new block
        for key, value in zip(rows[1:], (0.0, 1.0, 0.0, 0.0, 1.0), strict=True):
            state[key][old_width:] = value
    elif mapping.mode == "net2net":
        weight[old_width:] += torch.randn(draw, generator=generator).to(weight) * noise * weight.std()
    return state


def _shares(source: Tensor, old_width: int, mode: str, generator: torch.Generator | None) -> Tensor:
    """a_j (C',), float64: sums to 1 over the copies of every old channel."""
    raw = torch.ones(len(source), dtype=torch.float64)
    if mode == "zero-out":
        raw[old_width:] = 0
    elif mode == "uneven":  # Dirichlet(1) within each group of copies: normalised exponential draws
        raw = -torch.log(torch.rand(len(source), dtype=torch.float64, generator=generator).clamp_min(1e-3))
    return raw / torch.zeros(old_width, dtype=torch.float64).index_add_(0, source, raw)[source]


def _following(net: ConvNet, name: str) -> str:
    """Name of the weight whose input axis is the output of block `name`."""
    names = net.block_names
    if name != names[-1]:
        return f"blocks.{names[names.index(name) + 1]}.conv.weight"
    return "classifier.0.weight"


def _replace_following(net: ConvNet, following: str, mapping: WideningMap, weight: Tensor) -> None:
    s = mapping.repeat
    index = (mapping.source.to(weight.device)[:, None] * s + torch.arange(s, device=weight.device)).flatten()
    share = mapping.share.to(weight).repeat_interleave(s).view(1, -1, *[1] * (weight.ndim - 2))
    new = weight[:, index] * share
    if following == "classifier.0.weight":
        net.classifier[0] = linear_of(new, net.classifier[0].bias.detach())
        return
    conv = net.blocks[following.split(".")[1]].conv
    conv.weight, conv.in_channels = nn.Parameter(new.contiguous(memory_format=_format(weight))), new.shape[1]


def _format(tensor: Tensor) -> torch.memory_format:
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _known(net: ConvNet, name: str) -> None:
    if name not in net.blocks:
        raise ValueError(f"unknown block {name!r}; there are {', '.join(net.block_names)}")


@torch.no_grad()
def deepen(net: ConvNet, after: str, *, calibration: Tensor | None = None) -> str:
    """Insert an identity block after block `after`, in place (Net2DeeperNet); returns the new block's name.

    In evaluation mode the output is preserved: the input of the new block is not negative, so its ReLU does nothing, and batch
    norm inverts its own running statistics. In training mode it holds as far as batches resemble them.

    Raises ValueError for an unknown block.
    """
    _known(net, after)
    width = net.blocks[after].conv.out_channels
    block = Block(width, width, pool=False).to(net.head.weight).train(net.training)
    block.to(memory_format=_format(net.blocks[after].conv.weight))
    nn.init.dirac_(block.conv.weight)
    nn.init.zeros_(block.conv.bias)
    if calibration is not None:
        x = net.output_of(after, calibration)
        block.norm.running_mean.copy_(x.mean((0, 2, 3)))
        block.norm.running_var.copy_(x.var((0, 2, 3), unbiased=False))
    with torch.no_grad():
        block.norm.weight.copy_((block.norm.running_var + block.norm.eps).sqrt())
        block.norm.bias.copy_(block.norm.running_mean)
    name = next(f"{after}+{k}" for k in range(1, 1000) if f"{after}+{k}" not in net.blocks)
    pairs = [p for n, b in net.blocks.items() for p in ((n, b), *(((name, block),) if n == after else ()))]
    net.blocks = nn.ModuleDict(dict(pairs))
    return name


@dataclasses.dataclass
class Belongings:
    """Dictionaries parameter name -> tensor of the parameter's shape.

    initial: every entry's value at birth; fisher: of earlier tasks (for EWC); momentum: SGD's buffers. The last two may be
    empty.
    """

    initial: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    fisher: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    momentum: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, model: ConvNet) -> Belongings:
        """Those of a network that was just born."""
        return cls({n: p.detach().clone() for n, p in model.named_parameters()})

    def widened(self, mapping: WideningMap, model: ConvNet, new_columns: str) -> None:
        """Follow one widening of `model` (which has happened)."""
        now = dict(model.named_parameters())
        self.initial = {n: mapping.carry(n, v, "value", now=now[n].detach()) for n, v in self.initial.items()}
        self.fisher = {n: mapping.carry(n, v, "fisher", new_columns=new_columns) for n, v in self.fisher.items()}
        self.momentum = {n: mapping.carry(n, v, "momentum") for n, v in self.momentum.items()}

    def appended(self, model: ConvNet) -> None:
        """Follow new outputs of the head and inserted blocks: born with today's values, no Fisher, no momentum.

        (For an inserted block no Fisher is too little: earlier tasks do depend on it.)"""
        for name, p in model.named_parameters():
            for store, empty in ((self.initial, False), (self.fisher, True), (self.momentum, True)):
                if not store:
                    continue
                old = store.get(name)
                have = 0 if old is None else len(old)
                if have < len(p):
                    new = p.detach()[have:]
                    new = torch.zeros_like(new) if empty else new.clone()
                    store[name] = new if old is None else torch.cat([old, new.to(old)])

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """As named groups, for saving; `Belongings(**groups)` reads them back."""
        return {"initial": self.initial, "fisher": self.fisher, "momentum": self.momentum}

    def to(self, device: torch.device) -> Belongings:
        """Copies on a device."""
        return Belongings(**{k: {n: v.to(device) for n, v in g.items()} for k, g in self.groups().items()})
