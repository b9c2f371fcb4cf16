"""Supervised fine-tuning: cross-entropy on the target tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.model import Documents, ModelConfig, hidden_states, logits

# Positions of a row whose float32 logits [B, CHUNK, V] are held at a time.
CHUNK = 256


def sft_loss(
    config: ModelConfig, params: Any, batch: dict[str, jax.Array], *, dtype: str, remat: str
) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy in nats over a batch's target tokens, and their weight.

    Args:
      batch: tokens and targets [B, T] int32, weights [B, T] float32 (0 where nothing is learned);
        of packed rows also segment_ids and positions [B, T] int32.
    """
    packed = "segment_ids" in batch
    documents = Documents(batch["segment_ids"], batch["positions"]) if packed else None
    hidden = hidden_states(
        config, params, batch["tokens"], documents=documents, dtype=dtype, remat=remat
    )

    def piece(args: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        h, targets, weights = args
        scores = logits(config, params, h, dtype=dtype)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, targets)
        return jnp.sum(losses * weights)

    whole = (hidden, batch["targets"], batch["weights"])
    length = hidden.shape[1]
    if length <= CHUNK or length % CHUNK:
        loss = piece(whole)
    else:
        pieces = jax.tree.map(lambda x: jnp.stack(jnp.split(x, length // CHUNK, axis=1)), whole)
        loss = jnp.sum(jax.lax.map(jax.checkpoint(piece), pieces))
    return loss, jnp.sum(batch["weights"])
