"""Every criterion of every ancestor of the plan, and what its choice costs on the light position atlas.

    python notebooks/tools/criteria.py --weights FOLDER --data-path FOLDER --out notebooks/results/ancestors

The weights are those that `notebooks/tools/ancestors.py` leaves beside its tables, `<kind>-<seed>.pt`. A minute or two for each
ancestor on one CPU core; ancestors whose scores are in the table already are not computed again. `--regret` makes only the
second table, from the kept ones.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch

from learngene_core.analysis.ancestor_tables import WHO
from learngene_core.analysis.ancestors import who
from learngene_core.analysis.rivals import COLUMNS, criteria_table, light_regret
from learngene_core.collective import Collective
from learngene_core.config import Config
from learngene_core.data.division import divide, source_tasks, target_tasks
from learngene_core.data.images import load_images
from learngene_core.network import ConvNet
from learngene_core.presets import PAPER_POOLS
from learngene_core.tasks import ImageSet, SourceTask
from learngene_core.training import channel_statistics

TASKS = {"novel": "atlas", "pseudo": "search"}  # which tasks measure -> the kept table of the light atlas on them


def restored(weights: Path, images: ImageSet, sources: list[SourceTask], cfg: Config) -> Collective:
    """The network, classes and normalisation of an ancestor; no record, history or Fisher, which the plan does not keep.

    Raises RuntimeError where the weights are those of another configuration.
    """
    names = tuple(dict.fromkeys(name for task in sources for name in task.classes))
    model = ConvNet(cfg.final_widths, PAPER_POOLS, len(names), cfg.image_size, cfg.hidden)
    model.load_state_dict(torch.load(weights, weights_only=True))  # noqa: TID251 (tensors only, from our own tool)
    mean, std = channel_statistics(images.images[np.unique(np.concatenate([t.train for t in sources]))])
    return Collective(model.eval(), names, mean, std, {}, {}, pd.DataFrame(), record=None)


def scores_of(weights: Path, images: ImageSet, cfg: Config, layer_scores: pd.DataFrame) -> pd.DataFrame:
    """`criteria_table` of one ancestor. Transplants are judged on the base classes that its sequence never showed."""
    div = divide(images, cfg)
    sources = source_tasks(images, div, cfg)
    col = restored(weights, images, sources, cfg)
    pseudo = target_tasks(images, div, cfg, group="open_world", n_tasks=cfg.atlas_pseudo_tasks)
    unseen = [name for name in div.base if name not in col.class_names]
    options = {"before": col.model, "unseen": unseen, "layer_scores": layer_scores}
    return criteria_table(col, images, pseudo, sources, div, cfg, **options).assign(**who(cfg))


def regret_of(out: Path, data: str = "cifar100") -> pd.DataFrame:
    """The regret table from the kept tables of a folder: the novel target tasks of two ancestors, the pseudo-tasks of ten."""
    scores, *cells = (pd.read_csv(out / f"{data}-{kind}.csv.gz") for kind in ("criteria", *TASKS.values()))
    widths, search = Config.preset("cifar-cpu").final_widths, cells[1]
    tables = [
        light_regret(scores, atlas, widths, search=search if group == "novel" else None).assign(tasks=group)
        for group, atlas in zip(TASKS, cells, strict=True)
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[[*WHO, "tasks", *(c for c in table if c not in (*WHO, "tasks"))]].round(4)


def main() -> None:
    """Compute the scores that are missing, then the regret."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="", help="folder of <kind>-<seed>.pt")
    parser.add_argument("--data-path", default="")
    parser.add_argument("--out", required=True)
    parser.add_argument("--regret", action="store_true", help="only the regret, from the kept tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(options.out)
    path = out / "cifar100-criteria.csv.gz"
    if not options.regret:
        images, kept = load_images("cifar100", options.data_path), pd.read_csv(out / "cifar100-scores.csv.gz")
        tables = [pd.read_csv(path)] if path.exists() else []
        done = {tuple(row) for table in tables for row in table[[*WHO]].drop_duplicates().to_numpy().tolist()}
        for file in sorted(Path(options.weights).glob("*.pt")):
            if not (found := re.fullmatch(r"([a-z]+)-(\d+)", file.stem)):
                continue
            kind, seed = found[1], int(found[2])
            cfg = Config.preset("cifar-cpu", n_target_tasks=60, ancestor=kind, ancestor_seed=seed)
            if tuple(who(cfg).values()) in done:
                continue
            own = kept[np.logical_and.reduce([kept[name] == value for name, value in who(cfg).items()])]
            tables.append(scores_of(file, images, cfg, own))
            table = pd.concat(tables, ignore_index=True)[[*WHO, *COLUMNS]]
            compression = {"method": "gzip", "mtime": 0}
            table.to_csv(path.with_suffix(".tmp"), index=False, float_format="%.8g", compression=compression)
            os.replace(path.with_suffix(".tmp"), path)
            print(f"{file.stem}: {tables[-1]['criterion'].nunique()} criteria", flush=True)
    regret_of(out).to_csv(out / "cifar100-regret.csv", index=False)


if __name__ == "__main__":
    main()
