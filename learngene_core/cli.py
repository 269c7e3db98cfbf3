"""`learngene ...`: one verb a stage, thin over the same functions that the notebooks call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .config import STAGES, Config
from .files import StudyError, say
from .presets import PRESETS

if TYPE_CHECKING:
    from .study import Chain

VERBS = {
    "study": "all notebooks in order, headless, with a report and a table at the end",
    "divide": "base, open-world and novel classes; the tasks",
    "collective": "train the collective model over the source tasks",
    "criteria": "score the layers and cut out the learngene",
    "reconstruct": "train and test individual models on the target tasks",
    "reference": "few-shot accuracy of frozen features beside published values",
    "openworld": "tell unknown classes from known ones, then learn them",
    "tune": "try learning rates on pseudo-tasks of the open-world classes",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0, or 1 after one line that says what is wrong)."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except Exception as error:
        if options.debug:
            raise
        known = isinstance(error, StudyError | ValueError | OSError)
        text = _one_line(error) if known else f"{type(error).__name__}: {_one_line(error)} (--debug shows where)"
        print(f"learngene: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("learngene: stopped; the same command goes on from the last finished task", file=sys.stderr)
        return 130


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="learngene", description="An interactive study of Learngene (Wang et al., AAAI 2022)."
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        sub.add_argument("--preset", default="lecture", metavar="NAME", help=f"{', '.join(PRESETS)} (default: lecture)")
        sub.add_argument(
            "--data", metavar="NAME", help="glyphs, cifar100, imagenet100, cub200 or folder (default: the preset's)"
        )
        sub.add_argument("--data-path", metavar="FOLDER", help="folder that holds the images")
        sub.add_argument(
            "--out", default="", metavar="FOLDER", help="run folder (default: runs/<preset>[-<data>][-s<seed>])"
        )
        sub.add_argument("--seed", type=int, metavar="N", help="master seed (default: 0)")
        sub.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", help="any parameter, e.g. shots=[10,20]"
        )
        sub.add_argument("--redo", action="append", default=[], choices=STAGES, help="compute this stage again")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    info = verbs.add_parser("info", help="what is in a run folder, and whether it is whole")
    info.add_argument("run", metavar="RUN")
    info.add_argument("--json", action="store_true", help="machine-readable")
    info.add_argument("--debug", action="store_true")
    return top


def configuration(options: argparse.Namespace) -> Config:
    """The configuration that the options describe. Raises ValueError for unknown names and bad values."""
    import yaml

    changes: dict[str, Any] = {}
    for entry in options.set:
        name, equals, text = entry.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, not {entry!r}")
        try:
            changes[name.strip()] = _number(yaml.safe_load(text)) if text else ""
        except yaml.YAMLError:
            raise ValueError(f"--set {name}: {text!r} is no value") from None
    for name in ("seed", "data", "data_path"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    return Config.preset(options.preset, **changes)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 5e-4 as a string; a person means a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return [_number(v) for v in value] if isinstance(value, list) else value


def _run(options: argparse.Namespace) -> int:
    if options.verb == "info":
        from .info import report

        return report(options.run, as_json=options.json)
    cfg = configuration(options)
    if options.verb == "study":
        from .study import run_study

        run_study(cfg, options.out, redo=tuple(options.redo))
        return 0
    from .runs import Run
    from .study import Chain

    chain = Chain(Run.open(cfg, options.out, redo=options.redo))
    _VERBS[options.verb](chain)
    say(f"run folder: {chain.run.path}")
    return 0


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

    chain.results  # noqa: B018 (computed or loaded when asked for)
    say(summary_text(chain.run))


def _reference(chain: Chain) -> None:
    from .reference import describe

    say(describe(chain.reference, chain.cfg.data))


def _openworld(chain: Chain) -> None:
    from .openworld import describe

    say(describe(chain.openworld))


def _tune(chain: Chain) -> None:
    say(chain.tuning.to_string(index=False, float_format="{:.4g}".format))


_VERBS = {
    "divide": _divide,
    "collective": _collective,
    "criteria": _criteria,
    "reconstruct": _reconstruct,
    "tune": _tune,
    "reference": _reference,
    "openworld": _openworld,
}
