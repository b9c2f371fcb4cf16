"""The balanced mask: the largest scores of every 128 entries, the same number of each group."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gmt_jax import compact
from gmt_jax.scores import Score, score_selector
from gmt_jax.selection import GmtMaskState
from gmt_jax.selective import selective
from gmt_jax.types import Mask, MaskRatio, PyTree, StackedAxes, is_number


@dataclass(frozen=True)
class BalancedScores:
    """Selects the largest scores of each group, in the place of `LargestScores`.

    Attributes:
      mask_ratio: this and the next as in `compact.plan_forms`.
      rows: as there.
      squares: whether scores are squares already, of which a row's score is the sum.
    """

    mask_ratio: MaskRatio
    rows: str | None
    squares: bool = False

    def __post_init__(self) -> None:
        ratios = self.mask_ratio
        values = ratios.values() if isinstance(ratios, Mapping) else [ratios]
        if not all(is_number(value) and 0 <= value <= 1 for value in values):
            raise ValueError(
                "a balanced mask has the same number of entries in every group: mask_ratio is one "
                f"number in [0, 1], or one for each expression; got {ratios!r}"
            )

    def init(self, params: optax.Params) -> GmtMaskState:
        """The state before the first update, from parameters or their shapes."""
        compact.plan_forms(params, self.mask_ratio, self.rows)  # type: ignore[arg-type]
        return GmtMaskState(
            jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
        )

    def select(
        self, scores: PyTree, state: GmtMaskState, break_ties: bool = True
    ) -> tuple[Mask, GmtMaskState]:
        """The mask, and the next state; of equal scores the first are selected."""
        forms = compact.plan_forms(scores, self.mask_ratio, self.rows)  # type: ignore[arg-type]
        if self.squares:
            scores = jax.tree.map(jnp.sqrt, scores)
        chosen = compact.choose(forms, scores)
        size = sum(leaf.size for leaf in jax.tree.leaves(scores))
        fraction = (size - compact.num_chosen(chosen, scores)) / max(size, 1)
        count = jnp.asarray(optax.safe_increment(state.count))
        return compact.mask(chosen, scores), GmtMaskState(count, state.threshold, fraction)


def balanced(
    inner: optax.GradientTransformation,
    mask_ratio: MaskRatio,
    *,
    rows: str | None = None,
    score: Score = "gradient",
    warmup: int = 0,
    stacked_axes: StackedAxes = None,
    apply_to: str = "both",
    report: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer under a mask that lasts: the largest scores of every 128 entries of a row.

    It is the mask that `gmt_jax.compact` trains in an adapter's memory, over whole weights, so that
    it can be compared with others.

    Args:
      inner: any optimizer.
      mask_ratio: the fraction of every group that is MASKED; one number, or one for each expression
        that is searched in the paths.
      rows: a regular expression; matrices in whose path it is found are selected by whole rows.
      score: as in `by_score`.
      warmup: the number of updates before the mask is drawn, as in `by_score`.
      stacked_axes: the axes whose tensors a report tells apart.
      apply_to: as in ``gmt``.
      report: as in ``gmt``.

    Returns:
      The optimizer, whose state is a ``SelectiveState``.

    Raises:
      ValueError: if ``mask_ratio`` is not numbers in [0, 1], or as `by_score`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import balanced
      >>> optimizer = balanced(optax.sgd(1.0), 0.98)
      >>> params = jnp.zeros(256)
      >>> updates, _ = optimizer.update(jnp.arange(256.0), optimizer.init(params), params)
      >>> print(jnp.flatnonzero(updates))
      [125 126 127 253 254 255]
    """
    largest: Any = BalancedScores(mask_ratio, rows, score == "fisher")
    selector = score_selector(largest, score, None, warmup, 0)
    return selective(inner, lambda _: selector, stacked_axes, apply_to, report)
