"""YAML as configs are written in it, and settings that override it."""

from typing import Any

import pytest

from train.config.yaml import apply_override, flatten, parse_yaml
from train.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-5", 2e-5), ("-1E+3", -1e3), ("1.5e2", 150.0), ("1e", "1e"), ("none", "none")],
)
def test_an_exponent_without_a_point_is_a_number(text: str, value: Any) -> None:
    parsed = parse_yaml(text, "c.yaml")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: a\nrun: b\n", "c.yaml:2: the key 'run' occurs twice; correct the line"),
        ("a: {b: 1,\n b: 2}\n", "c.yaml:2: the key 'b' occurs twice"),
        ("run: [a\n", "c.yaml:2:"),
        ("run: !!python/object:os.system a\n", "c.yaml:1:"),
    ],
)
def test_broken_yaml_is_reported_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "c.yaml")
    assert str(caught.value).startswith(message)


def test_overrides_change_and_add_values() -> None:
    tree: dict[str, Any] = {"a": {"b": 1, "c": 2}, "empty": None}
    for override in ("a.b=[1, x]", "empty.d=null", "new.deep.e=a=b"):
        apply_override(tree, override)
    assert tree == {
        "a": {"b": [1, "x"], "c": 2},
        "empty": {"d": None},
        "new": {"deep": {"e": "a=b"}},
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "'steps' is not a setting; write key.path=value"),
        ("=3", "'=3' is not a setting"),
        ("run.name=x", "'run.name=x': run is a value and has no keys"),
        ("steps=[1", "steps=[1:"),
    ],
)
def test_malformed_overrides_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_override({"run": "r"}, override)
    assert str(caught.value).startswith(message)


def test_flatten_names_every_key_in_full() -> None:
    assert list(flatten({"a": {"b": {}, "c": [1]}})) == [
        ("a", {"b": {}, "c": [1]}),
        ("a.b", {}),
        ("a.c", [1]),
    ]
