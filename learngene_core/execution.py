"""How a step is executed: device, threads, precision, memory format, captured steps, the size of a stack. All of it in one place.

A `Machine` (see `config`) says what is wanted; nothing here changes what is computed, only speed and rounding. Weights, their
gradients, losses, statistics, penalties and the gradient record are 32-bit in every precision, and evaluation is too:

- `fp32`: 32 bits throughout, on every device;
- `tf32`: convolutions and products on a CUDA device take operands of 10 bits (the device's TF32);
- `bf16`: the forward pass of a training step, and so its backward pass, in bfloat16 (`torch.autocast`).
"""

from __future__ import annotations

import collections
import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .config import Config, Machine
from .errors import StudyError
from .presets import PAPER_POOLS

WARM = 3  # steps of a shape taken eagerly before it is captured: libraries choose their kernels, momentum is born
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of malloc.h
LARGEST_KEPT, MOST_KEPT = (
    32 << 20,
    256 << 20,
)  # bytes: of a piece (the most that every glibc takes), and of all that is free
LARGEST_STACK = 128  # networks; larger ones gain nothing more where launching no longer limits


# what there is ---------------------------------------------------------------------------------------------------------
def here() -> Machine:
    """A sensible default: the GPU where there is one, else one thread and up to two workers on the CPU."""
    if torch.cuda.is_available():
        return Machine("cuda", stack=64)
    return Machine(workers=min(2, os.cpu_count() or 1))


def available(device: str) -> bool:
    """Whether a device ("cpu", "cuda", "cuda:1", "mps") can be used here."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return there.get(device.split(":")[0], False)


def check_precision(precision: str, device: str) -> None:
    """Check that this device has instructions for a precision: emulated, it would be many times slower than fp32.

    Raises StudyError with the way out.
    """
    kind = device.split(":")[0]
    if precision == "fp32":
        return
    if precision == "tf32" and kind != "cuda":
        raise StudyError(f"precision=tf32 is for CUDA devices, and this is {device!r}; leave it out, or use bf16")
    if precision == "bf16" and not _has_bfloat16(kind):
        lacks = {"cpu": "processor has neither avx512_bf16 nor amx", "cuda": "GPU has no bfloat16 arithmetic"}
        reason = lacks.get(kind, f"device {device!r} is not supported for it")
        raise StudyError(f"precision=bf16 would only be slow here: this {reason}; leave it out, or use precision=fp32")


def _has_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8  # torch itself also counts what it emulates
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # both are as old as the torch we need, or absent
    return kind == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def device_memory(device: str) -> int:
    """Bytes of memory that are free on a GPU; 4 GB where the system does not say (MPS)."""
    return torch.cuda.mem_get_info(torch.device(device))[0] if device.startswith("cuda") else 4 << 30


def stack_size(cfg: Config, free: int) -> int:
    """Most individuals of the collective's final shape that train as one in half of `free` bytes: weights, gradients, momentum
    and two spare copies, and three tensors for every activation of a batch (convolution, batch norm, ReLU)."""
    widths, side, activations = cfg.final_widths, cfg.image_size, 0
    for number, width in enumerate(widths, 1):
        activations += width * side**2
        side = side // 2 if number in PAPER_POOLS else side
    parameters = sum(9 * a * b for a, b in zip((3, *widths), widths, strict=False))
    each = 4 * (5 * parameters + 3 * cfg.individual_batch * activations)
    return max(1, min(LARGEST_STACK, int(free / 2 / each)))


# what a step needs -----------------------------------------------------------------------------------------------------
def use(machine: Machine) -> None:
    """Apply threads, precision of a GPU's products and deterministic operations to this process."""
    torch.set_num_threads(machine.threads)
    keep_memory()
    if machine.device.startswith("cuda"):  # torch's own default lets convolutions round to 10 bits
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = machine.precision == "tf32"
    if machine.deterministic and machine.device != "cpu":  # on a CPU equal machines give equal bits anyway
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)


@functools.cache
def keep_memory() -> bool:
    """Let this process keep what a step frees for the next one, instead of giving it back to the system and asking again.

    glibc's own thresholds, where there is glibc and nobody has set them (`MALLOC_..._`, `GLIBC_TUNABLES`); whether it was done.
    Once in a process, for all its threads. Individuals of the lecture preset then meet a fifth of the page faults: 1.04 times as
    fast in processor time (1.01 to 1.08, 14 pairs in turn). The peak of memory is the same, and about 40 MB stay with the
    process afterwards.
    """
    told = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if told or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return all([mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT), mallopt(M_TRIM_THRESHOLD, MOST_KEPT)])


def layout(machine: Machine) -> torch.memory_format:
    """Memory format of the networks."""
    return torch.channels_last if machine.channels_last else torch.contiguous_format


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give the optimiser a learning rate; where it holds it as a tensor, which captured steps read, that tensor changes."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def logits_of(model: nn.Module, x: Tensor, machine: Machine) -> Tensor:
    """Logits of normalised images in 32 bits, the forward pass in bfloat16 if so asked."""
    if machine.precision != "bf16":
        return model(x)
    with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):  # a cache would outlive a captured step
        return model(x).float()


Inputs = TypeVar("Inputs", bound=NamedTuple)
Step = Callable[[Inputs, bool], tuple[Tensor, ...]]
"""A training step: (its batch, a named tuple of tensors or None; whether the recorder looks) -> what it found."""


def captured(step: Step) -> Step:
    """`step` as CUDA graphs, one for every size of a batch and for looking or not, captured once and then replayed.

    The first steps of each are taken eagerly, on a stream of their own as capturing asks for; they are real steps.
    """
    graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Inputs, tuple[Tensor, ...]]] = {}
    warmed: collections.Counter[tuple[int, bool]] = collections.Counter()

    def take(batch: Inputs, looking: bool) -> tuple[Tensor, ...]:
        key = len(batch[0]), looking
        if key not in graphs and warmed[key] < WARM:
            warmed[key] += 1
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                found = step(batch, looking)
            torch.cuda.current_stream().wait_stream(aside)
            return found
        if key not in graphs:
            graph, inputs = torch.cuda.CUDAGraph(), type(batch)(*(t if t is None else t.clone() for t in batch))
            with torch.cuda.graph(graph):  # nothing runs here
                outputs = step(inputs, looking)
            graphs[key] = graph, inputs, outputs
        graph, inputs, outputs = graphs[key]
        for there, new in zip(inputs, batch, strict=True):
            if there is not None:
                there.copy_(new)
        graph.replay()
        return tuple(t.clone() for t in outputs)

    return take
