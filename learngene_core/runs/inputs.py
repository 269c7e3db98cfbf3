"""What a stage is handed, as fingerprints, so that a run never takes the results of one learngene for those of another.

A configuration says how a stage computes; that it was handed the run's own learngene, collective and tasks it cannot know.
Equal content gives equal fingerprints on any machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..collective import Collective
from ..learngene import Learngene
from ..tasks import SourceTask, TargetTask


def of_tasks(tasks: Sequence[SourceTask] | Sequence[TargetTask]) -> str:
    """16 hexadecimal digits over the numbers, classes and image indices of tasks."""
    parts = ("train", "validation", "test") if isinstance(tasks[0], SourceTask) else ("support", "query")
    return _digest([[t.number, t.classes, [getattr(t, part).tolist() for part in parts]] for t in tasks])


def of_learngene(gene: Learngene) -> str:
    """16 hexadecimal digits over all that an individual inherits of a learngene."""
    about = [gene.layers, gene.pools, gene.image_size, gene.mean, gene.std]
    return _digest(about, gene.tensors, gene.fisher or {})


def of_collective(col: Collective) -> str:
    """16 hexadecimal digits over a collective's weights, classes and normalisation."""
    return _digest([col.class_names, col.mean.tolist(), col.std.tolist()], col.model.state_dict())


def _digest(about: Any, *groups: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(about).encode())
    for group in groups:
        for name in sorted(group):
            tensor = group[name].detach().cpu().contiguous()
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]
