"""Writes little GGUF files, and imports them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors import safe_open
from tokenizers import Tokenizer, pre_tokenizers

from train.errors import UserError
from train.hf.gguf import import_gguf

Weights = dict[str, npt.NDArray[np.float32]]

EMBED, HEADS, KV_HEADS, FFN, LAYERS, CONTEXT = 32, 4, 2, 64, 2, 128
PRE = {"llama": "smollm", "qwen2": "qwen2", "qwen3": "qwen2"}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}\n"
)

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# "the" is no merge's result: only a vocabulary that beats the merges gives it.
TOKENS = [
    *SPECIALS,
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *["12", "he", "Ġhe", "ĊĊ", "the", "<tool>", "[PAD0]"],
]
TYPES = [3] * 3 + [1] * (len(TOKENS) - 5) + [4, 5]
MERGES = ["1 2", "h e", "Ġ he", "Ċ Ċ"]
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.chat_template": CHAT_TEMPLATE,
}

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def head_dim(architecture: str) -> int:
    return 16 if architecture == "qwen3" else EMBED // HEADS


def state_dict(architecture: str, tied: bool = True) -> Weights:
    """Random weights under transformers' names."""
    q, kv = HEADS * head_dim(architecture), KV_HEADS * head_dim(architecture)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (len(TOKENS), EMBED),
        "model.norm.weight": (EMBED,),
    }
    if not tied:
        shapes["lm_head.weight"] = (len(TOKENS), EMBED)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (EMBED,),
        "self_attn.q_proj.weight": (q, EMBED),
        "self_attn.k_proj.weight": (kv, EMBED),
        "self_attn.v_proj.weight": (kv, EMBED),
        "self_attn.o_proj.weight": (EMBED, q),
        "post_attention_layernorm.weight": (EMBED,),
        "mlp.gate_proj.weight": (FFN, EMBED),
        "mlp.up_proj.weight": (FFN, EMBED),
        "mlp.down_proj.weight": (EMBED, FFN),
    }
    if architecture == "qwen2":
        layer |= {f"self_attn.{x}_proj.bias": (n,) for x, n in (("q", q), ("k", kv), ("v", kv))}
    if architecture == "qwen3":
        layer |= {f"self_attn.{x}_norm.weight": (head_dim("qwen3"),) for x in "qk"}
    for index in range(LAYERS):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def to_gguf(name: str, weights: npt.NDArray[np.float32], permute: bool) -> tuple[str, Any]:
    """A tensor as llama.cpp's converter stores it."""
    module, kind = name.rsplit(".", 1)
    prefix = ""
    if module.startswith("model.layers."):
        _, _, index, module = module.split(".", 3)
        prefix = f"blk.{index}."
    for projection, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
        if permute and projection in module:
            halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
            weights = halves.swapaxes(1, 2).reshape(weights.shape)
    return f"{prefix}{GGUF_NAMES[module]}.{kind}", np.ascontiguousarray(weights)


def model_keys(name: str) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "block_count": LAYERS,
        "context_length": CONTEXT,
        "embedding_length": EMBED,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 100_000.0,
    }
    if name == "llama":
        keys |= {"rope.dimension_count": head_dim(name), "vocab_size": len(TOKENS)}
    if name == "qwen3":
        keys |= {"attention.key_length": head_dim(name), "attention.value_length": head_dim(name)}
    return {f"{name}.{key}": value for key, value in keys.items()}


def add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    adders: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    adders[type(value)](key, value)


def write_gguf(
    path: Path,
    architecture: str = "llama",
    weights: Weights | None = None,
    keys: Mapping[str, Any] | None = None,
    extra: Mapping[str, npt.NDArray[Any]] | None = None,
    quantized: GGMLQuantizationType | None = None,
) -> Path:
    """A whole little model; `keys` are laid over the usual ones, and None takes one away."""
    writer = GGUFWriter(path, architecture)
    usual = {**model_keys(architecture), **TOKENIZER}
    usual |= {"tokenizer.ggml.pre": PRE.get(architecture, "smollm")}
    for key, value in {**usual, **(keys or {})}.items():
        if value is not None:
            add_value(writer, key, value)
    for name, tensor in (state_dict(architecture) if weights is None else weights).items():
        stored_name, stored = to_gguf(name, tensor, permute=architecture == "llama")
        if quantized is not None and stored.ndim == 2:
            writer.add_tensor(stored_name, quantize(stored, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(stored_name, stored)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Gguf:
    """GGUF files of a little model in a test's folder, and the imports of them."""

    EMBED, HEADS, KV_HEADS, FFN, LAYERS, CONTEXT = EMBED, HEADS, KV_HEADS, FFN, LAYERS, CONTEXT
    TOKENS, CHAT_TEMPLATE = TOKENS, CHAT_TEMPLATE
    head_dim = staticmethod(head_dim)
    state_dict = staticmethod(state_dict)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"

    def write(self, architecture: str = "llama", file: str = "model.gguf", **parts: Any) -> Path:
        return write_gguf(self.folder / file, architecture, **parts)

    def imported(self, architecture: str = "llama", **parts: Any) -> Path:
        import_gguf(self.write(architecture, **parts), self.out)
        return self.out

    def refused(
        self, source: Path, *words: str, out: Path | None = None, dtype: Any = "float32"
    ) -> None:
        """The import fails with one line that has these words, and leaves nothing behind."""
        out = out or self.out
        before = sorted(out.parent.rglob("*"))
        with pytest.raises(UserError) as caught:
            import_gguf(source, out, dtype)
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message
        assert sorted(out.parent.rglob("*")) == before

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """The tensors of the import."""
        with safe_open(self.out / "model.safetensors", framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the import."""
        content: dict[str, Any] = json.loads((self.out / name).read_text(encoding="utf-8"))
        return content

    def encode(self, text: str) -> list[str]:
        """The tokens of a text by the import's tokenizer.json."""
        tokenizer = Tokenizer.from_file(str(self.out / "tokenizer.json"))
        return list(tokenizer.encode(text).tokens)


@pytest.fixture
def gguf(tmp_path: Path) -> Gguf:
    return Gguf(tmp_path)
