"""The loss over blocks of the vocabulary: the numbers of the whole, on every mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.objective import cross_entropy as pieces
from train.objective import vocab_blocks
from train.objective.cross_entropy import cross_entropy, target_logprobs
from train.sharding import make_mesh, partition_spec

V, D, B, T = 272, 16, 8, 12
AXES = ["batch", None, None], ["vocab", "embed"], ["batch"], ["batch"]


def _inputs() -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(B, T, D)), 3 * rng.normal(size=(V, D))
    targets, weights = rng.integers(0, V, (B, T)), rng.random((B, T)) * (rng.random((B, T)) < 0.6)
    floats = [jnp.asarray(x, jnp.float32) for x in (hidden, head, weights)]
    return floats[0], floats[1], jnp.asarray(targets, jnp.int32), floats[2]


def _step(*inputs: jax.Array) -> Any:
    """Losses with and without a gradient, and the gradients of two of them."""
    hidden, head, targets, weights = inputs
    dtype = jnp.dtype("float32")

    def bent(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(target_logprobs(hidden, head, targets, dtype)) * weights)

    loss, gradients = jax.value_and_grad(cross_entropy, (0, 1, 3))(*inputs, dtype)
    return cross_entropy(*inputs, dtype), loss, gradients, jax.grad(bent, (0, 1))(hidden, head)


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [
        ((1, 2, 1, 1), 4),
        pytest.param((1, 4, 2, 1), 64, marks=pytest.mark.slow),
        pytest.param((2, 1, 2, 2), 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_losses_and_gradients_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], tokens: int
) -> None:
    inputs = _inputs()
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    shardings = tuple(jax.NamedSharding(mesh, partition_spec(names)) for names in AXES)
    expected = jax.jit(_step)(*inputs)
    monkeypatch.setattr(pieces, "TOKENS", tokens)
    monkeypatch.setattr(vocab_blocks, "LARGEST_HEAD", 1 << 10)
    monkeypatch.setattr(vocab_blocks, "LARGEST_BLOCK", 1 << 11)
    with jax.set_mesh(mesh):
        assert vocab_blocks.num_blocks(inputs[1], "float32") >= 4
        found = jax.jit(_step, in_shardings=shardings)(*jax.device_put(inputs, shardings))
    for ours, whole in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-5, atol=3e-6 * np.abs(whole).max())


def test_a_head_is_cut_where_it_is_large_and_gathered() -> None:
    head, small = (jax.ShapeDtypeStruct((rows, 8192), jnp.float32) for rows in (128256, 32000))
    assert vocab_blocks.num_blocks(head, "bfloat16") == 1
    with jax.set_mesh(make_mesh(1, 8, 1, 1)):
        assert vocab_blocks.num_blocks(head, "bfloat16") == 8
        assert vocab_blocks.num_blocks(small, "bfloat16") == 1
    with jax.set_mesh(make_mesh(1, 4, 2, 1)):
        assert vocab_blocks.num_blocks(head, "bfloat16") == 1


def test_blocks_are_joined_as_they_were_cut() -> None:
    head = _inputs()[1]
    with jax.set_mesh(make_mesh(1, 2, 2, 2)):
        blocks = vocab_blocks.cut_head(head, 4, "float32")
        assert blocks.shape == (4, V // 4, D)
        np.testing.assert_array_equal(vocab_blocks.join_head(blocks), head)
