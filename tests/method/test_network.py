"""The network: its size and cost against measurement, growing heads, its shape as data, what it refuses."""

import json
import math

import pytest
import torch
from torch import nn

from learngene_core.growth import deepen, widen
from learngene_core.network import ConvNet, flop_count, parameter_count
from learngene_core.presets import PAPER_FINAL_WIDTHS, PAPER_POOLS, PAPER_WIDTHS


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def measured(net):
    return sum(p.numel() for p in net.parameters())


def meta_net(*args):
    with torch.device("meta"):
        return ConvNet(*args)


SHAPES = [
    ((4,), (), 2, 8, ()),
    ((4, 6, 5), (1, 3), 3, 13, ()),
    ((5, 5, 7, 3), (2, 4), 10, 16, (11,)),
    ((6, 8), (2,), 4, 9, (7, 5, 3)),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_predicted_parameter_count_is_the_measured_one(shape):
    net = ConvNet(*shape)
    widths, pools, n_classes, size, hidden = shape
    features = net.features(torch.zeros(2, 3, size, size)).shape[1]
    assert parameter_count(widths, n_classes, features, hidden) == measured(net)


@pytest.mark.parametrize(
    ("widths", "size", "classes", "n_parameters", "gflop"),
    [
        (PAPER_WIDTHS, 32, 64, 5_109_888, 0.228),
        (PAPER_FINAL_WIDTHS, 32, 64, 16_360_000, 0.630),
        (PAPER_FINAL_WIDTHS, 84, 100, None, 4.17),
    ],
)
def test_the_papers_networks_have_their_known_size_and_cost(widths, size, classes, n_parameters, gflop):
    net = meta_net(widths, PAPER_POOLS, classes, size, (1024, 1024))
    assert sum(flop_count(net).values()) / 1e9 == pytest.approx(gflop, rel=3e-3)
    if n_parameters:
        assert measured(net) == pytest.approx(n_parameters, rel=0 if n_parameters == 5_109_888 else 1e-3)
        features = widths[-1] * (size >> 5) ** 2
        assert parameter_count(widths, classes, features, (1024, 1024)) == measured(net)


@pytest.mark.parametrize("shape", SHAPES)
def test_flop_count_is_what_the_layers_do(shape):
    net, counted = ConvNet(*shape), {}

    def count(name):
        def hook(layer, inputs, output):
            per_output = layer.weight[0].numel()
            counted[name] = counted.get(name, 0) + 2 * per_output * output[0].numel()

        return hook

    for name, block in net.blocks.items():
        block.conv.register_forward_hook(count(name))
    for layer in net.classifier:
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(count("classifier"))
    net(torch.zeros(2, 3, net.image_size, net.image_size))
    assert flop_count(net) == counted


def test_flop_count_after_growth_is_that_of_a_network_made_so():
    net = ConvNet((4, 4, 4), (2,), 3, 8)
    widen(net, "conv2", 7)
    net.grow_head(2)
    assert flop_count(net) == flop_count(ConvNet((4, 7, 4), (2,), 5, 8))
    assert measured(net) == measured(ConvNet((4, 7, 4), (2,), 5, 8))


def test_forward_is_the_classifier_of_the_features():
    net = ConvNet((4, 6), (1,), 3, 8, (5,), generator=seeded(0)).eval()
    x = torch.randn(3, 3, 8, 8, generator=seeded(1))
    y = x
    for block in net.blocks.values():
        y = torch.relu(block.norm(block.conv(y)))
        y = nn.functional.max_pool2d(y, 2) if block.pool else y
    assert torch.allclose(net.features(x), y.flatten(1), atol=1e-6)
    assert net.features(x).shape == (3, 6 * 4 * 4)
    assert torch.equal(net(x), net.classifier(net.features(x)))


@pytest.mark.parametrize("hidden", [(), (7,)])
def test_growing_the_head_keeps_the_old_classes(hidden):
    net = ConvNet((4, 6), (1,), 3, 8, hidden, generator=seeded(0)).eval()
    nn.init.normal_(net.head.bias, generator=seeded(5))
    x = torch.randn(5, 3, 8, 8, generator=seeded(1))
    before, weight, bias = net(x).detach(), net.head.weight.detach().clone(), net.head.bias.detach().clone()
    net.grow_head(400, generator=seeded(2))
    assert net.n_classes == 403 and net(x).shape == (5, 403)
    assert torch.equal(net.head.weight[:3], weight) and torch.equal(net.head.bias[:3], bias)
    assert torch.allclose(net(x)[:, :3], before, rtol=1e-6, atol=1e-6)
    assert net.head.weight[3:].std().item() == pytest.approx(weight.std().item(), rel=0.1)
    assert not net.head.bias[3:].any()
    assert {id(p) for p in net.head.parameters()} <= {id(p) for p in net.parameters()}
    assert net.head.weight.requires_grad


def test_growing_the_head_draws_from_its_generator_alone():
    heads = []
    for seed, stream in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(seed)
        net = ConvNet((4,), (), 3, 8, generator=seeded(0))
        net.grow_head(2, generator=seeded(stream))
        heads.append(net.head.weight.detach())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_initial_weights_come_from_the_generator_alone_and_have_he_scale():
    nets = []
    for seed, stream in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(seed)
        nets.append(ConvNet((64, 64), (2,), 10, 8, (50,), generator=seeded(stream)))
    states = [net.state_dict() for net in nets]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    drawn = [n for n in states[0] if n.endswith(("conv.weight", "0.weight", "3.weight"))]
    assert len(drawn) == 4 and not any(torch.equal(states[0][n], states[2][n]) for n in drawn)
    for name in drawn:
        w = states[0][name]
        gain = 1 if name == "classifier.3.weight" else 2
        assert w.std().item() == pytest.approx(math.sqrt(gain / w[0].numel()), rel=0.15), name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grown", [False, True])
def test_a_network_can_be_rebuilt_from_its_shape(shape, grown):
    net = ConvNet(*shape, dropout=0.25, generator=seeded(0))
    if grown:
        widen(net, "conv1", 9, generator=seeded(1))
        deepen(net, "conv1")
        deepen(net, net.block_names[-1])
        net.grow_head(3, generator=seeded(2))
    again = ConvNet.from_shape(json.loads(json.dumps(net.shape)))
    again.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, net.image_size, net.image_size, generator=seeded(3))
    assert torch.equal(again.eval()(x), net.eval()(x))
    assert again.shape == net.shape and again.block_names == net.block_names
    assert (again.widths, again.pools, again.n_classes) == (net.widths, net.pools, net.n_classes)


def test_output_of_is_the_blocks_output_and_leaves_no_trace():
    net = ConvNet((4, 6, 5), (1, 2), 3, 16, generator=seeded(0)).train()
    x = torch.randn(4, 3, 16, 16, generator=seeded(1))
    net(x)
    state = {n: t.clone() for n, t in net.state_dict().items()}
    inside, outside = net.output_of("conv2", x, before_norm=True), net.output_of("conv2", x)
    assert net.training and all(torch.equal(net.state_dict()[n], t) for n, t in state.items())
    net.eval()
    y = net.blocks["conv1"](x)
    assert torch.allclose(inside, net.blocks["conv2"].conv(y), atol=1e-6)
    assert torch.allclose(outside, net.blocks["conv2"](y), atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        ((), (), 3, 8),
        ((4, 0), (), 3, 8),
        ((4,), (), 0, 8),
        ((4, 4), (3,), 3, 8),
        ((4, 4), (0,), 3, 8),
        ((4,) * 4, (1, 2, 3, 4), 3, 8),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(arguments):
    with pytest.raises(ValueError):
        ConvNet(*arguments)


def test_names_that_do_not_match_the_widths_are_refused():
    shape = ConvNet((4, 4), (), 3, 8).shape
    with pytest.raises(ValueError):
        ConvNet.from_shape({**shape, "names": ["conv1"]})
