"""The config of an import says what the metadata of the GGUF file say."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

ARCHITECTURES = ("llama", "qwen2", "qwen3")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_config_says_what_the_metadata_says(gguf: Any, architecture: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(gguf.imported(architecture))
    assert config.model_type == architecture
    assert config.vocab_size == len(gguf.TOKENS)
    assert (config.hidden_size, config.intermediate_size) == (gguf.EMBED, gguf.FFN)
    assert (config.num_attention_heads, config.num_key_value_heads) == (gguf.HEADS, gguf.KV_HEADS)
    assert config.head_dim == gguf.head_dim(architecture)
    assert config.num_hidden_layers == gguf.LAYERS
    assert config.max_position_embeddings == gguf.CONTEXT
    assert config.rms_norm_eps == 1e-5  # and not float32's 9.99e-06
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 100_000.0}
    assert (config.bos_token_id, config.eos_token_id) == (1, 2)


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scale_linear": 4.0},
    ],
)
def test_linear_rope_scaling_is_kept(gguf: Any, keys: dict[str, Any]) -> None:
    gguf.imported(keys=keys)
    assert gguf.json("config.json")["rope_parameters"] == {
        "rope_type": "linear",
        "rope_theta": 100_000.0,
        "factor": 4.0,
    }


def llama3_factors(factor: float, theta: float, head: int) -> npt.NDArray[np.float32]:
    """As the converter makes them: short waves kept, long ones divided, a ramp between."""
    out = []
    for index in range(0, head, 2):
        wavelength = 2 * np.pi * theta ** (index / head)
        if wavelength < 8192 / 4:
            out.append(1.0)
        elif wavelength > 8192:
            out.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


def test_llama3_rope_scaling_is_recognised_by_its_factors(gguf: Any) -> None:
    factors = llama3_factors(32.0, 100_000.0, gguf.head_dim("llama"))
    gguf.imported(extra={"rope_freqs.weight": factors})
    assert gguf.json("config.json")["rope_parameters"] == {
        "rope_type": "llama3",
        "rope_theta": 100_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_generation_stops_at_every_token_that_ends_a_turn(gguf: Any) -> None:
    gguf.imported(keys={"tokenizer.ggml.eot_token_id": 0})
    assert gguf.json("generation_config.json") == {
        "bos_token_id": 1,
        "eos_token_id": [2, 0],
        "pad_token_id": 2,
    }


def test_rope_factors_of_another_scaling_are_refused(gguf: Any) -> None:
    factors = np.array([1, 2, 3, 4], np.float32)
    source = gguf.write(extra={"rope_freqs.weight": factors})
    gguf.refused(source, "rope_freqs.weight")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"llama.rope.scaling.type": "yarn"}, ("llama.rope.scaling.type", "'yarn'")),
        ({"llama.rope.dimension_count": 4}, ("llama.rope.dimension_count", "4")),
        ({"llama.attention.head_count": [4, 2]}, ("llama.attention.head_count", "list")),
        ({"llama.attention.head_count_kv": 3}, ("3 key-value heads",)),
        ({"llama.attention.head_count_kv": 0}, ("llama.attention.head_count_kv", "0")),
        ({"llama.embedding_length": None}, ("llama.embedding_length", "missing")),
        ({"llama.context_length": "long"}, ("llama.context_length", "'long'", "int")),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(
    gguf: Any, keys: dict[str, Any], words: tuple[str, ...]
) -> None:
    gguf.refused(gguf.write(keys=keys), "model.gguf", *words)
