"""Exercises as a student and a lecturer meet them: tasks, checks, wrong answers, and the homework as a chain."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import warnings
from types import SimpleNamespace

import exercises
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from exercisesource import PROMPT, read_source

from learngene_core import Config, Learngene, build_individual
from learngene_core.errors import StudyError
from learngene_core.study import notebooks
from learngene_core.study.exercises import answered

HOME = notebooks.folder()
SOURCES = {path: read_source(exercises.SOURCES / f"{path.stem[:2]}.md") for path in exercises.with_exercises()}
TASKS = {
    f"{path.stem[:2]}-{t.number}": (path, t)
    for path, source in SOURCES.items()
    for t in source.tasks
    if t.code("check")
}
ANSWERS = [
    (key, name)
    for key, (_, t) in TASKS.items()
    for name in re.findall(r"^(\w+) = .*# answer:", t.code("solution"), re.M)
]
every_task = pytest.mark.parametrize("key", TASKS)
each = pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)

# what a student may well write, after the solution, so that its names are there; and words of the sentence that says it
WRONG = {
    "01-3": {"times = [50 * 5 / len(div.base)] * len(div.base)": "has test images in",
             "times = [n - 1 for n in times]": "adds up to",
             "times = [name in drawn for name in div.base]": "adds up to", "times = Counter(drawn)": "should hold numbers",
             "times = times[::-1]": "has test images in", "times = times[1:]": "its shape is"},
    "01-4": {"related = {name: list(family.values()).count(family[name]) for name in div.novel}": r"how many \*base\* classes",
             "related = {name: families.count(family[name]) for name in div.base}": "whose keys are the novel classes",
             "related = list(related.values())": "should be a dictionary"},
    "01-5": {"neighbours = lambda rng: div.novel[:4]": "needs 3 different classes",
             "neighbours = lambda rng: div.novel[:3]": "the same few episodes",
             "neighbours = lambda rng: rng.permutation(div.novel)[:3]": "are not neighbours",
             "neighbours = lambda rng: div.base[:3]": "only novel classes",
             "neighbours = lambda rng: (lambda k: div.novel[k : k + 3])(rng.integers(len(div.novel) - 3))": "never drawn",
             "neighbours = lambda rng: (lambda k: div.novel[k : k + 3])(np.random.default_rng().integers(18))":
                 "equal generators"},
    "02-3": {"incoming = wide.blocks['conv5'].conv.weight[:width]": "weights of old channels",
             "outgoing = wide.blocks['conv6'].conv.weight[:, :width]": "all zero, that leave new channels",
             "outgoing = wide.blocks['conv6'].conv.weight[width:]": "is a copy, or empty",
             "incoming, outgoing = outgoing, incoming": "weights of old channels",
             "incoming = incoming[:-1]": "do not hold all new weights", "incoming = incoming.clone()": "is a copy, or empty",
             "outgoing = outgoing.numel()": "should be a slice", "added = incoming.numel()": "another number",
             "added = incoming.numel() + outgoing.numel() + width": "another number"},
    "02-4": {"transfer = change.mean()": "the average is over", "transfer = -change[:-1].mean()": "the other way round",
             "transfer = change[:-1].sum()": "the average is over", "transfer = change[:-1]": "a single number"},
    "02-5": {"w = widen_by_copying": None,
             "widen_by_copying = lambda net, name, source: None": "should have",
             "def widen_by_copying(net, name, source): w(net, name, source); net.blocks[name].norm.reset_running_stats()":
                 "not copied",
             "def widen_by_copying(net, name, source):\n"
             "    w(net, name, source)\n"
             "    following = list(net.blocks.values())[list(net.blocks).index(name) + 1]\n"
             "    following.conv.weight.data *= 2": "not shared in equal parts",
             "def widen_by_copying(net, name, source): lg.widen(net, name, len(source), mode='zero-out')": "share the outgoing",
             "def widen_by_copying(net, name, source): lg.widen(net, name, len(source), mode='uneven')": "share the outgoing"},
    "02-6": {"large_entries = lambda net, t: [1] * 13": "should be a dictionary",
             "large_entries = lambda net, t: {n: (b.conv.weight.grad.abs() > t).sum() for n, b in net.blocks.items()}":
                 "negative ones do not count",
             "large_entries = lambda net, t: {n: (b.conv.weight > t).sum() for n, b in net.blocks.items()}": "and you count",
             "large_entries = lambda net, t: {n: (b.conv.weight.grad.clamp_(min=0) > t).sum() for n, b in net.blocks.items()}":
                 "must not change the gradients"},
    "03-3": {"r = lowest_block": None, "lowest_block = lambda s, n: r(s, n) + 1": "are not the lowest|start at 0 to",
             "lowest_block = lambda s, n: r(-s, n)": "are not the lowest",
             "lowest_block = lambda s, n: int(s.mean(0).argmin())": "start at 0 to|are not the lowest",
             "lowest_block = lambda s, n: float(r(s, n))": r"a whole number, such as 3, but `lowest_block` returns \d\.0",
             "lowest_block = lambda s, n: min(range(s.shape[1] - n + 1), key=lambda a: s[:, a : a + n].sum())": "the deepest",
             # the deepest only where all are equal
             "lowest_block = lambda s, n: s.shape[1] - n if np.ptp(s) == 0 else "
             "min(range(s.shape[1] - n + 1), key=lambda a: s[:, a : a + n].sum())": "equally low: the deepest"},
    "03-4": {"c = cut": None, "cut = lambda state, names: list(c(state, names))": "should return a dictionary",
             "cut = lambda state, names: {k: v for k, v in c(state, names).items() if 'running' not in k}": "is missing for",
             "cut = lambda state, names: c(state, [*names, 'conv3'])": "is too much for",
             "cut = lambda state, names: {k[7:]: v.clone() for k, v in state.items() if k.split('.')[1] in names}": "is too much",
             "cut = lambda state, names: {k: state[f'blocks.{k}'] for k in c(state, names)}": "is shared with the network",
             "cut = lambda state, names: {k: v + 1 for k, v in c(state, names).items()}": "does not hold the values",
             "cut = lambda state, names: c(col.model.state_dict(), names)": "another network than the collective",
             # conv1 as the beginning of conv11 to conv13
             "cut = lambda state, names: {k[7:]: v.clone() for k, v in state.items() "
             "if k.startswith(tuple(f'blocks.{n}' for n in names)) and 'batches' not in k}": "is too much for"},
    "03-5": {"c = choices": None, "choices = lambda s, n: c(s, n) + 1": "count from 0",
             "choices = lambda s, n: c(-s, n)": "with a lower mean", "choices = lambda s, n: c(s, n)[0]": "its shape is",
             "choices = lambda s, n: s.argmin(1)": "lowest single layer: compare means over 3",
             "choices = lambda s, n: np.repeat(c(s.mean(0, keepdims=True), n), len(s))": "by its own row",
             "choices = lambda s, n: np.full(len(s), 2)": "by its own row",
             "choices = lambda s, n: np.arange(len(s)) + s.shape[1]": "a block starts at 0 to"},
    "04-3": {"gains = -gains": "learngene minus scratch", "gains = table['learngene']": "learngene minus scratch",
             "half = 1.96 * gains.std(ddof=1) / np.sqrt(len(gains))": "instead of 95 %",
             "half = stats.t.ppf(0.95, len(gains) - 1) * gains.std() / np.sqrt(len(gains))": "instead of 95 %",
             "half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=0) / np.sqrt(len(gains))": "instead of 95 %",
             "half = stats.t.ppf(0.975, len(gains) - 1) * gains.std()": "instead of 95 %", "half = -half": "instead of 95 %",
             "half = float('nan')": "instead of 95 %", "gains = np.full(len(gains), gains.mean())": "the scatter is not"},
    "04-4": {"share = 9 * sizes / sizes.sum()": "add up to 100 %",
             "share = 100 * np.array(widths) / sum(widths)": "has another share",
             "share = [100 * (9 * a * a + 3 * a) / sum(9 * b * b + 3 * b for b in widths) for a in widths]": "has another share",
             "sizes = [9 * a * b for a, b in zip([3, *widths[:-1]], widths)]; share = 100 * np.array(sizes) / sum(sizes)":
                 r"3 numbers per output channel \(bias, scale, shift\); you count 0",
             "sizes = [9 * a * b + 2 * b for a, b in zip([3, *widths[:-1]], widths)]; share = 100 * np.array(sizes) / sum(sizes)":
                 "you count 2",
             "share = share[3:]": "its shape is"},
    "04-5": {"put = inherit": None, "inherit = lambda net, tensors: net": "should hold the inherited values",
             "inherit = lambda net, tensors: copy.deepcopy(put(net, tensors))": "the very network",
             "inherit = lambda net, tensors: put(net, homework.tensors)": "those in `tensors`",
             "inherit = lambda net, tensors: [p.data.zero_() for p in net.parameters()] and put(net, tensors)":
                 "should stay as it was",
             "inherit = lambda net, tensors: "
             "net.load_state_dict({f'blocks.{n}': t for n, t in tensors.items()}, strict=False, assign=True) and net":
                 "shares tensors"},
    "04-6": {"h = hold": None, "hold = lambda net, a, f, s: 0.0": "but `hold` returns 0",
             "hold = lambda net, a, f, s: 2 * h(net, a, f, s)": "factor of 2",
             "hold = lambda net, a, f, s: h(net, a, f, 2 * s) / 2": "another gradient",
             "hold = lambda net, a, f, s: -h(net, a, f, -s)": "another gradient",
             "hold = lambda net, a, f, s: h(net, a, {n: f.get(n, torch.ones(())) for n in a}, s)": "should be free",
             "def hold(net, a, f, s):\n    for n in f: net.get_parameter(n).grad.zero_()\n    return h(net, a, f, s)":
                 "no gradient may change"},
    "05-4": {"auroc = 100 - auroc": "the wrong way round", "auroc = auroc / 100": "in another share of the pairs",
             "auroc = 100 * (known > unknown.mean()).mean()": "in another share",
             "auroc = 100 * ranks[:n].sum() / (n * len(unknown))": "between 0 and 100|in another share",
             "auroc = 'high'": "should hold numbers"},
    "05-5": {"threshold = ordered[0]": "it could be higher", "threshold = ordered[-may_go - 1]": "are wanted",
             "threshold = ordered[may_go] + 1e-6": "are wanted", "threshold = ordered[max(0, may_go - 1)]": "it could be higher"},
    "06-4": {"regret = some['gain'].max() - some['gain'].iloc[np.argmax(means)]": r"\*lowest\* mean score",
             "regret = -regret - 1": "at least 0", "regret = regret + 0.01": r"\*lowest\* mean score"},
    "06-5": {"rho = -rho": "the other way round", "rho = np.corrcoef(depth, blocks['gain'])[0, 1]": "is not the correlation",
             "rho = 100 * rho": "between -1 and 1",
             "rho = np.corrcoef(stats.rankdata(blocks['last']), stats.rankdata(blocks['gain']))[0, 1]": "is not the correlation"},
    "07-3": {"term = [squared[:t].mean() / (2 * sigma * t * np.sqrt(m)) for t in ts]": "divided by t twice",
             "term = [squared[:t].sum() / (2 * sigma * np.sqrt(m)) for t in ts]": "with all tasks",
             "term = term[:2]": "its shape", "term = 3 * [term[2]]": "with one task",
             "term = [term[0], term[0], term[2]]": "with ten tasks"},
    "07-4": {"limit = budget + 1": "an error is a share", "limit = 100 * limit": "an error is a share",
             "limit = np.exp(-budget)": "this limit pays for",
             "limit = 1 - np.exp(-(nats + np.log(2 * np.sqrt(m) / 0.05)) / m)": "the choice among 13",
             "limit = 1 - np.exp(-(nats + np.log(13) + np.log(2 * m / 0.05)) / m)": "this limit pays for"},
    "08-4": {"honest = honest[::-1]": "the lower limit comes first", "honest = honest[0]": "its shape is",
             "honest = (means.min(), means.max())": "the middle of the interval|its width is",
             "half = 1.96 * means.std() / 2; honest = (means.mean() - half, means.mean() + half)": "1.96 is for many units",
             "half = stats.t.ppf(0.975, 11) * small['gain'].std() / np.sqrt(12); honest = (4.225 - half, 4.225 + half)":
                 "the heap's interval", "honest = (honest[0] + 1, honest[1] + 1)": "the middle of the interval"},
}  # fmt: skip

# other right answers: task, what the student wrote
RIGHT = {
    "the deepest of equals, from the end": ("03-3", "lowest_block = lambda s, n: s.shape[1] - n - int(np.argmin("
                                            "[s[:, a : a + n].sum() for a in range(s.shape[1] - n, -1, -1)]))"),
    "the rule, network by network": ("03-5", "choices = lambda s, n: [min(range(len(row) - n + 1), "
                                     "key=lambda a: row[a : a + n].sum()) for row in s]"),
    "a state dict, loaded": ("04-5", "def inherit(net, tensors):\n"
                             "    net.load_state_dict({f'blocks.{n}': t for n, t in tensors.items()}, strict=False)\n"
                             "    return net"),
    "a distance for every parameter": ("04-6", "@torch.no_grad()\n"
                                       "def hold(net, anchor, fisher, strength):\n"
                                       "    value = 0.0\n"
                                       "    for name, w in net.named_parameters():\n"
                                       "        away = w - anchor[name]\n"
                                       "        weight = strength * fisher.get(name, torch.zeros_like(w))\n"
                                       "        w.grad += weight * away\n"
                                       "        value += float((weight * away**2).sum()) / 2\n"
                                       "    return value"),
}  # fmt: skip

# runs that are allowed and unusual: what is changed before the task
EDGES = {
    "one target task": ("04-3", "light = light[light['target_task'] == light['target_task'].min()]"),
    "two target tasks": ("04-3", "light = light[light['target_task'] <= 2]"),
    "equal gains": ("04-3", "light = light.assign(accuracy=30.1 + 2.3 * (light['method'] == 'learngene'))"),
    "one source task": ("02-4", "matrix = matrix[:1, :1]"),
    "nothing forgotten": ("02-4", "matrix = np.full_like(matrix, 50)\n"
                                  "col = SimpleNamespace(history=col.history.assign(accuracy=50.0))"),
    "a rule of one block": ("03-3", "cfg = cfg.replace(n_blocks=1)"),
    "a rule of all blocks": ("03-3", "cfg = cfg.replace(n_blocks=13)"),
    "null choices of all blocks": ("03-5", "cfg = cfg.replace(n_blocks=13)"),
    "null choices of one block": ("03-5", "cfg = cfg.replace(n_blocks=1)"),
    "equal scores": ("05-4", "known, unknown = np.zeros(5), np.zeros(7)"),
    "equal validation scores": ("05-5", "values = {**values, 'validation': np.zeros(9)}"),
    "nearly all are kept": ("05-5", "cfg = cfg.replace(open_keep=99.9)"),
    "equal gains in the atlas": ("06-5", "blocks, judged = blocks.assign(gain=1.0), judged.assign(spearman=np.nan)"),
    "a single block": ("06-4", "blocks = blocks[blocks['first'] == 11]\n"
                               "judged = judged.assign(chosen_gain=blocks.loc[blocks['length'] == cfg.n_blocks, 'gain'].max())"),
}  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(judged_run, tmp_path_factory):
    """A finished smoke run of our own, for cells that open it."""
    return shutil.copytree(judged_run, tmp_path_factory.mktemp("exercises") / "run")


@pytest.fixture(autouse=True)
def _plain_figures():
    matplotlib.use("Agg")
    with matplotlib.rc_context():
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def prepared(run_folder):
    """Key of a task -> the names that exist before its solution: parameters and set-up of its notebook, what it is given."""
    done = {}

    def names(key):
        path, task = TASKS[key]
        if path not in done:
            done[path] = {"__name__": "__main__", "SimpleNamespace": SimpleNamespace}
            for cell in notebooks.read(HOME / "solutions" / path.name).cells:
                if {"parameters", "setup"} & set(cell.metadata.get("tags", [])):
                    run(cell.source, done[path])
                if "parameters" in cell.metadata.get("tags", []):
                    done[path].update(preset="smoke", out=str(run_folder))
        namespace = dict(done[path])
        for kind, text in task.parts[: [kind for kind, _ in task.parts].index("solution")]:
            if kind == "given":
                run(text, namespace)
        return namespace

    return names


def run(source, namespace):
    """Run one cell; returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing, in unusual runs
        exec(compile(source, "cell", "exec"), namespace)
    return printed.getvalue()


def filled(path):
    """Code cells of the student's file with the solutions put in: (id, source)."""
    solutions = {c.id: c.source for c in notebooks.read(HOME / "solutions" / path.name).cells}
    cells = [c for c in notebooks.read(HOME / "exercises" / path.name).cells if c.cell_type == "code"]
    assert any(PROMPT in c.source for c in cells)
    return [(c.id, solutions[c.id] if PROMPT in c.source else c.source) for c in cells]


# the chain ----------------------------------------------------------------------------------------------------------
def test_a_student_who_does_the_homework_ends_with_a_learngene_of_their_own_making(run_folder):
    assert not (run_folder / "homework.safetensors").exists()
    said = {}
    for path in SOURCES:
        namespace, said[path.stem[:2]] = {"__name__": "__main__"}, ""
        for name, source in filled(path):
            printed = run(source, namespace)
            assert not name.endswith("-check") or printed.startswith("right: "), name
            said[path.stem[:2]] += printed
            if "preset" in namespace and name.endswith("-01"):
                namespace.update(preset="smoke", out=str(run_folder))
    mine, theirs = (Learngene.load(run_folder / f"{name}.safetensors") for name in ("homework", "learngene"))
    assert mine.layers == theirs.layers and mine.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(mine.tensors[name], tensor) for name, tensor in theirs.tensors.items())
    assert (
        build_individual(mine, 5, Config.preset("smoke"), generator=torch.Generator()).block_names[-3:] == mine.layers
    )
    assert "those of learngene.safetensors" in said["03"]
    assert "your own learngene: " + ", ".join(mine.layers) in said["04"], "notebook 4 goes on with it"
    assert re.search(r"gain [+-]\d+\.\d points \([+-]\d+\.\d to [+-]\d+\.\d\) over \d tasks", said["04"])


@each
def test_every_cell_of_the_solutions_runs_on_a_finished_run(path, run_folder):
    namespace = {"__name__": "__main__"}
    for cell in notebooks.read(HOME / "solutions" / path.name).cells:
        if cell.cell_type == "code":
            printed = run(cell.source, namespace)
            assert printed or not cell.id.endswith("-check") and "answer" not in cell.id, f"{cell.id} says nothing"
        if "parameters" in cell.metadata.get("tags", []):
            namespace.update(preset="smoke", out=str(run_folder))


@pytest.mark.slow
@each
def test_a_student_file_runs_alone_in_a_fresh_kernel(path, run_folder, tmp_path):
    student, sources = notebooks.read(HOME / "exercises" / path.name), dict(filled(path))
    for cell in student.cells:
        cell.source = sources.get(cell.id, cell.source)
    notebooks.write(student, tmp_path / "filled.ipynb")
    parameters = {"preset": "smoke", "out": str(run_folder)}
    notebooks.execute(tmp_path / "filled.ipynb", tmp_path / "done.ipynb", parameters)


@pytest.mark.slow
def test_an_untouched_student_file_stops_at_its_first_check_in_words(tmp_path):
    path = next(iter(SOURCES))
    parameters = {"preset": "smoke", "out": str(tmp_path / "new")}  # a new run: it is made on the way
    with pytest.raises(StudyError, match=r"cell \d+: AssertionError: `times` is still missing: put your answer"):
        notebooks.execute(HOME / "exercises" / path.name, tmp_path / "untouched.ipynb", parameters)
    assert (tmp_path / "new" / "division.json").exists()


# the checks ---------------------------------------------------------------------------------------------------------
@every_task
def test_the_solution_passes_its_check_every_time(key, prepared):
    _, task = TASKS[key]
    namespace = prepared(key)
    run(task.code("solution"), namespace)
    first = run(task.code("check"), namespace)
    assert first.startswith("right: ") and run(task.code("check"), namespace) == first, "a check changes nothing"


@pytest.mark.parametrize(("key", "name"), ANSWERS)
def test_an_answer_left_out_fails_in_words(key, name, prepared):
    _, task = TASKS[key]
    namespace = prepared(key)
    run(task.code("solution"), namespace)
    namespace[name] = ...
    with pytest.raises(AssertionError, match=f"`{name}` is still missing: .{{20}}"):
        run(task.code("check"), namespace)


@every_task
def test_an_untouched_task_fails_in_words(key, prepared):
    path, task = TASKS[key]
    namespace = prepared(key)
    stub = next(
        c.source
        for c in notebooks.read(HOME / "exercises" / path.name).cells
        if c.id == f"{path.stem[:2]}-exercise-{task.number}-solution"
    )
    run(stub, namespace)
    with pytest.raises(AssertionError, match="is still missing"):
        run(task.code("check"), namespace)


@every_task
def test_wrong_answers_fail_with_their_sentence_and_the_right_one_passes_afterwards(key, prepared):
    _, task = TASKS[key]
    namespace = prepared(key)
    for wrong, words in WRONG[key].items():
        run(task.code("solution"), namespace)
        for helper in (code for code, no_words in WRONG[key].items() if no_words is None):
            run(helper, namespace)  # the solution under another name
        if words is None:
            continue
        run(wrong, namespace)
        with pytest.raises(AssertionError, match=words) as caught:
            run(task.code("check"), namespace)
            pytest.fail(f"passes: {wrong}")
        assert len(str(caught.value).splitlines()[0].split()) > 5, wrong
    run(task.code("solution"), namespace)
    assert run(task.code("check"), namespace)


@pytest.mark.parametrize("name", RIGHT)
def test_another_right_answer_passes_and_the_cells_after_it_run(name, prepared):
    key, answer = RIGHT[name]
    path, task = TASKS[key]
    namespace = prepared(key)
    for other in [t for _, t in TASKS.values() if t in SOURCES[path].tasks[: task.number - 1]]:
        run(other.code("solution"), namespace)
        run(other.code("check"), namespace)  # what comes after a check may ask for those before
    run(answer, namespace)
    place = [kind for kind, _ in task.parts].index("check")
    assert run(task.parts[place][1], namespace).startswith("right: ")
    for kind, text in task.parts[place + 1 :]:
        if kind == "given":
            assert "come first" not in run(text, namespace)


@pytest.mark.parametrize("name", EDGES)
def test_a_check_holds_for_an_unusual_run(name, prepared):
    key, change = EDGES[name]
    _, task = TASKS[key]
    namespace = prepared(key)
    run(change, namespace)
    run(task.code("solution"), namespace)
    assert run(task.code("check"), namespace).startswith("right: ")


def test_without_scatter_or_with_one_task_a_wrong_half_width_is_still_caught(prepared):
    _, task = TASKS["04-3"]
    for name, words in (("one target task", "`half` is nan"), ("equal gains", "the interval has no width")):
        namespace = prepared("04-3")
        run(EDGES[name][1], namespace)
        run(task.code("solution"), namespace)
        namespace["half"] = 1.0
        with pytest.raises(AssertionError, match=words):
            run(task.code("check"), namespace)


@every_task
def test_a_check_does_not_give_the_solution_away(key):
    _, task = TASKS[key]
    squeezed = "".join(task.code("check").split())
    marked = re.findall(r"^\w+ = (.*\S)  # answer:|^\s+return (.*)$", task.code("solution"), re.M)
    for right in ("".join("".join(pair).split()) for pair in marked):
        assert len(right) < 15 or right not in squeezed, right
    used = set(
        re.findall(r"\bstats\.t\.ppf|np\.corrcoef|stats\.rankdata|np\.diag|sliding_window_view|groupby", squeezed)
    )
    assert not used, "a check compares with properties or stored values, not with the call that is the answer"


@pytest.mark.parametrize(
    ("value", "shape", "words"),
    [(..., None, "`x` is still missing"), ("two", (), "should hold numbers, but it is str"), ([1, 2], (3,), "shape"),
     ([1, 2], (), "a single number"), ({"a": 1}, (1,), "should hold numbers"), (None, (), "`x` is still missing.*returns it")],
)  # fmt: skip
def test_what_is_no_answer_is_said_in_words(value, shape, words):
    with pytest.raises(AssertionError, match=words):
        answered(value, "x", shape)


def test_answers_come_back_as_they_are_or_as_numbers():
    assert answered("conv1", "x") == "conv1"
    assert answered([1, 2], "x", (2,)).tolist() == [1.0, 2.0] and answered(3, "x", ()) == 3
    assert isinstance(answered([1, 2], "x", (2,)), np.ndarray)
