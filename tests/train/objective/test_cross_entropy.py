"""The loss over the vocabulary in pieces: the numbers of the whole, without its memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.objective import cross_entropy as module
from train.objective.cross_entropy import cross_entropy, losses_and_hits, target_logprobs
from train.sharding import make_mesh, partition_spec

V, D = 2048, 8
Grad = tuple[jax.Array, tuple[jax.Array, ...]]


def _inputs(B: int, T: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(B, T, D)), rng.normal(size=(V, D))
    targets, weights = rng.integers(0, V, (B, T)), rng.random((B, T)) * (rng.random((B, T)) < 0.6)
    floats = (jnp.asarray(x, jnp.float32) for x in (hidden, head, weights))
    hidden, head, weights = floats
    return hidden, head, jnp.asarray(targets, jnp.int32), weights


def _plain(hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> Any:
    scores = jnp.einsum("btd,vd->btv", hidden, head, preferred_element_type=jnp.float32)
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(scores, targets) * weights)


def _ours(*inputs: jax.Array) -> Any:
    return cross_entropy(*inputs, jnp.dtype("float32"))


def _gradient(loss: Any, inputs: tuple[jax.Array, ...]) -> Grad:
    return jax.value_and_grad(lambda *x: 0.5 * loss(*x), argnums=(0, 1, 3))(*inputs)


@pytest.mark.parametrize("length", [8, 30, 31, 96])
def test_loss_and_gradients_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(module, "TOKENS", 24)
    inputs = _inputs(2, length)
    loss, gradients = _gradient(_ours, inputs)
    expected, whole = _gradient(_plain, inputs)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(_ours(*inputs)) == pytest.approx(2 * float(expected), rel=1e-6)
    for a, b in zip(gradients, whole, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_the_heads_gradient_is_summed_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TOKENS", 16)
    hidden, head, targets, weights = _inputs(4, 64)
    inputs = hidden.astype(jnp.bfloat16), head, targets, weights
    grad = jax.grad(cross_entropy, argnums=(0, 1))
    d_hidden, d_head = grad(*inputs, jnp.dtype("bfloat16"))
    assert (d_hidden.dtype, d_head.dtype) == (jnp.bfloat16, jnp.float32)
    exact = jax.grad(_plain, argnums=1)(*inputs)
    error = jnp.linalg.norm(d_head - exact) / jnp.linalg.norm(exact)
    assert error < 0.005  # Rounding to 8 bits; a sum in bfloat16 would be off by more.


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("length", [512, 511])
def test_no_device_holds_more_than_a_piece_of_the_logits(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], length: int
) -> None:
    """Neither whole, nor gathered over the vocabulary or the batch; for any length."""
    tokens, B = 32, 8
    monkeypatch.setattr(module, "TOKENS", tokens)
    inputs = _inputs(B, length)
    mesh = make_mesh(*shape)
    axes = ["batch", None, None], ["vocab", "embed"], ["batch"], ["batch"]
    with jax.set_mesh(mesh):
        specs = tuple(jax.NamedSharding(mesh, partition_spec(names)) for names in axes)
        step = jax.jit(jax.value_and_grad(_ours, argnums=(0, 1)), in_shardings=specs)
        compiled = step.lower(*inputs).compile()
        loss, _ = compiled(*jax.device_put(inputs, specs))
    assert float(loss) == pytest.approx(float(_plain(*inputs)), rel=1e-5)
    data, fsdp, _, context = shape
    whole = B * length * V * 4 // 8
    piece, head = whole * tokens // (B * length // (data * fsdp * context)), V * D * 4
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 3 * piece + 6 * head < whole, (temporary, piece, head, whole)


def test_a_loss_without_gradient_computes_none() -> None:
    inputs = _inputs(2, 32)
    products = jax.jit(_ours).lower(*inputs).as_text().count("dot_general")
    assert products == 1
    with_gradient = jax.jit(jax.grad(_ours, argnums=(0, 1))).lower(*inputs).as_text()
    assert with_gradient.count("dot_general") == 3


@pytest.mark.parametrize("length", [8, 31])
def test_log_probabilities_and_their_gradients_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(module, "TOKENS", 24)
    hidden, head, targets, weights = _inputs(2, length)

    def bent(logprobs: jax.Array) -> jax.Array:
        """Not linear, as losses of preferences are not."""
        return jnp.sum(jnp.square(jnp.sum(logprobs * weights, axis=-1)))

    def ours(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return bent(target_logprobs(hidden, head, targets, jnp.dtype("float32")))

    def whole(hidden: jax.Array, head: jax.Array) -> jax.Array:
        scores = jnp.einsum("btd,vd->btv", hidden, head, preferred_element_type=jnp.float32)
        return bent(-optax.softmax_cross_entropy_with_integer_labels(scores, targets))

    value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(hidden, head)
    expected, others = jax.value_and_grad(whole, argnums=(0, 1))(hidden, head)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for a, b in zip(gradients, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


def test_a_hit_is_a_target_that_alone_has_the_largest_logit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TOKENS", 24)
    hidden, head, targets, _ = _inputs(2, 31)
    logits = np.einsum("btd,vd->btv", hidden, head)
    likeliest = jnp.asarray(logits.argmax(-1), jnp.int32)
    targets = targets.at[:, ::3].set(likeliest[:, ::3])
    losses, hits = losses_and_hits(hidden, head, targets, jnp.dtype("float32"))
    np.testing.assert_array_equal(hits, likeliest == targets)
    assert 0.3 < float(hits.mean()) < 0.4
    expected = target_logprobs(hidden, head, targets, jnp.dtype("float32"))
    np.testing.assert_array_equal(losses, -expected)
    _, ties = losses_and_hits(hidden, jnp.zeros_like(head), targets, jnp.dtype("float32"))
    assert not ties.any()
