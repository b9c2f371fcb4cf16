"""Every optimizer in every way in which JAX runs one, and its derivatives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax import (
    by_score,
    every_few,
    fisher,
    gmt,
    gmt_mask,
    gradient_to_weight,
    hft,
    lisa,
    magnitude,
    one_off,
    random_mask,
)

INNER = optax.sgd(0.1, momentum=0.9)
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "gmt_mask": lambda: gmt_mask(0.4),
    "gmt_mask, global": lambda: gmt_mask(0.4, scope="global"),
    "gmt": lambda: gmt(INNER, 0.4, report=True),
    "random_mask": lambda: random_mask(INNER, 0.4, key=0, report=True),
    "one_off": lambda: one_off(INNER, 0.4, report=True),
    "every_few": lambda: every_few(INNER, 0.4, every=2),
    "gradient_to_weight": lambda: gradient_to_weight(INNER, 0.4),
    "magnitude": lambda: magnitude(INNER, 0.4),
    "fisher": lambda: fisher(INNER, 0.4, warmup=1),
    "random, lasting": lambda: by_score(INNER, 0.4, score="random", every=2, scope="global"),
    "hft": lambda: hft(INNER, key=0, every=2, report=True),
    "lisa": lambda: lisa(INNER, num_layers=1, key=0, every=2),
}
# Those of which one in each way is a quick test.
QUICK = ("gmt_mask",)
EVERY = pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS],
)


def tree(seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    layers = {"mlp": {name: normal(2, 8, 6) for name in ("gate", "up", "down")}}
    return {"embed": normal(16, 4), "layers": layers}


def assert_equal(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@EVERY
def test_an_optimizer_is_the_same_without_jit(name: str) -> None:
    params, optimizer = tree(0), OPTIMIZERS[name]()
    state = plain = optimizer.init(params)
    for step in range(2):
        updates, state = jax.jit(optimizer.update)(tree(step + 1), state, params)
        with jax.disable_jit():
            eager, plain = optimizer.update(tree(step + 1), plain, params)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a == 0, b == 0), eager, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), eager, updates)


@EVERY
def test_a_fresh_state_can_be_donated(name: str) -> None:
    """Also inside what wraps it: no buffer is in the state twice."""
    params, optimizer = tree(0), OPTIMIZERS[name]()
    for wrapped in (
        optimizer,
        optax.MultiSteps(optimizer, 2).gradient_transformation(),
        optax.apply_if_finite(optimizer, 2),
    ):
        update = jax.jit(wrapped.update, donate_argnums=1, keep_unused=True)
        update(tree(1), wrapped.init(params), params)


@EVERY
def test_nans_are_looked_for_and_none_is_found(name: str) -> None:
    params, optimizer = tree(0), OPTIMIZERS[name]()
    zeros = jax.tree.map(jnp.zeros_like, params)
    with jax.debug_nans(True):
        for gradient in (tree(1), zeros):
            optimizer.update(gradient, optimizer.init(params), params)


@EVERY
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_an_optimizer_is_the_same_eagerly_on_a_mesh(name: str, axis_type: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)

    def to_devices(params: Any) -> Any:
        specs = {"embed": P("x", "y"), "layers": P(None, "x")}
        return {
            name: jax.device_put(part, NamedSharding(mesh, specs[name]))
            for name, part in params.items()
        }

    params, optimizer = tree(0), OPTIMIZERS[name]()
    expected, _ = jax.jit(optimizer.update)(tree(1), optimizer.init(params), params)
    with jax.set_mesh(mesh):
        params = to_devices(params)
        state = optimizer.init(params)
        updates, new = optimizer.update(to_devices(tree(1)), state, params)
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


@EVERY
def test_inside_shard_map_the_mask_is_that_of_the_whole_tensor(name: str) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    params, optimizer = tree(0), OPTIMIZERS[name]()
    state = optimizer.init(params)
    # The second leaf is whole on every device.
    spec = {"embed": P("x"), "layers": P()}
    states = jax.tree.map(lambda _: P(), state)
    shapes = jax.tree.structure(params)

    def shard(part: Any) -> Any:
        """The specs of every tree that is like the parameters, and P() elsewhere."""
        if jax.tree.structure(part) == shapes:
            return {key: jax.tree.map(lambda _, s=spec[key]: s, part[key]) for key in part}
        return jax.tree.map(lambda _: P(), part)

    states = jax.tree.map(shard, state, is_leaf=lambda part: jax.tree.structure(part) == shapes)
    update = jax.shard_map(
        optimizer.update, mesh=mesh, in_specs=(spec, states, spec), out_specs=(spec, states)
    )
    updates, new = jax.jit(update)(tree(1), state, params)
    expected, other = jax.jit(optimizer.update)(tree(1), state, params)
    fractions = [optax.tree.get(each, "masked_fraction") for each in (new, other)]
    np.testing.assert_allclose(*fractions, rtol=1e-6)
    if "random" in name:  # Each shard draws its own numbers: as many are masked.
        counts = (
            sum(int(jnp.sum(u == 0)) for u in jax.tree.leaves(x)) for x in (updates, expected)
        )
        assert len(set(counts)) == 1
        return
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


@pytest.mark.parametrize("ratio", [0.0, 0.4])
def test_derivatives_are_those_of_finite_differences(ratio: float) -> None:
    """Of a loss after a masked update, with respect to the scale of the gradient."""
    optimizer = optax.chain(gmt_mask(ratio), optax.sgd(0.5))
    g, w = (tree(seed)["embed"] for seed in (1, 2))

    def loss(scale: jax.Array) -> jax.Array:
        updates, _ = optimizer.update(scale * g, optimizer.init(w), w)
        return jnp.sum(jnp.square(w + updates))

    scale, step = jnp.float32(1.5), 1e-2
    differences = (loss(scale + step) - loss(scale - step)) / (2 * step)
    assert abs(float(differences)) > 1
    for derivative in (jax.grad(loss)(scale), jax.jvp(loss, (scale,), (jnp.float32(1),))[1]):
        np.testing.assert_allclose(derivative, differences, rtol=1e-3)


def test_bfloat16_hyperparameters_mask_about_what_they_say() -> None:
    params = jnp.ones(4000, jnp.bfloat16)
    gradient = jnp.asarray(np.random.default_rng(0).permutation(4000) / 4000, jnp.float32)
    for ratio, most in ((0.995, 0.996), (0.001, 0.001), (0.2, 0.2)):
        optimizer = optax.inject_hyperparams(gmt_mask)(mask_ratio=ratio)
        out, _ = optimizer.update(gradient, optimizer.init(params))
        assert ratio - 1e-6 <= float(jnp.mean(out == 0)) <= most + 1e-6


def test_python_floats_are_taken_where_optax_takes_them() -> None:
    for optimizer in (gmt_mask(0.5), gmt(optax.sgd(1.0), 0.5), one_off(optax.sgd(1.0), 0.5)):
        updates, _ = optimizer.update({"a": 1.0}, optimizer.init({"a": 2.0}), {"a": 2.0})
        assert abs(float(updates["a"])) == 1.0


@pytest.mark.parametrize("stacked", [None, 1])
def test_few_collectives_for_many_leaves(stacked: int | None) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharded = NamedSharding(mesh, P("x"))

    def collectives(leaves: int) -> int:
        params = {
            str(i): jax.ShapeDtypeStruct((64, 4, 8), jnp.float32, sharding=sharded)
            for i in range(leaves)
        }
        optimizer = gmt_mask(0.4, stacked_axes=stacked)
        state = jax.eval_shape(optimizer.init, params)
        text = jax.jit(optimizer.update).lower(params, state).compile().as_text()
        return sum(text.count(f" {kind}(") for kind in ("all-reduce", "all-gather"))

    assert collectives(12) == collectives(3) <= 6
