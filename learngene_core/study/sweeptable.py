"""The tables of a sweep: every point's rows in one file, and what several sweeps and runs say together, across seeds.

Paired questions across seeds: how much a gain changes along an axis, as differences within each seed. No torch.

Equal seeds have the division, the target tasks, their support and query images and the initial weights in common. So two
places of an axis are compared within a seed, and the interval is that of the differences over seeds: two intervals of the
places themselves may overlap although every seed agrees about the difference.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..analysis.statistics import Interval, hierarchical_interval, mean_interval, unit_means
from ..config import FIELDS, Config
from ..data.division import FOLDER as MANIFESTS
from ..errors import StudyError, atomic, expanded, read_json
from ..runs import tables
from ..runs.bookkeeping import configuration
from .grid import WHERE, Grid, Point, plain

LEVELS = ("collective", "target_seed", "target_task")  # nested units, from the top: seeds, draws of tasks, tasks
# what an interval over seeds speaks for: a seed draws more than the ancestor anew
OVER_SEEDS = {
    "drawn": "over seeds: ancestor, division and tasks are drawn anew",
    "fixed": "over seeds: ancestor and tasks are drawn anew, the division is fixed",
    "": "over seeds: ancestor, tasks and (unless the images bring one) division are drawn anew",
}
WHAT = ("family", "method")  # what is compared
INDIVIDUALS = dict.fromkeys((*WHAT, "inherited"), tables.WORDS)
INDIVIDUALS |= dict.fromkeys(("shots", "target_task", "init", "accuracy"), tables.NUMBERS)
AXES = ("shots", "n_source_tasks", "inherited")  # what accuracy is drawn over
CHOICE = ("criterion", "threshold", "sign", "n_blocks", "layers")  # how the learngene is chosen


# writing --------------------------------------------------------------------------------------------------------------
def write_table(grid: Grid, points: Sequence[Point], folder: Path) -> pd.DataFrame:
    """Write `sweep.csv` (and `sweep.parquet` where pyarrow is installed) into `folder`; returns the table.

    One row per row of the points' table, in the grid's order: point, the varied parameters, then the table's own columns. A
    parameter whose name the table has too (a run with several `shots` has rows for each) becomes `set_<name>`.
    """
    parts = []
    for point in points:
        rows = read_csv(folder / point.name / grid.table)
        about = {f"set_{n}" if n in rows else n: plain(value) for n, value in point.values.items()}
        parts.append(pd.concat([pd.DataFrame({"point": point.name, **about}, index=rows.index), rows], axis=1))
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["point", *grid.varied])
    with atomic(folder / "sweep.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    if importlib.util.find_spec("pyarrow"):
        with atomic(folder / "sweep.parquet") as temporary:
            table.to_parquet(temporary, index=False)
    return table


def read_csv(path: Path) -> pd.DataFrame:
    """The table in a file, with the columns that others read of it. Raises StudyError when it is missing or damaged."""
    try:
        return tables.read_table(path)
    except FileNotFoundError:
        raise StudyError(f"{path} does not exist; run what makes it first") from None
    except ValueError as error:  # of pandas all parsing errors are ValueErrors
        raise StudyError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None


# reading --------------------------------------------------------------------------------------------------------------
def read_sources(sources: Sequence[str | Path]) -> pd.DataFrame:
    """The individuals of any number of sweeps and run folders, one row each.

    Columns: those of results.csv; run (a number per run folder) and point (its name); collective (the seed: of the ancestor,
    of target tasks and of a division that is drawn), target_seed, n_source_tasks; division ("drawn" with the seed, "fixed", or
    "": it hangs on the images); and in words the other parameters that differ between the rows: choice (those of CHOICE)
    and setting (all others). Raises StudyError for a folder that is neither a sweep nor a run, or has no individuals.
    """
    runs = [run for source in sources for run in _runs_of(expanded(source))]
    if not runs:
        raise StudyError("there is nothing to read: no source holds a finished point")
    differ = _differing([cfg for _, cfg, _ in runs])
    parts = []
    for number, (name, cfg, rows) in enumerate(runs):
        about = {"run": number, "point": name, "collective": cfg.seed, "target_seed": cfg.target_seed}
        about |= {"n_source_tasks": cfg.n_source_tasks, "division": _division(cfg)}
        about["choice"] = _words(cfg, [n for n in differ if n in CHOICE])
        about["setting"] = _words(cfg, [n for n in differ if n not in CHOICE])
        parts.append(rows.assign(**about))
    return pd.concat(parts, ignore_index=True)


def overview(rows: pd.DataFrame) -> pd.DataFrame:
    """What `read_sources` found, a row per setting and choice: runs, seeds, draws of target tasks, shots, individuals."""
    shots = (
        rows.groupby(["setting", "choice"], sort=False)["shots"].unique().map(lambda s: "+".join(map(str, sorted(s))))
    )
    counts = rows.groupby(["setting", "choice"], sort=False).agg(
        runs=("run", "nunique"),
        seeds=("collective", "nunique"),
        target_draws=("target_seed", "nunique"),
        individuals=("accuracy", "size"),
    )
    return counts.assign(shots=shots).reset_index()


def save_report(parts: Mapping[str, Sequence[pd.DataFrame]], folder: Path) -> pd.DataFrame:
    """Write tables of `across_seeds`, by the name of their value, into one `across_seeds.csv`; returns it.

    Columns: value, axis, at (the value on the axis), then those of `across_seeds`.
    """
    found = []
    for value, some in parts.items():
        for table in some:
            axis = next(name for name in AXES if name in table)
            found.append(table.rename(columns={axis: "at"}).assign(value=value, axis=axis))
    columns = ["value", "axis", "at", "line", *WHAT, "estimate", "low", "high", "n", "scope", "n_rows"]
    joined = pd.concat(found, ignore_index=True)[columns]
    with atomic(folder / "across_seeds.csv") as temporary:
        joined.to_csv(temporary, index=False, lineterminator="\n")
    return joined


def _division(cfg: Config) -> str:
    """Whether the class division is "drawn" with the seed or "fixed"; "": that hangs on the images in a folder."""
    if cfg.split == "seed":
        return "drawn"
    if cfg.split or (MANIFESTS / f"{cfg.data}.json").is_file():
        return "fixed"
    return "" if cfg.data == "folder" else "drawn"


def _words(cfg: Config, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {plain(getattr(cfg, name))}" for name in names)


def _runs_of(folder: Path) -> list[tuple[str, Config, pd.DataFrame]]:
    """Name, configuration and individuals of the runs in a folder: itself, or the points of a sweep."""
    if (folder / "sweep.json").is_file():
        rows = dict(list(read_csv(folder / "sweep.csv").groupby("point")))
        points = read_json(folder / "sweep.json")
        try:
            given = {name: entry["parameters"] for name, entry in points["points"].items() if name in rows}
            found = [(name, _config(parameters), rows[name]) for name, parameters in given.items()]
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise StudyError(f"{folder / 'sweep.json'} is not what a sweep writes: {error}") from None
    elif (folder / "config.json").is_file():
        found = [(folder.name, configuration(folder), read_csv(folder / "results.csv"))]
    else:
        raise StudyError(f"{folder} is neither the folder of a sweep nor a run folder")
    for name, _, rows in found:
        try:
            tables.check_columns(rows, INDIVIDUALS)
        except ValueError as error:
            raise StudyError(f"{folder}: {name} has no table of individuals: {error}") from None
    return found


def _config(parameters: dict[str, object]) -> Config:
    given = dict(parameters)
    return Config.preset(given.pop("preset"), **given)


def _differing(configs: Sequence[Config]) -> list[str]:
    """Names of the parameters that decide results and differ, but for those that the rows tell apart themselves.

    Those of WHERE are among them: other images are another data set, whatever else is equal.
    """
    own = {"seed", "target_seed", "n_source_tasks", "shots", "methods"}
    names = [n for n, f in FIELDS.items() if (f.metadata["stage"] or n in WHERE) and n not in own]
    return [n for n in names if len({str(getattr(cfg, n)) for cfg in configs}) > 1]


# comparing ------------------------------------------------------------------------------------------------------------
def paired_gains(rows: pd.DataFrame, reference: str = "scratch") -> pd.DataFrame:
    """The rows that have a partner of method `reference`, with `gain`: accuracy minus that of the partner, in points.

    Partners are of the same run, family, block (a light shape), shots, target task and initial weights: same ancestor, images
    and batches.
    """
    keys = ["run", "family", *(["block"] if "block" in rows else []), "shots", "target_task", "init"]
    base = rows.loc[rows["method"] == reference, [*keys, "accuracy"]].rename(columns={"accuracy": "reference"})
    both = rows[rows["method"] != reference].merge(base, on=keys, how="inner", validate="many_to_one")
    return both.assign(gain=both["accuracy"] - both["reference"])


def across_seeds(rows: pd.DataFrame, axis: str, value: str) -> pd.DataFrame:
    """Mean of `value` with its 95 % interval for every line (what differs beside the axis, in words), family, method and
    value of `axis` (one of AXES).

    The interval is over the topmost unit that was drawn more than once (see `interval_over`). The same individual from two
    sources counts once. On the axis `inherited`, a block is a block, however it was chosen.
    Columns: line, family, method, `axis`; estimate, low, high in the unit of `value`; n (units), scope (what the interval
    speaks for), n_rows. Raises ValueError for an unknown axis.
    """
    if axis not in AXES:
        raise ValueError(f"unknown axis {axis!r}; there are {', '.join(AXES)}")
    keys = ["line", *WHAT, axis]
    rows = rows.assign(line=lines(rows, axis)).drop_duplicates(["line", *WHAT, *AXES, *LEVELS, "init", value])
    found = []
    for names, part in rows.groupby(keys, sort=False):
        interval = interval_over(part, value)
        limits = {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
        about = {"n": interval.n, "scope": interval.scope, "n_rows": len(part)}
        found.append({**dict(zip(keys, names, strict=True)), **limits, **about})
    return pd.DataFrame(found, columns=[*keys, "estimate", "low", "high", "n", "scope", "n_rows"])


def interval_over(rows: pd.DataFrame, value: str) -> Interval:
    """Mean of `value` with its 95 % interval over the topmost unit that was drawn more than once: seeds, else draws of target
    tasks, else target tasks (see `statistics.hierarchical_interval`). Its scope says what a seed has drawn anew (OVER_SEEDS).
    """
    interval = hierarchical_interval(rows, LEVELS, value)
    if rows["collective"].nunique() > 1:
        kinds = set(rows["division"])
        return replace(interval, scope=OVER_SEEDS[kinds.pop() if len(kinds) == 1 else ""])
    return replace(interval, scope=interval.scope.replace("one collective", "one seed"))


def lines(rows: pd.DataFrame, axis: str) -> pd.Series:
    """What must not be averaged on an axis, in words, for each row: settings, the other numbers, and (but on the axis of
    blocks) how to choose."""
    columns = [c for c in ("setting", "choice") if c != axis and (c, axis) != ("choice", "inherited")]
    text = [rows[c] for c in columns if rows[c].nunique() > 1]
    text += [c + " " + rows[c].astype(str) for c in ("shots", "n_source_tasks") if c != axis and rows[c].nunique() > 1]
    return text[0].str.cat(text[1:], sep=", ") if text else pd.Series("", index=rows.index)


ALONG = (*AXES, "method", "choice", "setting")
COLUMNS = ("place", "difference", "low", "high", "n_seeds")
ONE_SEED = "one seed: no interval can be had"


def contrasts(rows: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Difference of each place on `axis` (one of ALONG) to the first place, within a seed, with a 95 % t interval over seeds.

    rows: individuals as `sweeptable.read_sources` gives them. What differs is the paired gain over scratch, or the accuracy in
    families without scratch. A seed counts where it has both places, by the target tasks that both have; tasks, and draws of
    tasks, are averaged within it. Numbers stand in order, blocks in that of the layers, all else as it appears in the rows.
    Columns: line (what is equal at both places, in words), family, method ("" on the axis `method`); value ("gain" or
    "accuracy"), first (the place compared with), place, difference, low, high (points), n_seeds, note (why limits are missing).
    Raises ValueError for an unknown axis.
    """
    if axis not in ALONG:
        raise ValueError(f"unknown axis {axis!r}; there are {', '.join(ALONG)}")
    keys = ["line", *(name for name in WHAT if name != axis)]
    columns = ["line", *WHAT, "value", "first", *COLUMNS, "note"]
    found = []
    for value, table in _values(rows).items():
        table = table.assign(line=lines(table, axis)) if len(table) else table.assign(line="")
        table = table.drop_duplicates(["line", *WHAT, axis, *LEVELS, "init", value])
        for names, part in table.groupby(keys, sort=False):
            about = {"method": "", **dict(zip(keys, names, strict=True)), "value": value}
            found += [{**about, **row} for row in _to_first(part, axis, value)]
    return pd.DataFrame(found, columns=columns).astype({**dict.fromkeys(COLUMNS[1:4], float), "n_seeds": int})


def _values(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What is compared: paired gains, and accuracies of families that have no scratch."""
    started = set(rows.loc[rows["method"] == "scratch", "family"])
    return {"gain": paired_gains(rows), "accuracy": rows[~rows["family"].isin(started)]}


def _to_first(part: pd.DataFrame, axis: str, value: str) -> list[dict[str, Any]]:
    """A row per place after the first that shares a seed with it."""
    tasks = part.groupby([axis, *LEVELS])[value].mean()
    first, *others = sorted(dict.fromkeys(part[axis]), key=_order) if axis in AXES else dict.fromkeys(part[axis])
    found = []
    for place in others:
        both = pd.concat([tasks[first], tasks[place]], axis=1, join="inner", keys=["first", "place"])
        if both.empty:
            continue
        interval = _over_seeds((both["place"] - both["first"]).rename("difference").reset_index())
        limits = (interval.estimate, interval.low, interval.high, interval.n)
        about = dict(zip(COLUMNS, (place, *limits), strict=True))
        found.append({"first": first, **about, "note": ONE_SEED if interval.n == 1 else ""})
    return found


def _over_seeds(differences: pd.DataFrame) -> Interval:
    """t over seeds, also where there is one only: its tasks or their draws do not stand in for seeds."""
    means = [unit_means(part, LEVELS[1:], "difference")[0].mean() for _, part in differences.groupby(LEVELS[0])]
    return mean_interval(means)


def _order(value: Any) -> Any:
    """Numbers as they are, blocks by their layers."""
    return [int(n) for n in re.findall(r"\d+", value)] if isinstance(value, str) else value
