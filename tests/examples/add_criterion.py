"""A criterion of your own: from the gradient record to a score per layer, and the same for networks that know nothing."""

import numpy as np

from learngene_core import criteria
from learngene_core.record import Record


@criteria.criterion(
    "calming",
    inherit="low",
    source="this example",
    predicts="blocks whose gradients shrink most from the first source task to the last",
)
def calming(record: Record) -> criteria.Profile:
    """Gradient norm in the last task, relative to the first."""
    values, null = criteria.profile(record, "norm")  # (tasks, layers) and (untrained networks, tasks, layers)

    def ratio(norms: np.ndarray) -> np.ndarray:
        return norms[..., -1, :] / norms[..., 0, :]

    return ratio(values), ratio(null)


record = Record.load("runs/lecture")
table = criteria.score(record, "calming")
print(table[["layer", "score", "null", "z"]].to_string(index=False))
print("it chooses", criteria.best_block(table, 3))
print("untrained networks would choose", criteria.null_choices(record, "calming", 3))
