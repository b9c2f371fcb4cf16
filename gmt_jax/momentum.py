"""MoFO: the entries with the largest first moments, which are read from the optimizer's state."""

from typing import Any

import jax
import optax

from gmt_jax.selective import by_score
from gmt_jax.tree_paths import without_box
from gmt_jax.types import MaskRatio, PyTree, StackedAxes

_MOMENTS = ("mu", "trace", "ema")  # optax's names of a first moment


def mofo(
    inner: optax.GradientTransformation,
    mask_ratio: MaskRatio,
    *,
    scope: str = "tensor",
    tolerance: float | jax.Array = 0.0,
    stacked_axes: StackedAxes = None,
    report: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""MoFO: the entries with the largest first moments :math:`|m_t|`, chosen at each update.

    The optimizer sees the whole gradient, and its moments are those of plain training; of its
    update, the entries whose first moment is largest are made. They are read from its state: this
    method stores nothing of its own. The paper updates 5 to 20 % of each matrix, and all of norms
    and biases: ``mofo(optax.adamw(1e-5), {"norm|bias": 0.0, ".*": 0.85})``.

    The authors' code decays all weights, which moves masked ones too; here a masked weight keeps
    its bits. To do as they do, decay outside of the mask: ``optax.chain(mofo(optax.scale_by_adam(),
    0.85), optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(1e-5))``.

    Args:
      inner: an optimizer with a first moment: of the Adam family, Lion, Muon, or SGD with momentum.
      mask_ratio: the fraction that is MASKED, as in ``gmt_mask``; so that of n entries
        ⌊mask_ratio · n⌋ are masked, and ties are kept.
      scope: this and the following as in `gmt`.
      tolerance: as in `gmt`.
      stacked_axes: as in `gmt`.
      report: as in `gmt`.

    Raises:
      ValueError: as `by_score`; and at the first update, if ``inner`` has no first moment.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import mofo
      >>> optimizer = mofo(optax.sgd(1.0, momentum=0.5), 0.5)
      >>> state = optimizer.init(jnp.zeros(4))
      >>> for gradient in ([8.0, 1.0, 4.0, 2.0], [0.0, 3.0, 3.0, 1.0]):
      ...     updates, state = optimizer.update(jnp.array(gradient), state)
      ...     print(updates)
      [-8. -0. -4. -0.]
      [-4. -0. -5. -0.]

    References:
      Chen et al., `MoFO: Momentum-Filtered Optimizer for Mitigating Forgetting in LLM Fine-Tuning
      <https://arxiv.org/abs/2407.20999>`_, 2024.
    """

    def score(grads: optax.Updates, params: optax.Params | None, state: optax.OptState) -> PyTree:
        del params
        return first_moment(state, grads)

    return by_score(
        inner,
        mask_ratio,
        score=score,
        scope=scope,
        tolerance=tolerance,
        stacked_axes=stacked_axes,
        apply_to="update",
        report=report,
    )


def first_moment(state: optax.OptState, like: PyTree) -> PyTree:
    """The first moment in an optimizer's state, as a tree like that of the gradient.

    Raises:
      ValueError: if there is none.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(like)
    for name in _MOMENTS:
        found: list[Any] = [None] * len(flat)
        for _, tree in optax.tree.get_all_with_path(state, name):
            # By path: `optax.partition` leaves out the parts of other optimizers, and a parameter
            # of that name is found too, in every tree of the state that is like the parameters.
            parts = {without_box(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
            for index, (path, leaf) in enumerate(flat):
                part = parts.get(without_box(path))
                if part is not None and part.shape == leaf.shape:
                    found[index] = part
        if all(part is not None for part in found):
            return jax.tree.unflatten(treedef, found)
    raise ValueError(
        "the optimizer's state has no first moment for every parameter "
        f"({', '.join(_MOMENTS)}); take one of the Adam family, Lion, Muon or SGD with momentum"
    )
