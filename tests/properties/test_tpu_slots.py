"""Slots compiled for TPU on a machine without one: no exchanges, and the time of a few passes."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax import compact
from gmt_jax.compact import CompactParams, Slots

pytestmark = pytest.mark.slow
pytest.importorskip("libtpu", reason="libtpu, the compiler for TPU, exists for Linux on x86-64")

LAYERS, ROWS, SIZE, TOKENS = 4, 4096, 2048, 2048


def compiled(mesh: Mesh, function: Callable[..., Any], *args: Any, **options: Any) -> str:
    with jax.set_mesh(mesh):
        text: str = jax.jit(function, **options).lower(*args).compile().as_text()
    return text


def cycles(text: str) -> int:
    """The compiler's estimate, of which the loop over layers runs so many times."""
    entry = text[text.index("\nENTRY ") :]
    once, every = (
        sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', x))) for x in (entry, text)
    )
    return once + LAYERS * (every - once)


def exchanges(text: str) -> list[str]:
    words = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
    return [word for word in words if re.search(rf" {word}(-start)?\(", text)]


def struct(mesh: Mesh, shape: tuple[int, ...], dtype: Any, spec: P) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


@pytest.mark.parametrize(
    "spec", [P(None, None, "x"), P(None, "x", None), P(None, "x", "y")], ids=str
)
def test_slots_are_written_in_the_time_of_a_few_passes(chips: list[jax.Device], spec: P) -> None:
    shape, axes = ((2, 2), ("x", "y")) if "y" in spec else ((4,), ("x",))
    mesh = Mesh(np.array(chips).reshape(shape), axes, axis_types=(AxisType.Auto,) * len(axes))
    weights = struct(mesh, (LAYERS, ROWS, SIZE), jnp.bfloat16, spec)
    slots = (*weights.shape[:-1], SIZE // 128 * 6)
    positions, values = (struct(mesh, slots, dtype, spec) for dtype in (jnp.uint8, jnp.float32))
    params = CompactParams(weights, Slots(positions), values)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    write = partial(compact.write, shardings=shardings)
    text = compiled(mesh, write, params, donate_argnums=0, out_shardings=shardings)
    assert not exchanges(text)

    def double(stack: jax.Array) -> jax.Array:
        def one(layer: jax.Array, stack: jax.Array) -> jax.Array:
            at = jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(stack, 2 * at, layer, 0)

        return jax.lax.fori_loop(0, LAYERS, one, stack)

    once = compiled(mesh, double, weights, donate_argnums=0, out_shardings=weights.sharding)
    assert cycles(text) < 6 * cycles(once)


@pytest.mark.parametrize("split", [0, 1])
def test_slots_of_a_product_are_read_in_less_than_its_time(
    chips: list[jax.Device], split: int
) -> None:
    mesh = Mesh(np.array(chips), ("x",), axis_types=(AxisType.Auto,))
    spec = P(*("x" if axis == split else None for axis in range(2)))
    left, right = (
        struct(mesh, (TOKENS, size), jnp.bfloat16, P(None, part))
        for size, part in zip((ROWS, SIZE), spec, strict=True)
    )
    positions = struct(mesh, (ROWS, SIZE // 128 * 6), jnp.uint8, spec)

    def product(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum("to,ti->oi", left, right)

    def read(left: jax.Array, right: jax.Array, positions: jax.Array) -> Any:
        return compact.read(Slots(positions), product(left, right))

    out = positions.sharding
    text = compiled(mesh, read, left, right, positions, out_shardings=out)
    alone = compiled(mesh, product, left, right, out_shardings=out)
    assert not exchanges(text)
    assert cycles(text) < 2.5 * cycles(alone)
