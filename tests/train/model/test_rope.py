"""Rotary positions, and the two styles in which configs describe them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from train.model.rope import Rope, rotate, rotations

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_scores_depend_on_the_distance_of_positions_alone() -> None:
    draw = np.random.default_rng(0).normal
    q, k = (jnp.asarray(draw(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(query: int, key: int) -> float:
        at_query, at_key = (rotations(Rope(), 8, jnp.array([[n]])) for n in (query, key))
        return float(jnp.sum(rotate(q, at_query) * rotate(k, at_key)))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(8, 3), abs=1e-2)


def test_the_default_frequencies_are_those_of_the_paper() -> None:
    np.testing.assert_allclose(Rope().frequencies(4), [1, 10000**-0.5], rtol=1e-6)


def test_linear_scaling_divides_every_frequency() -> None:
    scaled = Rope(kind="linear", factor=4.0).frequencies(16)
    np.testing.assert_allclose(scaled, Rope().frequencies(16) / 4, rtol=1e-6)


def test_llama3_scaling_divides_the_low_frequencies_alone() -> None:
    plain = Rope(500000.0).frequencies(128)
    scaled = Rope.from_hf({"rope_theta": 500000.0, "rope_scaling": LLAMA3}, "c", 0).frequencies(128)
    wavelengths = 2 * np.pi / plain
    high, low = wavelengths < 8192 / 4, wavelengths > 8192
    np.testing.assert_allclose(scaled[high], plain[high], rtol=1e-6)
    np.testing.assert_allclose(scaled[low], plain[low] / 8, rtol=1e-6)
    between = ~high & ~low
    assert between.any()
    assert np.all((plain / 8 < scaled) & (scaled < plain), where=between)


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 500.0, "rope_scaling": LLAMA3},
        {"rope_parameters": {**LLAMA3, "rope_theta": 500.0}},
    ],
    ids=["transformers 4", "transformers 5"],
)
def test_both_styles_are_read(keys: dict[str, Any]) -> None:
    assert Rope.from_hf(keys, "config.json", 16) == Rope(500.0, "llama3", 8.0, 1.0, 4.0, 8192)
