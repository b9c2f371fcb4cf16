"""Llama-type decoders in Flax NNX."""

from .attention_kernels import choose_attention
from .config import ModelConfig, load_model_config
from .decoder import Cache, Decoder, Documents
from .functional import (
    Params,
    abstract_params,
    decode,
    forward,
    head,
    hidden_states,
    init_cache,
    init_params,
    is_stacked,
    logical_axes,
    logits,
)
from .layers import scores

__all__ = [
    "Cache",
    "Decoder",
    "Documents",
    "ModelConfig",
    "Params",
    "abstract_params",
    "choose_attention",
    "decode",
    "forward",
    "head",
    "hidden_states",
    "init_cache",
    "init_params",
    "is_stacked",
    "load_model_config",
    "logical_axes",
    "logits",
    "scores",
]
