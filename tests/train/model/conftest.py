"""Tiny decoders: a config for every family and feature."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.model import ModelConfig, abstract_params, save_params

BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-no-groups": {"model_type": "llama", "num_key_value_heads": 4},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-head-dim": {"model_type": "llama", "head_dim": 12},
    "llama-rope-5": {"model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 500.0}},
    "llama-rope-4": {"model_type": "llama", "rope_scaling": LLAMA3, "rope_theta": 500.0},
    "llama-linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "mistral-full": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "qwen3-layers": {
        "model_type": "qwen3",
        "head_dim": 8,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


@pytest.fixture(scope="session", params=FAMILIES)
def hf(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The config.json of one family or feature after the other."""
    return BASE | FAMILIES[request.param]


@pytest.fixture(scope="session")
def family() -> Callable[..., dict[str, Any]]:
    """The config.json of a named family or feature, with keys laid over it."""
    return lambda name, **keys: BASE | FAMILIES[name] | keys


@pytest.fixture(scope="session")
def random_params() -> Callable[..., Any]:
    """Parameters of which none is zero: biases and norms matter too."""

    def make(config: ModelConfig, scale: float = 1.0) -> Any:
        draw = np.random.default_rng(0).normal

        def one(shape: jax.ShapeDtypeStruct) -> jax.Array:
            return jnp.asarray(scale * draw(0.0, 0.2, shape.shape), jnp.float32)

        return jax.tree.map(one, abstract_params(config))

    return make


@pytest.fixture
def saved(family: Any, random_params: Any, tmp_path: Path) -> tuple[Path, ModelConfig, Any]:
    """A folder with a model, its config and its parameters."""
    config = ModelConfig.from_hf(family("llama-biases"))
    params = random_params(config)
    folder = tmp_path / "model"
    folder.mkdir()
    save_params(params, config, folder, "float32")
    return folder, config, params
