"""Supervised fine-tuning: the cross-entropy of the tokens in the loss mask."""

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
    """The summed cross-entropy of a batch in nats, and the sum of its weights.

    Args:
      batch: tokens and targets int32 [B, T], weights float32 [B, T] (0 where the loss is masked);
        for packed rows also segment_ids and positions int32 [B, T].
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
