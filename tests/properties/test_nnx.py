"""The transformations in `nnx.Optimizer`, which boxes parameters at `init` and not at `update`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gmt_jax import gmt, gmt_mask, hft, lisa, one_off, random_mask

D, L = 4, 3


class Block(nnx.Module):
    """A layer with the parameters of a transformer's, of which only some are used."""

    def __init__(self, rngs: nnx.Rngs):
        linear = {"in_features": D, "out_features": D, "use_bias": False, "rngs": rngs}
        self.attention = nnx.Dict({name: nnx.Linear(**linear) for name in ("q", "k", "v", "out")})
        self.mlp = nnx.Dict({name: nnx.Linear(**linear) for name in ("gate", "up", "down")})
        self.attention_norm = nnx.RMSNorm(D, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(D, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.attention_norm(x)
        for linear in self.attention.values():
            y = linear(y)
        x = x + y
        y = self.mlp_norm(x)
        for linear in self.mlp.values():
            y = linear(y)
        return x + y


class Listed(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(5, D, rngs=rngs)
        self.layers = nnx.List([Block(rngs) for _ in range(L)])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


class Scanned(nnx.Module):
    """The same layers, stacked along the first axis."""

    def __init__(self) -> None:
        self.embed = nnx.Embed(5, D, rngs=nnx.Rngs(0))
        self.layers = nnx.split_rngs(splits=L)(nnx.vmap(Block))(nnx.Rngs(0))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        scan = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return scan(self.embed(tokens), self.layers)


MODELS = {"listed": Listed, "scanned": Scanned}


def loss(model: Any) -> jax.Array:
    return jnp.mean(jnp.square(model(jnp.arange(5)) - 1))


def flat(state: Any) -> dict[str, np.ndarray]:
    return {"/".join(map(str, path)): np.asarray(x) for path, x in nnx.to_flat_state(state)}


def moved(model: Any, tx: optax.GradientTransformation) -> dict[str, np.ndarray]:
    """Where an update of the model's weights changed them."""
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = flat(nnx.as_pure(nnx.state(model, nnx.Param)))

    @nnx.jit
    def update(model: Any, optimizer: nnx.Optimizer[Any]) -> None:
        optimizer.update(model, nnx.grad(loss)(model))

    update(model, optimizer)
    after = flat(nnx.as_pure(nnx.state(model, nnx.Param)))
    return {path: before[path] != after[path] for path in before}


def by_layer(masks: dict[str, np.ndarray], path: str) -> list[bool]:
    """Whether the parameter moved, of each layer."""
    listed = [f"layers/{layer}/{path}" for layer in range(L)]
    rows = [masks[name] for name in listed] if listed[0] in masks else masks[f"layers/{path}"]
    return [bool(np.any(row)) for row in rows]


def adamw() -> optax.GradientTransformation:
    return optax.adamw(1e-2, weight_decay=0.1)


@pytest.mark.parametrize("kind", MODELS)
def test_hft_trains_half_of_each_layer(kind: str) -> None:
    masks = moved(MODELS[kind](), hft(adamw(), key=0, every=9))
    attention = [by_layer(masks, f"attention/{name}/kernel") for name in ("q", "k", "v", "out")]
    mlp = [by_layer(masks, f"mlp/{name}/kernel") for name in ("gate", "up", "down")]
    assert np.sum(attention, 0).tolist() == [2] * L
    assert sorted(np.sum(mlp, 0).tolist()) == [1, 2, 2]
    assert masks["embed/embedding"].all()


def test_lisa_trains_the_same_layers_listed_and_scanned() -> None:
    listed, scanned = (
        by_layer(moved(model(), lisa(adamw(), 1, key=3, every=9)), "mlp/up/kernel")
        for model in MODELS.values()
    )
    assert sum(listed) == 1
    assert listed == scanned


def boxed_and_pure() -> tuple[Any, Any]:
    """The same gradients, in the boxes of nnx and without."""
    state = nnx.state(Listed(), nnx.Param)
    return state, nnx.as_pure(state)


def test_an_anchored_pattern_finds_a_parameter_in_its_box_and_without() -> None:
    ratio = {"kernel$": 1.0, "embedding$": 0.5, ".*": 0.0}
    masked = []
    for tree in boxed_and_pure():
        optimizer = gmt_mask(ratio)
        updates, _ = optimizer.update(tree, optimizer.init(tree))
        masked.append(flat(nnx.as_pure(updates)))
    for path, update in masked[0].items():
        np.testing.assert_array_equal(update, masked[1][path])
        assert path.endswith("kernel") == (not update.any())


def test_a_random_mask_is_the_same_in_a_box_and_without() -> None:
    updates = []
    for tree in boxed_and_pure():
        optimizer = random_mask(optax.identity(), 0.5, key=0)
        updates.append(flat(nnx.as_pure(optimizer.update(tree, optimizer.init(tree))[0])))
    for path, update in updates[0].items():
        np.testing.assert_array_equal(update, updates[1][path])


class Sharded(nnx.Module):
    def __init__(self) -> None:
        rngs, init = nnx.Rngs(0), nnx.initializers.lecun_normal()
        self.mlp = nnx.Dict(
            {
                name: nnx.Linear(
                    16, 16, kernel_init=nnx.with_partitioning(init, spec), rngs=rngs, use_bias=False
                )
                for name, spec in [("up", (None, "x")), ("gate", ("y", "x")), ("down", ("x", "y"))]
            }
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mlp["down"](self.mlp["up"](x) * self.mlp["gate"](x))


def by_path(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(gmt_mask({"up/kernel$": 0.5, ".*": 0.25}), inner)


METHODS = {
    "ratios by path": by_path,
    "one_off": lambda inner: one_off(inner, 0.5),
    "random_mask": lambda inner: random_mask(inner, 0.5, key=0),
    "report": lambda inner: gmt(inner, 0.5, report=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("eager", [True, False], ids=["eager sharding", "no eager sharding"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_sharded_parameters(method: str, eager: bool) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def losses(sharded: bool) -> list[float]:
        model = Sharded()
        optimizer = nnx.Optimizer(model, METHODS[method](adamw()), wrt=nnx.Param)
        x = jax.random.normal(jax.random.key(0), (8, 16))

        @nnx.jit
        def update(model: Any, optimizer: nnx.Optimizer[Any]) -> jax.Array:
            grad = nnx.value_and_grad(lambda model: jnp.mean(jnp.square(model(x) - 1)))
            loss, grads = grad(model)
            optimizer.update(model, grads)
            return loss

        found = [float(update(model, optimizer)) for _ in range(4)]
        if sharded and eager:
            kernel = nnx.as_pure(nnx.state(model))["mlp"]["gate"]["kernel"]
            assert not kernel.sharding.is_fully_replicated
        return found

    with nnx.use_eager_sharding(eager), jax.set_mesh(mesh):
        found = losses(sharded=True)
    with nnx.use_eager_sharding(False):
        np.testing.assert_allclose(found, losses(sharded=False), rtol=1e-4)
    assert found == sorted(found, reverse=True)
