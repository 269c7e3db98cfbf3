"""What the released scripts compute: a walk, a choice and individuals of their own, with the defects that `Config.defects` names.

They are made of the method's own functions and differ from `collective.train_collective`, `learngene.cut_learngene` and
`fewshot.Individuals` where an `if` names a defect (see `defects`), and nowhere else. The strength of EWC stays ours (released:
20,000). Costs: as the method's; individuals are trained one by one, because defects reach into their training between epochs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from ..arms import Arm, Draw, stream_of
from ..collective import Collective, State, newborn, train_collective
from ..config import Config, Machine
from ..errors import Diverged
from ..ewc import Frozen, Penalty
from ..fewshot import Individuals, Keep, curve_of, labels_of, pull_weights, row_of
from ..growth import WideningMap, widen
from ..learngene import Learngene, cut_learngene
from ..network import ConvNet
from ..stack import Stack
from ..tasks import ImageSet, SourceTask, TargetTask, generator
from ..training import Loss, Recipe, augment, batch_sizes, confusion, fit, normalise, predict, stack_loss, task_loss
from .defects import LEAK_LENGTH, choice


def walk_of(cfg: Config) -> Callable[..., Collective]:
    """The walk that a configuration asks for, for `runs.stages.trained_collective`."""
    return train_released if cfg.defects else train_collective


def kind_of(cfg: Config) -> type[Individuals]:
    """The individuals that a configuration asks for, for `runs.stages.individuals`."""
    return ReleasedIndividuals if cfg.defects else Individuals


# the collective ---------------------------------------------------------------------------------------------------------
def train_released(
    images: ImageSet,
    tasks: Sequence[SourceTask],
    cfg: Config,
    *,
    start: State | None = None,
    after_task: Callable[[State], None] = lambda state: None,
    on_epoch: Callable[[State], None] = lambda state: None,
    machine: Machine | None = None,
) -> Collective:
    """`train_collective` with the collective's defects among `cfg.defects`; parameters and errors are its own.

    Raises ValueError for double_softmax with ancestor=replay, whose loss is another one.
    """
    defects, widening, loss_over = cfg.defects, widen, task_loss
    if "double_softmax" in defects and cfg.ancestor == "replay":
        raise ValueError("the defect double_softmax knows no replay; leave one of the two out")
    if "double_softmax" in defects:
        loss_over = double_softmax
    if "exact_copies" in defects:
        widening = widen_copies
    if "bn_gap" in defects:
        widening = widen_with_gap
    if "labels_reused" in defects:
        everything = dict.fromkeys(name for task in tasks for name in task.classes)
        start = OneHead(**vars(start or newborn(tuple(everything), cfg.as_ancestor(len(tasks[0].classes)))))
    forms = {"widening": widening, "loss_over": loss_over}
    hooks = {"start": start, "after_task": after_task, "on_epoch": on_epoch, "machine": machine}
    col = train_collective(images, tasks, cfg.replace(defects=()), **hooks, **forms)
    return dataclasses.replace(col, stage_hash=cfg.stage_hash("collective"))


class OneHead(State):
    """Labels reused: every task's classes are the first outputs of a head that has one for every class of the sequence, and
    the loss runs over all of them, of which most belong to no class."""

    def outputs(self, task: SourceTask) -> Tensor:
        """The first outputs (k,), whatever the task."""
        return torch.arange(len(task.classes))

    def loss_outputs(self, task: SourceTask, cfg: Config) -> Tensor | None:
        """All there are."""
        return None


def double_softmax(classes: Tensor | None = None) -> Loss:
    """As `task_loss`, but it takes the softmax of the outputs for logits: the loss of k outputs lies between
    ln(e + k - 1) - 1 and ln(e + k - 1)."""

    def loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if classes is not None:
            labels = (labels[:, None] == classes).to(torch.uint8).argmax(1)
            logits = logits[:, classes]
        return task_loss()(logits.softmax(1), labels)

    return loss


def widen_copies(net: ConvNet, name: str, width: int, *, mode: str = "", **options: object) -> WideningMap:
    """Widening by exact copies with equal shares, batch norm included: they get equal gradients for ever."""
    return widen(net, name, width, mode="net2net", noise=0.0, **options)


@torch.no_grad()
def widen_with_gap(
    net: ConvNet, name: str, width: int, *, generator: torch.Generator, **options: object
) -> WideningMap:
    """Widening by copies of which only the last one gets its batch norm.

    That of the others is memory which nobody has written, and can hold anything. Here it is drawn from `generator`: weight, bias
    and running mean N(0, 1), running variance exp(N(0, 1)). All are finite; the scripts also give infinities.
    """
    old = net.blocks[name].conv.out_channels
    mapping = widen_copies(net, name, width, generator=generator, **options)
    norm = net.blocks[name].norm
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        value[old:-1] = torch.randn(width - old - 1, generator=generator).to(value)
    norm.running_var[old:-1] = norm.running_var[old:-1].exp()
    return mapping


# the choice -------------------------------------------------------------------------------------------------------------
def cut_released(col: Collective, cfg: Config, *, layers: tuple[str, ...] | None = None) -> Learngene:
    """The learngene that `cfg` with its defects chooses; parameters and errors as `cut_learngene`."""
    gene = cut_learngene(col, choice(cfg, col.model.block_names), layers=layers)
    return dataclasses.replace(gene, notes={**gene.notes, "stage_hash": cfg.stage_hash("criteria")})


# individuals ------------------------------------------------------------------------------------------------------------
def chains_of(tasks: Sequence[TargetTask], cfg: Config) -> list[tuple[TargetTask, ...]]:
    """Target tasks that are trained one after the other: each alone, or as many as one call of the script trains."""
    length = LEAK_LENGTH if "leak" in cfg.defects else 1
    return [tuple(tasks[i : i + length]) for i in range(0, len(tasks), length)]


class ReleasedIndividuals(Individuals):
    """`Individuals` with the defects of `cfg.defects`, one network at a time.

    A piece is a chain of target tasks (one, but for the defect leak) and one set of initial weights. With `lenient`, an
    individual whose training is not finite counts at chance, and its row has a note.
    """

    lenient = False

    def pieces(
        self, tasks: Sequence[TargetTask], keep: Keep | None = None, label: str = "", *, curves: bool = True
    ) -> Iterator[dict]:
        """As `Individuals.pieces`; a chain is named after its first task."""
        self.chain_of = {chain[0].number: chain for chain in chains_of(tasks, self.cfg)}
        return super().pieces([chain[0] for chain in self.chain_of.values()], keep, label, curves=curves)

    def in_one_go(self, draws: Sequence[Draw]) -> list[dict]:
        """A piece per draw: the whole chain that begins with its task."""
        return [self._chain(self.chain_of[task.number], init) for task, init in draws]

    def _chain(self, tasks: Sequence[TargetTask], init: int) -> dict:
        """All arms on these tasks in turn, for every number of shots: {"rows", "curves"}."""
        piece: dict = {"rows": [], "curves": []}
        for shots in self.cfg.shots:
            for arm in self.arms:
                left = None  # what the arm has become on the task before
                for task in tasks:
                    row, curve, left = self._measured(arm, (task, init), shots, left)
                    piece["rows"].append(row)
                    piece["curves"] += curve
        return piece

    def _measured(
        self, arm: Arm, draw: Draw, shots: int, left: ConvNet | None
    ) -> tuple[dict, list[dict], ConvNet | None]:
        """The row of one individual, its training curve, and what it has become; None where that is nothing to go on from."""
        (task, init), gene = draw, arm.donor(draw)
        where = {"shots": shots, "target_task": task.number, "init": init, "classes": "|".join(task.classes)}
        try:
            stack, history = self.individual(arm, gene, draw, shots, left)
            logits = predict(stack, self.queries(draw), *self.normal)
        except Diverged as error:
            if not self.lenient:
                raise
            about = {"family": arm.family, "method": arm.method, "rate": arm.rate, "ewc": arm.ewc, **dict(arm.columns)}
            return {**about, **where, "accuracy": 100 / self.cfg.n_way, "note": str(error)}, [], None
        labels = labels_of(task.query).to(self.device)
        cells = confusion(logits, labels)
        return row_of(arm, where, cells[0], gene, history, 0), curve_of(arm, where, history, 0), stack.network(0)

    def individual(
        self, arm: Arm, gene: Learngene | None, draw: Draw, shots: int, left: ConvNet | None
    ) -> tuple[Stack, list[dict]]:
        """One individual, trained, as a stack of one, and its rows per epoch. left: what the arm has become on the task before.

        Raises Diverged when its training is not finite.
        """
        cfg, (task, _) = self.cfg, draw
        fresh = generator(cfg.seed, "individual weights", arm.family, *stream_of(draw), cfg.target_seed)
        net = ConvNet.from_shape(arm.shape, generator=fresh)
        if gene is not None:
            net = gene.inherit_into(net)
            if "leak" in cfg.defects and left is not None:
                net = left  # head and batch norm included
        stack = Stack([net]).to(self.device)
        images, labels = self.pick(task.support[:, :shots]), labels_of(task.support[:, :shots]).to(self.device)
        recipe = Recipe.of_individual(cfg, arm.rate, *self.normal)
        machine, where = (
            dataclasses.replace(self.machine, capture=False),
            f"target task {task.number}, {arm.family}, {shots} shots",
        )
        optimiser, pull, history = recipe.optimiser(stack, machine), self._pull_of(stack, arm, gene), []
        for row in fit(
            stack,
            images,
            labels,
            stack_loss,
            recipe,
            stream=lambda epoch: [generator(cfg.seed, "support batches", *stream_of(draw), cfg.target_seed, epoch)],
            where=where,
            lower="individual_rate or individual_ewc",
            optimiser=optimiser,
            pull=pull,
            machine=machine,
        ):
            history.append(row)
            if isinstance(pull, EpochPenalty):
                pull.take(stack, images, labels, recipe)
            elif isinstance(pull, Penalty):
                pull.check(row["penalty"], row["epoch"] * len(batch_sizes(len(images), recipe.batch_size)), where)
            if "rebuilt_optimiser" in cfg.defects:
                optimiser.state.clear()
        return stack, history

    def _pull_of(self, stack: Stack, arm: Arm, gene: Learngene | None) -> Penalty | Frozen | None:
        """What holds an individual; defects of EWC leave other pulls (L2-SP, frozen) alone."""
        if not arm.holds or (arm.hold == "fisher" and "zero_ewc" in self.cfg.defects):
            return None
        weights = stack.join([pull_weights(arm, gene)])
        if arm.hold == "frozen":
            return Frozen(stack, weights)
        if arm.hold == "fisher" and "epoch_ewc" in self.cfg.defects:
            return EpochPenalty(stack, weights, arm.ewc, self.cfg.ewc_form)
        return Penalty(stack, dict(stack.named_parameters()), weights, 1.0, self.cfg.ewc_form)

    def queries(self, draw: Draw) -> Tensor:
        """The query images (n, 3, h, w) as the test shows them."""
        images = self.pick(draw[0].query)
        if "augmented_test" in self.cfg.defects:
            stream = generator(self.cfg.seed, "test images", *stream_of(draw), self.cfg.target_seed)
            images = augmented(images, self.cfg, stream)
        return images


class Lenient(ReleasedIndividuals):
    """Individuals of which none can stop the others: one whose training is not finite counts at chance."""

    lenient = True


class EpochPenalty(Penalty):
    """EWC of an individual as it is written in the scripts, were it not lost: nothing is held in the first epoch; at the end of
    each one anchor and Fisher information are taken anew, from the target task itself.

    That Fisher information is the square of one batch's mean gradient, in training mode, with the true labels; the batch is
    spread evenly over the support images. weights: what inherited parameters would be pulled with; only which they are counts.
    """

    def __init__(self, stack: Stack, weights: dict[str, Tensor], strength: float, form: str):
        super().__init__(stack, dict(stack.named_parameters()), weights, 1.0, form)
        # joined along channels, one part per network of the stack: which of them are held at all
        held = [w.reshape(stack.size, -1).any(1).repeat_interleave(len(w) // stack.size) for w in self.weight]
        self.strength = [strength * h.view(-1, *[1] * (w.ndim - 1)) for h, w in zip(held, self.weight, strict=True)]
        self.weight = [torch.zeros_like(w) for w in self.weight]
        self.names = [name for name, _ in stack.named_parameters() if name in weights]

    def take(self, stack: Stack, images: Tensor, labels: Tensor, recipe: Recipe) -> None:
        """Anchor and Fisher information of the weights as they are now, on uint8 images (n, 3, h, w) with labels (n,)."""
        n = len(images)
        pick = torch.arange(0, n, math.ceil(n / recipe.batch_size), device=images.device)
        x = normalise(images[pick], recipe.mean, recipe.std)
        named = {name: p.detach().requires_grad_() for name, p in stack.named_parameters()}
        buffers = {name: b.clone() for name, b in stack.named_buffers()}  # training mode would move them
        loss = stack_loss(functional_call(stack, (named, buffers), (x,)), labels[pick])[0].sum()
        gradients = torch.autograd.grad(loss, [named[name] for name in self.names])
        self.weight = [s * g.square() for s, g in zip(self.strength, gradients, strict=True)]
        self.anchor = [p.detach().clone() for p in self.parameters]


def augmented(images: Tensor, cfg: Config, draw: torch.Generator) -> Tensor:
    """Test images (n, 3, h, w) with the random shift and flip of the training images, where these have them."""
    n = len(images)
    shift = torch.randint(-cfg.shift, cfg.shift + 1, (n, 2), generator=draw) if cfg.shift else None
    flip = torch.rand(n, generator=draw) < 0.5 if cfg.flip else None
    return augment(images, *(t if t is None else t.to(images.device) for t in (shift, flip)))
