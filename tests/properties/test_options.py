"""Every option with every other and every dtype, against sorting in NumPy."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmt_jax import balanced, gmt, hft, skip_update
from gmt_jax.report import by_leaf

DTYPES = (
    "float8_e4m3fn",
    "float8_e5m2",
    "bfloat16",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
)
STACKED: tuple[int | tuple[int, ...] | None, ...] = (None, 0, 1, (0, 2))
RATIO = 0.4
RATIOS = {
    "number": lambda: RATIO,
    "schedule": lambda: lambda count: jnp.float32(RATIO),
    "array": lambda: jnp.float32(RATIO),
    "by path": lambda: {"never": 0.9, ".*": RATIO},
}
TOLERANCES = {"exact": lambda: 0.0, "near": lambda: 0.1, "array": lambda: jnp.float32(0.1)}
CASES = list(product(RATIOS, TOLERANCES, (False, True)))


@contextmanager
def wide() -> Iterator[None]:
    """With 64 bits, and JAX's usual promotion, as optax's own optimizers need."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def leaf(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Small multiples of 1/4 with ties and zeros, exact in every dtype, as are their moduli."""
    whole = np.random.default_rng(seed).integers(-14, 15, shape) / 4
    if dtype.startswith("complex"):
        return (whole * (3 + 4j)).astype(dtype)
    return whole.astype(jnp.dtype(dtype))


def size_of(array: np.ndarray) -> np.ndarray:
    wide_dtype = np.complex128 if np.iscomplexobj(array) else np.float64
    return np.abs(array.astype(wide_dtype))


def tensors(array: np.ndarray, axes: Any) -> list[np.ndarray]:
    """The tensors of a leaf, each flat."""
    axes = () if axes is None else (axes,) if isinstance(axes, int) else axes
    first = np.moveaxis(array, axes, range(len(axes)))
    count = int(np.prod(first.shape[: len(axes)], dtype=int))
    return list(first.reshape(count, -1))


def check_tensor(size: np.ndarray, kept: np.ndarray, threshold: float, tolerance: float) -> None:
    most = int(RATIO * size.size + 1e-6)
    if not tolerance:
        assert threshold == np.sort(size)[most]
    np.testing.assert_array_equal(kept, size >= threshold)
    below = int(np.sum(~kept))
    # Ties are kept, so that an exact mask may fall short too.
    ties = int(np.sum(size == np.sort(size)[most]))
    assert most - ties - int(tolerance * size.size) <= below <= most


def run(params: Any, scope: str, ratio: Any, tolerance: Any, report: bool, stacked: Any) -> Any:
    options = {"scope": scope, "tolerance": tolerance, "stacked_axes": stacked, "report": report}
    optimizer = gmt(optax.sgd(1.0), ratio, **options)
    return jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g))(params)


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "tolerance", "report"), CASES, ids=str)
def test_with_a_threshold_for_each_tensor(ratio: str, tolerance: str, report: bool) -> None:
    cases = {f"{d} {axes}": (d, axes) for d, axes in product(DTYPES, STACKED)}
    stacked = {name: axes for name, (_, axes) in cases.items()}
    tree = {
        name: leaf(dtype, (2, 3, 20), seed) for seed, (name, (dtype, _)) in enumerate(cases.items())
    }
    tree |= {"empty": np.zeros((0, 3), "f4"), "scalar": np.ones((), "f4")}
    stacked |= {"empty": None, "scalar": None}
    with wide():
        params = jax.tree.map(jnp.asarray, tree)
        given = RATIOS[ratio](), TOLERANCES[tolerance]()
        updates, state = run(params, "tensor", *given, report, stacked)
        thresholds = by_leaf(optax.tree.get(state, "threshold"), params, stacked)
        if report:
            masked = by_leaf(optax.tree.get(state, "by_tensor").masked, params, stacked)
    for name, (dtype, axes) in cases.items():
        assert updates[name].dtype == jnp.dtype(dtype)
        nonzero = np.asarray(updates[name]).astype(np.complex128) != 0
        parts = zip(
            tensors(size_of(tree[name]), axes),
            tensors(nonzero, axes),
            np.ravel(thresholds[name]),
            strict=True,
        )
        for index, (size, moved, threshold) in enumerate(parts):
            kept = size >= threshold
            np.testing.assert_array_equal(moved, kept & (size != 0))
            check_tensor(size, kept, float(threshold), 0.1 if tolerance != "exact" else 0)
            if report:
                figure = np.ravel(masked[name])[index]
                np.testing.assert_allclose(figure, np.mean(~kept), atol=1e-6)


GLOBAL = [(dtype,) for dtype in DTYPES] + [("bfloat16", "float16"), DTYPES]


@pytest.mark.parametrize(
    ("dtypes", "ratio", "tolerance"),
    [
        case if case[1:] == ("number", "exact") and len(case[0]) < 3 else pytest.param(
            *case, marks=pytest.mark.slow
        )
        for case in product(GLOBAL, ("number", "schedule", "array"), TOLERANCES)
    ],
    ids=str,
)  # fmt: skip
def test_with_one_threshold(dtypes: tuple[str, ...], ratio: str, tolerance: str) -> None:
    tree = {f"{dtype} {n}": leaf(dtype, (30, n), n) for dtype in dtypes for n in (2, 7)}
    with wide():
        params = jax.tree.map(jnp.asarray, tree)
        given = RATIOS[ratio](), TOLERANCES[tolerance]()
        updates, state = run(params, "global", *given, False, None)
    (threshold,) = np.asarray(optax.tree.get(state, "threshold"))
    size = np.concatenate([size_of(tree[name]).ravel() for name in sorted(tree)])
    moved = np.concatenate(
        [np.asarray(updates[name]).astype(np.complex128).ravel() != 0 for name in sorted(tree)]
    )
    kept = size >= threshold
    np.testing.assert_array_equal(moved, kept & (size != 0))
    check_tensor(size, kept, float(threshold), 0.1 if tolerance != "exact" else 0)


def test_what_is_no_float_is_refused_by_name() -> None:
    for scope in ("tensor", "global"):
        with pytest.raises(TypeError, match="gmt_mask needs float or complex gradients, but b is"):
            gmt(optax.sgd(1.0), 0.5, scope=scope).init({"a": jnp.ones(2), "b": jnp.ones(2, int)})


BY_PATTERN: dict[str, Any] = {
    "mask_ratio": lambda pattern: gmt(optax.sgd(1.0), {pattern: 0.5}),
    "mask_ratio, balanced": lambda pattern: balanced(optax.sgd(1.0), {pattern: 0.5}),
    "rows": lambda pattern: balanced(optax.sgd(1.0), 0.5, rows=pattern),
    "skip_ratio": lambda pattern: skip_update(optax.sgd(1.0), 0, {pattern: 0.5}),
    "roles": lambda pattern: hft(optax.sgd(1.0), 0, 1, roles={"a.b": pattern}),
}


@pytest.mark.parametrize("option", BY_PATTERN)
def test_what_is_no_expression_is_refused_before_anything_is_trained(option: str) -> None:
    message = rf"{option.split(',')[0]}: '\*' is no regular expression: nothing to repeat"
    with pytest.raises(ValueError, match=message):
        BY_PATTERN[option]("*").init({"w": jnp.ones((2, 2))})


@pytest.mark.parametrize("option", [name for name in BY_PATTERN if "ratio" in name])
def test_a_path_without_a_ratio_is_refused_before_anything_is_trained(option: str) -> None:
    with pytest.raises(ValueError, match=r"no pattern of .*_ratio is found in w; add"):
        BY_PATTERN[option]("other").init({"w": jnp.ones((2, 2))})
