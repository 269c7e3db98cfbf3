"""The READMEs and RESULTS.md are true: commands exist, code runs, links lead somewhere, numbers come from files.

What a block of a shell may hold: `learngene`, `make`, `pip install`, `python -m learngene_core.X`, and the few words of
`HARMLESS`. Commands that take seconds are run with the smoke preset; the others are parsed by the real parser, which refuses an
option, a parameter or a value that does not exist. Results stand between markers and are made anew (`frontpage`).
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import checkpages
import frontpage
import keptpages
import pandas as pd
import pytest
import readme
import refresh
import yaml
from packaging.requirements import Requirement
from PIL import Image
from scipy import stats

from learngene_core.analysis.ancestor_tables import ancestor_gains
from learngene_core.analysis.claims import load_claims
from learngene_core.config import FIELDS, Config
from learngene_core.errors import StudyError
from learngene_core.runs.run import Run
from learngene_core.study import cli, notebooks
from learngene_core.study import options as options_module
from learngene_core.study.benchpeers import INSTALL

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in frontpage.PAGES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHEAP = {
    "divide",
    "collective",
    "criteria",
    "reconstruct",
    "info",
}  # run with the smoke preset; the rest is only parsed
HARMLESS = {"git": "clone", "cd": "", "source": ".venv/bin/activate"}  # what a newcomer types that is not ours
QUOTED = {"text", "bibtex", "yaml", "json"}  # fences that nobody runs: output (from a file), an entry, settings
FENCES = [(name, fence) for name, page in PAGES.items() for fence in readme.fences(page)]
SHELL = [words for _, fence in FENCES if fence.language in ("bash", "sh") for words in readme.commands(fence.body)]
MENTIONED = [words for page in PAGES.values() for words in readme.inline_commands(page)]
BLOCKS = [block for page in PAGES.values() for block in frontpage.BLOCK.finditer(page)]
LONGEST = 200  # lines of the front page


def only(*languages):
    """Parameters of a test: the fences of these languages, each with the page that it is on."""
    chosen = [(name, fence) for name, fence in FENCES if fence.language in languages]
    return pytest.mark.parametrize(("name", "fence"), chosen, ids=[f"{name}:{f.line}" for name, f in chosen])


each_page = pytest.mark.parametrize("name", PAGES)


def text_of(words):
    return " ".join(words)[:110]


@pytest.fixture(scope="module")
def place(smoke_run, tmp_path_factory):
    """A folder like a newcomer's after `make study`: finished runs (of the smoke preset) where the README has them."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in ("lecture", "smoke"):
        shutil.copytree(smoke_run, folder / "runs" / name)
    return folder


# --- commands -----------------------------------------------------------------------------------------------------------
def check_command(words):
    """Fail where a command line of the README names what does not exist."""
    program, *rest = words
    while "=" in program and rest:  # variables before a command
        program, *rest = rest
    if program == "learngene":
        parse_learngene(rest)
    elif program == "make":
        check_make(rest)
    elif program == "pip":
        check_pip(rest)
    elif program == ".peers/bin/pip":  # the environment of other libraries, as the bench itself says
        assert " ".join(words) in INSTALL
    elif program.startswith("python") and rest[:1] == ["-m"]:
        assert importlib.util.find_spec(rest[1]) is not None, f"there is no module {rest[1]}"
    elif program.startswith("python"):
        check_script(rest)
    elif program == "papermill":
        check_papermill(rest)
    else:
        assert program in HARMLESS and (rest or [""])[0].endswith(HARMLESS[program]), f"no rule covers {words}"


def parse_learngene(arguments):
    try:
        options = options_module.parser().parse_args(arguments)
    except SystemExit:
        raise AssertionError(f"`learngene {' '.join(arguments)}` is refused by the command line") from None
    if options.verb == "sweep":  # the grid is a file of the reader's; what stands beside it is checked
        Config().replace(**options_module.changes_of(options))
        return options, None
    if hasattr(options, "preset"):
        return options, options_module.configuration(options)
    return options, None


def check_make(rest):
    targets = [word for word in rest if "=" not in word]
    phony = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE).group(1).split()
    assert targets and set(targets) <= set(phony), f"there is no target {targets}"
    if shutil.which("make"):
        done = subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def check_script(rest):
    """A script of the project, and options that its own help names."""
    path = ROOT / rest[0]
    assert path.is_file(), f"there is no script {rest[0]}"
    known = set(re.findall(r'"(--[\w-]+)"', path.read_text(encoding="utf-8")))
    assert {word for word in rest[1:] if word.startswith("--")} <= known, f"{rest[0]} has no such option: {rest[1:]}"


def check_pip(rest):
    assert rest[0] == "install"
    known = {Requirement(r).name for r in PROJECT["dependencies"]}
    for word in rest[1:]:
        if word.startswith("."):
            extras = re.findall(r"[\w-]+", word[1:])
            assert set(extras) <= set(PROJECT["optional-dependencies"]), f"there is no extra in {word}"
        elif not word.startswith("-"):
            assert Requirement(word).name in known, f"{word} is not among the project's packages"


def check_papermill(rest):
    assert (ROOT / rest[0]).is_file()
    if "-y" in rest:
        notebooks.checked_parameters(ROOT / rest[0], yaml.safe_load(rest[rest.index("-y") + 1]))
        return
    for name, value in zip(rest[rest.index("-p") + 1 :: 3], rest[rest.index("-p") + 2 :: 3], strict=True):
        if name not in ("preset", "out"):
            Config().replace(**{name: yaml.safe_load(value)})


@pytest.mark.parametrize("words", SHELL, ids=text_of)
def test_every_command_of_a_block_exists(words):
    check_command(words)


@pytest.mark.parametrize("words", MENTIONED, ids=text_of)
def test_every_command_in_prose_exists(words):
    check_command(words)


RUN = [words for words in SHELL if words[0] == "learngene" and len(words) > 1 and words[1] in CHEAP]


@pytest.mark.parametrize("words", RUN, ids=text_of)
def test_cheap_commands_run_with_the_smoke_preset(words, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    arguments, dropped = [], {"--preset", "--data", "--data-path", "--out", "--set", "--seed"}
    rest = iter(words[1:])
    for word in rest:
        if word in dropped:
            next(rest)
        else:
            arguments.append("runs/lecture" if word == "RUN" else word)
    if words[1] != "info":
        arguments += ["--preset", "smoke"]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "line",
    ["learngene stduy", "learngene study --set shotz=3", "learngene atlas --preset paper --set minutes=x", "make studdy",
     "pip install -e .[gpu]", "pip install tensorflow", "python -m learngene_core.nothing", "curl example", "source x"],
)  # fmt: skip
def test_a_wrong_command_would_be_noticed(line):
    with pytest.raises((AssertionError, ValueError)):
        check_command(line.split())


# --- code ---------------------------------------------------------------------------------------------------------------
def examples():
    """Python blocks that are a file of `tests/examples`, which `test_examples` runs."""
    named = [m["files"] for m in BLOCKS if m["files"].startswith("tests/examples/")]
    return {(ROOT / name).read_text(encoding="utf-8").strip(): name for name in named}


def test_every_fenced_block_is_covered():
    for name, fence in FENCES:
        known = {"bash", "sh", "python", "", *QUOTED}
        assert fence.language in known, f"{name}, line {fence.line}: nothing covers {fence.language}"


@only("python")
def test_python_blocks_run_as_they_are(name, fence, place, monkeypatch):
    if fence.body.strip() in examples():
        return  # run, and looked at more closely, by test_examples
    monkeypatch.chdir(place)
    exec(compile(fence.body, f"{name}, line {fence.line}", "exec"), {"__name__": "readme"})


@only("")
def test_listed_files_are_made_by_the_package(name, fence):
    names = re.findall(r"[\w*/-]+\.(?:csv|json|npz|safetensors|html|ipynb)", fence.body)
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "learngene_core").rglob("*.py"))
    written = set(re.findall(r"[\w*-]+\.(?:csv|json|npz|safetensors|html|ipynb)", source))
    assert names, "a block without a language lists files of a run"
    pages = (ROOT / "notebooks").glob("*.ipynb")  # the last cell of a notebook saves its tables
    written |= {name for page in pages for name in re.findall(r"[\w-]+\.csv", page.read_text(encoding="utf-8"))}
    assert not [name for name in names if not fnmatch.filter(written, name.rpartition("/")[2])]


@only(*QUOTED)
def test_quoted_blocks_are_what_they_seem(name, fence):
    if fence.language == "text":
        texts = [frontpage.rendered(m, ROOT) for m in BLOCKS if m["files"].endswith(".txt")]
        assert f"```text\n{fence.body}```" in texts, f"{name}, line {fence.line}: output comes from a file"
    elif fence.language == "bibtex":
        title = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
        assert re.search(r"title *= *[{\"]+(.+?)[}\"]", fence.body).group(1) in json.dumps(title)
    else:
        given = yaml.safe_load(fence.body)
        for part in (given.get("parameters", {}), given.get("product", {}), *given.get("cases", [])):
            assert set(part) <= set(FIELDS), f"{name}, line {fence.line}: unknown parameters {set(part) - set(FIELDS)}"


# --- links and pictures -------------------------------------------------------------------------------------------------
def anchors(path):
    """The anchors of a page's headings."""
    text = readme.FENCE.sub("", path.read_text(encoding="utf-8"))
    return {readme.slug(h) for h in re.findall(r"^#+ +(.+)$", text, re.MULTILINE)}


@each_page
def test_links_and_pictures_lead_somewhere(name):
    for match in readme.LINK.finditer(readme.FENCE.sub("", PAGES[name])):
        target, _, anchor = match["target"].partition("#")
        if "://" in target:
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), f"{match['target']} leads nowhere"
        assert not anchor or anchor in anchors(path), f"there is no section #{anchor} in {path.name}"


def test_pictures_are_whole_small_and_opaque():
    found = [((ROOT / name).parent, m) for name, page in PAGES.items() for m in readme.LINK.finditer(page)]
    pictures = [folder / m["target"] for folder, m in found if m[0].startswith("!")]
    assert pictures
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert picture.width <= 1700 and path.stat().st_size <= 700_000, path.name
            corner = picture.convert("RGBA").getpixel((0, 0))
        assert corner[3] == 255 and min(corner[:3]) >= 250, (
            f"{path.name}: a white ground of its own, also on a dark page"
        )


def test_the_front_page_stays_short():
    assert len(PAGES["README.md"].splitlines()) <= LONGEST


# --- numbers ------------------------------------------------------------------------------------------------------------
@each_page
def test_blocks_are_what_their_files_say(name):
    page = PAGES[name]
    assert frontpage.filled(page, ROOT) == page, "run `python notebooks/tools/frontpage.py`"
    n = len(frontpage.BLOCK.findall(page))
    assert page.count("<!-- from ") == n == page.count("<!-- end -->"), "every block begins and ends"


@each_page
def test_every_table_of_numbers_is_made_from_a_file(name):
    bare = readme.FENCE.sub("", frontpage.BLOCK.sub("", PAGES[name]))
    rows = [line for line in bare.splitlines() if line.startswith("|") and readme.numbers(readme.prose(line))]
    assert not [row for row in rows if not all(n in allowed() for n in readme.numbers(readme.prose(row)))]


def allowed():
    """Numbers that are in prose and in no file of results, with the reason why they are there."""
    table = pd.read_csv(Path(__file__).with_name("readme_numbers.csv"), dtype=str)
    assert table["reason"].str.len().gt(15).all() and not table["number"].duplicated().any()
    return dict(zip(table["number"], table["reason"], strict=True))


def sources(page, root):
    """Numbers shown in all blocks but code, and the values of the small tables they come from (of a large one, any number
    could be found)."""
    blocks = list(frontpage.BLOCK.finditer(page))
    shown = {n for m in blocks if not m["files"].endswith(".py") for n in readme.numbers(m["body"])}
    paths = {path for m in blocks for path in frontpage.files_of(m, root).values() if path.suffix == ".csv"}
    tables = [pd.read_csv(path).select_dtypes("number") for path in sorted(paths)]
    return shown, [abs(v) for table in tables if len(table) < 100 for v in table.to_numpy().ravel() if pd.notna(v)]


def untraced(page, root, known):
    """Numbers of the prose that are in no block, in no file of one (rounded as they are), and not among `known`."""
    shown, values = sources(page, root)
    found = []
    for number in readme.numbers(readme.prose(frontpage.BLOCK.sub("", page))):
        digits = len(number.partition(".")[2])
        traced = digits and any(f"{value:.{digits}f}" == number for value in values)
        if number not in shown and number not in known and not traced:
            found.append(number)
    return found


@each_page
def test_nothing_is_left_to_be_filled_in(name):
    assert not re.search(r"@@\w+@@|TODO|FIXME", PAGES[name])


@each_page
def test_every_number_in_prose_is_traced(name):
    assert not (lost := untraced(PAGES[name], ROOT, allowed())), (
        f"from no file, and without a reason in readme_numbers.csv: {lost}"
    )


def test_no_reason_is_left_for_a_number_that_is_gone():
    words = {n for page in PAGES.values() for n in readme.numbers(readme.prose(page))}
    assert not (stale := [n for n in allowed() if n not in words]), f"reasons for numbers that are gone: {stale}"


def test_a_number_from_nowhere_would_be_noticed(tmp_path):
    pd.DataFrame({"claim": ["H1"], "estimate": [1.2649]}).to_csv(tmp_path / "a.csv", index=False)
    page = "<!-- from a.csv as plain -->\n<!-- end -->\nGains of +1.26 and 1.3 points, not 1.4; 12 % and `0.7`, [x](v1.9).\n"
    page = frontpage.filled(page, tmp_path)
    assert "| H1 | 1.2649 |" in page
    assert untraced(page, tmp_path, {}) == ["1.4", "12"]
    assert untraced(page, tmp_path, {"12": "why"}) == ["1.4"]


def test_the_command_brings_a_page_up_to_date(tmp_path, capsys):
    (tmp_path / "t.md").write_text("| a |\n|---|\n| 2.5 |\n", encoding="utf-8")
    (tmp_path / "e.py").write_text("x = 1\n", encoding="utf-8")
    page = tmp_path / "P.md"
    page.write_text("A\n<!-- from t.md -->\nold\n<!-- end -->\nB\n<!-- from e.py -->\n<!-- end -->\n", encoding="utf-8")
    assert frontpage.main([str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "old" not in text and "| 2.5 |\n<!-- end -->\nB" in text and "```python\nx = 1\n```" in text
    assert frontpage.main([str(page)]) == 0 and "up to date" in capsys.readouterr().out
    page.write_text("<!-- from gone.csv as claims -->\n<!-- end -->\n", encoding="utf-8")
    assert frontpage.main([str(page)]) == 1 and "gone.csv, which does not exist" in capsys.readouterr().err


ANCESTORS = ROOT / "notebooks" / "results" / "ancestors"


def kept(kind):
    return {path.name.partition(".")[0]: pd.read_csv(path) for path in sorted(ANCESTORS.glob(f"*-{kind}.csv*"))}


def test_the_verdicts_of_the_page_are_those_of_a_plain_computation():
    """The paper's block over sequential ancestors: mean of five means, a t interval with four degrees of freedom."""
    individuals = kept("individuals")["cifar100-individuals"]
    own = individuals[(individuals["ancestor"] == "sequential") & (individuals["division_seed"] < 0)]
    own = own[own["block"] == "conv11-conv13"]
    means = own.groupby(["ancestor_seed", "method"])["accuracy"].mean().unstack()
    gains = (means["learngene"] - means["scratch"]).to_numpy()
    half = 2.7764451 * gains.std(ddof=1) / len(gains) ** 0.5
    cell = f"{gains.mean():+.2f} ({gains.mean() - half:+.2f} to {gains.mean() + half:+.2f})"
    page = PAGES["notebooks/RESULTS.md"]
    assert len(gains) == 5 and re.search(rf"\*\*A1\*\* .*\| \*\*equivalent\*\* \| {re.escape(cell)} \| 5 \|", page)


def test_a_second_source_of_ancestors_is_taken_when_it_is_there():
    found = kept("individuals") | kept("ancestors") | kept("tasks")
    found = {name: table for name, table in found.items() if name.startswith("cifar100")}
    other = {}
    for name, table in found.items():
        part = table[(table["ancestor"] == "sequential") & (table["division_seed"] < 0)]
        if "family" in part:
            part = part[part["method"] != "recommended"]
        other[name.replace("cifar100", "glyphs")] = part.assign(data="glyphs", division_seed=part["ancestor_seed"])
    text = keptpages.ancestor_verdicts(found | other)
    assert re.search(r"\*\*G1\*\* .*\| \*\*equivalent\*\*", text) and re.search(
        r"\*\*G3\*\* .*\| \*\*supported\*\*", text
    )
    first, second = (re.search(rf"\*\*{name}\*\* .*?\| (\+[^|]*)\|", text).group(1) for name in ("A1", "G1"))
    assert first == second, "the same individuals under another name"
    assert "glyphs, task after task" in keptpages.ancestor_results(found | other)


def test_redrawn_classes_are_judged_by_what_a_further_ancestor_would_gain():
    """scipy's interval for one more draw; and the sentences of the two pages that count."""
    table = kept("individuals")["cifar100-individuals"]
    text = keptpages.redrawn({"cifar100-individuals": table})
    gains = ancestor_gains(table[table["shots"] == 10])
    own = gains[(gains["ancestor"] == "joint") & (gains["inherits"] == "first three") & (gains["division_seed"] < 0)][
        "gain"
    ]
    low, high = stats.t.interval(0.95, len(own) - 1, own.mean(), own.std() * (1 + 1 / len(own)) ** 0.5)
    cell = f"| all classes at once | first three | {own.mean():+.1f} ({low:+.1f} to {high:+.1f}) |"
    assert cell in text and text.count("(above)") == 0
    words = {16: "sixteen", 5: "five"}
    below, every = text.count("(below)"), text.count("(below)") + text.count("(inside)")
    for page in ("RESULTS.md", "06_layer_atlas.ipynb"):
        said = (ROOT / "notebooks" / page).read_text(encoding="utf-8").lower()
        assert re.search(rf"{words[below]} (gains )?of {words[every]}", said), page


def test_ways_to_tune_are_paired_with_tuning_everything():
    """Task by task, by hand; a row of the page, and what the page says of Auto-RGN and of single parts."""
    table = pd.read_csv(ROOT / "notebooks/results/ancestors/cifar100-tuning.csv.gz")
    text, gains = checkpages.tuning({"cifar100-tuning": table}), {}
    for (kind, _), own in table.groupby(["ancestor", "ancestor_seed"]):
        wide = own.pivot(index="target_task", columns="method", values="accuracy")
        for method in wide.columns.drop("full"):
            gains.setdefault((kind, method), []).append((wide[method] - wide["full"]).mean())
    first, second = gains["sequential", "surgical:head"]
    assert f"| the fresh head alone | 0.02, 0.06 | 47.1 | {first:+.1f}, {second:+.1f} (n=2, no interval) |" in text
    assert all(0.5 < g < 2.5 for g in gains["sequential", "auto_rgn"])
    assert max(g for (_, method), each in gains.items() for g in each if method.startswith("surgical")) < 1


def test_break_even_is_that_of_a_plain_computation():
    """The last three of the sequential ancestor: 10 epochs of 50 images against 30 of scratch; VGG-16 at a quarter by hand."""
    found = {name: table for name, table in (kept("individuals") | kept("budgets")).items() if "cifar100" in name}
    text = keptpages.break_even(found)
    (row,) = [line.split(" | ") for line in text.splitlines() if line.startswith("| sequential | last three")]

    def forward(widths, pools, n_classes=5):
        side, inputs, total = 32, 3, 0
        for k, width in enumerate(widths, 1):
            total += 2 * 9 * inputs * width * side * side
            inputs, side = width, side // 2 if k in pools else side
        return total + 2 * inputs * side * side * n_classes

    light = forward((16, 32, 64, 128, 128, 128, 128), (1, 2, 3, 7))  # four fresh blocks, then conv11 to conv13
    assert float(row[7]) == round(3 * 50 * 10 * light / 1e9)
    cfg = Config.preset("cifar-cpu")
    lowest, most = (3 * 420_000 * forward(w, (2, 4, 7, 10, 13), 64) for w in (cfg.start_widths, cfg.final_widths))
    assert lowest < float(row[6]) * 1e12 < most, "20 tasks of 2,500 images, 16 epochs and then 8; it grows meanwhile"
    paid = int(row[8].removeprefix("at least ").rstrip(" |"))
    assert paid == pytest.approx(float(row[6]) * 1e12 / (3 * 50 * 20 * light), rel=0.02)


def test_the_opening_paragraph_rounds_the_verdicts():
    said = re.search(r"gain (\d+) points of accuracy .*? at once, they gain (\d+)\.", PAGES["notebooks/RESULTS.md"])
    claims = keptpages.judged(kept("individuals") | kept("tasks")).set_index("claim")["estimate"]
    assert [int(n) for n in said.groups()] == [round(claims["A3"]), round(claims["A3j"])]
    assert 0.5 < claims["A1"] < 1.5 and 0.5 < claims["A1j"] < 1.5, "about one point"


def test_the_words_of_the_front_page_follow_from_the_verdicts():
    verdicts = keptpages.judged(kept("individuals") | kept("tasks")).set_index("claim")
    assert {"equivalent"} == {verdicts.loc[name, "verdict"] for name in ("A1", "A1j", "A5", "A5j", "A6")}
    assert {"supported"} == {verdicts.loc[name, "verdict"] for name in ("A2", "A2j", "A3", "A3j", "A7")}
    assert (verdicts.loc[["A1", "A1j"], "low"] > 0).all(), "yet above zero"


def test_an_interval_is_given_over_five_ancestors_and_not_over_fewer():
    text = keptpages.ancestor_results(kept("individuals") | kept("ancestors"))
    lines = [line for line in text.splitlines() if "with replay" in line]
    assert lines and all("n=2, no interval" in line for line in lines)


def test_kept_verdicts_follow_from_their_limits():
    for name in ("lecture", "cifar"):
        claims = pd.read_csv(ROOT / "notebooks" / "images" / f"claims-{name}.csv")["claim"]
        assert claims.tolist() == [claim.id for claim in load_claims()]
    rows = {
        "estimate": 0.8,
        "low": 0.3,
        "high": 1.3,
        "n": 60,
        "verdict": "refuted",
        "unit": "points",
        "needed": float("nan"),
    }
    table = pd.DataFrame([{"claim": "H1", "statement": "old", "scope": "", "minimum": 2.0, **rows}])
    judged = frontpage.judged_anew(table).iloc[0]
    assert judged["verdict"] == "positive, below the line" and judged["statement"] != "old"
    held = frontpage.judged_anew(table.assign(estimate=3.0, low=2.5, high=3.5, verdict="undecided")).iloc[0]
    assert held["verdict"] == "undecided", "a condition beside the limits had left it open"


def test_a_kind_that_is_not_there_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n", encoding="utf-8")
    with pytest.raises(Exception, match="results, claims, released, openworld"):
        frontpage.filled("<!-- from a.csv as nothing -->\n<!-- end -->", tmp_path)


def test_the_tour_is_what_the_commands_say(smoke_copy):
    text = refresh.tour(Run.open(Config.preset("smoke"), smoke_copy))
    assert text.startswith(f"$ learngene info {refresh.HOME}\n{refresh.HOME}: preset smoke")
    assert "\n$ learngene criteria\n" in text and "learngene: conv" in text and f"run folder: {refresh.HOME}" in text
    assert str(smoke_copy) not in text
    for command in refresh.TOUR:
        check_command(command.split())


def test_what_the_front_page_shows_of_a_run_is_kept(judged_run, smoke_run, tmp_path):
    run = Run.open(Config.preset("smoke"), judged_run)
    refresh.keep_cifar(run, None, tmp_path)
    assert (tmp_path / "cifar-results.csv").read_bytes() == (judged_run / "results.csv").read_bytes()
    names = {"results": "results", "openworld": "openworld", "choices": "plain", "timings": "plain"}
    page = "\n".join(f"<!-- from cifar-{name}.csv as {kind} -->\n<!-- end -->" for name, kind in names.items())
    text = frontpage.filled(page, tmp_path)
    heads = run.read_table("openworld_heads.csv")
    best = heads[heads["task"] == heads["task"].max()]["auroc"].max()
    assert f"| {best:.1f} (" in text and re.search(r"\| released \| 0\.0005 \| conv\d+ to conv\d+ \| \d of \d \|", text)
    assert all((tmp_path / f"cifar-{name}.png").stat().st_size > 5_000 for name in ("comparison", "criterion"))
    with pytest.raises(StudyError, match="no finished openworld; run `learngene openworld`"):
        refresh.keep_cifar(Run.open(Config.preset("smoke"), smoke_run), None, tmp_path)


def test_the_table_of_defects_is_kept_as_its_run_has_it(smoke_copy, tmp_path):
    run = Run.open(Config.preset("smoke"), smoke_copy)
    with pytest.raises(StudyError, match="no finished released; run `learngene released`"):
        refresh.keep_released(run, tmp_path)
    columns = {
        "scratch": 50.0,
        "learngene": 52.0,
        "learngene_ewc": 51.0,
        "gain": 2.0,
        "gain_low": -1.0,
        "gain_high": 5.0,
    }
    row = {"defects": "none", **columns, "chosen": "conv1-conv3", "closed": 30.0, "n_tasks": 4, "note": ""}
    with run.computing("released", ["released.csv"]):
        run.write_table("released.csv", pd.DataFrame([row]))
    refresh.keep_released(run, tmp_path)
    page = "<!-- from released-lecture.csv as released -->\n<!-- end -->"
    assert "| none | 50.0 | 52.0 | 51.0 | +2.0 (-1.0 to +5.0) | conv1 to conv3 |" in frontpage.filled(page, tmp_path)
