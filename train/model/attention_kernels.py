"""What computes attention: XLA, cuDNN on GPUs, splash attention on TPUs.

All take q [B, T, H, head_dim], already divided by the root of head_dim, and k, v
[B, S, K, head_dim], whose K heads each serve a group of H / K; all give [B, T, H, head_dim]. A
token sees itself and what is before it, within its window and in its own document.
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
from .attention import Attend
from .config import ModelConfig

BACKENDS = {"cudnn": "gpu", "splash": "tpu"}
# Rows of scores that XLA's attention holds at a time, and how often it may be written out.
ROWS, PIECES = 128, 8


def choose_attention(name: str, config: ModelConfig, mesh: Mesh, dtype: str) -> str:
    """The kernel that `model.attention` names; of "auto", the devices' own where it can be used.

    Raises:
      UserError: where the one that was named cannot be used.
    """
    if name == "auto":
        able = (kernel for kernel in BACKENDS if not _fault(kernel, config, mesh, dtype))
        return next(able, "xla")
    fault = _fault(name, config, mesh, dtype)
    if fault:
        raise UserError(f"model.attention: {name} {fault}, or take model.attention=auto")
    return name


def _fault(kernel: str, config: ModelConfig, mesh: Mesh, dtype: str) -> str | None:
    """Why a kernel cannot be used, and what to do."""
    heads, tensor = config.num_key_value_heads, mesh.shape["tensor"]
    backend = mesh.devices.flat[0].platform
    if kernel == "xla":
        return None
    if backend != BACKENDS[kernel]:
        return f"is for {BACKENDS[kernel].upper()}s and this is a {backend.upper()}; choose xla"
    if kernel == "cudnn" and dtype == "float32":
        return "does not compute in float32; set model.compute_dtype=bfloat16"
    if kernel == "cudnn" and mesh.shape.get("context", 1) > 1:
        return "needs whole rows; set mesh.context=1"
    if heads % tensor:
        return f"needs {heads} key-value heads divisible by {tensor}; choose another mesh.tensor"
    return None


def attend_causally(kernel: str, segment_ids: jax.Array | None) -> Attend:
    """Attention among the tokens of a call, whose documents segment_ids [B, T] tells apart."""
    return partial({"xla": _xla, "cudnn": _cudnn, "splash": _splash}[kernel], segment_ids)


def attend_to_cache(slot: jax.Array, start: jax.Array) -> Attend:
    """Attention of tokens from `slot` on to a cache, in which row b's text begins at start[b]."""

    def attend(window: int | None, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        keys = jnp.arange(k.shape[1])
        seen = _sees(slot + jnp.arange(q.shape[1]), keys, window)
        return _softmax(q, k, v, seen & (keys >= start[:, None, None]))

    return attend


def _sees(rows: jax.Array, keys: jax.Array, window: int | None) -> jax.Array:
    """bool [T, S]: whether the token at a row sees the one at a key."""
    distance = rows[:, None] - keys
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def _softmax(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over float32 scores where mask [B, T, S] or [T, S] is true.

    A token that sees nothing gets numbers without meaning, but finite ones.
    """
    B, T, H, head_dim = q.shape
    K = k.shape[2]
    # A group's rows lie together, so that both products are plain and only small arrays turn.
    q = q.reshape(B, T, K, H // K, head_dim).transpose(0, 2, 3, 1, 4)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
    heads = (0, 1), (0, 1)
    scores = jax.lax.dot_general(q, k, (((4,), (3,)), heads), preferred_element_type=jnp.float32)
    scores = jnp.where(mask[..., None, None, :, :], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jax.lax.dot_general(weights, v, (((4,), (2,)), heads))
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, H, head_dim)


def _xla(
    segments: jax.Array | None, window: int | None, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
    """Rows in pieces, each of which looks at no more keys than it may see."""
    T = q.shape[1]
    size = T if num_shards("length") > 1 else max(ROWS, -(-T // PIECES))
    pieces = []
    for begin in range(0, T, size):
        end = min(begin + size, T)
        first = 0 if window is None else max(begin - window + 1, 0)
        mask = _sees(jnp.arange(begin, end), jnp.arange(first, end), window)
        if segments is not None:
            mask = mask & (segments[:, begin:end, None] == segments[:, None, first:end])
        pieces.append(_softmax(q[:, begin:end], k[:, first:end], v[:, first:end], mask))
    return jnp.concatenate(pieces, axis=1)


def _spread(
    kernel: Callable[..., jax.Array], spec: Any, segments: jax.Array | None
) -> Callable[..., jax.Array]:
    """A kernel on each device's rows and heads: the partitioner cannot split one by itself.

    Args:
      kernel: (what `spec` is of, segments of the queries and of the keys, q, k, v).
    """
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    q, kv = (partition_spec(["batch", at, "heads", None]) for at in ("length", None))
    rows = [None if segments is None else partition_spec(["batch", at]) for at in ("length", None)]
    # The kernels do not say over which axes their results differ, so that this is not checked.
    return jax.shard_map(kernel, in_specs=(spec, *rows, q, kv, kv), out_specs=q, check_vma=False)


def _cudnn(
    segments: jax.Array | None, window: int | None, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
    """cuDNN's flash attention; for packed rows, its mask takes T·T entries a row."""

    def call(_: None, rows: Any, keys: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        attention = partial(
            jax.nn.dot_product_attention, q, k, v, scale=1.0, implementation="cudnn"
        )
        if rows is None:
            left = None if window is None else (window - 1, 0)
            return attention(is_causal=True, local_window_size=left)
        at = jnp.arange(q.shape[1])
        mask = _sees(at, at, window) & (rows[:, :, None] == keys[:, None, :])
        return attention(mask=mask[:, None])

    return _spread(call, None, segments)(None, segments, segments, q, k, v)


def _splash(
    segments: jax.Array | None, window: int | None, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
    """Pallas's splash attention, which skips blocks of keys that a block of rows does not see.

    Of a row whose length is split, each device has its part of the queries, and all keys.
    """
    T, H = q.shape[1:3]
    parts = num_shards("length")
    length = -(-T // (128 * parts)) * 128 * parts  # Blocks are of whole registers.
    kernel = _splash_kernel(window, length, H // num_shards("heads"), parts)

    def call(kernel: Any, rows: Any, keys: Any, *qkv: jax.Array) -> jax.Array:
        documents = None if rows is None else splash.SegmentIds(rows, keys)
        mixed = jax.vmap(kernel, in_axes=(0, 0, 0, 0))(*(x.swapaxes(1, 2) for x in qkv), documents)
        return mixed.swapaxes(1, 2)

    def lengthen(x: jax.Array) -> jax.Array:  # By what no token sees.
        return jnp.pad(x, [(0, 0), (0, length - T)] + [(0, 0)] * (x.ndim - 2))

    spec, mesh = None, jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        spec = kernel.manual_sharding_spec(NamedSharding(mesh, partition_spec([None, "length"])))
    documents = None if segments is None else lengthen(segments)
    q, k, v = map(lengthen, (q, k, v))
    return _spread(call, spec, segments)(kernel, documents, documents, q, k, v)[:, :T]


def _splash_kernel(window: int | None, length: int, heads: int, parts: int) -> Any:
    """For rows of a length, of which each of so many parts has its own queries."""
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
