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
