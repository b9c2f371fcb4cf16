"""A stand-in for MaxText, for the protocol between its trainer and an optimizer.

Written after `maxtext/utils/train_utils.py`, `utils/maxtext_utils.py`, `common/train_state_nnx.py`
and `optimizers/optimizers.py` of version 0.2.5, which needs Python 3.12. What is kept:
`get_optimizer` is called as an attribute of its module; layers are scanned on axis 1; model and
`nnx.Optimizer` are traced without a mesh, then made under jit with the shardings that their boxes
name; a checkpoint holds `opt_state` as a list of dicts, with the moments one level deeper.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from maxtext.optimizers import optimizers

D, F, L, V = 16, 32, 3, 64
RULES = {"embed": "fsdp", "mlp": "tensor", "layers": None, "vocab": None}


class Linear(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, shape: tuple[int, int], names: tuple[str, str]):
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), shape), out_sharding=names)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel[...]


class Norm(nnx.Module):
    def __init__(self) -> None:
        self.scale = nnx.Param(jnp.ones(D), out_sharding=("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True)) * self.scale[...]


class DecoderLayer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.pre_self_attention_layer_norm, self.post_self_attention_layer_norm = Norm(), Norm()
        self.self_attention = nnx.Dict(
            {
                name: Linear(rngs, (D, D), ("embed", "mlp"))
                for name in ("query", "key", "value", "out")
            }
        )
        self.mlp = nnx.Dict(
            wi_0=Linear(rngs, (D, F), ("embed", "mlp")),
            wi_1=Linear(rngs, (D, F), ("embed", "mlp")),
            wo=Linear(rngs, (F, D), ("mlp", "embed")),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.pre_self_attention_layer_norm(x)
        q, k, v = (self.self_attention[name](y) for name in ("query", "key", "value"))
        x = x + self.self_attention["out"](jax.nn.softmax(q @ k.mT) @ v)
        y = self.post_self_attention_layer_norm(x)
        return x + self.mlp["wo"](jax.nn.silu(self.mlp["wi_0"](y)) * self.mlp["wi_1"](y))


class Decoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        axes = nnx.StateAxes({nnx.Param: 1})
        scanned = nnx.vmap(
            DecoderLayer, out_axes=axes, transform_metadata={nnx.PARTITION_NAME: "layers"}
        )
        self.layers = nnx.split_rngs(splits=L)(scanned)(rngs)
        self.decoder_norm = Norm()
        self.logits_dense = Linear(rngs, (D, V), ("embed", "vocab"))

    def __call__(self, x: jax.Array) -> jax.Array:
        axes = nnx.StateAxes({nnx.Param: 1})
        scan = nnx.scan(
            lambda x, layer: layer(x),
            in_axes=(nnx.Carry, axes),
            out_axes=nnx.Carry,
            transform_metadata={nnx.PARTITION_NAME: "layers"},
        )
        return self.logits_dense(self.decoder_norm(scan(x, self.layers)))


class Transformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.token_embedder = nnx.Dict(
            embedding=nnx.Param(
                jax.random.normal(rngs.params(), (V, D)), out_sharding=("vocab", "embed")
            )
        )
        self.decoder = Decoder(rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.decoder(self.token_embedder["embedding"][...][tokens])


class TrainStateNNX(nnx.Module):
    def __init__(self, model: nnx.Module, optimizer: nnx.Optimizer[Any]):
        self.model, self.optimizer = model, optimizer


def sharding_of(mesh: jax.sharding.Mesh, var: nnx.Variable[Any]) -> nnx.Variable[Any]:
    """The sharding that a box names by logical axes; as many of them as the array has."""
    names = var.get_metadata().get("out_sharding") or ()
    spec = jax.sharding.PartitionSpec(*(RULES.get(name) for name in names[: var.ndim]))
    return var.replace(jax.sharding.NamedSharding(mesh, spec))


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Trains, and returns the state as a checkpoint holds it."""
    settings = dict(setting.split("=") for setting in argv[1:])
    config = SimpleNamespace(adam_weight_decay=0.1, steps=int(settings["steps"]))
    schedule = optax.linear_schedule(1e-2, 0.0, 2 * config.steps)
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: Transformer(nnx.Rngs(0)))
    tx = optimizers.get_optimizer(config, schedule, model)

    def init() -> TrainStateNNX:
        model = Transformer(nnx.Rngs(0))
        return TrainStateNNX(model, nnx.Optimizer(model, tx, wrt=nnx.Param))

    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=auto)
    with nnx.use_eager_sharding(False):
        graphdef, abstract = nnx.split(nnx.eval_shape(init))
        shardings = jax.tree.map(
            lambda var: sharding_of(mesh, var),
            abstract,
            is_leaf=lambda x: isinstance(x, nnx.Variable),
        )
        state = jax.jit(lambda: nnx.split(init())[1], out_shardings=shardings)()

        def train_step(state: nnx.State, tokens: jax.Array) -> tuple[nnx.State, jax.Array]:
            train_state = nnx.merge(graphdef, state)

            def loss_fn(model: Transformer) -> jax.Array:
                losses = optax.softmax_cross_entropy_with_integer_labels
                return jnp.mean(losses(model(tokens[:, :-1]), tokens[:, 1:]))

            loss, grads = nnx.value_and_grad(loss_fn)(train_state.model)
            train_state.optimizer.update(train_state.model, grads)
            return nnx.split(train_state)[1], loss

        step = jax.jit(train_step, out_shardings=(shardings, None), donate_argnums=0)
        tokens = jax.random.permutation(jax.random.key(0), V).reshape(4, 16)
        for number in range(config.steps):
            state, loss = step(state, tokens)
            print(f"step: {number}, loss: {loss:.4f}")
    return to_linen_checkpoint_dict(nnx.to_pure_dict(state))


def to_linen_checkpoint_dict(state: dict[str, Any]) -> dict[str, Any]:
    """Chains as lists with None for empty states, moments below a key "params"."""
    states = state["optimizer"]["opt_state"]
    chain = [states.get(index) for index in range(max(states) + 1)]
    nested = [
        part and {k: {"params": v} if k in ("mu", "nu") else v for k, v in part.items()}
        for part in chain
    ]
    return {"params": {"params": state["model"]}, "opt_state": nested}
