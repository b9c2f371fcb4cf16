"""Which examples are evaluation data, and which of them are used where there is a limit."""

from collections.abc import Sequence

import numpy as np

from .sampler import permutation


def choose_eval(digests: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Whether each example is evaluation data: bool [N], about the fraction and at least one.

    Equal digests are in one split, whichever sources they come from.

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


def sample_used(
    numbers: Sequence[np.ndarray], fit: Sequence[np.ndarray], limit: int | None, seed: int
) -> list[np.ndarray]:
    """The examples of each source that are used: all that fit, or a random sample of them.

    Args:
      numbers: each source's examples in the split.
      fit: whether each example of each source can be used.
      limit: the size of the sample over all sources, whose order is random; None takes all that
        fit in their order.
    """
    source = np.repeat(np.arange(len(numbers)), [len(part) for part in numbers])
    joined = np.concatenate(numbers)
    usable = np.concatenate([ok[part] for ok, part in zip(fit, numbers, strict=True)])
    if limit is None:
        chosen = np.flatnonzero(usable)
    else:
        drawn = permutation(len(joined), seed, len(joined))
        chosen = drawn[usable[drawn]][:limit]
    return [joined[chosen][source[chosen] == number] for number in range(len(numbers))]
