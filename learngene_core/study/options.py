"""The command line's options, and the configuration that they describe. Nothing here is slow to import."""

from __future__ import annotations

import argparse
import re
import socket
import urllib.parse
from typing import Any, NoReturn

from .. import __version__
from ..config import FIELDS, STAGES, Config, nearest
from ..errors import StudyError
from ..presets import PRESETS
from ..runs.parameters import spoken

ANSWER = 5.0  # seconds for something to listen where a scheduler should be

VERBS = {
    "study": "all notebooks in order, headless, with a report and a table at the end",
    "divide": "base, open-world and novel classes; the tasks",
    "collective": "train the collective model over the source tasks",
    "criteria": "score the layers and cut out the learngene",
    "reconstruct": "train and test individual models on the target tasks",
    "reference": "few-shot accuracy of frozen features beside published values",
    "openworld": "tell unknown classes from known ones, then learn them",
    "atlas": "inherit every block, compare the criteria with it, judge the claims",
    "tune": "try learning rates on pseudo-tasks of the open-world classes",
    "released": "what each defect of the released scripts does to accuracy and choice",
}
SWEEP = "run every point of a parameter grid, on this machine or a cluster, into one table"
EXPLORE = "the layer explorer in a browser: record, criteria, network and atlas of a run"
BENCH = "the speed table: ratios to bare counterparts, measured in one run"
NO_FORK = "start every notebook's kernel anew instead of forking it from one that has imported torch (Linux)"
INFO = "what is in a run folder, and whether it is whole"


class Parser(argparse.ArgumentParser):
    """A command line that names the nearest verb, or stage, for one it does not know."""

    def error(self, message: str) -> NoReturn:
        """Usage, the message in one line, and status 2."""
        unknown = re.fullmatch(r"argument .*: invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if unknown:
            known = re.split(r",\s*", unknown[2].replace("'", ""))
            message += nearest(unknown[1], known)
        left = re.match(r"unrecognized arguments: -*([\w-]+)(=| |$)", message)
        if left and (name := left[1].replace("-", "_")) in FIELDS:
            message += f" (did you mean --set {name}=...?)"
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
        if verb == "study":
            sub.add_argument("--no-fork", action="store_true", help=NO_FORK)
    sweep = verbs.add_parser(
        "sweep", help=SWEEP, description=f"{SWEEP}; `learngene_core/study/grid.py` describes the file"
    )
    sweep.add_argument("grid", metavar="GRID", help="a grid file, or a ready grid: shots, blocks, criteria, growth")
    where = sweep.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, default=0, metavar="N", help="processes on this machine (default: all)")
    where.add_argument("--scheduler", default="", metavar="ADDRESS", help="of a dask scheduler that runs already")
    sweep.add_argument("--dry-run", action="store_true", help="say what it will cost, and stop")
    sweep.add_argument("--no-fork", action="store_true", help=NO_FORK)
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
    text = "environment with avalanche-lib and easyfsl; rows beside them are left out without it (default: .peers)"
    bench.add_argument("--peers", default=".peers", metavar="FOLDER", help=text)
    bench.add_argument("--gpu", action="store_true", help="instead: what one GPU does, in ten minutes, into gpu.csv")
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
        if repr(changes.setdefault(name, value)) != repr(value):  # by what a person sees: nan is not equal to itself
            raise ValueError(f"{name} is given twice, as {changes[name]!r} and as {value!r}; keep one of them")
    return changes


def check_address(scheduler: str) -> None:
    """Look whether something listens at the address of a scheduler. Raises StudyError, within seconds, when it cannot be one
    or nobody answers."""
    scheme, _, rest = scheduler.rpartition("://")
    place = urllib.parse.urlsplit(f"//{rest}")
    try:
        host, port = place.hostname, place.port
    except ValueError:  # a port that is no number
        host, port = None, None
    if scheme not in ("", "tcp", "tls") or not host or not port or place.path:
        raise StudyError(
            f"--scheduler takes an address such as tcp://HOST:8786, which `dask scheduler` prints, not {scheduler!r}"
        )
    try:
        socket.create_connection((host, port), timeout=ANSWER).close()
    except OSError as error:
        raise StudyError(f"no scheduler answers at {scheduler!r}: {error.strerror or error}") from None
