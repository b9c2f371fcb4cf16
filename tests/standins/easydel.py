"""A stand-in for EasyDeL, for the protocol between its trainer and an optimizer.

Written after `easydel/trainers/base_trainer.py`, `trainers/trainer/trainer.py`, `trainers/
training_configurations.py` and `infra/base_state.py` of version 0.3.0, which needs an older jax.
What is kept: `pruning_module` and its three calls; the state is split with nnx, so that parameters,
gradients and the optimizer's state are in boxes; the state is made under jit with shardings by
patterns of its paths, which must fit its ranks; `update` is called by keyword.
"""

import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

RULES = (
    (r"(q|k|v|gate|up)_proj/kernel", P("fsdp", "tp")),
    (r"kernel", P("tp", "fsdp")),
    (".*", P()),
)


@dataclass
class LlamaConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int


class Layer(nnx.Module):
    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        linear = {"use_bias": False, "rngs": rngs}
        self.self_attn = nnx.Dict(
            {f"{name}_proj": nnx.Linear(D, D, **linear) for name in ("q", "k", "v", "o")}
        )
        self.mlp = nnx.Dict(
            gate_proj=nnx.Linear(D, F, **linear),
            up_proj=nnx.Linear(D, F, **linear),
            down_proj=nnx.Linear(F, D, **linear),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (self.self_attn[f"{name}_proj"](x) for name in ("q", "k", "v"))
        x = x + self.self_attn["o_proj"](jax.nn.softmax(q @ k.mT) @ v)
        hidden = jax.nn.silu(self.mlp["gate_proj"](x)) * self.mlp["up_proj"](x)
        return x + self.mlp["down_proj"](hidden)


class LlamaForCausalLM(nnx.Module):
    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        D = config.hidden_size
        layers = nnx.List([Layer(config, rngs) for _ in range(config.num_hidden_layers)])
        self.model = nnx.Dict(
            embed_tokens=nnx.Embed(config.vocab_size, D, rngs=rngs), layers=layers
        )
        self.lm_head = nnx.Linear(D, config.vocab_size, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.model["embed_tokens"](tokens)
        for layer in self.model["layers"]:
            x = layer(x)
        return self.lm_head(x)


@dataclass
class TrainingArguments:
    total_batch_size: int
    num_train_epochs: int
    learning_rate: float
    pruning_module: Any = None

    def get_optimizer_and_scheduler(self, steps: int) -> tuple[Any, optax.Schedule]:
        schedule = optax.linear_schedule(self.learning_rate, 0.0, steps)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule)), schedule


@dataclass
class State:
    graphdef: Any
    graphstate: Any
    tx: Any
    opt_state: Any


class Trainer:
    def __init__(self, arguments: TrainingArguments, model: Any, dataset_train: Any):
        self.arguments, self.pruning_module = arguments, arguments.pruning_module
        self.batch = {name: np.array(dataset_train[name]) for name in dataset_train.column_names}
        graphdef, graphstate = nnx.split(model, nnx.Param)
        tx, _ = arguments.get_optimizer_and_scheduler(arguments.num_train_epochs)
        if self.pruning_module is not None:
            tx = self.pruning_module.wrap_optax(tx)
        self.state = State(graphdef, graphstate, tx, init_tx(tx, graphstate))

    def train(self) -> SimpleNamespace:
        state = self.state

        @jax.jit
        def step(graphstate: Any, opt_state: Any, tokens: jax.Array, labels: jax.Array) -> Any:
            def loss_fn(graphstate: Any) -> jax.Array:
                logits = nnx.merge(state.graphdef, graphstate)(tokens)[:, :-1]
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[:, 1:])
                return jnp.mean(losses)

            loss, grads = jax.value_and_grad(loss_fn)(graphstate)
            updates, opt_state = state.tx.update(updates=grads, state=opt_state, params=graphstate)
            return optax.apply_updates(graphstate, updates), opt_state, loss

        for _ in range(self.arguments.num_train_epochs):
            if self.pruning_module is not None:
                state.graphstate = self.pruning_module.pre_forward_update(
                    state.graphstate, state.opt_state
                )
            state.graphstate, state.opt_state, loss = step(
                state.graphstate, state.opt_state, self.batch["input_ids"], self.batch["labels"]
            )
            if self.pruning_module is not None:
                state.graphstate = self.pruning_module.post_gradient_update(
                    state.graphstate, state.opt_state
                )
            print(f"loss {loss:.4f}")
        return SimpleNamespace(state=state)


def init_tx(tx: Any, graphstate: Any) -> Any:
    """The optimizer's state, sharded by patterns of its paths; scalars are replicated."""
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def sharding_of(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
        return NamedSharding(mesh, P() if leaf.size <= 1 else spec)

    shapes = jax.eval_shape(tx.init, graphstate)
    shardings = jax.tree_util.tree_map_with_path(sharding_of, shapes)
    return jax.jit(tx.init, out_shardings=shardings)(graphstate)
