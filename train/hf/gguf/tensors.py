"""Maps the tensors of a GGUF file to those of a Hugging Face model."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from gguf import ReaderTensor

from ...errors import UserError
from .config import ARCHITECTURES, Sizes
from .reader import dequantized, shortened


class _Row(NamedTuple):
    """One tensor under both names."""

    gguf: str
    hf: str
    shape: tuple[str, ...]  # fields of Sizes
    only: str | None = None  # the one architecture that has this tensor
    heads: str | None = None  # the field of Sizes with the number of heads, if rows are permuted


_MODEL_ROWS = (
    _Row("token_embd.weight", "model.embed_tokens.weight", ("vocab", "embed")),
    _Row("output_norm.weight", "model.norm.weight", ("embed",)),
    _Row("output.weight", "lm_head.weight", ("vocab", "embed")),
)


# Named blk.N.… in GGUF and model.layers.N.… in Hugging Face's format.
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


class ImportedTensor(NamedTuple):
    """One tensor to write."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.float32]]


def map_tensors(
    source: Path, architecture: str, sizes: Sizes, stored: Mapping[str, ReaderTensor]
) -> list[ImportedTensor]:
    """The tensors of the Hugging Face model, each with the function that reads it from the file.

    Raises:
      UserError: naming every tensor that is missing, superfluous or of the wrong shape.
    """
    tensors, faults, superfluous = [], [], set(stored)
    for row in _rows(architecture, sizes.layers):
        tensor = stored.get(row.gguf)
        superfluous.discard(row.gguf)
        shape = tuple(getattr(sizes, axis) for axis in row.shape)
        if tensor is None:
            if row.gguf != "output.weight":  # absent where it is tied to the embedding
                faults.append(f"{row.gguf} is missing")
        elif (actual := tuple(reversed(tensor.shape.tolist()))) != shape:
            faults.append(f"{row.gguf} is {actual}, expected {shape}")
        else:
            heads = getattr(sizes, row.heads) if row.heads else None
            tensors.append(ImportedTensor(row.hf, shape, _reader(source, tensor, heads)))
    faults += [f"{name} is not part of a {architecture} model" for name in sorted(superfluous)]
    if faults:
        raise UserError(f"{source}: {shortened(faults)}")
    return tensors


def _rows(architecture: str, num_layers: int) -> Iterator[_Row]:
    """The rows of the tables for one architecture, those of the layers once per layer."""
    yield from _MODEL_ROWS
    for layer in range(num_layers):
        for row in _LAYER_ROWS:
            if row.only in (None, architecture):
                yield row._replace(
                    gguf=f"blk.{layer}.{row.gguf}",
                    hf=f"model.layers.{layer}.{row.hf}",
                    heads=row.heads if ARCHITECTURES[architecture].permuted else None,
                )


def _reader(
    source: Path, tensor: ReaderTensor, heads: int | None
) -> Callable[[], npt.NDArray[np.float32]]:
    def read() -> npt.NDArray[np.float32]:
        weights = dequantized(source, tensor)
        return weights if heads is None else _unpermuted(weights, heads)

    return read


def _unpermuted(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Reorders each head's rows from GGUF's 0, d/2, 1, d/2 + 1, … to 0, 1, 2, …"""
    pairs = weights.reshape(heads, -1, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)
