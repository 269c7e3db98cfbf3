"""Which block of the atlas a criterion would choose, and what that choice is worth; read from atlas.csv and layer_scores.csv.

`draw_choice` draws one state, static; the same choice under widgets: `layers`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..analysis.blocks import depth_and_size, predicted, recommended
from ..figures.atlas import atlas_map
from ..figures.tables import Block, checked, signed, with_shots
from ..figures.words import criterion_label

ANY = 0  # stands for blocks of any length
CHOOSES, BEST = "chosen by the criterion", "best it could choose"
COLUMNS = ("first", "last", "gain", "gain_low", "gain_high", "parameters", "share", "pseudo_gain", "pseudo_n")


def predictions(atlas: pd.DataFrame, scores: pd.DataFrame) -> dict[str, np.ndarray]:
    """Name -> what it predicts for each row of `atlas`, higher = inherit: criteria, recommended, depth, size.

    atlas: rows of atlas.csv of one number of shots; scores: layer_scores.csv.
    """
    blocks = atlas[["first", "last"]].to_numpy(int)
    found = {str(name): predicted(own, blocks) for name, own in scores.groupby("criterion", sort=False)}
    if atlas["pseudo_gain"].notna().any():
        found["recommended"] = atlas["pseudo_gain"].to_numpy(float)
    depth, size = depth_and_size(atlas).T
    return found | {"depth": depth, "size": size}


def _values(atlas: pd.DataFrame, scores: pd.DataFrame, criterion: str) -> np.ndarray:
    """What one criterion predicts for each row of `atlas`. Raises ValueError for an unknown one."""
    known = predictions(atlas, checked(scores, ("criterion", "layer", "score", "inherit"), "layer_scores.csv"))
    if criterion not in known:
        raise ValueError(f"unknown criterion {criterion!r}; there are {', '.join(known)}")
    return known[criterion]


def choose(
    atlas: pd.DataFrame, values: np.ndarray, criterion: str, length: int, budget: float
) -> tuple[int | None, np.ndarray]:
    """Place of the block that predictions `values` (blocks,) choose, None where they cannot; and the places it could be.

    length: of the block, ANY for all; budget: percent of the parameters. Of equal predictions the deepest is taken. Among
    blocks of any length only those count that no other block of the budget contains, since a mean over layers is always
    largest for a single layer; `recommended` predicts whole blocks and is not restricted.
    """
    size = (atlas["last"] - atlas["first"] + 1).to_numpy(int)
    inside = (atlas["share"].to_numpy(float) <= budget + 1e-9) & ((size == length) | (length == ANY))
    places = np.flatnonzero(inside)
    if criterion == "recommended":
        places = places[np.isfinite(values[places])]
        if not len(places):
            return None, places
        block = recommended(atlas.iloc[places], 100.0)
        return next(k for k in places if _ends(atlas, k) == block), places
    if length == ANY:
        blocks = [_ends(atlas, k) for k in places]
        within = [any(f <= a and b <= e and (f, e) != (a, b) for f, e in blocks) for a, b in blocks]
        places = places[~np.array(within, bool)]
    if not len(places) or not np.isfinite(values).all() or (len(places) > 1 and np.ptp(values[places]) == 0):
        return None, places
    rounded = (values / (np.abs(values).max() or 1.0)).round(12)
    return max(places, key=lambda k: (rounded[k], *_ends(atlas, k)[::-1])), places


def _ends(atlas: pd.DataFrame, place: int) -> Block:
    return int(atlas["first"].iloc[place]), int(atlas["last"].iloc[place])


def choice_text(atlas: pd.DataFrame, values: np.ndarray, place: int, places: np.ndarray) -> str:
    """The line of the explorer: predicted rank, real rank and gain with its 95 % interval, parameters inherited."""
    row, real, known = atlas.iloc[place], atlas["gain"].to_numpy(float), int(np.isfinite(values).sum())
    limits = "" if np.isnan(row["gain_low"]) else f" [{signed(row['gain_low'])}, {signed(row['gain_high'])}]"
    return (
        f"predicted rank {_rank(values, values[place])} of {known}, real rank {_rank(real, real[place])} of {len(real)} "
        f"({_rank(real[places], real[place])} of the {len(places)} it could choose)\n"
        f"real gain {signed(row['gain'])}{limits} points; {row['parameters']:,.0f} parameters inherited ({row['share']:.1f} %)"
    )


def _rank(values: np.ndarray, own: float) -> int:
    """1 + the number of values above `own`."""
    return 1 + int((values > own).sum())


def draw_choice(
    atlas: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    criterion: str = "released",
    length: int = 3,
    budget: float = 100.0,
    gains: str = "novel",
    shots: int | None = None,
) -> Axes:
    """The map with the block that a criterion chooses and the best that it could have chosen, and a line about the choice.

    atlas: atlas.csv; scores: layer_scores.csv; criterion: one of them, "recommended", "depth" or "size". length: of the block,
    0 for any; budget: percent of the parameters. gains: the map's, as in `atlas_map`; what is said of the choice are always
    the gains on target tasks. Where nothing can be chosen the line says why. Raises ValueError for an unknown criterion.
    """
    table = with_shots(checked(atlas, COLUMNS, "atlas.csv"), shots)
    table = checked(table[table["gain"].notna()].reset_index(drop=True), (), "atlas.csv, target tasks,")
    values = _values(table, scores, criterion)
    place, places = choose(table, values, criterion, length, budget)
    marks, words = {}, _no_choice(criterion, values, places)
    if place is not None:
        best = places[int(table["gain"].to_numpy(float)[places].argmax())]
        marks = {CHOOSES: _ends(table, place), BEST: _ends(table, best)}
        words = f"{criterion_label(criterion)}: {choice_text(table, values, place, places)}"
    room = {"left": 0.01, "right": 0.93, "bottom": 0.01, "top": 0.8}  # fixed places are drawn faster than a solver's
    figure, ax = plt.subplots(figsize=(10, 7.8), layout="none", gridspec_kw=room)
    atlas_map(table, gains=gains, marks=marks, ax=ax)
    figure.text(0.01, 0.985, words, va="top", fontsize=13.5, linespacing=1.5)
    return ax


def _no_choice(criterion: str, values: np.ndarray, places: np.ndarray) -> str:
    """Why nothing is chosen."""
    if not len(places):
        return "no choice: no block of this length that was computed is within the budget"
    if np.isfinite(values).all():
        return f"no choice: {criterion} is the same for every block"
    return f"no choice: {criterion} has no score for some layer"
