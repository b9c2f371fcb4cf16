"""The pure training and evaluation steps, and their jitted forms on a mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from .sharding import batch_sharding, microbatch_sharding, replicated

Batch = dict[str, jax.Array]
Loss = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]  # (params, batch) -> (sum, weight)


class TrainState(NamedTuple):
    """All that an update changes; random numbers are a function of the seed and the step.

    A state may also hold the ShapeDtypeStructs or the shardings of these arrays.

    Attributes:
      step: int32 scalar, the number of updates done.
      params: nested dict of float32 master weights.
      opt_state: the optimizer's state.
    """

    step: Any
    params: Any
    opt_state: Any


def train_step(
    loss: Loss, optimizer: optax.GradientTransformationExtraArgs, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from the microbatches [N, B/N, T] of a batch.

    The loss is the mean over the tokens of all microbatches, weighted by their loss weights, so its
    gradient does not depend on the number of microbatches.
    """
    total = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
    value_and_grad = jax.value_and_grad(lambda params, rows: loss(params, rows)[0] / total)

    def add(carry: Any, rows: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, value_and_grad(state.params, rows)), None

    if batch["tokens"].shape[0] == 1:
        carry = value_and_grad(state.params, jax.tree.map(lambda x: x[0], batch))
    else:
        start = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
        carry, _ = jax.lax.scan(add, start, batch)
    value, grads = carry
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
        "loss": value,
        "grad_norm": optax.tree.norm(grads),
        "num_loss_tokens": total,
    } | _mask_metrics(opt_state)
    return TrainState(state.step + 1, params, opt_state), metrics


def _mask_metrics(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """The masked fraction of all entries, and the figures of the mask's report, if any."""
    report = optax.tree.get(opt_state, "overall")
    figures = {} if report is None else report._asdict()
    fraction = optax.tree.get(opt_state, "masked_fraction", jnp.float32(0))
    return {"masked_fraction": fraction} | {f"mask/{key}": figures[key] for key in figures}


def state_shardings(
    mesh: Mesh, optimizer: optax.GradientTransformationExtraArgs, shapes: Any, params: Any
) -> TrainState:
    """The sharding of every leaf of the state: that of the weight for moments, else replicated.

    Args:
      shapes: the parameters' ShapeDtypeStructs.
      params: the parameters' shardings.
    """
    whole = replicated(mesh)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda leaf, shape, sharding: sharding if leaf.shape == shape.shape else whole,
        jax.eval_shape(optimizer.init, shapes),
        shapes,
        params,
        transform_non_params=lambda _: whole,
    )
    return TrainState(whole, params, opt_state)


def jit_train_step(
    loss: Loss, optimizer: optax.GradientTransformationExtraArgs, mesh: Mesh, shardings: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted train_step on the mesh; it donates the state that is passed in."""
    return jax.jit(
        lambda state, batch: train_step(loss, optimizer, state, batch),
        in_shardings=(shardings, microbatch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def jit_eval_step(
    loss: Loss, mesh: Mesh, params: Any
) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array]]:
    """The jitted function on the mesh from (params, batch [B, T]) to summed loss and weight."""
    return jax.jit(
        loss, in_shardings=(params, batch_sharding(mesh)), out_shardings=replicated(mesh)
    )
