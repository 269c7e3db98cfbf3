"""The command line: `learngene VERB`, one verb a stage, thin over the same functions that the notebooks call.

A command ends with status 0, with 75 where `minutes` are over, and else with one line that says what is wrong. Ctrl+C ends it
with one line and status 130, whatever its threads and notebook kernels are doing. The first one unwinds as Python does: what is
being written is finished or undone, kernels are shut down. A second one, or `PATIENCE` without an end (an individual in training
on a worker takes a minute), leaves at once. Nothing is lost by that: files are written whole or not at all, and the system frees
the lock of a process that is gone.

Rooms are imported when their verb is asked for, so that help and refusals do not wait for torch.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from ..config import Config
from ..errors import OutOfTime, StudyError, expanded, explained, one_line, say
from .options import changes_of, configuration, parser

if TYPE_CHECKING:  # names of annotations only; at run time they would make every refusal slow
    import pandas as pd

    from .chain import Chain

STATUS = 130  # what shells give to a command that was stopped by Ctrl+C
LATER = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, call again
UNREAD = 141  # what shells give to a command whose reader (`| head`) has gone
PATIENCE = 10.0  # seconds
TEXT = "learngene: stopped; the same command goes on from the last finished task"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 after one line that says what is wrong, 75 where `minutes` are over and
    the same command goes on, 130 after Ctrl+C, 141 (and no line) where nobody reads what it prints any more."""
    _print_any_character()
    try:
        try:
            return _guarded(arguments)
        finally:
            sys.stdout.flush()  # what fails at the very end of a process can no longer be answered
    except BrokenPipeError:
        if not _unread(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return UNREAD


def _guarded(arguments: Sequence[str] | None) -> int:
    """`main`, but for what happens to its output."""
    options = parser().parse_args(arguments)
    with watched() as stop:
        try:
            return _run(options)
        except KeyboardInterrupt:
            text, status = TEXT, STATUS
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _unread(sys.stdout):
                raise
            if stop.asked:  # a kernel or a library made an error of its own of it
                text, status = TEXT, STATUS
            elif options.debug:
                raise
            else:
                known = isinstance(error, StudyError | ValueError | OSError) or explained(error)
                more = "" if known else f"{type(error).__name__}: "
                text = f"learngene: {more}{one_line(error)}{'' if known else ' (--debug shows where)'}"
                status = LATER if isinstance(error, OutOfTime) else 1
        print(text, file=sys.stderr)
        return status


def _print_any_character() -> None:
    """Class names and paths hold any character; one that the terminal's encoding lacks is printed as its escape, not an error
    after hours of work."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _unread(stream: TextIO) -> bool:
    """Whether the reader of a stream has gone; other pipes may break too (a kernel's, a worker's)."""
    try:
        stream.flush()
    except BrokenPipeError:
        return True
    except (OSError, ValueError):
        return False
    return False


# Ctrl+C ---------------------------------------------------------------------------------------------------------------
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
        # the notebook client leaves a task unfinished, whose whole traceback asyncio would print at the end
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


# verbs ----------------------------------------------------------------------------------------------------------------
def _run(options: argparse.Namespace) -> int:
    return _OTHERS.get(options.verb, _stage)(options)


def _info(options: argparse.Namespace) -> int:
    from ..runs.info import report

    return report(options.run, as_json=options.json)


def _sweep(options: argparse.Namespace) -> int:
    from .cluster import check_address
    from .grid import load_grid

    if options.scheduler:
        check_address(options.scheduler)
    grid = load_grid(options.grid, options.preset, changes_of(options))
    from .sweep import report  # torch and dask, which a refusal does not wait for

    return report(grid, options.out, workers=options.workers, scheduler=options.scheduler, dry_run=options.dry_run)


def _explore(options: argparse.Namespace) -> int:
    from ..explorer.server import serve

    serve(options.run, demo=options.demo, port=options.port, browser=not options.no_browser)
    return 0


def _bench(options: argparse.Namespace) -> int:
    from .bench import run_bench

    cfg = Config.preset("lecture", data=options.data, data_path=options.data_path, device=options.device)
    run_bench(cfg, expanded(options.out).absolute(), options.rows)
    return 0


def _study(options: argparse.Namespace) -> int:
    from ..data.preflight import check_data
    from ..runs.run import folder_of

    cfg = configuration(options)
    if not (folder_of(cfg, options.out) / "report.html").exists():  # a finished study needs no images
        check_data(cfg)
    from .whole import check_possible, run_study

    if not (folder_of(cfg, options.out) / "report.html").exists():
        check_possible(cfg)
    run_study(cfg, options.out, redo=options.redo)
    return 0


def _stage(options: argparse.Namespace) -> int:
    """A verb that asks the chain for one stage, and says what it found."""
    from ..data.preflight import check_data
    from ..runs.run import Run, folder_of

    cfg = configuration(options)
    if not (folder_of(cfg, options.out) / "config.json").exists():  # a call that finds no images leaves no folder
        check_data(cfg)
    from .chain import Chain
    from .estimate import check_memory, say_determinism
    from .progress import shown

    check_memory(cfg)
    run = Run.open(cfg, options.out, redo=options.redo)
    name, stage, describe = _STAGES[options.verb]
    with contextlib.ExitStack() as stack:

        def announce() -> None:
            say_determinism(run)
            stack.enter_context(shown(run, stage))

        if not run.done(stage):
            stack.enter_context(run.lock())  # over all stages: between two of them nobody else may begin
        chain = Chain(run, announce)
        getattr(chain, name)  # computed or loaded when asked for
    describe(chain)
    say(f"run folder: {run.path}")
    return 0


# what a stage's verb says at its end ----------------------------------------------------------------------------------
def _divide(chain: Chain) -> None:
    from ..data.division import describe

    say(describe(chain.division))
    say(
        f"{len(chain.source)} source tasks of {chain.cfg.source_way} base classes, {len(chain.target)} target tasks of "
        f"{chain.cfg.n_way} novel classes"
    )


def _collective(chain: Chain) -> None:
    from ..collective import sequence_summary

    found = sequence_summary(chain.collective.history)
    say(", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in found.items()))


def _criteria(chain: Chain) -> None:
    gene = chain.learngene
    table = chain.run.read_table("scores.csv")
    own = table[table["criterion"] == chain.cfg.criterion]
    columns = (own if len(own) else table)[["layer", "score", "null", "z"]]
    say(columns.to_string(index=False, float_format="{:.4g}".format))
    say(f"learngene: {', '.join(gene.layers)} ({gene.n_parameters:,} parameters)")


def _reconstruct(chain: Chain) -> None:
    from .summary import summary_text

    say(summary_text(chain.run))


def _reference(chain: Chain) -> None:
    from ..analysis.reference import describe

    say(describe(chain.reference, chain.cfg.data))


def _openworld(chain: Chain) -> None:
    from ..openworld.noticing import describe

    say(describe(chain.openworld))


def _atlas(chain: Chain) -> None:
    from ..analysis.claims import summary

    say(summary(chain.verdicts, chain.cfg))


def _released(chain: Chain) -> None:
    from ..analysis.released_table import released_text

    say(released_text(chain.released))


def _tune(chain: Chain) -> None:
    say(chain.tuning.to_string(index=False, float_format="{:.4g}".format))
    say(f"to use the best: {best_settings(chain.tuning)}")


def best_settings(tuning: pd.DataFrame) -> str:
    """The best rates (and EWC strength) of tuning.csv as options to paste after another command."""
    best = tuning[tuning["best"]].drop_duplicates(["family", "method"])
    rates = ",".join(f"{r.family}:{r.method}={r.rate:g}" for r in best.itertuples())
    strengths = best.loc[best["method"] == "learngene_ewc", "ewc"]
    return f"--set 'individual_rates=[{rates}]'" + "".join(f" --set individual_ewc={s:g}" for s in strengths)


_OTHERS: dict[str, Callable[[argparse.Namespace], int]] = {
    "info": _info,
    "sweep": _sweep,
    "explore": _explore,
    "bench": _bench,
    "study": _study,
}
# verb: what it asks the chain for, its stage, what it says
_STAGES: dict[str, tuple[str, str, Callable[[Chain], None]]] = {
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
