"""Kept tables of many ancestors as the pages show them: tables in, Markdown out. Kinds of `frontpage`; more in `checkpages`.

Every function takes tables by name, as `frontpage` reads them (`cifar100-individuals` from `cifar100-individuals.csv.gz`).
Tables of one kind are put one below the other, so that a new data source needs no change here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from learngene_core import criteria
from learngene_core.analysis import costs
from learngene_core.analysis.ancestor_tables import WHO, ancestor_gains, atlas_gains, class_gains, judge_ancestors
from learngene_core.analysis.statistics import mean_interval, t_quantile
from learngene_core.config import Config
from learngene_core.errors import StudyError
from learngene_core.figures.words import ANCESTOR_LABELS, CRITERION_LABELS, DATA_LABELS
from learngene_core.learngene import Learngene, light_shape
from learngene_core.network import ConvNet
from learngene_core.presets import PAPER_POOLS

Tables = Mapping[str, pd.DataFrame]
ENOUGH = 5  # ancestors of a kind, for an interval over them
CIFAR_TRAINED = (64, 500)  # base classes, training images of each
ORDER = ("last three", "first three", "conv1-7", "longest prefix", "recommended")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def limits(middle: float, low: float, high: float, form: str = "+.1f") -> str:
    """ "+1.8 (+0.2 to +3.3)"."""
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def joined(found: Tables, kind: str) -> pd.DataFrame:
    """All tables of a kind (`<data>-<kind>`), one below the other. Raises StudyError where there is none."""
    parts = [table for name, table in found.items() if name.rpartition("-")[2] == kind]
    if not parts:
        raise StudyError(f"no table of {kind} among {', '.join(found)}")
    return pd.concat(parts, ignore_index=True)


def over_classes(individuals: pd.DataFrame, tasks: pd.DataFrame) -> pd.DataFrame:
    """Gains per novel class of every ancestor, each with the classes of its own target tasks."""
    parts = []
    for where, own in individuals.groupby(list(WHO), sort=False):
        asked = tasks[(tasks[list(WHO)] == list(where)).all(axis=1)]
        parts.append(
            class_gains(own, {t: c.split("|") for t, c in zip(asked["target_task"], asked["classes"], strict=True)})
        )
    return pd.concat(parts, ignore_index=True)


def own_division(table: pd.DataFrame) -> pd.DataFrame:
    """The ancestors of the data's own division (glyphs: every ancestor has one of its own)."""
    return table[(table["data"] == "glyphs") | (table["division_seed"] < 0)]


def judged(found: Tables) -> pd.DataFrame:
    """The predeclared claims over ancestors, with intervals over ancestors and over classes."""
    individuals = joined(found, "individuals")
    own = own_division(individuals)
    return judge_ancestors(individuals, over_classes(own, joined(found, "tasks")))


def ancestor_verdicts(found: Tables) -> str:
    """`*-individuals` and `*-tasks`: the predeclared claims, a row each."""
    rows = []
    for r in judged(found).itertuples():
        numbers = ("", str(r.n), "") if r.verdict == "not run" else (
            limits(r.estimate, r.low, r.high, "+.2f"), str(r.n), f"{r.class_low:+.2f} to {r.class_high:+.2f}"
        )  # fmt: skip
        rows.append((f"**{r.claim}** {r.statement.rstrip('.')}", f"**{r.verdict}**", *numbers))
    return markdown(
        ("claim", "verdict", "points (95 % over ancestors)", "ancestors of a kind", "95 % over classes"), rows
    )


def ancestor_results(found: Tables) -> str:
    """`*-individuals` and `*-ancestors`: accuracy and gain by kind of ancestor and inherited block."""
    individuals, quality = joined(found, "individuals"), joined(found, "ancestors")
    light = individuals[individuals["family"] == "light"]
    gains = ancestor_gains(light)
    accuracy = light.groupby([*WHO, "shots", "block", "method"])["accuracy"].mean()
    rows = []
    for (data, division, kind, _), part in _in_order(gains).groupby(
        ["data", "division", "ancestor", "shots"], sort=False
    ):
        who = part[list(WHO)].drop_duplicates()
        ncm = quality.merge(who, on=list(WHO))["ncm"]
        for inherits in sorted(part["inherits"].unique(), key=_place):
            own = part[part["inherits"] == inherits]
            place = own.set_index([*WHO, "shots", "block"]).index
            scratch = accuracy.xs("scratch", level="method").reindex(place).mean()
            name = f"{DATA_LABELS.get(data, data)}, {ANCESTOR_LABELS.get(kind, kind)}{division}"
            blocks = "" if inherits not in ("longest prefix", "recommended") else f" ({_span(own['block'])})"
            reached = scratch + own["gain"].mean()
            rows.append(
                (
                    name,
                    f"{ncm.mean():.1f}",
                    f"{inherits}{blocks}",
                    f"{scratch:.1f}",
                    f"{reached:.1f}",
                    over_ancestors(own["gain"]),
                )
            )
    header = ("ancestor", "its nearest class mean %", "inherited", "scratch %", "individual %", "gain, points")
    return markdown(header, rows)


def redrawn(found: Tables) -> str:
    """`*-individuals`: gains of ancestors whose classes were drawn again, beside what a further one of the own division would
    be expected to gain: the 95 % prediction interval from its n ancestors, mean +- t(n - 1) sd sqrt(1 + 1 / n)."""
    individuals = joined(found, "individuals")
    gains = ancestor_gains(individuals[(individuals["data"] != "glyphs") & (individuals["shots"] == 10)])
    rows = []
    for (kind, inherits), part in gains.groupby(["ancestor", "inherits"], sort=False):
        own, others = part.loc[part["division_seed"] < 0, "gain"], part[part["division_seed"] >= 0]
        if others.empty:
            continue
        reach = t_quantile(len(own), 0.95) * own.std() * np.sqrt(1 + 1 / len(own))
        low, high = own.mean() - reach, own.mean() + reach
        places = ["below" if g < low else "above" if g > high else "inside" for g in others["gain"]]
        each = ", ".join(f"{g:+.1f} ({p})" for g, p in zip(others["gain"], places, strict=True))
        rows.append((ANCESTOR_LABELS[kind], inherits, limits(own.mean(), low, high), each))
    rows.sort(key=lambda row: (list(ANCESTOR_LABELS.values()).index(row[0]), _place(row[1])))
    return markdown(("ancestor learned", "inherited", "own classes, mean (a further one)", "other classes, each"), rows)


def _in_order(gains: pd.DataFrame) -> pd.DataFrame:
    """Gains with the division in words; the data's own division first, kinds as the figures order them."""
    drawn = (gains["data"] != "glyphs") & (gains["division_seed"] >= 0)
    kinds = {kind: k for k, kind in enumerate(ANCESTOR_LABELS)}
    found = gains.assign(
        division=np.where(drawn, ", other classes", ""), place=gains["ancestor"].map(kinds), drawn=drawn
    )
    return found.sort_values(["data", "drawn", "place"], kind="stable")


def _place(inherits: str) -> int:
    return ORDER.index(inherits) if inherits in ORDER else len(ORDER)


def _span(blocks: pd.Series) -> str:
    return ", ".join(sorted(blocks.unique()))


def over_ancestors(values: pd.Series) -> str:
    """A mean with its interval over ancestors; below `ENOUGH` the single values, without one."""
    if len(values) < ENOUGH:
        return ", ".join(f"{v:+.1f}" for v in values) + f" (n={len(values)}, no interval)"
    found = mean_interval(values)
    return f"{limits(found.estimate, found.low, found.high)}, n={found.n}"


def choices(found: Tables) -> str:
    """`*-scores`: the three blocks that every criterion of the record chooses, over ancestors, and what the null would choose."""
    scores = own_division(joined(found, "scores"))
    rows = []
    for (criterion, data, kind), part in scores.groupby(["criterion", "data", "ancestor"], sort=False):
        chosen, null = [], []
        for _, one in part.groupby("ancestor_seed"):
            one = one.assign(score=pd.to_numeric(one["score"]), null=pd.to_numeric(one["null"]))
            if one["score"].notna().all():
                chosen.append(_block(criteria.best_block(one, 3)))
                null.append(_block(criteria.best_block(one.assign(score=one["null"]), 3)))
        if chosen:
            name = f"{DATA_LABELS.get(data, data)}, {ANCESTOR_LABELS.get(kind, kind)}"
            alike = sum(a == b for a, b in zip(chosen, null, strict=True))
            label = CRITERION_LABELS.get(criterion, criterion)
            rows.append((label, name, _counted(chosen), _counted(null), f"{alike} of {len(chosen)}"))
    return markdown(("criterion", "ancestors", "chooses", "its null would choose", "alike"), rows)


def _block(names: Sequence[str]) -> str:
    return f"{names[0]}-{names[-1].removeprefix('conv')}"


def _counted(blocks: Sequence[str]) -> str:
    counts = pd.Series(blocks).value_counts(sort=False).sort_values(ascending=False, kind="stable")
    return ", ".join(f"{block} x {n}" if len(counts) > 1 else block for block, n in counts.items())


def regret(found: Tables) -> str:
    """`*-regret`: gain of what a criterion chooses within half of the parameters, minus that of the longest prefix."""
    table = joined(found, "regret")
    part = table[(table["scope"] == "within budget") & (table["tasks"] == "pseudo")]
    kinds, rows = [k for k in ANCESTOR_LABELS if k in set(part["ancestor"])], []
    for criterion, own in part[part["criterion"] != "longest_prefix"].groupby("criterion", sort=False):
        cells = []
        for kind in kinds:
            values = own.loc[own["ancestor"] == kind, "over_prefix"].dropna()
            cells.append(over_ancestors(values) if len(values) else "not defined")
        rows.append((CRITERION_LABELS.get(criterion, criterion), own["group"].iloc[0], *cells))
    return markdown(("criterion", "reads", *(ANCESTOR_LABELS.get(k, k) for k in kinds)), rows)


def light_atlas(found: Tables) -> str:
    """`*-atlas`: gain of every prefix and every window of three blocks, a column per ancestor."""
    gains = atlas_gains(joined(found, "atlas"))
    names = [f"{a.data} {a.ancestor} {a.ancestor_seed}" for a in gains[list(WHO)].itertuples()]
    gains = gains.assign(who=names)
    rows = []
    order = gains.assign(prefix=gains["first"] > 1).sort_values(["prefix", "first", "last"], kind="stable")
    who = list(dict.fromkeys(sorted(names, reverse=True)))
    for (first, last), part in order.groupby(["first", "last"], sort=False):
        cells = {r.who: limits(r.gain, r.gain_low, r.gain_high) for r in part.itertuples()}
        rows.append((f"conv{first}-{last}" if first != last else f"conv{first}", *(cells.get(w, "") for w in who)))
    labels = [" ".join((DATA_LABELS.get(w.split()[0], w.split()[0]), w.split()[1])) for w in who]
    return markdown(("inherited", *(f"{label} ancestor" for label in labels)), rows)


def budgets(found: Tables) -> str:
    """`*-budgets`, and `*-individuals` for the budget of the claims: shots, epochs and size of a batch, for the last and first
    three blocks of single ancestors; final_loss is that of the support images."""
    table = joined(found, "budgets")
    base = joined(found, "individuals").merge(table[list(WHO)].drop_duplicates(), on=list(WHO))
    base = base[base["block"].isin(table["block"]) & base["method"].isin(["scratch", "learngene", "first"])]
    parts = [base.assign(epochs=30, batch=32), table]
    light = pd.concat(parts)[lambda t: t["family"] == "light"]
    rows = []
    keys = ["shots", "epochs", "batch"]
    for budget, part in light.groupby(keys):
        means = part.groupby([*WHO, "block", "method"])[["accuracy", "final_loss"]].mean()
        for r in ancestor_gains(part).sort_values(["ancestor", "inherits"], ascending=False).itertuples():
            at = tuple(getattr(r, k) for k in WHO)
            scratch = means.loc[(*at, r.block, "scratch")]
            own = means.loc[(*at, r.block, r.method)]
            sizes = tuple(str(int(v)) for v in budget)
            losses = f"{scratch['final_loss']:.2f}, {own['final_loss']:.2f}"
            accuracies = f"{scratch['accuracy']:.1f}", f"{own['accuracy']:.1f}"
            gain = limits(r.gain, r.gain_low, r.gain_high)
            rows.append((*sizes, r.ancestor, r.inherits, *accuracies, gain, losses, str(r.n)))
    header = ("shots", "epochs", "batch", "ancestor", "inherited", "scratch %", "individual %", "gain, points",
              "last losses", "tasks")  # fmt: skip
    return markdown(header, rows)


def break_even(found: Tables) -> str:
    """`*-budgets` and `*-individuals`: after how many light individuals the ancestor's training is paid, at 10 shots. To be
    reached is what inheriting gives in the shortest training. Scratch has three trainings of its own: 10, 30, 90 epochs."""
    table, rows = _by_epochs(found), []
    for (kind, seed, block), part in table.groupby(["ancestor", "ancestor_seed", "block"], sort=False):
        cfg = Config.preset("cifar-cpu", ancestor=kind, ancestor_seed=int(seed))
        names = tuple(f"conv{k}" for k in range(*_ends(block)))
        net = ConvNet(cfg.final_widths, PAPER_POOLS, cfg.n_way, cfg.image_size)
        shape = light_shape(Learngene.from_model(net, names, mean=(0, 0, 0), std=(1, 1, 1)), cfg.n_way, cfg)
        part, method = (
            part[["method", "epoch", "accuracy"]],
            "learngene" if (part["method"] == "learngene").any() else "first",
        )
        curve = part[part["method"] == method].set_index("epoch")["accuracy"]
        cost = costs.planned_flop(cfg, *CIFAR_TRAINED)
        paid = costs.break_even(cost, shape, 10 * cfg.n_way, part, method=method, accuracy=curve.loc[curve.index.min()])
        scratch = part[part["method"] == "scratch"].sort_values("epoch")
        reached = f"not in {paid.scratch_epochs}" if paid.bound else f"by {paid.scratch_epochs}"
        rows.append(
            (kind, "last three" if method == "learngene" else "first three", f"{paid.accuracy:.1f}", str(paid.epochs),
             ", ".join(f"{a:.1f}" for a in scratch["accuracy"]), reached, f"{paid.collective / 1e12:.0f}",
             f"{paid.individual / 1e9:.0f}", f"{'at most' if paid.bound else 'at least'} {paid.individuals:,.0f}")
        )  # fmt: skip
    header = ("ancestor", "inherited", "reaches %", "in epochs", "scratch % after 10, 30, 90 epochs", "scratch gets there",
              "ancestor, TFLOP", "individual, GFLOP", "paid after individuals")  # fmt: skip
    return markdown(header, rows)


def _by_epochs(found: Tables) -> pd.DataFrame:
    """Mean accuracy of light individuals at 10 shots, by method and epochs of a whole training, of `*-budgets`' ancestors."""
    table = joined(found, "budgets")
    keys = ["ancestor", "ancestor_seed", "block", "method"]
    base = joined(found, "individuals").merge(table[[*WHO, *keys[2:]]].drop_duplicates(), on=[*WHO, *keys[2:]])
    light = pd.concat([table, base.assign(epochs=30)])[lambda t: (t["family"] == "light") & (t["shots"] == 10)]
    return (
        light.groupby([*keys, "epochs"], sort=False)["accuracy"]
        .mean()
        .reset_index()
        .rename(columns={"epochs": "epoch"})
    )


def _ends(block: str) -> tuple[int, int]:
    first, last = (int(name.removeprefix("conv")) for name in block.split("-"))
    return first, last + 1


def published(found: Tables) -> str:
    """`published` and the tables of ours it names: a row's `ours` is a key of `_OURS`, else a text."""
    rows = []
    for r in joined(found, "published").itertuples():
        ours = _OURS[r.ours](found) if r.ours in _OURS else r.ours or "-"
        rows.append((r.quantity, r.published, ours, r.protocol, r.verified, r.source))
    return markdown(("quantity", "published", "ours", "protocol", "verified", "source"), rows)


def _reference(method: str, shots: int) -> Callable[[Tables], str]:
    def cell(found: Tables) -> str:
        table = joined(found, "reference")
        quoted = table[(table["group"] == "novel") & table["chosen"].astype(bool)]
        r = quoted[(quoted["method"] == method) & (quoted["shots"] == shots)].iloc[0]
        return limits(r["accuracy"], r["accuracy_low"], r["accuracy_high"], ".1f")

    return cell


def _ewc_pair(found: Tables) -> str:
    """Average accuracy over the source tasks after the last one, without and with EWC."""
    table = own_division(joined(found, "ancestors"))
    table = table[table["data"] == "cifar100"]
    means = {kind: table.loc[table["ancestor"] == kind, "closed"] for kind in ("sequential", "ewc")}
    words = {kind: f"{values.mean():.1f} ({len(values)} ancestors)" for kind, values in means.items()}
    return f"{words['sequential']} without and {words['ewc']} with EWC"


def _auroc(found: Tables) -> str:
    table = joined(found, "openworld")
    r = table[table["task"] == table["task"].max()].sort_values("auroc").iloc[-1]
    return limits(r["auroc"], r["auroc_low"], r["auroc_high"], ".1f")


_OURS: dict[str, Callable[[Tables], str]] = {
    **{f"{m} {k}": _reference(m, k) for m in ("ncm", "probe") for k in (1, 5, 10)},
    "auroc": _auroc,
    "ewc pair": _ewc_pair,
}


FINDINGS = (  # what is inherited, what it gives, the claims whose numbers the two columns show
    ("the last three blocks, after fresh first ones (the paper's form)", "within two points of scratch, above 0", "A1", "A1j"),
    ("the first three blocks, with fresh later ones", "a clear gain", "A2", "A2j"),
    ("the longest prefix within half of the parameters (conv1-9)", "a large gain, and no criterion is needed", "A3", "A3j"),
    ("what trying blocks on pseudo-tasks recommends, minus that prefix", "no better, within two points", "A5", "A5j"),
)  # fmt: skip


def findings(found: Tables) -> str:
    """The front page's table, from `*-individuals`, `*-tasks`, `*-scores` and `*-regret`: what of the paradigm holds."""
    claims = judged(found).set_index("claim")

    def cell(name: str) -> str:
        r = claims.loc[name]
        return f"{limits(r['estimate'], r['low'], r['high'])}, n={r['n']}"

    rows = [(what, gives, cell(one), cell(other)) for what, gives, one, other in FINDINGS]
    chosen, null = _paper_choice(joined(found, "scores"))
    what = f"what the lowest gradient count chooses ({chosen}; in untrained networks {null}), minus that prefix, on pseudo-tasks"
    table = joined(found, "regret")
    cost = table[
        (table["scope"] == "within budget") & (table["tasks"] == "pseudo") & (table["criterion"] == "released")
    ]
    costs = [
        over_ancestors(cost.loc[cost["ancestor"] == kind, "over_prefix"].dropna()) for kind in ("sequential", "joint")
    ]
    rows.append((what, "a large loss", *costs))
    for name, block in (("A6", "the last three blocks"), ("A7", "conv1-7")):
        rows.append((f"{block}: joint minus sequential ancestors", claims.loc[name, "verdict"], "", cell(name)))
    if claims.loc["G1", "verdict"] != "not run":
        rows += [
            (f"glyphs, classes drawn again: {block}", claims.loc[name, "verdict"], cell(name), "")
            for name, block in (("G1", "the last three"), ("G2", "the first three"), ("G3", "the longest prefix"))
        ]
    return markdown(("inherited", "what it gives", "sequential ancestors", "joint ancestors"), rows)


def _paper_choice(scores: pd.DataFrame) -> tuple[str, str]:
    """What the released count chooses for the sequential ancestors on CIFAR-100, and what it chooses in their null."""
    own = own_division(scores)
    own = own[(own["criterion"] == "released") & (own["ancestor"] == "sequential") & (own["data"] == "cifar100")]
    each = [one.astype({"score": float, "null": float}) for _, one in own.groupby("ancestor_seed")]
    chosen = [_block(criteria.best_block(one, 3)) for one in each]
    return _counted(chosen), _counted([_block(criteria.best_block(one.assign(score=one["null"]), 3)) for one in each])


KINDS: dict[str, Callable[[Tables], str]] = {
    "ancestor_verdicts": ancestor_verdicts,
    "ancestor_results": ancestor_results,
    "redrawn": redrawn,
    "choices": choices,
    "regret": regret,
    "light_atlas": light_atlas,
    "budgets": budgets,
    "break_even": break_even,
    "published": published,
    "findings": findings,
}
