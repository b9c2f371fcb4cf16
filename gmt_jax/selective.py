"""Optimizers that leave masked weights exactly where they are: gmt, by_score and train_only."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gmt_jax.report import masked_fraction, reported
from gmt_jax.scores import ScoreFunction, score_selector
from gmt_jax.selection import LargestScores, Selector, apply_mask, as_arrays, check_mask
from gmt_jax.structured import refuse_constants
from gmt_jax.types import Key, Mask, MaskRatio, MaskSchedule, PyTree, StackedAxes


class SelectiveState(NamedTuple):
    """State of an optimizer that moves only the selected entries.

    Attributes:
      inner_state: the state of the inner optimizer.
      selector_state: a `ScoredState`, or a `ScheduledState` of `train_only`; with a report, a
        `ReportedState` around it.
    """

    inner_state: optax.OptState
    selector_state: PyTree


class ScheduledState(NamedTuple):
    """State of `train_only`, from whose count the mask follows.

    Attributes:
      count: int32 scalar: the number of updates done.
      masked_fraction: float32 scalar: the fraction of all entries that the latest update masked.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count is a method
    masked_fraction: jax.Array


def gmt(
    inner: optax.GradientTransformation,
    mask_ratio: MaskRatio,
    *,
    scope: str = "tensor",
    tolerance: float | jax.Array = 0.0,
    stacked_axes: StackedAxes = None,
    apply_to: str = "both",
    report: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient-Mask Tuning around an optimizer: masked weights do not move at all.

    The mask is that of ``gmt_mask``: entries with the smallest gradients are masked in the gradient
    that the inner optimizer sees, and again in its update, so that neither old momentum nor weight
    decay moves them:

    .. math::
      \theta_i \leftarrow \theta_i + \text{inner}(\tilde g)_i \text{ if } |g_i| \ge T
      \text{ else } \theta_i.

    The update of a masked entry is -0.0, which keeps the bits of any weight it is added to: zeros
    of either sign, infinities and quiet NaNs too. Two exceptions: hardware that flushes subnormals
    makes 0 of a subnormal weight, below 1.2e-38, in any addition, and what leaves an update out,
    as ``optax.MultiSteps`` and ``optax.apply_if_finite`` do, adds 0.0, which makes 0.0 of -0.0.
    Nothing that rescales or adds to the update may follow: ``inner`` is the whole optimizer, with
    its learning rate and weight decay.

    The inner optimizer sees a gradient of zero for a masked entry: its moments decay, and the
    momentum that is left acts when the entry is next trained. With ``apply_to="update"`` the inner
    optimizer sees the whole gradient. Moments are not frozen: all entries share the step count of
    Adam's bias correction, and what Adafactor and Muon store does not belong to single entries.

    Args:
      inner: any optimizer. Extra arguments of an update are passed on to it.
      mask_ratio: the fraction that is MASKED; this and the next three as in ``gmt_mask``.
      scope: ``"tensor"`` or ``"global"``.
      tolerance: the fraction of the entries by which the number of masked ones may fall short.
      stacked_axes: the axis of a leaf that indexes separate tensors.
      apply_to: what is masked: ``"both"`` the gradient that ``inner`` sees and its update; the
        ``"update"`` alone; or the ``"gradient"`` alone, as with ``gmt_mask`` before ``inner``.
      report: whether to store figures of each update in the state, two ``MaskReport`` that
        ``optax.tree.get(state, "overall")`` and ``optax.tree.get(state, "by_tensor")`` return. This
        takes one byte for each entry and one more reading of the gradient, but for an update with
        the extra argument ``report=False``.

    Returns:
      The optimizer. Its state is a ``SelectiveState``; it stores no mask unless there is a report.

    Raises:
      ValueError: as ``gmt_mask``, and if ``apply_to`` is unknown.
      TypeError: as ``gmt_mask``.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import gmt
      >>> optimizer = gmt(optax.adamw(0.1, weight_decay=0.1), 0.4)
      >>> params = jnp.ones(5)
      >>> state = optimizer.init(params)
      >>> gradient = jnp.array([3.0, -1.0, 2.0, -5.0, 4.0])
      >>> updates, state = optimizer.update(gradient, state, params)
      >>> print(optax.apply_updates(params, updates).round(2))
      [0.89 1.   1.   1.09 0.89]

    References:
      Li et al., `Gradient-Mask Tuning Elevates the Upper Limits of LLM Performance
      <https://arxiv.org/abs/2406.15330>`_, 2024.
    """
    largest = LargestScores(mask_ratio, scope, tolerance, stacked_axes)
    selector = score_selector(largest, "gradient", every=1, warmup=0, key=0)
    return selective(inner, lambda _: selector, stacked_axes, apply_to, report)


def by_score(
    inner: optax.GradientTransformation,
    mask_ratio: MaskRatio,
    *,
    score: str | ScoreFunction = "gradient",
    every: int | None = 1,
    warmup: int = 0,
    key: Key = 0,
    scope: str = "tensor",
    tolerance: float | jax.Array = 0.0,
    stacked_axes: StackedAxes = None,
    apply_to: str = "both",
    report: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer under a mask of the entries with the smallest scores; `gmt` is one case of it.

    A mask that lasts for more than one update is stored in the state, as bools sharded as the
    parameters are: one byte for each entry. The Fisher score stores four bytes for each entry.
    While a mask is selected by ``"gradient_to_weight"`` or ``"random"``, the scores take four bytes
    for each entry; on CPU jax's random generator takes twelve more.

    Args:
      inner: any optimizer.
      mask_ratio: the fraction that is MASKED, as in ``gmt_mask``.
      score: the quantity of which the smallest are masked: ``"gradient"``, |g|;
        ``"gradient_to_weight"``, |g| / |w|, or 0 where g is 0; ``"weight"``, |w|; ``"random"``, a
        random number for each entry; ``"fisher"``, the sum of |g|² over the updates since a mask
        was last selected. Or a function of the gradient, the parameters and the state of ``inner``
        that returns a tree of scores, whose absolute values count. The state is that before the
        update, and with ``apply_to="update"`` that after it.
      every: the number of updates that a mask lasts; None: the first mask stays.
      warmup: the number of updates before the first mask. They mask everything; the Fisher score
        sums up their gradients, and the inner optimizer counts them.
      key: the key of the random scores, as from ``jax.random.key``, or an integer n for
        ``jax.random.key(n)``. The scores depend only on it, on how many masks were selected before,
        and on the path and shape of a leaf: they are the same on every sharding and after a
        restart.
      scope: this and the following as in ``gmt``.
      tolerance: as in ``gmt``.
      stacked_axes: as in ``gmt``.
      apply_to: as in ``gmt``.
      report: as in ``gmt``.

    Returns:
      The optimizer, whose state is a ``SelectiveState``. Under ``optax.inject_hyperparams``, name
      ``every`` and ``warmup`` in ``static_args``.

    Raises:
      ValueError: as ``gmt``, and if ``score`` is unknown, or ``every`` or ``warmup`` is not a
        number of updates.
      TypeError: as ``gmt``.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import by_score
      >>> optimizer = by_score(optax.sgd(1.0), 0.5, score="weight", every=None)
      >>> params = jnp.array([4.0, -3.0, 1.0, 2.0])
      >>> updates, _ = optimizer.update(jnp.ones(4), optimizer.init(params), params)
      >>> print(optax.apply_updates(params, updates))
      [ 3. -4.  1.  2.]
    """
    largest = LargestScores(mask_ratio, scope, tolerance, stacked_axes)

    def selector_of(inner_state: Any) -> Selector[Any]:
        def of_state(grads: optax.Updates, params: optax.Params | None) -> PyTree:
            assert not isinstance(score, str)
            return score(grads, params, inner_state)

        bound = score if isinstance(score, str) else of_state
        return score_selector(largest, bound, every, warmup, key)

    return selective(inner, selector_of, stacked_axes, apply_to, report)


def train_only(
    inner: optax.GradientTransformation,
    schedule: Callable[[optax.Params], MaskSchedule],
    *,
    stacked_axes: StackedAxes = None,
    apply_to: str = "both",
    report: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer under a mask that depends only on the number of updates done.

    Args:
      inner: any optimizer.
      schedule: a function of the parameters, or of their shapes, that returns a mask schedule, such
        as those of `gmt_jax.structured`: a function of the number of updates done that returns a
        tree of bools (or a prefix of one), each broadcastable to its parameter. True: trained.
      stacked_axes: the axis of a leaf whose tensors the report tells apart, as in ``gmt_mask``.
      apply_to: as in ``gmt``.
      report: as in ``gmt``.

    Returns:
      The optimizer, whose state is a ``SelectiveState``.

    Raises:
      ValueError: if ``apply_to`` is unknown; when first given the parameters, what ``schedule``
        raises; and at an update, if its mask does not fit the gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import train_only
      >>> schedule = lambda params: lambda count: {"head": True, "rest": False}
      >>> optimizer = train_only(optax.adamw(0.1), schedule)
      >>> params = {"head": jnp.ones(2), "rest": jnp.ones(3)}
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> print(optax.apply_updates(params, updates)["rest"])
      [1. 1. 1.]
    """

    def init(params: optax.Params) -> ScheduledState:
        if jax.tree.leaves(params):
            schedule(params)  # Refuses parameters it does not know before anything is trained.
        return ScheduledState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def select(
        grads: optax.Updates, state: ScheduledState, params: optax.Params | None
    ) -> tuple[Mask, ScheduledState]:
        del params
        mask = jax.tree.broadcast(schedule(grads)(state.count), grads)
        refuse_constants(mask, state.count)
        jax.tree_util.tree_map_with_path(check_mask, mask, grads)
        fraction = masked_fraction(mask, grads)
        return mask, ScheduledState(jnp.asarray(optax.safe_increment(state.count)), fraction)

    return selective(inner, lambda _: Selector(init, select), stacked_axes, apply_to, report)


def selective(
    inner: optax.GradientTransformation,
    selector_of: Callable[[Any], Selector[Any]],
    stacked_axes: StackedAxes,
    apply_to: str,
    report: bool,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer under the mask of a selector, which may depend on the optimizer's state.

    Args:
      inner: any optimizer.
      selector_of: a function of the state of ``inner``, before the update or, with
        ``apply_to="update"``, after it; of None before the first update.
      stacked_axes: this and the following as in `gmt`.
      apply_to: as in `gmt`.
      report: as in `gmt`.
    """
    if apply_to not in ("both", "update", "gradient"):
        raise ValueError(f"apply_to is 'both', 'update' or 'gradient', got {apply_to!r}")
    inner = optax.with_extra_args_support(inner)
    # -0.0 added to a weight changes no bit of it, neither of 0.0 nor of -0.0.
    apply_to_update = partial(apply_mask, zero=-0.0)

    def with_report(inner_state: Any, now: bool = True) -> Selector[Any]:
        selector = selector_of(inner_state)
        return reported(selector, stacked_axes, now) if report else selector

    first = with_report(None)  # Refuses options that make no sense.

    def init_fn(params: optax.Params) -> SelectiveState:
        params = as_arrays(params)
        return SelectiveState(inner.init(params), first.init(params))

    def update_fn(
        updates: optax.Updates,
        state: PyTree,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SelectiveState]:
        inner_state, now = state.inner_state, extra_args.get("report", True)
        grads, params = as_arrays((updates, params))
        if apply_to == "update":
            updates, inner_state = inner.update(grads, inner_state, params, **extra_args)
        selector = with_report(inner_state, now)
        mask, selector_state = selector.select(grads, state.selector_state, params)
        if apply_to != "update":
            kept = jax.tree.map(apply_mask, grads, mask)
            updates, inner_state = inner.update(kept, inner_state, params, **extra_args)
        if apply_to != "gradient":
            updates = jax.tree.map(apply_to_update, updates, mask)
        return updates, SelectiveState(inner_state, selector_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
