"""Translates GGUF metadata to config.json; unknown settings are refused by name."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gguf import ReaderTensor

from ...errors import UserError
from .reader import Metadata, dequantized
from .tokenizer import GgufTokenizer


class Architecture(NamedTuple):
    """What differs between the architectures that can be imported.

    Attributes:
      model_class: the name of the class in transformers.
      permuted: whether the rows of q and k are reordered. llama.cpp rotates neighbouring entries
        of a head, Hugging Face entry i with i + d/2; for Llama its converter makes up for that.
      config: further keys of config.json.
    """

    model_class: str
    permuted: bool
    config: dict[str, Any]


# By general.architecture, which is "llama" in Mistral's files.
ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", True, {"attention_bias": False, "mlp_bias": False}),
    "qwen2": Architecture("Qwen2ForCausalLM", False, {"use_sliding_window": False}),
    "qwen3": Architecture(
        "Qwen3ForCausalLM", False, {"attention_bias": False, "use_sliding_window": False}
    ),
}


# The keys under the architecture's name that are used here, or change nothing.
KNOWN_KEYS = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "tensor_data_layout",
        "vocab_size",
    }
)

ROPE_FACTORS = "rope_freqs.weight"


class Sizes(NamedTuple):
    """The dimensions of a model."""

    vocab: int
    embed: int
    heads: int
    kv_heads: int
    head: int  # entries per head
    q: int  # heads * head
    kv: int  # kv_heads * head
    ffn: int
    layers: int


def read_sizes(metadata: Metadata, architecture: str, stored: Mapping[str, ReaderTensor]) -> Sizes:
    """The dimensions from the metadata, and the vocabulary's from the embedding.

    Raises:
      UserError: if they do not fit together.
    """

    def size(key: str, default: int | None = None) -> int:
        key = f"{architecture}.{key}"
        value = metadata.get(key, int)
        if value is None:
            value = metadata.require(key, int) if default is None else default
        if value <= 0:
            raise metadata.error(key, f"is {value}, expected a positive number")
        return value

    embed = size("embedding_length")
    heads = size("attention.head_count")
    kv_heads = size("attention.head_count_kv", heads)
    head = size("attention.key_length", embed // heads)
    if heads % kv_heads or head % 2:
        raise UserError(
            f"{metadata.source}: {heads} heads of {head} cannot share {kv_heads} key-value heads"
        )
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := size(key, head)) != head:
            raise metadata.error(
                f"{architecture}.{key}", f"is {other}, expected {head} as in a key"
            )
    embedding = stored.get("token_embd.weight")
    return Sizes(
        vocab=int(embedding.shape[-1]) if embedding else 0,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head=head,
        q=heads * head,
        kv=kv_heads * head,
        ffn=size("feed_forward_length"),
        layers=size("block_count"),
    )


def read_rope(
    metadata: Metadata, architecture: str, head: int, factors: ReaderTensor | None
) -> dict[str, Any]:
    """The rope_parameters of a Hugging Face config.

    Args:
      head: entries per head.
      factors: the tensor with one divisor per frequency, if the file has it.
    """
    theta = metadata.get(f"{architecture}.rope.freq_base", float) or 10_000.0
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    kind = metadata.get(f"{architecture}.rope.scaling.type", str)
    # Old files have a factor without a type, which means linear.
    factor = metadata.get(f"{architecture}.rope.scaling.factor", float) or metadata.get(
        f"{architecture}.rope.scale_linear", float
    )
    if kind not in (None, "none", "linear"):
        raise metadata.error(
            f"{architecture}.rope.scaling.type", f"is {kind!r}, which is not supported"
        )
    if kind != "none" and factor not in (None, 0.0, 1.0):
        rope |= {"rope_type": "linear", "factor": factor}
    if factors is None:
        return rope
    if rope["rope_type"] != "default":
        raise metadata.error(
            f"{architecture}.rope.scaling.factor", f"comes on top of {ROPE_FACTORS}"
        )
    return rope | _llama3_scaling(
        metadata.source, theta, head, dequantized(metadata.source, factors)
    )


def _llama3_scaling(
    source: Path, theta: float, head: int, factors: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """The scaling of Llama 3.1 and later, recognised by its divisors, one per frequency."""
    # These three are the same in every released model; the fourth number is the largest divisor.
    low, high, original = 1.0, 4.0, 8192
    factor = float(factors.max())
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head, 2) / head)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise UserError(
            f"{source}: {ROPE_FACTORS} is not Llama 3's frequency scaling, the only one supported"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def hf_config(
    metadata: Metadata,
    architecture: str,
    sizes: Sizes,
    rope: dict[str, Any],
    tokenizer: GgufTokenizer,
) -> dict[str, Any]:
    """The content of config.json, but for the dtype and whether the embeddings are tied."""
    return {
        "architectures": [ARCHITECTURES[architecture].model_class],
        "model_type": architecture,
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.embed,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head,
        "hidden_act": "silu",
        "max_position_embeddings": metadata.require(f"{architecture}.context_length", int),
        "rms_norm_eps": metadata.require(f"{architecture}.attention.layer_norm_rms_epsilon", float),
        "rope_parameters": rope,
        "bos_token_id": tokenizer.roles.get("bos_token"),
        "eos_token_id": tokenizer.roles.get("eos_token"),
        # No pad_token_id: transformers would freeze that row of the embedding, which in some models
        # is also the end-of-turn token's. The tokenizer and the generation config have it.
        **ARCHITECTURES[architecture].config,
    }


def hf_generation_config(tokenizer: GgufTokenizer) -> dict[str, Any]:
    """The content of generation_config.json."""
    ids: dict[str, Any] = {f"{role}_id": index for role, index in tokenizer.roles.items()}
    ids.pop("unk_token_id", None)
    if len(tokenizer.stops) > 1:
        ids["eos_token_id"] = tokenizer.stops
    return ids
