"""Grid files: what is refused, and the points that they stand for."""

from __future__ import annotations

import itertools
from pathlib import Path

import nbformat
import numpy as np
import pytest

from learngene_core.config import Config
from learngene_core.errors import StudyError
from learngene_core.study import grid, sharing
from learngene_core.study.grid import load_grid, ready


def own_notebook(path, *sources, tag="parameters"):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = [tag] if tag else []
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("produkt: {seed: [1]}", ["'produkt'", "did you mean 'product'"]),
        ("product: {sead: [1, 2]}", ["'sead'", "product", "did you mean 'seed'"]),
        ("parameters: {shotz: 5}", ["'shotz'", "parameters", "did you mean 'shots'"]),
        ("cases: [{seed: 1}, {treshold: 5e-4}]", ["'treshold'", "entry 2", "did you mean 'threshold'"]),
        ("product: {criterion: [released, relesed]}", ["'relesed'"]),
        ("product: {layers: [[conv1, conv3]]}", ["conv1, conv3", "contiguous"]),
        ("product: {methods: [[scratch, ful]]}", ["'ful'", "did you mean 'full'"]),
        ("preset: smok", ["'smok'", "did you mean 'smoke'"]),
        ("preset: 3", ["preset", "3"]),
        ("product: {seed: []}", ["seed", "empty"]),
        ("product: {seed: 3}", ["seed", "list"]),
        ("product: [seed]", ["product", "mapping"]),
        ("cases: {seed: 1}", ["cases", "list"]),
        ("cases: [seed]", ["cases", "entry 1", "mapping"]),
        ("product: {seed: [1, two]}", ["seed", "'two'"]),
        ("product: {seed: [-1]}", ["seed", "at least 0"]),
        ("product: {epochs: [1:30]}", ["epochs", "'1:30'"]),
        ("product: {shots: [[5, 1:0]]}", ["shots", "'1:0'"]),
        ("parameters: {learning_rate: 0:0.3}", ["learning_rate", "'0:0.3'"]),
        ("product: {seed: [2026-01-02]}", ["seed", "'2026-01-02'"]),
        ("product: {seed: [0o17]}", ["seed", "'0o17'"]),
        ("product: {seed: [09, 9]}", ["points 1 and 2", "same"]),
        ("product: {flip: ['false', true]}", ["flip", "bool"]),
        ("product: {shots: [[[5]]]}", ["shots"]),
        ("product: {n_way: [1.5]}", ["n_way", "1.5"]),
        ("parameters: {seed: 1}\nproduct: {seed: [1, 2]}", ["seed", "fixed"]),
        ("product: {seed: [1, 2]}\ncases: [{seed: 3}]", ["seed", "product", "case"]),
        ("product: {seed: [1, 2, 1.0]}", ["points 1 and 3", "same", "seed-1"]),
        ("cases: [{shots: 5}, {shots: [5]}]", ["points 1 and 2", "same"]),
        ("product: {workers: [1, 2]}", ["workers", "no result"]),
        ("product: {atlas_tasks: [4, 8]}", ["atlas_tasks", "reconstruct", "atlas"]),
        ("through: collective\nproduct: {shots: [5, 10]}", ["shots", "collective", "targets"]),
        ("parameters: {minutes: 3}", ["minutes"]),
        ("parameters: {preset_name: smoke}", ["preset_name", "key preset"]),
        ("through: reconstuct", ["'reconstuct'", "did you mean 'reconstruct'"]),
        ("notebook: 42", ["42", "there are "]),
        ("notebook: true", ["notebook", "True"]),
        ("notebook: nowhere.ipynb", ["nowhere.ipynb"]),
        ("table: ../results.csv", ["table", "../results.csv"]),
        ("table: results.xls", ["table"]),
        ("", ["no grid"]),
        ("- seed", ["no grid"]),
        ("seed", ["no grid"]),
        ("product: {seed: [1, 2}", ["no grid"]),
        ("product: {seed: [1]}\nproduct: {seed: [2]}", ["'product'", "twice"]),
        ("product: {seed: [1], seed: [2]}", ["'seed'", "twice"]),
        ("parameters: &a {seed: 1}\ncases: [*a]", ["aliases"]),
        ("parameters: &a [*a]", ["aliases"]),
        ("product: {seed: !!python/object/apply:os.system ['touch owned']}", ["no grid", "tag"]),
        ("product: {? [seed] : [1]}", ["no grid"]),
        ("product: {seed: " + "[" * 3000 + "]" * 3000 + "}", ["nested"]),
        (
            "product:\n" + "".join(f"  {n}: {list(range(1, 40))}\n" for n in ("seed", "target_seed", "n_inits")),
            ["59,319", "10,000"],
        ),
        ("#" * 2_000_000, ["too large"]),
    ],
)
def test_bad_grids_are_refused_with_the_name_before_anything_starts(written, tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    path = written(text)
    with pytest.raises((ValueError, StudyError)) as caught:
        load_grid(path)
    assert all(word in str(caught.value) for word in words), caught.value
    assert len(str(caught.value)) < 700
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_grid_that_is_missing_or_binary(tmp_path):
    with pytest.raises(StudyError, match=r"no grid .*shot.*did you mean 'shots'"):
        load_grid("shot")
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(StudyError, match="UTF-8"):
        load_grid(tmp_path / "picture.yaml")


@pytest.mark.parametrize("seed", range(8))
def test_points_are_every_case_with_every_combination(written, seed):
    """Against brute force: nested loops over a random grid."""
    rng = np.random.default_rng(seed)
    values = {"seed": [3, 1, 2], "shots": [5, [5, 10]], "target_seed": [0, 7], "individual_rate": [0.01, 5e-4]}
    names = [str(name) for name in rng.permutation(list(values))[: rng.integers(0, 5)]]
    product = {name: values[name][: rng.integers(1, len(values[name]) + 1)] for name in names}
    cases = [{"criterion": "released", "threshold": 5e-4}, {"layers": ["conv1", "conv2"]}, {"n_blocks": 2}]
    cases = cases[: rng.integers(0, 4)]
    found = load_grid(written(f"preset: smoke\nparameters: {{n_inits: 2}}\nproduct: {product}\ncases: {cases}"))
    expected = []
    for case in cases or [{}]:
        for combination in itertools.product(*product.values()):
            given = {**dict(zip(product, combination, strict=True)), **case}
            expected.append(Config.preset("smoke", n_inits=2, workers=1, threads=1, **given))
    assert [point.cfg for point in found.points] == expected
    assert len({point.name for point in found.points}) == len(expected)
    assert found.varied == tuple(dict.fromkeys([*product, *(n for case in cases for n in case)]))
    for point in found.points:
        assert point.values == {name: getattr(point.cfg, name) for name in found.varied}
        assert Path(point.name).name == point.name and len(point.name) < 100 and not point.name.startswith(".")


def test_a_point_keeps_its_folder_when_the_grid_grows_and_gets_another_for_other_settings(written):
    few = load_grid(written("preset: smoke\nproduct: {seed: [1, 2]}"))
    more = load_grid(written("preset: smoke\nproduct: {seed: [0, 2, 1, 3]}"))
    other = load_grid(written("preset: smoke\nparameters: {epochs: 2}\nproduct: {seed: [1, 2]}"))
    workers = load_grid(written("preset: smoke\nparameters: {workers: 2}\nproduct: {seed: [1, 2]}"))
    names = {point.name for point in few.points}
    assert names < {point.name for point in more.points}
    assert names == {point.name for point in workers.points}  # decides no result
    assert names.isdisjoint(point.name for point in other.points)


def test_options_of_the_command_take_the_place_of_fixed_values_only(written):
    path = written("preset: lecture\nparameters: {n_target_tasks: 9}\nproduct: {seed: [1, 2]}")
    found = load_grid(path, "smoke", {"n_target_tasks": 3, "data_path": "here"})
    assert {(p.cfg.preset_name, p.cfg.n_target_tasks) for p in found.points} == {("smoke", 3)}
    assert found.points[0].cfg.data_path == str(Path("here").absolute())  # workers have folders of their own
    with pytest.raises(ValueError, match="seed is varied"):
        load_grid(path, "", {"seed": 5})
    with pytest.raises(ValueError, match=r"'sead'.*did you mean 'seed'"):
        load_grid(path, "", {"sead": 5})


def test_which_notebook_a_grid_runs(written, tmp_path):
    def target(text):
        found = load_grid(written(text))
        return found.notebook.name[:2], found.stage, found.table

    assert target("{}") == ("04", "reconstruct", "results.csv")
    assert target("through: openworld") == ("05", "openworld", "openworld.csv")
    assert target("notebook: 06") == ("06", "claims", "atlas.csv")
    assert target("notebook: 2\ntable: gradients.csv") == ("02", "collective", "gradients.csv")
    assert target("notebook: 08\ntable: across_seeds.csv") == ("08", "", "across_seeds.csv")  # octal to YAML, not to us
    with pytest.raises(ValueError, match="table"):
        target("notebook: 8")  # nobody knows what it writes
    own_notebook(tmp_path / "mine.ipynb", "seed: int = 0", "1")
    assert target("notebook: mine.ipynb\nthrough: criteria") == ("mi", "criteria", "scores.csv")
    own_notebook(tmp_path / "bare.ipynb", "seed: int = 0", tag="")
    with pytest.raises(StudyError, match="0 parameters cells"):
        target("notebook: bare.ipynb\nthrough: criteria")


def test_the_ready_grids_ask_what_they_say():
    about = {name: load_grid(name) for name in ready()}
    assert {name: found.varied for name, found in about.items()} == {
        "shots": ("seed", "shots"),
        "criteria": ("seed", "criterion", "threshold"),
        "growth": ("seed", "n_source_tasks", "growth", "ewc_lambda"),
        "blocks": ("seed", "layers"),
    }
    assert len(about["shots"].points[0].cfg.methods) >= 6
    assert {p.cfg.ewc_lambda > 0 for p in about["growth"].points} == {True, False}
    assert {p.cfg.growth == "none" for p in about["growth"].points} == {True, False}
    assert {len(p.cfg.layers) for p in about["blocks"].points} == {3} and len(about["blocks"].points[0].cfg.shots) == 3
    # one ancestor per seed, or each its own
    assert [len(sharing.plan(about[name])) for name in ("shots", "criteria", "growth", "blocks")] == [5, 3, 0, 3]


def test_fixed_values_need_only_be_possible_together_with_the_varied_ones(written):
    """The smoke preset has four source tasks; growth from the sixth on is possible in every point all the same."""
    text = "preset: smoke\nparameters: {growth_start: 6}\nproduct: {n_source_tasks: [6, 8]}"
    assert [p.cfg.n_source_tasks for p in load_grid(written(text)).points] == [6, 8]


def test_the_grid_file_in_the_documentation_is_one(written):
    text = grid.__doc__.split("\n\n")[2]
    found = load_grid(written("\n".join(line.removeprefix("    ") for line in text.splitlines())))
    assert len(found.points) == 18 and found.table == "results.csv"
