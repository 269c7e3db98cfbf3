"""Execute the committed notebooks again with the lecture preset and keep their outputs: `make notebooks`."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from . import cli, frontpage, notebooks
from .config import Config
from .files import say
from .runs import Run
from .study import run_study
from .summary import summary_markdown

HOME = "runs/lecture"  # where a newcomer's run is
TOUR = (f"learngene info {HOME}", "learngene criteria")


def refresh() -> None:
    """Run the whole study in a new folder and write the executed, cleaned notebooks over the committed ones.

    One clean run, in order, from nothing: the outputs of one notebook fit those of the next.
    """
    with tempfile.TemporaryDirectory(prefix="learngene-") as folder:
        run = run_study(Config.preset("lecture"), Path(folder, "lecture"))
        for path in notebooks.numbered():
            notebooks.write(notebooks.clean(notebooks.read(run.path / "notebooks" / path.name)), path)
            say(f"{path.name}: executed again")
        _pictures(run)


def _pictures(run: Run) -> None:
    """The README's pictures, drawn from the same run."""
    import matplotlib

    matplotlib.use("Agg")
    from . import figures
    from .checkpoints import task_states
    from .learngene import Learngene, light_shape
    from .statistics import paired_table

    figures.use_style()
    gene = Learngene.load(run.path / "learngene.safetensors")
    shapes = task_states(run)[-1]["shape"], light_shape(gene, run.cfg.n_way, run.cfg)
    target = notebooks.folder() / "images"
    target.mkdir(exist_ok=True)
    figures.networks_side_by_side(*shapes, gene.layers).figure.savefig(
        target / "networks.png", dpi=80, bbox_inches="tight"
    )
    _front_pictures(run, [state["shape"] for state in task_states(run)], shapes[1], gene.layers, target)
    axes = figures.comparison(paired_table(run.read_table("results.csv")), n_way=run.cfg.n_way)
    axes.flat[0].figure.savefig(target / "comparison.png", dpi=80, bbox_inches="tight")
    _atlas_pictures(run, target)
    (target / "lecture.md").write_text(summary_markdown(run) + "\n", encoding="utf-8")
    (target / "tour.txt").write_text(tour(run), encoding="utf-8")
    if (page := notebooks.folder().with_name("README.md")).exists():
        frontpage.main([str(page)])  # its tables come from what stands here


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
    from . import animation, criteria, figures
    from .record import Record

    record, cfg = Record.load(run.path), run.cfg
    name = cfg.criterion if cfg.criterion in criteria.CRITERIA else "released"
    scores = criteria.score(record, name, **criteria.options_of(name, cfg))
    ax = figures.paradigm(shapes, individual, layers, scores, shots=cfg.shots[0])
    ax.figure.savefig(target / "paradigm.png", dpi=100, bbox_inches="tight")
    animation.record_gif(record, target / "record.gif", threshold=5e-4, sign=cfg.sign, n_blocks=cfg.n_blocks)


def _atlas_pictures(run: Run, target: Path) -> None:
    from . import figures

    table = run.read_table("atlas.csv")
    marks = figures.ends(int(table["last"].max()), run.cfg.n_blocks)
    chosen = figures.choices_of(run.read_table("selection.csv"), {"recommended": "within budget"})
    ax = figures.atlas_map(table, marks={**marks, **chosen})
    ax.figure.savefig(target / "atlas.png", dpi=80, bbox_inches="tight")
    run.read_table("claims.csv").to_csv(target / "claims-lecture.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    refresh()
