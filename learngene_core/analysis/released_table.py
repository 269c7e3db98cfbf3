"""What each defect of the released scripts does to accuracies and chosen layers: none, each alone, all (released.csv).

The layers are chosen by the scale-free count of absolute entries (`released_relative`), the correct counterpart of the released
one, and not by hand. Individuals are of the light family, with the first number of shots and one set of initial weights per
target task. Their EWC is a proximal step: a penalty of the strength that suits one learngene diverges with the larger Fisher
information of another, which says nothing about a defect.

Individuals that a defect does not touch are those of "none". Every collective of its own is a run folder, `released/<defect>`,
and goes on where it was stopped; so do the individuals. Costs: about five collectives and twelve times the individuals of three
methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..arms import Arm, arms_of, block_of
from ..collective import Collective, sequence_summary
from ..config import Config
from ..data.division import divide, source_tasks
from ..data.images import load_images
from ..errors import Diverged, StudyError, say
from ..learngene import Learngene, light_shape
from ..runs import inputs, stages
from ..runs.machine import machine_of, side_by_side
from ..runs.pieces import Pieces
from ..runs.run import Run
from ..tasks import ImageSet, SourceTask, TargetTask
from .defects import DEFECTS, INDIVIDUALS, touched
from .released import Lenient, chains_of, cut_released, walk_of
from .statistics import paired_interval

VARIANTS: dict[str, tuple[str, ...]] = {"none": (), **{name: (name,) for name in DEFECTS}, "all": tuple(DEFECTS)}
COLUMNS = ["defects", *INDIVIDUALS, "gain", "gain_low", "gain_high", "chosen", "closed", "n_tasks", "note"]


def released_table(
    run: Run,
    images: ImageSet,
    source: Sequence[SourceTask],
    target: Sequence[TargetTask],
    collective: Callable[[], Collective],
) -> pd.DataFrame:
    """One row per variant (released.csv): defects ("none", a defect, "all"); scratch, learngene, learngene_ewc: mean accuracy in
    percent; gain, gain_low, gain_high: learngene over scratch, paired, 95 % over tasks; chosen: the inherited layers; closed: the
    collective's average accuracy after the last task; n_tasks; note: what was not finite. An individual whose training is not
    finite counts at chance; where the collective's is not, or no layers can be chosen, there are no individuals.

    collective: gives the run's own, trained or loaded. Raises OutOfTime (pieces are kept) after `minutes`.
    """
    given = {
        "list of source tasks": inputs.of_tasks(source),
        "list of target tasks": inputs.of_tasks(target),
        "set of images": images.fingerprint,
    }
    if run.done("released", given):
        say("released: found in the run folder, loaded")
        return _read(run)
    comparison = Comparison(run, images, source, target, collective, Pieces(run, "released", given))
    with run.computing("released", ["released.csv"], given):
        comparison.train()
        rows = [comparison.row(name) for name in VARIANTS]
        run.write_table("released.csv", pd.DataFrame(rows)[COLUMNS])
        comparison.kept.clear()
    say(f"released: {len(DEFECTS)} defects, each alone and all together, on {len(target)} target tasks, saved")
    return _read(run)


def _read(run: Run) -> pd.DataFrame:
    table = run.read_table("released.csv")
    return table.assign(**{name: table[name].astype(object).fillna("") for name in ("chosen", "note")})


def released_text(table: pd.DataFrame) -> str:
    """The table for a terminal, and below it what was not finite."""
    shown = table.drop(columns="note").to_string(index=False, float_format="{:.1f}".format, na_rep="-")
    return "\n".join([shown, *(f"{row.defects}: {row.note}" for row in table.itertuples() if row.note)])


class Comparison:
    """The variants of one run, and what they share."""

    def __init__(
        self,
        run: Run,
        images: ImageSet,
        source: Sequence[SourceTask],
        target: Sequence[TargetTask],
        collective: Callable[[], Collective],
        kept: Pieces,
    ):
        self.run, self.images, self.source, self.target = run, images, source, target
        # the run's own; without defects it has to be there
        self.mine = _attempt(collective) if run.cfg.defects else (collective(), "")
        self.kept = kept
        own = {"criterion": "released_relative", "layers": (), "n_inits": 1, "ewc_form": "proximal"}
        self.cfg = run.cfg.replace(**own, shots=run.cfg.shots[:1])
        self.genes: dict[str, Learngene] = {}
        self.trained: dict[tuple[str, str], list[dict]] = {}  # variant, method -> rows

    # collectives ------------------------------------------------------------------------------------------------------
    def train(self) -> None:
        """Train the collectives that are not there yet, as many at a time as the machine has room for, a process each.

        Raises OutOfTime when no more may be begun.
        """
        at_once, own = machine_of(self.run).trainings, self._own()
        left = [name for name in own if not self._known(name)]
        while left:
            if not self.kept.in_time:
                raise self.kept.stopped(len(own) - len(left), len(own))
            now, left = left[:at_once], left[at_once:]
            self.run.progress("released", 0, 1, f"training the collective of {' and '.join(now)}")
            jobs = [(self._config(name).to_dict(), str(self._folder(name))) for name in now]
            apart = len(jobs) > 1
            notes = side_by_side(_train_apart, jobs, len(jobs)) if apart else [self._trained(n)[1] for n in now]
            for name, note in zip(now, notes, strict=True):
                if note:
                    self.kept.put(f"collective_{name}", note)

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
        return (self._folder(name) / "history.csv").exists() or self.kept.get(f"collective_{name}") is not None

    def _trained(self, name: str) -> tuple[Collective | None, str]:
        return _train(self.images, self.source, self._config(name), self._folder(name))

    def collective(self, name: str) -> tuple[Collective | None, str]:
        """The collective of a variant, or None and why there is none."""
        key = _of_collective(VARIANTS[name])
        if key == _of_collective(self.run.cfg.defects):
            return self.mine
        owner = next(n for n, defects in VARIANTS.items() if _of_collective(defects) == key)
        note = self.kept.get(f"collective_{owner}")
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
            gene = self.genes[name] = cut_released(col, cfg)
        except StudyError as error:  # the criterion cannot choose
            return row | {"note": str(error)}
        accuracies, notes = {}, []
        for arm in [arm for arm in arms_of(gene, col, cfg, INDIVIDUALS) if arm.family == "light"]:
            rows = self.trained[name, arm.method] = self._individuals(name, arm, cfg)
            accuracies[arm.method] = pd.Series({r["target_task"]: r["accuracy"] for r in rows}).sort_index()
            failed = [r["note"] for r in rows if r.get("note")]
            if failed:
                notes.append(f"{arm.method}: {len(failed)} of {len(rows)} at chance ({failed[0]})")
        gain = paired_interval(accuracies["learngene"], accuracies["scratch"])
        return row | {
            **{method: accuracy.mean() for method, accuracy in accuracies.items()},
            "gain": gain.estimate,
            "gain_low": gain.low,
            "gain_high": gain.high,
            "chosen": block_of(gene),
            "n_tasks": gain.n,
            "note": "; ".join(notes),
        }

    def _individuals(self, name: str, arm: Arm, cfg: Config) -> list[dict]:
        """The rows of one variant's individuals of one method: one arm at a time, trained or those of "none"."""
        if ("none", arm.method) in self.trained and not self._touched(name, arm):
            return self.trained["none", arm.method]
        gene, n_pieces = self.genes[name], len(chains_of(self.target, cfg))
        place = list(VARIANTS).index(name) * len(INDIVIDUALS) + INDIVIDUALS.index(arm.method)
        options = {"span": (place * n_pieces, len(VARIANTS) * len(INDIVIDUALS) * n_pieces), "kind": Lenient}
        work = stages.individuals(self.run, "released", [arm], self.images, cfg, gene.mean, gene.std, **options)
        pieces = work.pieces(self.target, self.kept, f"{name}_{arm.method}_", curves=False)
        return [row for piece in pieces for row in piece["rows"]]

    def _touched(self, name: str, arm: Arm) -> bool:
        """Whether a variant's individuals of an arm differ from those of "none"."""
        touches, gene, sound = touched(VARIANTS[name]), self.genes[name], self.genes["none"]
        inherits = arm.method != "scratch" and ("collective" in touches or gene.layers != sound.layers)
        return arm.method in touches or inherits or arm.shape != light_shape(sound, self.cfg.n_way, self.cfg)


def _of_collective(defects: tuple[str, ...]) -> tuple[str, ...]:
    """Those among the defects that decide the collective, in the order of `DEFECTS`."""
    return tuple(name for name in DEFECTS if name in defects and "collective" in DEFECTS[name].touches)


def _train(images: ImageSet, source: Sequence[SourceTask], cfg: Config, folder: Path) -> tuple[Collective | None, str]:
    """A collective in a run folder of its own, trained or loaded; or None and why its training is not finite."""
    run = Run.open(cfg, folder)
    if not run.done("collective"):
        say(f"released: training a collective with {', '.join(cfg.defects) or 'no defect'}")
    return _attempt(lambda: stages.trained_collective(run, images, source, train=walk_of(cfg)))


def _attempt(train: Callable[[], Collective]) -> tuple[Collective | None, str]:
    try:
        return train(), ""
    except Diverged as error:
        return None, str(error)


def _train_apart(job: tuple[dict, str]) -> str:
    cfg = Config.from_dict(job[0])
    images = load_images(cfg.data, cfg.data_path, image_size=cfg.image_size, skip_corrupt=cfg.skip_corrupt)
    return _train(images, source_tasks(images, divide(images, cfg), cfg), cfg, Path(job[1]))[1]
