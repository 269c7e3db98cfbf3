"""Gradients on target support images, and individuals whose layers learn at their own rates."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from toys import states_equal, toy_config, toy_images

from learngene_core.analysis.surgery import (
    AUTO,
    LayerRates,
    rgn,
    stages,
    target_evidence,
    target_scores,
    tuned_individuals,
    with_class_means,
)
from learngene_core.collective import Collective
from learngene_core.network import ConvNet
from learngene_core.stack import Stack
from learngene_core.tasks import TargetTask, generator
from learngene_core.training import Recipe, fit, normalise, stack_loss, task_loss

NORMAL = torch.full((3,), 0.5), torch.full((3,), 0.25)
BLOCKS = ("blocks.conv1", "blocks.conv2", "blocks.conv3")


def net(seed=0, classes=3):
    return ConvNet((6, 6, 8), (1, 2, 3), classes, 32, generator=torch.Generator().manual_seed(seed))


def support(classes=3, each=4):
    images = toy_images()
    places = [24 * c + i for c in range(classes) for i in range(each)]
    return images.images[places], torch.arange(classes).repeat_interleave(each)


# criteria -------------------------------------------------------------------------------------------------------------
def test_the_head_of_class_means_gives_a_softmax_of_squared_distances():
    images, labels = support()
    model = net().eval()
    found = with_class_means(model, images, labels, *NORMAL)(normalise(images, *NORMAL)).softmax(1)
    f = model.features(normalise(images, *NORMAL)).detach().double()
    means = torch.stack([f[labels == c].mean(0) for c in range(3)])
    distances = ((f[:, None] - means) ** 2).sum(2)  # (n, k)
    spread = distances[torch.arange(12), labels].sum() / (12 - 3)
    torch.testing.assert_close(found.double(), (-distances / (2 * spread)).softmax(1), rtol=1e-3, atol=1e-5)


def test_rgn_by_hand():
    images, labels = support()
    found = target_evidence(net(), BLOCKS, images, labels, *NORMAL)
    model = found.model.eval()
    loss = nn.functional.cross_entropy(model(normalise(images, *NORMAL)), labels)
    wanted = []
    for block in model.blocks.values():
        (g,) = torch.autograd.grad(loss, block.conv.weight, retain_graph=True)
        wanted.append(float(g.norm() / block.conv.weight.detach().norm()))
    assert rgn(found) == pytest.approx(wanted, rel=1e-4)


def test_scores_of_targets_are_means_over_tasks_and_snr_is_one_gradient_an_image():
    tasks = [support(3, 4), support(2, 5)]
    table = target_scores(net(), BLOCKS, tasks, *NORMAL)
    assert table.loc["target_rgn"].to_numpy() == pytest.approx(
        np.mean([rgn(target_evidence(net(), BLOCKS, *task, *NORMAL)) for task in tasks], axis=0)
    )
    wanted = []
    for images, labels in tasks:
        model = with_class_means(net(), images, labels, *NORMAL)
        losses = nn.functional.cross_entropy(model(normalise(images, *NORMAL)), labels, reduction="none")
        w = model.blocks["conv3"].conv.weight
        g = torch.stack([torch.autograd.grad(loss, w, retain_graph=True)[0] for loss in losses]).double()
        ratio = g.mean(0).square() / g.var(0)
        wanted.append(float(ratio[g.var(0) > 1e-12 * g.square().sum(0)].mean()))
    assert table.loc["target_snr", "blocks.conv3"] == pytest.approx(np.mean(wanted), rel=1e-3)


def test_class_means_of_single_images_are_refused():
    with pytest.raises(ValueError, match="several images"):
        with_class_means(net(), *support(3, 1), *NORMAL)


# layer-wise rates -----------------------------------------------------------------------------------------------------
def trained(model, pull, epochs=3, loss=None):
    images, labels = support()
    recipe = Recipe(epochs, 6, 0.05, "cosine", 0.9, 5e-3, 1, False, *NORMAL)
    given = {"stream": lambda epoch: generator(0, epoch), "where": "a test", "pull": pull}
    for _ in fit(model, images, labels, loss or task_loss(), recipe, **given):
        pass
    return model


def rates(model, shares, auto=False):
    shares = torch.tensor([shares] * getattr(model, "size", 1))
    return LayerRates(model, ("conv1", "conv2", "conv3"), shares, torch.full((len(shares),), auto), per_epoch=2)


def test_shares_equal_an_optimiser_with_a_rate_for_every_layer():
    """Weight decay and momentum included: torch's own parameter groups, stepped by hand."""
    shares, images, labels = (0.0, 0.25, 1.0), *support()
    model, mine = net().train(), net()
    groups = [
        {"params": block.parameters(), "lr": 0.05 * s} for block, s in zip(model.blocks.values(), shares, strict=True)
    ]
    groups.append({"params": model.classifier.parameters()})
    optimiser = torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=5e-3)
    pull = rates(mine, shares)
    own = torch.optim.SGD(mine.train().parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3)
    for _ in range(6):
        for one, by in ((model, optimiser), (mine, own)):
            by.zero_grad()
            nn.functional.cross_entropy(one(normalise(images, *NORMAL)), labels).backward()
            if one is mine:
                pull.add_gradient()
            by.step()
        pull.pull(0.05)
    for name, p in mine.named_parameters():
        torch.testing.assert_close(p, dict(model.named_parameters())[name], rtol=1e-4, atol=1e-6)


def test_a_whole_share_changes_no_bit_and_a_held_block_does_not_move():
    plain, whole, held = trained(net(), None), net(), net()
    assert states_equal(trained(whole, rates(whole, (1.0, 1.0, 1.0))).state_dict(), plain.state_dict())
    trained(held, rates(held, (0.0, 1.0, 0.0)))
    before, after = dict(net().named_parameters()), dict(held.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith(("blocks.conv1", "blocks.conv3"))]
    assert {"blocks.conv2.conv.weight", "blocks.conv2.norm.weight", "classifier.0.weight"} <= moved


def test_auto_rgn_takes_its_shares_from_the_first_gradient_of_an_epoch():
    model = net().train()
    pull = rates(model, (1.0, 1.0, 1.0), auto=True)
    images, labels = support()
    found = []
    for _ in range(4):
        model.zero_grad()
        nn.functional.cross_entropy(model(normalise(images, *NORMAL)), labels).backward()
        norms = np.array(
            [float(b.conv.weight.grad.norm() / b.conv.weight.detach().norm()) for b in model.blocks.values()]
        )
        pull.add_gradient()
        found.append((pull.shares[0].clone(), norms / norms.max()))
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    for step in (0, 2):
        np.testing.assert_allclose(found[step][0], found[step][1], rtol=1e-5)
        assert torch.equal(found[step][0], found[step + 1][0])  # held for the epoch's second step
    assert not torch.equal(found[0][0], found[2][0])


def test_a_stack_learns_as_its_networks_one_by_one():
    shares, auto = ((1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (1.0, 1.0, 1.0)), (False, False, True)
    nets = [net(k) for k in range(3)]
    stack = Stack([copy.deepcopy(n) for n in nets])
    pull = LayerRates(stack, stack.shape["names"], torch.tensor(shares), torch.tensor(auto), per_epoch=2)
    trained(stack, pull, loss=stack_loss)
    for i, one in enumerate(nets):
        trained(one, rates(one, shares[i], auto[i]))
        for name, p in stack.network(i).named_parameters():
            torch.testing.assert_close(p, dict(one.named_parameters())[name], rtol=1e-3, atol=1e-4)


# arms -----------------------------------------------------------------------------------------------------------------
def collective():
    empty = {}
    return Collective(net(7, 4), ("a", "b", "c", "d"), *NORMAL, empty, empty, None, None)


def test_parts_lie_between_pools():
    vgg = ConvNet((4,) * 13, (2, 4, 7, 10, 13), 2, 32)
    assert list(stages(vgg).values()) == [(1, 2), (3, 4), (5, 7), (8, 10), (11, 13)]
    assert list(stages(ConvNet((4, 4, 4), (2,), 2, 32)).values()) == [(1, 2), (3, 3)]


def test_individuals_of_every_arm_paired_with_full():
    cfg = toy_config(shots=(4, 6), individual_epochs=6, individual_rate=0.05)
    tasks = [
        TargetTask(n, ("x", "y"), np.array([[24 * c + i for i in range(6)] for c in pair]),
                   np.array([[24 * c + 10 + i for i in range(8)] for c in pair]))
        for n, pair in enumerate([(4, 5), (6, 7)], 1)
    ]  # fmt: skip
    table = tuned_individuals(collective(), toy_images(), tasks, cfg)
    methods = ["full", AUTO, "surgical:head", "surgical:conv1-conv1", "surgical:conv2-conv2", "surgical:conv3-conv3"]
    assert list(table["method"].unique()) == methods
    assert len(table) == len(methods) * 2 * 2 and set(table["shots"]) == {4, 6}
    plain = tuned_individuals(collective(), toy_images(), tasks, cfg, parts={}, rates={AUTO: 0.01})
    keys = ["shots", "target_task", "init", "accuracy", "final_loss"]
    full = [t[t["method"] == "full"][keys].reset_index(drop=True) for t in (table, plain)]
    assert full[0].equals(full[1])  # whoever shares its stack
    assert table.groupby("method")["final_loss"].mean().nunique() == len(methods)
