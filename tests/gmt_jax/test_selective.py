"""What is not chosen stays to the bit; and each relative against its rule in NumPy."""

import doctest
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gmt_jax.methods
import gmt_jax.selective
from gmt_jax import (
    by_score,
    every_few,
    fisher,
    gmt,
    gmt_mask,
    gradient_to_weight,
    magnitude,
    one_off,
    random_mask,
    train_only,
)
from gmt_jax.structured import hft_schedule, lisa_schedule

SHAPES = {"w": (24, 16), "b": (16,), "layers": (3, 8, 8)}
SPECS = {"w": P("x", "y"), "b": P("y"), "layers": P(None, "x")}
RATIO = 0.5


def num_stacked_axes(path: Any) -> int:
    return int(path[0].key == "layers")


def weights(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype("f4") for name, shape in SHAPES.items()}


def gradient(step: int) -> dict[str, Any]:
    return weights(1000 + step)


def word(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.view(f"u{array.dtype.itemsize}")


def moved(old: Any, new: Any) -> Any:
    return jax.tree.map(lambda a, b: word(a) != word(b), old, new)


def largest(scores: Any) -> Any:
    """Where a score is at least the m-th smallest of its tensor, counting from 0."""

    def one(name: str, score: Any) -> np.ndarray:
        rows = score.reshape(len(score) if name == "layers" else 1, -1)
        m = int(RATIO * rows.shape[1])
        return (rows >= np.sort(rows, axis=1)[:, m : m + 1]).reshape(score.shape)

    return {name: one(name, np.asarray(score)) for name, score in scores.items()}


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def placed(tree: Any, mesh: Any) -> Any:
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    return {name: jax.device_put(x, NamedSharding(mesh, SPECS[name])) for name, x in tree.items()}


MESHES = {"one device": None, "auto": AxisType.Auto, "explicit": AxisType.Explicit}


@pytest.fixture(params=MESHES, name="mesh")
def _mesh(request: pytest.FixtureRequest) -> Any:
    kind = MESHES[request.param]
    if kind is None:
        yield None
    else:
        with jax.set_mesh(jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)) as mesh:
            yield mesh


def train(optimizer: Any, steps: int, mesh: Any = None, start: Any = None) -> Any:
    """After each update: the weights before it, and where they moved."""
    params = placed(start or weights(), mesh)
    state = jax.jit(optimizer.init)(params)

    @jax.jit
    def update(grads: Any, params: Any, state: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        before = params
        params, state = update(placed(gradient(step), mesh), params, state)
        yield before, moved(before, params), state


def adamw() -> Any:
    return optax.adamw(1e-2, weight_decay=0.1)


@pytest.mark.parametrize("how", ["gmt", "chain"])
def test_under_gmt_the_chosen_weights_move_and_no_others(how: str, mesh: Any) -> None:
    """With momentum warmed up and weight decay on. A plain chain moves them all."""
    if how == "gmt":
        optimizer = gmt(adamw(), RATIO, num_stacked_axes=num_stacked_axes)
    else:
        optimizer = optax.chain(gmt_mask(RATIO, num_stacked_axes=num_stacked_axes), adamw())
    for step, (_, where, _) in enumerate(train(optimizer, 20, mesh)):
        chosen = largest(jax.tree.map(np.abs, gradient(step)))
        expected = chosen if how == "gmt" else jax.tree.map(np.ones_like, chosen)
        assert_same(where, expected)


INNER: dict[str, Any] = {
    "lion": lambda: optax.lion(1e-2, weight_decay=0.1),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=8, weight_decay_rate=0.1),
    "muon": lambda: optax.contrib.muon(1e-2, weight_decay=0.1),
    "sgd with momentum": lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "schedule-free": lambda: optax.contrib.schedule_free_adamw(1e-2, weight_decay=0.1),
    "injected": lambda: optax.inject_hyperparams(optax.adamw)(1e-2, weight_decay=0.1),
    "partitioned": lambda: optax.partition(
        {"a": adamw(), "b": optax.lion(1e-2)}, {"w": "a", "b": "b", "layers": "a"}
    ),
}


@pytest.mark.parametrize("name", INNER)
def test_every_optimizer_leaves_the_others_where_they_are(name: str) -> None:
    optimizer = gmt(INNER[name](), RATIO, num_stacked_axes=num_stacked_axes)
    for step, (_, where, _) in enumerate(train(optimizer, 4)):
        chosen = largest(jax.tree.map(np.abs, gradient(step)))
        assert not any(np.any(where[key] & ~chosen[key]) for key in chosen)
        assert all(np.mean(where[key][chosen[key]]) > 0.9 for key in chosen)


def test_zeros_infinities_and_nans_keep_their_bits() -> None:
    special = jnp.array([-0.0, 0.0, jnp.inf, -jnp.inf, jnp.nan, -jnp.nan])
    params = jnp.tile(special, 2)
    grads = jnp.array([0.0] * 6 + [1.0] * 6)
    for dtype in ("float32", "bfloat16"):
        weight = params.astype(dtype)
        optimizer = gmt(optax.sgd(1.0), 0.5)
        for update in (optimizer.update, jax.jit(optimizer.update)):
            updates, _ = update(grads.astype(dtype), optimizer.init(weight), weight)
            new = optax.apply_updates(weight, updates)
            np.testing.assert_array_equal(word(new)[:6], word(weight)[:6])
            assert np.all(word(updates)[:6] == word(-jnp.zeros((), dtype)))


@pytest.mark.parametrize(
    ("apply_to", "moves", "seen"),
    [("both", False, 0.0), ("update", False, 0.1), ("gradient", True, 0.0)],
)
def test_apply_to_says_what_is_masked(apply_to: str, moves: bool, seen: float) -> None:
    params = jnp.ones(4)
    optimizer = gmt(adamw(), 0.25, apply_to=apply_to)
    updates, state = optimizer.update(jnp.arange(1.0, 5.0), optimizer.init(params), params)
    assert bool(updates[0] != 0) is moves
    np.testing.assert_allclose(optax.tree.get(state, "mu")[0], seen, rtol=1e-6)


def test_extra_arguments_reach_the_inner_optimizer() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, factor: Any) -> Any:
        return jax.tree.map(lambda u: factor * u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    optimizer = gmt(inner, 0.5)
    out, _ = optimizer.update(jnp.array([1.0, 2.0]), optimizer.init(jnp.ones(2)), factor=3.0)
    np.testing.assert_array_equal(out, [0.0, 6.0])


def test_ratios_differ_by_path() -> None:
    ratios = {"^b$": 0.0, "layers": optax.constant_schedule(0.75), ".*": 0.5}
    (_, where, state), *_ = train(gmt(adamw(), ratios, num_stacked_axes=num_stacked_axes), 1)
    masked = {name: 1 - np.mean(part) for name, part in where.items()}
    assert masked == {"b": 0.0, "layers": 0.75, "w": 0.5}
    share = (192 * 0.75 + 384 * 0.5) / 592
    np.testing.assert_allclose(optax.tree.get(state, "masked_fraction"), share, rtol=1e-6)


def test_a_path_without_a_ratio_is_told() -> None:
    optimizer = gmt(adamw(), {"w": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match="no pattern of mask_ratio is found in layers; end with"):
        optimizer.update(gradient(0), optimizer.init(weights()), weights())


# The relatives. Each rule, in NumPy, from the gradients so far and the weights before an update.


def size(tree: Any) -> Any:
    return jax.tree.map(np.abs, tree)


def squares(steps: range) -> Any:
    return jax.tree.map(lambda *g: sum(x * x for x in g), *map(gradient, steps))


def none(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(np.shape(x), bool), tree)


def over_all(scores: Any) -> Any:
    """One threshold for the whole tree."""
    flat = np.concatenate([np.ravel(x) for x in scores.values()])
    low = np.sort(flat)[int(RATIO * flat.size)]
    return {name: x >= low for name, x in scores.items()}


def over(w: Any, g: Any) -> Any:
    return jax.tree.map(lambda w, g: np.abs(g) / np.abs(np.asarray(w)), w, g)


RELATIVES: dict[str, tuple[Any, Any]] = {
    "one-off": (
        lambda: one_off(adamw(), RATIO, num_stacked_axes=num_stacked_axes),
        lambda step, w: largest(size(gradient(0))),
    ),
    "every three": (
        lambda: every_few(adamw(), RATIO, 3, num_stacked_axes=num_stacked_axes),
        lambda step, w: largest(size(gradient(step // 3 * 3))),
    ),
    "after a warm-up": (
        lambda: one_off(adamw(), RATIO, warmup=2, num_stacked_axes=num_stacked_axes),
        lambda step, w: largest(size(gradient(2))) if step >= 2 else none(w),
    ),
    "gradient to weight": (
        lambda: gradient_to_weight(adamw(), RATIO, num_stacked_axes=num_stacked_axes),
        lambda step, w: largest(over(weights(), gradient(0))),
    ),
    "gradient to weight, anew": (
        lambda: gradient_to_weight(adamw(), RATIO, every=1, num_stacked_axes=num_stacked_axes),
        lambda step, w: largest(over(w, gradient(step))),
    ),
    "magnitude": (
        lambda: magnitude(adamw(), RATIO, num_stacked_axes=num_stacked_axes),
        lambda step, w: largest(size(weights())),
    ),
    "magnitude, anew": (
        lambda: magnitude(adamw(), RATIO, every=1, num_stacked_axes=num_stacked_axes),
        lambda step, w: largest(size(w)),
    ),
    "fisher": (
        lambda: fisher(adamw(), RATIO, warmup=2),
        lambda step, w: over_all(squares(range(3))) if step >= 2 else none(w),
    ),
    "fisher, anew": (
        lambda: by_score(adamw(), RATIO, score="fisher", num_stacked_axes=num_stacked_axes),
        lambda step, w: largest(size(gradient(step))),
    ),
    "fisher, every three": (
        lambda: fisher(
            adamw(), RATIO, 2, every=3, scope="tensor", num_stacked_axes=num_stacked_axes
        ),
        lambda step, w: (
            largest(squares(range((step - 2) // 3 * 3, (step - 2) // 3 * 3 + 3)))
            if step >= 2
            else none(w)
        ),
    ),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_each_relative_trains_what_its_rule_says(name: str) -> None:
    make, rule = RELATIVES[name]
    for step, (before, where, state) in enumerate(train(make(), 7)):
        assert_same(where, rule(step, before))
        share = 1 - sum(np.sum(part) for part in where.values()) / 592
        np.testing.assert_allclose(optax.tree.get(state, "masked_fraction"), share, rtol=1e-6)


@pytest.mark.parametrize("name", ["after a warm-up", "gradient to weight, anew", "fisher"])
def test_each_sharding_trains_the_same(name: str, mesh: Any) -> None:
    make, rule = RELATIVES[name]
    for step, (before, where, _) in enumerate(train(make(), 7, mesh)):
        assert_same(where, rule(step, before))


def test_no_moment_grows_before_the_first_mask() -> None:
    *_, (_, _, state) = train(one_off(adamw(), RATIO, warmup=2), 2)
    assert not any(jnp.any(m) for m in jax.tree.leaves(optax.tree.get(state, "mu")))


def randomly(every: int | None = 1, seed: int = 3) -> Any:
    return random_mask(optax.sgd(1e-2), RATIO, seed, every=every, num_stacked_axes=num_stacked_axes)


def test_random_masks_have_the_size_of_the_others(mesh: Any) -> None:
    for _, where, _ in train(randomly(), 3, mesh):
        assert {name: np.mean(part) for name, part in where.items()} == dict.fromkeys(SHAPES, RATIO)
        np.testing.assert_array_equal(np.mean(where["layers"], (1, 2)), [RATIO] * 3)


def test_random_masks_are_the_same_on_every_sharding(mesh: Any) -> None:
    here = [where for _, where, _ in train(randomly(), 3, mesh)]
    with jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))):
        alone = [where for _, where, _ in train(randomly(), 3)]
    assert_same(here, alone)


def test_random_masks_are_drawn_anew_by_their_seed() -> None:
    masks = {seed: [where["w"] for _, where, _ in train(randomly(seed=seed), 3)] for seed in (3, 4)}
    all_six = [*masks[3], *masks[4]]
    assert len({mask.tobytes() for mask in all_six}) == 6
    # Independent halves agree on half of the entries, give or take.
    assert 0.4 < np.mean(all_six[0] == all_six[1]) < 0.6
    lasting = [where["w"] for _, where, _ in train(randomly(every=2), 4)]
    assert [bool(np.all(a == b)) for a, b in pairwise(lasting)] == [
        True,
        False,
        True,
    ]


def test_leaves_of_one_shape_are_drawn_apart() -> None:
    grads = {"a": jnp.ones(64), "b": jnp.ones(64)}
    optimizer = random_mask(optax.sgd(1.0), 0.5, 0)
    updates, _ = optimizer.update(grads, optimizer.init(grads))
    assert bool(jnp.any(updates["a"] != updates["b"]))


def test_each_entry_is_drawn_as_often_as_another() -> None:
    optimizer = random_mask(optax.sgd(1.0), 0.8, 0)
    params = jnp.zeros((10, 10))
    state = optimizer.init(params)

    def body(state: Any, _: None) -> Any:
        updates, state = optimizer.update(jnp.ones_like(params), state)
        return state, updates != 0

    _, chosen = jax.jit(lambda s: jax.lax.scan(body, s, length=2000))(state)
    often = np.mean(chosen, 0)
    np.testing.assert_allclose(often, 0.2, atol=5 * np.sqrt(0.2 * 0.8 / 2000))
    assert np.std(often) > 0.5 * np.sqrt(0.2 * 0.8 / 2000)


@pytest.mark.parametrize("every", [1, 2, None])
def test_a_restored_state_goes_on_as_it_would_have(every: int | None) -> None:
    whole = [where for _, where, _ in train(randomly(every), 5)]
    *_, (_, _, state) = train(randomly(every), 2)
    optimizer, params = randomly(every), weights()  # as after a restart
    state = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state)
    for step in range(2, 5):
        updates, state = optimizer.update(gradient(step), state, params)
        assert_same(jax.tree.map(lambda u: np.asarray(u) != 0, updates), whole[step])


def test_no_gradient_scores_nothing_whatever_the_weight() -> None:
    params = jnp.array([0.0, 0.0, 1.0, 2.0])
    optimizer = gradient_to_weight(optax.sgd(1.0), 0.25)
    out, _ = optimizer.update(jnp.array([0.0, 1.0, 1.0, 1.0]), optimizer.init(params), params)
    np.testing.assert_array_equal(out, [0.0, -1.0, -1.0, -1.0])


def test_a_mask_that_lasts_is_held_as_the_parameters_lie(mesh: Any) -> None:
    params = placed(weights(), mesh)
    state = jax.jit(one_off(adamw(), RATIO).init)(params)
    assert jax.tree.map(lambda k: (k.shape, str(k.dtype)), state.selector_state.kept) == {
        name: (shape, "bool") for name, shape in SHAPES.items()
    }
    assert state.selector_state.squares is None
    assert gmt(adamw(), RATIO).init(params).selector_state.kept is None


CHOICES: dict[str, Any] = {
    "hft": lambda params: hft_schedule(params, key=0, every=2),
    "lisa": lambda params: lisa_schedule(params, num_layers=1, key=0, every=2),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_chosen_by_place_is_all_that_moves(name: str) -> None:
    def llama(seed: int) -> Any:
        keys = iter(jax.random.split(jax.random.key(seed), 5))
        attention = {
            part: jax.random.normal(next(keys), (3, 4, 4)) for part in ("q", "k", "v", "o")
        }
        return {"embed": jax.random.normal(next(keys), (8, 4)), "layers": {"attn": attention}}

    params, choice, optimizer = llama(0), CHOICES[name], train_only(adamw(), CHOICES[name])
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    shares = []
    for step in range(6):
        updates, state = update(llama(1 + step), state, params)
        where = moved(params, optax.apply_updates(params, updates))
        chosen = choice(params)(step)
        assert_same(where, jax.tree.map(lambda c, p: np.broadcast_to(c, p.shape), chosen, params))
        params = optax.apply_updates(params, updates)
        moving = np.concatenate([np.ravel(part) for part in jax.tree.leaves(where)])
        shares.append(float(np.mean(moving)))
        masked_fraction = optax.tree.get(state, "masked_fraction")
        np.testing.assert_allclose(masked_fraction, 1 - shares[-1], rtol=1e-6)
    assert min(shares) > 0
    assert max(shares) < 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"score": "loss"}, "score is one of gradient, gradient_to_weight, weight, random, fisher"),
        ({"every": 0}, "every is a number of updates, an integer of at least 1; got 0"),
        ({"every": jnp.int32(2)}, "name it in static_args"),
        ({"warmup": -1}, "warmup is a number of updates, an integer of at least 0; got -1"),
        ({"apply_to": "weights"}, "apply_to is 'both', 'update' or 'gradient', got 'weights'"),
        ({"mask_ratio": {"a": 1.5}}, "one number in"),
        ({"mask_ratio": {"a": 0.5}, "scope": "global"}, "name one ratio"),
    ],
)
def test_what_cannot_be_is_refused(options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        by_score(optax.sgd(1.0), **{"mask_ratio": 0.5} | options)


def test_a_score_of_weights_needs_them() -> None:
    optimizer = magnitude(optax.sgd(1.0), 0.5)
    with pytest.raises(ValueError, match="score='weight' needs the parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


@pytest.mark.parametrize("module", [gmt_jax.selective, gmt_jax.methods])
def test_the_examples_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
