"""The configuration: what is refused and how it is said, what a notebook may hold, and what moves a stage's hash."""

import dataclasses
import json
import os
import subprocess
import sys
import types

import nbformat
import pytest

from learngene_core.config import FIELDS, STAGES, Config
from learngene_core.errors import StudyError
from learngene_core.presets import PRESETS
from learngene_core.runs.run import parameters_of
from learngene_core.study import notebooks

VGG16 = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


# presets ------------------------------------------------------------------------------------------------------------
def test_the_presets_of_the_design_are_there():
    assert set(PRESETS) >= {"smoke", "lecture", "cifar-cpu", "paper", "paper-imagenet", "as-released"}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_valid_keeps_its_name_and_survives_json(name):
    cfg = Config.preset(name)
    assert cfg.preset_name == name
    assert Config.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    assert {n: getattr(cfg, n) for n in PRESETS[name]} == PRESETS[name]


def test_lecture_is_the_default():
    assert Config.preset("lecture") == Config()


def test_widths_of_the_paper():
    cfg = Config.preset("paper")
    assert cfg.width_divisor == 1
    assert cfg.start_widths == (64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 256, 256, 256)
    assert cfg.final_widths == VGG16
    assert cfg.replace(growth="none").start_widths == VGG16


@pytest.mark.parametrize("divisor", [1, 3, 8, 64, 512])
def test_scaled_widths_never_shrink_by_growing_and_never_fall_below_the_minimum(divisor):
    cfg = Config(width_divisor=divisor, min_width=4)
    assert all(4 <= start <= final for start, final in zip(cfg.start_widths, cfg.final_widths, strict=True))
    assert cfg.final_widths == tuple(max(4, w // divisor) for w in VGG16)


# refusals -----------------------------------------------------------------------------------------------------------
def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match=r"'lectur'.*did you mean 'lecture'"):
        Config.preset("lectur")


@pytest.mark.parametrize("change", ["shotz", "learning_rat", "n_ways"])
def test_unknown_parameter_names_the_nearest(change):
    with pytest.raises(ValueError, match=rf"{change}.*did you mean"):
        Config().replace(**{change: 1})
    with pytest.raises(ValueError, match=change):
        Config.preset("smoke", **{change: 1})
    with pytest.raises(ValueError, match=change):
        Config.from_dict({change: 1})


BAD = {
    "a string for a bool": {"flip": "false"},
    "an int for a bool": {"official_split": 0},
    "a bool for an int": {"n_way": True},
    "a bool for a float": {"learning_rate": True},
    "a bool among ints": {"shots": (True,)},
    "a bool for a list": {"shots": False},
    "a string for a list": {"hidden": "[1,2]"},
    "a string for shots": {"shots": "10"},
    "a string for one layer": {"layers": "conv11"},
    "numbers for layers": {"layers": (11, 12)},
    "a string for a number": {"seed": "7"},
    "a fraction for an int": {"epochs": 1.5},
    "a list for an int": {"epochs": [3]},
    "nothing for an int": {"epochs": None},
    "a number for a name": {"criterion": 3},
    "lists in a list": {"shots": [[10]]},
    "below the range": {"n_way": 1},
    "above the range": {"dropout": 1.0},
    "negative": {"weight_decay": -1e-9},
    "not a number": {"learning_rate": float("nan")},
    "infinite": {"ewc_lambda": float("inf")},
    "one bad of many": {"shots": (10, 0)},
    "none of many": {"shots": ()},
    "no methods": {"methods": []},
    "twice the same": {"shots": (10, 10)},
    "unknown method": {"methods": ("scratch", "lerngene")},
    "unknown choice": {"growth": "zero_out"},
    "unknown data": {"data": "cifar10"},
    "too many blocks": {"n_blocks": 14},
    "unknown preset": {"preset_name": "lectur"},
    "no rate": {"individual_rates": ("light:scratch",)},
    "rate of an unknown method": {"individual_rates": ("light:full=0.1",)},
    "rate that is no number": {"individual_rates": ("light:scratch=fast",)},
    "rate of zero": {"individual_rates": ("light:scratch=0",)},
    "rate without bound": {"individual_rates": ("light:scratch=inf",)},
    "one target task": {"n_target_tasks": 1},
    "EWC of no strength": {"individual_ewc": 0.0},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_bad_value_is_refused_in_one_line_that_names_the_field(changes):
    with pytest.raises(ValueError) as refusal:
        Config().replace(**changes)
    name = next(iter(changes))
    assert ("preset" if name == "preset_name" else name) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [5, None, ["smoke"], {"smoke": 1}])
def test_a_preset_of_the_wrong_type_is_a_value_error(name):
    with pytest.raises(ValueError, match="preset"):
        Config.preset(name)


def test_nearest_choice_and_method_are_suggested():
    with pytest.raises(ValueError, match="did you mean 'zero-out'"):
        Config(growth="zero_out")
    with pytest.raises(ValueError, match="did you mean 'cifar100'"):
        Config(data="cifar10")
    with pytest.raises(ValueError, match="did you mean 'learngene'"):
        Config(methods=("lerngene",))


def test_numbers_that_mean_the_same_are_taken_as_the_fields_type():
    cfg = Config(learning_rate=1, epochs=3.0, shots=20, hidden=[8, 4], tune_rates=(1, 0.5))
    assert (cfg.learning_rate, cfg.epochs, cfg.shots, cfg.hidden) == (1.0, 3, (20,), (8, 4))
    assert [type(v) for v in (cfg.learning_rate, cfg.epochs, *cfg.tune_rates)] == [float, int, float, float]
    assert cfg.stage_hash("tune") == Config(
        learning_rate=1.0, epochs=3, shots=[20], hidden=(8, 4), tune_rates=[1.0, 0.5]
    ).stage_hash("tune")


# fields whose bounds depend on others, or have a reason of their own
DEPENDENT = ("n_blocks", "n_source_tasks", "n_target_tasks", "individual_ewc", "growth_start", "deepen_before")


def test_every_default_is_accepted_at_its_own_bounds():
    for name, field in FIELDS.items():
        for bound in (field.metadata["low"], field.metadata["high"]):
            if abs(bound) == float("inf") or name in DEPENDENT:
                continue
            value = type(field.default)([bound]) if isinstance(field.default, tuple) else bound
            assert getattr(Config(**{name: value}), name) == value, name


def test_what_notebook_04_could_not_show_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"n_target_tasks = 1 .*use 2 or more"):
        Config.preset("smoke", n_target_tasks=1)
    with pytest.raises(ValueError, match=r"individual_ewc = 0 .*leave learngene_ewc out of methods"):
        Config.preset("smoke", individual_ewc=0)
    assert Config.preset("smoke", individual_ewc=0, methods=("scratch", "learngene")).individual_ewc == 0
    assert Config.preset("smoke", n_target_tasks=2).n_target_tasks == 2


def test_a_configuration_is_frozen_and_replace_leaves_it_alone():
    cfg = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.seed = 3
    assert cfg.replace(seed=3).seed == 3
    assert cfg == Config()


def test_rate_is_the_exception_of_its_own_arm_only():
    cfg = Config(individual_rate=0.02, individual_rates=("light:scratch=0.5", "same_shape:full=1e-3"))
    assert cfg.rate("light", "scratch") == 0.5
    assert cfg.rate("same_shape", "full") == 0.001
    assert cfg.rate("same_shape", "scratch") == 0.02
    assert cfg.rate("light", "learngene") == 0.02


# notebooks ----------------------------------------------------------------------------------------------------------
def kernel(**parameters):
    """Globals of a kernel when the set-up cell runs: the parameters among what IPython and the imports put there."""
    return {
        "__name__": "__main__", "_": 3, "_i1": "x = 1", "_oh": {}, "In": ["", "x"], "Out": {1: 3},
        "get_ipython": lambda: None, "json": json, "Config": Config, "module": types, **parameters,
    }  # fmt: skip


def test_from_notebook_takes_the_preset_and_its_parameters():
    cfg = Config.from_notebook(kernel(preset="smoke", shots=[2, 4], flip=True, out="runs/x", data_path=""))
    assert cfg == Config.preset("smoke", shots=(2, 4), flip=True)


def test_from_notebook_ignores_what_is_no_parameter():
    assert Config.from_notebook(kernel()) == Config.preset("lecture")
    assert Config.from_notebook(kernel(preset="smoke", shots=None, seed=None)) == Config.preset("smoke")
    assert Config.from_notebook(kernel(preset="")) == Config.preset("lecture")


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"shotz": 20}, "shotz"),
        ({"n_ways": None}, "n_ways"),
        ({"seeds": [1, 2]}, "seeds"),
        ({"flip": "false"}, "flip"),
        ({"layers": "[conv11]"}, "layers"),
        ({"seed": "7"}, "seed"),
        ({"epochs": True}, "epochs"),
        ({"preset": "lectures"}, "lectures"),
        ({"out": 2024}, "out"),  # what `papermill -p out 2024` passes
    ],
)
def test_from_notebook_refuses_unknown_names_and_wrong_types(parameters, name):
    with pytest.raises(ValueError, match=name):
        Config.from_notebook(kernel(**parameters))


def test_set_up_cell_can_be_run_again_after_the_lecture_made_variables():
    namespace = kernel(preset="smoke", shots=[2])
    first = Config.from_notebook(namespace)
    namespace |= {"cfg": first, "accuracy": 0.3, "rows": [1, 2], "name": "conv1", "table": {"a": 1}}
    assert Config.from_notebook(namespace) == first
    namespace["shots"] = [3]  # edited by hand
    assert Config.from_notebook(namespace) == first.replace(shots=3)
    namespace["flip"] = "false"
    with pytest.raises(ValueError, match="flip"):
        Config.from_notebook(namespace)


def notebook(path, n_parameter_cells):
    cells = [nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]}) for _ in range(n_parameter_cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("print(seed)")]), path)
    return path


@pytest.mark.parametrize("n", [0, 2])
def test_a_notebook_has_exactly_one_parameters_cell(tmp_path, n):
    with pytest.raises(StudyError, match=rf"{n} parameters cells"):
        notebooks.checked_parameters(notebook(tmp_path / "a.ipynb", n), {"seed": 1})


@pytest.mark.parametrize(
    ("parameters", "name"),
    [({"shotz": 2}, "shots"), ({"flip": "false"}, "flip"), ({"out": 3}, "out"), ({"preset": "smok"}, "smoke")],
)
def test_parameters_are_refused_before_a_kernel_starts(tmp_path, parameters, name):
    with pytest.raises(ValueError, match=name):
        notebooks.execute(notebook(tmp_path / "a.ipynb", 1), tmp_path / "done.ipynb", parameters)
    assert not (tmp_path / "done.ipynb").exists()


def test_parameters_for_papermill_are_plain_and_give_the_same_configuration_back(tmp_path):
    cfg = Config.preset("cifar-cpu", shots=(5, 10), layers=("conv3", "conv4"), seed=4, data_path="/data", threads=2)
    given = parameters_of(cfg, tmp_path / "run")
    passed = notebooks.checked_parameters(notebook(tmp_path / "a.ipynb", 1), {**given, "out": tmp_path / "run"})
    assert json.loads(json.dumps(passed)) == passed
    assert passed["out"] == str(tmp_path / "run")
    assert Config.from_notebook(kernel(**passed)) == cfg


# hashes -------------------------------------------------------------------------------------------------------------
ALL = set(STAGES)
FOLLOWS = {  # field's stage -> the stages whose results change with it
    "": set(),
    "division": ALL,
    "collective": ALL - {"division", "targets"},
    # tuning trains individuals of this learngene; the atlas does not care which was chosen
    "criteria": {"criteria", "reconstruct", "tune", "controls", "measures", "claims", "released"},
    "targets": {"targets", "reconstruct", "tune", "atlas", "controls", "claims", "released"},
    "reconstruct": {"reconstruct", "claims", "released"},
    "tune": {"tune"},
    "reference": {"reference"},
    "openworld": {"openworld", "claims"},
    "atlas": {"atlas", "controls", "claims"},
    "controls": {"controls", "claims"},
    "claims": {"claims"},
}
OTHER = {
    "preset_name": "smoke", "data": "cifar100", "data_path": "/elsewhere", "split": "seed", "device": "cpu",
    "ancestor": "joint", "source_draw": "overlap", "growth": "uneven", "loss": "class-incremental", "schedule": "cosine",
    "individual_schedule": "constant", "ewc_form": "proximal", "new_columns": "zero", "sign": "absolute",
    "open_head": "own", "open_score": "energy",
    "criterion": "stability", "layers": ("conv1",), "methods": ("scratch",), "individual_rates": ("light:scratch=0.5",),
    "atlas_blocks": "full", "controls": ("none",), "ancestors": ("joint",), "defects": ("leak",), "precision": "bf16",
}  # fmt: skip


def other(field):
    value = field.default
    if field.name in OTHER:
        return OTHER[field.name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, 7)
    return value + 1 if isinstance(value, int) else value / 2 or 0.5


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_moves_the_hash_of_what_follows_from_it_and_of_nothing_else(name):
    default, stage = Config(), FIELDS[name].metadata["stage"]
    if name == "replay_images":  # read where there is a replay alone
        assert default.replace(replay_images=7).stage_hash("collective") == default.stage_hash("collective")
        default = default.replace(ancestor="replay")
    changed = default.replace(**{name: other(FIELDS[name])})
    assert getattr(changed, name) != getattr(default, name)
    moved = {s for s in ALL if changed.stage_hash(s) != default.stage_hash(s)}
    expected = set().union(*(FOLLOWS[s] for s in stage.split() or [""]))
    assert moved >= expected, f"results of {sorted(expected - moved)} would be reused though {name} changed"
    assert moved <= expected | ({"tune"} if stage == "reconstruct" else set())


def test_hashes_are_the_same_in_every_process():
    code = "from learngene_core.config import *; print(*[Config.preset('paper').stage_hash(s) for s in sorted(STAGES)])"
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert there.stdout.split() == [Config.preset("paper").stage_hash(s) for s in sorted(STAGES)]
