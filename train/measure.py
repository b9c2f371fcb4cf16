"""What is computed at recorded updates alone: figures of every tensor, and the mask's report."""

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
    """Figures of every tensor and the mask's report, computed inside the compiled update.

    The loop runs a program with them at each multiple of its `log_every`, and one without them
    elsewhere: as a branch of one program, they would keep gradient and update in memory.

    Attributes:
      stacked_axes: as given to the optimizer; each index along these axes is a tensor.
      tensors: whether there are figures of every tensor; False: the mask's report alone.
    """

    stacked_axes: StackedAxes = None
    tensors: bool = True

    def __call__(self, grads: Any, params: Any, updates: Any, opt_state: optax.OptState) -> Figures:
        """The figures of an update.

        Args:
          grads: of the loss, before the optimizer.
          params: before the update.
          updates: what is added to the parameters.
          opt_state: after the update.
        """
        named = {"grad_norm": grads, "weight_norm": params, "update_norm": updates}
        norms = {name: self._each(tree, self._norm) for name, tree in named.items()}
        return norms | self._of_mask(params, opt_state)

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
        report = reports[0][1]
        # A mask with one threshold for all tensors does not tell layers apart.
        whole = report.masked.size == len(jax.tree.leaves(params))
        axes = None if whole else self.stacked_axes
        return {
            f"mask/{name}": self._each(by_leaf(values, params, axes), _as_it_is)
            for name, values in report._asdict().items()
        }


def _as_it_is(path: Any, leaf: jax.Array) -> jax.Array:
    return leaf
