"""Named random streams: fixed for good, independent of each other, and away from the global state."""

import hashlib
import itertools

import numpy as np
import torch
from scipy import stats

from learngene_core.tasks import derive, generator, numpy_generator


def test_a_streams_seed_is_the_first_63_bits_of_the_hash_of_its_name():
    """Written out, so that a change that moves every result of every run cannot pass unseen."""
    for name in ("0/batches/task 3/epoch 2", "7/division", "0"):
        seed, *names = name.split("/")
        wanted = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) // 2
        assert derive(int(seed), *names) == wanted
    assert 0 <= min(derive(s, "x") for s in range(500)) <= max(derive(s, "x") for s in range(500)) < 2**63


def test_same_name_same_stream_other_name_other_stream():
    names = [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (0, "a", "b"),
        (0, "b", "a"),
        (0, "ab"),
        (0, "a", 1),
        (0, "a", 11),
        (0, "a", 1, 1),
    ]
    draws = {n: tuple(numpy_generator(*n).integers(0, 2**62, 4)) for n in names}
    assert draws == {n: tuple(numpy_generator(*n).integers(0, 2**62, 4)) for n in names}
    assert len(set(draws.values())) == len(names)
    tensors = [torch.rand(4, generator=generator(*n)) for n in names]
    assert all(torch.equal(t, torch.rand(4, generator=generator(*n))) for t, n in zip(tensors, names, strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(tensors, 2))


def test_using_one_stream_more_does_not_move_another():
    alone = numpy_generator(0, "tasks").random(5)
    first, second = numpy_generator(0, "weights"), numpy_generator(0, "tasks")
    first.random(1000)
    assert np.array_equal(second.random(5), alone)


def test_neighbouring_streams_are_unrelated():
    """First draws over 4000 streams that differ by their number alone are uniform and uncorrelated."""
    for make in (
        lambda k: numpy_generator(0, "target task", k).random(),
        lambda k: float(torch.rand(1, dtype=torch.float64, generator=generator(0, "target task", k))),
    ):
        u = np.array([make(k) for k in range(4000)])
        assert stats.kstest(u, "uniform").pvalue > 1e-4
        assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.07  # 4.4 standard errors


def test_global_generators_are_neither_read_nor_moved():
    before = torch.get_rng_state()
    torch.manual_seed(1), np.random.seed(1)
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = torch.rand(3, generator=generator(5, "x")), numpy_generator(5, "x").random(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)
    torch.manual_seed(2), np.random.seed(2)
    two = torch.rand(3, generator=generator(5, "x")), numpy_generator(5, "x").random(3)
    assert torch.equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])
    torch.set_rng_state(before)
