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
    """All that an update changes. What is random is a function of the seed and the step."""

    step: Any  # int32 scalar, updates done
    params: Any  # float32 master weights
    opt_state: Any


def train_step(
    loss: Loss, optimizer: optax.GradientTransformationExtraArgs, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from microbatches [N, B/N, T].

    The gradient is that of the mean loss over all target tokens of all microbatches, so how the
    rows are cut into microbatches does not matter.
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
    } | _of_the_mask(opt_state)
    return TrainState(state.step + 1, params, opt_state), metrics


def _of_the_mask(opt_state: Any) -> dict[str, jax.Array]:
    """The masked share of all entries, and the figures of its report where there is one."""
    report = optax.tree.get(opt_state, "overall")
    figures = {} if report is None else report._asdict()
    fraction = optax.tree.get(opt_state, "masked_fraction", jnp.float32(0))
    return {"masked_fraction": fraction} | {f"mask/{key}": figures[key] for key in figures}


def state_shardings(
    mesh: Mesh, optimizer: optax.GradientTransformationExtraArgs, shapes: Any, params: Any
) -> TrainState:
    """Where every leaf of the state lies: moments with their weights, the rest everywhere.

    Args:
      shapes: the parameters' ShapeDtypeStructs.
      params: the parameters' shardings.
    """
    everywhere = replicated(mesh)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda leaf, shape, sharding: sharding if leaf.shape == shape.shape else everywhere,
        jax.eval_shape(optimizer.init, shapes),
        shapes,
        params,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(everywhere, params, opt_state)


def jit_train_step(
    loss: Loss, optimizer: optax.GradientTransformationExtraArgs, mesh: Mesh, shardings: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step` compiled for the mesh; the state passed in is donated."""
    return jax.jit(
        lambda state, batch: train_step(loss, optimizer, state, batch),
        in_shardings=(shardings, microbatch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def jit_eval_step(
    loss: Loss, mesh: Mesh, params: Any
) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array]]:
    """The summed loss and weight of one batch [B, T], compiled for the mesh."""
    return jax.jit(
        loss, in_shardings=(params, batch_sharding(mesh)), out_shardings=replicated(mesh)
    )
