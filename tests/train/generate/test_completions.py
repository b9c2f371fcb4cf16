"""Completions of prompts that differ in length, in batches, up to a stop token or string."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.errors import UserError
from train.generate import Sampling, complete, cut, generate, programs
from train.generate import completions as module
from train.model import ModelConfig, abstract_params, hidden_states, logical_axes, logits
from train.sharding import make_mesh, param_shardings

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
    texts = complete(*model, Digits(), PROMPTS, Sampling(6), NEVER)
    assert texts == ["".join(f"{id} " for id in row) for row in greedy]


def test_a_seed_gives_the_same_tokens_again(model: Model, greedy: list[list[int]]) -> None:
    sampling = Sampling(6, temperature=1.5, top_p=0.9, seed=1)
    sampled = generate(*model, PROMPTS, sampling, stop_ids=NEVER)
    assert sampled == generate(*model, PROMPTS, sampling, stop_ids=NEVER)
    assert sampled != greedy
    # A prompt's random choices do not depend on the prompts beside it.
    assert generate(*model, PROMPTS[:1] * 2, sampling, stop_ids=NEVER)[0] == sampled[0]


def test_batches_by_length_complete_every_prompt_as_alone(model: Model) -> None:
    lengths = [5, 40, 3, 6, 33]
    prompts = [[(7 * n + k) % 96 for k in range(length)] for n, length in enumerate(lengths)]
    together = generate(*model, prompts, Sampling(20), NEVER, batch_size=2)
    assert together == [generate(*model, [prompt], Sampling(20), NEVER)[0] for prompt in prompts]
    assert {len(new) for new in together} == {20}  # More than one chunk.


def test_layers_one_after_the_other_complete_alike(
    model: Model, greedy: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNSTACK_FROM", 0)
    assert generate(*model, PROMPTS, Sampling(6), NEVER) == greedy


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 4, 1)], ids=str)
def test_a_mesh_completes_alike(
    shape: tuple[int, ...], model: Model, greedy: list[list[int]], all_devices: Any
) -> None:
    config, params = model
    mesh = make_mesh(*shape, devices=all_devices[: math.prod(shape)])
    shardings = param_shardings(mesh, abstract_params(config), logical_axes(config))
    with jax.set_mesh(mesh):
        split = jax.device_put(params, shardings)
        assert generate(config, split, PROMPTS, Sampling(6), NEVER) == greedy


def test_a_long_prompt_is_read_in_pieces(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [(5 * k) % 96 for k in range(90)]
    whole = generate(*model, [prompt], Sampling(6), NEVER)
    monkeypatch.setattr(programs, "PIECE", 32)
    jax.clear_caches()
    assert generate(*model, [prompt], Sampling(6), NEVER) == whole


class Digits:
    """A tokenizer that writes tokens as numbers."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(f"{id} " for id in ids)


def test_a_completion_ends_before_its_first_stop_string(model: Model) -> None:
    sampling = Sampling(40)
    [whole] = complete(*model, Digits(), PROMPTS[:1], sampling, NEVER)
    words = whole.split()
    string = f" {words[20]} "  # In the second chunk, unless the token is an earlier one too.
    [text] = complete(*model, Digits(), PROMPTS[:1], sampling, NEVER, stop_strings=[string, "x"])
    assert text == whole[: whole.index(string)]
    [same] = complete(*model, Digits(), PROMPTS[:1], sampling, NEVER, stop_strings=["", "x"])
    assert same == whole


def test_no_more_tokens_than_a_chunk_are_chosen_after_a_stop_string(model: Model) -> None:
    asked: list[int] = []

    def is_done(ids: Sequence[int]) -> bool:
        asked.append(len(ids))
        return len(ids) > 20

    [new] = generate(*model, PROMPTS[:1], Sampling(90), NEVER, is_done=is_done)
    assert asked == [16, 32]
    assert len(new) == 32


def test_the_first_of_several_strings_cuts() -> None:
    assert cut("a: b; c", [";", ":"]) == "a"
    assert cut("a: b", []) == "a: b"


def test_a_batch_without_rows_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        generate(*model, PROMPTS, Sampling(6), NEVER, batch_size=0)


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
