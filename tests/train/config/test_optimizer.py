"""The optimizer section's bounds and defaults."""

from typing import Any

import pytest
from pydantic import ValidationError

from train.config.optimizer import OptimizerSection


def test_the_default_mask_is_the_papers() -> None:
    mask = OptimizerSection().mask
    assert (mask.kind, mask.mask_ratio, mask.scope) == ("gmt_mask", 0.2, "tensor")


@pytest.mark.parametrize(
    "keys",
    [
        {"learning_rate": 0},
        {"warmup_steps": -1},
        {"b1": 1},
        {"b2": 1},
        {"eps": 0},
        {"clip_norm": 0},
        {"weight_decay": -1},
        {"lr_schedule": "exponential"},
    ],
)
def test_values_out_of_range_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(keys))):
        OptimizerSection.model_validate(keys)


def test_a_constant_rate_refuses_a_minimum() -> None:
    with pytest.raises(ValidationError, match="min_lr_ratio has no effect when lr_schedule is"):
        OptimizerSection(lr_schedule="constant", min_lr_ratio=0.1)
