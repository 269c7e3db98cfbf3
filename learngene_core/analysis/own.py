"""The gradient record and the measures on a network of one's own: name its blocks, train it as you like, and look.

`tasks`: per task a list of batches (or a loader) of (inputs, labels); `images`, `probe`: uint8 (n, 3, h, w) with labels.

>>> import torch, torchvision
>>> from learngene_core import Observer, criteria
>>> from learngene_core.analysis import measures
>>> def build():
...     return torchvision.models.resnet18(weights=None, num_classes=10)
>>> loss = torch.nn.functional.cross_entropy
>>> watch = Observer(build, ("layer1", "layer2", "layer3", "layer4"))
>>> optimiser = torch.optim.SGD(watch.model.parameters(), lr=0.05, momentum=0.9)
>>> for batches in tasks:
...     for x, y in batches:
...         optimiser.zero_grad()
...         loss(watch.model(x), y).backward()
...         watch()  # between the backward pass and the step
...         optimiser.step()
...     watch.end_task()
>>> released = criteria.score(watch.record(tasks, loss, n_nulls=2), "released", threshold=5e-4)
>>> evidence, nulls = watch.evidence(images, labels, probe, probe_labels, mean, std, n_nulls=2, steps=4)
>>> table = measures.measure_all(evidence, nulls)
>>> criteria.best_block(released, 1) in [("layer1",), ("layer2",), ("layer3",), ("layer4",)]
True
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..gradients import Blocks, Recorder, block_weights, named_blocks, null_record
from ..record import Record
from ..tasks import derive, generator
from .evidence import Evidence, device_of
from .gathering import null_evidence

Batches = Iterable[tuple[Tensor, Tensor]]


class Observer:
    """Watches the training of a network over a sequence of tasks.

    factory() gives an untrained network; model: the one to watch, by default a fresh one. blocks: its layers, as names of
    submodules or name -> submodule. every: look at each k-th step. Call it between the backward pass and the step, and
    `end_task()` after each task (`end_epoch()` where a task has several); a copy of the network is kept per task.

    Raises ValueError for blocks that are not in the network or have no weights.
    """

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        blocks: Blocks,
        *,
        model: nn.Module | None = None,
        seed: int = 0,
        every: int = 1,
    ):
        self.factory, self.seed = factory, seed
        self.model = model if model is not None else fresh_network(factory, generator(seed, "network"))
        paths = {id(module): path for path, module in self.model.named_modules()}
        self.blocks = {name: paths[id(block)] for name, block in named_blocks(self.model, blocks).items()}
        self.initial = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.states: list[nn.Module] = []
        self._recorder = Recorder(block_weights(self.model, self.blocks), every)
        self._entries: list[dict[str, Any]] = []
        self._epoch, self._fresh = 0, True

    def __call__(self) -> None:
        """Look at the gradients of this step."""
        self._recorder()
        self._fresh = False

    def end_epoch(self) -> None:
        """Close an epoch of the current task. Raises ValueError when no step was looked at."""
        rows, counts, zeros = self._recorder.take()
        self._epoch, self._fresh = self._epoch + 1, True
        task = len(self.states) + 1
        self._entries.append({"task": task, "epoch": self._epoch, "rows": rows, "counts": counts, "zeros": zeros})

    def end_task(self) -> None:
        """Close the current task, and its last epoch if that is still open."""
        if not self._fresh or not self._epoch:
            self.end_epoch()
        self.states.append(copy.deepcopy(self.model).eval())
        self._epoch = 0

    def record(
        self, tasks: Sequence[Batches], loss: Callable[..., Tensor], *, n_nulls: int = 4, n_steps: int = 2
    ) -> Record:
        """What was seen, as a record that `criteria.score` reads; the null (`gradients.null_record`) sees the first
        `n_steps` batches of every task, with labels drawn anew from those batches' labels.

        Raises ValueError before the first `end_task()`, and for a task that gives no batch (a loader must be re-readable).
        """
        if not self.states:
            raise ValueError("no task is finished; call end_task() after each task")
        gens, device = [generator(self.seed, "null network", k) for k in range(1, n_nulls + 1)], device_of(self.model)

        def network(k: int, t: int, before: nn.Module | None) -> nn.Module:
            return fresh_network(self.factory, gens[k - 1]).to(device).train() if before is None else before

        def losses(model: nn.Module, k: int, t: int) -> Iterator[Tensor]:
            shown, g = list(itertools.islice(tasks[t - 1], n_steps)), gens[k - 1]
            if not shown:
                raise ValueError(f"task {t} gives no batch; give lists, or loaders that can be read again")
            pool = torch.cat([y.cpu() for _, y in shown])
            with _own_chance(g):  # dropout
                for x, y in shown:
                    labels = pool[torch.randint(len(pool), (len(y),), generator=g)]
                    yield loss(model(x.to(device)), labels.to(device))

        null = null_record(n_nulls, len(tasks), network, losses, self.blocks)
        return Record.of_epochs(tuple(self.blocks), self._entries, *null)

    def evidence(
        self,
        images: Tensor,
        labels: Tensor,
        probe_images: Tensor,
        probe_labels: Tensor,
        mean: Tensor,
        std: Tensor,
        *,
        classes: Tensor | None = None,
        probe_classes: Tensor | None = None,
        n_nulls: int = 4,
        **options: Any,
    ) -> tuple[Evidence, list[Evidence]]:
        """The evidence that `measures` reads, and its null; images, labels and classes as in `Evidence`.

        A hundred images of the tasks and a few hundred held-out ones do: measures look at one image at a time. Options go
        to `null_evidence`: steps, rate, batch_size.
        """
        given = images, labels, probe_images, probe_labels, mean, std, classes, probe_classes
        earlier = self.states[:-1]
        evidence = Evidence(self.model, self.blocks, self.initial, earlier, *given, derive(self.seed, "evidence"))
        gens = [generator(self.seed, "null evidence", k) for k in range(1, n_nulls + 1)]
        return evidence, null_evidence(evidence, lambda g: fresh_network(self.factory, g), gens, **options)


def fresh_network(factory: Callable[[], nn.Module], g: torch.Generator) -> nn.Module:
    """A network whose initial weights follow from `g`, though its factory draws from torch's global random state."""
    with _own_chance(g):
        return factory()


@contextlib.contextmanager
def _own_chance(g: torch.Generator) -> Iterator[None]:
    """torch's global random state (of the CPU) follows `g` inside, and is as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=g)))
        yield
