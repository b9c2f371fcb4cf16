import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.errors import UserError
from train.model import ModelConfig, load_model_config

Family = Callable[..., dict[str, Any]]


def test_two_readings_of_a_config_are_equal_and_hash_alike(hf: dict[str, Any]) -> None:
    a, b = ModelConfig.from_hf(hf), ModelConfig.from_hf(dict(hf))
    assert a == b
    assert hash(a) == hash(b)
    assert a.original == hf


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("llama", (None, None, None)),
        ("mistral", (5, 5, 5)),
        ("mistral-full", (None, None, None)),
        ("qwen2", (None, None, None)),
        ("qwen2-window", (None, 4, 4)),
        ("qwen3-layers", (3, None, 3)),
    ],
)
def test_windows_of_each_layer(name: str, windows: tuple[int | None, ...], family: Family) -> None:
    assert ModelConfig.from_hf(family(name)).windows == windows


def test_keys_that_are_left_out_mean_what_transformers_takes_them_for(family: Family) -> None:
    few = {
        key: family("mistral")[key]
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
        )
    }
    few |= {"model_type": "mistral", "num_attention_heads": 8}
    config = ModelConfig.from_hf(few)
    assert (config.num_key_value_heads, config.head_dim, config.windows[0]) == (8, 4, 4096)
    assert ModelConfig.from_hf({**few, "model_type": "llama"}).num_key_value_heads == 8
    assert ModelConfig.from_hf({**few, "num_attention_heads": 32, "model_type": "qwen3"}).qk_norm


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported: llama, mistral"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act is not supported; supported: silu, got 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantized weights are not supported"),
        ({"pretraining_tp": 2}, "pretraining_tp other than 1 is not supported, got 2"),
        ({"attention_dropout": 0.1}, "attention_dropout is not supported"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "32"}, "hidden_size must be a positive integer, got '32'"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive integer, got True"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 10,000"),
        ({"vocab_size": 2**40}, "vocab_size must be below 2147483648"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, got 0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, got 'no'"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads must divide num_attention_heads \(4\)"),
        ({"head_dim": 7}, "head_dim must be even, got 7"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: rope_type 'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type 'dynamic' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "factor must be a positive number, got None"),
        ({"rope_theta": -1}, "rope_theta must be a positive number, got -1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_parameters": {"full_attention": {}}}, "must be the same for all layers"),
        ({"layer_types": ["full_attention"]}, "layer_types must be 3 of"),
        ({"layer_types": ["sliding_attention"] * 3}, "no sliding_window is in use"),
        (
            {
                "model_type": "mistral",
                "sliding_window": 4,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            },
            "layer_types that differ by layer are not supported for mistral",
        ),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be a positive int"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    keys: dict[str, Any], message: str, family: Family
) -> None:
    with pytest.raises(UserError, match=f"^some/config.json: .*{message}"):
        ModelConfig.from_hf(family("llama", **keys), "some/config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json: No such file"),
        ("{", "config.json: is not JSON"),
        ("[]", "config.json: must be a JSON object"),
        (json.dumps({"model_type": "t5"}), "config.json: model_type 't5' is not supported"),
    ],
)
def test_a_broken_config_file_is_one_line(
    content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_model_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_rows_beyond_the_models_positions_are_refused(family: Any) -> None:
    config = ModelConfig.from_hf(family("llama"))
    config.check_length(128, "data.max_length")
    with pytest.raises(UserError, match=r"data\.max_length is 1,024, and the model has 128 pos"):
        config.check_length(1024, "data.max_length")
