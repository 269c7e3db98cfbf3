"""Scores of transferability against independent computations, their invariances, and transplants of untrained blocks."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, ortho_group
from toys import toy_images

from learngene_core.analysis.evidence import block_features, estimate_norms
from learngene_core.analysis.measures import class_mean_accuracy
from learngene_core.analysis.transfer import (
    PIXELS,
    TRANSFER,
    Depth,
    class_posteriors,
    covariance_cka,
    depth_features,
    depth_scores,
    gain_over_block,
    h_score,
    leep,
    logme,
    transrate,
)
from learngene_core.analysis.transplant import not_yet_seen, transplant_separability
from learngene_core.network import ConvNet
from learngene_core.tasks import SourceTask
from learngene_core.training import normalise

NORMAL = torch.full((3,), 0.5), torch.full((3,), 0.25)


def clustered(n=36, d=6, k=3, seed=0, apart=1.0):
    """Features (n, d) of k classes around means that are `apart`, labels (n,), and a generator."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    return rng.normal(size=(k, d))[labels] * apart + rng.normal(size=(n, d)), labels, rng


# by another road ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("n", "d"), [(36, 6), (12, 30)])
def test_logme_is_the_largest_evidence_of_a_gaussian_with_this_covariance(n, d):
    """Integrating the weights out, a target is N(0, I / b + F F' / a): maximised over a and b from several starts."""
    features, labels, _ = clustered(n, d)

    def best(target):
        def minus(logs):
            covariance = np.eye(n) * np.exp(-logs[1]) + features @ features.T * np.exp(-logs[0])
            return -multivariate_normal(np.zeros(n), covariance).logpdf(target)

        bounds = [(-9, 12), (-9, 9)]
        return -min(minimize(minus, (a, b), bounds=bounds).fun for a in (0, 4) for b in (0, 3))

    wanted = np.mean([best((labels == c).astype(float)) / n for c in range(3)])
    assert logme(features, labels) == pytest.approx(wanted, abs=2e-3 if d > n else 1e-5)


def test_features_that_are_all_equal_say_nothing():
    labels = np.arange(12) % 3
    assert logme(np.zeros((12, 4)), labels) == pytest.approx(-0.5 * (np.log(2 * np.pi / 3) + 1))
    assert h_score(np.ones((12, 4)), labels) == transrate(np.ones((12, 4)), labels) == 0


def test_h_score_as_published_is_the_trace_of_the_two_covariances():
    features, labels, _ = clustered(60, 5)
    means = np.stack([features[labels == c].mean(0) for c in labels])
    wanted = np.trace(np.linalg.inv(np.cov(features.T)) @ np.cov(means.T))
    assert h_score(features, labels, shrink=False) == pytest.approx(wanted)


def test_h_score_as_published_says_nothing_with_more_features_than_images():
    rng = np.random.default_rng(1)
    labels = np.arange(24) % 4
    assert h_score(rng.normal(size=(24, 40)), labels, shrink=False) == pytest.approx(3)
    apart, mixed = (h_score(clustered(24, 40, 4, apart=a)[0], labels) for a in (3.0, 0.0))
    assert apart > 2 * mixed


def test_shrunk_h_score_mixes_the_covariance_with_a_multiple_of_the_identity():
    """Ledoit and Wolf's share, from their formula with loops over images."""
    features, labels, _ = clustered(40, 8)
    x = features - features.mean(0)
    n, d = x.shape
    covariance = x.T @ x / n
    mu = np.trace(covariance) / d
    delta = ((covariance - mu * np.eye(d)) ** 2).sum() / d
    beta = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in x) / n**2 / d
    share = min(beta, delta) / delta
    means = np.stack([x[labels == c].mean(0) for c in labels])
    mixed = (1 - share) * covariance + share * mu * np.eye(d)
    wanted = (1 - share) * np.trace(np.linalg.inv(mixed) @ means.T @ means / n)
    assert h_score(features, labels) == pytest.approx(wanted)


@pytest.mark.parametrize("d", [4, 50])
def test_transrate_is_a_difference_of_log_determinants(d):
    features, labels, _ = clustered(30, d)
    x = features - features.mean(0)
    x /= np.sqrt(np.trace(x @ x.T))

    def rate(z):
        return 0.5 * np.linalg.slogdet(np.eye(d) + z.T @ z / (len(z) * 1e-4))[1]

    wanted = rate(x) - sum((labels == c).mean() * rate(x[labels == c]) for c in range(3))
    assert transrate(features, labels) == pytest.approx(wanted)


def test_leep_by_loops():
    rng = np.random.default_rng(2)
    posteriors, labels = rng.dirichlet(np.ones(4), 20), np.arange(20) % 3
    joint = np.zeros((3, 4))
    for i in range(20):
        for z in range(4):
            joint[labels[i], z] += posteriors[i, z] / 20
    total = 0.0
    for i in range(20):
        total += np.log(sum(joint[labels[i], z] / joint[:, z].sum() * posteriors[i, z] for z in range(4)))
    assert leep(posteriors, labels) == pytest.approx(total / 20)


def test_leep_is_zero_where_source_classes_are_the_labels_and_the_entropy_where_they_say_nothing():
    labels = np.arange(20) % 4
    assert leep(np.eye(4)[labels], labels) == pytest.approx(0)
    assert leep(np.full((20, 3), 1 / 3), labels) == pytest.approx(-np.log(4))


def test_covariance_cka_by_covariances():
    x, y = clustered(20, 7)[0], clustered(25, 7, seed=3)[0]
    s, t = np.cov(x.T), np.cov(y.T)
    assert covariance_cka(x, y) == pytest.approx(np.trace(s @ t) / np.linalg.norm(s) / np.linalg.norm(t))
    assert covariance_cka(x, x + 3) == pytest.approx(1)
    flat = np.diag([1.0, 1, 1, 0, 0, 0, 0])
    assert covariance_cka(x @ flat, y @ (np.eye(7) - flat)) == pytest.approx(0)


def test_class_posteriors_leave_images_out_and_choose_the_likeliest_temperature():
    source, labels, _ = clustered(21, 5)
    target = clustered(9, 5, seed=4)[0]
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (source, target))

    def posterior(image, means, t):
        p = np.exp([-((image - m) ** 2).sum() / t for m in means])
        return p / p.sum()

    def likelihood(t):
        total = 0.0
        for i, label in enumerate(labels):
            rest = [(labels == c) & (np.arange(21) != i) for c in range(3)]
            total += np.log(posterior(x[i], [x[r].mean(0) for r in rest], t)[label])
        return total

    best = max(np.logspace(-4, 1, 51)[20:], key=likelihood)  # lower ones underflow here
    means = [x[labels == c].mean(0) for c in range(3)]
    wanted = np.stack([posterior(image, means, best) for image in y])
    np.testing.assert_allclose(class_posteriors(source, labels, target), wanted, rtol=1e-9)


# invariances ----------------------------------------------------------------------------------------------------------
def scores(depth):
    return {name: one.compute(depth) for name, one in TRANSFER.items()}


def depth_of(apart=1.0, change=lambda x: x, order=slice(None)):
    """A depth whose features were changed before anything was computed from them, its images in another order."""
    target, labels, _ = clustered(30, 8, apart=apart)
    source, source_labels, _ = clustered(40, 8, 4, seed=5, apart=apart)
    target, source = change(target)[order], change(source)
    return Depth(target, labels[order], class_posteriors(source, source_labels, target), source)


def test_all_scores_are_blind_to_rotations_the_scale_and_the_order_of_images():
    turn, found = ortho_group.rvs(8, random_state=0), scores(depth_of())
    order = np.random.default_rng(0).permutation(30)
    for other in (depth_of(change=lambda x: x @ turn), depth_of(change=lambda x: 7 * x), depth_of(order=order)):
        assert scores(other) == pytest.approx(found, rel=1e-6)


def test_scores_of_covariances_are_blind_to_the_origin():
    found, moved = scores(depth_of()), scores(depth_of(change=lambda x: x + 3))
    for name in ("h_score", "transrate", "covariance_cka"):
        assert moved[name] == pytest.approx(found[name])
    assert moved["logme"] != pytest.approx(found["logme"], rel=1e-3)


def test_all_directions_are_high_and_classes_further_apart_score_higher():
    near, far = scores(depth_of(apart=0.3)), scores(depth_of(apart=3.0))
    for name, one in TRANSFER.items():
        assert one.inherit == "high"
        assert one.group == "network" or far[name] > near[name], name


# at every depth -------------------------------------------------------------------------------------------------------
def small_net(seed=0):
    return ConvNet((8, 8, 12), (1, 2), 5, 32, generator=torch.Generator().manual_seed(seed))


def paths(net):
    return {name: f"blocks.{name}" for name in net.block_names}


def test_scores_of_depths_are_means_over_tasks_of_features_at_each_depth():
    images, net = toy_images(), small_net()
    shown, labels = images.images[:96], images.labels[:96].numpy()
    target = depth_features(net, paths(net), shown, *NORMAL)
    assert list(target) == [PIXELS, *net.block_names]
    places = [np.flatnonzero(labels < 2), np.flatnonzero(labels >= 2)]
    table = depth_scores(target, [(p, labels[p]) for p in places], target, labels)
    assert list(table.columns) == list(target) and list(table.index) == list(TRANSFER)
    wanted = np.mean([logme(target["conv2"][p], labels[p]) for p in places])
    assert table.loc["logme", "conv2"] == pytest.approx(wanted)
    assert gain_over_block(np.array([1.0, 5.0, 2.0]), 2, 2) == -3


# transplants ----------------------------------------------------------------------------------------------------------
def gratings(classes, each, seed=0):
    """Images (n, 3, 16, 16) whose class is the direction of a faint grating under noise, at any phase; labels (n,)."""
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(len(classes)), each)
    angle = np.pi * np.asarray(classes)[labels] / 8 + rng.normal(0, 0.05, len(labels))
    row, column = np.mgrid[:16, :16]
    wave = np.cos(angle)[:, None, None] * row + np.sin(angle)[:, None, None] * column
    phase = rng.uniform(0, 2 * np.pi, (len(labels), 1, 1))
    pixels = 128 + 25 * np.sin(wave + phase)[:, None] + rng.normal(0, 25, (len(labels), 3, 16, 16))
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), torch.from_numpy(labels)


def grating_net(seed):
    return ConvNet((8, 12, 12), (1, 2), 4, 16, generator=torch.Generator().manual_seed(seed))


def test_a_transplant_by_hand():
    """Block 2 to 3 after a random front, against all random, with layers put together by hand."""
    (images, labels), trained, fresh = gratings(range(4), 30), grating_net(1), grating_net(2)
    table = transplant_separability(trained, [fresh], paths(fresh), images, labels, *NORMAL)
    table = table.set_index(["first", "last"])["score"]
    assert len(table) == 6 and table.nunique() > 3

    def accuracy(blocks, last):
        net = copy.deepcopy(fresh)
        for name in blocks:
            net.blocks[name] = copy.deepcopy(trained.blocks[name])
        estimate_norms(net, images, *NORMAL)
        return class_mean_accuracy(block_features(net, paths(net), images, *NORMAL)[last], labels)

    wanted = accuracy(("conv2", "conv3"), "conv3") - accuracy((), "conv3")
    assert table[2, 3] == pytest.approx(wanted)
    wanted = accuracy(("conv1", "conv2", "conv3"), "conv1") - accuracy((), "conv1")
    assert table[1, 1] == pytest.approx(wanted)


def test_transplants_of_an_untrained_network_gain_nothing_in_the_mean():
    images, labels = gratings(range(4), 30)
    tables = []
    for seed in range(16):
        nets = [grating_net(100 * seed + k) for k in range(3)]
        tables.append(transplant_separability(nets[0], nets[1:], paths(nets[0]), images, labels, *NORMAL)["score"])
    found = np.array(tables)  # (networks, blocks)
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (error > 0.3).all()  # each network by itself does gain or lose
    assert (np.abs(found.mean(0)) <= 3 * error).all()


def test_a_trained_network_gains_on_classes_that_it_has_not_seen():
    net, (images, labels) = grating_net(0).train(), gratings((0, 2, 4, 6), 50, seed=1)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(normalise(images, *NORMAL)), labels).backward()
        optimiser.step()
    fresh = [grating_net(k) for k in (1, 2)]
    table = transplant_separability(net, fresh, paths(net), *gratings((1, 3, 5, 7), 30), *NORMAL)
    table = table.set_index(["first", "last"])["score"]
    assert table[1, 2] > 10 and table[1, 3] > 10


def test_a_network_against_itself_gains_exactly_nothing():
    net = grating_net(0)
    assert (transplant_separability(net, [net], paths(net), *gratings(range(3), 20), *NORMAL)["score"] == 0).all()


def test_classes_not_yet_seen_are_those_that_only_the_last_task_or_none_has():
    none = np.array([], int)
    tasks = [SourceTask(i, c, none, none, none) for i, c in enumerate([("a", "b"), ("b", "c"), ("c", "d")], 1)]
    assert not_yet_seen(("a", "b", "c", "d", "e"), tasks) == ["d", "e"]
    assert not_yet_seen(("a", "b"), tasks[:1]) == []
