"""Times the other methods, each in turn with GMT itself."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath, keystr
from others import RATIO, Tree
from timing import progress, timed
from updates import adamw_under

from gmt_jax import by_score, gmt, hft, lisa


def methods(stacked_axes: dict[str, int | None]) -> dict[str, tuple[Any, Any]]:
    """By name: an optimizer that selects a mask at every update, and its scores alone."""
    inner = optax.adamw(1e-5)
    by = partial(by_score, inner, RATIO, stacked_axes=stacked_axes)
    lasting = partial(by, warmup=1)  # stores its mask, as a method with a lasting mask does
    return {
        "gmt, one threshold for all": (gmt(inner, RATIO, scope="global"), None),
        "one_off, every_few": (lasting(), None),
        "... between two masks": (by(every=None), None),
        "gradient_to_weight": (lasting(score="gradient_to_weight"), ratios),
        "magnitude": (lasting(score="weight"), None),
        "random_mask": (by(score="random"), randoms),
        "fisher": (lasting(score="fisher"), squares),
        "hft": (hft(inner, key=0, every=1), None),
        "lisa": (lisa(inner, num_layers=2, key=0, every=1), None),
    }


def ratios(params: Tree, grads: Tree) -> Any:
    return jax.tree.map(lambda w, g: jnp.abs(g) / jnp.abs(w), params, grads)


def squares(params: Tree, grads: Tree) -> Any:
    return jax.tree.map(lambda w, g: w + jnp.square(g), params, grads)


def randoms(params: Tree, grads: Tree) -> Any:
    def random_bits(path: KeyPath, g: jax.Array) -> jax.Array:
        return jax.random.bits(
            jax.random.key(len(keystr(path))), g.shape, out_sharding=jax.typeof(g).sharding
        )

    return jax.tree_util.tree_map_with_path(random_bits, grads)


def print_family(
    title: str, params: Tree, grads: list[Tree], stacked_axes: dict[str, int | None], rounds: int
) -> None:
    """One row for each method. Parameters and moments are kept for one method at a time."""
    print(f"\n{title}\n\n| AdamW under | ms | gmt, ms | of gmt | its scores alone, ms |")
    print("|---" * 5 + "|")
    for name, (optimizer, scores) in methods(stacked_axes).items():
        progress(f"{name}, in turn with gmt, {rounds} rounds")
        compared = {
            "own": adamw_under(params, optimizer, grads),
            "gmt": adamw_under(
                params, gmt(optax.adamw(1e-5), RATIO, stacked_axes=stacked_axes), grads
            ),
        }
        if scores:
            compared["scores"] = partial(jax.jit(scores), params, grads[0])
        ms = {key: 1e3 * seconds for key, seconds in timed(compared, rounds).items()}
        alone = f"{ms['scores']:,.0f}" if scores else ""
        print(
            f"| {name} | {ms['own']:,.0f} | {ms['gmt']:,.0f} | {ms['own'] / ms['gmt']:.2f} "
            f"| {alone} |",
            flush=True,
        )
