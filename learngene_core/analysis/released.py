"""The steps in which the released scripts differ from the method, as callables: here each in its correct form.

The walk over the source tasks and the reconstruction ask a `Procedure` for these steps. Without defects in the configuration
that is this one; `released` holds the others, and no other module knows them.

What the released scripts do differently, each a switch: `Config.defects` names those that are on.

The scripts are those of github.com/BruceQFWang/learngene, which accompany the paper; what they do was read in their code. Each
switch replaces steps of `procedure.Procedure`; everything else stays in its correct form, so that its effect can be seen alone.
Not switches: what stops the scripts from running, and what belongs to the data (presets of that name have it).

What each defect of the released scripts does to the accuracy and to the chosen layers: none, each alone, all (released.csv).

Against the usual chain: the layers are chosen by the scale-free count of absolute entries (`released_relative`), the correct
counterpart of the released one, and not by hand; individuals are of the light family, with the first number of shots and one
set of initial weights per target task. Their EWC is a proximal step: a penalty of the strength that suits one learngene blows
up with the larger Fisher information of another, which says nothing about a defect.

Individuals that a defect does not touch are those of "none". Every collective of its own is a run folder, `released/<defect>`,
and goes on where it was stopped; so do the individuals.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call

from ..collective import Collective, sequence_summary, train_collective
from ..config import Config, nearest
from ..data.division import divide, source_tasks
from ..data.images import load_images
from ..errors import StudyError, say
from ..ewc import Frozen, Penalty
from ..fewshot import Arm, Draw, Reconstruction, arms_of, family_shape
from ..growth import WideningMap
from ..learngene import Learngene, cut_learngene
from ..network import ConvNet
from ..runs.machine import side_by_side
from ..runs.pieces import Pieces
from ..runs.run import Run
from ..runs.states import load_collective
from ..stack import Stack
from ..study.chain import Chain
from ..tasks import SourceTask, TargetTask
from ..training import Loss, Recipe, augment, normalise, stack_loss, task_loss
from .statistics import paired_interval


@dataclasses.dataclass(frozen=True)
class Lesson:
    """The training of a stack of individuals, as a step between its epochs sees it: uint8 images (n, 3, h, w), labels (n,)."""

    model: Stack
    images: Tensor
    labels: Tensor
    recipe: Recipe
    optimiser: torch.optim.Optimizer
    penalty: Penalty | Frozen | None


def first_classes(src: Sequence[SourceTask]) -> list[str]:
    """Classes whose outputs the head is born with: those of the first task; later tasks add theirs."""
    return list(src[0].classes)


def own_outputs(classes: Sequence[str], head: Sequence[str]) -> list[int]:
    """Outputs of the head (its class names in order) that stand for a task's classes: every class has its own."""
    return [head.index(name) for name in classes]


def among(outputs: Tensor, cfg: Config) -> Tensor | None:
    """Outputs that the collective's loss runs over, given the task's own (k,); None: all that there are."""
    return None if cfg.loss == "class-incremental" else outputs


def same_loss(loss: Loss, classes: Tensor | None) -> Loss:
    """The collective's loss, which runs over the outputs `classes` (k,): cross-entropy of the logits, as it comes in."""
    return loss


def same_choice(cfg: Config) -> Config:
    """The configuration by which the learngene is chosen."""
    return cfg


def alone(tgt: Sequence[TargetTask]) -> list[tuple[TargetTask, ...]]:
    """Target tasks that are trained one after the other: each is on its own."""
    return [(task,) for task in tgt]


def fresh_start(net: ConvNet, gene: Learngene | None, before: ConvNet | None) -> ConvNet:
    """The individual that a target task starts from: `net`, freshly initialised, with what it inherits.

    before: what the same arm had become on the task before, where tasks are trained one after the other.
    """
    return net if gene is None else gene.inherit_into(net)


def penalty(stack: Stack, weights: dict[str, Tensor], held: Arm, cfg: Config) -> Penalty | None:
    """The pull of a stack's individuals towards their start, with `weights` over the stack's parameters (see `Stack.join`)."""
    return Penalty(stack, dict(stack.named_parameters()), weights, 1.0, cfg.ewc_form)


def nothing(lesson: Lesson) -> None:
    """What happens between two epochs of an individual."""


def as_they_are(images: Tensor, cfg: Config, draw: torch.Generator) -> Tensor:
    """The query images (n, 3, h, w) as they are shown in the test."""
    return images


@dataclasses.dataclass(frozen=True)
class Procedure:
    """Steps of the collective's training, of the choice and of the individuals; see the functions of this module."""

    head: Callable[[Sequence[SourceTask]], list[str]] = first_classes
    outputs: Callable[[Sequence[str], Sequence[str]], list[int]] = own_outputs
    among: Callable[[Tensor, Config], Tensor | None] = among
    loss: Callable[[Loss, Tensor | None], Loss] = same_loss
    widen: Callable[..., WideningMap] = ConvNet.widen
    choice: Callable[[Config], Config] = same_choice
    chains: Callable[[Sequence[TargetTask]], list[tuple[TargetTask, ...]]] = alone
    start: Callable[[ConvNet, Learngene | None, ConvNet | None], ConvNet] = fresh_start
    penalty: Callable[[Stack, dict[str, Tensor], Arm, Config], Penalty | None] = penalty
    between_epochs: Callable[[Lesson], None] = nothing
    test_images: Callable[[Tensor, Config, torch.Generator], Tensor] = as_they_are


CORRECT = Procedure()


def procedure_of(cfg: Config) -> Procedure:
    """The steps that a configuration asks for: the correct ones, or with the defects that it names (`Config.defects`)."""
    if not cfg.defects:
        return CORRECT

    return procedure(cfg.defects)


LEAK_LENGTH = 5  # target tasks that one call of the released script trains, one after the other


# the loss and EWC -------------------------------------------------------------------------------------------------------
def double_softmax(loss: Loss, classes: Tensor | None) -> Loss:
    """Cross-entropy that takes the softmax of the outputs for logits: between ln(e + k - 1) - 1 and ln(e + k - 1), k outputs."""

    def of_probabilities(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if classes is not None:
            labels = (labels[:, None] == classes).to(torch.uint8).argmax(1)
            logits = logits[:, classes]
        return task_loss()(logits.softmax(1), labels)

    return of_probabilities


class EpochPenalty(Penalty):
    """EWC of individuals as it is written in the scripts, were it not lost: nothing is held in the first epoch; at the end of
    each one anchor and Fisher are taken anew, from the target task itself.

    The Fisher is the square of one batch's mean gradient, in training mode, with the true labels; the batch is spread evenly
    over the support images. The strength stays ours (released: 20,000).
    """

    def __init__(self, stack: Stack, weights: dict[str, Tensor], strength: float, form: str):
        super().__init__(stack, dict(stack.named_parameters()), weights, 1.0, form)
        # joined along channels, one part per network of the stack: which of them are held at all
        held = [w.reshape(stack.size, -1).any(1).repeat_interleave(len(w) // stack.size) for w in self.weight]
        self.strength = [strength * h.view(-1, *[1] * (w.ndim - 1)) for h, w in zip(held, self.weight, strict=True)]
        self.weight = [torch.zeros_like(w) for w in self.weight]
        self.names = [name for name, _ in stack.named_parameters() if name in weights]

    def take(self, lesson: Lesson) -> None:
        """Anchor and Fisher of the weights as they are now."""
        n = len(lesson.images)
        pick = torch.arange(0, n, math.ceil(n / lesson.recipe.batch_size), device=lesson.images.device)
        x = normalise(lesson.images[pick], lesson.recipe.mean, lesson.recipe.std)
        named = {name: p.detach().requires_grad_() for name, p in lesson.model.named_parameters()}
        buffers = {name: b.clone() for name, b in lesson.model.named_buffers()}  # training mode would move them
        loss = stack_loss(functional_call(lesson.model, (named, buffers), (x,)), lesson.labels[pick])[0].sum()
        gradients = torch.autograd.grad(loss, [named[name] for name in self.names])
        self.weight = [s * g.square() for s, g in zip(self.strength, gradients, strict=True)]
        self.anchor = [p.detach().clone() for p in self.parameters]


def epoch_penalty(stack: Stack, weights: dict[str, Tensor], held: Arm, cfg: Config) -> Penalty | None:
    """See `EpochPenalty`; other pulls than EWC are left alone."""
    if held.hold != "fisher":
        return penalty(stack, weights, held, cfg)
    return EpochPenalty(stack, weights, held.ewc, cfg.ewc_form)


def take_penalty(lesson: Lesson) -> None:
    """Between two epochs: EWC towards the weights as they have become."""
    if isinstance(lesson.penalty, EpochPenalty):
        lesson.penalty.take(lesson)


def zero_penalty(stack: Stack, weights: dict[str, Tensor], held: Arm, cfg: Config) -> Penalty | None:
    """No EWC at all; other pulls are left alone."""
    return None if held.hold == "fisher" else penalty(stack, weights, held, cfg)


# individuals ------------------------------------------------------------------------------------------------------------
def in_turn(tgt: Sequence[TargetTask]) -> list[tuple[TargetTask, ...]]:
    """Target tasks as one call of the script trains them, `LEAK_LENGTH` one after the other."""
    return [tuple(tgt[i : i + LEAK_LENGTH]) for i in range(0, len(tgt), LEAK_LENGTH)]


def leaking_start(net: ConvNet, gene: Learngene | None, before: ConvNet | None) -> ConvNet:
    """Individuals that inherit go on from what the task before has left, head and batch norm included; others are new."""
    if gene is None:
        return net
    return gene.inherit_into(net) if before is None else before


def forget_momentum(lesson: Lesson) -> None:
    """Between two epochs: as if the optimiser were made anew."""
    lesson.optimiser.state.clear()


def augmented(images: Tensor, cfg: Config, draw: torch.Generator) -> Tensor:
    """Test images with the random shift and flip of the training images, where these have them."""
    n = len(images)
    shift = torch.randint(-cfg.shift, cfg.shift + 1, (n, 2), generator=draw) if cfg.shift else None
    flip = torch.rand(n, generator=draw) < 0.5 if cfg.flip else None
    return augment(images, *(t if t is None else t.to(images.device) for t in (shift, flip)))


# labels and growth ------------------------------------------------------------------------------------------------------
def all_classes(src: Sequence[SourceTask]) -> list[str]:
    """The head has outputs for all classes of the sequence from the start, and does not grow."""
    return list(dict.fromkeys(name for task in src for name in task.classes))


def first_outputs(classes: Sequence[str], head: Sequence[str]) -> list[int]:
    """Every task's classes are labelled from 0."""
    return list(range(len(classes)))


def whole_head(outputs: Tensor, cfg: Config) -> Tensor | None:
    """The loss runs over all outputs, of which most only ever stand for no class."""
    return None


def widen_copies(model: ConvNet, name: str, width: int, *, mode: str = "", **options: object) -> WideningMap:
    """Widening by exact copies with equal shares, batch norm included: they get equal gradients for ever."""
    return model.widen(name, width, mode="net2net", noise=0.0, **options)


@torch.no_grad()
def widen_with_gap(
    model: ConvNet, name: str, width: int, *, generator: torch.Generator, **options: object
) -> WideningMap:
    """Widening by copies of which only the last one gets its batch norm.

    That of the others is memory which nobody has written, and can hold anything; what stands for it here is drawn from
    `generator`: weight, bias and running mean N(0, 1), running variance exp(N(0, 1)). All finite, where the scripts also give
    infinities.
    """
    old = model.blocks[name].conv.out_channels
    mapping = widen_copies(model, name, width, generator=generator, **options)
    norm = model.blocks[name].norm
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        value[old:-1] = torch.randn(width - old - 1, generator=generator).to(value)
    norm.running_var[old:-1] = norm.running_var[old:-1].exp()
    return mapping


def signed_threshold(cfg: Config) -> Config:
    """The choice by the released count: entries above an absolute threshold, with their sign."""
    return cfg.replace(criterion="released", sign="positive")


# the switches -----------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Defect:
    """A defect: its name, what the released scripts do, what that touches, and the steps that it replaces.

    touches: "collective", "choice" (of the layers), and of the individuals "scratch", "learngene", "learngene_ewc".
    """

    name: str
    text: str
    touches: tuple[str, ...]
    apply: Callable[[Procedure], Procedure]

    def __call__(self, procedure: Procedure) -> Procedure:
        """`procedure` with this defect."""
        return self.apply(procedure)


def _steps(**steps: Callable) -> Callable[[Procedure], Procedure]:
    return lambda procedure: dataclasses.replace(procedure, **steps)


def _between(step: Callable[[Lesson], None], **others: Callable) -> Callable[[Procedure], Procedure]:
    """A step between two epochs, behind those that are there already."""

    def applied(procedure: Procedure) -> Procedure:
        def both(lesson: Lesson) -> None:
            procedure.between_epochs(lesson)
            step(lesson)

        return dataclasses.replace(procedure, between_epochs=both, **others)

    return applied


INDIVIDUALS = ("scratch", "learngene", "learngene_ewc")
# fmt: off
DEFECTS: dict[str, Defect] = {defect.name: defect for defect in (  # later ones have the last word
    Defect("double_softmax", "the collective ends in a softmax, and its loss applies another", ("collective",),
           _steps(loss=double_softmax)),
    Defect("labels_reused", "every source task's classes are labelled from 0, over the whole head, which never grows",
           ("collective",), _steps(head=all_classes, outputs=first_outputs, among=whole_head)),
    Defect("exact_copies", "widening copies channels exactly, with equal shares: copies never differ", ("collective",),
           _steps(widen=widen_copies)),
    Defect("bn_gap", "widening copies channels, but only the last new one's batch norm: the others' is unwritten memory",
           ("collective",), _steps(widen=widen_with_gap)),
    Defect("signed_threshold", "the criterion counts gradient entries above an absolute threshold, with their sign",
           ("choice",), _steps(choice=signed_threshold)),
    Defect("epoch_ewc", "EWC of an individual pulls towards its own epoch before, not towards the collective",
           ("learngene_ewc",), _between(take_penalty, penalty=epoch_penalty)),
    Defect("zero_ewc", "the EWC penalty is always zero: an error in reading its anchor is caught and forgotten",
           ("learngene_ewc",), _steps(penalty=zero_penalty)),
    Defect("rebuilt_optimiser", "individuals get a new optimiser in every epoch: momentum never builds", INDIVIDUALS,
           _between(forget_momentum)),
    Defect("leak", f"inheriting individuals go on from the target task before, {LEAK_LENGTH} in a row; scratch starts anew",
           ("learngene", "learngene_ewc"), _steps(chains=in_turn, start=leaking_start)),
    Defect("augmented_test", "test images are augmented at random, as the training images are", INDIVIDUALS,
           _steps(test_images=augmented)),
)}
# fmt: on


def procedure(defects: Sequence[str]) -> Procedure:
    """The steps with these defects, in whatever order they are named. Raises ValueError for an unknown name."""
    for name in defects:
        if name not in DEFECTS:
            raise ValueError(f"unknown defect {name!r}{nearest(name, DEFECTS)}; there are {', '.join(DEFECTS)}")
    steps = CORRECT
    for name, defect in DEFECTS.items():
        steps = defect(steps) if name in defects else steps
    return steps


VARIANTS: dict[str, tuple[str, ...]] = {"none": (), **{name: (name,) for name in DEFECTS}, "all": tuple(DEFECTS)}
COLUMNS = ["defects", *INDIVIDUALS, "gain", "gain_low", "gain_high", "chosen", "closed", "n_tasks", "note"]


def released_table(chain: Chain) -> pd.DataFrame:
    """One row per variant (released.csv): defects ("none", a defect, "all"); scratch, learngene, learngene_ewc: mean accuracy in
    percent; gain, gain_low, gain_high: learngene over scratch, paired, 95 % over tasks; chosen: the inherited layers; closed: the
    collective's average accuracy after the last task; n_tasks; note: what was not finite. An individual whose training is not
    finite counts at chance; where the collective's is not, or no layers can be chosen, there are no individuals.

    Raises OutOfTime (pieces are kept) after `cfg.minutes`.
    """
    run = chain.run
    if run.done("released"):
        say("released: found in the run folder, loaded")
        return _read(run)
    chain.target  # noqa: B018 (too few images are said before hours of training)
    comparison = _Comparison(chain)
    with run.computing("released", ["released.csv"]):
        comparison.train()
        rows = [comparison.row(name) for name in VARIANTS]
        run.write_table("released.csv", pd.DataFrame(rows)[COLUMNS])
        comparison.parts.clear()
    say(f"released: {len(DEFECTS)} defects, each alone and all together, on {len(chain.target)} target tasks, saved")
    return _read(run)


def _read(run: Run) -> pd.DataFrame:
    table = run.read_table("released.csv")
    return table.assign(**{name: table[name].astype(object).fillna("") for name in ("chosen", "note")})


class _Comparison:
    """The variants of one run, and what they share."""

    def __init__(self, chain: Chain):
        self.chain, self.run = chain, chain.run
        # the run's own; without defects it has to be there
        self.mine = _attempt(lambda: chain.collective) if chain.cfg.defects else (chain.collective, "")
        self.parts = Pieces(chain.run, "released")
        own = {"criterion": "released_relative", "layers": (), "n_inits": 1, "ewc_form": "proximal"}
        self.cfg = chain.cfg.replace(**own, shots=chain.cfg.shots[:1])
        self.genes: dict[str, Learngene] = {}
        self.trained: dict[tuple[str, str], list[dict]] = {}  # variant, method -> rows

    # collectives ------------------------------------------------------------------------------------------------------
    def train(self) -> None:
        """Train the collectives that there are not yet; on a CPU as many at a time as there are workers, a process each."""
        machine = self.run.machine
        workers = machine.workers if machine.device == "cpu" else 1
        left = [name for name in self._own() if not self._known(name)]
        while left:
            if not self.parts.in_time:
                raise self.parts.stopped(len(self._own()) - len(left), len(self._own()))
            now, left = left[:workers], left[workers:]
            self.run.progress("released", 0, 1, f"training the collective of {' and '.join(now)}")
            jobs = [(self._config(name).to_dict(), str(self._folder(name))) for name in now]
            apart = len(jobs) > 1
            notes = side_by_side(_train_apart, jobs, len(jobs)) if apart else [self._trained(n)[1] for n in now]
            for name, note in zip(now, notes, strict=True):
                if note:
                    self.parts.put(f"collective_{name}", note)

    def _own(self) -> list[str]:
        """Variants that need a collective which is not the run's own."""
        keys = {_of_collective(defects): name for name, defects in reversed(VARIANTS.items())}
        keys.pop(_of_collective(self.run.cfg.defects), None)
        return [name for name in VARIANTS if name in keys.values()]

    def _folder(self, name: str) -> Path:
        return self.run.path / "released" / name

    def _config(self, name: str) -> Config:
        return self.run.cfg.replace(defects=_of_collective(VARIANTS[name]))

    def _known(self, name: str) -> bool:
        return (self._folder(name) / "history.csv").exists() or self.parts.get(f"collective_{name}") is not None

    def _trained(self, name: str) -> tuple[Collective | None, str]:
        chain = self.chain
        return _train(chain.images, chain.division, chain.source, self._config(name), self._folder(name))

    def collective(self, name: str) -> tuple[Collective | None, str]:
        """The collective of a variant, or None and why there is none."""
        key = _of_collective(VARIANTS[name])
        if key == _of_collective(self.run.cfg.defects):
            return self.mine
        owner = next(n for n, defects in VARIANTS.items() if _of_collective(defects) == key)
        note = self.parts.get(f"collective_{owner}")
        return (None, note) if note else self._trained(owner)

    # individuals ------------------------------------------------------------------------------------------------------
    def row(self, name: str) -> dict:
        """The row of one variant."""
        col, note = self.collective(name)
        row = {"defects": name, **dict.fromkeys(COLUMNS[1:], np.nan), "chosen": "", "n_tasks": 0, "note": note}
        if col is None:
            return row
        row["closed"] = sequence_summary(col.history)["average_accuracy"]
        cfg = self.cfg.replace(defects=VARIANTS[name])
        try:
            self.genes[name] = cut_learngene(col, cfg)
        except StudyError as error:  # the criterion cannot choose
            return row | {"note": str(error)}
        accuracies, notes = {}, []
        for arm in arms_of(cfg, INDIVIDUALS):
            if arm.family != "light":
                continue
            rows = self.trained[name, arm.method] = self._individuals(name, arm, col, cfg)
            accuracies[arm.method] = pd.Series({r["target_task"]: r["accuracy"] for r in rows}).sort_index()
            failed = [r["note"] for r in rows if r.get("note")]
            if failed:
                notes.append(f"{arm.method}: {len(failed)} of {len(rows)} at chance ({failed[0]})")
        gain = paired_interval(accuracies["learngene"], accuracies["scratch"])
        layers = self.genes[name].layers
        return row | {
            **{method: accuracy.mean() for method, accuracy in accuracies.items()},
            "gain": gain.estimate,
            "gain_low": gain.low,
            "gain_high": gain.high,
            "chosen": f"{layers[0]}-{layers[-1]}",
            "n_tasks": gain.n,
            "note": "; ".join(notes),
        }

    def _individuals(self, name: str, arm: Arm, col: Collective, cfg: Config) -> list[dict]:
        if ("none", arm.method) in self.trained and not self._touched(name, arm.method, col, cfg):
            return self.trained["none", arm.method]
        # one arm at a time: an individual's rounding then does not depend on which others are trained
        work = _Lenient(self.genes[name], col, self.chain.images, cfg, [arm], self.run, "released")
        n_pieces = len(work.how.chains(self.chain.target))
        place = list(VARIANTS).index(name) * len(INDIVIDUALS) + INDIVIDUALS.index(arm.method)
        work.span = place * n_pieces, len(VARIANTS) * len(INDIVIDUALS) * n_pieces
        label = f"{name}_{arm.method}_"
        return [r for p in work.pieces(self.chain.target, self.parts, label, curves=False) for r in p["rows"]]

    def _touched(self, name: str, method: str, col: Collective, cfg: Config) -> bool:
        """Whether a variant's individuals of a method differ from those of "none"."""
        touches = {part for defect in VARIANTS[name] for part in DEFECTS[defect].touches}
        gene, sound = self.genes[name], self.genes["none"]
        shapes = [family_shape("light", g, col, cfg) for g in (gene, sound)]
        inherits = method != "scratch" and ("collective" in touches or gene.layers != sound.layers)
        return method in touches or inherits or shapes[0] != shapes[1]


class _Lenient(Reconstruction):
    """Reconstruction with one arm, in which a piece whose training is not finite counts at chance and says so."""

    def _bundles(self, names: list[str]) -> list[list[str]]:
        return [[name] for name in names]  # none is lost with another one

    def _bundle(self, draws: Sequence[Draw], left: dict | None = None) -> list[dict]:
        try:
            return super()._bundle(draws, left)
        except StudyError as error:
            if not _not_finite(error):
                raise
            if left is not None:
                left.clear()  # there is nothing to go on from
            [(task, init)] = draws
            where = {"method": self.arms[0].method, "target_task": task.number, "init": init}
            return [{"rows": [{**where, "accuracy": 100 / self.cfg.n_way, "note": str(error)}], "curves": []}]


def _of_collective(defects: tuple[str, ...]) -> tuple[str, ...]:
    """Those among the defects that decide the collective, in the order of `DEFECTS`."""
    return tuple(name for name in DEFECTS if name in defects and "collective" in DEFECTS[name].touches)


def _not_finite(error: StudyError) -> bool:
    return "is not finite" in str(error)  # what `fit` says of a loss


def _train(imgs, div, src, cfg: Config, folder: Path) -> tuple[Collective | None, str]:  # noqa: ANN001
    """A collective in a run folder of its own, trained or loaded; or None and why its training is not finite."""
    run = Run.open(cfg, folder)
    if run.done("collective"):
        return load_collective(run), ""
    say(f"released: training a collective with {', '.join(cfg.defects) or 'no defect'}")
    return _attempt(lambda: train_collective(imgs, div, src, cfg, run=run))


def _attempt(train: Callable[[], Collective]) -> tuple[Collective | None, str]:
    try:
        return train(), ""
    except StudyError as error:
        if not _not_finite(error):
            raise
        return None, str(error)


def _train_apart(job: tuple[dict, str]) -> str:
    cfg = Config.from_dict(job[0])
    imgs = load_images(cfg.data, cfg.data_path, image_size=cfg.image_size, skip_corrupt=cfg.skip_corrupt)
    div = divide(imgs, cfg)
    return _train(imgs, div, source_tasks(imgs, div, cfg), cfg, Path(job[1]))[1]


def describe(table: pd.DataFrame) -> str:
    """The table for a terminal, and below it what was not finite."""
    shown = table.drop(columns="note").to_string(index=False, float_format="{:.1f}".format, na_rep="-")
    return "\n".join([shown, *(f"{row.defects}: {row.note}" for row in table.itertuples() if row.note)])
