"""The defects of the released scripts: each switch changes what it says and nothing else, and the table of all of them."""

import dataclasses
import functools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from toys import states_equal, tables_equal, toy_config, toy_images

from learngene_core import fewshot as individuals
from learngene_core.analysis import released as releasedtable
from learngene_core.analysis.released import (
    CORRECT,
    DEFECTS,
    LEAK_LENGTH,
    EpochPenalty,
    Lesson,
    augmented,
    double_softmax,
    in_turn,
    procedure,
    procedure_of,
)
from learngene_core.analysis.statistics import paired_interval
from learngene_core.collective import Walk, train_collective
from learngene_core.config import Config
from learngene_core.criteria import choose
from learngene_core.data.division import divide, source_tasks, target_tasks
from learngene_core.errors import StudyError
from learngene_core.ewc import Penalty
from learngene_core.fewshot import Arm, evaluate_few_shot
from learngene_core.learngene import cut_learngene
from learngene_core.network import ConvNet
from learngene_core.presets import DEFECT_NAMES
from learngene_core.runs.run import Run
from learngene_core.stack import Stack
from learngene_core.study.chain import Chain
from learngene_core.tasks import generator
from learngene_core.training import Recipe, task_loss

LAYERS = ("conv11", "conv12", "conv13")
SMALL = {"layers": LAYERS, "n_source_tasks": 2, "first_task_epochs": 1, "null_networks": 2}


@pytest.fixture(scope="module")
def images():
    return toy_images()


@pytest.fixture(scope="module")
def world(images):
    """Configuration, division, target tasks, collective and learngene without any defect."""
    cfg = toy_config(**SMALL, n_target_tasks=3)
    div = divide(images, cfg)
    col = train_collective(images, div, source_tasks(images, div, cfg), cfg)
    return cfg, div, target_tasks(images, div, cfg), col, cut_learngene(col, cfg)


def few_shot(world, images, *defects, methods=("scratch", "learngene", "learngene_ewc"), **changes):
    cfg, _, tgt, col, gene = world
    table = evaluate_few_shot(gene, col, images, tgt, cfg.replace(defects=defects, **changes), methods=methods)
    return table[table["family"] == "light"].reset_index(drop=True)


def walk_of(images, *defects, **changes):
    cfg = toy_config(**SMALL, defects=defects, **changes)
    src = source_tasks(images, divide(images, cfg), cfg)
    return Walk(images, src, cfg, None), src


# names ------------------------------------------------------------------------------------------------------------------
def test_the_names_agree_and_unknown_ones_are_refused():
    assert tuple(DEFECTS) == DEFECT_NAMES == Config.preset("as-released").defects
    assert all(defect.name == name and defect.text and defect.touches for name, defect in DEFECTS.items())
    with pytest.raises(ValueError, match="leek.*did you mean 'leak'"):
        Config(defects=("leek",))
    with pytest.raises(ValueError, match="each value once"):
        Config(defects=("leak", "leak"))
    with pytest.raises(ValueError, match="unknown defect 'zero_ecw'.*'zero_ewc'"):
        procedure(("leak", "zero_ecw"))


def test_no_defect_is_the_correct_procedure_and_every_defect_replaces_a_step():
    assert procedure_of(Config()) is CORRECT is procedure(())
    steps = [field.name for field in dataclasses.fields(CORRECT)]
    changed = {n: {s for s in steps if getattr(procedure((n,)), s) is not getattr(CORRECT, s)} for n in DEFECTS}
    assert all(changed.values()) and set().union(*changed.values()) == set(steps)
    together = procedure(tuple(DEFECTS))
    assert {s for s in steps if getattr(together, s) is not getattr(CORRECT, s)} == set(steps)
    # whatever the order of the names: the penalty is lost, the gap is there
    for names in (
        ("zero_ewc", "epoch_ewc", "bn_gap", "exact_copies"),
        ("exact_copies", "bn_gap", "epoch_ewc", "zero_ewc"),
    ):
        both = procedure(names)
        assert (both.penalty, both.widen) == (procedure(("zero_ewc",)).penalty, procedure(("bn_gap",)).widen)


# the collective ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("classes", [None, [4, 1, 2]])
def test_double_softmax_by_its_formula(classes):
    outputs = torch.tensor(classes) if classes else None
    among = classes or list(range(6))
    logits = torch.randn(5, 6, dtype=torch.float64, generator=generator(0, "logits")).mul(3).requires_grad_()
    labels = torch.tensor([among[i % len(among)] for i in range(5)])
    value, hit = double_softmax(task_loss(outputs), outputs)(logits, labels)
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
    losses = {}
    for defects in ((), ("double_softmax",)):
        walk, src = walk_of(images, *defects, learning_rate=1e-7)
        walk._grow(src[0])
        walk._train(src[0])
        losses[defects] = walk.history[0]["loss"]
    low = math.log(math.e + 2) - 1  # three classes
    assert low < losses["double_softmax",] < low + 1
    assert losses["double_softmax",] == pytest.approx(math.log(3), abs=0.2) and losses[()] != losses["double_softmax",]


def test_labels_are_reused_over_a_whole_head(images):
    walk, src = walk_of(images, "labels_reused", weight_decay=0.0, learning_rate=0.1)
    sound, _ = walk_of(images)
    walk._grow(src[0])
    assert walk.class_names == [n for task in src for n in task.classes] and walk.model.n_classes == 6
    before = walk.model.head.bias.detach().clone()
    walk._train(src[0])
    assert (walk.model.head.bias.detach()[3:] < before[3:]).all()  # outputs of no class: only ever pushed away
    walk._grow(src[1])
    sound._grow(src[0])
    sound._grow(src[1])
    assert walk.model.n_classes == 6
    for task in src:
        own = [task.classes.index(images.class_names[k]) for k in images.labels[task.train]]
        assert walk._batch(task.train, task)[1].tolist() == own
        offset = 3 * (task.number - 1)
        assert sound._batch(task.train, task)[1].tolist() == [k + offset for k in own]


def small_net(width=3):
    net = ConvNet((width, 5), (1,), 4, 8, generator=generator(0, "net"))
    state = net.state_dict()
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"blocks.conv1.norm.{name}"].copy_(torch.rand(width, generator=generator(1, name)) + 0.5)
    return net


def widened(defect, seed=0, width=9):
    net = small_net()
    step = procedure((defect,)).widen
    mapping = step(net, "conv1", width, mode="zero-out", calibration=None, generator=generator(seed, "widen"))
    return net, mapping


def test_exact_copies_preserve_the_function_and_stay_equal():
    net, mapping = widened("exact_copies")
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
    net, mapping = widened("bn_gap", width=400)
    whole, _ = widened("exact_copies", width=400)
    again, other = widened("bn_gap", width=400)[0], widened("bn_gap", seed=1, width=400)[0]
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


def test_the_walk_widens_with_the_gap(images):
    walk, src = walk_of(images, "bn_gap")
    walk._grow(src[0])
    old = dict(zip(walk.model.block_names, walk.model.widths, strict=True))
    walk._train(src[0])
    walk._grow(src[1])
    name = next(n for n, block in walk.model.blocks.items() if block.conv.out_channels > old[n] + 1)
    values = torch.stack([t for n, t in walk.model.blocks[name].norm.state_dict().items() if "num" not in n])
    copied = [any(torch.equal(values[:, j], values[:, i]) for i in range(old[name])) for j in range(values.shape[1])]
    assert copied == [True] * old[name] + [False] * (values.shape[1] - old[name] - 1) + [True]
    born = walk.owned.initial[f"blocks.{name}.norm.weight"][old[name] :]
    assert torch.equal(born, values[0, old[name] :])


# the choice -------------------------------------------------------------------------------------------------------------
def test_the_signed_threshold_chooses_by_the_released_count(world):
    cfg, _, _, col, _ = world
    other = cfg.replace(layers=(), criterion="scaled_norm", sign="absolute", threshold=5e-4)
    gene = cut_learngene(col, other.replace(defects=("signed_threshold",)))
    assert gene.layers == choose(col.record, other.replace(criterion="released", sign="positive"))
    wanted = {"chosen_by": "released", "sign": "positive", "threshold": 5e-4}
    assert {k: gene.notes[k] for k in wanted} == wanted
    assert cut_learngene(col, other).notes["chosen_by"] == "scaled_norm"


# individuals ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def watched(monkeypatch):
    """Per call of `fit`: the networks before and after, and the number of momentum buffers kept behind every epoch."""
    calls, fit = [], individuals.fit

    def watching(stack, *rest, on_epoch, optimiser, where, **options):
        call = {"where": where, "before": states_of(stack), "buffers": []}

        def seen(row):
            on_epoch(row)
            call["buffers"].append(len(optimiser.state))

        rows = fit(stack, *rest, on_epoch=seen, optimiser=optimiser, where=where, **options)
        calls.append({**call, "after": states_of(stack)})
        return rows

    monkeypatch.setattr(individuals, "fit", watching)
    return calls


def states_of(stack):
    drop = "num_batches"
    return [{n: t for n, t in stack.network(i).state_dict().items() if drop not in n} for i in range(stack.size)]


def test_a_target_task_starts_from_what_the_task_before_has_left(world, images, watched):
    few_shot(world, images, "leak", n_inits=2)
    leaking, calls = watched[:], watched
    calls.clear()
    few_shot(world, images, n_inits=2)
    assert len(leaking) == len(calls) == 2 * 2 * 3  # families, initial weights, tasks
    for family in ("light", "same_shape"):
        one, two = ([c for c in some if family in c["where"]] for some in (leaking, calls))
        for init in range(2):
            # leaking: all tasks of the first initial weights, then of the second; else task by task
            chain, sound = one[3 * init : 3 * init + 3], two[init::2]
            assert [c["where"] for c in chain] == [c["where"] for c in sound]
            for k in range(3):
                scratch, *rest = chain[k]["before"]
                assert states_equal(scratch, sound[k]["before"][0])  # scratch is new for every task
                for i, start in enumerate(rest, 1):
                    left = chain[k - 1]["after"][i] if k else sound[0]["before"][i]
                    assert states_equal(start, left) and len(start) > 40
                    assert k == 0 or not states_equal(start, sound[k]["before"][i])
                    assert k == 0 or not states_equal(sound[k]["before"][i], sound[k - 1]["after"][i])


def test_tasks_leak_within_one_call_of_the_script():
    chains = in_turn(range(2 * LEAK_LENGTH + 1))
    assert [len(chain) for chain in chains] == [LEAK_LENGTH, LEAK_LENGTH, 1]
    assert [task for chain in chains for task in chain] == list(range(2 * LEAK_LENGTH + 1))


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
    lost = few_shot(world, images, "zero_ewc", methods=("learngene_ewc",))
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
    arm = Arm("light", "learngene_ewc", 0.1, ewc=7.0)
    penalty = procedure(("epoch_ewc",)).penalty(stack, weights, arm, Config())
    assert isinstance(penalty, EpochPenalty) and not any(w.any() for w in penalty.weight)  # none in the first epoch
    images = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8, generator=generator(0, "x"))
    labels, mean, std = torch.arange(10) % 3, torch.full((3,), 0.4), torch.full((3,), 0.3)
    recipe = Recipe(3, 4, 0.1, "constant", 0.9, 0.0, 0, False, mean, std)
    with torch.no_grad():
        for p in stack.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(0, "moved")))
    before = {n: t.clone() for n, t in stack.state_dict().items()}
    lesson = Lesson(stack, images, labels, recipe, recipe.optimiser(stack), penalty)
    procedure(("epoch_ewc",)).between_epochs(lesson)
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


def test_other_pulls_than_ewc_are_left_alone(world):
    cfg, _, _, col, gene = world
    stack = Stack([col.model])
    weights = stack.join([{"blocks.conv1.conv.weight": torch.ones_like(col.model.blocks["conv1"].conv.weight)}])
    arm = Arm("same_shape", "full", 0.1, ewc=2.0, hold="l2")
    for name in ("zero_ewc", "epoch_ewc"):
        assert type(procedure((name,)).penalty(stack, weights, arm, cfg)) is Penalty


def test_test_images_are_augmented_and_training_is_not_changed(world, images):
    cfg, _, tgt, _, _ = world
    changed = few_shot(world, images, "augmented_test", flip=True)
    again = few_shot(world, images, "augmented_test", flip=True)
    sound = few_shot(world, images, flip=True)
    assert tables_equal(changed, again)
    assert changed["final_loss"].tolist() == sound["final_loss"].tolist()
    assert changed["accuracy"].tolist() != sound["accuracy"].tolist()
    shown = images.images[tgt[0].query.ravel()]
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


# the table --------------------------------------------------------------------------------------------------------------
class Toy(Chain):
    """The chain on toy images."""

    @functools.cached_property
    def images(self):
        return toy_images()


def chain_of(folder, **changes):
    cfg = {**SMALL, "n_target_tasks": 2, "individual_epochs": 1, "shots": (4, 2), "n_inits": 2, **changes}
    return Toy(Run.open(toy_config(**cfg), folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A chain whose table is there, and how many individuals were trained for it."""
    chain, trained, fit = chain_of(tmp_path_factory.mktemp("released") / "run"), [], individuals.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(individuals, "fit", lambda m, *r, **o: (trained.append(m.size), fit(m, *r, **o))[1])
        chain.released  # noqa: B018 (computed when asked for)
    return chain, trained


def test_the_table_has_none_each_and_all(finished):
    chain, trained = finished
    table = chain.released.set_index("defects")
    assert list(table.index) == ["none", *DEFECTS, "all"]
    assert (table["n_tasks"] == 2).all() and not table["note"].any()
    assert table[["scratch", "learngene", "learngene_ewc", "closed"]].stack().between(0, 100).all()
    assert np.allclose(table["gain"], table["learngene"] - table["scratch"])
    assert (table["gain_low"] <= table["gain"]).all() and (table["gain"] <= table["gain_high"]).all()
    # collectives of their own where a defect reaches them, and nowhere else
    own = {p.name for p in (chain.run.path / "released").iterdir()}
    assert own == {n for n, d in DEFECTS.items() if "collective" in d.touches} | {"all"}
    same = [n for n in ["none", *DEFECTS] if n not in own]
    assert table.loc[same, "closed"].nunique() == 1
    assert table.loc["zero_ewc", "learngene_ewc"] == table.loc["none", "learngene"]
    for name in ("leak", "zero_ewc", "epoch_ewc"):
        assert table.loc[name, "scratch"] == table.loc["none", "scratch"]
    for name in ("zero_ewc", "epoch_ewc"):
        assert table.loc[name, "learngene"] == table.loc["none", "learngene"]
    assert set(trained) == {1} and len(trained) < 2 * 3 * len(table)  # what is not touched is not trained again
    assert not (chain.run.path / ".parts" / "released").exists()


def test_the_row_of_no_defect_is_the_correct_study(finished):
    chain, _ = finished
    row = chain.released.set_index("defects").loc["none"]
    cfg = chain.cfg.replace(criterion="released_relative", layers=(), n_inits=1, shots=(4,), ewc_form="proximal")
    gene = cut_learngene(chain.collective, cfg)
    assert row["chosen"] == f"{gene.layers[0]}-{gene.layers[-1]}"
    accuracy = {}
    for method in ("scratch", "learngene", "learngene_ewc"):
        alone = evaluate_few_shot(gene, chain.collective, chain.images, chain.target, cfg, methods=(method,))
        accuracy[method] = alone[alone["family"] == "light"]["accuracy"].to_numpy()
        assert row[method] == pytest.approx(accuracy[method].mean())
    gain = paired_interval(accuracy["learngene"], accuracy["scratch"])
    assert row[["gain", "gain_low", "gain_high"]].tolist() == pytest.approx([gain.estimate, gain.low, gain.high])


def test_all_defects_are_one_run_with_all_of_them(finished, tmp_path):
    """A run whose configuration has every defect (as preset as-released) is that row, and needs a sound collective."""
    chain, _ = finished
    row = chain.released.set_index("defects").loc["all"]
    run = chain_of(tmp_path / "run", defects=tuple(DEFECTS), layers=(), n_inits=1, shots=(4,))
    table = run.results[run.results["family"] == "light"].groupby("method")["accuracy"].mean()
    first, last = row["chosen"].split("-")
    assert (run.learngene.layers[0], run.learngene.layers[-1]) == (first, last)
    assert table["scratch"] == pytest.approx(
        row["scratch"], abs=26
    )  # stacks round otherwise: one image of eight or two
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(releasedtable, "VARIANTS", {"none": (), "all": tuple(DEFECTS)})
        again = run.released
    assert [p.name for p in (run.run.path / "released").iterdir()] == ["none"]
    wanted = chain.released[chain.released["defects"].isin(["none", "all"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, wanted)


def test_a_stopped_comparison_goes_on_and_ends_the_same(tmp_path, monkeypatch, finished):
    names = ("double_softmax", "leak")
    monkeypatch.setattr(releasedtable, "VARIANTS", {"none": (), **{n: (n,) for n in names}})
    fit, calls = individuals.fit, []

    def stops(*rest, **options):
        calls.append(options["where"])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return fit(*rest, **options)

    monkeypatch.setattr(individuals, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        chain_of(tmp_path / "run").released  # noqa: B018 (computed when asked for)
    chain = chain_of(tmp_path / "run")
    assert not chain.run.done("released")
    monkeypatch.setattr(Walk, "_train", None)  # the collectives are there
    table = chain.released
    assert calls[5].startswith("target task 1") and calls[6].startswith("target task 2")  # learngene_ewc of "none"
    # two tasks each: the rest of "none"; what inherits under double_softmax (scratch, if other layers are chosen) and leak
    assert len(calls[5:]) in (2 + 4 + 4, 2 + 6 + 4)
    wanted = finished[0].released[finished[0].released["defects"].isin(["none", *names])].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, wanted)


def with_step(monkeypatch, name, **steps):
    """Let a defect replace other steps."""
    broken = dataclasses.replace(DEFECTS[name], apply=lambda procedure: dataclasses.replace(procedure, **steps))
    monkeypatch.setitem(DEFECTS, name, broken)
    monkeypatch.setattr(releasedtable, "VARIANTS", {"none": (), name: (name,)})


def test_a_collective_that_is_not_finite_is_a_row_with_a_note(tmp_path, monkeypatch):
    lost = lambda loss, classes: lambda logits, labels: (loss(logits, labels)[0] * math.nan, torch.zeros(()))  # noqa: E731
    with_step(monkeypatch, "bn_gap", loss=lost)
    table = chain_of(tmp_path / "run").released.set_index("defects")
    assert "source task 1 is not finite" in table.loc["bn_gap", "note"] and table.loc["none", "note"] == ""
    assert table.loc["bn_gap", ["scratch", "learngene", "gain", "closed"]].isna().all()
    assert (table.loc["bn_gap", "n_tasks"], table.loc["bn_gap", "chosen"]) == (0, "")
    assert "bn_gap: the loss of source task 1" in releasedtable.describe(table.reset_index())


def test_individuals_that_are_not_finite_count_at_chance(tmp_path, monkeypatch):
    def spoil(lesson):
        with torch.no_grad():
            next(lesson.model.parameters()).fill_(math.nan)

    with_step(monkeypatch, "rebuilt_optimiser", between_epochs=spoil)
    table = chain_of(tmp_path / "run", individual_epochs=2).released.set_index("defects")
    assert (table.loc["rebuilt_optimiser", ["scratch", "learngene", "learngene_ewc"]] == 50).all()
    note = table.loc["rebuilt_optimiser", "note"]
    assert "scratch: 2 of 2 at chance" in note and "target task 1" in note and table.loc["none", "note"] == ""


def test_other_errors_are_not_taken_for_a_result(tmp_path, monkeypatch):
    def full(*_, **__):
        raise StudyError("no space left")

    chain = chain_of(tmp_path / "run")
    chain.collective  # noqa: B018 (trained when asked for)
    for module, name, variants in (
        (releasedtable, "train_collective", {"none": (), "bn_gap": ("bn_gap",)}),
        (individuals, "fit", {"none": ()}),
    ):
        monkeypatch.setattr(releasedtable, "VARIANTS", variants)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(StudyError, match="no space left"):
                chain.released  # noqa: B018 (computed when asked for)
    assert not chain.run.done("released")
