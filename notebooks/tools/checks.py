"""Checks against the world: does what others have published of networks like these hold of ours?

    python notebooks/tools/checks.py --data-path FOLDER --ancestors FOLDER

    python notebooks/tools/checks.py --only score --run runs/lecture

Four checks and a record of a choice, one table (`notebooks/results/checks.csv`), beside it what was published:

- shots: accuracy of frozen features by the number of images per class (CIFAR-100, joint ancestors);
- forgetting: where a network changes when it learns a further task, and which half brings the earlier classes back (CIFAR-100);
- increment: what is left of earlier tasks when the loss runs over all classes and nothing is kept (glyphs);
- noise: which part of a network to tune when its images become noisy (glyphs);
- score: how well every score of the open world does on the images on which claim H8a's was chosen, and on those that judge it.

--data-path: the images of CIFAR-100. --ancestors: the weights of CIFAR-100 ancestors, which `ancestors.py` leaves in its `--out`.
--run: a finished run with its open world. The four take about 15 minutes of one core; `--only` keeps the others' rows.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from learngene_core.analysis import measures, surgery
from learngene_core.analysis.evidence import Evidence, block_features
from learngene_core.analysis.reference import QUERIES, nearest_mean
from learngene_core.collective import Collective, Source, State, accuracy_matrix, grow, learn, lesson, train_collective
from learngene_core.config import CHOICES, Config, Machine
from learngene_core.data.division import Division, divide, source_tasks
from learngene_core.data.images import load_images
from learngene_core.errors import say
from learngene_core.growth import Belongings
from learngene_core.network import ConvNet
from learngene_core.openworld import measures as opensets
from learngene_core.presets import PAPER_POOLS
from learngene_core.runs.info import configuration
from learngene_core.runs.run import Run
from learngene_core.study import notebooks
from learngene_core.tasks import ImageSet, SourceTask, generator, numpy_generator
from learngene_core.training import Recipe, channel_statistics, evaluate, fit, task_loss

COLUMNS = ["check", "ancestor", "ancestor_seed", "case", "item", "value", "published"]
ONE = Machine()  # one thread

SHOTS, WAY, EPISODES, PER_CLASS = (2, 4, 8, 16, 32), 10, 200, 100
# prototypical networks on CIFAR-100, 80 training and 10 test classes (the Deep Learning course of the University of Amsterdam,
# tutorial 16)
SHOT_CURVE = {2: 44.3, 4: 52.1, 8: 57.6, 16: 62.6, 32: 66.5}

# tuning parts of a ResNet-26 on 1,000 noisy or otherwise corrupted images of CIFAR-10-C, mean of 19 corruptions (Lee et al. 2023,
# arXiv 2210.11466, replicated)
TUNED = {"all": 78.2, "part 1": 77.0, "part 2": 72.2, "part 3": 70.7, "head": 61.3}
RATES, TUNE_EPOCHS = (0.01, 0.03), 8

Row = dict[str, object]


# shots ------------------------------------------------------------------------------------------------------------------
def shots(images: ImageSet, folder: Path, seeds: Sequence[int] = range(5)) -> Iterator[Row]:
    """Ten-way accuracy (percent) of the nearest class mean on frozen features of joint ancestors, after the pooled block that is
    best on open-world classes; 200 episodes of 15 queries a class, novel classes. item: shots."""
    for seed in seeds:
        cfg = Config.preset("cifar-cpu", ancestor="joint", ancestor_seed=seed)
        div, _, model, normal = restored(images, cfg, folder)
        found = {g: by_shots(model, images, getattr(div, g), normal, cfg, g) for g in ("open_world", "novel")}
        for k in SHOTS:
            best = max(found["open_world"], key=lambda block: found["open_world"][block][k])
            yield row("shots", cfg, "", k, found["novel"][best][k], SHOT_CURVE[k])


def by_shots(
    model: ConvNet, images: ImageSet, classes: Sequence[str], normal: tuple[Tensor, Tensor], cfg: Config, group: str
) -> dict[str, dict[int, float]]:
    """Pooled block -> shots -> accuracy in percent."""
    paths = {name: f"blocks.{name}" for name, block in model.blocks.items() if block.pool}
    each: dict[str, list[np.ndarray]] = {}
    for name in classes:
        own = images.images[images.of_class(name)[:PER_CLASS]]
        for block, x in block_features(model, paths, own, *normal, positions=None).items():
            each.setdefault(block, []).append(nn.functional.normalize(x, dim=1).numpy())
    return {block: {k: ten_way(parts, k, cfg, group) for k in SHOTS} for block, parts in each.items()}


def ten_way(features: Sequence[np.ndarray], k: int, cfg: Config, group: str) -> float:
    """Mean accuracy in percent over episodes of ten classes; features: one array (n, d) per class."""
    rng, hits = numpy_generator(cfg.seed, "shot curve", group, k), []
    for _ in range(EPISODES):
        classes = rng.choice(len(features), WAY, replace=False)
        picked = [features[c][rng.choice(len(features[c]), k + QUERIES, replace=False)] for c in classes]
        support, queries = np.stack([x[:k] for x in picked]), np.concatenate([x[k:] for x in picked])
        hits.append(np.mean(nearest_mean(support, queries) == np.repeat(np.arange(WAY), QUERIES)))
    return 100 * float(np.mean(hits))


# forgetting -------------------------------------------------------------------------------------------------------------
def forgetting(images: ImageSet, folder: Path, seeds: Sequence[int] = range(5)) -> Iterator[Row]:
    """An ancestor learns one task more, of five open-world classes, 200 images each.

    item: a block's 1 - CKA before and after, on held-out images of its earlier classes (case "drift"); Spearman's rho of drift
    and depth; and accuracy (percent) on those images, each among the classes of its task (case "accuracy"): before, after, and
    with the front (conv1-7) or the back (conv8-13) as they were before.
    """
    for kind in ("sequential", "joint"):
        for seed in seeds:
            cfg = Config.preset("cifar-cpu", ancestor=kind, ancestor_seed=seed)
            div, tasks, model, normal = restored(images, cfg, folder)
            before, probe = copy.deepcopy(model), [probe_of(images, task) for task in tasks]
            names = list(dict.fromkeys(name for task in tasks for name in task.classes))
            after = one_more(model, names, images, tasks, div, cfg)
            drift = change(before, after, torch.cat([x for x, _ in probe]), normal)
            yield from (row("forgetting", cfg, "drift", block, value) for block, value in drift.items())
            rho = spearmanr(range(len(drift)), list(drift.values())).statistic
            yield row("forgetting", cfg, "rho", "drift and depth", rho)
            blocks = before.block_names
            states = {"before": before, "after": after}
            states |= {"front as before": rewound(after, before, blocks[:7])}
            states |= {"back as before": rewound(after, before, blocks[7:])}
            for name, network in states.items():
                accuracy = [
                    known_accuracy(network, x, t, names, normal) for (x, _), t in zip(probe, tasks, strict=True)
                ]
                yield row("forgetting", cfg, "accuracy", name, float(np.mean(accuracy)))


def probe_of(images: ImageSet, task: SourceTask, per_class: int = 10) -> tuple[Tensor, Tensor]:
    """Held-out images of a task, a few of each class in the order of its classes, and their classes' numbers within the task."""
    picked = [task.test[images.labels[task.test] == images.class_names.index(n)][:per_class] for n in task.classes]
    return images.images[np.concatenate(picked)], torch.arange(len(picked)).repeat_interleave(per_class)


def one_more(
    model: ConvNet, names: list[str], images: ImageSet, tasks: Sequence[SourceTask], div: Division, cfg: Config
) -> ConvNet:
    """The network after a further task of five open-world classes, learned as every task before; `model` itself."""
    classes = tuple(div.open_world[:5])
    train = np.concatenate([images.of_class(name, held_out=False)[:200] for name in classes])
    new = SourceTask(len(tasks) + 1, classes, train, train[:0], train[:0])
    cfg = cfg.as_ancestor(len(div.base)).replace(n_source_tasks=len(tasks) + 1)
    state, source = State(model, list(names), Belongings.of(model), done=len(tasks)), Source(images, tasks, cfg, ONE)
    grow(state, new, cfg.replace(growth="none"), source.calibration(new))  # only its head grows
    for _ in learn(state, new, cfg, source, *lesson(state, new, [*tasks, new], cfg, source), None, ONE):
        pass
    return state.model


def change(before: ConvNet, after: ConvNet, probe: Tensor, normal: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Block -> 1 - linear CKA of its features before and after (`measures.cka_drift`)."""
    labels, birth = torch.zeros(len(probe), dtype=torch.long), dict(after.named_parameters())
    evidence = Evidence(after, after.blocks, birth, (before,), probe, labels, probe, labels, *normal)
    return dict(zip(after.block_names, measures.cka_drift(evidence).tolist(), strict=True))


def rewound(after: ConvNet, before: ConvNet, blocks: Iterable[str]) -> ConvNet:
    """A copy of `after` with these blocks as they were `before`, batch norm included."""
    network = copy.deepcopy(after)
    for name in blocks:
        network.blocks[name].load_state_dict(before.blocks[name].state_dict())
    return network


def known_accuracy(
    network: ConvNet, probe: Tensor, task: SourceTask, names: Sequence[str], normal: tuple[Tensor, Tensor]
) -> float:
    """Accuracy in percent among a task's own classes."""
    outputs = torch.tensor([names.index(name) for name in task.classes])
    labels = outputs.repeat_interleave(len(probe) // len(outputs))
    return float(evaluate(network, probe, labels, *normal, classes=outputs))


def restored(
    images: ImageSet, cfg: Config, folder: Path
) -> tuple[Division, list[SourceTask], ConvNet, tuple[Tensor, Tensor]]:
    """Division, source tasks, network and normalisation (mean, std) of an ancestor of the plan, from its weights."""
    div = divide(images, cfg)
    tasks = source_tasks(images, div, cfg)
    n_classes = len({name for task in tasks for name in task.classes})
    model = ConvNet(cfg.final_widths, PAPER_POOLS, n_classes, cfg.image_size, cfg.hidden)
    model.load_state_dict(torch.load(folder / f"{cfg.ancestor}-{cfg.collective_seed}.pt", weights_only=True))
    model.to(memory_format=torch.channels_last)
    return div, tasks, model, channel_statistics(images.images[np.unique(np.concatenate([t.train for t in tasks]))])


# increment --------------------------------------------------------------------------------------------------------------
def increment(seeds: Sequence[int] = range(2)) -> Iterator[Row]:
    """Sequences on glyphs whose loss runs over all classes seen, without and with EWC: accuracy (percent) among all classes after
    the last task, mean over tasks times their number; accuracy on the last task; their ratio."""
    images = load_images("glyphs")
    for kind in ("sequential", "ewc"):
        for seed in seeds:
            few = {"null_networks": 2, "null_steps": 1, "null_tasks": 1, "record_every": 1000}
            cfg = Config.preset("lecture", loss="class-incremental", ancestor=kind, ancestor_seed=seed, **few)
            col = train_collective(images, source_tasks(images, divide(images, cfg), cfg), cfg, machine=ONE)
            last = accuracy_matrix(col.history, "accuracy_all_seen").to_numpy()[-1]
            yield row("increment", cfg, "", "mean x tasks", last.sum())
            yield row("increment", cfg, "", "last task", last[-1])
            yield row("increment", cfg, "", "ratio", last.sum() / last[-1], 1.0)


# noise ------------------------------------------------------------------------------------------------------------------
NOISES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {}


def noise(function: Callable[[Tensor, torch.Generator], Tensor]) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Enter a kind of noise: uint8 images (n, 3, h, w) and a generator to noisy images."""
    NOISES[function.__name__] = function
    return function


@noise
def gaussian(images: Tensor, g: torch.Generator) -> Tensor:
    """Added to every value, standard deviation a quarter of the range."""
    return (images + 64 * torch.randn(images.shape, generator=g)).clamp(0, 255).to(torch.uint8)


@noise
def impulse(images: Tensor, g: torch.Generator) -> Tensor:
    """A fifth of the values black or white."""
    chance = torch.rand(images.shape, generator=g)
    return torch.where(chance < 0.1, 0, torch.where(chance > 0.9, 255, images)).to(torch.uint8)


def noisy(seeds: Sequence[int] = range(2)) -> Iterator[Row]:
    """A joint ancestor on glyphs, its images made noisy: test accuracy (percent) of the network as it is, and tuned in one part
    (item: all, a stage between pools, the head), on 1,024 noisy images; and each stage's relative gradient norm there (item
    `rgn ...`). The rate of every arm is the better of two on validation images. case: the noise."""
    images = load_images("glyphs")
    for seed in seeds:
        cfg = Config.preset("lecture", ancestor="joint", ancestor_seed=seed, source_images=70, held_out_images=50)
        cfg = cfg.replace(epochs=12, first_task_epochs=24, record_every=1000, null_networks=2, null_steps=1)
        div = divide(images, cfg)
        (task,) = source_tasks(images, div, cfg)
        col = train_collective(images, [task], cfg, machine=ONE)
        yield row("noise", cfg, "none", "as it is", accuracy_on(col, images, task.test))
        for name, spoil in NOISES.items():
            spoiled = dataclasses.replace(images, images=spoil(images.images, generator(seed, "noise", name)))
            scores = tuned(col, spoiled, task, cfg)
            yield from (row("noise", cfg, name, item, value, TUNED.get(item)) for item, value in scores.items())


def tuned(col: Collective, images: ImageSet, task: SourceTask, cfg: Config) -> dict[str, float]:
    """Test accuracy by tuned part, and relative gradient norms, on these (noisy) images; tuning takes 16 images of each class
    that the ancestor has not seen."""
    labels = images.labels[task.validation].numpy()
    place = np.array([np.sum(labels[:i] == k) for i, k in enumerate(labels)])  # number within its class
    train, choose = task.validation[place < 16], task.validation[place >= 16]
    stages, found = surgery.stages(col.model), {"as it is": accuracy_on(col, images, task.test)}
    parts = {"all": (1, len(col.model.blocks)), **{f"part {k}": part for k, part in enumerate(stages.values(), 1)}}
    for name, part in {**parts, "head": (1, 0)}.items():
        tries = [one_tuned(col, images, train, part, rate, cfg, name) for rate in RATES]
        found[name] = accuracy_on(max(tries, key=lambda c: accuracy_on(c, images, choose)), images, task.test)
    norms = relative_norms(col, images, train)
    for k, (first, last) in enumerate(stages.values(), 1):
        found[f"rgn part {k}"] = float(np.mean(norms[first - 1 : last]))
    return found


def one_tuned(
    col: Collective, images: ImageSet, train: np.ndarray, part: tuple[int, int], rate: float, cfg: Config, name: str
) -> Collective:
    """A copy of the collective, tuned in the blocks of `part` (first, last); in the head where the part has no block or all."""
    model = copy.deepcopy(col.model)
    first, last = part
    for number, block in enumerate(model.blocks.values(), 1):
        block.requires_grad_(first <= number <= last)
    model.classifier.requires_grad_(name in ("all", "head"))
    recipe = Recipe(
        TUNE_EPOCHS, cfg.batch_size, rate, "cosine", 0.9, cfg.weight_decay, cfg.shift, False, col.mean, col.std
    )
    rows = fit(
        model, images.images[train], outputs_of(col, images, train), task_loss(), recipe,
        stream=lambda epoch: generator(cfg.seed, "noise batches", epoch), where=f"tuning of {name}",
    )  # fmt: skip
    for _ in rows:
        pass
    return dataclasses.replace(col, model=model)


def outputs_of(col: Collective, images: ImageSet, indices: np.ndarray) -> Tensor:
    """Labels (n,) of images as outputs of the head."""
    place = {name: k for k, name in enumerate(col.class_names)}
    return torch.tensor([place.get(name, -1) for name in images.class_names])[images.labels[indices]]


def accuracy_on(col: Collective, images: ImageSet, indices: np.ndarray) -> float:
    """Accuracy in percent among all classes."""
    return float(evaluate(col.model, images.images[indices], outputs_of(col, images, indices), col.mean, col.std))


def relative_norms(col: Collective, images: ImageSet, indices: np.ndarray) -> np.ndarray:
    """Relative gradient norm of every block on these images, of the network as it is, with its own head."""
    given = images.images[indices], outputs_of(col, images, indices)
    birth = dict(col.model.named_parameters())
    return surgery.rgn(Evidence(col.model, col.model.blocks, birth, (), *given, *given, col.mean, col.std))


# score ------------------------------------------------------------------------------------------------------------------
def scores(folder: Path) -> Iterator[Row]:
    """AUROC (percent) of every score of a run's open world after the last task. case: "choosing" (validation images against the
    stream, on which H8a's score was chosen) or "judging" (test images against unknown ones)."""
    run = Run.open(configuration(folder), folder)
    table = run.read_table("openworld_images.csv")
    for case, pair in {"choosing": ("validation", "stream"), "judging": ("test", "unknown")}.items():
        known, unknown = (table[table["part"] == part] for part in pair)
        right = (known["predicted"] == known["class_name"]).to_numpy()
        for name in CHOICES["open_score"]:
            value = opensets.metrics(known[name].to_numpy(float), unknown[name].to_numpy(float), right)["auroc"]
            yield row("score", run.cfg, case, name, value)


# the table --------------------------------------------------------------------------------------------------------------
def row(check: str, cfg: Config, case: str, item: object, value: float, published: float | None = None) -> Row:
    """One row of checks.csv."""
    who = (check, cfg.ancestor, cfg.collective_seed)
    return dict(zip(COLUMNS, (*who, case, str(item), round(float(value), 4), published), strict=True))


def computed(data_path: str, folder: Path, run: Path, only: Sequence[str]) -> Mapping[str, list[Row]]:
    """The rows of each check that is asked for."""
    cifar = load_images("cifar100", data_path) if {"shots", "forgetting"} & set(only) else None
    checks = {
        "shots": lambda: shots(cifar, folder),
        "forgetting": lambda: forgetting(cifar, folder),
        "increment": increment,
        "noise": noisy,
        "score": lambda: scores(run),
    }
    found = {}
    for name in only:
        found[name] = list(checks[name]())
        say(f"{name}: {len(found[name])} rows")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """`python notebooks/tools/checks.py`; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", default="", help="images of CIFAR-100")
    parser.add_argument("--ancestors", type=Path, default=Path("."), help="folder with the weights of the ancestors")
    parser.add_argument("--out", type=Path, default=notebooks.folder() / "results" / "checks.csv")
    parser.add_argument("--run", type=Path, default=Path("runs/lecture"), help="finished run, for score")
    parser.add_argument("--only", default="shots,forgetting,increment,noise", help="comma-separated names of checks")
    given = parser.parse_args(arguments)
    torch.set_num_threads(ONE.threads)
    found = computed(given.data_path, given.ancestors, given.run, given.only.split(","))
    old = pd.read_csv(given.out, keep_default_na=False) if given.out.exists() else pd.DataFrame(columns=COLUMNS)
    new = [pd.DataFrame(rows, columns=COLUMNS) for rows in found.values()]
    table = pd.concat([old[~old["check"].isin(list(found))], *new], ignore_index=True)
    table.sort_values("check", kind="stable").to_csv(given.out, index=False, lineterminator="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
