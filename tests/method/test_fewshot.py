"""Few-shot reconstruction: fair comparisons (same weights, same batches), no leak between tasks, equal files for equal runs."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from toys import states_equal, tables_equal, toy_config, toy_images

from learngene_core import fewshot
from learngene_core.analysis import tuning
from learngene_core.arms import arms_of, longest_prefix
from learngene_core.collective import train_collective
from learngene_core.config import Machine
from learngene_core.data.division import divide, source_tasks, target_tasks
from learngene_core.errors import Diverged, StudyError
from learngene_core.fewshot import Individuals, evaluate_few_shot
from learngene_core.learngene import Learngene, cut_learngene
from learngene_core.network import ConvNet
from learngene_core.presets import METHODS
from learngene_core.runs import stages
from learngene_core.runs.run import Run
from learngene_core.training import normalise

LAYERS = ("conv11", "conv12", "conv13")


@dataclasses.dataclass
class World:
    """Everything that `evaluate_few_shot` takes."""

    cfg: object
    images: object
    div: object
    col: object
    gene: Learngene

    def evaluate(self, tgt=None, **changes):
        """The results of a fresh evaluation, with changes to the configuration."""
        options = {k: changes.pop(k) for k in ("methods", "blocks", "machine") if k in changes}
        gene, cfg = changes.pop("gene", self.gene), self.cfg.replace(**changes)
        return evaluate_few_shot(gene, self.col, self.images, self.targets(cfg) if tgt is None else tgt, cfg, **options)

    def in_run(self, path, gene=None, tgt=None, images=None, **changes):
        """The results of the run in a folder."""
        run = Run.open(self.cfg.replace(**changes), path)
        tasks = self.targets(run.cfg) if tgt is None else tgt
        return stages.results(run, gene or self.gene, self.col, images or self.images, tasks)

    def targets(self, cfg=None, **options):
        return target_tasks(self.images, self.div, cfg or self.cfg, **options)


@pytest.fixture(scope="module")
def world():
    cfg, images = toy_config(layers=LAYERS), toy_images()
    div = divide(images, cfg)
    col = train_collective(images, source_tasks(images, div, cfg), cfg)
    return World(cfg, images, div, col, cut_learngene(col, cfg))


@pytest.fixture(scope="module")
def results(world):
    return world.evaluate()


def of_task(table, number):
    return table[table["target_task"] == number].reset_index(drop=True)


# the table --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "batch", [8, 7]
)  # 8 images: one step per epoch, the second time because a last image is left out
def test_the_penalty_is_looked_at_after_as_many_steps_as_there_were(world, batch):
    """One step per epoch moves nothing away from the inherited weights before it: a penalty of zero is then no fault, however
    many draws learn side by side."""
    cfg = world.cfg.replace(individual_batch=batch, individual_epochs=1, ewc_form="penalty", methods=("learngene_ewc",))
    arms = arms_of(world.gene, world.col, cfg, cfg.methods)
    work = Individuals(arms, world.images, cfg, world.gene.mean, world.gene.std)
    draws = [(task, 0) for task in world.targets(cfg)]
    assert len(work.in_one_go(draws)) == len(draws) == 2


def test_every_method_meets_every_task_once(world, results):
    table = world.evaluate(n_inits=2, shots=(2, 4))
    prefix = next(iter(results.loc[results["method"] == "longest_prefix", "block"]))
    pairs = {
        ("light", "conv11-conv13"): ("scratch", "random", "learngene", "learngene_ewc"),
        ("light", "conv1-conv3"): ("scratch", "first"),
        ("light", prefix): ("scratch", "longest_prefix"),
        ("same_shape", "conv1-conv13"): METHODS["same_shape"],
    }
    wanted = {
        (*pair, m, s, t, i) for pair, ms in pairs.items() for m in ms for s in (2, 4) for t in (1, 2) for i in (1, 2)
    }
    trained = table[table["method"] != "ncm"]
    keys = list(map(tuple, trained[["family", "block", "method", "shots", "target_task", "init"]].to_numpy().tolist()))
    assert set(keys) == wanted and len(keys) == len(wanted)
    assert table.groupby("method")["init"].max()["ncm"] == 1 and len(table) == len(trained) + 4  # nothing to draw
    assert np.isfinite(table[["accuracy", "rate", "ewc", "inherited_parameters"]].to_numpy(float)).all()
    per_class = world.cfg.query_images
    hits = table["accuracy"] * 2 * per_class / 100
    assert table["accuracy"].between(0, 100).all() and np.allclose(hits, hits.round())
    by_class = table["hits"].str.split(" ", expand=True).astype(int)  # of each class, in the order of `classes`
    assert by_class.shape[1] == world.cfg.n_way and by_class.le(per_class).all(axis=None)
    assert np.allclose(by_class.sum(axis=1), hits) and table["classes"].str.count(r"\|").eq(world.cfg.n_way - 1).all()
    sizes = results.groupby(["family", "method"])["inherited_parameters"].first()
    assert sizes["light", "scratch"] == sizes["same_shape", "scratch"] == 0
    assert sizes["light", "learngene"] == sizes["same_shape", "learngene"] == world.gene.n_parameters
    assert sizes["same_shape", "full"] == sum(p.numel() for p in world.col.model.blocks.parameters())


def test_recommended_trains_the_block_that_is_handed_in_and_nothing_else(world):
    with pytest.raises(StudyError, match="recommended needs a block"):
        world.evaluate(methods=("recommended",))
    table = world.evaluate(methods=("scratch", "recommended"), blocks={"recommended": ("conv2", "conv3")})
    light = table[table["family"] == "light"]
    assert set(light["block"]) == {"conv2-conv3"} and set(light["method"]) == {"scratch", "recommended"}
    assert set(light.loc[light["method"] == "recommended", "inherited"]) == {"conv2-conv3"}


def test_tables_of_several_calls_can_be_joined(results, world):
    """As anyone does who compares seeds or shots in a notebook."""
    other = world.evaluate(methods=("scratch",), individual_epochs=1)
    assert len(pd.concat([results, other])) == len(results) + len(other)


def test_training_individuals_learns(world):
    table = world.evaluate(
        methods=("scratch", "full"), individual_epochs=25, individual_rate=0.05, individual_batch=20, shots=(10,)
    )
    full, start = (table[table["method"] == method] for method in ("full", "scratch"))
    assert full["accuracy"].mean() > 80  # chance: 50
    assert full["final_loss"].mean() < 0.35 and start["final_loss"].mean() < 0.35  # ln 2 = 0.69


@pytest.mark.parametrize("methods", [("nonsense",), ("scratch", "learngen")])
def test_an_unknown_method_is_refused(world, methods):
    with pytest.raises(ValueError, match=methods[-1]):
        world.evaluate(methods=methods)


# no leak ----------------------------------------------------------------------------------------------------------------
def test_each_target_task_starts_from_its_own_fresh_copy(world, results):
    first, second = world.targets()
    alone = world.evaluate([second])
    turned = world.evaluate([second, first])
    assert tables_equal(alone, of_task(results, 2))
    assert tables_equal(turned, results)
    assert not np.allclose(of_task(results, 1)["final_loss"].dropna(), of_task(results, 2)["final_loss"].dropna())


def test_equal_seeds_give_equal_tables_whatever_the_workers_and_the_global_state(world, results):
    for workers, state in ((1, 5), (2, 6)):
        torch.manual_seed(state)
        assert tables_equal(world.evaluate(machine=Machine(workers=workers)), results), workers
    other, same = (world.evaluate(seed=seed, methods=("scratch",), tgt=world.targets()) for seed in (1, 0))
    assert not np.allclose(other["final_loss"], same["final_loss"], rtol=1e-4)


def test_nothing_that_is_handed_in_is_changed(world):
    model = {n: t.clone() for n, t in world.col.model.state_dict().items()}
    tensors = {n: t.clone() for n, t in world.gene.tensors.items()}
    fisher = {n: t.clone() for n, t in world.gene.fisher.items()}
    pixels, threads = world.images.images.clone(), torch.get_num_threads()
    world.evaluate()
    assert states_equal(model, dict(world.col.model.state_dict()))
    assert states_equal(tensors, world.gene.tensors) and states_equal(fisher, world.gene.fisher)
    assert torch.equal(pixels, world.images.images) and torch.get_num_threads() == threads


def test_query_images_do_not_train(world, results):
    """Other pixels in the queries: other accuracies, the same training."""
    images = world.images.images.clone()
    for task in world.targets():
        images[task.query.ravel()] = 255 - images[task.query.ravel()]
    changed = evaluate_few_shot(
        world.gene, world.col, dataclasses.replace(world.images, images=images), world.targets(), world.cfg
    )
    assert changed["final_loss"].tolist() == pytest.approx(results["final_loss"].tolist(), rel=0, abs=0, nan_ok=True)
    assert changed["accuracy"].tolist() != results["accuracy"].tolist()


def test_larger_support_sets_change_nothing_for_smaller_ones(world):
    small, both = world.evaluate(shots=(3,)), world.evaluate(shots=(6, 3))
    assert tables_equal(small, both[both["shots"] == 3].reset_index(drop=True))
    assert not tables_equal(small.assign(shots=6), both[both["shots"] == 6].reset_index(drop=True))


def test_more_initial_weights_change_nothing_for_the_first(world, results):
    more = world.evaluate(n_inits=2)
    assert tables_equal(results, more[more["init"] == 1].reset_index(drop=True))
    trained = more[more["method"] != "ncm"]
    first, second = (trained[trained["init"] == i]["final_loss"].to_numpy() for i in (1, 2))
    assert (first != second).all()


def test_a_methods_results_do_not_depend_on_the_others(world, results):
    for method in ("scratch", "learngene", "learngene_ewc"):
        alone = world.evaluate(methods=(method,))
        among = results[(results["method"] == method) & results["block"].isin(set(alone["block"]))].reset_index(
            drop=True
        )
        assert alone[["family", "target_task"]].equals(among[["family", "target_task"]])
        assert alone["final_loss"].tolist() == pytest.approx(among["final_loss"].tolist(), rel=1e-4)


# fair starts ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def watched(monkeypatch):
    """Per call of `fit`: the networks of the stack before training, and the batches' streams."""
    calls, fit = [], fewshot.fit

    def watching(stack, images, labels, *rest, stream, where, **options):
        before = [{n: t.clone() for n, t in stack.network(i).state_dict().items()} for i in range(stack.size)]
        draws = [[g.initial_seed() for g in stream(epoch)] for epoch in (1, 2)]
        calls.append({"networks": before, "images": images.clone(), "draws": draws, "where": where})
        return fit(stack, images, labels, *rest, stream=stream, where=where, **options)

    monkeypatch.setattr(fewshot, "fit", watching)
    return calls


@pytest.mark.parametrize("rates", [(), ("light:learngene=0.05", "same_shape:full=0.01")])
def test_methods_of_a_pair_start_alike_but_for_what_they_inherit(world, watched, rates):
    """Also when they train at different rates, in different stacks."""
    cfg = world.cfg.replace(individual_rates=rates)
    world.evaluate([world.targets()[0]], individual_rates=rates)
    collective, names = world.col.model.state_dict(), world.col.model.block_names
    groups = {}  # the arms of a stack are alike in shape and rate
    for arm in arms_of(world.gene, world.col, cfg, cfg.methods):
        groups.setdefault((arm.family, str(arm.shape), arm.rate), []).append(arm)
    assert len(watched) == len(groups)
    assert all(c["draws"] == watched[0]["draws"] and torch.equal(c["images"], watched[0]["images"]) for c in watched)
    prefix = longest_prefix(world.col, cfg.inherited_share)
    same = {"learngene": LAYERS, "first": names[:3], "longest_prefix": prefix, "full": names, "scratch": ()}
    starts = {}
    for call, arms in zip(watched, groups.values(), strict=True):
        for arm, state in zip(arms, call["networks"], strict=True):
            starts[arm.family, dict(arm.columns)["block"], arm.method] = state
    for (family, block, method), state in starts.items():
        first, last = block.split("-")
        inherited = names[names.index(first) : names.index(last) + 1]
        if family == "same_shape":
            inherited = same[method]
        for name, tensor in state.items():
            if "num_batches" in name:
                continue
            mine = method != "scratch" and name.startswith("blocks.") and name.split(".")[1] in inherited
            scratch = starts[family, block, "scratch"][name]
            if not mine:
                assert torch.equal(tensor, scratch), (family, block, method, name)
            elif method != "random":
                assert torch.equal(tensor, collective[name]), (family, block, method, name)
            elif name.endswith("conv.weight"):
                assert not torch.equal(tensor, collective[name]) and not torch.equal(tensor, scratch)


def test_every_task_and_number_has_its_own_initial_weights(world, watched):
    world.evaluate(methods=("scratch",), n_inits=2, shots=(2, 4))
    starts = {}
    for call in watched:
        starts.setdefault(call["where"].split(",")[1], []).append(call["networks"][0]["classifier.0.weight"])
    for weights in starts.values():
        different = {tuple(w.ravel().tolist()) for w in weights}
        assert len(weights) == 8 and len(different) == 4  # two tasks, two numbers; equal for both sizes of the support


def test_random_inherits_from_a_network_that_never_learned(world, watched):
    world.evaluate(methods=("random",), n_inits=2)
    blocks = [{n: t for n, t in c["networks"][0].items() if n.split(".")[1] in LAYERS} for c in watched]
    assert len(blocks) == 4 and not any(states_equal(a, b) for a, b in itertools.combinations(blocks, 2))
    weight = blocks[0]["blocks.conv12.conv.weight"]
    assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.1)
    assert not blocks[0]["blocks.conv12.norm.running_mean"].any()


def test_individuals_are_normalised_as_the_learngene_was_trained(world, results):
    gene = dataclasses.replace(world.gene, mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0))
    other = world.evaluate(gene=gene, methods=("scratch",))
    among = results[(results["method"] == "scratch") & results["block"].isin(set(other["block"]))]
    assert not np.allclose(other["final_loss"], among["final_loss"], rtol=1e-3)


# EWC --------------------------------------------------------------------------------------------------------------------
def test_ewc_without_fisher_is_refused_and_the_rest_is_not(world):
    gene = dataclasses.replace(world.gene, fisher=None)
    with pytest.raises(StudyError, match="Fisher") as error:
        world.evaluate(gene=gene)
    assert "\n" not in str(error.value)
    assert len(world.evaluate(gene=gene, methods=("learngene",))) == 4


def test_ewc_pulls_towards_the_inherited_weights(world, monkeypatch):
    away, fit = {}, fewshot.fit
    inherited = dict(world.gene.tensors)

    def watching(stack, *rest, **options):
        yield from fit(stack, *rest, **options)
        state = stack.network(0).state_dict()
        distance = sum(
            (world.gene.fisher[n] * (state[f"blocks.{n}"] - inherited[n]) ** 2).sum().item() for n in world.gene.fisher
        )
        away.setdefault(strength, []).append(distance)

    monkeypatch.setattr(fewshot, "fit", watching)
    shares = {}
    for strength in (1e-12, 30.0, 300.0):
        table = world.evaluate(
            methods=("learngene_ewc",), individual_ewc=strength, individual_epochs=4, ewc_form="proximal"
        )
        shares[strength] = table["ewc_share"].tolist()
    assert max(shares[1e-12]) < 1e-9 and all(0 < s < 100 for s in shares[30.0] + shares[300.0])
    assert sum(away[300.0]) < 0.8 * sum(away[30.0]) < 0.8 * sum(away[1e-12])
    monkeypatch.undo()
    plain = world.evaluate(methods=("learngene", "learngene_ewc"), individual_ewc=1e-12)
    light = plain[plain["family"] == "light"].groupby("method")["final_loss"].apply(list)
    assert light["learngene_ewc"] == pytest.approx(light["learngene"], rel=1e-5)


# baselines --------------------------------------------------------------------------------------------------------------
def test_nearest_class_mean_is_a_loop_over_queries(world, results):
    model = world.col.model.eval()

    def feature(index):
        with torch.no_grad():
            f = (
                model.features(normalise(world.images.images[[index]], world.col.mean, world.col.std))[0]
                .double()
                .numpy()
            )
        return f / np.linalg.norm(f)

    for task in world.targets():
        means = [np.mean([feature(i) for i in task.support[k, :4]], axis=0) for k in range(2)]
        hits = 0
        for k in range(2):
            for i in task.query[k]:
                cosines = [feature(i) @ m / np.linalg.norm(m) for m in means]
                hits += int(np.argmax(cosines) == k)
        rows = results[(results["method"] == "ncm") & (results["target_task"] == task.number)]
        assert rows["accuracy"].tolist() == pytest.approx([100 * hits / task.query.size])
        assert rows["family"].tolist() == ["none"]


def test_nearest_class_mean_alone_trains_nothing(world, results, watched):
    alone = world.evaluate(methods=("ncm",))
    assert not watched
    among = results[results["method"] == "ncm"].reset_index(drop=True)
    pd.testing.assert_series_equal(alone["accuracy"], among["accuracy"])


# the run folder, tuning -------------------------------------------------------------------------------------------------
def test_results_are_written_once_and_loaded_equal(world, results, tmp_path, monkeypatch):
    written = world.in_run(tmp_path / "run")
    text = (tmp_path / "run" / "results.csv").read_text()
    assert tables_equal(written[list(results)], results)
    monkeypatch.setattr(Individuals, "table", None)
    loaded = world.in_run(tmp_path / "run")
    assert (tmp_path / "run" / "results.csv").read_text() == text
    assert tables_equal(loaded, written)
    curves = pd.read_csv(tmp_path / "run" / "curves.csv")
    assert set(curves["epoch"]) == {1, 2} and set(curves["n_tasks"]) == {2}


def test_a_run_refuses_another_learngene_other_tasks_and_images(world, tmp_path):
    """Or the table of one learngene would be taken for that of another."""
    cfg, run = {"methods": ("learngene",)}, tmp_path / "run"
    table = world.in_run(run, **cfg)
    moved = {n: t + 1 if n == "conv12.norm.bias" else t for n, t in world.gene.tensors.items()}
    genes = [
        Learngene.from_model(world.col.model, ("conv1", "conv2", "conv3"), mean=world.gene.mean, std=world.gene.std),
        dataclasses.replace(world.gene, tensors=moved),
        dataclasses.replace(world.gene, std=(0.9, 0.9, 0.9)),
        dataclasses.replace(world.gene, fisher=None),
    ]
    for gene in genes:
        with pytest.raises(StudyError, match="another learngene.*--redo reconstruct"):
            world.in_run(run, gene, **cfg)
    tasks = world.targets()
    turned = dataclasses.replace(tasks[0], support=tasks[0].support[:, ::-1])
    for others in (tasks[:1], tasks[::-1], [turned, tasks[1]]):
        with pytest.raises(StudyError, match="another list of target tasks"):
            world.in_run(run, tgt=others, **cfg)
    with pytest.raises(StudyError, match="another set of images"):
        world.in_run(run, images=toy_images(seed=1), **cfg)
    assert tables_equal(world.in_run(run, **cfg), table)


def test_pieces_of_another_learngene_are_not_taken_up(world, tmp_path, monkeypatch):
    """A run that was stopped between two target tasks, and is handed another learngene when it goes on."""
    cfg, fit = {"methods": ("learngene",)}, fewshot.fit

    def stops(*rest, where, **options):
        if "target task 2" in where:
            raise KeyboardInterrupt
        return fit(*rest, where=where, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fewshot, "fit", stops)
        with pytest.raises(KeyboardInterrupt):
            world.in_run(tmp_path / "run", **cfg)
    assert list((tmp_path / "run").glob(".parts/reconstruct/*.json"))
    other = dataclasses.replace(world.gene, mean=(0.1, 0.1, 0.1))
    mixed, clean = (world.in_run(tmp_path / name, other, **cfg) for name in ("run", "clean"))
    assert tables_equal(mixed, clean)


def test_a_failing_task_stops_the_run_and_writes_nothing(world, tmp_path, monkeypatch):
    fit = fewshot.fit

    def failing(*rest, where, **options):
        if "target task 2" in where:
            raise SystemExit(3)  # vanishes silently in a thread that nobody asks
        return fit(*rest, where=where, **options)

    monkeypatch.setattr(fewshot, "fit", failing)
    with pytest.raises(SystemExit):
        world.in_run(tmp_path / "run", workers=2)
    run = Run.open(world.cfg, tmp_path / "run")
    assert not (run.path / "results.csv").exists() and not run.done("reconstruct")


def test_tuning_sees_open_world_classes_and_nothing_else(world, tmp_path, monkeypatch):
    cfg = world.cfg.replace(tune_rates=(0.01, 0.1), tune_ewc=(0.5, 2.0), tune_tasks=2, individual_epochs=1, n_inits=2)
    shown, seen = set(), fewshot.fit

    def watching(stack, images, *rest, **options):
        shown.update(map(bytes, images.numpy()))
        return seen(stack, images, *rest, **options)

    monkeypatch.setattr(fewshot, "fit", watching)
    run = Run.open(cfg, tmp_path / "run")
    table = tuning.tune(world.gene, world.col, world.images, world.div, cfg, run)
    names = [world.images.class_names[k] for k in world.images.labels]
    of = dict(zip(map(bytes, world.images.images.numpy()), names, strict=True))
    assert {of[b] for b in shown} <= set(world.div.open_world) and shown
    settings = table.groupby(["family", "method"]).size().to_dict()
    assert settings == {
        (f, m): 4 if m == "learngene_ewc" else 2
        for f, ms in METHODS.items()
        for m in ms
        if f != "none" and m != "recommended"
    }
    best = table[table["best"]].groupby(["family", "method"])["accuracy"].max()
    assert (best == table.groupby(["family", "method"])["accuracy"].max()).all()
    blocks = [3 if (row.family, row.method) == ("light", "scratch") else 1 for row in table.itertuples()]
    assert table["n"].tolist() == [2 * k for k in blocks], "two pseudo-tasks; every light block has its own scratch"
    # other pixels in the novel and base classes: the same choice
    images = world.images.images.clone()
    others = torch.tensor([world.images.class_names[k] not in world.div.open_world for k in world.images.labels])
    images[others] = 255 - images[others]
    again = tuning.tune(world.gene, world.col, dataclasses.replace(world.images, images=images), world.div, cfg)
    assert tables_equal(table, again) and (run.path / "tuning.csv").exists()


@pytest.mark.parametrize(
    ("part", "value"), [("running_var", -5.0), ("running_var", float("nan")), ("running_mean", float("nan"))]
)
def test_individuals_that_inherit_what_cannot_be_have_no_accuracy(world, part, value):
    """Their training does not see running statistics, so its loss is finite; they would all be at chance, to the digit."""
    tensors = {name: tensor.clone() for name, tensor in world.gene.tensors.items()}
    next(t for name, t in tensors.items() if name.endswith(part))[0] = value
    with pytest.raises(Diverged, match="evaluated images are not finite"):
        world.evaluate(gene=dataclasses.replace(world.gene, tensors=tensors), methods=("scratch", "learngene"))


def test_a_learngene_that_does_not_fit_is_one_clear_line(world):
    other = ConvNet((4, 4, 9, 9), (2,), 3, 32)
    with pytest.raises(StudyError) as error:
        gene = Learngene.from_model(other, ("conv3", "conv4"), mean=(0.5,) * 3, std=(0.25,) * 3)
        world.evaluate(gene=gene, methods=("learngene",))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_individuals_train_on_a_gpu(world, results):
    table = world.evaluate(machine=Machine("cuda", stack=64))
    keys = ["family", "method", "target_task"]
    assert table[keys].equals(results[keys])
    ours, wanted = (t[t["method"] != "ncm"]["final_loss"].tolist() for t in (table, results))
    assert ours == pytest.approx(wanted, rel=0.2)
    assert world.col.model.head.weight.device.type == "cpu"


# bundles ----------------------------------------------------------------------------------------------------------------
def bundle_of(world, stack, n_inits, **changes):
    """Individuals, and draws that a GPU would train together."""
    cfg = world.cfg.replace(n_inits=n_inits, individual_epochs=1, **changes)
    arms = arms_of(world.gene, world.col, cfg, cfg.methods)
    work = Individuals(arms, world.images, cfg, world.gene.mean, world.gene.std, machine=Machine(stack=stack))
    return work, [(task, init) for task in world.targets(cfg) for init in range(1, n_inits + 1)]


def numbers_of(pieces, name):
    return [row[name] for piece in pieces for row in piece["rows"]]


def test_bundled_pieces_are_the_pieces_one_by_one(world, watched):
    options = {"methods": ("scratch", "learngene", "learngene_ewc", "random")}
    work, draws = bundle_of(world, 12, 2, **options)
    alone = [piece for draw in draws for piece in work.train([draw])]
    watched.clear()
    bundled = work.train(draws)
    assert {len(call["networks"]) for call in watched} >= {12}, "three draws of four arms at a time"
    for name in ("family", "method", "block", "target_task", "init", "inherited"):
        assert numbers_of(alone, name) == numbers_of(bundled, name)
    for name in ("final_loss", "ewc_share"):
        assert numbers_of(alone, name) == pytest.approx(numbers_of(bundled, name), rel=1e-3, abs=1e-6)


def test_out_of_memory_makes_stacks_smaller_and_says_so(world, monkeypatch, capsys):
    options = {"methods": ("scratch", "learngene")}
    work, draws = bundle_of(world, 12, 12, **options)  # 24 draws of two arms a family
    alone = [piece for draw in draws for piece in work.train([draw])]
    trained, told, sizes = Individuals.in_one_go, [], []

    def small(self, draws):
        if 2 * len(draws) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(2 * len(draws))
        return trained(self, draws)

    monkeypatch.setattr(Individuals, "in_one_go", small)
    work.on_smaller = told.append
    capsys.readouterr()
    pieces = work.train(draws)
    assert set(sizes) == {2} and [machine.stack for machine in told] == [6, 3], "12, 6, 3: found once"
    assert capsys.readouterr().out.count("going on with stacks of") == 2
    assert numbers_of(pieces, "final_loss") == pytest.approx(numbers_of(alone, "final_loss"), rel=1e-3)

    def never(self, draws):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Individuals, "in_one_go", never)
    with pytest.raises(StudyError, match="does not fit into the memory"):
        work.train(draws)
