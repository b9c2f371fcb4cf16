"""From GGUF metadata to config.json; what is not known is refused by name."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import UserError
from .reader import dequantized
from .tokenizer import GgufTokenizer, Metadata


class Architecture(NamedTuple):
    model_class: str
    # llama.cpp rotates neighbouring entries of a head, Hugging Face entry i with i + d/2. For
    # Llama its converter reorders the rows of q and k to make up for that.
    permuted: bool
    config: dict[str, Any]


# general.architecture -> what Hugging Face calls it. Mistral files say "llama".
ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", True, {"attention_bias": False, "mlp_bias": False}),
    "qwen2": Architecture("Qwen2ForCausalLM", False, {"use_sliding_window": False}),
    "qwen3": Architecture(
        "Qwen3ForCausalLM", False, {"attention_bias": False, "use_sliding_window": False}
    ),
}


# Every key under the architecture's name that is used here, or says nothing that matters.
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
    vocab: int
    embed: int
    heads: int
    kv_heads: int
    head: int
    q: int
    kv: int
    ffn: int
    layers: int


def read_sizes(metadata: Metadata, name: str, stored: dict[str, Any]) -> Sizes:
    def size(key: str, default: int | None = None) -> int:
        key = f"{name}.{key}"
        value = metadata.get(key, int)
        if value is None:
            value = metadata.need(key, int) if default is None else default
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
            raise metadata.error(f"{name}.{key}", f"is {other}; only the {head} of a key works")
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


def read_rope(metadata: Metadata, name: str, head: int, factors: Any) -> dict[str, Any]:
    """The rope_parameters of a Hugging Face config."""
    theta = metadata.get(f"{name}.rope.freq_base", float) or 10_000.0
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    kind = metadata.get(f"{name}.rope.scaling.type", str)
    # Without a type, as in old files, a factor means linear.
    factor = metadata.get(f"{name}.rope.scaling.factor", float) or metadata.get(
        f"{name}.rope.scale_linear", float
    )
    if kind not in (None, "none", "linear"):
        raise metadata.error(f"{name}.rope.scaling.type", f"is {kind!r}, which is not supported")
    if kind != "none" and factor not in (None, 0.0, 1.0):
        rope |= {"rope_type": "linear", "factor": factor}
    if factors is None:
        return rope
    if rope["rope_type"] != "default":
        raise metadata.error(f"{name}.rope.scaling.factor", f"comes on top of {ROPE_FACTORS}")
    return rope | _llama3_scaling(
        metadata.source, theta, head, dequantized(metadata.source, factors)
    )


def _llama3_scaling(
    source: Path, theta: float, head: int, factors: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """The scaling that Llama 3.1 and later store as one divisor for each frequency."""
    # Every released model has these three; the fourth number is the largest divisor.
    low, high, original = 1.0, 4.0, 8192
    factor = float(factors.max())
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head, 2) / head)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise UserError(
            f"{source}: {ROPE_FACTORS} is not Llama 3's frequency scaling, which alone is known"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def hf_config(
    metadata: Metadata, name: str, sizes: Sizes, rope: dict[str, Any], tokenizer: GgufTokenizer
) -> dict[str, Any]:
    return {
        "architectures": [ARCHITECTURES[name].model_class],
        "model_type": name,
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.embed,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head,
        "hidden_act": "silu",
        "max_position_embeddings": metadata.need(f"{name}.context_length", int),
        "rms_norm_eps": metadata.need(f"{name}.attention.layer_norm_rms_epsilon", float),
        "rope_parameters": rope,
        "bos_token_id": tokenizer.roles.get("bos_token"),
        "eos_token_id": tokenizer.roles.get("eos_token"),
        # No pad_token_id: transformers would freeze that row of the embedding, which is also the
        # end-of-turn token's in some models. The tokenizer and the generation config have it.
        **ARCHITECTURES[name].config,
    }


def hf_generation_config(tokenizer: GgufTokenizer) -> dict[str, Any]:
    ids: dict[str, Any] = {f"{role}_id": index for role, index in tokenizer.roles.items()}
    ids.pop("unk_token_id", None)
    if len(tokenizer.stops) > 1:
        ids["eos_token_id"] = tokenizer.stops
    return ids
