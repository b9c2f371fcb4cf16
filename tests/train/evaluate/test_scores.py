"""Scores equal those of each text computed alone, whatever shares its batch."""

from typing import Any

import jax
import numpy as np
import pytest

from train.errors import UserError
from train.evaluate import scores as module
from train.evaluate.scores import Request, Score, score
from train.model import ComputeOptions, ModelConfig, abstract_params, forward, logical_axes
from train.sharding import make_mesh, param_shardings

FORWARD = jax.jit(forward, static_argnums=0)
REQUESTS = [
    Request([5, 9, 2], [7, 1]),
    Request([5, 9, 2, 7], [3]),  # Shares its row with the first two and the next.
    Request([5, 9, 2, 7], [1]),
    Request([5, 9], [2, 7, 4]),
    Request([8], [1]),
    Request([3] * 20, [(7 * k) % 96 for k in range(30)]),
]


@pytest.fixture(scope="module")
def model(family: Any, random_params: Any) -> tuple[ModelConfig, Any]:
    config = ModelConfig.from_hf(family("llama-tied", num_hidden_layers=1))
    return config, random_params(config, 2.0)


def _expected(model: tuple[ModelConfig, Any], request: Request) -> Score:
    text = [*request.context, *request.continuation]
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, : len(text)] = text
    logits = np.asarray(FORWARD(*model, tokens), np.float64)[0]
    logprobs = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    places = range(len(request.context) - 1, len(text) - 1)
    greedy = all(np.argmax(logits[place]) == text[place + 1] for place in places)
    return Score(sum(logprobs[place, text[place + 1]] for place in places), greedy)


def _check(scores: list[Score], model: tuple[ModelConfig, Any]) -> None:
    for found, request in zip(scores, REQUESTS, strict=True):
        expected = _expected(model, request)
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert found.is_greedy == expected.is_greedy


def _score(model: tuple[ModelConfig, Any], requests: list[Request], **options: Any) -> list[Score]:
    given = {"batch_size": 2, "max_length": 64} | options
    return score(*model, requests, ComputeOptions(), **given)


def test_each_continuation_has_the_score_it_has_alone(model: tuple[ModelConfig, Any]) -> None:
    done: list[int] = []
    _check(_score(model, REQUESTS, progress=done.append), model)
    assert done == [1 + 4, 1]  # Rows: the long one and that of four requests; the one of [8].


def test_a_greedy_continuation_is_said_to_be_one(model: tuple[ModelConfig, Any]) -> None:
    tokens = np.array([[5, 9, 2]])
    best = int(np.argmax(np.asarray(FORWARD(*model, tokens))[0, -1]))
    both = [Request([5, 9, 2], [best]), Request([5, 9, 2], [(best + 1) % 96])]
    assert [found.is_greedy for found in _score(model, both)] == [True, False]


def test_logits_in_pieces_give_the_same(
    model: tuple[ModelConfig, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS", 6)
    jax.clear_caches()
    _check(_score(model, REQUESTS), model)


def test_a_mesh_gives_the_same(model: tuple[ModelConfig, Any], all_devices: Any) -> None:
    config, params = model
    mesh = make_mesh(2, 1, 2, devices=all_devices[:4])
    shardings = param_shardings(mesh, abstract_params(config), logical_axes(config))
    with jax.set_mesh(mesh):
        _check(_score((config, jax.device_put(params, shardings)), REQUESTS), model)


def test_a_long_context_loses_its_first_tokens(model: tuple[ModelConfig, Any]) -> None:
    long = Request([1, 2, 3, 4, 5, 6], [7, 8])
    [found] = _score(model, [long], max_length=4)
    assert found.logprob == pytest.approx(_expected(model, Request([4, 5, 6], [7, 8])).logprob)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], [1]), "have at least one token each"),
        (Request([1], []), "have at least one token each"),
        (Request([1], [2] * 65), "a continuation has 65 tokens, more than the 64"),
        (Request([1], [96]), "a text has token 96, and the model's vocabulary ends at 95"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    request_: Request, message: str, model: tuple[ModelConfig, Any]
) -> None:
    with pytest.raises(UserError, match=message):
        _score(model, [request_])
