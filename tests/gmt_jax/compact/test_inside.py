"""Inside a model: gradients of values, embeddings by rows, and a choice in the backward pass."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax import compact

KEYS = jax.random.split(jax.random.key(0), 4)


def _weights(dtype: Any) -> Any:
    normal = jax.random.normal
    return {
        "embed": normal(KEYS[0], (20, 8), dtype),
        "layers": {"w": normal(KEYS[1], (3, 130, 8), dtype) / 3, "b": jnp.ones((3, 130))},
        "frozen": jnp.ones(()),
    }


def _loss(params: Any, tokens: jax.Array, resolve_first: bool = False) -> jax.Array:
    """Two uses of the embeddings, as input and as output, around three scanned layers."""
    if resolve_first:
        params = params | {"embed": compact.resolve(params["embed"], jnp.float32)}
    x = compact.take(params["embed"], tokens).astype(jnp.float32)

    def layer(x: jax.Array, part: Any) -> tuple[jax.Array, None]:
        part = compact.resolve(part)
        w = part["w"].astype(jnp.float32)
        h = jnp.tanh(x @ w.T + part["b"][None])
        return x + h @ w, None

    x, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"])
    table = compact.resolve(params["embed"], jnp.float32).astype(jnp.float32)
    return jnp.mean(jnp.square(x @ table.T)) * params["frozen"]


TOKENS = jnp.array([1, 5, 5, 7])


@pytest.fixture(name="setting", params=[jnp.float32, jnp.bfloat16])
def _setting(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    weights = _weights(request.param)
    forms = compact.plan_forms(
        weights, {"frozen": 1.0, "b": 0.0, "embed": 0.7, ".*": 0.9}, rows="embed"
    )
    return weights, forms, jax.grad(_loss)(weights, TOKENS)


def test_the_gradient_of_the_values_is_the_weights_gradient_at_them(setting: Any) -> None:
    weights, forms, whole = setting
    chosen = compact.choose(forms, whole)
    params = compact.CompactParams(weights, chosen, compact.read(chosen, weights))

    def loss(values: Any) -> jax.Array:
        return _loss(compact.attach(params._replace(values=values)), TOKENS)

    value, grads = jax.value_and_grad(loss)(params.values)
    assert value == _loss(weights, TOKENS)
    expected = compact.read(chosen, whole)
    # Sums of gradients of rows are float32 here, and in the weights' dtype in the reference.
    tolerance = 1e-6 if weights["embed"].dtype == jnp.float32 else 1e-2
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("score", ["gradient", "gradient_to_weight"])
def test_the_backward_pass_chooses_what_the_whole_gradient_does(setting: Any, score: str) -> None:
    weights, forms, whole = setting
    if weights["embed"].dtype != jnp.float32:
        pytest.skip("the reference sums gradients of rows in bfloat16")

    def loss(drawn: Any) -> jax.Array:
        tree = compact.attach_draw(weights, forms, drawn, score)
        return _loss(tree, TOKENS, resolve_first=True)

    drawn = jax.grad(loss)(compact.empty_draw(forms, weights))
    if score == "gradient_to_weight":
        whole = jax.tree.map(lambda g, w: g / w, whole, weights)
    expected = compact.choose(forms, whole)
    got = compact.drawn_choices(forms, drawn)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(left, right)


def test_embeddings_without_rows_are_looked_up_as_arrays() -> None:
    table = _weights(jnp.bfloat16)["embed"]
    whole = compact.Attached(table, compact.Whole(), table.astype(jnp.float32))
    for node in (table, whole):
        np.testing.assert_array_equal(
            np.asarray(compact.take(node, TOKENS)).astype("f4"),
            np.asarray(table)[TOKENS].astype("f4"),
        )
