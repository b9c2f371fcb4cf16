"""The kernels that compute attention: XLA, cuDNN on GPUs, splash attention on TPUs.

All take q [B, T, H, head_dim], already divided by the square root of head_dim, and k, v
[B, S, K, head_dim], whose K heads each serve a group of H / K; all return [B, T, H, head_dim]. A
token sees itself and the tokens before it, within its window and within its own document.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import Mesh, NamedSharding

from ..errors import UserError
from ..sharding import num_shards, partition_spec
from .attention import AttentionFn
from .config import ModelConfig

PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}  # the platform of each kernel that has only one
# XLA's attention holds the scores of this many rows at a time, in at most so many pieces.
MIN_ROWS, MAX_PIECES = 128, 8


def choose_attention(name: str, config: ModelConfig, mesh: Mesh, dtype: str) -> str:
    """The kernel that `model.attention` names; "auto" is the devices' own, if it can be used.

    Raises:
      UserError: where a named kernel cannot be used.
    """
    if name == "auto":
        usable = (kernel for kernel in PLATFORMS if not _obstacle(kernel, config, mesh, dtype))
        return next(usable, "xla")
    obstacle = _obstacle(name, config, mesh, dtype)
    if obstacle:
        raise UserError(f"model.attention: {name} {obstacle}, or set model.attention=auto")
    return name


def _obstacle(kernel: str, config: ModelConfig, mesh: Mesh, dtype: str) -> str | None:
    """Why a kernel cannot be used, and what to do; None if it can."""
    heads, tensor = config.num_key_value_heads, mesh.shape["tensor"]
    platform = mesh.devices.flat[0].platform
    if kernel == "xla":
        return None
    if platform != PLATFORMS[kernel]:
        return f"is for {PLATFORMS[kernel].upper()}s and this is a {platform.upper()}; choose xla"
    if kernel == "cudnn" and dtype == "float32":
        return "does not compute in float32; set model.compute_dtype=bfloat16"
    if kernel == "cudnn" and mesh.shape.get("context", 1) > 1:
        return "needs whole rows; set mesh.context=1"
    if heads % tensor:
        return f"needs {heads} key-value heads divisible by {tensor}; choose another mesh.tensor"
    return None


def causal_attention(kernel: str, segment_ids: jax.Array | None) -> AttentionFn:
    """Attention among the tokens of a call, by a named kernel.

    Args:
      segment_ids: int32 [B, T], the number of each token's document; None if rows are not packed.
    """
    return partial({"xla": _xla, "cudnn": _cudnn, "splash": _splash}[kernel], segment_ids)


def cached_attention(cache_index: jax.Array, start: jax.Array) -> AttentionFn:
    """Attention of new tokens to a cache that holds them from `cache_index` on.

    Its keys and values are [B, K, S, head_dim].

    Args:
      start: int32 [B], the slot at which the text of each row begins.
    """

    def attend(window: int | None, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        keys = jnp.arange(k.shape[2])
        mask = _causal_mask(cache_index + jnp.arange(q.shape[1]), keys, window)
        return _softmax(q, k, v, mask & (keys[None, None] >= start[:, None, None]))

    return attend


def _causal_mask(queries: jax.Array, keys: jax.Array, window: int | None) -> jax.Array:
    """bool [1, T, S]: whether the token at position queries [T] sees the one at keys [S]."""
    distance = queries[None, :, None] - keys[None, None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def _softmax(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over float32 scores where mask [B, T, S] or [1, T, S] is true; k, v [B, K, S, …].

    A token that sees nothing gets numbers without meaning, but finite ones.
    """
    B, T, H, head_dim = q.shape
    K = k.shape[1]
    # The rows of a group are adjacent, so both products are plain and only small arrays transpose.
    q = q.reshape(B, T, K, H // K, head_dim).transpose(0, 2, 3, 1, 4)
    heads = (0, 1), (0, 1)
    scores = jax.lax.dot_general(q, k, (((4,), (3,)), heads), preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jax.lax.dot_general(weights, v, (((4,), (2,)), heads))
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, H, head_dim)


def _xla(
    segments: jax.Array | None, window: int | None, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
    """Attention in pieces of rows, each of which reads only the keys that it may see."""
    T = q.shape[1]
    size = T if num_shards("length") > 1 else max(MIN_ROWS, -(-T // MAX_PIECES))
    pieces = []
    for begin in range(0, T, size):
        end = min(begin + size, T)
        first = 0 if window is None else max(begin - window + 1, 0)
        mask = _causal_mask(jnp.arange(begin, end), jnp.arange(first, end), window)
        if segments is not None:
            mask = mask & (segments[:, begin:end, None] == segments[:, None, first:end])
        keys, values = (x[:, first:end].transpose(0, 2, 1, 3) for x in (k, v))
        pieces.append(_softmax(q[:, begin:end], keys, values, mask))
    return jnp.concatenate(pieces, axis=1)


def _per_device(
    kernel: Callable[..., jax.Array], spec: Any, segments: jax.Array | None
) -> Callable[..., jax.Array]:
    """The kernel run on each device's rows and heads, as the partitioner cannot split a kernel.

    Args:
      kernel: (an argument with the partition spec `spec`, the segments of the queries, those of
        the keys, q, k, v) → [B, T, H, head_dim].
    """
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    q, kv = (partition_spec(["batch", axis, "heads", None]) for axis in ("length", None))
    rows = [
        None if segments is None else partition_spec(["batch", axis]) for axis in ("length", None)
    ]
    # The kernels do not declare over which axes their results vary, so that is not checked.
    return jax.shard_map(kernel, in_specs=(spec, *rows, q, kv, kv), out_specs=q, check_vma=False)


def _cudnn(
    segments: jax.Array | None, window: int | None, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
    """cuDNN's flash attention. In packed rows its mask has T² entries a row."""

    def call(_: None, rows: Any, keys: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        attention = partial(
            jax.nn.dot_product_attention, q, k, v, scale=1.0, implementation="cudnn"
        )
        if rows is None:
            left = None if window is None else (window - 1, 0)
            return attention(is_causal=True, local_window_size=left)
        positions = jnp.arange(q.shape[1])
        mask = _causal_mask(positions, positions, window) & (rows[:, :, None] == keys[:, None, :])
        return attention(mask=mask[:, None])

    return _per_device(call, None, segments)(None, segments, segments, q, k, v)


def _splash(
    segments: jax.Array | None, window: int | None, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
    """Pallas's splash attention, which skips blocks of keys that no row of a block sees.

    If rows are split along their length, each device has its part of the queries, and all keys.
    """
    T, H = q.shape[1:3]
    parts = num_shards("length")
    length = -(-T // (128 * parts)) * 128 * parts  # A block consists of whole registers.
    kernel = _splash_kernel(window, length, H // num_shards("heads"), parts)

    def call(kernel: Any, rows: Any, keys: Any, *qkv: jax.Array) -> jax.Array:
        documents = None if rows is None else splash.SegmentIds(rows, keys)
        mixed = jax.vmap(kernel, in_axes=(0, 0, 0, 0))(*(x.swapaxes(1, 2) for x in qkv), documents)
        return mixed.swapaxes(1, 2)

    def pad(x: jax.Array) -> jax.Array:  # Causality hides the padded keys from every query.
        return jnp.pad(x, [(0, 0), (0, length - T)] + [(0, 0)] * (x.ndim - 2))

    spec, mesh = None, jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        spec = kernel.manual_sharding_spec(NamedSharding(mesh, partition_spec([None, "length"])))
    documents = None if segments is None else pad(segments)
    q, k, v = map(pad, (q, k, v))
    return _per_device(call, spec, segments)(kernel, documents, documents, q, k, v)[:, :T]


def _splash_kernel(window: int | None, length: int, heads: int, parts: int) -> Any:
    """The kernel for rows of `length`, whose queries are split into so many parts."""
    block = next(size for size in (512, 256, 128) if length % (size * parts) == 0)
    shape = (length, length)
    mask = (
        splash.CausalMask(shape)
        if window is None
        else splash.LocalMask(shape, (window - 1, 0), offset=0)
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=parts,
    )
