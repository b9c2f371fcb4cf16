"""The optimizer section's bounds and defaults."""

from typing import Any

import pytest
from pydantic import ValidationError

from train.config import make_config
from train.config.optimizer import OptimizerSection
from train.errors import UserError


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
    ],
)
def test_values_out_of_range_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(keys))):
        OptimizerSection.model_validate(keys)


def test_a_constant_rate_refuses_a_minimum() -> None:
    with pytest.raises(ValidationError, match="min_lr_ratio has no effect when lr_schedule is"):
        OptimizerSection(lr_schedule="constant", min_lr_ratio=0.1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "lionn"}, "optax has no optimizer 'lionn'; did you mean lion?"),
        ({"name": "nowhere:x"}, "there is no optimizer nowhere:x"),
        ({"name": "clip"}, "clip takes no learning_rate, so that it is no optimizer"),
        (
            {"name": "lion", "args": {"b3": 1}},
            "lion takes no b3; it takes b1, b2, mu_dtype, weight_decay",
        ),
        (
            {"name": "sgd", "b1": 0.9},
            "sgd takes no b1; it takes momentum, nesterov, accumulator_dtype",
        ),
        ({"name": "sgd", "weight_decay": 0.1}, "sgd takes no weight_decay"),
        ({"args": {"learning_rate": 1}}, "adamw takes no learning_rate; it takes b1, b2, eps"),
        ({"name": "lion", "args": {"b1": "x"}}, "lion cannot update weights here"),
        ({"name": "lbfgs"}, "lbfgs cannot update weights here"),
        ({"lr_schedule": "cosin"}, "optax has no schedule 'cosin'; did you mean cosine?"),
        ({"lr_schedule": "exponential_decay"}, "exponential_decay needs decay_rate"),
        (
            {"lr_schedule": "wsd", "lr_schedule_args": {"decay": 1}},
            "wsd takes no decay; it takes decay_steps, decay_ratio, min_ratio",
        ),
        ({"lr_schedule": "inverse_sqrt"}, "inverse_sqrt needs timescale, or warmup_steps"),
        ({"lr_schedule": "sgdr_schedule"}, "takes no peak_value, init_value or value"),
        (
            {"lr_schedule": "warmup_constant_schedule", "min_lr_ratio": 0.1},
            "min_lr_ratio has no effect",
        ),
        (
            {"name": "muon", "mask": {"kind": "one_off", "compact": True}},
            "muon computes with whole matrices, which mask.compact does without",
        ),
    ],
)
def test_a_name_or_an_argument_that_is_none_is_refused_in_one_line(
    keys: dict[str, Any], message: str
) -> None:
    tree = {"run": "r", "model": {"path": "m"}, "data": {"train": "d.jsonl"}, "optimizer": keys}
    with pytest.raises(UserError) as caught:
        make_config(tree)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config: optimizer: ")
