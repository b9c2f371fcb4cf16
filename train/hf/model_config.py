"""config.json as every reader understands it: transformers 4 and 5, vLLM, TGI and llama.cpp."""

from collections.abc import Mapping
from typing import Any

from ..model.config import ModelConfig

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def config_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The content of config.json, with `dtype` as the type of the stored weights.

    It is the original's, in which nothing is left to a reader's defaults: they differ between
    versions. What transformers 5 renamed has both names, old and new.
    """
    rope, rope_scaling = _rope(config)
    return {
        **config.original,
        "architectures": config.original.get("architectures") or [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        **_biases(config),
        **_windows(config),
        **_original_length(config),
        "rope_parameters": rope,
        "rope_theta": config.rope.theta,
        "rope_scaling": rope_scaling,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _biases(config: ModelConfig) -> Mapping[str, Any]:
    if config.model_type == "llama":
        return {"attention_bias": config.out_bias, "mlp_bias": config.mlp_bias}
    return {"attention_bias": config.out_bias} if config.model_type == "qwen3" else {}


def _windows(config: ModelConfig) -> Mapping[str, Any]:
    width = next((width for width in config.windows if width is not None), None)
    if config.model_type == "mistral":
        return {"sliding_window": width}
    if config.model_type == "llama":
        return {}
    if width is None:
        return {"use_sliding_window": False}
    # Before they read layer_types, transformers and others knew a first layer with a window alone.
    first = config.windows.index(width)
    types = [
        "full_attention" if layer_width is None else "sliding_attention"
        for layer_width in config.windows
    ]
    return {
        "use_sliding_window": True,
        "sliding_window": width,
        "max_window_layers": config.original.get("max_window_layers", first),
        "layer_types": types,
    }


def _original_length(config: ModelConfig) -> Mapping[str, Any]:
    """The length before llama3's scaling, which llama.cpp's converter reads beside the rest."""
    if config.rope.kind != "llama3":
        return {}
    return {"original_max_position_embeddings": int(config.rope.original_length)}


def _rope(config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The rotary embedding's settings: rope_parameters, and what was rope_scaling before it."""
    rope = config.rope
    scaling: dict[str, Any] = {"rope_type": rope.kind}
    if rope.kind != "default":
        scaling["factor"] = rope.factor
    if rope.kind == "llama3":
        scaling["low_freq_factor"] = rope.low_freq_factor
        scaling["high_freq_factor"] = rope.high_freq_factor
        scaling["original_max_position_embeddings"] = int(rope.original_length)
    parameters = {**scaling, "rope_theta": rope.theta}
    # "type" is the name of rope_type before transformers 4.43, which others still read.
    return parameters, None if rope.kind == "default" else {**scaling, "type": rope.kind}
