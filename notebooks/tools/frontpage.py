"""The tables, listings and examples of the READMEs and RESULTS.md, filled in from the files that commands made.

    <!-- from notebooks/images/lecture.md -->
    (made: what is here is replaced)
    <!-- end -->

is the file itself: Markdown as it is, Python and text in a fence, and with `as KIND` a table of results as the page shows
it (`TABLES`, and `keptpages.KINDS` and `checkpages.KINDS` for many ancestors); several files are named and separated by commas:
`glyphs=a.csv, CIFAR-100=b.csv as claims`; a name with a star is all files that there are. Paths start at the root of the project.
A test compares every page with `filled`; `python notebooks/tools/frontpage.py` brings all of them up to date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import checkpages
import keptpages
import numpy as np
import pandas as pd
from keptpages import markdown as _rows

from learngene_core.analysis.claims import load_claims, reproduction_table
from learngene_core.analysis.statistics import Interval, paired_table, t_quantile, verdict
from learngene_core.errors import StudyError, atomic, say
from learngene_core.figures.words import OPEN_SCORE_LABELS
from learngene_core.study.summary import summary_rows

BLOCK = re.compile(r"<!-- from (?P<files>[^>]*?)(?: as (?P<kind>[a-z_]+))? -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)
PAGES = ("README.md", "learngene_core/README.md", "notebooks/README.md", "notebooks/RESULTS.md", "tests/README.md")
METHODS = {"ncm": "nearest class mean", "probe": "ridge probe"}


def _limits(row: pd.Series, name: str, form: str = ".1f") -> str:
    """ "+1.8 (+0.2 to +3.3)" of the columns name, name_low, name_high."""
    middle, low, high = (row[column] for column in (name, f"{name}_low", f"{name}_high"))
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def results_table(found: Mapping[str, pd.DataFrame]) -> str:
    """results.csv: every family and method with accuracy, paired gain, intervals and numbers of tasks."""
    header, *rows = summary_rows(paired_table(_only(found)))
    return _rows(header, rows)


def claims_table(found: Mapping[str, pd.DataFrame]) -> str:
    """One or several claims.csv by the name of their run: a row per claim, a column per run; words and verdicts of today."""
    return reproduction_table({name: judged_anew(table) for name, table in found.items()})


def judged_anew(table: pd.DataFrame) -> pd.DataFrame:
    """A kept claims.csv with the statements of claims.yaml and the verdicts that its own limits give by the rule of today.

    What a condition beside the limits had left undecided stays undecided.
    """
    claims, rows = {claim.id: claim for claim in load_claims()}, []
    for row in table.to_dict("records"):
        claim = claims[row["claim"]]
        interval = Interval(row["estimate"], row["low"], row["high"], int(row["n"]))
        found = verdict(interval, claim.minimum, above=claim.above) if interval.n else "not run"
        error = (interval.high - interval.low) / 2 / t_quantile(interval.n, 0.95) if interval.n > 1 else np.nan
        inner = abs(interval.estimate) + error * t_quantile(interval.n, 0.90) if interval.n > 1 else np.nan
        if found in ("undecided", "refuted") and claim.equivalence and inner < claim.equivalence:
            found = "equivalent"  # two one-sided tests at 5 %
        if row["verdict"] == "undecided" and found in ("supported", "refuted"):
            found = "undecided"
        rows.append({**row, "verdict": found, "statement": claim.statement, "minimum": claim.minimum})
    return pd.DataFrame(rows)


def released_table(found: Mapping[str, pd.DataFrame]) -> str:
    """released.csv: what each defect does to accuracy, gain and choice."""
    header = ("defect", "scratch", "learngene", "with EWC", "gain over scratch", "chosen")
    rows = []
    for _, row in _only(found).iterrows():
        accuracies = [f"{row[name]:.1f}" for name in ("scratch", "learngene", "learngene_ewc")]
        chosen = str(row["chosen"]).replace("-", " to ")
        rows.append((row["defects"].replace("_", " "), *accuracies, _limits(row, "gain", "+.1f"), chosen))
    return _rows(header, rows)


def openworld_table(found: Mapping[str, pd.DataFrame]) -> str:
    """openworld.csv, or openworld_heads.csv with every head, after the last source task, best AUROC first."""
    table = _only(found)
    last = table[table["task"] == table["task"].max()].sort_values("auroc", ascending=False, kind="stable")
    heads = {"refit": ", refitted head", "own": ", the network's own head"}
    rows = [
        (
            OPEN_SCORE_LABELS.get(r["score"], r["score"]) + heads.get(r["head"], ""),
            _limits(r, "auroc"),
            f"{r['closed_accuracy']:.1f}",
        )
        for _, r in last.iterrows()
    ]
    return _rows(("score", "AUROC %", "closed-set accuracy %"), rows)


def reference_table(found: Mapping[str, pd.DataFrame]) -> str:
    """reference.csv: the quoted accuracies of frozen features on novel classes, a column per number of shots."""
    table = _only(found)
    quoted = table[(table["group"] == "novel") & table["chosen"].astype(bool)]
    shots = sorted(quoted["shots"].unique())
    rows = []
    for method, part in quoted.groupby("method", sort=False):
        by_shots = part.set_index("shots")
        rows.append((METHODS.get(method, method), *(_limits(by_shots.loc[k], "accuracy") for k in shots)))
    return _rows(("frozen features", *(f"{k} shots" if k > 1 else "1 shot" for k in shots)), rows)


WHAT = {"individuals": "individuals in bf16", "all": "ancestor and individuals in bf16"}


def precision_table(found: Mapping[str, pd.DataFrame]) -> str:
    """precision.csv: accuracies and gains in both precisions, the paired difference with its interval, and the verdict."""
    rows = []
    for r in _only(found).itertuples():
        if r.quantity.startswith("seconds"):
            rows.append(
                (WHAT[r.what], r.quantity, f"{r.fp32:.2f}", f"{r.bf16:.2f} ({r.low:.2f} to {r.high:.2f})", "", "")
            )
            continue
        difference = f"{r.difference:+.1f} ({r.low:+.1f} to {r.high:+.1f})"
        equal = "yes" if str(r.equivalent) == "True" else "not shown"
        rows.append((WHAT[r.what], r.quantity, f"{r.fp32:.1f}", f"{r.bf16:.1f}", difference, equal))
    return _rows(("computed", "quantity", "fp32", "bf16", "bf16 minus fp32", "within half a point"), rows)


def plain_table(found: Mapping[str, pd.DataFrame]) -> str:
    """Any table as it stands, its cells as they are written in the file."""
    table = _only(found)
    return _rows(list(table.columns), table.fillna("").astype(str).to_numpy().tolist())


TABLES: dict[str, Callable[[Mapping[str, pd.DataFrame]], str]] = {
    "results": results_table,
    "claims": claims_table,
    "released": released_table,
    "openworld": openworld_table,
    "reference": reference_table,
    "plain": plain_table,
    "precision": precision_table,
    **keptpages.KINDS,
    **checkpages.KINDS,
}


def _only(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    if len(found) != 1:
        raise StudyError(f"this table is made of one file, not {len(found)}")
    return next(iter(found.values()))


def files_of(match: re.Match[str], root: Path) -> dict[str, Path]:
    """The files that a block names: its own name for each (else the file's) -> path. Raises StudyError for a missing one."""
    found = {}
    for part in match["files"].split(","):
        name, _, path = part.strip().rpartition("=")
        there = sorted(root.glob(path)) if "*" in path else [root / path]
        if not there or not all(file.is_file() for file in there):
            raise StudyError(f"a block of the page names {path}, which does not exist")
        found |= {name or file.name.partition(".")[0]: file for file in there}
    return found


def rendered(match: re.Match[str], root: Path) -> str:
    """What a block is made of. Raises StudyError for a file that is missing, or a kind that is not there."""
    files, kind = files_of(match, root), match["kind"]
    if kind is None and len(files) == 1:
        (path,) = files.values()
        text = path.read_text(encoding="utf-8").strip()
        fence = {".py": "python", ".txt": "text"}.get(path.suffix)
        if fence or path.suffix == ".md":
            return f"```{fence}\n{text}\n```" if fence else text
    if kind not in TABLES:
        raise StudyError(f"a block of a page ends with 'as KIND', and KIND is one of {', '.join(TABLES)}; not {kind}")
    return TABLES[kind]({name: _table(path, kind) for name, path in files.items()})


def _table(path: Path, kind: str) -> pd.DataFrame:
    """A table as its kind reads it: cells as they are written, or numbers; where an empty cell is a word, it stays one."""
    if kind in ("plain", "published"):
        as_text = kind == "plain" or path.name.startswith("published")
        return pd.read_csv(path, **({"dtype": str, "keep_default_na": False} if as_text else {}))
    return pd.read_csv(path)


def filled(text: str, root: Path) -> str:
    """A page with every block made anew from its files, which are relative to `root`."""

    def fill(match: re.Match[str]) -> str:
        head = match[0].partition("\n")[0]
        return f"{head}\n{rendered(match, root)}\n<!-- end -->"

    return BLOCK.sub(fill, text)


def root_of(page: Path) -> Path:
    """The folder that a page's paths start at: the project's, or, outside of a project, the page's own."""
    return next((folder for folder in page.parents if (folder / "pyproject.toml").is_file()), page.parent)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python notebooks/tools/frontpage.py [PAGE ...]`: fill the blocks of these pages in, or of all; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    home = Path(__file__).parents[2]
    try:
        for page in [Path(name).absolute() for name in given] or [home / name for name in PAGES]:
            before = page.read_text(encoding="utf-8")
            after = filled(before, root_of(page))
            if after != before:
                with atomic(page) as temporary:
                    temporary.write_text(after, encoding="utf-8")
            state = "brought up to date" if after != before else "up to date"
            say(f"{page.name}: {len(BLOCK.findall(after))} blocks, {state}")
    except (StudyError, OSError, KeyError, ValueError) as error:
        print(f"frontpage: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
