"""A stack of networks trains as its networks would one by one: logits, gradients, weights, batch-norm statistics."""

import functools

import pytest
import torch
from torch import nn

from learngene_core.ewc import Penalty
from learngene_core.network import ConvNet
from learngene_core.stack import Stack
from learngene_core.training import Recipe, draw_epoch, evaluate, fit, predict, stack_loss, task_loss

SHAPES = {
    "linear": {"widths": (4, 6, 5), "pools": (1, 3), "n_classes": 3, "image_size": 12, "hidden": ()},
    "hidden": {"widths": (3, 4), "pools": (2,), "n_classes": 4, "image_size": 8, "hidden": (7, 5)},
    "deepened": {
        "widths": (4, 4, 4),
        "pools": (),
        "n_classes": 2,
        "image_size": 6,
        "names": ["conv1", "conv1+1", "fresh1"],
    },
}
MEAN, STD = torch.full((3,), 0.5), torch.full((3,), 0.25)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def nets_of(kind, m=3, dtype=torch.float32):
    nets = [ConvNet.from_shape(SHAPES[kind], generator=seeded(i)) for i in range(m)]
    for i, net in enumerate(nets):
        for block in net.blocks.values():
            nn.init.normal_(block.norm.bias, generator=seeded(i))
            nn.init.uniform_(block.norm.running_var, 0.5, 2, generator=seeded(i))
    return [net.to(dtype) for net in nets]


def data_of(kind, n=14, seed=9):
    shape = SHAPES[kind]
    images = torch.randint(0, 256, (n, 3, shape["image_size"], shape["image_size"]), generator=seeded(seed))
    return images.to(torch.uint8), torch.arange(n) % shape["n_classes"]


class Double(nn.Module):
    """Lets `fit`, which makes 32-bit images, train a 64-bit network."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.inputs, self.size = inner, getattr(inner, "inputs", 1), getattr(inner, "size", None)

    def forward(self, x):
        return self.inner(x.double())


def states_of(stack):
    """The state of every network of the stack, by the names a `ConvNet` has, in the stack's own precision."""
    states = []
    for i in range(stack.size):
        one = {}
        for name in stack.names:
            tensor = stack._get(name).detach()
            one[name] = (tensor[i] if name.startswith("classifier") else tensor.chunk(stack.size)[i]).clone()
        states.append(one)
    return states


@pytest.mark.parametrize("kind", SHAPES)
def test_logits_and_gradients_are_those_of_the_networks(kind):
    nets = nets_of(kind, dtype=torch.float64)
    stack = Stack(nets)
    images, labels = data_of(kind)
    x = images.double() / 255
    for training in (False, True):
        stack.train(training)
        logits = stack(x)
        assert logits.shape == (3, len(x), SHAPES[kind]["n_classes"])
        for i, net in enumerate(nets):
            assert torch.allclose(logits[i], net.train(training)(x), atol=1e-12)
    stack_loss(logits, labels)[0].sum().backward()
    for i, net in enumerate(nets):
        net.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        for name, p in net.named_parameters():
            g = stack._get(name).grad
            mine = g[i] if name.startswith("classifier") else g.chunk(3)[i]
            assert torch.allclose(mine, p.grad, atol=1e-10), name
            assert name.endswith("conv.bias") or mine.abs().max() > 1e-6, name


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(("dtype", "epochs", "tolerance"), [(torch.float64, 5, 1e-9), (torch.float32, 1, 1e-5)])
def test_training_a_stack_is_training_one_by_one(kind, dtype, epochs, tolerance):
    double = dtype == torch.float64
    images, labels = data_of(kind)
    batch = 7 if double else 14  # 10 steps, or one
    recipe = Recipe(epochs, batch, 0.05, "cosine", 0.9, 5e-4, 1, True, MEAN, STD)
    options = {"stream": lambda epoch: seeded(50 + epoch), "where": "here"}
    nets = nets_of(kind, dtype=dtype)
    stack = Stack(nets)
    start = states_of(stack)
    together = [*fit(Double(stack) if double else stack, images, labels, stack_loss, recipe, **options)]
    for before, after in zip(start, states_of(stack), strict=True):
        assert all((before[n] - after[n]).abs().max() > 1e-3 for n in before if n.endswith(("v.weight", "_mean")))
    for i, net in enumerate(nets):
        alone = [*fit(Double(net) if double else net, images, labels, task_loss(), recipe, **options)]
        state = states_of(stack)[i]
        assert set(state) == {n for n in net.state_dict() if "num_batches" not in n}
        for name, tensor in state.items():
            assert torch.allclose(tensor, net.state_dict()[name], rtol=0, atol=tolerance), (i, name)
        for a, b in zip(together, alone, strict=True):
            assert float(a["loss"][i]) == pytest.approx(b["loss"], abs=max(tolerance, 1e-6))
            assert float(a["accuracy"][i]) == pytest.approx(b["accuracy"])


@pytest.mark.parametrize("kind", SHAPES)
def test_a_network_comes_back_out_bit_for_bit(kind):
    nets = nets_of(kind)
    stack = Stack(nets)
    for i, net in enumerate(nets):
        out = stack.network(i)
        assert out.shape == net.shape
        for name, tensor in net.state_dict().items():
            assert torch.equal(out.state_dict()[name], tensor) or "num_batches" in name, name
    x = data_of(kind)[0].float() / 255
    assert torch.allclose(stack.network(1).eval()(x), stack.eval()(x)[1], atol=1e-5)


@pytest.mark.parametrize("m", [1, 3])
def test_a_stack_shares_no_tensor_with_its_networks(m):
    nets = nets_of("hidden", m)
    stack = Stack(nets)
    before = states_of(Stack(nets))
    with torch.no_grad():
        for tensor in [*stack.parameters(), *stack.buffers()]:
            tensor.add_(1)
    for i, net in enumerate(nets):
        assert all(torch.equal(net.state_dict()[n], t) for n, t in before[i].items())
    out = stack.network(0)
    with torch.no_grad():
        for p in out.parameters():
            p.zero_()
    assert all(not torch.equal(t, before[0][n]) for n, t in states_of(stack)[0].items())
    assert all(t.any() for t in states_of(stack)[0].values())


def test_measures_of_a_stack_are_those_of_its_networks():
    nets = nets_of("linear")
    stack = Stack(nets)
    images, labels = data_of("linear", 23)
    accuracy = evaluate(stack, images, labels, MEAN, STD)
    features = predict(stack, images, MEAN, STD, features=True, batch_size=5)
    for i, net in enumerate(nets):
        assert float(accuracy[i]) == float(evaluate(net, images, labels, MEAN, STD))
        assert torch.allclose(features[i], predict(net, images, MEAN, STD, features=True), atol=1e-5)


def test_a_penalty_on_one_network_leaves_the_others_alone():
    nets = nets_of("linear")
    images, labels = data_of("linear")
    recipe = Recipe(3, 7, 0.02, "constant", 0.9, 0.0, 0, False, MEAN, STD)
    held = {f"blocks.conv2.{n}": torch.full_like(p, 30.0) for n, p in nets[1].blocks["conv2"].named_parameters()}
    states = []
    for ewc in (False, True):
        stack = Stack(nets)
        penalty = None
        if ewc:
            fisher = stack.join([{}, held, {}])
            penalty = Penalty(stack, dict(stack.named_parameters()), fisher, 1.0, "penalty")
        list(fit(stack, images, labels, stack_loss, recipe, stream=seeded, where="here", pull=penalty))
        states.append(states_of(stack))
    start = states_of(Stack(nets))
    for i in (0, 2):
        for name, tensor in states[0][i].items():
            assert torch.allclose(tensor, states[1][i][name], atol=1e-5), name
    name = "blocks.conv2.conv.weight"
    free, kept = ((states[k][1][name] - start[1][name]).norm() for k in (0, 1))
    assert kept < 0.7 * free


def test_networks_that_differ_are_refused():
    shape = SHAPES["linear"]
    for change in ({"widths": (4, 6, 6)}, {"pools": (1, 2)}, {"n_classes": 4}, {"hidden": (3,)}, {"image_size": 13}):
        with pytest.raises(ValueError, match="same shape"):
            Stack([ConvNet.from_shape(shape), ConvNet.from_shape({**shape, **change})])
    with pytest.raises(ValueError):
        Stack([])
    with pytest.raises(ValueError, match="dropout"):
        Stack([ConvNet.from_shape({**shape, "dropout": 0.5})] * 2)


# several groups of images ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [12, 13, 11])
@pytest.mark.parametrize("hold", [False, True])
def test_networks_of_several_groups_train_as_one_by_one(n, hold):
    """Two arms on three target tasks: each with its own images, batches, augmentation and batch-norm statistics."""
    groups = [data_of("hidden", n, 100 + g) for g in range(3)]
    nets = nets_of("hidden", 6, torch.float64)
    stack = Stack(nets, inputs=3)
    r = Recipe(4, 5, 0.05, "cosine", 0.9, 5e-4, 1, True, MEAN, STD)
    held = {n: torch.full_like(p, 0.4) for n, p in nets[1].named_parameters() if "conv2" in n}

    def pull(model, anchor, weights):
        return Penalty(model, anchor, weights, 1.0, "penalty") if hold else None

    joined = stack.join([held if i % 2 else {} for i in range(6)])
    together = list(
        fit(
            Double(stack),
            torch.cat([images for images, _ in groups]),
            torch.cat([labels for _, labels in groups]),
            stack_loss,
            r,
            stream=lambda epoch: [seeded(10 * g + epoch) for g in range(3)],
            where="here",
            pull=pull(stack, dict(stack.named_parameters()), joined),
        )
    )
    for i, net in enumerate(nets):
        images, labels = groups[i // 2]
        penalty = pull(net, dict(net.named_parameters()), held) if i % 2 else None
        stream = functools.partial(lambda g, epoch: seeded(10 * g + epoch), i // 2)
        alone = [*fit(Double(net), images, labels, task_loss(), r, where="here", pull=penalty, stream=stream)]
        for name, tensor in stack.network(i).state_dict().items():
            if "num_batches" not in name:  # `network` gives back 32 bits
                assert torch.allclose(tensor, net.state_dict()[name].float(), rtol=0, atol=1e-6), (i, name)
        for one, both in zip(alone, together, strict=True):
            assert float(both["loss"][i]) == pytest.approx(one["loss"], abs=1e-9)
            assert float(both["accuracy"][i]) == pytest.approx(one["accuracy"])
            if hold:
                assert float(both["penalty"][i]) == pytest.approx(one["penalty"], abs=1e-9)
    query = [data_of("hidden", 7, 200 + g) for g in range(3)]
    accuracy = evaluate(stack.float(), torch.cat([q for q, _ in query]), torch.cat([y for _, y in query]), MEAN, STD)
    for i, net in enumerate(nets):
        assert float(accuracy[i]) == float(evaluate(net.float(), *query[i // 2], MEAN, STD))


def test_groups_that_do_not_divide_the_networks_are_refused():
    for inputs in (0, 2, 4):
        with pytest.raises(ValueError, match="groups"):
            Stack(nets_of("hidden"), inputs=inputs)


def test_batches_of_groups_are_those_of_each_alone():
    r = Recipe(1, 4, 0.05, "cosine", 0.9, 5e-4, 1, True, MEAN, STD)
    both = [*draw_epoch(9, r, [seeded(1), seeded(2)], torch.device("cpu"))]
    for g in range(2):
        for batch, alone in zip(both, draw_epoch(9, r, seeded(1 + g), torch.device("cpu")), strict=True):
            for mine, its, offset in zip(batch, alone, (9 * g, 0, 0), strict=True):
                assert torch.equal(mine.chunk(2)[g], its + offset if offset else its)
