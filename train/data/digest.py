"""Digests that name cached files: equal where the contents are."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path


def digest(*parts: object) -> str:
    """The digest of several values, of which each counts as what `str` makes of it."""
    content = json.dumps([str(part) for part in parts]).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_files(paths: Sequence[Path]) -> str:
    """The digest of the files' contents, whatever their names and times are."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "blake2b").hexdigest())
    return digest(*digests)
