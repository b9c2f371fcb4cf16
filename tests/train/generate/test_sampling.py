"""How a token is chosen: greedily, or among the likeliest ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.errors import UserError
from train.generate.sampling import Sampling, sample


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"top_k": -1}, r"top_k must be at least 0 \(0: all tokens\), got -1"),
        ({"seed": -1}, r"seed must be at least 0 and below 2\*\*31, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**options)


KEYS = jax.random.split(jax.random.key(0), 2000)
PROBABILITIES = [0.1, 0.5, 0.15, 0.25]


@pytest.mark.parametrize(
    ("top_p", "top_k", "nucleus"),
    [
        (1.0, 0, {0, 1, 2, 3}),
        (0.9, 0, {1, 2, 3}),
        (0.7, 0, {1, 3}),
        (0.5, 0, {1}),
        (0.01, 0, {1}),
        (1.0, 3, {1, 2, 3}),
        (1.0, 1, {1}),
        (1.0, 9, {0, 1, 2, 3}),
        # Of the three likeliest, the first two have more than 0.8 of the probability.
        (0.8, 3, {1, 3}),
    ],
)
def test_tokens_outside_the_nucleus_are_never_sampled(
    top_p: float, top_k: int, nucleus: set[int]
) -> None:
    scores = jnp.log(jnp.tile(jnp.array(PROBABILITIES, jnp.float32), (2000, 1)))
    tokens = np.asarray(sample(scores, Sampling(temperature=1.0, top_p=top_p, top_k=top_k), KEYS))
    assert set(tokens.tolist()) == nucleus
    expected = np.array([p if t in nucleus else 0.0 for t, p in enumerate(PROBABILITIES)])
    frequencies = np.bincount(tokens, minlength=4) / len(tokens)
    np.testing.assert_allclose(frequencies, expected / expected.sum(), atol=0.05)


def test_a_low_temperature_sharpens_the_distribution() -> None:
    scores = jnp.log(jnp.tile(jnp.array(PROBABILITIES, jnp.float32), (2000, 1)))
    tokens = np.asarray(sample(scores, Sampling(temperature=0.5), KEYS))
    expected = np.square(PROBABILITIES) / np.square(PROBABILITIES).sum()
    np.testing.assert_allclose(np.bincount(tokens) / len(tokens), expected, atol=0.05)


def test_at_temperature_0_the_most_probable_token_is_taken() -> None:
    scores = jnp.array([[0.0, 3.0, 1.0], [2.0, -1.0, 1.0]], jnp.float32)
    assert sample(scores, Sampling(), KEYS[:2]).tolist() == [1, 0]
