"""The README's tables, listings and examples, filled in from the files that commands made.

    <!-- from notebooks/images/lecture.md -->
    (made: what stands here is replaced)
    <!-- end -->

stands for a file: Markdown as it is, Python and text in a fence, and with `as KIND` a table of results as the README shows
it (`TABLES`); several files are named and separated by commas: `glyphs=a.csv, CIFAR-100=b.csv as claims`. A test holds the
README to `filled`; `python notebooks/tools/frontpage.py` brings it up to date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from learngene_core.analysis.claims import reproduction_table
from learngene_core.analysis.statistics import paired_table
from learngene_core.errors import StudyError, atomic, say
from learngene_core.figures.words import OPEN_SCORE_LABELS
from learngene_core.study.summary import summary_rows

BLOCK = re.compile(r"<!-- from (?P<files>[^>]*?)(?: as (?P<kind>[a-z_]+))? -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)
METHODS = {"ncm": "nearest class mean", "probe": "ridge probe"}


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def _limits(row: pd.Series, name: str, form: str = ".1f") -> str:
    """ "+1.8 (+0.2 to +3.3)" of the columns name, name_low, name_high."""
    middle, low, high = (row[column] for column in (name, f"{name}_low", f"{name}_high"))
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def results_table(found: Mapping[str, pd.DataFrame]) -> str:
    """results.csv: every family and method with accuracy, paired gain, intervals and numbers of tasks."""
    header, *rows = summary_rows(paired_table(_only(found)))
    return _rows(header, rows)


def claims_table(found: Mapping[str, pd.DataFrame]) -> str:
    """One or several claims.csv by the name of their run: a row per claim, a column per run."""
    return reproduction_table(found)


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
        found[name or Path(path).stem] = root / path
        if not (root / path).is_file():
            raise StudyError(f"a block of the README names {path}, which does not exist")
    return found


def rendered(match: re.Match[str], root: Path) -> str:
    """What a block stands for. Raises StudyError for a file that is missing, or a kind that is not there."""
    files, kind = files_of(match, root), match["kind"]
    if kind is None and len(files) == 1:
        (path,) = files.values()
        text = path.read_text(encoding="utf-8").strip()
        fence = {".py": "python", ".txt": "text"}.get(path.suffix)
        if fence or path.suffix == ".md":
            return f"```{fence}\n{text}\n```" if fence else text
    if kind not in TABLES:
        raise StudyError(
            f"a block of the README ends with 'as KIND', and KIND is one of {', '.join(TABLES)}; not {kind}"
        )
    options = {"dtype": str, "keep_default_na": False} if kind == "plain" else {}
    return TABLES[kind]({name: pd.read_csv(path, **options) for name, path in files.items()})


def filled(text: str, root: Path) -> str:
    """A page with every block made anew from its files, which are relative to `root`."""

    def fill(match: re.Match[str]) -> str:
        head = match[0].partition("\n")[0]
        return f"{head}\n{rendered(match, root)}\n<!-- end -->"

    return BLOCK.sub(fill, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python notebooks/tools/frontpage.py [README.md]`: fill its blocks in; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    page = Path(given[0] if given else "README.md").absolute()
    try:
        before = page.read_text(encoding="utf-8")
        after = filled(before, page.parent)
    except (StudyError, OSError, KeyError, ValueError) as error:
        print(f"frontpage: {error}", file=sys.stderr)
        return 1
    if after != before:
        with atomic(page) as temporary:
            temporary.write_text(after, encoding="utf-8")
    say(
        f"{page.name}: {len(BLOCK.findall(after))} blocks, "
        + ("brought up to date" if after != before else "up to date")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
