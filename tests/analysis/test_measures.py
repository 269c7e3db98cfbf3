"""Measures against hand-computed networks and brute force, their invariances, their null, and a run of the study."""

import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from toys import states_equal, toy_config, toy_images

from learngene_core import criteria
from learngene_core.analysis.evidence import Evidence, among_classes, block_features, estimate_norms
from learngene_core.analysis.gathering import evidence_of, null_evidence, validation_images
from learngene_core.analysis.measures import MEASURES, measure, measure_all
from learngene_core.data.division import divide, source_tasks
from learngene_core.errors import StudyError
from learngene_core.network import ConvNet
from learngene_core.record import Record
from learngene_core.runs import stages
from learngene_core.runs.run import Run
from learngene_core.runs.states import load_collective

PIXELS = torch.zeros(3), torch.full((3,), 1 / 255)  # mean and std that leave the values of pixels as they are


BLOCKS = ("blocks.conv1", "blocks.conv2", "blocks.conv3")


def births(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def vectors(*values):
    """Images of one pixel with these three channels, (n, 3, 1, 1)."""
    return torch.tensor(values, dtype=torch.uint8).view(-1, 3, 1, 1)


def linear(rows, bias=None):
    """A linear layer with these weights."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


class Chain(nn.Sequential):
    """Flattened pixels through named layers."""

    def __init__(self, **layers):
        super().__init__()
        self.add_module("flat", nn.Flatten())
        for name, layer in layers.items():
            self.add_module(name, layer)


def evidence(model, images, labels, blocks, **changes):
    """Evidence in which the training images are the probe too."""
    labels = torch.as_tensor(labels)
    given = {"initial": births(model), "states": (), "mean": PIXELS[0], "std": PIXELS[1], **changes}
    return Evidence(
        model, blocks, images=images, labels=labels, **{"probe_images": images, "probe_labels": labels, **given}
    )


def values(name, found):
    return MEASURES[name].compute(found)


# by hand ----------------------------------------------------------------------------------------------------------------
IMAGES, LABELS = vectors([1, 0, 2], [3, 1, 0], [2, 2, 2], [0, 1, 5], [4, 0, 1]), [0, 1, 1, 0, 0]
WEIGHTS = [[0.1, -0.2, 0.3], [0.05, 0.2, -0.1]]


def gradients(weights, images, labels):
    """d cross-entropy / d weights of every image, (n, k, 3): (p - one-hot) x'."""
    x, w = images.flatten(1).numpy().astype(float), np.array(weights)
    p = np.exp(x @ w.T)
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(x)), labels] -= 1
    return p[:, :, None] * x[:, None, :]


def test_snr_is_the_mean_over_weights_of_squared_mean_over_variance():
    g = gradients(WEIGHTS, IMAGES, LABELS)
    wanted = (g.mean(0) ** 2 / g.var(0, ddof=1)).mean()
    found = evidence(Chain(block=linear(WEIGHTS)), IMAGES, LABELS, ("block",))
    assert values("snr", found) == pytest.approx([wanted], rel=1e-5)


def test_snr_leaves_out_weights_that_no_image_moves():
    images = IMAGES.clone()
    images[:, 1] = 0
    g = gradients(WEIGHTS, images, LABELS)[:, :, [0, 2]]
    found = evidence(Chain(block=linear(WEIGHTS)), images, LABELS, ("block",))
    assert values("snr", found) == pytest.approx([(g.mean(0) ** 2 / g.var(0, ddof=1)).mean()], rel=1e-5)


def test_snr_of_gradients_without_a_signal_is_one_over_their_number():
    """Equally likely classes and labels drawn at random: the mean of n gradients is noise of variance / n."""
    g, n, found = torch.Generator().manual_seed(0), 50, []
    net = Chain(block=linear([[0.0] * 3] * 2))
    for _ in range(40):
        images = torch.randint(1, 256, (n, 3, 1, 1), generator=g, dtype=torch.uint8)
        found.append(values("snr", evidence(net, images, torch.randint(2, (n,), generator=g), ("block",)))[0])
    assert n * np.mean(found) == pytest.approx(1, abs=0.4)


def test_snr_of_several_blocks_and_chunks_equals_one_backward_pass_per_image():
    net, images, labels = small_net(), random_images(70), torch.arange(70) % 3
    estimate_norms(net, images, *PIXELS)
    found = evidence(net, images, labels, ("blocks.conv2", "classifier"))
    wanted = []
    for layer in (net.eval().blocks["conv2"].conv, net.head):
        losses = [nn.functional.cross_entropy(net(images[[i]].float()), labels[[i]]) for i in range(70)]
        g = torch.stack([torch.autograd.grad(loss, layer.weight)[0] for loss in losses]).double()
        ratio = g.mean(0).square() / g.var(0)
        wanted.append(float(ratio[g.abs().sum(0) > 0].mean()))
    assert values("snr", found) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_fisher_of_equal_outputs_is_a_quarter_of_the_squared_inputs(scale):
    """Two equal rows of weights: p = 1/2 whatever the image, so (p - 1)^2 = p^2 = 1/4 whatever label is drawn."""
    found = evidence(Chain(block=linear([[scale] * 3] * 2)), IMAGES, LABELS, ("block",))
    squared = (IMAGES.flatten(1).double() ** 2).mean(0).sum().item()
    assert values("fisher", found) == pytest.approx([2 * squared / 4 / 6], rel=1e-5)
    assert values("fisher_scaled", found) == pytest.approx([2 * squared / 4 / 6 * 6 * scale**2], rel=1e-5, abs=1e-9)


def test_a_block_of_several_tensors_is_averaged_over_all_its_weights():
    net = small_net()
    images, labels = random_images(12), torch.arange(12) % 3
    both = evidence(net, images, labels, {"all": net})
    parts = evidence(net, images, labels, ("blocks.conv1", "blocks.conv2", "blocks.conv3", "classifier"))
    sizes = np.array([sum(w.numel() for w in parts.weights(name).values()) for name in parts.paths])
    for name in ("fisher", "fisher_scaled"):
        assert values(name, both)[0] == pytest.approx((values(name, parts) * sizes).sum() / sizes.sum(), rel=1e-6)


def test_classes_restrict_the_loss_image_by_image():
    """A third output that takes no part must not matter, wherever its weights are; every image has classes of its own."""
    classes = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]])
    plain = evidence(Chain(block=linear(WEIGHTS)), IMAGES, LABELS, ("block",))
    for third in (0.0, 50.0):
        net = Chain(block=linear([*WEIGHTS, [third] * 3]))
        own = evidence(net, IMAGES, LABELS, ("block",), classes=classes, probe_classes=classes)
        among_two = evidence(net, IMAGES, LABELS, ("block",), classes=torch.tensor([0, 1]))
        for found in (own, among_two):
            assert values("snr", found) == pytest.approx(values("snr", plain), rel=1e-4)
        assert own.accuracy(net) == plain.accuracy(plain.model)
        assert values("fisher", own) > 0


def test_fisher_over_groups_of_classes_is_that_of_every_group_by_its_share():
    """Three equal rows, images among two or three of them: p = 1/2, or 1/3 (then the sum over outputs depends on no label)."""
    net = Chain(block=linear([[0.2] * 3] * 4))
    classes = torch.tensor([[0, 1], [2, 3], [0, 1], [1, 0], [2, 3]])
    found = evidence(net, IMAGES, [0, 2, 1, 0, 3], ("block",), classes=classes)
    squared = (IMAGES.flatten(1).double() ** 2).mean(0).sum().item()
    assert values("fisher", found) == pytest.approx([2 * squared / 4 / 12], rel=1e-5)


def test_weight_change_is_the_mean_angle_between_filters():
    """Turned by 30 and 90 degrees, made longer and shorter, one filter that was zero at birth; biases do not count."""
    start, turned = [[1.0, 0, 0], [0, 2.0, 0], [0, 0, 0]], [[math.cos(math.pi / 6), 0.5, 0], [0, 0, 7.0], [1.0, 1, 1]]
    net = Chain(block=linear(turned, [5.0, 5, 5]), other=linear([[1.0, 0, 1]]))
    initial = births(net) | {"block.weight": torch.tensor(start), "block.bias": torch.zeros(3)}
    found = evidence(net, IMAGES, [0] * 5, ("block", "other"), initial=initial)
    assert values("weight_change", found) == pytest.approx([60, 0], abs=1e-5)
    assert values("weight_change", found)[1] == 0
    both = evidence(net, IMAGES, [0] * 5, {"all": net}, initial=initial)
    assert values("weight_change", both) == pytest.approx([(30 + 90 + 0) / 3], abs=1e-5)


def test_small_angles_are_exact():
    net = Chain(block=linear([[1.0, 1e-4, 0]]))
    found = evidence(net, IMAGES, [0] * 5, ("block",), initial={"block.weight": torch.tensor([[1.0, 0, 0]])})
    assert values("weight_change", found) == pytest.approx([math.degrees(1e-4)], rel=1e-4)


def test_reinit_is_the_accuracy_that_a_block_carries():
    """The first layer's birth swaps the classes, the second's is as good as now, the third's cannot tell them apart."""
    keep, swap = [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], [[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]
    images, labels = vectors([9, 0, 0], [0, 9, 0], [8, 1, 0], [1, 8, 0]), [0, 1, 0, 1]
    net = Chain(a=linear(keep), b=linear(keep), c=linear(keep[:2]))
    initial = {"a.weight": torch.tensor(swap), "b.weight": 2 * torch.tensor(keep), "c.weight": torch.ones(2, 3)}
    found = evidence(net, images, labels, ("a", "b", "c"), initial=initial)
    before = copy.deepcopy(net.state_dict())
    assert found.accuracy(net) == 100
    assert values("reinit", found).tolist() == [100, 0, 50]
    assert states_equal(net.state_dict(), before), "the network itself is not touched"


def test_a_reset_block_takes_its_running_statistics_from_the_images():
    """Birth weights that are 5 x today's are the same function under batch norm, if its statistics follow them."""
    net = small_net()
    images, labels = random_images(24), torch.arange(24) % 3
    net.blocks["conv2"].norm.eps = 1e-12
    estimate_norms(net, images, *PIXELS)
    found = evidence(net, images, labels, ("blocks.conv2",))
    found.initial["blocks.conv2.conv.weight"].mul_(5)
    reset = found.reset("blocks.conv2").eval()
    x = images.float()
    assert torch.allclose(reset(x), net.eval()(x), atol=1e-3)
    assert values("reinit", found).tolist() == [0]
    for other in ("conv1", "conv3"):
        assert torch.equal(reset.blocks[other].norm.running_var, net.blocks[other].norm.running_var)
    assert reset.blocks["conv2"].norm.momentum == net.blocks["conv2"].norm.momentum


def test_norm_statistics_are_those_of_all_images():
    net, images = small_net(), random_images(450)
    before = copy.deepcopy(net.state_dict())
    estimate_norms(net, images, *PIXELS)
    norm, x = net.blocks["conv1"].norm, net.blocks["conv1"].conv(images.float()).detach()
    assert torch.allclose(norm.running_mean, x.mean((0, 2, 3)), atol=1e-3 * float(x.abs().max()))
    assert torch.allclose(norm.running_var, x.var((0, 2, 3)), rtol=3e-2)
    assert norm.momentum == 0.1 and all(m.training for m in net.modules())
    after = net.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in after if ".norm.running" not in n and "num_batches" not in n)


def test_a_reset_block_sees_what_reached_it_before():
    """Its batch norm takes mean and variance of its own convolution's output at birth; other blocks keep theirs."""
    net, images, start = small_net(), random_images(30), small_net(9)
    estimate_norms(net, images, *PIXELS)
    found = evidence(net, images, torch.arange(30) % 3, BLOCKS, initial=births(start))
    reset = found.reset("blocks.conv2")
    with torch.no_grad():
        x = start.blocks["conv2"].conv(net.eval().blocks["conv1"](images.float()))
    norm = reset.blocks["conv2"].norm
    assert torch.allclose(norm.running_mean, x.mean((0, 2, 3)), atol=1e-3)
    assert torch.allclose(norm.running_var, x.var((0, 2, 3)), rtol=1e-3)
    for name in ("conv1", "conv3"):
        assert states_equal(reset.blocks[name].state_dict(), net.blocks[name].state_dict())
    assert not any(m._forward_pre_hooks for m in net.modules())


def cka(x, y):
    """||Y'X||^2 / (||X'X|| ||Y'Y||) of centred features (n, d), (n, e)."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_cka_drift_is_the_mean_over_successive_states():
    rng, x = np.random.default_rng(0), IMAGES.flatten(1).numpy().astype(float)
    layers = [rng.normal(size=(width, 3)) for width in (4, 4, 6)]  # the last state is wider
    nets = [Chain(block=linear(w.tolist())) for w in layers]
    found = evidence(nets[-1], IMAGES, LABELS, ("block",), states=nets[:2])
    steps = [1 - cka(x @ one.T, x @ two.T) for one, two in zip(layers, layers[1:], strict=False)]
    assert values("cka_drift", found) == pytest.approx([np.mean(steps)], rel=1e-4)
    assert steps[0] > 0.01


def test_turned_scaled_and_doubled_features_have_not_drifted():
    rng = np.random.default_rng(1)
    first = rng.normal(size=(3, 3))
    turned = 7 * np.linalg.qr(rng.normal(size=(3, 3)))[0] @ first
    doubled = np.concatenate([turned, turned])
    nets = [Chain(block=linear(w.tolist(), rng.normal(size=len(w)).tolist())) for w in (first, turned, doubled)]
    found = evidence(nets[-1], IMAGES, LABELS, ("block",), states=nets[:2])
    assert values("cka_drift", found) == pytest.approx([0], abs=1e-6)


def test_a_block_that_came_late_drifts_from_its_first_state_on():
    rng, x = np.random.default_rng(2), IMAGES.flatten(1).numpy().astype(float)
    a, b, c = (rng.normal(size=(3, 3)) for _ in range(3))
    early = Chain(block=linear(a.tolist()))
    middle, now = (Chain(block=linear(a.tolist()), late=linear(w.tolist())) for w in (b, c))
    found = evidence(now, IMAGES, LABELS, ("block", "late"), states=(early, middle))
    assert values("cka_drift", found) == pytest.approx([0, 1 - cka(x @ (b @ a).T, x @ (c @ a).T)], abs=1e-5)


def test_without_an_earlier_state_there_is_no_drift():
    found = evidence(Chain(block=linear(WEIGHTS)), IMAGES, LABELS, ("block",))
    assert np.isnan(values("cka_drift", found)).all()
    assert math.isnan(measure(found, [], "cka_drift")["null"][0])


def test_separability_leaves_the_image_out_of_its_class_mean():
    """Directions of 0 and 50 degrees, 80 and 90, and a class of one image, which is not asked.

    Without itself the class of the image at 50 degrees lies at 0, and that at 85 is nearer: three of four are right. Lengths
    differ and do not matter.
    """
    angles, lengths = np.radians([0, 50, 80, 90, 45]), np.array([40, 200, 200, 30, 90])
    directions = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
    images = vectors(*np.round(lengths[:, None] * directions).astype(int).tolist())
    found = evidence(Chain(block=linear(np.eye(3).tolist())), images, [0, 0, 1, 1, 2], ("block",))
    assert values("separability", found).tolist() == [75]


def test_separability_grows_where_a_layer_takes_the_noise_away():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    pixels = np.stack([100 + 20 * labels, rng.integers(0, 256, 60), rng.integers(0, 256, 60)], 1)
    net = Chain(mixed=linear(np.eye(3).tolist()), clean=linear([[1.0, 0, 0]], [-110.0]))
    before, after = values("separability", evidence(net, vectors(*pixels.tolist()), labels, ("mixed", "clean")))
    assert after == 100 and before < 75


# features, on any network -----------------------------------------------------------------------------------------------
def small_net(seed=0, widths=(6, 8, 8)):
    return ConvNet(widths, (1, 2), 3, 16, generator=torch.Generator().manual_seed(seed))


def random_images(n, seed=0, size=16):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=g)
    return (255 * nn.functional.interpolate(coarse, size=size, mode="bilinear")).to(torch.uint8)


def test_features_are_block_outputs_averaged_to_sixteen_positions():
    net, images = small_net().eval(), random_images(7)
    features = block_features(net, {"a": "blocks.conv1", "b": "blocks.conv3", "c": "classifier"}, images, *PIXELS)
    with torch.no_grad():
        x = net.blocks["conv1"](images.float())  # (7, 6, 8, 8)
        blocks = x.view(7, 6, 4, 2, 4, 2).mean((3, 5)).flatten(1)
        deep = net.blocks["conv3"](net.blocks["conv2"](x))  # (7, 8, 4, 4)
        assert torch.allclose(features["a"], blocks, atol=1e-4)
        assert torch.allclose(features["b"], deep.flatten(1), atol=1e-4)
        assert torch.allclose(features["c"], net(images.float()), atol=1e-4)
    assert not any(m._forward_hooks for m in net.modules()) and not net.training


class Odd(nn.Module):
    """One block gives a pair, one is never called."""

    def __init__(self):
        super().__init__()
        self.pair, self.idle = nn.LSTM(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.pair(x.flatten(1))[0]


@pytest.mark.parametrize("name", ["pair", "idle"])
def test_a_block_without_a_tensor_is_named(name):
    net = Odd()
    with pytest.raises(ValueError, match=name):
        block_features(net, {name: name}, IMAGES, *PIXELS)
    assert not any(m._forward_hooks for m in net.modules())


def test_labels_are_found_among_the_classes_of_their_image():
    logits = torch.arange(12.0).view(3, 4)
    labels = torch.tensor([2, 0, 3])
    chosen, places = among_classes(logits, labels, torch.tensor([[1, 2], [0, 3], [3, 1]]))
    assert chosen.tolist() == [[1, 2], [4, 7], [11, 9]] and places.tolist() == [1, 0, 0]
    assert among_classes(logits, labels, torch.tensor([3, 2, 0]))[1].tolist() == [1, 2, 0]
    assert among_classes(logits, labels, None) == (logits, labels)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"blocks": ("nothing",)}, "nothing"),
        ({"blocks": ("flat",)}, "flat.*no weights"),
        ({"initial": {}}, "block.weight"),
        ({"initial": {"block.weight": torch.zeros(2, 2)}}, "block.weight"),
        ({"images": IMAGES.float()}, "uint8"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, "5 images, but 4 labels"),
        ({"classes": torch.tensor([0, 2])}, "not among"),
        ({"probe_classes": torch.tensor([[0, 1]] * 4)}, "rows of classes"),
    ],
)
def test_evidence_that_does_not_fit_is_refused(changes, text):
    found = evidence(Chain(block=linear(WEIGHTS)), IMAGES, LABELS, ("block",))
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(found, **changes)


# invariance -------------------------------------------------------------------------------------------------------------
def rescaled(net, factor):
    """The same function: a convolution times `factor` before its batch norm, whose statistics follow."""
    net = copy.deepcopy(net)
    block = net.blocks["conv2"]
    with torch.no_grad():
        block.conv.weight.mul_(factor)
        block.conv.bias.mul_(factor)
    block.norm.running_mean.mul_(factor)
    block.norm.running_var.mul_(factor**2)
    return net


def test_what_ignores_the_scale_of_weights_before_batch_norm_and_what_does_not():
    images, labels, g = random_images(24), torch.arange(24) % 3, torch.Generator().manual_seed(5)
    net = small_net()
    net.blocks["conv2"].norm.eps = 1e-12
    estimate_norms(net, images, *PIXELS)
    start = {
        n: p + 0.3 * p.std() * torch.randn(p.shape, generator=g) if p.ndim > 1 else p for n, p in births(net).items()
    }
    one, three = (
        evidence(m, images, labels, BLOCKS, initial=start, states=(small_net(9),)) for m in (net, rescaled(net, 3.0))
    )
    assert torch.allclose(one.model.eval()(images.float()), three.model.eval()(images.float()), atol=1e-3)
    for name in ("fisher_scaled", "weight_change", "snr", "cka_drift", "reinit", "separability"):
        assert values(name, three) == pytest.approx(values(name, one), rel=1e-2, abs=1e-4), name
    ratio = values("fisher", three) / values("fisher", one)
    assert ratio == pytest.approx([1, 1 / 9, 1], rel=1e-2)
    assert values("weight_change", one)[1] > 5


# the null ---------------------------------------------------------------------------------------------------------------
def generators(n, seed=0):
    return [torch.Generator().manual_seed(100 * seed + k) for k in range(n)]


def untrained(g):
    return ConvNet((6, 8, 8), (1, 2), 6, 16, generator=g)


@pytest.fixture(scope="module")
def nulls():
    """Six untrained networks for images whose own classes are three of six outputs."""
    labels = torch.arange(48) % 6
    classes = torch.where(labels[:, None] < 3, torch.arange(3), torch.arange(3, 6))
    found = evidence(
        untrained(torch.Generator().manual_seed(50)),
        random_images(48),
        labels,
        BLOCKS,
        classes=classes,
        probe_classes=classes,
        probe_images=random_images(48, 1),
    )
    return found, null_evidence(found, untrained, generators(6), steps=3, batch_size=16)


def test_a_null_network_is_untrained_and_its_labels_are_random(nulls):
    found, networks = nulls
    seen = torch.stack([null.labels for null in networks])  # (6, 48)
    assert ((seen < 3) == (found.labels < 3)).all(), "among the classes of each image's task"
    assert (seen == found.labels).float().mean() == pytest.approx(1 / 3, abs=0.08)
    for null, g in zip(networks, generators(6), strict=True):
        fresh = untrained(g)
        (start,) = null.states
        assert all(torch.equal(p, q) for p, q in zip(start.parameters(), fresh.parameters(), strict=True))
        assert all(torch.equal(null.initial[n], p) for n, p in fresh.named_parameters())
        assert not torch.equal(null.model.head.weight, start.head.weight)
        assert null.probe_labels is found.probe_labels and null.at_birth.model is start
        x = start.blocks["conv1"].conv(null.images.float()).detach()
        assert torch.allclose(start.blocks["conv1"].norm.running_mean, x.mean((0, 2, 3)), atol=1e-2)


def test_measures_of_change_look_behind_a_few_steps_and_all_others_before(nulls):
    _, networks = nulls
    assert {name for name, one in MEASURES.items() if one.null == "a few steps"} == {
        "weight_change",
        "reinit",
        "cka_drift",
    }
    for name, one in MEASURES.items():
        table = measure(networks[0], networks, name)
        look = [
            null if one.null == "a few steps" else dataclasses.replace(null, model=null.states[0]) for null in networks
        ]
        wanted = np.stack([one.compute(null) for null in look])
        assert table["null"].to_numpy() == pytest.approx(wanted.mean(0)), name
        assert table["null_sd"].to_numpy() == pytest.approx(wanted.std(0, ddof=1)), name
        assert table["score"].to_numpy() == pytest.approx(one.compute(networks[0])), name


def test_a_network_that_took_no_step_has_not_changed(nulls):
    found, _ = nulls
    still = null_evidence(found, untrained, generators(2), steps=0)
    for name in ("weight_change", "cka_drift"):
        assert all(values(name, null) == pytest.approx([0, 0, 0], abs=1e-9) for null in still)
    moved = null_evidence(found, untrained, generators(1), steps=1)[0]
    assert (values("weight_change", moved) > 0.01).all() and (values("cka_drift", moved) > 1e-6).all()


@pytest.mark.parametrize("name", MEASURES)
def test_an_untrained_network_is_not_told_from_its_null(nulls, name):
    _, networks = nulls
    one = networks[0] if MEASURES[name].null == "a few steps" else networks[0].at_birth
    table = measure(one, networks[1:], name)
    z = table["z"].to_numpy()
    assert np.isfinite(table[["score", "null", "null_sd"]]).all(axis=None)
    assert np.nanmean(np.abs(z)) < 3 and (table["null_sd"] > 0).any(), z


def test_the_steps_of_a_null_network_fit_its_random_labels(nulls):
    found, _ = nulls
    null = null_evidence(found, untrained, generators(1), steps=60)[0]
    own, real = (
        dataclasses.replace(null, probe_images=null.images, probe_labels=labels, probe_classes=null.classes)
        for labels in (null.labels, found.labels)
    )
    assert own.accuracy(null.model) > 80 and real.accuracy(null.model) < 60


def test_the_null_follows_from_its_generators_alone(nulls):
    found, networks = nulls
    torch.manual_seed(1)  # of no use to anyone
    again = null_evidence(found, untrained, generators(2), steps=3, batch_size=16)
    for one, two in zip(networks, again, strict=False):
        assert states_equal(one.model.state_dict(), two.model.state_dict()) and torch.equal(one.labels, two.labels)
    assert not torch.equal(again[0].model.head.weight, again[1].model.head.weight)


def test_a_null_among_all_outputs_and_among_common_classes():
    found = evidence(untrained(torch.Generator().manual_seed(1)), random_images(40), torch.arange(40) % 3, BLOCKS)
    everything = null_evidence(found, untrained, generators(1), steps=1)[0]
    assert set(everything.labels.tolist()) == set(range(6))
    common = dataclasses.replace(found, classes=torch.tensor([0, 1, 2, 5]))
    assert set(null_evidence(common, untrained, generators(1), steps=1)[0].labels.tolist()) == {0, 1, 2, 5}


# tables -----------------------------------------------------------------------------------------------------------------
def test_every_measure_says_where_it_comes_from_and_what_it_predicts():
    directions = {"snr": "low", "cka_drift": "low"}
    for name, one in MEASURES.items():
        assert one.name == name and one.inherit == directions.get(name, "high")
        assert all(len(text) > 20 for text in (one.source, one.predicts, one.cost)), name
    assert not set(MEASURES) & set(criteria.CRITERIA)


def test_tables_of_measures_are_tables_of_criteria(nulls):
    found, networks = nulls
    table = measure_all(found, networks[:2], ["snr", "separability"])
    assert (
        table["criterion"].tolist() == ["snr"] * 3 + ["separability"] * 3 and table["layer"].tolist() == [*BLOCKS] * 2
    )
    assert criteria.best_block(table[table["criterion"] == "snr"], 1)[0] in BLOCKS
    assert set(criteria.choices(table, 2)) <= {"snr", "separability"}
    with pytest.raises(ValueError, match="no such measure"):
        measure(found, networks, "no such measure")


# a run of the study -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished collective on toy images: three tasks, growth before each."""
    images = toy_images()
    cfg = toy_config()
    div = divide(images, cfg)
    src = source_tasks(images, div, cfg)
    folder = Run.open(cfg, tmp_path_factory.mktemp("measures") / "run")
    stages.trained_collective(folder, images, src)
    return images, div, src, cfg, folder


def test_a_run_gives_its_states_its_births_and_validation_images(run):
    images, _, src, cfg, folder = run
    found, networks = evidence_of(folder, images, src, cfg)
    assert list(found.paths) == list(found.model.block_names) and len(found.states) == 2
    assert found.states[0].widths != found.model.widths == networks[0].model.widths
    assert len(networks) == min(cfg.null_networks, 4)
    pictures = {img.numpy().tobytes(): i for i, img in enumerate(images.images)}
    for name, shown in (("train", found.images), ("validation", found.probe_images)):
        at = [pictures[img.numpy().tobytes()] for img in shown]
        assert set(at) <= set(np.concatenate([getattr(task, name) for task in src]).tolist()), name
        assert len(set(at)) == len(at)
    names = load_collective(folder).class_names
    tasks = [set(task.classes) for task in src]
    for labels, classes in ((found.labels, found.classes), (found.probe_labels, found.probe_classes)):
        for label, row in zip(labels.tolist(), classes.tolist(), strict=True):
            assert {names[i] for i in row} in tasks and label in row
        assert set(labels.tolist()) == set(range(len(names))), "every class of every task"


def test_all_measures_of_a_run_stand_below_its_criteria(run):
    images, _, src, cfg, folder = run
    table = measure_all(*evidence_of(folder, images, src, cfg))
    record = Record.load(folder.path)
    scores = criteria.score_all(record, cfg)
    assert [c for c in scores.columns if c != "threshold"] == list(table.columns)
    both = pd.concat([scores, table])
    assert set(both["criterion"]) == {*criteria.CRITERIA, *MEASURES}
    assert np.isfinite(table[["score", "null", "null_sd"]]).all(axis=None)
    again = measure_all(*evidence_of(folder, images, src, cfg), ["fisher", "weight_change"])
    assert again.equals(table[table["criterion"].isin(["fisher", "weight_change"])].reset_index(drop=True))


def test_tasks_that_share_classes_share_no_probe_image():
    images, cfg = toy_images(), toy_config(source_draw="overlap", n_source_tasks=5, held_out_images=16)
    div = divide(images, cfg)
    src = source_tasks(images, div, cfg)
    taken, rng = [], np.random.default_rng(0)
    for task in src:
        taken.append(validation_images(task, images, taken, rng))
    everything = np.concatenate(taken)
    assert len(set(everything.tolist())) == len(everything) < 5 * 3 * 8
    assert len({n for t in src for n in t.classes}) < 15, "classes are shared, or the test says nothing"


def test_the_class_incremental_loss_runs_over_the_whole_head(run, tmp_path):
    images, div, src, _, _ = run
    cfg = toy_config(loss="class-incremental")
    folder = Run.open(cfg, tmp_path / "run")
    stages.trained_collective(folder, images, src)
    found, _ = evidence_of(folder, images, src, cfg)
    assert found.classes is None and found.probe_classes is None
    assert np.isfinite(values("snr", found)).all()


def test_a_run_without_a_collective_or_of_another_configuration_is_refused(run, tmp_path):
    images, _, src, cfg, folder = run
    with pytest.raises(StudyError, match="no finished collective"):
        evidence_of(Run.open(cfg, tmp_path / "empty"), images, src, cfg)
    with pytest.raises(StudyError, match="another configuration"):
        evidence_of(folder, images, src, cfg.replace(epochs=2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_what_the_cpu_measures(nulls):
    found, _ = nulls
    there = dataclasses.replace(found, model=copy.deepcopy(found.model).cuda(), blocks=found.paths)
    for name in ("snr", "fisher", "separability", "weight_change", "reinit"):
        assert values(name, there) == pytest.approx(values(name, found), rel=0.05, abs=0.5), name
    moved = null_evidence(there, untrained, generators(1), steps=2)[0]
    assert all(np.isfinite(one.compute(moved)).all() for one in MEASURES.values())
