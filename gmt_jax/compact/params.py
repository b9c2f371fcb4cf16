"""The parameters of a model of which a few are trained, and what the model computes with.

The weights keep their dtype, bfloat16 as a rule. Only the chosen entries have float32 masters, the
values, and only these have moments and a gradient.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from gmt_jax.compact import choices
from gmt_jax.compact.choices import Choice, Frozen, Rows, Slots, Whole, is_choice
from gmt_jax.compact.slots import EMPTY, GROUP, num_groups, slots_per_group
from gmt_jax.tree_paths import expression, first_found, path_name
from gmt_jax.types import Mask, PyTree, is_number


class Node:
    """What stands in the place of an array, and becomes one inside a layer.

    Attributes:
      weight: the array.
    """

    weight: Any

    def resolve(self, dtype: np.dtype) -> jax.Array:
        """The array, whose gradient goes elsewhere."""
        raise NotImplementedError

    def take(self, indices: jax.Array) -> jax.Array:
        """Rows of the array, whose gradient goes elsewhere too."""
        return jnp.take(self.resolve(np.dtype(jnp.float32)), indices, axis=0)


class CompactParams(NamedTuple):
    """The parameters of a model of which a few are trained.

    Attributes:
      weights: the weights that the model computes with; only the chosen entries ever change.
      chosen: a choice for each weight: `Slots`, `Rows`, `Whole` or `Frozen`.
      values: the chosen entries in float32, None for `Frozen`: all that an optimizer sees.
    """

    weights: PyTree
    chosen: PyTree
    values: PyTree


class Form(NamedTuple):
    """How entries of one array are chosen.

    Attributes:
      kind: `Slots`, `Rows`, `Whole` or `Frozen`.
      mask_ratio: the fraction that is not chosen.
    """

    kind: type[Choice]
    mask_ratio: float


def is_form(node: object) -> bool:
    """Whether a node of a tree is a form; a predicate for `is_leaf`."""
    return isinstance(node, Form)


def plan_forms(
    params: PyTree, mask_ratio: float | Mapping[str, float], rows: str | None = None
) -> PyTree:
    """How entries of each array are chosen.

    Args:
      params: a tree of arrays, or of their shapes.
      mask_ratio: the fraction that is not trained, or fractions by path as in ``gmt_mask``. An
        array with a fraction of 0 is trained as a whole, one with 1 is frozen.
      rows: a regular expression; matrices in whose path it is found are chosen by rows, such as
        embeddings, whose gradients are in few of them. All other arrays have slots.

    Returns:
      A tree of `Form`.

    Raises:
      ValueError: if a fraction is no number in [0, 1], or one below 1 would leave no slot in a
        group; if no pattern of `mask_ratio` is found in a path, or one is no regular expression.
      TypeError: if an array of other numbers than floats has a fraction below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from gmt_jax import compact
      >>> params = {"embed": jnp.ones((9, 256)), "norm": jnp.ones(256)}
      >>> forms = compact.plan_forms(params, {"norm": 0.0, ".*": 0.95}, rows="embed")
      >>> print({name: form.kind.__name__ for name, form in forms.items()})
      {'embed': 'Rows', 'norm': 'Whole'}
    """
    ratios = mask_ratio if isinstance(mask_ratio, Mapping) else {"": mask_ratio}
    for ratio in ratios.values():
        if not (is_number(ratio) and 0 <= ratio <= 1):
            raise ValueError(
                "mask_ratio is the fraction that is not trained, one number in [0, 1]; "
                f"got {ratio!r}"
            )

    def form_of(path: Any, leaf: Any) -> Form:
        ratio = first_found("mask_ratio", ratios, path)
        if ratio < 1 and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"{path_name(path)} is {leaf.dtype}, and only floats are trained; give it a "
                "mask_ratio of 1"
            )
        if ratio == 0:
            return Form(Whole, 0.0)
        if not math.prod(leaf.shape):
            return Form(Frozen, ratio)
        by_rows = rows is not None and expression("rows", rows).search(path_name(path))
        if by_rows and len(leaf.shape) == 2:
            return Form(Rows if ratio < 1 else Frozen, ratio)
        if ratio == 1 or not leaf.shape:
            return Form(Frozen, ratio)
        if not slots_per_group(ratio):
            raise ValueError(
                f"mask_ratio {ratio} is less than half an entry of {GROUP}, so that nothing of "
                f"{path_name(path)} would be trained; take 0.996 or less, or 1 to leave it out"
            )
        return Form(Slots, ratio)

    return jax.tree_util.tree_map_with_path(form_of, params)


def choose(forms: PyTree, scores: PyTree) -> PyTree:
    """A tree of choices: the entries with the largest scores, balanced over groups.

    Args:
      forms: as from `plan_forms`.
      scores: a tree of arrays, of whose entries the magnitudes are compared, such as a gradient.
    """
    return jax.tree.map(
        lambda form, score: choices.choose(jnp.abs(score), *form), forms, scores, is_leaf=is_form
    )


def form_of_mask(layers: Iterable[np.ndarray], rows: bool = False) -> Form:
    """The smallest form that holds a mask of an array: nothing, all, whole rows, or slots.

    There are as many slots as the fullest group of 128 needs, which may be all of them.

    Args:
      layers: the mask, bool, cut along the first axis if layers are stacked; read one by one.
      rows: whether the array is a matrix that may be trained by rows.

    Example:
      >>> import numpy as np
      >>> from gmt_jax import compact
      >>> mask = np.arange(256).reshape(2, 128) % 32 == 0
      >>> form = compact.form_of_mask([mask])
      >>> form.kind.__name__, compact.num_slots(form)
      ('Slots', 4)
    """
    most = trained = size = 0
    by_rows = rows
    for mask in layers:
        trained, size = trained + int(np.count_nonzero(mask)), size + mask.size
        short = num_groups(mask.shape[-1]) * GROUP - mask.shape[-1]
        padded = np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, short)])
        most = max(most, int(padded.reshape(-1, GROUP).sum(axis=-1).max(initial=0)))
        by_rows = by_rows and bool((mask.any(axis=-1) == mask.all(axis=-1)).all())
    if trained in (0, size):
        return Form(Whole, 0.0) if trained else Form(Frozen, 1.0)
    if by_rows:  # Half a row more is masked, so that rounding it down is exact.
        num_all = size // mask.shape[-1]
        return Form(Rows, (num_all - trained // mask.shape[-1] + 0.5) / num_all)
    return Form(Slots, 1 - most / GROUP)


def num_slots(form: Form) -> int:
    """The number of slots of a group of 128."""
    return slots_per_group(form.mask_ratio) if form.kind is Slots else 0


def choose_mask(forms: PyTree, mask: Mask) -> PyTree:
    """A tree of choices: the entries of a mask, which must fit the forms, as `form_of_mask` finds.

    Args:
      forms: a tree of `Form`.
      mask: a tree of bools shaped as the parameters. True: trained.
    """
    return jax.tree.map(
        lambda form, part: choices.choose_mask(part, *form), forms, mask, is_leaf=is_form
    )


def read(chosen: PyTree, arrays: PyTree) -> PyTree:
    """The chosen entries of every array, float32; None where nothing is chosen."""
    return jax.tree.map(choices.read, chosen, arrays, is_leaf=is_choice)


def write(params: CompactParams, shardings: CompactParams | None = None) -> CompactParams:
    """The parameters with the values in their weights, in place if they are donated.

    Args:
      shardings: those of all arrays. Where slots are split over a mesh as their weight is, every
        device then writes its own part, which TPUs do fastest.
    """
    of = () if shardings is None else (shardings.chosen, shardings.weights)

    def put(
        choice: Choice, weight: jax.Array, values: Any, of_choice: Any = None, of_weight: Any = None
    ) -> jax.Array:
        of_slots = getattr(of_choice, "positions", None)
        alike = isinstance(of_weight, NamedSharding) and of_slots == of_weight
        return choices.write(choice, weight, values, of_weight if alike else None)

    trees = params.chosen, params.weights, params.values, *of
    return params._replace(weights=jax.tree.map(put, *trees, is_leaf=is_choice))


def mask(chosen: PyTree, params: PyTree) -> Mask:
    """The choice as a mask: a tree of bools shaped as the parameters, True where trained.

    Under it, an optimizer trains the same entries of whole weights, which shows what the choice
    does beside others.
    """
    return jax.tree.map(
        lambda choice, leaf: choices.mask(choice, leaf.shape), chosen, params, is_leaf=is_choice
    )


def on_values(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """An optimizer of `CompactParams`, equal to `inner` under the mask of their choice.

    It is given the gradient of the values, and `inner` sees the values as its parameters. A matrix
    keeps its path and its number of axes, so that rules by path or rank, such as a mask of weight
    decay, still hold. What does not belong to single entries differs: the rows and columns of
    Adafactor, or Muon's matrices.

    Args:
      inner: an optimizer, whose state has the size of the values. ``optax.MultiSteps`` and others
        that accumulate trees go around it, not around the result.

    Returns:
      The optimizer; `compact.apply_updates` applies its updates.
    """
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: Any) -> optax.OptState:
        # optax.tree.map_params gives a stand-in for the parameters.
        return inner.init(params.values if isinstance(params, CompactParams) else params)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(
                "an optimizer of CompactParams needs them: update(grads, state, params)"
            )
        updates, state = inner.update(updates, state, params.values, **extra_args)
        return jax.tree.map(_only_filled, params.chosen, updates, is_leaf=is_choice), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _only_filled(choice: Choice, update: jax.Array | None) -> jax.Array | None:
    """The update, 0 for empty slots: they are no weights, whatever the optimizer makes of them."""
    if update is None or not isinstance(choice, Slots):
        return update
    return jnp.where(choice.positions == EMPTY, 0, update)


def apply_updates(
    params: CompactParams, updates: optax.Updates, shardings: CompactParams | None = None
) -> CompactParams:
    """The parameters with the updates added to the values, and the weights that follow.

    Args:
      shardings: as in `write`.
    """
    values = optax.apply_updates(params.values, updates)
    return write(params._replace(values=values), shardings)


def num_chosen(chosen: PyTree, params: PyTree) -> jax.Array:
    """The number of entries that are trained, a float32 scalar."""

    def count(choice: Choice, leaf: Any) -> jax.Array:
        if isinstance(choice, Slots):
            return jnp.sum((choice.positions != EMPTY).astype(jnp.float32))
        if isinstance(choice, Rows):
            return jnp.float32(choice.indices.size * leaf.shape[-1])
        return jnp.float32(leaf.size if isinstance(choice, Whole) else 0)

    counts = jax.tree.map(count, chosen, params, is_leaf=is_choice)
    return jnp.asarray(sum(jax.tree.leaves(counts)), jnp.float32)
