"""Guards over what a training says of itself: a network that learns nothing, a penalty that never bites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .files import StudyError, say

if TYPE_CHECKING:
    from .config import Config
    from .division import SourceTask

LONG_EPOCHS, LONG_STEPS = 10, 200  # a network that learns at all is off chance by then; the smoke preset ends before
NEAR = 0.98  # of the loss of a guess, ln K


def warn_if_dead(history: Sequence[dict[str, Any]], src: Sequence[SourceTask], cfg: Config) -> None:
    """Say, once, that the collective has been at chance for long: loss near ln K, accuracy that guessing explains.

    Only a warning: chance may be the honest result (labels that were permuted, classes that nobody can tell apart), and a
    run that is stopped by mistake costs more than one that is watched. history: rows of history.csv up to now.
    """
    by_number = {task.number: task for task in src}
    epochs = steps = 0
    for row in reversed([row for row in history if row["phase"] == "train"]):
        task = by_number[row["task"]]
        if not _at_chance(row, _ways(task, src, cfg), len(task.train)):
            break
        before = epochs >= LONG_EPOCHS and steps >= LONG_STEPS
        epochs, steps = epochs + 1, steps + -(-len(task.train) // cfg.batch_size)
        if before:
            return  # said when the epoch before ended
    if epochs >= LONG_EPOCHS and steps >= LONG_STEPS:
        last = history[-1]
        ways = _ways(by_number[last["task"]], src, cfg)
        say(
            f"collective: the last {epochs} epochs ({steps} steps, up to task {last['task']}, epoch {last['epoch']}) are at "
            f"chance: loss {last['loss']:.3f} where a guess has {math.log(ways):.3f}, accuracy {last['accuracy']:.1f} % where "
            f"it has {100 / ways:.1f} %; the network learns nothing. Raise learning_rate (now {cfg.learning_rate:g}), or look "
            "whether the classes can be told apart"
        )


def _ways(task: SourceTask, src: Sequence[SourceTask], cfg: Config) -> int:
    """Classes that the loss of a task chooses among."""
    if cfg.loss == "task-incremental":
        return len(task.classes)
    return len({name for t in src if t.number <= task.number for name in t.classes})


def _at_chance(row: dict[str, Any], ways: int, n_images: int) -> bool:
    chance = 1 / ways
    spread = 3 * math.sqrt(chance * (1 - chance) / n_images)  # what guessing gives by luck
    return ways > 1 and row["loss"] >= NEAR * math.log(ways) and row["accuracy"] <= 100 * (chance + spread)


def check_pull(penalty: Any, rows: Sequence[dict[str, Any]], steps: int, where: str) -> None:
    """After an epoch of `steps` steps: an EWC penalty on the loss is no longer zero once the weights have moved.

    Only an `ewc.Penalty` in the form `penalty`: a proximal step may hold so fast that nothing moves, and of the
    released defects one begins without a pull. Raises StudyError that names `where`.
    """
    import torch

    from .ewc import Penalty

    if type(penalty) is not Penalty or penalty.form != "penalty" or len(rows) * steps < 2:
        return
    value = torch.as_tensor(rows[-1]["penalty"])  # (), or (m,) for a stack, of which only some networks are held
    if not value.is_meta and bool((value[penalty.held.to(value.device)] == 0).any()):
        raise StudyError(
            f"the EWC penalty of {where} is exactly zero after {len(rows) * steps} steps: it holds nothing, because the "
            "weights do not move or its strength vanishes; raise the learning rate or the strength, or leave EWC out"
        )
