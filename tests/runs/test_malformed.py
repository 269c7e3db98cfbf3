"""Malformed and hostile files of runs and learngenes: each ends in one clear line, at once, without memory, inside its folders.

Every case goes through the command line's own error handling. Truncated and hostile files must be refused; a file in which one
bit is turned may also be harmless, and is then read to the end.
"""

import contextlib
import io
import json
import os
import pickle
import signal
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from damage import filed, truncated, turned

from learngene_core.collective import newborn
from learngene_core.config import Config
from learngene_core.errors import Diverged, read_json, write_json
from learngene_core.learngene import Learngene
from learngene_core.network import ConvNet
from learngene_core.record import MEASURES, N_BINS, Record, load_arrays
from learngene_core.runs import info, seals
from learngene_core.runs.machine import machine_of
from learngene_core.runs.run import Run
from learngene_core.runs.states import load_state, save_state, save_task
from learngene_core.study import cli
from learngene_core.study.options import configuration, parser

resource = pytest.importorskip("resource", reason="its watches for hanging and memory are POSIX's")
SMOKE = Config.preset("smoke")
SECONDS = 20  # a case that takes longer hangs
MEMORY = 2**18  # kB; no case needs more, whatever sizes it tells of


@pytest.fixture
def call(monkeypatch, capsys):
    """Call a function as a command would: returns the one line of its refusal, or None when it ended well."""

    def hangs(*_):
        raise AssertionError("it hangs")

    def run(function, *arguments):
        def work(_):
            function(*arguments)
            return 0

        monkeypatch.setattr(cli, "_run", work)
        capsys.readouterr()
        before = signal.signal(signal.SIGALRM, hangs)
        signal.alarm(SECONDS)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            with warnings.catch_warnings(record=True) as warned:  # a warning would be lines on standard error
                warnings.simplefilter("always")
                status = cli.main(["divide"])
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err and "it hangs" not in err
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY
        assert not warned, [str(w.message) for w in warned]
        if status == 0:
            assert err == ""
            return None
        (line,) = err.splitlines()
        assert status == 1 and line.startswith("learngene: ")
        assert "(--debug shows where)" not in line, f"not a clear line: {line}"
        assert len(line) < 1500 and line.isprintable(), line
        return line

    return run


# safetensors ----------------------------------------------------------------------------------------------------------
def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape=(2,), span=(0, 8), dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span), **more}


HOSTILE = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "an endless header": raw({}, length=2**64 - 1),
    "a header of the whole memory": raw({}, length=2**40),
    "a header beyond the file": raw({"a": entry()}, bytes(8), length=500),
    "a header within the limit that is not there": raw(b"{", length=2),
    "not text": raw(b"\xff\xfe{}"),
    "not JSON": raw(b"{'a': 1}"),
    "deep": raw(b'{"a":' * 100_000),
    "a list": raw([1]),
    "a name twice": raw(
        b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", bytes(8)
    ),
    "an entry that is a number": raw({"a": 3}),
    "an entry with more": raw({"a": entry(code="x")}, bytes(8)),
    "unknown type": raw({"a": entry(dtype="O")}, bytes(8)),
    "a type that is a list": raw({"a": entry(dtype=["F32"])}, bytes(8)),
    "negative shape": raw({"a": entry((-2,), (0, -8))}, bytes(8)),
    "a shape of fractions": raw({"a": entry((2.0,))}, bytes(8)),
    "a shape of truths": raw({"a": entry((True, True), (0, 4))}, bytes(4)),
    "a huge shape": raw({"a": entry((2**40, 2**40), (0, 8))}, bytes(8)),
    "a huge shape with its bytes": raw({"a": entry((2**45,), (0, 2**47))}, bytes(8)),
    "a shape that overflows 64 bits": raw({"a": entry((2**32, 2**32), (0, 0))}),
    "many dimensions": raw({"a": entry((1,) * 1000, (0, 4))}, bytes(4)),
    "bytes for another shape": raw({"a": entry((3,))}, bytes(8)),
    "bytes backwards": raw({"a": entry((2,), (8, 0))}, bytes(8)),
    "overlap": raw({"a": entry(), "b": entry((2,), (4, 12))}, bytes(12)),
    "the same bytes": raw({"a": entry(), "b": entry()}, bytes(8)),
    "a gap": raw({"a": entry(), "b": entry((2,), (12, 20))}, bytes(20)),
    "bytes of nobody": raw({"a": entry()}, bytes(9)),
    "too few bytes": raw({"a": entry()}, bytes(7)),
    "metadata that are numbers": raw({"__metadata__": {"x": 1}}),
    "metadata that are a list": raw({"__metadata__": [1]}),
}


# learngene files ----------------------------------------------------------------------------------------------------
def gene():
    net = ConvNet((4, 5, 6), (2,), 3, 32, generator=torch.Generator().manual_seed(0))
    fisher = {n: torch.ones_like(p) for n, p in net.named_parameters()}
    return Learngene.from_model(net, ("conv2", "conv3"), mean=(0.5,) * 3, std=(0.2,) * 3, fisher=fisher, data="toy")


GENE = filed(gene().save, "a.safetensors")
HEADER = 8 + struct.unpack("<Q", GENE[:8])[0]


def with_header(change):
    """The learngene file with its header changed, the rest as it was."""
    header = json.loads(GENE[8:HEADER])
    text = json.dumps(change(header)).encode()
    return struct.pack("<Q", len(text)) + text + GENE[HEADER:]


def with_about(**entries):
    def change(header):
        about = {**json.loads(header["__metadata__"]["learngene"]), **entries}
        return {**header, "__metadata__": {"learngene": json.dumps(about)}}

    return with_header(change)


def renamed(name):
    return with_header(lambda h: {(name if n == "conv2.conv.weight" else n): v for n, v in h.items()})


GENES = {
    **HOSTILE,
    **truncated(GENE, 12),
    "a pickle": pickle.dumps({"conv1": 3}),
    "a name that climbs": renamed("../../outside/precious.txt"),
    "an absolute name": renamed("/etc/passwd"),
    "a name in two lines": renamed("conv2\n\x1b[31mall is well"),
    "an endless name": renamed("x" * 100_000),
    "a layer that climbs": with_about(layers=["../conv2", "conv3"], pools=[]),
    "a layer in two lines": with_about(layers=["conv2\nall is well", "conv3"], pools=[]),
    "layers without end": with_about(layers=["conv2"] * 50_000),
    "widths that no memory holds": with_about(widths=[65536, 65536], input_width=65536),
    "deep metadata": with_header(lambda h: {**h, "__metadata__": {"learngene": "[" * 100_000}}),
    "an endless format": with_about(format="x" * 100_000),
    "an image size that no memory holds": with_about(image_size=10**15),
    "notes that are a list": with_about(notes=[[["x"]], 3]),
}


@pytest.mark.parametrize("data", GENES.values(), ids=GENES)
def test_learngene_files(place, call, data):
    (place / "a.safetensors").write_bytes(data)
    line = call(Learngene.load, place / "a.safetensors")
    assert line is not None and "a.safetensors is no whole learngene file" in line


@pytest.mark.parametrize("data", turned(GENE, 30, 0, HEADER).values())
def test_learngene_files_with_a_bit_turned(place, call, data):
    (place / "a.safetensors").write_bytes(data)
    line = call(Learngene.load, place / "a.safetensors")
    assert line is None or "a.safetensors" in line


# JSON ---------------------------------------------------------------------------------------------------------------
JSON = {
    "nothing": b"",
    "half": b'{"a": [1, 2',
    "not text": b"\xff\xfe\x00{}",
    "no JSON": b"{'a': __import__('os').system('true')}",
    "deep": b"[" * 200_000,
    "a list": b"[1, 2]",
    "a number": b"1e999",
    "null": b"null",
    "other keys": b'{"preset": "smoke"}',
    "keys of wrong types": b'{"division": 3, "base": 4, "device": [], "seed": "x", "preset_name": 5, "stage_hash": {}}',
    "a name that climbs": b'{"division": {"hash": "h", "fields": {}, "files": {"../../outside/precious.txt": {"bytes": 4, '
    b'"sha256": "x"}}}, "base": ["../../x"], "seed": -1}',
    "an absolute name": b'{"division": {"hash": "h", "fields": {}, "files": {"/etc/passwd": {"bytes": 4, "sha256": "x"}}}}',
    "a huge number": b'{"seed": ' + b"9" * 5000 + b', "device": 1}',
}


def opened(place):
    return Run.open(SMOKE, place / "run")


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
@pytest.mark.parametrize("name", ["config.json", "manifest.json", "machine.json"])
def test_bookkeeping_of_a_run(place, call, name, text):
    run = opened(place)
    assert machine_of(run) and not run.manifest
    (run.path / name).write_bytes(text)
    if name == "config.json":  # what is asked for is known otherwise: a command writes it anew, `info` refuses
        line = call(info.report, run.path)
        assert "config.json" in line and "called again, writes it anew" in line
        assert call(opened, place) is None
        return
    line = call(lambda: machine_of(opened(place)))
    assert line and name in line and "delete" in line
    assert name in call(info.report, run.path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", 5),
        ("threads", "4"),
        ("channels_last", "no"),
        ("workers", 2.5),
        ("threads", 100_000),
        ("workers", 0),
        ("stack", -1),
        ("threads", 10**30),
        ("deterministic", 1),
        ("trainings", True),
        ("device", None),
    ],
)
def test_a_machine_of_wrong_types(place, call, name, value):
    path = machine_of(opened(place)) and place / "run" / "machine.json"
    write_json(path, {**read_json(path), name: value})
    line = call(lambda: machine_of(opened(place)))
    assert "machine.json is damaged; delete the file" in line


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
@pytest.mark.parametrize("name", ["about.json", "seal.json"])
def test_notes_of_a_saved_task(place, call, name, text):
    task = seals.task_folder(place, 1)
    task.mkdir()
    for other in ("about.json", "seal.json"):
        write_json(task / other, {})
    (task / name).write_bytes(text)
    assert call(seals.whole_tasks, place) is None
    assert seals.whole_tasks(place) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("widths", [4, 10**9]), ("widths", [4] * 1000), ("widths", "ab"), ("hidden", [10**10]), ("n_classes", 10**9),
     ("n_classes", 2.0), ("image_size", 10**6), ("names", ["conv1", "../../x"]), ("pools", [99])],
)  # fmt: skip
def test_a_network_whose_notes_ask_for_more_than_its_file_holds(place, call, name, value):
    """Refused before memory is taken for it."""
    net = ConvNet((4, 5), (2,), 3, 32)
    save_state(place, net, {})
    about = {"shape": json.loads(json.dumps(net.shape)), "mean": [0.5] * 3, "std": [0.2] * 3}
    write_json(place / "about.json", about)
    assert call(load_state, place) is None, "the good one is read"
    about["shape"][name] = value
    write_json(place / "about.json", about)
    line = call(load_state, place)
    assert line and "damaged" in line and "--redo collective" in line


VALUES = {
    "a negative variance": ("model", "blocks.conv1.norm.running_var", -5.0),
    "a variance that is no number": ("model", "blocks.conv2.norm.running_var", float("nan")),
    "an infinite weight": ("model", "blocks.conv2.conv.weight", float("inf")),
    "an absurd weight": ("model", "classifier.0.weight", -3e38),
    "a negative Fisher": ("fisher", "blocks.conv1.conv.weight", -1e-6),
    "a negative Fisher of the learngene": ("gene_fisher", "blocks.conv1.conv.bias", -1.0),
    "momentum that is no number": ("momentum", "classifier.0.bias", float("nan")),
}


@pytest.mark.parametrize(("group", "name", "value"), VALUES.values(), ids=VALUES)
def test_a_saved_network_with_values_that_no_training_gives(place, call, group, name, value):
    """Whatever its seal says: a negative variance gives no loss that is not finite, only chance."""
    net = ConvNet((4, 5), (2,), 3, 32)
    groups = {
        g: {n: torch.ones_like(p) for n, p in net.named_parameters()} for g in ("fisher", "gene_fisher", "momentum")
    }
    groups["model"] = dict(net.state_dict())
    write_json(place / "about.json", {"shape": net.shape, "mean": [0.5] * 3, "std": [0.2] * 3})
    save_state(place, net, groups)
    assert call(load_state, place) is None, "the good one is read"
    groups[group][name] = groups[group][name].clone()
    groups[group][name].view(-1)[-1] = value
    save_state(place, net, groups)
    line = call(load_state, place)
    assert f"{group}/{name}" in line and "damaged" in line and "--redo collective" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [("mean", [1e308] * 3), ("mean", [0.5] * 2), ("mean", ["0.5"] * 3), ("mean", None), ("std", [-1.0] * 3),
     ("std", [1e-200] * 3), ("std", {"r": 1}), ("std", [10**400] * 3)],
)  # fmt: skip
def test_a_saved_network_of_an_absurd_normalisation(place, call, name, value):
    net = ConvNet((4, 5), (2,), 3, 32)
    save_state(place, net, {})
    about = {"shape": net.shape, "mean": [0.5] * 3, "std": [0.0, 0.2, 0.2]}
    write_json(place / "about.json", about)
    assert call(load_state, place) is None, "a constant channel has no deviation"
    write_json(place / "about.json", {**about, name: value})
    line = call(load_state, place)
    assert "damaged" in line and "--redo collective" in line


# YAML on the command line -------------------------------------------------------------------------------------------
YAML = {
    "a tag that calls": "!!python/object/apply:os.system ['touch precious']",
    "a tag that makes": "!!python/name:os.system",
    "an unknown tag": "!x 3",
    "an alias of nothing": "*x",
    "aliases that laugh": "{a: &a [x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a], c: [*b,*b,*b,*b,*b]}",
    "an alias of itself": "&a [*a]",
    "open": "[1, 2",
    "deep": "[" * 3000,
    "two documents": "1\n--- 2",
    "a control character": "\x07",
    "a date that is none": "2024-99-99",
    "a date": "2024-01-01",
    "a mapping": "{a: 1}",
    "binary": "!!binary gggg",
    "a set": "!!set {1}",
    "a huge number": "9" * 5000,
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
@pytest.mark.parametrize("name", ["shots", "learning_rate", "growth"])
def test_values_on_the_command_line(place, call, name, text):
    options = parser().parse_args(["divide", f"--set={name}={text}"])
    line = call(configuration, options)
    assert line and name in line


# tables and records -------------------------------------------------------------------------------------------------
def record():
    layers = ("conv1", "conv2")
    rows = [{"layer": n, **dict.fromkeys(MEASURES, 1.0)} for n in layers]
    entries = [
        {"task": 1, "epoch": e, "rows": rows, "counts": np.ones((2, 2, N_BINS), int), "zeros": np.ones(2, int)}
        for e in (1, 2)
    ]
    null = [{**row, "task": 1, "network": k} for k in (1, 2) for row in rows]
    return Record.of_epochs(layers, entries, null, np.ones((2, 1, 2, 2, N_BINS), int), np.ones((2, 1, 2), int))


def save_record(folder):
    record().save(folder)


CSV = {
    "nothing": b"",
    "a zip": b"PK\x03\x04" + bytes(200),
    "not text": b"task,epoch\n\xff\xfe,\x80\n",
    "rows of different lengths": b"a,b\n1,2,3,4\n5\n",
    "an open quote": b'a,b\n"1,2\n3,4\n' * 3,
    "zero bytes": bytes(500),
    "one column": b"a\n1\n",
    "words for numbers": b"layer,task,epoch,network,norm\nconv1,1,1,collective,=cmd|' /C calc'!A0\n",
    "a huge number": b"layer,task,epoch,network\nconv1," + b"9" * 400 + b",1,collective\n",
    "a huge name": b"x" * 200_000 + b",b\n1,2\n",
}


@pytest.mark.parametrize("text", CSV.values(), ids=CSV)
def test_tables_of_a_record(place, call, text):
    save_record(place)
    assert call(Record.load, place) is None, "the good one is read"
    (place / "gradients.csv").write_bytes(text)
    line = call(Record.load, place)
    assert line and "damaged" in line and "--redo collective" in line


@pytest.mark.parametrize("text", CSV.values(), ids=CSV)
def test_tables_of_a_run(place, call, text):
    run = opened(place)
    manifest = {"reconstruct": {"hash": "h", "fields": {}, "files": {"results.csv": {"bytes": 1, "sha256": "x"}}}}
    write_json(run.path / "manifest.json", manifest)
    (run.path / "results.csv").write_bytes(text)
    line = call(run.read_table, "results.csv")
    assert line is None or ("results.csv is damaged" in line and "--redo reconstruct" in line)


class Runs:
    """A pickle that would leave its mark."""

    def __reduce__(self):
        return (os.system, ("touch precious",))


def npz(**members):
    """An archive with these members as they are."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return data.getvalue()


def npy(shape, dtype="<i8", data=b"", version=b"\x01\x00"):
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode() + data


def objects():
    data = io.BytesIO()
    np.save(data, np.array([Runs()], dtype=object), allow_pickle=True)
    return data.getvalue()


RECORD = filed(lambda p: save_record(p.parent), "histograms.npz")
ARCHIVES = {
    **truncated(RECORD),
    "an object that runs": npz(layers=objects()),
    "a pickle under its name": pickle.dumps(Runs()),
    "a shape that no memory holds": npz(counts=npy((2**40, 2**20))),
    "a negative shape": npz(counts=npy((-1, -8), data=bytes(64))),
    "too few bytes": npz(counts=npy((100,), data=bytes(8))),
    "too many bytes": npz(counts=npy((1,), data=bytes(800))),
    "a header that is code": npz(counts=npy("__import__('os').system('touch precious')")),
    "an unknown version": npz(counts=npy((1,), data=bytes(8), version=b"\x09\x00")),
    "no array": npz(counts=b"hello"),
    "a name that climbs": npz(**{"../../outside/precious": npy((1,), data=bytes(8))}),
    "nothing in it": npz(),
    "a structured type with objects": npz(counts=npy((1,), dtype=[("a", "O")], data=bytes(8))),
}  # fmt: skip


@pytest.mark.parametrize("data", ARCHIVES.values(), ids=ARCHIVES)
def test_histograms_of_a_record(place, call, data):
    save_record(place)
    (place / "histograms.npz").write_bytes(data)
    line = call(Record.load, place)
    assert line and "damaged" in line and "--redo collective" in line


@pytest.mark.parametrize("data", turned(RECORD, 12).values())
def test_histograms_with_a_bit_turned(place, call, data):
    save_record(place)
    (place / "histograms.npz").write_bytes(data)
    line = call(Record.load, place)
    if line is None:  # in a name or a time of the archive, which no checksum covers and nobody reads
        with np.load(io.BytesIO(RECORD)) as good:
            assert all(np.array_equal(a, good[n]) for n, a in load_arrays(place / "histograms.npz").items())


def test_an_archive_that_unpacks_to_more_than_it_may_is_not_unpacked(place, call, monkeypatch):
    save_record(place)
    monkeypatch.setattr("learngene_core.record.LARGEST_ARRAYS", 1000)
    assert "unpacks to more than 1,000 bytes" in call(Record.load, place)


# links ----------------------------------------------------------------------------------------------------------------
LINKS = {
    "collective": "a folder", "notebooks": "a folder", ".parts": "a folder", ".owner": "a file", ".progress.tmp": "a file",
    "results.csv": "a file", "collective/task_01": "a folder", "timings.csv": "nothing",
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), LINKS.items(), ids=LINKS)
def test_a_run_from_elsewhere_writes_nothing_through_its_links(place, call, name, kind):
    outside = place.parent / "outside"
    run = opened(place)
    entry = run.path / name
    entry.parent.mkdir(exist_ok=True)
    entry.symlink_to({"a folder": outside, "a file": outside / "precious.txt", "nothing": outside / "new.txt"}[kind])

    def work():
        with run.computing("division", []):
            pass

    line = call(work)
    assert str(entry) in line and "leads out of the run folder" in line
    assert not read_json(run.path / "manifest.json") if (run.path / "manifest.json").exists() else True
    with contextlib.suppress(OSError):
        entry.unlink()
    inside = run.path / "real"
    inside.mkdir()
    (run.path / "link").symlink_to(inside)  # a link within the folder is the user's own business
    assert call(work) is None


@pytest.mark.parametrize("out", ["a\0b", "x" * 5000, "\n", "../inside/file/below"])
def test_run_folders_that_cannot_be(place, call, out):
    (place / "file").write_text("")
    line = call(Run.open, SMOKE, place / out if "/" not in out else place / "file" / "below")
    assert line is not None or out == "\n"


def test_weights_that_explode_under_a_finite_loss_are_a_divergence_and_not_a_damaged_file(place):
    """Batch norm keeps the loss finite; what could not be read back is not written, and the message names the cause."""
    state = newborn(["a", "b"], SMOKE)
    state.done = 1
    with torch.no_grad():
        state.model.blocks["conv2"].norm.running_var[-1] = 5e28
    with pytest.raises(Diverged, match=r"task 1: .*conv2.*lower learning_rate \(or ewc_lambda\)"):
        save_task(place / "task_01", state, "hash", torch.zeros(3), torch.ones(3))
    assert not (place / "task_01").exists()
