"""What a model does with compact parameters: arrays whose gradient is read into slots at once.

`attach` puts weights, choices and values into one tree, which a scan over layers cuts as it cuts
the weights. Inside a layer, `resolve` makes arrays of it. It is the identity going forward; going
backward it reads the chosen entries of the layer's gradient and drops the rest, so that a gradient
of the model's size never exists.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gmt_jax.compact import choices
from gmt_jax.compact.choices import Choice, Frozen, Rows, Slots, Whole, is_choice
from gmt_jax.compact.params import CompactParams, Form, is_form
from gmt_jax.types import PyTree


class Attached(NamedTuple):
    """A weight whose chosen entries are trained. All children have the same leading axes.

    Attributes:
      weight: the array.
      choice: its choice.
      values: the chosen entries in float32, to which the gradient goes.
    """

    weight: jax.Array
    choice: Choice
    values: jax.Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["weight", "drawn"],
    meta_fields=["form", "score"],
)
class Drawn:
    """A weight of which entries are chosen in the backward pass.

    Attributes:
      weight: the array.
      drawn: float32 zeros, whose gradient are the positions, or the scores of rows.
      form: how entries are chosen.
      score: "gradient" or "gradient_to_weight".
    """

    def __init__(self, weight: Any, drawn: Any, form: Form, score: str) -> None:
        self.weight, self.drawn, self.form, self.score = weight, drawn, form, score


def _is_node(node: object) -> bool:
    return isinstance(node, (Attached, Drawn))


def attach(params: CompactParams) -> PyTree:
    """The tree of parameters to compute with: `Attached` where entries are trained, else arrays.

    Differentiate with respect to the values:

        jax.grad(lambda values: loss(attach(params._replace(values=values))))(params.values)
    """

    def join(choice: Choice, weight: jax.Array, values: jax.Array | None) -> Any:
        return weight if values is None else Attached(weight, choice, values)

    return jax.tree.map(join, params.chosen, params.weights, params.values, is_leaf=is_choice)


def resolve(tree: PyTree, dtype: DTypeLike | None = None) -> PyTree:
    """The tree with arrays in the place of `Attached` and `Drawn`.

    Call it inside a layer, on the layer's own parameters: there the layer's gradient is reduced to
    what is chosen as soon as it is computed.

    Args:
      dtype: in which the gradient is computed, and so the array; None: the weight's own.
    """
    return jax.tree.map(partial(_resolve, dtype=dtype), tree, is_leaf=_is_node)


def _resolve(node: Any, dtype: DTypeLike | None) -> Any:
    if isinstance(node, Attached):
        return _view(node.weight, node.choice, node.values, np.dtype(dtype or node.weight.dtype))
    if isinstance(node, Drawn):
        wanted = np.dtype(dtype or node.weight.dtype)
        return _draw(node.weight, node.drawn, node.form, node.score, wanted)
    return node


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
      table: an array or `Attached`. Where its rows are chosen, gradients are summed in float32 for
        these rows alone.
      indices: integers `[...]`.
    """
    if isinstance(table, Attached) and isinstance(table.choice, Rows):
        return _take(table.weight, table.choice.indices, table.values, indices)
    array: jax.Array = resolve(table, jnp.float32) if _is_node(table) else table
    return jnp.take(array, indices, axis=0)


@jax.custom_vjp
def _take(weight: jax.Array, rows: jax.Array, values: jax.Array, indices: jax.Array) -> jax.Array:
    return jnp.take(weight, indices, axis=0)


def _take_forward(
    weight: jax.Array, rows: jax.Array, values: jax.Array, indices: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.take(weight, indices, axis=0), (rows, indices)


def _take_backward(residuals: tuple[jax.Array, jax.Array], d_taken: jax.Array) -> Any:
    rows, indices = residuals
    row = jnp.minimum(jnp.searchsorted(rows, indices), rows.size - 1).astype(jnp.int32)
    row = jnp.where(rows[row] == indices, row, rows.size)  # Outside: dropped.
    zeros = jnp.zeros((rows.size, d_taken.shape[-1]), jnp.float32)
    return None, None, zeros.at[row].add(d_taken.astype(jnp.float32), mode="drop"), None


_take.defvjp(_take_forward, _take_backward)


def attach_draw(weights: PyTree, forms: PyTree, drawn: PyTree, score: str = "gradient") -> PyTree:
    """The tree of parameters that chooses their entries in the backward pass.

    The gradient with respect to `drawn` is what `drawn_choices` reads. It is that of one backward
    pass, not of a sum of several; an array that is used more than once is to be resolved once.

    Args:
      weights: the model's weights.
      forms: as from `plan_forms`.
      drawn: zeros, as from `empty_draw`.
      score: "gradient", |g|, or "gradient_to_weight", |g| / |w| (0 where g is 0).
    """

    def join(form: Form, weight: jax.Array, zeros: jax.Array | None) -> Any:
        return weight if zeros is None else Drawn(weight, zeros, form, score)

    return jax.tree.map(join, forms, weights, drawn, is_leaf=is_form)


def empty_draw(forms: PyTree, weights: PyTree) -> PyTree:
    """The zeros that `attach_draw` takes, None where nothing is to be drawn."""

    def zeros(form: Form, weight: Any) -> jax.Array | None:
        shape = drawn_shape(form, weight)
        return None if shape is None else jnp.zeros(shape, jnp.float32)

    return jax.tree.map(zeros, forms, weights, is_leaf=is_form)


def drawn_shape(form: Form, weight: Any) -> tuple[int, ...] | None:
    """The shape of what is drawn of a weight: positions, or the scores of rows."""
    if form.kind is Rows:
        return (weight.shape[0],)
    if form.kind is Slots:
        scores = jax.ShapeDtypeStruct(weight.shape, jnp.float32)
        found = jax.eval_shape(lambda x: choices.choose_slots(x, form.mask_ratio), scores)
        shape: tuple[int, ...] = found.shape
        return shape
    return None


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _draw(weight: jax.Array, drawn: jax.Array, form: Form, score: str, dtype: Any) -> jax.Array:
    return weight.astype(dtype)


def _draw_forward(
    weight: jax.Array, drawn: jax.Array, form: Form, score: str, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    return weight.astype(dtype), weight


def _draw_backward(
    form: Form, score: str, dtype: Any, weight: jax.Array, d_weight: jax.Array
) -> Any:
    scores = score_entries(score, d_weight, weight)
    if form.kind is Rows:
        return None, choices.row_scores(scores)
    positions = choices.choose_slots(scores, form.mask_ratio)
    return None, positions.astype(jnp.float32)  # A gradient is a float; 0 to 255 are exact.


_draw.defvjp(_draw_forward, _draw_backward)


def score_entries(score: str, gradient: jax.Array, weight: jax.Array) -> jax.Array:
    """The scores of a gradient's entries, at least 0, float32."""
    size = jnp.abs(gradient).astype(jnp.float32)
    if score == "gradient":
        return size
    return jnp.where(size == 0, 0, size / jnp.abs(weight).astype(jnp.float32))


def drawn_choices(forms: PyTree, drawn: PyTree) -> PyTree:
    """The choices, from the gradient with respect to `drawn` of a loss of `attach_draw`."""

    def choice_of(form: Form, part: jax.Array | None) -> Choice:
        if part is None:
            return Whole() if form.kind is Whole else Frozen()
        if form.kind is Rows:
            return Rows(choices.choose_rows(part, form.mask_ratio))
        return Slots(part.astype(jnp.uint8))

    return jax.tree.map(choice_of, forms, drawn, is_leaf=is_form)
