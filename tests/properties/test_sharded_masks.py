"""The mask on eight devices: the same bits as on one, and only small arrays are exchanged."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax import gmt_mask

# Each with the stacked axis: a whole leaf, split tensors, split stacks.
QUICK = [
    (P(), None),
    (P("y", None, "x"), None),
    (P(None, ("x", "y")), None),
    (P("x", "y"), 0),
]
OTHERS = [
    (P("x"), None),
    (P(None, "x"), None),
    (P("x", "y"), None),
    (P(("x", "y")), None),
    (P(None, "x", "y"), 0),
    (P(None, "x", "y"), 1),
]
AXIS_TYPES = [(AxisType.Auto,) * 2, (AxisType.Explicit,) * 2]
COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce", "reduce-scatter")


def operations(text: str, kinds: tuple[str, ...]) -> list[tuple[str, int]]:
    """The operations of these kinds in a compiled program, with the size of their results."""
    found = []
    for line in text.splitlines():
        match = re.search(rf" = (.*?) ({'|'.join(kinds)})(-start)?\(", line)
        if match:
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            sizes = [math.prod(int(d) for d in shape.split(",") if d) for shape in shapes]
            found.append((match[2], max(sizes)))
    return found


@pytest.fixture(scope="module")
def gradient() -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((8, 48, 64)).astype(np.float32)
    return np.where(rng.random(values.shape) < 0.3, np.round(values, 1), values)


@pytest.mark.parametrize("axis_types", AXIS_TYPES, ids=str)
@pytest.mark.parametrize("cases", [QUICK, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_every_sharding_gives_the_bits_of_one_device(
    gradient: np.ndarray, axis_types: tuple[AxisType, ...], cases: list[tuple[P, int | None]]
) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=axis_types)
    spread = [jax.device_put(gradient, NamedSharding(mesh, spec)) for spec, _ in cases]
    transformation = gmt_mask(0.29, stacked_axes=[stacked_axes for _, stacked_axes in cases])
    with jax.set_mesh(mesh):
        state = jax.jit(transformation.init)(spread)
        compiled, new = jax.jit(transformation.update)(spread, state)
        assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
    eager, _ = transformation.update(spread, transformation.init(spread))
    alone = {stacked_axes: on_one_device(gradient, stacked_axes) for stacked_axes in (None, 0, 1)}
    for index, (_, stacked_axes) in enumerate(cases):
        for out in (compiled[index], eager[index]):
            assert out.sharding.is_equivalent_to(spread[index].sharding, 3)
            np.testing.assert_array_equal(
                np.asarray(out).view("u4"), alone[stacked_axes].view("u4")
            )


def on_one_device(gradient: np.ndarray, stacked_axes: int | None) -> np.ndarray:
    transformation = gmt_mask(0.29, stacked_axes=stacked_axes)
    return np.asarray(transformation.update(gradient, transformation.init(gradient))[0])


def test_one_threshold_for_a_spread_tree_is_that_of_one_device(gradient: np.ndarray) -> None:
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
        tree = [
            jax.device_put(gradient * n, NamedSharding(mesh, spec))
            for n, (spec, _) in enumerate(OTHERS[:3], 1)
        ]
        transformation = gmt_mask(0.29, scope="global")
        with jax.set_mesh(mesh):
            out, state = jax.jit(transformation.update)(tree, transformation.init(tree))
        alone = [jnp.asarray(np.asarray(leaf)) for leaf in tree]
        expected, _ = transformation.update(alone, transformation.init(alone))
        assert float(state.masked_fraction) > 0.2
        for a, b in zip(out, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_an_uneven_sharding_gives_the_bits_of_one_device(gradient: np.ndarray) -> None:
    """Thirteen rows over eight devices: the compiler pads."""
    rows = jnp.asarray(gradient.reshape(-1, 64)[:13])
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    transformation = gmt_mask(0.29)
    state = transformation.init(rows)

    @jax.jit
    def update(g: jax.Array) -> jax.Array:
        g = jax.lax.with_sharding_constraint(g, NamedSharding(mesh, P("x")))
        return transformation.update(g, state)[0]

    alone, _ = transformation.update(rows, state)
    np.testing.assert_array_equal(np.asarray(update(rows)), np.asarray(alone))


@pytest.mark.parametrize("axis_types", AXIS_TYPES, ids=str)
def test_the_compiled_update_sorts_and_gathers_no_gradient(
    axis_types: tuple[AxisType, ...],
) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=axis_types)
    tree: Any = {
        "layers": jax.ShapeDtypeStruct(
            (4, 512, 256), "float32", sharding=NamedSharding(mesh, P(None, "x", "y"))
        ),
        "embed": jax.ShapeDtypeStruct(
            (1024, 256), "bfloat16", sharding=NamedSharding(mesh, P("y", "x"))
        ),
    }
    optimizer = optax.chain(
        gmt_mask(0.2, stacked_axes={"layers": 0, "embed": None}), optax.adamw(1e-3)
    )
    with jax.set_mesh(mesh):
        state = jax.eval_shape(optimizer.init, tree)
        text = jax.jit(optimizer.update).lower(tree, state, tree).compile().as_text()
    exchanged = operations(text, COLLECTIVES)
    assert exchanged, "counts must be exchanged"
    assert max(size for _, size in exchanged) <= 4 * 256, "no more than a sample of 256 a tensor"
    assert not operations(text, ("sort", "custom-call"))


def test_the_devices_exchange_as_often_for_many_leaves_as_for_few() -> None:
    """Also where arrays of one shape are sharded differently."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)

    def compiled(layers: int) -> str:
        sharded = {"q": P("y", "x"), "o": P("x", "y"), "up": P(None, "y")}
        tree = {
            f"layer{i}": {
                name: jax.ShapeDtypeStruct((64, 64), "float32", sharding=NamedSharding(mesh, spec))
                for name, spec in sharded.items()
            }
            for i in range(layers)
        }
        mask = gmt_mask(0.2)
        return jax.jit(mask.update).lower(tree, mask.init(tree)).compile().as_text()

    few, many = compiled(2), compiled(9)
    assert 0 < len(operations(few, COLLECTIVES)) == len(operations(many, COLLECTIVES))
    # A leaf is read by one, and gets its bounds and its threshold by two and a part of others.
    reductions = [len(operations(text, ("reduce",))) for text in (few, many)]
    assert reductions[1] - reductions[0] < 4 * 3 * (9 - 2)


def test_the_reader_of_programs_sees_a_sort_and_a_gather() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    shape = jax.ShapeDtypeStruct((4096,), "float32", sharding=NamedSharding(mesh, P("x")))
    text = jax.jit(jnp.sort).lower(shape).compile().as_text()
    assert operations(text, ("sort",))
    assert max(size for _, size in operations(text, COLLECTIVES)) >= 4096


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_the_mask_adds_a_hundredth_of_the_gradient_at_most(devices: int) -> None:
    """Of a device's memory, in an AdamW step with donated parameters and state."""
    mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P(None, "x"))
    tree = {n: jax.ShapeDtypeStruct((4, 1024, 2048), "float32", sharding=split) for n in "ab"}

    def temporary(*first: optax.GradientTransformation) -> int:
        optimizer = optax.chain(*first, optax.adamw(1e-3))

        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = jax.eval_shape(optimizer.init, tree)
        compiled = jax.jit(update, donate_argnums=(0, 1)).lower(tree, state, tree).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    gradients = 2 * 4 * 1024 * 2048 * 4 / devices
    plain = temporary()
    assert temporary(gmt_mask(0.2, stacked_axes=0)) - plain <= 0.01 * gradients
    tolerant = gmt_mask(0.2, stacked_axes=0, tolerance=0.001)
    assert temporary(tolerant) - plain <= 0.01 * gradients
