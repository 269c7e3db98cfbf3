"""What `learngene bench` runs in another environment: avalanche's strategies and easyfsl's nearest class mean.

    python -m venv .peers && .peers/bin/pip install avalanche-lib easyfsl

They ask for versions of their own, so they are installed beside the study and never into it. This file is run there, as
`python -m learngene_core.study.peers WHICH FOLDER DEVICE THREADS`. It says `ready` and its versions, then does what every line
of its input names and answers `done`: the clock is the caller's. Network, images and tasks come as arrays in FOLDER.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..network import ConvNet

Way = Callable[[], object]


def network(folder: Path, device: str) -> ConvNet:
    """The network whose shape and weights `folder` holds, in channels-last memory."""
    with np.load(folder / "weights.npz") as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    net = ConvNet.from_shape(json.loads((folder / "shape.json").read_text(encoding="utf-8")))
    net.load_state_dict(state)
    return net.to(device, memory_format=torch.channels_last)


def avalanche_ways(folder: Path, device: str) -> tuple[str, dict[str, Way]]:
    """Training one more experience (an epoch over the images, in memory) with avalanche's strategies Naive and EWC."""
    import avalanche
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import EWC, Naive

    with np.load(folder / "images.npz") as arrays:
        images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    stream = tensors_benchmark([(images, labels)] * 2, [(images[:2], labels[:2])], task_labels=[0, 0]).train_stream

    def way(strategy: type, **more: object) -> Way:
        net = network(folder, device)
        optimiser = torch.optim.SGD(net.parameters(), lr=plan["rate"], momentum=0.9, weight_decay=5e-4)
        about = {"train_mb_size": plan["batch"], "train_epochs": 1, "device": device, "evaluator": EvaluationPlugin()}
        trained = strategy(model=net, optimizer=optimiser, criterion=nn.CrossEntropyLoss(), **about, **more)
        trained.train(stream[0], num_workers=0)  # the experience that EWC holds on to
        return lambda: trained.train(stream[1], num_workers=0)

    ewc = {"ewc_lambda": plan["strength"], "mode": "online", "decay_factor": 1.0}
    return f"avalanche {avalanche.__version__}", {"naive": way(Naive), "ewc": way(EWC, **ewc)}


def easyfsl_ways(folder: Path, device: str) -> tuple[str, dict[str, Way]]:
    """Nearest class mean by cosine on features of length one, task after task; predicted classes go to `said.npy`."""
    from importlib.metadata import version

    from easyfsl.methods import SimpleShot

    with np.load(folder / "images.npz") as arrays:  # (tasks, way, shots, 3, h, w) and (tasks, way, queries, 3, h, w)
        support, query = (torch.from_numpy(arrays[name]) for name in ("support", "query"))
    net = network(folder, device).eval()
    net.forward = net.features
    ways, shots = support.shape[1:3]
    labels = torch.arange(ways).repeat_interleave(shots).to(device)

    @torch.no_grad()
    def ncm() -> None:
        few, said = SimpleShot(net, feature_normalization=2.0), []
        for known, asked in zip(support, query, strict=True):
            few.process_support_set(known.flatten(0, 1).to(device), labels)
            said.append(few(asked.flatten(0, 1).to(device)).argmax(1).cpu())
        np.save(folder / "said.npy", torch.stack(said).numpy())

    return f"easyfsl {version('easyfsl')}", {"ncm": ncm}


def main(which: str, folder: str, device: str, threads: str) -> None:
    """Do what lines of the input name, until it ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # the libraries print
    torch.set_num_threads(int(threads))
    try:
        name, ways = {"avalanche": avalanche_ways, "easyfsl": easyfsl_ways}[which](Path(folder), device)
    except ImportError as error:
        print(f"absent {error}", file=answers, flush=True)
        return
    print(f"ready {name} with torch {torch.__version__.split('+')[0]}", file=answers, flush=True)
    for line in sys.stdin:
        ways[line.strip()]()
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
