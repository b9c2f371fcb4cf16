"""Names and keys of paths."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import DictKey, GetAttrKey

from gmt_jax.tree_paths import as_key, path_key, path_name, path_pattern


def paths(tree: object) -> list[jax.tree_util.KeyPath]:
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_a_name_joins_the_keys_and_a_lone_array_has_one_too() -> None:
    assert [path_name(path) for path in paths({"a": [1, {"b": 2}]})] == ["a/0", "a/1/b"]
    assert path_name(()) == "the array"


def test_a_matrix_has_one_pattern_in_all_layers() -> None:
    tree = {"layers_0": {"q": 1}, "layers_11": {"q": 1, "o": 2}, "blocks": [{"q": 1}]}
    patterns = [path_pattern(path) for path in paths(tree)]
    assert patterns == ["blocks/*/q", "layers_*/q", "layers_*/o", "layers_*/q"]


def test_the_key_of_a_leaf_depends_on_its_path_alone() -> None:
    key = jax.random.key(0)
    alone, among = paths({"b": 1}), paths({"a": 1, "b": 2, "c": 3})
    assert path_key(alone[0], key) == path_key(among[1], key)
    assert len({int(jax.random.bits(path_key(path, key))) for path in among}) == 3


@pytest.mark.parametrize(
    "key", [3, np.int32(3), jnp.int32(3), jax.random.key(3), jax.random.PRNGKey(3)], ids=repr
)
def test_an_integer_is_the_key_of_that_seed(key: object) -> None:
    assert as_key(key) == jax.random.key(3)  # type: ignore[arg-type]


class Projections(NamedTuple):
    query: int
    value: int


@pytest.mark.parametrize(
    ("path", "name"),
    [
        # As Flax flattens an nnx.State: dicts, and in them boxes with the attribute `value`.
        (
            (DictKey("layers"), DictKey(0), DictKey("kernel"), GetAttrKey("value")),
            "layers/0/kernel",
        ),
        ((DictKey("attn"), DictKey("value"), GetAttrKey("value")), "attn/value"),
        ((DictKey("attn"), DictKey("value")), "attn/value"),
        ((GetAttrKey("attn"), GetAttrKey("value")), "attn/value"),
        ((GetAttrKey("value"),), "value"),
        (paths([Projections(0, 1)])[1], "0/value"),
        (paths({"value": {"kernel": 0}})[0], "value/kernel"),
        ((DictKey("a"), GetAttrKey("value"), DictKey("b")), "a/value/b"),
    ],
)
def test_a_box_is_no_part_of_a_name(path: jax.tree_util.KeyPath, name: str) -> None:
    assert path_name(path) == name
    plain = tuple(DictKey(part) for part in name.split("/"))
    assert path_key(path, jax.random.key(0)) == path_key(plain, jax.random.key(0))
