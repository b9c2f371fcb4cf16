"""Flax NNX: modules of which 6 of every 128 entries are trained, scanned or one after another."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gmt_jax import compact

L, D, F = 4, 128, 512


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(D, rngs=rngs)
        self.up = nnx.Linear(D, F, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=rngs)
        self.down = nnx.Linear(F, D, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, x):
        return x + self.down(jax.nn.silu(self.up(self.norm(x)))).astype(x.dtype)


# One structure, and the parameters of L blocks along a leading axis, as plain nested dicts.
blocks = [nnx.split(Block(nnx.Rngs(seed))) for seed in range(L)]
structure = blocks[0][0]
states = [nnx.to_pure_dict(state) for _, state in blocks]
weights = jax.tree.map(lambda *parts: jnp.stack(parts), *states)
optimizer = compact.on_values(optax.adamw(3e-3))


def loss_fn(params, x, y):
    @jax.checkpoint
    def layer(x, part):
        return nnx.merge(structure, compact.resolve(part))(x), None

    x, _ = jax.lax.scan(layer, x, params)
    return jnp.mean(jnp.square(x - y))


def _step(params, state, x, y):
    def loss(values):
        return loss_fn(compact.attach(params._replace(values=values)), x, y)

    value, grads = jax.value_and_grad(loss)(params.values)
    updates, state = optimizer.update(grads, state, params)
    return compact.apply_updates(params, updates), state, value


train_step = jax.jit(_step)  # Donate both where `weights` is not needed any more.


def main():
    x = jax.random.normal(jax.random.key(1), (32, D))
    y = jnp.roll(x, 1, axis=1)
    forms = compact.plan_forms(weights, {"norm|bias": 0.0, ".*": 0.95})
    chosen = compact.choose(forms, jax.grad(loss_fn)(weights, x, y))
    params = compact.CompactParams(weights, chosen, compact.read(chosen, weights))
    state = optimizer.init(params)
    trained = compact.num_chosen(chosen, weights)
    share = trained / sum(leaf.size for leaf in jax.tree.leaves(weights))
    for step in range(5):
        params, state, loss = train_step(params, state, x, y)
        print(f"step {step}: loss {loss:.4f}, masked {1 - share:.1%}")
    return state


if __name__ == "__main__":
    main()
