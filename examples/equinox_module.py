"""Equinox: the mask on the arrays of a module."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from gmt_jax import gmt_mask

optimizer = optax.chain(gmt_mask(0.2), optax.adamw(1e-2))


@eqx.filter_jit
def train_step(model, state, x, y):
    def loss_fn(model):
        return jnp.mean(jnp.square(jax.vmap(model)(x) - y))

    loss, grads = eqx.filter_value_and_grad(loss_fn)(model)
    updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), state, loss


def main():
    model = eqx.nn.MLP(8, 8, width_size=64, depth=1, key=jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    x = jax.random.normal(jax.random.key(1), (32, 8))
    y = jnp.roll(x, 1, axis=1)
    for step in range(5):
        model, state, loss = train_step(model, state, x, y)
        masked = optax.tree.get(state, "masked_fraction")
        print(f"step {step}: loss {loss:.4f}, masked {masked:.1%}")
    return model, state


if __name__ == "__main__":
    main()
