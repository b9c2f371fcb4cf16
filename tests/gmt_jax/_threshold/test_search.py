"""The search finds the exact threshold, in few passes on any data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax._threshold import reductions, search
from gmt_jax._threshold.float_bits import magnitude
from gmt_jax._threshold.layout import TensorLayout
from gmt_jax._threshold.uint64 import uint64


def passes_and_threshold(g: np.ndarray, m: int, slack: int | None = None) -> tuple[int, float, int]:
    layout = TensorLayout((g.shape,), (0,))
    spare = None if slack is None else uint64([slack])
    found = search.select([jnp.asarray(g)], uint64([m]), layout, spare)
    value = float(magnitude(found.bits[0], g.dtype))
    assert float(found.num_below) == np.sum(np.abs(g) < value)
    return int(found.passes), value, int(found.num_below)


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
        passes, value, _ = passes_and_threshold(g, m)
        assert value == np.partition(np.abs(g), m)[m]
        assert passes <= 8


@pytest.mark.parametrize("name", ["normal", "cauchy", "log-normal", "two scales"])
def test_fewer_passes_find_it_within_a_tolerance(name: str) -> None:
    g = DISTRIBUTIONS[name](np.random.default_rng(1)).astype(np.float32)
    for m in (N // 10, N // 5, 9 * N // 10):
        passes, _, below = passes_and_threshold(g, m, N // 1000)
        assert m - N // 1000 <= below <= m
        assert passes <= 3


def adversaries() -> dict[str, np.ndarray]:
    """Entries that no sample shows, crowded where interpolation does not look."""
    rng = np.random.default_rng(0)
    seen = np.zeros(N, bool)
    seen[reductions._spread((N,), 2**12)[0]] = True
    one = np.float32(1).view(np.uint32)
    crowd = (one + 2.0 ** rng.uniform(0, 24, N)).astype(np.uint32).view(np.float32)
    powers = np.exp2(-np.minimum(rng.geometric(0.3, N), 149)).astype(np.float32)
    doubly = (one - 2 ** rng.integers(0, 30, N)).astype(np.uint32).view(np.float32)
    return {
        "hidden from the sample": np.where(seen, 1e30, crowd).astype(np.float32),
        "hidden below": np.where(seen, 1e-30, crowd).astype(np.float32),
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
        assert passes <= 22


def test_the_bound_holds_where_interpolation_learns_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Candidates that never help: only even division of the brackets is left."""

    def useless(bracket: Any, *_: Any) -> jax.Array:
        return jnp.broadcast_to(bracket.high - 1, (len(search.SPREAD), *bracket.high.shape))

    monkeypatch.setattr(search, "_interpolate", useless)
    monkeypatch.setattr(
        search, "_sample_candidates", lambda leaves, rows, *_: jnp.ones((7, 1), jnp.uint32)
    )
    rng = np.random.default_rng(0)
    # One in a thousand at each end, so that reading the ends off the data does not help either.
    g = np.where(rng.random(N) < 0.001, rng.choice([1e-40, 1e38], N), rng.standard_normal(N))
    g = np.abs(g).astype(np.float32)
    found = search.select.__wrapped__(
        [jnp.asarray(g)], uint64([N // 3]), TensorLayout((g.shape,), (0,))
    )
    assert float(magnitude(found.bits[0], g.dtype)) == np.partition(g, N // 3)[N // 3]
    assert search.EVENLY_FROM < int(found.passes) <= 22


def test_one_threshold_for_all_leaves_is_that_of_their_entries_together() -> None:
    rng = np.random.default_rng(0)
    tree = [
        rng.standard_normal((40, 500)).astype(np.float32),
        np.round(rng.standard_normal(3000), 1).astype("bfloat16"),
        (100 * rng.standard_normal((7, 11))).astype(np.float16),
        np.zeros((0, 4), np.float32),
    ]
    together = np.sort(np.concatenate([np.abs(g.astype(np.float64)).ravel() for g in tree]))
    layout = TensorLayout(tuple(g.shape for g in tree), (0,) * 4, shared=True)
    for m in (0, 1, 4615, len(together) - 1):
        found = search.select([jnp.asarray(g) for g in tree], uint64([m]), layout)
        assert [float(magnitude(bits, jnp.float32)) for bits in found.bits] == [together[m]] * 4
        assert float(found.num_below) == np.sum(together < together[m])


@pytest.mark.slow
@pytest.mark.parametrize("later", [(0,), (1,), (0, 1, 2)])
def test_the_threshold_of_a_leaf_counted_in_parts_is_exact(
    monkeypatch: pytest.MonkeyPatch, later: tuple[int, ...]
) -> None:
    g = np.random.default_rng(0).standard_normal((6, 50, 40)).astype(np.float32)
    whole = reductions._counted_at_once

    def in_parts(shape: tuple[int, ...], num_stacked_axes: int) -> Any:
        if shape != g.shape:  # a sample
            return whole(shape, num_stacked_axes)
        return tuple(axis for axis in range(3) if axis not in later), later

    monkeypatch.setattr(reductions, "_counted_at_once", in_parts)
    # Not the jitted function, whose cache does not see the patch.
    layout = TensorLayout((g.shape,), (0,))
    found = search.select.__wrapped__([jnp.asarray(g)], uint64([3000]), layout)
    assert float(magnitude(found.bits[0], g.dtype)) == np.sort(np.abs(g), None)[3000]
    assert float(found.num_below) == 3000


@pytest.mark.parametrize(
    ("shape", "num_stacked_axes"),
    [((80, 28672, 8192), 1), ((80, 28672, 8192), 0), ((2**33,), 0), ((), 0), ((3, 0), 0)],
)
def test_tensors_of_any_size_have_a_threshold_each(
    shape: tuple[int, ...], num_stacked_axes: int
) -> None:
    leaf = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    ranks, layout = uint64([2**33]), TensorLayout((shape,), (num_stacked_axes,))
    found = jax.eval_shape(lambda g: search.select([g], ranks, layout), leaf)
    assert found.bits[0].shape == shape[:num_stacked_axes]
