"""What the open world looks at: image indices by role, and a saved state of the collective with its scorers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data.division import Division, parts
from ..errors import StudyError
from ..execution import layout, use
from ..network import ConvNet
from ..runs.machine import machine_of
from ..runs.run import Run
from ..runs.states import load_state
from ..tasks import ImageSet, SourceTask
from ..training import normalise
from .scores import Head, Scorer, refit_head

Name, Found = TypeVar("Name", bound=Hashable), TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class OpenSets:
    """Image indices per class, base classes: exemplars, validation, test; open-world classes: stream, unknown (test)."""

    exemplars: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    stream: dict[str, np.ndarray]
    unknown: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class View:
    """The collective after one task: network, class names of its outputs, normalisation, and one scorer per head."""

    task: int
    model: ConvNet
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    scorers: dict[str, Scorer]
    depths: int
    # image -> its features, had before
    seen: dict[int, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict, repr=False)

    def features(self, imgs: ImageSet, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`open_features` of images with these indices (n,), each looked at once; `imgs` are those of the exemplars."""
        if missing := [int(i) for i in dict.fromkeys(indices.tolist()) if i not in self.seen]:
            found = open_features(self.model, imgs.images[missing], self.mean, self.std, self.depths)
            self.seen.update(zip(missing, zip(*found, strict=True), strict=True))
        rows = [self.seen[i] for i in indices.tolist()]
        return np.stack([below for below, _ in rows]), np.stack([deep for _, deep in rows])


def open_sets(imgs: ImageSet, div: Division, src: Sequence[SourceTask], cfg: Config) -> OpenSets:
    """The images of the open-world study.

    Raises StudyError without open-world classes, or where a base class has no held-out image left for a part.
    """
    if not div.open_world:
        raise StudyError(
            "the division has no open-world class, so nothing is unknown; the open world needs at least one (--set split=FILE)"
        )
    labels = imgs.labels.numpy()
    base: tuple[dict[str, np.ndarray], ...] = ({}, {}, {})
    for task in src:
        for name in task.classes:
            own = imgs.class_names.index(name)
            for found, indices in zip(base, (task.train, task.validation, task.test), strict=True):
                found[name] = indices[labels[indices] == own]
                if not len(found[name]):
                    raise StudyError(
                        f"base class {name!r} has too few held-out images; set held_out_images to 2 or more"
                    )
    pairs = {name: parts(imgs, name, cfg.support_pool, cfg.query_images, cfg) for name in div.open_world}
    train = {name: indices[: cfg.open_exemplars] for name, indices in base[0].items()}
    stream, unknown = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
    return OpenSets(train, base[1], base[2], stream, unknown)


def gathered(groups: dict[str, np.ndarray], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Image indices (n,) of the classes in `names`, one class after the other, and their places (n,) in `names`."""
    indices = [groups[name] for name in names]
    return np.concatenate(indices), np.repeat(np.arange(len(names)), [len(i) for i in indices])


@torch.no_grad()
def open_features(
    model: ConvNet, images: Tensor, mean: Tensor, std: Tensor, depths: int = 1, batch_size: int = 250
) -> tuple[np.ndarray, np.ndarray]:
    """What the last linear layer sees (n, d), and features (n, e) of the last `depths` blocks with a pool after them: each
    averaged over positions, scaled to length 1, side by side. Of uint8 images (n, 3, h, w), in double precision.

    Raises StudyError where they are not finite.
    """
    device, (was_training, _) = next(model.parameters()).device, (model.training, model.eval())
    pooled = [n for n, block in model.blocks.items() if block.pool][-depths:] or model.block_names[-1:]
    below, deep = [], []
    for batch in images.split(batch_size):
        x, maps = normalise(batch.to(device), mean.to(device), std.to(device)), []
        for name, block in model.blocks.items():
            x = block(x)
            if name in pooled:
                maps.append(torch.nn.functional.normalize(x.mean((2, 3)), dim=1))
        below.append(model.classifier[:-1](x.flatten(1)))
        deep.append(torch.cat(maps, dim=1))
    model.train(was_training)
    found = torch.cat(below).double().cpu().numpy(), torch.cat(deep).double().cpu().numpy()
    if not all(np.isfinite(values).all() for values in found):
        raise StudyError(
            "the network's features are not finite: it has diverged; train it again with a lower learning_rate"
        )
    return found


def view_of(run: Run, imgs: ImageSet, sets: OpenSets, task: int) -> View:
    """The saved collective after source task `task` (from 1), with a scorer fitted on exemplars for each head."""
    model, _, about = load_state(run.path / "collective" / f"task_{task:02d}")
    mean, std = torch.tensor(about["mean"]), torch.tensor(about["std"])
    machine = machine_of(run)
    model.to(machine.device, memory_format=layout(machine)).eval()  # and stays so: workers share it
    names, cfg = tuple(about["class_names"]), run.cfg
    indices, labels = gathered(sets.exemplars, names)
    features, deep = open_features(model, imgs.images[torch.from_numpy(indices)], mean, std, cfg.open_depths)
    own = Head(*(p.detach().double().cpu().numpy() for p in (model.head.weight, model.head.bias)))
    heads = {"refit": refit_head(features, labels, cfg.open_strength), "own": own}
    made = {
        n: Scorer.fit(h, features, deep, labels, tail=cfg.open_tail, alpha=cfg.open_alpha) for n, h in heads.items()
    }
    seen = dict(zip(indices.tolist(), zip(features, deep, strict=True), strict=True))
    return View(task, model, names, mean, std, made, cfg.open_depths, seen)


def on_workers(
    jobs: Mapping[Name, Callable[[], Found]], run: Run, *, done: Callable[[int], None], alone: bool = False
) -> dict[Name, Found]:
    """Name -> result of independent jobs, begun in order on the machine's workers; done(k) is told that k are finished.

    alone: one at a time, for jobs that draw from torch's global state. Raises what a job raises.
    """
    machine = machine_of(run)
    workers = 1 if alone else machine.workers
    threads = machine.threads if machine.workers == 1 else 1
    done(0)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        names = {pool.submit(job): name for name, job in jobs.items()}
        try:
            for finished, future in enumerate(as_completed(names), 1):
                future.result()  # an error ends the others before they begin
                done(finished)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    use(machine)
    return {name: future.result() for future, name in names.items()}
