"""Which part of an inherited network to tune, over ancestors: surgical fine-tuning and Auto-RGN against tuning everything.

    python notebooks/tools/tuning.py --weights FOLDER --data-path FOLDER --out notebooks/results/ancestors

The weights are those that `notebooks/tools/ancestors.py` leaves beside its tables, `<kind>-<seed>.pt`. Every arm's learning rate
is chosen on pseudo-tasks of the open-world classes, which the ancestor never saw, for each ancestor by itself. About four
minutes for an ancestor on one CPU core; ancestors that are in the table already are not computed again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import torch
from criteria import restored

from learngene_core.analysis.ancestors import who
from learngene_core.analysis.surgery import stages, surgical_arms, tuned_individuals
from learngene_core.collective import Collective
from learngene_core.config import Config
from learngene_core.data.division import divide, source_tasks, target_tasks
from learngene_core.data.images import load_images
from learngene_core.tasks import ImageSet

FACTORS = (0.3, 1.0, 3.0)  # times the rate of `full`
PSEUDO_TASKS, TARGET_TASKS = 4, 12
COLUMNS = ("method", "shots", "rate", "target_task", "init", "classes", "accuracy", "balanced_accuracy", "macro_f1")


def chosen_rates(col: Collective, images: ImageSet, cfg: Config) -> dict[str, float]:
    """Of every arm the rate with the highest mean accuracy on the pseudo-tasks."""
    division, usual = divide(images, cfg), cfg.rate("same_shape", "full")
    methods = [arm.method for arm in surgical_arms(col, cfg, stages(col.model), {})]
    tasks, found = target_tasks(images, division, cfg, group="open_world", n_tasks=PSEUDO_TASKS), []
    for factor in FACTORS:
        rates = dict.fromkeys(methods, factor * usual)
        found.append(tuned_individuals(col, images, tasks, cfg, rates=rates))
    means = pd.concat(found).groupby(["method", "rate"])["accuracy"].mean()
    return {method: means[method].idxmax() for method in means.index.unique("method")}


def table_of(weights: Path, images: ImageSet, cfg: Config) -> pd.DataFrame:
    """One row per individual of one ancestor on the target tasks."""
    division = divide(images, cfg)
    col = restored(weights, images, source_tasks(images, division, cfg), cfg)
    tasks = target_tasks(images, division, cfg, n_tasks=TARGET_TASKS)
    rows = tuned_individuals(col, images, tasks, cfg, rates=chosen_rates(col, images, cfg))
    return rows[list(COLUMNS)].assign(**who(cfg))


def main() -> None:
    """Compute the ancestors that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="folder of <kind>-<seed>.pt")
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--kinds", default="sequential,joint")
    parser.add_argument("--most", type=int, default=5, help="ancestors of a kind")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path, images = Path(options.out, "cifar100-tuning.csv.gz"), load_images("cifar100", options.data_path)
    tables = [pd.read_csv(path)] if path.exists() else []
    done = {tuple(pair) for table in tables for pair in table[["ancestor", "ancestor_seed"]].to_numpy().tolist()}
    files = [(kind, seed) for seed in range(options.most) for kind in options.kinds.split(",")]
    for kind, seed in files:
        file = Path(options.weights, f"{kind}-{seed}.pt")
        if (kind, seed) in done or not file.exists():
            continue
        cfg = Config.preset("cifar-cpu", n_inits=1, shots=(10,), ancestor=kind, ancestor_seed=seed)
        tables.append(table_of(file, images, cfg))
        whole = pd.concat(tables, ignore_index=True)
        whole.to_csv(
            path.with_suffix(".tmp"), index=False, float_format="%.8g", compression={"method": "gzip", "mtime": 0}
        )
        os.replace(path.with_suffix(".tmp"), path)
        print(f"{file.stem}: {len(tables[-1])} individuals", flush=True)


if __name__ == "__main__":
    main()
