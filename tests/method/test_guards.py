"""What a training says of itself: a network that learns nothing, a penalty that holds nothing, a criterion that cannot choose."""

import math
import types

import numpy as np
import pytest
import torch

from learngene_core import criteria
from learngene_core.collective import warn_if_dead
from learngene_core.config import Config
from learngene_core.errors import StudyError
from learngene_core.ewc import Frozen, Penalty
from learngene_core.record import N_BINS, Record
from learngene_core.training import Recipe, fit, task_loss


def walked(n_epochs, loss, accuracy, cfg, n_images, n_tasks=4):
    """History rows of `n_epochs` epochs, and the tasks they were trained on."""
    ways = cfg.source_way
    tasks = [
        types.SimpleNamespace(
            number=t, classes=tuple(f"c{ways * t + i}" for i in range(ways)), train=np.zeros(n_images)
        )
        for t in range(1, n_tasks + 1)
    ]
    each = -(-n_epochs // n_tasks)
    rows = [
        {"phase": "train", "task": 1 + e // each, "epoch": 1 + e % each, "loss": loss(e), "accuracy": accuracy(e)}
        for e in range(n_epochs)
    ]
    return rows, tasks


def said_over(rows, tasks, cfg, capsys):
    capsys.readouterr()
    said = []
    for k in range(1, len(rows) + 1):
        warn_if_dead(rows[:k], tasks, cfg)
        if text := capsys.readouterr().out:
            said.append((k, text))
    return said


def test_a_dead_network_is_said_once_with_what_to_do(capsys):
    cfg = Config.preset("lecture")
    rows, tasks = walked(40, lambda e: math.log(8) + 0.01, lambda e: 12.0, cfg, 800)
    said = said_over(rows, tasks, cfg, capsys)
    (at, text) = said[0]
    assert len(said) == 1 and at == max(10, math.ceil(200 / math.ceil(800 / cfg.batch_size)))
    assert "loss 2.089 where a guess has 2.079" in text and "12.0 %" in text and "12.5 %" in text
    assert "learning_rate (now 0.03)" in text and len(text.splitlines()) == 1
    # resumed: the rows of the tasks before are there again, and it is not said again
    assert said_over(rows[at:], tasks, cfg, capsys) == [] or at < 20


@pytest.mark.parametrize(
    ("loss", "accuracy"),
    [
        (lambda e: math.log(8) * 0.95, lambda e: 12.5),  # the loss moves
        (lambda e: math.log(8), lambda e: 20.0),  # the accuracy is no guess's
        (lambda e: math.log(8) - 0.01 * e, lambda e: 12.5 + e),  # it learns slowly
        (lambda e: math.log(8) if e % 9 else 1.0, lambda e: 12.5),  # it learns now and then
    ],
    ids=["loss", "accuracy", "slow", "now and then"],
)
def test_a_network_that_learns_is_no_alarm(capsys, loss, accuracy):
    cfg = Config.preset("lecture")
    assert said_over(*walked(60, loss, accuracy, cfg, 800), cfg, capsys) == []


def test_the_smoke_preset_is_at_chance_by_design_and_no_alarm(capsys):
    cfg = Config.preset("smoke")
    n = cfg.first_task_epochs + cfg.epochs * (cfg.n_source_tasks - 1)
    images = cfg.source_way * cfg.source_images
    rows, tasks = walked(n, lambda e: math.log(4) + 0.1, lambda e: 25.0, cfg, images)
    assert said_over(rows, tasks, cfg, capsys) == []


def test_over_all_classes_so_far_chance_is_among_all_of_them(capsys):
    cfg = Config.preset("lecture", loss="class-incremental")
    rows, tasks = walked(40, lambda e: math.log(8 * (1 + e // 10)), lambda e: 100 / 8 / (1 + e // 10), cfg, 800)
    assert len(said_over(rows, tasks, cfg, capsys)) == 1
    rows, tasks = walked(40, lambda e: math.log(8), lambda e: 12.5, cfg, 800)  # better than chance among 32
    assert [k for k, _ in said_over(rows[12:], tasks, cfg, capsys)] == []


def small_fit(penalty, rate, form_rows=3):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 2, 2), generator=generator).to(torch.uint8)
    recipe = Recipe(form_rows, 4, rate, "constant", 0.0, 0.0, 0, False, torch.full((3,), 0.5), torch.full((3,), 0.25))
    labels = torch.arange(8) % 2
    held, where, steps = penalty(net), "source task 2", 2
    rows = []
    for row in fit(net, images, labels, task_loss(), recipe, pull=held, where=where,
                   stream=lambda epoch: torch.Generator().manual_seed(epoch)):  # fmt: skip
        if isinstance(held, Penalty):
            held.check(row["penalty"], steps * row["epoch"], where)
        rows.append(row)
    return rows


def penalty_of(form, strength=1.0):
    def make(net):
        named = dict(net.named_parameters())
        return Penalty(net, named, {n: torch.ones_like(p) for n, p in named.items()}, strength, form)

    return make


def test_a_penalty_that_never_bites_is_an_error_that_says_so():
    with pytest.raises(
        StudyError, match=r"EWC penalty of source task 2 is exactly zero after 2 steps.*raise"
    ) as refusal:
        small_fit(penalty_of("penalty", 1e-44), 0.1)
    assert "\n" not in str(refusal.value)
    with pytest.raises(StudyError, match="exactly zero"):
        small_fit(penalty_of("penalty"), 1e-30)  # the weights do not move
    assert small_fit(penalty_of("penalty"), 0.1)[-1]["penalty"] > 0
    assert len(small_fit(penalty_of("proximal", 1e30), 0.1)) == 3  # it holds so fast that nothing moves
    assert len(small_fit(lambda net: Frozen(net, {"1.bias": torch.ones(2)}), 0.1)) == 3


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_a_criterion_over_a_constant_record_says_that_it_cannot_choose(name):
    """It must not take the first layers, or the last, as if they had been found."""
    layers, columns = ("conv1", "conv2", "conv3"), ("norm", "rms", "norm_times_weight", "weight_norm", "relative_norm")
    rows = [{"layer": n, "n_weights": 9, **dict.fromkeys(columns, 1.0)} for n in layers]
    counts, zeros = np.ones((3, 2, N_BINS), int), np.ones(3, int)
    entries = [{"task": t, "epoch": 1, "rows": rows, "counts": counts, "zeros": zeros} for t in (1, 2, 3)]
    null = [{**row, "task": t, "network": k} for k in (1, 2) for t in (1, 2) for row in rows]
    record = Record.of_epochs(layers, entries, null, np.ones((2, 2, 3, 2, N_BINS), int), np.ones((2, 2, 3), int))
    with pytest.raises(StudyError, match=f"criterion '{name}' .*set another criterion, or layers") as refusal:
        criteria.choose(record, Config(criterion=name, n_blocks=2))
    assert "\n" not in str(refusal.value)
