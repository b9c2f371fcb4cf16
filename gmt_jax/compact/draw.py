"""Which entries are trained, drawn from gradients without one of the model's size.

One backward pass draws its choice as it goes, layer by layer. Where gradients are summed first,
over microbatches or updates, a part of the rows of every matrix is summed in each of several
rounds, which takes a part of the memory and as many times the work.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gmt_jax.compact import choices
from gmt_jax.compact.choices import Choice, Frozen, Rows, Slots, Whole
from gmt_jax.compact.params import Form, Node, is_form
from gmt_jax.types import PyTree


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["weight", "drawn"],
    meta_fields=["form", "score"],
)
@dataclass(frozen=True)
class Drawn(Node):
    """A weight of which entries are chosen in the backward pass.

    Attributes:
      weight: the array.
      drawn: zeros, whose gradient are the positions (bfloat16), or the scores of rows (float32).
      form: how entries are chosen.
      score: "gradient" or "gradient_to_weight".
    """

    weight: Any
    drawn: Any
    form: Form
    score: str

    def resolve(self, dtype: np.dtype) -> jax.Array:
        """The weight, whose gradient is searched."""
        return _draw(self.weight, self.drawn, self.form, self.score, dtype)

    def take(self, indices: jax.Array) -> jax.Array:
        """Rows of the weight, which are scored by their gradient alone if rows are chosen."""
        if self.form.kind is Rows:
            return _take(self.weight, self.drawn, indices, self.score)
        return super().take(indices)


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
        # A gradient is a float; bfloat16 has every position, 0 to 255, exactly.
        dtype = jnp.float32 if form.kind is Rows else jnp.bfloat16
        return None if shape is None else jnp.zeros(shape, dtype)

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
    return None, positions.astype(jnp.bfloat16)


_draw.defvjp(_draw_forward, _draw_backward)

# Parts of a table's columns of which the gradient exists at a time.
COLUMNS = 8


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _take(weight: jax.Array, drawn: jax.Array, indices: jax.Array, score: str) -> jax.Array:
    return jnp.take(weight, indices, axis=0)


def _take_forward(
    weight: jax.Array, drawn: jax.Array, indices: jax.Array, score: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.take(weight, indices, axis=0), (weight, indices)


def _take_backward(score: str, residuals: tuple[jax.Array, jax.Array], d_taken: jax.Array) -> Any:
    """The scores of the rows, without a gradient of the table's size."""
    weight, indices = residuals
    num_rows, width = weight.shape
    parts = COLUMNS if width % COLUMNS == 0 else 1
    by_part = jnp.moveaxis(d_taken.reshape(*d_taken.shape[:-1], parts, -1), -2, 0)

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        number, d_part = part
        zeros = jnp.zeros((num_rows, width // parts), jnp.float32)
        gradient = zeros.at[indices].add(d_part.astype(jnp.float32))
        columns = lax.dynamic_slice_in_dim(weight, number * (width // parts), width // parts, 1)
        return total + choices.row_scores(score_entries(score, gradient, columns)), None

    zeros = jnp.zeros(num_rows, jnp.float32)
    return None, lax.scan(add, zeros, (jnp.arange(parts), by_part))[0], None


_take.defvjp(_take_forward, _take_backward)


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


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["weight", "sums", "part"],
    meta_fields=["num_parts"],
)
@dataclass(frozen=True)
class Part(Node):
    """A weight of whose gradient a part of the rows is kept: those numbered part + n · num_parts.

    Attributes:
      weight: the array.
      sums: float32 zeros, whose gradient is that part, or all of what cannot be divided.
      part: int32 scalar, the number of the part.
      num_parts: the number of parts.
    """

    weight: Any
    sums: Any
    part: Any
    num_parts: int

    def resolve(self, dtype: np.dtype) -> jax.Array:
        """The weight, of whose gradient a part is kept."""
        return _keep(self.weight, self.sums, self.part, self.num_parts, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _keep(weight: jax.Array, sums: jax.Array, part: jax.Array, parts: int, dtype: Any) -> jax.Array:
    return weight.astype(dtype)


def _keep_forward(
    weight: jax.Array, sums: jax.Array, part: jax.Array, parts: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    return weight.astype(dtype), part


def _keep_backward(parts: int, dtype: Any, part: jax.Array, d_weight: jax.Array) -> Any:
    return None, rows_of_part(d_weight, part, parts).astype(jnp.float32), None


_keep.defvjp(_keep_forward, _keep_backward)


def rows_of_part(array: jax.Array, part: jax.Array, num_parts: int) -> jax.Array:
    """The rows of a part: of an array `[..., O, n]` `[..., O / num_parts, n]`."""
    if num_parts == 1:
        return array
    by_part = array.reshape(*array.shape[:-2], -1, num_parts, array.shape[-1])
    axis = by_part.ndim - 2
    # A scan over layers cuts the number too, which elsewhere is there as often as matrices are.
    return lax.dynamic_index_in_dim(by_part, jnp.ravel(part)[0], axis, keepdims=False)


def _parts_of(form: Form, weight: Any, num_parts: int) -> int:
    """Into how many parts the rows of an array are divided: of stacked matrices, which are most."""
    stacked = form.kind is Slots and len(weight.shape) > 2 and weight.shape[-2] % num_parts == 0
    return num_parts if stacked else 1


def attach_part(
    weights: PyTree, forms: PyTree, sums: PyTree, part: jax.Array, num_parts: int
) -> PyTree:
    """The tree of parameters of whose gradient a part is kept, as the gradient of `sums`.

    Args:
      weights: the model's weights, with stacked layers along their first axis.
      forms: as from `plan_forms`.
      sums: zeros, as from `empty_sums`.
      part: the number of the part, an int32 scalar.
      num_parts: the number of parts.
    """

    def join(form: Form, weight: jax.Array, zeros: jax.Array | None) -> Any:
        if zeros is None:
            return weight
        number = jnp.broadcast_to(part, weight.shape[:1])  # One for each layer of a stack.
        return Part(weight, zeros, number, _parts_of(form, weight, num_parts))

    return jax.tree.map(join, forms, weights, sums, is_leaf=is_form)


def empty_sums(forms: PyTree, weights: PyTree, num_parts: int) -> PyTree:
    """The zeros that `attach_part` takes, None where nothing is to be drawn."""

    def zeros(form: Form, weight: Any) -> jax.Array | None:
        if form.kind not in (Rows, Slots):
            return None
        parts = _parts_of(form, weight, num_parts)
        shape = weight.shape
        if parts > 1:
            shape = (*shape[:-2], shape[-2] // parts, shape[-1])
        return jnp.zeros(shape, jnp.float32)

    return jax.tree.map(zeros, forms, weights, is_leaf=is_form)


def choose_part(forms: PyTree, scores: PyTree) -> PyTree:
    """The choices of a part of the rows, from their scores; None where nothing is to be drawn."""
    return jax.tree.map(
        lambda form, score: None if score is None else choices.choose(score, *form),
        forms,
        scores,
        is_leaf=is_form,
    )


def join_parts(forms: PyTree, weights: PyTree, parts: list[PyTree]) -> PyTree:
    """The choices, from those of all parts in their order."""

    def join(form: Form, weight: Any, *found: Choice | None) -> Choice:
        if found[0] is None:
            return Whole() if form.kind is Whole else Frozen()
        if _parts_of(form, weight, len(parts)) == 1:
            return found[0]
        positions = jnp.stack([part.positions for part in found], axis=-2)  # type: ignore[union-attr]
        return Slots(positions.reshape(*weight.shape[:-1], -1))

    return jax.tree.map(join, forms, weights, *parts, is_leaf=is_form)
