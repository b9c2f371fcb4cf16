"""The architecture of a decoder, read from a Hugging Face config.json."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import UserError
from .rope import Rope

# What transformers assumes for a key that a config.json of this model_type leaves out.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "qwen3": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "head_dim": 128,
    },
}

# A model with more is no model, and its layers would be listed without end.
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class ComputeOptions:
    """How a decoder computes: rounding, memory and time differ, the function does not."""

    dtype: str = "float32"
    """float32 or bfloat16, the dtype of activations and matrix products; norms, rotations and
    softmax are float32 always."""
    remat: str = "none"
    """What the backward pass recomputes: "none", "dots" (all but the products with weights), "full"
    (whole layers) or "offload" (whole layers, from inputs kept in the host's memory)."""
    attention: str = "xla"
    """The kernel that computes attention: "xla", "cudnn" or "splash"."""


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a Llama-type decoder. Hashable, so it can be a static argument of jit."""

    model_type: str
    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int  # L
    num_attention_heads: int  # H
    num_key_value_heads: int  # K, divides H
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    rope: Rope
    windows: tuple[int | None, ...]  # per layer: positions that a token sees, itself included
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    original: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], where: str = "config.json") -> "ModelConfig":
        """Reads config.json's content, in the style of transformers 4 or 5.

        Raises:
          UserError: naming the key that is missing, malformed or not supported.
        """
        kind = hf.get("model_type")
        if not isinstance(kind, str) or kind not in DEFAULTS:
            raise UserError(
                f"{where}: model_type {kind!r} is not supported; supported: {', '.join(DEFAULTS)}"
            )
        read = _Reader({**DEFAULTS[kind], **hf}, where)
        _refuse_unsupported(read)
        heads = read.count("num_attention_heads")
        kv_heads = read.count("num_key_value_heads", heads)
        hidden = read.count("hidden_size")
        head_dim = read.count("head_dim", hidden // heads)
        if heads % kv_heads:
            raise read.fault("num_key_value_heads", f"must divide num_attention_heads ({heads})")
        if head_dim % 2:
            raise read.fault("head_dim", "must be even")
        bias = read.flag("attention_bias") if kind in ("llama", "qwen3") else False
        max_positions = read.count("max_position_embeddings")
        return cls(
            model_type=kind,
            vocab_size=read.count("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.count("intermediate_size"),
            num_hidden_layers=read.count("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            rms_norm_eps=read.number("rms_norm_eps", 1e-6),
            tie_word_embeddings=read.flag("tie_word_embeddings"),
            rope=Rope.from_hf(read.values, where, max_positions),
            windows=_windows(read, kind),
            qkv_bias=bias or kind == "qwen2",
            out_bias=bias,
            mlp_bias=kind == "llama" and read.flag("mlp_bias"),
            qk_norm=kind == "qwen3",
            original=copy.deepcopy(dict(hf)),
        )

    def describe(self) -> dict[str, str]:
        """Each part of the architecture as text, by the key of config.json that it is read from."""
        compared = (part for part in fields(self) if part.compare)
        return {f"config.json {part.name}": repr(getattr(self, part.name)) for part in compared}

    def check_length(self, length: int, setting: str) -> None:
        """Checks that rows of this many tokens have positions.

        Raises:
          UserError: naming the setting that asks for more.
        """
        if length > self.max_position_embeddings:
            raise UserError(
                f"{setting} is {length:,}, and the model has {self.max_position_embeddings:,} "
                f"positions; set {setting} to that or less"
            )


def load_model_config(folder: Path) -> ModelConfig:
    """Reads the config.json in a model's folder.

    Raises:
      UserError: if config.json is missing, is not JSON or has a setting that is not supported.
    """
    file = folder / "config.json"
    try:
        hf = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a model's folder") from None
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); download or copy it again") from None
    if not isinstance(hf, dict):
        raise UserError(f"{file}: must be a JSON object; download or copy it again")
    return ModelConfig.from_hf(hf, str(file))


@dataclass(frozen=True)
class _Reader:
    """Typed access to config.json; null counts as absent, as it does in transformers."""

    values: Mapping[str, Any]
    where: str

    def fault(self, key: str, message: str) -> UserError:
        return UserError(f"{self.where}: {key} {message}, got {self.values.get(key)!r}")

    def count(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{self.where}: {key} is missing; is this a causal language model?")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.fault(key, "must be a positive integer")
        if value >= 2**31:
            raise self.fault(key, "must be below 2147483648")
        if key == "num_hidden_layers" and value > _MOST_LAYERS:
            raise self.fault(key, f"must be at most {_MOST_LAYERS:,}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.fault(key, "must be a positive number")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.fault(key, "must be true or false")
        return bool(value)


def _refuse_unsupported(read: _Reader) -> None:
    values = read.values
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise read.fault("hidden_act", "is not supported; supported: silu")
    if values.get("quantization_config") is not None:
        raise UserError(
            f"{read.where}: quantization_config: quantized weights are not supported; "
            "use the model's unquantized version"
        )
    if values.get("pretraining_tp") not in (None, 1):
        raise read.fault("pretraining_tp", "other than 1 is not supported")
    if values.get("attention_dropout"):
        raise read.fault("attention_dropout", "is not supported; set it to 0")


def _windows(read: _Reader, kind: str) -> tuple[int | None, ...]:
    """The sliding window of each layer; None if a token sees all before it."""
    layers = read.count("num_hidden_layers")
    slides = kind == "mistral" or (kind in ("qwen2", "qwen3") and read.flag("use_sliding_window"))
    has_window = slides and read.values["sliding_window"] is not None
    window = read.count("sliding_window") if has_window else None
    first = 0  # The first layer with a window.
    if kind != "mistral" and window:
        first = read.values.get("max_window_layers", 0)
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise read.fault("max_window_layers", "must be an integer of at least 0")
    usual = tuple(window if layer >= first else None for layer in range(layers))
    types = read.values.get("layer_types")
    if types is None:
        return usual
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != layers or any(t not in known for t in types):
        raise read.fault("layer_types", f"must be {layers} of {' and '.join(known)}")
    if "sliding_attention" in types and window is None:
        raise read.fault("layer_types", "has sliding_attention but no sliding_window is in use")
    windows = tuple(window if t == "sliding_attention" else None for t in types)
    if windows != usual and kind not in ("qwen2", "qwen3"):
        raise read.fault("layer_types", f"that differ by layer are not supported for {kind}")
    return windows
