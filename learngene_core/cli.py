"""`learngene ...`: one verb a stage, thin over the same functions that the notebooks call."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, interrupt
from .checking import number
from .config import STAGES, Config
from .files import OutOfTime, StudyError, say
from .presets import PRESETS

if TYPE_CHECKING:
    import pandas as pd

    from .runs import Run
    from .study import Chain

SWEEP = "run every point of a parameter grid, on this machine or a cluster, into one table"
LATER = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, call again
VERBS = {
    "study": "all notebooks in order, headless, with a report and a table at the end",
    "divide": "base, open-world and novel classes; the tasks",
    "collective": "train the collective model over the source tasks",
    "criteria": "score the layers and cut out the learngene",
    "reconstruct": "train and test individual models on the target tasks",
    "reference": "few-shot accuracy of frozen features beside published values",
    "openworld": "tell unknown classes from known ones, then learn them",
    "atlas": "inherit every block, hold the criteria against it, judge the claims",
    "tune": "try learning rates on pseudo-tasks of the open-world classes",
    "released": "what each defect of the released scripts does to accuracy and choice",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 after one line that says what is wrong, 75 where `minutes` are over and
    the same command goes on, 130 after Ctrl+C."""
    options = parser().parse_args(arguments)
    with interrupt.watched() as stop:
        try:
            return _run(options)
        except KeyboardInterrupt:
            text, status = interrupt.TEXT, interrupt.STATUS
        except Exception as error:
            if stop.asked:  # a kernel or a library made an error of its own of it
                text, status = interrupt.TEXT, interrupt.STATUS
            elif options.debug:
                raise
            else:
                known = isinstance(error, StudyError | ValueError | OSError)
                more = "" if known else f"{type(error).__name__}: "
                text, status = f"learngene: {more}{_one_line(error)}{'' if known else ' (--debug shows where)'}", 1
                status = LATER if isinstance(error, OutOfTime) else status
        print(text, file=sys.stderr)
        return status


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="learngene", description="An interactive study of Learngene (Wang et al., AAAI 2022)."
    )
    top.add_argument("--version", action="version", version=f"learngene {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        _add_options(sub, "lecture")
        sub.add_argument("--redo", action="append", default=[], choices=STAGES, help="compute this stage again")
    sweep = verbs.add_parser("sweep", help=SWEEP, description=f"{SWEEP}; `learngene_core/grid.py` describes the file")
    sweep.add_argument("grid", metavar="GRID", help="a grid file, or a ready grid: shots, criteria, growth")
    where = sweep.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, default=0, metavar="N", help="processes on this machine (default: all)")
    where.add_argument("--scheduler", default="", metavar="ADDRESS", help="of a dask scheduler that runs already")
    sweep.add_argument("--dry-run", action="store_true", help="say what it will cost, and stop")
    _add_options(sweep, "")
    info = verbs.add_parser("info", help="what is in a run folder, and whether it is whole")
    info.add_argument("run", metavar="RUN")
    info.add_argument("--json", action="store_true", help="machine-readable")
    info.add_argument("--debug", action="store_true")
    return top


def _add_options(sub: argparse.ArgumentParser, preset: str) -> None:
    """The options that all verbs share. preset: the default ("": the grid's)."""
    text = f"{', '.join(PRESETS)} (default: {preset or 'that of the grid'})"
    sub.add_argument("--preset", default=preset, metavar="NAME", help=text)
    sub.add_argument(
        "--data", metavar="NAME", help="glyphs, cifar100, imagenet100, cub200 or folder (default: the preset's)"
    )
    sub.add_argument(
        "--data-path",
        metavar="FOLDER",
        help="folder or zip archive that holds the images; with --data cifar100 also the word 'download', which fetches "
        "CIFAR-100 (169 MB) once; glyphs need none",
    )
    folder = "run folder (default: runs/<preset>[-<data>][-s<seed>])" if preset else "(default: runs/sweep-<grid>)"
    sub.add_argument("--out", default="", metavar="FOLDER", help=folder)
    sub.add_argument("--seed", type=int, metavar="N", help="master seed (default: 0)")
    sub.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any parameter, e.g. shots=[10,20]"
    )
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")


OTHERWISE = {"preset_name": "--preset", "preset": "--preset", "out": "--out"}  # what --set must not say


def configuration(options: argparse.Namespace) -> Config:
    """The configuration that the options describe.

    Raises ValueError for unknown names, bad values, and a name that is given two values.
    """
    return Config.preset(options.preset, **changes_of(options))


def changes_of(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters that the options name. Raises ValueError for one that is given two values, and for one with another
    option."""
    import yaml

    given: list[tuple[str, Any]] = []
    for entry in options.set:
        name, equals, text = (part.strip() for part in entry.partition("="))
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, not {entry!r}")
        if name in OTHERWISE:
            raise ValueError(f"--set {name} is not possible; use {OTHERWISE[name]}")
        try:
            given.append((name, number(yaml.safe_load(text)) if text else ""))
        except yaml.YAMLError:
            raise ValueError(f"--set {name}: {text!r} is no value") from None
    given += [(n, v) for n in ("seed", "data", "data_path") if (v := getattr(options, n)) is not None]
    changes: dict[str, Any] = {}
    for name, value in given:
        if changes.setdefault(name, value) != value:
            raise ValueError(f"{name} is given twice, as {changes[name]!r} and as {value!r}; keep one of them")
    return changes


def _run(options: argparse.Namespace) -> int:
    if options.verb == "info":
        from .info import report

        return report(options.run, as_json=options.json)
    if options.verb == "sweep":
        from .grid import load_grid
        from .sweep import report

        grid = load_grid(options.grid, options.preset, changes_of(options))
        return report(grid, options.out, workers=options.workers, scheduler=options.scheduler, dry_run=options.dry_run)
    cfg = configuration(options)
    if options.verb == "study":
        return _study(cfg, options)
    from .runs import Run

    run = Run.open(cfg, options.out, redo=options.redo)
    name, stage, describe = _VERBS[options.verb]
    with contextlib.ExitStack() as stack:
        chain = _announced(run, stage, stack)
        getattr(chain, name)  # computed or loaded when asked for
    describe(chain)
    say(f"run folder: {chain.run.path}")
    return 0


def _study(cfg: Config, options: argparse.Namespace) -> int:
    from .preflight import check_data
    from .runs import default_folder
    from .study import run_study

    if not (Path(options.out).expanduser() if options.out else default_folder(cfg)).joinpath("report.html").exists():
        check_data(cfg)  # before a kernel starts; a finished study needs no images
    run_study(cfg, options.out, redo=tuple(options.redo))
    return 0


def _announced(run: Run, stage: str, stack: contextlib.ExitStack) -> Chain:
    """The chain of a run; what `stage` will cost is said, and its bar begins, once nothing cheap is left to be refused."""
    from .progress import shown
    from .study import Chain

    class Announced(Chain):
        @functools.cached_property
        def collective(self):  # whatever trains asks for it first, when it has checked what it can
            self.source  # noqa: B018 (too few classes are said before)
            stack.enter_context(shown(run, stage))
            return super().collective

    return Announced(run)


def _divide(chain: Chain) -> None:
    from .division import describe

    say(describe(chain.division))
    say(
        f"{len(chain.source)} source tasks of {chain.cfg.source_way} base classes, {len(chain.target)} target tasks of "
        f"{chain.cfg.n_way} novel classes"
    )


def _collective(chain: Chain) -> None:
    from .collective import sequence_summary

    say(
        ", ".join(
            f"{name.replace('_', ' ')} {value:.1f}"
            for name, value in sequence_summary(chain.collective.history).items()
        )
    )


def _criteria(chain: Chain) -> None:
    gene = chain.learngene
    table = chain.run.read_table("scores.csv")
    shown = table[table["criterion"] == chain.cfg.criterion]
    say(
        (shown if len(shown) else table)[["layer", "score", "null", "z"]].to_string(
            index=False, float_format="{:.4g}".format
        )
    )
    say(f"learngene: {', '.join(gene.layers)} ({gene.n_parameters:,} parameters)")


def _reconstruct(chain: Chain) -> None:
    from .summary import summary_text

    say(summary_text(chain.run))


def _reference(chain: Chain) -> None:
    from .reference import describe

    say(describe(chain.reference, chain.cfg.data))


def _openworld(chain: Chain) -> None:
    from .openworld import describe

    say(describe(chain.openworld))


def _atlas(chain: Chain) -> None:
    from .verdicts import summary

    say(summary(chain.verdicts, chain.cfg))


def _released(chain: Chain) -> None:
    from .releasedtable import describe

    say(describe(chain.released))


def _tune(chain: Chain) -> None:
    say(chain.tuning.to_string(index=False, float_format="{:.4g}".format))
    say(f"to use the best: {best_settings(chain.tuning)}")


def best_settings(tuning: pd.DataFrame) -> str:
    """The best rates (and EWC strength) of tuning.csv as options to paste behind another command."""
    best = tuning[tuning["best"]].drop_duplicates(["family", "method"])
    rates = ",".join(f"{r.family}:{r.method}={r.rate:g}" for r in best.itertuples())
    strengths = best.loc[best["method"] == "learngene_ewc", "ewc"]
    return f"--set 'individual_rates=[{rates}]'" + "".join(f" --set individual_ewc={s:g}" for s in strengths)


# verb: what it asks the chain for, its stage, what it says
_VERBS: dict[str, tuple[str, str, Callable[[Chain], None]]] = {
    "divide": ("division", "division", _divide),
    "collective": ("collective", "collective", _collective),
    "criteria": ("learngene", "criteria", _criteria),
    "reconstruct": ("results", "reconstruct", _reconstruct),
    "tune": ("tuning", "tune", _tune),
    "reference": ("reference", "reference", _reference),
    "openworld": ("openworld", "openworld", _openworld),
    "atlas": ("verdicts", "claims", _atlas),
    "released": ("released", "released", _released),
}
