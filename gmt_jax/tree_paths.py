"""The path of a leaf in its tree, as a name and as the source of the leaf's random numbers."""

import zlib

import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath

from gmt_jax.types import Key


def path_name(path: KeyPath) -> str:
    """The keys of a path, joined by "/"; "the array" for a tree that is a single leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "the array"


def path_key(path: KeyPath, key: jax.Array) -> jax.Array:
    """A random key for one leaf, which does not depend on the other leaves of the tree."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def as_key(key: Key) -> jax.Array:
    """The key itself, or `jax.random.key(n)` for an integer n, which may be traced."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.key(key)
