"""Figures of every tensor at an update: norms of gradient, weights and update, and the mask's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from gmt_jax.mask_ratio import axes_of
from gmt_jax.report import MaskReport, by_leaf
from gmt_jax.types import StackedAxes

from .sharding import path_name

# By the name of a figure and the path of a parameter: float32 scalars, or arrays by layer.
Figures: TypeAlias = dict[str, dict[str, jax.Array]]


@dataclass(frozen=True)
class Measure:
    """Figures of every tensor at every so many updates, computed inside the compiled update.

    Norms are sums over each array as it is, without a copy of it; between the updates that are
    measured they cost nothing. What the mask's own report has is taken from its state.

    Attributes:
      every: updates between those that are measured.
      stacked_axes: as given to the optimizer; each index along these axes is a tensor.
    """

    every: int
    stacked_axes: StackedAxes = None

    def __call__(
        self, step: jax.Array, grads: Any, params: Any, updates: Any, opt_state: optax.OptState
    ) -> tuple[jax.Array, Figures]:
        """Whether the update is measured, and the figures, zeros if it is not.

        Args:
          step: the number of updates done, with this one.
          grads: of the loss, before the optimizer.
          params: before the update.
          updates: what is added to the parameters.
          opt_state: after the update.
        """
        is_time = step % self.every == 0
        named = {"grad_norm": grads, "weight_norm": params, "update_norm": updates}
        # Each by itself: together they would have to be in memory at the same time.
        figures = {name: self._norms(is_time, tree) for name, tree in named.items()}
        return is_time, figures | self._of_mask(params, opt_state)

    def _norms(self, is_time: jax.Array, tree: Any) -> dict[str, jax.Array]:
        def norms() -> dict[str, jax.Array]:
            return self._each(tree, self._norm)

        def zeros() -> dict[str, jax.Array]:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(norms))

        figures: dict[str, jax.Array] = jax.lax.cond(is_time, norms, zeros)
        return figures

    def _norm(self, path: Any, leaf: jax.Array) -> jax.Array:
        stacked = axes_of(self.stacked_axes, path, leaf)
        axes = tuple(axis for axis in range(leaf.ndim) if axis not in stacked)
        # The last axis first, so that a long sum in float32 is one of sums.
        squares = jnp.square(jnp.abs(leaf).astype(jnp.float32))
        return jnp.sqrt(jnp.sum(jnp.sum(squares, axes[-1:]), axes[:-1]) if axes else squares)

    def _each(self, tree: Any, function: Callable[..., jax.Array]) -> dict[str, jax.Array]:
        flat = jax.tree_util.tree_leaves_with_path(tree)
        return {path_name(path): function(path, leaf) for path, leaf in flat}

    def _of_mask(self, params: Any, opt_state: optax.OptState) -> Figures:
        """The figures by tensor in the state of a mask, if it has any and there is one mask."""
        reports = optax.tree.get_all_with_path(opt_state, "by_tensor")
        if len(reports) != 1 or not isinstance(reports[0][1], MaskReport):
            return {}
        return {
            f"mask/{name}": self._each(by_leaf(values, params, self.stacked_axes), _as_it_is)
            for name, values in reports[0][1]._asdict().items()
        }


def _as_it_is(path: Any, leaf: jax.Array) -> jax.Array:
    return leaf
