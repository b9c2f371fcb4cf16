"""Of equal entries the last are selected, as many as are asked for."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax._threshold import ties
from gmt_jax.selection import LargestScores

RNG = np.random.default_rng(0)
ZEROS = np.where(RNG.random((6, 8, 10)) < 0.2, RNG.standard_normal((6, 8, 10)), 0).astype("f4")
HALVES = np.round(2 * RNG.standard_normal((6, 8, 10))).astype("f4")


def by_sorting(scores: np.ndarray, ratio: float) -> np.ndarray:
    """True where selected: a stable sort leaves the first of equal entries in front."""
    order = np.argsort(np.abs(scores).ravel(), kind="stable")
    mask = np.ones(scores.size, bool)
    mask[order[: int(ratio * scores.size + 1e-9)]] = False
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("limit", [ties.NO_TIE, 100], ids=["whole", "in blocks"])
@pytest.mark.parametrize(
    "scores", [ZEROS, HALVES, np.zeros_like(ZEROS)], ids=["zeros", "halves", "0"]
)
@pytest.mark.parametrize("ratio", [0.5, 0.95])
def test_exactly_as_many_are_masked(
    monkeypatch: pytest.MonkeyPatch, limit: int, scores: Any, ratio: float
) -> None:
    """Also where a tensor has more entries than int32 positions, and is searched in blocks."""
    monkeypatch.setattr(ties, "LONGEST", limit)
    tree = {"a": jnp.asarray(scores), "b": jnp.asarray(scores[:, :, 0], jnp.bfloat16)}
    for axes in (None, {"a": 1, "b": None}):
        largest = LargestScores(ratio, "tensor", 0.0, axes)
        mask, state = largest.select(tree, largest.init(tree), break_ties=True)
        for name, leaf in tree.items():
            values, found = np.asarray(leaf, np.float32)[None], np.asarray(mask[name])[None]
            if axes and name == "a":
                values, found = values[0].swapaxes(0, 1), found[0].swapaxes(0, 1)
            for tensor, selected in zip(values, found, strict=True):
                np.testing.assert_array_equal(selected, by_sorting(tensor, ratio))
        masked = sum(np.sum(~np.asarray(part)) for part in mask.values())
        np.testing.assert_allclose(state.masked_fraction, masked / (480 + 48), rtol=1e-6)


def test_nans_of_all_kinds_are_tied() -> None:
    kinds = np.array([0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0xFF800123], np.uint32)
    leaf = jnp.asarray(np.append(kinds.view(np.float32), np.ones(2, np.float32)))
    largest = LargestScores(0.5, "tensor", 0.0, None)
    (mask,), _ = largest.select([leaf], largest.init([leaf]), break_ties=True)
    assert mask.tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize("limit", [ties.NO_TIE, 100], ids=["whole", "in blocks"])
def test_ties_of_all_leaves_are_masked_in_the_order_of_the_tree(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(ties, "LONGEST", limit)
    tree = [jnp.asarray(ZEROS), jnp.asarray(HALVES[0]), jnp.zeros((0, 3)), jnp.zeros(())]
    largest = LargestScores(0.7, "global", 0.0, None)
    mask, _ = largest.select(tree, largest.init(tree), break_ties=True)
    together = np.concatenate([np.asarray(leaf).ravel() for leaf in tree])
    found = np.concatenate([np.asarray(part).ravel() for part in mask])
    np.testing.assert_array_equal(found, by_sorting(together, 0.7))
