"""The learngene: what is cut out is what was there, its file is whole or refused, individuals inherit copies."""

import dataclasses
import json
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toys import toy_config

from learngene_core.config import Config
from learngene_core.errors import StudyError
from learngene_core.learngene import Learngene, build_individual, light_shape
from learngene_core.network import ConvNet
from learngene_core.presets import PAPER_FINAL_WIDTHS, PAPER_POOLS

PARTS = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")


SCALE = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def ancestor(seed=0):
    """A network of five blocks in which no tensor is a constant."""
    net = ConvNet((4, 6, 5, 7, 8), (2, 4), 3, 32, generator=seeded(seed))
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=seeded(seed + 1)) + 0.5
                tensor.copy_(noise if "running_var" in name else tensor + noise * 0.1)
    return net


def cut(layers=("conv3", "conv4"), fisher=True, seed=0):
    net = ancestor(seed)
    information = {n: torch.rand(p.shape, generator=seeded(5)) for n, p in net.named_parameters()} if fisher else None
    notes = {"data": "toy", "threshold": 5e-10, "nested": {"b": 1, "a": [1, 2]}}
    return Learngene.from_model(net, layers, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), fisher=information, **notes)


def memory(tensors):
    return {t.untyped_storage().data_ptr() for t in tensors}


# cutting ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layers", [("conv3", "conv4"), ("conv1",), ("conv5",), tuple(f"conv{i}" for i in range(1, 6))])
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_cut_is_what_the_model_has(layers, channels_last):
    net = ancestor()
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    fisher = {n: torch.rand(p.shape, generator=seeded(5)) for n, p in net.named_parameters()}
    gene = Learngene.from_model(net, layers, fisher=fisher, **SCALE)
    assert gene.layers == layers and set(gene.tensors) == {f"{n}.{p}" for n in layers for p in PARTS}
    for name, tensor in gene.tensors.items():
        assert torch.equal(tensor, net.state_dict()[f"blocks.{name}"]), name
    assert set(gene.fisher) == {f"{n}.{p}" for n in layers for p in PARTS[:4]}
    assert all(torch.equal(f, fisher[f"blocks.{n}"]) for n, f in gene.fisher.items())
    assert gene.pools == tuple(n for n in layers if n in ("conv2", "conv4"))
    blocks = [net.blocks[n] for n in layers]
    assert gene.widths == tuple(b.conv.out_channels for b in blocks) and gene.image_size == 32
    assert gene.input_width == blocks[0].conv.in_channels
    assert gene.n_parameters == sum(p.numel() for b in blocks for p in b.parameters())


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (("conv7",), "conv7"),
        ((), "contiguous"),
        (("conv1", "conv3"), "contiguous"),
        (("conv4", "conv3"), "contiguous"),
        (("conv5", "conv6"), "conv6"),
        (("conv3", "conv3"), "contiguous"),
    ],
)
def test_layers_that_are_no_block_are_refused(layers, text):
    with pytest.raises(StudyError, match=text):
        Learngene.from_model(ancestor(), layers, **SCALE)


def test_cutting_copies():
    net = ancestor()
    fisher = {n: torch.rand(p.shape) for n, p in net.named_parameters()}
    gene = Learngene.from_model(net, net.block_names, fisher=fisher, **SCALE)
    mine = memory([*gene.tensors.values(), *gene.fisher.values()])
    assert not mine & memory([*net.state_dict().values(), *fisher.values()])
    assert len(mine) == len(gene.tensors) + len(gene.fisher)


# the file ---------------------------------------------------------------------------------------------------------------
def same(one, two):
    """Whether two learngenes agree in everything, tensors bit for bit."""
    for field in dataclasses.fields(Learngene):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if field.name in ("tensors", "fisher") and a is not None and b is not None:
            if a.keys() != b.keys() or not all(torch.equal(a[n], b[n]) for n in a):
                return False
        elif a != b:
            return False
    return True


@pytest.mark.parametrize("fisher", [True, False])
def test_a_learngene_comes_back_from_its_file(tmp_path, fisher):
    gene = cut(fisher=fisher)
    gene.save(tmp_path / "gene.safetensors")
    again = Learngene.load(str(tmp_path / "gene.safetensors"))
    assert same(gene, again)
    assert not same(gene, cut(fisher=fisher, seed=2)) and (again.fisher is None) != fisher


def test_equal_learngenes_are_equal_files(tmp_path):
    for name, gene in {"a": cut(), "b": cut(), "other": cut(seed=2)}.items():
        gene.save(tmp_path / name)
    Learngene.load(tmp_path / "a").save(tmp_path / "again")
    turned = cut()
    backwards = dataclasses.replace(
        turned,
        tensors=dict(reversed(turned.tensors.items())),
        fisher=dict(reversed(turned.fisher.items())),
        notes=dict(reversed(turned.notes.items())),
    )
    backwards.save(tmp_path / "backwards")
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert files["a"] == files["b"] == files["again"] == files["backwards"] != files["other"]


def test_anyone_can_read_the_file(tmp_path):
    gene = cut()
    gene.save(tmp_path / "gene.safetensors")
    tensors = load_file(tmp_path / "gene.safetensors")
    assert torch.equal(tensors["conv3.conv.weight"], gene.tensors["conv3.conv.weight"])
    assert torch.equal(tensors["fisher/conv4.norm.bias"], gene.fisher["conv4.norm.bias"])
    with safe_open(tmp_path / "gene.safetensors", "np") as file:
        about = json.loads(file.metadata()["learngene"])
    assert about["layers"] == ["conv3", "conv4"] and about["widths"] == [5, 7] and about["input_width"] == 6
    assert about["pools"] == ["conv4"] and about["image_size"] == 32 and about["mean"] == [0.1, 0.2, 0.3]
    assert about["notes"]["data"] == "toy"


def refused(path):
    """The text of the error with which loading ends; it is one line and names the file."""
    with pytest.raises(StudyError) as error:
        Learngene.load(path)
    text = str(error.value)
    assert "\n" not in text and path.name in text
    return text


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "gene.safetensors"
    cut().save(path)
    return path


def test_a_file_that_is_not_there_or_not_a_learngene_is_refused(tmp_path):
    refused(tmp_path / "nowhere.safetensors")
    refused(tmp_path)
    for content in (b"", b"\x00" * 64, b"layers: conv1", bytes(range(256)) * 9):
        (tmp_path / "other").write_bytes(content)
        refused(tmp_path / "other")
    save_file({"conv1.conv.weight": torch.ones(3, 3, 3, 3)}, tmp_path / "other")
    refused(tmp_path / "other")


def test_a_cut_file_is_refused_wherever_it_ends(saved):
    whole = saved.read_bytes()
    for n in {*range(40), *range(40, len(whole), len(whole) // 60), len(whole) - 1}:
        saved.write_bytes(whole[:n])
        refused(saved)


def test_a_bit_turned_in_the_header_is_refused_or_harmless(saved):
    """Never another exception, never tensors of other shapes than the metadata has."""
    whole, gene = saved.read_bytes(), cut()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    n_refused = 0
    rng = np.random.default_rng(0)
    for at in {*range(8), *rng.integers(8, end, 400).tolist()}:
        broken = bytearray(whole)
        broken[at] ^= 1 << int(rng.integers(8))
        saved.write_bytes(bytes(broken))
        try:
            again = Learngene.load(saved)
        except StudyError as error:
            assert "\n" not in str(error)
            n_refused += 1
        else:
            for name in again.tensors:
                layer = name.split(".")[0]
                assert len(again.tensors[name]) == again.widths[again.layers.index(layer)]
            assert len(again.mean) == len(again.std) == 3 and again.n_parameters == gene.n_parameters
    assert n_refused > 200


def rewritten(path, change_tensors=lambda t: t, change_about=lambda a: a):
    """Write the file again with other tensors or metadata."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["learngene"])
    tensors, about = change_tensors(tensors), change_about(about)
    save_file(tensors, path, {"learngene": about if isinstance(about, str) else json.dumps(about)})


def with_entry(name, value):
    return lambda tensors: {**tensors, name: value}


@pytest.mark.parametrize(
    "change",
    {
        "other shape": with_entry("conv3.conv.weight", torch.ones(5, 6, 1, 1)),
        "fewer channels": with_entry("conv4.norm.bias", torch.ones(6)),
        "scalar": with_entry("conv4.norm.bias", torch.tensor(1.0)),
        "missing": lambda tensors: {n: t for n, t in tensors.items() if n != "conv3.norm.running_var"},
        "stray": with_entry("conv9.conv.weight", torch.ones(3)),
        "stray Fisher": with_entry("fisher/conv9.conv.bias", torch.ones(5)),
        "misshapen Fisher": with_entry("fisher/conv3.conv.bias", torch.ones(4)),
        "not a number": with_entry("conv3.conv.bias", torch.tensor([1, 2, float("nan"), 4, 5])),
        "infinite": with_entry("conv4.norm.running_var", torch.full((7,), float("inf"))),
        "Fisher not a number": with_entry("fisher/conv3.conv.bias", torch.full((5,), float("nan"))),
        "negative variance": with_entry("conv4.norm.running_var", torch.tensor([1.0, 1, -5, 1, 1, 1, 1])),
        "variance just below zero": with_entry("conv3.norm.running_var", torch.full((5,), -1e-30)),
        "negative Fisher": with_entry("fisher/conv3.conv.weight", torch.full((5, 6, 3, 3), -1.0)),
        "absurd weight": with_entry("conv3.conv.weight", torch.full((5, 6, 3, 3), 3e38)),
        "absurd mean": with_entry("conv3.norm.running_mean", torch.full((5,), -1e30)),
        "minus infinity": with_entry("conv3.norm.weight", torch.full((5,), -float("inf"))),
        "half precision": with_entry("conv3.conv.bias", torch.ones(5).half()),
        "whole numbers": with_entry("conv3.conv.bias", torch.ones(5, dtype=torch.int32)),
    }.items(),
    ids=lambda c: c[0],
)
def test_tensors_that_are_not_what_the_metadata_says_are_refused(saved, change):
    before = load_file(saved)
    rewritten(saved, change_tensors=change[1])
    after = load_file(saved)
    changed = [
        n for n in {*before, *after} if n not in after or n not in before or not torch.equal(before[n], after[n])
    ]
    assert changed[0] in refused(saved), "the tensor is named"


def test_a_constant_channel_has_no_deviation_and_its_learngene_is_read(tmp_path):
    """Images without any blue: `normalise` leaves that channel at zero, and their run must be able to read its own file."""
    dataclasses.replace(cut(), mean=(0.5, 0.5, 0.0), std=(0.25, 0.25, 0.0)).save(tmp_path / "gene.safetensors")
    assert Learngene.load(tmp_path / "gene.safetensors").std == (0.25, 0.25, 0.0)


@pytest.mark.parametrize("text", ["not json", "[]", "null", "3", "{}", '"learngene/1"'])
def test_metadata_that_is_no_mapping_is_refused(saved, text):
    rewritten(saved, change_about=lambda _: text)
    refused(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "learngene/99"),
        ("layers", []),
        ("layers", None),
        ("layers", ["conv3"]),
        ("layers", ["conv3", "conv3"]),
        ("layers", [3, 4]),
        ("widths", [5]),
        ("widths", [5, -7]),
        ("widths", [5, 10**12]),
        ("widths", ["5", "7"]),
        ("input_width", 4),
        ("pools", 3),
        ("pools", ["conv9"]),
        ("mean", [0.1]),
        ("mean", ["x", "y", "z"]),
        ("mean", [float("nan")] * 3),
        ("mean", [1e308] * 3),
        ("mean", [0.5, 0.5, -1e6]),
        ("mean", [0.5, 0.5, True, 0.5]),
        ("mean", [10**400] * 3),
        ("std", [-0.5, 0.5, 0.5]),
        ("std", [1e-300, 0.5, 0.5]),
        ("std", [0.5, 0.5, 1e308]),
        ("std", [float("inf")] * 3),
        ("image_size", -32),
        ("image_size", float("inf")),
        ("image_size", "large"),
        ("notes", 3),
    ],
)
def test_metadata_that_cannot_be_a_learngenes_is_refused(saved, name, value):
    rewritten(saved, change_about=lambda about: {**about, name: value})
    refused(saved)


@pytest.mark.parametrize(
    "name", ["format", "layers", "widths", "input_width", "pools", "image_size", "mean", "std", "notes"]
)
def test_metadata_that_lacks_an_entry_is_refused(saved, name):
    rewritten(saved, change_about=lambda about: {k: v for k, v in about.items() if k != name})
    refused(saved)


# inheriting -------------------------------------------------------------------------------------------------------------
def test_inheriting_overwrites_the_named_blocks_and_nothing_else():
    gene, net = cut(), ancestor(seed=3)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    assert gene.inherit_into(net) is net
    for name, tensor in net.state_dict().items():
        short = name.removeprefix("blocks.")
        assert torch.equal(tensor, gene.tensors.get(short, before[name])), name
    assert not memory(gene.tensors.values()) & memory(net.state_dict().values())


@pytest.mark.parametrize(
    "misfit", [{"widths": (4, 6, 5, 9, 8)}, {"widths": (4, 7, 5, 7, 8)}, {"widths": (4, 6, 5), "pools": (2,)}]
)
def test_a_misfit_is_refused_and_the_individual_stays_as_it_was(misfit):
    net = ConvNet.from_shape({**ancestor().shape, "names": None, **misfit}, generator=seeded(1))
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(StudyError) as error:
        cut().inherit_into(net)
    assert "\n" not in str(error.value)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


@pytest.fixture(scope="module")
def papers_gene():
    """The paper's last three blocks; their values do not matter."""
    net = ConvNet(PAPER_FINAL_WIDTHS, PAPER_POOLS, 2, 32)
    return Learngene.from_model(net, ("conv11", "conv12", "conv13"), **SCALE)


def test_the_papers_individual_has_its_known_shape_and_size(papers_gene):
    cfg = Config.preset("paper")
    shape = light_shape(papers_gene, cfg.n_way, cfg)
    assert shape["names"] == ["fresh1", "fresh2", "fresh3", "fresh4", "conv11", "conv12", "conv13"]
    assert shape["widths"] == [64, 128, 256, 512, 512, 512, 512] and shape["pools"] == [1, 2, 3, 7]
    assert shape["hidden"] == [1024, 1024] and shape["n_classes"] == 5 and shape["dropout"] == 0
    with torch.device("meta"):
        individual = ConvNet.from_shape(shape)
    assert individual.classifier[0].in_features == 2048
    assert sum(p.numel() for p in individual.parameters()) == pytest.approx(11.79e6, rel=1e-3)
    assert papers_gene.n_parameters == pytest.approx(7.08e6, rel=1e-3)


def test_on_84_pixels_one_more_pool_stands_before_the_learngene(papers_gene):
    shape = light_shape(papers_gene, 5, Config.preset("paper-imagenet"))
    assert shape["pools"] == [1, 2, 3, 4, 7] and shape["image_size"] == 84
    with torch.device("meta"):
        individual = ConvNet.from_shape(shape)
        maps = individual.features(torch.zeros(2, 3, 84, 84)).shape
    assert maps == (2, 512 * 2 * 2)


@pytest.mark.parametrize("layers", [("conv3", "conv4"), ("conv4", "conv5"), ("conv2",), ("conv1",), ("conv1", "conv2")])
def test_an_individual_is_the_learngene_in_a_fresh_network(layers):
    gene, cfg = cut(layers), toy_config(individual_hidden=(6,))
    model = build_individual(gene, 4, cfg, generator=seeded(1))
    again = build_individual(gene, 4, cfg, generator=seeded(1))
    other = build_individual(gene, 4, cfg, generator=seeded(2))
    assert set(layers) <= set(model.block_names) and len(model.block_names) == 4 + len(layers)
    for name, tensor in model.state_dict().items():
        short = name.removeprefix("blocks.")
        assert torch.equal(tensor, again.state_dict()[name]), name
        if short in gene.tensors:
            assert torch.equal(tensor, gene.tensors[short]), name
        elif name.endswith("weight") and "norm" not in name:
            assert not torch.equal(tensor, other.state_dict()[name]), name
    assert not memory(gene.tensors.values()) & memory(model.state_dict().values())
    assert not memory(again.state_dict().values()) & memory(model.state_dict().values())
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 4) and model.hidden == (6,)
    first = model.block_names.index(layers[0])
    assert first == (0 if layers[0] == "conv1" else 4)  # a learngene that reads images comes first


def test_fresh_blocks_are_no_narrower_than_any_block_may_be():
    """conv3 of the `lecture` preset reads 8 channels: halved three times, the first fresh block would have a single one."""
    cfg = Config.preset("lecture")
    net = ConvNet(cfg.final_widths, PAPER_POOLS, 2, 32)
    gene = Learngene.from_model(net, ("conv3", "conv4", "conv5"), **SCALE)
    assert light_shape(gene, 5, cfg)["widths"][:4] == [cfg.min_width, cfg.min_width, cfg.min_width, 8]
    assert light_shape(gene, 5, cfg.replace(min_width=7))["widths"][:4] == [7, 7, 7, 8]


def test_fresh_blocks_pool_until_the_map_is_4_pixels_wide():
    for size, pools in ((32, 3), (84, 4), (16, 2), (8, 1), (64, 4)):
        cfg = toy_config(image_size=size)
        shape = light_shape(cut(("conv3",)), 2, cfg)
        assert shape["pools"] == list(range(1, pools + 1)), size
        assert size >> pools >= 4 and (pools == 4 or size >> (pools + 1) < 4)


def test_normalisation_is_the_models_own_and_never_invented():
    net = ancestor()
    with pytest.raises(StudyError, match="normalisation is unknown"):
        Learngene.from_model(net, net.block_names[:1])
    net.normalisation = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    gene = Learngene.from_model(net, net.block_names[:1])
    assert (gene.mean, gene.std) == net.normalisation
