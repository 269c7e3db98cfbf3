"""A method of your own: an arm that inherits something else, paired with scratch. Here: every filter mirrored, left for right."""

import dataclasses

from learngene_core import Learngene, paired_table
from learngene_core.arms import arms_of
from learngene_core.fewshot import Individuals
from learngene_core.study.chain import Chain

chain = Chain.of("runs/lecture")
gene, cfg = chain.learngene, chain.cfg


def mirrored(draw: tuple) -> Learngene:
    """The learngene with mirrored filters; `draw` names the target task and the initial weights, for donors with chance."""
    flipped = {name: t.flip(-1) if name.endswith("conv.weight") else t.clone() for name, t in gene.tensors.items()}
    return dataclasses.replace(gene, tensors=flipped, fisher=None)


arms = arms_of(gene, chain.collective, cfg, ("scratch", "learngene"))
light = next(arm for arm in arms if (arm.family, arm.method) == ("light", "learngene"))
arms.append(dataclasses.replace(light, method="mirrored", donor=mirrored))
work = Individuals(arms, chain.images, cfg, gene.mean, gene.std)
rows, _ = work.table(chain.target[:3])
table = paired_table(rows[rows["family"] == "light"])
print(table[["family", "method", "accuracy", "gain", "gain_low", "gain_high", "n_tasks"]].round(1))
