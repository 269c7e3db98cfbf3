"""The plan over ancestors: trains collective models of every kind and the individuals on them, one ancestor a unit.

    python notebooks/tools/ancestors.py --data cifar100 --data-path FOLDER --out notebooks/results/ancestors

Units run side by side in processes and are written as they are finished, a compressed table each; the same command goes on with
those that are missing. `analysis.ancestors` says what a unit holds. On two CPU cores the plan takes about ten core-hours, on a
data-centre GPU minutes.
"""

from __future__ import annotations

import argparse
import os
import pickle
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import torch

from learngene_core.analysis import ancestors as study
from learngene_core.arms import arms_of
from learngene_core.config import Config, Machine
from learngene_core.data.division import target_tasks
from learngene_core.data.images import load_images
from learngene_core.fewshot import Individuals
from learngene_core.learngene import cut_learngene

# more target tasks than the preset, pseudo-tasks enough to recommend; everything else is the preset's
PLAN = {"cifar100": ("cifar-cpu", {"n_target_tasks": 60}), "glyphs": ("lecture", {"n_target_tasks": 20, "n_inits": 1})}


def units(data: str) -> list[tuple[str, dict]]:
    """Name and settings of every unit, the most important first."""
    if data == "glyphs":
        return [(f"glyphs-{k}", {"ancestor_seed": k, "seed": k, "split": "seed"}) for k in range(10)]
    pairs = [("sequential", range(5)), ("joint", range(5)), ("replay", range(2)), ("ewc", range(2))]
    first = [(f"{kind}-{k}", {"ancestor": kind, "ancestor_seed": k}) for kind, seeds in pairs for k in seeds]
    divisions = [(kind, d) for d in (1, 2) for kind in ("sequential", "joint")]
    redrawn = {
        f"{kind}-0-division-{d}": {"ancestor": kind, "ancestor_seed": 0, "division_seed": d} for kind, d in divisions
    }
    return first + list(redrawn.items())


def unit(job: tuple[str, str, dict, dict, str, str]) -> tuple[str, float, float]:
    """Train one ancestor and its individuals; write its tables. Returns name, seconds of the ancestor and of the rest."""
    name, data, settings, machine_of, images_file, out = job
    torch.set_num_threads(1)
    images, machine = pickle.loads(Path(images_file).read_bytes()), Machine(**machine_of)  # noqa: S301 (our own file)
    preset, changes = PLAN[data]
    cfg = Config.preset(preset, **{**changes, **settings})
    start = time.time()
    div, col = study.train_ancestor(images, cfg, machine)
    trained = time.time() - start
    plain = Machine(**{**machine_of, "capture": False})
    search = data == "cifar100" and cfg.ancestor in ("sequential", "joint") and cfg.division_seed < 0
    tables = study.examine(images, div, col, cfg, machine=plain, search=search)
    tables["individuals"] = tables["individuals"].drop(
        columns="classes", errors="ignore"
    )  # they stand in the next table
    tables["tasks"] = task_classes(target_tasks(images, div, cfg)).assign(**study.who(cfg))
    write(tables, name, out)
    torch.save(col.model.state_dict(), Path(out, f"{name}.pt"))
    write({f"extra_{k}": t for k, t in extras(name, images, div, col, cfg, plain).items()}, name, out)
    return name, trained, time.time() - start - trained


def task_classes(tasks: list) -> pd.DataFrame:
    """Target tasks and their classes, in the order in which `hits` counts them."""
    return pd.DataFrame([{"target_task": t.number, "classes": "|".join(t.classes)} for t in tasks])


def collect(out: Path, data: str) -> None:
    """One compressed table of every kind over all units of a data source: `<data>-<kind>.csv.gz`."""
    names = [name for name, _ in units(data)]
    kinds = sorted({path.name.split(".")[1] for path in out.glob("*.csv.gz") if path.name.count(".") == 3})
    for kind in kinds:
        files = [path for name in names if (path := out / f"{name}.{kind}.csv.gz").exists()]
        if files:
            table = pd.concat([pd.read_csv(path, keep_default_na=False) for path in files], ignore_index=True)
            write({kind.removeprefix("extra_"): table}, data, str(out))


def write(tables: dict[str, pd.DataFrame], name: str, out: str) -> None:
    """Each table of a unit as a compressed file, whole or not at all."""
    for kind, table in tables.items():
        path = Path(out, f"{name}.{kind}.csv.gz" if name not in PLAN else f"{name}-{kind}.csv.gz")
        table.to_csv(path.with_suffix(".tmp"), index=False, compression={"method": "gzip", "mtime": 0})
        os.replace(path.with_suffix(".tmp"), path)


def extras(name: str, images, div, col, cfg: Config, machine: Machine) -> dict[str, pd.DataFrame]:  # noqa: ANN001
    """What only some ancestors are asked: the position atlas of the light family on 20 target tasks (one sequential, one joint);
    the primary claim at 20 shots and at a third and three times the epochs (the same two)."""
    if name not in ("sequential-0", "joint-0"):
        return {}
    about, names = study.who(cfg), col.model.block_names
    tables = {"atlas": study.light_atlas(col, images, target_tasks(images, div, cfg, n_tasks=20), cfg, machine=machine)}
    gene, rows, curves = cut_learngene(col, cfg, layers=names[-cfg.n_blocks :]), [], []
    usual, size = cfg.individual_epochs, cfg.individual_batch
    # 100 images in batches of 32 leave a last batch of four, too few for batch norm; in batches of 25 they leave none
    for shots, epochs, batch in ((20, usual, size), (20, usual, 25), (10, usual // 3, size), (10, 3 * usual, size)):
        own = cfg.replace(shots=shots, individual_epochs=epochs, individual_batch=batch)
        arms = arms_of(gene, col, own, ("scratch", "learngene", "first"))
        work = Individuals(arms, images, own, gene.mean, gene.std, machine=machine)
        found, curve = work.table(target_tasks(images, div, own))
        rows.append(found.assign(epochs=epochs, batch=batch))
        curves.append(curve.assign(epochs=epochs, batch=batch))
    tables |= {"budgets": pd.concat(rows), "curves": pd.concat(curves)}
    return {kind: table.assign(**about) for kind, table in tables.items()}


def main() -> None:
    """Run the units that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar100", choices=PLAN)
    parser.add_argument("--data-path", default="")
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--stack", type=int, default=6)
    parser.add_argument("--capture", action="store_true", help="steps of the ancestors as CUDA graphs")
    parser.add_argument("--tf32", action="store_true", help="convolutions in TF32 (GPUs)")
    parser.add_argument("--only", default="", help="comma-separated names of units")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    images = load_images(options.data, options.data_path)
    images_file = out / f".{options.data}.images"
    images_file.write_bytes(pickle.dumps(images))
    machine = {"device": options.device, "stack": options.stack, "capture": options.capture}
    machine["precision"] = "tf32" if options.tf32 else "fp32"
    todo = [u for u in units(options.data) if not (out / f"{u[0]}.ancestors.csv.gz").exists()]
    todo = [u for u in todo if not options.only or u[0] in options.only.split(",")]
    start = time.time()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(unit, (n, options.data, s, machine, str(images_file), str(out))) for n, s in todo]
        for job in as_completed(jobs):
            try:
                name, trained, rest = job.result()
                print(
                    f"{name}: ancestor {trained:.0f} s, individuals {rest:.0f} s, at {time.time() - start:.0f} s",
                    flush=True,
                )
            except Exception:  # noqa: BLE001 (one unit's failure must not cost the others)
                traceback.print_exc()
    images_file.unlink()
    collect(out, options.data)


if __name__ == "__main__":
    main()
