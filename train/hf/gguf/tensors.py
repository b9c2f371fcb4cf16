"""Which tensor of a GGUF file is which of Hugging Face's."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import UserError
from .config import ARCHITECTURES, Sizes
from .reader import dequantized, listed


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


class Planned(NamedTuple):
    """One tensor to write."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.float32]]


def plan(source: Path, name: str, sizes: Sizes, stored: dict[str, Any]) -> list[Planned]:
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
            planned.append(Planned(row.hf, shape, _loader(source, tensor, heads)))
    problems += [f"{extra} is not part of a {name} model" for extra in sorted(left)]
    if problems:
        raise UserError(f"{source}: {listed(problems)}")
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
                    heads=row.heads if ARCHITECTURES[name].permuted else None,
                )


def _loader(source: Path, tensor: Any, heads: int | None) -> Callable[[], npt.NDArray[np.float32]]:
    def load() -> npt.NDArray[np.float32]:
        weights = dequantized(source, tensor)
        return weights if heads is None else _unpermuted(weights, heads)

    return load


def _unpermuted(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of a head from GGUF's order 0, d/2, 1, d/2 + 1, … back to 0, 1, 2, …"""
    pairs = weights.reshape(heads, -1, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)
