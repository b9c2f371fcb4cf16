"""Sparse deltas: the tuned bits come back, in few bytes."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmt_jax import delta
from gmt_jax.delta import decode_positions, encode_positions

WORDS = {2: "u2", 4: "u4", 8: "u8"}


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def test_the_docstrings_run() -> None:
    assert doctest.testmod(delta).attempted > 3
    assert doctest.testmod(delta).failed == 0


@given(st.sets(st.integers(0, 5000)), st.integers(0, 100_000))
def test_any_positions_come_back(positions: set[int], room: int) -> None:
    positions = np.array(sorted(positions), np.int64)
    size = int(positions.max(initial=-1)) + 1 + room
    np.testing.assert_array_equal(
        decode_positions(encode_positions(positions), positions.size, size), positions
    )


def test_positions_beyond_32_bits_come_back() -> None:
    positions = np.array([0, 2**31, 2**33 + 5, 2**40], np.int64)
    np.testing.assert_array_equal(
        decode_positions(encode_positions(positions), 4, 2**40 + 1), positions
    )


@pytest.mark.parametrize(
    ("density", "bits"), [(0.001, 11.6), (0.01, 8.2), (0.05, 5.9), (0.2, 3.8), (0.5, 2.1), (1, 1.1)]
)
def test_a_position_takes_little_more_than_its_entropy(density: float, bits: float) -> None:
    positions = np.flatnonzero(np.random.default_rng(0).random(1 << 20) < density)
    assert 8 * encode_positions(positions).size <= bits * positions.size


def test_positions_in_clusters_take_less_than_a_byte() -> None:
    rows = np.random.default_rng(0).random((1000, 1)) < 0.05
    positions = np.flatnonzero(np.broadcast_to(rows, (1000, 600)))
    assert encode_positions(positions).size < positions.size


def test_at_five_per_cent_in_bfloat16_a_delta_is_below_a_tenth() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((1024, 512)).astype(ml_dtypes.bfloat16)
    tuned = np.where(rng.random(base.shape) < 0.05, -base, base)
    changes = delta.extract(base, tuned)
    assert changes.values.size == pytest.approx(0.05 * base.size, rel=0.02)
    assert changes.positions.nbytes + changes.values.nbytes < 0.07 * base.nbytes


SPECIAL = {
    "u2": [0x0000, 0x8000, 0x7FC0, 0x7FC1, 0xFFC1, 0x7F80, 0x0001, 0x3F80],
    "u4": [0x0, 0x80000000, 0x7FC00000, 0x7FC00001, 0xFFC00001, 0x7F800000, 0x1, 0x3F800000],
}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_zeros_signs_and_payloads_of_nan_come_back(dtype: Any) -> None:
    word = WORDS[np.dtype(dtype).itemsize]
    values = np.array(SPECIAL[word], word)
    base, tuned = (grid.ravel().view(dtype) for grid in np.meshgrid(values, values))
    changes = delta.extract(base, tuned)
    assert changes.values.size == 8 * 7  # All pairs but those of a value with itself.
    assert_same_bits(delta.apply(base, changes), tuned)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (7, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "float64"])
def test_any_shape_and_type_comes_back(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    base, other = (rng.integers(0, 9, shape).astype(jnp.dtype(dtype)) for _ in range(2))
    tuned = np.where(rng.random(shape) < 0.5, other, base)
    assert_same_bits(delta.apply(base, delta.extract(base, tuned)), tuned)


def test_a_tree_of_device_arrays_comes_back() -> None:
    base = {"a": jnp.arange(12.0).reshape(3, 4), "b": [jnp.ones(3, jnp.bfloat16), None]}
    tuned = jax.tree.map(lambda x: x.at[1].set(-1), base)
    changes = delta.extract(base, tuned)
    assert changes["a"].values.size == 4
    jax.tree.map(lambda a, b: assert_same_bits(a, np.asarray(b)), delta.apply(base, changes), tuned)


def test_transposed_arrays_count_in_their_own_order() -> None:
    base = np.arange(6.0).reshape(2, 3).T
    tuned = base.copy()
    tuned[0, 1] = -1
    changes = delta.extract(base, tuned)
    assert decode_positions(changes.positions, 1, 6).tolist() == [1]
    assert_same_bits(delta.apply(base, changes), np.ascontiguousarray(tuned))


def test_the_base_stays_as_it_is() -> None:
    base = np.zeros(4)
    delta.apply(base, delta.extract(base, np.ones(4)))
    assert not base.any()


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        (np.ones(4, np.float32), r"layers/w: the base is float32\[3\].*float32\[4\]"),
        (np.ones(3, np.float64), r"layers/w: the base is float32\[3\].*float64\[3\]"),
    ],
)
def test_another_shape_or_type_is_refused_by_name(tuned: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delta.extract({"layers": {"w": np.ones(3, np.float32)}}, {"layers": {"w": tuned}})


def _flip(code: np.ndarray, index: int, bit: int) -> np.ndarray:
    code = code.copy()
    code[index] ^= 1 << bit
    return code


def test_a_damaged_code_is_refused_or_gives_other_positions_inside() -> None:
    size = 10_000
    positions = np.flatnonzero(np.random.default_rng(0).random(size) < 0.05)
    code = encode_positions(positions)
    refused = 0
    for index in range(code.size):
        for bit in range(8):
            try:
                found = decode_positions(_flip(code, index, bit), positions.size, size)
            except ValueError:
                refused += 1
            else:
                assert found.min() >= 0
                assert found.max() < size
    assert refused > 0.2 * 8 * code.size


@pytest.mark.parametrize(
    "code",
    [
        np.zeros(0, np.uint8),
        encode_positions(np.array([3, 700]))[:-1],
        np.full(40, 255, np.uint8),
        np.array([255, *[0] * 255, 3], np.uint8),
        encode_positions(np.array([3, 1700])),
        encode_positions(np.array([3, 700])).astype(np.float32),
    ],
    ids=["empty", "truncated", "noise", "too wide", "outside", "not bytes"],
)
def test_positions_that_cannot_be_are_refused_by_name(code: np.ndarray) -> None:
    base = {"w": np.zeros(1000)}
    whole = delta.extract(base, base)["w"]
    with pytest.raises(ValueError, match=r"w: the positions of its delta are damaged"):
        delta.apply(base, {"w": whole._replace(positions=code, values=np.ones(2))})


@pytest.mark.parametrize(
    ("base", "found"),
    [
        (np.zeros((6, 12), np.float32), r"float32\[6, 12\]"),
        (np.zeros((10, 6), np.float32), r"float32\[10, 6\]"),
        (np.zeros(60, np.float32), r"float32\[60\]"),
        (np.zeros((6, 10), np.int32), r"int32\[6, 10\]"),
    ],
    ids=str,
)
def test_a_base_of_another_shape_or_type_is_refused_by_name(base: np.ndarray, found: str) -> None:
    zeros, ones = (np.full((6, 10), value, np.float32) for value in (0, 1))
    changes = delta.extract({"w": zeros}, {"w": ones})
    with pytest.raises(
        ValueError, match=rf"w: the delta is float32\[6, 10\], but the base {found}"
    ):
        delta.apply({"w": base}, changes)


@pytest.mark.parametrize("other", [np.array([1.0, 2.0, -0.0]), np.array([1.0, 2.5, 0.0])], ids=str)
def test_a_base_with_other_bits_is_refused_by_name(other: np.ndarray) -> None:
    base, kept = np.array([1.0, 2.0, 0.0]), np.arange(3.0)
    changes = delta.extract({"v": kept, "w": base}, {"v": kept, "w": np.array([3.0, 2.0, 0.0])})
    with pytest.raises(
        ValueError, match="w: the delta was extracted from a base with other values"
    ):
        delta.apply({"v": kept, "w": other}, changes)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float8_e4m3fn", "complex64", "complex128"]
)
def test_a_delta_is_a_tree_of_small_arrays(dtype: str) -> None:
    base = {"w": np.zeros((4, 3), jnp.dtype(dtype))}
    tuned = {"w": base["w"].copy()}
    tuned["w"][1, 2] = 1
    changes = delta.extract(base, tuned)
    arrays = jax.tree.map(np.array, changes)  # As a checkpoint of it would hold them.
    assert [array.nbytes for array in arrays["w"][2:]] == [16, 16]
    assert_same_bits(delta.apply(base, arrays)["w"], tuned["w"])
