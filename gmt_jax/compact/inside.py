"""What a model does with compact parameters: arrays whose gradient is read into slots at once.

`attach` puts weights, choices and values into one tree, which a scan over layers cuts as it cuts
the weights. Inside a layer, `resolve` makes arrays of it. It is the identity going forward; going
backward it reads the chosen entries of the layer's gradient and drops the rest, so that a gradient
of the model's size never exists.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gmt_jax.compact import choices
from gmt_jax.compact.choices import Choice, Rows, is_choice
from gmt_jax.compact.params import CompactParams, Node
from gmt_jax.types import PyTree


@partial(
    jax.tree_util.register_dataclass, data_fields=["weight", "choice", "values"], meta_fields=[]
)
@dataclass(frozen=True)
class Attached(Node):
    """A weight whose chosen entries are trained. All children have the same leading axes.

    Attributes:
      weight: the array.
      choice: its choice.
      values: the chosen entries in float32, to which the gradient goes.
    """

    weight: jax.Array
    choice: Choice
    values: jax.Array

    def resolve(self, dtype: np.dtype) -> jax.Array:
        """The weight, whose gradient is read into the values."""
        return _view(self.weight, self.choice, self.values, dtype)

    def take(self, indices: jax.Array) -> jax.Array:
        """Rows of the weight, whose gradient is summed for the chosen rows alone."""
        if isinstance(self.choice, Rows):
            return _take(self.weight, self.choice.indices, self.values, indices)
        return super().take(indices)


def is_node(node: object) -> bool:
    """Whether a node of a tree stands in the place of an array; a predicate for `is_leaf`."""
    return hasattr(node, "resolve") and hasattr(node, "weight")


def attach(params: CompactParams) -> PyTree:
    """The tree of parameters to compute with: `Attached` where entries are trained, else arrays.

    Differentiate with respect to the values:

        jax.grad(lambda values: loss(attach(params._replace(values=values))))(params.values)
    """

    def join(choice: Choice, weight: jax.Array, values: jax.Array | None) -> Any:
        return weight if values is None else Attached(weight, choice, values)

    return jax.tree.map(join, params.chosen, params.weights, params.values, is_leaf=is_choice)


def resolve(tree: PyTree, dtype: DTypeLike | None = None) -> PyTree:
    """The tree with arrays in the place of nodes such as `Attached`.

    Call it inside a layer, on the layer's own parameters: there the layer's gradient is reduced to
    what is chosen as soon as it is computed.

    Args:
      dtype: in which the gradient is computed, and so the array; None: the weight's own.
    """
    return jax.tree.map(partial(_resolve, dtype=dtype), tree, is_leaf=is_node)


def _resolve(node: Any, dtype: DTypeLike | None) -> Any:
    return node.resolve(np.dtype(dtype or node.weight.dtype)) if is_node(node) else node


def plain_weights(tree: PyTree) -> PyTree:
    """The tree with the weights alone, to compute without a gradient."""
    return jax.tree.map(lambda node: node.weight if is_node(node) else node, tree, is_leaf=is_node)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _view(weight: jax.Array, choice: Choice, values: jax.Array, dtype: np.dtype) -> jax.Array:
    """The weight, whose gradient at the chosen entries is that of the values."""
    return weight.astype(dtype)


def _view_forward(
    weight: jax.Array, choice: Choice, values: jax.Array, dtype: np.dtype
) -> tuple[jax.Array, Choice]:
    return weight.astype(dtype), choice


def _view_backward(dtype: np.dtype, choice: Choice, d_weight: jax.Array) -> Any:
    return None, None, choices.read(choice, d_weight)


_view.defvjp(_view_forward, _view_backward)


def take(table: Any, indices: jax.Array) -> jax.Array:
    """Rows of a table of embeddings, `[..., D]` for indices `[...]`.

    Args:
      table: an array or a node such as `Attached`. Where its rows are chosen, gradients are summed
        in float32 for these rows alone.
      indices: integers `[...]`.
    """
    rows: jax.Array = table.take(indices) if is_node(table) else jnp.take(table, indices, axis=0)
    return rows


@jax.custom_vjp
def _take(weight: jax.Array, rows: jax.Array, values: jax.Array, indices: jax.Array) -> jax.Array:
    return jnp.take(weight, indices, axis=0)


def _take_forward(
    weight: jax.Array, rows: jax.Array, values: jax.Array, indices: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # From the end, as jnp.take counts them.
    from_start = jnp.where(indices < 0, indices + weight.shape[0], indices)
    return jnp.take(weight, indices, axis=0), (rows, from_start)


def _take_backward(residuals: tuple[jax.Array, jax.Array], d_taken: jax.Array) -> Any:
    rows, indices = residuals
    row = jnp.minimum(jnp.searchsorted(rows, indices), rows.size - 1).astype(jnp.int32)
    row = jnp.where(rows[row] == indices, row, rows.size)  # Outside: dropped.
    zeros = jnp.zeros((rows.size, d_taken.shape[-1]), jnp.float32)
    return None, None, zeros.at[row].add(d_taken.astype(jnp.float32), mode="drop"), None


_take.defvjp(_take_forward, _take_backward)
