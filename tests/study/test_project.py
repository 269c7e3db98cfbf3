"""The project itself: its lists of packages agree, its code keeps its own rules."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import grimp
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
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


def test_what_tests_need_beyond_the_package_comes_with_the_development_set():
    """Tests that skip themselves for lack of an optional package would be skipped for ever."""
    dev = {canonicalize_name(Requirement(r).name) for r in PROJECT["optional-dependencies"]["dev"]}
    optional = {canonicalize_name(Requirement(r).name) for r in PROJECT["optional-dependencies"]["parquet"]}
    assert optional <= dev


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
    code = (
        f"import sys, learngene_core.study.cli, learngene_core.study.verbs; print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# what a person calls first, and what comes with a kernel or a row of the bench (see the package's README)
LAZY = {f"study/{name}.py" for name in ("cli", "verbs", "chain", "bench", "kernels")}


def test_the_project_is_imported_at_the_top_of_its_files():
    """An import inside a function may hide a circle. (The package's `__init__` imports through importlib.)"""
    package, found = ROOT / "learngene_core", set()
    for path in package.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                inner = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
                if any(node.level or (node.module or "").startswith("learngene_core") for node in inner):
                    found.add(path.relative_to(package).as_posix())
    assert found <= LAZY


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count; imports for annotations alone do not."""
    graph = grimp.build_graph("learngene_core", exclude_type_checking_imports=True, cache_dir=None)
    below = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    ordered = list(graphlib.TopologicalSorter(below).static_order())  # raises CycleError, which names the circle
    assert len(ordered) == len(graph.modules) > 100


def test_every_exported_name_exists():
    import learngene_core

    for name in learngene_core.__all__:
        assert getattr(learngene_core, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        learngene_core.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("code", "rule"),
    [("import pickle", "TID251"), ("import torch\ntorch.load(path)", "TID251"), ("import yaml\nyaml.load(text)", "S506"),
     ("eval(text)", "S307"), ("import os\nos.system(text)", "S605"), ("def public(): return 1", "D103")],
)  # fmt: skip
def test_lint_sees_unsafe_calls_and_missing_docstrings(code, rule):
    """`make lint` holds it for every file of the package; this holds that its rules are on."""
    lint = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--output-format=concise",
        "--stdin-filename=learngene_core/x.py",
        "-",
    ]
    done = subprocess.run(lint, input=code, cwd=ROOT, capture_output=True, text=True)
    assert rule in done.stdout, done.stdout + done.stderr


def test_figures_and_tables_need_no_torch():
    code = (
        "import sys, importlib, pkgutil, learngene_core.figures as figures\n"
        "for m in pkgutil.iter_modules(figures.__path__): importlib.import_module(f'learngene_core.figures.{m.name}')\n"
        "from learngene_core import criteria, record\nfrom learngene_core.analysis import statistics\n"
        "from learngene_core.explorer import threshold\nfrom learngene_core.runs.run import Run\n"
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
    shipped = {p for p in ours if not p.startswith("notebooks/tools/") and (ROOT / "learngene_core" / p).exists()}
    shipped |= {p for p in ours if p.startswith("notebooks/") and (ROOT / p).exists()} - {
        p for p in ours if "/tools/" in p
    }
    assert len(shipped) > 100 and not shipped - there and not [p for p in there if "notebooks/tools" in p]
    code = (
        "import learngene_core as lg\nfrom learngene_core.explorer import server\n"
        "from learngene_core.study import grid, notebooks\n"
        "print(lg.__file__, len(notebooks.numbered()), (server.DEMO / 'manifest.json').exists(), "
        "len(grid.load_grid('shots').points) > 1)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    numbered = [p for p in there if re.fullmatch(r"notebooks/\d\d_\w+\.ipynb", p)]
    assert said == [str(package / "__init__.py"), str(len(numbered)), "True", "True"]
