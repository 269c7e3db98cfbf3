"""Operations counted by torch itself, and break-even by hand."""

import math

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toys import toy_config, toy_images

from learngene_core.analysis.costs import (
    break_even,
    collective_flop,
    first_epoch,
    forward_flop,
    individual_flop,
    planned_flop,
)
from learngene_core.collective import train_collective
from learngene_core.config import Machine
from learngene_core.data.division import divide, source_tasks
from learngene_core.network import ConvNet

NET = ConvNet((4, 6, 8), (1, 3), 5, 16, hidden=(7,))


def curves(**methods):
    rows = [(m, e, a) for m, values in methods.items() for e, a in enumerate(values, 1)]
    return pd.DataFrame(rows, columns=["method", "epoch", "accuracy"])


def test_operations_are_those_that_torch_counts():
    with FlopCounterMode(display=False) as counter:
        NET(torch.zeros(1, 3, 16, 16))
    assert forward_flop(NET.shape) == counter.get_total_flops()


def test_a_training_step_is_about_three_forward_passes():
    """Torch counts a little less: the first layer needs no gradient by its input."""
    images = torch.zeros(2, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        NET(images).sum().backward()
    assert 0.85 < counter.get_total_flops() / individual_flop(NET.shape, 2, 1) <= 1


def test_the_collective_is_summed_over_the_widths_that_it_had():
    small = ConvNet((2, 3, 4), (1, 3), 5, 16)
    found = collective_flop([small.shape, NET.shape], [100, 50], [4, 2])
    assert found == 3 * (400 * forward_flop(small.shape) + 100 * forward_flop(NET.shape))
    with pytest.raises(ValueError):
        collective_flop([small.shape], [1, 2], [1, 2])


def test_the_planned_collective_is_the_one_that_is_trained():
    cfg = toy_config(growth="zero-out")
    div = divide(toy_images(), cfg)
    tasks = source_tasks(toy_images(), div, cfg)
    seen = []
    train_collective(
        toy_images(), tasks, cfg, after_task=lambda state: seen.append(state.model.shape), machine=Machine()
    )
    seen = [{**shape, "n_classes": len(div.base)} for shape in seen]
    found = collective_flop(seen, [len(t.train) for t in tasks], [cfg.first_task_epochs, cfg.epochs, cfg.epochs])
    assert planned_flop(cfg, len(div.base), cfg.source_images) == found and seen[0] != seen[2]
    joint = cfg.replace(ancestor="joint").as_ancestor(len(div.base))
    images = len(div.base) * cfg.source_images
    whole = collective_flop([seen[2]], [images], [joint.first_task_epochs])
    assert planned_flop(cfg.replace(ancestor="joint"), len(div.base), cfg.source_images) == whole
    with pytest.raises(ValueError, match="replay"):
        planned_flop(cfg.replace(ancestor="replay"), 9, 10)


def test_break_even_by_hand():
    table = curves(learngene=[40, 50, 60, 60], scratch=[20, 30, 40, 50, 55, 60, 65])
    found = break_even(1e9, NET.shape, 50, table)
    each = 3 * 50 * forward_flop(NET.shape)  # an epoch
    assert (found.accuracy, found.epochs, found.scratch_epochs, found.bound) == (60, 3, 6, False)
    assert (found.individual, found.scratch) == (3 * each, 6 * each)
    assert found.individuals == pytest.approx(1e9 / (3 * each))


def test_scratch_that_never_gets_there_gives_a_bound():
    found = break_even(1e9, NET.shape, 50, curves(learngene=[40, 60], scratch=[20, 30, 40]))
    assert found.bound and found.scratch_epochs == 3
    assert found.individuals == pytest.approx(1e9 / individual_flop(NET.shape, 50, 1))


def test_nothing_saved_is_never_paid():
    equal = curves(learngene=[40, 60], scratch=[40, 60])
    assert break_even(1e9, NET.shape, 50, equal).individuals == math.inf
    assert break_even(1e9, NET.shape, 50, equal, accuracy=30).individuals == math.inf


def test_what_cannot_be_answered_is_refused():
    table = curves(learngene=[40, 60], scratch=[40, float("nan")])
    with pytest.raises(ValueError, match="scratch"):
        break_even(1e9, NET.shape, 50, table)
    with pytest.raises(ValueError, match="never reaches 70"):
        break_even(1e9, NET.shape, 50, curves(learngene=[40, 60], scratch=[1, 2]), accuracy=70)
    assert first_epoch({1: 10.0, 2: 30.0, 3: 20.0}, 20) == 2
    assert first_epoch({1: 10.0}, 20) is None
