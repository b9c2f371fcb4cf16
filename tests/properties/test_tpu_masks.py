"""The update compiled for TPU on a machine without one: small collectives, and no copies."""

import math
import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax import gmt_mask

pytestmark = pytest.mark.slow
pytest.importorskip("libtpu", reason="libtpu, the compiler for TPU, exists for Linux on x86-64")

FEW_BYTES = 4096
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4}


@pytest.fixture(scope="module")
def mesh(chips: list[jax.Device]) -> Mesh:
    return jax.make_mesh((len(chips),), ("x",), axis_types=(AxisType.Auto,), devices=chips)


def gradients(mesh: Mesh, leaves: int) -> Any:
    """Stacked leaves of 134 MB a device, split along one axis or the other, and a small one."""
    specs = [P(None, "x"), P(None, None, "x")]
    tree = {
        f"layers {n}": jax.ShapeDtypeStruct(
            (8, 4096, 4096), "float32", sharding=NamedSharding(mesh, specs[n % 2])
        )
        for n in range(leaves - 1)
    }
    small = jax.ShapeDtypeStruct((4096,), "bfloat16", sharding=NamedSharding(mesh, P("x")))
    return {"norm": small, **tree}


@cache
def compiled_update(mesh: Mesh, leaves: int, masked: bool) -> Any:
    """An AdamW update as in training: parameters and moments are donated."""
    mask = (
        [gmt_mask(0.2, stacked_axes=lambda path: None if path[-1].key == "norm" else 0)]
        if masked
        else []
    )
    optimizer = optax.chain(*mask, optax.adamw(1e-3))
    tree = gradients(mesh, leaves)

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        state = jax.eval_shape(optimizer.init, tree)
        return jax.jit(update, donate_argnums=(0, 1)).lower(tree, state, tree).compile()


def computations(text: str) -> dict[str, str]:
    """A compiled program's computations, by name."""
    pattern = r"^(?:ENTRY )?(%[\w.-]+) \(.*?\{$(.*?)^\}"
    return dict(re.findall(pattern, text, re.MULTILINE | re.DOTALL))


def operations(text: str, *kinds: str) -> list[tuple[str, int]]:
    """The operations of these kinds, with the bytes of their results."""
    found = re.findall(rf" = (.*?) ({'|'.join(kinds)})(?:-start)?\(", text)
    return [
        (
            kind,
            sum(
                BYTES[dtype] * math.prod(map(int, filter(None, shape.split(","))))
                for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
            ),
        )
        for result, kind in found
    ]


def part_of_a_device(mesh: Mesh) -> float:
    tree = gradients(mesh, 6).values()
    return sum(leaf.size * leaf.dtype.itemsize for leaf in tree) / mesh.size


def test_only_a_small_sample_is_exchanged_and_nothing_is_sorted(mesh: Mesh) -> None:
    text = compiled_update(mesh, 6, True).as_text()
    exchanged = operations(text, *COLLECTIVES)
    assert exchanged, "counts must be exchanged"
    assert max(size for _, size in exchanged) <= 0.005 * part_of_a_device(mesh)
    assert not operations(text, "sort")


@pytest.mark.parametrize("leaves", [2, 6])
def test_a_pass_exchanges_as_often_for_a_large_tree_as_for_a_small_one(
    mesh: Mesh, leaves: int
) -> None:
    """The counts and sums, and minima of 16 and of 32 bits: one exchange each."""
    parts = computations(compiled_update(mesh, leaves, True).as_text())
    loops = [text for name, text in parts.items() if "main" not in name]
    (exchanged,) = filter(None, (operations(text, *COLLECTIVES) for text in loops))
    assert [kind for kind, _ in exchanged] == ["all-reduce"] * 3
    assert sum(size for _, size in exchanged) <= FEW_BYTES


def test_the_mask_adds_no_copy_of_the_gradients(mesh: Mesh) -> None:
    plain, masked = (
        compiled_update(mesh, 6, masked).memory_analysis().peak_memory_in_bytes
        for masked in (False, True)
    )
    assert masked - plain <= 0.01 * part_of_a_device(mesh)


def test_the_reader_of_programs_sees_a_sort_and_a_gather(mesh: Mesh) -> None:
    shape = jax.ShapeDtypeStruct((8192,), "float32", sharding=NamedSharding(mesh, P("x")))
    text = jax.jit(jnp.sort).lower(shape).compile().as_text()
    assert max(size for _, size in operations(text, *COLLECTIVES)) > FEW_BYTES
    assert max(size for _, size in operations(text, "sort")) > FEW_BYTES
