"""A section is frozen and takes the keys that it declares."""

import pytest
from pydantic import ValidationError

from train.config.base import Count, Fraction, Section


class Example(Section):
    share: Fraction = 0.5
    """A share."""
    number: Count = 1


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Example().share = 0.1


@pytest.mark.parametrize("keys", [{"shere": 1}, {"share": 1.1}, {"share": -0.1}, {"number": 0}])
def test_a_section_refuses_unknown_keys_and_values_out_of_range(keys: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Example.model_validate(keys)


def test_the_docstring_of_a_key_is_its_description() -> None:
    assert Example.model_fields["share"].description == "A share."
