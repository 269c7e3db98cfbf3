"""Inherit from a network of one's own: the atlas, the criteria and rebuilt individuals of any network whose blocks one names.

An individual is a fresh network of the same blocks into which some of the trained ones are copied (the family `same_shape`); the
rest, and its head, are fresh. All individuals of a target task start from equal weights and see equal batches, so a gain over
scratch is paired. They train one by one, since only networks of this study can be stacked: an individual takes as long as its
network does for `atlas_epochs` epochs of the support images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..config import Config, Machine
from ..execution import here
from ..fewshot import labels_of
from ..tasks import ImageSet, TargetTask, generator
from ..training import Recipe, confusion, fit, predict, task_loss
from .atlas import COLUMNS, atlas_config, coarse_blocks, every_block
from .blocks import SCRATCH, Block, gain_table
from .own import fresh_network
from .rivals import COLUMNS as SCORES
from .rivals import depth_rows

Named = Mapping[str, str | Sequence[str]] | Sequence[str]
"""Blocks from the input on: dotted names of submodules, or name -> dotted name, or several in the order they are passed."""


def inherit(blocks: Sequence[str], source: nn.Module, target: nn.Module) -> nn.Module:
    """Copy parameters and buffers of these submodules (dotted names) of `source` into `target`, in place; returns it.

    Nothing is shared. Raises ValueError for a submodule that either network lacks or whose tensors differ in name or shape.
    """
    for path in blocks:
        try:
            given, taken = source.get_submodule(path).state_dict(), target.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"block {path!r} is not in both networks: {error}") from None
        own = taken.state_dict()
        if strange := given.keys() ^ own.keys() or {n for n, t in given.items() if t.shape != own[n].shape}:
            raise ValueError(f"block {path!r} differs between the networks: {', '.join(sorted(strange))}")
        taken.load_state_dict(given)
    return target


@dataclasses.dataclass(frozen=True, eq=False)
class OwnAtlas:
    """A trained network and how to make individuals like it.

    model: the ancestor; it stays as it is. factory(): a fresh network of the same blocks, with as many outputs as a target task
    has classes. blocks: what may be inherited, in order of depth (a stem counts, or no block is a prefix). mean, std (3,):
    normalisation of the images that the ancestor was trained with.

    Raises ValueError for blocks that the network, or an individual, does not have, or has in another shape.
    """

    model: nn.Module
    factory: Callable[[], nn.Module]
    blocks: Named
    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if isinstance(self.blocks, str) or not self.paths:
            raise ValueError(f"blocks are several names, not {self.blocks!r}")
        self.individual((1, len(self.paths)), generator(0, "own network"))

    @property
    def paths(self) -> dict[str, tuple[str, ...]]:
        """Block name -> dotted names of its submodules."""
        named = self.blocks if isinstance(self.blocks, Mapping) else {name: name for name in self.blocks}
        return {name: (given,) if isinstance(given, str) else tuple(given) for name, given in named.items()}

    @property
    def sizes(self) -> list[int]:
        """Trainable parameters of each block."""
        modules = ([self.model.get_submodule(path) for path in paths] for paths in self.paths.values())
        return [sum(p.numel() for module in some for p in module.parameters()) for some in modules]

    def individual(self, block: Block, g: torch.Generator) -> nn.Module:
        """A network whose fresh weights follow from `g`, with blocks first..last inherited (from 1; (0, 0): none)."""
        first, last = block
        inherited = [path for paths in list(self.paths.values())[max(0, first - 1) : last] for path in paths]
        return inherit(inherited, self.model, fresh_network(self.factory, g))

    def cells(
        self,
        images: ImageSet,
        tasks: Mapping[str, Sequence[TargetTask]],
        cfg: Config,
        pairs: Sequence[Block] | None = None,
        *,
        machine: Machine | None = None,
    ) -> pd.DataFrame:
        """One row per individual, as atlas_cells.csv: group, first, last (0, 0: scratch), shots, target_task, init, accuracy.

        tasks: of `atlas.atlas_tasks`, by group; pairs: the blocks, by default those of the atlas of `cfg` (coarse or full); the
        fields `atlas_...` of cfg say how individuals train. Raises Diverged when a loss is not finite.
        """
        own, machine, n = atlas_config(cfg), machine or here(), len(self.paths)
        if pairs is None:
            pairs = every_block(n) if cfg.atlas_blocks == "full" else coarse_blocks(n, min(cfg.atlas_length, n))
        rows = []
        for group, some in tasks.items():
            draws = [(task, init) for task in some for init in range(1, own.n_inits + 1)]
            for (task, init), block, shots in ((d, b, s) for d in draws for b in (SCRATCH, *pairs) for s in own.shots):
                accuracy = self._accuracy(images, task, init, block, shots, own, machine)
                rows.append((group, *block, shots, task.number, init, accuracy))
        return pd.DataFrame(rows, columns=COLUMNS).sort_values(COLUMNS[:-1], ignore_index=True)

    def _accuracy(
        self, images: ImageSet, task: TargetTask, init: int, block: Block, shots: int, cfg: Config, machine: Machine
    ) -> float:
        """Accuracy in percent, on the queries, of one individual trained on the task's support images."""
        device, draw = torch.device(machine.device), (task.group, task.number, init, cfg.target_seed)
        model = self.individual(block, generator(cfg.seed, "own individual", *draw)).to(device)
        normal = self.mean.to(device), self.std.to(device)
        support, query = task.support[:, :shots], task.query

        def shown(indices: np.ndarray) -> tuple[Tensor, Tensor]:
            picked = images.images[torch.from_numpy(indices.ravel())]
            return picked.to(device), labels_of(indices).to(device)

        recipe = Recipe.of_individual(cfg, cfg.atlas_rate, *normal)
        for _ in fit(
            model,
            *shown(support),
            task_loss(),
            recipe,
            stream=lambda epoch: generator(cfg.seed, "own batches", *draw, epoch),
            where=f"target task {task.number}, block {block}",
            lower="atlas_rate",
            machine=dataclasses.replace(machine, capture=False),
        ):
            pass
        tested, labels = shown(query)
        hits = confusion(predict(model, tested, *normal), labels)
        return float(hits.diagonal().sum() * 100 / hits.sum())

    def table(self, cells: pd.DataFrame, *, n_blocks: int = 3) -> pd.DataFrame:
        """atlas.csv from `cells`: what `figures.atlas`, `blocks.recommended` and `rivals.regret_table` read."""
        return gain_table(cells, self.sizes, list(self.paths), n_blocks=n_blocks)

    def criteria(
        self, images: ImageSet, pseudo: Sequence[TargetTask], classes: Sequence[str], cfg: Config
    ) -> pd.DataFrame:
        """The transferability scores of every block, rows as `rivals.criteria_table` has them; forward passes only.

        A block's features are the output of its last submodule. pseudo: tasks whose support images are looked at, never those
        that measure; classes: such as the ancestor was trained on. RGN and SNR are in `surgery.target_scores`.
        """
        last = {name: paths[-1] for name, paths in self.paths.items()}
        found = depth_rows(self.model, last, images, pseudo, classes, cfg, self.mean, self.std)
        return pd.DataFrame(found, columns=SCORES)
