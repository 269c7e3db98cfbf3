"""The null of every criterion: the same record on untrained networks with random labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .config import Config
from .division import SourceTask
from .gradients import Recorder, block_weights
from .network import ConvNet
from .steps import logits_of
from .streams import generator
from .training import Loss, task_loss


def untrained_record(
    shape: dict,
    tasks: Sequence[SourceTask],
    cfg: Config,
    *,
    prepare: Callable[[np.ndarray], Tensor],
    outputs: Callable[[SourceTask], Tensor | None],
    loss: Callable[[Loss, Tensor | None], Loss] = lambda loss, classes: loss,
    autocast: bool = False,
) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """The gradient record of `cfg.null_networks` untrained networks: rows, counts (n, t, l, 2, b), zeros (n, t, l).

    No step is taken. Each task shows its images (`prepare(indices)`: normalised, on the device) with labels drawn anew
    among its outputs (`outputs(task)`; None: the whole head), under the collective's loss (`loss(task_loss, classes)`). So
    whatever these gradients show follows from depth, width, loss and images, and from nothing learned. In the rows `epoch` is
    the number of the untrained network. autocast: as the collective was trained, or the two could not be compared.
    """
    all_rows, counts, zeros = [], [], []
    for network in range(1, cfg.null_networks + 1):
        model = ConvNet.from_shape(shape, generator=generator(cfg.seed, "null network", network))
        model = model.to(prepare(tasks[0].train[:1]).device, memory_format=torch.channels_last).train()
        recorder = Recorder(block_weights(model))
        for task in tasks:
            _look(
                model,
                recorder,
                task,
                cfg,
                prepare,
                outputs(task),
                generator(cfg.seed, "null labels", network, task.number),
                loss,
                autocast,
            )
            rows, c, z = recorder.take()
            all_rows += [{"task": task.number, "epoch": network, **row} for row in rows]
            counts.append(c)
            zeros.append(z)
    n, t = cfg.null_networks, len(tasks)
    return all_rows, np.stack(counts).reshape(n, t, *counts[0].shape), np.stack(zeros).reshape(n, t, -1)


def _look(
    model: ConvNet,
    recorder: Recorder,
    task: SourceTask,
    cfg: Config,
    prepare: Callable,
    classes: Tensor | None,
    g: torch.Generator,
    loss: Callable[[Loss, Tensor | None], Loss],
    autocast: bool,
) -> None:
    among = torch.arange(model.n_classes) if classes is None else classes.cpu()
    for _ in range(cfg.null_steps):
        picked = task.train[torch.randperm(len(task.train), generator=g)[: cfg.batch_size].numpy()]
        images = prepare(picked)
        labels = among[torch.randint(len(among), (len(picked),), generator=g)].to(images.device)
        model.zero_grad(set_to_none=True)
        loss(task_loss(classes), classes)(logits_of(model, images, autocast), labels)[0].backward()
        recorder()
