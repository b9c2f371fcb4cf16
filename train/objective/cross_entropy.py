"""Cross-entropy over a large vocabulary, with only a piece of the logits in memory at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..model import compute_logits, weight_gradient
from ..sharding import constrain, num_shards
from . import vocab_blocks

# Tokens a device whose float32 logits [tokens, V] are in memory at a time.
TOKENS = 1024
Piece = tuple[jax.Array, jax.Array, jax.Array]  # hidden [B, C, D], targets and weights [B, C]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, dtype: DTypeLike
) -> jax.Array:
    """Σ w · (logsumexp(H h) - (H h)[target]) in nats, a float32 scalar.

    Under differentiation, each piece of the logits yields its part of the gradient at once, so no
    product is computed a second time. The logits' gradients are rounded to `dtype`, as their
    factors are; the head's gradient is summed in float32.

    Args:
      hidden: h [B, T, D].
      head: H [V, D].
      targets: int32 [B, T].
      weights: w, float32 [B, T].
      dtype: dtype of the products' factors; sums are float32.
    """
    return jnp.sum(_losses(hidden, head, targets, weights, dtype) * weights)


def losses_and_hits(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """Each token's cross-entropy, and 1 if its target alone has the largest logit, else 0.

    Both float32 [B, T], in one pass over the logits, for evaluation.

    Args: as those of `cross_entropy`.
    """
    weights = jnp.ones(targets.shape, jnp.float32)
    step = partial(_loss_and_hit, head, dtype)
    scores: tuple[jax.Array, jax.Array] = _in_pieces(step, None, (hidden, targets, weights))[1]
    return scores


def _forward(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, Any]:
    d_head, (losses, d_hidden) = _with_gradient(hidden, head, targets, weights, dtype)
    # An empty slice carries the head's dtype to the backward pass.
    return jnp.sum(losses * weights), (d_hidden, d_head, losses, head[:0])


def _backward(dtype: DTypeLike, residuals: Any, d_loss: jax.Array) -> Any:
    d_hidden, d_head, losses, head = residuals
    return (
        (d_hidden.astype(jnp.float32) * d_loss).astype(d_hidden.dtype),
        (d_head * d_loss).astype(head.dtype),
        None,
        losses * d_loss,
    )


cross_entropy.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def target_logprobs(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, dtype: DTypeLike
) -> jax.Array:
    """The log-probability of each target, log softmax(H h)[target], float32 [B, T].

    For losses that are not linear in it: its gradient is known only after all pieces, so each piece
    of the logits is computed a second time in the backward pass.

    Args: as those of `cross_entropy`.
    """
    return -_losses(hidden, head, targets, jnp.ones(targets.shape, jnp.float32), dtype)


def _logprobs_forward(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, Any]:
    return target_logprobs(hidden, head, targets, dtype), (hidden, head, targets)


def _logprobs_backward(dtype: DTypeLike, residuals: Any, d_logprobs: jax.Array) -> Any:
    hidden, head, targets = residuals
    d_head, (_, d_hidden) = _with_gradient(hidden, head, targets, -d_logprobs, dtype)
    return d_hidden, d_head.astype(head.dtype), None


target_logprobs.defvjp(_logprobs_forward, _logprobs_backward)


def _losses(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, dtype: DTypeLike
) -> jax.Array:
    """Each token's loss [B, T]."""
    blocks = vocab_blocks.num_blocks(head, dtype)
    step = partial(_loss, head, dtype)
    if blocks > 1:
        step = partial(_loss_by_blocks, vocab_blocks.cut_head(head, blocks, dtype), dtype)
    losses: jax.Array = _in_pieces(step, None, (hidden, targets, weights), blocks)[1]
    return losses


def _with_gradient(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The head's gradient; each token's loss [B, T], and the gradient of its hidden state."""
    blocks = vocab_blocks.num_blocks(head, dtype)
    if blocks > 1:
        cut = vocab_blocks.cut_head(head, blocks, dtype)
        zeros = constrain(jnp.zeros(cut.shape, jnp.float32), None, "vocab", "embed")
        step = partial(_gradient_by_blocks, cut, dtype)
        d_head, scores = _in_pieces(step, zeros, (hidden, targets, weights), blocks)
        return vocab_blocks.join_head(d_head), scores
    start = constrain(jnp.zeros(head.shape, jnp.float32), "vocab", "embed")
    whole = constrain(head.astype(dtype), "vocab", None)  # Gathered once for all pieces.
    step = partial(_loss_and_gradient, whole, dtype)
    gradients: tuple[jax.Array, tuple[jax.Array, jax.Array]] = _in_pieces(
        step, start, (hidden, targets, weights)
    )
    return gradients


def _loss(head: jax.Array, dtype: DTypeLike, carry: None, piece: Piece) -> tuple[None, jax.Array]:
    """Each token's loss [B, C]."""
    hidden, targets, _ = piece
    logits = compute_logits(hidden, head, dtype)
    return None, jax.nn.logsumexp(logits, axis=-1) - _pick(logits, targets)


def _loss_by_blocks(
    head: jax.Array, dtype: DTypeLike, carry: None, piece: Piece
) -> tuple[None, jax.Array]:
    """`_loss` with the blocks of a head."""
    return None, vocab_blocks.losses(head, dtype, *piece[:2])[0]


def _gradient_by_blocks(
    head: jax.Array, dtype: DTypeLike, d_head: jax.Array, piece: Piece
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """`_loss_and_gradient` with the blocks of a head."""
    losses, d_hidden, d_blocks = vocab_blocks.losses_and_gradients(head, dtype, *piece)
    d_hidden = constrain(d_hidden.astype(piece[0].dtype), "batch", "length", None)
    return constrain(d_head + d_blocks, None, "vocab", "embed"), (losses, d_hidden)


def _loss_and_hit(
    head: jax.Array, dtype: DTypeLike, carry: None, piece: Piece
) -> tuple[None, tuple[jax.Array, jax.Array]]:
    """Each token's loss [B, C], and whether its target alone has the largest logit."""
    hidden, targets, _ = piece
    logits = compute_logits(hidden, head, dtype)
    picked = _pick(logits, targets)
    # Counted, which needs no gather where the vocabulary is sharded, as argmax might.
    rank = jnp.sum(logits >= picked[..., None], axis=-1, dtype=jnp.int32)
    return None, (jax.nn.logsumexp(logits, axis=-1) - picked, (rank == 1).astype(jnp.float32))


def _loss_and_gradient(
    head: jax.Array, dtype: DTypeLike, d_head: jax.Array, piece: Piece
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The head's gradient with a piece's added; each token's loss [B, C], its gradient [B, C, D].

    The gradient of the logits is w · (softmax(H h) - onehot(target)).
    """
    hidden, targets, weights = piece
    logits = compute_logits(hidden, head, dtype)
    total = jax.nn.logsumexp(logits, axis=-1)
    one_hot = jnp.arange(logits.shape[-1])[None, None] == targets[..., None]
    d_logits = jnp.exp(logits - total[..., None]) - one_hot.astype(jnp.float32)
    d_logits = (d_logits * weights[..., None]).astype(dtype)
    d_logits = constrain(d_logits, "batch", "length", "vocab")
    d_hidden = jnp.einsum(
        "btv,vd->btd", d_logits, head.astype(dtype), preferred_element_type=jnp.float32
    )
    d_head += weight_gradient(hidden.astype(dtype), d_logits, jnp.float32)
    losses = total - _pick(logits, targets)
    return constrain(d_head, "vocab", "embed"), (
        losses,
        constrain(d_hidden.astype(hidden.dtype), "batch", "length", None),
    )


def _pick(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The logit [B, C] of each target."""
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def _in_pieces(
    step: Callable[[Any, Piece], tuple[Any, Any]], carry: Any, whole: Piece, blocks: int = 1
) -> tuple[Any, Any]:
    """Scans over pieces [B, C, ...] of arrays [B, T, ...] and joins what `step` returns.

    A piece has every n-th position, so that each device's part of a row is in all of them; if n
    does not divide T, tokens of weight 0 are added.

    Args:
      blocks: the blocks of the vocabulary of which one at a time is in memory.
    """
    B, T = whole[1].shape
    context = num_shards("length")
    pieces = min(-(-B * T // (num_shards("batch") * context * TOKENS * blocks)), T // context)
    if pieces <= 1:
        return step(carry, whole)
    size = -(-T // (pieces * context)) * context

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, size * pieces - T)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, size, pieces, *x.shape[2:]), 2, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 2).reshape(B, size * pieces, *x.shape[3:])[:, :T]

    carry, parts = jax.lax.scan(step, carry, jax.tree.map(cut, whole))
    return carry, jax.tree.map(join, parts)
