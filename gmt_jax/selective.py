"""gmt and its relatives: any optimizer, under which a weight that is not chosen stays as it is."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gmt_jax.report import reported
from gmt_jax.scores import Selector, scored
from gmt_jax.selection import MaskRatio, NumStackedAxes, Smallest, apply_mask
from gmt_jax.structured import MaskSchedule
from gmt_jax.tree_paths import Key


class SelectiveState(NamedTuple):
    """State of an optimizer that updates chosen entries alone."""

    inner_state: Any
    # A `ScoredState` or `ScheduledState`, in a `ReportedState` where asked for.
    selector_state: Any


class ScheduledState(NamedTuple):
    """State of `train_only`: what is chosen follows from the count."""

    count: jax.Array  # type: ignore[assignment]  # int32 scalar: updates done
    masked_fraction: jax.Array  # float32 scalar: masked by the latest update, of all entries


def gmt(
    inner: optax.GradientTransformation,
    mask_ratio: MaskRatio,
    *,
    scope: str = "tensor",
    tolerance: float | jax.Array = 0.0,
    num_stacked_axes: NumStackedAxes = None,
    apply_to: str = "both",
    report: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient-Mask Tuning of any optimizer: what is masked is not moved at all.

    The entries are chosen as by ``gmt_mask``. Those with the smallest gradients are masked in the
    gradient that the inner optimizer sees, and again in its update, so that neither old momentum
    nor weight decay moves them:

    .. math::
      \theta_i \leftarrow \theta_i + \text{inner}(\tilde g)_i \text{ if } |g_i| \ge T
      \text{ else } \theta_i.

    The update of a masked entry is -0.0, which added to a weight gives the same bits: to zeros of
    either sign, infinities and quiet NaNs too. (A subnormal weight, below 1.2e-38, is flushed to
    zero by the addition itself on hardware that does so. ``optax.MultiSteps`` adds 0.0 between
    updates, which makes 0.0 of -0.0.) Nothing that rescales or adds to the update may follow:
    ``inner`` is the whole optimizer, its learning rate and weight decay included.

    The inner state is the inner optimizer's own business: the moments of a masked entry decay as
    with a gradient of zero, and its momentum, if some is left, acts when the entry is next chosen.
    With ``apply_to="update"`` all moments follow the whole gradient. Moments are not frozen: a step
    count shared by all entries makes Adam's bias correction wrong for entries that were held
    back, and what Adafactor and Muon hold does not belong to single entries.

    Args:
      inner: any optimizer. Extra arguments of an update are passed on to it.
      mask_ratio: the fraction that is MASKED; this and the next three as in ``gmt_mask``.
      scope: ``"tensor"`` or ``"global"``.
      tolerance: by what fraction of the entries the masked number may fall short.
      num_stacked_axes: how many leading axes of a leaf index separate tensors.
      apply_to: what is masked: ``"both"``; the ``"update"`` alone, so that the inner optimizer sees
        the whole gradient; or the ``"gradient"`` alone, as with ``gmt_mask`` before it.
      report: hold figures of each update in the state, for ``optax.tree.get(state, "overall")`` and
        ``optax.tree.get(state, "by_tensor")`` to read: a ``MaskReport`` each. It takes a byte an
        entry and one more reading of the gradient.

    Returns:
      The optimizer. Its state is a ``SelectiveState``; without a report no mask is held in it.

    Raises:
      ValueError: as ``gmt_mask``, and if ``apply_to`` is unknown.
      TypeError: at the first sight of a leaf that is neither float nor complex.

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
    rule = Smallest(mask_ratio, scope, tolerance, num_stacked_axes)
    return _selective(inner, scored(rule, "gradient", 1, 0, 0), apply_to, report, num_stacked_axes)


def by_score(
    inner: optax.GradientTransformation,
    mask_ratio: MaskRatio,
    *,
    score: str = "gradient",
    every: int | None = 1,
    warmup: int = 0,
    key: Key = 0,
    scope: str = "tensor",
    tolerance: float | jax.Array = 0.0,
    num_stacked_axes: NumStackedAxes = None,
    apply_to: str = "both",
    report: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Any optimizer, with the entries of the smallest scores masked: `gmt` is one case of it.

    Where a mask lasts for more than an update it is held in the state, as bools that are sharded
    as the parameters are: one byte an entry. The Fisher score holds four bytes an entry. While a
    mask is drawn by ``"gradient_to_weight"`` or ``"random"``, the scores take four bytes an entry;
    on CPU jax's generator of random numbers takes twelve more.

    Args:
      inner: any optimizer.
      mask_ratio: the fraction that is MASKED, as in ``gmt_mask``.
      score: of which the smallest are masked: ``"gradient"``, |g|; ``"gradient_to_weight"``,
        |g| / |w|, or 0 where g is; ``"weight"``, |w|; ``"random"``, a number drawn for each entry;
        ``"fisher"``, the sum of g² over the updates since a mask was last drawn.
      every: how many updates a mask lasts; None: the first one stays.
      warmup: how many updates come before the first mask. In these everything is masked: they only
        look at gradients, for the Fisher score to sum up. The inner optimizer counts them.
      key: of the random scores. These depend on it, on how many masks were drawn before, and on
        a leaf's path and shape alone: they are the same on every sharding and after a restart.
      scope: this and the others as in ``gmt``.
      tolerance: as in ``gmt``.
      num_stacked_axes: as in ``gmt``.
      apply_to: as in ``gmt``.
      report: as in ``gmt``.

    Returns:
      The optimizer, whose state is a ``SelectiveState``. Under ``optax.inject_hyperparams``,
      ``every`` and ``warmup`` are to be named in ``static_args``.

    Raises:
      ValueError: as ``gmt``, and if ``score``, ``every`` or ``warmup`` is not one of these.

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
    rule = Smallest(mask_ratio, scope, tolerance, num_stacked_axes)
    return _selective(
        inner, scored(rule, score, every, warmup, key), apply_to, report, num_stacked_axes
    )


def train_only(
    inner: optax.GradientTransformation,
    schedule: Callable[[Any], MaskSchedule],
    *,
    num_stacked_axes: NumStackedAxes = None,
    apply_to: str = "both",
    report: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Any optimizer of the entries that a schedule by place in the model names; the rest stays.

    Args:
      inner: any optimizer.
      schedule: of a tree of parameters gives what is trained, as those in `gmt_jax.structured` do:
        of the number of updates done, a tree of bools (or a prefix of one), each broadcastable to
        its parameter.
      num_stacked_axes: which layers the report tells apart, as in ``gmt_mask``.
      apply_to: as in ``gmt``.
      report: as in ``gmt``.

    Returns:
      The optimizer, whose state is a ``SelectiveState``.

    Raises:
      ValueError: where ``schedule`` does, at the first sight of the parameters.

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

    def init(params: Any) -> ScheduledState:
        if jax.tree.leaves(params):
            schedule(params)  # Refuses what it does not know before anything is trained.
        return ScheduledState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def select(grads: Any, state: ScheduledState, params: Any) -> tuple[Any, ScheduledState]:
        del params
        kept = jax.tree.broadcast(schedule(grads)(state.count), grads)
        leaves = jax.tree.leaves(grads)
        means = [jnp.mean(mask, dtype=jnp.float32) for mask in jax.tree.leaves(kept)]
        entries = sum(g.size for g in leaves)
        share = sum(mean * (g.size / entries) for mean, g in zip(means, leaves, strict=True))
        return kept, ScheduledState(optax.safe_increment(state.count), 1 - share)

    return _selective(inner, Selector(init, select), apply_to, report, num_stacked_axes)


def _selective(
    inner: optax.GradientTransformation,
    selector: Selector,
    apply_to: str,
    report: bool,
    num_stacked_axes: NumStackedAxes,
) -> optax.GradientTransformationExtraArgs:
    if apply_to not in ("both", "update", "gradient"):
        raise ValueError(f"apply_to is 'both', 'update' or 'gradient', got {apply_to!r}")
    inner = optax.with_extra_args_support(inner)
    selector = reported(selector, num_stacked_axes) if report else selector
    # To every weight, 0.0 and -0.0 among them, -0.0 adds nothing.
    still = partial(apply_mask, zero=-0.0)

    def init_fn(params: optax.Params) -> SelectiveState:
        return SelectiveState(inner.init(params), selector.init(params))

    def update_fn(
        updates: optax.Updates,
        state: SelectiveState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SelectiveState]:
        kept, selector_state = selector.select(updates, state.selector_state, params)
        if apply_to != "update":
            updates = jax.tree.map(apply_mask, updates, kept)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        if apply_to != "gradient":
            updates = jax.tree.map(still, updates, kept)
        return updates, SelectiveState(inner_state, selector_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
