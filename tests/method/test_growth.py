"""Growth: the function is preserved, new channels learn, and whatever belongs to weights follows them by the chain rule."""

import copy
import zlib

import pytest
import torch
from torch import nn

from learngene_core.config import Config
from learngene_core.ewc import fisher_diagonal
from learngene_core.growth import WIDEN_MODES, deepen, growth_schedule, widen
from learngene_core.network import ConvNet
from learngene_core.presets import PRESETS

SIZE, N = 16, 12
EXACT = ("zero-out", "uneven")


def seeded(*seed):
    return torch.Generator().manual_seed(zlib.crc32(repr(seed).encode()))


def lived_in(pools=(2, 4), hidden=(), seed=0, dtype=torch.float32):
    """A network of five blocks whose batch norm is nothing special: random affine, statistics of real batches."""
    g = seeded("net", seed)
    widths = torch.randint(3, 9, (5,), generator=g).tolist()
    net = ConvNet(widths, pools, 4, SIZE, hidden, generator=g)
    for block in net.blocks.values():
        nn.init.normal_(block.conv.bias, generator=g)
        nn.init.uniform_(block.norm.weight, 0.5, 1.5, generator=g)
        nn.init.normal_(block.norm.bias, 0, 0.3, generator=g)
    for layer in net.classifier:
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.bias, 0, 0.5, generator=g)
    net.to(dtype).train()
    for k in range(3):
        net(batch(k, dtype))
    return net


def batch(seed=0, dtype=torch.float32):
    return torch.randn(N, 3, SIZE, SIZE, generator=seeded("batch", seed)).to(dtype)


def output(net, x, training):
    """Logits; running statistics stay as they are."""
    with torch.no_grad():
        return copy.deepcopy(net).train(training)(x)


def change(net, reference, x, training):
    """Largest change of a logit, relative to the largest logit."""
    before = output(reference, x, training)
    return ((output(net, x, training) - before).abs().max() / before.abs().max()).item()


def wider(net, name, *seed):
    old = net.blocks[name].conv.out_channels
    return old + int(torch.randint(1, 2 * old + 1, (), generator=seeded("width", *seed)))


# the function -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("hidden", [(), (7, 5)])
@pytest.mark.parametrize("pools", [(2, 4), (1, 3, 5)])
@pytest.mark.parametrize("calibrated", [False, True])
def test_widening_any_block_changes_nothing(mode, hidden, pools, calibrated):
    for seed in range(3):
        reference = lived_in(pools, hidden, seed)
        for name in reference.block_names:
            net = copy.deepcopy(reference)
            width = wider(net, name, seed, name)
            widen(net, name, width, mode=mode, generator=seeded(seed), calibration=batch(7) if calibrated else None)
            assert net.blocks[name].conv.out_channels == width and net.widths.count(width) >= 1
            for training in (True, False):
                assert change(net, reference, batch(9), training) < 1e-5, (name, seed, training)


@pytest.mark.parametrize("mode", EXACT)
def test_widening_block_after_block_changes_nothing(mode):
    reference = lived_in((1, 3, 5), (7,))
    net = copy.deepcopy(reference)
    for turn in range(2):
        for name in net.block_names:
            widen(net, name, wider(net, name, turn, name), mode=mode, generator=seeded(turn), calibration=batch(7))
    assert change(net, reference, batch(9), True) < 1e-5
    assert change(net, reference, batch(9), False) < 1e-5


def test_net2net_is_exact_without_noise_and_off_in_proportion_to_it():
    reference = lived_in((1, 3, 5))
    for name in reference.block_names:
        off = {}
        for noise in (0.0, 0.001, 0.01):
            net = copy.deepcopy(reference)
            widen(net, name, wider(net, name), mode="net2net", generator=seeded(1), noise=noise)
            off[noise] = max(change(net, reference, batch(9), training) for training in (True, False))
        assert off[0.0] < 1e-5
        assert 1e-5 < off[0.001] < off[0.01] < 0.1, name


@pytest.mark.parametrize("mode", WIDEN_MODES)
def test_batch_norm_of_every_new_channel_is_defined(mode):
    for name in ("conv1", "conv3", "conv5"):
        reference = lived_in((1, 3, 5))
        net, old = copy.deepcopy(reference), reference.blocks[name].conv.out_channels
        mapping = widen(net, name, 2 * old + 1, mode=mode, generator=seeded(1), calibration=batch(7))
        norm, before, source = net.blocks[name].norm, reference.blocks[name].norm, mapping.source
        assert norm.num_batches_tracked == before.num_batches_tracked
        for key in ("weight", "bias", "running_mean", "running_var"):
            new, was = getattr(norm, key).detach(), getattr(before, key).detach()
            assert torch.equal(new[:old], was), key
            if mode != "zero-out":
                assert torch.equal(new, was[source]), key
        if mode == "zero-out":
            reached = batch(7)
            for below in reference.block_names[: reference.block_names.index(name)]:
                reached = reference.eval().blocks[below](reached)
            reached = nn.functional.conv2d(
                reached, net.blocks[name].conv.weight, net.blocks[name].conv.bias, padding=1
            )[:, old:]
            flat = reached.detach().transpose(0, 1).flatten(1).double()
            assert torch.allclose(norm.running_mean[old:].double(), flat.mean(1), atol=1e-5)
            assert torch.allclose(norm.running_var[old:].double(), flat.var(1), rtol=1e-4)
            assert (norm.weight[old:] == 1).all() and not norm.bias[old:].any()


def test_without_calibration_new_channels_get_mean_0_and_variance_1():
    net = lived_in()
    old = net.blocks["conv2"].conv.out_channels
    widen(net, "conv2", old + 3, generator=seeded(1))
    assert not net.blocks["conv2"].norm.running_mean[old:].any()
    assert (net.blocks["conv2"].norm.running_var[old:] == 1).all()


@pytest.mark.parametrize("mode", WIDEN_MODES)
def test_widening_draws_from_its_generator_alone(mode):
    states = []
    for seed, stream in ((1, 7), (2, 7), (1, 8)):
        net = lived_in()
        torch.manual_seed(seed)
        widen(net, "conv2", 20, mode=mode, generator=seeded(stream))
        states.append(net.state_dict())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not torch.equal(states[0]["blocks.conv2.conv.weight"], states[2]["blocks.conv2.conv.weight"])


@pytest.mark.parametrize("mode", WIDEN_MODES)
def test_widening_keeps_dtype_mode_and_memory_format(mode):
    for name in ("conv2", "conv5"):
        net = lived_in((1, 3, 5), dtype=torch.float64).to(memory_format=torch.channels_last).eval()
        widen(net, name, wider(net, name), mode=mode, generator=seeded(1))
        assert not net.training and not any(m.training for m in net.blocks.modules())
        for key, tensor in net.state_dict().items():
            assert tensor.dtype in (torch.float64, torch.int64), key
            if tensor.ndim == 4:
                assert tensor.is_contiguous(memory_format=torch.channels_last), key
        assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "width", "mode"),
    [("conv9", 20, "uneven"), ("conv2", 20, "wide"), ("conv2", 3, "uneven"), ("conv2", None, "uneven")],
)
def test_a_widening_that_cannot_be_is_refused_and_changes_nothing(name, width, mode):
    net = lived_in()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(ValueError):
        widen(net, name, width or net.blocks[name].conv.out_channels, mode=mode)
    after = net.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)


# new channels learn -----------------------------------------------------------------------------------------------------
def train(net, steps, rate=0.05):
    """SGD steps on one batch with fixed labels; returns the gradients of every step, by parameter name."""
    optimiser = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    labels, seen = torch.arange(N) % net.n_classes, []
    net.train()
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(batch(3, net.head.weight.dtype)), labels).backward()
        seen.append({n: p.grad.clone() for n, p in net.named_parameters()})
        optimiser.step()
    return seen


def each_channel(tensor, dim=0):
    """Largest absolute entry of every slice along `dim`."""
    slices = tensor.detach().transpose(0, dim)
    return slices.reshape(len(slices), -1).abs().amax(1)


@pytest.mark.parametrize("name", ["conv1", "conv2", "conv5"])
def test_new_channels_of_zero_out_learn_from_the_second_step_on(name):
    net = lived_in((2, 4, 5))
    old = net.blocks[name].conv.out_channels
    mapping = widen(net, name, 2 * old, generator=seeded(1), calibration=batch(7))
    first, second = train(net, 2)
    columns, repeat = mapping.columns, mapping.repeat
    assert (each_channel(first[columns], 1)[old * repeat :] > 0).all()  # their outgoing weights at once
    assert not first[f"blocks.{name}.conv.weight"][old:].any()
    assert (each_channel(second[f"blocks.{name}.conv.weight"])[old:] > 0).all()  # they themselves one step later
    assert (each_channel(second[f"blocks.{name}.norm.weight"])[old:] > 0).all()


@pytest.mark.parametrize("name", ["conv1", "conv2", "conv5"])
def test_copies_of_uneven_receive_unequal_gradients_and_separate(name):
    net = lived_in((2, 4, 5))
    old = net.blocks[name].conv.out_channels
    mapping = widen(net, name, 2 * old, mode="uneven", generator=seeded(1))
    start = net.blocks[name].conv.weight.detach().clone()
    copied = mapping.source[old:]
    assert torch.equal(start[old:], start[copied])
    gradients = train(net, 20)
    assert (each_channel(gradients[0][f"blocks.{name}.conv.weight"])[old:] > 0).all()
    end = net.blocks[name].conv.weight.detach()
    apart = each_channel(end[old:] - end[copied])
    moved = each_channel(end - start).max()
    assert (apart > 0.01 * moved).all()


@pytest.mark.parametrize("name", ["conv1", "conv2", "conv5"])
def test_equal_copies_of_net2net_never_separate(name):
    """The released code's defect: why this mode is not the default and has noise."""
    apart = {}
    for noise in (0.0, 0.01):
        net = lived_in((2, 4, 5), dtype=torch.float64)
        old = net.blocks[name].conv.out_channels
        mapping = widen(net, name, 2 * old, mode="net2net", generator=seeded(1), noise=noise)
        start = net.blocks[name].conv.weight.detach().clone()
        train(net, 30)
        end = net.blocks[name].conv.weight.detach()
        assert each_channel(end - start).min() > 1e-3
        apart[noise] = each_channel(end[old:] - end[mapping.source[old:]])
    assert apart[0.0].max() < 1e-9
    assert apart[0.01].min() > 1e-3


# what follows the weights -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", WIDEN_MODES)
@pytest.mark.parametrize("pools", [(2, 4), (1, 3, 5)])
@pytest.mark.parametrize("hidden", [(), (7,)])
def test_carried_momentum_is_the_widened_networks_gradient(mode, pools, hidden):
    for name in ("conv1", "conv2", "conv5"):
        small = lived_in(pools, hidden, dtype=torch.float64)
        large, old = copy.deepcopy(small), small.blocks[name].conv.out_channels
        mapping = widen(large, name, wider(small, name), mode=mode, generator=seeded(2), noise=0.0)
        before, after = (
            _gradients(net, batch(3, torch.float64), torch.arange(N) % small.n_classes) for net in (small, large)
        )
        for key, real in after.items():
            carried = mapping.carry(key, before[key], "momentum")
            assert carried.shape == real.shape, key
            if key == mapping.columns and mode == "zero-out":  # what has no past has no momentum
                past = old * mapping.repeat
                assert not carried[:, past:].any() and real[:, past:].any()
                carried, real = carried[:, :past], real[:, :past]
            assert torch.allclose(carried, real, rtol=1e-6, atol=1e-9), (name, key)


def _gradients(net, x, labels):
    net = copy.deepcopy(net).train()
    nn.functional.cross_entropy(net(x), labels).backward()
    return {n: p.grad for n, p in net.named_parameters()}


@pytest.mark.parametrize("mode", WIDEN_MODES)
@pytest.mark.parametrize("name", ["conv2", "conv5"])
def test_carried_fisher_is_the_widened_networks_fisher(mode, name):
    small = lived_in((1, 3, 5))
    large, old = copy.deepcopy(small), small.blocks[name].conv.out_channels
    mapping = widen(large, name, wider(small, name), mode=mode, generator=seeded(2), noise=0.0, calibration=batch(7))
    images = torch.randint(0, 256, (N, 3, SIZE, SIZE), generator=seeded("images")).to(torch.uint8)
    level = torch.full((3,), 0.5)
    before, after = (fisher_diagonal(n, images, None, level, level, seeded("labels")) for n in (small, large))
    assert set(before) == set(after)
    for key, real in after.items():
        carried = mapping.carry(key, before[key], "fisher")
        assert carried.shape == real.shape, key
        if key == mapping.columns and mode == "zero-out":
            past = old * mapping.repeat
            assert real[:, past:].any()  # old tasks do depend on the new outgoing weights
            means = before[key].flatten(1).mean(1)
            new = carried[:, past:].flatten(1)
            assert torch.allclose(new, means[:, None].expand_as(new))
            assert not mapping.carry(key, before[key], "fisher", new_columns="zero")[:, past:].any()
            carried, real = carried[:, :past], real[:, :past]
        scale = real.max()
        assert torch.allclose(carried / scale, real / scale, rtol=1e-3, atol=1e-5), key


@pytest.mark.parametrize("mode", WIDEN_MODES)
@pytest.mark.parametrize("name", ["conv2", "conv5"])
def test_carried_values_keep_the_old_entries_and_take_new_ones_from_now(mode, name):
    net = lived_in((1, 3, 5), hidden=(6,))
    anchor = {n: torch.randn(p.shape, generator=seeded(n)) for n, p in net.named_parameters()}
    kept = {n: t.clone() for n, t in anchor.items()}
    old = net.blocks[name].conv.out_channels
    mapping = widen(net, name, wider(net, name), mode=mode, generator=seeded(2))
    share = mapping.share.float().repeat_interleave(mapping.repeat)
    for key, p in net.named_parameters():
        carried = mapping.carry(key, anchor[key], "value", now=p.detach())
        assert carried.shape == p.shape, key
        if key in mapping.rows:
            assert torch.equal(carried[:old], kept[key]) and torch.equal(carried[old:], p[old:].detach())
        elif key == mapping.columns:
            past = old * mapping.repeat
            wanted = kept[key] * share[:past].view(1, -1, *[1] * (p.ndim - 2))
            assert torch.allclose(carried[:, :past], wanted) and torch.equal(carried[:, past:], p[:, past:].detach())
        else:
            assert torch.equal(carried, kept[key]), key
        assert torch.equal(anchor[key], kept[key]), "the tensor handed in was changed"


@pytest.mark.parametrize("mode", WIDEN_MODES)
def test_shares_sum_to_one_over_the_copies_of_a_channel(mode):
    net = lived_in()
    mapping = widen(net, "conv3", 40, mode=mode, generator=seeded(4))
    old = mapping.old_width
    total = torch.zeros(old, dtype=torch.float64).index_add_(0, mapping.source, mapping.share.double())
    assert torch.allclose(total, torch.ones_like(total))
    assert torch.equal(mapping.source[:old], torch.arange(old))
    assert (mapping.share >= 0).all()


# deepening --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("hidden", [(), (7,)])
@pytest.mark.parametrize("calibrated", [False, True])
def test_deepening_behind_any_block_changes_nothing_in_evaluation(hidden, calibrated):
    for pools in ((2, 4), (1, 3, 5)):
        reference = lived_in(pools, hidden)
        for name in reference.block_names:
            net = copy.deepcopy(reference)
            new = deepen(net, name, calibration=batch(7) if calibrated else None)
            at = reference.block_names.index(name) + 1
            assert net.block_names == (*reference.block_names[:at], new, *reference.block_names[at:])
            assert new.startswith(name) and new not in reference.block_names
            assert change(net, reference, batch(9), False) < 1e-5, name


def test_deepening_keeps_dtype_mode_and_memory_format():
    net = lived_in(dtype=torch.float64).to(memory_format=torch.channels_last).eval()
    name = deepen(net, "conv2")
    new = net.blocks[name]
    assert not new.training and new.conv.weight.dtype == torch.float64
    assert new.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_deepening_with_calibration_is_close_in_training_too():
    reference = lived_in()
    for block in reference.blocks.values():
        block.norm.momentum = 1.0  # running statistics of this very batch
    reference.train()(batch(9))
    off = {}
    for calibrated in (True, False):
        net = copy.deepcopy(reference)
        deepen(net, "conv3", calibration=batch(9) if calibrated else None)
        off[calibrated] = change(net, reference, batch(9), True)
    assert off[True] < 0.02 < off[False]


def test_a_block_can_be_deepened_again_and_widened_after():
    reference = lived_in()
    net = copy.deepcopy(reference)
    names = [deepen(net, "conv2", calibration=batch(7)) for _ in range(3)]
    assert len(set(names)) == 3 and net.block_names[1:5] == ("conv2", *names[::-1])
    for name in ("conv2", *names):
        widen(net, name, wider(net, name), generator=seeded(3), calibration=batch(7))
    assert change(net, reference, batch(9), False) < 1e-5
    gradients = train(net, 1)[0]
    assert all(gradients[f"blocks.{name}.conv.weight"].any() for name in names)


def test_deepening_an_unknown_block_is_refused():
    with pytest.raises(ValueError, match="conv77"):
        deepen(lived_in(), "conv77")


# the schedule -----------------------------------------------------------------------------------------------------------
def test_the_papers_schedule_is_its_20_steps():
    by_hand = [(3, 128), (4, 128), (5, 192), (5, 256), (6, 192), (6, 256), (7, 192), (7, 256)]
    by_hand += [(8, 384), (8, 512), (9, 384), (9, 512)]
    by_hand += [(block, width) for block in (10, 11, 12, 13) for width in (384, 512)]
    plan = growth_schedule(Config.preset("paper"))
    assert plan == {task: [(f"conv{block}", width)] for task, (block, width) in enumerate(by_hand, 1)}
    later = growth_schedule(Config.preset("paper", growth_start=4))
    assert later == {task + 3: steps for task, steps in plan.items()}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("n_tasks", [0, 2, 7, 19, 21, 33])
def test_every_schedule_ends_at_the_final_widths(preset, n_tasks):
    cfg = Config.preset(preset)
    cfg = cfg.replace(n_source_tasks=n_tasks or cfg.n_source_tasks)
    widths = dict(zip((f"conv{i}" for i in range(1, 14)), cfg.start_widths, strict=True))
    plan = growth_schedule(cfg)
    for task in sorted(plan):
        assert cfg.growth_start <= task <= cfg.n_source_tasks
        for name, width in plan[task]:
            assert width > widths[name]
            widths[name] = width
    assert tuple(widths.values()) == cfg.final_widths
    assert (cfg.final_widths == cfg.start_widths) == (cfg.growth == "none")


def test_without_growth_the_network_starts_at_its_final_widths():
    cfg = Config.preset("lecture", growth="none")
    assert growth_schedule(cfg) == {} and cfg.start_widths == cfg.final_widths
