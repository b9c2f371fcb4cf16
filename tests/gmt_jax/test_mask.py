"""gmt_mask as a transformation, against sorting bit for bit."""

import doctest
import inspect
import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gmt_jax.mask
from gmt_jax import gmt_mask

RATIOS = [0.0, 0.2, 0.29, 0.5, 0.999, 1.0]
LEAVES = [
    ("float32", ()),
    ("float32", (64, 65)),
    ("float32", (4, 3, 2, 1)),
    ("float32", (2, 0)),
    ("bfloat16", (100,)),
    ("float16", (100,)),
    ("complex64", (100,)),
    ("float8_e4m3fn", (100,)),
]
SHAPES = [(), (1,), (7,), (100,), (3, 5), (64, 65), (4, 3, 2, 1), (0,), (2, 0)]
# Without optimisation, two programs of XLA's CPU may differ in the last bit of a modulus.
OPTIMISED = pytest.mark.skipif(
    "GMT_JAX_TEST_OPTIMISED" not in os.environ, reason="a modulus differs between programs"
)
ALL_LEAVES = [
    pytest.param([(dtype, shape) for shape in SHAPES], marks=marks, id=f"all {dtype}")
    for dtype, *marks in [
        ("float32", pytest.mark.slow),
        ("bfloat16", pytest.mark.slow),
        ("float16", pytest.mark.slow),
        ("complex64", pytest.mark.slow, OPTIMISED),
        ("float8_e4m3fn", pytest.mark.slow),
    ]
]
EAGER_AND_JIT = pytest.mark.parametrize(
    "how", ["eager", pytest.param("jit", marks=pytest.mark.slow)]
)


def bits_of(array: Any) -> np.ndarray:
    array = np.atleast_1d(np.asarray(array))
    if array.dtype.kind == "c":
        array = array.view(array.real.dtype)
    return array.view(f"uint{array.dtype.itemsize * 8}")


@pytest.fixture(scope="session", name="reference")
def _reference(mask_by_sorting: Any) -> Any:
    def reference(g: np.ndarray, ratio: float | Fraction) -> np.ndarray:
        if g.dtype.kind == "c":
            size = np.asarray(jnp.abs(g)).astype(np.float64)
        else:
            with np.errstate(invalid="ignore"):  # signalling NaNs
                size = np.abs(g.astype(np.float64))
        return np.where(mask_by_sorting(size, Fraction(str(ratio))), g, np.zeros((), g.dtype))

    return reference


def sample(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Normal entries with ties, zeros of both signs, subnormals, NaN and infinities among them."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape).astype(np.float32)
    values = np.where(rng.random(shape) < 0.2, np.round(values, 1), values)
    kinds = [0.0, -0.0, 1e-40, -2e-40, 6e-8, -6e-8, np.nan, np.inf, -np.inf, 1e-30]
    special = rng.choice(kinds, shape).astype(np.float32)
    values = np.where(rng.random(shape) < 0.3, special, values)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "complex64":
            return (values + 1j * rng.standard_normal(shape)).astype(np.complex64)
        return values.astype(jnp.dtype(dtype))


def masked(g: Any, ratio: Any, **options: Any) -> Any:
    transformation = gmt_mask(ratio, **options)
    return transformation.update(g, transformation.init(g))[0]


_traced = jax.jit(masked)


@pytest.mark.parametrize("how", ["a number", "traced"])
@pytest.mark.parametrize("leaves", [LEAVES, *ALL_LEAVES], ids=lambda leaves: leaves[0][0])
def test_it_equals_sorting(how: str, leaves: list[Any], reference: Any) -> None:
    tree = {
        f"{dtype} {shape}": sample(shape, dtype, seed) for seed, (dtype, shape) in enumerate(leaves)
    }
    arrays = jax.tree.map(jnp.asarray, tree)
    for ratio in RATIOS:
        out = masked(arrays, ratio) if how == "a number" else _traced(arrays, jnp.float32(ratio))
        for name, g in tree.items():
            assert out[name].dtype == g.dtype
            expected = bits_of(reference(g, ratio))
            np.testing.assert_array_equal(bits_of(out[name]), expected, f"{ratio} of {name}")


def test_it_equals_sorting_on_millions(reference: Any) -> None:
    g = sample((1500, 2001), "float32")
    for ratio in (0.2, 0.999):
        out = masked(jnp.asarray(g), ratio)
        np.testing.assert_array_equal(bits_of(out), bits_of(reference(g, ratio)))


@EAGER_AND_JIT
def test_it_equals_sorting_in_float64(how: str, reference: Any) -> None:
    with jax.enable_x64(True):
        g = np.random.default_rng(0).standard_normal(999) * 1e-310
        tree = {"double": jnp.asarray(g), "single": jnp.asarray(g * 1e308, jnp.float32)}
        transformation = gmt_mask(0.29)
        state = transformation.init(tree)
        update = jax.jit(transformation.update) if how == "jit" else transformation.update
        out, new = update(tree, state)
        assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
        assert new.threshold[0] == np.sort(np.abs(g))[int(0.29 * 999)]
        for name, array in tree.items():
            assert out[name].dtype == array.dtype
            expected = reference(np.asarray(array), 0.29)
            np.testing.assert_array_equal(bits_of(out[name]), bits_of(expected))


DTYPES = ["float16", "bfloat16", "float32", "float8_e5m2"]


@pytest.mark.parametrize(
    "shape", [(3, 4), *(pytest.param(s, marks=pytest.mark.slow) for s in [(), (5,)])], ids=str
)
@settings(max_examples=100, deadline=None)
@given(data=st.data(), thousandths=st.integers(0, 1000))
def test_it_equals_sorting_on_any_bits(
    shape: tuple[int, ...], reference: Any, data: st.DataObject, thousandths: int
) -> None:
    tree = {}
    for dtype in DTYPES:
        size = math.prod(shape) * jnp.dtype(dtype).itemsize
        words = data.draw(st.binary(min_size=size, max_size=size))
        tree[dtype] = np.frombuffer(words, jnp.dtype(dtype)).reshape(shape)
    out = _traced(jax.tree.map(jnp.asarray, tree), jnp.float32(thousandths / 1000))
    for dtype, g in tree.items():
        expected = reference(g, thousandths / 1000)
        np.testing.assert_array_equal(bits_of(out[dtype]), bits_of(expected), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 1000, 1003])
def test_any_kind_of_ratio_is_read_as_the_decimal_it_was_written_as(n: int) -> None:
    g = jnp.arange(1.0, n + 1)
    for thousandths in range(0, 1001, 29):
        ratio = thousandths / 1000
        expected = int(Fraction(thousandths, 1000) * n)
        kinds = [ratio, np.float32(ratio), np.float64(ratio)]
        outs = [_traced(g, jnp.float32(ratio))] + [masked(g, kind) for kind in kinds]
        assert [n - int(jnp.count_nonzero(out)) for out in outs] == [expected] * 4


def test_the_reference_is_the_code_in_the_guide(mask_by_sorting: Any) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    assert f"```python\n{inspect.getsource(mask_by_sorting)}```" in guide


def test_the_reference_tells_nearby_ratios_apart(reference: Any) -> None:
    g = sample((100,), "float32")
    assert not np.array_equal(bits_of(reference(g, 0.2)), bits_of(reference(g, 0.21)))


def test_each_stacked_tensor_has_its_own_threshold(reference: Any) -> None:
    scales = np.array([1e-6, 1.0, 1e6], np.float32)[:, None, None]
    g = sample((3, 20, 30), "float32") * scales
    apart = np.stack([reference(layer, 0.29) for layer in g])
    out = masked({"w": jnp.asarray(g)}, 0.29, stacked_axes=0)["w"]
    np.testing.assert_array_equal(bits_of(out), bits_of(apart))
    together = masked({"w": jnp.asarray(g)}, 0.29)["w"]
    np.testing.assert_array_equal(bits_of(together), bits_of(reference(g, 0.29)))


@pytest.mark.parametrize(
    "dtypes",
    [("bfloat16", "float16"), pytest.param(("float32", "float32"), marks=pytest.mark.slow)],
    ids=" and ".join,
)
def test_the_global_scope_masks_the_smallest_of_all_leaves(
    dtypes: tuple[str, str], reference: Any
) -> None:
    tree = {"a": sample((4000,), dtypes[0]), "b": sample((500,), dtypes[1], 1)}
    together = np.concatenate([g.astype(np.float32) for g in tree.values()])
    transformation = gmt_mask(0.29, scope="global")
    state = transformation.init(tree)
    out, new = transformation.update(jax.tree.map(jnp.asarray, tree), state)
    found = np.concatenate([np.asarray(g).astype(np.float32) for g in out.values()])
    np.testing.assert_array_equal(bits_of(found), bits_of(reference(together, 0.29)))
    assert float(new.threshold[0]) == np.sort(np.abs(together))[int(0.29 * 4500)]
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_within_a_tolerance_no_more_is_masked_and_little_less(scope: str) -> None:
    g = np.random.default_rng(0).standard_normal((300, 1000)).astype(np.float32)
    for tolerance in (0.001, 0.02, jnp.float32(0.001)):
        transformation = gmt_mask(0.3, tolerance=tolerance, scope=scope)
        out, state = transformation.update(jnp.asarray(g), transformation.init(g))
        count = int(jnp.sum(out == 0))
        assert 90_000 - 300_000 * float(tolerance) <= count <= 90_000
        np.testing.assert_array_equal(out, np.where(np.abs(g) < float(state.threshold[0]), 0, g))
        assert float(state.masked_fraction) == pytest.approx(count / 300_000)


@EAGER_AND_JIT
def test_a_traced_tolerance_of_zero_is_exact(how: str, reference: Any) -> None:
    g = sample((300, 1000), "float32")
    masked_within = lambda t: masked(jnp.asarray(g), 0.3, tolerance=t)  # noqa: E731
    out = (jax.jit(masked_within) if how == "jit" else masked_within)(jnp.float32(0))
    np.testing.assert_array_equal(bits_of(out), bits_of(reference(g, 0.3)))


def test_a_stack_may_be_empty_and_a_tensor_one_entry() -> None:
    tree = {"empty": jnp.ones((0, 5)), "no entries": jnp.ones((2, 0)), "w": jnp.ones((2, 3))}
    out = masked(tree, 0.5, stacked_axes={"empty": 0, "no entries": 0, "w": (0, 1)})
    np.testing.assert_array_equal(out["w"], tree["w"])
    assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, tree)


def test_the_state_holds_threshold_and_fraction() -> None:
    g = {"a": jnp.arange(10.0), "b": -jnp.arange(20.0).reshape(2, 10)}
    transformation = optax.chain(gmt_mask(0.25), optax.sgd(1.0))
    _, state = transformation.update(g, transformation.init(g))
    assert int(optax.tree.get(state, "count")) == 1
    assert float(optax.tree.get(state, "masked_fraction")) == pytest.approx(7 / 30)
    assert optax.tree.get(state, "threshold").tolist() == [2.0, 5.0]


def test_a_schedule_is_called_with_the_updates_done() -> None:
    transformation = gmt_mask(lambda count: 0.25 * count.astype(float))
    g = jnp.arange(1.0, 5.0)
    state = transformation.init(g)
    for done in range(4):
        out, state = transformation.update(g, state)
        assert int(jnp.sum(out == 0)) == done


def test_none_and_masked_nodes_pass() -> None:
    tree = {"a": jnp.arange(4.0), "b": None, "c": optax.MaskedNode()}
    out = masked(tree, 0.5)
    assert out["b"] is None
    assert out["c"] == optax.MaskedNode()
    np.testing.assert_array_equal(out["a"], [0, 0, 2, 3])


def test_a_tree_without_leaves_passes() -> None:
    transformation = gmt_mask(0.5)
    out, state = transformation.update({"a": None}, transformation.init({"a": None}))
    assert out == {"a": None}
    assert int(state.count) == 1


def test_a_complex_entry_counts_by_its_modulus() -> None:
    g = jnp.array([3 + 4j, 4.5, -4.9j, 1 + 1j], jnp.complex64)
    np.testing.assert_array_equal(masked(g, 0.75), [3 + 4j, 0, 0, 0])


def test_everything_is_masked_below_an_infinite_threshold() -> None:
    transformation = gmt_mask(1)
    g = jnp.array([1.0, jnp.nan, jnp.inf, 0.0], jnp.bfloat16)
    out, state = transformation.update(g, transformation.init(g))
    np.testing.assert_array_equal(out, jnp.zeros(4, jnp.bfloat16))
    assert (float(state.threshold[0]), float(state.masked_fraction)) == (np.inf, 1.0)


def test_the_state_keeps_its_dtypes_when_gradients_have_other_ones_than_parameters() -> None:
    transformation = gmt_mask(0.5)
    state = transformation.init(jnp.zeros(4, jnp.float32))
    out, new = transformation.update(jnp.arange(4.0, dtype=jnp.bfloat16), state)
    assert out.dtype == jnp.bfloat16
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)


def test_the_example_runs() -> None:
    result = doctest.testmod(gmt_jax.mask)
    assert result.attempted >= 5
    assert not result.failed
