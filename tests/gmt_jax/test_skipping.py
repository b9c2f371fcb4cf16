"""SkipUpdate and Magma, against their rules in NumPy."""

import doctest
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import gmt_jax.skipping
from gmt_jax import magma, skip_update
from gmt_jax.tree_paths import path_key


def _rows(run: Any, name: str, x: np.ndarray) -> np.ndarray:
    """A leaf's tensors as rows."""
    return x.reshape(1 if run.stacked[name] is None else x.shape[0], -1)


def _draw(name: str, key: int, step: int, num_tensors: tuple[int, ...]) -> np.ndarray:
    """Which tensors of a leaf are updated, as the documentation says it is drawn."""
    draw = jax.random.fold_in(jax.random.key(key), step)
    leaf_key = path_key((jax.tree_util.DictKey(name),), draw)
    return np.asarray(jax.random.bernoulli(leaf_key, 0.5, num_tensors))


SKIPPING: dict[str, Callable[..., Any]] = {"skip_update": skip_update, "magma": magma}


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        pytest.param("skip_update", "one device", marks=pytest.mark.slow),
        ("magma", "one device"),
        pytest.param("magma", "auto", marks=pytest.mark.slow),
        pytest.param("skip_update", "explicit", marks=pytest.mark.slow),
        pytest.param("magma", "explicit", marks=pytest.mark.slow),
    ],
    indirect=["mesh"],
)
def test_whole_tensors_are_skipped_or_scaled(
    name: str, run: Any, adamw_in_numpy: Any, mesh: Mesh | None
) -> None:
    ratios = {"b": 0.0, ".*": 0.5}
    optimizer = SKIPPING[name](run.adamw(), 7, ratios, stacked_axes=run.stacked)
    references = {leaf: adamw_in_numpy() for leaf in run.shapes}
    scores = dict.fromkeys(run.shapes, 0.5)
    params = run.to_devices(run.weights(), mesh)
    state = optimizer.init(params)
    skipped = 0.0
    for step in range(2):
        gradient = run.gradient(step)
        updates, state = optimizer.update(run.to_devices(gradient, mesh), state, params)
        skipped = 0.0
        for leaf, reference in references.items():
            w, g = np.asarray(params[leaf]), gradient[leaf].astype(np.float64)
            update = _rows(run, leaf, reference(g, w))
            mu, rows = _rows(run, leaf, reference.mu), _rows(run, leaf, g)
            cosine = np.sum(mu * rows, 1) / np.sqrt(np.sum(mu**2, 1) * np.sum(rows**2, 1))
            scores[leaf] = 0.9 * scores[leaf] + 0.1 / (1 + np.exp(-cosine / 2))
            stack = w.shape[: 0 if run.stacked[leaf] is None else 1]
            kept = np.ones(1, bool) if leaf == "b" else _draw(leaf, 7, step, stack).reshape(-1)
            scale = 2.0 if name == "skip_update" else scores[leaf][:, None]
            update = update * (1.0 if leaf == "b" else scale)
            expected = np.where(kept[:, None], update, 0.0).reshape(w.shape)
            made = np.asarray(updates[leaf])
            np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-7)
            out = ~np.broadcast_to(kept[:, None], update.shape).reshape(w.shape)
            assert np.all(np.signbit(made[out])), "the update of what is skipped is -0.0"
            skipped += np.sum(out)
        params = optax.apply_updates(params, updates)
    assert float(state.masked_fraction) == pytest.approx(skipped / run.size, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("name", SKIPPING)
def test_an_injected_ratio_skips_what_a_number_does(name: str, ratio: float, dtype: str) -> None:
    params = {key: jnp.linspace(1.0, 2.0, 4).astype(dtype) for key in "abcdef"}
    optimizers = (
        SKIPPING[name](optax.sgd(1.0, momentum=0.9), 0, ratio),
        optax.inject_hyperparams(SKIPPING[name])(
            optax.sgd(1.0, momentum=0.9), key=0, skip_ratio=ratio
        ),
    )
    with jax.numpy_dtype_promotion("standard"):  # for optax's sgd
        number, array = (
            jax.jit(optimizer.update)(params, optimizer.init(params), params)[0]
            for optimizer in optimizers
        )
    assert len({bool(jnp.all(u == 0)) for u in number.values()}) == (2 if ratio else 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), array, number)


def aligned(optimizer: Any, gradients: list[Any]) -> Any:
    state = optimizer.init(gradients[0])
    for gradient in gradients:
        _, state = optimizer.update(gradient, state, gradient)
    return state.alignment


def test_the_scale_of_gradients_does_not_change_how_they_are_aligned(run: Any) -> None:
    optimizer = magma(optax.sgd(1.0, momentum=0.9), 0)
    gradients = [run.to_devices(run.gradient(step), None) for step in range(2)]
    expected = aligned(optimizer, gradients)
    for scale in (1e-12, 1e12):
        scaled = jax.tree.map(lambda g, s=scale: g * s, gradients)
        np.testing.assert_allclose(aligned(optimizer, scaled), expected, rtol=1e-5)


@pytest.mark.parametrize("name", SKIPPING)
def test_inside_shard_map_a_shard_is_skipped_and_scaled_as_its_tensor(name: str) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    params = {key: jnp.asarray(rng.standard_normal((16, 4)), "f4") for key in "abcd"}
    specs = {key: P("x") if key == "a" else P() for key in params}
    optimizer = SKIPPING[name](optax.sgd(1.0, momentum=0.9), 2)
    state = optimizer.init(params)
    of_state = jax.tree.map(lambda _: P(), state)
    of_state = optax.tree.set(of_state, trace=specs)
    update = jax.shard_map(
        optimizer.update, mesh=mesh, in_specs=(specs, of_state, specs), out_specs=(specs, of_state)
    )
    expected = jax.jit(optimizer.update)(params, state, params)
    assert 0 < float(expected[1].masked_fraction) < 1
    found = jax.jit(update)(params, state, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_updates_are_right_on_average(run: Any) -> None:
    optimizer = skip_update(optax.sgd(1.0), 0, 0.25)
    params = {"w": jnp.zeros(2)}
    state = optimizer.init(params)
    total = np.zeros(2)
    update = jax.jit(optimizer.update)
    for _ in range(400):
        updates, state = update({"w": jnp.ones(2)}, state, params)
        total -= np.asarray(updates["w"])
    np.testing.assert_allclose(total / 400, 1.0, atol=0.1)


@pytest.mark.parametrize("ratio", [1.0, -0.1, {"a": 1}])
def test_a_ratio_that_skips_everything_or_is_none_is_refused(ratio: Any) -> None:
    with pytest.raises(ValueError, match="skip_ratio is the probability"):
        skip_update(optax.sgd(1.0), 0, ratio)


def test_a_path_without_a_ratio_and_a_temperature_of_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="no pattern of skip_ratio is found in b"):
        magma(optax.sgd(1.0), 0, {"a": 0.5}).init({"b": jnp.ones(2)})
    for temperature in (0, np.float32(-1), float("nan")):
        with pytest.raises(ValueError, match="temperature is a positive number"):
            magma(optax.sgd(1.0), 0, temperature=temperature)


def test_the_examples_run() -> None:
    result = doctest.testmod(gmt_jax.skipping)
    assert result.attempted > 0
    assert result.failed == 0
