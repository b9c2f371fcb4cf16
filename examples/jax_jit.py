"""Plain jax: the mask in front of AdamW, in a jitted step."""

import jax
import jax.numpy as jnp
import optax

from gmt_jax import gmt_mask

optimizer = optax.chain(optax.clip_by_global_norm(1.0), gmt_mask(0.2), optax.adamw(1e-2))


def loss_fn(params, x, y):
    return jnp.mean(jnp.square(jnp.tanh(x @ params["up"]) @ params["down"] - y))


@jax.jit
def train_step(params, state, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


def main():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "up": jax.random.normal(keys[0], (8, 64)) / 8,
        "down": jax.random.normal(keys[1], (64, 8)) / 8,
    }
    x = jax.random.normal(keys[2], (32, 8))
    y = jnp.roll(x, 1, axis=1)
    state = optimizer.init(params)
    for step in range(5):
        params, state, loss = train_step(params, state, x, y)
        masked = optax.tree.get(state, "masked_fraction")
        print(f"step {step}: loss {loss:.4f}, masked {masked:.1%}")
    return state


if __name__ == "__main__":
    main()
