"""The objective on pairs of a tiny model: against plain log-probabilities, packed and padded."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.model import FLOAT32, ModelConfig, forward, init_params
from train.objective.preference import Preference, answer_logprobs
from train.objective.preference_losses import Pairs, Scores, dpo, orpo, simpo
from train.step import Sums

CONFIG = ModelConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
)
# Prompt, chosen and rejected tokens of each pair.
LENGTHS = [(3, 5, 9), (7, 2, 1), (1, 8, 8), (4, 3, 6)]
PARAMS, BASE = (init_params(CONFIG, jax.random.key(seed)) for seed in (0, 1))
DPO = Preference(CONFIG, partial(dpo, beta=0.3))
LOGPROBS = jax.jit(partial(answer_logprobs, CONFIG, FLOAT32))
Rows = dict[str, np.ndarray]


def _pair(number: int) -> tuple[list[np.ndarray], int]:
    """The tokens of both sides, and the length of their prompt."""
    prompt, *answers = LENGTHS[number]
    rng = np.random.default_rng(number)
    shared = rng.integers(0, 64, prompt)
    return [np.concatenate([shared, rng.integers(0, 64, n)]) for n in answers], prompt


def _rows(groups: list[list[int]], length: int, packed: bool) -> Rows:
    """Rows of pairs, as the program's batches are."""
    shape = (len(groups), 2, length)
    names = ["tokens", "targets", "segment_ids", "positions"]
    rows = {name: np.zeros(shape, np.int32) for name in names}
    rows["weights"] = np.zeros(shape, np.float32)
    for row, group in enumerate(groups):
        begin = 0
        for segment, number in enumerate(group, 1):
            sides, prompt = _pair(number)
            end = begin + max(map(len, sides))
            rows["segment_ids"][row, :, begin:end] = segment
            rows["positions"][row, :, begin:end] = np.arange(end - begin)
            for side, tokens in enumerate(sides):
                last = begin + len(tokens) - 1
                rows["tokens"][row, side, begin : last + 1] = tokens
                rows["targets"][row, side, begin:last] = tokens[1:]
                rows["weights"][row, side, begin + prompt - 1 : last] = 1
            begin = end
    if not packed:
        del rows["segment_ids"], rows["positions"]
    return rows


PADDED = _rows([[0], [1], [2], [3]], 16, packed=False)
PACKED = _rows([[0, 1], [2, 3]], 24, packed=True)


def _with_reference(rows: Rows) -> Any:
    return rows | {"reference": LOGPROBS(BASE, _batch(rows))}


def _batch(rows: Rows) -> Any:
    return jax.tree.map(jnp.asarray, rows)


def _plain(params: Any) -> Pairs:
    """Log-probabilities of each answer, from whole logits of one answer a row."""
    tokens, targets = (jnp.asarray(PADDED[name].reshape(8, 16)) for name in ("tokens", "targets"))
    logprobs = jax.nn.log_softmax(forward(CONFIG, params, tokens))
    picked = jnp.take_along_axis(logprobs, targets[..., None], 2).reshape(4, 2, 16)
    sides = jnp.sum(picked * PADDED["weights"], -1).T
    lengths = [jnp.asarray([n[side] for n in LENGTHS], jnp.float32) for side in (1, 2)]
    return Pairs(*sides, *lengths)


@cache
def _plain_dpo() -> tuple[Pairs, Scores, Any]:
    """Log-probabilities, scores and the gradient of the summed loss."""
    base = _plain(BASE)

    def loss(params: Any) -> tuple[jax.Array, tuple[Pairs, Scores]]:
        pairs = _plain(params)._replace(ref_chosen=base.chosen, ref_rejected=base.rejected)
        scores = dpo(pairs, beta=0.3)
        return jnp.sum(scores.loss), (pairs, scores)

    gradient, (pairs, scores) = jax.jit(jax.grad(loss, has_aux=True))(PARAMS)
    return pairs, scores, gradient


def _gradient(objective: Preference, batch: Any) -> tuple[Sums, Any]:
    def loss(params: Any) -> tuple[jax.Array, Sums]:
        sums = objective(params, batch)
        return sums.loss, sums

    gradient, sums = jax.jit(jax.grad(loss, has_aux=True))(PARAMS)
    return sums, gradient


def _assert_close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)


@pytest.mark.parametrize("rows", [PADDED, PACKED], ids=["padded", "packed"])
def test_loss_metrics_and_gradients_are_those_of_plain_log_probabilities(rows: Rows) -> None:
    sums, gradient = _gradient(DPO, _with_reference(rows))
    pairs, scores, expected = _plain_dpo()
    _assert_close(gradient, expected)
    assert float(sums.weight) == len(LENGTHS)
    wanted = {
        "rewards/chosen": scores.chosen,
        "rewards/rejected": scores.rejected,
        "rewards/margin": scores.chosen - scores.rejected,
        "accuracy": scores.chosen > scores.rejected,
        "logprobs/chosen": pairs.chosen,
        "logprobs/rejected": pairs.rejected,
    }
    assert float(sums.loss) == pytest.approx(float(jnp.sum(scores.loss)), rel=1e-5)
    for name, values in wanted.items():
        assert float(sums.metrics[name]) == pytest.approx(float(jnp.sum(values)), rel=1e-4), name
    assert float(sums.metrics["kl"]) > 0


@pytest.mark.parametrize("rows", [PADDED, PACKED], ids=["padded", "packed"])
def test_the_first_loss_is_that_of_a_guess(rows: Rows) -> None:
    batch = _batch(rows)
    batch["reference"] = LOGPROBS(PARAMS, batch)
    sums = jax.jit(DPO)(PARAMS, batch)
    assert float(sums.loss) == pytest.approx(len(LENGTHS) * np.log(2), rel=1e-7)
    assert [float(sums.metrics[name]) for name in ("accuracy", "kl")] == [2.0, 0.0]


@pytest.mark.slow
def test_rows_without_a_pair_count_for_nothing() -> None:
    empty = {name: np.zeros_like(array) for name, array in PADDED.items()}
    both = {name: np.concatenate([array, empty[name]]) for name, array in PADDED.items()}
    objective = Preference(CONFIG, partial(orpo, beta=0.1))
    sums, gradient = _gradient(objective, _batch(both))
    expected, others = _gradient(objective, _batch(PADDED))
    _assert_close(gradient, others)
    _assert_close(sums, expected)


def test_microbatches_have_the_weight_of_the_whole() -> None:
    cut = {name: array.reshape(2, 2, *array.shape[1:]) for name, array in PADDED.items()}
    assert float(DPO.weight(_batch(cut))) == 4
    assert float(DPO.weight(_batch(PACKED))) == 4


@pytest.mark.slow
def test_the_supervised_term_is_the_chosen_answers_mean_cross_entropy() -> None:
    batch = _batch(PADDED)
    loss = partial(simpo, beta=2.0, gamma=1.0)
    plain = jax.jit(Preference(CONFIG, loss))(PARAMS, batch)
    with_sft = jax.jit(Preference(CONFIG, loss, sft_weight=0.5))(PARAMS, batch)
    pairs = _plain_dpo()[0]
    term = -0.5 * jnp.sum(pairs.chosen / pairs.chosen_length)
    assert float(with_sft.loss - plain.loss) == pytest.approx(float(term), rel=1e-4)
    assert "kl" not in plain.metrics
