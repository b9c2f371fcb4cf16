"""Choices that are drawn in the backward pass are those of the whole gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax import compact


def _assert_equal(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("score", ["gradient", "gradient_to_weight"])
def test_one_backward_pass_chooses_what_its_whole_gradient_does(net: Any, score: str) -> None:
    def loss(drawn: Any) -> jax.Array:
        tree = compact.attach_draw(net.weights, net.forms, drawn, score)
        return net.loss(tree, net.tokens, resolve_first=True)

    drawn = jax.jit(jax.grad(loss))(compact.empty_draw(net.forms, net.weights))
    scores = jax.tree.map(
        lambda g, w: compact.score_entries(score, g, w), net.gradient, net.weights
    )
    _assert_equal(compact.drawn_choices(net.forms, drawn), compact.choose(net.forms, scores))


def test_sums_of_a_part_of_the_rows_choose_what_the_whole_sum_does(net: Any) -> None:
    zeros = compact.empty_sums(net.forms, net.weights, 2)
    assert zeros["layers"]["w"].shape == (3, 65, 8)

    @jax.jit
    def sums_of(part: jax.Array, tokens: jax.Array) -> Any:
        def loss(sums: Any) -> jax.Array:
            tree = compact.attach_part(net.weights, net.forms, sums, part, 2)
            return net.loss(tree, tokens, resolve_first=True)

        return jax.grad(loss)(zeros)

    other = jnp.array([2, 3, 5, 8])
    parts = []
    for number in range(2):
        part = jnp.int32(number)
        sums = jax.tree.map(jnp.add, sums_of(part, net.tokens), sums_of(part, other))
        parts.append(compact.choose_part(net.forms, jax.tree.map(jnp.abs, sums)))
    whole = jax.tree.map(jnp.add, net.gradient, jax.jit(jax.grad(net.loss))(net.weights, other))
    joined = compact.join_parts(net.forms, net.weights, parts)
    _assert_equal(joined, compact.choose(net.forms, whole))


@pytest.mark.parametrize("width", [16, 12])
@pytest.mark.parametrize("score", ["gradient", "gradient_to_weight"])
def test_rows_that_are_looked_up_are_scored_by_the_tables_gradient(score: str, width: int) -> None:
    keys = jax.random.split(jax.random.key(1), 2)
    table = jax.random.normal(keys[0], (20, width), jnp.bfloat16)
    tokens = jnp.array([[3, 7, 3, 0], [19, 3, 7, 12]])
    factor = jax.random.normal(keys[1], (2, 4, width), jnp.float32)
    (form,) = compact.plan_forms([table], 0.7, rows=".*")

    def loss(weight: Any) -> jax.Array:
        return jnp.sum(compact.take(weight, tokens).astype(jnp.float32) * factor)

    def drawn_loss(drawn: Any) -> jax.Array:
        return loss(compact.attach_draw([table], [form], drawn, score)[0])

    zeros = compact.empty_draw([form], [table])
    (scores,) = jax.jit(jax.grad(drawn_loss))(zeros)
    gradient = np.zeros(table.shape, np.float32)
    np.add.at(gradient, tokens, np.asarray(factor.astype(jnp.bfloat16).astype(jnp.float32)))
    entries = np.asarray(compact.score_entries(score, gradient, table))
    np.testing.assert_allclose(scores, np.square(entries).sum(-1), rtol=1e-5)
    if width == 16:  # No gradient of the table's size exists.
        assert "f32[20,16]" not in str(jax.make_jaxpr(jax.grad(drawn_loss))(zeros))
