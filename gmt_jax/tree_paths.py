"""The path of a leaf in its tree, as a name and as the source of the leaf's random numbers."""

import re
import zlib
from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, GetAttrKey, KeyPath

from gmt_jax.types import Key

Value = TypeVar("Value")


def path_name(path: KeyPath) -> str:
    """The keys of a path, joined by "/"; "the array" for a tree that is a single leaf."""
    return _name(path) or "the array"


def path_pattern(path: KeyPath) -> str:
    """The name of a path without its numbers: one for a matrix in all layers."""
    return re.sub("[0-9]+", "*", _name(path))


def expression(option: str, pattern: str) -> re.Pattern[str]:
    """A regular expression that an option gives; ValueError if it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{option}: {pattern!r} is no regular expression: {error}") from None


def first_found(option: str, by_pattern: Mapping[str, Value], path: KeyPath) -> Value:
    """The value of the first pattern that is found in a path; ValueError if none is."""
    name = path_name(path)
    for pattern, value in by_pattern.items():
        if expression(option, pattern).search(name):
            return value
    raise ValueError(
        f"no pattern of {option} is found in {name}; add '.*' last for all other leaves"
    )


def path_key(path: KeyPath, key: jax.Array) -> jax.Array:
    """A random key for one leaf, which does not depend on the other leaves of the tree."""
    return jax.random.fold_in(key, zlib.crc32(_name(path).encode()))


def without_box(path: KeyPath) -> KeyPath:
    """The path of a parameter, which is the same whether its array is in a Flax box or not.

    Flax holds each array in a box (`nnx.Param`, `nn.Partitioned`) whose attribute `value` it is.
    `nnx.Optimizer` gives an optimizer the boxes at `init`, and the arrays alone at `update`. Boxes
    are in nested dicts, so that the last key is dropped if it is the attribute `value` and all
    before it are keys of dicts. A dict's own key "value" stays, and so does an attribute of that
    name in a list or in another class.
    """
    if len(path) < 2 or not all(isinstance(key, DictKey) for key in path[:-1]):
        return path
    last = path[-1]
    return path[:-1] if isinstance(last, GetAttrKey) and last.name == "value" else path


def as_key(key: Key) -> jax.Array:
    """The key itself, or `jax.random.key(n)` for an integer n, which may be traced.

    It may have the old form, as from `jax.random.PRNGKey`.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(jnp.asarray(key)) if jnp.ndim(key) else jax.random.key(key)


def _name(path: KeyPath) -> str:
    return jax.tree_util.keystr(without_box(path), simple=True, separator="/")
