"""Llama-type decoders in Flax NNX."""

from .attention_kernels import choose_attention
from .config import ComputeOptions, ModelConfig, load_model_config
from .decoder import Cache, Decoder, Documents
from .functional import (
    FLOAT32,
    Params,
    abstract_params,
    decode,
    forward,
    head_weight,
    hidden_states,
    init_cache,
    init_params,
    logical_axes,
    logits,
    stacked_axes,
    unstack,
)
from .layers import compute_logits, weight_gradient
from .lora import LoraParams

__all__ = [
    "FLOAT32",
    "Cache",
    "ComputeOptions",
    "Decoder",
    "Documents",
    "LoraParams",
    "ModelConfig",
    "Params",
    "abstract_params",
    "choose_attention",
    "compute_logits",
    "decode",
    "forward",
    "head_weight",
    "hidden_states",
    "init_cache",
    "init_params",
    "load_model_config",
    "logical_axes",
    "logits",
    "stacked_axes",
    "unstack",
    "weight_gradient",
]
