"""Readable names: what figures write in titles and legends where tables have code words. A test looks for every code word."""

from __future__ import annotations

METHOD_LABELS: dict[str, str] = {
    "scratch": "scratch",
    "random": "random blocks",
    "learngene": "learngene",
    "learngene_ewc": "learngene + EWC",
    "first": "first blocks",
    "longest_prefix": "longest prefix",
    "recommended": "recommended blocks",
    "full": "all blocks",
    "ncm": "nearest class mean",
}
FAMILY_LABELS: dict[str, str] = {"light": "light", "same_shape": "same shape", "none": "no training"}
GROUP_LABELS: dict[str, str] = {"base": "base", "open_world": "open-world", "novel": "novel"}
DATA_LABELS: dict[str, str] = {
    "glyphs": "glyphs",
    "cifar100": "CIFAR-100",
    "imagenet100": "ImageNet-100",
    "cub200": "CUB-200",
    "folder": "own images",
}
ANCESTOR_LABELS: dict[str, str] = {
    "sequential": "task after task",
    "joint": "all classes at once",
    "replay": "task after task, with replay",
    "ewc": "task after task, with EWC",
}

# Criteria: name, and the quantity on the axis. What is not listed is written without its underscores.
CRITERION_LABELS: dict[str, str] = {
    "released": "entries above the threshold",
    "released@0.0005": "entries above 5e-4",
    "released@5e-10": "entries above 5e-10",
    "released_cv": "spread over tasks",
    "released_tv": "change from task to task",
    "released_relative": "entries above a relative threshold",
    "relative_norm": "relative gradient norm",
    "scaled_norm": "scaled gradient norm",
    "snr": "gradient signal to noise",
    "fisher": "Fisher information",
    "fisher_scaled": "scaled Fisher information",
    "weight_change": "weight change",
    "reinit": "loss when set back",
    "cka_drift": "feature drift (CKA)",
    "separability": "class separability",
    "recommended": "gain on pseudo-tasks",
    "transplant": "transplant separability",
    "logme": "LogME",
    "h_score": "H-score",
    "transrate": "TransRate",
    "leep": "LEEP",
    "pseudo_separability": "separability on pseudo-tasks",
    "covariance_cka": "CKA of covariances",
    "target_rgn": "relative gradient norm on the target",
    "target_snr": "signal to noise on the target",
    "depth": "deep blocks first",
    "shallow": "early blocks first",
    "size": "large blocks first",
    "small": "small blocks first",
    "random": "random scores",
}
SCORE_LABELS: dict[str, str] = {
    "released": "share of entries > threshold",
    "released@0.0005": "share of entries > 5e-4",
    "released@5e-10": "share of entries > 5e-10",
    "released_cv": "sd / mean over tasks",
    "released_tv": "mean change from task to task",
    "released_relative": "share of |entries| > 1 / (|w| sqrt n)",
    "relative_norm": "gradient norm / weight norm",
    "scaled_norm": "gradient norm × weight norm",
    "snr": "mean² / variance over images",
    "fisher": "Fisher information per weight",
    "fisher_scaled": "Fisher × weights² per weight",
    "weight_change": "mean angle (degrees)",
    "reinit": "accuracy lost (points)",
    "cka_drift": "1 - CKA between tasks",
    "separability": "nearest class mean (%)",
}

CONTROL_LABELS: dict[str, str] = {
    "inherit": "the real block",
    "scratch": "nothing (scratch)",
    "shuffled_inputs": "first inputs shuffled",
    "shuffled_inner": "inner wiring shuffled",
    "spectrum_matched": "random, same singular values",
    "moment_matched": "random, same mean and sd",
    "conv_only": "convolutions alone",
    "norm_only": "batch norm alone",
    "untrained": "an untrained network's block",
    "frozen": "the real block, frozen",
    "ancestor:single_task": "ancestor of a single task",
    "ancestor:joint": "ancestor of all classes at once",
    "ancestor:permuted": "ancestor with permuted labels",
}
HOLD_LABELS: dict[str, str] = {"ewc": "held by EWC", "l2": "held by L2"}

OPEN_SCORE_LABELS: dict[str, str] = {
    "msp": "largest probability",
    "maxlogit": "largest logit",
    "energy": "energy",
    "openmax": "OpenMax",
    "ncm": "nearest class mean",
    "mahalanobis": "Mahalanobis",
    "relative_mahalanobis": "relative Mahalanobis",
}
WAY_LABELS: dict[str, str] = {
    "before": "before",
    "imprinted": "joined, not trained",
    "nothing": "trained, no protection",
    "ewc": "trained with EWC",
    "exemplars": "trained with exemplars",
    "rehearsed": "exemplars only (control)",
    "ncm": "nearest class mean",
    "all_given": "trained, all classes given",
    "ncm_all_given": "nearest class mean, all given",
}
WAY_GROUPS: dict[str, tuple[str, ...]] = {
    "no protection": ("before", "imprinted", "nothing"),
    "EWC": ("ewc",),
    "exemplars": ("rehearsed", "exemplars", "ncm"),
    "ideal: all labels": ("all_given", "ncm_all_given"),
}

DEFECT_LABELS: dict[str, str] = {
    "none": "none",
    "double_softmax": "softmax taken twice",
    "labels_reused": "every task labelled from 0",
    "exact_copies": "new channels are exact copies",
    "bn_gap": "batch norm of new channels left unset",
    "signed_threshold": "entries counted with their sign",
    "epoch_ewc": "EWC towards its own last epoch",
    "zero_ewc": "EWC penalty always zero",
    "rebuilt_optimiser": "optimiser new every epoch",
    "fixed_layers": "last layers, written by hand",
    "leak": "weights leak between tasks",
    "augmented_test": "test images augmented",
    "all": "all together",
}


def criterion_label(name: str) -> str:
    """A criterion as figures name it; one of a reader's own without underscores."""
    return CRITERION_LABELS.get(name, name.replace("_", " "))


def control_label(name: str) -> str:
    """A control as figures name it: "ewc:100" -> "held by EWC (100)"."""
    if name in CONTROL_LABELS:
        return CONTROL_LABELS[name]
    kind, _, strength = name.partition(":")
    if kind == "ancestor":
        return f"ancestor: {strength.replace('_', ' ')}"
    return f"{HOLD_LABELS[kind]} ({strength})" if kind in HOLD_LABELS else name.replace("_", " ")
