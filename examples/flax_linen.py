"""Flax Linen: the mask in a `TrainState`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from gmt_jax import gmt_mask


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8)(nn.tanh(nn.Dense(64)(x)))


@jax.jit
def train_step(state, x, y):
    def loss_fn(params):
        return jnp.mean(jnp.square(state.apply_fn({"params": params}, x) - y))

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


def main():
    x = jax.random.normal(jax.random.key(0), (32, 8))
    y = jnp.roll(x, 1, axis=1)
    model = Model()
    # Biases are trained fully.
    tx = optax.chain(gmt_mask({"kernel$": 0.2, "bias$": 0.0}), optax.adamw(1e-2))
    params = model.init(jax.random.key(1), x)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    for step in range(5):
        state, loss = train_step(state, x, y)
        masked = optax.tree.get(state.opt_state, "masked_fraction")
        print(f"step {step}: loss {loss:.4f}, masked {masked:.1%}")
    return state


if __name__ == "__main__":
    main()
