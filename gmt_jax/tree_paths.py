"""A leaf's path in its tree: as a name, and as what its random numbers depend on."""

import zlib
from typing import Any

import jax


def name_of(path: Any) -> str:
    """The keys, divided by "/"; of a tree that is one leaf, "the array"."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "the array"


def key_of(path: Any, key: jax.Array) -> jax.Array:
    """A random key of the leaf's own, whatever its neighbours in the tree are."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
