"""Inside a model: gradients of values, and embeddings by rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax import compact


@pytest.mark.parametrize(("name", "tolerance"), [("net", 1e-5), ("net16", 1e-2)])
def test_the_gradient_of_the_values_is_the_weights_gradient_at_them(
    name: str, tolerance: float, request: pytest.FixtureRequest
) -> None:
    net = request.getfixturevalue(name)
    chosen = compact.choose(net.forms, net.gradient)
    params = compact.CompactParams(net.weights, chosen, compact.read(chosen, net.weights))

    def loss(values: Any) -> jax.Array:
        return net.loss(compact.attach(params._replace(values=values)), net.tokens)

    grads = jax.jit(jax.grad(loss))(params.values)
    expected = compact.read(chosen, net.gradient)
    # Sums of gradients of rows are float32 here, and in the weights' dtype in the reference.
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert got.dtype == jnp.float32
        # A small entry may be a sum of large terms.
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())
    plain = compact.plain_weights(compact.attach(params))
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, net.weights)


def test_embeddings_without_rows_are_looked_up_as_arrays(net16: Any) -> None:
    table, tokens = net16.weights["embed"], net16.tokens
    whole = compact.Attached(table, compact.Whole(), table.astype(jnp.float32))
    for node in (table, whole):
        np.testing.assert_array_equal(
            np.asarray(compact.take(node, tokens)).astype("f4"),
            np.asarray(table)[tokens].astype("f4"),
        )


@pytest.mark.parametrize("tokens", [[0, 3, 3], [-1, -6, 3], [8, -9, 1]])
def test_rows_are_counted_from_the_end_as_by_take(tokens: list[int]) -> None:
    table = {"embed": jnp.arange(18.0).reshape(9, 2)}
    chosen = {"embed": compact.Rows(jnp.array([0, 3, 8]))}
    params = compact.CompactParams(table, chosen, compact.read(chosen, table))
    at = jnp.array(tokens)

    def loss(values: Any) -> jax.Array:
        attached = compact.attach(params._replace(values=values))
        return jnp.sum(jnp.square(compact.take(attached["embed"], at)))

    whole = jax.grad(lambda table: jnp.sum(jnp.square(jnp.take(table, at, axis=0))))(table["embed"])
    grads = jax.grad(loss)(params.values)
    np.testing.assert_array_equal(grads["embed"], whole[jnp.array([0, 3, 8])])
