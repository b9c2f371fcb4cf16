"""The kinds of mask that select by no score of the gradient, and the union of all kinds."""

from typing import Any, get_args

import optax
import pytest
from pydantic import TypeAdapter, ValidationError

import gmt_jax
from train.config.faults import sections_of
from train.config.mask_kinds import MaskSection
from train.config.masks import GmtMask

MASK: TypeAdapter[Any] = TypeAdapter(MaskSection)


def test_every_kind_is_a_function_of_the_library() -> None:
    kinds = {
        get_args(section.model_fields["kind"].annotation)[0] for section in sections_of(MaskSection)
    }
    assert kinds - {"none"} <= set(gmt_jax.__all__)


def test_the_default_kind_is_the_papers() -> None:
    assert MASK.validate_python({"mask_ratio": 0.3}) == GmtMask(mask_ratio=0.3)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"kind": "skip_update"},
            {"key": 7, "skip_ratio": {"embed|head|norm|bias": 0.0, ".*": 0.5}},
        ),
        (
            {"kind": "magma", "skip_ratio": 0.25, "skip_ratios": {}, "temperature": 1.0},
            {"key": 7, "skip_ratio": {".*": 0.25}, "temperature": 1.0},
        ),
        (
            {"kind": "fixed_mask", "file": "m.safetensors"},
            {"mask": None, "apply_to": "both", "report": False},
        ),
        (
            {"kind": "mofo", "mask_ratios": {"norm": 0.0}},
            {
                "mask_ratio": {"norm": 0.0, ".*": 0.85},
                "scope": "tensor",
                "tolerance": 0.0,
                "report": False,
            },
        ),
    ],
)
def test_a_kind_calls_its_function_with_its_keys(
    monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], expected: dict[str, Any]
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(gmt_jax, keys["kind"], lambda inner, **given: calls.append(given))
    MASK.validate_python(keys).build(optax.sgd(1.0), 3, key=7, stacked_axes=0)
    assert calls == [expected | {"stacked_axes": 0}]


@pytest.mark.parametrize(
    ("keys", "lasts", "shows_kept"),
    [
        ({}, False, True),
        ({"kind": "gmt", "apply_to": "update"}, False, False),
        ({"kind": "random_mask", "every": 2}, True, True),
        ({"kind": "one_off"}, True, True),
        ({"kind": "gradient_to_weight"}, True, True),
        ({"kind": "magnitude", "every": 1}, False, True),
        ({"kind": "hft", "every": 5}, True, True),
        ({"kind": "fixed_mask", "file": "f"}, True, True),
        ({"kind": "mofo"}, False, False),
        ({"kind": "skip_update"}, False, False),
        ({"kind": "none"}, False, False),
    ],
)
def test_what_is_clipped_depends_on_the_kind(
    keys: dict[str, Any], lasts: bool, shows_kept: bool
) -> None:
    mask = MASK.validate_python(keys)
    assert (mask.lasts, mask.shows_kept) == (lasts, shows_kept)


def test_a_probability_of_one_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than 1"):
        MASK.validate_python({"kind": "magma", "skip_ratio": 1.0})


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"compact": True, "report": True}, "remove apply_to and report"),
        ({"compact": True, "apply_to": "update"}, "remove apply_to and report"),
        ({"slots": 8}, "slots has no effect without compact"),
        ({"compact": True, "slots": 129}, "less than or equal to 128"),
    ],
)
def test_what_a_mask_of_a_file_cannot_do_is_refused(keys: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        MASK.validate_python({"kind": "fixed_mask", "file": "m.safetensors"} | keys)
    assert MASK.validate_python({"kind": "fixed_mask", "file": "m", "compact": True}).is_compact
