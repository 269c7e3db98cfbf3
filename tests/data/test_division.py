"""Classes and images are kept apart where they must be, draws are seeded and nested, and the manifests are the published ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import blank_images, tiny_tree

from learngene_core.config import Config
from learngene_core.data.division import (
    GROUPS,
    Division,
    describe,
    divide,
    packaged,
    parts,
    read_division,
    source_tasks,
    target_tasks,
)
from learngene_core.data.images import load_images
from learngene_core.errors import StudyError
from learngene_core.openworld.views import open_sets
from learngene_core.presets import PRESETS
from learngene_core.runs.run import Run
from learngene_core.runs.stages import divided


def names(n):
    return tuple(f"class{i:03d}" for i in range(n))


@pytest.fixture(scope="module")
def glyph_division(glyph_images):
    return divide(glyph_images, Config())


# manifests ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "counts"), [("cifar100", (64, 16, 20)), ("imagenet100", (64, 16, 20)), ("cub200", (100, 50, 50))]
)
def test_packaged_manifest_has_the_published_counts_and_is_disjoint(name, counts):
    groups = [packaged(name)[g] for g in GROUPS]
    assert tuple(map(len, groups)) == counts
    assert len(set().union(*groups)) == sum(counts)
    assert all(isinstance(n, str) and n.strip() == n and n for g in groups for n in g)


def test_cattle_which_the_paper_lists_twice_is_open_world_only():
    assert [g for g in GROUPS if "cattle" in packaged("cifar100")[g]] == ["open_world"]


def test_superclasses_of_cifar100_are_20_groups_of_5():
    values = packaged("cifar100")
    classes = {n for g in GROUPS for n in values[g]}
    assert set(values["superclasses"]) == classes
    sizes = {s: list(values["superclasses"].values()).count(s) for s in values["superclasses"].values()}
    assert len(sizes) == 20
    assert set(sizes.values()) == {5}
    # three of the official groups (Krizhevsky 2009), so that no class was shifted against its group
    for group, members in {
        "people": {"baby", "boy", "girl", "man", "woman"},
        "trees": {"maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"},
        "fish": {"aquarium_fish", "flatfish", "ray", "shark", "trout"},
    }.items():
        assert {n for n, s in values["superclasses"].items() if s == group} == members


# division -----------------------------------------------------------------------------------------------------------
def test_glyphs_are_divided_64_16_20_by_seed(glyph_images, glyph_division):
    div = glyph_division
    assert (len(div.base), len(div.open_world), len(div.novel)) == (64, 16, 20)
    assert {*div.base, *div.open_world, *div.novel} == set(glyph_images.class_names)
    assert divide(glyph_images, Config(epochs=1, n_source_tasks=2)) == div
    other = divide(glyph_images, Config(seed=1))
    assert set(other.novel) != set(div.novel)
    assert len({*other.base, *other.open_world, *other.novel}) == 100


@pytest.mark.parametrize("n", [11, 15, 24, 37, 200])
def test_any_number_of_classes_is_divided_without_loss(n):
    imgs = blank_images(names(n), 1)
    div = divide(imgs, Config(source_way=2))
    groups = [getattr(div, g) for g in GROUPS]
    assert sorted(c for g in groups for c in g) == list(imgs.class_names)
    assert all(groups)
    assert len(div.novel) >= 5
    assert len(div.novel) == max(5, round(0.2 * n))


def test_too_few_classes_are_refused():
    with pytest.raises(StudyError, match="10 classes are too few"):
        divide(blank_images(names(10), 1), Config())
    with pytest.raises(StudyError, match="source_way = 8"):
        divide(blank_images(names(12), 1), Config())
    with pytest.raises(StudyError, match="n_way = 21"):
        cifar = packaged("cifar100")
        divide(blank_images(sorted(sum((cifar[g] for g in GROUPS), [])), 1, data="cifar100"), Config(n_way=21))


def test_equal_division_hashes_mean_equal_divisions():
    """A run folder is reused by its stage hash, so nothing else may move what it stands for."""
    imgs = blank_images(names(20), 1)
    one, two = Config(n_way=3, source_way=2), Config(n_way=4, source_way=2)
    assert one.stage_hash("division") != two.stage_hash("division") or divide(imgs, one) == divide(imgs, two)
    with pytest.raises(StudyError, match="n_way = 6"):  # refused, never met by taking classes from the base
        divide(imgs, one.replace(n_way=6))


@pytest.mark.parametrize("groups", [(["a", "b"], ["b"], ["c"]), (["a", "a"], ["b"], ["c"]), (["a"], ["b"], ["c", "a"])])
def test_a_class_that_stands_twice_is_refused_by_name(groups):
    with pytest.raises(StudyError, match=r"'[ab]' is in"):
        Division(*map(tuple, groups))


def test_cifar100_uses_its_manifest_and_the_seed_only_when_asked(tmp_path):
    values = packaged("cifar100")
    tiny_tree(tmp_path, [n for g in GROUPS for n in values[g]], 1, 8, test=1)
    imgs = load_images("cifar100", tmp_path, image_size=8)
    cfg = Config(data="cifar100", image_size=8)
    div = divide(imgs, cfg)
    assert [list(getattr(div, g)) for g in GROUPS] == [values[g] for g in GROUPS]
    assert divide(imgs, cfg.replace(seed=5)) == div
    assert set(divide(imgs, cfg.replace(split="seed")).novel) != set(div.novel)
    for part in ("train", "test"):
        shutil.rmtree(tmp_path / part / "wolf")
    with pytest.raises(StudyError, match="wolf"):
        divide(load_images("cifar100", tmp_path, image_size=8), cfg)


def own_split(path, **groups):
    path.write_text(
        json.dumps({"base": list(names(9)), "open_world": ["class009"], "novel": list(names(16)[10:])} | groups)
    )
    return Config(split=str(path), source_way=3)


def test_a_division_of_the_users_own(tmp_path):
    imgs = blank_images(names(16), 1)
    div = divide(imgs, own_split(tmp_path / "mine.json"))
    assert (div.base, div.open_world, div.novel) == (names(9), ("class009",), names(16)[10:])
    assert describe(div).splitlines()[1].split() == ["base", "(9):", *", ".join(names(9)).split()]


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ({"novel": ["class010", "classX", "class012", "class013", "class014"]}, "classX"),
        ({"novel": [*names(16)[11:], "class003"]}, "class003"),
        ({"novel": ["class010"]}, "n_way = 5"),
        ({"base": ["class000"]}, "source_way = 3"),
        ({"novel": 3}, "no division"),
        ({"novel": "class010 class011"}, "no division: it needs the lists"),
        ({"novel": {"class010": 1}}, "no division: it needs the lists"),
        ({"novel": None}, "no division: it needs the lists"),
        ({"novel": ["Class010 ", *names(16)[11:]]}, r"not in the images: Class010  \(did you mean 'class010'\?\)"),
        ({"novel": [1, 2, 3, 4, 5]}, "class names are strings"),
    ],
)
def test_a_bad_division_of_the_users_own_is_refused(tmp_path, groups, text):
    with pytest.raises(StudyError, match=text):
        divide(blank_images(names(16), 1), own_split(tmp_path / "mine.json", **groups))


FILES = {  # what people write as a division, and what is said
    "YAML": (b"base: [a]\nnovel: [b]\n", "is damaged"),
    "a table": (b"base,a\nnovel,b\n", "is damaged"),
    "comments": (b'// mine\n{"base": [], "open_world": [], "novel": []}', "is damaged"),
    "a comma too many": (b'{"base": [], "open_world": [], "novel": [],}', "is damaged"),
    "quotes of Python": (b"{'base': [], 'open_world': [], 'novel': []}", "is damaged"),
    "UTF-16": (json.dumps({"base": []}).encode("utf-16"), "is damaged"),
    "a group twice": (b'{"base": ["a"], "base": ["b"], "open_world": [], "novel": []}', "'base' stands twice"),
}


@pytest.mark.parametrize(("data", "text"), FILES.values(), ids=FILES)
def test_what_is_no_json_is_refused_with_what_a_division_is(tmp_path, data, text):
    """It is a person's own file: nothing is said of deleting it, or of a stage that makes it anew."""
    (tmp_path / "mine.json").write_bytes(data)
    with pytest.raises(StudyError, match=text) as refusal:
        read_division(tmp_path / "mine.json")
    said = str(refusal.value)
    assert "a division is JSON" in said and "delete" not in said and "--redo" not in said and "\n" not in said


def test_a_mark_of_windows_before_a_division_changes_nothing(tmp_path):
    own_split(tmp_path / "mine.json")
    wanted = read_division(tmp_path / "mine.json")
    (tmp_path / "mine.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "mine.json").read_bytes())
    assert read_division(tmp_path / "mine.json") == wanted


def test_a_division_file_that_is_missing_or_no_json_is_named(tmp_path):
    imgs = blank_images(names(16), 1)
    (tmp_path / "text.json").write_text("base: a")
    (tmp_path / "list.json").write_text("[1]")
    for name in ("none.json", "text.json", "list.json"):
        with pytest.raises(StudyError, match=name):
            divide(imgs, Config(split=str(tmp_path / name)))


# images of a class --------------------------------------------------------------------------------------------------
def test_training_and_held_out_images_of_a_class_never_meet():
    imgs = blank_images(names(4), 50)
    for n_train, n_held in ((30, 20), (10, 5), (0, 0), (0, 12)):
        train, held = parts(imgs, "class002", n_train, n_held, Config())
        assert not set(train) & set(held)
        assert {*train, *held} <= set(imgs.of_class("class002"))
        assert len(held) == (n_held or 50 // 6)
        assert len(train) == (n_train or 50 - len(held))
    assert set(parts(imgs, "class002", 30, 20, Config())[0]) >= set(parts(imgs, "class002", 10, 20, Config())[0])


def test_official_split_is_respected_and_pooled_for_source_tasks_only_when_asked():
    imgs = blank_images(names(3), 20, held_out=8)
    official = imgs.held_out.numpy()
    for counts in ((0, 0), (15, 6)):
        train, held = parts(imgs, "class001", *counts, Config())
        assert not official[train].any()
        assert official[held].all()
        assert (len(train), len(held)) == (counts[0] or 20, counts[1] or 8)
    div = Division(("class000", "class001"), (), ("class002",))
    settings = {"source_way": 2, "n_source_tasks": 1, "growth": "none", "source_images": 0, "held_out_images": 0}
    for pooled in (False, True):
        (task,) = source_tasks(imgs, div, Config(official_split=not pooled, **settings))
        assert len(task.train) == (56 if pooled else 40)  # as released: all 600 images of a class, test images too
        assert official[task.train].any() == pooled


def test_draws_depend_on_seed_and_class_alone():
    imgs, more = blank_images(names(3), 40), blank_images(names(5), 40)
    at = parts(imgs, "class001", 10, 10, Config())
    assert all(np.array_equal(a, b) for a, b in zip(at, parts(more, "class001", 10, 10, Config(epochs=1)), strict=True))
    assert set(at[0]) != set(parts(imgs, "class001", 10, 10, Config(seed=1))[0])
    assert set(at[0] - 40) != set(parts(imgs, "class000", 10, 10, Config())[0])


@pytest.mark.parametrize(("n_train", "n_held"), [(41, 10), (10, 60), (30, 21), (0, 0), (600, 100)])
@pytest.mark.parametrize("official", [0, 9])
def test_a_class_with_fewer_images_gives_what_it_has(n_train, n_held, official):
    imgs = blank_images(names(3), 50, held_out=official)
    train, held = parts(imgs, "class001", n_train, n_held, Config())
    assert not set(train) & set(held)
    assert 2 <= len(held) <= (n_held or 50) and 2 <= len(train) <= (n_train or 50)
    assert len(train) + len(held) == min(50 + official, len(train) + len(held))
    assert len(train) >= min(n_train or 50, 33)  # a third at the most is held out where images are few


@pytest.mark.parametrize(("n", "official"), [(1, 0), (5, 0), (5, 1), (1, 8)])
def test_a_class_with_too_few_images_is_refused_by_name(n, official):
    with pytest.raises(StudyError, match="'class001' has too few images"):
        parts(blank_images(names(3), n, held_out=official), "class001", 40, 10, Config())


# source tasks -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("draw", ["disjoint", "overlap"])
def test_source_tasks_hold_base_images_and_keep_three_parts_apart(glyph_images, glyph_division, draw):
    cfg = Config(source_draw=draw, n_source_tasks=7)
    tasks = source_tasks(glyph_images, glyph_division, cfg)
    label = glyph_images.labels.numpy()
    assert [t.number for t in tasks] == list(range(1, 8))
    for task in tasks:
        wanted = [glyph_images.class_names.index(n) for n in task.classes]
        assert len(set(task.classes)) == 8
        assert set(task.classes) <= set(glyph_division.base)
        for part, count in ((task.train, 100), (task.validation, 10), (task.test, 10)):
            assert np.array_equal(np.unique(label[part], return_counts=True), [sorted(wanted), [count] * 8])
            assert len(np.unique(part)) == len(part)
    train, validation, test = (
        set(np.concatenate([getattr(t, p) for t in tasks])) for p in ("train", "validation", "test")
    )
    assert not train & validation
    assert not train & test
    assert not validation & test
    counts = np.unique([n for t in tasks for n in t.classes], return_counts=True)[1]
    assert (counts.max() == 1) == (draw == "disjoint")


def test_source_tasks_repeat_by_seed_and_more_tasks_keep_the_first_ones(glyph_images, glyph_division):
    for draw in ("disjoint", "overlap"):
        few, again, many, other = (
            [(t.classes, t.train.tolist(), t.validation.tolist(), t.test.tolist())
             for t in source_tasks(glyph_images, glyph_division, Config(source_draw=draw, n_source_tasks=n, seed=seed))]
            for n, seed in ((3, 0), (3, 0), (6, 0), (3, 1))
        )  # fmt: skip
        assert few == again == many[:3]
        assert few[0][0] != other[0][0]


def test_more_disjoint_tasks_than_classes_are_refused(glyph_images, glyph_division):
    with pytest.raises(StudyError, match=r"9 disjoint.*64 base classes"):
        source_tasks(glyph_images, glyph_division, Config(n_source_tasks=9))
    assert len(source_tasks(glyph_images, glyph_division, Config(n_source_tasks=9, source_draw="overlap"))) == 9


def test_overlapping_tasks_wider_than_the_base_classes_are_refused(glyph_images, glyph_division):
    """A finished division is loaded without looking at source_way, so this is where it is found."""
    with pytest.raises(StudyError, match="source_way"):
        source_tasks(glyph_images, glyph_division, Config(source_draw="overlap", source_way=65))


@pytest.mark.parametrize("held_out", [1, 2, 3])
def test_validation_and_test_of_a_source_task_are_never_empty(held_out):
    """A task without test images has the accuracy of nothing: NaN."""
    settings = {"source_way": 2, "n_source_tasks": 2, "source_images": 0, "held_out_images": held_out}
    if held_out == 1:
        with pytest.raises(ValueError, match="held_out_images = 1"):
            Config(**settings)
        return
    imgs, cfg = blank_images(names(16), 20), Config(**settings)
    tasks = source_tasks(imgs, divide(imgs, cfg), cfg)
    assert all(len(t.validation) and len(t.test) for t in tasks)


# target tasks -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("group", ["novel", "open_world"])
def test_target_tasks_hold_their_groups_images_with_queries_apart(glyph_images, glyph_division, group):
    cfg = Config(shots=(5, 20))
    tasks = target_tasks(glyph_images, glyph_division, cfg, group=group, n_tasks=30)
    label = glyph_images.labels.numpy()
    assert [t.number for t in tasks] == list(range(1, 31))
    for task in tasks:
        assert len(set(task.classes)) == 5
        assert set(task.classes) <= set(getattr(glyph_division, group))
        assert (task.support.shape, task.query.shape) == ((5, 20), (5, 60))
        for row, name in enumerate(task.classes):
            assert (label[task.support[row]] == glyph_images.class_names.index(name)).all()
            assert (label[task.query[row]] == glyph_images.class_names.index(name)).all()
            assert len({*task.support[row], *task.query[row]}) == 80
    support, query = (np.concatenate([getattr(t, p).ravel() for t in tasks]) for p in ("support", "query"))
    assert not set(support) & set(query), "a support image of one task is a query image of another"
    assert len({t.classes for t in tasks}) > 25
    assert {n for t in tasks for n in t.classes} == set(getattr(glyph_division, group))


def test_smaller_supports_are_prefixes_also_across_configurations(glyph_images, glyph_division):
    draws = {s: target_tasks(glyph_images, glyph_division, Config(shots=s)) for s in ((5,), (5, 10), (20,), (1, 60))}
    for tasks in zip(*draws.values(), strict=True):
        assert len({t.classes for t in tasks}) == 1
        for task in tasks:
            assert np.array_equal(task.support, tasks[-1].support[:, : task.support.shape[1]])
            assert np.array_equal(task.query, tasks[-1].query)
    assert [t[0].support.shape[1] for t in draws.values()] == [5, 10, 20, 60]


def test_target_tasks_repeat_by_seed_and_more_tasks_keep_the_first_ones(glyph_images, glyph_division):
    few, again, many, other = (
        [(t.classes, t.support.tolist(), t.query.tolist())
         for t in target_tasks(glyph_images, glyph_division, Config(n_target_tasks=n, seed=seed, epochs=e))]
        for n, seed, e in ((4, 0, 6), (4, 0, 1), (9, 0, 6), (4, 1, 6))
    )  # fmt: skip
    assert few == again == many[:4]
    assert few[0] != other[0]
    assert len({str(t) for t in many}) == 9


def test_supports_of_a_class_differ_between_tasks(glyph_images, glyph_division):
    cfg = Config(n_way=20, n_target_tasks=2)
    one, two = (
        {n: set(t.support[i]) for i, n in enumerate(t.classes)} for t in target_tasks(glyph_images, glyph_division, cfg)
    )
    assert set(one) == set(two)
    assert not any(one[n] == two[n] for n in one)


def test_classes_of_unequal_size_give_whole_tasks(tmp_path):
    for i, name in enumerate(names(12)):
        tiny_tree(tmp_path, [name], 12 + i, 8)
    imgs = load_images("folder", tmp_path, image_size=8)
    cfg = Config(data="folder", source_way=2, shots=(4,), support_pool=0, query_images=0)
    for task in target_tasks(imgs, divide(imgs, cfg), cfg):
        assert task.support.shape == (5, 4)
        smallest = min(len(imgs.of_class(n)) for n in task.classes)
        assert task.query.shape == (5, smallest // 6)


def test_too_few_images_or_classes_for_a_target_task_are_refused(glyph_images, glyph_division):
    for changes, text in (
        ({"shots": (10, 61)}, "shots = 61"),
        ({"shots": (5,), "support_pool": 4}, "shots = 5"),
        ({"n_way": 21}, "n_way = 21"),
    ):
        with pytest.raises(StudyError, match=text):
            target_tasks(glyph_images, glyph_division, Config(**changes))
    with pytest.raises(StudyError, match="n_way = 17"):
        target_tasks(glyph_images, glyph_division, Config(n_way=17), group="open_world")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_asks_for_no_more_than_its_data_has(glyph_images, preset):
    cfg = Config.preset(preset)
    if cfg.data == "glyphs":
        imgs = glyph_images
    else:
        classes = sorted(n for g in GROUPS for n in packaged(cfg.data)[g])
        counts = {"cifar100": (500, 100), "imagenet100": (600, 0)}[cfg.data]
        imgs = blank_images(classes, counts[0], held_out=counts[1], data=cfg.data)
    div = divide(imgs, cfg)
    assert len(source_tasks(imgs, div, cfg)) == cfg.n_source_tasks
    assert len(target_tasks(imgs, div, cfg)) == cfg.n_target_tasks
    pseudo = target_tasks(imgs, div, cfg, group="open_world", n_tasks=cfg.tune_tasks)
    assert [t.support.shape for t in pseudo] == [(cfg.n_way, max(cfg.shots))] * cfg.tune_tasks


def test_one_seed_each_moves_ancestor_division_and_target_tasks(glyph_images):
    """Ancestors vary over fixed target tasks, and the other way round; without a seed of its own each follows `seed`."""
    cfg = Config.preset("smoke")

    def drawn(**changes):
        own = cfg.replace(**changes)
        div = divide(glyph_images, own)
        source, target = source_tasks(glyph_images, div, own), target_tasks(glyph_images, div, own)
        return [t.classes for t in source], [(t.classes, t.support.tolist()) for t in target], div

    (source, target, div), seed = drawn(), cfg.seed
    other = drawn(ancestor_seed=5)
    assert other[0] != source and other[1:] == (target, div)
    assert cfg.replace(ancestor_seed=5).stage_hash("targets") == cfg.stage_hash("targets")
    assert drawn(ancestor_seed=seed) == (source, target, div)
    other = drawn(target_seed=5)
    assert other[0] == source and other[1] != target and other[2] == div
    other = drawn(division_seed=5)
    assert set(other[2].novel) != set(div.novel) and other[2].open_world == div.open_world
    assert set(other[2].base) | set(other[2].novel) == set(div.base) | set(div.novel)


def test_pseudo_tasks_ask_with_the_images_that_count_as_unknown(glyph_images):
    """RESULTS.md says so where it says that test images choose nothing; novel classes choose nothing at all."""
    cfg = Config.preset("smoke")
    div = divide(glyph_images, cfg)
    pseudo = target_tasks(glyph_images, div, cfg, group="open_world", n_tasks=6)
    unknown = open_sets(glyph_images, div, source_tasks(glyph_images, div, cfg), cfg).unknown
    shared = set(np.concatenate([t.query.ravel() for t in pseudo])) & set(np.concatenate([*unknown.values()]))
    page = Path(__file__).parents[2].joinpath("notebooks", "RESULTS.md").read_text(encoding="utf-8")
    assert bool(shared) == ("also those that H8a counts as unknown" in page)
    novel = {i for name in div.novel for i in glyph_images.of_class(name).tolist()}
    assert not novel & {int(i) for t in pseudo for i in (*t.support.ravel(), *t.query.ravel())}


# in a run folder ----------------------------------------------------------------------------------------------------
def test_division_json_is_readable_and_loaded_back(tmp_path, glyph_images, glyph_division, capsys):
    cfg = Config.preset("smoke")
    assert divided(Run.open(cfg, tmp_path / "run"), glyph_images) == glyph_division
    text = (tmp_path / "run" / "division.json").read_text(encoding="utf-8")
    values = json.loads(text)
    assert tuple(values["novel"]) == glyph_division.novel
    assert values["images"] == glyph_images.fingerprint
    assert len(text.splitlines()) > 100, "one class a line"
    assert str(tmp_path) not in text
    capsys.readouterr()
    assert divided(Run.open(cfg, tmp_path / "run"), glyph_images) == glyph_division
    assert "loaded" in capsys.readouterr().out
    divided(Run.open(cfg, tmp_path / "other"), glyph_images)
    assert (tmp_path / "other" / "division.json").read_text(encoding="utf-8") == text


def test_a_run_made_from_other_images_is_refused(tmp_path):
    cfg = Config(data="folder", image_size=8, source_way=2)
    written = tiny_tree(tmp_path / "tree", names(12), 2, 8)
    divided(Run.open(cfg, tmp_path / "run"), load_images("folder", tmp_path / "tree", image_size=8))
    next(iter(written)).unlink()
    imgs = load_images("folder", tmp_path / "tree", image_size=8)
    with pytest.raises(StudyError, match=r"other images.*--redo division"):
        divided(Run.open(cfg, tmp_path / "run"), imgs)
    redone = divided(Run.open(cfg, tmp_path / "run", redo=["division"]), imgs)
    stored = json.loads((tmp_path / "run" / "division.json").read_text())
    assert stored["images"] == imgs.fingerprint
    assert tuple(stored["base"]) == redone.base
