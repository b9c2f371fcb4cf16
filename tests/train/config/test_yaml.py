"""YAML as configs are written in it, and settings that override it."""

from pathlib import Path
from typing import Any

import pytest

from train.config import load_config, make_config
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


@pytest.mark.parametrize(
    "text",
    [
        "a: 0x_",
        "a: 2024-02-30",
        "a: " + "9" * 5000,
        "steps: 0x" + "9" * 5000,
        "[" * 1500,
        "a: &x 1\nb: *x",
        "? [a]\n: 1",
    ],
    ids=["hex", "date", "digits", "hex digits", "brackets", "alias", "key"],
)
def test_what_yaml_cannot_mean_here_is_one_short_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        make_config(parse_yaml(text, "my.yaml"), "my.yaml")
    assert str(caught.value).startswith("my.yaml")
    assert len(str(caught.value)) < 500


def test_a_config_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(b"run: caf\xe9\n")
    with pytest.raises(UserError, match=r"my\.yaml: is not UTF-8"):
        load_config(file)
    with pytest.raises(UserError, match="null"):
        load_config(Path("a\0b.yaml"))
