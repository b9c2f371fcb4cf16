"""A run's config: one frozen, validated tree, read from YAML."""

from .root import (
    RESUMABLE_KEYS,
    Config,
    differing_keys,
    dotted,
    dump_config,
    load_config,
    make_config,
)

__all__ = [
    "RESUMABLE_KEYS",
    "Config",
    "differing_keys",
    "dotted",
    "dump_config",
    "load_config",
    "make_config",
]
