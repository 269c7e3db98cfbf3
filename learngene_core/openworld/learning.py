"""Learning what was unknown: flagged by a threshold, labelled by an oracle, joined to the head, trained on.

The threshold is fixed on validation images; the stream holds these (what is flagged among them are false alarms) and the
open-world stream images. Accuracies are on test images, which nothing above has seen. At the end: the learngene cut from the
network that has learned, and compared with the one cut before.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..arms import arms_of
from ..collective import Collective
from ..config import Config
from ..errors import StudyError, read_json, say, write_json
from ..ewc import Penalty, fisher_diagonal
from ..fewshot import Individuals
from ..learngene import Learngene
from ..network import ConvNet, linear_of
from ..runs.run import Run
from ..runs.states import load_state, save_state
from ..tasks import ImageSet, TargetTask, generator, numpy_generator
from ..training import Recipe, fit, task_loss
from .measures import accuracies, threshold_at
from .scores import Head, class_means, distances, imprinted
from .views import OpenSets, View, gathered, on_workers, open_features

# ways of learning whose networks are kept: with the new classes, and the control that met exemplars of the old ones only
SAVED = {"exemplars": "openworld", "rehearsed": "openworld/rehearsed"}


TAUGHT = ("before", "rehearsed", "imprinted", "nothing", "ewc", "exemplars", "all_given")  # in the order of the table
REHEARSING = ("rehearsed", "exemplars", "all_given")  # with exemplars of the old classes among the images


@dataclasses.dataclass(frozen=True)
class Flags:
    """What the threshold said of the stream: image indices (n,), class names (n,), whether known, flagged, labelled."""

    threshold: float
    image: np.ndarray
    class_name: np.ndarray
    known: np.ndarray
    flagged: np.ndarray
    labelled: np.ndarray

    @property
    def counts(self) -> dict[str, int | float]:
        """How much was flagged, of what, and what the oracle was asked."""
        new = self.flagged & ~self.known
        return {
            "threshold": self.threshold,
            "flagged_unknown": int(new.sum()),
            "missed_unknown": int((~self.flagged & ~self.known).sum()),
            "false_alarms": int((self.flagged & self.known).sum()),
            "budget": int(self.labelled.sum()),
            "labelled_unknown": int((self.labelled & ~self.known).sum()),
        }


def flag(view: View, imgs: ImageSet, sets: OpenSets, cfg: Config) -> Flags:
    """Fix the threshold on validation images, flag the stream, and let the oracle label the first `open_budget` flagged."""
    scorer = view.scorers[cfg.open_head]
    known, labels = gathered(sets.validation, view.class_names)
    unknown, strange = gathered(sets.stream, tuple(sets.stream))
    values = [scorer(*view.features(imgs, indices))[cfg.open_score][0] for indices in (known, unknown)]
    threshold = threshold_at(values[0], cfg.open_keep)
    names = np.concatenate([np.array(view.class_names)[labels], np.array(tuple(sets.stream))[strange]])
    image, is_known = np.concatenate([known, unknown]), np.arange(len(names)) < len(known)
    order = numpy_generator(cfg.seed, "open-world stream").permutation(len(names))  # the order of arrival
    flagged = (np.concatenate(values) < threshold)[order]
    labelled = flagged & (np.cumsum(flagged) <= (cfg.open_budget or len(flagged)))
    return Flags(threshold, image[order], names[order], is_known[order], flagged, labelled)


def learn(view: View, imgs: ImageSet, sets: OpenSets, cfg: Config, run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per way of learning (openworld_learning.csv), and how far each block moved (openworld_blocks.csv).

    before: nothing learned; imprinted: new classes joined, not trained; nothing, ewc, exemplars: then trained on with the
    labelled images and no protection, EWC, or exemplars of the old classes; rehearsed: exemplars alone, the control of
    `exemplars`; all_given: exemplars, and every stream image labelled; ncm, ncm_all_given: nearest class mean on frozen
    features. Columns: old, new and harmonic accuracy in percent over all classes, each with 95 % limits over classes, counts
    of the stream, classes that joined, images trained on.
    """
    flags = flag(view, imgs, sets, cfg)
    told = _told(flags.image[flags.labelled & ~flags.known], flags.class_name[flags.labelled & ~flags.known])
    told = {name: indices for name, indices in told.items() if len(indices) >= cfg.open_min_images}
    if not told:
        say(f"openworld: no class had {cfg.open_min_images} labelled images, none joins (open_min_images, open_keep)")
    lesson = _Lesson(view, imgs, sets, cfg)
    given = {"all_given": sets.stream, "exemplars": told, "rehearsed": {}, "ewc": told, "nothing": told, "imprinted": told,
             "before": {}}  # the longest first  # fmt: skip

    def done(k: int) -> None:
        run.progress(
            "openworld", view.task + 4 * k / len(given), view.task + 4, f"{k} of {len(given)} ways of learning"
        )

    jobs = {way: functools.partial(lesson.examined, way, classes) for way, classes in given.items()}
    found = on_workers(jobs, run, done=done, alone=view.model.dropout > 0)
    rows = [lesson.row(way, given[way], found[way][1], flags) for way in TAUGHT]
    for way, classes in (("ncm", told), ("ncm_all_given", sets.stream)):
        rows.append(lesson.row(way, classes, lesson.nearest(classes), flags))
    kept = {way: model for way in TAUGHT if (model := found[way][0]) is not None}
    for way, model in kept.items():
        _save(model, [*view.class_names, *given[way]], view, run.path / SAVED[way])
    blocks = [moved(view.model, model).assign(method=way) for way, model in kept.items()]
    return pd.DataFrame(rows), pd.concat(blocks, ignore_index=True)


def _save(model: ConvNet, names: list[str], view: View, folder: Path) -> None:
    save_state(folder, model, {})
    about = {"shape": model.shape, "class_names": names, "mean": view.mean.tolist(), "std": view.std.tolist()}
    write_json(folder / "about.json", about)


def _told(images: np.ndarray, names: np.ndarray) -> dict[str, np.ndarray]:
    return {str(name): images[names == name] for name in dict.fromkeys(names)}


class _Lesson:
    """Teaches copies of one network the classes that it is given, and examines them."""

    def __init__(self, view: View, imgs: ImageSet, sets: OpenSets, cfg: Config):
        self.view, self.imgs, self.sets, self.cfg = view, imgs, sets, cfg
        self.head = view.scorers[cfg.open_head].head
        self.device = next(view.model.parameters()).device
        self.mean, self.std = view.mean.to(self.device), view.std.to(self.device)
        self.old, self.old_labels = gathered(sets.exemplars, view.class_names)
        self.old_features, self.old_deep = view.features(imgs, self.old)
        self.test, self.test_labels = gathered(sets.test, view.class_names)
        self.unknown, self.unknown_labels = gathered(sets.unknown, tuple(sets.unknown))

    def _images(self, indices: np.ndarray) -> Tensor:
        return self.imgs.images[torch.from_numpy(indices)].to(self.device)

    def examined(self, way: str, given: dict[str, np.ndarray]) -> tuple[ConvNet | None, tuple[np.ndarray, np.ndarray]]:
        """The network that is `taught`, where it is one of those saved, and its `predictions`."""
        model = self.taught(way, given)
        return model if way in SAVED else None, self.predictions(model, given)

    def taught(self, way: str, given: dict[str, np.ndarray]) -> ConvNet:
        """A copy of the network whose head holds the given classes too, trained on unless `way` is before or imprinted."""
        model, n_old = copy.deepcopy(self.view.model), len(self.view.class_names)
        head = self.head
        penalty = None
        if given:
            indices, labels = gathered(given, tuple(given))
            means = class_means(self.view.features(self.imgs, indices)[0], labels)
            head = imprinted(head, means, self.old_features, self.old_labels)
        weight, bias = (torch.from_numpy(v).float() for v in (head.weight, head.bias))
        model.classifier[-1] = linear_of(weight, bias).to(self.device)
        if way in ("before", "imprinted") or not (given or way == "rehearsed"):
            return model
        if way == "ewc":
            penalty = self._penalty(model, n_old)
        # a new class is shown at least as often as an old one's exemplars, and at most three times as often
        fewest = self.cfg.open_exemplars
        turns = [np.resize(own, min(max(len(own), fewest), 3 * fewest)) for own in given.values()]
        places = [np.full(len(own), n_old + i) for i, own in enumerate(turns)]
        if way in REHEARSING:
            turns, places = [self.old, *turns], [self.old_labels, *places]
        indices, labels = np.concatenate(turns), np.concatenate(places)
        recipe = dataclasses.replace(
            Recipe.of_collective(self.cfg, self.cfg.open_epochs, self.mean, self.std), rate=self.cfg.open_rate
        )
        for _ in fit(
            model,
            self._images(indices),
            torch.from_numpy(labels).to(self.device),
            task_loss(),
            recipe,
            stream=lambda epoch: generator(self.cfg.seed, "open world", way, epoch),
            where=f"learning the unknown ({way})",
            lower="open_rate or open_ewc",
            pull=penalty,
        ):
            pass
        return model.eval()

    def _penalty(self, model: ConvNet, n_old: int) -> Penalty | None:
        """EWC towards the network as it is, its Fisher on exemplars over the old classes (so new rows are free)."""
        cfg, g = self.cfg, generator(self.cfg.seed, "open world", "fisher")
        if not cfg.open_ewc:
            return None
        picked = self.old[torch.randperm(len(self.old), generator=g)[: cfg.fisher_images].numpy()]
        outputs = torch.arange(n_old, device=self.device)
        fisher = fisher_diagonal(model, self._images(picked), outputs, self.mean, self.std, g)
        return Penalty(model, dict(model.named_parameters()), fisher, cfg.open_ewc, "proximal")

    def predictions(self, model: ConvNet, given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Whether each known and each unknown test image gets its right class among all outputs, (n,) and (m,)."""
        head = Head(*(p.detach().double().cpu().numpy() for p in (model.head.weight, model.head.bias)))
        features = [self._below_head(model, indices) for indices in (self.test, self.unknown)]
        found = [head.logits(below).argmax(1) for below in features]
        return found[0] == self.test_labels, found[1] == self._outputs(given)

    def _below_head(self, model: ConvNet, indices: np.ndarray) -> np.ndarray:
        """What the head of `model` sees (n, d); known already where nothing below the head has changed."""
        before, head = self.view.model.state_dict(), f"classifier.{len(model.classifier) - 1}."
        if all(torch.equal(t, before[n]) for n, t in model.state_dict().items() if not n.startswith(head)):
            return self.view.features(self.imgs, indices)[0]
        return open_features(model, self._images(indices), self.mean, self.std)[0]

    def nearest(self, given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The same for nearest class mean on the frozen features (`open_features`): exemplars, and the given images."""
        means = class_means(self.old_deep, self.old_labels)
        if given:
            indices, labels = gathered(given, tuple(given))
            means = np.concatenate([means, class_means(self.view.features(self.imgs, indices)[1], labels)])
        found = [distances(self.view.features(self.imgs, i)[1], means).argmin(1) for i in (self.test, self.unknown)]
        return found[0] == self.test_labels, found[1] == self._outputs(given)

    def _outputs(self, given: dict[str, np.ndarray]) -> np.ndarray:
        """The right output of each unknown test image; -1 where its class has not joined, which no output is."""
        place = {name: len(self.view.class_names) + i for i, name in enumerate(given)}
        return np.array([place.get(name, -1) for name in self.sets.unknown])[self.unknown_labels]

    def row(
        self, way: str, given: dict[str, np.ndarray], right: tuple[np.ndarray, np.ndarray], flags: Flags
    ) -> dict[str, object]:
        """One row of the table."""
        values = accuracies(
            right[0], self.test_labels, right[1], self.unknown_labels, self.cfg.open_resamples, self.cfg.seed
        )
        images = sum(len(i) for i in given.values())
        joined = {"classes_joined": len(given), "unknown_classes": len(self.sets.unknown), "new_images": images}
        return {"method": way, **values, **joined, **flags.counts}


# the learngene after the open world ------------------------------------------------------------------------------------
def moved(before: ConvNet, after: ConvNet) -> pd.DataFrame:
    """How far each block's convolution moved: norm of the change over norm of the weights, and the mean angle of its filters
    in degrees (batch norm undoes a filter's length, not its direction). One row per block."""
    rows = []
    for name in before.block_names:
        a, b = (m.blocks[name].conv.weight.detach().cpu().double().flatten(1) for m in (before, after))  # (out, in * 9)
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)
        angle = float(torch.rad2deg(torch.acos(cosine)).mean())
        rows.append({"layer": name, "relative_change": float((b - a).norm() / a.norm()), "angle": angle})
    return pd.DataFrame(rows)


def network_after(run: Run, way: str = "exemplars") -> ConvNet:
    """The network that has learned the unknown classes (or that was `rehearsed` without them), as `open_world` saved it.

    Raises StudyError when the run has not met the open world yet.
    """
    if not run.done("openworld"):
        raise StudyError(f"{run.path} has not met the open world yet; run `learngene openworld` first")
    return load_state(run.path / SAVED[way])[0]


def cut_after(run: Run, layers: tuple[str, ...], way: str = "exemplars") -> Learngene:
    """The learngene of these layers, cut from `network_after`.

    Raises StudyError when the run has not met the open world yet, and for layers that are no block.
    """
    model, about = network_after(run, way), read_json(run.path / SAVED[way] / "about.json")
    notes = {"chosen_by": "hand", "cut": f"after the open world ({way})", "stage_hash": run.cfg.stage_hash("openworld")}
    return Learngene.from_model(model, layers, mean=about["mean"], std=about["std"], data=run.cfg.data, **notes)


def compare_cuts(
    cuts: dict[str, Learngene], col: Collective, imgs: ImageSet, tgt: Sequence[TargetTask], cfg: Config
) -> pd.DataFrame:
    """Light individuals of every learngene on the same target tasks, initial weights and batches: one row per individual,
    column `method` holds the learngene's name; `statistics.paired_table` compares them."""
    tables = []
    for name, gene in cuts.items():
        arms = [arm for arm in arms_of(gene, col, cfg, ("learngene",)) if arm.family == "light"]
        rows, _ = Individuals(arms, imgs, cfg, gene.mean, gene.std).table(tgt)
        tables.append(rows.assign(method=name))
    return pd.concat(tables, ignore_index=True)
