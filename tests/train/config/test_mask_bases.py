"""What kinds of mask share: balanced and compact masks, and what they refuse."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from train.config.mask_kinds import MaskSection

SECTION: TypeAdapter[Any] = TypeAdapter(MaskSection)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"kind": "one_off", "selection": "exact"}, "compact needs selection balanced"),
        ({"kind": "magnitude", "every": 5}, "a mask that stays"),
        ({"kind": "fisher", "warmup": 2}, "set scope to tensor"),
        ({"kind": "one_off", "tolerance": 0.1}, "remove tolerance"),
        ({"kind": "one_off", "apply_to": "gradient"}, "remove apply_to and report"),
        ({"kind": "one_off", "report": True}, "remove apply_to and report"),
        ({"kind": "gmt"}, "compact"),
        ({"kind": "one_off", "mask_ratio": 0.997}, "0.997 would leave none: take 0.996 or less"),
        ({"kind": "one_off", "mask_ratios": {"w": 0.999}}, "0.999 would leave none"),
    ],
)
def test_what_a_compact_mask_cannot_do_is_refused(keys: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        SECTION.validate_python(keys | {"compact": True})


def test_a_compact_mask_says_what_is_scored_over_how_many_updates() -> None:
    keys = {"kind": "fisher", "warmup": 2, "scope": "tensor", "mask_ratios": {"norm": 0.0}}
    mask = SECTION.validate_python(keys | {"compact": True})
    assert (mask.score, mask.num_updates, mask.is_compact) == ("fisher", 3, True)
    assert mask.ratios == {"norm": 0.0, ".*": 0.2}
    assert not SECTION.validate_python({"kind": "gmt"}).is_compact


def test_rows_of_embeddings_and_whole_tensors_may_be_masked_beyond_one_of_a_group() -> None:
    keys = {"kind": "one_off", "mask_ratio": 0.996, "mask_ratios": {"embed": 0.999, "norm": 1.0}}
    assert SECTION.validate_python(keys | {"compact": True}).ratios["embed"] == 0.999
    assert SECTION.validate_python({"kind": "one_off", "mask_ratio": 0.999}).mask_ratio == 0.999
