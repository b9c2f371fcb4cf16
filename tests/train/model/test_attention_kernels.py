"""Attention's kernels against plain softmax attention, and which one is chosen."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from train.errors import UserError
from train.model import ModelConfig
from train.model.attention_kernels import causal_attention, choose_attention
from train.sharding import make_mesh

T = 300  # Several blocks, of which the last is not full.
CASES = pytest.mark.parametrize(
    ("window", "packed"),
    [
        (None, False),
        (None, True),
        (1, False),
        pytest.param(1, True, marks=pytest.mark.slow),
        pytest.param(70, False, marks=pytest.mark.slow),
        (70, True),
    ],
)


def _inputs(length: int = T, heads: int = 4, kv_heads: int = 2) -> tuple[jax.Array, ...]:
    draw = np.random.default_rng(0).normal
    scale = 0.4  # Small enough that no key has all the weight.
    shapes = [(2, length, h, 32) for h in (heads, kv_heads, kv_heads, heads)]
    return tuple(jnp.asarray(draw(0, scale, shape), jnp.float32) for shape in shapes)


def _segments(packed: bool, length: int = T) -> jax.Array | None:
    ends = jnp.array([[3, 130, length // 2, length], [1, 128, 129, length - 7]])
    return jnp.sum(jnp.arange(length)[None, None] >= ends[..., None], axis=1) if packed else None


def _plain(segments: jax.Array | None, window: int | None) -> Callable[..., jax.Array]:
    """Every score of every head, then the mask."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        length, group = q.shape[1], q.shape[2] // k.shape[2]
        k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
        distance = jnp.arange(length)[None, :, None] - jnp.arange(length)[None, None]
        mask = (distance >= 0) & (distance < (window or length))
        mask = jnp.broadcast_to(mask, (2, length, length))
        if segments is not None:
            mask &= segments[:, :, None] == segments[:, None]
        scores = jnp.where(mask[:, None], jnp.einsum("bthd,bshd->bhts", q, k), -jnp.inf)
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)

    return attend


def _with_gradients(attend: Callable[..., jax.Array], inputs: tuple[jax.Array, ...]) -> Any:
    *qkv, weights = inputs

    def total(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed = attend(*qkv)
        return jnp.sum(mixed * weights), mixed

    return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*qkv)


@lru_cache
def _expected(packed: bool, window: int | None, length: int) -> list[np.ndarray]:
    """Plain attention and its gradients."""
    results = _with_gradients(_plain(_segments(packed, length), window), _inputs(length))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(results)]


def _assert_equal(kernel: str, packed: bool, window: int | None, length: int = T) -> None:
    attend = partial(causal_attention(kernel, _segments(packed, length)), window)
    results = _with_gradients(attend, _inputs(length))
    expected = _expected(packed, window, length)
    for ours, plain in zip(jax.tree.leaves(results), expected, strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-5)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs splash attention in Pallas's interpreter instead of on a TPU."""
    monkeypatch.setattr(splash, "make_splash_mha", partial(splash.make_splash_mha, interpret=True))


@CASES
def test_xla_is_plain_attention(window: int | None, packed: bool) -> None:
    _assert_equal("xla", packed, window)


@CASES
@pytest.mark.usefixtures("interpreted")
def test_splash_is_plain_attention(window: int | None, packed: bool) -> None:
    _assert_equal("splash", packed, window)


@CASES
def test_what_cudnn_is_asked_for_is_plain_attention(
    monkeypatch: pytest.MonkeyPatch, window: int | None, packed: bool
) -> None:
    """XLA computes in its place, as the documentation gives both the same function."""
    attention = jax.nn.dot_product_attention

    def answer(*qkv: jax.Array, implementation: str, **options: Any) -> jax.Array:
        assert implementation == "cudnn"
        return attention(*qkv, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    _assert_equal("cudnn", packed, window)


@pytest.mark.parametrize(
    ("packed", "length"),
    [
        (True, T),
        pytest.param(True, 200, marks=pytest.mark.slow),
        pytest.param(False, 200, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("interpreted")
def test_on_a_mesh_each_device_has_its_rows_and_heads(packed: bool, length: int) -> None:
    with jax.set_mesh(make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])):
        _assert_equal("splash", packed, 70, length)


@pytest.mark.parametrize(
    ("packed", "window", "length"),
    [
        (False, 70, 512),
        (True, None, 300),
        pytest.param(False, None, 512, marks=pytest.mark.slow),
        pytest.param(True, None, 512, marks=pytest.mark.slow),
        pytest.param(True, 70, 512, marks=pytest.mark.slow),
        pytest.param(False, None, 300, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("interpreted")
def test_where_rows_are_split_each_device_has_its_queries(
    packed: bool, window: int | None, length: int
) -> None:
    with jax.set_mesh(make_mesh(fsdp=2, context=2, devices=jax.devices()[:4])):
        _assert_equal("splash", packed, window, length=length)


def _llama(**keys: int) -> ModelConfig:
    sizes = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1}
    return ModelConfig.from_hf(
        {"model_type": "llama", **sizes, "num_attention_heads": 4, "num_key_value_heads": 2, **keys}
    )


class _Device:
    def __init__(self, platform: str) -> None:
        self.platform = platform


class _Mesh:
    """The part of a mesh that the choice of a kernel depends on."""

    def __init__(self, platform: str, **shape: int) -> None:
        self.devices = np.array([_Device(platform)])
        self.shape = {"data": 1, "fsdp": 1, "tensor": 1} | shape


@pytest.mark.parametrize(
    ("mesh", "dtype", "kernel"),
    [
        (_Mesh("cpu"), "bfloat16", "xla"),
        (_Mesh("tpu"), "bfloat16", "splash"),
        (_Mesh("tpu"), "float32", "splash"),
        (_Mesh("gpu"), "bfloat16", "cudnn"),
        (_Mesh("gpu"), "float32", "xla"),
        (_Mesh("tpu", context=2), "bfloat16", "splash"),
        (_Mesh("gpu", context=2), "bfloat16", "xla"),
        (_Mesh("gpu", tensor=4), "bfloat16", "xla"),
    ],
)
def test_auto_is_the_devices_own_kernel_where_it_can_be_used(
    mesh: Any, dtype: str, kernel: str
) -> None:
    assert choose_attention("auto", _llama(), mesh, dtype) == kernel


@pytest.mark.parametrize(
    ("name", "mesh", "dtype", "message"),
    [
        ("cudnn", _Mesh("cpu"), "bfloat16", "is for GPUs and this is a CPU"),
        ("splash", _Mesh("gpu"), "bfloat16", "is for TPUs and this is a GPU"),
        ("cudnn", _Mesh("gpu"), "float32", "model.compute_dtype=bfloat16"),
        ("cudnn", _Mesh("gpu", context=2), "bfloat16", "mesh.context=1"),
        ("splash", _Mesh("tpu", tensor=4), "bfloat16", "mesh.tensor"),
    ],
)
def test_a_named_kernel_that_cannot_be_used_says_why(
    name: str, mesh: Any, dtype: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_attention(name, _llama(), mesh, dtype)
