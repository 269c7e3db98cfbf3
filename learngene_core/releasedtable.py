"""What each defect of the released scripts does to the accuracy and to the chosen layers: none, each alone, all (released.csv).

Against the usual chain: the layers are chosen by the scale-free count of absolute entries (`released_relative`), the correct
counterpart of the released one, and not by hand; individuals are of the light family, with the first number of shots and one
set of initial weights per target task. Their EWC is a proximal step: a penalty of the strength that suits one learngene blows
up with the larger Fisher information of another, which says nothing about a defect.

Individuals that a defect does not touch are those of "none". Every collective of its own is a run folder, `released/<defect>`,
and goes on where it was stopped; so do the individuals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .arms import Arm, arms_of, family_shape
from .checkpoints import Collective, load_collective
from .collective import cut_learngene, sequence_summary, train_collective
from .config import Config
from .division import divide, source_tasks
from .files import StudyError, say
from .images import load_images
from .individuals import Reconstruction
from .learngene import Learngene
from .lots import Draw
from .parts import Parts
from .processes import side_by_side
from .released import DEFECTS, INDIVIDUALS
from .runs import Run
from .statistics import paired_interval

if TYPE_CHECKING:
    from .study import Chain

VARIANTS: dict[str, tuple[str, ...]] = {"none": (), **{name: (name,) for name in DEFECTS}, "all": tuple(DEFECTS)}
COLUMNS = ["defects", *INDIVIDUALS, "gain", "gain_low", "gain_high", "chosen", "closed", "n_tasks", "note"]


def released_table(chain: Chain) -> pd.DataFrame:
    """One row per variant (released.csv): defects ("none", a defect, "all"); scratch, learngene, learngene_ewc: mean accuracy in
    percent; gain, gain_low, gain_high: learngene over scratch, paired, 95 % over tasks; chosen: the inherited layers; closed: the
    collective's average accuracy after the last task; n_tasks; note: what was not finite. An individual whose training is not
    finite counts at chance; where the collective's is not, or no layers can be chosen, there are no individuals.

    Raises OutOfTime (pieces are kept) after `cfg.minutes`.
    """
    run = chain.run
    if run.done("released"):
        say("released: found in the run folder, loaded")
        return _read(run)
    chain.target  # noqa: B018 (too few images are said before hours of training)
    comparison = _Comparison(chain)
    with run.computing("released", ["released.csv"]):
        comparison.train()
        rows = [comparison.row(name) for name in VARIANTS]
        run.write_table("released.csv", pd.DataFrame(rows)[COLUMNS])
        comparison.parts.clear()
    say(f"released: {len(DEFECTS)} defects, each alone and all together, on {len(chain.target)} target tasks, saved")
    return _read(run)


def _read(run: Run) -> pd.DataFrame:
    table = run.read_table("released.csv")
    return table.assign(**{name: table[name].astype(object).fillna("") for name in ("chosen", "note")})


class _Comparison:
    """The variants of one run, and what they share."""

    def __init__(self, chain: Chain):
        self.chain, self.run = chain, chain.run
        # the run's own; without defects it has to be there
        self.mine = _attempt(lambda: chain.collective) if chain.cfg.defects else (chain.collective, "")
        self.parts = Parts(chain.run, "released")
        own = {"criterion": "released_relative", "layers": (), "n_inits": 1, "ewc_form": "proximal"}
        self.cfg = chain.cfg.replace(**own, shots=chain.cfg.shots[:1])
        self.genes: dict[str, Learngene] = {}
        self.trained: dict[tuple[str, str], list[dict]] = {}  # variant, method -> rows

    # collectives ------------------------------------------------------------------------------------------------------
    def train(self) -> None:
        """Train the collectives that there are not yet; on a CPU as many at a time as there are workers, a process each."""
        machine = self.run.machine
        workers = machine.workers if machine.device == "cpu" else 1
        left = [name for name in self._own() if not self._known(name)]
        while left:
            if not self.parts.in_time:
                raise self.parts.stopped(len(self._own()) - len(left), len(self._own()))
            now, left = left[:workers], left[workers:]
            self.run.progress("released", 0, 1, f"training the collective of {' and '.join(now)}")
            jobs = [(self._config(name).to_dict(), str(self._folder(name))) for name in now]
            apart = len(jobs) > 1
            notes = side_by_side(_train_apart, jobs, len(jobs)) if apart else [self._trained(n)[1] for n in now]
            for name, note in zip(now, notes, strict=True):
                if note:
                    self.parts.put(f"collective_{name}", note)

    def _own(self) -> list[str]:
        """Variants that need a collective which is not the run's own."""
        keys = {_of_collective(defects): name for name, defects in reversed(VARIANTS.items())}
        keys.pop(_of_collective(self.run.cfg.defects), None)
        return [name for name in VARIANTS if name in keys.values()]

    def _folder(self, name: str) -> Path:
        return self.run.path / "released" / name

    def _config(self, name: str) -> Config:
        return self.run.cfg.replace(defects=_of_collective(VARIANTS[name]))

    def _known(self, name: str) -> bool:
        return (self._folder(name) / "history.csv").exists() or self.parts.get(f"collective_{name}") is not None

    def _trained(self, name: str) -> tuple[Collective | None, str]:
        chain = self.chain
        return _train(chain.images, chain.division, chain.source, self._config(name), self._folder(name))

    def collective(self, name: str) -> tuple[Collective | None, str]:
        """The collective of a variant, or None and why there is none."""
        key = _of_collective(VARIANTS[name])
        if key == _of_collective(self.run.cfg.defects):
            return self.mine
        owner = next(n for n, defects in VARIANTS.items() if _of_collective(defects) == key)
        note = self.parts.get(f"collective_{owner}")
        return (None, note) if note else self._trained(owner)

    # individuals ------------------------------------------------------------------------------------------------------
    def row(self, name: str) -> dict:
        """The row of one variant."""
        col, note = self.collective(name)
        row = {"defects": name, **dict.fromkeys(COLUMNS[1:], np.nan), "chosen": "", "n_tasks": 0, "note": note}
        if col is None:
            return row
        row["closed"] = sequence_summary(col.history)["average_accuracy"]
        cfg = self.cfg.replace(defects=VARIANTS[name])
        try:
            self.genes[name] = cut_learngene(col, cfg)
        except StudyError as error:  # the criterion cannot choose
            return row | {"note": str(error)}
        accuracies, notes = {}, []
        for arm in arms_of(cfg, INDIVIDUALS):
            if arm.family != "light":
                continue
            rows = self.trained[name, arm.method] = self._individuals(name, arm, col, cfg)
            accuracies[arm.method] = pd.Series({r["target_task"]: r["accuracy"] for r in rows}).sort_index()
            failed = [r["note"] for r in rows if r.get("note")]
            if failed:
                notes.append(f"{arm.method}: {len(failed)} of {len(rows)} at chance ({failed[0]})")
        gain = paired_interval(accuracies["learngene"], accuracies["scratch"])
        layers = self.genes[name].layers
        return row | {
            **{method: accuracy.mean() for method, accuracy in accuracies.items()},
            "gain": gain.estimate,
            "gain_low": gain.low,
            "gain_high": gain.high,
            "chosen": f"{layers[0]}-{layers[-1]}",
            "n_tasks": gain.n,
            "note": "; ".join(notes),
        }

    def _individuals(self, name: str, arm: Arm, col: Collective, cfg: Config) -> list[dict]:
        if ("none", arm.method) in self.trained and not self._touched(name, arm.method, col, cfg):
            return self.trained["none", arm.method]
        # one arm at a time: an individual's rounding then does not depend on which others are trained
        work = _Lenient(self.genes[name], col, self.chain.images, cfg, [arm], self.run, "released")
        n_pieces = len(work.how.chains(self.chain.target))
        place = list(VARIANTS).index(name) * len(INDIVIDUALS) + INDIVIDUALS.index(arm.method)
        work.span = place * n_pieces, len(VARIANTS) * len(INDIVIDUALS) * n_pieces
        label = f"{name}_{arm.method}_"
        return [r for p in work.pieces(self.chain.target, self.parts, label, curves=False) for r in p["rows"]]

    def _touched(self, name: str, method: str, col: Collective, cfg: Config) -> bool:
        """Whether a variant's individuals of a method differ from those of "none"."""
        touches = {part for defect in VARIANTS[name] for part in DEFECTS[defect].touches}
        gene, sound = self.genes[name], self.genes["none"]
        shapes = [family_shape("light", g, col, cfg) for g in (gene, sound)]
        inherits = method != "scratch" and ("collective" in touches or gene.layers != sound.layers)
        return method in touches or inherits or shapes[0] != shapes[1]


class _Lenient(Reconstruction):
    """Reconstruction with one arm, in which a piece whose training is not finite counts at chance and says so."""

    def _bundles(self, names: list[str]) -> list[list[str]]:
        return [[name] for name in names]  # none is lost with another one

    def _bundle(self, draws: Sequence[Draw], left: dict | None = None) -> list[dict]:
        try:
            return super()._bundle(draws, left)
        except StudyError as error:
            if not _not_finite(error):
                raise
            if left is not None:
                left.clear()  # there is nothing to go on from
            [(task, init)] = draws
            where = {"method": self.arms[0].method, "target_task": task.number, "init": init}
            return [{"rows": [{**where, "accuracy": 100 / self.cfg.n_way, "note": str(error)}], "curves": []}]


def _of_collective(defects: tuple[str, ...]) -> tuple[str, ...]:
    """Those among the defects that decide the collective, in the order of `DEFECTS`."""
    return tuple(name for name in DEFECTS if name in defects and "collective" in DEFECTS[name].touches)


def _not_finite(error: StudyError) -> bool:
    return "is not finite" in str(error)  # what `fit` says of a loss


def _train(imgs, div, src, cfg: Config, folder: Path) -> tuple[Collective | None, str]:  # noqa: ANN001
    """A collective in a run folder of its own, trained or loaded; or None and why its training is not finite."""
    run = Run.open(cfg, folder)
    if run.done("collective"):
        return load_collective(run), ""
    say(f"released: training a collective with {', '.join(cfg.defects) or 'no defect'}")
    return _attempt(lambda: train_collective(imgs, div, src, cfg, run=run))


def _attempt(train: Callable[[], Collective]) -> tuple[Collective | None, str]:
    try:
        return train(), ""
    except StudyError as error:
        if not _not_finite(error):
            raise
        return None, str(error)


def _train_apart(job: tuple[dict, str]) -> str:
    cfg = Config.from_dict(job[0])
    imgs = load_images(cfg.data, cfg.data_path, image_size=cfg.image_size, skip_corrupt=cfg.skip_corrupt)
    div = divide(imgs, cfg)
    return _train(imgs, div, source_tasks(imgs, div, cfg), cfg, Path(job[1]))[1]


def describe(table: pd.DataFrame) -> str:
    """The table for a terminal, and below it what was not finite."""
    shown = table.drop(columns="note").to_string(index=False, float_format="{:.1f}".format, na_rep="-")
    return "\n".join([shown, *(f"{row.defects}: {row.note}" for row in table.itertuples() if row.note)])
