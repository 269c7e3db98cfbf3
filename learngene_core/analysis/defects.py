"""The defects of the released scripts by name: what each does, what it touches, and the choice of layers as they make it.

The scripts are those of github.com/BruceQFWang/learngene, which accompany the paper; what they do was read in their code.
`Config.defects` names the ones that are on; everything else stays in its correct form, so that each effect can be seen alone.
Not among them: what stops the scripts from running, and what belongs to the data (presets of that name have it). The training
with defects is in `released`, their comparison in `released_table`. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..config import Config

LEAK_LENGTH = 5  # target tasks that one call of the released script trains, one after the other
INDIVIDUALS = ("scratch", "learngene", "learngene_ewc")


@dataclasses.dataclass(frozen=True)
class Defect:
    """A defect: its name, what the released scripts do, and what that touches.

    touches: "collective", "choice" (of the layers), and of the individuals "scratch", "learngene", "learngene_ewc".
    """

    name: str
    text: str
    touches: tuple[str, ...]


# fmt: off
DEFECTS: dict[str, Defect] = {defect.name: defect for defect in (  # of two on the same step the later one has the last word
    Defect("double_softmax", "the collective ends in a softmax, and its loss applies another", ("collective",)),
    Defect("labels_reused", "every source task's classes are labelled from 0, over the whole head, which never grows",
           ("collective",)),
    Defect("exact_copies", "widening copies channels exactly, with equal shares: copies never differ", ("collective",)),
    Defect("bn_gap", "widening copies channels, but only the last new one's batch norm: the others' is unwritten memory",
           ("collective",)),
    Defect("signed_threshold", "the criterion counts gradient entries above an absolute threshold, with their sign",
           ("choice",)),
    Defect("fixed_layers", "the inherited layers are the last ones, written by hand, whatever the criterion says",
           ("choice",)),
    Defect("epoch_ewc", "EWC of an individual pulls towards its own epoch before, not towards the collective",
           ("learngene_ewc",)),
    Defect("zero_ewc", "the EWC penalty is always zero: an error in reading its anchor is caught and forgotten",
           ("learngene_ewc",)),
    Defect("rebuilt_optimiser", "individuals get a new optimiser in every epoch: momentum never builds", INDIVIDUALS),
    Defect("leak", f"inheriting individuals go on from the target task before, {LEAK_LENGTH} in a row; scratch starts anew",
           ("learngene", "learngene_ewc")),
    Defect("augmented_test", "test images are augmented at random, as the training images are", INDIVIDUALS),
)}
# fmt: on


def touched(defects: Sequence[str]) -> set[str]:
    """What these defects touch together."""
    return {part for name in defects for part in DEFECTS[name].touches}


def choice(cfg: Config, names: Sequence[str]) -> Config:
    """The configuration by which the layers are chosen (`criteria.choose`); the same one without a defect of the choice.

    names: of the collective's blocks, in order. Layers that `cfg` names itself stay.
    """
    if "fixed_layers" in cfg.defects and not cfg.layers:
        return cfg.replace(layers=tuple(names[-cfg.n_blocks :]))
    if "signed_threshold" in cfg.defects:
        return cfg.replace(criterion="released", sign="positive")
    return cfg
