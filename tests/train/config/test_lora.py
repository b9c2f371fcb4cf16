"""The lora section."""

from typing import Any

import pytest
from pydantic import ValidationError

from train.config.lora import ALL, LoraSection


@pytest.mark.parametrize(
    ("given", "modules"),
    [
        ("all-linear", ALL),
        ("q_proj", ("q_proj",)),
        (["v_proj", "q_proj", "v_proj"], ("v_proj", "q_proj")),
    ],
)
def test_modules_are_named_as_peft_names_them(given: Any, modules: tuple[str, ...]) -> None:
    assert LoraSection(target_modules=given).target_modules == modules


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"target_modules": []}, "names no matrix"),
        ({"target_modules": ["query"]}, "should be 'q_proj'"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"alpha": 0}, "greater than 0"),
        ({"r": 4}, "not permitted"),
    ],
)
def test_what_means_nothing_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoraSection.model_validate(keys)
