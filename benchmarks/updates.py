"""The parts of training that are timed: gradients, an optimizer's update, a training step."""

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gmt_train.hf.load import load_params
from gmt_train.hf.tokenizer import load_tokenizer
from gmt_train.model import load_model_config, stacked_axes
from gmt_train.objective.sft import Sft
from jax.sharding import NamedSharding, PartitionSpec

Tree = dict[str, jax.Array]
Method = Callable[[], Any]


def adamw(gradients: Sequence[Tree], *first: optax.GradientTransformation) -> Method:
    """An AdamW update after other transformations, of parameters like the gradients."""
    return adamw_under(gradients[0], optax.chain(*first, optax.adamw(1e-5)), gradients)


def adamw_under(
    params: Tree, optimizer: optax.GradientTransformation, gradients: Sequence[Tree]
) -> Method:
    """An update with donated parameters and state, as in training, with each gradient in turn."""

    compiled, turns = donating_update(optimizer), cycle(gradients)
    held = [jax.tree.map(jnp.copy, params), jax.jit(optimizer.init)(params)]

    def run() -> Any:
        held[:] = compiled(*held, next(turns))
        return held

    return run


def like_another_batch(gradient: Tree) -> Tree:
    """Other entries of a tree of random numbers, as much larger as the next batch's often are."""
    return {name: 1.15 * jnp.roll(g, 1, -1) for name, g in gradient.items()}


def donating_update(optimizer: optax.GradientTransformation) -> Any:
    """A jitted function of parameters and state, both donated, and gradients."""

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(update, donate_argnums=(0, 1))


def seconds_to_compile(tree: Any, *first: optax.GradientTransformation) -> float:
    """Processor time to trace, lower and compile an AdamW update of arrays of these shapes."""
    optimizer = optax.chain(*first, optax.adamw(1e-5))
    like = {x.shape: x.sharding for x in jax.tree.leaves(tree)}
    mesh = next(iter(like.values())).mesh
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=like.get(x.shape, NamedSharding(mesh, PartitionSpec()))
        ),
        jax.eval_shape(optimizer.init, tree),
    )
    start = time.process_time()
    donating_update(optimizer).lower(tree, state, tree).compile()
    return time.process_time() - start


class Model:
    """A model with its weights, and two batches of 2 x 256 tokens of the standard library."""

    def __init__(self, folder: Path) -> None:
        self.config = load_model_config(folder)
        flat, self.treedef = jax.tree.flatten_with_path(load_params(folder, self.config))
        self.params = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in flat}
        self.stacked_axes = dict(
            zip(self.params, (stacked_axes(path) for path, _ in flat), strict=True)
        )
        ids = load_tokenizer(folder, None)(Path(argparse.__file__).read_text())["input_ids"]
        rows = np.array(ids[: 4 * 257], np.int32).reshape(2, 2, 257)
        tokens, targets = jnp.asarray(rows[:, :, :-1]), jnp.asarray(rows[:, :, 1:])
        weights = jnp.ones((2, 256))
        self.batches = [
            {"tokens": tokens[i], "targets": targets[i], "weights": weights} for i in range(2)
        ]

    def loss(self, params: Tree, batch: Tree) -> jax.Array:
        """The loss in nats per token."""
        tree = jax.tree.unflatten(self.treedef, list(params.values()))
        sums = Sft(self.config)(tree, batch)
        return sums.loss / sums.weight

    def step(self, *first: optax.GradientTransformation) -> Method:
        """A training step with AdamW, with each batch in turn."""
        optimizer = optax.chain(*first, optax.adamw(1e-5))

        def update(params: Tree, state: Any, batch: Tree) -> Any:
            updates, state = optimizer.update(jax.grad(self.loss)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(update, donate_argnums=(0, 1))
        held = [jax.tree.map(jnp.copy, self.params), jax.jit(optimizer.init)(self.params)]
        turns = cycle(self.batches)

        def run() -> Any:
            held[:] = compiled(*held, next(turns))
            return held

        return run
