"""Which examples are evaluation data, and samples of a limited size."""

import numpy as np
import pytest

from train.data.selection import choose_eval, sample_used


@pytest.mark.parametrize("fraction", [0.001, 0.2, 0.5, 1.0])
def test_a_share_of_the_examples_is_for_evaluation(fraction: float) -> None:
    digests = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    held = choose_eval(digests, fraction, 0)
    assert held.sum() == max(1, round(1000 * fraction))


def test_equal_examples_are_in_one_split() -> None:
    digests = np.arange(50, dtype=np.uint64) % np.uint64(10)
    for seed in range(5):
        held = choose_eval(digests, 0.3, seed).reshape(5, 10)
        assert (held == held[0]).all()


def test_the_seed_decides_which_examples_those_are() -> None:
    digests = np.arange(40, dtype=np.uint64)
    assert len({choose_eval(digests, 0.2, seed).tobytes() for seed in range(5)}) == 5


def test_a_fraction_of_zero_chooses_nothing() -> None:
    assert not choose_eval(np.arange(5, dtype=np.uint64), 0, 0).any()


def test_a_limit_takes_a_sample_over_all_sources() -> None:
    numbers = [np.arange(0, 100, 2), np.arange(30)]
    fit = [np.arange(100) % 10 > 0, np.full(30, True)]
    whole = sample_used(numbers, fit, None, 0)
    assert whole[0].tolist() == [n for n in range(0, 100, 2) if n % 10]
    assert whole[1].tolist() == list(range(30))
    sample = sample_used(numbers, fit, 20, 0)
    assert sum(map(len, sample)) == 20
    assert all(len(part) > 2 for part in sample)
    assert all(set(s) < set(w) for s, w in zip(sample, whole, strict=True))
    assert sample[0].tolist() != sorted(sample[0].tolist())
