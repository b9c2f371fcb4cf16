"""The figures of a mask, against NumPy."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax import MaskReport, by_score, gmt, gmt_mask, one_off, train_only
from gmt_jax.report import by_leaf, ever_nonzero, without_choice, zero_fraction

SHAPES = {"w": (16, 24), "layers": (3, 8, 8)}
STACKED = {"w": None, "layers": 0}


def gradient(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    full = {name: rng.standard_normal(shape).astype("f4") for name, shape in SHAPES.items()}
    return {name: np.where(rng.random(g.shape) < 0.2, 0, g) for name, g in full.items()}


def expected(grads: Any, kept: Any, before: Any, ever: Any) -> MaskReport:
    """The figures of one tensor."""
    return MaskReport(
        masked=np.mean(~kept),
        norm_kept=np.linalg.norm(grads[kept]) / np.linalg.norm(grads),
        nonzero_dropped=np.sum((grads != 0) & ~kept) / np.sum(grads != 0),
        overlap=np.sum(kept & before) / max(np.sum(kept | before), 1),
        ever_kept=np.mean(ever),
    )


def assert_close(found: Any, figures: Any) -> None:
    for name, a, b in zip(MaskReport._fields, found, figures, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)


def halves(params: Any) -> Any:
    def mask_of(count: Any, p: Any) -> Any:
        return ((jnp.arange(len(p)) + count) % 2 == 0).reshape(-1, *[1] * (p.ndim - 1))

    return lambda count: jax.tree.map(lambda p: mask_of(count, p), params)


METHODS: dict[str, Any] = {
    "gmt": lambda: gmt(optax.sgd(1.0), 0.5, stacked_axes=STACKED, report=True),
    "every two updates": lambda: by_score(
        optax.sgd(1.0), 0.5, every=2, stacked_axes=STACKED, report=True
    ),
    "scheduled": lambda: train_only(optax.sgd(1.0), halves, stacked_axes=STACKED, report=True),
}


# Eagerly, each method on one device and one method on every mesh; the others are slow.
CASES = [
    (method, axis_type, how)
    if how == "eager" and (method == "gmt" or axis_type is None)
    else pytest.param(method, axis_type, how, marks=pytest.mark.slow)
    for method in METHODS
    for axis_type in (None, AxisType.Auto, AxisType.Explicit)
    for how in ("eager", "jit")
]


@pytest.mark.parametrize(("method", "axis_type", "how"), CASES, ids=str)
def test_the_figures_are_those_of_the_mask(method: str, axis_type: Any, how: str) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type or AxisType.Auto,))

    def to_devices(tree: Any) -> Any:
        if axis_type is None:
            return jax.tree.map(jnp.asarray, tree)
        specs = {"w": P("x"), "layers": P(None, "x")}
        return {
            name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in tree.items()
        }

    optimizer = METHODS[method]()
    update = jax.jit(optimizer.update) if how == "jit" else optimizer.update
    with jax.set_mesh(mesh) if axis_type else contextlib.nullcontext():
        state = optimizer.init(to_devices(gradient(0)))
        before = ever = jax.tree.map(lambda g: np.zeros(g.shape, bool), gradient(0))
        for step in range(3):
            grads = gradient(step)
            _, new = update(to_devices(grads), state)
            assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
            state = new
            kept = jax.tree.map(
                lambda history: (np.asarray(history) & 1) == 1, new.selector_state.history
            )
            ever = jax.tree.map(np.logical_or, ever, kept)
            figures = optax.tree.get(state, "by_tensor")
            by_tensor = [by_leaf(figure, grads, STACKED) for figure in figures]
            parts = (grads, kept, before, ever)
            found = MaskReport(*(figure["w"] for figure in by_tensor))
            assert_close(found, expected(*(part["w"] for part in parts)))
            for layer in range(3):
                found = MaskReport(*(figure["layers"][layer] for figure in by_tensor))
                assert_close(found, expected(*(part["layers"][layer] for part in parts)))
            whole = [np.concatenate([part[name].ravel() for name in SHAPES]) for part in parts]
            assert_close(optax.tree.get(state, "overall"), expected(*whole))
            before = kept


def test_what_was_kept_is_what_moved() -> None:
    optimizer = METHODS["gmt"]()
    ones = jax.tree.map(lambda g: np.where(g == 0, 9, g), gradient(0))
    updates, state = optimizer.update(ones, optimizer.init(ones))
    jax.tree.map(
        lambda u, history: np.testing.assert_array_equal(u != 0, history == 3),
        updates,
        state.selector_state.history,
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_update_without_its_report_counts_for_none_of_the_figures(method: str) -> None:
    optimizer = optax.chain(optax.identity(), METHODS[method]())
    state = silent = optimizer.init(gradient(0))
    _, reported = optimizer.update(gradient(0), state)
    for step in (0, 1, 2):
        updates, state = optimizer.update(gradient(step), state)
        same, silent = optimizer.update(gradient(step), silent, report=step != 1)
        jax.tree.map(np.testing.assert_array_equal, updates, same)
        if step == 1:
            assert_close(optax.tree.get(silent, "overall"), optax.tree.get(reported, "overall"))
    last, first = (
        [(np.asarray(leaf) & 1) == 1 for leaf in jax.tree.leaves(optax.tree.get(s, "history"))]
        for s in (silent, reported)
    )
    both = [
        sum(np.sum(f(a, b)) for a, b in zip(last, first, strict=True))
        for f in (np.logical_and, np.logical_or)
    ]
    overall = optax.tree.get(silent, "overall")
    assert float(overall.overlap) == pytest.approx(both[0] / both[1])
    assert float(overall.ever_kept) == pytest.approx(both[1] / sum(a.size for a in last))


def test_of_no_gradient_no_share_is_kept() -> None:
    optimizer = gmt(optax.sgd(1.0), 0.5, report=True)
    nothing = {"w": jnp.zeros(4)}
    _, state = optimizer.update(nothing, optimizer.init(nothing))
    assert_close(optax.tree.get(state, "overall"), MaskReport(0, 0, 0, 0, 1))


@pytest.mark.parametrize("how", ["eager", pytest.param("jit", marks=pytest.mark.slow)])
def test_more_entries_than_a_float_counts(how: str) -> None:
    """A float32 that counts one by one stops at 2**24."""
    optimizer = gmt(optax.sgd(1.0), 0.0, report=True)
    ones = jnp.ones(2**25, "bfloat16")
    update = jax.jit(optimizer.update) if how == "jit" else optimizer.update
    _, state = update(ones, optimizer.init(ones))
    assert float(optax.tree.get(state, "overall").ever_kept) == 1.0


def test_no_report_is_held_unless_asked_for() -> None:
    state = gmt(optax.sgd(1.0), 0.5).init({"w": jnp.ones(4)})
    assert optax.tree.get(state, "overall") is None


def test_figures_by_tensor_become_a_tree_of_their_leaves() -> None:
    shapes = {"b": jax.ShapeDtypeStruct((2, 3), "f4"), "a": jax.ShapeDtypeStruct((4,), "f4")}
    found = by_leaf(jnp.arange(4.0), shapes, {"b": 1, "a": None})
    assert jax.tree.map(lambda part: part.tolist(), found) == {"a": 0.0, "b": [1.0, 2.0, 3.0]}
    with pytest.raises(ValueError, match=r"figures of shape \[3\] for 4 tensors"):
        by_leaf(jnp.arange(3.0), shapes, {"b": 1, "a": None})


def test_measures_of_a_chain_are_those_of_the_report() -> None:
    measures = {"masked": zero_fraction, "ever_kept": ever_nonzero()}
    optimizer = optax.chain(gmt_mask(0.5), optax.monitor(measures), optax.sgd(1.0))
    state, ever = optimizer.init(gradient(0)), 0
    for step in range(2):
        _, state = optimizer.update(gradient(step), state)
        masked, _ = gmt_mask(0.5).update(gradient(step), gmt_mask(0.5).init(gradient(step)))
        flat = np.concatenate([np.ravel(part) for part in masked.values()])
        ever = ever | (flat != 0)
        found = optax.tree.get(state, "masked"), optax.tree.get(state, "ever_kept")
        np.testing.assert_allclose(found, (np.mean(flat == 0), np.mean(ever)), rtol=1e-6)


def test_tensors_in_which_the_position_decided_are_named() -> None:
    unseen = jnp.zeros((2, 40)).at[0, :30].set(1).at[1, :2].set(1)
    params = {"embed": unseen, "w": jnp.arange(10.0)}
    optimizer = one_off(optax.sgd(1.0), 0.5, stacked_axes={"embed": 0, "w": None})
    _, state = optimizer.update(params, optimizer.init(params), params)
    assert without_choice(state, params, {"embed": 0, "w": None}) == {"embed": 1}
    assert int(jnp.sum(optax.tree.get(state, "mask")["embed"])) == 40


def test_where_everything_or_nothing_is_kept_no_position_decided() -> None:
    """Beside a parameter that is called as a field of the state is."""
    params = {"mask": jnp.zeros(4).at[0].set(1.0), "threshold": jnp.arange(4.0)}
    optimizers = {
        "all of a leaf": one_off(optax.sgd(1.0, momentum=0.5), {"mask": 0.0, ".*": 0.5}),
        "nothing yet": one_off(optax.sgd(1.0, momentum=0.5), 0.5, warmup=3),
        "all that are equal": gmt(optax.sgd(1.0, momentum=0.5), 0.5),
    }
    for optimizer in optimizers.values():
        _, state = optimizer.update(params, optimizer.init(params), params)
        assert without_choice(state, params) == {}
    optimizer = one_off(optax.sgd(1.0, momentum=0.5), 0.5)
    _, state = optimizer.update(params, optimizer.init(params), params)
    assert without_choice(state, params) == {"mask": 1}
