"""Old names are refused with the new ones, which exist."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from train.config import Config, load_config
from train.config.base import Section
from train.config.data import DataSection
from train.config.faults import sections_of
from train.config.optimizer import OptimizerSection
from train.config.renames import KEYS, VALUES, find_renamed
from train.config.yaml import apply_override
from train.errors import UserError


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        ("data.learn=last", ["data.learn is now data.loss_on; write data.loss_on: last"]),
        ("data.layout=padded", ["data.layout is now data.packing; write data.packing: none"]),
        ("data.packing=padded", ["data.packing: 'padded' is now 'none'"]),
        ("optimizer.mask.kind=random", ["optimizer.mask.kind: 'random' is now 'random_mask'"]),
        ("optimizer.mask.kind=gmt", []),
        (
            "optimizer.mask={kind: gmt, ratio: 0.3}",
            [
                "optimizer.mask.ratio is now optimizer.mask.mask_ratio; "
                "write optimizer.mask.mask_ratio: 0.3",
                "optimizer.mask.kind: 'gmt' is now 'gmt_mask'",
            ],
        ),
        ("data.packing=[padded]", []),
    ],
)
def test_old_names_are_found(settings: str, messages: list[str]) -> None:
    tree: dict[str, Any] = {}
    apply_override(tree, settings)
    assert find_renamed(tree) == messages


def test_a_config_with_old_names_is_refused(minimal: Path) -> None:
    with pytest.raises(UserError, match=r"data\.layout is now data\.packing"):
        load_config(minimal, ["data.layout=packed"])


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in sections_of(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def test_new_names_are_declared_and_old_ones_are_not() -> None:
    keys = set(_keys(Config))
    assert set(KEYS.values()) <= keys
    assert not keys & set(KEYS)
    kinds = sections_of(OptimizerSection.model_fields["mask"].annotation)
    declared = {
        "data.packing": set(get_args(DataSection.model_fields["packing"].annotation)),
        "optimizer.mask.kind": {
            get_args(kind.model_fields["kind"].annotation)[0] for kind in kinds
        },
    }
    assert VALUES.keys() == declared.keys()
    for key, values in VALUES.items():
        assert set(values.values()) <= declared[key]
        assert not declared[key] & set(values)
