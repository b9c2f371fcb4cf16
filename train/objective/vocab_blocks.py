"""Cross-entropy over blocks of the vocabulary, where the gathered head would take too much memory.

A block of the head is gathered, used and dropped before the next. Each token's maximum and sum of
exponentials are updated from block to block (Milakov, Gimelshein, 2018, arXiv 1805.02867); where a
gradient is needed, a second round computes each block's logits again.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ..model import compute_logits, weight_gradient
from ..sharding import constrain, num_shards

# Bytes of a device's gathered head above which it is cut, and of a block.
LARGEST_HEAD, LARGEST_BLOCK = 1 << 30, 1 << 28


def num_blocks(head: jax.Array, dtype: DTypeLike) -> int:
    """The blocks of a head [V, D], a power of two; 1 where the head may be gathered as a whole."""
    rows = head.shape[0] // num_shards("vocab")
    size = rows * head.shape[1] * np.dtype(dtype).itemsize
    if num_shards("embed") == 1 or size <= LARGEST_HEAD:
        return 1
    blocks = 1
    while blocks * LARGEST_BLOCK < size and rows % (2 * blocks) == 0:
        blocks *= 2
    return blocks


def cut_head(head: jax.Array, blocks: int, dtype: DTypeLike) -> jax.Array:
    """The head [V, D] as blocks [N, V / N, D], each with a part of every device's rows."""
    shards = num_shards("vocab")
    by_shard = head.astype(dtype).reshape(shards, blocks, -1, head.shape[1])
    by_block = jnp.moveaxis(constrain(by_shard, "vocab", None, None, "embed"), 1, 0)
    return constrain(by_block.reshape(blocks, -1, head.shape[1]), None, "vocab", "embed")


def join_head(parts: jax.Array) -> jax.Array:
    """The array [V, D] of blocks [N, V / N, D]: the inverse of `cut_head`."""
    blocks, _, size = parts.shape
    by_shard = jnp.moveaxis(parts.reshape(blocks, num_shards("vocab"), -1, size), 0, 1)
    return constrain(by_shard.reshape(-1, size), "vocab", "embed")


def losses(
    head: jax.Array, dtype: DTypeLike, hidden: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Each token's loss and logsumexp, float32 [B, C].

    Args:
      head: as from `cut_head`.
      hidden: [B, C, D].
      targets: int32 [B, C].
    """

    def add(carry: tuple[jax.Array, ...], block: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        highest, total, picked = carry
        logits, is_target = _logits(head.shape, dtype, hidden, targets, *block)
        new = jnp.maximum(highest, jnp.max(logits, axis=-1))
        total = total * jnp.exp(highest - new)
        total += jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
        return (new, total, picked + jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)), None

    zeros = jnp.zeros(targets.shape, jnp.float32)
    carry = jnp.full(targets.shape, -math.inf, jnp.float32), zeros, zeros
    (highest, total, picked), _ = jax.lax.scan(add, carry, _numbered(head))
    logsumexp = highest + jnp.log(total)
    return logsumexp - picked, logsumexp


def losses_and_gradients(
    head: jax.Array,
    dtype: DTypeLike,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each token's loss [B, C], its gradient [B, C, D], and the head's [N, V / N, D], float32.

    Args:
      weights: float32 [B, C]; the others as those of `losses`.
    """
    loss, logsumexp = losses(head, dtype, hidden, targets)

    def add(d_hidden: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits, is_target = _logits(head.shape, dtype, hidden, targets, *block)
        d_logits = jnp.exp(logits - logsumexp[..., None]) - is_target.astype(jnp.float32)
        d_logits = (d_logits * weights[..., None]).astype(dtype)
        d_logits = constrain(d_logits, "batch", "length", "vocab")
        d_hidden += jnp.einsum(
            "btv,vd->btd", d_logits, _gathered(block[1]), preferred_element_type=jnp.float32
        )
        d_head = weight_gradient(hidden.astype(dtype), d_logits, jnp.float32)
        return constrain(d_hidden, "batch", "length", None), constrain(d_head, "vocab", "embed")

    d_hidden = jnp.zeros(hidden.shape, jnp.float32)
    d_hidden, d_head = jax.lax.scan(add, d_hidden, _numbered(head))
    return loss, d_hidden, d_head


def _numbered(head: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.arange(head.shape[0]), head


def _gathered(block: jax.Array) -> jax.Array:
    return constrain(block, "vocab", None)


def _logits(
    shape: tuple[int, ...],
    dtype: DTypeLike,
    hidden: jax.Array,
    targets: jax.Array,
    number: jax.Array,
    block: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """A block's logits [B, C, V / N], and where its targets are."""
    shards = num_shards("vocab")
    rows = shape[1] // shards
    starts = (jnp.arange(shards) * shape[0] + number) * rows
    tokens = (starts[:, None] + jnp.arange(rows)[None]).reshape(-1)
    logits = compute_logits(hidden, _gathered(block), dtype)
    return logits, tokens[None, None] == targets[..., None]
