"""Several networks of one shape trained as one, by grouped convolutions, with the results of training them one by one.

The methods of a target task see the same support images in the same batches, so they share the input; several target tasks
lie side by side as groups of input channels. Batch norm over m*C channels keeps each network's own statistics. One large
operation replaces m small ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .network import ConvNet


class Stack(nn.Module):
    """m networks of equal shape as one module: (n, 3, h, w) -> logits (m, n, k). Copies their weights; no dropout.

    inputs: groups of images, one after the other in a batch (g n, 3, h, w); the first m/g networks learn from the first group,
    and so on.

    Raises ValueError when the shapes differ, there is dropout, or the groups have not equally many networks.
    """

    def __init__(self, networks: Sequence[ConvNet], inputs: int = 1):
        super().__init__()
        shapes = [net.shape for net in networks]
        if not shapes or any(shape != shapes[0] for shape in shapes):
            raise ValueError("a stack takes one or more networks of the same shape")
        if shapes[0]["dropout"]:
            raise ValueError("a stack has no dropout")
        if inputs < 1 or len(networks) % inputs:
            raise ValueError(f"{len(networks)} networks cannot learn from {inputs} groups of images, equally many each")
        self.shape, self.size, self.inputs = shapes[0], len(networks), inputs
        self.pools = [block.pool for block in networks[0].blocks.values()]
        states = [net.state_dict() for net in networks]
        joined = {name: _join(name, [s[name] for s in states]) for name in states[0] if "num_batches" not in name}
        self.names = list(joined)
        for name, tensor in joined.items():
            if "running" in name:
                self.register_buffer(_key(name), tensor)
            else:
                self.register_parameter(_key(name), nn.Parameter(tensor))
        self.linear = [
            name[: -len(".weight")] for name in joined if name.startswith("classifier") and name.endswith("weight")
        ]
        self.to(memory_format=torch.channels_last)

    def _get(self, name: str) -> Tensor:
        return getattr(self, _key(name))

    def features(self, x: Tensor) -> Tensor:
        """(g n, 3, h, w) -> (m, n, d)."""
        if self.inputs > 1:
            groups = x.unflatten(0, (self.inputs, -1)).transpose(0, 1)  # (n, g, 3, h, w)
            x = groups.flatten(1, 2).contiguous(memory_format=torch.channels_last)  # (n, 3 g, h, w)
        for position, (name, pool) in enumerate(zip(self.shape["names"], self.pools, strict=True)):
            p = f"blocks.{name}"
            groups = self.size if position else self.inputs  # networks of a group read the same image
            x = nn.functional.conv2d(
                x, self._get(f"{p}.conv.weight"), self._get(f"{p}.conv.bias"), padding=1, groups=groups
            )
            x = nn.functional.batch_norm(
                x,
                self._get(f"{p}.norm.running_mean"),
                self._get(f"{p}.norm.running_var"),
                self._get(f"{p}.norm.weight"),
                self._get(f"{p}.norm.bias"),
                self.training,
            )
            x = torch.relu_(x)
            x = nn.functional.max_pool2d(x, 2) if pool else x
        n, _, h, w = x.shape
        return x.reshape(n, self.size, -1, h, w).flatten(2).transpose(0, 1)  # (m, n, C h w)

    def forward(self, x: Tensor) -> Tensor:
        """(g n, 3, h, w) -> (m, n, k) logits."""
        x = self.features(x)
        for i, name in enumerate(self.linear):
            x = torch.relu(x) if i else x
            x = torch.baddbmm(self._get(f"{name}.bias")[:, None], x, self._get(f"{name}.weight").transpose(1, 2))
        return x

    def network(self, index: int) -> ConvNet:
        """A copy of one network of the stack."""
        net = ConvNet.from_shape(self.shape)
        state = net.state_dict()
        for name in self.names:
            stacked = self._get(name).detach()
            part = stacked[index] if name.startswith("classifier") else stacked.chunk(self.size)[index]
            state[name] = part.clone()
        net.load_state_dict(state)
        return net

    def join(self, tensors: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One dictionary per network (missing names: zeros) as one over this stack's parameters, e.g. Fisher information."""
        joined = {}
        for name in {n for t in tensors for n in t}:
            like = next(t[name] for t in tensors if name in t)
            joined[_key(name)] = _join(name, [t.get(name, torch.zeros_like(like)) for t in tensors]).to(self._get(name))
        return joined


def _key(name: str) -> str:
    return name.replace(".", "__")


def _join(name: str, tensors: list[Tensor]) -> Tensor:
    """Convolutions and batch norm side by side along channels (m*C, ...), linear layers on a new axis (m, k, d)."""
    return torch.stack(tensors) if name.startswith("classifier") else torch.cat(tensors)
