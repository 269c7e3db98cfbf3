"""The verbs of the command line, thin over the functions that the notebooks call.

Rooms are imported when their verb is asked for, so that help and refusals do not wait for torch.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config import Config
from ..errors import StudyError, expanded, say
from ..runs.run import Run, folder_of
from .options import changes_of, check_address, configuration

if TYPE_CHECKING:  # names of annotations only; at run time they would make every refusal slow
    import pandas as pd

    from .chain import Chain


def run(options: argparse.Namespace) -> int:
    """Do what a verb's options ask for; returns the exit status. Raises what its functions raise."""
    return _OTHERS.get(options.verb, _stage)(options)


def _info(options: argparse.Namespace) -> int:
    from ..runs.info import report

    return report(options.run, as_json=options.json)


def _sweep(options: argparse.Namespace) -> int:
    if options.scheduler:
        check_address(options.scheduler)
    from .grid import load_grid
    from .kernels import forking

    grid = load_grid(options.grid, options.preset, changes_of(options))
    from .sweep import report  # torch and dask, which a refusal does not wait for

    with forking(not options.no_fork):
        return report(grid, options.out, workers=options.workers, scheduler=options.scheduler, dry_run=options.dry_run)


def _explore(options: argparse.Namespace) -> int:
    from ..explorer.server import serve

    serve(options.run, demo=options.demo, port=options.port, browser=not options.no_browser)
    return 0


def _bench(options: argparse.Namespace) -> int:
    from .bench import check_rows, run_bench

    check_rows(options.rows)
    out = expanded(options.out).absolute()
    if out.exists() and not out.is_dir():  # said before minutes of measuring
        raise StudyError(f"{out} is a file, and the bench needs a folder; choose another --out")
    if options.gpu:
        from .benchgpu import run_gpu

        run_gpu(out, "cuda" if options.device == "auto" else options.device)
        return 0
    cfg = Config.preset("lecture", data=options.data, data_path=options.data_path, device=options.device)
    run_bench(cfg, out, options.rows, peers=expanded(options.peers).absolute())
    return 0


def _study(options: argparse.Namespace) -> int:
    cfg = configuration(options)
    from ..data.preflight import check_data

    if not (folder_of(cfg, options.out) / "report.html").exists():  # a finished study needs no images
        check_data(cfg)
    from .kernels import forking
    from .whole import check_possible, run_study

    if not (folder_of(cfg, options.out) / "report.html").exists():
        check_possible(cfg)
    with forking(not options.no_fork):
        run_study(cfg, options.out, redo=options.redo)
    return 0


def _stage(options: argparse.Namespace) -> int:
    """A verb that asks the chain for one stage, and says what it found."""
    cfg = configuration(options)
    from ..data.preflight import check_data

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
            if run.done(stage):  # loading needs nothing of the machine: the run may come from another one
                return
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
    from ..analysis.reference import reference_text

    say(reference_text(chain.reference, chain.cfg.data))


def _openworld(chain: Chain) -> None:
    from ..openworld.noticing import open_world_text

    say(open_world_text(chain.openworld))


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
