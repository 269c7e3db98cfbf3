"""Every figure of the package once, drawn from the small tables of `figuretables`: name -> a call that draws it."""

import numpy as np
import pandas as pd
from figuretables import (
    COLLECTIVE,
    INDIVIDUAL,
    LAYERS,
    make_across,
    make_ancestors,
    make_atlas,
    make_claims,
    make_controls,
    make_curves,
    make_gains,
    make_history,
    make_images,
    make_learning,
    make_openworld,
    make_record,
    make_released,
    make_results,
    make_scores,
    make_selection,
    pictures,
)

from learngene_core.analysis import statistics
from learngene_core.config import Config
from learngene_core.criteria import score_all
from learngene_core.explorer import blocks as atlasexplore
from learngene_core.explorer import openworld as openexplore
from learngene_core.explorer.threshold import draw_record
from learngene_core.figures import atlas as atlasfigures
from learngene_core.figures import claims as claimfigures
from learngene_core.figures import openworld, theory
from learngene_core.figures import selection as selectionfigures
from learngene_core.figures.ancestors import choice_costs, gain_against_quality, light_atlas
from learngene_core.figures.comparison import comparison, gain_bars, paired_dots, training_curves
from learngene_core.figures.data import division_overview, episode, image_rows, task_pictures, task_table
from learngene_core.figures.networks import growth, marked_network, networks_side_by_side
from learngene_core.figures.sweep import over_axis
from learngene_core.figures.training import (
    accuracy_matrix,
    criteria_panel,
    gradient_sizes,
    layer_task_heatmap,
    learning_curves,
    profile_with_null,
    profiles_with_null,
)
from learngene_core.theory import theorem

CFG = Config.preset("lecture", threshold=5e-10)  # the entries of `make_record` are small


def make_all():
    """Every figure of the package once: name -> its axes."""
    scores = score_all(make_record(), CFG)
    released = scores[scores["criterion"] == "released"]
    matrix = make_history().query("phase == 'test'").pivot(index="task", columns="on_task", values="accuracy")
    groups = {"base": list("abcdef"), "open_world": list("gh"), "novel": list("ij")}
    tasks = [{"number": 1, "classes": ["latin-small-a", "digit-one"]}, {"number": 2, "classes": ["digit-one", "omega"]}]
    paired = statistics.paired_table(make_results(shots=(10, 20)))
    return {
        "image_rows": lambda: image_rows(pictures(3, 5), ["a", "latin-capital-b", "c"]),
        "episode": lambda: episode(pictures(5, 1), pictures(5, 6), ["a", "cyrillic-capital-hard-sign", *"cde"]),
        "division_overview": lambda: division_overview(groups, dict.fromkeys("aei", "vowel")),
        "task_table": lambda: task_table(tasks),
        "task_pictures": lambda: task_pictures(pictures(3, 5), [1, 2, 3]),
        "growth": lambda: growth(COLLECTIVE),
        "networks_side_by_side": lambda: networks_side_by_side(COLLECTIVE[-1], INDIVIDUAL, ("conv5", "conv6")),
        "learning_curves": lambda: learning_curves(make_history()),
        "accuracy_matrix": lambda: accuracy_matrix(matrix, chance=20),
        "gradient_sizes": lambda: gradient_sizes(make_record().table),
        "layer_task_heatmap": lambda: layer_task_heatmap(np.ones((3, 6)), LAYERS, "share", chosen=LAYERS[-2:]),
        "profile_with_null": lambda: profile_with_null(released, chosen=LAYERS[:2]),
        "criteria_panel": lambda: criteria_panel(scores, {"released": LAYERS[-3:]}),
        "profiles_with_null": lambda: profiles_with_null({"one": released, "two": released}, {"one": LAYERS[:2]}),
        "gain_bars": lambda: gain_bars(make_gains()),
        "training_curves": lambda: training_curves(make_curves()),
        "comparison": lambda: comparison(paired),
        "paired_dots": lambda: paired_dots(make_results(), "light", "learngene"),
        "draw_record": lambda: draw_record(make_record(), threshold=1e-6),
    }


DRAWING = make_all()
MARKS = {"released": (11, 13), "recommended": (1, 7)} | atlasfigures.ends(13, 3)
ATLAS = {
    "map of 13": lambda: atlasfigures.atlas_map(make_atlas(), marks=MARKS),
    "map of 8": lambda: atlasfigures.atlas_map(make_atlas(8), marks=atlasfigures.ends(8, 3)),
    "coarse map": lambda: atlasfigures.atlas_map(make_atlas(coarse=True), marks=MARKS | {"fisher": (5, 9)}),
    "map of 4": lambda: atlasfigures.atlas_map(make_atlas(4), marks=atlasfigures.ends(4, 2)),
    "margins": lambda: atlasfigures.margins(make_atlas(), budget=50, marks=MARKS),
    "coarse margins": lambda: atlasfigures.margins(make_atlas(coarse=True), budget=50, marks=MARKS),
    "score": lambda: atlasfigures.score_against_gain(make_scores(), make_atlas(), "released"),
    "selection": lambda: selectionfigures.selection_figure(make_selection()),
    "all of the selection": lambda: selectionfigures.selection_figure(make_selection(), every=True),
    "panels": lambda: selectionfigures.score_panels(make_scores(), chosen={"released": (11, 13)}),
    "all panels": lambda: selectionfigures.score_panels(make_scores(), every=True),
    "controls": lambda: claimfigures.controls_figure(make_controls()),
    "controls without a gain": lambda: claimfigures.controls_figure(make_controls(gain=0.0)),
    "claims": lambda: claimfigures.claims_figure(make_claims()),
    "released": lambda: claimfigures.released_figure(make_released()),
    "choice": lambda: atlasexplore.draw_choice(make_atlas(), make_scores()),
}

PIXELS = pictures(1, 12)[0]
CAPTIONS = ["a", "cyrillic-capital-zhe\n→ greek-small-zeta", "aquarium fish of great length"]
SUMMARY = pd.DataFrame({"m": [50, 250], "chance": 80.0})
SUMMARY = SUMMARY.assign(**{f"{n}{end}": 50.0 for n in theory.BOUND_LINES for end in ("", "_low", "_high")})
BY_TASK = pd.DataFrame({"m": 50, "chance": 80.0, "target_task": [1, 2]}).assign(
    **dict.fromkeys(theory.BOUND_LINES, 40.0)
)
RISKS = theorem.risk_table(theorem.simulate(d=12, k=2, ms=(4, 9), ts=(1, 4), n_repetitions=3))
OPEN = {
    "score_distributions": lambda: openworld.score_distributions(make_images()),
    "roc_with_band": lambda: openworld.roc_with_band(make_images(), "msp", n_resamples=9),
    "oscr_curves": lambda: openworld.oscr_curves(make_images()),
    "over_tasks": lambda: openworld.over_tasks(make_openworld()),
    "learning": lambda: openworld.learning(make_learning()),
    "gallery": lambda: openworld.gallery({"some": PIXELS[:3], "none": PIXELS[:0]}, {"some": CAPTIONS}),
    "draw_threshold": lambda: openexplore.draw_threshold(make_images(), PIXELS),
    "risk_curves": lambda: theory.risk_curves(RISKS),
    "gain_map": lambda: theory.gain_map(RISKS),
    "norm_figure": lambda: theory.norm_figure(theorem.norm_terms(c=4.0, seed=0)),
    "term_figure": lambda: theory.term_figure(theorem.term_over_tasks(seed=0)),
    "bound_curves": lambda: theory.bound_curves(SUMMARY),
    "bound_pair": lambda: theory.bound_pair(SUMMARY, SUMMARY),
    "bound_tasks": lambda: theory.bound_tasks(BY_TASK),
    "marked_network": lambda: marked_network(COLLECTIVE[-1], COLLECTIVE[-1]["names"][-2:]),
}

GROWTH = ("growth on", "growth off")
LIGHT = pd.DataFrame(
    [(kind, first, last, 5.0 * k + last, last - 1.0, last + 9.0, 20)
     for k, kind in enumerate(("sequential", "joint")) for first, last in ((1, 1), (1, 2), (1, 9), (2, 4), (11, 13))],
    columns=["ancestor", "first", "last", "gain", "gain_low", "gain_high", "n"],
)  # fmt: skip
COSTS = pd.DataFrame(
    [("released", "sequential", -14.0, -16.0, -12.0, 5), ("released", "joint", -20.0, -22.0, -18.0, 5),
     ("h_score", "joint", 0.0, 0.0, 0.0, 5)],
    columns=["criterion", "ancestor", "cost", "cost_low", "cost_high", "n"],
)  # fmt: skip
MANY = {
    "sweep": lambda: over_axis(*make_across(), "shots"),
    "sweep of one place": lambda: over_axis(*make_across((10,)), "shots"),
    "sweep of settings": lambda: over_axis(
        *make_across((8, 16), "n_source_tasks", ("growth on", "growth off")), "n_source_tasks"
    ),
    "sweep over blocks": lambda: over_axis(*make_across(("conv1-conv3", "conv11-conv13"), "inherited"), "inherited"),
    "ancestors": lambda: gain_against_quality(make_ancestors()),
    "light atlas": lambda: light_atlas(LIGHT),
    "choice costs": lambda: [choice_costs(COSTS)],
}
