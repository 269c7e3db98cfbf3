"""The presets, and the numbers of the paper's network that they scale. Plain data; `config` checks it."""

from __future__ import annotations

import types
from typing import Any

# The paper's collective network (appendix Fig. 1 and released code): 13 convolution blocks, the widths it starts from,
# and the 20 widening steps by the number of the block (one that is named twice grows by half each time). Presets scale these,
# never change their shape.
PAPER_WIDTHS = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 256, 256, 256)
PAPER_FINAL_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
PAPER_POOLS = (2, 4, 7, 10, 13)
PAPER_STEPS = (3, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13)

METHODS = {
    "light": ("scratch", "learngene", "learngene_ewc", "random", "first", "longest_prefix", "recommended"),
    "same_shape": ("scratch", "learngene", "first", "longest_prefix", "full"),
    "none": ("ncm",),
}

# what `controls` makes of an inherited block, in the order of tables and figures
CONTROL_NAMES = (
    "shuffled_inputs",
    "shuffled_inner",
    "spectrum_matched",
    "moment_matched",
    "conv_only",
    "norm_only",
    "untrained",
)
ALL_METHODS = ("scratch", "random", "learngene", "learngene_ewc", "first", "longest_prefix", "full", "ncm")
ANCESTORS = ("sequential", "joint", "replay", "ewc")  # how a collective meets its base classes

# Switches of `released`, by name; later ones have the last word where two replace the same step.
DEFECT_NAMES = ("double_softmax", "labels_reused", "exact_copies", "bn_gap", "signed_threshold", "fixed_layers",
                "epoch_ewc", "zero_ewc", "rebuilt_optimiser", "leak", "augmented_test")  # fmt: skip

# fmt: off
_CIFAR = {"data": "cifar100", "source_images": 0, "held_out_images": 0, "support_pool": 0, "query_images": 0,
          "shift": 4, "flip": True}
_PAPER = {**_CIFAR, "n_source_tasks": 50, "source_way": 5, "source_draw": "overlap", "width_divisor": 1,
          "hidden": (1024, 1024), "dropout": 0.5, "growth_start": 1, "epochs": 100, "first_task_epochs": 100,
          "learning_rate": 0.001, "schedule": "constant", "individual_batch": 32, "individual_rate": 0.005,
          "individual_schedule": "constant", "individual_hidden": (1024, 1024), "shots": (10, 20),
          "n_target_tasks": 60, "threads": 0}
# What a data source changes in every preset, where nothing else is asked for.
DATA: types.MappingProxyType[str, dict[str, Any]] = types.MappingProxyType({
    "glyphs": {"flip": False, "shift": 3},
    "cifar100": {"flip": True, "shift": 4},
    "imagenet100": {"image_size": 84, "flip": True, "shift": 8},  # released: 84 px
    "cub200": {"image_size": 84, "flip": True, "shift": 8},
    "folder": {"flip": True},
})
PRESETS: types.MappingProxyType[str, dict[str, Any]] = types.MappingProxyType({
    # tests: the whole chain in at most 2 minutes; results stay at chance and mean nothing
    "smoke": {"source_images": 64, "held_out_images": 16, "support_pool": 40, "query_images": 20, "n_source_tasks": 4,
              "source_way": 4, "width_divisor": 16, "epochs": 3, "first_task_epochs": 3, "batch_size": 32,
              "fisher_images": 32, "null_networks": 3, "n_target_tasks": 4, "n_inits": 1,
              "individual_epochs": 10, "atlas_tasks": 2, "atlas_pseudo_tasks": 2, "atlas_inits": 1, "atlas_epochs": 5,
              "tune_tasks": 2, "tune_rates": (0.01, 0.05), "tune_ewc": (1.0,)},
    # teaching; these are the defaults of Config. Its learning rate and EWC strength: `learngene tune` on 12 pseudo-tasks of
    # the open-world classes (seed 0) found no rate clearly better than 0.02 for any method, and no difference between the
    # strengths 1, 10 and 100; one rate for all methods keeps the comparison clean
    "lecture": {},
    # real images without a GPU: a quarter of the paper's widths, fewer tasks and epochs
    "cifar-cpu": {**_CIFAR, "n_source_tasks": 20, "source_way": 5, "source_draw": "overlap", "width_divisor": 4,
                  "epochs": 8, "first_task_epochs": 16, "individual_batch": 32,
                  "n_target_tasks": 30, "n_inits": 1, "record_every": 4,
                  # 8 pseudo-tasks of the open-world classes, 10 shots, seed 0: no method clearly better at 0.01 or 0.05
                  # than at the common 0.02, no difference between the strengths 1 and 10
                  "individual_ewc": 10.0,
                  # on 4 pseudo-tasks rates of 0.01 and 0.03 gave scratch and inherited blocks alike, 0.1 hurt both
                  "atlas_tasks": 16, "atlas_pseudo_tasks": 8, "atlas_inits": 2, "atlas_epochs": 15,
                  "control_ewc": (0.0, 1.0, 100.0), "control_l2": (0.01, 0.1, 1.0)},
    # the check against published values: one joint training on all 64 base classes, no sequence, no growth
    "cifar-joint": {**_CIFAR, "n_source_tasks": 1, "source_way": 64, "width_divisor": 4, "growth": "none",
                    "first_task_epochs": 12, "batch_size": 128, "learning_rate": 0.1, "record_every": 100,
                    "null_networks": 2, "null_steps": 1, "n_target_tasks": 30, "n_inits": 1},
    # the paper's protocol in its correct form: appendix and released README; one GPU
    "paper": _PAPER,
    "paper-imagenet": {**_PAPER, "data": "imagenet100", "image_size": 84, "shift": 8, "threshold": 5e-4},
    # what the released scripts compute: 5 target tasks, all 600 images of a class in training, every defect
    "as-released": {**_PAPER, "official_split": False, "support_pool": 100, "n_target_tasks": 5, "n_inits": 1,
                    "defects": DEFECT_NAMES},
})
# fmt: on
