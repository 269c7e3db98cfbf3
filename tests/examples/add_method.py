"""A method of your own: an arm that inherits something else, paired with scratch. Here: every filter mirrored, left for right."""

import dataclasses

from learngene_core import Learngene, paired_table
from learngene_core.fewshot import Arm, Reconstruction
from learngene_core.study.chain import Chain

chain = Chain.of("runs/lecture")
gene, cfg = chain.learngene, chain.cfg


def mirrored(draw: tuple) -> Learngene:
    """The learngene with mirrored filters; `draw` names the target task and the initial weights, for donors with chance."""
    flipped = {name: t.flip(-1) if name.endswith("conv.weight") else t.clone() for name, t in gene.tensors.items()}
    return dataclasses.replace(gene, tensors=flipped, fisher=None)


arms = [
    Arm("light", "scratch", cfg.individual_rate),
    Arm("light", "learngene", cfg.individual_rate),
    Arm("light", "mirrored", cfg.individual_rate, donor=mirrored),
]
work = Reconstruction(gene, chain.collective, chain.images, cfg, arms, run=None)
table = paired_table(work.table(chain.target[:3]))
print(table[["family", "method", "accuracy", "gain", "gain_low", "gain_high", "n_tasks"]].round(1))
