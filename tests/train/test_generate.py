"""Completions: greedy and sampled, of prompts that differ in length, up to a stop token."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.errors import UserError
from train.generate import Sampling, complete, generate, sample
from train.model import ModelConfig, hidden_states, logits

Model = tuple[ModelConfig, Any]
PROMPTS = [[5, 9, 2], [7, 1, 8, 3, 11, 4]]
NEVER = [-1]  # A stop token that never comes, so that one compiled program serves all tests.


@pytest.fixture(scope="module")
def model(family: Any, random_params: Any) -> Model:
    config = ModelConfig.from_hf(family("llama-tied", num_hidden_layers=1))
    return config, random_params(config, 3.0)


@pytest.fixture(scope="module")
def greedy(model: Model) -> list[list[int]]:
    return generate(*model, PROMPTS, Sampling(6), stop_ids=NEVER)


def test_each_greedy_token_is_the_most_probable_one(model: Model, greedy: list[list[int]]) -> None:
    """Of the whole text, computed at once and without padding before it."""
    config, params = model
    texts = [prompt + new for prompt, new in zip(PROMPTS, greedy, strict=True)]
    tokens = np.array([text + [0] * (12 - len(text)) for text in texts])
    best = jax.jit(
        lambda p: jnp.argmax(logits(config, p, hidden_states(config, p, tokens)), axis=-1)
    )(params)
    for row, prompt, new in zip(best.tolist(), PROMPTS, greedy, strict=True):
        assert new == row[len(prompt) - 1 : len(prompt) + 5]


def test_a_completion_ends_before_its_first_stop_token(
    model: Model, greedy: list[list[int]]
) -> None:
    stop = greedy[0][3]
    expected = [row[: row.index(stop)] if stop in row else row for row in greedy]
    assert generate(*model, PROMPTS, Sampling(6), stop_ids=[stop]) == expected


def test_a_completion_is_the_tokens_decoded(model: Model, greedy: list[list[int]]) -> None:
    class Tokenizer:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            assert skip_special_tokens
            return " ".join(map(str, ids))

    texts = complete(*model, Tokenizer(), PROMPTS, Sampling(6), NEVER)
    assert texts == [" ".join(map(str, row)) for row in greedy]


def test_a_seed_gives_the_same_tokens_again(model: Model, greedy: list[list[int]]) -> None:
    sampling = Sampling(6, temperature=1.5, top_p=0.9, seed=1)
    sampled = generate(*model, PROMPTS, sampling, stop_ids=NEVER)
    assert sampled == generate(*model, PROMPTS, sampling, stop_ids=NEVER)
    assert sampled != greedy


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "a prompt has no tokens"),
        ([5, 96], "prompt 2 has token 96, and the model's vocabulary ends at 95"),
        ([5] * 123, "prompt 2 has 123 tokens, with 6 new ones more than the model's 128 positions"),
    ],
)
def test_a_prompt_that_the_model_cannot_complete_is_refused(
    model: Model, prompt: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(*model, [[1], prompt], Sampling(6), stop_ids=NEVER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**options)


PROBABILITIES = [0.1, 0.5, 0.15, 0.25]


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [(1.0, {0, 1, 2, 3}), (0.9, {1, 2, 3}), (0.7, {1, 3}), (0.5, {1}), (0.01, {1})],
)
def test_tokens_outside_the_nucleus_are_never_sampled(top_p: float, nucleus: set[int]) -> None:
    scores = jnp.log(jnp.tile(jnp.array(PROBABILITIES, jnp.float32), (2000, 1)))
    tokens = np.asarray(sample(scores, Sampling(temperature=1.0, top_p=top_p), jax.random.key(0)))
    assert set(tokens.tolist()) == nucleus
    expected = np.array([p if t in nucleus else 0.0 for t, p in enumerate(PROBABILITIES)])
    frequencies = np.bincount(tokens, minlength=4) / len(tokens)
    np.testing.assert_allclose(frequencies, expected / expected.sum(), atol=0.05)


def test_a_low_temperature_sharpens_the_distribution() -> None:
    scores = jnp.log(jnp.tile(jnp.array(PROBABILITIES, jnp.float32), (2000, 1)))
    tokens = np.asarray(sample(scores, Sampling(temperature=0.5), jax.random.key(0)))
    expected = np.square(PROBABILITIES) / np.square(PROBABILITIES).sum()
    np.testing.assert_allclose(np.bincount(tokens) / len(tokens), expected, atol=0.05)


def test_at_temperature_0_the_most_probable_token_is_taken() -> None:
    scores = jnp.array([[0.0, 3.0, 1.0], [2.0, -1.0, 1.0]], jnp.float32)
    assert sample(scores, Sampling(), jax.random.key(0)).tolist() == [1, 0]
