"""Freed memory: a training step that follows another one takes its pages again instead of asking the system for new ones."""

import platform
import subprocess
import sys

import pytest

# a process each: what is told to the C library holds until the process ends
STEPS = """
import resource, sys, threading
import torch
from learngene_core.config import Config
from learngene_core.machine import Machine
from learngene_core.network import ConvNet
from learngene_core.presets import PAPER_POOLS
from learngene_core.stack import Stack

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    Machine.resolve(Config(device="cpu")).use()

found = []

def train():
    stack, x = Stack([ConvNet((8, 8, 16, 16, 32), (2, 4), 5, 32) for _ in range(4)]), torch.randn(25, 3, 32, 32)
    for step in range(25):
        if step == 5:
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        stack(x).sum().backward()
    found.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

threads = [threading.Thread(target=train) for _ in range(2)]
for t in threads: t.start()
for t in threads: t.join()
print(sum(found) / 40)
"""


def faults_of_a_step(how):
    done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_a_step_takes_the_pages_of_the_step_before():
    given_back, kept = faults_of_a_step("given back"), faults_of_a_step("kept")
    assert given_back > 500, "nothing to gain: the C library keeps pages by itself"
    assert kept < given_back / 5


def test_another_c_library_is_left_alone(monkeypatch):
    from learngene_core import allocation

    monkeypatch.setattr(allocation.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: pytest.fail("asked"))
    assert allocation.keep_freed_memory.__wrapped__() is False


def test_a_threshold_that_is_too_large_for_the_c_library_becomes_a_smaller_one(monkeypatch):
    from learngene_core import allocation

    told = {}

    class Library:
        @staticmethod
        def mallopt(what, value):
            if what == allocation.MMAP_THRESHOLD and value > 32 << 20:
                return 0
            told[what] = value
            return 1

    monkeypatch.setattr(allocation.platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: Library)
    assert allocation.keep_freed_memory.__wrapped__() is True
    assert told[allocation.MMAP_THRESHOLD] == 32 << 20 and told[allocation.TRIM_THRESHOLD] == allocation.KEPT
