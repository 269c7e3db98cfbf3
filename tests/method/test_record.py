"""The gradient record: counts against brute force at every edge, norms against NumPy, the file against damage."""

import copy
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from learngene_core.errors import StudyError
from learngene_core.gradients import Recorder, block_weights
from learngene_core.network import ConvNet
from learngene_core.record import EDGES, MEASURES, N_BINS, Record, edge_index, raw_bin, share_above

THRESHOLDS = (0.0, 5e-10, 5e-4)


def look(**gradients):
    """The recorder's take of one step with these gradients (and weights of one)."""
    weights = {}
    for name, g in gradients.items():
        weights[name] = nn.Parameter(torch.ones_like(g))
        weights[name].grad = g
    recorder = Recorder(weights)
    recorder()
    return recorder.take()


def above(values, edge):
    """Brute force: entries strictly above the edge, and strictly below its negative."""
    return int((values > edge).sum()), int((values < -edge).sum())


def conv(values):
    """A gradient (k, 2, 3, 3) with these entries first, zeros behind."""
    values = np.asarray(values, np.float32)
    entries = np.zeros(-(-len(values) // 18) * 18, np.float32)
    entries[: len(values)] = values
    return torch.from_numpy(entries).view(-1, 2, 3, 3)


def everything(seed=0):
    """Entries of all sizes and both signs, every edge with its two neighbours, denormal, huge and infinite ones."""
    rng = np.random.default_rng(seed)
    sizes = [10 ** rng.uniform(-44, 38, 20_000), 10 ** rng.uniform(-13, 1, 20_000), np.zeros(50)]
    sizes += [EDGES, np.nextafter(EDGES, np.float32(0)), np.nextafter(EDGES, np.float32(np.inf))]
    sizes += [[1e-45, 1.4e-45, 1e-40, 1.17549435e-38, 3e38, np.inf], [5e-10, 5e-4] * 7]
    values = np.concatenate(sizes).astype(np.float32)
    values = np.concatenate([values, -values])
    return rng.permutation(values)


# edges ------------------------------------------------------------------------------------------------------------------
def test_the_released_thresholds_are_edges_and_bins_are_fine_enough():
    for t in (5e-10, 5e-4):
        assert np.float32(t) in EDGES and EDGES[edge_index(t)] == np.float32(t)
    assert edge_index(0) == 0 and EDGES[0] == 0 and EDGES[1] < 1.3e-15 and EDGES[-1] > 900
    assert (np.diff(EDGES) > 0).all() and len(EDGES) == N_BINS
    for low in 10.0 ** np.arange(-12, 0):
        assert ((low <= EDGES) & (low * 10 > EDGES)).sum() >= 20, low


def test_a_threshold_is_moved_to_the_nearest_edge_and_not_far():
    for t in 10 ** np.random.default_rng(0).uniform(-14.9, 2.9, 300):
        nearest = EDGES[1:][np.abs(np.log(EDGES[1:].astype(float) / t)).argmin()]
        assert EDGES[edge_index(t)] == nearest
        assert nearest / t == pytest.approx(1, rel=0.07)


@pytest.mark.parametrize("threshold", [1e-17, 1e5, -5e-4, float("nan"), float("inf")])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="range"):
        edge_index(threshold)


def test_many_thresholds_at_once_are_each_moved_to_its_own_edge():
    thresholds = np.append(10 ** np.random.default_rng(1).uniform(-14.9, 2.9, 11), [0.0]).reshape(3, 4)
    index = edge_index(thresholds)
    assert index.tolist() == [[edge_index(float(t)) for t in row] for row in thresholds]
    thresholds[1, 2] = np.nan  # a layer that is not there
    index[1, 2] = 0
    assert edge_index(thresholds).tolist() == index.tolist()
    thresholds[0, 0] = np.inf
    with pytest.raises(ValueError, match="inf is outside"):
        edge_index(thresholds)


def test_every_cell_can_have_its_own_edge():
    record, rng = random_record(), np.random.default_rng(2)
    edges = rng.integers(0, N_BINS, record.zeros.shape)
    for sign in ("positive", "absolute"):
        shares = share_above(record.counts, record.zeros, edges, sign)
        for r, n in np.ndindex(*edges.shape):
            assert shares[r, n] == share_above(record.counts, record.zeros, int(edges[r, n]), sign)[r, n]


# counts -----------------------------------------------------------------------------------------------------------------
def test_counts_equal_brute_force_at_every_edge():
    values = everything()
    _, counts, zeros = look(a=conv(values))
    entries = conv(values).numpy().ravel()
    assert zeros.tolist() == [(entries == 0).sum()]
    for i, edge in enumerate(EDGES):
        assert (counts[0, 0, i:].sum(), counts[0, 1, i:].sum()) == above(entries, edge), edge
    assert counts.sum() + zeros.sum() == entries.size


@pytest.mark.parametrize("threshold", [5e-10, 5e-4])
def test_a_released_threshold_is_strict(threshold):
    t = np.float32(threshold)
    up, down = np.nextafter(t, np.float32(1)), np.nextafter(t, np.float32(0))
    _, counts, zeros = look(a=conv([t] * 5 + [-t] * 4 + [up] * 3 + [-up] * 2 + [down, -down, 0.0, -0.0]))
    edge = edge_index(threshold)
    assert counts[0, 0, edge:].sum() == 3 and counts[0, 1, edge:].sum() == 2
    assert share_above(counts, zeros, edge, "positive")[0] == 3 / 18
    assert share_above(counts, zeros, edge, "absolute")[0] == 5 / 18
    assert zeros[0] == 2


def test_small_entries_are_not_zeros():
    _, counts, zeros = look(a=conv([1e-45, -1e-45, 1e-20, 1e-38]))
    assert zeros[0] == 14 and counts[0, 0].sum() == 3 and counts[0, 1].sum() == 1
    assert share_above(counts, zeros, edge_index(0), "absolute")[0] == 4 / 18


def test_steps_add_up_and_layers_stay_apart():
    g = torch.Generator().manual_seed(0)
    scales = {"a": 1e-9, "b": 1e-3, "c": 1e-6}
    weights = {n: nn.Parameter(torch.randn(k, 2, 3, 3, generator=g)) for n, k in zip(scales, (3, 5, 2), strict=True)}
    recorder, seen = Recorder(weights), {n: [] for n in scales}
    for _ in range(3):
        for n, w in weights.items():
            w.grad = torch.randn(w.shape, generator=g) * scales[n]
            seen[n].append(w.grad.numpy().ravel())
        recorder()
    rows, counts, _ = recorder.take()
    assert [row["layer"] for row in rows] == list(scales)
    for i, n in enumerate(scales):
        entries = np.concatenate(seen[n])
        for t in THRESHOLDS:
            wanted = above(entries, np.float32(t))
            assert (counts[i, 0, edge_index(t) :].sum(), counts[i, 1, edge_index(t) :].sum()) == wanted, (n, t)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided", "expanded"])
def test_the_layout_in_memory_does_not_matter(layout):
    g = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0)) * 1e-3
    if layout == "channels_last":
        h = g.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        h = g.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "strided":
        h = torch.stack([g, torch.full_like(g, 7.0)], -1)[..., 0]
    else:
        g = g[:1].expand(4, 6, 3, 3).contiguous()
        h = g[:1].expand(4, 6, 3, 3)
    assert not h.is_contiguous() and torch.equal(g, h)
    other = torch.full((1, 1, 3, 3), 1e-7)
    plain, laid = look(a=g, b=other), look(a=h, b=other)
    assert np.array_equal(plain[1], laid[1]) and np.array_equal(plain[2], laid[2])
    for one, two in zip(plain[0], laid[0], strict=True):
        assert one["norm"] == pytest.approx(two["norm"], rel=1e-6)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0x7F800001, -1, -0x400000])
@pytest.mark.parametrize("where", ["a", "b", "c"])
def test_gradients_that_are_not_numbers_do_not_stop_or_spoil_the_record(bits, where):
    """`fit` says at the end of the epoch that the loss is not finite; 0x7FFFFFFF is what CUDA makes of 0/0."""
    gradients = {name: conv([1e-8] * 18) for name in ("a", "b", "c")}
    gradients[where].view(-1)[4:5] = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert torch.isnan(gradients[where]).sum() == 1
    _, counts, zeros = look(**gradients)
    for i, name in enumerate(gradients):
        assert counts[i, 0, : edge_index(5e-4)].sum() == (17 if name == where else 18)
        assert counts[i].sum() + zeros[i] == 18


def test_the_numpy_reference_agrees_with_the_device():
    values = everything(1)
    bits = np.abs(values).view(np.int32)
    bins = raw_bin(bits)
    assert (bins[np.abs(values) == 0] == 0).all() and (bins[np.abs(values) > 0] > 0).all()
    order = np.argsort(bits)
    assert (np.diff(bins[order]) >= 0).all()


# norms, every k-th step -------------------------------------------------------------------------------------------------
def test_norms_equal_numpy():
    g = torch.Generator().manual_seed(0)
    weights = {n: nn.Parameter(torch.randn(k, 2, 3, 3, generator=g)) for n, k in (("a", 3), ("b", 5))}
    recorder, steps = Recorder(weights), []
    for _ in range(4):
        with torch.no_grad():
            for w in weights.values():
                w.mul_(1.5)
                w.grad = torch.randn(w.shape, generator=g)
        recorder()
        steps.append({n: (w.grad.numpy().astype(float), w.detach().numpy().astype(float)) for n, w in weights.items()})
    rows, _, _ = recorder.take()
    for row in rows:
        pairs = [step[row["layer"]] for step in steps]
        norm = np.array([np.sqrt((grad**2).sum()) for grad, _ in pairs])
        size = np.array([np.sqrt((weight**2).sum()) for _, weight in pairs])
        assert row["n_weights"] == pairs[0][0].size and row["steps"] == 4
        assert row["norm"] == pytest.approx(norm.mean())
        assert row["rms"] == pytest.approx(np.sqrt(np.mean([(grad**2).mean() for grad, _ in pairs])))
        assert row["weight_norm"] == pytest.approx(size.mean())
        assert row["norm_times_weight"] == pytest.approx((norm * size).mean())
        assert row["relative_norm"] == pytest.approx((norm / size).mean())


@pytest.mark.parametrize("single", [False, True])
def test_rows_can_be_written_as_json(single):
    """`about.json` keeps them; where the device has no 64-bit floats (MPS) the sums are 32-bit."""
    w = nn.Parameter(torch.ones(2, 2, 3, 3))
    w.grad = torch.full_like(w, 0.5)
    recorder = Recorder({"a": w})
    if single:
        recorder._sums = recorder._sums.float()
    recorder()
    rows, _, _ = recorder.take()
    assert json.loads(json.dumps(rows)) == rows


def test_every_kth_step_is_seen_from_the_first_of_each_epoch_on():
    w = nn.Parameter(torch.ones(1, 2, 3, 3))
    recorder = Recorder({"a": w}, every=3)
    for _ in range(2):
        for step in range(7):
            w.grad = torch.full_like(w, 1e-3 if step in (0, 3, 6) else 1e-9)
            recorder()
        rows, counts, _ = recorder.take()
        assert rows[0]["steps"] == 3 and counts[0, 0, edge_index(5e-4) :].sum() == 3 * 18 == counts.sum()


def test_an_epoch_without_a_recorded_step_is_refused():
    recorder = Recorder({"a": nn.Parameter(torch.ones(1, 2, 3, 3))})
    with pytest.raises(ValueError):
        recorder.take()


def test_a_real_networks_gradients_are_recorded_as_they_are():
    net = ConvNet((4, 6, 5), (1, 2), 3, 16, generator=torch.Generator().manual_seed(0))
    net = net.to(memory_format=torch.channels_last)
    recorder = Recorder(block_weights(net))
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    nn.functional.cross_entropy(net(x), torch.arange(8) % 3).backward()
    before = copy.deepcopy([p.grad for p in net.parameters()])
    recorder()
    rows, counts, zeros = recorder.take()
    assert all(torch.equal(p.grad, b) for p, b in zip(net.parameters(), before, strict=True))
    assert [row["layer"] for row in rows] == ["conv1", "conv2", "conv3"]
    for i, block in enumerate(net.blocks.values()):
        g = block.conv.weight.grad.numpy()
        assert zeros[i] == (g == 0).sum()
        for edge in range(0, N_BINS, 5):
            assert (counts[i, 0, edge:].sum(), counts[i, 1, edge:].sum()) == above(g, EDGES[edge])


# layers of any network --------------------------------------------------------------------------------------------------
def parameters_with_gradients(seed=0):
    """Five weights of several shapes with random gradients of very different sizes."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for k, shape in enumerate([(3, 2, 3, 3), (4, 3, 1, 1), (5, 7), (2, 2, 5, 5), (6, 5)]):
        w = nn.Parameter(torch.randn(shape, generator=g))
        w.grad = torch.randn(shape, generator=g) * 10.0 ** (-3 * k)
        found.append(w)
    return found


def looked(weights):
    recorder = Recorder(weights)
    recorder()
    return recorder.take()


def test_several_parameters_count_as_one_layer():
    a, b, c, d, e = parameters_with_gradients()
    rows, counts, zeros = looked({"ab": (a, b), "c": c, "de": [d, e]})
    alone = looked(dict(zip("abcde", (a, b, c, d, e), strict=True)))
    assert [row["layer"] for row in rows] == ["ab", "c", "de"]
    for i, group in enumerate(((0, 1), (2,), (3, 4))):
        assert np.array_equal(counts[i], alone[1][list(group)].sum(0)) and zeros[i] == alone[2][list(group)].sum()
        weights = [(a, b, c, d, e)[k].detach().numpy().astype(float) for k in group]
        grads = [(a, b, c, d, e)[k].grad.numpy().astype(float) for k in group]
        norm, size = (np.sqrt(sum((x**2).sum() for x in part)) for part in (grads, weights))
        n = sum(w.size for w in weights)
        wanted = {"n_weights": n, "norm": norm, "weight_norm": size, "relative_norm": norm / size, "rms": norm / n**0.5}
        wanted["norm_times_weight"] = np.sqrt(
            sum((g**2).sum() * (w**2).sum() for g, w in zip(grads, weights, strict=True))
        )
        assert {k: rows[i][k] for k in wanted} == pytest.approx(wanted, rel=1e-5)


def test_a_layer_of_one_parameter_is_the_same_to_the_bit_whatever_stands_beside_it():
    a, b, c, d, _ = parameters_with_gradients()
    plain, grouped, beside = (
        looked({"a": a, "b": b}),
        looked({"a": [a], "b": (b,)}),
        looked({"a": a, "cd": (c, d), "b": b}),
    )
    assert plain[0] == grouped[0] == [beside[0][0], beside[0][2]]
    for k in (1, 2):
        assert np.array_equal(plain[k], grouped[k]) and np.array_equal(plain[k], beside[k][[0, 2]])


def test_rescaling_one_of_two_convolutions_before_batch_norm_does_not_move_norm_times_weight():
    """Two convolutions, each with batch norm behind it, as one layer: the first times 3 is the same function."""
    g = torch.Generator().manual_seed(0)
    x, found = torch.randn(16, 3, 8, 8, generator=g), []
    for factor in (1.0, 3.0):
        torch_layers = [
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6, eps=1e-12),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3),
            nn.BatchNorm2d(6, eps=1e-12),
        ]
        net = nn.Sequential(nn.Sequential(*torch_layers), nn.Flatten(), nn.Linear(96, 4))
        fill = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, generator=fill) if p.ndim > 1 else torch.ones_like(p))
            net[0][0].weight.mul_(factor)
        recorder = Recorder(block_weights(net, {"both": net[0]}))
        nn.functional.cross_entropy(net(x) / 10, torch.arange(16) % 4).backward()
        recorder()
        found.append(recorder.take()[0][0])
    assert found[0]["norm_times_weight"] == pytest.approx(found[1]["norm_times_weight"], rel=1e-3)
    assert found[0]["norm"] > 1.1 * found[1]["norm"]


def test_blocks_can_be_named_in_several_ways():
    net = ConvNet((4, 6, 5), (1, 2), 3, 16, hidden=(7,), generator=torch.Generator().manual_seed(0))
    assert all(block_weights(net)[n] is block.conv.weight for n, block in net.blocks.items())
    named = block_weights(net, ("blocks.conv2", "classifier"))
    assert list(named) == ["blocks.conv2", "classifier"]
    assert [p is q for p, q in zip(named["classifier"], (net.classifier[0].weight, net.head.weight), strict=True)] == [
        True
    ] * 2
    assert (
        named["blocks.conv2"][0] is net.blocks["conv2"].conv.weight and len(named["blocks.conv2"]) == 1
    )  # no bias, no norm
    for blocks in ({"two": net.blocks["conv2"]}, {"two": "blocks.conv2"}):
        assert block_weights(net, blocks)["two"][0] is net.blocks["conv2"].conv.weight


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        (("blocks.conv9",), "conv9.*not a submodule"),
        ({"other": nn.Conv2d(3, 3, 3)}, "other.*not a submodule"),
        (("blocks.conv1.norm",), "norm.*no weights"),
        ("blocks.conv1", "several names"),
        ((), "no block"),
    ],
)
def test_blocks_that_are_not_there_are_refused(blocks, text):
    net = ConvNet((4, 6, 5), (1, 2), 3, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=text):
        block_weights(net, blocks)


def test_a_network_that_does_not_name_its_blocks_is_told_so():
    with pytest.raises(ValueError, match="give blocks"):
        block_weights(nn.Sequential(nn.Linear(2, 2)))


def test_a_layer_without_gradient_or_parameter_is_refused():
    a, b, *_ = parameters_with_gradients()
    b.grad = None
    with pytest.raises(ValueError, match="no gradient"):
        Recorder({"a": (a, b)})()
    for weights in ({}, {"a": a, "b": ()}):
        with pytest.raises(ValueError, match="no parameter|without one"):
            Recorder(weights)


# the file ---------------------------------------------------------------------------------------------------------------
def random_record(seed=0):
    rng = np.random.default_rng(seed)
    layers, task, epoch = ("conv1", "conv2", "conv2+1"), [1, 1, 2, 2, 2], [1, 2, 1, 2, 3]

    def table(tasks, epochs):
        rows = [{"task": t, "epoch": e, "layer": n} for t, e in zip(tasks, epochs, strict=True) for n in layers]
        values = {c: rng.normal(size=len(rows)) * 10.0 ** rng.integers(-9, 9, len(rows)) for c in MEASURES}
        return pd.DataFrame(rows).assign(**values)

    return Record(
        layers,
        np.array(task),
        np.array(epoch),
        rng.integers(0, 1 << 40, (5, 3, 2, N_BINS)),
        rng.integers(0, 9, (5, 3)),
        rng.integers(0, 9, (4, 2, 3, 2, N_BINS)),
        rng.integers(0, 9, (4, 2, 3)),
        table(task, epoch),
        table([1, 2] * 4, [1, 1, 2, 2, 3, 3, 4, 4]),
    )


def test_a_record_comes_back_from_its_files_bit_for_bit(tmp_path):
    record = random_record()
    record.table.loc[2, ["norm", "rms"]] = np.nan  # a layer that did not exist yet
    record.save(tmp_path)
    again = Record.load(tmp_path)
    assert again.layers == record.layers
    for name in ("task", "epoch", "counts", "zeros", "null_counts", "null_zeros"):
        assert np.array_equal(getattr(again, name), getattr(record, name)), name
    pd.testing.assert_frame_equal(again.table, record.table, check_exact=True)
    pd.testing.assert_frame_equal(again.null_table, record.null_table, check_exact=True)
    first = (tmp_path / "histograms.npz").read_bytes(), (tmp_path / "gradients.csv").read_bytes()
    again.save(tmp_path)
    assert first == ((tmp_path / "histograms.npz").read_bytes(), (tmp_path / "gradients.csv").read_bytes())


def damages():
    def cut(share):
        return lambda data: data[: int(len(data) * share)]

    def flip(share):
        def damage(data):
            at = int(len(data) * share)
            return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]

        return damage

    every = {"empty": lambda data: b"", "text": lambda data: b"not an archive"}
    every |= {f"cut at {s}": cut(s) for s in (0.001, 0.1, 0.5, 0.9, 0.999)}
    return every | {f"flipped at {s}": flip(s) for s in (0.0, 0.2, 0.5, 0.8)}


@pytest.mark.parametrize("damage", damages())
def test_damaged_histograms_are_one_clear_line(tmp_path, damage):
    random_record().save(tmp_path)
    path = tmp_path / "histograms.npz"
    path.write_bytes(damages()[damage](path.read_bytes()))
    with pytest.raises(StudyError) as error:
        Record.load(tmp_path)
    assert "damaged" in str(error.value) and "--redo collective" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage",
    {
        "empty": lambda text: "",
        "binary": lambda text: "\x00\x01" * 99,
        "no networks": lambda text: text.replace("network", "x"),
        "no norms": lambda text: text.replace("weight_norm", "x"),
        "no layers": lambda text: text.replace("layer", "x"),
        "rows are missing": lambda text: "\n".join(text.split("\n")[:-4]),
        "cut in a row": lambda text: text[: len(text) // 2],
        "a text where a number was": lambda text: text.replace(text.split("\n")[1].split(",")[3], "oops", 1),
    }.items(),
    ids=lambda d: d[0],
)
def test_a_damaged_table_is_one_clear_line(tmp_path, damage):
    random_record().save(tmp_path)
    path = tmp_path / "gradients.csv"
    path.write_text(damage[1](path.read_text()))
    with pytest.raises(StudyError) as error:
        Record.load(tmp_path)
    assert "damaged" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["histograms.npz", "gradients.csv"])
def test_a_missing_file_is_named(tmp_path, name):
    random_record().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StudyError, match=name):
        Record.load(tmp_path)


def test_other_bins_are_refused(tmp_path):
    random_record().save(tmp_path)
    with np.load(tmp_path / "histograms.npz") as arrays:
        values = dict(arrays)
    values["edges"] = values["edges"] * 2
    np.savez(tmp_path / "histograms.npz", **values)
    with pytest.raises(StudyError, match="bins"):
        Record.load(tmp_path)


def test_fractions_follow_from_the_counts_for_any_edge():
    record = random_record()
    for threshold in (0, 5e-10, 1e-6, 5e-4, 1.0):
        i = edge_index(threshold)
        for r in range(5):
            for n in range(3):
                up, down = (record.counts[r, n, sign, i:].sum() for sign in (0, 1))
                total = record.counts[r, n].sum() + record.zeros[r, n]
                assert record.fraction(threshold)[r, n] == pytest.approx(up / total)
                assert record.fraction(threshold, "absolute")[r, n] == pytest.approx((up + down) / total)
    assert record.null_fraction(5e-4).shape == (4, 2, 3)


def test_reading_a_record_and_its_criteria_needs_no_torch(tmp_path):
    random_record().save(tmp_path)
    code = (
        "import sys; from learngene_core import criteria; from learngene_core.record import Record\n"
        f"criteria.score(Record.load({str(tmp_path)!r}), 'released', threshold=5e-4)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
