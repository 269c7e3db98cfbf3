"""The project itself: its lists of packages agree, its code keeps its own rules."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
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


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_no_unsafe_calls(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path.name}:{node.lineno} bare except"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
            assert not {"pickle", "dill", "shelve"} & set(names), f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "yaml.load", "torch.load"), f"{path.name}:{node.lineno} {called}"


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
    from learngene_core.claims import load_claims
    from learngene_core.verdicts import reproduction_table

    images = ROOT / "notebooks" / "images"
    runs = {"glyphs": "claims-lecture.csv", "CIFAR-100": "claims-cifar.csv"}
    found = {name: pd.read_csv(images / file) for name, file in runs.items()}
    table = reproduction_table(found)
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
    for rows in found.values():
        assert rows["claim"].tolist() == [claim.id for claim in load_claims()]
        assert rows["statement"].tolist() == [claim.statement for claim in load_claims()]
