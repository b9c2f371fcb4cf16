"""fixed_mask: an optimizer under a mask that is given, and stays."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import KeyPath

from gmt_jax._threshold.replication import mesh_of, replicate
from gmt_jax.report import masked_fraction
from gmt_jax.selection import LargestScores, Selector, check_mask
from gmt_jax.selective import selective
from gmt_jax.types import Leaf, Mask, MaskRatio, PyTree, StackedAxes

State = TypeVar("State")


class FixedState(NamedTuple):
    """State of the mask of `fixed_mask`.

    Attributes:
      mask: bool, shaped and sharded as the parameters. True: trained.
      masked_fraction: float32 scalar: the masked fraction of all entries.
    """

    mask: Mask
    masked_fraction: jax.Array


def fixed_mask(
    inner: optax.GradientTransformation,
    mask: Mask | Callable[[optax.Params], Mask] | None,
    *,
    stacked_axes: StackedAxes = None,
    apply_to: str = "both",
    report: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer under a mask that is given: entries where it is False keep their bits.

    The mask is stored in the state, one byte for each entry, so that a compiled update takes it as
    an argument. A `jit` of ``init`` has it as a constant: for large masks call ``init`` outside of
    jit, or give None and put the mask into the state with `with_mask`.

    Args:
      inner: any optimizer.
      mask: a tree of bools (or a prefix of one), each broadcastable to its parameter; or a function
        of the parameters that returns one. True: trained. None: nothing, until `with_mask`.
      stacked_axes: this and the following as in `gmt`.
      apply_to: as in `gmt`.
      report: as in `gmt`.

    Returns:
      The optimizer, whose state is a ``SelectiveState``.

    Raises:
      ValueError: if ``apply_to`` is unknown; and when first given the parameters, if the mask does
        not have their structure or shapes.
      TypeError: then, if the mask is not of bools.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import fixed_mask
      >>> params = {"embed": jnp.ones((3, 2)), "head": jnp.ones(2)}
      >>> rows = jnp.array([[True], [False], [True]])
      >>> optimizer = fixed_mask(optax.sgd(1.0), {"embed": rows, "head": False})
      >>> updates, _ = optimizer.update(params, optimizer.init(params))
      >>> print(optax.apply_updates(params, updates)["embed"])
      [[0. 0.]
       [1. 1.]
       [0. 0.]]
    """

    def init(params: optax.Params) -> FixedState:
        leaves = jax.tree.leaves(params)
        if not leaves:
            return FixedState(params, jnp.zeros((), jnp.float32))
        given = mask(params) if callable(mask) else mask
        return _state(_whole(False if given is None else given, params), mesh_of(leaves))

    def select(
        grads: optax.Updates, state: FixedState, params: optax.Params | None
    ) -> tuple[Mask, FixedState]:
        del grads, params
        return state.mask, state

    selector = Selector(init, select)
    return selective(inner, lambda _: selector, stacked_axes, apply_to, report)


def with_mask(state: State, mask: Mask) -> State:
    """The state of an optimizer with a `fixed_mask` in it, with another mask.

    Args:
      state: the state, or one that contains it, such as that of a chain.
      mask: as in `fixed_mask`, but no function. Its arrays are sharded as those in the state.

    Raises:
      ValueError: if there is no `fixed_mask` in the state or more than one, or if the mask does not
        have the structure or shapes of the parameters.
      TypeError: if the mask is not of bools.
    """
    found: list[FixedState] = []

    def is_fixed(node: PyTree) -> bool:
        return isinstance(node, FixedState)

    def replaced(node: PyTree) -> PyTree:
        if not is_fixed(node):
            return node
        found.append(node)
        return _state(_whole(mask, node.mask), mesh_of(jax.tree.leaves(node.mask)))

    new: State = jax.tree.map(replaced, state, is_leaf=is_fixed)
    if len(found) != 1:
        raise ValueError(f"the state has {len(found)} masks of fixed_mask; it must have one")
    return new


def select_largest(
    scores: PyTree,
    mask_ratio: MaskRatio,
    *,
    scope: str = "tensor",
    stacked_axes: StackedAxes = None,
) -> Mask:
    """The mask of the entries with the largest scores, for `fixed_mask`.

    Args:
      scores: a tree of float or complex arrays, of which the absolute values count.
      mask_ratio: the fraction that is MASKED; this and the following as in ``gmt_mask``.
      scope: as in ``gmt_mask``.
      stacked_axes: as in ``gmt_mask``.

    Raises:
      ValueError: as ``gmt_mask``.
      TypeError: as ``gmt_mask``.

    Example:
      LoTA trains what a first run changed most, anew from the base:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from gmt_jax.fixed import select_largest
      >>> base, tuned = jnp.zeros(5), jnp.array([0.1, -0.5, 0.0, 0.3, 0.2])
      >>> print(select_largest(tuned - base, 0.6, scope="global"))
      [False  True False  True False]

    References:
      Panda et al., `Lottery Ticket Adaptation: Mitigating Destructive Interference in LLMs
      <https://arxiv.org/abs/2406.16797>`_, 2024.
    """
    largest = LargestScores(mask_ratio, scope, 0.0, stacked_axes)
    return largest.select(scores, largest.init(scores))[0]


def _state(mask: Mask, mesh: Any) -> FixedState:
    return FixedState(mask, replicate(masked_fraction(mask, mask), mesh))


def _whole(mask: Mask, like: PyTree) -> Mask:
    """The mask with an array for each leaf of a tree, of its shape and sharding."""
    try:
        spread = jax.tree.broadcast(mask, like)
    except ValueError as error:
        raise ValueError(f"the mask is no prefix of the tree of parameters: {error}") from None
    return jax.tree_util.tree_map_with_path(_whole_leaf, spread, like)


def _whole_leaf(path: KeyPath, mask: Leaf, like: Leaf) -> Leaf:
    check_mask(path, mask, like)
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    tracers = isinstance(like, jax.core.Tracer) or isinstance(mask, jax.core.Tracer)
    if isinstance(like, jax.Array) and not tracers:
        whole = mask if mask.shape == like.shape else np.broadcast_to(np.asarray(mask), like.shape)
        # As the parameter, it stays where it is or goes to the devices of a batch.
        return jax.device_put(whole, like.sharding if like.committed else None)
    mask = jnp.expand_dims(jnp.asarray(mask), tuple(range(len(like.shape) - mask.ndim)))
    return jnp.logical_or(jnp.zeros_like(like, bool), mask)
