"""A data set of your own: a function that gives an `ImageSet`. Here: the handwritten digits that come with scikit-learn."""

import torch
from sklearn.datasets import load_digits

import learngene_core as lg


def digits() -> lg.ImageSet:
    """About 180 images of each of ten digits, enlarged from 8 to 32 pixels; sorted by class, uint8."""
    data = load_digits()
    order = data.target.argsort(kind="stable")
    grey = torch.from_numpy(data.images[order] * 15.9).to(torch.uint8)  # (n, 8, 8)
    large = grey.repeat_interleave(4, 1).repeat_interleave(4, 2)  # (n, 32, 32)
    images = large[:, None].expand(-1, 3, -1, -1).contiguous()  # (n, 3, 32, 32)
    names = tuple(f"digit {k}" for k in range(10))
    return lg.ImageSet("digits", images, torch.from_numpy(data.target[order]).long(), names, superclasses={})


images = digits()
names = images.class_names  # six to learn from, two that stay unknown, two for the target tasks
division = lg.Division(base=names[:6], open_world=names[6:8], novel=names[8:])
cfg = lg.Config.preset("smoke", n_source_tasks=2, source_way=3, n_target_tasks=3, n_way=2)
source, target = lg.source_tasks(images, division, cfg), lg.target_tasks(images, division, cfg)
ancestor = lg.train_collective(images, source, cfg)
gene = lg.cut_learngene(ancestor, cfg)
table = lg.paired_table(lg.evaluate_few_shot(gene, ancestor, images, target, cfg, methods=("scratch", "learngene")))
print(table[["family", "method", "accuracy", "gain", "gain_low", "gain_high", "n_tasks"]].round(1))
