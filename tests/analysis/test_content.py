"""Content controls: each keeps what it says and loses the rest; and why shuffled first inputs say nothing (the coupling)."""

import copy
import dataclasses

import pytest
import torch
from toys import toy_config

from learngene_core.analysis.content import (
    CONTROLS,
    applicable,
    conv_only,
    coupled,
    moment_matched,
    norm_only,
    shuffled_inner,
    shuffled_inputs,
    spectrum_matched,
    untrained_blocks,
)
from learngene_core.errors import StudyError
from learngene_core.learngene import PARTS, Learngene, build_individual
from learngene_core.network import ConvNet

SCALE = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
SHAPE = {"widths": (5, 6, 7, 8), "pools": (1, 3), "n_classes": 3, "image_size": 8}
BLOCKS = {
    "three blocks": ("conv2", "conv3", "conv4"),
    "from the image": ("conv1", "conv2"),
    "one block": ("conv3",),
    "everything": ("conv1", "conv2", "conv3", "conv4"),
}
ORDER = (
    "shuffled_inputs",
    "shuffled_inner",
    "spectrum_matched",
    "moment_matched",
    "conv_only",
    "norm_only",
    "untrained",
)
RANDOM = ("shuffled_inputs", "shuffled_inner", "spectrum_matched", "moment_matched")
CONV, NORM = PARTS[:2], PARTS[2:]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def network(seed, **changes):
    """A network in which no tensor is a constant, as after training."""
    net = ConvNet(**{**SHAPE, **changes}, generator=seeded(seed))
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=seeded(seed + 1000)) + 0.5
                tensor.copy_(noise if "running_var" in name else tensor + noise - 1)
    return net


def cut(layers=BLOCKS["three blocks"], seed=0, **changes):
    net = network(seed, **changes)
    fisher = {n: torch.ones_like(p) for n, p in net.named_parameters()}
    return Learngene.from_model(net, layers, fisher=fisher, data="toy", **SCALE)


def fresh_of(gene, seed=50, **changes):
    return untrained_blocks(gene, ConvNet(**{**SHAPE, **changes}).shape, seeded(seed))


def made(name, gene, seed=1, **changes):
    return CONTROLS[name].make(gene, fresh_of(gene, **changes), seeded(seed))


def weights(gene, layers=None):
    return [gene.tensors[f"{n}.conv.weight"] for n in (gene.layers if layers is None else layers)]


def agree(one, two, layers, parts):
    """Whether two learngenes have bit-equal tensors of these layers and parts."""
    return all(torch.equal(one.tensors[f"{n}.{p}"], two.tensors[f"{n}.{p}"]) for n in layers for p in parts)


def order_of(new, old):
    """The permutation p with new[:, k] = old[:, p[k]], by comparing every pair of channels; each matches exactly one."""
    equal = [[torch.equal(new[:, k], old[:, j]) for j in range(old.shape[1])] for k in range(old.shape[1])]
    assert all(sum(row) == 1 for row in equal)
    order = torch.tensor([row.index(True) for row in equal])
    assert order.sort().values.tolist() == list(range(old.shape[1]))
    return order


def moves(order):
    return order.tolist() != list(range(len(order)))


# every control ----------------------------------------------------------------------------------------------------------
CASES = [(name, block) for name in ORDER for block in BLOCKS if (name, block) != ("shuffled_inner", "one block")]


@pytest.mark.parametrize(("name", "block"), CASES)
def test_a_control_is_another_learngene_of_the_same_shapes(name, block, tmp_path):
    gene, fresh = cut(BLOCKS[block]), fresh_of(cut(BLOCKS[block]))
    before, beside = copy.deepcopy(gene.tensors), copy.deepcopy(fresh.tensors)
    control = CONTROLS[name].make(gene, fresh, seeded(1))
    assert control.layers == gene.layers and control.tensors.keys() == gene.tensors.keys()
    assert all(t.shape == gene.tensors[n].shape and t.dtype == torch.float32 for n, t in control.tensors.items())
    assert not agree(control, gene, gene.layers, PARTS)
    assert control.fisher is None and control.notes == {"data": "toy", "control": name}
    assert gene.fisher is not None and gene.notes == {"data": "toy"}
    for field in ("pools", "image_size", "mean", "std", "widths", "input_width", "n_parameters"):
        assert getattr(control, field) == getattr(gene, field)
    assert all(torch.equal(t, gene.tensors[n]) for n, t in before.items())  # the inputs are as they were
    assert all(torch.equal(t, fresh.tensors[n]) for n, t in beside.items())
    places = [t.untyped_storage().data_ptr() for g in (gene, fresh, control) for t in g.tensors.values()]
    assert len(set(places)) == len(places)
    control.save(tmp_path / "control.safetensors")
    again = Learngene.load(tmp_path / "control.safetensors")
    assert agree(again, control, gene.layers, PARTS)
    net = again.inherit_into(network(9))
    assert torch.equal(net.blocks[gene.layers[-1]].conv.weight, weights(control)[-1])


@pytest.mark.parametrize("name", ORDER)
def test_a_control_is_reproducible_and_another_draw_is_another_control(name):
    gene, fresh = cut(), fresh_of(cut())
    state = torch.get_rng_state()
    one, again, other = (CONTROLS[name].make(gene, fresh, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())  # nothing is drawn from the global state
    assert agree(one, again, gene.layers, PARTS)
    assert agree(one, other, gene.layers, PARTS) == (name not in RANDOM)


def test_the_register_names_every_control_once_and_says_what_it_is():
    assert tuple(CONTROLS) == ORDER
    for name, control in CONTROLS.items():
        assert control.name == name
        for phrase in (control.keeps, control.destroys):
            assert phrase and "\n" not in phrase and not phrase.endswith(".")
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONTROLS["untrained"].keeps = "nothing"


@pytest.mark.parametrize("name", RANDOM)
def test_double_precision_is_kept(name):
    gene = Learngene.from_model(network(0).double(), ("conv2", "conv3"), **SCALE)
    assert {t.dtype for t in made(name, gene).tensors.values()} == {torch.float64}


# what each keeps and loses ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", BLOCKS)
def test_shuffled_inputs_permutes_the_first_inputs_and_nothing_else(block):
    gene = cut(BLOCKS[block])
    orders = []
    for seed in range(30):
        control = shuffled_inputs(gene, seeded(seed))
        orders.append(order_of(weights(control)[0], weights(gene)[0]))
        assert agree(control, gene, gene.layers, PARTS[1:]) and agree(control, gene, gene.layers[1:], PARTS)
        assert not agree(control, gene, gene.layers[:1], PARTS[:1])
    assert all(map(moves, orders))  # of the three colours every sixth draw would move none
    assert len({tuple(o.tolist()) for o in orders}) > 3


def test_shuffled_inner_permutes_each_inner_convolution_by_itself():
    gene = cut(BLOCKS["everything"], widths=(6, 6, 6, 6))
    coincide = 0
    for seed in range(20):
        control = shuffled_inner(gene, seeded(seed))
        assert agree(control, gene, gene.layers, PARTS[1:]) and agree(control, gene, gene.layers[:1], PARTS)
        orders = [order_of(new, old) for new, old in zip(weights(control)[1:], weights(gene)[1:], strict=True)]
        assert all(map(moves, orders))
        coincide += len({tuple(o.tolist()) for o in orders}) < 3
    assert coincide <= 2  # independent: two of 720 orders hardly ever agree


@pytest.mark.parametrize("make", [shuffled_inputs, shuffled_inner])
def test_shuffling_keeps_norms_and_singular_values(make):
    gene = cut()
    for new, old in zip(weights(make(gene, seeded(1))), weights(gene), strict=True):
        assert torch.allclose(new.flatten(1).norm(dim=1), old.flatten(1).norm(dim=1), atol=1e-6)
        spectra = [torch.linalg.svdvals(w.flatten(1).double()) for w in (new, old)]
        assert torch.allclose(*spectra, atol=1e-5)


@pytest.mark.parametrize("widths", [(5, 6, 7, 8), (40, 2, 30, 1)])  # matrices wider and taller than square, and one row
def test_spectrum_matched_keeps_singular_values_and_turns_the_directions(widths):
    gene = cut(BLOCKS["everything"], widths=widths)
    control = spectrum_matched(gene, seeded(1))
    assert agree(control, gene, gene.layers, PARTS[1:])
    for new, old in zip(weights(control), weights(gene), strict=True):
        (u, s, v), (u2, s2, v2) = (torch.linalg.svd(w.flatten(1).double(), full_matrices=False) for w in (new, old))
        assert torch.allclose(s, s2, atol=1e-5)
        assert (v[0] @ v2[0]).abs() < 0.9 and (len(u) == 1 or (u[:, 0] @ u2[:, 0]).abs() < 0.99)


def test_spectrum_matched_directions_are_uniform():
    """Sign and place of the leading filter direction average out over draws; QR with its own signs would leave a bias."""
    gene = cut(("conv2",), widths=(1, 2, 2, 2))
    old = weights(gene)[0].flatten(1)
    draws = torch.stack([weights(spectrum_matched(gene, seeded(s)))[0].flatten(1) for s in range(2000)])  # (2000, 2, 9)
    scale = old.square().sum().div(18).sqrt()  # every entry has mean 0 and this root mean square
    assert draws.mean(0).abs().max() < 4.5 * scale / 2000**0.5
    assert torch.allclose(draws.square().mean(0).sqrt(), scale.expand(2, 9), rtol=0.1)


def test_moment_matched_keeps_mean_and_deviation_of_every_tensor():
    gene = cut(widths=(30, 40, 50, 60))
    for tensor in gene.tensors.values():
        tensor += 0.2  # a mean that is not zero
    control = moment_matched(gene, seeded(1))
    assert agree(control, gene, gene.layers, NORM)
    for layer in gene.layers:
        for part in CONV:
            new, old = (g.tensors[f"{layer}.{part}"].double() for g in (control, gene))
            n, sd = old.numel(), old.std(correction=0)
            assert (new.mean() - old.mean()).abs() < 4.5 * sd / n**0.5, (layer, part)
            assert (new.std() / sd - 1).abs() < 4.5 / (2 * n) ** 0.5, (layer, part)
            assert torch.corrcoef(torch.stack([new.flatten(), old.flatten()]))[0, 1].abs() < 4.5 / n**0.5
    weight = weights(control)[0]
    fourth = ((weight - weight.mean()) / weight.std()).pow(4).mean()
    assert fourth == pytest.approx(3, abs=4.5 * (96 / weight.numel()) ** 0.5)  # Gaussian


def test_moment_matched_wipes_out_what_tells_one_filter_from_another():
    gene = cut(widths=(30, 40, 50, 60))
    with torch.no_grad():
        gene.tensors["conv3.conv.weight"][7] *= 50
    norms = weights(moment_matched(gene, seeded(1)))[1].flatten(1).norm(dim=1)
    assert norms.max() / norms.min() < 1.5


def test_batch_norm_only_and_convolutions_only_are_complements():
    gene = cut()
    fresh = fresh_of(gene)
    norm, conv = norm_only(gene, fresh), conv_only(gene)
    assert agree(norm, gene, gene.layers, NORM) and agree(norm, fresh, gene.layers, CONV)
    assert agree(conv, gene, gene.layers, CONV)
    for layer in gene.layers:
        for part, value in zip(NORM, (1.0, 0.0, 0.0, 1.0), strict=True):
            tensor = conv.tensors[f"{layer}.{part}"]
            assert torch.equal(tensor, torch.full_like(tensor, value)), part
            assert not torch.equal(tensor, gene.tensors[f"{layer}.{part}"])


def test_untrained_is_what_a_fresh_network_of_the_ancestors_shape_has_there():
    gene, shape = cut(), network(0).shape
    control = untrained_blocks(gene, shape, seeded(4))
    net = ConvNet.from_shape(shape, generator=seeded(4))
    for name, tensor in control.tensors.items():
        assert torch.equal(tensor, net.state_dict()[f"blocks.{name}"]), name
    assert agree(made("untrained", gene), fresh_of(gene), gene.layers, PARTS)
    assert not agree(control, untrained_blocks(gene, shape, seeded(5)), gene.layers, PARTS[:1])


# what does not fit ------------------------------------------------------------------------------------------------------
def test_a_single_block_has_no_inner_inputs():
    gene = cut(("conv3",))
    with pytest.raises(StudyError, match="shuffled_inner: conv3"):
        shuffled_inner(gene, seeded(1))
    assert applicable(gene) == tuple(n for n in ORDER if n != "shuffled_inner")
    assert applicable(cut()) == ORDER


def test_one_channel_cannot_be_permuted_and_the_rest_still_works():
    thin = {"widths": (1, 1, 1, 8)}
    gene = cut(("conv2", "conv3"), **thin)
    for make in (shuffled_inputs, shuffled_inner):
        with pytest.raises(StudyError, match="no two channels"):
            make(gene, seeded(1))
    assert applicable(gene) == ORDER[2:]
    for name in applicable(gene):
        control = made(name, gene, **thin)
        assert all(bool(torch.isfinite(t).all()) for t in control.tensors.values())
    one = moment_matched(gene, seeded(1))
    assert torch.allclose(one.tensors["conv2.conv.bias"], gene.tensors["conv2.conv.bias"])  # one value: no deviation
    mixed = cut(("conv2", "conv3", "conv4"), widths=(4, 1, 5, 8))
    inner = shuffled_inner(mixed, seeded(1))  # conv3 has one input, conv4 five
    assert torch.equal(weights(inner)[1], weights(mixed)[1]) and moves(order_of(weights(inner)[2], weights(mixed)[2]))


def test_untrained_blocks_that_do_not_fit_are_refused():
    gene = cut()
    for other in (cut(("conv3", "conv4")), cut(widths=(5, 6, 9, 8)), cut(widths=(4, 6, 7, 8))):
        for name in ("norm_only", "untrained"):
            with pytest.raises(StudyError, match="do not fit"):
                CONTROLS[name].make(gene, other, seeded(1))
    with pytest.raises(StudyError, match="do not fit"):
        untrained_blocks(gene, network(0, widths=(5, 6, 7, 9)).shape, seeded(1))
    with pytest.raises(StudyError, match="conv4"):
        untrained_blocks(gene, network(0, widths=(5, 6, 7)).shape, seeded(1))


# the coupling -----------------------------------------------------------------------------------------------------------
N_STEPS = 8


def trained(model):
    """Logits after each of a few SGD steps (train mode), then of the trained network in evaluation mode; float64."""
    model = copy.deepcopy(model).double().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    generator, logits = seeded(77), []
    for _ in range(N_STEPS):
        images = torch.randn(6, 3, model.image_size, model.image_size, generator=generator, dtype=torch.float64)
        labels = torch.randint(model.n_classes, (6,), generator=generator)
        out = model(images)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(out, labels).backward()
        optimiser.step()
        logits.append(out.detach())
    with torch.no_grad():
        after = model.eval()(images)
    assert (after.std(0) > 0.05).all() and logits[-1].isfinite().all()  # a dead network would agree with any other
    return torch.stack(logits), after, model


def gap(one, two):
    """Largest difference of the logits during training and afterwards in evaluation mode."""
    first, second = trained(one), trained(two)
    return max((a - b).abs().max().item() for a, b in zip(first[:2], second[:2], strict=True))


def individual(gene, seed=7):
    """The same-shape individual around a learngene. Its fresh part has no constant tensor either: a permutation shows."""
    return gene.inherit_into(network(seed)).double()


def reordered_below(model, layer, order):
    """`model` with the output channels of block `layer` in another order, tensor by tensor; nothing above it is touched."""
    twin = copy.deepcopy(model)
    block = twin.blocks[layer]
    with torch.no_grad():
        for tensor in (block.conv.weight, block.conv.bias, block.norm.weight, block.norm.bias,
                       block.norm.running_mean, block.norm.running_var):  # fmt: skip
            tensor.copy_(torch.stack([tensor[int(k)] for k in order]))
    return twin


@pytest.mark.parametrize(
    "layers", [("conv2", "conv3", "conv4"), ("conv2",), ("conv3",), ("conv3", "conv4"), ("conv4",)]
)
def test_shuffled_first_inputs_are_undone_by_the_same_order_below(layers):
    """The coupling: learngene on a fresh front, shuffled learngene on the same front in the same other order."""
    gene = cut(layers)
    control = shuffled_inputs(gene, seeded(1))
    order = order_of(weights(control)[0], weights(gene)[0])
    below = f"conv{int(layers[0][-1]) - 1}"
    learngene, shuffled = individual(gene), individual(control)
    twin = reordered_below(shuffled, below, order)
    assert not torch.equal(twin.blocks[below].norm.running_var, shuffled.blocks[below].norm.running_var)
    assert gap(learngene, twin) < 1e-10
    assert gap(learngene, shuffled) > 1e-3  # without the other order below it is another trajectory
    (_, _, one), (_, _, two) = trained(learngene), trained(twin)
    expected = coupled(one, layers[0], order).state_dict()  # the weights themselves stay coupled
    for name, tensor in two.state_dict().items():
        assert torch.allclose(tensor.double(), expected[name].double(), atol=1e-10), name
    start = learngene.state_dict()
    assert max((one.state_dict()[n] - t).abs().max() for n, t in start.items() if n.endswith("conv.weight")) > 1e-2


def test_the_coupling_holds_for_light_individuals():
    """Fresh front, learngene, fresh head, as `build_individual` makes them."""
    gene = cut(("conv3", "conv4"))
    control = shuffled_inputs(gene, seeded(1))
    order = order_of(weights(control)[0], weights(gene)[0])
    learngene, shuffled = (
        build_individual(g, 3, toy_config(individual_hidden=()), generator=seeded(3)).double() for g in (gene, control)
    )
    assert gap(learngene, reordered_below(shuffled, "fresh4", order)) < 1e-10
    assert gap(learngene, shuffled) > 1e-3


def test_coupled_is_the_same_function_with_other_channels():
    model, order = network(3).double(), torch.tensor([3, 0, 5, 1, 4, 2])
    before = copy.deepcopy(model.state_dict())
    twin = coupled(model, "conv3", order)
    by_hand = reordered_below(model, "conv2", order)
    with torch.no_grad():
        by_hand.blocks["conv3"].conv.weight.copy_(model.blocks["conv3"].conv.weight[:, order])
    assert all(torch.equal(t, by_hand.state_dict()[n]) for n, t in twin.state_dict().items())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert gap(model, twin) < 1e-10
    back = coupled(twin, "conv3", order.argsort())
    assert all(torch.equal(t, before[n]) for n, t in back.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "order", "text"),
    [
        ("conv1", [2, 0, 1], "conv1"),
        ("conv9", [0], "conv9"),
        ("conv3", [0, 1, 2], "6 input"),
        ("conv3", [0, 1, 2, 3, 4, 4], "permutation"),
        ("conv3", [1, 2, 3, 4, 5, 6], "permutation"),
    ],
)
def test_what_cannot_be_coupled_is_refused(layer, order, text):
    with pytest.raises(ValueError, match=text):
        coupled(network(3), layer, torch.tensor(order))


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_inner_inputs_cannot_be_undone_below(seed):
    """Neither as it is nor with any order of the six channels below the block does the trajectory return."""
    gene = cut(("conv3", "conv4"))
    control = shuffled_inner(gene, seeded(seed))
    learngene, shuffled = individual(gene), individual(control)
    assert gap(learngene, shuffled) > 1e-3
    _, expected, _ = trained(learngene)
    for k in range(6):
        order = torch.randperm(6, generator=seeded(k))
        assert (trained(reordered_below(shuffled, "conv2", order))[1] - expected).abs().max() > 1e-3


def test_a_block_that_reads_the_image_has_no_coupling():
    """Other colours are another function: nothing fresh lies below that could take the order up."""
    gene = cut(("conv1", "conv2"))
    learngene, images = individual(gene).eval(), torch.randn(4, 3, 8, 8, generator=seeded(2), dtype=torch.float64)
    for seed in range(10):
        control = shuffled_inputs(gene, seeded(seed))
        shuffled = individual(control).eval()
        order = order_of(weights(control)[0], weights(gene)[0])
        with torch.no_grad():
            assert (shuffled(images) - learngene(images)).abs().max() > 1e-3
            assert torch.allclose(shuffled(images[:, order]), learngene(images))  # it reads each colour as another
    assert gap(learngene, shuffled) > 1e-3
