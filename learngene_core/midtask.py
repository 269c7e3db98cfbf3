"""Where the collective stands inside a source task: saved at the end of epochs, so that a stop costs seconds and changes nothing.

What a task starts from is made again from the task before (growth, Fisher and all: every draw has its own stream); only what
its epochs have changed is kept: weights, statistics, momentum, and what was measured. Two states are kept, the newest and the
one before it; a damaged one is noticed by its hash.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .files import StudyError, atomic, file_hash, read_json, say, write_json
from .network import ConvNet

SECONDS = 20.0  # between two states
SHARE = 0.03  # of the time that saving may take: where a state takes longer, states are rarer


class MidTask:
    """The states of one source task, in its folder: `epoch_NNN.safetensors` and the list `epochs.json`, newest first."""

    def __init__(self, folder: Path, stage_hash: str):
        self.folder, self.hash = folder, stage_hash
        self._saved, self._took = time.monotonic(), 0.0

    @property
    def due(self) -> bool:
        """Whether it is time for another state."""
        return time.monotonic() - self._saved >= max(SECONDS, self._took / SHARE)

    def save(self, model: ConvNet, optimiser: torch.optim.Optimizer, rows: list[dict], entries: list[dict]) -> None:
        """Keep the state after the last epoch in `rows` (of the history); entries: its record so far, an entry per epoch."""
        from safetensors.torch import save_file

        start = time.monotonic()
        tensors = {f"model/{n}": t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
        tensors.update({f"momentum/{n}": t.cpu().contiguous() for n, t in momentum_of(model, optimiser).items()})
        for part in ("counts", "zeros"):
            tensors[f"record/{part}"] = torch.from_numpy(np.stack([entry[part] for entry in entries]))
        about = {
            "stage_hash": self.hash,
            "rows": rows,
            "record": [{key: entry[key] for key in ("task", "epoch", "rows")} for entry in entries],
        }
        path = self.folder / f"epoch_{rows[-1]['epoch']:03d}.safetensors"
        with atomic(path) as temporary:
            save_file(tensors, temporary, {"about": json.dumps(about)})
        mine = {"file": path.name, "bytes": path.stat().st_size, "sha256": file_hash(path)}
        kept = [mine, *(state for state in self._listed() if state["file"] != path.name)][:2]
        write_json(self.folder / "epochs.json", kept)
        self._remove_all_but({state["file"] for state in kept})
        self._saved = time.monotonic()
        self._took = self._saved - start

    def load(self, model: ConvNet, optimiser: torch.optim.Optimizer) -> tuple[list[dict], list[dict]]:
        """Put the newest whole state into `model` and `optimiser`; its history rows and record entries ([], []: none is there).

        A damaged state is said, and the one before it (or the task's start) taken.
        """
        for state in self._listed():
            try:
                tensors, about = self._read(state)
            except StudyError as error:
                say(f"collective: {error}; going on from the state before it")
                continue
            if about["stage_hash"] != self.hash:
                continue
            place(tensors, model, optimiser)
            counts, zeros = (tensors[f"record/{part}"].numpy() for part in ("counts", "zeros"))
            entries = [{**e, "counts": counts[i], "zeros": zeros[i]} for i, e in enumerate(about["record"])]
            return about["rows"], entries
        return [], []

    def clear(self) -> None:
        """The task is finished and saved: its states are no longer needed."""
        (self.folder / "epochs.json").unlink(missing_ok=True)
        self._remove_all_but(set())

    def _remove_all_but(self, kept: set[str]) -> None:
        for path in self.folder.glob("epoch_*.safetensors"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _listed(self) -> list[dict[str, Any]]:
        path = self.folder / "epochs.json"
        try:
            listed = read_json(path) if path.exists() else []
            good = [s for s in listed if Path(s["file"]).name == s["file"] and isinstance(s["sha256"], str)]
        except (StudyError, TypeError, KeyError):
            say(f"collective: {path} is damaged; the task begins anew")
            return []
        return good

    def _read(self, state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        from safetensors import safe_open

        path = self.folder / state["file"]
        if not path.is_file():
            raise StudyError(f"{path} is missing")
        if path.stat().st_size != state["bytes"] or file_hash(path) != state["sha256"]:
            raise StudyError(f"{path} is damaged (its hash is not the one noted)")
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 (not a dict)


def momentum_of(model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Momentum buffers by parameter name; empty where there is none yet."""
    buffers = {
        n: optimiser.state[p].get("momentum_buffer") for n, p in model.named_parameters() if p in optimiser.state
    }
    return {n: buffer for n, buffer in buffers.items() if buffer is not None}


def place(tensors: dict[str, Tensor], model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Copy saved weights ("model/...") and momentum ("momentum/...") to where they belong."""
    model.load_state_dict({n[len("model/") :]: t for n, t in tensors.items() if n.startswith("model/")})
    give_momentum({n[len("momentum/") :]: t for n, t in tensors.items() if n.startswith("momentum/")}, model, optimiser)


def give_momentum(buffers: dict[str, Tensor], model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Let the optimiser begin with copies of these momentum buffers, by parameter name."""
    named = dict(model.named_parameters())
    for name, buffer in buffers.items():
        optimiser.state[named[name]]["momentum_buffer"] = torch.empty_like(named[name]).copy_(buffer).detach()
