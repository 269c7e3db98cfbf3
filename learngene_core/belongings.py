"""What belongs to a network's weights and must follow them when it grows: birth values, Fisher information, momentum."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .growth import WideningMap
from .network import ConvNet


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

    def accumulate(self, fisher: dict[str, Tensor], decay: float) -> None:
        """Online EWC: decay * earlier Fisher + this task's (Kirkpatrick 2017; Schwarz et al. 2018)."""
        self.fisher = {n: decay * self.fisher.get(n, torch.zeros_like(f)) + f for n, f in fisher.items()}

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """As named groups, for saving; `Belongings(**groups)` reads them back."""
        return {"initial": self.initial, "fisher": self.fisher, "momentum": self.momentum}

    def to(self, device: torch.device) -> Belongings:
        """Copies on a device."""
        return Belongings(**{k: {n: v.to(device) for n, v in g.items()} for k, g in self.groups().items()})
