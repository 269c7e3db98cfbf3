"""The claims of the study, stated so that they can fail, and their verdicts: claims.yaml and the tables of a run.

The file says for every claim what is compared, in what scope, and which numbers mean supported, refuted and undecided; it was
written before results were looked at. What the tables say about a claim is found by `findings`; here it is judged. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are used; stats takes half a second
import yaml

from ..config import CHOICES, Config, nearest
from ..errors import StudyError
from ..presets import METHODS
from .blocks import recommended
from .findings import BLOCKS, Finding, Missing, Tables, atlas, auroc, correlation, difference, rank, rank_difference
from .statistics import POSITIVE, Interval, equivalence, holm, t_quantile, tasks_needed, verdict, verdict_words

FILE = Path(__file__).with_name("claims.yaml")
NEEDED_FIELDS = {  # test: the fields it reads beside those of every claim, and what they may be (None: anything)
    "difference": {"table": ("results", "controls"), "a": None, "b": None},
    "atlas": {"a": BLOCKS, "b": BLOCKS},
    "rank": {"criterion": None, "among": ("all blocks", "equal length")},
    "rank_difference": {
        "criterion": None,
        "rival": ("depth", "size", "null"),
        "among": ("all blocks", "equal length"),
    },
    "auroc": {"score": CHOICES["open_score"]},
    "correlation": {"score": CHOICES["open_score"]},
}
TESTS: dict[str, Callable[..., Finding]] = {
    "difference": difference,
    "atlas": atlas,
    "rank": rank,
    "rank_difference": rank_difference,
    "auroc": auroc,
    "correlation": correlation,
}
FURTHER_FIELDS = {"difference": ("reference", "over"), "atlas": ("per_parameter",)}
ARMS = {"results": ("family", "method"), "controls": ("family", "block", "method")}


@dataclass(frozen=True)
class Claim:
    """One claim: see claims.yaml. `minimum`, `above`, `equivalence` in `unit`; `options`: what its test reads."""

    id: str
    text: str
    statement: str
    test: str
    unit: str
    minimum: float
    scope: str
    needs: str
    supported: str
    refuted: str
    undecided: str
    above: float = 0.0
    equivalence: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


TEXTS = tuple(f.name for f in fields(Claim) if f.type == "str")
NUMBERS = ("minimum", "above", "equivalence")
DECIDED = ("supported", POSITIVE, "equivalent", "refuted")
MOST = (
    500  # target tasks share twenty novel classes and their images; beyond some hundred, more of them say nothing new
)


def load_claims(path: str | Path = FILE) -> tuple[Claim, ...]:
    """The claims of a file, in its order. Raises StudyError that names the claim and the field that is wrong or missing."""
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"the claims in {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise StudyError(f"{path} is no list of claims; each needs id, statement, test, ...")
    claims = tuple(_claim(entry, number) for number, entry in enumerate(entries, 1))
    for claim in claims:
        if sum(claim.id == other.id for other in claims) > 1:
            raise StudyError(f"claim {claim.id} is twice in {path}")
    return claims


def _claim(entry: dict, number: int) -> Claim:
    """A checked claim; `number`: its place in the file, for one without an id."""
    name = f"claim {entry['id']}" if isinstance(entry.get("id"), str) else f"claim number {number}"
    for text in TEXTS:
        if text not in entry:
            raise StudyError(f"{name} has no {text}")
        if not isinstance(entry[text], str) or not entry[text].strip():
            raise StudyError(f"{name}: {text} is a text, not {entry[text]!r}")
    test = entry["test"]
    if test not in NEEDED_FIELDS:
        raise StudyError(f"{name}: unknown test {test!r}{nearest(test, NEEDED_FIELDS)}")
    for option, choices in NEEDED_FIELDS[test].items():
        if option not in entry:
            raise StudyError(f"{name} has no {option}, which the test {test!r} needs")
        if choices and entry[option] not in choices:
            raise StudyError(f"{name}: {option} {entry[option]!r} is none of {', '.join(choices)}")
    options = {*NEEDED_FIELDS[test], *FURTHER_FIELDS.get(test, ())}
    if strange := sorted(set(map(str, entry)) - {*TEXTS, *NUMBERS, *options}):
        raise StudyError(f"{name}: unknown field {strange[0]!r}{nearest(strange[0], [*TEXTS, *NUMBERS, *options])}")
    if test == "difference":
        for arm in ("a", "b", "reference", "over"):
            _check_arm(name, entry["table"], arm, entry.get(arm))
    plain = {text: entry[text] for text in TEXTS} | _numbers(name, entry)
    return Claim(**plain, options={option: entry[option] for option in options if option in entry})


def _numbers(name: str, entry: dict) -> dict[str, float]:
    if "minimum" not in entry:
        raise StudyError(f"{name} has no minimum")
    values = {number: entry[number] for number in NUMBERS if number in entry}
    for number, value in values.items():
        if type(value) not in (int, float) or not np.isfinite(value):
            raise StudyError(f"{name}: {number} is a number, not {value!r}")
    if values["minimum"] < values.get("above", 0):
        raise StudyError(f"{name}: minimum {values['minimum']} is below above = {values.get('above', 0)}")
    if values.get("equivalence", 0) < 0:
        raise StudyError(f"{name}: equivalence is a margin above 0")
    return {number: float(value) for number, value in values.items()}


def _check_arm(name: str, table: str, which: str, arm: object) -> None:
    """An arm has the columns that tell it apart; in results.csv its method is one of its family's."""
    if arm is None and which in ("reference", "over"):
        return
    if not isinstance(arm, dict) or set(arm) != set(ARMS[table]):
        raise StudyError(f"{name}: {which} needs exactly {', '.join(ARMS[table])}, not {arm!r}")
    if arm["family"] not in METHODS:
        raise StudyError(f"{name}: {which} has unknown family {arm['family']!r}{nearest(arm['family'], METHODS)}")
    known = METHODS[arm["family"]]
    if table == "results" and arm["method"] not in known:
        raise StudyError(f"{name}: {which} has unknown method {arm['method']!r}{nearest(arm['method'], known)}")


def evaluate(
    tables: Mapping[str, pd.DataFrame],
    claims: Sequence[Claim] | None = None,
    *,
    shots: int | None = None,
    n_blocks: int = 3,
    budget_percent: float = 50.0,
) -> pd.DataFrame:
    """claims.csv: the verdict on each claim, from the tables of a run by name ("results", "atlas_cells", with or without .csv).

    Read are results, controls, atlas_cells, atlas, layer_scores and openworld, as far as they are there. shots: by default the
    smallest number in a table; n_blocks: length of the last blocks; budget_percent: most parameters of the recommended block.

    Columns: claim, verdict, estimate, low, high (95 %), n, scope (what the limits speak for), unit (of the estimate), minimum,
    above, text (short), statement, tested (arms, shots, tasks), needed (how many of what n counts, as a rule target tasks,
    would decide an undecided claim with 80 % power if the estimate is the truth), p (one test per claim: two-sided, of the mean
    against the claim's own line, `minimum`; where the units' values are known), p_holm (over all claims that have a p),
    class_low, class_high, n_classes (95 % with classes as units: what the difference may be for new classes; decides nothing),
    reason. A verdict is "supported", "positive, below the line", "equivalent", "refuted", "undecided" or "not run": a table that
    is missing, or broken for a claim, leaves it "not run" with n = 0, and the reason says what is wrong or which command gives
    the data. A decided claim whose p_holm is above 0.05 says so in its reason.
    """
    known = Tables(
        {name.removesuffix(".csv"): table for name, table in tables.items()}, shots, n_blocks, budget_percent
    )
    found = pd.DataFrame([_row(claim, known) for claim in (load_claims() if claims is None else claims)])
    tested = found["p"].notna()
    found["p_holm"] = np.nan
    if tested.any():
        found.loc[tested, "p_holm"] = holm(found.loc[tested, "p"])
    for place in found.index[found["verdict"].isin(DECIDED) & found["p_holm"].gt(0.05)]:
        row = found.loc[place]
        correction = f"Holm's correction over {tested.sum()} claims (p = {row['p_holm']:.2g})"
        found.loc[place, "reason"] += f"; no significant difference from {row['minimum']:g} after {correction}"
    last = ["class_low", "class_high", "n_classes", "reason"]
    return found[[*(c for c in found if c not in last), *last]]


def _row(claim: Claim, tables: Tables) -> dict:
    try:
        finding = TESTS[claim.test](tables, claim.scope, **claim.options)
    except Missing as error:
        finding = Finding.none(claim.scope, f"{error}; run `{claim.needs}`")
    except (ValueError, StudyError) as error:
        finding = Finding.none(claim.scope, f"cannot be tested: {error}")
    except KeyError as error:
        finding = Finding.none(claim.scope, f"cannot be tested: a table lacks the column {error}")
    interval = finding.interval
    decision = verdict(interval, claim.minimum, above=claim.above) if interval.n else "not run"
    if decision in ("undecided", "refuted") and claim.equivalence and finding.values is not None:
        decision = "equivalent" if equivalence(finding.values, claim.equivalence).equivalent else decision
    held = finding.no_verdict or (finding.no_support if decision == "supported" else "")
    if held:
        decision, finding = "undecided", replace(finding, more_helps=False)
    needed = _needed(claim, finding) if decision == "undecided" else np.nan
    reason = finding.note
    if interval.n:
        why = _why(claim, interval, decision, needed, finding)
        reason = "; ".join(text for text in (why, held, finding.note) if text)
    shown = ("unit", "minimum", "above", "text", "statement")
    return (
        {"claim": claim.id, "verdict": decision}
        | asdict(interval)
        | {name: getattr(claim, name) for name in shown}
        | {"tested": finding.tested, "needed": needed, "p": _p_value(claim, finding), "reason": reason}
        | {"class_low": finding.classes.low, "class_high": finding.classes.high, "n_classes": finding.classes.n}
    )


def _needed(claim: Claim, finding: Finding) -> float:
    """Units that decide the claim with 80 % power if the estimate is the truth; NaN where that cannot be said.

    To be supported the limit must clear `above` and the estimate `minimum`, whichever takes more. An estimate within a
    standard error of `minimum`, or more than `MOST` units: the truth may lie on either side, and no number is honest.
    """
    interval, n = finding.interval, finding.interval.n
    if n < 2 or not finding.more_helps or np.isnan(interval.low):
        return np.nan
    error = max(interval.estimate - interval.low, interval.high - interval.estimate) / t_quantile(n, 0.95)
    beyond, sd = interval.estimate - claim.minimum, error * np.sqrt(n)
    if claim.minimum > claim.above or beyond < 0:  # else the line of support is that of the limit alone
        if abs(beyond) < error:
            return np.nan
        units = [tasks_needed(sd, beyond)]
    else:
        units = []
    if beyond >= 0 and interval.estimate - claim.above > sd / 100:
        units.append(tasks_needed(sd, interval.estimate - claim.above))
    return float(max(units)) if units and max(units) <= MOST else np.nan


def _why(claim: Claim, interval: Interval, decision: str, needed: float, finding: Finding) -> str:
    """The numbers that the verdict rests on, in words."""
    spec = ".2f" if claim.unit == "rho" else ".1f"
    low, high, estimate = (f"{value:{spec}}" for value in (interval.low, interval.high, interval.estimate))
    if decision == "supported":
        also = f" and the estimate, {estimate}, is at least {claim.minimum:g}" if claim.minimum > claim.above else ""
        return f"the lower limit, {low}, lies above {claim.above:g}{also}"
    if decision == "equivalent":
        return f"equivalent within +- {claim.equivalence:g} (two one-sided tests)"
    if decision == POSITIVE:
        return f"the lower limit, {low}, lies above {claim.above:g}, and the upper one, {high}, below {claim.minimum:g}"
    if decision == "refuted":
        return f"the upper limit, {high}, lies below {claim.minimum:g}"
    if np.isnan(interval.low):
        return f"no interval ({interval.n} {finding.counted})"
    text = f"the limits, {low} to {high}, leave it open"
    if not np.isnan(needed):
        return f"{text}; about {needed:,.0f} {finding.counted} would decide it"
    return f"{text}; too near the line for more {finding.counted} to decide" if finding.more_helps else text


def _p_value(claim: Claim, finding: Finding) -> float:
    """Two-sided t test of the units' mean against the claim's line, `minimum`; NaN where there are none, or all are the same."""
    values = finding.values
    if values is None or len(values) < 2 or np.ptp(values) == 0:
        return np.nan
    return float(scipy.stats.ttest_1samp(values, claim.minimum).pvalue)


def verdicts_text(found: pd.DataFrame) -> str:
    """claims.csv as text: one paragraph per claim, verdict first."""
    lines = []
    for r in found.itertuples():
        spec = "+.2f" if r.unit == "rho" else ".1f" if r.unit == "AUROC" else "+.1f"
        numbers = f", {r.unit} {Interval(r.estimate, r.low, r.high, r.n):{spec}}" if r.n else ""
        lines.append(f"{r.claim} {verdict_words(r.verdict, r.minimum, r.unit)}{numbers}: {r.statement}")
        texts = (r.tested, r.reason, f"speaks for {r.scope}{_over_classes(r)}" if r.n else "")
        lines += [f"    {text}" for text in texts if isinstance(text, str) and text]  # empty ones are NaN in a csv
    return "\n".join(lines)


def _over_classes(row: Any) -> str:
    """The interval for new classes, where a row of claims.csv has one."""
    if not getattr(row, "n_classes", 0) or pd.isna(row.class_low):
        return ""
    return f"; over {row.n_classes:.0f} classes, for new ones, {row.class_low:+.1f} to {row.class_high:+.1f}"


def summary(found: Mapping[str, pd.DataFrame], cfg: Config) -> str:
    """The recommended block and the verdicts, as a person reads them."""
    atlas, lines = found["atlas"], []
    if (atlas["pseudo_n"] > 0).any():
        first, last = recommended(atlas, cfg.inherited_share, cfg.atlas_shots)
        row = atlas[(atlas["first"] == first) & (atlas["last"] == last)].iloc[0]
        lines.append(
            f"recommended on pseudo-tasks, at most {cfg.inherited_share:g} % of the parameters: {row['block']} "
            f"({row['share']:.0f} %), gain on novel classes {row['gain']:+.1f} "
            f"({row['gain_low']:+.1f} to {row['gain_high']:+.1f}, n={row['n_tasks']})"
        )
    return "\n".join([*lines, verdicts_text(found["claims"])])


def reproduction_table(found: Mapping[str, pd.DataFrame]) -> str:
    """A markdown table of claims: a row per claim, a column per run (its name -> claims.csv), the scope last."""
    names = list(found)
    lines = [f"| claim | {' | '.join(names)} | speaks for |", "|---" * (len(names) + 2) + "|"]
    indexed = {name: table.set_index("claim") for name, table in found.items()}
    for row in found[names[0]].itertuples():
        cells = [_cell(indexed[name].loc[row.claim]) for name in names]
        lines.append(f"| **{row.claim}** {row.statement.rstrip('.')} | {' | '.join(cells)} | {row.scope} |")
    return "\n".join(lines)


def _cell(row: pd.Series) -> str:
    """A verdict with its estimate, limits and number of units; what would decide it, where something would."""
    if not row["n"] or pd.isna(row["estimate"]):
        return "not run"
    digits = 2 if row["unit"] == "rho" else 1
    sign = "" if row["unit"] == "AUROC" else "+"
    numbers = [f"{value:{sign}.{digits}f}" for value in (row["estimate"], row["low"], row["high"])]
    needed = f"; {row['needed']:,.0f} would decide" if pd.notna(row["needed"]) else ""
    words = verdict_words(row["verdict"], row["minimum"], row["unit"])
    return f"**{words}** {numbers[0]} ({numbers[1]} to {numbers[2]}), n={row['n']}{needed}"
