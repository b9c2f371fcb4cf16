"""The table of chips, by the names that jax gives them."""

import pytest

from train.devices import GIB, find_chip


@pytest.mark.parametrize(
    ("kind", "gib", "teraflops"),
    [
        ("TPU v5 lite", 16, 197),
        ("TPU v5", 95, 459),
        ("TPU v5p", 95, 459),
        ("TPU v6 lite", 32, 918),
        ("TPU v4", 32, 275),
    ],
)
def test_tpus(kind: str, gib: int, teraflops: float) -> None:
    chip = find_chip(kind)
    assert chip is not None
    assert (chip.memory, chip.bf16_flops) == (gib * GIB, teraflops * 1e12)


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
    ],
)
def test_gpus(kind: str, teraflops: float) -> None:
    chip = find_chip(kind)
    assert chip is not None
    assert chip.bf16_flops == teraflops * 1e12


def test_what_is_not_listed() -> None:
    assert find_chip("cpu") is None
