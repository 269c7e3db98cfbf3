"""The project itself: its lists of packages agree, its code keeps its own rules."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "learngene_core").glob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(Requirement(line).name): Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
}


def requirements():
    return [Requirement(r) for r in [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]]


def test_every_dependency_is_pinned_within_its_range():
    for requirement in requirements():
        pin = PINS[canonicalize_name(requirement.name)]
        version = str(pin.specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement} but pinned to {version}"


def test_the_packages_that_were_asked_for_are_there():
    names = {canonicalize_name(r.name) for r in requirements()}
    assert {"jupyterlab", "torch", "torchvision", "matplotlib", "seaborn", "ipywidgets", "papermill"} <= names


def test_torch_and_torchvision_are_of_one_release():
    torch, vision = (str(PINS[n].specifier).removeprefix("==").split(".") for n in ("torch", "torchvision"))
    assert int(torch[1]) - int(vision[1]) == -14 and torch[:2] != [
        "2",
        "13",
    ]  # 2.15 goes with 0.29 (since 2.0 and 0.15)


def test_no_file_of_pins_holds_an_address():
    for name in ("constraints.txt", "environment.yml", "pyproject.toml"):
        assert "://" not in (ROOT / name).read_text(encoding="utf-8")
    assert not (ROOT / "uv.lock").exists()


def test_environment_agrees_with_pyproject():
    env = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert env["channels"] == ["conda-forge"]
    conda = [d for d in env["dependencies"] if isinstance(d, str)]
    nested = next(d["pip"] for d in env["dependencies"] if isinstance(d, dict))
    python = next(d for d in conda if d.startswith("python"))
    assert python.removeprefix("python") == PROJECT["requires-python"]
    assert "pip" in conda and nested == ["-e .[dev]"], "pyproject.toml is the only list of packages"


def test_importing_the_package_is_light():
    heavy = "{'torch', 'pandas', 'matplotlib', 'papermill'}"
    code = f"import sys, learngene_core.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_exported_name_exists():
    import learngene_core

    for name in learngene_core.__all__:
        assert getattr(learngene_core, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        learngene_core.nothing  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_public_functions_say_what_they_do(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no module docstring"
    bodies = [tree.body, *(c.body for c in tree.body if isinstance(c, ast.ClassDef) and not c.name.startswith("_"))]
    for node in (n for body in bodies for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)):
        if node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), f"{node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None or any(isinstance(p, ast.Yield) for p in ast.walk(node)), (
                f"{node.name}: no return type"
            )


UNPICKLERS = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "hickle", "pandas.io.pickle"
}  # fmt: skip
CODE = {"eval", "exec", "compile", "__import__", "execfile"}
NEVER = {f"yaml.{n}" for n in ("load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all")} | {
    "torch.jit.load", "torch.package.PackageImporter", "os.system", "os.popen", "runpy.run_path", "runpy.run_module",
}  # fmt: skip
ANYWHERE = {"read_pickle", "to_pickle", "UnsafeLoader", "FullLoader", "Unpickler", "add_safe_globals"}


def unsafe(source: str) -> list[str]:
    """What in a module could run code that a file or a parameter brings along, or swallows every error: "line: what"."""
    tree = ast.parse(source)
    whole: dict[str, str] = {}  # name in this module -> what it stands for, e.g. T -> torch, read -> torch.load
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            whole |= {a.asname: a.name for a in node.names if a.asname}
        if isinstance(node, ast.ImportFrom) and not node.level:
            whole |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}

    def name_of(node: ast.expr) -> str:
        first, dot, rest = ast.unparse(node).partition(".")
        return whole.get(first, first) + dot + rest

    found = [f"{getattr(n, 'lineno', 0)}: {text}" for n in ast.walk(tree) if (text := _unsafe_node(n, name_of))]
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):  # torch.load under another name would escape the look at its arguments
        if (
            isinstance(node, ast.Attribute | ast.Name)
            and id(node) not in called
            and name_of(node) in {"torch.load", *CODE}
        ):
            found.append(f"{node.lineno}: {name_of(node)} without a call")
    return found


def _unsafe_node(node: ast.AST, name_of) -> str:
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        return "bare except"
    if isinstance(node, ast.Import | ast.ImportFrom):
        module = getattr(node, "module", None) or ""
        names = {module, *(a.name for a in node.names), *(f"{module}.{a.name}" for a in node.names)}
        parts = {part for name in names for part in (name, name.split(".")[0])}
        return "an unpickler" if parts & UNPICKLERS else "builtins" if "builtins" in parts else ""
    if isinstance(node, ast.Attribute) and node.attr in ANYWHERE:
        return node.attr
    if isinstance(node, ast.Name) and node.id in {"__builtins__", *ANYWHERE}:
        return node.id
    return _unsafe_call(node, name_of(node.func)) if isinstance(node, ast.Call) else ""


def _unsafe_call(node: ast.Call, called: str) -> str:
    given = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else k.value for k in node.keywords}
    literals = {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    if called in CODE | NEVER or called.split(".")[0] in UNPICKLERS:
        return called
    if called == "torch.load" and given.get("weights_only") is not True:
        return "torch.load without weights_only=True"
    if given.get("allow_pickle", False) is not False or (called in ("np.load", "numpy.load") and len(node.args) > 2):
        return "allow_pickle"
    if given.get("shell", False) is not False:
        return "shell"
    reach = called in ("getattr", "importlib.import_module", "operator.attrgetter")
    return f"{called} of {literals}" if reach and literals & (CODE | UNPICKLERS | ANYWHERE) else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_no_unsafe_calls(path):
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import pickle as p", "from pickle import *", "import dill, json",
        "import joblib", "from joblib import load", "import marshal", "import _pickle", "import torch\ntorch.load(path)",
        "from pandas.io.pickle import read_pickle", "import torch\ntorch.load(path, weights_only=False)",
        "import torch as T\nT.load(path)", "import torch\ntorch.load(path, weights_only=flag)",
        "from torch import load\nload(path)", "from torch import load as read\nread(path)", "import torch\nread = torch.load",
        "import torch\ntorch.jit.load(path)", "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, 'r', True)", "from numpy import load\nload(path, allow_pickle=flag)",
        "import numpy\nnumpy.load(path, allow_pickle=1)", "import pandas\npandas.read_pickle(path)", "frame.to_pickle(path)",
        "import yaml\nyaml.load(text)", "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "from yaml import load as y\ny(text)", "import yaml\nyaml.full_load(t)", "import yaml\nyaml.unsafe_load(t)",
        "from yaml import UnsafeLoader\nx(UnsafeLoader)", "eval(text)", "exec(text)", "__import__(name)",
        "compile(text, 'x', 'exec')", "run = eval", "map(exec, lines)", "import builtins\nbuiltins.eval(text)",
        "from builtins import eval as e\ne(text)", "__builtins__['eval'](text)", "getattr(x, 'eval')(text)",
        "import importlib\nimportlib.import_module('pickle')", "from importlib import import_module as i\ni('pickle')",
        "import os\nos.system(text)", "from os import system as s\ns(text)", "import runpy\nrunpy.run_path(p)",
        "import subprocess\nsubprocess.run(text, shell=True)", "try:\n    x()\nexcept:\n    pass",
        "def f():\n    from pickle import load\n    return load(open('x', 'rb'))",
    ],
)  # fmt: skip
def test_unsafe_calls_would_be_seen(code):
    assert unsafe(code)


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load(path, weights_only=True)", "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import numpy as np\nnp.load(path)", "import yaml\nyaml.safe_load(text)", "model.eval()", "import re\nre.compile('x')",
        "try:\n    x()\nexcept ValueError:\n    pass", "import importlib\nimportlib.import_module(f'.{name}', __name__)",
        "from .learngene import load\nload(path)",
    ],
)  # fmt: skip
def test_safe_calls_are_no_alarm(code):
    assert unsafe(code) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_modules_can_be_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_figures_and_tables_need_no_torch():
    code = (
        "import sys\nfrom learngene_core import criteria, explore, figures, power, ranks, record, runs, statistics\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_project_speaks_of_itself_alone():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    forbidden = re.compile(
        "METHOD" + r"( |\.md)|DESIGN" + r"( |\.md)|PEERS" + r"\.md|python" + "hosted|pypi" + r"\.org|/wo" + "rk/"
    )
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yml", ".txt", ".ipynb", ".json", ".cff"} and path.exists():
            match = forbidden.search(path.read_text(encoding="utf-8"))
            assert match is None, f"{name}: {match.group(0)}"


def test_the_reproduction_table_of_the_readme_is_what_the_runs_gave():
    """Every number of the table comes from the two committed claims.csv; a changed claim or run needs a new table."""
    from learngene_core.analysis.claims import load_claims, reproduction_table

    images = ROOT / "notebooks" / "images"
    runs = {"glyphs": "claims-lecture.csv", "CIFAR-100": "claims-cifar.csv"}
    found = {name: pd.read_csv(images / file) for name, file in runs.items()}
    table = reproduction_table(found)
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
    for rows in found.values():
        assert rows["claim"].tolist() == [claim.id for claim in load_claims()]
        assert rows["statement"].tolist() == [claim.statement for claim in load_claims()]


def test_a_wheel_holds_all_that_the_package_reads(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    package = tmp_path / "site" / "learngene_core"
    there = {str(p.relative_to(package)) for p in package.rglob("*") if p.is_file()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    ours = [p.removeprefix("learngene_core/") for p in tracked if p.startswith(("learngene_core/", "notebooks/"))]
    assert len(ours) > 100 and not set(ours) - there
    code = (
        "import learngene_core as lg; from learngene_core import explorerserver, grid, notebooks\n"
        "print(lg.__file__, len(notebooks.numbered()), (explorerserver.DEMO / 'manifest.json').exists(), "
        "len(grid.load_grid('shots').points) > 1)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert said == [str(package / "__init__.py"), "8", "True", "True"]
