"""Captured steps do what eager ones do; stacks over several groups of images are the networks one by one.

Without a GPU a stand-in takes the place of a CUDA graph: it notes every tensor operation with the very tensors it ran on, and a
replay runs these operations again into the same memory. Like a graph it never runs the Python code again, so whatever a step
keeps in Python, or makes anew outside the noted memory, shows as a wrong result.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from learngene_core import training
from learngene_core import training as steps
from learngene_core.ewc import Frozen, Penalty
from learngene_core.gradients import Recorder, block_weights
from learngene_core.network import ConvNet
from learngene_core.stack import Stack
from learngene_core.training import WARM, Captured, Recipe, Way, evaluate, fit, stack_loss, task_loss

MEAN, STD = torch.full((3,), 0.5), torch.full((3,), 0.25)
SHAPE = {"widths": (4, 6, 5), "pools": (1, 3), "n_classes": 3, "image_size": 12, "hidden": (7,)}


class Noting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result


class Tape:
    """Stands for `steps.Graph`. Noting a step takes it; so the first replay is already done."""

    made = 0

    def __init__(self, function):
        type(self).made += 1
        with Noting() as noting:
            self.outputs = function()
        self.operations, self.taken = noting.operations, True

    def replay(self):
        if self.taken:
            self.taken = False
            return
        with torch.no_grad():
            for function, args, kwargs, result in self.operations:
                again = function(*args, **kwargs)
                for there, new in zip(tensors(result), tensors(again), strict=True):
                    if there.data_ptr() != new.data_ptr():
                        there.copy_(new)


def tensors(result):
    items = result if isinstance(result, list | tuple) else [result]
    return [t for t in items if isinstance(t, torch.Tensor)]


@pytest.fixture
def taped(monkeypatch):
    """`fit` captures with the stand-in."""
    Tape.made = 0
    monkeypatch.setattr(training, "Captured", lambda step: Captured(step, Tape))
    return Tape


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def net_of(seed=0, **changes):
    return ConvNet.from_shape({**SHAPE, **changes}, generator=seeded(seed))


def images_of(n, seed=9):
    images = torch.randint(0, 256, (n, 3, 12, 12), generator=seeded(seed)).to(torch.uint8)
    return images, torch.arange(n) % 3


def recipe(**changes):
    values = {"epochs": 3, "batch_size": 4, "rate": 0.05, "schedule": "cosine", "momentum": 0.9, "weight_decay": 5e-4}
    return Recipe(**{**values, "shift": 1, "flip": True, "mean": MEAN, "std": STD, **changes})


def trained(way, *, every=1, form=None, dropout=0.0, n=22, momentum=0.9):
    """A network, its rows and its records (one per epoch) after 3 epochs of 6 steps, the last of each smaller."""
    net = net_of(dropout=dropout)
    images, labels = images_of(n)
    r = recipe(momentum=momentum)
    watch = Recorder(block_weights(net), every)
    penalty, takes = None, []
    if form == "frozen":
        penalty = Frozen(net, {"blocks.conv2.conv.weight": torch.ones(6, 4, 3, 3)})
    elif form:
        anchor = dict(net_of(5).named_parameters())
        penalty = Penalty(net, anchor, {n: torch.ones_like(p) for n, p in anchor.items()}, 0.3, form)
    rows = fit(
        net,
        images,
        labels,
        task_loss(),
        r,
        stream=seeded,
        where="here",
        watch=watch,
        penalty=penalty,
        on_epoch=lambda row: takes.append(watch.take()),
        way=way,
    )
    return net, rows, takes


@pytest.mark.parametrize("form", [None, "penalty", "proximal", "frozen"])
@pytest.mark.parametrize("every", [1, 2])
def test_captured_steps_are_eager_steps(taped, form, every):
    plain, captured = (trained(Way(fused=True, capture=capture), every=every, form=form) for capture in (False, True))
    assert taped.made >= 1, "nothing was captured"
    for name, tensor in plain[0].state_dict().items():
        assert torch.allclose(tensor, captured[0].state_dict()[name], rtol=0, atol=2e-6), name
    for one, other in zip(plain[1], captured[1], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for (rows, counts, zeros), (rows_2, counts_2, zeros_2) in zip(plain[2], captured[2], strict=True):
        assert abs(counts - counts_2).sum() <= 0.01 * counts.sum() and (zeros == zeros_2).all()
        for row, row_2 in zip(rows, rows_2, strict=True):
            assert row.pop("layer") == row_2.pop("layer") and row == pytest.approx(row_2, rel=1e-4)


def test_without_momentum_or_with_a_ragged_batch_captured_too(taped):
    plain, captured = (trained(Way(fused=True, capture=c), momentum=0.0) for c in (False, True))
    for name, tensor in plain[0].state_dict().items():
        assert torch.allclose(tensor, captured[0].state_dict()[name], rtol=0, atol=2e-6), name


def test_the_fused_optimiser_is_the_plain_one_up_to_rounding():
    plain, fused = (trained(Way(fused=fused)) for fused in (False, True))
    for name, tensor in plain[0].state_dict().items():
        assert torch.allclose(tensor, fused[0].state_dict()[name], rtol=0, atol=1e-5), name


def test_every_size_of_batch_and_looking_has_its_own_graph(taped):
    """5 full steps and a ragged one per epoch, looked at every second step: three kinds are met more than WARM times."""
    trained(Way(capture=True), every=2)
    sizes = {(4, True): 3 * 3, (4, False): 2 * 3, (2, False): 3}
    assert taped.made == sum(met > WARM for met in sizes.values())


def test_a_step_that_keeps_something_in_python_is_noticed(taped):
    """The stand-in would show it: a loss that counts its calls in Python gives other weights when captured."""
    results = []
    for capture in (False, True):
        calls, net = [], net_of()

        def loss(logits, labels, calls=calls):
            calls.append(1)
            value, hit = task_loss()(logits, labels)
            return value * (len(calls) % 3), hit

        options = {"stream": seeded, "where": "here", "way": Way(fused=True, capture=capture)}
        fit(net, *images_of(20), loss, recipe(), **options)
        results.append(net.state_dict()["classifier.0.weight"])
    assert not torch.allclose(*results, atol=1e-3)


def test_bfloat16_trains_alike_and_keeps_32_bits_where_it_counts():
    plain, half = (trained(Way(autocast=autocast), form="penalty") for autocast in (False, True))
    assert all(t.dtype in (torch.float32, torch.int64) for t in half[0].state_dict().values())
    for one, other in zip(plain[1], half[1], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05) and other["loss"] != one["loss"]
    moved = [net.state_dict()["blocks.conv2.conv.weight"] - net_of().state_dict()["blocks.conv2.conv.weight"]
             for net in (plain[0], half[0])]  # fmt: skip
    assert torch.nn.functional.cosine_similarity(*(m.flatten() for m in moved), dim=0) > 0.98


# several groups of images ----------------------------------------------------------------------------------------------
class Double(torch.nn.Module):
    """Lets `fit`, which makes 32-bit images, train a 64-bit stack."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.inputs, self.size = inner, getattr(inner, "inputs", 1), getattr(inner, "size", None)

    def forward(self, x):
        return self.inner(x.double())


@pytest.mark.parametrize("n", [12, 13, 11])
@pytest.mark.parametrize("hold", [False, True])
def test_networks_of_several_groups_train_as_one_by_one(n, hold):
    """Two arms on three target tasks: each with its own images, batches, augmentation and batch-norm statistics."""
    groups = [images_of(n, seed=100 + g) for g in range(3)]
    nets = [net_of(i).double() for i in range(6)]
    stack = Stack(nets, inputs=3)
    r = recipe(epochs=4, batch_size=5)
    held = {n: torch.full_like(p, 0.4) for n, p in nets[1].named_parameters() if "conv2" in n}

    def pull(model, anchor, weights):
        return Penalty(model, anchor, weights, 1.0, "penalty") if hold else None

    joined = stack.join([held if i % 2 else {} for i in range(6)])
    together = fit(
        Double(stack),
        torch.cat([images for images, _ in groups]),
        torch.cat([labels for _, labels in groups]),
        stack_loss,
        r,
        stream=lambda epoch: [seeded(10 * g + epoch) for g in range(3)],
        where="here",
        penalty=pull(stack, dict(stack.named_parameters()), joined),
    )
    for i, net in enumerate(nets):
        images, labels = groups[i // 2]
        penalty = pull(net, dict(net.named_parameters()), held) if i % 2 else None
        alone = fit(Double(net), images, labels, task_loss(), r, where="here", penalty=penalty,
                    stream=lambda epoch, g=i // 2: seeded(10 * g + epoch))  # fmt: skip
        for name, tensor in stack.network(i).state_dict().items():
            if "num_batches" not in name:  # `network` gives back 32 bits
                assert torch.allclose(tensor, net.state_dict()[name].float(), rtol=0, atol=1e-6), (i, name)
        for one, both in zip(alone, together, strict=True):
            assert float(both["loss"][i]) == pytest.approx(one["loss"], abs=1e-9)
            assert float(both["accuracy"][i]) == pytest.approx(one["accuracy"])
            if hold:
                assert float(both["penalty"][i]) == pytest.approx(one["penalty"], abs=1e-9)
    query = [images_of(7, seed=200 + g) for g in range(3)]
    accuracy = evaluate(stack.float(), torch.cat([q for q, _ in query]), torch.cat([y for _, y in query]), MEAN, STD)
    for i, net in enumerate(nets):
        assert float(accuracy[i]) == float(evaluate(net.float(), *query[i // 2], MEAN, STD))


def test_groups_that_do_not_divide_the_networks_are_refused():
    for inputs in (0, 2, 4):
        with pytest.raises(ValueError, match="groups"):
            Stack([net_of(i) for i in range(3)], inputs=inputs)


def test_batches_of_groups_are_those_of_each_alone():
    r = recipe(batch_size=4)
    both = [*steps.draw_epoch(9, r, [seeded(1), seeded(2)], torch.device("cpu"))]
    for g in range(2):
        for batch, alone in zip(both, steps.draw_epoch(9, r, seeded(1 + g), torch.device("cpu")), strict=True):
            for mine, its, offset in zip(batch, alone, (9 * g, 0, 0), strict=True):
                assert torch.equal(mine.chunk(2)[g], its + offset if offset else its)
