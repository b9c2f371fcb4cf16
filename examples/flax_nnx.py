"""Flax NNX: the mask in `nnx.Optimizer`, with parameters sharded over the devices of a mesh."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")  # for CPUs

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gmt_jax import gmt_mask


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        by_column = nnx.with_partitioning(init, (None, "model"))
        by_row = nnx.with_partitioning(init, ("model", None))
        self.up = nnx.Linear(8, 64, kernel_init=by_column, rngs=rngs)
        self.down = nnx.Linear(64, 8, kernel_init=by_row, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.tanh(self.up(x)))


@nnx.jit
def train_step(model, optimizer, x, y):
    loss, grads = nnx.value_and_grad(lambda model: jnp.mean(jnp.square(model(x) - y)))(model)
    optimizer.update(model, grads)
    return loss


def main():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        model = Model(nnx.Rngs(0))
        tx = optax.chain(gmt_mask(0.2), optax.adamw(1e-2))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        x = jax.random.normal(jax.random.key(0), (32, 8))
        y = jnp.roll(x, 1, axis=1)
        for step in range(5):
            loss = train_step(model, optimizer, x, y)
            masked = optax.tree.get(nnx.as_pure(optimizer.opt_state), "masked_fraction")
            print(f"step {step}: loss {loss:.4f}, masked {masked:.1%}")
    return model, optimizer


if __name__ == "__main__":
    main()
