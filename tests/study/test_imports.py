"""What a verb, a room and a notebook import: seconds that everybody waits for, so nothing that they do not use."""

import re
import subprocess
import sys

import pytest

from learngene_core.study import notebooks

HEAVY = (
    "torch",
    "torchvision",
    "seaborn",
    "sklearn",
    "scipy.stats",
    "matplotlib",
    "pandas",
    "distributed",
    "papermill",
)
# seconds of a processor on two slow cores: torch 1.4 (and 1.2 more once something trains), seaborn 0.8 with the scipy.stats that
# it needs, pandas and matplotlib 0.3 each


def loaded(code):
    """Which of HEAVY a fresh process has loaded when it has run `code`."""
    code += f"\nimport sys; print('loaded', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def verb(*arguments):
    """A command, whatever its status; help and errors print."""
    return (
        f"from learngene_core.study.cli import main\ntry:\n    main({list(arguments)!r})\nexcept SystemExit:\n    pass"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("study", "--help"),
        ("stuudy",),
        ("divide", "--set", "shot=5"),
        ("study", "--set", "precision=fp16"),
        ("sweep", "shots", "--scheduler", "tcp://"),
    ],
    ids=" ".join,
)
def test_help_and_refusals_import_nothing_heavy(arguments):
    assert loaded(verb(*arguments)) == set()


def test_reading_a_finished_run_needs_tables_alone(smoke_run):
    assert loaded(verb("info", str(smoke_run))) <= {"pandas"}
    assert loaded(verb("explore", "/no/such/folder")) <= {"pandas"}
    assert loaded(verb("sweep", "no-such-grid")) <= {"pandas"}
    assert loaded(verb("bench", "no-such-row")) <= {"pandas"}


@pytest.mark.parametrize(
    ("room", "may"),
    [
        ("figures.atlas figures.comparison figures.training figures.theory figures.style", {"pandas", "matplotlib"}),
        ("explorer.layer_explorer explorer.threshold explorer.openworld explorer.server", {"pandas", "matplotlib"}),
        ("runs.run runs.info runs.tables analysis.statistics analysis.claims criteria record", {"pandas"}),
        ("study.chain study.notebooks study.report study.summary study.sweeptable", {"pandas"}),
        ("data.images data.cifar data.division training collective fewshot openworld.scores", {"torch", "pandas"}),
    ],
)
def test_a_room_imports_what_its_name_says(room, may):
    """Not torchvision, which downloads CIFAR-100 and nothing else; seaborn, sklearn and scipy.stats wait until they are used."""
    assert loaded("".join(f"import learngene_core.{name}\n" for name in room.split())) <= may


KNOWS_TORCH = ("02", "04", "05", "07")  # they train, or look into networks


@pytest.mark.parametrize("number", [f"{n:02d}" for n in range(9)])
def test_the_setup_of_a_notebook_imports_what_it_uses(number):
    path = next(notebooks.folder().glob(f"{number}_*.ipynb"))
    cells = [c for c in notebooks.read(path).cells if "setup" in c.metadata.get("tags", [])]
    lines = [line for c in cells for line in c.source.splitlines() if re.match(r"(import|from)\s", line)]
    may = {"pandas", "matplotlib"} | ({"torch"} if number in KNOWS_TORCH else set())
    assert lines and loaded("\n".join(lines)) <= may


def test_what_waits_comes_when_it_is_used():
    code = "import pandas as pd\nfrom learngene_core.analysis.statistics import mean_interval\nmean_interval([1, 2, 4])"
    assert loaded(code) == {"pandas", "scipy.stats"}
    code = "from learngene_core.figures.style import diverging\nassert diverging().name == 'vlag'"
    assert "seaborn" in loaded(code)
