"""Rotary position embeddings and the scalings that stretch them to longer contexts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import UserError

KINDS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies (Su et al. 2021, RoFormer) and their scaling.

    "linear" divides every frequency by `factor` (Chen et al. 2023, Position Interpolation);
    "llama3" divides only the low frequencies, with a ramp between the two wavelengths that
    `low_freq_factor` and `high_freq_factor` give as fractions of `original_length` (Llama 3.1).
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], where: str, max_positions: int) -> Self:
        """Reads rope_parameters (transformers 5) or rope_theta and rope_scaling (4)."""
        key = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
        given = hf.get(key) or {}
        if not isinstance(given, Mapping) or any(isinstance(v, Mapping) for v in given.values()):
            raise UserError(f"{where}: {key} must be the same for all layers, got {given!r}")
        kind = given.get("rope_type") or given.get("type") or "default"
        if kind not in KINDS:
            raise UserError(
                f"{where}: {key}: rope_type {kind!r} is not supported; "
                f"supported: {', '.join(KINDS)}"
            )
        partial = given.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
        if partial not in (None, 1):
            raise UserError(f"{where}: partial_rotary_factor {partial} is not supported")

        def number(name: str, *fallbacks: Any) -> float:
            value = next((v for v in (given.get(name), *fallbacks) if v is not None), None)
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise UserError(f"{where}: {key}: {name} must be a positive number, got {value!r}")
            return float(value)

        theta = number("rope_theta", hf.get("rope_theta"), cls.theta)
        if kind == "default":
            return cls(theta)
        factor = number("factor")
        if kind == "linear":
            return cls(theta, kind, factor)
        # In transformers the key beside rope_parameters wins over the one within.
        length = hf.get("original_max_position_embeddings")
        if length is None:
            length = number("original_max_position_embeddings", max_positions)
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if not low < high:
            raise UserError(f"{where}: {key}: low_freq_factor must be below high_freq_factor")
        return cls(theta, kind, factor, low, high, int(length))

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians per position, float32 [head_dim / 2]."""
        plain = self.theta ** -(np.arange(0, head_dim, 2) / head_dim)
        if self.kind == "default":
            return plain.astype(np.float32)
        slow = plain / self.factor
        if self.kind == "linear":
            return slow.astype(np.float32)
        turns = self.original_length * plain / (2 * math.pi)
        share = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        share = np.clip(share, 0, 1)
        return (share * plain + (1 - share) * slow).astype(np.float32)


def rotations(rope: Rope, head_dim: int, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, float32 [B, T, 1, head_dim / 2], of positions [B, T]."""
    frequencies = jnp.asarray(rope.frequencies(head_dim))[None, None, None]
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rotations: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each pair (i, i + head_dim / 2) of x [B, T, heads, head_dim] by its angle."""
    cos, sin = rotations
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
