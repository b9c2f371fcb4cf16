"""The search finds the exact threshold, in few passes on any data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax._threshold import reductions, rows, search
from gmt_jax._threshold.find import Found, find
from gmt_jax._threshold.layout import TensorLayout, comparison_dtypes
from gmt_jax._threshold.uint64 import as_float, uint64


def found_in(
    leaves: list[Any], layout: TensorLayout, m: int, guess: float = 0, slack: int | None = None
) -> Found:
    dtypes = comparison_dtypes([leaf.dtype for leaf in leaves], layout)
    spare = None if slack is None else uint64([slack])
    guesses = jnp.full(layout.num_tensors, guess, jnp.float32)
    return find(leaves, dtypes, layout, uint64([m]), guesses, spare)


def passes_and_threshold(
    g: np.ndarray, m: int, guess: float = 0, slack: int | None = None
) -> tuple[int, float, int]:
    found = found_in([jnp.asarray(g)], TensorLayout((g.shape,), ((),)), m, guess, slack)
    value, below = float(found.threshold[0]), int(as_float(found.below)[0])
    assert below == np.sum(np.abs(g) < value)
    return int(found.passes), value, below


N = 200_000
DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], Any]] = {
    "normal": lambda rng: rng.standard_normal(N),
    "cauchy": lambda rng: rng.standard_cauchy(N),
    "log-normal": lambda rng: np.exp(3 * rng.standard_normal(N)),
    "95 % zeros": lambda rng: rng.standard_normal(N) * (rng.random(N) < 0.05),
    "two scales": lambda rng: rng.standard_normal(N) * rng.choice([1e-12, 1], N),
    "constant": lambda _: np.full(N, 0.37),
    "rounded": lambda rng: np.round(rng.standard_normal(N), 2),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_few_passes_find_the_threshold_of_any_common_distribution(name: str) -> None:
    g = DISTRIBUTIONS[name](np.random.default_rng(0)).astype(np.float32)
    for m in (N // 10, N // 5, N // 2, 9 * N // 10, N - 1):
        right = np.partition(np.abs(g), m)[m]
        # From nothing, and from the thresholds of updates with a like gradient.
        for guess, most in ((0, 10), (right, 2), (1.3 * right, 7), (0.7 * right, 7)):
            passes, value, _ = passes_and_threshold(g, m, guess)
            assert value == right
            assert passes <= most, (m, guess)


@pytest.mark.parametrize("name", ["normal", "cauchy", "log-normal", "two scales"])
def test_fewer_passes_find_it_within_a_tolerance(name: str) -> None:
    g = DISTRIBUTIONS[name](np.random.default_rng(1)).astype(np.float32)
    for m in (N // 10, N // 5, 9 * N // 10):
        guess = 1.2 * np.partition(np.abs(g), m)[m]
        passes, _, below = passes_and_threshold(g, m, guess, N // 1000)
        assert m - N // 1000 <= below <= m
        assert passes <= 4


@pytest.mark.parametrize("name", ["normal", "steep"])
def test_few_passes_suffice_for_many_leaves_whose_thresholds_moved(name: str) -> None:
    """The slowest of all decides: no tensor may be searched on for many passes alone."""
    rng, size = np.random.default_rng(0), 1 << 16
    draw = {"normal": rng.standard_normal, "steep": lambda n: np.exp(-3 * rng.exponential(size=n))}
    leaves = [jnp.asarray(draw[name](size), jnp.float32) for _ in range(48)]
    layout = TensorLayout(tuple(leaf.shape for leaf in leaves), ((),) * len(leaves))
    dtypes = comparison_dtypes([leaf.dtype for leaf in leaves], layout)
    m = 4 * size // 5
    right = np.array([np.partition(np.abs(leaf), m)[m] for leaf in leaves])
    ranks = uint64([m] * len(leaves))
    found = find(leaves, dtypes, layout, ranks, jnp.asarray(1.5 * right), None)
    np.testing.assert_array_equal(found.threshold, right)
    assert int(found.passes) <= 8


def test_tensors_that_are_too_small_for_a_tolerance_are_not_searched_on_for_it() -> None:
    rng = np.random.default_rng(3)
    shapes = ((3, 900), (N,))
    leaves = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    layout = TensorLayout(shapes, ((0,), ()))
    dtypes = comparison_dtypes([leaf.dtype for leaf in leaves], layout)
    ranks, guess = layout.expand(uint64([180, N // 5])), jnp.zeros(4)

    def search(*slack: int) -> Found:
        return find(leaves, dtypes, layout, ranks, guess, layout.expand(uint64(slack)))

    exact = find(leaves, dtypes, layout, ranks, guess, None)
    np.testing.assert_array_equal(search(0, 0).threshold, exact.threshold)
    near = search(0, N // 1000)
    assert as_float(near.below)[:3].tolist() == [180] * 3
    assert int(near.passes) < int(exact.passes)


def adversaries() -> dict[str, np.ndarray]:
    """Entries that are crowded where interpolation does not look."""
    rng = np.random.default_rng(0)
    one = np.float32(1).view(np.uint32)
    crowd = (one + 2.0 ** rng.uniform(0, 24, N)).astype(np.uint32).view(np.float32)
    powers = np.exp2(-np.minimum(rng.geometric(0.3, N), 149)).astype(np.float32)
    doubly = (one - 2 ** rng.integers(0, 30, N)).astype(np.uint32).view(np.float32)
    return {
        "powers of two": powers,
        "crowded from above": crowd,
        "crowded from below": doubly,
        "all bits": (rng.integers(0, 0x7F800000, N).astype(np.uint32)).view(np.float32),
    }


@pytest.mark.parametrize("name", adversaries())
def test_no_data_takes_more_passes_than_the_bound(name: str) -> None:
    g = adversaries()[name]
    for m in (1, 2, N // 100, N // 3, N // 2, N - 2):
        passes, value, _ = passes_and_threshold(g, m)
        assert value == np.partition(g, m)[m]
        assert passes <= 24


def test_the_bound_holds_where_interpolation_learns_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Candidates that never help: only even division of the brackets is left."""

    def useless(bracket: Any, positions: Any, *_: Any) -> jax.Array:
        return jnp.broadcast_to(bracket.high - 1, (len(positions), *bracket.high.shape))

    monkeypatch.setattr(search, "_interpolate", useless)
    # Not the jitted function, whose cache does not see the patch.
    monkeypatch.setattr("gmt_jax._threshold.find.select", search.select.__wrapped__)
    rng = np.random.default_rng(0)
    # One in a thousand at each end, so that reading the ends off the data does not help either.
    g = np.where(rng.random(N) < 0.001, rng.choice([1e-40, 1e38], N), rng.standard_normal(N))
    g = np.abs(g).astype(np.float32)
    passes, value, _ = passes_and_threshold(g, N // 3)
    assert value == np.partition(g, N // 3)[N // 3]
    assert passes <= 24


def test_one_threshold_for_all_leaves_is_that_of_their_entries_together() -> None:
    rng = np.random.default_rng(0)
    tree = [
        rng.standard_normal((40, 500)).astype(np.float32),
        np.round(rng.standard_normal(3000), 1).astype("bfloat16"),
        (100 * rng.standard_normal((7, 11))).astype(np.float16),
        np.zeros((0, 4), np.float32),
    ]
    together = np.sort(np.concatenate([np.abs(g.astype(np.float64)).ravel() for g in tree]))
    layout = TensorLayout(tuple(g.shape for g in tree), ((),) * 4, shared=True)
    for m in (0, 1, 4615, len(together) - 1):
        found = found_in([jnp.asarray(g) for g in tree], layout, m)
        assert found.threshold.tolist() == [together[m]]
        assert as_float(found.below).tolist() == [np.sum(together < together[m])]


@pytest.mark.slow
@pytest.mark.parametrize("later", [(0,), (1,), (0, 1, 2)])
def test_the_threshold_of_a_leaf_counted_in_parts_is_exact(
    monkeypatch: pytest.MonkeyPatch, later: tuple[int, ...]
) -> None:
    g = np.random.default_rng(0).standard_normal((6, 50, 40)).astype(np.float32)

    def in_parts(shape: tuple[int, ...], stacked_axes: tuple[int, ...]) -> Any:
        return tuple(axis for axis in range(3) if axis not in later), later

    monkeypatch.setattr(reductions, "_counted_at_once", in_parts)
    # Not the jitted functions, whose caches do not see the patch.
    monkeypatch.setattr("gmt_jax._threshold.find.select", search.select.__wrapped__)
    monkeypatch.setattr("gmt_jax._threshold.rows._read", rows._read.__wrapped__)
    _, value, below = passes_and_threshold(g, 3000)
    assert value == np.sort(np.abs(g), None)[3000]
    assert below == 3000


@pytest.mark.parametrize(
    ("shape", "stacked_axes"),
    [
        ((80, 28672, 8192), (0,)),
        ((28672, 80, 8192), (1,)),
        ((80, 28672, 8192), ()),
        ((2**33,), ()),
        ((), ()),
        ((3, 0), ()),
    ],
)
def test_tensors_of_any_size_have_a_threshold_each(
    shape: tuple[int, ...], stacked_axes: tuple[int, ...]
) -> None:
    leaf = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    tensors = TensorLayout((shape,), (stacked_axes,))
    ranks = tensors.expand(uint64([2**33]))
    found = jax.eval_shape(
        lambda g, guess: find([g], [g.dtype], tensors, ranks, guess, None),
        leaf,
        jax.ShapeDtypeStruct((tensors.num_tensors,), jnp.float32),
    )
    assert found.bits.shape == tuple(shape[axis] for axis in stacked_axes) or (1,)
