"""Small tables for the tests of figures and explorer: every table that a figure takes, made up from seeds, in its columns."""

import itertools

import numpy as np
import pandas as pd

from learngene_core.figures import words
from learngene_core.figures.style import SCORE_COLOURS
from learngene_core.presets import METHODS
from learngene_core.record import EDGES, N_BINS, Record

LAYERS = tuple(f"conv{i}" for i in range(1, 7))
COLUMNS = ("norm", "rms", "norm_times_weight", "weight_norm", "relative_norm")


def make_record(n_tasks=3, n_epochs=2, n_null=4, seed=0):
    """A record whose deeper layers have smaller gradients; 500 entries per layer and epoch."""
    rng, shift = np.random.default_rng(seed), 12 * np.arange(len(LAYERS))

    def counts(*leading):
        bins = rng.normal(300 - shift, 15, (*leading, 500, len(LAYERS))).round().astype(int)
        below = rng.random(bins.shape) < 0.5
        flat = np.zeros((*leading, len(LAYERS), 2, N_BINS), dtype=np.int64)
        index = np.indices(bins.shape)
        np.add.at(flat, (*index[: len(leading)], index[-1], below.astype(int), bins), 1)
        return flat

    def table(*leading):
        rows = pd.MultiIndex.from_product([range(1, n + 1) for n in leading] + [LAYERS])
        frame = rows.to_frame(index=False, name=["task", "epoch", "layer"])
        frame = frame.assign(**{c: rng.uniform(0.5, 2, len(frame)) for c in COLUMNS})
        return frame.assign(
            n_weights=float(EDGES[265]) ** -2.0
        )  # a threshold relative to the layer falls among its entries

    rows = n_tasks * n_epochs
    return Record(
        layers=LAYERS,
        task=np.repeat(np.arange(1, n_tasks + 1), n_epochs),
        epoch=np.tile(np.arange(1, n_epochs + 1), n_tasks),
        counts=counts(rows),
        zeros=np.full((rows, len(LAYERS)), 7),
        null_counts=counts(n_null, n_tasks),
        null_zeros=np.full((n_null, n_tasks, len(LAYERS)), 7),
        table=table(n_tasks, n_epochs),
        null_table=table(n_null, n_tasks),
    )


def make_results(n_tasks=12, shots=(10,), n_inits=2, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        {"family": f, "method": m, "shots": s, "target_task": t, "init": i, "accuracy": rng.normal(40 + 8 * k, 5)}
        for f, methods in METHODS.items()
        for k, m in enumerate(methods)
        for s, t, i in itertools.product(shots, range(1, n_tasks + 1), range(n_inits if f != "none" else 1))
    ]
    return pd.DataFrame(rows)


def make_curves(shots=(10, 20), n_epochs=5):
    rows = [
        {
            "family": f,
            "method": m,
            "shots": s,
            "epoch": e,
            "loss": 2 / e + k,
            "loss_sd": 0.1,
            "accuracy": 50,
            "n_tasks": 9,
        }
        for f in ("light", "same_shape")
        for k, m in enumerate(METHODS[f])
        for s, e in itertools.product(shots, range(1, n_epochs + 1))
    ]
    return pd.DataFrame(rows)


def make_history():
    rng = np.random.default_rng(0)
    rows = []
    for task, epochs in ((1, 4), (2, 3), (3, 3)):
        rows += [(task, e, "train", task, rng.uniform(0, 2), rng.uniform(0, 100)) for e in range(1, epochs + 1)]
        rows += [(task, epochs, "test", on, np.nan, rng.uniform(0, 100)) for on in range(1, task + 1)]
    return pd.DataFrame(rows, columns=["task", "epoch", "phase", "on_task", "loss", "accuracy"])


def shape(widths, pools=(2, 4), n_classes=8, names=LAYERS, image_size=16):
    return {
        "names": list(names),
        "widths": list(widths),
        "pools": list(pools),
        "n_classes": n_classes,
        "image_size": image_size,
        "hidden": [10],
        "dropout": 0.0,
    }


COLLECTIVE = [shape((4, 4, 8, 8, 16, 16)), shape((4, 8, 8, 8, 16, 16)), shape((4, 8, 8, 12, 16, 32))]
INDIVIDUAL = shape((4, 12, 16, 32), (1, 2), 5, ("fresh1", "fresh2", "conv5", "conv6"))


def pictures(rows, k, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 250, (rows, k, 3, size, size), dtype=np.uint8)


def true_gain(first, last, n):
    """Gain in points of inheriting [first..last] of n blocks: early blocks count most, deep ones alone hardly."""
    worth = 0.75 ** np.arange(n) * 18
    return worth[first - 1 : last].sum() * (1 if first == 1 else 0.55) - 0.6 * first


def make_atlas(n=13, *, coarse=False, length=3, shots=(10,), n_tasks=30, pseudo=True, seed=0):
    """atlas.csv: all blocks of n, or only prefixes, suffixes and those of `length`."""
    rng, rows = np.random.default_rng(seed), []
    parameters = 9 * 8 * 8 * 4 ** (3 * np.arange(n) // n)
    for s, first, last in itertools.product(shots, range(1, n + 1), range(1, n + 1)):
        on = first <= last and (not coarse or first == 1 or last == n or last - first + 1 == length)
        if not on:
            continue
        gain = true_gain(first, last, n) + rng.normal(0, 1.2)
        half, wide = rng.uniform(2, 4), rng.uniform(4.5, 6)
        kept = int(parameters[first - 1 : last].sum())
        other = true_gain(first, last, n) + rng.normal(0, 2)
        with_pseudo = pseudo and last - first + 1 == length
        rows.append(
            {"first": first, "last": last, "shots": s, "gain": gain, "gain_low": gain - half, "gain_high": gain + half,
             "n_tasks": n_tasks, "band_low": gain - wide, "band_high": gain + wide, "accuracy": 40 + gain,
             "parameters": kept, "share": 100 * kept / parameters.sum(), "pseudo_gain": other if with_pseudo else np.nan,
             "pseudo_low": other - 3, "pseudo_high": other + 3, "pseudo_n": 16 if with_pseudo else 0,
             "length": last - first + 1, "coarse": first == 1 or last == n}
        )  # fmt: skip
    return pd.DataFrame(rows)


CRITERIA = {"released": "low", "relative_norm": "low", "fisher": "high", "reinit": "high", "cka_drift": "low"}


def make_scores(n=13, seed=0, names=tuple(CRITERIA)):
    """layer_scores.csv: some rise and some fall with depth, each beside its null."""
    rng, rows = np.random.default_rng(seed), []
    for k, name in enumerate(names):
        slope = 1 if k % 2 else -1
        for i in range(1, n + 1):
            base = 0.5 + slope * 0.02 * i
            rows.append({"criterion": name, "layer": f"conv{i}", "score": base + rng.normal(0, 0.03), "null": base + 0.1,
                         "null_sd": 0.02, "z": 0.0, "inherit": CRITERIA.get(name, "low")})  # fmt: skip
    return pd.DataFrame(rows)


def make_selection(length=3, names=tuple(CRITERIA), seed=0):
    """selection.csv: criteria with their nulls, the baselines, three scopes each."""
    rng, rows = np.random.default_rng(seed), []
    everyone = [*names, *(f"null:{name}" for name in names), "depth", "shallow", "size", "small", "random"]
    for name, scope in itertools.product(everyone, ("all blocks", f"blocks of length {length}", "within budget")):
        rho, first = (0.0 if name == "random" else rng.uniform(-0.8, 0.8)), int(rng.integers(1, 12))
        row = {
            "criterion": name,
            "scope": scope,
            "first": first,
            "last": first + length - 1,
            "regret": rng.uniform(0, 40),
        }
        row |= {"spearman": rho, "spearman_low": max(-1, rho - 0.2), "spearman_high": min(1, rho + 0.2), "n_tasks": 30}
        rows.append(row | {"regret_low": row["regret"] - 4, "regret_high": row["regret"] + 5, "n_blocks": 91})
    return pd.DataFrame(rows)


CONTROLS = {"inherit": 20, "shuffled_inputs": 19, "shuffled_inner": 6, "spectrum_matched": 9, "moment_matched": 4,
            "conv_only": 17, "norm_only": 2, "untrained": 1, "frozen": 12, "ewc:0": 20, "ewc:10": 18, "l2:0.1": 20,
            "ancestor:single_task": 14, "ancestor:joint": 24, "ancestor:permuted": 8}  # fmt: skip


def make_controls(n_tasks=12, n_inits=2, seed=0, gain=1.0):
    """controls.csv: every control on the same tasks and initial weights as scratch."""
    rng, rows = np.random.default_rng(seed), []
    level = rng.normal(40, 8, (n_tasks, n_inits))
    for (block, first, last), (method, points) in itertools.product(
        (("learngene", 11, 13), ("first", 1, 3)), {"scratch": 0, **CONTROLS}.items()
    ):
        for task, init in itertools.product(range(n_tasks), range(n_inits)):
            accuracy = level[task, init] + gain * points * (2 if block == "first" else 1) + rng.normal(0, 3)
            rows.append({"family": "same_shape", "block": block, "method": method, "shots": 10, "target_task": task + 1,
                         "init": init, "accuracy": accuracy, "first": first, "last": last})  # fmt: skip
    return pd.DataFrame(rows)


def make_claims():
    """claims.csv with three units; the claims of one unit do not stand together."""
    rows = [
        ("H1", "supported", 36.0, 30.1, 41.9, 30, 2.0, "points", "inheriting helps against scratch"),
        (
            "H3",
            "refuted",
            -0.42,
            -0.55,
            -0.29,
            30,
            0.5,
            "rho",
            "the released criterion ranks blocks by their gain",
        ),
        ("H2", "refuted", -17.5, -21.0, -14.0, 30, 0.0, "points", "last three blocks beat the first three"),
        (
            "H4",
            "undecided",
            1.2,
            -0.9,
            3.3,
            30,
            1.0,
            "points",
            "content: last three beat the moment-matched",
        ),
        ("H8", "supported", 63.8, 60.1, 67.5, 32, 60.0, "AUROC", "unknown classes are told from known ones"),
    ]
    columns = ["claim", "verdict", "estimate", "low", "high", "n", "minimum", "unit", "text"]
    table = pd.DataFrame(rows, columns=columns).assign(scope="these novel classes and this ancestor")
    return table.assign(needed=[np.nan, np.nan, np.nan, 85, np.nan], above=[0, 0, 0, 0, 50])


def make_released():
    """released.csv: none, defects, all, in the order of a run."""
    defects = [
        "none",
        "double_softmax",
        "all",
        "zero_ewc",
        "norm_gap",
        "labels_reused",
        "task_leak",
        "optimiser_rebuilt",
    ]
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"defects": defects, "scratch": rng.uniform(35, 45, 8), "gain": rng.normal(4, 3, 8)})
    table["learngene"] = table["scratch"] + table["gain"]
    chosen = ["conv11-conv13", "conv5-conv7", "conv1-conv3", *["conv11-conv13"] * 5]
    return table.assign(gain_low=table["gain"] - 2.5, gain_high=table["gain"] + 2.5, chosen=chosen, n_tasks=20)


def make_images(n=40):
    """openworld_images.csv: validation, test, stream and unknown images with every score."""
    rng = np.random.default_rng(0)
    parts = ("validation", "test", "stream", "unknown")
    rows = pd.DataFrame({"part": np.repeat(parts, n), "image": np.arange(4 * n) % 12})
    rows["known"] = rows["part"].isin(["validation", "test"]) | ((rows["part"] == "stream") & (rows.index % 2 == 0))
    rows["class_name"] = [f"{'known' if known else 'new'} {i % 4}" for i, known in enumerate(rows["known"])]
    rows["predicted"] = rows["class_name"].where(rows.index % 3 > 0, "known 0")
    return rows.assign(**{score: rng.normal(rows["known"].astype(float), 1) for score in SCORE_COLOURS})


def make_openworld():
    """openworld.csv of three scores after four tasks; two of them read the same head."""
    rng = np.random.default_rng(0)
    pairs = itertools.product(range(1, 5), ("msp", "maxlogit", "relative_mahalanobis"))
    rows = pd.DataFrame(pairs, columns=["task", "score"])
    rows = rows.assign(auroc=50 + rng.uniform(0, 20, len(rows)), auroc_low=45, auroc_high=70)
    accuracy = np.where(rows["score"] == "relative_mahalanobis", 60.0, 40.0) + rows["task"]
    return rows.assign(closed_accuracy=accuracy, known_classes=4 * rows["task"])


def make_learning():
    """openworld_learning.csv of every way."""
    rows = pd.DataFrame({"method": list(words.WAY_LABELS)})
    for k, kind in enumerate(("old", "new", "harmonic")):
        middle = 40.0 + k + np.arange(len(rows))
        rows = rows.assign(
            **{f"{kind}_accuracy{end}": middle + by for end, by in (("", 0), ("_low", -5), ("_high", 5))}
        )
    return rows


def make_gains():
    """The table of `gain_bars`: two data sets, two families."""
    rows = [
        (data, family, block, gain * scale, gain * scale - 2, gain * scale + 2, share)
        for data, scale in (("glyphs", 1.0), ("cifar100", 0.25))
        for family in ("light", "same_shape")
        for block, gain, share in (("last three", 2.0, 48.0), ("first three", 30.0, 0.9), ("all blocks", 40.0, 100.0))
        if (family, block) != ("light", "all blocks")
    ]
    return pd.DataFrame(rows, columns=["data", "family", "block", "gain", "gain_low", "gain_high", "share"])


def make_ancestors(n=4):
    """A row per ancestor and block on two data sets, kinds of ancestor mixed."""
    rng, rows = np.random.default_rng(0), []
    kinds = itertools.product(("glyphs", "cifar100"), ("sequential", "joint", "replay", "ewc"), range(n))
    for data, kind, seed in kinds:
        ncm = rng.uniform(30, 60)
        for block, gain in (("last three", 1.0), ("first three", 20.0), ("longest prefix", 30.0)):
            rows.append((data, kind, seed, seed, ncm, block, gain, gain - 2, gain + 2))
    columns = ["data", "ancestor", "ancestor_seed", "division_seed", "ncm", "block", "gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows, columns=columns)


def make_across(places=(5, 10, 20), axis="shots", lines=("",)):
    """`sweeptable.across_seeds` of accuracies and of gains along an axis."""
    rng, rows = np.random.default_rng(0), []
    for (family, methods), place, line in itertools.product(METHODS.items(), places, lines):
        for method in methods:
            rows.append(
                {"family": family, "method": method, axis: place, "line": line, "estimate": rng.uniform(20, 80)}
            )
    table = pd.DataFrame(rows).assign(n=5, scope="over seeds: ancestor, division and tasks are drawn anew")
    table = table.assign(low=table["estimate"] - 3, high=table["estimate"] + 3)
    return table, table[(table["family"] != "none") & (table["method"] != "scratch")]
