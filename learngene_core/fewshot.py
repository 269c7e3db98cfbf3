"""Few-shot reconstruction: individual models, their controls and baselines, on identical tasks, weights and batches.

Two families, never compared across: `light` (four fresh blocks, the learngene, a fresh head: the paper's form) and
`same_shape` (the collective's own shape, any blocks inherited, the rest fresh). Every individual starts from its own copy
of the initial weights that belong to its task and number; nothing passes from one target task to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from .arms import arms_of
from .checkpoints import Collective
from .config import Config
from .division import TargetTask
from .files import StudyError, say
from .images import ImageSet
from .individuals import Reconstruction
from .learngene import Learngene
from .parts import Parts
from .runs import Run


def evaluate_few_shot(
    gene: Learngene,
    col: Collective,
    imgs: ImageSet,
    tgt: Sequence[TargetTask],
    cfg: Config,
    *,
    methods: Sequence[str] | None = None,
    run: Run | None = None,
) -> pd.DataFrame:
    """Train and test every method on every target task; one row per individual (results.csv), accuracy in percent.

    With a run, `results.csv` and `curves.csv` (mean training loss per epoch) are written, or loaded when they are there.

    Raises StudyError for EWC with a learngene that has no Fisher, or a learngene that does not fit.
    """
    if run is not None:
        run.check("reconstruct", cfg)
        if methods is not None and set(methods) != set(cfg.methods):
            raise StudyError(
                "a run keeps the methods of its configuration; set methods there, or evaluate without a run"
            )
    if run is not None and run.done("reconstruct"):
        say("reconstruct: found in the run folder, loaded")
        return run.read_table("results.csv")
    methods = cfg.methods if methods is None else methods
    work = Reconstruction(gene, col, imgs, cfg, arms_of(cfg, methods), run)
    if run is None:
        return work.table(tgt, "ncm" in methods)
    with run.computing("reconstruct", ["results.csv", "curves.csv"]):
        parts = Parts(run, "reconstruct")
        results = work.table(tgt, "ncm" in methods, parts)
        run.write_table("results.csv", results)
        run.write_table("curves.csv", work.curves)
        parts.clear()
    trained = int((results["family"] != "none").sum())
    say(f"reconstruct: {trained} individuals trained and tested on {len(tgt)} target tasks, saved")
    return run.read_table("results.csv")  # what a second call will see
