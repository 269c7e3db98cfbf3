"""Workers for a sweep: a cluster of processes on this machine, or one that is there already (dask.distributed).

Embedded: processes with one thread each, on the loopback address, without a dashboard; on a machine with GPUs one worker per
GPU, which its kernels see alone. Elsewhere: a scheduler and workers that somebody started,

    dask scheduler --host ADDRESS
    dask worker tcp://ADDRESS:8786 --nthreads 1                                           # one per processor
    CUDA_VISIBLE_DEVICES=0 dask worker tcp://ADDRESS:8786 --nthreads 1 --resources GPU=1  # one per GPU
    learngene sweep GRID --scheduler tcp://ADDRESS:8786 --out FOLDER                      # a folder that all machines see

or jobs of SLURM by dask-jobqueue (`pip install learngene-study[slurm]`), one GPU each; keep this running, and give the
address that it prints to `--scheduler`:

    from dask_jobqueue import SLURMCluster
    cluster = SLURMCluster(cores=1, processes=1, memory="16GB", walltime="08:00:00",
                           job_extra_directives=["--gres=gpu:1"], worker_extra_args=["--resources", "GPU=1"])
    cluster.scale(jobs=8)
    print(cluster.scheduler_address); input("Enter ends the cluster")

Where workers offer the resource GPU, every job takes one of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Iterator

import psutil
from distributed import Client, LocalCluster

from .. import __version__
from ..errors import StudyError
from .point import facts

KERNEL_BYTES = 1_500_000_000  # of memory that a kernel takes, with torch and a small collective
PATIENCE = 30.0  # seconds for a scheduler and its first worker to answer


@contextlib.contextmanager
def client_of(workers: int, scheduler: str, out: str) -> Iterator[Client]:
    """A client of `scheduler` (an address), or of an embedded cluster of so many workers, which ends with the block.

    Raises StudyError when there is no scheduler or worker, or a worker that could not do its work: another version of the
    package, several threads, or no sight of the folder `out`.
    """
    with contextlib.ExitStack() as stack:
        if scheduler:
            client = stack.enter_context(_connected(scheduler))
        else:
            # nothing is to be said of workers that end because the sweep has ended
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            client = stack.enter_context(Client(stack.enter_context(_embedded(workers)), set_as_default=False))
        _check_workers(client, out)
        yield client


@contextlib.contextmanager
def _connected(scheduler: str) -> Iterator[Client]:
    try:
        client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise StudyError(f"no scheduler answers at {scheduler!r}: {str(error).splitlines()[0]}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise StudyError(f"the scheduler at {scheduler} has no worker; start some with `dask worker`") from None
        yield client


@contextlib.contextmanager
def _embedded(workers: int) -> Iterator[LocalCluster]:
    options = {"threads_per_worker": 1, "processes": True, "host": "127.0.0.1", "dashboard_address": None}
    options |= {"memory_limit": 0, "silence_logs": logging.CRITICAL}  # the memory is the kernels'
    with tempfile.TemporaryDirectory(prefix="learngene-dask-", ignore_cleanup_errors=True) as scratch:
        cluster = None
        try:
            with _deaf():
                cluster = LocalCluster(n_workers=workers, local_directory=scratch, **options)
            yield cluster
        finally:
            if cluster is not None:  # Ctrl+C may come as soon as it stands
                cluster.close(timeout=5)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started in this block do not hear Ctrl+C: it is for the sweep, which ends them. One that is pressed
    meanwhile is heard at the end of the block."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_workers(client: Client, out: str) -> None:
    if any(worker["nthreads"] != 1 for worker in client.scheduler_info(n_workers=-1)["workers"].values()):
        raise StudyError("every worker needs one thread: start them with `dask worker --nthreads 1`")
    try:
        told = client.run(facts, out)
    except Exception as error:  # whatever the worker's import raised, by way of the scheduler
        raise StudyError(f"the workers cannot run learngene_core: {type(error).__name__}: {error}") from None
    for worker, fact in told.items():
        if fact["version"] != __version__:
            raise StudyError(f"worker {worker} has version {fact['version']} of the package, not {__version__}")
        if not fact["sees"]:
            raise StudyError(f"worker {worker} does not see {out}; a sweep needs a folder that all machines share")


def offers_gpus(client: Client) -> bool:
    """Whether the workers offer the resource GPU."""
    return any(w["resources"].get("GPU") for w in client.scheduler_info(n_workers=-1)["workers"].values())


def gpus_here(device: str) -> tuple[str, ...]:
    """The GPUs of this machine that an embedded cluster shares out; none where `device` ("auto", "cpu", "cuda:1", ...) is not
    any of CUDA."""
    import torch

    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return tuple(v for v in visible if v) or tuple(str(i) for i in range(torch.cuda.device_count()))


def default_workers(gpus: tuple[str, ...]) -> int:
    """One worker per GPU, else one per processor, as far as the memory suffices for their kernels."""
    if gpus:
        return len(gpus)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors, psutil.virtual_memory().available // KERNEL_BYTES))
