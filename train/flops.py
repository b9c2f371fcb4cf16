"""Counts the arithmetic of training, and lists accelerators' memory and peak arithmetic."""

from typing import NamedTuple

import jax

from .model import ModelConfig

GIB = 2**30


class Chip(NamedTuple):
    """One device as jax counts devices; for TPU v4 to v6e it is a whole chip."""

    topology: str | None  # name in a TPU topology such as v5e:4x4
    kind: str  # start of device_kind
    memory: int  # bytes of HBM
    bf16_flops: float  # floating-point operations a second, dense bfloat16 products


# TPU: https://docs.cloud.google.com/tpu/docs/v5e and so on, per chip (jax shows two devices for a
# TPU7x chip); those pages write GB for GiB. NVIDIA: data sheets of the SXM boards, without
# sparsity; if boards with different memory share a kind, the smallest is listed. The longest kind
# that matches a device is taken.
CHIPS = (
    Chip("v4", "TPU v4", 32 * GIB, 275e12),
    Chip("v5e", "TPU v5 lite", 16 * GIB, 197e12),
    Chip("v5p", "TPU v5", 95 * GIB, 459e12),
    Chip("v6e", "TPU v6 lite", 32 * GIB, 918e12),
    Chip("tpu7x", "TPU7x", 96 * GIB, 2307e12 / 2),
    Chip(None, "NVIDIA A100", 40_000_000_000, 312e12),
    Chip(None, "NVIDIA A100-SXM4-80GB", 80_000_000_000, 312e12),
    Chip(None, "NVIDIA A100 80GB PCIe", 80_000_000_000, 312e12),
    Chip(None, "NVIDIA H100", 80_000_000_000, 989.4e12),
    Chip(None, "NVIDIA H100 PCIe", 80_000_000_000, 756e12),
    Chip(None, "NVIDIA H200", 141_000_000_000, 989.4e12),
    Chip(None, "NVIDIA B200", 180_000_000_000, 2250e12),
    Chip(None, "NVIDIA L4", 24_000_000_000, 121e12),
)


def find_chip(device_kind: str) -> Chip | None:
    """The chip with this device_kind, or None if it is not listed.

    >>> find_chip("NVIDIA H100 80GB HBM3").bf16_flops
    989400000000000.0
    """
    known = [chip for chip in CHIPS if device_kind.startswith(chip.kind)]
    return max(known, key=lambda chip: len(chip.kind), default=None)


def flops_per_token(model: ModelConfig, length: int) -> float:
    """Floating-point operations per token of a forward and backward pass over rows of `length`.

    Only products count, with one operation for each multiplication and each addition: 6 for every
    weight of a matrix (Kaplan et al. 2020, §2.1; embeddings are looked up and count only as the
    head), and 12 · H · head_dim for every key that a token sees, in every layer (PaLM, Chowdhery et
    al. 2022, appendix B). PaLM counts all T keys of a row; here only the keys that a token sees
    count, (T + 1) / 2 on average without a window, as the others need not be computed. Documents
    within a packed row do not lower the count, and rematerialisation does not raise it.
    """
    D, H, K = model.hidden_size, model.num_attention_heads, model.num_key_value_heads
    attention = 2 * D * (H + K) * model.head_dim
    layer = attention + 3 * D * model.intermediate_size
    weights = model.num_hidden_layers * layer + model.vocab_size * D
    keys = sum(_keys_seen(window, length) for window in model.windows)
    return 6.0 * weights + 12.0 * H * model.head_dim * keys


def _keys_seen(window: int | None, length: int) -> float:
    """Mean number of keys a token of a row attends to, itself included.

    >>> _keys_seen(None, 4)
    2.5
    >>> _keys_seen(2, 4)
    1.75
    """
    seen = min(window or length, length)
    return (seen * (seen + 1) / 2 + (length - seen) * seen) / length


def peak_tokens_per_s(
    model: ModelConfig, length: int, device: jax.Device, devices: int
) -> float | None:
    """Tokens per second at which all devices would multiply bfloat16 at their peak.

    None if the device's peak is not known, as for CPUs.
    """
    chip = find_chip(device.device_kind)
    return devices * chip.bf16_flops / flops_per_token(model, length) if chip else None
