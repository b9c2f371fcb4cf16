"""The update: microbatches, meshes, and the shardings of its state."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmt_jax import gmt, one_off
from train.config.masks import GmtMask
from train.config.optimizer import OptimizerSection
from train.optimizer import make_optimizer
from train.sharding import make_mesh, microbatch_sharding, param_shardings
from train.step import Batch, Sums, TrainState, jit_train_step, state_shardings, train_step

AXES = {"a": ("embed", "ffn"), "layers": {"b": ("layers", "ffn", "embed")}}


def _params() -> Any:
    a, b = jax.random.split(jax.random.key(0))
    return {"a": jax.random.normal(a, (8, 16)), "layers": {"b": jax.random.normal(b, (2, 16, 8))}}


class Classes:
    """A small network: tokens select one-hot inputs [B, T, 8], and targets are classes."""

    unit = "num_tokens"

    def weight(self, batch: Batch) -> jax.Array:
        return jnp.sum(batch["weights"])

    def __call__(self, params: Any, batch: Batch) -> Sums:
        hidden = jnp.tanh(jax.nn.one_hot(batch["tokens"] % 8, 8) @ params["a"])
        out = sum(hidden @ w for w in params["layers"]["b"])
        scores = optax.softmax_cross_entropy_with_integer_labels(out, batch["targets"] % 8)
        right = jnp.argmax(out, -1) == batch["targets"] % 8
        metrics = {"accuracy": jnp.sum(right.astype(jnp.float32) * batch["weights"])}
        return Sums(jnp.sum(scores * batch["weights"]), self.weight(batch), metrics)


OBJECTIVE = Classes()


def _batch() -> dict[str, np.ndarray]:
    """Eight rows with very different numbers of target tokens."""
    rng = np.random.default_rng(0)
    weights = (np.arange(12) < np.array([1, 12, 3, 7, 2, 12, 1, 5])[:, None]).astype(np.float32)
    tokens, targets = rng.integers(0, 8, (2, 8, 12)).astype(np.int32)
    return {"tokens": tokens, "targets": targets, "weights": weights}


PLAIN = optax.sgd(0.1, momentum=0.9)
MASKED = make_optimizer(
    OptimizerSection(
        learning_rate=1e-2,
        lr_schedule="constant",
        clip_norm=None,
        weight_decay=1e-4,
        mask=GmtMask(mask_ratio=0.3),
    ),
    steps=5,
)


def _train(
    num_microbatches: int,
    mesh: jax.sharding.Mesh,
    steps: int = 5,
    optimizer: optax.GradientTransformation = PLAIN,
) -> tuple[list[list[float]], TrainState]:
    params = _params()
    shapes = jax.eval_shape(lambda: params)
    shardings = state_shardings(mesh, optimizer, shapes, param_shardings(mesh, shapes, AXES))
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    state = jax.device_put(state, shardings)
    step = jit_train_step(OBJECTIVE, optimizer, mesh, shardings)
    cut = {k: v.reshape(num_microbatches, -1, *v.shape[1:]) for k, v in _batch().items()}
    losses = []
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = step(state, jax.device_put(cut, microbatch_sharding(mesh)))
            losses.append([float(metrics["loss"]), float(metrics["accuracy"])])
    return losses, state


def _one_device() -> jax.sharding.Mesh:
    return make_mesh(1, 1, 1, devices=jax.devices()[:1])


def _name(value: object) -> str:
    """The name of a test's parameter."""
    return {id(PLAIN): "plain", id(MASKED): "masked"}.get(id(value), str(value))


@cache
def _alone(optimizer: optax.GradientTransformation = PLAIN) -> tuple[list[list[float]], TrainState]:
    """Five updates on one device, without microbatches."""
    return _train(1, _one_device(), optimizer=optimizer)


def test_loss_and_metrics_are_means_over_all_target_tokens() -> None:
    total, weight, metrics = OBJECTIVE(_params(), jax.tree.map(jnp.asarray, _batch()))
    losses, _ = _train(4, _one_device(), steps=1)
    expected = [float(total / weight), float(metrics["accuracy"] / weight)]
    assert losses[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("num_microbatches", "optimizer"),
    [
        (2, PLAIN),
        (8, PLAIN),
        (4, MASKED),
        pytest.param(2, MASKED, marks=pytest.mark.slow),
        pytest.param(8, MASKED, marks=pytest.mark.slow),
    ],
    ids=_name,
)
def test_microbatches_do_not_change_the_training(
    num_microbatches: int, optimizer: optax.GradientTransformation
) -> None:
    whole, state = _alone(optimizer)
    pieces, other = _train(num_microbatches, _one_device(), optimizer=optimizer)
    np.testing.assert_allclose(pieces, whole, rtol=2e-5)
    assert whole[-1] < whole[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), other.params, state.params
    )


MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2), (4, 1, 2), (1, 2, 2, 2), (1, 1, 1, 8)]


@pytest.mark.parametrize(
    ("shape", "optimizer"),
    [
        *((shape, PLAIN) for shape in MESHES),
        ((2, 2, 2), MASKED),
        *(
            pytest.param(shape, MASKED, marks=pytest.mark.slow)
            for shape in MESHES
            if shape != (2, 2, 2)
        ),
    ],
    ids=_name,
)
def test_every_mesh_gives_the_losses_of_one_device(
    shape: tuple[int, ...], optimizer: optax.GradientTransformation
) -> None:
    alone, _ = _alone(optimizer)
    spread, state = _train(1, make_mesh(*shape), optimizer=optimizer)
    np.testing.assert_allclose(spread, alone, rtol=2e-5)
    momentum = optax.tree.get(state.opt_state, "trace" if optimizer is PLAIN else "mu")
    for moment, weight in zip(
        jax.tree.leaves(momentum), jax.tree.leaves(state.params), strict=True
    ):
        assert moment.sharding == weight.sharding


def test_the_second_update_compiles_nothing() -> None:
    mesh = make_mesh(2, 2, 2)
    params = _params()
    shapes = jax.eval_shape(lambda: params)
    shardings = state_shardings(mesh, MASKED, shapes, param_shardings(mesh, shapes, AXES))
    state = jax.device_put(TrainState(jnp.int32(0), params, MASKED.init(params)), shardings)
    step = jit_train_step(OBJECTIVE, MASKED, mesh, shardings)
    batch = jax.device_put({k: v[None] for k, v in _batch().items()}, microbatch_sharding(mesh))
    for _ in range(2):
        state, metrics = step(state, batch)
    assert step._cache_size() == 1
    assert int(state.step) == 2
    assert float(metrics["masked_fraction"]) == pytest.approx(0.3, abs=0.01)


class Steep(Classes):
    """Its loss is finite, its gradient is not: that of a square root at zero."""

    def __call__(self, params: Any, batch: Batch) -> Sums:
        sums = super().__call__(params, batch)
        return sums._replace(loss=sums.loss + jnp.sqrt(jnp.sum(params["a"] * jnp.float32(0))))


def _update(
    objective: Classes, optimizer: optax.GradientTransformation, batch: dict[str, np.ndarray]
) -> tuple[TrainState, TrainState, dict[str, jax.Array]]:
    """The states before and after an update, which follows a usual one; and its metrics."""
    mesh, params = _one_device(), _params()
    shapes = jax.eval_shape(lambda: params)
    shardings = state_shardings(mesh, optimizer, shapes, param_shardings(mesh, shapes, AXES))
    state = jax.device_put(TrainState(jnp.int32(0), params, optimizer.init(params)), shardings)
    first, second = (jax.tree.map(lambda x: x[None], b) for b in (_batch(), batch))
    state, _ = jit_train_step(OBJECTIVE, optimizer, mesh, shardings)(state, first)
    before = jax.device_get(state)
    after, metrics = jit_train_step(objective, optimizer, mesh, shardings)(state, second)
    return before, jax.device_get(after), metrics


def _infinite(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return batch | {"weights": np.full_like(batch["weights"], np.inf)}


@pytest.mark.parametrize(
    ("objective", "optimizer", "batch"),
    [
        (OBJECTIVE, MASKED, _infinite(_batch())),
        (Steep(), PLAIN, _batch()),
        pytest.param(Steep(), MASKED, _batch(), marks=pytest.mark.slow),
    ],
    ids=["masked-loss", "plain-gradient", "masked-gradient"],
)
def test_an_update_that_is_not_finite_changes_nothing_but_the_step(
    objective: Classes, optimizer: optax.GradientTransformation, batch: dict[str, np.ndarray]
) -> None:
    before, after, metrics = _update(objective, optimizer, batch)
    assert not metrics["finite"]
    assert int(after.step) == int(before.step) + 1
    for one, other in zip(
        jax.tree.leaves(before._replace(step=0)),
        jax.tree.leaves(after._replace(step=0)),
        strict=True,
    ):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_a_batch_without_targets_does_no_harm() -> None:
    batch = _batch()
    _, after, metrics = _update(OBJECTIVE, PLAIN, batch | {"weights": 0 * batch["weights"]})
    assert metrics["finite"]
    assert float(metrics["loss"]) == float(metrics["grad_norm"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_each_of_several_masks_has_a_masked_fraction() -> None:
    masks = {"x": gmt(PLAIN, 0.5), "y": one_off(PLAIN, 0.5)}
    optimizer = optax.partition(masks, {"a": "x", "layers": {"b": "y"}})
    params = _params()
    state = TrainState(jnp.int32(0), params, jax.eval_shape(optimizer.init, params))
    batch = {name: part[None] for name, part in _batch().items()}
    _, figures = jax.eval_shape(partial(train_step, Classes(), optimizer), state, batch)
    fractions = {name for name in figures if name.startswith("masked_fraction")}
    assert fractions == {"masked_fraction/x", "masked_fraction/y"}
