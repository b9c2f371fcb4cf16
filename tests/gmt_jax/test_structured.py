"""The masks of HFT and LISA, against their rules counted in NumPy."""

import itertools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax import SelectiveState, hft, lisa
from gmt_jax.selective import ScheduledState
from gmt_jax.structured import hft_schedule, lisa_schedule

ATTENTION = [f"layers/attention/{part}/weight" for part in ("q", "k", "v", "out")]
MLP = [f"layers/mlp/{part}/weight" for part in ("gate", "up", "down")]
NORMS = ["layers/attention_norm/weight", "layers/mlp_norm/weight"]
QK_NORMS = ["layers/attention/q_norm/weight", "layers/attention/k_norm/weight"]
BIASES = [name.replace("weight", "bias") for name in ATTENTION]
OUTSIDE = ["embed", "head", "norm/weight"]
LAYERS = ATTENTION + MLP + NORMS


def shapes(num_layers: int, in_layers: list[str] = LAYERS) -> dict[str, Any]:
    """A small model with stacked layers."""
    stacked = {
        name: (num_layers, 16, 16) if name in ATTENTION + MLP else (num_layers, 16)
        for name in in_layers
    }
    outside = {"embed": (40, 16), "head": (16, 40), "norm/weight": (16,)}
    return {name: jax.ShapeDtypeStruct(shape, "f4") for name, shape in (stacked | outside).items()}


def flat(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def rows(masks: dict[str, Any], names: list[str]) -> np.ndarray:
    """Which of these parameters are trained, [layers, names]."""
    return np.stack([masks[name].reshape(-1) for name in names], 1)


@pytest.mark.parametrize("layers", [1, 2, 5, 6, 30])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_hft_trains_the_halves_that_the_rule_says(layers: int, kind: str) -> None:
    norms = NORMS + (QK_NORMS if kind == "qwen3" else [])
    tree = shapes(layers, ATTENTION + MLP + norms)
    schedule = hft_schedule(tree, key=1, every=10)
    for count in range(0, 100, 10):
        masks = flat(schedule(count))
        assert (rows(masks, ATTENTION).sum(1) == 2).all()
        in_mlp = rows(masks, MLP).sum(1)
        assert (in_mlp == 2).sum() == -(-layers // 2)
        assert (in_mlp == 1).sum() == layers // 2
        assert (rows(masks, norms).sum(1) == len(norms) // 2).all()
        assert all(masks[name].all() for name in OUTSIDE)


def test_the_draws_of_hft_are_these() -> None:
    """The same draws on every version, so that a run that is continued trains the same halves."""
    masks = flat(hft_schedule(shapes(30), key=0, every=100)(0))
    assert {name: int(m.sum()) for name, m in masks.items() if m.size == 30} == {
        "layers/attention/k/weight": 12,
        "layers/attention/out/weight": 17,
        "layers/attention/q/weight": 16,
        "layers/attention/v/weight": 15,
        "layers/attention_norm/weight": 10,
        "layers/mlp/down/weight": 13,
        "layers/mlp/gate/weight": 18,
        "layers/mlp/up/weight": 14,
        "layers/mlp_norm/weight": 20,
    }


def test_every_pair_is_drawn_as_often_as_another() -> None:
    """600 draws of 6 pairs of attention matrices: 100 each, give or take 5 deviations of 9."""
    schedule = jax.jit(hft_schedule(shapes(6), key=3, every=1))
    pairs = Counter[tuple[int, ...]]()
    for count in range(100):
        for row in rows(flat(schedule(count)), ATTENTION):
            pairs[tuple(np.flatnonzero(row).tolist())] += 1
    assert set(pairs) == set(itertools.combinations(range(4), 2))
    assert max(abs(n - 100) for n in pairs.values()) < 45


def test_layers_and_groups_are_drawn_apart() -> None:
    masks = flat(hft_schedule(shapes(30), key=0, every=1)(0))
    assert len({tuple(row) for row in rows(masks, ATTENTION)}) > 1
    assert (masks[ATTENTION[0]].ravel() != masks[NORMS[0]].ravel()).any()
    assert (rows(masks, MLP)[:-1] != rows(masks, MLP)[1:]).any()


@pytest.mark.parametrize("layers", [1, 2, 6])
def test_lisa_trains_so_many_layers_and_all_of_each(layers: int) -> None:
    schedule = lisa_schedule(shapes(6), layers, key=1, every=5)
    drawn = Counter[int]()
    for count in range(0, 300, 5):
        masks = flat(schedule(count))
        trained = rows(masks, LAYERS)
        assert (trained.all(1) == trained.any(1)).all()
        assert trained.all(1).sum() == layers
        assert all(masks[name].all() for name in OUTSIDE)
        drawn.update(np.flatnonzero(trained.all(1)).tolist())
    assert set(drawn) == set(range(6))
    assert max(abs(n - 10 * layers) for n in drawn.values()) <= 5 * np.sqrt(10 * layers)


SCHEDULES = {
    "hft": lambda tree, key=0, every=7: hft_schedule(tree, key, every),
    "lisa": lambda tree, key=0, every=7: lisa_schedule(tree, 3, key, every),
}
BOTH = pytest.mark.parametrize("kind", SCHEDULES)


@BOTH
def test_a_round_lasts_as_many_updates_as_it_should(kind: str) -> None:
    schedule = jax.jit(SCHEDULES[kind](shapes(8)))
    drawn = [b"".join(m.tobytes() for m in flat(schedule(count)).values()) for count in range(28)]
    rounds = [set(drawn[at : at + 7]) for at in range(0, 28, 7)]
    assert [len(r) for r in rounds] == [1, 1, 1, 1]
    assert len(set.union(*rounds)) == 4


@BOTH
def test_another_key_draws_something_else(kind: str) -> None:
    one, two = (flat(SCHEDULES[kind](shapes(8), key)(0)) for key in (0, 1))
    assert any((one[name] != two[name]).any() for name in one)


@BOTH
def test_stacked_layers_and_a_path_for_each_layer_draw_the_same(kind: str) -> None:
    stacked = shapes(5, LAYERS + BIASES)

    def path(name: str, layer: int) -> str:
        return name.replace("layers/", f"layers/{layer}/")

    by_layer = {
        path(name, layer): jax.ShapeDtypeStruct(leaf.shape[name.startswith("layers") :], "f4")
        for name, leaf in stacked.items()
        for layer in range(5)
    }
    ours, theirs = (flat(SCHEDULES[kind](tree)(9)) for tree in (stacked, by_layer))
    for name, mask in ours.items():
        for layer in range(5):
            value = theirs[path(name, layer)]
            assert value.shape == ()
            assert value == (mask.ravel()[layer] if name.startswith("layers") else mask)


@BOTH
def test_a_bias_goes_with_its_matrix(kind: str) -> None:
    masks = flat(SCHEDULES[kind](shapes(5, LAYERS + BIASES))(0))
    for name in ATTENTION:
        bias = masks[name.replace("weight", "bias")]
        np.testing.assert_array_equal(bias.ravel(), masks[name].ravel())


def gradient(layers: int = 8) -> Any:
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape), leaf.dtype), shapes(layers))


def make(kind: str, **keys: Any) -> optax.GradientTransformationExtraArgs:
    """The mask alone: untrained parts of a gradient become zero, the rest passes."""
    keys = {"key": 0, "every": 7, "apply_to": "gradient"} | keys
    return hft(optax.identity(), **keys) if kind == "hft" else lisa(optax.identity(), 3, **keys)


def after(count: Any) -> SelectiveState:
    """The state when `count` updates are done."""
    return SelectiveState(
        optax.identity().init({}), ScheduledState(jnp.asarray(count, jnp.int32), jnp.float32(0))
    )


@BOTH
def test_the_gradient_is_kept_where_trained_and_zero_elsewhere(kind: str) -> None:
    g, transformation = gradient(), make(kind)
    kept, state = transformation.update(g, after(15))
    assert state.selector_state.count == 16
    masks = flat(SCHEDULES[kind](g)(15))
    for name, value in flat(kept).items():
        np.testing.assert_array_equal(value, np.where(masks[name], flat(g)[name], 0))


@pytest.mark.slow
@BOTH
def test_a_resumed_run_draws_what_it_would_have_drawn(kind: str) -> None:
    g, transformation = gradient(), make(kind, every=3)
    update = jax.jit(transformation.update)
    state, kept = transformation.init(g), []
    for _ in range(8):
        out, state = update(g, state)
        kept.append(flat(out))
    resumed, _ = make(kind, every=3).update(g, after(7))
    for name, value in flat(resumed).items():
        np.testing.assert_array_equal(value, kept[7][name])


@BOTH
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_eight_devices_draw_and_keep_what_one_does(kind: str, axis_type: AxisType) -> None:
    g, transformation = gradient(), make(kind)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    alone, _ = transformation.update(g, after(20))
    masks = flat(SCHEDULES[kind](g)(20))

    def spread(leaf: jax.Array) -> jax.Array:
        spec = P("x", "y") if leaf.ndim > 1 else P("x")
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    g = jax.tree.map(spread, g)
    with jax.set_mesh(mesh):
        state = jax.device_put(after(20), NamedSharding(mesh, P()))
        for update in (jax.jit(transformation.update), transformation.update):
            kept, _ = update(g, state)
            for name, value in flat(kept).items():
                np.testing.assert_array_equal(value, flat(alone)[name])
            same = jax.tree.map(
                lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), kept, g
            )
            assert all(jax.tree.leaves(same))
        drawn = flat(jax.jit(SCHEDULES[kind](g))(state.selector_state.count))
    for name, mask in drawn.items():
        np.testing.assert_array_equal(mask, masks[name])


@BOTH
def test_a_scan_draws_what_runs_resumed_at_each_update_draw(kind: str) -> None:
    g, transformation = gradient(), make(kind, every=2)

    @jax.jit
    def run(state: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            kept, state = transformation.update(g, state)
            return state, kept

        return jax.lax.scan(step, state, None, 6)

    state, kept = run(transformation.init(g))
    assert state.selector_state.count == 6
    for count in range(6):
        alone, _ = transformation.update(g, after(count))
        for name, value in flat(alone).items():
            np.testing.assert_array_equal(flat(kept)[name][count], value)


@BOTH
def test_nan_where_nothing_is_trained_becomes_zero_of_the_same_dtype(kind: str) -> None:
    g = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, jnp.bfloat16), shapes(8))
    kept = flat(make(kind).update(g, after(0))[0])
    assert {value.dtype for value in kept.values()} == {jnp.dtype(jnp.bfloat16)}
    for name, mask in flat(SCHEDULES[kind](g)(0)).items():
        trained = np.broadcast_to(mask, kept[name].shape)
        assert np.isnan(kept[name][trained]).all()
        assert (kept[name][~trained] == 0).all()


@pytest.mark.slow
@BOTH
def test_it_chains_with_optax(kind: str) -> None:
    g = gradient()
    optimizer = optax.MultiSteps(optax.chain(make(kind), optax.sgd(1.0)), 2)
    state = optimizer.init(g)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax's code
        for _ in range(2):
            updates, state = optimizer.update(g, state, g)
    masks = flat(SCHEDULES[kind](g)(0))
    for name, value in flat(updates).items():
        np.testing.assert_array_equal(value, np.where(masks[name], -flat(g)[name], 0))


@BOTH
def test_parts_that_optax_leaves_out_are_left_alone(kind: str) -> None:
    g = gradient()
    optimizer = optax.masked(make(kind), {name: name.startswith("layers") for name in g})
    kept, _ = optimizer.update(g, optimizer.init(g))
    alone, _ = make(kind).update(g, after(0))
    jax.tree.map(np.testing.assert_array_equal, kept, alone)


@BOTH
def test_key_and_round_may_be_injected(kind: str) -> None:
    g = gradient()
    optimizer = optax.inject_hyperparams(lambda key, every: make(kind, key=key, every=every))(
        key=0, every=7
    )
    kept, _ = jax.jit(optimizer.update)(g, optimizer.init(g))
    alone, _ = make(kind).update(g, after(0))
    jax.tree.map(np.testing.assert_array_equal, kept, alone)
