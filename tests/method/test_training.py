"""The loop, its losses and its measures: against definitions, brute force and injected faults."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toys import states_equal

from learngene_core import training
from learngene_core.config import Machine
from learngene_core.errors import Diverged, StudyError
from learngene_core.ewc import Frozen, Penalty, fisher_diagonal
from learngene_core.gradients import Recorder, block_weights
from learngene_core.network import ConvNet
from learngene_core.stack import Stack
from learngene_core.training import Recipe, draw_epoch, evaluate, fit, normalise, predict

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def net_of(seed=0, n_classes=3, dropout=0.0):
    return ConvNet((4, 6), (1, 2), n_classes, 8, (5,), dropout=dropout, generator=seeded(seed))


def recipe(**changes):
    standard = {
        "epochs": 2,
        "batch_size": 4,
        "rate": 0.05,
        "schedule": "one-cycle",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "shift": 1,
        "flip": True,
        "mean": MEAN,
        "std": STD,
    }
    return Recipe(**{**standard, **changes})


def images_of(n, n_classes=3, seed=0):
    """Images (n, 3, 8, 8) whose channel shows the class, beside noise, and their labels."""
    g = seeded(seed)
    labels = torch.arange(n) % n_classes
    pixels = torch.randint(0, 120, (n, 3, 8, 8), generator=g)
    pixels[torch.arange(n), labels % 3] += 100
    return pixels.to(torch.uint8), labels


def run(net, images, labels, loss=None, r=None, seed=5, **options):
    loss = training.task_loss() if loss is None else loss
    options = {"stream": lambda e: seeded(100 * seed + e), "where": "source task 3", **options}
    return net, [*fit(net, images, labels, loss, r or recipe(), **options)]


# the loop ---------------------------------------------------------------------------------------------------------------
def test_training_learns_what_can_be_learned():
    images, labels = images_of(30)
    net, rows = run(ConvNet((6, 8), (1, 2), 3, 8, generator=seeded(0)), images, labels, r=recipe(epochs=10))
    assert [row["epoch"] for row in rows] == list(range(1, 11))
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"] and rows[-1]["accuracy"] > 90 > rows[0]["accuracy"]
    fresh, fresh_labels = images_of(30, seed=1)
    assert evaluate(net, fresh, fresh_labels, MEAN, STD) > 90


def test_equal_streams_give_equal_weights_and_others_do_not():
    images, labels = images_of(14)
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(states))
        states.append(run(net_of(), images, labels, seed=seed)[0].state_dict())
    assert states_equal(states[0], states[1])
    assert not states_equal(states[0], states[2])


@pytest.mark.parametrize(("n", "seen"), [(12, 12), (13, 12), (14, 14), (3, 3)])
def test_an_epoch_shows_every_image_once_but_no_batch_of_one(n, seen):
    images, _ = images_of(n)
    shown = []

    def loss(logits, labels):
        shown.append(labels.tolist())
        return logits.square().mean(), torch.tensor(0.0)

    run(net_of(), images, torch.arange(n), loss)
    per_epoch = math.ceil(seen / 4)
    assert len(shown) == 2 * per_epoch and all(len(batch) > 1 for batch in shown)
    epochs = [sum(shown[:per_epoch], []), sum(shown[per_epoch:], [])]
    assert all(len(e) == len(set(e)) == seen for e in epochs)
    assert n < 4 or epochs[0] != epochs[1]


def test_shift_and_flip_are_drawn_for_each_image():
    draws = list(draw_epoch(400, recipe(batch_size=100, shift=2), seeded(0), torch.device("cpu")))
    shift, flip = torch.cat([d[1] for d in draws]), torch.cat([d[2] for d in draws])
    assert {tuple(s) for s in shift.tolist()} == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}
    assert 0.4 < flip.float().mean() < 0.6
    assert all(
        d[1:] == (None, None) for d in draw_epoch(8, recipe(shift=0, flip=False), seeded(0), torch.device("cpu"))
    )


def test_the_rate_follows_its_schedule():
    cycle = [recipe(rate=0.1).rate_at(s, 100) for s in range(100)]
    assert cycle[0] == pytest.approx(0.004) and cycle[30] == pytest.approx(0.1) == max(cycle)
    assert cycle[:31] == sorted(cycle[:31]) and cycle[30:] == sorted(cycle[30:], reverse=True)
    assert cycle[15] == pytest.approx(0.1 * 0.52) and cycle[65] == pytest.approx(0.05) and 0 < cycle[-1] < 1e-4
    cosine = [recipe(rate=0.1, schedule="cosine").rate_at(s, 100) for s in range(100)]
    assert cosine[0] == pytest.approx(0.1) and cosine[50] == pytest.approx(0.05) and 0 < cosine[-1] < 1e-4
    assert {recipe(rate=0.1, schedule="constant").rate_at(s, 100) for s in range(100)} == {0.1}


@pytest.mark.parametrize("n", [12, 13, 14])
def test_every_step_takes_the_rate_of_its_place_in_the_whole_training(n):
    images, labels = images_of(n)
    net, r, rates = net_of(), recipe(epochs=3), []
    optimiser = r.optimiser(net)
    optimiser.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    run(net, images, labels, r=r, optimiser=optimiser)
    steps = 3 * (4 if n == 14 else 3)
    assert rates == pytest.approx([r.rate_at(s, steps) for s in range(steps)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_loss_that_is_not_finite_stops_and_says_where(bad, recorded):
    images, labels = images_of(16)
    calls = []

    def loss(logits, labels):
        calls.append(1)
        value, hit = training.task_loss()(logits, labels)
        return (value * bad if len(calls) == 4 + 3 else value), hit  # epoch 2, step 3

    net = net_of()
    recorder = Recorder(block_weights(net)) if recorded else None
    with pytest.raises(Diverged) as error:
        run(net, images, labels, loss, recipe(epochs=5), recorder=recorder, lower="the rate")
    assert "source task 3" in str(error.value) and "epoch 2, step 3" in str(error.value)
    assert "lower the rate" in str(error.value) and isinstance(error.value, StudyError)
    assert "\n" not in str(error.value) and len(calls) <= 8


def test_a_rate_that_diverges_stops_the_same_way():
    images, labels = images_of(16)
    net = net_of()
    r = recipe(rate=1e30, schedule="constant", epochs=5)
    with pytest.raises(Diverged, match="learning_rate"):
        run(net, images, labels, r=r, recorder=Recorder(block_weights(net)))


def test_the_record_changes_no_weight():
    images, labels = images_of(14)
    blind = run(net_of(), images, labels)[0]
    net = net_of()
    recorder = Recorder(block_weights(net))
    run(net, images, labels, recorder=recorder)
    assert states_equal(blind.state_dict(), net.state_dict())
    assert recorder.take()[0][0]["steps"] == 8


def test_rows_hold_the_means_over_the_steps():
    images, labels = images_of(12)
    values = []

    def loss(logits, labels):
        value = nn.functional.cross_entropy(logits, labels)
        hit = (logits.argmax(1) == labels).double().mean().item() * 100
        values.append((value.item(), hit))
        return value, torch.tensor(hit / 100)

    _, rows = run(net_of(), images, labels, loss)
    for k, row in enumerate(rows):
        assert row["loss"] == pytest.approx(sum(v for v, _ in values[3 * k : 3 * k + 3]) / 3, rel=1e-6)
        assert row["accuracy"] == pytest.approx(sum(h for _, h in values[3 * k : 3 * k + 3]) / 3, rel=1e-6)
        assert row["penalty"] == 0


class Reads(TorchDispatchMode):
    """Counts the operations that read a value back, for which a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["penalty", "proximal", "frozen"])
def test_a_step_reads_nothing_back_from_the_device(form):
    """As many values are read in an epoch of sixteen steps as in one of four: none belongs to a step. A record, a pull and
    augmentation are on."""
    counts = []
    for n in (16, 64):
        images, labels = images_of(n)
        net = net_of()
        pull = pull_of(form, net, {n: torch.rand(p.shape) for n, p in net.named_parameters()})
        recorder = Recorder(block_weights(net))
        rows = fit(net, images, labels, training.task_loss(torch.arange(3)), recipe(epochs=1), stream=seeded, where="here",
                   recorder=recorder, pull=pull)  # fmt: skip
        with Reads() as reads:
            next(rows)
        assert recorder.take()[0][0]["steps"] == n // 4
        counts.append(reads.count)
    assert counts[0] == counts[1]


def test_a_value_that_is_read_in_a_step_would_be_counted():
    """The count above would otherwise prove nothing."""
    with Reads() as reads:
        float(torch.ones(3).sum())
        bool(torch.tensor(1.0) > 0)
    assert reads.count == 2


def test_who_stops_early_has_the_network_as_it_is_then():
    images, labels = images_of(14)
    net, whole = net_of(), net_of()
    rows = fit(net, images, labels, training.task_loss(), recipe(epochs=5), stream=seeded, where="here")
    first = next(rows)
    rows.close()
    assert first["epoch"] == 1
    again = fit(whole, images, labels, training.task_loss(), recipe(epochs=5), stream=seeded, where="here")
    assert next(again) == first and states_equal(net.state_dict(), whole.state_dict())
    next(again)
    assert not states_equal(net.state_dict(), whole.state_dict())


def test_bfloat16_trains_alike_and_keeps_32_bits_where_it_counts():
    results = []
    for machine in (Machine(), Machine(precision="bf16")):
        net = net_of()
        penalty, _ = penalty_of(net)
        results.append(run(net, *images_of(22), pull=penalty, machine=machine))
    (plain, rows), (half, half_rows) = results
    assert all(t.dtype in (torch.float32, torch.int64) for t in half.state_dict().values())
    for one, other in zip(rows, half_rows, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05) and other["loss"] != one["loss"]
    moved = [(n.blocks["conv2"].conv.weight - net_of().blocks["conv2"].conv.weight).flatten() for n in (plain, half)]
    assert nn.functional.cosine_similarity(*moved, dim=0) > 0.98


def pull_of(form, net, held):
    if form == "none":
        return None
    if form == "frozen":
        return Frozen(net, {"classifier.0.weight": held["classifier.0.weight"]})
    return Penalty(net, dict(net.named_parameters()), held, 2.0, form)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="steps are captured on a CUDA device alone")
@pytest.mark.parametrize("form", ["none", "penalty", "proximal", "frozen"])
def test_captured_steps_are_eager_steps(form):
    results = []
    for capture in (False, True):
        net = net_of().cuda()
        images, labels = (t.cuda() for t in images_of(22))
        held = {n: torch.rand(p.shape, generator=seeded(3)).cuda() for n, p in net.named_parameters()}
        pull = pull_of(form, net, held)
        r = recipe(epochs=4, mean=MEAN.cuda(), std=STD.cuda())
        recorder = Recorder(block_weights(net), every=2)
        _, rows = run(net, images, labels, r=r, recorder=recorder, pull=pull, machine=Machine("cuda", capture=capture))
        results.append((net.cpu().state_dict(), rows))
    for name, tensor in results[0][0].items():
        assert torch.allclose(tensor, results[1][0][name], rtol=0, atol=1e-4), name
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)


# losses -----------------------------------------------------------------------------------------------------------------
def test_hits_are_counted_among_what_the_loss_runs_over():
    logits = torch.tensor([[9.0, 1, 2, 0], [0, 3, 1, 9], [5, 0, 1, 2], [0, 1, 0, 9]])
    labels = torch.tensor([2, 1, 2, 1])
    for classes, share in ((None, 0.0), (torch.tensor([2, 1]), 1.0), (torch.tensor([0, 1, 2]), 0.5)):
        assert training.task_loss(classes)(logits, labels)[1] == share
    stacked = training.stack_loss(torch.stack([logits, logits.flip(0), -logits]), labels)[1]
    assert stacked.tolist() == [(x.argmax(1) == labels).float().mean() for x in (logits, logits.flip(0), -logits)]


def test_task_loss_is_cross_entropy_with_the_other_logits_at_minus_infinity():
    logits = torch.randn(6, 7, generator=seeded(0), dtype=torch.float64)
    classes = torch.tensor([5, 0, 3])
    labels = classes[torch.tensor([0, 1, 2, 2, 1, 0])]
    outside = torch.ones(7, dtype=torch.bool)
    outside[classes] = False
    results = []
    for masked in (False, True):
        z = logits.clone().requires_grad_()
        if masked:
            value = nn.functional.cross_entropy(z.masked_fill(outside, -math.inf), labels)
        else:
            value, _ = training.task_loss(classes)(z, labels)
        value.backward()
        results.append((value.detach(), z.grad))
    assert torch.allclose(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1]) and not results[0][1][:, outside].any()
    assert torch.equal(training.task_loss()(logits, labels)[0], nn.functional.cross_entropy(logits, labels))


def test_stack_loss_is_every_networks_own():
    logits = torch.randn(4, 5, 3, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 1, 1, 0])
    together, _ = training.stack_loss(logits, labels)
    (gradient,) = torch.autograd.grad(together.sum(), logits)
    for i in range(4):
        z = logits[i].detach().requires_grad_()
        alone = nn.functional.cross_entropy(z, labels)
        assert torch.allclose(together[i], alone)
        assert torch.allclose(gradient[i], torch.autograd.grad(alone, z)[0])


# EWC --------------------------------------------------------------------------------------------------------------------
def penalty_of(net, strength=2.0, form="penalty", seed=3, only=None):
    """A penalty towards the weights as they are now; returns it and its Fisher."""
    named = dict(net.named_parameters())
    fisher = {n: torch.rand(p.shape, generator=seeded(seed)) for n, p in named.items() if only is None or only in n}
    return Penalty(net, named, fisher, strength, form), fisher


def test_the_penalty_is_zero_at_the_anchor_and_bites_after_a_step():
    images, labels = images_of(14)
    net = net_of()
    penalty, _ = penalty_of(net)
    values = []
    add = penalty.add_gradient
    penalty.add_gradient = lambda: values.append(add()) or values[-1]
    _, rows = run(net, images, labels, pull=penalty)
    assert values[0] == 0 and all(v > 0 for v in values[1:])
    assert rows[0]["penalty"] == pytest.approx(torch.stack(values[:4]).mean().item())


def test_the_penaltys_gradient_is_that_of_its_value():
    net = net_of()
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    penalty, fisher = penalty_of(net, strength=2.0, only="conv")
    with torch.no_grad():
        for n, p in net.named_parameters():
            p.add_(torch.randn(p.shape, generator=seeded(len(n))))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    value = penalty.add_gradient()
    by_hand = sum((0.5 * 2.0 * fisher[n] * (p - start[n]) ** 2).sum() for n, p in net.named_parameters() if n in fisher)
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-5)
    by_hand_gradient = dict(zip(dict(net.named_parameters()), _grad(by_hand, net), strict=True))
    for n, p in net.named_parameters():
        wanted = torch.zeros_like(p) if by_hand_gradient[n] is None else by_hand_gradient[n]
        assert torch.allclose(p.grad, 1 + wanted, rtol=1e-5), n


def _grad(value, net):
    return torch.autograd.grad(value, list(net.parameters()), allow_unused=True)


@pytest.mark.parametrize(("form", "strengths"), [("penalty", (0.01, 1.0, 100.0)), ("proximal", (0.1, 30.0, 1e4))])
def test_the_stronger_the_penalty_the_nearer_stay_the_weights(form, strengths):
    images, labels = images_of(14)
    away = []
    for strength in strengths:
        net = net_of()
        start = {n: p.detach().clone() for n, p in net.named_parameters()}
        fisher = {n: torch.ones_like(p) for n, p in start.items()}
        penalty = Penalty(net, dict(net.named_parameters()), fisher, strength, form)
        run(net, images, labels, r=recipe(rate=0.002, epochs=10), pull=penalty)
        away.append(sum((p - start[n]).square().sum().item() for n, p in net.named_parameters()))
    assert away[0] > 1.1 * away[1] > 1.1**2 * away[2] > 0


def test_the_proximal_step_is_its_formula_and_never_diverges():
    net = net_of()
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    penalty, fisher = penalty_of(net, strength=3.0, form="proximal")
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    moved = {n: p.detach().clone() for n, p in net.named_parameters()}
    penalty.pull(0.1)
    for n, p in net.named_parameters():
        pull = 0.1 * 3.0 * fisher[n]
        assert torch.allclose(p, (moved[n] + pull * start[n]) / (1 + pull), rtol=1e-5, atol=1e-7), n
    images, labels = images_of(14)
    for strength in (1e4, 1e12, 1e30):
        net = net_of()
        start = {n: p.detach().clone() for n, p in net.named_parameters()}
        run(net, images, labels, pull=penalty_of(net, strength, "proximal")[0], r=recipe(epochs=3))
        for n, p in net.named_parameters():
            assert torch.isfinite(p).all() and (p - start[n]).abs().max() < 0.05, (strength, n)


def test_in_the_proximal_form_the_gradient_is_the_losses_own():
    net = net_of()
    penalty, _ = penalty_of(net, form="proximal")
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
            p.grad = torch.ones_like(p)
    assert penalty.add_gradient() > 0
    assert all((p.grad == 1).all() for p in net.parameters())


def test_the_record_shows_the_losses_own_gradient():
    images, labels = images_of(12)
    first = []
    for held in (False, True):
        net, seen = net_of(), []
        penalty = penalty_of(net_of(seed=9), 50.0)[0]  # anchored elsewhere: its gradient is not zero
        penalty.parameters = list(net.parameters())
        weights = block_weights(net)

        class Seer:
            def due(self):
                return True

            def look(self, seen=seen, weights=weights):
                seen.append({n: w.grad.clone() for n, w in weights.items()})

        run(net, images, labels, recorder=Seer(), pull=penalty if held else None, r=recipe(epochs=1, rate=1e-6))
        first.append(seen[0])
    assert states_equal(*first)


def test_a_penalty_that_could_hold_nothing_is_refused():
    net = net_of()
    named = dict(net.named_parameters())
    for fisher in ({}, {"elsewhere": torch.ones(3)}, {n: torch.zeros_like(p) for n, p in named.items()}):
        with pytest.raises(StudyError, match="Fisher"):
            Penalty(net, named, fisher, 1.0, "penalty")


# Fisher information and evaluation --------------------------------------------------------------------------------------
@pytest.mark.parametrize("classes", [None, torch.tensor([4, 1])])
@pytest.mark.parametrize("was_training", [True, False])
def test_the_fisher_diagonal_is_the_mean_of_squared_gradients_of_single_images(classes, was_training):
    net = net_of(n_classes=5, dropout=0.5)
    with torch.no_grad():
        net.train()(normalise(images_of(20)[0], MEAN, STD))  # batch norm with a past
    net.train(was_training)
    images, _ = images_of(9, seed=4)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    fisher = fisher_diagonal(net, images, classes, MEAN, STD, seeded(8))
    assert net.training is was_training and all(p.grad is None for p in net.parameters())
    assert states_equal(before, dict(net.state_dict()))

    slow = copy.deepcopy(net).eval()

    def logits(x):
        z = slow(normalise(x, MEAN, STD))
        return z if classes is None else z[:, classes]

    labels = torch.multinomial(logits(images).softmax(1), 1, generator=seeded(8))[:, 0]
    assert len(set(labels.tolist())) > 1
    wanted = {n: torch.zeros_like(p) for n, p in slow.named_parameters()}
    for x, label in zip(images.split(1), labels, strict=True):
        slow.zero_grad()
        nn.functional.cross_entropy(logits(x), label[None]).backward()
        for n, p in slow.named_parameters():
            wanted[n] += p.grad**2 / len(images)
    assert fisher.keys() == wanted.keys()
    for n, f in wanted.items():
        assert torch.allclose(fisher[n], f, rtol=1e-4, atol=1e-7 * f.max().item()), n
        assert not fisher[n].requires_grad


def test_fisher_labels_come_from_the_models_own_prediction():
    """A model that is sure of class 2 has next to no Fisher information, whatever the true labels are."""
    net = net_of()
    with torch.no_grad():
        net.head.bias[2] = 40
    fisher = fisher_diagonal(net, images_of(9)[0], None, MEAN, STD, seeded(0))
    assert all(f.max() < 1e-6 for f in fisher.values())


@pytest.mark.parametrize("classes", [None, torch.tensor([6, 1, 2])])
@pytest.mark.parametrize("was_training", [True, False])
def test_accuracy_is_that_of_a_loop_over_images(classes, was_training):
    net = net_of(n_classes=7)
    images, _ = images_of(23)
    labels = torch.tensor([6, 1, 2])[torch.arange(23) % 3]
    net.train(was_training)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    accuracy = evaluate(net, images, labels, MEAN, STD, classes=classes)
    assert net.training is was_training and states_equal(before, dict(net.state_dict()))
    hits, among = 0, range(7) if classes is None else classes.tolist()
    slow = copy.deepcopy(net).eval()
    for image, label in zip(images, labels, strict=True):
        x = (image[None].float() / 255 - MEAN[:, None, None]) / STD[:, None, None]
        logits = slow(x)[0].tolist()
        hits += max(among, key=lambda k: logits[k]) == label
    assert float(accuracy) == pytest.approx(100 * hits / 23)
    assert 0 < hits < 23


def test_predictions_do_not_depend_on_the_batches():
    net = net_of()
    images, _ = images_of(23)
    whole = predict(net, images, MEAN, STD)
    assert torch.allclose(whole, predict(net, images, MEAN, STD, batch_size=4), atol=1e-6)
    features = predict(net, images, MEAN, STD, features=True, batch_size=4)
    assert features.shape == (23, 6 * 4) and not features.requires_grad
    assert torch.allclose(net.eval().classifier(features), whole, atol=1e-6)


BROKEN = {
    "a negative variance": ("blocks.conv2.norm.running_var", -5.0),
    "a variance that is NaN": ("blocks.conv1.norm.running_var", math.nan),
    "a mean beyond all numbers": ("blocks.conv2.norm.running_mean", -math.inf),
    "a weight that is NaN": ("blocks.conv1.conv.weight", math.nan),
    "a head beyond all numbers": ("classifier", math.inf),
    "sums beyond all numbers": ("blocks.conv1.norm.weight", 3e38),
}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(("name", "value"), BROKEN.values(), ids=BROKEN)
def test_a_network_without_finite_outputs_has_no_accuracy(name, value, stacked):
    """Where every logit is NaN the largest is the first: chance, to the digit, for a network that is broken."""
    sound, broken = net_of(0), net_of(1)
    parts = {n: t for n, t in broken.state_dict().items() if n.startswith(name)}
    for tensor in [t for n, t in parts.items() if not n.endswith("bias")] or parts.values():
        tensor.view(-1)[0] = value
    images, labels = images_of(23)
    model = Stack([sound, broken]) if stacked else broken
    with pytest.raises(Diverged, match="evaluated images are not finite") as refusal:
        evaluate(model, images, labels, MEAN, STD)
    assert (
        "\n" not in str(refusal.value) and "of 46 " in str(refusal.value) if stacked else "of 23 " in str(refusal.value)
    )
    assert torch.isfinite(predict(Stack([sound, net_of(1)]), images, MEAN, STD)).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_none(value):
    net = net_of()
    net.state_dict()["blocks.conv2.norm.bias"][0] = value
    with pytest.raises(Diverged, match="the features of 23 of 23 evaluated images"):
        predict(net, images_of(23)[0], MEAN, STD, features=True)
