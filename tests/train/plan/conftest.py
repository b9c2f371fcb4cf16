"""A stand-in for a compiled step."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from train.plan.plan import CompiledStep


@pytest.fixture
def pretend_step() -> Callable[..., CompiledStep]:
    """Makes a step that needs 261 bytes, of which state, batch and gradients are 161."""

    def make(config: Any, fits: bool = False, **mesh: int) -> CompiledStep:
        shape = {"data": 1, "fsdp": 4, "context": 1, "tensor": 1} | mesh
        pretend_mesh = SimpleNamespace(shape=shape, size=math.prod(shape.values()))
        program: Any = SimpleNamespace(config=config, mesh=pretend_mesh, has_base=False)
        step = CompiledStep(program, 261, fits, None, 0.0)
        step.__dict__["resident"] = {"parameters": 40, "optimizer state": 80, "batch": 1}
        return step

    return make
