"""Optimizers and learning-rate schedules by name, with arguments that are checked."""

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Arguments = Mapping[str, Any]

# Arguments that the program gives: no setting of the user's.
_GIVEN = ("learning_rate", "mask", "weight_decay_mask", "muon_weight_dimension_numbers")


def make_optimizer_by_name(
    name: str, learning_rate: optax.Schedule, arguments: Arguments, given: Arguments
) -> optax.GradientTransformation:
    """An optimizer of optax or optax.contrib, or of `module:attribute`.

    Args:
      name: of a function that has an argument `learning_rate`.
      learning_rate: the schedule.
      arguments: what the user sets, by name. A weight decay of 0 is for every optimizer.
      given: what the program gives if the function takes it.

    Raises:
      ValueError: with what there is, if there is no such function or it does not take an argument.
    """
    function = _find(name, "optimizer", [optax, optax.contrib])
    parameters = inspect.signature(function).parameters
    if "learning_rate" not in parameters:
        raise ValueError(f"{name} takes no learning_rate, so that it is no optimizer")
    own = {key: value for key, value in arguments.items() if key in parameters or value != 0}
    _check(name, function, own, _GIVEN)
    if "weight_decay" not in own:  # A mask of anything else is not known here.
        given = {key: value for key, value in given.items() if key != "mask"}
    taken = {key: value for key, value in given.items() if key in parameters}
    optimizer: optax.GradientTransformation = _call(
        name, function, {"learning_rate": learning_rate, **taken, **own}
    )
    return optimizer


def check_optimizer(name: str, arguments: Arguments) -> None:
    """Raises ValueError where `make_optimizer_by_name` does, or where an update would fail."""
    optimizer = make_optimizer_by_name(name, lambda count: 1e-3, arguments, {})
    params = {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    try:
        state = jax.eval_shape(optimizer.init, params)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            jax.eval_shape(optimizer.update, params, state, params)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot update weights here: {_one_line(error)}") from None


def needs_matrices(name: str, arguments: Arguments) -> bool:
    """Whether an optimizer that `check_optimizer` accepts computes with rows, columns or products.

    Such an optimizer moves a matrix of chosen entries otherwise than whole weights under a mask.
    One that computes with single entries, and with sums over a whole tensor, does not count.
    """
    # Above 128, from where Adafactor factors, and of a size that no other array will have.
    shape = (134, 138)
    optimizer = make_optimizer_by_name(name, lambda count: 1e-3, arguments, {})
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    state = jax.eval_shape(optimizer.init, params)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        update = jax.make_jaxpr(optimizer.update)(params, state, params)
    return any(
        math.prod(found) > 1 and found[-2:] != shape and found != (math.prod(shape),)
        for found in _float_shapes(update.jaxpr)
    )


def _float_shapes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """The shapes of all float arrays that a program computes, those of its inner ones included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if jnp.issubdtype(getattr(variable.aval, "dtype", jnp.int32), jnp.floating):
                yield variable.aval.shape
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from _float_shapes(inner)


def make_schedule_by_name(
    name: str,
    peak: float,
    steps: int,
    warmup_steps: int,
    min_ratio: float,
    arguments: Arguments,
) -> optax.Schedule:
    r"""Returns the learning rate as a function of the number of updates done, of `steps` in all.

    With a warm-up of W updates it rises linearly, :math:`\eta_t = \eta (t + 1) / W` for t < W: no
    update is spent at a rate of zero, and the warm-up's last has the peak. Then it falls towards
    `min_ratio` of the peak, which it would reach one update after the last.

    Args:
      name: `cosine`, `linear`, `constant`, `wsd` or `inverse_sqrt`; or a schedule of optax, or of
        `module:attribute`. Such a function gets the peak as `peak_value`, `init_value` or `value`;
        and, unless they are among the arguments, the updates after the warm-up as `decay_steps` or
        `transition_steps`, and the last rate as `end_value` or `alpha`. One that has a warm-up of
        its own gets `warmup_steps`, and all updates.
      steps: updates of the whole run.
      warmup_steps: updates of the warm-up.
      min_ratio: the last rate as a fraction of the peak.
      arguments: what the user sets, by name.

    Raises:
      ValueError: with what there is, if there is no such function, or it does not take an argument,
        or has no last rate to set.
    """
    function = _OWN.get(name) or _find(_ALIASES.get(name, name), "schedule", [optax], _OURS)
    parameters = inspect.signature(function).parameters
    values = [key for key in ("peak_value", "init_value", "value") if key in parameters]
    if not values:
        raise ValueError(f"{name} takes no peak_value, init_value or value: no learning rate")
    rises = "peak_value" in parameters and "warmup_steps" in parameters
    warmup = 0 if rises else warmup_steps
    left = max(steps - warmup, 1)
    given = {"init_value": 0.0, values[0]: peak, "warmup_steps": warmup_steps}
    given |= {"decay_steps": left, "transition_steps": left}
    last = {"end_value": peak * min_ratio, "alpha": min_ratio, "min_ratio": min_ratio}
    ends = [key for key in last if key in parameters]
    if min_ratio and not ends:
        raise ValueError(f"min_lr_ratio has no effect when lr_schedule is {name!r}; remove it")
    required = [key for key in ends if parameters[key].default is inspect.Parameter.empty]
    given |= {key: last[key] for key in (ends if min_ratio else required)}
    _check(name, function, arguments, (values[0],))
    taken = {key: value for key, value in given.items() if key in parameters}
    falls: optax.Schedule = _call(name, function, taken | dict(arguments))
    if not warmup:
        return falls
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, falls], [warmup])


def wsd(
    init_value: float, decay_steps: int, decay_ratio: float = 0.1, min_ratio: float = 0.0
) -> optax.Schedule:
    """Warm-up, stable, decay: constant, then linear over the last `decay_ratio` of the updates.

    Args:
      decay_steps: updates in all, after the warm-up.
      decay_ratio: the fraction of them over which the rate falls.
      min_ratio: the last rate as a fraction of the first, which it would reach one update later.
    """
    if not 0 <= decay_ratio <= 1:
        raise ValueError(f"takes a decay_ratio from 0 to 1, got {decay_ratio}")
    num_decay = max(round(decay_ratio * decay_steps), 1)
    decay = optax.linear_schedule(init_value, init_value * min_ratio, num_decay)
    stable = max(decay_steps - num_decay, 0)
    return optax.join_schedules([optax.constant_schedule(init_value), decay], [stable])


def inverse_sqrt(
    init_value: float, warmup_steps: int, timescale: int | None = None, min_ratio: float = 0.0
) -> optax.Schedule:
    r"""The rate falls with the inverse square root: :math:`\eta \sqrt{\tau / (t + \tau)}`.

    Args:
      warmup_steps: updates before; the default of the time scale.
      timescale: the time scale :math:`\tau` in updates: after three of them the rate is a half.
      min_ratio: the least rate as a fraction of the first.
    """
    tau = timescale or warmup_steps
    if not tau:
        raise ValueError("needs timescale, or warmup_steps, which is its default")

    def schedule(count: Any) -> Any:
        rate = init_value * jnp.sqrt(tau / (jnp.asarray(count, jnp.float32) + tau))
        return jnp.maximum(rate, init_value * min_ratio)

    return schedule


_OWN: dict[str, Callable[..., Any]] = {"wsd": wsd, "inverse_sqrt": inverse_sqrt}
_ALIASES = {
    "cosine": "cosine_decay_schedule",
    "linear": "linear_schedule",
    "constant": "constant_schedule",
}
_OURS = (*_ALIASES, *_OWN)


def _find(name: str, what: str, modules: list[Any], ours: Sequence[str] = ()) -> Any:
    """The function of that name in one of the modules, or in `module:attribute`.

    Args:
      ours: names that are known beside those of the modules.
    """
    place, _, attribute = name.rpartition(":")
    if place:
        try:
            function = getattr(importlib.import_module(place), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"there is no {what} {name} ({error})") from None
    else:
        function = next((getattr(m, name) for m in modules if hasattr(m, name)), None)
    if callable(function) and not inspect.isclass(function):
        return function
    known = [*ours, *(key for m in modules for key in dir(m) if key[0].islower())]
    near = difflib.get_close_matches(name, known, n=1)
    raise ValueError(
        f"optax has no {what} {name!r}"
        + (f"; did you mean {near[0]}?" if near else "; name one of optax, or module:attribute")
    )


def _check(
    name: str, function: Callable[..., Any], arguments: Arguments, given: tuple[str, ...]
) -> None:
    """Raises ValueError for arguments that the function does not take, naming those it takes."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    takes = [key for key in parameters if key not in given]
    for key in arguments:
        if key not in takes:
            raise ValueError(f"{name} takes no {key}; it takes {', '.join(takes) or 'nothing'}")


def _call(name: str, function: Callable[..., Any], arguments: Arguments) -> Any:
    parameters = inspect.signature(function).parameters.values()
    missing = [
        p.name
        for p in parameters
        if p.default is inspect.Parameter.empty
        and p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        and p.name not in arguments
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}")
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
