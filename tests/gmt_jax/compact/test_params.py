"""Trees of compact parameters: forms by path, choices, and the optimizer over values."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax import compact
from gmt_jax.compact import Form, Frozen, Rows, Slots, Whole, choices

SHAPES = {"embed": (9, 130), "norm": (130,), "layers": {"w": (2, 3, 130)}, "scale": ()}


def _tree(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def test_forms_follow_from_paths_and_ratios() -> None:
    ratios = {"norm": 0.0, "layers": 0.9, "embed": 1.0, ".*": 0.5}
    assert compact.plan_forms(_tree(), ratios, rows="embed") == {
        "embed": Form(Frozen, 1.0),
        "norm": Form(Whole, 0.0),
        "layers": {"w": Form(Slots, 0.9)},
        "scale": Form(Frozen, 0.5),
    }
    assert compact.plan_forms(_tree(), 0.9, rows="embed")["embed"] == Form(Rows, 0.9)
    assert compact.plan_forms(_tree(), 0.9)["embed"] == Form(Slots, 0.9)
    with pytest.raises(ValueError, match="no pattern of mask_ratio is found in embed"):
        compact.plan_forms(_tree(), {"norm": 0.5})


def test_a_ratio_that_leaves_no_slot_is_refused_by_name() -> None:
    weights = _tree()
    with pytest.raises(ValueError, match=r"mask_ratio 0.997 .* nothing of layers/w would be"):
        compact.plan_forms(weights, {"layers": 0.997, ".*": 1.0})
    assert compact.plan_forms(weights, 0.996)["layers"]["w"] == Form(Slots, 0.996)
    assert compact.plan_forms(weights, {"layers": 1.0, ".*": 0.5})["layers"]["w"].kind is Frozen
    for rows in ("embed", "embed|w"):  # Of few rows, one is left.
        ratios = {"embed": 0.997, ".*": 1.0}
        assert compact.plan_forms(weights, ratios, rows=rows)["embed"].kind is Rows


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan"), jnp.float32(0.5)])
def test_a_ratio_that_is_no_fraction_is_refused(ratio: Any) -> None:
    with pytest.raises(ValueError, match="mask_ratio is the fraction that is not trained, one"):
        compact.plan_forms(_tree(), {"layers": ratio, ".*": 0.5})


def test_integers_and_complex_numbers_are_refused() -> None:
    weights = {"step": jnp.arange(3), "w": jnp.ones(256, jnp.complex64)}
    for ratio in (0.0, 0.5):
        with pytest.raises(TypeError, match="step is int32, and only floats are trained"):
            compact.plan_forms(weights, ratio)
    forms = compact.plan_forms(weights, {"step": 1.0, ".*": 0.5})
    chosen = compact.choose(forms, weights)
    with pytest.raises(TypeError, match="values are float32, which has no room for complex64"):
        compact.read(chosen, weights)


@pytest.fixture(name="params")
def _params() -> compact.CompactParams:
    weights = _tree()
    forms = compact.plan_forms(weights, {"norm": 0.0, ".*": 0.9}, rows="embed")
    chosen = compact.choose(forms, _tree(1))
    return compact.CompactParams(weights, chosen, compact.read(chosen, weights))


def test_values_are_written_where_the_mask_is_true(params: compact.CompactParams) -> None:
    mask = compact.mask(params.chosen, params.weights)
    moved = compact.write(
        params._replace(values=jax.tree.map(lambda x: x + 1, params.values))
    ).weights
    for old, new, part in zip(*map(jax.tree.leaves, (params.weights, moved, mask)), strict=True):
        np.testing.assert_array_equal(np.asarray(old) != np.asarray(new), part)
    trained = sum(int(part.sum()) for part in jax.tree.leaves(mask))
    assert compact.num_chosen(params.chosen, params.weights) == trained


def test_devices_write_their_own_parts_where_slots_are_split_as_their_weight() -> None:
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)
    # Of the last one the parts are half a group, so that its slots are whole on every device.
    specs = {"stack": P(None, "x", "y"), "matrix": P("y", None), "halves": P("x", "y")}
    shapes = {"stack": (2, 16, 512), "matrix": (16, 300), "halves": (16, 256)}
    of_slots = specs | {"halves": P("x", None)}
    weights = {
        name: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
        for name, shape in shapes.items()
    }
    chosen = compact.choose(compact.plan_forms(weights, 0.9), weights)
    values = jax.tree.map(lambda x: x + 1, compact.read(chosen, weights))
    params = compact.CompactParams(weights, chosen, values)
    placed = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    slots = {name: NamedSharding(mesh, spec) for name, spec in of_slots.items()}
    shardings = compact.CompactParams(
        placed, {name: Slots(of) for name, of in slots.items()}, slots
    )
    write = jax.jit(partial(compact.write, shardings=shardings), out_shardings=shardings)
    moved = write(jax.device_put(params, shardings))
    for ours, expected in zip(*map(jax.tree.leaves, (moved, compact.write(params))), strict=True):
        np.testing.assert_array_equal(ours, expected)
    part = params.chosen["stack"], params.weights["stack"], params.values["stack"]
    parts = jax.device_put(part, (Slots(placed["stack"]), placed["stack"], placed["stack"]))
    own = jax.jit(lambda *x: choices.write(*x, placed["stack"])).lower(*parts).compile()
    words = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not [word for word in words if f" {word}(" in own.as_text()]


def test_an_empty_slot_is_never_moved(params: compact.CompactParams) -> None:
    ones = optax.stateless(lambda updates, _: jax.tree.map(jnp.ones_like, updates))
    optimizer = compact.on_values(ones)
    state = optimizer.init(params)
    updates, _ = optimizer.update(params.values, state, params)
    slots = params.chosen["layers"]["w"].positions
    np.testing.assert_array_equal(updates["layers"]["w"] == 0, slots == 255)
    assert (slots == 255).any()
    with pytest.raises(ValueError, match="needs them"):
        optimizer.update(params.values, state)


def test_rules_by_rank_see_the_ranks_of_the_weights(params: compact.CompactParams) -> None:
    ranks = jax.tree.map(jnp.ndim, params.weights)
    ranks["scale"] = None  # Not trained.
    assert jax.tree.map(jnp.ndim, params.values) == ranks


@pytest.mark.parametrize("kind", [Slots, Rows, Whole, Frozen])
def test_the_form_of_a_mask_is_the_smallest_that_holds_it(kind: type[Any]) -> None:
    mask = np.zeros((7, 130), bool)
    if kind is Slots:
        mask[:, [0, 5, 129]] = True
    elif kind is not Frozen:
        mask[:: 2 if kind is Rows else 1] = True
    form = compact.form_of_mask([mask], rows=True)
    assert form.kind is kind
    assert compact.num_slots(form) == (2 if kind is Slots else 0)
    chosen = compact.choose_mask({"w": form}, {"w": jnp.asarray(mask)})
    np.testing.assert_array_equal(compact.mask(chosen, {"w": jnp.zeros(mask.shape)})["w"], mask)


def test_the_form_of_a_stack_holds_all_of_its_layers() -> None:
    layers = np.zeros((2, 3, 128), bool)
    layers[1] = True
    assert compact.num_slots(compact.form_of_mask(layers)) == 128
    assert compact.form_of_mask(layers[1:]) == Form(Whole, 0.0)
    assert compact.form_of_mask([layers[1], layers[0]], rows=False).kind is Slots
