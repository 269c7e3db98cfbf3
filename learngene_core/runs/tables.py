"""The tables of runs and sweeps: which columns others read of them, and the one reader that checks that they are there.

A table may hold more columns than are listed here. A table that is not listed (a stranger's, `timings.csv` of an older version)
is read as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

WORDS, NUMBERS, TRUTHS = "words", "numbers", "truths"
NOTHING = (
    "",
    "nan",
    "NaN",
    "NA",
)  # how a cell without a value is written; among words it is a word (classes are called so)


def _columns(*, words: str = "", numbers: str = "", truths: str = "") -> dict[str, str]:
    return {
        name: kind for names, kind in ((words, WORDS), (numbers, NUMBERS), (truths, TRUTHS)) for name in names.split()
    }


_SCORES = _columns(words="criterion layer inherit cost", numbers="score null null_sd z")
_OPEN = _columns(
    words="score head", numbers="task auroc auroc_low auroc_high aupr fpr95 oscr closed_accuracy n_known n_unknown"
)
_CELLS = _columns(numbers="first last shots target_task init accuracy")

COLUMNS: dict[str, dict[str, str]] = {
    "history.csv": _columns(words="phase", numbers="task epoch on_task loss accuracy accuracy_all_seen penalty"),
    "scores.csv": _SCORES,
    "layer_scores.csv": _SCORES,
    "results.csv": _columns(
        words="family method inherited", numbers="shots target_task init accuracy final_loss rate inherited_parameters"
    ),
    "curves.csv": _columns(words="family method", numbers="shots epoch loss loss_sd accuracy n_tasks"),
    "tuning.csv": _columns(words="family method", numbers="rate ewc accuracy", truths="best"),
    "openworld.csv": _OPEN,
    "openworld_heads.csv": _OPEN,
    "openworld_images.csv": _columns(words="part class_name", numbers="image"),
    "openworld_learning.csv": _columns(words="method", numbers="old_accuracy new_accuracy harmonic_accuracy"),
    "openworld_blocks.csv": _columns(words="layer method", numbers="relative_change angle"),
    "atlas_cells.csv": _columns(words="group") | _CELLS,
    "atlas.csv": _columns(
        words="block", numbers="first last shots gain gain_low gain_high n_tasks accuracy parameters share"
    ),
    "selection.csv": _columns(words="criterion scope", numbers="shots spearman first last chosen_gain regret n_tasks"),
    "controls.csv": _columns(words="family block method") | _CELLS,
    "claims.csv": _columns(words="claim verdict scope", numbers="estimate low high n"),
    "reference.csv": _columns(
        words="group block method", numbers="shots accuracy accuracy_low accuracy_high n_episodes", truths="chosen"
    ),
    "released.csv": _columns(
        words="defects chosen note", numbers="scratch learngene learngene_ewc gain gain_low gain_high closed n_tasks"
    ),
    "theory.csv": _columns(words="features", numbers="shots m bound gibbs_error head_error n_tasks"),
    "theory_bounds.csv": _columns(words="block", numbers="target_task shots m bound gibbs_error head_error"),
    "theory_simulation.csv": _columns(words="space", numbers="m t risk gain n_repetitions"),
    "sweep.csv": _columns(words="point"),
    "timings.csv": _columns(words="kind name", numbers="seconds"),
}


FILLED = ("history.csv", "scores.csv", "results.csv", "atlas_cells.csv")  # tables that no run leaves empty


def read_table(path: Path) -> Any:
    """The DataFrame in a CSV of a run or sweep, with at least the columns that COLUMNS lists for a file of its name.

    Raises FileNotFoundError, and ValueError that says what is wrong with it.
    """
    import pandas  # not at the top: a run is opened, locked and noted without it

    wanted = COLUMNS.get(path.name, {})
    try:
        there = pandas.read_csv(path, nrows=0).columns
        _check_names(wanted, there)
        words = {name: str for name, kind in wanted.items() if kind == WORDS}
        nothing = {name: NOTHING for name in there if name not in words}
        table = pandas.read_csv(path, dtype=words, na_values=nothing, keep_default_na=False)
    except OverflowError as error:
        raise ValueError(str(error)) from None
    check_columns(table, wanted)
    if table.empty and path.name in FILLED:
        raise ValueError("it has no rows")
    return table


def check_columns(table: Any, wanted: Mapping[str, str]) -> None:
    """Raise ValueError unless a DataFrame has these columns (name -> WORDS, NUMBERS or TRUTHS), and each holds what it should."""
    import pandas

    _check_names(wanted, table.columns)
    for name, kind in wanted.items():
        column = table[name].dropna()
        is_truth = pandas.api.types.is_bool_dtype(column)
        is_number = pandas.api.types.is_numeric_dtype(column) and not is_truth
        if len(column) and kind != WORDS and not (is_truth if kind == TRUTHS else is_number):
            raise ValueError(f"its column {name!r} does not hold {kind}")


def _check_names(wanted: Iterable[str], there: Collection[str]) -> None:
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(f"it has no column {missing[0]!r}")
