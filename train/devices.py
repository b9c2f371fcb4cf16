"""What accelerators can hold and do, as their makers publish it."""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One device as jax counts them, which for TPU v4 to v6e is a whole chip."""

    topology: str | None  # its name in a TPU topology such as v5e:4x4
    kind: str  # how device_kind begins
    memory: int  # bytes of HBM
    bf16_flops: float  # floating-point operations a second, dense bfloat16 products


# TPU: https://docs.cloud.google.com/tpu/docs/v5e and so on, per chip (of TPU7x jax shows two
# devices a chip); GB are GiB there. NVIDIA: the data sheets of the SXM boards, without sparsity;
# the memory that a GPU has is its board's, of which there are several kinds: the smallest.
# The longest kind that fits is taken.
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
    """The chip that jax calls by this device_kind, or None where it is not listed.

    >>> find_chip("NVIDIA H100 80GB HBM3").bf16_flops
    989400000000000.0
    """
    known = [chip for chip in CHIPS if device_kind.startswith(chip.kind)]
    return max(known, key=lambda chip: len(chip.kind), default=None)
