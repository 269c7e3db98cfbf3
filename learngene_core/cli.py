"""`learngene ...`: one verb a stage, thin over the same functions that the notebooks call."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import interrupt
from .config import Config
from .files import OutOfTime, StudyError, say
from .options import changes_of, configuration, parser
from .troubles import explained, one_line

if TYPE_CHECKING:
    import pandas as pd

    from .runs import Run
    from .study import Chain

LATER = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, call again


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
                known = isinstance(error, StudyError | ValueError | OSError) or explained(error)
                more = "" if known else f"{type(error).__name__}: "
                text, status = f"learngene: {more}{one_line(error)}{'' if known else ' (--debug shows where)'}", 1
                status = LATER if isinstance(error, OutOfTime) else status
        print(text, file=sys.stderr)
        return status


def _run(options: argparse.Namespace) -> int:
    if options.verb == "info":
        from .info import report

        return report(options.run, as_json=options.json)
    if options.verb == "sweep":
        from .grid import load_grid
        from .sweep import report

        grid = load_grid(options.grid, options.preset, changes_of(options))
        return report(grid, options.out, workers=options.workers, scheduler=options.scheduler, dry_run=options.dry_run)
    if options.verb == "explore":
        from .explorerserver import serve

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
    from .runs import Run

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
    from .preflight import check_data
    from .runs import folder_of

    if not (folder_of(cfg, out) / unless).exists():
        check_data(cfg)


def _study(cfg: Config, options: argparse.Namespace) -> int:
    from .runs import Run
    from .study import run_study

    _check_data(cfg, options.out, unless="report.html")  # before a kernel starts; a finished study needs no images
    if options.tune:
        _tune_steps(Run.open(cfg, options.out, redo=options.redo), options)
    run_study(cfg, options.out, redo=tuple(options.redo))
    return 0


def _announced(run: Run, stage: str, stack: contextlib.ExitStack) -> Chain:
    """The chain of a run; what `stage` will cost is said, and its bar begins, once nothing cheap is left to be refused."""
    from .cost import say_determinism
    from .progress import shown
    from .study import Chain

    class Announced(Chain):
        @functools.cached_property
        def collective(self):  # whatever trains asks for it first, when it has checked what it can
            self.source  # noqa: B018 (too few classes are said before)
            say_determinism(run)
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
