"""The defects of the released scripts: each switch changes what it says and nothing else."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from toys import states_equal, tables_equal, toy_config, toy_images

from learngene_core.analysis import released
from learngene_core.analysis.defects import DEFECTS, LEAK_LENGTH, choice
from learngene_core.analysis.released import (
    EpochPenalty,
    Lenient,
    ReleasedIndividuals,
    augmented,
    chains_of,
    cut_released,
    double_softmax,
    train_released,
    widen_copies,
    widen_with_gap,
)
from learngene_core.arms import Arm, arms_of, constant
from learngene_core.collective import train_collective
from learngene_core.config import Config, Machine
from learngene_core.criteria import choose
from learngene_core.data.division import divide, source_tasks, target_tasks
from learngene_core.errors import Diverged
from learngene_core.ewc import Penalty
from learngene_core.fewshot import Individuals, evaluate_few_shot
from learngene_core.learngene import cut_learngene
from learngene_core.network import ConvNet
from learngene_core.presets import DEFECT_NAMES
from learngene_core.stack import Stack
from learngene_core.tasks import generator
from learngene_core.training import Recipe, task_loss

LAYERS = ("conv11", "conv12", "conv13")
SMALL = {"layers": LAYERS, "n_source_tasks": 2, "first_task_epochs": 1, "null_networks": 2}
METHODS = ("scratch", "learngene", "learngene_ewc")


@pytest.fixture(scope="module")
def images():
    return toy_images()


@pytest.fixture(scope="module")
def world(images):
    """Configuration, target tasks, collective and learngene without any defect."""
    cfg = toy_config(**SMALL, n_target_tasks=3)
    div = divide(images, cfg)
    col = train_collective(images, source_tasks(images, div, cfg), cfg)
    return cfg, target_tasks(images, div, cfg), col, cut_learngene(col, cfg)


def few_shot(world, images, *defects, methods=METHODS, kind=ReleasedIndividuals, **changes):
    """Rows of the light individuals with these defects."""
    cfg, tasks, col, gene = world
    cfg = cfg.replace(defects=defects, **changes)
    arms = [arm for arm in arms_of(gene, col, cfg, methods) if arm.family == "light"]
    return kind(arms, images, cfg, gene.mean, gene.std, machine=Machine()).table(tasks)[0]


def walk(images, *defects, **changes):
    """The collective with these defects, its states after every task, and its source tasks."""
    cfg, states = toy_config(**SMALL, defects=defects, **changes), []
    tasks = source_tasks(images, divide(images, cfg), cfg)
    col = train_released(images, tasks, cfg, after_task=lambda state: states.append(copy.deepcopy(state)))
    return col, states, tasks


# names ------------------------------------------------------------------------------------------------------------------
def test_the_names_agree_and_unknown_ones_are_refused():
    assert tuple(DEFECTS) == DEFECT_NAMES == Config.preset("as-released").defects
    assert all(defect.name == name and defect.text and defect.touches for name, defect in DEFECTS.items())
    with pytest.raises(ValueError, match=r"leek.*did you mean 'leak'"):
        Config(defects=("leek",))
    with pytest.raises(ValueError, match="each value once"):
        Config(defects=("leak", "leak"))


def test_the_method_itself_knows_no_defects(world, images):
    cfg, tasks, col, gene = world
    with pytest.raises(ValueError, match="released"):
        train_collective(images, [], cfg.replace(defects=("bn_gap",)))
    with pytest.raises(ValueError, match="released"):
        evaluate_few_shot(gene, col, images, tasks, cfg.replace(defects=("leak",)))


def test_without_a_defect_of_its_own_each_part_is_the_method_to_the_bit(world, images):
    cfg, _, col, _ = world
    same, _, _ = walk(images, "leak", n_target_tasks=3)  # a defect of individuals alone
    assert states_equal(same.model.state_dict(), col.model.state_dict())
    assert states_equal(same.fisher, col.fisher) and tables_equal(same.history, col.history)
    assert tables_equal(same.record.table, col.record.table)
    assert (same.record.null_counts == col.record.null_counts).all()
    for method in METHODS:  # a stack of several rounds otherwise
        mine = few_shot(world, images, "bn_gap", methods=(method,))
        assert tables_equal(mine, few_shot(world, images, methods=(method,), kind=Individuals))


# the collective ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("classes", [None, [4, 1, 2]])
def test_double_softmax_by_its_formula(classes):
    outputs = torch.tensor(classes) if classes else None
    among = classes or list(range(6))
    logits = torch.randn(5, 6, dtype=torch.float64, generator=generator(0, "logits")).mul(3).requires_grad_()
    labels = torch.tensor([among[i % len(among)] for i in range(5)])
    value, hit = double_softmax(outputs)(logits, labels)
    value.backward()
    expected, gradient = 0.0, torch.zeros_like(logits)
    for i in range(5):
        z = [math.exp(logits[i, j].item()) for j in among]
        p = [v / sum(z) for v in z]
        q = [math.exp(v) / sum(map(math.exp, p)) for v in p]
        y = among.index(labels[i].item())
        assert math.log(math.e + len(p) - 1) - 1 <= -math.log(q[y]) <= math.log(math.e + len(p) - 1)
        expected -= math.log(q[y]) / 5
        outer = [q[j] - (j == y) for j in range(len(p))]
        inner = sum(a * b for a, b in zip(p, outer, strict=True))
        for j, output in enumerate(among):
            gradient[i, output] = p[j] * (outer[j] - inner) / 5
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert torch.allclose(logits.grad, gradient, rtol=1e-10, atol=1e-15)
    assert hit.item() == pytest.approx(task_loss(outputs)(logits, labels)[1].item())


def test_double_softmax_is_what_the_collective_is_trained_with(images):
    losses = {
        defects: walk(images, *defects, learning_rate=1e-7)[0].history["loss"][0]
        for defects in ((), ("double_softmax",))
    }
    low = math.log(math.e + 2) - 1  # three classes
    assert low < losses["double_softmax",] < low + 1
    assert losses["double_softmax",] == pytest.approx(math.log(3), abs=0.2) and losses[()] != losses["double_softmax",]


def test_double_softmax_knows_no_replay(images):
    with pytest.raises(ValueError, match="replay"):
        walk(images, "double_softmax", ancestor="replay")


def test_labels_are_reused_over_a_whole_head(images):
    col, states, tasks = walk(images, "labels_reused", weight_decay=0.0, learning_rate=0.1)
    everything = tuple(n for task in tasks for n in task.classes)
    assert col.class_names == everything and [s.model.n_classes for s in states] == [6, 6]
    bias, born = states[0].model.head.bias.detach(), states[0].owned.initial["classifier.0.bias"]
    assert (bias[3:] < born[3:]).all()  # outputs of no class: only ever pushed away
    for state in states:
        assert [state.outputs(task).tolist() for task in tasks] == [[0, 1, 2]] * 2
        assert state.loss_outputs(tasks[0], toy_config()) is None
    _, sound, _ = walk(images)
    assert [s.model.n_classes for s in sound] == [3, 6]
    assert [sound[1].outputs(task).tolist() for task in tasks] == [[0, 1, 2], [3, 4, 5]]


def test_a_walk_with_defects_goes_on_from_a_saved_state(images):
    names = ("double_softmax", "labels_reused", "bn_gap")
    whole, states, tasks = walk(images, *names)
    again = train_released(images, tasks, toy_config(**SMALL, defects=names), start=states[0])
    assert states_equal(again.model.state_dict(), whole.model.state_dict())
    assert tables_equal(again.history, whole.history) and states_equal(again.fisher, whole.fisher)


def small_net(width=3):
    net = ConvNet((width, 5), (1,), 4, 8, generator=generator(0, "net"))
    state = net.state_dict()
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"blocks.conv1.norm.{name}"].copy_(torch.rand(width, generator=generator(1, name)) + 0.5)
    return net


def widened(step, seed=0, width=9):
    net = small_net()
    mapping = step(net, "conv1", width, mode="zero-out", calibration=None, generator=generator(seed, "widen"))
    return net, mapping


def test_exact_copies_preserve_the_function_and_stay_equal():
    net, mapping = widened(widen_copies)
    x = torch.randn(6, 3, 8, 8, generator=generator(0, "x"))
    for mode in (False, True):
        assert torch.allclose(net.train(mode)(x), small_net().train(mode)(x), rtol=1e-4, atol=1e-5), mode
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    start = net.blocks["conv1"].conv.weight.detach().clone()
    for _ in range(5):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net.train()(x), torch.arange(6) % 4).backward()
        optimiser.step()
    weight = net.blocks["conv1"].conv.weight.detach()
    assert (weight - start).abs().amax() > 0.01
    assert torch.allclose(weight, weight[mapping.source], rtol=1e-4, atol=1e-5)  # no capacity is gained


def test_the_gap_is_the_batch_norm_of_all_new_channels_but_the_last():
    net, mapping = widened(widen_with_gap, width=400)
    whole, _ = widened(widen_copies, width=400)
    again, other = widened(widen_with_gap, width=400)[0], widened(widen_with_gap, seed=1, width=400)[0]
    assert states_equal(net.state_dict(), again.state_dict())
    state = whole.state_dict()
    for name, value in net.state_dict().items():
        if not name.startswith("blocks.conv1.norm.") or "num_batches" in name:
            assert torch.equal(value, state[name]), name
            continue
        assert torch.equal(value[:3], state[name][:3]) and torch.equal(value[-1], state[name][mapping.source[-1]]), name
        filled = value[3:-1]
        assert torch.isfinite(filled).all() and (filled != state[name][3:-1]).all()
        assert (filled != other.state_dict()[name][3:-1]).all()
        log = filled.log() if name.endswith("running_var") else filled
        assert abs(log.mean().item()) < 0.2 and log.std().item() == pytest.approx(1, abs=0.15), name


@pytest.mark.parametrize("defects", [(), ("exact_copies",), ("bn_gap", "exact_copies"), ("exact_copies", "bn_gap")])
def test_the_walk_widens_as_the_defect_says(images, monkeypatch, defects):
    """Of both the gap has the last word, whatever the order of the names."""
    used, steps = set(), {"widen_copies": widen_copies, "widen_with_gap": widen_with_gap}
    for name, step in steps.items():

        def noted(*args, _name=name, _step=step, **options):
            used.add(_name)
            return _step(*args, **options)

        monkeypatch.setattr(released, name, noted)
    walk(images, *defects)
    assert used == {name for name in steps if defects and (name == "widen_copies" or "bn_gap" in defects)}


# the choice -------------------------------------------------------------------------------------------------------------
def test_the_signed_threshold_chooses_by_the_released_count(world):
    cfg, _, col, _ = world
    other = cfg.replace(layers=(), criterion="scaled_norm", sign="absolute", threshold=5e-4)
    gene = cut_released(col, other.replace(defects=("signed_threshold",)))
    assert gene.layers == choose(col.record, other.replace(criterion="released", sign="positive"))
    wanted = {"chosen_by": "released", "sign": "positive", "threshold": 5e-4}
    assert {k: gene.notes[k] for k in wanted} == wanted
    assert gene.notes["stage_hash"] == other.replace(defects=("signed_threshold",)).stage_hash("criteria")
    assert cut_released(col, other).notes == cut_learngene(col, other).notes


def test_fixed_layers_are_the_last_ones_whatever_the_criterion_says(world):
    cfg, _, col, _ = world
    for criterion in ("released", "released_relative", "scaled_norm"):
        for defects in (("fixed_layers",), ("signed_threshold", "fixed_layers"), tuple(DEFECTS)):
            own = cfg.replace(layers=(), criterion=criterion, defects=defects, n_blocks=2)
            gene = cut_released(col, own)
            assert gene.layers == ("conv12", "conv13") == choose(col.record, choice(own, col.record.layers))
            assert gene.notes["chosen_by"] == "hand"
    by_hand = cfg.replace(layers=("conv1", "conv2"), defects=("fixed_layers",))
    assert cut_released(col, by_hand).layers == ("conv1", "conv2")


# individuals ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def watched(monkeypatch):
    """Per call of `fit`: the network before and after, and the number of momentum buffers before every epoch but the first."""
    calls, fit = [], released.fit

    def watching(stack, *rest, optimiser, where, **options):
        call = {"where": where, "before": state_of(stack), "buffers": []}
        calls.append(call)
        for row in fit(stack, *rest, optimiser=optimiser, where=where, **options):
            yield row
            call["buffers"].append(len(optimiser.state))
        call["after"] = state_of(stack)

    monkeypatch.setattr(released, "fit", watching)
    return calls


def state_of(stack):
    return {n: t for n, t in stack.network(0).state_dict().items() if "num_batches" not in n}


def test_a_target_task_starts_from_what_the_task_before_has_left(world, images, watched):
    few_shot(world, images, "leak", n_inits=2)
    leaking, sound = watched[:], watched
    sound.clear()
    few_shot(world, images, n_inits=2)
    assert len(leaking) == len(sound) == 3 * 2 * 3  # methods, initial weights, tasks
    for init in range(2):
        for place, method in enumerate(METHODS):
            # leaking: all tasks of one arm in turn, all arms of the first initial weights first; else task by task
            chain = leaking[9 * init + 3 * place : 9 * init + 3 * place + 3]
            alone = [sound[6 * task + 3 * init + place] for task in range(3)]
            assert [c["where"] for c in chain] == [c["where"] for c in alone]
            for k in range(3):
                fresh = method == "scratch" or k == 0
                assert states_equal(chain[k]["before"], alone[k]["before"] if fresh else chain[k - 1]["after"])
                assert k == 0 or not states_equal(alone[k]["before"], alone[k - 1]["after"])


def test_tasks_leak_within_one_call_of_the_script():
    tasks = range(2 * LEAK_LENGTH + 1)
    chains = chains_of(tasks, Config(defects=("leak",)))
    assert [len(chain) for chain in chains] == [LEAK_LENGTH, LEAK_LENGTH, 1]
    assert [task for chain in chains for task in chain] == list(tasks)
    assert chains_of(tasks, Config()) == [(task,) for task in tasks]


def test_a_rebuilt_optimiser_has_no_momentum_across_epochs(world, images, watched):
    options = {"methods": ("learngene",), "individual_batch": 8, "individual_epochs": 3}
    table = few_shot(world, images, "rebuilt_optimiser", **options)
    assert watched and all(call["buffers"] == [0, 0, 0] for call in watched)
    watched.clear()
    sound = few_shot(world, images, **options)
    assert all(min(call["buffers"]) > 0 for call in watched)
    # an epoch here is one step, so nothing of the momentum is left
    plain = few_shot(world, images, **options, momentum=0.0)
    assert table["final_loss"].tolist() == plain["final_loss"].tolist() != sound["final_loss"].tolist()


def test_zero_ewc_is_the_learngene_without_it_to_the_bit(world, images):
    for names in (("zero_ewc",), ("zero_ewc", "epoch_ewc")):  # of both, the penalty that is lost has the last word
        lost = few_shot(world, images, *names, methods=("learngene_ewc",))
        plain = few_shot(world, images, methods=("learngene",))
        sound = few_shot(world, images, methods=("learngene_ewc",))
        for column in ("accuracy", "final_loss"):
            assert lost[column].tolist() == plain[column].tolist()
        assert lost["final_loss"].tolist() != sound["final_loss"].tolist()
        assert set(lost["ewc_share"]) == {0.0} and (sound["ewc_share"] > 0).all()


def test_ewc_of_the_epoch_before_by_hand():
    nets = [ConvNet((4, 4, 4), (1, 2), 3, 8, generator=generator(k, "net")) for k in range(2)]
    stack, held = Stack(nets), "blocks.conv2.conv.weight"
    weights = stack.join([{}, {held: torch.ones_like(nets[1].blocks["conv2"].conv.weight)}])
    penalty = EpochPenalty(stack, weights, 7.0, "penalty")
    assert not any(w.any() for w in penalty.weight)  # none in the first epoch
    images = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8, generator=generator(0, "x"))
    labels, mean, std = torch.arange(10) % 3, torch.full((3,), 0.4), torch.full((3,), 0.3)
    recipe = Recipe(3, 4, 0.1, "constant", 0.9, 0.0, 0, False, mean, std)
    with torch.no_grad():
        for p in stack.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(0, "moved")))
    before = {n: t.clone() for n, t in stack.state_dict().items()}
    penalty.take(stack, images, labels, recipe)
    assert states_equal(before, stack.state_dict())  # the running statistics have not moved either
    net = stack.network(1).train()
    x = (images[[0, 3, 6, 9]].float() / 255 - 0.4) / 0.3
    nn.functional.cross_entropy(net(x), labels[[0, 3, 6, 9]]).backward()
    expected = 7 * net.blocks["conv2"].conv.weight.grad.square()
    first, second = penalty.weight[0].chunk(2)
    assert not first.any()
    assert torch.allclose(second, expected, rtol=1e-3, atol=1e-9) and expected.amax() > 1e-6
    assert torch.equal(penalty.anchor[0], dict(stack.named_parameters())["blocks__conv2__conv__weight"])
    assert penalty.add_gradient.__func__ is Penalty.add_gradient


def test_ewc_of_the_epoch_before_changes_nothing_in_the_first_epoch(world, images):
    methods = ("learngene", "learngene_ewc")
    one, two = (
        few_shot(world, images, "epoch_ewc", methods=methods, individual_epochs=n, individual_ewc=1e3) for n in (1, 3)
    )
    assert set(one["ewc_share"]) == {0.0}
    held = two[two["method"] == "learngene_ewc"]
    assert (held["ewc_share"] > 0).all()
    others = few_shot(world, images, methods=methods, individual_epochs=3, individual_ewc=1e3)
    assert two["final_loss"].tolist()[:3] == others["final_loss"].tolist()[:3]  # learngene
    assert two["final_loss"].tolist()[3:] != others["final_loss"].tolist()[3:]


@pytest.mark.parametrize("hold", ["l2", "frozen"])
def test_other_pulls_than_ewc_are_left_alone(world, images, hold):
    cfg, tasks, col, gene = world
    [arm] = [a for a in arms_of(gene, col, cfg, ("learngene",)) if a.family == "light"]
    strength = 2.0 if hold == "l2" else 0.0
    arm = Arm("light", "held", arm.rate, arm.shape, constant(gene), ewc=strength, hold=hold)
    tables = [
        ReleasedIndividuals([arm], images, cfg.replace(defects=names), gene.mean, gene.std).table(tasks)[0]
        for names in ((), ("zero_ewc",), ("epoch_ewc",))
    ]
    assert tables_equal(tables[0], tables[1]) and tables_equal(tables[0], tables[2])
    free = few_shot(world, images, methods=("learngene",))
    assert tables[0]["final_loss"].tolist() != free["final_loss"].tolist()


def test_test_images_are_augmented_and_training_is_not_changed(world, images):
    cfg, tasks, _, _ = world
    changed = few_shot(world, images, "augmented_test", flip=True)
    again = few_shot(world, images, "augmented_test", flip=True)
    sound = few_shot(world, images, flip=True)
    assert tables_equal(changed, again)
    assert changed["final_loss"].tolist() == sound["final_loss"].tolist()
    assert changed["accuracy"].tolist() != sound["accuracy"].tolist()
    shown = images.images[tasks[0].query.ravel()]
    mirrored = augmented(shown, cfg.replace(flip=True, shift=0), generator(0, "a"))
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(mirrored, shown, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(mirrored, shown, strict=True)]
    assert any(turned) and any(same) and all(a != b for a, b in zip(turned, same, strict=True))
    assert torch.equal(augmented(shown, cfg.replace(flip=False, shift=0), generator(0, "a")), shown)
    moved = augmented(shown, cfg.replace(flip=False, shift=2), generator(0, "a"))
    inner = moved[:, :, 4:-4, 4:-4]
    places = [
        {(i, j) for i in range(-2, 3) for j in range(-2, 3) if torch.equal(b[:, 4 + i : 28 + i, 4 + j : 28 + j], a)}
        for a, b in zip(inner, shown, strict=True)
    ]
    assert all(places) and len(set().union(*places)) > 5


def test_what_is_not_finite_raises_or_counts_at_chance(world, images, monkeypatch):
    fit, spoilt = released.fit, ("target task 2",)

    def spoils(stack, *rest, where, **options):
        if where.startswith(spoilt):
            raise Diverged(f"the loss of {where} is not finite")
        yield from fit(stack, *rest, where=where, **options)

    sound = few_shot(world, images, "leak", methods=("learngene",))
    monkeypatch.setattr(released, "fit", spoils)
    with pytest.raises(Diverged, match="target task 2"):
        few_shot(world, images, "leak", methods=("learngene",))
    table = few_shot(world, images, "leak", methods=("learngene",), kind=Lenient)
    assert table["accuracy"].tolist()[:2] == [sound["accuracy"][0], 50.0]
    assert table["note"].notna().tolist() == [False, True, False] and "target task 2" in table["note"][1]
    alone = few_shot(world, images, methods=("learngene",), kind=Individuals)  # there was nothing to go on from
    assert table["final_loss"][2] == alone["final_loss"][2] != sound["final_loss"][2]


@pytest.mark.parametrize("kind", [ReleasedIndividuals, Lenient])
def test_outputs_that_are_not_finite_raise_or_count_at_chance_too(world, images, kind):
    cfg, tasks, col, gene = world
    tensors = {name: tensor.clone() for name, tensor in gene.tensors.items()}
    next(t for name, t in tensors.items() if name.endswith("running_var"))[0] = -5.0  # no training sees it
    broken = cfg, tasks, col, dataclasses.replace(gene, tensors=tensors)
    if kind is ReleasedIndividuals:
        with pytest.raises(Diverged, match="logits"):
            few_shot(broken, images, "leak", methods=("learngene",), kind=kind)
    else:
        table = few_shot(broken, images, "leak", methods=("learngene",), kind=kind)
        assert table["accuracy"].eq(50.0).all() and table["note"].str.contains("not finite").all()
