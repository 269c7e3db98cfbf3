"""Properties over many configurations: what is accepted comes back from everywhere it goes, what is bad is refused by name."""

import json
import math
import shlex
import typing

import nbformat
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from learngene_core.config import CHOICES, FIELDS, ONCE, Config
from learngene_core.presets import ALL_METHODS, CONTROL_NAMES, PRESETS
from learngene_core.runs import info
from learngene_core.runs.run import parameters_of
from learngene_core.study import notebooks
from learngene_core.study import options as options_module

KINDS = typing.get_type_hints(Config)
MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = sorted(set(FIELDS) - {"preset_name"})
# of the text fields these are names; what is called otherwise is refused when its stage begins
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)


def scalar(name, kind):
    """Values of a field (or of an item of it) that are within its range."""
    meta = FIELDS[name].metadata
    if name in CHOICES:
        return st.sampled_from(CHOICES[name])
    if kind is bool:
        return st.booleans()
    if kind is str:
        known = {"methods": ALL_METHODS, "controls": (*CONTROL_NAMES, "all", "none"),
                 "individual_rates": ("light:scratch=0.5", "same_shape:full=1e-3")}  # fmt: skip
        return st.sampled_from(known[name]) if name in known else TEXT
    low, high = max(meta["low"], 0), min(meta["high"], 1e6)
    if kind is int:
        return st.integers(math.ceil(low), math.floor(high))
    return st.floats(low, high, allow_nan=False)


def values(name):
    kind = KINDS[name]
    if typing.get_origin(kind) is not tuple:
        return scalar(name, kind)
    item = scalar(name, typing.get_args(kind)[0])
    return st.lists(item, max_size=4, unique=name in ONCE)


CHANGES = st.lists(st.sampled_from(NAMES), max_size=6, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: values(name) for name in names})
)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebook") / "a.ipynb"
    cell = nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    return path


ACCEPTED = []


@MANY
@given(preset=st.sampled_from(sorted(PRESETS)), changes=CHANGES)
@example(preset="smoke", changes={"split": "1e5", "data_path": "-x", "layers": ["yes", "1e5", "null", "a, b"]})
@example(preset="lecture", changes={"split": " 'quoted\": \\ [a", "data_path": "two words\n%%bash", "criterion": "~"})
@example(preset="paper", changes={"layers": ["\U0001f600", "\x85\u2028\x7f", "", "#"], "split": "\ufeff# no comment"})
@example(preset="cifar-cpu", changes={"n_source_tasks": 1})
@example(preset="smoke", changes={"deepen_before": [9]})
@example(preset="lecture", changes={"learning_rate": 1e-08, "ewc_lambda": 1e300, "seed": 10**30, "deterministic": True})
def test_an_accepted_configuration_comes_back_from_wherever_it_goes(notebook, preset, changes):
    try:
        cfg = Config.preset(preset, **changes)
    except ValueError as refusal:  # fields that do not agree with each other: said by name
        assert any(name in str(refusal) for name in changes) and "\n" not in str(refusal)
        return
    ACCEPTED.append(1)
    assert Config.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    given = notebooks.checked_parameters(notebook, parameters_of(cfg, notebook.parent / "-run"))
    assert Config.from_notebook(dict(given)) == cfg
    words = shlex.split(info.command(cfg, notebook.parent / "a run"))
    options = options_module.parser().parse_args(words[1:])
    assert options_module.configuration(options) == cfg
    assert options.out == str(notebook.parent / "a run")
    assert all(
        cfg.stage_hash(stage) == Config.from_dict(cfg.to_dict()).stage_hash(stage) for stage in ("claims", "tune")
    )


def test_most_of_those_configurations_were_accepted():
    """The test above would say nothing if nearly all of them were refused."""
    if not ACCEPTED:
        pytest.skip("runs behind the test above")
    assert len(ACCEPTED) > 80


def bad(name):
    """Values that a field must not take: of a wrong type, out of its range, or with a wrong one among its items."""
    kind, meta = KINDS[name], FIELDS[name].metadata
    many = typing.get_origin(kind) is tuple
    item = typing.get_args(kind)[0] if many else kind
    wrong = [{"a": 1}, b"bytes", object(), 1j, {1}]
    wrong += [] if many else [None, [], [1, 2], ()]
    if item is not str:
        wrong += ["text", "1", "true"]
    if item is not bool:
        wrong += [True]
    if item is str:
        wrong += [3, 0.5, "nul\0", "half \ud800 a pair"]
    if item in (int, float):
        wrong += [math.nan, math.inf, -math.inf, 1e400]
        wrong += [meta["low"] - 1] if math.isfinite(meta["low"]) else []
        wrong += [meta["high"] + 1] if math.isfinite(meta["high"]) else []
    wrong += [0.5] if item is int else [2] if item is bool else []
    wrong += ["no such choice"] if name in CHOICES else []
    strategy = st.sampled_from(wrong)
    if many:
        one = st.sampled_from([w for w in wrong if not isinstance(w, dict | bytes | set)] + [[1], None, "\0"])
        return st.one_of(strategy, one.map(lambda w: [w]))
    return strategy


@MANY
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_a_bad_value_is_refused_in_one_line_with_the_fields_name(data, name):
    value = data.draw(bad(name))
    for way in (
        lambda: Config(**{name: value}),
        lambda: Config().replace(**{name: value}),
        lambda: Config.preset("smoke", **{name: value}),
        lambda: Config.from_dict({**Config().to_dict(), name: value}),
    ):
        with pytest.raises(ValueError) as refusal:
            way()
        assert name in str(refusal.value)
        assert "\n" not in str(refusal.value) and "\0" not in str(refusal.value)
    if isinstance(value, bool | int | float | str | list | tuple | dict):
        with pytest.raises(ValueError, match=name):
            Config.from_notebook({name: value})


@MANY
@given(name=st.text(min_size=1, max_size=20).filter(lambda n: n not in FIELDS and n not in ("preset", "out")))
def test_an_unknown_name_is_refused_with_that_name(name):
    for way in (lambda: Config.preset("smoke", **{name: 1}), lambda: Config.from_dict({name: 1})):
        with pytest.raises(ValueError) as refusal:
            way()
        assert repr(name) in str(refusal.value)


@MANY
@given(text=st.text(max_size=30), name=st.sampled_from(NAMES))
def test_whatever_is_written_behind_set_is_taken_or_refused_with_the_fields_name(text, name):
    options = options_module.parser().parse_args(["divide", f"--set={name}={text}"])
    try:
        cfg = options_module.configuration(options)
    except ValueError as refusal:
        assert name in str(refusal) or str(refusal).startswith(("unknown", "criterion"))
        return
    assert isinstance(cfg, Config)
    if KINDS[name] is str and name not in CHOICES and text.strip()[:1] not in ("'", '"'):
        assert getattr(cfg, name) == text.strip()
