"""Rows of the speed table beside other libraries, which live in an environment of their own (see `peers`)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from ..collective import Collective
from ..config import Config
from ..data.division import divide, target_tasks
from ..data.images import load_images
from ..errors import StudyError, write_json
from ..ewc import fisher_diagonal
from ..fewshot import labels_of, nearest_class_mean
from ..network import ConvNet
from ..presets import PAPER_POOLS
from ..runs.machine import resolve
from ..tasks import ImageSet, TargetTask, generator
from ..training import channel_statistics, normalise
from .benchrows import BATCH, Epochs
from .timing import Row, Skipped, in_turn

INSTALL = "python -m venv .peers && .peers/bin/pip install avalanche-lib easyfsl"
FISHER = 200  # images, the default of `fisher_images`


class Peer:
    """Another environment's Python, running `peers`; its ways are called by name. Use in a `with`."""

    def __init__(self, python: Path, which: str, folder: Path, device: str, threads: int):
        self.command = [str(python), "-m", "learngene_core.study.peers", which, str(folder), device, str(threads)]
        self.which, self.name = which, which

    def __enter__(self) -> Peer:
        root = str(Path(__file__).parents[2])
        env = {**os.environ, "PYTHONPATH": root}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, env=env, text=True, **pipes)  # noqa: S603 (the user's own Python)
        word, _, self.name = self.process.stdout.readline().strip().partition(" ")
        if word != "ready":
            self.__exit__()
            raise Skipped(f"{self.which} is not in {self.command[0]} ({self.name or 'it ended'}); {INSTALL}")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

    def __call__(self, way: str) -> None:
        """Let it do one of its ways, and wait."""
        print(way, file=self.process.stdin, flush=True)
        if self.process.stdout.readline().strip() != "done":
            raise StudyError(f"{self.name} ended in the middle of {way!r}; run `{' '.join(self.command)}` to see why")


def python_of(peers: Path) -> Path:
    """The Python of the environment `peers`. Raises Skipped, with the command that makes one, where there is none."""
    for name in ("bin/python", "Scripts/python.exe"):
        if (peers / name).is_file():
            return peers / name
    raise Skipped(f"there is no environment {peers}; {INSTALL}")


def hand_over(net: ConvNet, folder: Path, **arrays: np.ndarray) -> None:
    """Write a network and images where a peer reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "shape.json", net.shape)
    np.savez(folder / "weights.npz", **{name: t.detach().cpu().numpy() for name, t in net.state_dict().items()})
    np.savez(folder / "images.npz", **arrays)


def avalanche_rows(
    cfg: Config, peers: Path, home: Path, *, n: int = 500, rounds: int = 7, divisor: int = 2
) -> Iterator[Row]:
    """An epoch of one more task, plain and with EWC and its Fisher information; the same network, images and batches' size."""
    python, machine = python_of(peers), resolve(cfg)
    epochs = Epochs(cfg, machine, n, divisor)
    hand_over(epochs.net, home, images=epochs.floats.cpu().contiguous().numpy(), labels=epochs.labels.cpu().numpy())
    plan = {"batch": BATCH, "rate": epochs.recipe.rate, "strength": 1e-3}
    (home / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    normal = epochs.recipe.mean, epochs.recipe.std

    def ewc() -> None:
        epochs.ours(ewc=True)
        fisher_diagonal(epochs.net, epochs.images[:FISHER], None, *normal, generator(0, "bench fisher"))

    with Peer(python, "avalanche", home, machine.device, machine.threads) as peer:
        ways = {
            "naive": epochs.ours,
            "ewc": ewc,
            "their naive": lambda: peer("naive"),
            "their ewc": lambda: peer("ewc"),
        }
        in_turn(ways, 1, machine.threads)
        seconds = in_turn(ways, rounds, machine.threads)
        yield Row("avalanche, Naive", "an epoch of `fit`", peer.name, seconds["naive"], seconds["their naive"])
        ours = f"an epoch with EWC, then the Fisher of {FISHER} images"
        yield Row("avalanche, EWC", ours, f"{peer.name}, then the Fisher of all", seconds["ewc"], seconds["their ewc"])


def easyfsl_rows(cfg: Config, peers: Path, home: Path, *, n_tasks: int = 10, rounds: int = 7) -> Iterator[Row]:
    """Nearest class mean on the target tasks of the lecture preset. Raises StudyError where the predictions differ: then two
    different things were timed."""
    python, own = python_of(peers), Config.preset("lecture", n_target_tasks=n_tasks, device=cfg.device)
    machine, images = resolve(own), load_images(own.data)
    tasks = target_tasks(images, divide(images, own), own)
    col = _untrained(images, own)
    parts = {
        "support": np.stack([_shown(images, col, t.support[:, : own.shots[0]]) for t in tasks]),
        "query": np.stack([_shown(images, col, t.query) for t in tasks]),
    }
    hand_over(col.model, home, **parts)
    found: dict[str, list[str]] = {}

    def ours() -> None:
        found["hits"] = nearest_class_mean(col, images, tasks, own, machine.device)["hits"].tolist()

    with Peer(python, "easyfsl", home, machine.device, machine.threads) as peer:
        ways = {"ours": ours, "theirs": lambda: peer("ncm")}
        in_turn(ways, 1, machine.threads)
        seconds = in_turn(ways, rounds, machine.threads)
        different = sum(a != b for a, b in zip(found["hits"], _hits(home, tasks), strict=True))
        if different:
            raise StudyError(f"{peer.name} predicts otherwise on {different} of {n_tasks} tasks: nothing is compared")
        text = f"nearest class mean, {n_tasks} tasks, equal predictions"
        yield Row("easyfsl", text, peer.name, seconds["ours"], seconds["theirs"])


def _untrained(images: ImageSet, cfg: Config) -> Collective:
    """A collective that knows nothing; what nearest class mean costs does not depend on that."""
    net = ConvNet(cfg.final_widths, PAPER_POOLS, 2, cfg.image_size, generator=generator(0, "net"))
    net.to(memory_format=torch.channels_last)
    empty: Mapping = {}
    return Collective(net, (), *channel_statistics(images.images), {**empty}, {**empty}, None, None)


def _shown(images: ImageSet, col: Collective, indices: np.ndarray) -> np.ndarray:
    """Normalised images (way, k, 3, h, w)."""
    shown = normalise(images.images[torch.from_numpy(indices).flatten()], col.mean, col.std)
    return shown.contiguous().unflatten(0, indices.shape).numpy()


def _hits(home: Path, tasks: list[TargetTask]) -> list[str]:
    """The hits of each class, as results.csv writes them, of what a peer has said."""
    said = torch.from_numpy(np.load(home / "said.npy"))
    return [
        " ".join(str(int(h)) for h in (row == labels_of(task.query)).view(len(task.query), -1).sum(1))
        for row, task in zip(said, tasks, strict=True)
    ]
