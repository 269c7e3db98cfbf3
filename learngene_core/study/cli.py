"""The command line: verbs, their options, and the configuration that they describe.

Ctrl+C ends a command with one line and status 130, whatever its threads and notebook kernels are doing.

The first one unwinds as Python does: what is being written is finished or undone, kernels are shut down. A second one, or
`PATIENCE` without an end (an individual in training on a worker takes a minute), leaves at once. Nothing is lost by that:
files are written whole or not at all, and the system frees the lock of a process that is gone.

`learngene ...`: one verb a stage, thin over the same functions that the notebooks call.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from .. import __version__
from ..config import STAGES, Config, nearest, spoken
from ..errors import OutOfTime, StudyError, explained, one_line, say
from ..presets import PRESETS
from ..runs.run import Run
from .chain import Chain

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
SWEEP = "run every point of a parameter grid, on this machine or a cluster, into one table"
EXPLORE = "the layer explorer in a browser: record, criteria, network and atlas of a run"
BENCH = "the speed table: ratios to bare counterparts, measured in one run"
INFO = "what is in a run folder, and whether it is whole"


class Parser(argparse.ArgumentParser):
    """A command line that names the nearest verb, or stage, for one it does not know."""

    def error(self, message: str) -> NoReturn:
        """Usage, the message in one line, and status 2."""
        unknown = re.fullmatch(r"argument .*: invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if unknown:
            known = re.split(r",\s*", unknown[2].replace("'", ""))
            message += nearest(unknown[1], known)
        super().error(message)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="learngene", description="An interactive study of Learngene (Wang et al., AAAI 2022).")
    top.add_argument("--version", action="version", version=f"learngene {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        _add_configuration(sub, "lecture")
        redo = f"compute this stage and all that follow from it again: {', '.join(STAGES)}"
        sub.add_argument("--redo", action="append", default=[], choices=STAGES, metavar="STAGE", help=redo)
        text = (
            "measure how training steps run fastest here first; kept in machine.json (learning rates: the verb `tune`)"
        )
        sub.add_argument("--tune", action="store_true", help=text)
    sweep = verbs.add_parser("sweep", help=SWEEP, description=f"{SWEEP}; `learngene_core/grid.py` describes the file")
    sweep.add_argument("grid", metavar="GRID", help="a grid file, or a ready grid: shots, criteria, growth")
    where = sweep.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, default=0, metavar="N", help="processes on this machine (default: all)")
    where.add_argument("--scheduler", default="", metavar="ADDRESS", help="of a dask scheduler that runs already")
    sweep.add_argument("--dry-run", action="store_true", help="say what it will cost, and stop")
    _add_configuration(sweep, "")
    explore = verbs.add_parser("explore", help=EXPLORE, description=EXPLORE)
    explore.add_argument("run", nargs="*", metavar="RUN", help="run folder; two stand side by side")
    explore.add_argument("--demo", action="store_true", help="a finished lecture run that ships with the package")
    explore.add_argument("--port", type=int, default=0, metavar="N", help="port on this machine (default: a free one)")
    explore.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    bench = verbs.add_parser("bench", help=BENCH, description=BENCH)
    bench.add_argument("rows", nargs="*", metavar="ROW", help="rows, by the beginning of their names (default: all)")
    bench.add_argument("--out", default="bench", metavar="FOLDER", help="for bench.csv and bench.md (default: bench)")
    bench.add_argument("--data", default="glyphs", metavar="NAME", help="images of the epochs (default: glyphs)")
    bench.add_argument("--data-path", default="", metavar="FOLDER", help="where they are")
    bench.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or cuda")
    info = verbs.add_parser("info", help=INFO, description=INFO)
    info.add_argument("run", metavar="RUN")
    info.add_argument("--json", action="store_true", help="machine-readable")
    for sub in verbs.choices.values():
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def _add_configuration(sub: argparse.ArgumentParser, preset: str) -> None:
    """Options that describe a configuration. preset: the default ("": the grid's)."""
    text = f"{', '.join(PRESETS)} (default: {preset or 'that of the grid'})"
    sub.add_argument("--preset", default=preset, metavar="NAME", help=text)
    text = "glyphs, cifar100, imagenet100, cub200 or folder (default: the preset's)"
    sub.add_argument("--data", metavar="NAME", help=text)
    text = (
        "folder or zip archive that holds the images; with --data cifar100 also the word 'download', which fetches "
        "CIFAR-100 (169 MB) once; glyphs need none"
    )
    sub.add_argument("--data-path", metavar="FOLDER", help=text)
    text = "run folder (default: runs/<preset>[-<data>][-s<seed>])" if preset else "(default: runs/sweep-<grid>)"
    sub.add_argument("--out", default="", metavar="FOLDER", help=text)
    sub.add_argument("--seed", type=int, metavar="N", help="master seed (default: 0)")
    text = "any parameter, e.g. shots=[10,20]"
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=text)
    sub.add_argument("--deterministic", action="store_true", help="GPUs: equal bits on every call (slower; it is said)")


OTHERWISE = {"preset_name": "--preset", "preset": "--preset", "out": "--out"}  # what --set must not say


def configuration(options: argparse.Namespace) -> Config:
    """The configuration that the options describe.

    Raises ValueError for unknown names, bad values, and a name that is given two values.
    """
    return Config.preset(options.preset, **changes_of(options))


def changes_of(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters that the options name. Raises ValueError for one that is given two values, and for one that has an option
    of its own."""
    given: list[tuple[str, Any]] = []
    for entry in options.set:
        name, equals, text = (part.strip() for part in entry.partition("="))
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, not {entry!r}")
        if name in OTHERWISE:
            raise ValueError(f"--set {name} is not possible; use {OTHERWISE[name]}")
        given.append((name, spoken(name, text)))
    given += [(n, v) for n in ("seed", "data", "data_path") if (v := getattr(options, n)) is not None]
    given += [("deterministic", True)] if options.deterministic else []
    changes: dict[str, Any] = {}
    for name, value in given:
        if changes.setdefault(name, value) != value:
            raise ValueError(f"{name} is given twice, as {changes[name]!r} and as {value!r}; keep one of them")
    return changes


STATUS = 130  # what shells give to a command that was stopped by Ctrl+C
PATIENCE = 10.0  # seconds
TEXT = "learngene: stopped; the same command goes on from the last finished task"


class Stop:
    """Whether Ctrl+C was pressed."""

    def __init__(self) -> None:
        self.asked = False
        self._timer = threading.Timer(PATIENCE, leave)
        self._timer.daemon = True

    def __call__(self, *_: object) -> None:
        """The signal's handler."""
        if self.asked:
            leave()
        self.asked = True
        # the notebook client leaves a task behind, whose whole traceback asyncio would print at the end
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        self._timer.start()
        raise KeyboardInterrupt

    def over(self) -> None:
        """The command has ended by itself."""
        self._timer.cancel()


@contextlib.contextmanager
def watched() -> Iterator[Stop]:
    """Ctrl+C in this block raises KeyboardInterrupt once, and ends the process when it comes again."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield stop
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
        stop.over()


def leave() -> None:
    """End this process and its workers now, with the one line."""
    for child in multiprocessing.active_children():
        child.terminate()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(("\n" if sys.stderr.isatty() else "") + TEXT + "\n")  # a bar's line has no end yet
        sys.stderr.flush()
    os._exit(STATUS)


LATER = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, call again


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 after one line that says what is wrong, 75 where `minutes` are over and
    the same command goes on, 130 after Ctrl+C."""
    options = parser().parse_args(arguments)
    with watched() as stop:
        try:
            return _run(options)
        except KeyboardInterrupt:
            text, status = TEXT, STATUS
        except Exception as error:
            if stop.asked:  # a kernel or a library made an error of its own of it
                text, status = TEXT, STATUS
            elif options.debug:
                raise
            else:
                known = isinstance(error, StudyError | ValueError | OSError) or explained(error)
                more = "" if known else f"{type(error).__name__}: "
                text, status = f"learngene: {more}{one_line(error)}{'' if known else ' (--debug shows where)'}", 1
                status = LATER if isinstance(error, OutOfTime) else status
        print(text, file=sys.stderr)
        return status


def _run(options: argparse.Namespace) -> int:
    if options.verb == "info":
        from ..runs.info import report

        return report(options.run, as_json=options.json)
    if options.verb == "sweep":
        from .grid import load_grid
        from .sweep import report

        grid = load_grid(options.grid, options.preset, changes_of(options))
        return report(grid, options.out, workers=options.workers, scheduler=options.scheduler, dry_run=options.dry_run)
    if options.verb == "explore":
        from ..explorer.server import serve

        serve(options.run, demo=options.demo, port=options.port, browser=not options.no_browser)
        return 0
    if options.verb == "bench":
        from .bench import run_bench

        cfg = Config.preset("lecture", data=options.data, data_path=options.data_path, device=options.device)
        run_bench(cfg, Path(options.out).expanduser().absolute(), options.rows)
        return 0
    cfg = configuration(options)
    if options.verb == "study":
        return _study(cfg, options)
    from ..runs.run import Run

    _check_data(cfg, options.out, unless="config.json")  # a call that finds no images leaves no folder behind
    run = Run.open(cfg, options.out, redo=options.redo)
    _tune_steps(run, options)
    name, stage, describe = _VERBS[options.verb]
    with contextlib.ExitStack() as stack:
        if not run.done(stage):
            stack.enter_context(run.lock())  # over all stages: between two of them nobody else may begin
        chain = _announced(run, stage, stack)
        getattr(chain, name)  # computed or loaded when asked for
    describe(chain)
    say(f"run folder: {chain.run.path}")
    return 0


def _tune_steps(run: Run, options: argparse.Namespace) -> None:
    if options.tune:
        from .steptuning import tune_run

        tune_run(run)


def _check_data(cfg: Config, out: str, *, unless: str) -> None:
    """Look for the images, unless the run folder holds the file that makes this needless."""
    from ..data.images import check_data
    from ..runs.run import folder_of

    if not (folder_of(cfg, out) / unless).exists():
        check_data(cfg)


def _study(cfg: Config, options: argparse.Namespace) -> int:
    from ..runs.run import Run
    from .chain import run_study

    _check_data(cfg, options.out, unless="report.html")  # before a kernel starts; a finished study needs no images
    if options.tune:
        _tune_steps(Run.open(cfg, options.out, redo=options.redo), options)
    run_study(cfg, options.out, redo=tuple(options.redo))
    return 0


def _announced(run: Run, stage: str, stack: contextlib.ExitStack) -> Chain:
    """The chain of a run; what `stage` will cost is said, and its bar begins, once nothing cheap is left to be refused."""
    from .chain import Chain
    from .cost import say_determinism
    from .progress import shown

    class Announced(Chain):
        @functools.cached_property
        def collective(self):  # whatever trains asks for it first, when it has checked what it can
            self.source  # noqa: B018 (too few classes are said before)
            say_determinism(run)
            stack.enter_context(shown(run, stage))
            return super().collective

    return Announced(run)


def _divide(chain: Chain) -> None:

    from ..data.division import describe

    say(describe(chain.division))
    say(
        f"{len(chain.source)} source tasks of {chain.cfg.source_way} base classes, {len(chain.target)} target tasks of "
        f"{chain.cfg.n_way} novel classes"
    )


def _collective(chain: Chain) -> None:
    from ..collective import sequence_summary

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

    from ..analysis.reference import describe

    say(describe(chain.reference, chain.cfg.data))


def _openworld(chain: Chain) -> None:

    from ..openworld.noticing import open_world_text

    say(open_world_text(chain.openworld))


def _atlas(chain: Chain) -> None:
    from ..analysis.claims import summary

    say(summary(chain.verdicts, chain.cfg))


def _released(chain: Chain) -> None:
    from ..analysis.released import describe

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
