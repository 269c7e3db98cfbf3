"""The report of a run: its first page says what the tables say; the page stands alone, and its contents list leads somewhere."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from learngene_core import criteria
from learngene_core.config import Config
from learngene_core.learngene import Learngene
from learngene_core.record import Record
from learngene_core.runs.run import Run
from learngene_core.study import firstpage, notebooks
from learngene_core.study.firstpage import Choice
from learngene_core.study.report import write_report

PATHS = notebooks.numbered()
MOST = 5_000_000  # bytes


@pytest.fixture(scope="module")
def run(smoke_run):
    """A run whose last finished stage is `reconstruct`: what notebooks 05 to 08 make is not there."""
    return Run(Config.preset("smoke"), smoke_run)


@pytest.fixture(scope="module")
def gene(run):
    return Learngene.load(run.path / "learngene.safetensors")


@pytest.fixture(scope="module")
def first(run, gene):
    return firstpage.first_page(run, gene)


@pytest.fixture(scope="module")
def whole(first, tmp_path_factory):
    """The report of the committed notebooks, which have the outputs of the lecture preset."""
    target = tmp_path_factory.mktemp("report") / "report.html"
    write_report(PATHS, "A study", first, target)
    return target.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags of a page: ids, targets of links, what the browser loads, the text of headings, and what is open at each tag."""

    EMPTY = ("meta", "img", "br", "hr", "link", "input", "source", "col", "wbr", "area", "base", "embed")

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.loaded, self.open, self.contents, self.unfolded = [], [], [], [], [], 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        if tag == "a" and "href" in given:
            (self.contents if "nav" in [t for t, _ in self.open] else self.links).append(given["href"])
        if tag in ("img", "script", "link", "iframe", "video", "audio", "object", "embed", "source"):
            self.loaded += [given[key] for key in ("src", "href", "data", "srcset") if key in given]
        if "input_area" in given.get("class", "") and not any(t == "details" for t, _ in self.open):
            self.unfolded += 1
        if tag not in self.EMPTY:
            self.open.append((tag, given))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass


# the first page -----------------------------------------------------------------------------------------------------
def by_hand(results, family, method, shots):
    """Mean paired gain of an arm and the limits of its t interval, without the package."""
    part = results[(results["family"] == family) & (results["shots"] == shots)]
    block = part.loc[part["method"] == method, "block"].iloc[0]
    part = part[part["block"] == block]
    means = part.groupby(["target_task", "method"])["accuracy"].mean().unstack()
    gains = means[method] - means["scratch"]
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    return gains.mean(), gains.mean() - half, gains.mean() + half, len(gains)


def said(value):
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}")


def test_findings_are_what_the_tables_of_the_run_say(run, gene, first):
    results = pd.read_csv(run.path / "results.csv")
    learned, other, null = re.search(r"## Findings\n\n((?:- .+\n?)+)", first)[1].splitlines()
    for sentence, method in ((learned, "learngene"), (other, "first")):
        gain, low, high, n = by_hand(results, "light", method, min(run.cfg.shots))
        assert f"gains {said(gain)} points" in sentence
        assert f"95 % interval {said(low)} to {said(high)}, {n} target tasks" in sentence
        assert ("helps" in sentence, "costs" in sentence, "zero" in sentence) == (low > 0, high < 0, low <= 0 <= high)
    assert f"{gene.layers[0]} to {gene.layers[-1]}" in learned
    blocks = results.loc[results["method"] == "full", "inherited_parameters"].max()
    share = re.search(r"holds ([\d.]+) % of the parameters", learned)
    assert float(share[1]) == pytest.approx(100 * gene.n_parameters / blocks, abs=0.5)
    record, options = Record.load(run.path), {"threshold": run.cfg.threshold, "sign": run.cfg.sign}
    votes = criteria.null_choices(record, "released", run.cfg.n_blocks, **options)
    assert f"{sum(vote == gene.layers for vote in votes)} of {len(votes)} untrained networks" in null


def test_the_page_says_what_was_run_on_what(run, first):
    divided = re.search(r"(\d+) base, (\d+) open-world, (\d+) novel", first)
    import json

    noted = json.loads((run.path / "division.json").read_text("utf-8"))
    assert [int(n) for n in divided.groups()] == [len(noted[k]) for k in ("base", "open_world", "novel")]
    for text in (
        "preset `smoke`",
        f"seed {run.cfg.seed}",
        "Glyphs",
        "processors",
        "PyTorch",
        f"{run.cfg.n_target_tasks} target",
    ):
        assert text in first
    assert first.count("<figure") == 3 == first.count('src="data:image/png;base64,')


def test_the_table_has_every_method_in_readable_names(run, first):
    results = pd.read_csv(run.path / "results.csv")
    arms = results.groupby(["family", "block", "method", "shots"], dropna=False).ngroups
    rows = [line for line in first.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == arms
    table = "\n".join(rows)
    for code in ("_", "nan", "ncm", "same_shape"):
        assert code not in table
    gain, low, high, _ = by_hand(results, "same_shape", "full", results["shots"].min())
    assert f"{said(gain)} ({said(low)} to {said(high)})" in table


def paired(*rows):
    columns = [
        "family",
        "method",
        "block",
        "shots",
        "accuracy",
        "gain",
        "gain_low",
        "gain_high",
        "n_tasks",
        "n_inits",
        "share",
    ]
    table = pd.DataFrame([dict(zip(columns, row, strict=True)) for row in rows])
    return table.assign(accuracy_low=table["accuracy"], accuracy_high=table["accuracy"])


@pytest.mark.parametrize(
    ("limits", "words"),
    [((1.0, 3.0), "helps"), ((-3.0, -1.0), "costs"), ((-1.0, 5.0), "neither"), ((np.nan, np.nan), "no interval")],
)
def test_a_finding_claims_no_more_than_its_interval(gene, limits, words):
    row = ("light", "learngene", "conv11-conv13", 10, 50.0, 2.0, *limits, 5, 1, 40.0)
    told = firstpage.findings(paired(row), gene, None)
    assert len(told) == 1 and words in told[0]
    assert sum(w in told[0] for w in ("helps", "costs", "neither", "no interval")) == 1 and "nan" not in told[0]


def test_a_run_without_scratch_or_without_training_is_told_without_gains(gene):
    alone = paired(("light", "learngene", "conv11-conv13", 10, 50.0, np.nan, np.nan, np.nan, 5, 1, 40.0))
    (told,) = firstpage.findings(alone, gene, None)
    assert "50.0 %" in told and "no scratch" in told and "nan" not in told
    assert "no scratch" in firstpage.methods_markdown(alone)
    still = paired(("none", "ncm", "", 10, 50.0, np.nan, np.nan, np.nan, 5, 1, 100.0))
    assert firstpage.findings(still, gene, None) == [] and "nan" not in firstpage.methods_markdown(still)


@pytest.mark.parametrize(("alike", "words"), [(6, "needs no training"), (0, "another block"), (2, "another block")])
def test_the_null_is_counted(alike, words):
    ours, others = ("conv2", "conv3"), ("conv1", "conv2")
    choice = Choice("released", pd.DataFrame(), ours, [ours] * alike + [others] * (6 - alike), own=True)
    told = firstpage.null_text(choice)
    assert f"{alike} of 6 untrained" in told and words in told and "not chosen by it" not in told
    assert "not chosen by it" in firstpage.null_text(Choice("released", pd.DataFrame(), ours, [ours], own=False))


# the page -----------------------------------------------------------------------------------------------------------
def test_contents_lead_to_every_notebook_and_heading(whole):
    page = Page(whole)
    assert len(page.ids) == len(set(page.ids))
    inner = [link[1:] for link in page.contents + page.links if link.startswith("#")]
    assert set(inner) <= set(page.ids)
    listed = [link.removeprefix("#") for link in page.contents]
    assert [name for name in listed if "-" not in name] == ["summary", *(p.stem for p in PATHS)]
    words = [c.source for p in PATHS for c in notebooks.read(p).cells if c.cell_type == "markdown"]
    second = sum(part.startswith("## ") for text in words for part in notebooks.parts(text))
    assert len(listed) == len(set(listed)) == 1 + len(PATHS) + second + 2  # Findings, All methods


def test_nothing_is_loaded_from_elsewhere_and_code_is_folded(whole):
    page = Page(whole)
    assert len(page.loaded) > 30 and all(source.startswith("data:image/") for source in page.loaded)
    style = re.search(r"<style>(.*?)</style>", whole, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style and "position: sticky" in style and "@media print" in style
    assert all(link.startswith(("#", "https://")) for link in page.links)  # to sources, when a reader follows them
    assert page.unfolded == 0 and whole.count('<details class="code">') > 50
    assert "learngene-formula-" not in whole and "<math" in whole


def test_the_report_of_a_lecture_run_has_at_most_five_megabytes(whole):
    assert len(whole.encode()) <= MOST


def test_notebooks_that_were_not_run_are_left_out(first, tmp_path):
    """Links to them are words then; the others stay links."""
    there = [path for path in PATHS if path.name < "02"]
    write_report([*there, tmp_path / "05_open_world.ipynb"], "A study", first, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [name for name in page.contents if "-" not in name] == ["#summary", *(f"#{p.stem}" for p in there)]
    assert "#01_data_division" in page.links and not any("ipynb" in link for link in page.links)


def test_a_title_is_text(tmp_path):
    write_report([], "runs <a> & b", "words", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<title>{html.escape('runs <a> & b')}</title>" in page
