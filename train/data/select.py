"""Which examples of a source are used, on which side: drawn from what is known of them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from train.data.epochs import permutation

Overlong = Literal["drop", "truncate", "error"]


def fits(index: np.ndarray, max_length: int, overlong: Overlong) -> np.ndarray:
    """Whether an example is used: bool [N].

    One that is cut so short that nothing is left to learn is not.
    """
    fit: np.ndarray = index["length"] <= max_length
    return fit | (index["first"] < max_length) if overlong == "truncate" else fit


def split_off(digests: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Whether an example is held out: bool [N], at least one of them and about the fraction.

    It is decided by the example's tokens and the seed, so that equal examples are on one side,
    whichever sources they are from.

    Args:
      digests: uint64 [N].
    """
    if fraction == 0 or len(digests) == 0:
        return np.zeros(len(digests), bool)
    draws = _mix(digests ^ _mix(np.full(1, seed, np.uint64)))
    count = max(1, round(fraction * len(draws)))
    return draws <= np.partition(draws, count - 1)[count - 1]


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele et al. 2014) of uint64 [N]: a bijection."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def limited(
    sides: Sequence[np.ndarray], fit: Sequence[np.ndarray], limit: int | None, seed: int
) -> list[np.ndarray]:
    """The numbers that are used of several sources: those that fit, or a sample of them.

    Args:
      sides: each source's numbers on this side.
      fit: whether each source's examples fit, by number.
      limit: of the sample, whose order is random; None takes all in their order.
    """
    source = np.repeat(np.arange(len(sides)), [len(numbers) for numbers in sides])
    joined = np.concatenate(sides)
    used = np.concatenate([ok[numbers] for ok, numbers in zip(fit, sides, strict=True)])
    if limit is None:
        chosen = np.flatnonzero(used)
    else:
        drawn = permutation(len(joined), seed, len(joined))
        chosen = drawn[used[drawn]][:limit]
    return [joined[chosen][source[chosen] == number] for number in range(len(sides))]
