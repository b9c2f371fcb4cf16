"""The pure training and evaluation steps, and their jitted forms on a mesh."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import DictKey

from gmt_jax import compact
from gmt_jax.compact import CompactParams

from .measure import Measure
from .model.lora import LoraParams, attach
from .sharding import batch_sharding, replicated

Batch = dict[str, jax.Array]


class Sums(NamedTuple):
    """What an objective adds up over the rows of a batch; means are sums divided by the weight.

    Attributes:
      loss: float32 scalar.
      weight: float32 scalar, as from `Objective.weight`.
      metrics: float32 scalars by name.
    """

    loss: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]


class Objective(Protocol):
    """What is minimised: the sum of a loss over a batch, divided by a weight."""

    @property
    def unit(self) -> str:
        """What the weight counts, as records name it."""

    def weight(self, batch: Batch) -> jax.Array:
        """The weight of a batch, or of all microbatches together; it needs no parameters."""

    def __call__(self, params: Any, batch: Batch) -> Sums:
        """The sums of a batch [B, ...]."""


class TrainState(NamedTuple):
    """All that an update changes; random numbers are a function of the seed and the step.

    A state may also hold the ShapeDtypeStructs or the shardings of these arrays.

    Attributes:
      step: int32 scalar, the number of updates done.
      params: nested dict of float32 master weights; or `CompactParams`, or `LoraParams`.
      opt_state: the optimizer's state.
    """

    step: Any
    params: Any
    opt_state: Any


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    state: TrainState,
    batch: Any,
    measure: Measure | None = None,
    report: bool = True,
    shardings: Any = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One update from the microbatches [N, B/N, ...] of a batch.

    Loss and metrics are means over all microbatches together, weighted as the objective says, so
    the gradient does not depend on the number of microbatches. Where the loss or the gradient's
    norm is not finite, weights and optimizer state stay as they are, and `finite` is False. With
    `measure`, `tensors` are figures of every tensor. Without `report`, masks that have one leave
    the last in their state. With the shardings of `CompactParams`, devices write their own parts.
    """
    weight = objective.weight(batch)
    total = jnp.where(weight > 0, weight, 1)
    batch = jax.tree.map(partial(_after, total), batch)

    def means(params: Any, rows: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        sums = objective(params, rows)
        return sums.loss / total, jax.tree.map(lambda metric: metric / total, sums.metrics)

    trained, join = _split(state.params)
    value_and_grad = jax.value_and_grad(lambda part, rows: means(join(part), rows), has_aux=True)

    def add(carry: Any, rows: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, value_and_grad(trained, rows)), None

    first = jax.tree.map(lambda x: x[0], batch)
    if jax.tree.leaves(batch)[0].shape[0] == 1:
        carry = value_and_grad(trained, first)
    else:
        names = jax.eval_shape(objective, join(trained), first).metrics
        zeros = jnp.float32(0), dict.fromkeys(names, jnp.float32(0))
        carry = zeros, jax.tree.map(jnp.zeros_like, trained)
        carry, _ = jax.lax.scan(add, carry, batch)
    (value, metrics), grads = carry
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    smallest = min(jax.tree.leaves(grads), key=lambda g: g.size)
    grads = jax.tree.map(lambda g: _after(norm, g) if g is smallest else g, grads)
    extra_args = {} if report else {"report": False}
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **extra_args)
    figures: dict[str, Any] = {}
    if measure is not None and measure.tensors:
        figures["tensors"] = measure(grads, trained, updates, opt_state)
    moved = optax.apply_updates(trained, updates)
    # Selected rather than branched on: it is fused into the pass that writes each array.
    moved, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (moved, opt_state),
        (trained, state.opt_state),
    )
    params = _with_trained(state.params, moved, shardings)
    figures |= {"loss": value, "grad_norm": norm, objective.unit: total, "finite": finite}
    figures |= metrics | _mask_metrics(params, opt_state) | (_report(opt_state) if report else {})
    return TrainState(state.step + 1, params, opt_state), figures


def _after(scalar: jax.Array, x: jax.Array) -> jax.Array:
    """x, for which a device needs the scalar first, which is never negative.

    XLA's CPU backend keeps no order between an exchange of a loop and one outside of it, and
    devices that take the two in different orders wait for each other for ever.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # Random keys.
        return x
    return jnp.where(scalar == -1, jnp.zeros_like(x), x)


def plain_params(params: Any) -> Any:
    """What a model computes with, to evaluate it, of parameters or of their shardings."""
    if isinstance(params, LoraParams):
        return attach(params)
    return params.weights if isinstance(params, CompactParams) else params


def _split(params: Any) -> tuple[Any, Callable[[Any], Any]]:
    """What a gradient is computed of, and the function from it to the objective's parameters."""
    if isinstance(params, CompactParams):
        return params.values, lambda values: compact.attach(params._replace(values=values))
    if isinstance(params, LoraParams):
        return params.values, lambda values: attach(replace(params, values=values))
    return params, lambda params: params


def _with_trained(params: Any, trained: Any, shardings: Any) -> Any:
    """The parameters with new values of what is trained."""
    if isinstance(params, CompactParams):
        return compact.write(params._replace(values=trained), shardings)
    if isinstance(params, LoraParams):
        return replace(params, values=trained)
    return trained


def _mask_metrics(params: Any, opt_state: optax.OptState) -> dict[str, jax.Array]:
    """The masked fraction, and the norm that the mask keeps."""
    figures = {"masked_fraction": jnp.float32(0)}
    for name in ("masked_fraction", "kept_grad_norm"):
        found = optax.tree.get_all_with_path(opt_state, name)
        for path, value in found:
            # Of several masks, as in a partition, each has its label.
            label = next((f"/{key.key}" for key in path if isinstance(key, DictKey)), "")
            figures[name + (label if len(found) > 1 else "")] = value
        if len(found) > 1:
            figures.pop(name, None)
    if isinstance(params, CompactParams):
        size = float(sum(leaf.size for leaf in jax.tree.leaves(params.weights)))
        chosen = compact.num_chosen(params.chosen, params.weights)
        figures["masked_fraction"] = 1 - chosen / size
    return figures


def _report(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """The figures of a mask's report over all tensors, if there is one."""
    reports = optax.tree.get_all_with_path(opt_state, "overall")
    if len(reports) != 1:
        return {}
    return {f"mask/{key}": value for key, value in reports[0][1]._asdict().items()}


def state_shardings(
    mesh: Mesh, optimizer: optax.GradientTransformationExtraArgs, shapes: Any, params: Any
) -> TrainState:
    """The sharding of every leaf of the state: that of the weight for moments, else replicated.

    Args:
      shapes: the parameters' ShapeDtypeStructs.
      params: the parameters' shardings.
    """
    whole, of_params, whole_shapes = replicated(mesh), params, shapes
    if isinstance(shapes, CompactParams | LoraParams):  # Moments are those of the values.
        shapes, params = shapes.values, params.values

    def of_moment(leaf: Any, shape: Any, sharding: NamedSharding) -> Any:
        if isinstance(leaf, optax.MaskedNode):  # Another optimizer of a partition has it.
            return leaf
        return sharding if leaf.shape == shape.shape else whole

    opt_state = optax.tree.map_params(
        optimizer,
        of_moment,
        jax.eval_shape(optimizer.init, whole_shapes),
        shapes,
        params,
        transform_non_params=lambda _: whole,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    return TrainState(whole, of_params, opt_state)


def jit_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    shardings: TrainState,
    measure: Measure | None = None,
    report: bool = True,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """The jitted train_step on the mesh; it donates the state that is passed in.

    Batches keep the shardings that they are passed in with.
    """
    return jax.jit(
        lambda state, batch: train_step(
            objective, optimizer, state, batch, measure, report, shardings.params
        ),
        in_shardings=(shardings, None),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def jit_eval_step(objective: Objective, mesh: Mesh, params: Any) -> Callable[[Any, Batch], Sums]:
    """The jitted objective on the mesh."""
    return jax.jit(
        objective, in_shardings=(params, batch_sharding(mesh)), out_shardings=replicated(mesh)
    )
