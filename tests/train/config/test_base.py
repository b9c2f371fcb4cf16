"""A section is frozen and takes the keys that it declares."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from train.config import Config
from train.config.base import Count, Fraction, Section


class Example(Section):
    share: Fraction = 0.5
    """A share."""
    number: Count = 1
    open: float = 1.0


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Example().share = 0.1


@pytest.mark.parametrize(
    "keys",
    [
        {"shere": 1},
        {"share": 1.1},
        {"share": -0.1},
        {"share": float("nan")},
        {"open": float("inf")},
        {"number": 0},
        {"number": 10**20},
    ],
)
def test_a_section_refuses_unknown_keys_and_values_out_of_range(keys: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Example.model_validate(keys)


def test_the_docstring_of_a_key_is_its_description() -> None:
    assert Example.model_fields["share"].description == "A share."


def integers(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from integers(part)


def test_every_integer_of_the_config_has_a_largest_value() -> None:
    found = list(integers(Config.model_json_schema()))
    assert len(found) > 20
    assert not [key for key in found if not {"maximum", "exclusiveMaximum"} & key.keys()]
