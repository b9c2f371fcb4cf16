"""What optax asks of its own transformations, asked of ours."""

import itertools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax import gmt, gmt_mask, one_off


def masked_adamw(mask_ratio: Any, learning_rate: Any) -> optax.GradientTransformationExtraArgs:
    return optax.chain(gmt_mask(mask_ratio), optax.adamw(learning_rate))


def selective_adam(mask_ratio: Any) -> optax.GradientTransformationExtraArgs:
    return gmt(optax.adam(1e-2), mask_ratio)


def lasting_sgd(mask_ratio: Any) -> optax.GradientTransformationExtraArgs:
    return one_off(optax.sgd(1e-3), mask_ratio)


# A transformation on each line: its factory and its hyperparameters.
TRANSFORMATIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "mask": (gmt_mask, {"mask_ratio": 0.5}),
    "adamw": (
        masked_adamw,
        {"mask_ratio": optax.linear_schedule(0.2, 0.5, 3), "learning_rate": 1e-2},
    ),
    "gmt": (selective_adam, {"mask_ratio": 0.5}),
    "one-off": (lasting_sgd, {"mask_ratio": 0.0}),
}
# What may wrap it.
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "alone": lambda inner: inner,
    "multi-steps": lambda inner: optax.MultiSteps(inner, 2).gradient_transformation(),
    "masked": lambda inner: optax.masked(inner, {"w": True, "b": False}),
    "partition": lambda inner: optax.partition(
        {"ours": inner, "plain": optax.sgd(0.1)}, {"w": "ours", "b": "plain"}
    ),
}
PARAMS = {"w": jnp.linspace(-1.0, 1.0, 30).reshape(5, 6), "b": jnp.array([0.5, -2.0, 3.0])}


def make(name: str) -> Any:
    factory, hyperparams = TRANSFORMATIONS[name]
    return factory(**hyperparams)


def injected(name: str) -> Any:
    factory, hyperparams = TRANSFORMATIONS[name]
    return optax.inject_hyperparams(factory)(**hyperparams)


@pytest.fixture(params=TRANSFORMATIONS, name="name")
def _name(request: pytest.FixtureRequest) -> Any:
    return request.param


# Quick: all wrappers around a transformation that stores no mask, and those that touch a state
# around one that stores a mask.
ALONE = [(name, "alone") for name in TRANSFORMATIONS]
QUICK = [("mask", wrapper) for wrapper in (*WRAPPERS, "injected")]
QUICK += [("one-off", "multi-steps"), ("one-off", "masked"), *ALONE]


def cases(firsts: Iterable[Any], seconds: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """All pairs; those that are not quick are slow."""
    return [
        pytest.param(pair, marks=() if pair in quick else pytest.mark.slow, id="-".join(pair))
        for pair in itertools.product(firsts, seconds)
    ]


def wrapped_cases(quick: Collection[Any]) -> list[Any]:
    return cases(TRANSFORMATIONS, [*WRAPPERS, "injected"], quick)


@pytest.fixture(params=wrapped_cases(QUICK), name="wrapped")
def _wrapped(request: pytest.FixtureRequest) -> Any:
    name, wrapper = request.param
    return injected(name) if wrapper == "injected" else WRAPPERS[wrapper](make(name))


def grads(step: Any = 0) -> Any:
    return jax.tree.map(lambda p: jnp.sin(17 * p + step), PARAMS)


def steps(optimizer: Any, n: int, update: Any = None, state: Any = None) -> tuple[Any, Any]:
    params, state = PARAMS, state or optimizer.init(PARAMS)
    for step in range(n):
        updates, state = (update or optimizer.update)(grads(step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def layout(tree: Any) -> Any:
    """Shape, dtype and sharding of every leaf."""
    return jax.tree.map(jax.typeof, tree)


# What optax's sharding_test, alias_test and _common_test check.


def test_a_compiled_update_equals_an_eager_one_and_is_compiled_once(wrapped: Any) -> None:
    """With donated gradients and state."""
    traces = []

    def traced(*args: Any) -> Any:
        traces.append(1)
        return wrapped.update(*args)

    compiled = jax.jit(traced, donate_argnums=(0, 1))
    start = jax.tree.map(jnp.copy, wrapped.init(PARAMS))
    assert_close(steps(wrapped, 4, compiled, start), steps(wrapped, 4))
    assert len(traces) == 1


@pytest.mark.parametrize("how", ["eager", pytest.param("jit", marks=pytest.mark.slow)])
def test_injected_hyperparameters_change_nothing(name: str, how: str) -> None:
    plain, other = make(name), injected(name)
    update, update_other = plain.update, other.update
    if how == "jit":
        update, update_other = jax.jit(update), jax.jit(update_other)
    updates, state = update(grads(), plain.init(PARAMS), PARAMS)
    updates_other, state_other = update_other(grads(), other.init(PARAMS), PARAMS)
    assert_close(updates_other, updates)
    assert_close(state_other.inner_state, state)


@pytest.mark.parametrize("wrapped", wrapped_cases(ALONE), indirect=True)
def test_it_runs_in_scan_and_cond(wrapped: Any) -> None:
    def body(carry: Any, step: jax.Array) -> tuple[Any, None]:
        params, state = carry

        def take() -> Any:
            updates, new = wrapped.update(grads(step), state, params)
            return optax.apply_updates(params, updates), new

        return jax.lax.cond(step >= 0, take, lambda: (params, state)), None

    start = (PARAMS, wrapped.init(PARAMS))
    scanned, _ = jax.jit(lambda c: jax.lax.scan(body, c, jnp.arange(4.0)))(start)
    assert_close(scanned, steps(wrapped, 4))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_init_takes_shapes(name: str, wrapper: str) -> None:
    optimizer = WRAPPERS[wrapper](make(name))
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    assert layout(optimizer.init(shapes)) == layout(optimizer.init(PARAMS))


def test_params_in_the_state_can_be_mapped(wrapped: Any) -> None:
    state = wrapped.init(PARAMS)
    is_leaf = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    mapped = optax.tree.map_params(wrapped, lambda x: x, state, is_leaf=is_leaf)
    assert layout(mapped) == layout(state)


def test_extra_arguments_pass(wrapped: Any) -> None:
    optimizer = optax.with_extra_args_support(wrapped)
    _, state = optimizer.update(grads(), optimizer.init(PARAMS), PARAMS, unexpected=1)
    assert layout(state) == layout(wrapped.init(PARAMS))


# One that stores no mask, and one that does.
SOME_QUICK = [
    name if name in ("mask", "one-off") else pytest.param(name, marks=pytest.mark.slow)
    for name in TRANSFORMATIONS
]
DTYPES = ("bfloat16", "float16", "float32", "complex64")
WITH_OTHERS = [(name, "others") for name in TRANSFORMATIONS]


@pytest.mark.parametrize(
    "case", cases(TRANSFORMATIONS, ["others", "float64"], [*WITH_OTHERS, ("mask", "float64")])
)
def test_dtypes_are_kept_and_the_state_stays_as_it_was(case: tuple[str, str]) -> None:
    name, dtypes = case[0], ("float64",) if case[1] == "float64" else DTYPES
    with jax.enable_x64("float64" in dtypes):
        optimizer = make(name)
        params = {dtype: jnp.array([-1.0, 10.0, 1.0], dtype) for dtype in dtypes}

        @jax.jit
        def step(params: Any, state: Any, take: Any) -> Any:
            gradient = jax.tree.map(lambda p: 2 * p, params)
            return jax.lax.cond(
                take,
                lambda: optimizer.update(gradient, state, params),
                lambda: (gradient, state),
            )

        state = optimizer.init(params)
        for take in (True, False, True):
            updates, new = step(params, state, take)
            assert {dtype: str(update.dtype) for dtype, update in updates.items()} == {
                dtype: dtype for dtype in dtypes
            }
            assert layout(new) == layout(state)
            state = new


@pytest.mark.parametrize("name", SOME_QUICK)
def test_gradients_accumulate(name: str) -> None:
    """Nothing moves until the last of the gradients, then what their mean gives."""
    optimizer = optax.MultiSteps(make(name), 4)
    params = {dtype: jnp.array([1.0, 2.0, 4.0], dtype) for dtype in ("bfloat16", "float32")}
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = update(params, state, params)
        assert not any(jnp.any(u != 0) for u in jax.tree.leaves(updates))
    updates, _ = update(params, state, params)
    expected, _ = make(name).update(params, make(name).init(params), params)
    for dtype, found in updates.items():
        assert found.dtype == dtype
        wide = (x.astype("float32") for x in (found, expected[dtype]))
        np.testing.assert_allclose(*wide, rtol=1e-2)


SHARDED_QUICK = [("mask", "eager"), ("mask", "jit"), ("one-off", "jit")]


@pytest.mark.parametrize("case", cases(TRANSFORMATIONS, ["eager", "jit"], SHARDED_QUICK))
def test_types_with_shardings_stay_as_they_were(case: tuple[str, str]) -> None:
    name, how = case
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = jnp.zeros((2, 8, 4), "float16", out_sharding=NamedSharding(mesh, P(None, "x")))
        init, update = make(name).init, make(name).update
        if how == "jit":
            init, update = jax.jit(init), jax.jit(update)
        state = init(params)
        updates, new = update(params, state, params)
        assert layout(state) == layout(make(name).init(params))
        assert layout(new) == layout(state)
        assert layout(updates) == layout(params)
