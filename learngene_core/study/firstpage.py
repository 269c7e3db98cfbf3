"""The first page of a run's report: what was run, three findings, three figures, and the table of methods in readable names.

Every number is computed from the run's own tables: `results.csv`, the gradient record, `machine.json`, `timings.csv`.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from .. import criteria
from ..analysis.statistics import paired_table
from ..errors import StudyError, duration, read_json
from ..figures.comparison import NO_TRAINING, comparison, share_text, short_block, with_shares
from ..figures.networks import shape_parameters
from ..figures.style import block_text, legend_below, use_style
from ..figures.tables import signed
from ..figures.training import layer_task_heatmap, profile_with_null
from ..figures.words import DATA_LABELS, FAMILY_LABELS, METHOD_LABELS, SCORE_LABELS, criterion_label
from ..record import Record
from ..runs.run import Run
from .pictures import smaller

if TYPE_CHECKING:  # the name of an annotation only; at run time it would bring torch
    from matplotlib.figure import Figure

    from ..learngene import Learngene

INHERITS = ("first", "longest_prefix", "recommended", "full", "random", "learngene_ewc")  # after the learngene itself


@dataclass(frozen=True)
class Choice:
    """The criterion that is shown, its table (`criteria.score`), and what it chooses for the collective and for every
    untrained network of the null; own: whether the learngene was chosen by it."""

    criterion: str
    scores: pd.DataFrame
    block: tuple[str, ...]
    untrained: list[tuple[str, ...]]
    own: bool


def first_page(run: Run, gene: Learngene) -> str:
    """The page as markdown, with the pictures embedded. Reads a run whose stage `reconstruct` is finished.

    Raises StudyError where a table is missing or damaged.
    """
    record = Record.load(run.path)
    paired = methods_table(run)
    choice = choice_of(run, record)
    parts = [about(run, gene, record), "## Findings", "\n".join(f"- {text}" for text in findings(paired, gene, choice))]
    parts += [_figures(run, record, paired, choice), "## All methods", methods_markdown(paired), _READING]
    return "\n\n".join(parts)


_READING = (
    "*How to read the table.* Accuracy is a mean over target tasks, in percent. A gain is accuracy minus that of the "
    "individual's own scratch, on the same tasks, initial weights and batches, in percentage points. Intervals are 95 %, over "
    "the target tasks of this one collective."
)


def methods_table(run: Run) -> pd.DataFrame:
    """`paired_table` of results.csv, with inherited parameters in percent of the collective's blocks as the column `share`."""
    results = run.read_table("results.csv")
    return with_shares(paired_table(results), results, _whole(run))


def _whole(run: Run) -> int:
    """Parameters of all blocks of the finished collective."""
    shape = read_json(_last_task(run) / "about.json")["shape"]
    return shape_parameters(shape, shape["names"])


def _last_task(run: Run) -> Path:
    return run.path / "collective" / f"task_{run.cfg.n_source_tasks:02d}"


# what was run ---------------------------------------------------------------------------------------------------------
def about(run: Run, gene: Learngene, record: Record) -> str:
    """What was run, on which data and machine, in a paragraph of markdown."""
    cfg = run.cfg
    divided = read_json(run.path / "division.json")
    classes = ", ".join(
        f"{len(divided[key])} {word}"
        for key, word in (("base", "base"), ("open_world", "open-world"), ("novel", "novel"))
    )
    data = DATA_LABELS.get(cfg.data, cfg.data)
    shots = " and ".join(map(str, cfg.shots))
    given = gene.notes.get("chosen_by")
    chosen = "by hand" if cfg.layers else f"by the criterion “{criterion_label(str(given or cfg.criterion))}”"
    return (
        f"**What was run.** The preset `{cfg.preset_name}` with seed {cfg.seed}. A collective of {len(record.layers)} blocks "
        f"learned {cfg.n_source_tasks} source tasks. Its learngene is {block_text(gene.layers)} ({gene.n_parameters:,} "
        f"parameters), chosen {chosen}. Individuals learned {cfg.n_target_tasks} target tasks of {cfg.n_way} novel classes, "
        f"{shots} images a class.\n\n"
        f"**Data.** {data[0].upper()}{data[1:]}"
        f": {classes} classes, images of {cfg.image_size} × {cfg.image_size} pixels.\n\n**Machine.** {machine_text(run)}"
    )


def machine_text(run: Run) -> str:
    """The machine of a run and its computing time, as far as they were noted."""
    try:
        noted: dict[str, Any] = read_json(run.path / "machine.json")
    except StudyError:
        noted = {}
    system, device = noted.get("system", "unknown system"), noted.get("device", "?")
    where = f"{system}, {noted.get('processors', '?')} processors, device {device}"
    text = f"{where}, PyTorch {noted.get('torch', '?')}."
    with contextlib.suppress(StudyError):
        times = run.read_table("timings.csv")
        text += f" All stages together took {duration(times.loc[times['kind'] == 'stage', 'seconds'].sum())}."
    return text


# findings -------------------------------------------------------------------------------------------------------------
def choice_of(run: Run, record: Record) -> Choice | None:
    """What the run's criterion says, or the released one where that is not read from the record; None where neither chooses."""
    cfg = run.cfg
    for name in dict.fromkeys((cfg.criterion, "released")):
        with contextlib.suppress(ValueError, KeyError):
            options = criteria.options_of(name, cfg)
            scores = criteria.score(record, name, **options)
            block = criteria.best_block(scores, cfg.n_blocks)
            untrained = criteria.null_choices(record, name, cfg.n_blocks, **options)
            return Choice(name, scores, block, untrained, own=name == cfg.criterion and not cfg.layers)
    return None


def findings(paired: pd.DataFrame, gene: Learngene, choice: Choice | None) -> list[str]:
    """Three findings in words, from the tables alone: the learngene's gain, another part's gain, and the criterion's null.

    paired: `methods_table`, of which the smallest number of shots is told, and the light family where there is one. What a run
    does not hold is left out.
    """
    rows = paired[(paired["family"] != NO_TRAINING) & (paired["shots"] == paired["shots"].min())]
    family = "light" if (rows["family"] == "light").any() else "same_shape"
    rows = rows[rows["family"] == family].drop_duplicates("method").set_index("method")
    told = []
    if "learngene" in rows.index:
        told.append(_gain_text(f"The learngene, {block_text(gene.layers)},", rows.loc["learngene"], family))
    other = next((name for name in INHERITS if name in rows.index), None)
    if other is not None:
        row = rows.loc[other]
        where = f" ({short_block(row['block'])})" if family == "light" and "block" in row else ""
        told.append(_gain_text(f"The arm “{METHOD_LABELS[other]}”{where}", row, family))
    if choice is not None and choice.untrained:
        told.append(null_text(choice))
    return told


def _gain_text(subject: str, row: pd.Series, family: str) -> str:
    """One arm's size and gain in a sentence, and what its interval allows to say."""
    size = (
        f" holds {share_text(row['share'])} of the parameters of the collective's blocks."
        if row["share"] > 0
        else " is inherited."
    )
    who = f"A {FAMILY_LABELS[family]} individual with it"
    if math.isnan(row["gain"]):
        return f"**{subject}**{size} {who} reaches {row['accuracy']:.1f} %; this run has no scratch to compare it with."
    gain = f"{who} gains {signed(row['gain'])} points over its own scratch"
    if math.isnan(row["gain_low"]):
        return f"**{subject}**{size} {gain}; one target task gives no interval."
    limits = f"95 % interval {signed(row['gain_low'])} to {signed(row['gain_high'])}, {row['n_tasks']} target tasks"
    return f"**{subject}**{size} {gain} ({limits}): {reading(row['gain_low'], row['gain_high'])}."


def reading(low: float, high: float) -> str:
    """What an interval of a gain allows to say."""
    if low > 0:
        return "inheriting it helps here"
    if high < 0:
        return "inheriting it costs accuracy here"
    return "the interval holds zero, so neither help nor harm is shown"


def null_text(choice: Choice) -> str:
    """For how many networks that have learned nothing the criterion chooses the same block."""
    alike, n = sum(vote == choice.block for vote in choice.untrained), len(choice.untrained)
    what = f"**The criterion “{criterion_label(choice.criterion)}”** chooses {block_text(choice.block)}"
    what += "" if choice.own else ", though this learngene was not chosen by it"
    meaning = "this choice needs no training" if 2 * alike >= n else "untrained networks mostly choose another block"
    return f"{what}. It chooses the same block for {alike} of {n} untrained networks: {meaning}."


# the table ------------------------------------------------------------------------------------------------------------
def methods_markdown(paired: pd.DataFrame) -> str:
    """The table of methods in readable names: individual, what it inherits and how much, accuracy and gain with intervals."""
    names = (
        "individual",
        "inherits",
        "share",
        "shots",
        "accuracy (95 % interval)",
        "gain over own scratch (95 % interval)",
    )
    header = "| " + " | ".join((*names, "tasks × starts")) + " |"
    lines = [header, "|---|---|---:|---:|---:|---:|---:|"]
    light = paired[paired["family"] == "light"]
    several = light.get("block", pd.Series(dtype=str)).nunique() > 1
    for row in paired.itertuples():
        name = METHOD_LABELS.get(row.method, row.method)
        if row.family == "light" and several:
            name += (
                f", {short_block(row.block)}" if row.method != "scratch" else f" (shape of {short_block(row.block)})"
            )
        share = share_text(row.share) if row.share > 0 else ""
        cells = (FAMILY_LABELS.get(row.family, row.family), name, share, str(row.shots),
                 _estimate(row.accuracy, row.accuracy_low, row.accuracy_high, "{:.1f}".format), _gain_cell(row),
                 f"{row.n_tasks} × {row.n_inits}")  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gain_cell(row: Any) -> str:
    if row.method == "scratch" or row.family == NO_TRAINING:
        return ""
    return (
        "no scratch in this run" if math.isnan(row.gain) else _estimate(row.gain, row.gain_low, row.gain_high, signed)
    )


def _estimate(middle: float, low: float, high: float, form: Any) -> str:
    return form(middle) + ("" if math.isnan(low) else f" ({form(low)} to {form(high)})")


# figures --------------------------------------------------------------------------------------------------------------
CAPTIONS = {
    "record": "The gradient record: the share of large gradient entries, a row per block and a column per source task.",
    "criterion": "The criterion: a score per block for the collective and for networks that have learned nothing; the shade "
    "marks its choice.",
    "gains": "Accuracy and gain over own scratch of every method, with 95 % intervals.",
}
SIZE = (6.6, 4.6)  # inches, of the two figures beside each other


def _figures(run: Run, record: Record, paired: pd.DataFrame, choice: Choice | None) -> str:
    """Three figures as HTML: the record, the criterion beside its null, the gains. matplotlib's settings stay as they were."""
    import matplotlib.pyplot as plt

    cfg = run.cfg
    label = f"share of entries > {cfg.threshold:g}"
    with plt.rc_context():
        use_style()
        values, _ = criteria.profile(record, threshold=cfg.threshold, sign=cfg.sign)
        ax = layer_task_heatmap(values, record.layers, label, vmin=0, vmax=0.5 if cfg.sign == "positive" else 1.0)
        ax.figure.set_size_inches(SIZE)
        drawn = [_figure(ax.figure, "record")]
        if choice is not None:
            shown = label if choice.criterion == "released" else SCORE_LABELS.get(choice.criterion)
            ax = profile_with_null(choice.scores, chosen=choice.block, label=shown, legend=False)
            legend_below(ax, 1)
            ax.figure.set_size_inches(SIZE)
            drawn.append(_figure(ax.figure, "criterion"))
        axes = comparison(paired[paired["shots"] == paired["shots"].min()], n_way=cfg.n_way)
        drawn.append(_figure(axes.flat[0].figure, "gains"))
    return '<div class="figures">' + "".join(drawn) + "</div>"


def _figure(figure: Figure, name: str) -> str:
    """A figure as an embedded picture with its caption; the figure is closed."""
    import matplotlib.pyplot as plt

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    plt.close(figure)
    data = base64.b64encode(smaller(png.getvalue())).decode("ascii")
    words, kind = html.escape(CAPTIONS[name]), "wide" if name == "gains" else "half"
    picture = f'<img alt="{words}" src="data:image/png;base64,{data}">'
    return f'<figure class="{kind}">{picture}<figcaption>{words}</figcaption></figure>'
