"""Each score, and each time of a mask, against its rule in NumPy."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from gmt_jax import by_score, random_mask

OPTIONS = {"stacked_axes": {"w": None, "b": None, "layers": 0}}


def squares(run: Any, steps: range) -> Any:
    gradients = [run.gradient(step) for step in steps]
    return jax.tree.map(lambda *g: sum(x * x for x in g), *gradients)


def ratio(weights: Any, gradient: Any) -> Any:
    return jax.tree.map(lambda w, g: np.abs(g) / np.abs(np.asarray(w)), weights, gradient)


def nothing(run: Any) -> Any:
    return {name: np.zeros(shape, bool) for name, shape in run.shapes.items()}


# The options of each case, and which entries its rule trains in a step from the weights before it.
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "gradient": (
        {"score": "gradient"},
        lambda run, step, w: run.largest(run.gradient(step)),
    ),
    "gradient, for three updates": (
        {"score": "gradient", "every": np.int64(3), "warmup": np.int32(0)},
        lambda run, step, w: run.largest(run.gradient(step // 3 * 3)),
    ),
    "gradient, for good after a warm-up": (
        {"score": "gradient", "every": None, "warmup": 2},
        lambda run, step, w: run.largest(run.gradient(2)) if step >= 2 else nothing(run),
    ),
    "gradient to weight": (
        {"score": "gradient_to_weight"},
        lambda run, step, w: run.largest(ratio(w, run.gradient(step))),
    ),
    "weight": (
        {"score": "weight"},
        lambda run, step, w: run.largest(w),
    ),
    "fisher": (
        {"score": "fisher"},
        lambda run, step, w: run.largest(run.gradient(step)),
    ),
    "fisher, for three updates after a warm-up": (
        {"score": "fisher", "every": 3, "warmup": 2},
        lambda run, step, w: (
            run.largest(squares(run, range((step - 2) // 3 * 3, (step - 2) // 3 * 3 + 3)))
            if step >= 2
            else nothing(run)
        ),
    ),
}


def optimizer_of(run: Any, case: str) -> optax.GradientTransformationExtraArgs:
    return by_score(run.adamw(), run.ratio, **OPTIONS, **CASES[case][0])


@pytest.mark.parametrize("case", CASES)
def test_the_rule_trains_these_entries(case: str, run: Any) -> None:
    for step, (before, moved, state) in enumerate(run.train(optimizer_of(run, case), 7)):
        expected = CASES[case][1](run, step, before)
        jax.tree.map(np.testing.assert_array_equal, moved, expected)
        masked = 1 - sum(np.sum(part) for part in moved.values()) / run.size
        np.testing.assert_allclose(optax.tree.get(state, "masked_fraction"), masked, rtol=1e-6)


def test_every_sharding_trains_the_same(run: Any, mesh: Mesh | None) -> None:
    case = "fisher, for three updates after a warm-up"
    for step, (before, moved, _) in enumerate(run.train(optimizer_of(run, case), 4, mesh)):
        jax.tree.map(np.testing.assert_array_equal, moved, CASES[case][1](run, step, before))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled_every_sharding_trains_the_same(case: str, run: Any, mesh: Mesh | None) -> None:
    trained = run.train(optimizer_of(run, case), 7, mesh, compiled=True)
    for step, (before, moved, _) in enumerate(trained):
        jax.tree.map(np.testing.assert_array_equal, moved, CASES[case][1](run, step, before))


def test_a_compiled_update_selects_what_an_eager_one_does(run: Any) -> None:
    """Compiled, the choice between a new mask and the old one is a branch of the program."""
    optimizer = optimizer_of(run, "fisher, for three updates after a warm-up")
    params, update = run.to_devices(run.weights(), None), jax.jit(optimizer.update)
    state = optimizer.init(params)
    for step, (_, moved, _) in enumerate(run.train(optimizer, 6)):
        updates, state = update(run.gradient(step), state, params)
        still = jax.tree.map(lambda u: np.asarray(u).view("u4") == 1 << 31, updates)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.invert, still), moved)
        params = optax.apply_updates(params, updates)


def test_no_moment_grows_before_the_first_mask(run: Any) -> None:
    *_, (_, _, state) = run.train(optimizer_of(run, "gradient, for good after a warm-up"), 2)
    assert not any(jnp.any(m) for m in jax.tree.leaves(optax.tree.get(state, "mu")))


def test_a_gradient_of_zero_scores_nothing_whatever_the_weight() -> None:
    params = jnp.array([0.0, 0.0, 1.0, 2.0])
    optimizer = by_score(optax.sgd(1.0), 0.25, score="gradient_to_weight")
    out, _ = optimizer.update(jnp.array([0.0, 1.0, 1.0, 1.0]), optimizer.init(params), params)
    np.testing.assert_array_equal(out, [0.0, -1.0, -1.0, -1.0])


def test_the_state_holds_a_mask_only_if_it_lasts_and_squares_only_for_fisher(run: Any) -> None:
    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)

    state = optimizer_of(run, "gradient").init(run.weights()).selector_state
    assert state.mask is None
    assert state.squares is None
    state = optimizer_of(run, "gradient, for three updates").init(run.weights()).selector_state
    assert shapes(state.mask) == {name: (shape, "bool") for name, shape in run.shapes.items()}
    assert state.squares is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "loss"}, "score is one of gradient, gradient_to_weight, weight, random, fisher"),
        ({"every": 0}, "every is a number of updates, an integer of at least 1; got 0"),
        ({"every": jnp.int32(2)}, "name it in static_args"),
        ({"warmup": -1}, "warmup is a number of updates, an integer of at least 0; got -1"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_score(optax.sgd(1.0), 0.5, **options)


@pytest.mark.parametrize("score", ["weight", "gradient_to_weight"])
def test_a_score_of_weights_needs_them(score: str) -> None:
    optimizer = by_score(optax.sgd(1.0), 0.5, score=score)
    with pytest.raises(ValueError, match=f"score='{score}' needs params"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


# Random scores.


def randomly(run: Any, every: int | None = 1, key: Any = 3) -> Any:
    return random_mask(optax.sgd(1e-2), run.ratio, key, every=every, **OPTIONS)


def masks(run: Any, optimizer: Any, steps: int, mesh: Mesh | None = None) -> list[Any]:
    return [moved for _, moved, _ in run.train(optimizer, steps, mesh)]


def test_random_masks_have_the_size_of_others_and_are_the_same_on_every_sharding(
    run: Any, mesh: Mesh | None
) -> None:
    found = masks(run, randomly(run), 2, mesh)
    for mask in found:
        assert {name: np.mean(part) for name, part in mask.items()} == dict.fromkeys(mask, 0.5)
        np.testing.assert_array_equal(np.mean(mask["layers"], (1, 2)), [0.5] * 3)
    with jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))):
        alone = masks(run, randomly(run), 2)
    jax.tree.map(np.testing.assert_array_equal, found, alone)


def test_random_masks_are_drawn_by_their_key_and_number(run: Any) -> None:
    found = {key: [m["w"] for m in masks(run, randomly(run, key=key), 3)] for key in (3, 4)}
    six = [*found[3], *found[4]]
    assert len({mask.tobytes() for mask in six}) == 6
    # Independent halves agree on about half of the entries.
    assert 0.4 < np.mean(six[0] == six[1]) < 0.6
    lasting = [m["w"] for m in masks(run, randomly(run, every=2), 4)]
    same = [bool(np.all(a == b)) for a, b in pairwise(lasting)]
    assert same == [True, False, True]


def test_an_integer_draws_what_its_key_draws(run: Any) -> None:
    from_key = masks(run, randomly(run, key=jax.random.key(3)), 2)
    jax.tree.map(np.testing.assert_array_equal, from_key, masks(run, randomly(run, key=3), 2))


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

    _, drawn = jax.jit(lambda s: jax.lax.scan(body, s, length=2000))(state)
    often = np.mean(drawn, 0)
    np.testing.assert_allclose(often, 0.2, atol=5 * np.sqrt(0.2 * 0.8 / 2000))
    assert np.std(often) > 0.5 * np.sqrt(0.2 * 0.8 / 2000)


@pytest.mark.parametrize("every", [1, 2, None])
def test_a_restored_state_continues_as_before(every: int | None, run: Any) -> None:
    whole = masks(run, randomly(run, every), 5)
    *_, (_, _, state) = run.train(randomly(run, every), 2)
    optimizer, params = randomly(run, every), run.weights()  # as after a restart
    state = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state)
    for step in range(2, 5):
        updates, state = optimizer.update(run.gradient(step), state, params)
        moved = jax.tree.map(lambda u: np.asarray(u) != 0, updates)
        jax.tree.map(np.testing.assert_array_equal, moved, whole[step])


def test_a_function_of_gradient_weights_and_inner_state_is_the_score() -> None:
    """|g + m · w|, with the momentum m before the update or after it."""

    def score(grads: Any, params: Any, state: Any) -> Any:
        return grads + optax.tree.get(state, "trace") * params

    params = jnp.array([1.0, 8.0, 1.0, 1.0])
    gradients = (jnp.array([4.0, 1.0, 2.0, 3.0]), jnp.array([1.0, 0.5, 2.0, 9.0]))
    kept = {}
    for apply_to in ("both", "update"):
        optimizer = by_score(optax.sgd(1.0, momentum=1.0), 0.5, score=score, apply_to=apply_to)
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
            kept.setdefault(apply_to, []).append(np.flatnonzero(updates).tolist())
    # Before: |4 1 2 3|, then with m = (4 0 0 3), |5 .5 2 12|. After: |8 9 4 6|, |6 12.5 6 21|.
    assert kept == {"both": [[0, 3], [0, 3]], "update": [[0, 1], [1, 3]]}


TOLERANCES = {
    "none": 0.0,
    "none, in an array": jnp.float32(0.0),
    "a hundredth": 0.01,
    "a hundredth, in an array": jnp.float32(0.01),
}


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_a_mask_that_lasts_masks_as_many_of_equal_scores_under_a_tolerance(
    tolerance: str, scope: str
) -> None:
    """As the zeros in the gradient of an embedding of which few rows were seen."""
    gradient = {"embed": jnp.zeros((50, 8)).at[7:10].set(9.0), "w": jnp.zeros(400).at[:4].set(5.0)}
    given = TOLERANCES[tolerance]
    optimizer = by_score(optax.sgd(1.0), 0.5, every=None, tolerance=given, scope=scope)
    _, state = optimizer.update(gradient, optimizer.init(gradient), gradient)
    masks = optax.tree.get(state, "mask")
    assert masks["embed"][7:10].all()
    assert masks["w"][:4].all()
    masked = np.array([np.sum(~masks[name]) for name in gradient])
    short = 200 - masked if scope == "tensor" else 400 - masked.sum()
    assert np.all((short >= 0) & (short <= (4 if "hundredth" in tolerance else 0)))
    np.testing.assert_allclose(optax.tree.get(state, "masked_fraction"), masked.sum() / 800)
