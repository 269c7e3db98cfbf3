"""Does bfloat16 change results? Individuals of the lecture preset in fp32 and in bf16, paired by task, weights and batches.

    python notebooks/tools/precision.py --out notebooks/results/precision.csv

For every seed the ancestor is trained in fp32 and in bf16, and the light individuals `scratch`, `learngene` and `first` of all
target tasks three times: all in fp32; in bf16 on the fp32 ancestor ("individuals"); in bf16 on the bf16 ancestor ("all").
Finished seeds are kept beside the table (`--keep`) and not trained again. About five minutes of one core a seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd

from learngene_core.analysis.statistics import equivalence, mean_interval
from learngene_core.arms import arms_of
from learngene_core.collective import Collective, train_collective
from learngene_core.config import Config, Machine
from learngene_core.data.division import divide, source_tasks, target_tasks
from learngene_core.data.images import load_images
from learngene_core.execution import check_precision
from learngene_core.fewshot import Individuals
from learngene_core.learngene import cut_learngene
from learngene_core.tasks import ImageSet

METHODS = ("scratch", "learngene", "first")
MARGIN = 0.5  # points of gain within which bf16 would count as equivalent
CHUNK = 2  # target tasks trained in one precision before the other has its turn: a slow minute slows both


def seed_rows(seed: int, images: ImageSet, machine: Machine, changes: dict) -> pd.DataFrame:
    """Every individual of one seed: method, task, initial weights, accuracy; which comparison, precision, and its seconds."""
    cfg = Config.preset("lecture", seed=seed, **changes)
    division = divide(images, cfg)
    tasks, source, found = target_tasks(images, division, cfg), source_tasks(images, division, cfg), []
    half = dataclasses.replace(machine, precision="bf16")
    start = time.perf_counter()
    exact = train_collective(images, source, cfg, machine=machine)
    middle = time.perf_counter()
    rounded = train_collective(images, source, cfg.replace(precision="bf16"), machine=half)
    print(f"seed {seed}: ancestors in {middle - start:.0f} and {time.perf_counter() - middle:.0f} s", flush=True)
    plan = [("fp32", exact, machine), ("individuals", exact, half), ("all", rounded, half)]
    works = {name: individuals(col, images, cfg, on) for name, col, on in plan}
    for number, at in enumerate(range(0, len(tasks), CHUNK)):
        for name in list(works) if number % 2 == 0 else list(works)[::-1]:
            start = time.perf_counter()
            rows, _ = works[name].table(tasks[at : at + CHUNK])
            found.append(rows.assign(what=name, chunk=number, seconds=time.perf_counter() - start))
        print(f"seed {seed}: {min(at + CHUNK, len(tasks))} of {len(tasks)} tasks", flush=True)
    return pd.concat(found, ignore_index=True).assign(seed=seed)


def individuals(col: Collective, images: ImageSet, cfg: Config, machine: Machine) -> Individuals:
    """The light individuals of one collective on one machine."""
    gene = cut_learngene(col, cfg)
    arms = [arm for arm in arms_of(gene, col, cfg, METHODS) if arm.family == "light"]
    return Individuals(arms, images, cfg, gene.mean, gene.std, machine=machine)


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Per comparison, seed and target task: accuracy of every method behind its own fresh front and its gain over scratch.
    Initial weights are averaged; tasks of all seeds are the units."""
    keys = ["what", "seed", "target_task"]
    means = rows.groupby([*keys, "block", "method"])["accuracy"].mean()
    parts = {}
    for method in METHODS[1:]:
        own = means.xs(method, level="method")
        scratch = means.xs("scratch", level="method").reindex(own.index)
        parts |= {method: own, f"scratch of {method}": scratch, f"gain of {method}": own - scratch}
    return pd.DataFrame({name: part.groupby(keys).mean() for name, part in parts.items()})


def table_of(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per comparison and quantity: means in both precisions, their paired difference with its 95 % interval over tasks,
    and whether it lies within half a point (two one-sided tests at 5 %). Then the time that individuals take, as a ratio: middle,
    lowest and highest of chunks that were timed in turn."""
    values, found = accuracies(rows), []
    exact = values.xs("fp32", level="what")
    for what in ("individuals", "all"):
        for name in values:
            pair = pd.concat([values.xs(what, level="what")[name], exact[name]], axis=1, keys=["bf16", "fp32"]).dropna()
            away = (pair["bf16"] - pair["fp32"]).to_numpy()
            interval, seeds = mean_interval(away), pair.index.get_level_values("seed").nunique()
            found.append(
                {
                    "what": what,
                    "quantity": name,
                    "fp32": pair["fp32"].mean(),
                    "bf16": pair["bf16"].mean(),
                    "difference": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "sd": away.std(ddof=1),
                    "tasks": len(away),
                    "ancestors": seeds,
                    "equivalent": equivalence(away, MARGIN).equivalent,
                }
            )
    seconds = rows.groupby(["what", "seed", "chunk"])["seconds"].first()
    ratio = (seconds.xs("individuals", level="what") / seconds.xs("fp32", level="what")).dropna()
    numbers = {"bf16": ratio.median(), "fp32": 1.0, "low": ratio.min(), "high": ratio.max()}
    units = {"tasks": rows["target_task"].nunique() * rows["seed"].nunique(), "ancestors": rows["seed"].nunique()}
    found.append({"what": "individuals", "quantity": "seconds relative to fp32", **numbers, **units})
    return pd.DataFrame(found).round(3)


def main() -> None:
    """Train the seeds that are missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the table")
    parser.add_argument(
        "--keep", default="", help="folder of finished seeds (default: precision-seeds beside the table)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="smaller settings, for a try")
    options = parser.parse_args()
    check_precision("bf16", options.device)
    changes = {name: int(value) for name, value in (entry.split("=") for entry in options.set)}
    out = Path(options.out)
    keep = Path(options.keep) if options.keep else out.with_name("precision-seeds")
    keep.mkdir(parents=True, exist_ok=True)
    images, parts = load_images("glyphs"), []
    for seed in options.seeds:
        path = keep / f"{seed}.csv"
        if not path.exists():
            rows = seed_rows(seed, images, Machine(options.device), changes)
            rows.to_csv(path.with_suffix(".tmp"), index=False)
            os.replace(path.with_suffix(".tmp"), path)
        parts.append(pd.read_csv(path, keep_default_na=False))
    table = table_of(pd.concat(parts, ignore_index=True))
    table.to_csv(out, index=False, lineterminator="\n")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
