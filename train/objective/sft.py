"""Supervised fine-tuning: the cross-entropy of the tokens in the loss mask."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..model import FLOAT32, ComputeOptions, Documents, ModelConfig, head_weight, hidden_states
from ..step import Batch, Sums
from .cross_entropy import cross_entropy, losses_and_hits


@dataclass(frozen=True)
class Sft:
    """The cross-entropy in nats, averaged over the tokens that have a loss.

    A batch has tokens and targets int32 [B, T], weights float32 [B, T] (0 where the loss is
    masked); for packed rows also segment_ids and positions int32 [B, T].

    Attributes:
      accuracy: whether to compute the metric `token_accuracy` too: the share of these tokens that
        the model finds likeliest. It has no gradient.
    """

    model: ModelConfig
    options: ComputeOptions = FLOAT32
    accuracy: bool = False
    unit: ClassVar[str] = "num_loss_tokens"

    def weight(self, batch: Batch) -> jax.Array:
        """The sum of the loss weights."""
        return jnp.sum(batch["weights"])

    def __call__(self, params: Any, batch: Batch) -> Sums:
        """The summed cross-entropy of a batch."""
        packed = "segment_ids" in batch
        documents = Documents(batch["segment_ids"], batch["positions"]) if packed else None
        hidden = hidden_states(
            self.model, params, batch["tokens"], self.options, documents=documents
        )
        head, dtype = head_weight(self.model, params), jnp.dtype(self.options.dtype)
        if self.accuracy:
            losses, hits = losses_and_hits(hidden, head, batch["targets"], dtype)
            loss, num_hits = (jnp.sum(values * batch["weights"]) for values in (losses, hits))
            return Sums(loss, self.weight(batch), {"token_accuracy": num_hits})
        loss = cross_entropy(hidden, head, batch["targets"], batch["weights"], dtype)
        return Sums(loss, self.weight(batch), {})
