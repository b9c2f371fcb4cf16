"""Learning from preferences: the objective on pairs of a chosen and a rejected answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..model import FLOAT32, ComputeOptions, Documents, ModelConfig, head_weight, hidden_states
from ..step import Batch, Sums
from .cross_entropy import target_logprobs
from .preference_losses import Pairs, Scores

SIDES = 2  # A row has a chosen and a rejected side.


@dataclass(frozen=True)
class Preference:
    """A loss of preference pairs, averaged over the pairs; both answers are in one forward pass.

    A batch has tokens and targets int32 [B, 2, T] and weights float32 [B, 2, T], 1 at the answers'
    tokens: on side 0 chosen, on side 1 rejected answers, each after its prompt. Packed rows also
    have segment_ids and positions int32 [B, 2, T]: equal ids on the two sides are a pair. Where the
    loss has a reference, reference float32 [B, 2, T] are its log-probabilities of the targets.

    Attributes:
      loss: from the pairs' log-probabilities to their losses, one of `preference_losses`.
      sft_weight: the weight of the chosen answer's mean cross-entropy, which is added to the loss
        (Pang et al., 2024, arXiv 2404.19733).
    """

    model: ModelConfig
    loss: Callable[[Pairs], Scores]
    options: ComputeOptions = FLOAT32
    sft_weight: float = 0.0
    unit: ClassVar[str] = "num_pairs"

    def weight(self, batch: Batch) -> jax.Array:
        """The number of pairs."""
        if "segment_ids" in batch:
            last = jnp.max(batch["segment_ids"][..., 0, :], axis=-1)
            return jnp.sum(last.astype(jnp.float32))
        return jnp.sum(jnp.max(batch["weights"][..., 0, :], axis=-1))

    def __call__(self, params: Any, batch: Batch) -> Sums:
        """The summed losses of a batch's pairs, and their metrics."""
        logprobs = answer_logprobs(self.model, self.options, params, batch)
        weights, reference = batch["weights"], batch.get("reference")
        lengths = _sum_by_pair(weights, batch)
        present = lengths[0] > 0

        def by_pair(values: jax.Array) -> jax.Array:
            """Sums over an answer's tokens; where there is no pair, a value that has a loss."""
            return jnp.where(present[None], _sum_by_pair(values * weights, batch), -1.0)

        answers = by_pair(logprobs)
        sides = [*answers, *jnp.maximum(lengths, 1.0)]
        if reference is not None:
            sides += [*by_pair(reference)]
        pairs = Pairs(*sides)
        scores = self.loss(pairs)
        loss = scores.loss
        if self.sft_weight:
            loss -= self.sft_weight * pairs.chosen / pairs.chosen_length
        metrics = _metrics(pairs, scores)
        if reference is not None:
            drift = by_pair(_divergence(logprobs - reference))
            metrics["kl"] = jnp.sum(drift, 0) / (pairs.chosen_length + pairs.rejected_length)

        def total(values: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(present, values, 0.0))

        return Sums(total(loss), self.weight(batch), jax.tree.map(total, metrics))


def answer_logprobs(
    model: ModelConfig, options: ComputeOptions, params: Any, batch: Batch
) -> jax.Array:
    """The log-probability of each target [B, 2, T], both sides in one forward pass."""

    def rows(x: jax.Array) -> jax.Array:
        return x.reshape(-1, x.shape[-1])

    documents = None
    if "segment_ids" in batch:
        documents = Documents(rows(batch["segment_ids"]), rows(batch["positions"]))
    hidden = hidden_states(model, params, rows(batch["tokens"]), options, documents=documents)
    logprobs = target_logprobs(
        hidden, head_weight(model, params), rows(batch["targets"]), jnp.dtype(options.dtype)
    )
    return logprobs.reshape(batch["targets"].shape)


def _sum_by_pair(values: jax.Array, batch: Batch) -> jax.Array:
    """Sums [2, B, K] of values [B, 2, T] over the tokens of each answer.

    K is 1, or in packed rows as many pairs as a row may hold: an answer has two tokens or more with
    its prompt.
    """
    if "segment_ids" not in batch:
        return jnp.moveaxis(jnp.sum(values, axis=-1, keepdims=True), 1, 0)
    ids = 1 + jnp.arange(max(values.shape[-1] // 2, 1))
    # A masked sum, which is fused: scattered sums would depend on the order of a GPU's threads.
    belongs = batch["segment_ids"][..., None] == ids[None, None, None]
    return jnp.moveaxis(jnp.sum(jnp.where(belongs, values[..., None], 0.0), axis=2), 1, 0)


def _metrics(pairs: Pairs, scores: Scores) -> dict[str, jax.Array]:
    """Each pair's rewards, their margin, whether it is positive, and the log-probabilities."""
    margin = scores.chosen - scores.rejected
    return {
        "accuracy": 0.5 * (1 + jnp.sign(margin)),  # Without any margin, a guess.
        "rewards/chosen": scores.chosen,
        "rewards/rejected": scores.rejected,
        "rewards/margin": margin,
        "logprobs/chosen": pairs.chosen,
        "logprobs/rejected": pairs.rejected,
    }


def _divergence(log_ratio: jax.Array) -> jax.Array:
    """x - 1 - log x of x = π / π_ref: never negative, and in the mean over tokens that the
    reference writes the divergence KL(π_ref ‖ π) (Schulman, "Approximating KL divergence", 2020).
    """
    return jnp.expm1(log_ratio) - log_ratio
