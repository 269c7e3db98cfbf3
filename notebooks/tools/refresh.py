"""What the README and the committed notebooks show, made again: `make notebooks` for the lecture preset, and

    python notebooks/tools/refresh.py --cifar RUN --reference RUN
    python notebooks/tools/refresh.py --released RUN

for the tables and pictures of finished CIFAR-100 runs (`learngene reconstruct` and `openworld`; `learngene reference`), and for
the table of the released scripts' defects (`learngene released` of the lecture preset).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import frontpage
import matplotlib
import numpy as np
import pandas as pd
from animation import record_gif

from learngene_core import criteria
from learngene_core.analysis.statistics import paired_table
from learngene_core.config import Config
from learngene_core.errors import StudyError, say
from learngene_core.explorer import threshold
from learngene_core.explorer.demo import extract
from learngene_core.figures.atlas import atlas_map, choices_of, ends
from learngene_core.figures.comparison import comparison
from learngene_core.figures.networks import networks_side_by_side
from learngene_core.figures.paradigm import paradigm
from learngene_core.figures.style import use_style
from learngene_core.learngene import Learngene, light_shape
from learngene_core.record import Record
from learngene_core.runs.info import configuration
from learngene_core.runs.run import Run
from learngene_core.runs.states import task_states
from learngene_core.study import cli, notebooks
from learngene_core.study.links import keep_words
from learngene_core.study.report import clean
from learngene_core.study.summary import summary_markdown
from learngene_core.study.whole import run_study

matplotlib.use("Agg")

HOME = "runs/lecture"  # where a newcomer's run is
TOUR = (f"learngene info {HOME}", "learngene criteria")


def refresh() -> None:
    """Run the whole study in a new folder and write the executed, cleaned notebooks over the committed ones.

    One clean run, in order, from nothing: the outputs of one notebook fit those of the next.
    """
    with tempfile.TemporaryDirectory(prefix="learngene-") as folder:
        run = run_study(Config.preset("lecture"), Path(folder, "lecture"))
        for path in notebooks.numbered():
            copy = notebooks.read(run.path / "notebooks" / path.name)
            keep_words(notebooks.read(path), copy)  # the links of a copy lead from where it lies
            notebooks.write(clean(copy), path)
            say(f"{path.name}: executed again")
        _pictures(run)
        extract(run.path)  # the run that ships with the explorer


def _pictures(run: Run) -> None:
    """The README's pictures, drawn from the same run."""
    use_style()
    gene = Learngene.load(run.path / "learngene.safetensors")
    shapes = task_states(run)[-1]["shape"], light_shape(gene, run.cfg.n_way, run.cfg)
    target = notebooks.folder() / "images"
    target.mkdir(exist_ok=True)
    networks_side_by_side(*shapes, gene.layers).figure.savefig(target / "networks.png", dpi=80, bbox_inches="tight")
    _front_pictures(run, [state["shape"] for state in task_states(run)], shapes[1], gene.layers, target)
    axes = comparison(paired_table(run.read_table("results.csv")), n_way=run.cfg.n_way)
    axes.flat[0].figure.savefig(target / "comparison.png", dpi=80, bbox_inches="tight")
    _atlas_pictures(run, target)
    run.read_table("results.csv").to_csv(target / "lecture-results.csv", index=False, lineterminator="\n")
    (target / "lecture.md").write_text(summary_markdown(run, gene) + "\n", encoding="utf-8")
    (target / "tour.txt").write_text(tour(run), encoding="utf-8")
    _front_page()


def _front_page() -> None:
    frontpage.main([])  # the tables of all pages come from what is beside the notebooks


def keep_cifar(run: Run, reference: Run | None, target: Path) -> None:
    """Write what the README shows of a CIFAR-100 run, and of the reference check, into the folder `target`.

    That is: its tables (of the open world the state after the last source task), what the criteria choose, two pictures.
    Raises StudyError for a run that lacks a stage.
    """

    use_style()
    for stage in ("criteria", "reconstruct", "openworld"):
        if not run.done(stage):
            raise StudyError(f"{run.path} has no finished {stage}; run `learngene {stage}` with the same --out")
    record, k, heads = Record.load(run.path), run.cfg.n_blocks, run.read_table("openworld_heads.csv")
    tables = {
        "results": run.read_table("results.csv"),
        "openworld": heads[heads["task"] == heads["task"].max()],
        "timings": run.read_table("timings.csv"),
        "choices": _choices(record, run.cfg),
        "record": _released_count(record, k),
    }
    if reference is not None:
        tables["reference"] = reference.read_table("reference.csv")
    for name, table in tables.items():
        table.to_csv(target / f"cifar-{name}.csv", index=False, lineterminator="\n")
    axes = comparison(paired_table(tables["results"]), n_way=run.cfg.n_way)
    axes.flat[0].figure.savefig(target / "cifar-comparison.png", dpi=80, bbox_inches="tight")
    axes = threshold.draw_record(record, threshold=5e-4, n_blocks=k)
    axes.flat[0].figure.savefig(target / "cifar-criterion.png", dpi=80, bbox_inches="tight")


def keep_released(run: Run, target: Path) -> None:
    """Write the table of the released scripts' defects into the folder `target`. Raises StudyError for a run that has none."""
    if not run.done("released"):
        raise StudyError(f"{run.path} has no finished released; run `learngene released` with the same --out")
    run.read_table("released.csv").to_csv(target / "released-lecture.csv", index=False, lineterminator="\n")


def _released_count(record: Record, n_blocks: int) -> pd.DataFrame:
    """The count above 5e-4 as notebook 03 draws it: a row per task and layer (task, layer, share), the layer's null and its sd,
    and how many untrained networks choose what the collective chooses."""
    options = {"threshold": 5e-4, "sign": "positive"}
    table = criteria.score(record, "released", **options)
    block, votes = criteria.best_block(table, n_blocks), criteria.null_choices(record, "released", n_blocks, **options)
    shares = pd.DataFrame(criteria.profile(record, **options)[0], columns=list(record.layers))
    rows = shares.assign(task=np.unique(record.task)).melt("task", var_name="layer", value_name="share")
    alike = f"{sum(vote == block for vote in votes)} of {len(votes)}"
    return rows.merge(table[["layer", "null", "null_sd"]], on="layer", how="left").assign(alike=alike)


def tour(run: Run) -> str:
    """What a newcomer sees in a terminal after `make study`: each command of `TOUR` and its output on this finished run."""
    shown = []
    for command in TOUR:
        words = command.split()[1:]
        where = ["--preset", run.cfg.preset_name, "--out", str(run.path)] if words[0] != "info" else []
        heard = io.StringIO()
        with contextlib.redirect_stdout(heard):
            cli.main([str(run.path) if word == HOME else word for word in words] + where)
        shown.append(f"$ {command}\n{heard.getvalue().strip().replace(str(run.path), HOME)}\n")
    return "\n".join(shown)


def _front_pictures(run: Run, shapes: list[dict], individual: dict, layers: tuple[str, ...], target: Path) -> None:
    """The paradigm, and the film of the gradient record at the threshold of the paper's appendix figure."""
    record, cfg = Record.load(run.path), run.cfg
    name = cfg.criterion if cfg.criterion in criteria.CRITERIA else "released"
    scores = criteria.score(record, name, **criteria.options_of(name, cfg))
    own = scores.drop(columns=["null", "null_sd", "z"])  # notebook 03 asks its readers to vote before they see the null
    ax = paradigm(shapes, individual, layers, own, shots=cfg.shots[0])
    ax.figure.savefig(target / "paradigm.png", dpi=100, bbox_inches="tight")
    record_gif(record, target / "record.gif", threshold=5e-4, sign=cfg.sign, n_blocks=cfg.n_blocks)


def _atlas_pictures(run: Run, target: Path) -> None:

    table = run.read_table("atlas.csv")
    marks = ends(int(table["last"].max()), run.cfg.n_blocks)
    chosen = choices_of(run.read_table("selection.csv"), {"recommended": "within budget"})
    ax = atlas_map(table, marks={**marks, **chosen})
    ax.figure.savefig(target / "atlas.png", dpi=80, bbox_inches="tight")
    run.read_table("claims.csv").to_csv(target / "claims-lecture.csv", index=False, lineterminator="\n")


def _choices(record: Record, cfg: Config) -> pd.DataFrame:
    """What every criterion chooses, the released one at both thresholds, and how many untrained networks it gives the same."""
    asked = [(name, criteria.options_of(name, cfg)) for name in criteria.CRITERIA]
    asked.insert(1, ("released", {**criteria.options_of("released", cfg), "threshold": 5e-4}))
    rows = []
    for name, options in asked:
        chosen = criteria.best_block(criteria.score(record, name, **options), cfg.n_blocks)
        null = criteria.null_choices(record, name, cfg.n_blocks, **options)
        alike = f"{sum(block == chosen for block in null)} of {len(null)}"
        threshold = f"{options['threshold']:g}" if "threshold" in options else ""
        rows.append((name, threshold, f"{chosen[0]} to {chosen[-1]}", alike))
    return pd.DataFrame(rows, columns=["criterion", "threshold", "chooses", "untrained networks alike"])


def _run(path: Path) -> Run:
    return Run.open(configuration(path), path)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python notebooks/tools/refresh.py`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="refresh.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar", metavar="RUN", type=Path, help="finished CIFAR-100 run to show instead")
    parser.add_argument(
        "--reference", metavar="RUN", type=Path, help="finished `learngene reference` to show beside it"
    )
    parser.add_argument("--released", metavar="RUN", type=Path, help="finished `learngene released` to show instead")
    given, target = parser.parse_args(arguments), notebooks.folder() / "images"
    if given.cifar is None and given.released is None:
        refresh()
        return 0
    if given.released is not None:
        keep_released(_run(given.released), target)
    if given.cifar is not None:
        keep_cifar(_run(given.cifar), None if given.reference is None else _run(given.reference), target)
    _front_page()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
