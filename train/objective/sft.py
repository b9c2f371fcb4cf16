"""Supervised fine-tuning: cross-entropy on the target tokens."""

from typing import Any

import jax
import jax.numpy as jnp

from ..model import ComputeOptions, Documents, ModelConfig, head_weight, hidden_states
from .cross_entropy import cross_entropy


def sft_loss(
    config: ModelConfig,
    params: Any,
    batch: dict[str, jax.Array],
    options: ComputeOptions,
) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy in nats over a batch's target tokens, and their weight.

    Args:
      batch: tokens and targets [B, T] int32, weights [B, T] float32 (0 where nothing is learned);
        of packed rows also segment_ids and positions [B, T] int32.
    """
    packed = "segment_ids" in batch
    documents = Documents(batch["segment_ids"], batch["positions"]) if packed else None
    hidden = hidden_states(config, params, batch["tokens"], options, documents=documents)
    loss = cross_entropy(
        hidden,
        head_weight(config, params),
        batch["targets"],
        batch["weights"],
        jnp.dtype(options.dtype),
    )
    return loss, jnp.sum(batch["weights"])
