"""MoFO against its rule in NumPy, and the first moment of each optimizer."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import gmt_jax.momentum
from gmt_jax import mofo
from gmt_jax.momentum import first_moment

MESHES = ["one device", *(pytest.param(m, marks=pytest.mark.slow) for m in ("auto", "explicit"))]


@pytest.mark.parametrize("mesh", MESHES, indirect=True)
def test_the_entries_with_the_largest_first_moments_are_updated(
    run: Any, adamw_in_numpy: Any, mesh: Mesh | None
) -> None:
    optimizer = mofo(run.adamw(), run.ratio, stacked_axes=run.stacked)
    references = {name: adamw_in_numpy() for name in run.shapes}
    expected = run.weights()
    for step, (weights, moved, state) in enumerate(run.train(optimizer, 3, mesh)):
        for name, reference in references.items():
            weight = np.asarray(weights[name])
            np.testing.assert_allclose(weight, expected[name], rtol=1e-5, atol=1e-6)
            update = reference(run.gradient(step)[name], weight)
            moment = np.asarray(optax.tree.get(state, "mu")[name])
            np.testing.assert_allclose(moment, reference.mu, rtol=1e-5, atol=1e-7)
            mask = run.largest({name: moment})[name]
            np.testing.assert_array_equal(moved[name], mask)
            expected[name] = weight + np.where(mask, update, 0)


def test_the_first_moment_is_found_in_each_optimizer() -> None:
    params = {"mu": jnp.ones((2, 2)), "b": jnp.ones(2)}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for optimizer in (
            optax.adamw(1.0),
            optax.lion(1.0),
            optax.sgd(1.0, momentum=0.5),
            optax.chain(optax.clip(1.0), optax.contrib.muon(1.0)),
            optax.partition({"a": optax.adam(1.0), "b": optax.lion(1.0)}, {"mu": "a", "b": "b"}),
        ):
            state = jax.eval_shape(optimizer.init, params)
            moment = first_moment(state, params)
            assert jax.tree.map(jnp.shape, moment) == jax.tree.map(jnp.shape, params)
    with pytest.raises(ValueError, match="no first moment"):
        first_moment(optax.sgd(1.0).init(params), params)


def test_no_other_part_of_the_state_is_taken_for_the_moment_of_a_parameter_called_mu() -> None:
    for params in ({"mu": jnp.ones(2)}, {"mu": {"w": jnp.ones(2), "b": jnp.ones(1)}}):
        optimizer = optax.adam(1.0)
        with jax.numpy_dtype_promotion("standard"):
            _, state = optimizer.update(params, optimizer.init(params))
        moment = first_moment(state, params)
        jax.tree.map(np.testing.assert_array_equal, moment, state[0].mu)


def test_moments_are_found_where_one_label_stands_for_many_parameters() -> None:
    params = {"embed": jnp.ones(2), "layers": {"w": jnp.ones(3), "b": jnp.full(2, 2.0)}}
    labels = {"embed": "a", "layers": "b"}
    optimizer = optax.partition({"a": optax.adam(1.0), "b": optax.lion(1.0, b2=0.9)}, labels)
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimizer.update(params, optimizer.init(params), params)
    jax.tree.map(
        lambda moment, g: np.testing.assert_allclose(moment, 0.1 * g, rtol=1e-6),
        first_moment(state, params),
        params,
    )


def test_the_examples_run() -> None:
    result = doctest.testmod(gmt_jax.momentum)
    assert result.attempted > 0
    assert result.failed == 0
