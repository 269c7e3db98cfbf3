"""The gradient record as data: signed log-spaced histograms with exact edges, read without torch.

Bins follow the bits of a float32: 8 per octave, about 27 per decade. Bin b holds the entries with
`EDGES[b] < |entry| <= EDGES[b + 1]`, and both 5e-10 and 5e-4 (the released thresholds) are edges, so every count of entries
above an edge is exact, strictly greater as in the released code, after the fact and for any edge.
"""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .errors import StudyError, atomic

SHIFT = 20  # 3 of the 23 mantissa bits stay: 8 bins per octave
LARGEST_ARRAYS = 2**32  # bytes that a file of arrays may unpack to; the record of the paper preset needs a tenth
MEASURES = (
    "n_weights",
    "steps",
    "norm",
    "rms",
    "norm_times_weight",
    "weight_norm",
    "relative_norm",
)  # of gradients.csv
N_RAW = 2056  # raw bins per sign: 2^31 >> 20, and room for the offsets


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))


def _align(bits: int, offset: int) -> int:
    """The smallest offset >= `offset` that puts a bin edge just above the float with these bits."""
    return offset + (-(bits + 1 + offset)) % (1 << SHIFT)


# A float's bits are moved by an offset before the shift, larger from each pivot on. The first makes exact zero a bin of its
# own; the others put the two released thresholds on edges.
OFFSETS = [(1 << SHIFT) - 1]
PIVOTS = [0]
for _pivot, _edge in ((1e-12, 5e-10), (1e-6, 5e-4)):
    PIVOTS.append(_bits(_pivot))
    OFFSETS.append(_align(_bits(_edge), OFFSETS[-1]))


def raw_bin(bits: np.ndarray) -> np.ndarray:
    """Raw bin (0: exact zero) of the bits of |entry|; the NumPy reference of what `gradients` does on the device."""
    offset = np.select([bits >= p for p in PIVOTS[::-1]], OFFSETS[::-1])
    return (bits.astype(np.int64) + offset) >> SHIFT


def _raw_lower_bits() -> np.ndarray:
    """Smallest bits that fall in raw bin b or above, for b = 0 .. N_RAW."""
    b = np.arange(N_RAW + 1, dtype=np.int64) << SHIFT
    lower = np.full(len(b), np.iinfo(np.int64).max)
    for pivot, end, offset in zip(PIVOTS, [*PIVOTS[1:], 1 << 31], OFFSETS, strict=True):
        candidate = np.maximum(b - offset, pivot)
        lower = np.minimum(lower, np.where(candidate < end, candidate, lower))
    return lower


_LOWER = _raw_lower_bits()
FIRST = int(raw_bin(np.array([_bits(1e-15)]))[0])  # stored bins: smaller entries are folded into the first,
LAST = int(raw_bin(np.array([_bits(1e3)]))[0])  # larger ones into the last
EDGES = (_LOWER[FIRST : LAST + 1] - 1).astype(np.int32).view(np.float32)  # lower edges; entries are strictly above
EDGES[0] = 0  # the first bin holds everything smaller too, so what lies above its lower edge is all that is not zero
N_BINS = len(EDGES)


def fold(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Raw counts (..., 2, N_RAW) to stored counts (..., 2, N_BINS) and zeros (...)."""
    zeros = raw[..., 0].sum(-1)
    counts = raw[..., FIRST : LAST + 1].copy()
    counts[..., 0] += raw[..., 1:FIRST].sum(-1)
    counts[..., -1] += raw[..., LAST + 1 :].sum(-1)
    return counts, zeros


def edge_index(threshold: float | np.ndarray) -> int | np.ndarray:
    """Index of the edge nearest to `threshold`: exact for 0, 5e-10 and 5e-4, else within 6 % (on a log scale).

    An array of thresholds gives an array of its shape; NaN in it (of a layer that is not there) gives 0.
    Raises ValueError for a threshold outside the record's range, about 1e-15 to 1e3, that is not 0.
    """
    if not np.ndim(threshold):
        return int(_edge_indices(np.array([threshold], float))[0])
    index = np.zeros(threshold.shape, int)
    there = ~np.isnan(threshold)
    index[there] = _edge_indices(threshold[there])
    return index


def _edge_indices(thresholds: np.ndarray) -> np.ndarray:
    good = (thresholds == 0) | ((EDGES[1] / 1.1 <= thresholds) & (thresholds <= EDGES[-1] * 1.1))
    if not good.all():
        raise ValueError(
            f"threshold {thresholds[~good][0]:g} is outside the record's range {EDGES[1]:.1e} to {EDGES[-1]:.1e}"
        )
    with np.errstate(divide="ignore"):
        distance = np.abs(np.log(EDGES[1:].astype(float)) - np.log(thresholds)[:, None])
    return np.where(thresholds == 0, 0, 1 + distance.argmin(1))


@dataclasses.dataclass(frozen=True)
class Record:
    """What was seen of the weight gradients of every block, per task and epoch, and of untrained networks (the null).

    layers: names (l,); task, epoch: (r,) numbers from 1; counts: (r, l, 2, N_BINS) entries above zero [0] and below [1],
    summed over the epoch's recorded steps; zeros: (r, l). null_counts (n, t, l, 2, N_BINS) and null_zeros (n, t, l): the
    same for n untrained networks on t tasks with random labels. table: one row per task, epoch and layer (gradients.csv).
    A layer that did not exist yet has counts of zero.
    """

    layers: tuple[str, ...]
    task: np.ndarray
    epoch: np.ndarray
    counts: np.ndarray
    zeros: np.ndarray
    null_counts: np.ndarray
    null_zeros: np.ndarray
    table: pd.DataFrame
    null_table: pd.DataFrame

    @classmethod
    def of_epochs(
        cls,
        layers: Sequence[str],
        entries: Sequence[dict],
        null_rows: list[dict],
        null_counts: np.ndarray,
        null_zeros: np.ndarray,
    ) -> Record:
        """Join what the recorder gave for each epoch: task, epoch, rows, counts and zeros of the layers there were."""
        place = {n: i for i, n in enumerate(layers)}
        counts = np.zeros((len(entries), len(layers), 2, N_BINS), np.int64)
        zeros = np.zeros(counts.shape[:2], np.int64)
        table = []
        for r, entry in enumerate(entries):
            rows = {row["layer"]: row for row in entry["rows"]}
            at = [place[n] for n in rows]
            counts[r, at], zeros[r, at] = entry["counts"], entry["zeros"]
            table += [{"task": entry["task"], "epoch": entry["epoch"], "layer": n, **rows.get(n, {})} for n in layers]
        return cls(
            tuple(layers),
            np.array([e["task"] for e in entries]),
            np.array([e["epoch"] for e in entries]),
            counts,
            zeros,
            null_counts,
            null_zeros,
            pd.DataFrame(table),
            pd.DataFrame(null_rows),
        )

    def fraction(self, threshold: float, sign: str = "positive") -> np.ndarray:
        """Share of gradient entries above the edge nearest to `threshold`, (r, l): entries > t, or |entries| > t.

        With `positive` this is the released count of Wang et al. 2022. Raises ValueError for a threshold out of range.
        """
        return share_above(self.counts, self.zeros, edge_index(threshold), sign)

    def null_fraction(self, threshold: float, sign: str = "positive") -> np.ndarray:
        """`fraction` of the n untrained networks on their first t tasks, (n, t, l)."""
        return share_above(self.null_counts, self.null_zeros, edge_index(threshold), sign)

    def save(self, folder: Path) -> None:
        """Write `histograms.npz` and `gradients.csv` into `folder`."""
        with atomic(folder / "histograms.npz") as path, open(path, "wb") as file:
            np.savez_compressed(
                file,
                layers=np.array(self.layers),
                edges=EDGES,
                task=self.task,
                epoch=self.epoch,
                counts=self.counts,
                zeros=self.zeros,
                null_counts=self.null_counts,
                null_zeros=self.null_zeros,
            )
        both = pd.concat([self.table.assign(network="collective"), self.null_table.assign(network="untrained")])
        with atomic(folder / "gradients.csv") as path:
            both.to_csv(path, index=False, lineterminator="\n")

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Read a run folder's record, without torch. Raises StudyError when it is missing or damaged."""
        folder = Path(folder)
        try:
            values = load_arrays(folder / "histograms.npz")
            table = pd.read_csv(folder / "gradients.csv")
            if missing := {"task", "epoch", "layer", "network", *MEASURES} - {*table}:
                raise ValueError(f"gradients.csv has no column {min(missing)!r}")
            groups = {k: t.drop(columns="network").reset_index(drop=True) for k, t in table.groupby("network")}
            if not np.array_equal(values.pop("edges"), EDGES):
                raise ValueError("its bins are not this version's")
            values["layers"] = tuple(str(n) for n in values["layers"])
            record = cls(**values, table=groups["collective"], null_table=groups["untrained"])
            if len(record.table) != record.zeros.size or len(record.null_table) != record.null_zeros.size:
                raise ValueError("gradients.csv has not one row per epoch and layer")
            if not all(pd.api.types.is_numeric_dtype(table[c]) for c in table if c not in ("layer", "network")):
                raise ValueError("gradients.csv holds what is no number")
            return record
        except FileNotFoundError as error:
            raise StudyError(f"{error.filename} does not exist; run `learngene collective` first") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StudyError(
                f"the gradient record in {folder} is damaged ({error}); rebuild it with --redo collective"
            ) from None


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of every member of an .npz archive. Nothing in it is executed, and no more memory taken than it may need.

    Raises ValueError for a file that is no whole archive of numbers, OSError when it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > LARGEST_ARRAYS:
                raise ValueError(f"{path.name} says that it unpacks to more than {LARGEST_ARRAYS:,} bytes")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, SyntaxError, TypeError, NotImplementedError, RuntimeError,
            MemoryError, OverflowError) as error:  # fmt: skip
        raise ValueError(f"{path.name} is no whole archive of arrays ({type(error).__name__})") from None


def share_above(counts: np.ndarray, zeros: np.ndarray, edge: int | np.ndarray, sign: str) -> np.ndarray:
    """(..., l, 2, N_BINS), (..., l) -> (..., l): share of all entries that lie above edge number `edge`.

    edge: one for all, or (..., l), one for each. Raises ValueError for a sign other than positive and absolute.
    """
    if sign not in ("positive", "absolute"):
        raise ValueError(f"unknown sign {sign!r}; there are positive and absolute")
    total = counts.sum((-1, -2)) + zeros
    if np.ndim(edge):
        counts, edge = np.where(np.arange(N_BINS) >= edge[..., None, None], counts, 0), 0
    above = counts[..., 0, edge:].sum(-1)
    if sign == "absolute":
        above = above + counts[..., 1, edge:].sum(-1)
    with np.errstate(invalid="ignore"):
        return above / total
