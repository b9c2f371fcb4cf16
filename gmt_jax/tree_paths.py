"""A leaf's path in its tree: as a name, and as what its random numbers depend on."""

import zlib
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

# What a method that draws takes: a key of jax's default generator, or n for jax.random.key(n).
Key: TypeAlias = jax.Array | int


def as_key(key: Key) -> jax.Array:
    """The key, made of an integer if it is one; that may be traced."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.key(key)


def path_name(path: Any) -> str:
    """The keys, divided by "/"; of a tree that is one leaf, "the array"."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "the array"


def path_key(path: Any, key: jax.Array) -> jax.Array:
    """A random key of the leaf's own, whatever its neighbours in the tree are."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
