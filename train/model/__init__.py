"""Llama-type decoders in Flax NNX, and their weights in Hugging Face format."""

from train.model.config import ModelConfig, load_model_config
from train.model.decoder import Cache, Decoder, Documents
from train.model.functional import (
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
from train.model.kernels import choose_attention
from train.model.layers import scores
from train.model.saving import save_params
from train.model.source import resolve_model
from train.model.weights import load_params

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
    "load_params",
    "logical_axes",
    "logits",
    "resolve_model",
    "save_params",
    "scores",
]
