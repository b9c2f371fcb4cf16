"""Plain jax: scanned layers in bfloat16, of which 6 of every 128 entries are trained."""

import jax
import jax.numpy as jnp
import optax

from gmt_jax import compact

L, D, F = 4, 128, 512


def init_weights(key):
    up, down = (jax.random.normal(k, (L, D, F), jnp.bfloat16) / 16 for k in jax.random.split(key))
    return {"up": up, "down": down.swapaxes(1, 2), "norm": jnp.ones((L, D))}


def loss_fn(params, x, y):
    @jax.checkpoint
    def layer(x, part):
        part = compact.resolve(part)  # Inside the layer: its gradient is dropped right away.
        h = jax.nn.silu((x * part["norm"]).astype(jnp.bfloat16) @ part["up"]) @ part["down"]
        return x + h.astype(x.dtype), None

    x, _ = jax.lax.scan(layer, x, params)
    return jnp.mean(jnp.square(x - y))


optimizer = compact.on_values(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3)))


@jax.jit
def choose(weights, x, y):
    """6 of every 128 entries by gradient, all of the norms; only the choice leaves the layers."""
    forms = compact.plan_forms(weights, {"norm": 0.0, ".*": 0.95})

    def loss(drawn):
        return loss_fn(compact.attach_draw(weights, forms, drawn), x, y)

    drawn = jax.grad(loss)(compact.empty_draw(forms, weights))
    chosen = compact.drawn_choices(forms, drawn)
    return chosen, compact.read(chosen, weights)


def _step(params, state, x, y):
    def loss(values):
        return loss_fn(compact.attach(params._replace(values=values)), x, y)

    value, grads = jax.value_and_grad(loss)(params.values)
    updates, state = optimizer.update(grads, state, params)
    return compact.apply_updates(params, updates), state, value


train_step = jax.jit(_step, donate_argnums=(0, 1))


def main():
    keys = jax.random.split(jax.random.key(0), 2)
    weights = init_weights(keys[0])
    x = jax.random.normal(keys[1], (32, D))
    y = jnp.roll(x, 1, axis=1)
    params = compact.CompactParams(weights, *choose(weights, x, y))
    state = optimizer.init(params)
    trained = compact.num_chosen(params.chosen, weights)
    share = trained / sum(leaf.size for leaf in jax.tree.leaves(weights))
    for step in range(5):
        params, state, loss = train_step(params, state, x, y)
        print(f"step {step}: loss {loss:.4f}, masked {1 - share:.1%}")
    return state


if __name__ == "__main__":
    main()
