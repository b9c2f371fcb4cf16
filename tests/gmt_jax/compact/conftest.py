"""A small net with tied embeddings and scanned layers, for tests of what happens inside a model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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


def loss(params: Any, tokens: jax.Array, resolve_first: bool = False) -> jax.Array:
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


class Net(NamedTuple):
    """Weights, how their entries are chosen, a loss of them, its tokens and its gradient."""

    weights: Any
    forms: Any
    loss: Callable[..., jax.Array]
    tokens: jax.Array
    gradient: Any


def make_net(dtype: Any) -> Net:
    weights = _weights(dtype)
    ratios = {"frozen": 1.0, "b": 0.0, "embed": 0.7, ".*": 0.9}
    forms = compact.plan_forms(weights, ratios, rows="embed")
    return Net(weights, forms, loss, TOKENS, jax.jit(jax.grad(loss))(weights, TOKENS))


@pytest.fixture(scope="session")
def net() -> Net:
    """In float32."""
    return make_net(jnp.float32)


@pytest.fixture(scope="session")
def net16() -> Net:
    """In bfloat16."""
    return make_net(jnp.bfloat16)
