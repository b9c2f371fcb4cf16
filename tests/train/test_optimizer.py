"""The learning rate, what is decayed, and the order clip → mask → AdamW."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from train.config.masks import GmtMask, NoMask, OneOff
from train.config.optimizer import OptimizerSection
from train.optimizer import make_optimizer, make_schedule, undecided
from train.sharding import make_mesh
from train.step import state_shardings

DTYPES: tuple[Any, Any] = ("float32", "bfloat16")
NO_MASK = NoMask(kind="none")


def _rates(steps: int, **settings: Any) -> np.ndarray:
    schedule = make_schedule(OptimizerSection(learning_rate=1.0, **settings), steps)
    return np.array([schedule(step) for step in range(steps)])


def test_the_warm_up_rises_to_the_peak_and_spends_no_update_at_zero() -> None:
    rates = _rates(10, warmup_steps=4)
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    assert np.all(np.diff(rates[4:]) < 0)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_decay_ends_at_the_minimum(schedule: str) -> None:
    rates = _rates(1000, lr_schedule=schedule, min_lr_ratio=0.1)
    assert rates[0] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=2e-3)
    assert rates[500] == pytest.approx(0.55, abs=1e-3)


def test_a_constant_rate_does_not_change() -> None:
    np.testing.assert_array_equal(_rates(5, lr_schedule="constant"), np.ones(5, np.float32))


@pytest.fixture(name="params")
def _params() -> Any:
    key = jax.random.key(0)
    return {
        "layers": {"w": jax.random.normal(key, (2, 8, 10)), "norm": jnp.ones((2, 8))},
        "head": jax.random.normal(key, (10, 8)),
    }


@pytest.mark.parametrize("mask", [NO_MASK, GmtMask()], ids=["unmasked", "masked"])
def test_weight_decay_is_on_matrices_alone(params: Any, mask: Any) -> None:
    config = OptimizerSection(
        weight_decay=0.5, lr_schedule="constant", learning_rate=1.0, mask=mask
    )
    optimizer = make_optimizer(config, 10)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    assert not jnp.any(updates["layers"]["norm"])
    np.testing.assert_allclose(updates["layers"]["w"], -0.5 * params["layers"]["w"], rtol=1e-5)
    np.testing.assert_allclose(updates["head"], -0.5 * params["head"], rtol=1e-5)


def test_each_layer_of_a_stack_has_its_own_threshold(params: Any) -> None:
    grads = jax.tree.map(jnp.copy, params)
    grads["layers"]["w"] = grads["layers"]["w"] * jnp.array([1e-3, 1.0])[:, None, None]
    optimizer = make_optimizer(OptimizerSection(mask={"mask_ratio": 0.3}), 10)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    masked = jnp.sum(updates["layers"]["w"] == 0, axis=(1, 2))
    np.testing.assert_array_equal(masked, [24, 24])


def test_the_norm_is_clipped_before_the_mask(params: Any) -> None:
    """Clipped after it, the norm would be that of the masked gradient, and moments larger."""
    config = OptimizerSection(clip_norm=1e-3, b1=0.0, mask={"mask_ratio": 0.5})
    optimizer = make_optimizer(config, 10)
    _, state = optimizer.update(params, optimizer.init(params), params)
    seen = optax.tree.get(state, "mu")
    assert float(optax.tree.norm(seen)) < 1e-3
    # What was kept is what a clip of the whole gradient leaves of it.
    kept = jax.tree.map(lambda g, m: jnp.where(m != 0, g, 0.0), params, seen)
    expected = optax.tree.scale(1e-3 / optax.tree.norm(params), kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), seen, expected)


def test_where_a_mask_lasts_the_norm_of_what_it_keeps_is_clipped(params: Any) -> None:
    mask = {"kind": "one_off", "mask_ratio": 0.5}
    config = OptimizerSection(clip_norm=1e-3, b1=0.0, mask=mask)
    optimizer = make_optimizer(config, 10)
    _, state = optimizer.update(params, optimizer.init(params), params)
    seen = optax.tree.get(state, "mu")
    assert float(optax.tree.norm(seen)) == pytest.approx(1e-3, rel=1e-4)
    kept = jax.tree.map(lambda g, m: jnp.where(m != 0, g, 0.0), params, seen)
    norm = float(optax.tree.norm(kept))
    assert float(optax.tree.get(state, "kept_grad_norm")) == pytest.approx(norm, rel=1e-5)


def test_the_norm_that_is_kept_is_recorded_unclipped(params: Any) -> None:
    found = {}
    for clip_norm in (1e-3, 1e6, None):
        config = OptimizerSection(clip_norm=clip_norm, mask={"mask_ratio": 0.5})
        optimizer = make_optimizer(config, 10)
        state = optimizer.init(params)
        _, state = optimizer.update(params, state, params)
        found[clip_norm] = float(optax.tree.get(state, "kept_grad_norm"))
    seen = optax.tree.get(state, "mu")
    masked = jax.tree.map(lambda m, g: jnp.where(m != 0, g, 0.0), seen, params)
    for norm in found.values():
        assert norm == pytest.approx(float(optax.tree.norm(masked)), rel=1e-4)


def test_muon_orthogonalises_the_matrices_of_each_layer(params: Any) -> None:
    config = OptimizerSection(
        name="muon", learning_rate=1.0, lr_schedule="constant", clip_norm=None, mask=NO_MASK
    )
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    for layer in np.asarray(updates["layers"]["w"]):
        singular = np.linalg.svd(layer, compute_uv=False)
        assert singular.max() < 2 * singular.min(), "all singular values are near one another"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lion", "adafactor", "sgd"])
def test_other_optimizers_update_under_the_mask(params: Any, name: str) -> None:
    config = OptimizerSection(name=name, mask={"kind": "gmt", "mask_ratio": 0.5}, clip_norm=None)
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert 0.4 < float(jnp.mean(updates["head"] == 0)) <= 0.5


@pytest.mark.parametrize("mask", [NO_MASK, GmtMask()], ids=["unmasked", "masked"])
def test_the_first_moment_can_be_bfloat16(params: Any, mask: Any) -> None:
    plain, half = (
        make_optimizer(OptimizerSection(mu_dtype=dtype, mask=mask), 10) for dtype in DTYPES
    )
    updates, state = half.update(params, half.init(params), params)
    kinds = {
        name: {str(leaf.dtype) for leaf in jax.tree.leaves(optax.tree.get(state, name))}
        for name in ("mu", "nu")
    }
    assert kinds == {"mu": {"bfloat16"}, "nu": {"float32"}}
    expected, _ = plain.update(params, plain.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), updates, expected)


def test_without_a_mask_nothing_is_masked(params: Any) -> None:
    optimizer = make_optimizer(OptimizerSection(mask=NO_MASK), 10)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert all(bool(jnp.all(leaf != 0)) for leaf in jax.tree.leaves(updates))


# What each kind of mask needs, and the share of the entries of the tree below that it masks.
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "gmt": ({}, 0.25),
    "random_mask": ({"every": 2}, 0.25),
    "one_off": ({}, 0.25),
    "every_few": ({"every": 2}, 0.25),
    "gradient_to_weight": ({"every": 1}, 0.25),
    "magnitude": ({"scope": "global"}, 0.25),
    "fisher": ({"warmup": 0}, 0.25),
    "hft": ({"every": 2}, 0.4),
    "lisa": ({"every": 2, "num_layers": 1}, 0.4),
}


def _decoder(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    attention = {name: rng.standard_normal((2, 4, 4)).astype("f4") for name in ("q", "k", "v", "o")}
    return {"embed": rng.standard_normal((4, 8)).astype("f4"), "layers": {"attn": attention}}


@pytest.mark.parametrize(
    "kind",
    [kind if kind == "gmt" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_every_kind_of_mask_leaves_other_weights_as_they_are_to_the_bit(kind: str) -> None:
    keys, share = KINDS[kind]
    ratio = {} if kind in ("hft", "lisa") else {"mask_ratio": 0.25}
    section = OptimizerSection(
        learning_rate=1e-2, weight_decay=0.1, mask={"kind": kind, **ratio, **keys}
    )
    optimizer = make_optimizer(section, 10, seed=1)
    params = jax.tree.map(jnp.asarray, _decoder(0))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(3):
        before = params
        updates, state = update(_decoder(1 + step), state, params)
        params = optax.apply_updates(params, updates)
        same = jax.tree.map(lambda a, b: a.view("u4") == b.view("u4"), before, params)
        assert np.mean(np.concatenate([np.ravel(s) for s in jax.tree.leaves(same)])) == share
    assert float(optax.tree.get(state, "masked_fraction")) == pytest.approx(share)


@pytest.mark.slow
def test_ratios_differ_by_path_and_move_over_the_run(params: Any) -> None:
    mask = {"kind": "gmt", "mask_ratio": 0.0, "final_mask_ratio": 0.5}
    mask |= {"mask_ratios": {"head": 0.25}}
    optimizer = make_optimizer(OptimizerSection(mask=mask), 3)
    state = optimizer.init(params)
    for share in (0.0, 0.25, 0.5):
        updates, state = optimizer.update(params, state, params)
        assert float(jnp.mean(updates["head"] == 0)) == 0.25
        assert float(jnp.mean(updates["layers"]["w"] == 0)) == share


def test_a_mask_that_lasts_is_sharded_as_the_parameters_are(params: Any) -> None:
    mesh = make_mesh(1, -1, 1)
    shapes = jax.eval_shape(lambda: params)
    fsdp = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    shardings = jax.tree.map(lambda _: fsdp, shapes)
    mask = {"kind": "fisher", "warmup": 1}
    optimizer = make_optimizer(OptimizerSection(mask=mask), 3)
    state = state_shardings(mesh, optimizer, shapes, shardings).opt_state
    for name in ("mask", "squares", "mu"):
        assert set(jax.tree.leaves(optax.tree.get(state, name))) == {fsdp}


@pytest.mark.parametrize(
    ("mask", "line"),
    [
        (OneOff(kind="one_off", mask_ratio=0.5), r"mask: 2 tensors \(layers/w, unseen\) had fewer"),
        (GmtMask(mask_ratio=0.5), None),
        pytest.param(
            OneOff(kind="one_off", mask_ratio=0.5, scope="global"), None, marks=pytest.mark.slow
        ),
    ],
)
def test_tensors_in_which_a_lasting_mask_had_nothing_to_choose_from_are_named(
    mask: Any, line: str | None
) -> None:
    config = OptimizerSection(learning_rate=1.0, mask=mask)
    optimizer = make_optimizer(config, steps=2)
    layers = jnp.stack([jnp.zeros((2, 4)), jnp.arange(1.0, 9).reshape(2, 4)])
    params = {"layers": {"w": layers}, "seen": jnp.arange(1.0, 5), "unseen": jnp.zeros(4)}
    _, state = optimizer.update(params, optimizer.init(params), params)
    found = undecided(config, state, params)
    assert found is None if line is None else re.match(line, str(found))
