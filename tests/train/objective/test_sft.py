"""The loss on target tokens, against a plain computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.model import ModelConfig, forward, init_params
from train.objective.sft import Sft

CONFIG = ModelConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
)


def _batch() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 64, (2, 3, 32)).astype(np.int32)
    weights = (rng.random((3, 32)) < 0.4).astype(np.float32)
    return jax.tree.map(jnp.asarray, {"tokens": tokens, "targets": targets, "weights": weights})


def test_it_is_the_negative_log_probability_of_the_targets() -> None:
    params, batch = init_params(CONFIG, jax.random.key(0)), _batch()
    scores = np.asarray(forward(CONFIG, params, batch["tokens"]), np.float64)
    logprobs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    picked = np.take_along_axis(logprobs, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    loss, weight, metrics = Sft(CONFIG)(params, batch)
    weights = np.asarray(batch["weights"])
    assert float(loss) == pytest.approx(-(picked * weights).sum(), rel=1e-5)
    assert float(weight) == weights.sum()
    assert not metrics
