"""Slices that are not there."""

import importlib.util
from typing import Any

import pytest

from train.errors import UserError
from train.plan.topology import slice_devices

NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the compiler for TPU, exists for Linux on x86-64",
)


@NEEDS_LIBTPU
@pytest.mark.parametrize(
    ("name", "slices", "kind", "devices"),
    [
        ("v5e:4x4", 1, "TPU v5 lite", 16),
        ("v5e:2x2", 2, "TPU v5 lite", 8),
        ("v5p:2x2x2", 1, "TPU v5", 8),
        ("v6e:2x2", 1, "TPU v6 lite", 4),
        ("v4:2x2x1", 1, "TPU v4", 4),  # Chips, not cores.
        ("v6e:1x1", 1, "TPU v6 lite", 1),
        ("v5e:1x1", 1, "TPU v5 lite", 1),
    ],
)
def test_the_devices_of_a_slice(name: str, slices: int, kind: str, devices: int) -> None:
    made = slice_devices(name, slices)
    assert {device.device_kind for device in made} == {kind}
    assert len(made) == devices
    assert len({getattr(device, "slice_index", 0) for device in made}) == slices


@NEEDS_LIBTPU
@pytest.mark.parametrize("name", ["v5e:3x3", "v9:2x2", "v5litepod-16"])
def test_a_slice_that_does_not_exist(name: str) -> None:
    with pytest.raises(UserError, match=f"--topology {name}: no such slice"):
        slice_devices(name)


def test_without_the_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def hidden(name: str, *rest: Any) -> Any:
        return None if name == "libtpu" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    with pytest.raises(UserError, match=r"pip install \"jax\[tpu\]\""):
        slice_devices("v5e:2x2")
